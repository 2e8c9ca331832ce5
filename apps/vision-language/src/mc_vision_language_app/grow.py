"""``mc-vision-language grow``: a model that grows while pairs arrive, what it chose at each step, and a report."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.cli import Clock, Result, Status, keep_freed_memory, print_table
from mc_core.distributed import first_process_first, rank
from mc_core.engine.distribution import join_processes
from mc_core.errors import ConfigError
from mc_core.recipes import to_yaml
from mc_core.report import write_report
from mc_core.runs import folder_name
from mc_vision_language.data.labelled import open_labelled
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.evaluation.prompts import read_templates
from mc_vision_language.evaluation.retrieval import retrieval
from mc_vision_language.evaluation.zero_shot import zero_shot
from mc_vision_language.growing.running import GrowthRun, run_growth
from mc_vision_language.growing.sample import GROWING_SAMPLE, growing_classes, growing_pairs
from mc_vision_language.growing.slices import Slices, arriving, sliced, with_validation
from mc_vision_language.methods.growclip.config import GrowCLIPConfig
from mc_vision_language.methods.growclip.model import CITATION
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.recipe import Recipe, resolve_recipe
from mc_vision_language.training import untrained_model
from mc_vision_language_app.grow_figures import growth_figures
from mc_vision_language_app.measure import METRIC, RANDOM
from mc_vision_language_app.pair_options import PairOptions
from mc_vision_language_app.pretrain import changes_of, check_held_out, cleared
from mc_vision_language_app.runs import opened, source_name

BESIDE = ("fixed", "restarting")
"""Arms that run beside the growing model, with as many updates."""
ZERO_SHOT = "zero_shot_accuracy"


@dataclass(frozen=True)
class GrowOptions:
    """What was typed; ``sections`` are the recipe's, as option models with only what was given set."""

    sources: Sequence[str]
    pairs: PairOptions
    recipe: str | None
    out: Path | None
    slices: int
    beside: bool | None
    labelled: str | None
    templates: Path | None
    batch: int | None
    json: bool
    print_recipe: bool
    sections: Mapping[str, Any]


class _Measure:
    """Retrieval on the pairs held out, and zero-shot classification where there are labelled pictures."""

    def __init__(self, test: Pairs, options: GrowOptions) -> None:
        self.test = test
        self.templates = None if options.templates is None else read_templates(options.templates)
        self.labelled = None
        if options.labelled is not None:
            self.labelled = open_labelled(options.labelled)
        elif not options.sources:
            self.labelled = growing_classes("test")

    @property
    def metric(self) -> str:
        return METRIC if self.labelled is None else ZERO_SHOT

    def __call__(self, model: VisionLanguageModel) -> dict[str, float]:
        found = {METRIC: retrieval(model, self.test, draws=0).contrast.mean.value}
        if self.labelled is not None:
            result = zero_shot(model, self.labelled, templates=self.templates, draws=0)
            found[ZERO_SHOT] = result.accuracy.value
        return found


def run_grow(options: GrowOptions) -> None:
    """Do it, and print the result to standard output."""
    clock = Clock()
    name = options.recipe or ("growclip" if options.sources else "growclip-laptop")
    recipe = resolve_recipe(name, changes_of(options.sections, options.batch))
    if not isinstance(recipe.method, GrowCLIPConfig):
        raise ConfigError(f"--recipe {name}: '{recipe.system}' cannot grow; take growclip or growclip-laptop")
    if options.print_recipe:
        sys.stdout.write(to_yaml(recipe))
        return
    keep_freed_memory()
    join_processes(recipe.fit)
    data_name = GROWING_SAMPLE if not options.sources else " + ".join(map(source_name, options.sources))
    stem = folder_name(Path(data_name).stem)
    run_dir = options.out or Path("runs") / f"{folder_name(Path(name).stem)}-{stem}"
    with cleared(run_dir):
        slices = _slices(options, recipe)
        measure = _Measure(slices.pairs.part("test"), options)
        runs = {"grown": run_growth(recipe, slices, run_dir, measure=measure, source=data_name)}
    beside = not options.sources if options.beside is None else options.beside
    for arm in BESIDE if beside else ():
        runs[arm] = run_growth(recipe, slices, run_dir / "beside" / arm, arm=arm, measure=measure, source=data_name)
    if rank() == 0:
        _report(options, recipe, runs, run_dir, measure, clock, data_name)


def _slices(options: GrowOptions, recipe: Recipe[Any]) -> Slices:
    """The user's sources in order, one source divided, or the sample divided.

    Raises:
        ConfigError: too few pairs held out to measure on.
    """
    with first_process_first():
        if not options.sources:
            with Status(f"drawing {GROWING_SAMPLE}"):
                sets = [growing_pairs()]
        else:
            given = [opened(one, options.pairs, recipe.method.captions, recipe.split) for one in options.sources]
            sets = [with_validation(one, seed=recipe.split.seed) for one in given]
    if len(sets) > 1:
        slices = arriving(sets, _own_names([Path(source_name(one)).stem or "slice" for one in options.sources]))
    else:
        slices = sliced(sets[0], options.slices, seed=recipe.split.seed)
    check_held_out(slices.pairs)
    return slices


def _own_names(names: Sequence[str]) -> list[str]:
    """Names that differ: those that occur twice get a number."""
    return [f"{name}-{place + 1}" if names.count(name) > 1 else name for place, name in enumerate(names)]


def _report(
    options: GrowOptions,
    recipe: Recipe[Any],
    runs: Mapping[str, GrowthRun],
    run_dir: Path,
    measure: _Measure,
    clock: Clock,
    data_name: str,
) -> None:
    grown = runs["grown"]
    with Status("measuring"):
        random = measure(untrained_model(recipe, grown.model.tokenizer))[measure.metric]
    last = {arm: float(run.steps[-1]["end"][measure.metric]) for arm, run in runs.items()}
    baselines = {arm: last[arm] for arm in runs if arm != "grown"} | {RANDOM: random}
    shown = Result(measure.metric, last["grown"], baselines, run=run_dir, seconds=clock.seconds())
    overhead = grown.overhead()
    shown.fields |= {
        "steps": list(grown.steps),
        "beside": {arm: [step["end"] for step in run.steps] for arm, run in runs.items() if arm != "grown"},
        "updates": sum(sum(step["updates"].values()) for step in grown.steps),
        "overhead": [round(one, 4) for one in overhead],
    }
    with Status("writing the report"):
        pictures = growth_figures(runs, measure.metric, run_dir)
        plain = {k: v for k, v in shown.fields.items() if k == "baselines" or not isinstance(v, (dict, list))}
        plain |= {f"step {step['step']}": _said(step, measure.metric) for step in grown.steps}
        shown.fields["report"] = str(
            write_report(
                run_dir, title=f"{run_dir.name}: a model that grew", result=plain, figures=pictures, bibtex=CITATION
            )
        )
    shown.write(run_dir)
    if options.json:
        shown.show(as_json=True, title="")
        return
    _show(runs, measure.metric, data_name, random)
    if overhead:
        print(f"search, choice and expansion took {np.mean(overhead):.0%} of the time of the training they preceded")
    sys.stdout.write(f"run     {run_dir}\nmodel   {run_dir / 'model'}\nreport  {shown.fields['report']}\n")


def sizes(step: Mapping[str, Any]) -> str:
    """Blocks × heads × hidden units of the image, text and shared part."""
    parts = step["spec"]["parts"].values()
    return " ".join(f"{part['blocks']}×{part['heads']}×{part['hidden']}" for part in parts)


def _said(step: Mapping[str, Any], metric: str) -> str:
    choice = step["selection"]["chosen"] if step["selection"] else "no search"
    start, end = step["start"][metric], step["end"][metric]
    return f"{choice}; {sizes(step)}; {step['parameters']:,} parameters; {metric} {start:.3f} before its training, {end:.3f} after"


def _show(runs: Mapping[str, GrowthRun], metric: str, data_name: str, random: float) -> None:
    grown = runs["grown"]
    rows = []
    for place, step in enumerate(grown.steps):
        chosen = "–" if not step["selection"] else step["selection"]["chosen"]
        if (found := step["selection"]) and found["confidence"] is not None:
            chosen += f" ({found['confidence']:.0%})"
        cells = [f"{run.steps[place]['end'][metric]:.3f}" for run in runs.values()]
        rows.append(
            [
                f"{step['step']}: {step['images']:,}",
                chosen,
                sizes(step),
                f"{step['parameters']:,}",
                f"{step['start'][metric]:.3f}",
                *cells,
            ]
        )
    updates = sum(sum(step["updates"].values()) for step in grown.steps)
    print_table(
        f"{data_name}: {metric.replace('_', ' ')} after each step, {updates:,} updates in all; random encoder {random:.3f}",
        ["step: images", "growth (sure)", "image, text, shared", "parameters", "at growth", *runs],
        rows,
    )
    print("sizes: blocks × heads × hidden units; at growth: before any training on the new slice")
