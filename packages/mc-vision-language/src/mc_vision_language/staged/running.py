"""Astrea from nothing, stage by stage into one folder: what the command, the ablation and the benchmarks run.

::

    0  each expert alone on its own annotations                     experts.training.train_expert
    1  adapters aligned with captions, expert by expert             methods.astrea.prealign, where it is on
    2  adapters, router and fusion together, momentum contrast      methods.astrea.joint
    3  a language model learns to read the fused tokens             methods.astrea.instruct

Each stage is one call of :func:`mc_core.fit`; only weights are handed on, from file. An expert that the pictures have no
annotations for is taken as published where its backbone is, given by the caller, or left out, and that is said. A run folder
holds::

    recipe.yaml  tokenizer/  pairs.json  run.json  metrics.jsonl  model/      the model after the last stage that is done
    maps/                                                              kept maps of the experts, see staged.features
    stages/0-detection/train/…  stage.json                             what mc_core.fit leaves; that the stage is done, written last

Interrupted anywhere, the same call goes on to the same bits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from mc_core.data import StepPlan
from mc_core.distributed import first_process_first, rank
from mc_core.engine.checkpoint import differences
from mc_core.engine.config import Fit
from mc_core.engine.distribution import join_processes
from mc_core.engine.loop import RunResult, fit
from mc_core.engine.run import locked
from mc_core.errors import CheckpointError, ConfigError, closest
from mc_core.export import staging
from mc_core.files import StrPath, read_json, read_jsonl, remove_partial, write_atomic, write_json
from mc_core.modules import evaluating
from mc_core.random import derive_seed
from mc_core.recipes import to_yaml
from mc_core.runs import pick_device
from mc_vision_language.data.annotated import AnnotatedPairs
from mc_vision_language.data.captions import clean_caption
from mc_vision_language.experts.base import Expert, build_expert, load_expert, trainable_kinds
from mc_vision_language.experts.config import NEEDS, ExpertConfig, Kind
from mc_vision_language.experts.training import train_expert
from mc_vision_language.methods.astrea.base import AstreaMethod
from mc_vision_language.methods.astrea.config import AstreaConfig
from mc_vision_language.methods.astrea.instruct import AstreaInstruct
from mc_vision_language.methods.astrea.joint import AstreaJoint
from mc_vision_language.methods.astrea.model import AstreaModel, load_astrea
from mc_vision_language.methods.astrea.prealign import AstreaPrealign
from mc_vision_language.recipe import Recipe
from mc_vision_language.staged.data import InstructData, JointData
from mc_vision_language.staged.features import MapData, always_alike, keep_maps, weights_fingerprint
from mc_vision_language.tokenizers import load_tokenizer, train_tokenizer
from mc_vision_language.training import PAIRS_FILE, TOKENIZER_FOLDER, split_counts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_log = logging.getLogger("mc_core")
StageKind = Literal["experts", "prealign", "joint", "instruct"]
STAGES: tuple[StageKind, ...] = ("experts", "prealign", "joint", "instruct")
RUN_FILE, STAGE_FILE, MAPS_FOLDER = "run.json", "stage.json", "maps"
_METHODS: dict[str, type[AstreaMethod]] = {"prealign": AstreaPrealign, "joint": AstreaJoint, "instruct": AstreaInstruct}
_LATER = {  # settings that a stage does not read
    "prealign": (
        *("stages", "instruct", "language", "answers", "router", "balance", "allocator", "expert_dropout"),
        *("queue_size", "momentum", "soft_targets"),
    ),
    "joint": ("stages", "instruct", "language", "answers", "prealign"),
    "instruct": ("stages", "answers", "prealign"),
}
_UNKNOWN = ("unknown",)  # the class of an expert whose head nobody asks
_WEIGHTS, _TRAIN = 0xA570, 0xA571  # separate the uses of the seed
_NAMED = 6

Measure = Callable[[str, nn.Module], Mapping[str, Any]]


@dataclass(frozen=True)
class Stage:
    """One call of :func:`mc_core.fit`.

    Attributes:
        name: of its folder.
        kind: of stage.
        expert: the one that is trained, or that joins.
    """

    name: str
    kind: StageKind
    expert: Kind | None = None


@dataclass(frozen=True)
class StagedRun:
    """What :func:`run_astrea` leaves.

    Attributes:
        run_dir: the run folder.
        model: after the last stage that is done, in evaluation mode; None after the experts alone.
        stages: what ``stage.json`` of each says, in order.
        experts: the kinds that take part.
        left_out: a line for each expert that does not, or is not trained.
    """

    run_dir: Path
    model: AstreaModel | None
    stages: tuple[dict[str, Any], ...]
    experts: tuple[Kind, ...]
    left_out: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of all stages, over all resumes."""
        return float(sum(stage["seconds"] for stage in self.stages))

    def stage(self, kind: StageKind) -> list[dict[str, Any]]:
        """The reports of one kind of stage."""
        return [one for one in self.stages if one["kind"] == kind]


def run_astrea(
    recipe: Recipe[Any],
    data: AnnotatedPairs,
    run_dir: Path | str,
    *,
    stages: Sequence[StageKind] = STAGES,
    experts: Mapping[str, StrPath | Expert] | None = None,
    maps: StrPath | None = None,
    measure: Measure | None = None,
    source: str = "",
    resume: Literal["auto", "never", "must"] = "auto",
) -> StagedRun:
    """Train the stages asked for, in their order, on the training split. What is done is only read.

    Args:
        recipe: of the system ``astrea``; ``fit`` is that of joint training, ``method.stages`` says what others do otherwise.
        data: pictures with splits and whatever they are annotated with.
        run_dir: the run folder.
        stages: which; a stage that is left out must be done before one that needs it.
        experts: ready ones by kind, trained elsewhere: folders, or themselves.
        maps: folder of kept maps, such as one that several runs share; default: in the run. Maps are kept where views are always
            alike (``augment.resize: squash``, no flip, no RandAugment).
        measure: name of a stage and its expert or model → figures, taken when it is done and kept in ``stage.json``.
        source: what to call the data, so that the run knows them again.
        resume: ``auto`` goes on where there is something, ``never`` refuses a folder that holds a run, ``must`` needs one.

    Raises:
        ConfigError: another system, a stage before the one it needs, no expert at all, fewer rows than a batch, or settings that
            cannot work.
        DataError: no training pictures, or none with a caption.
        CheckpointError: a stage was done, or begun, under other settings or on other data; what differs is listed.
        InterruptedRunError, NonFiniteError, CollapseError: as :func:`mc_core.fit`.
    """
    if not isinstance(recipe.method, AstreaConfig):
        raise ConfigError(
            f"'{recipe.system}' is not trained in these stages: give a recipe of astrea, such as astrea-laptop"
        )
    for name in stages:
        if name not in STAGES:
            raise ConfigError(f"no stage '{name}': did you mean {closest(name, STAGES)}?")
    join_processes(recipe.fit)
    run_dir = Path(run_dir)
    with locked(run_dir) if rank() == 0 else contextlib.nullcontext():
        run = _Run(recipe, data, run_dir, stages, experts or {}, maps, measure, source)
        return run.go(resume)


def stages_of(config: AstreaConfig, trained: Sequence[Kind]) -> list[Stage]:
    """All stages of these settings in order.

    Args:
        config: of the method; its experts are those that take part.
        trained: those that have to be trained.

    >>> config = AstreaConfig(prealign={"mode": "sequential"}).only(("classification", "detection"))
    >>> [stage.name for stage in stages_of(config, ["detection"])]
    ['0-detection', '1-prealign-classification', '1-prealign-detection', '2-joint', '3-instruct']
    """
    found = [Stage(f"0-{kind}", "experts", kind) for kind in config.kinds if kind in trained]
    if config.prealign.mode == "parallel":
        found.append(Stage("1-prealign", "prealign"))
    elif config.prealign.mode == "sequential":
        found += [Stage(f"1-prealign-{kind}", "prealign", kind) for kind in config.kinds]
    return [*found, Stage("2-joint", "joint"), Stage("3-instruct", "instruct")]


class _Run:
    def __init__(
        self,
        recipe: Recipe[Any],
        data: AnnotatedPairs,
        run_dir: Path,
        wanted: Sequence[str],
        ready: Mapping[str, StrPath | Expert],
        maps: StrPath | None,
        measure: Measure | None,
        source: str,
    ) -> None:
        self.recipe, self.fit, self.run_dir = recipe, recipe.fit, run_dir
        self.wanted, self.measure, self.source = tuple(wanted), measure, source
        self.maps = Path(maps) if maps is not None else run_dir / MAPS_FOLDER
        self.whole, self.data = data, data.part("train")
        if recipe.unit != "image":
            raise ConfigError("unit caption: the stages of astrea pass over pictures; set unit to image")
        if unknown := [kind for kind in ready if kind not in NEEDS]:
            raise ConfigError(f"no expert '{unknown[0]}': choose {', '.join(NEEDS)}")
        kinds, self.left_out, self.as_published = self._kinds(recipe.method, ready)
        self.config: AstreaConfig = recipe.method.only(kinds) if kinds != recipe.method.kinds else recipe.method
        self.ready = {kind: one for kind, one in ready.items() if kind in kinds}
        self.trained = [kind for kind in kinds if kind not in self.ready and kind not in self.as_published]
        self.plan = stages_of(self.config, self.trained)
        self.tokenizer = self._take_tokenizer()
        self._digest: dict[str, str] | None = None
        self.joint_data = JointData(
            self.data,
            self.tokenizer,
            augment=recipe.augment,
            max_length=self.config.text.max_length,
            add_sep=self.config.text.add_sep,
        )
        self._check()

    def _kinds(
        self, config: AstreaConfig, ready: Mapping[str, Any]
    ) -> tuple[tuple[Kind, ...], tuple[str, ...], tuple[Kind, ...]]:
        """Experts that take part, what to say about the others, and those that are taken as published."""
        able, lines = trainable_kinds(self.data)
        described = {one.kind: one for one in config.experts}
        published = tuple(
            kind for kind in config.kinds if kind not in ready and kind not in able and described[kind].pretrained
        )
        told = [
            f"the {kind} expert is taken as published ({described[kind].backbone}): no picture has {NEEDS[kind]}"
            for kind in published
        ]
        said = [
            line
            for line in lines
            if not any(f" {kind} expert" in line for kind in (*ready, *published)) and self._concerns(line, config)
        ]
        kept = tuple(kind for kind in config.kinds if kind in ready or kind in able or kind in published)
        if not kept:
            raise ConfigError(
                f"no expert can be trained: {'; '.join(lines)}. Give annotations, trained experts, or experts with published "
                "weights (method.experts.*.pretrained)"
            )
        return kept, (*said, *told), published

    @staticmethod
    def _concerns(line: str, config: AstreaConfig) -> bool:
        return any(f"{kind} expert" in line for kind in config.kinds)

    def _check(self) -> None:
        """What cannot work is said before anything is written."""
        last = max((STAGES.index(name) for name in self.wanted), default=-1)  # type: ignore[arg-type]
        for stage in self.plan:
            if stage.kind not in self.wanted or stage.kind == "experts":
                continue
            StepPlan(len(self.joint_data), self._settings(stage).batch_size, 0)
        if last < 0:
            raise ConfigError(f"no stage is asked for: choose among {', '.join(STAGES)}")

    def go(self, resume: str) -> StagedRun:
        last = max(STAGES.index(name) for name in self.wanted)  # type: ignore[arg-type]
        for stage in self.plan:  # before anything is written
            if STAGES.index(stage.kind) <= last and stage.kind not in self.wanted and self._done(stage) is None:
                raise ConfigError(self._unready(stage, last))
        self._take_run(resume)
        for line in self.left_out if rank() == 0 else ():
            _log.warning("%s", line)
        reports: list[dict[str, Any]] = []
        before: Stage | None = None
        for stage in self.plan:
            if STAGES.index(stage.kind) > last:
                break
            report = self._done(stage)
            if report is None:
                self._do(stage, before, reports)
                report = read_json(self._place(stage) / STAGE_FILE)
            reports.append(report)
            before = None if stage.kind == "experts" else stage
        model = None if before is None else self._model_after(before).eval()
        return StagedRun(self.run_dir, model, tuple(reports), self.config.kinds, self.left_out)

    def _unready(self, stage: Stage, last: int) -> str:
        needs = (
            "an expert"
            if stage.kind == "experts"
            else "pre-alignment"
            if stage.kind == "prealign"
            else "joint training"
        )
        return (
            f"stage {STAGES[last]} needs {needs} ({stage.name}), which is not done in {self.run_dir}: run the stage "
            f"{stage.kind} first, or together with it"
        )

    def _done(self, stage: Stage) -> dict[str, Any] | None:
        path = self._place(stage) / STAGE_FILE
        if not path.is_file():
            return None
        report = read_json(path)
        if changed := differences(report["settings"], self._said(stage)):
            more = f"; and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
            raise CheckpointError(
                f"{self._place(stage)} was done under other settings ({'; '.join(changed[:_NAMED])}{more}): give the same to go "
                "on, or another run folder"
            )
        return report

    def _do(self, stage: Stage, before: Stage | None, reports: Sequence[Mapping[str, Any]]) -> None:
        _log.info("stage %s", stage.name)
        result = self._train_expert(stage) if stage.kind == "experts" else self._train(stage, before)
        trained = result.method.export_module()
        assert isinstance(trained, nn.Module)
        figures: dict[str, Any] = {}
        with first_process_first():
            if rank() == 0:
                if self.measure is not None:
                    trained.to(pick_device(self.fit.device))
                    with evaluating(trained), torch.no_grad():
                        figures = dict(self.measure(stage.name, trained))
                report = {
                    "stage": stage.name,
                    "kind": stage.kind,
                    "expert": stage.expert,
                    "settings": self._said(stage),
                    "steps": result.step,
                    "loss": result.metrics.get("loss"),
                    "parameters": sum(p.numel() for p in trained.parameters() if p.requires_grad),
                    "seconds": result.seconds,
                    "figures": figures,
                }
                if stage.kind != "experts":
                    card = {"stage": stage.name, "steps": result.step, "experts": list(self.config.kinds)}
                    result.method.save(self.run_dir / "model", card)
                    self._join_curves([*reports, report])
                write_json(self._place(stage) / STAGE_FILE, report)
                shutil.rmtree(self._place(stage) / "train" / "checkpoints", ignore_errors=True)

    # experts

    def _expert_config(self, kind: Kind) -> ExpertConfig:
        return next(one for one in self.config.experts if one.kind == kind)

    def _train_expert(self, stage: Stage) -> RunResult:
        assert stage.expert is not None
        augment = self.recipe.augment
        placed = self.data.boxes is not None or self.data.masks is not None
        return train_expert(
            self._expert_config(stage.expert),
            self.data,
            self._place(stage) / "train",
            fit_config=self._settings(stage),
            augment=augment.still() if placed else augment,
            tokenizer=self.tokenizer,
        )

    def _experts(self) -> dict[str, nn.Module]:
        """All of them, trained, on the CPU."""
        found: dict[str, nn.Module] = {}
        for kind in self.config.kinds:
            if kind in self.ready:
                given = self.ready[kind]
                found[kind] = given if isinstance(given, nn.Module) else load_expert(given)
            elif kind in self.as_published:
                config = self._expert_config(kind)
                named = config if config.class_names else config.model_copy(update={"class_names": _UNKNOWN})
                found[kind] = build_expert(named, self.tokenizer if kind == "captioning" else None)
            else:
                found[kind] = load_expert(self.run_dir / "stages" / f"0-{kind}" / "train")
            if (made := getattr(found[kind], "kind", kind)) != kind:
                raise ConfigError(f"{self.ready[kind]} holds a {made} expert, not a {kind} expert")
        return found

    # the other stages

    def _train(self, stage: Stage, before: Stage | None) -> RunResult:
        place = self._place(stage) / "train"
        with _seeded(derive_seed(self.fit.seed, self.plan.index(stage), _WEIGHTS)):
            model = (
                AstreaModel(self.config, self.tokenizer, experts=self._experts())
                if before is None
                else self._model_after(before)
            )
            method = _METHODS[stage.kind](self._stage_config(stage), self.tokenizer, model)
        data = self._data(stage, model)
        its = self._settings(stage)
        method.check(its.batch_size // its.accumulation)
        if rank() == 0 and not (place / "recipe.yaml").exists():
            for line in data.advice():
                _log.warning("%s", line)
        resolved = self.recipe.model_copy(update={"method": method.config, "fit": its})
        return fit(method, data, fit=its, run_dir=place, recipe=resolved.model_dump(mode="json"))

    def _data(self, stage: Stage, model: AstreaModel) -> Any:
        data: JointData | InstructData = self.joint_data
        if stage.kind == "instruct":
            ask = self.config.router.text and self.config.routes
            data = InstructData(self.joint_data, model.language_text, self.tokenizer, ask_router=ask)
        if not always_alike(self.recipe.augment):
            return data
        experts: dict[str, nn.Module] = {kind: model.own.experts[kind] for kind in self.config.kinds}
        device, grid = pick_device(self.fit.device), self.config.grid
        kept = keep_maps(experts, self.joint_data.views, self.maps, grid=grid, device=device)
        return MapData(data, kept)

    def _model_after(self, stage: Stage) -> AstreaModel:
        return load_astrea(self._place(stage) / "train")

    def _stage_config(self, stage: Stage) -> AstreaConfig:
        if stage.kind != "prealign" or stage.expert is None:
            return self.config
        settings = self.config.prealign.model_copy(update={"expert": stage.expert})
        return self.config.model_copy(update={"prealign": settings})

    # small things

    def _place(self, stage: Stage) -> Path:
        return self.run_dir / "stages" / stage.name

    def _rows(self, stage: Stage) -> int:
        """Samples of an epoch."""
        if stage.kind == "experts" and stage.expert is not None:
            return int(self.data.known(NEEDS[stage.expert]).sum())
        asked = self.joint_data.pairs.questions if stage.kind == "instruct" else None
        return len(self.joint_data) + (0 if asked is None else sum(map(bool, asked.answers)))

    def _settings(self, stage: Stage) -> Fit:
        """How a stage is trained: its own seed, and a warm-up that is the same share of it as of joint training."""
        own = {"experts": "experts", "prealign": "prealign", "instruct": "instruct"}.get(stage.kind)
        its = self.fit if own is None else getattr(self.config.stages, own).fit(self.fit)
        rows = self._rows(stage)
        changes: dict[str, Any] = {"seed": derive_seed(self.fit.seed, self.plan.index(stage), _TRAIN) >> 32}
        if stage.kind == "experts" and its.batch_size > rows:
            changes["batch_size"] = max(1, rows // its.accumulation) * its.accumulation
        if stage.expert is not None and stage.kind == "experts":
            changes["lr"] = its.lr * self._expert_config(stage.expert).lr_scale
        if own is not None and self.fit.warmup_epochs:
            share = self.fit.warmup_epochs / _epochs(self.fit, len(self.joint_data))
            changes["warmup_epochs"] = share * _epochs(its.model_copy(update=changes), rows)
        return its.model_copy(update=changes)

    def _said(self, stage: Stage) -> dict[str, Any]:
        """What a stage depends on, compared when it is done already."""
        its = {"fit": self._settings(stage).model_dump(mode="json"), "data": self.data.describe()}
        its["data"].pop("location", None)
        augment = self.recipe.augment.model_dump(mode="json")
        if stage.kind == "experts" and stage.expert is not None:
            return {"expert": self._expert_config(stage.expert).model_dump(mode="json"), "augment": augment, **its}
        method = self._stage_config(stage).model_dump(mode="json")
        kept = {name: value for name, value in method.items() if name not in _LATER[stage.kind]}
        return {"method": kept, "augment": augment, "ready": self._digests(), **its}

    def _digests(self) -> dict[str, str]:
        """What tells the experts that were given from others."""
        if self._digest is None:
            made = {kind: one if isinstance(one, nn.Module) else load_expert(one) for kind, one in self.ready.items()}
            self._digest = {kind: weights_fingerprint(one) for kind, one in made.items()}
        return self._digest

    def _take_tokenizer(self) -> PreTrainedTokenizerFast:
        """Of the run, of a published text tower, or trained on the words of the training split: captions, questions, answers."""
        place, text = self.run_dir / TOKENIZER_FOLDER, self.config.text
        if (place / "tokenizer.json").is_file():
            return load_tokenizer(place)
        if text.name is not None:
            return load_tokenizer(text.name, download=text.download)
        words = dict.fromkeys(self.data.pairs.captions)
        if (asked := self.data.questions) is not None:
            words |= dict.fromkeys(clean_caption(one) for one in asked.texts)
            words |= dict.fromkeys(clean_caption(one) for each in asked.answers for one in each)
        return train_tokenizer([word for word in words if word], text.vocabulary)

    def _take_run(self, resume: str) -> None:
        path = self.run_dir / RUN_FILE
        known = path.is_file()
        if known and resume == "never":
            raise ConfigError(f"{self.run_dir} already holds a run: choose another run folder, or resume it")
        if not known and resume == "must":
            raise CheckpointError(f"nothing to resume: no {RUN_FILE} in {self.run_dir}")
        with first_process_first():
            if rank() == 0:
                self._write_run(path)

    def _write_run(self, path: Path) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        remove_partial(self.run_dir)
        place = self.run_dir / TOKENIZER_FOLDER
        if not place.exists():
            with staging(place) as stage:
                self.tokenizer.save_pretrained(stage)
                stage.rename(place)
        pairs = self.whole.pairs
        write_json(
            self.run_dir / PAIRS_FILE,
            {
                "source": self.source,
                "splits": split_counts(pairs),
                "columns": dict(pairs.columns),
                "left_out": dict(pairs.dropped),
                "annotated": self.whole.counts(),
            },
        )
        resolved = self.recipe.model_copy(update={"method": self.config})
        write_atomic(self.run_dir / "recipe.yaml", to_yaml(resolved))
        write_json(
            path,
            {
                "stages": [stage.name for stage in self.plan],
                "experts": list(self.config.kinds),
                "as_published": list(self.as_published),
                "ready": {kind: str(one) for kind, one in self.ready.items() if not isinstance(one, nn.Module)},
                "said": list(self.left_out),
            },
        )

    def _join_curves(self, reports: Sequence[Mapping[str, Any]]) -> None:
        """One ``metrics.jsonl`` of the stages after the experts, its steps counted from the first of them."""
        lines, before = [], 0
        for report in reports:
            if report["kind"] == "experts":
                continue
            for line in read_jsonl(self.run_dir / "stages" / report["stage"] / "train" / "metrics.jsonl"):
                lines.append(json.dumps({**line, "step": line["step"] + before, "stage": report["stage"]}))
            before += report["steps"]
        write_atomic(self.run_dir / "metrics.jsonl", "".join(f"{line}\n" for line in lines))


def _epochs(settings: Fit, rows: int) -> float:
    """Passes over so many rows."""
    if settings.steps is None:
        return float(settings.epochs or 100)
    return settings.steps / StepPlan(rows, settings.batch_size, 0).steps_per_epoch


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """New weights by this seed, and the caller's stream again afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
