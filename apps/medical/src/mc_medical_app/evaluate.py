"""``mc-medical evaluate``: what a run knows of its own patients held out, or of other studies."""

from __future__ import annotations

from pathlib import Path

from mc_core.cli import Clock, Result, Status
from mc_core.runs import pick_device
from mc_medical.prompts import load_prompts
from mc_medical_app.measure import RANDOM, TRAINED, compare, show
from mc_medical_app.runs import open_run
from mc_medical_app.study_options import StudyOptions


def run_evaluate(
    run: Path,
    source: Path | None,
    studies: StudyOptions,
    *,
    part: str | None,
    prompts: Path | None,
    draws: int,
    device: str,
    as_json: bool,
) -> None:
    """Do it, and print the result to standard output."""
    clock = Clock()
    ask = None if prompts is None else load_prompts(prompts)
    opened = open_run(run, pick_device(device))
    whole, name, foreign = opened.studies(source, studies)
    part = part or ("all" if foreign else "test")
    test = whole.part(part)
    train = whole.part("train") if part == "test" and (whole.studies.splits == "train").any() else None
    models = {TRAINED: opened.model}
    untrained = opened.untrained()
    if untrained is not None:
        models[RANDOM] = untrained
    with Status("measuring"):
        found = compare(models, train, test, prompts=ask, draws=draws)
    baselines = {other: found.value(other) for other in models if other != TRAINED}
    shown = Result(found.metric, found.value(TRAINED), baselines, run=run, seconds=clock.seconds(), more=found.fields())
    if as_json:
        shown.show(as_json=True, title="")
    else:
        where = name if part == "all" else f"{name}, {part} split"
        show(found, f"{run.name} on {where}, {found.images:,} images of {found.patients:,} patients")
