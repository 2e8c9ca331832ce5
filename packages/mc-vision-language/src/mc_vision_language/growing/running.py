"""A model that grows while pairs arrive: for each slice a search, a choice, a larger model, its training.

Step t, with θ̄ the moving average after step t − 1 (GrowCLIP, Deng et al. 2023, arXiv:2308.11331; the formulas are this project's)::

    G_t  candidates: no growth, moves, pairs of moves within the budget           :mod:`mc_vision_language.growing.space`
    supernet = E(θ̄), trained a little; held-out losses of the candidates in it     :mod:`mc_vision_language.growing.search`
    a_t  by loss against cost                                                     :func:`mc_core.growth.selection.select_growth`
    θ = m · E(θ̄) + (1 − m) · θ_rand,  θ̄ = E(θ̄)                                      :func:`mc_core.growth.inheriting.inherit`
          (``inherit_from`` supernet: with the part of the trained supernet that was chosen in place of E(θ̄))
    θ trained on all pairs that have arrived

E is a lossless expansion (:mod:`mc_core.growth.expansion`). The search's updates are taken from those of the step, so that arms
which do not search have as many in all. A run folder holds::

    recipe.yaml  growth.json  tokenizer/  pairs.json  model/       settings, the slices and the steps; the model after the last step
    steps/1-slice-1/train/…                                        what mc_core.fit leaves
    steps/2-slice-2/search/… selection.json searched.safetensors start.json train/… end.safetensors step.json

``step.json`` is written last and says that a step is done. Interrupted anywhere, the same call goes on to the same bits; slices may
be added at the end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from mc_core.data import StepPlan
from mc_core.distributed import first_process_first, rank
from mc_core.engine.checkpoint import CheckpointFolder, differences
from mc_core.engine.config import Fit
from mc_core.engine.distribution import join_processes
from mc_core.engine.loop import RunResult, fit
from mc_core.engine.run import locked
from mc_core.errors import CheckpointError, ConfigError, closest
from mc_core.export import staging
from mc_core.files import load_state, read_json, read_jsonl, remove_partial, save_state, write_atomic, write_json
from mc_core.growth.expansion import Expansion, drawn, grow_optimizer_state
from mc_core.growth.inheriting import inherit
from mc_core.growth.selection import Selection, select_growth
from mc_core.growth.spec import ArchSpec, largest
from mc_core.modules import evaluating
from mc_core.optim import build_optimizer
from mc_core.random import derive_seed
from mc_core.recipes import to_yaml
from mc_core.runs import folder_name, pick_device
from mc_vision_language.data.pair_data import PairData
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.growing.search import GrowthSearch, held_out_batches, search_flops
from mc_vision_language.growing.slices import Slices
from mc_vision_language.growing.space import CURRENT, growth_budget, growth_space, tokens_of
from mc_vision_language.methods.growclip.config import GrowCLIPConfig
from mc_vision_language.methods.growclip.model import GrowCLIP, GrowCLIPModel, Towers
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.recipe import Recipe
from mc_vision_language.tokenizers import load_tokenizer, train_tokenizer
from mc_vision_language.training import PAIRS_FILE, TOKENIZER_FOLDER, split_counts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_log = logging.getLogger("mc_core")
GROWTH_FILE, STEP_FILE = "growth.json", "step.json"
_SELECTION, _SEARCHED, _START, _END = "selection.json", "searched.safetensors", "start.json", "end.safetensors"
# separate the uses of the seed
_WEIGHTS, _SPACE, _SUPERNET, _SEARCH, _GROWN, _FRESH, _TRAIN, _RANDOM = range(0x6A0, 0x6A8)
_BACKWARD = 3  # a training update costs three forward passes
_NAMED = 6

Measure = Callable[[VisionLanguageModel], Mapping[str, Any]]


@dataclass(frozen=True)
class Arm:
    """What is done at a growth, to compare with.

    Attributes:
        grows: ``search``: as the recipe says; ``largest``: to what the budget allows; ``random``: to one drawn at random; both
            without a search; ``no``: never.
        inherit: m; None: the recipe's.
        restart: begin with new weights in each step.
    """

    grows: Literal["search", "largest", "random", "no"] = "search"
    inherit: float | None = None
    restart: bool = False

    def describe(self) -> dict[str, Any]:
        """For the run's settings."""
        return {"grows": self.grows, "inherit": self.inherit, "restart": self.restart}


_SHARES = (1.0, 0.9, 0.7, 0.5, 0.0)
ARMS: dict[str, Arm] = {
    "grown": Arm(),
    **{f"grown, m={m:g}": Arm(inherit=m) for m in _SHARES},
    **{f"largest, m={m:g}": Arm(grows="largest", inherit=m) for m in _SHARES},
    "random": Arm(grows="random"),
    "fixed": Arm(grows="no", inherit=1.0),
    "restarting": Arm(grows="no", restart=True),
}
"""``fixed`` trains the first model on and on, ``restarting`` begins it anew in each step, both with as many updates in all."""


@dataclass(frozen=True)
class GrowthRun:
    """What :func:`run_growth` leaves.

    Attributes:
        run_dir: the run folder.
        model: after the last step, in evaluation mode.
        steps: what ``step.json`` of each step says.
    """

    run_dir: Path
    model: GrowCLIPModel
    steps: tuple[dict[str, Any], ...]

    @property
    def seconds(self) -> float:
        """Of searches, growths and trainings, over all resumes."""
        return float(sum(sum(step["seconds"].values()) for step in self.steps))

    def overhead(self) -> list[float]:
        """For each step that searched: time of search, choice and expansion, as a share of its training."""
        return [
            (step["seconds"]["search"] + step["seconds"]["grow"]) / step["seconds"]["train"]
            for step in self.steps
            if step["selection"] is not None
        ]


def run_growth(
    recipe: Recipe[Any],
    slices: Slices,
    run_dir: Path | str,
    *,
    arm: str | Arm = "grown",
    measure: Measure | None = None,
    source: str = "",
    resume: Literal["auto", "never", "must"] = "auto",
) -> GrowthRun:
    """Train a model on slices of pairs as they arrive, and let it grow.

    The same call made again goes on where the run was, to the same bits; a finished run is only read.

    Args:
        recipe: of the system ``growclip``; ``fit`` says how each step is trained, its updates counting those of the search.
        slices: see :func:`mc_vision_language.growing.slices.sliced`.
        run_dir: the run folder.
        arm: see :data:`ARMS`.
        measure: figures of a model, taken after each growth before it is trained, and after each step; kept as JSON.
        source: what to call the data, so that the run knows them again.
        resume: ``auto`` goes on where there is something, ``never`` refuses a folder that holds a run, ``must`` needs one.

    Raises:
        ConfigError: settings that cannot work, such as another system, an arm that is not there, or fewer pairs than a batch.
        DataError: a slice without pairs, or none held out.
        CheckpointError: the folder holds a run of other settings or slices; what differs is listed.
        NonFiniteError, CollapseError, InterruptedRunError: as :func:`mc_core.fit`.
    """
    if not isinstance(recipe.method, GrowCLIPConfig):
        raise ConfigError(f"'{recipe.system}' cannot grow: give a recipe of growclip, such as growclip-laptop")
    if isinstance(arm, str):
        if arm not in ARMS:
            raise ConfigError(f"no arm '{arm}': did you mean {closest(arm, ARMS)}?")
        arm = ARMS[arm]
    join_processes(recipe.fit)
    run_dir = Path(run_dir)
    with locked(run_dir) if rank() == 0 else contextlib.nullcontext():
        return _Growth(recipe, slices, run_dir, arm, measure, source).run(resume)


@dataclass
class _State:
    """What one step hands to the next.

    Attributes:
        towers: θ.
        averaged: θ̄.
        optimizer: moments of θ by the names of its parameters, where the next step expands them.
        loss: the last of the training.
        seconds: of the training.
    """

    towers: Towers
    averaged: Towers
    optimizer: Mapping[str, Mapping[str, Tensor]]
    loss: float
    seconds: float


class _Growth:
    def __init__(
        self, recipe: Recipe[Any], slices: Slices, run_dir: Path, arm: Arm, measure: Measure | None, source: str
    ) -> None:
        self.slices, self.run_dir, self.arm, self.measure, self.source = slices, run_dir, arm, measure, source
        self.fit, self.unit, self.recipe = recipe.fit, recipe.unit, recipe
        for step in range(len(slices)):  # what cannot work is said before anything is written
            updates = self._updates(slices.train(step))
            slices.held_out(step)
            searching = recipe.method.growth.search_steps(updates)
            if self._searches and step and searching >= updates:
                raise ConfigError(
                    f"{searching} of {updates} updates would go into the search: train longer (fit.steps, fit.epochs), or set a "
                    "smaller method.growth.search_share or fewer method.growth.evaluations"
                )
        if self.fit.strategy == "fsdp":
            raise ConfigError("fit.strategy fsdp shards tensors, which growth cuts views of: use auto")
        self.tokenizer = self._take_tokenizer(recipe)
        self.config = GrowCLIPModel(recipe.method, self.tokenizer).config
        self.recipe = recipe.model_copy(update={"method": self.config})
        self.growth = self.config.growth
        self.inherit = self.growth.inherit if arm.inherit is None else arm.inherit
        lengths = self._data(slices.train(0)).tokens.lengths
        self.tokens = tokens_of(self.config, math.ceil(float(lengths.mean())))
        self.first = self.config.arch()

    @property
    def _searches(self) -> bool:
        return self.arm.grows == "search" and self.recipe.method.growth.selector == "score"

    def run(self, resume: str) -> GrowthRun:
        self._take_settings(resume)
        reports: list[dict[str, Any]] = []
        while len(reports) < len(self.slices) and (self._place(len(reports)) / STEP_FILE).is_file():
            reports.append(read_json(self._place(len(reports)) / STEP_FILE))
        done = len(reports)
        state = self._load_end(done - 1, ArchSpec.from_dict(reports[-1]["spec"])) if reports else None
        if 0 < done < len(self.slices):
            _log.info("%s: %d of %d steps are done", self.run_dir, done, len(self.slices))
        for step in range(done, len(self.slices)):
            state = self._do(step, state, reports)
        assert state is not None
        return GrowthRun(self.run_dir, self._model(state.towers).eval(), tuple(reports))

    def _do(self, step: int, before: _State | None, reports: list[dict[str, Any]]) -> _State:
        place, train = self._place(step), self.slices.train(step)
        _log.info("step %d of %d: %s images have arrived", step + 1, len(self.slices), f"{len(train):,}")
        updates, data = self._updates(train), self._data(train)
        chosen = self._chosen(step, before, data, updates)
        spec = ArchSpec.from_dict(chosen["spec"])
        if not (place / _END).is_file():
            clock = time.perf_counter()
            method = self._method(step, before, spec)
            grow_seconds = time.perf_counter() - clock
            with first_process_first():
                if rank() == 0 and not (place / _START).is_file():
                    write_json(place / _START, {"seconds": grow_seconds, "figures": self._figures(method.model)})
            result = self._fit(method, data, step, updates - chosen["updates"], place / "train", _TRAIN)
            with first_process_first():
                if rank() == 0:
                    self._save_end(place, result)
        after = self._load_end(step, spec)
        with first_process_first():
            if rank() == 0:
                self._finish(step, chosen, after, updates, reports)
        reports.append(read_json(place / STEP_FILE))
        return after

    def _finish(
        self, step: int, chosen: Mapping[str, Any], after: _State, updates: int, reports: list[dict[str, Any]]
    ) -> None:
        """Measure, save the model, and say that the step is done."""
        place, train, spec = self._place(step), self.slices.train(step), after.towers.spec
        start = read_json(place / _START)
        trained = updates - chosen["updates"]
        flops = chosen["flops"] + _BACKWARD * self.fit.batch_size * trained * spec.flops(self.tokens)
        model = self._model(after.towers)
        report = {
            "step": step + 1,
            "name": self.slices.names[step],
            "images": len(train),
            "captions": len(train.captions),
            "updates": {"search": chosen["updates"], "train": trained},
            "spec": spec.to_dict(),
            "parameters": sum(parameter.numel() for parameter in after.towers.parameters()),
            "flops": spec.flops(self.tokens),
            "training_flops": flops,
            "cumulative_training_flops": flops + sum(one["training_flops"] for one in reports),
            "budget": self._budget(step),
            "selection": chosen["selection"],
            "loss": after.loss,
            "seconds": {"search": chosen["seconds"], "grow": start["seconds"], "train": after.seconds},
            "start": start["figures"],
            "end": self._figures(model),
        }
        card = {"method": "GrowCLIP", "step": step + 1, "images": len(train), "spec": report["spec"]}
        GrowCLIP(self.config, model=model).save(self.run_dir / "model", card)
        self._join_curves([*reports, report])
        write_json(place / STEP_FILE, report)
        for phase in ("search", "train"):
            shutil.rmtree(place / phase / "checkpoints", ignore_errors=True)
        (place / _SEARCHED).unlink(missing_ok=True)

    # the choice

    def _chosen(self, step: int, before: _State | None, data: PairData, updates: int) -> dict[str, Any]:
        """The size of a step's model, and what choosing it cost."""
        spec = self.first if before is None else before.averaged.spec
        found = {"spec": spec.to_dict(), "selection": None, "updates": 0, "seconds": 0.0, "flops": 0}
        if before is None or self.arm.grows == "no":
            return found
        space = growth_space(
            spec, self.growth, self.tokens, self._budget(step), seed=derive_seed(self.fit.seed, step, _SPACE)
        )
        if not self._searches:
            larger = [name for name in space if name != CURRENT] or [CURRENT]
            name = larger[derive_seed(self.fit.seed, step, _RANDOM) % len(larger)]
            if self.arm.grows != "random":
                name = max(larger, key=lambda one: space[one].flops(self.tokens))
            return {**found, "spec": space[name].to_dict()}
        path = self._place(step) / _SELECTION
        if not path.is_file():
            searched = self._searched(step, before.averaged, space, data, updates)
            with first_process_first():
                if rank() == 0:
                    write_json(path, searched)
        return read_json(path)

    def _searched(
        self, step: int, averaged: Towers, space: Mapping[str, ArchSpec], data: PairData, updates: int
    ) -> dict[str, Any]:
        """Train the supernet, measure its candidates, choose one."""
        steps = self.growth.search_steps(updates)
        costs = {name: one.flops(self.tokens) for name, one in space.items()}
        found: dict[str, Any] = {"updates": 0, "seconds": 0.0, "flops": 0}
        if len(space) == 1:
            _log.info("no growth fits the budget of %.2e FLOPs", self._budget(step))
            return {**found, "spec": averaged.spec.to_dict(), "selection": None}
        supernet = self._expanded(averaged, largest(list(space.values())), derive_seed(self.fit.seed, step, _SUPERNET))
        held_out = self._data(self.slices.held_out(step), train=False)
        batches = held_out_batches(held_out, self.fit.batch_size, self.growth.batches, seed=self.fit.seed)
        search = GrowthSearch(self._model(supernet), space, batches, steps=steps)
        result = self._fit(search, data, step, steps, self._place(step) / "search", _SEARCH)
        method = result.method
        assert isinstance(method, GrowthSearch)
        losses = method.losses.cpu().numpy()
        selection = select_growth(
            losses,
            list(costs.values()),
            names=list(space),
            margin=self.growth.least_gain,
            seed=self.fit.seed,
        )
        _log.info("%s", _said(selection))
        if self.growth.inherit_from == "supernet":
            self._keep_searched(step, averaged, space[selection.name], method)
        drawn_costs = [list(costs.values())[place] for place in method.drawn(self._seed(step, _SEARCH), steps)]
        evaluated = losses.shape[1] * losses.shape[2] * len(batches[0]["input_ids"]) * search_flops(space, self.tokens)
        told = selection.to_dict()
        for row, one, each in zip(told["candidates"], space.values(), losses.mean(2).tolist(), strict=True):
            row |= {"spec": one.to_dict(), "losses": each}
        return {
            "spec": space[selection.name].to_dict(),
            "selection": told,
            "updates": steps,
            "seconds": result.seconds,
            "flops": _BACKWARD * self.fit.batch_size * sum(drawn_costs) + evaluated,
        }

    def _keep_searched(self, step: int, averaged: Towers, spec: ArchSpec, search: GrowthSearch) -> None:
        """The part of the trained supernet that was chosen, and of its average."""
        sizes = drawn(averaged, spec, 0), drawn(averaged, search.towers.spec, 0)
        both = {"towers": search.towers, "averaged": search.averaged}
        state = {name: Expansion(*sizes).extracted(one).state_dict() for name, one in both.items()}
        with first_process_first():
            if rank() == 0:
                save_state(state, self._place(step) / _SEARCHED)

    # the growth

    def _method(self, step: int, before: _State | None, spec: ArchSpec) -> GrowCLIP:
        """A step's method before its training."""
        weights = derive_seed(self.fit.seed, step if self.arm.restart else 0, _WEIGHTS)
        if before is None or self.arm.restart:
            return GrowCLIP(self.config, model=self._model(self._new_towers(spec, weights)))
        if self.arm.grows == "no":
            towers, averaged, expansion = before.towers, before.averaged, None
        else:
            expansion = self._expansion(before.averaged, spec, derive_seed(self.fit.seed, step, _GROWN))
            averaged = grown = expansion(before.averaged)
            searched = self._place(step) / _SEARCHED
            if searched.is_file():
                grown, averaged = self._loaded(searched, load_state(searched), spec)
            fresh = drawn(before.averaged, spec, derive_seed(self.fit.seed, step, _FRESH))
            towers = inherit(grown, fresh, self.inherit)
        method = GrowCLIP(self.config, model=self._model(towers))
        method.average.module.load_state_dict(averaged.state_dict())
        if self.growth.optimizer == "expanded" and expansion is not None:
            method.start_from = _Moments(before.towers, before.optimizer, expansion, self.fit)
        return method

    @staticmethod
    def _expansion(towers: Towers, spec: ArchSpec, seed: int) -> Expansion:
        towers.spec.require_growth_to(spec)
        return Expansion(towers, drawn(towers, spec, seed))

    def _expanded(self, towers: Towers, spec: ArchSpec, seed: int) -> Towers:
        return self._expansion(towers, spec, seed)(towers)

    # small things

    def _model(self, towers: Towers) -> GrowCLIPModel:
        return GrowCLIPModel(self.config, self.tokenizer, towers=towers)

    def _new_towers(self, spec: ArchSpec, seed: int) -> Towers:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return Towers(self.config.at(spec))

    def _place(self, step: int) -> Path:
        return self.run_dir / "steps" / f"{step + 1}-{folder_name(self.slices.names[step])}"

    def _seed(self, step: int, use: int) -> int:
        return derive_seed(self.fit.seed, step, use) >> 32

    def _budget(self, step: int) -> float:
        arrived, first = len(self.slices.train(step)), len(self.slices.train(0))
        return growth_budget(self.first.flops(self.tokens), self.growth, arrived, first)

    def _updates(self, train: Pairs) -> int:
        """Optimizer steps of a growth step."""
        count = len(train) if self.unit == "image" else len(train.captions)
        plan = StepPlan(count, self.fit.batch_size, 0)
        return self.fit.steps if self.fit.steps is not None else (self.fit.epochs or 8) * plan.steps_per_epoch

    def _data(self, pairs: Pairs, *, train: bool = True) -> PairData:
        text = self.config.text
        return PairData(
            pairs,
            self.tokenizer,
            augment=self.recipe.augment if train else None,
            size=self.config.image.image_size,
            max_length=text.max_length,
            unit=self.unit,
            add_sep=text.add_sep,
        )

    def _fit(self, method: GrowCLIP, data: PairData, step: int, steps: int, place: Path, use: int) -> RunResult:
        per_epoch = StepPlan(len(data), self.fit.batch_size, 0).steps_per_epoch
        its = self.fit.model_copy(
            update={
                "steps": steps,
                "epochs": None,
                "seed": self._seed(step, use),
                "warmup_epochs": self.growth.warmup * steps / per_epoch,
            }
        )
        return fit(method, data, fit=its, run_dir=place)

    def _figures(self, model: GrowCLIPModel) -> dict[str, Any]:
        if self.measure is None:
            return {}
        model.to(pick_device(self.fit.device))
        with evaluating(model), torch.no_grad():
            return dict(self.measure(model))

    def _save_end(self, place: Path, result: RunResult) -> None:
        method = result.method
        assert isinstance(method, GrowCLIP)
        moments: dict[str, Any] = {}
        if self.growth.optimizer == "expanded":
            saved = CheckpointFolder(result.run_dir / "checkpoints").load_newest()
            assert saved is not None
            moments = saved["optimizer"]["state"]
        state = {
            "towers": method.towers.state_dict(),
            "averaged": method.averaged.state_dict(),
            "optimizer": moments,
            "loss": float(result.metrics.get("loss", math.nan)),
            "seconds": result.seconds,
        }
        save_state(state, place / _END)

    def _load_end(self, step: int, spec: ArchSpec) -> _State:
        path = self._place(step) / _END
        state = load_state(path)
        towers, averaged = self._loaded(path, state, spec)
        return _State(towers, averaged, state["optimizer"], state["loss"], state["seconds"])

    def _loaded(self, path: Path, state: Mapping[str, Any], spec: ArchSpec) -> tuple[Towers, Towers]:
        """θ and θ̄ of a file."""
        found = []
        for name in ("towers", "averaged"):
            towers = self._new_towers(spec, 0)
            try:
                towers.load_state_dict(state[name])
            except RuntimeError as error:
                reason = str(error).splitlines()[-1].strip()
                raise CheckpointError(f"{path} does not fit this run ({reason}); use another run folder") from error
            found.append(towers)
        return found[0], found[1]

    def _join_curves(self, reports: list[dict[str, Any]]) -> None:
        """One ``metrics.jsonl`` of all steps, its steps counted from the beginning."""
        lines, before = [], 0
        for place, report in enumerate(reports):
            for line in read_jsonl(self._place(place) / "train" / "metrics.jsonl"):
                lines.append(json.dumps({**line, "step": line["step"] + before}))
            before += report["updates"]["train"]
        write_atomic(self.run_dir / "metrics.jsonl", "".join(f"{line}\n" for line in lines))

    # settings

    def _take_tokenizer(self, recipe: Recipe[Any]) -> PreTrainedTokenizerFast:
        """Trained on the captions of the first slice: the others have not arrived when it is needed."""
        place = self.run_dir / TOKENIZER_FOLDER
        if (place / "tokenizer.json").is_file():
            return load_tokenizer(place)
        captions = self.slices.train(0).captions
        return train_tokenizer(list(dict.fromkeys(captions)), recipe.method.text.vocabulary)

    def _take_settings(self, resume: str) -> None:
        """Compare settings and slices with those that the folder was begun with, and write them."""
        wanted = {
            "settings": {
                "arm": self.arm.describe(),
                **{name: self.recipe.model_dump(mode="json")[name] for name in ("method", "unit", "augment", "fit")},
            },
            "slices": self.slices.describe(),
        }
        path = self.run_dir / GROWTH_FILE
        known = read_json(path) if path.is_file() else None
        if known is not None and resume == "never":
            raise ConfigError(f"{self.run_dir} already holds a run: choose another run folder, or resume it")
        if known is None and resume == "must":
            raise CheckpointError(f"nothing to resume: no {GROWTH_FILE} in {self.run_dir}")
        if known is not None and (changed := _changes(known, wanted)):
            more = f"; and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
            raise CheckpointError(
                f"{self.run_dir} holds another run ({'; '.join(changed[:_NAMED])}{more}): give the same settings and slices to go "
                "on (slices may be added at the end), or another run folder"
            )
        with first_process_first():
            if rank() == 0:
                self._write_settings(wanted)

    def _write_settings(self, wanted: Mapping[str, Any]) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        remove_partial(self.run_dir)
        place = self.run_dir / TOKENIZER_FOLDER
        if not place.exists():
            with staging(place) as stage:
                self.tokenizer.save_pretrained(stage)
                stage.rename(place)
        pairs = self.slices.pairs
        write_json(
            self.run_dir / PAIRS_FILE,
            {
                "source": self.source,
                "splits": split_counts(pairs),
                "columns": dict(pairs.columns),
                "left_out": dict(pairs.dropped),
            },
        )
        write_atomic(self.run_dir / "recipe.yaml", to_yaml(self.recipe))
        write_json(self.run_dir / GROWTH_FILE, wanted)


class _Moments:
    """Puts an optimizer's moments, expanded, into that of a grown model."""

    def __init__(
        self, towers: Towers, moments: Mapping[str, Mapping[str, Tensor]], expansion: Expansion, settings: Fit
    ) -> None:
        self.towers, self.moments, self.expansion, self.settings = towers, moments, expansion, settings

    def __call__(self, optimizer: Optimizer, towers: Towers) -> None:
        old = build_optimizer([{"params": list(self.towers.parameters())}], self.settings)
        for name, parameter in self.towers.named_parameters():
            state = self.moments.get(f"model.backbone.{name}")
            if state is not None:
                old.state[parameter] = dict(state)
        grow_optimizer_state(old, optimizer, self.expansion, self.towers, towers)
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and name != "step":
                    state[name] = value.to(parameter.device)


def _changes(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two runs, a phrase each; slices added at the end do not count."""
    found = []
    for index, old in enumerate(saved["slices"]):
        if index >= len(wanted["slices"]):
            found.append(f"slice {index + 1}: '{old['name']}' → none")
            continue
        new = wanted["slices"][index]
        found += [f"slice {index + 1} '{old['name']}': {line}" for line in differences(old, new)]
    return found + differences(saved["settings"], wanted["settings"])


def _said(selection: Selection) -> str:
    """The choice in one line."""
    sure = "" if selection.confidence is None else f", chosen in {selection.confidence:.0%} of resamples"
    chosen, current = selection.losses[selection.chosen], selection.losses[selection.current]
    if selection.chosen == selection.current:
        return f"no growth: loss {current:.4f}{sure}"
    cost = selection.costs[selection.chosen] / selection.costs[selection.current] - 1
    return f"growth by {selection.name}: loss {current:.4f} → {chosen:.4f} for {cost:+.0%} cost{sure}"
