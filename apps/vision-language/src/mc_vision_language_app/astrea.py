"""``mc-vision-language astrea``: experts, router and language model in stages; what the model finds, answers, and looks at."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from mc_core.cli import Clock, Result, Status, keep_freed_memory, print_json, print_table
from mc_core.distributed import first_process_first, rank
from mc_core.engine.distribution import join_processes
from mc_core.errors import ConfigError, DataError
from mc_core.files import read_json, write_json
from mc_core.recipes import to_yaml
from mc_core.report import write_report
from mc_core.runs import folder_name, need_run_folder, pick_device
from mc_core.seeds import Spread
from mc_vision_language.data.annotated import AnnotatedPairs
from mc_vision_language.data.annotated_sources import open_annotated
from mc_vision_language.data.images import FileImages
from mc_vision_language.data.options import CaptionOptions, SplitOptions
from mc_vision_language.data.questions import AnswerList
from mc_vision_language.evaluation.retrieval import retrieval
from mc_vision_language.experts.base import Expert
from mc_vision_language.experts.evaluating import measure_expert
from mc_vision_language.experts.training import expert_data
from mc_vision_language.methods.astrea.base import CITATION
from mc_vision_language.methods.astrea.config import AstreaConfig
from mc_vision_language.methods.astrea.model import AstreaModel, load_astrea
from mc_vision_language.recipe import Recipe, resolve_recipe
from mc_vision_language.staged.ablation import COLUMNS, arm_of, arms_of, recipe_of, run_arm
from mc_vision_language.staged.evaluating import AstreaScores, Mode, answer_questions, measure_astrea, what_experts_add
from mc_vision_language.staged.inspecting import (
    RouterReport,
    contribution_over_training,
    inspect_router,
    need_weights,
    told,
)
from mc_vision_language.staged.running import STAGES, StagedRun, StageKind, run_astrea
from mc_vision_language.staged.sample import STAGED_SAMPLE, staged_sample
from mc_vision_language.training import PAIRS_FILE
from mc_vision_language_app import astrea_figures as figures
from mc_vision_language_app.measure import METRIC
from mc_vision_language_app.pair_options import PairOptions
from mc_vision_language_app.pretrain import changes_of, check_held_out, cleared
from mc_vision_language_app.runs import need_image, open_images, source_name

COMMAND = "mc-vision-language astrea"
UNIFORM = "uniform weights"
_SHOWN = 6  # pictures of the report
_log = logging.getLogger("mc_core")


@dataclass(frozen=True)
class AstreaOptions:
    """What was typed; ``sections`` are the recipe's, as option models with only what was given set."""

    source: str | None
    pairs: PairOptions
    recipe: str | None
    out: Path | None
    stages: Sequence[str]
    experts: Sequence[str]
    beside: bool | None
    batch: int | None
    draws: int
    json: bool
    print_recipe: bool
    sections: Mapping[str, Any]


class _Measure:
    """Figures of a stage: an expert on its own annotations, the model by what it finds, answers and writes."""

    def __init__(self, data: AnnotatedPairs, draws: int) -> None:
        self.train, self.test, self.draws = data.part("train"), data.part("test"), draws

    def __call__(self, stage: str, model: nn.Module) -> dict[str, Any]:
        if isinstance(model, Expert):
            return self._expert(model)
        assert isinstance(model, AstreaModel)
        if stage.startswith("1-"):
            return {}
        if not model.answers:
            return {METRIC: retrieval(model, self.test.having("captions").pairs, draws=0).contrast.mean.value}
        found = measure_astrea(model, self.test, self.train, draws=self.draws)
        written = () if found.captions is None else found.captions.texts
        return {**found.to_dict(), "written": list(written[:_SHOWN])}

    def _expert(self, expert: Expert) -> dict[str, Any]:
        if not self.test.counts()[expert.config.needs]:
            return {}
        known = expert_data(expert, self.train, None)
        found = measure_expert(expert, expert_data(expert, self.test, None), train=known)
        return {
            "metric": found.metric,
            "value": found.value,
            "baselines": dict(found.baselines),
            "pictures": found.pictures,
        }


def run_train(options: AstreaOptions) -> None:
    """Train, and print the result to standard output."""
    clock = Clock()
    name = options.recipe or ("astrea" if options.source else "astrea-laptop")
    recipe = astrea_recipe(name, changes_of(options.sections, options.batch))
    stages = _stages(options.stages)
    ready = _ready(options.experts)
    if options.print_recipe:
        sys.stdout.write(to_yaml(recipe))
        return
    keep_freed_memory()
    join_processes(recipe.fit)
    data_name = STAGED_SAMPLE if options.source is None else source_name(options.source)
    run_dir = options.out or Path("runs") / f"{folder_name(Path(name).stem)}-{folder_name(Path(data_name).stem)}"
    with cleared(run_dir):
        data = read_annotated(options.source, options.pairs, recipe.method.captions, recipe.split)
        check_held_out(data.pairs)
        measure = _Measure(data, options.draws)
        run = run_astrea(recipe, data, run_dir, stages=stages, experts=ready, measure=measure, source=data_name)
    beside: dict[str, float] = {}
    joined = run.stage("joint")
    wanted = not options.source if options.beside is None else options.beside
    if wanted and joined and recipe.method.routes and len(run.experts) > 1:
        beside = _beside(recipe, data, run, measure, data_name)
    if rank() == 0:
        _report(options, run, data, beside, clock, f"{name} on {data_name}")


def astrea_recipe(name: str, changes: Mapping[str, Any]) -> Recipe[Any]:
    """A recipe that is of this system.

    Raises:
        ConfigError: it is of another.
    """
    recipe = resolve_recipe(name, changes)
    if not isinstance(recipe.method, AstreaConfig):
        raise ConfigError(f"--recipe {name}: '{recipe.system}' has no experts; take astrea or astrea-laptop")
    return recipe


def read_annotated(
    source: str | None, options: PairOptions, captions: CaptionOptions, split: SplitOptions
) -> AnnotatedPairs:
    """The user's pictures with what is known of them, or the sample; what is known is told."""
    with first_process_first():
        if source is None:
            with Status(f"drawing {STAGED_SAMPLE}"):
                return staged_sample()
        with Status(f"opening {source_name(source)}"):
            data = open_annotated(
                source, images=options.images, columns=options.column, captions=captions, read=options, split=split
            )
    for line in data.summary():
        _log.info("%s: %s", source_name(source), line)
    for reason, count in data.pairs.dropped.most_common():
        _log.warning("left out %d: %s", count, reason)
    return data


def _stages(names: Sequence[str]) -> Sequence[StageKind]:
    return [stage for stage in STAGES if stage in names] if names else STAGES


def _ready(given: Sequence[str]) -> dict[str, Path]:
    """Experts trained elsewhere, as ``detection=FOLDER``."""
    found: dict[str, Path] = {}
    for one in given:
        kind, sign, folder = one.partition("=")
        if not sign or not Path(folder).is_dir():
            raise ConfigError(
                f"--expert {one}: give a kind and the folder of a trained expert, as detection=runs/detector"
            )
        found[kind] = Path(folder)
    return found


def _beside(
    recipe: Recipe[Any], data: AnnotatedPairs, run: StagedRun, measure: _Measure, source: str
) -> dict[str, float]:
    """R_m of the expert that counts most alone, and of all with uniform weights: same experts, as many updates."""
    assert run.model is not None
    with Status("looking at the router"):
        report = inspect_router(run.model, measure.test.pairs.images)
    strongest = report.kinds[int(report.weight.argmax())]
    trained = {kind: run.run_dir / "stages" / f"0-{kind}" / "train" for kind in run.experts}
    ready = {kind: place for kind, place in trained.items() if place.is_dir()}
    found = {}
    pictures = len(measure.train)
    for name in (f"only {strongest}", UNIFORM):
        base = recipe.model_copy(update={"method": recipe.method.only(run.experts)})
        changed = recipe_of(base, arm_of(name, run.experts), recipe.fit.seed, pictures)
        own: dict[str, Path] = {kind: place for kind, place in ready.items() if kind in changed.method.kinds}
        done = run_astrea(
            changed,
            data,
            run.run_dir / "beside" / folder_name(name),
            stages=["joint"],
            experts=own,
            maps=run.run_dir / "maps",
            measure=measure,
            source=source,
        )
        found[name] = float(done.stage("joint")[-1]["figures"][METRIC])
    return found


def _report(
    options: AstreaOptions,
    run: StagedRun,
    data: AnnotatedPairs,
    beside: Mapping[str, float],
    clock: Clock,
    title: str,
) -> None:
    joint, last = run.stage("joint"), run.stage("instruct")
    fields: dict[str, Any] = {
        "run": str(run.run_dir),
        "experts": {one["expert"]: one["figures"] for one in run.stage("experts")},
        "left_out": list(run.left_out),
        "stages": {one["stage"]: {"steps": one["steps"], "seconds": round(one["seconds"], 1)} for one in run.stages},
    }
    report, test = None, data.part("test")
    if run.model is not None and run.model.config.fusion != "concat":
        with Status("looking at the router"):
            report = inspect_router(run.model, test.pairs.images)
        fields["router"] = report.to_dict()
    if last:
        fields |= {"measured": last[-1]["figures"]}
    with Status("writing the report"):
        pictures = figures.run_figures(run, test, report, beside, run.run_dir)
        plain = {"metric": METRIC, "seconds": round(clock.seconds(), 1), "baselines": dict(beside)}
        if joint:
            plain["trained"] = joint[-1]["figures"][METRIC]
        plain |= {f"expert {kind}": _said(one) for kind, one in fields["experts"].items() if one}
        plain |= {f"router {row}": line for row, line in enumerate([] if report is None else told(report), 1)}
        plain |= {f"left out {row}": line for row, line in enumerate(run.left_out, 1)}
        page = write_report(
            run.run_dir, title=f"{run.run_dir.name}: Astrea", result=plain, figures=pictures, bibtex=CITATION
        )
        fields["report"] = str(page)
    if joint:
        found = Result(
            METRIC, joint[-1]["figures"][METRIC], beside, run=run.run_dir, seconds=clock.seconds(), more=fields
        )
        fields = found.fields
    write_json(run.run_dir / "result.json", fields)
    if options.json:
        print_json(fields)
        return
    _show(run, report, beside, title)
    sys.stdout.write(f"run     {run.run_dir}\n")
    if run.model is not None:
        sys.stdout.write(f"model   {run.run_dir / 'model'}\n")
    sys.stdout.write(f"report  {fields['report']}\n")


def _said(figures_of: Mapping[str, Any]) -> str:
    blind = ", ".join(f"{name} {value:.3f}" for name, value in figures_of["baselines"].items())
    return f"{figures_of['metric']} {figures_of['value']:.3f} ({blind.replace('_', ' ')})"


def _show(run: StagedRun, report: RouterReport | None, beside: Mapping[str, float], title: str) -> None:
    rows = []
    for one in run.stage("experts"):
        found = one["figures"]
        if found:
            blind = max(found["baselines"].values(), default=float("nan"))
            rows.append([one["expert"], found["metric"].replace("_", " "), f"{found['value']:.3f}", f"{blind:.3f}"])
    if rows:
        print_table(f"{title}: experts on pictures held out", ["expert", "figure", "value", "not looking"], rows)
    joint, last = run.stage("joint"), run.stage("instruct")
    if joint:
        lines = [["routed", f"{joint[-1]['figures'][METRIC]:.3f}"], *([k, f"{v:.3f}"] for k, v in beside.items())]
        print_table("retrieval after joint training, R_m: mean of six recalls", ["fusion", "R_m"], lines)
    if report is not None:
        print_table(
            f"weights of experts over {report.pictures:,} pictures; entropy {report.entropy:.2f} of the mean, "
            f"{report.entropy_each:.2f} of each place",
            ["expert", "mean weight", "from", "to", "most anywhere"],
            [
                [kind, *(f"{float(each[row]):.2f}" for each in (report.weight, report.least, report.most, report.load))]
                for row, kind in enumerate(report.kinds)
            ],
        )
    if last and (found := last[-1]["figures"]):
        _show_language(found)


def _show_language(found: Mapping[str, Any]) -> None:
    rows = []
    if "answers" in found:
        answers = found["answers"]
        blind = max(answers["baselines"].values(), default=float("nan"))
        rows.append(["answers: accuracy", f"{answers['accuracy']:.3f}", f"{blind:.3f}"])
    captions = found.get("captions", {})
    if "cider_d" in captions:
        other = captions.get("cider_d_of_other_pictures", float("nan"))
        rows += [
            ["captions: CIDEr-D", f"{captions['cider_d']:.2f}", f"{other:.2f}"],
            ["captions: BLEU-4", f"{captions['bleu_4']:.3f}", "–"],
            ["captions: ROUGE-L", f"{captions['rouge_l']:.3f}", "–"],
        ]
    if "exact" in captions:
        rows.append(["captions: word by word", f"{captions['exact']:.3f}", "–"])
    if rows:
        print_table("what the language model says of pictures held out", ["", "value", "not looking"], rows)


# the other verbs


def _opened(run: Path, device: str) -> AstreaModel:
    need_run_folder(run, command=COMMAND)
    return load_astrea(run, device=pick_device(device))


def _known(run: Path) -> Mapping[str, Any]:
    path = run / PAIRS_FILE
    return read_json(path) if path.is_file() else {}


def _data_of(run: Path, source: str | None, options: PairOptions, model: AstreaModel) -> AnnotatedPairs:
    """The user's pictures, or the sample, for a run that was trained on it."""
    split = resolve_recipe(run).split if (run / "recipe.yaml").is_file() else SplitOptions()
    if source is None and _known(run).get("source", STAGED_SAMPLE) != STAGED_SAMPLE:
        raise DataError(f"{run} was not trained on the {STAGED_SAMPLE}: say which pictures to measure on")
    return read_annotated(source, options, model.config.captions, split)


def run_evaluate(
    run: Path,
    source: str | None,
    options: PairOptions,
    *,
    part: str | None,
    mode: Mode,
    draws: int,
    device: str,
    as_json: bool,
) -> None:
    """Measure, and print the tables."""
    model = _opened(run, device)
    data = _data_of(run, source, options, model)
    own = source is None or _known(run).get("source") == source_name(source)
    part = part or ("test" if own else "all")
    shown = data if part == "all" else data.part(part)
    train = data.part("train") if own and part != "train" else None
    with Status("measuring"):
        found = measure_astrea(model, shown, train, mode=mode, draws=draws)
    if as_json:
        print_json(
            {"metric": METRIC, "trained": found.retrieval.contrast.mean.value, "run": str(run), **found.to_dict()}
        )
        return
    _show_scores(found, f"{run}: {len(shown):,} pictures, {part} split")


def _show_scores(found: AstreaScores, title: str) -> None:
    both = found.retrieval.contrast
    rows = [
        [f"R@{rank}", f"{both.text_to_image[rank].value:.3f}", f"{both.image_to_text[rank].value:.3f}"]
        for rank in (1, 5, 10)
    ]
    print_table(f"{title}; R_m {both.mean.value:.3f}", ["", "text → image", "image → text"], rows)
    _show_language(found.to_dict())


def run_ask(run: Path, photo: Path, question: str, *, answers: Path | None, device: str, as_json: bool) -> None:
    """Answer a question about a picture."""
    model = _opened(run, device)
    model.need_answers()
    image = need_image(photo)
    if not question.strip():
        raise ConfigError("the question is empty: ask something, or take the verb caption")
    choices = AnswerList.read(answers).answers if answers is not None else None
    images = FileImages([str(image)])
    (found,) = answer_questions(model, images, np.zeros(1, np.int64), [question], choices=choices)
    if as_json:
        print_json({"question": question, "answer": found, "generated": choices is None})
    else:
        print(found)


def run_caption(run: Path, photos: Sequence[Path], *, device: str, as_json: bool) -> None:
    """A caption of each picture."""
    if not photos:
        raise ConfigError("no picture: name one or more image files")
    model = _opened(run, device)
    images = [need_image(photo) for photo in photos]
    found = model.caption(images)
    if as_json:
        print_json({"captions": {str(photo): text for photo, text in zip(photos, found, strict=True)}})
        return
    for photo, text in zip(photos, found, strict=True):
        print(text if len(photos) == 1 else f"{photo}: {text}")


def run_inspect(
    run: Path, source: str | None, options: PairOptions, *, out: Path | None, device: str, as_json: bool
) -> None:
    """How much each expert counts, where, and how that came about."""
    model = _opened(run, device)
    need_weights(model)
    added: dict[str, float] = {}
    names: Sequence[str]
    if source is None:
        test = _data_of(run, None, options, model).part("test")
        images, names = test.pairs.images, test.pairs.captions
        with Status("measuring what each expert adds"):
            added = what_experts_add(model, test.pairs)
    else:
        images, names = open_images(source, options)
    with Status("looking at the router"):
        report = inspect_router(model, images)
    folder = out or run / "inspect"
    rows = list(range(min(_SHOWN, len(images))))
    written = [figures.weight_pictures(model, [images.read(row) for row in rows], names, folder / "weights.png")]
    try:
        curves = contribution_over_training(run)
    except DataError:
        curves = {}
    if curves:
        written.append(figures.contribution(curves, folder / "training.png"))
    lines = told(report, added)
    fields = {"run": str(run), **report.to_dict(), "told": lines, "pictures_written": [str(one) for one in written]}
    if added:
        fields["retrieval_mean_recall"] = added
    if as_json:
        print_json(fields)
        return
    print_table(
        f"{run}: weights over {report.pictures:,} pictures; entropy {report.entropy:.2f} of the mean, "
        f"{report.entropy_each:.2f} of each place",
        ["expert", "mean weight", "from", "to", "most anywhere", "varies by"],
        [
            [
                kind,
                *(
                    f"{float(each[row]):.2f}"
                    for each in (report.weight, report.least, report.most, report.load, report.spread)
                ),
            ]
            for row, kind in enumerate(report.kinds)
        ],
    )
    if added:
        print_table("R_m of the trained model", ["", "R_m"], [[name, f"{value:.3f}"] for name, value in added.items()])
    sys.stdout.write("".join(f"{line}\n" for line in (*lines, *(f"picture {one}" for one in written))))


def run_ablate(
    source: str | None,
    options: PairOptions,
    *,
    recipe: str,
    out: Path | None,
    seeds: int,
    rows: Sequence[str],
    steps: int | None,
    answers: bool,
    as_json: bool,
) -> None:
    """Train every row, and print the table."""
    clock = Clock()
    keep_freed_memory()
    base = astrea_recipe(recipe, {} if steps is None else {"fit": {"steps": steps}})
    arms = [arm_of(name, base.method.kinds) for name in rows] if rows else list(arms_of(base.method.kinds))
    data = read_annotated(source, options, base.method.captions, base.split)
    check_held_out(data.pairs)
    name = STAGED_SAMPLE if source is None else source_name(source)
    folder = out or Path("runs") / f"astrea-ablation-{folder_name(Path(name).stem)}"
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        for arm in arms:
            found.setdefault(arm.name, []).append(run_arm(base, arm, seed, data, folder, answers=answers, source=name))
    columns = (*COLUMNS, *(("vqa_accuracy",) if answers else ()))
    spreads = {
        arm: {column: Spread.of([one[column] for one in each]) for column in columns} for arm, each in found.items()
    }
    fields = {
        "recipe": recipe,
        "data": name,
        "seeds": seeds,
        "rows": [
            {"row": arm, **{column: {"mean": s.mean, "sd": s.sd} for column, s in each.items()}}
            for arm, each in spreads.items()
        ],
        "seconds": round(clock.seconds(), 1),
    }
    write_json(folder / "ablation.json", fields)
    if as_json:
        print_json(fields)
        return
    print_table(
        f"{name}, {seeds} seeds, mean ± deviation",
        ["", *columns],
        [[arm, *(f"{one:.3f}" for one in each.values())] for arm, each in spreads.items()],
    )
    print(f"rows  {folder}")
