"""``mc-vision-language continual``: one task after the other, by one method or several, measured after each, and a report."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mc_core.cli import Clock, Result, Status, keep_freed_memory, print_table
from mc_core.distributed import first_process_first, rank
from mc_core.engine.distribution import join_processes
from mc_core.errors import ConfigError, McError, closest
from mc_core.recipes import to_yaml
from mc_core.report import write_report
from mc_core.runs import folder_name, pick_device
from mc_vision_language.continual.base import CITATION
from mc_vision_language.continual.running import SequenceRun, base_recipe, recipe_for, run_sequence, untrained_figures
from mc_vision_language.continual.table import BASELINES
from mc_vision_language.continual.tasks import SAMPLE_TASKS, TaskPairs, read_tasks, sample_tasks
from mc_vision_language.data.options import ReadOptions
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.recipe import Recipe
from mc_vision_language_app import continual_figures as figures
from mc_vision_language_app.measure import METRIC, RANDOM
from mc_vision_language_app.pretrain import changes_of
from mc_vision_language_app.runs import open_run

OWN = "ctp"
STARTED = "before_the_tasks"
SAMPLE_METHODS = ("sequential", OWN, "joint")


@dataclass(frozen=True)
class ContinualOptions:
    """What was typed; ``sections`` are the recipe's, as option models with only what was given set."""

    source: str | None
    methods: Sequence[str]
    read: ReadOptions
    recipe: str | None
    out: Path | None
    start: Path | None
    buffer: int | None
    reverse: bool
    json: bool
    print_recipe: bool
    sections: Mapping[str, Any]


def run_continual(options: ContinualOptions) -> None:
    """Do it, and print the result to standard output."""
    clock = Clock()
    methods = _methods(options)
    base = base_recipe(
        options.recipe or ("ctp-laptop" if options.source is None else OWN), changes_of(options.sections, None)
    )
    if options.print_recipe:
        sys.stdout.write("---\n".join(to_yaml(recipe_for(name, base)) for name in methods))
        return
    keep_freed_memory()
    join_processes(base.fit)
    data_name = SAMPLE_TASKS["digits"] if options.source is None else Path(options.source.removeprefix("p9d:")).stem
    order = "-reversed" if options.reverse else ""
    out = options.out or Path("runs") / f"continual-{folder_name(data_name)}{order}"
    with _cleared(out):
        start = None if options.start is None else open_run(options.start, pick_device("cpu")).model
        tasks = _read(options, base)
        runs = [
            run_sequence(
                name, tasks, base, out / folder_name(name), buffer=options.buffer, source=data_name, start=start
            )
            for name in methods
        ]
    if rank() == 0:
        _report(runs, tasks, base, out, clock, options, data_name, start)


def _methods(options: ContinualOptions) -> Sequence[str]:
    names = list(dict.fromkeys(options.methods)) or list(SAMPLE_METHODS if options.source is None else [OWN])
    for name in names:
        if name not in BASELINES:
            raise ConfigError(f"--method {name}: no such method; did you mean {closest(name, BASELINES)}?")
    if options.buffer is not None:
        if options.buffer < 1:
            raise ConfigError(f"--buffer {options.buffer}: keep 1 sample or more, or leave the option out")
        if not any(BASELINES[name].memory for name in names):
            with_memory = ", ".join(name for name, entry in BASELINES.items() if entry.memory)
            raise ConfigError(f"--buffer {options.buffer}: {', '.join(names)} keep no samples; {with_memory} do")
    return names


def _read(options: ContinualOptions, base: Recipe[Any]) -> list[TaskPairs]:
    with first_process_first():
        if options.source is None:
            with Status(f"drawing {SAMPLE_TASKS['digits']}"):
                return sample_tasks(reverse=options.reverse)
        with Status(f"opening {options.source}"):
            return read_tasks(
                options.source,
                captions=base.method.captions,
                read=options.read,
                split=base.split,
                reverse=options.reverse,
            )


@contextlib.contextmanager
def _cleared(out: Path) -> Iterator[None]:
    """Nothing of runs that never began is left behind."""
    new = not out.exists()
    try:
        yield
    except McError:
        if rank() == 0 and new and not any(out.glob("*/tasks.json")):
            shutil.rmtree(out, ignore_errors=True)
        raise


def _report(
    runs: Sequence[SequenceRun],
    tasks: Sequence[TaskPairs],
    base: Recipe[Any],
    out: Path,
    clock: Clock,
    options: ContinualOptions,
    data_name: str,
    start: VisionLanguageModel | None,
) -> None:
    with Status("measuring the weights that all began with"):
        before = untrained_figures(tasks, base, runs[0].run_dir, start=start)["union"]["r_m"][-1]
    named = RANDOM if start is None else STARTED
    shown = next((run for run in runs if run.method == OWN), runs[0])
    baselines = {run.method: run.r_m for run in runs if run is not shown} | {named: before}
    result = Result(METRIC, shown.r_m, baselines, run=out, seconds=clock.seconds())
    result.fields |= {
        "trained_by": shown.method,
        "tasks": list(shown.tasks),
        "pairs": {task.name: task.pairs.split_counts() for task in tasks},
        "methods": {run.method: {**run.to_dict(), "run": str(run.run_dir)} for run in runs},
    }
    with Status("writing the report"):
        pictures = figures.report_figures(runs, out)
        plain = {
            key: value for key, value in result.fields.items() if key == "baselines" or not isinstance(value, dict)
        }
        plain |= {f"{run.method}: {key}": f"{value:.3f}" for run in runs for key, value in _figures(run).items()}
        page = write_report(
            out, title=f"{out.name}: {len(tasks)} tasks in a row", result=plain, figures=pictures, bibtex=CITATION
        )
        result.fields["report"] = str(page)
    result.write(out)
    if options.json:
        result.show(as_json=True, title="")
        return
    _show(runs, {named: before}, f"{data_name}: figures over all {len(tasks)} tasks after the last, on pairs held out")
    sys.stdout.write(
        "R_m: mean of six recalls in one gallery of all tasks. Forgetting: how much the figure of earlier tasks fell until the "
        "end, positive is forgotten.\nPlasticity: R_m of each task by itself right after it. mAP: the same class found by image "
        "and caption together.\n"
    )
    for run in runs:
        sys.stdout.write(f"{run.method:<12}{run.run_dir}, models after each task in tasks/*/model\n")
    sys.stdout.write(f"report      {result.fields['report']}\n")


def _figures(run: SequenceRun) -> dict[str, float]:
    """The headline figures of a method that are numbers."""
    r_m, found = run.scores(), run.scores("map@1")
    every = {
        "R_m": r_m.last,
        "R1_m": run.scores("r1_m").last,
        "forgetting": r_m.forgetting,
        "plasticity": r_m.plasticity,
        "backward_transfer": r_m.backward_transfer,
        "mAP@1": found.last,
        "mAP@10": run.scores("map@10").last,
        "mAP@1_forgetting": found.forgetting,
    }
    return {name: value for name, value in every.items() if value == value}


def _show(runs: Sequence[SequenceRun], before: Mapping[str, float], title: str) -> None:
    heads = ["R_m", "R1_m", "forgetting", "plasticity", "mAP@1", "mAP@10"]
    rows = [
        [run.method, *(f"{found[head]:.3f}" if head in found else "–" for head in heads), f"{run.seconds:.0f} s"]
        for run in runs
        for found in [_figures(run)]
    ]
    rows += [[name.replace("_", " "), f"{value:.3f}", *["–"] * len(heads)] for name, value in before.items()]
    print_table(title, ["", *heads, "training"], rows)
    several = [run for run in runs if len(run.results) == len(run.tasks)]
    if several:
        after = [f"after {number}" for number in range(1, len(several[0].tasks) + 1)]
        lines = [[run.method, *(f"{value:.3f}" for value in run.scores().after_each)] for run in several]
        print_table("R_m over the tasks so far; the gallery grows with them", ["", *after], lines)
