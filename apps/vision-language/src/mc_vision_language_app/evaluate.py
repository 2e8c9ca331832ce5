"""``mc-vision-language evaluate``: what a run finds, or answers, on images held out."""

from __future__ import annotations

import sys
from pathlib import Path

from mc_core.cli import Status, print_json
from mc_core.errors import ConfigError
from mc_core.runs import pick_device
from mc_vision_language_app.measure import RANDOM, TRAINED, compare, show
from mc_vision_language_app.pair_options import MeasuredOptions
from mc_vision_language_app.runs import open_run, task_of_run
from mc_vision_language_app.tasks import evaluate_task


def run_evaluate(
    run: Path,
    source: str | None,
    options: MeasuredOptions,
    *,
    part: str | None,
    rerank: int | None,
    add_cosine: bool,
    draws: int,
    device: str,
    as_json: bool,
) -> None:
    """Do it, and print the table."""
    if (task := task_of_run(run)) is not None:
        evaluate_task(
            run,
            task,
            source,
            options,
            part=part,
            rerank=rerank,
            add_cosine=add_cosine,
            draws=draws,
            device=device,
            as_json=as_json,
        )
        return
    if typed := sorted({"annotations", "boxes", "proposals"} & options.model_fields_set):
        raise ConfigError(f"--{typed[0]} is of a run of finetune; {run} was pretrained")
    opened = open_run(run, pick_device(device))
    pairs, name = opened.pairs(source, options, part=part)
    models = {TRAINED: opened.model}
    if (untrained := opened.untrained()) is not None:
        models[RANDOM] = untrained
    with Status(f"measuring on {name}"):
        found = compare(models, pairs, k=rerank, add_cosine=add_cosine, draws=draws)
    if as_json:
        baselines = {key: found.value(key) for key in models if key != TRAINED}
        print_json(
            {"metric": found.metric, "trained": found.value(TRAINED), "baselines": baselines, "run": str(run)}
            | found.fields()
        )
        return
    show(found, f"{run}: {found.images:,} images of {name} with {found.captions:,} captions")
    sys.stdout.flush()
