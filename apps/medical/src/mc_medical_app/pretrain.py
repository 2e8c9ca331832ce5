"""``mc-medical pretrain``: from studies to a model of images and reports, what it knows beside the random encoder, and a report."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mc_core.cli import Clock, Result, Status, given_fields, keep_freed_memory
from mc_core.distributed import first_process_first, rank
from mc_core.engine.distribution import join_processes
from mc_core.errors import ConfigError, McError
from mc_core.privacy import Salt, salt_path
from mc_core.recipes import merge, to_yaml
from mc_core.report import write_report
from mc_core.runs import folder_name
from mc_medical.methods.msd.model import MSD
from mc_medical.model import ImageTextModel
from mc_medical.recipe import Recipe, resolve_recipe
from mc_medical.training import COHORT_FILE, Cohort, prepare_cohort, pretrain_pairs, untrained_model
from mc_medical_app import figures
from mc_medical_app.measure import RANDOM, TRAINED, Comparison, compare, show
from mc_medical_app.runs import PHANTOMS, DecodingBar, opened, phantoms_of, tell_left_out
from mc_medical_app.study_options import StudyOptions

FEWEST = 8  # images held out, below which figures say nothing
_log = logging.getLogger("mc_core")


@dataclass(frozen=True)
class PretrainOptions:
    """What was typed; ``sections`` are the recipe's, as option models with only what was given set."""

    source: Path | None
    studies: StudyOptions
    recipe: str | None
    out: Path | None
    batch: int | None
    micro_batch: int | None
    cache: Path | None
    json: bool
    print_recipe: bool
    sections: Mapping[str, BaseModel | None]


def run_pretrain(options: PretrainOptions) -> None:
    """Do it, and print the result to standard output."""
    clock = Clock()
    name = options.recipe or ("msd-laptop" if options.source is None else "msd")
    recipe = resolve_recipe(name, _changes(name, options))
    if options.print_recipe:
        sys.stdout.write(to_yaml(recipe))
        return
    keep_freed_memory()
    join_processes(recipe.fit)
    data_name = PHANTOMS if options.source is None else options.source.stem
    run_dir = options.out or Path("runs") / f"{folder_name(Path(name).stem)}-{folder_name(data_name)}"
    with _cleared(run_dir):
        cohort = _cohort(options, recipe, run_dir)
        held_out = int((cohort.studies.splits == "test").sum())
        if held_out < FEWEST:
            raise ConfigError(
                f"{held_out} images of patients held out are too few to measure on: give at least {FEWEST}, by a larger third "
                "--split.shares, or more studies"
            )
        result = pretrain_pairs(recipe, cohort, run_dir)
    if rank() != 0:
        return
    trained = result.method
    assert isinstance(trained, MSD)
    model = trained.model.eval()
    title = f"{recipe.system}, {len(cohort.part('train')):,} images of {data_name}"
    _report(
        recipe,
        cohort,
        model,
        run_dir,
        clock,
        title=title,
        seconds=result.seconds,
        phantoms=options.source is None,
        as_json=options.json,
    )


def _changes(name: str, options: PretrainOptions) -> dict[str, Any]:
    changes = {key: given for key, model in options.sections.items() if (given := given_fields(model))}
    if options.batch is None and options.micro_batch is None:
        return changes
    given = changes.get("fit", {})
    for option, field in (("--batch", "batch_size"), ("--micro-batch", "accumulation")):
        value = options.batch if option == "--batch" else options.micro_batch
        if value is not None and field in given:
            raise ConfigError(f"{option} and --fit.{field.replace('_', '-')} say the same thing: give one of them")
    before = resolve_recipe(name).fit
    batch = options.batch or given.get("batch_size", before.batch_size)
    micro = options.micro_batch or min(batch, before.batch_size // before.accumulation)
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun's, read before the processes join
    if micro < 1 or batch < 1 or batch % (micro * processes):
        several = f" on each of {processes} processes" if processes > 1 else ""
        raise ConfigError(
            f"a batch of {batch} pairs does not divide into micro-batches of {micro}{several}: give --batch a multiple of "
            f"{micro * processes}"
        )
    fit = {"batch_size": batch, **({} if "accumulation" in given else {"accumulation": batch // micro // processes})}
    return merge(changes, {"fit": fit})


def _cohort(options: PretrainOptions, recipe: Recipe[Any], run_dir: Path) -> Cohort:
    with first_process_first():
        if options.source is None:
            with DecodingBar(1, "drawing phantoms") as bar:
                studies = phantoms_of(run_dir, recipe, bar)
        else:
            with Status(f"opening {options.source.name}"):
                secret = Salt.beside(run_dir, create=True).secret
                studies = opened(options.source, options.studies, recipe, salt=secret, need_reports=True)
    with DecodingBar(len(studies)) as bar:
        cohort = prepare_cohort(studies, recipe.split, cache=options.cache, processes=0, progress=bar)
    tell_left_out(cohort.dropped, cohort.examples, cohort.notes)
    return cohort


@contextlib.contextmanager
def _cleared(run_dir: Path) -> Any:
    """Nothing of a run that never began is left behind."""
    new = not run_dir.exists()
    salted = salt_path(run_dir).exists()
    try:
        yield
    except McError:
        if rank() == 0 and new and not (run_dir / "checkpoints").exists() and not (run_dir / COHORT_FILE).exists():
            shutil.rmtree(run_dir, ignore_errors=True)
            if not salted:
                salt_path(run_dir).unlink(missing_ok=True)
        raise


def _report(
    recipe: Recipe[Any],
    cohort: Cohort,
    model: ImageTextModel,
    run_dir: Path,
    clock: Clock,
    *,
    title: str,
    seconds: float,
    phantoms: bool,
    as_json: bool,
) -> None:
    test = cohort.part("test")
    fields: dict[str, Any] = {"training_seconds": round(seconds, 1), "splits": cohort.counts()}
    with Status("measuring on patients held out"):
        untrained = untrained_model(recipe, model.tokenizer).to(model.logit_scale.device)
        found: Comparison = compare({TRAINED: model, RANDOM: untrained}, cohort.part("train"), test)
    shown = Result(
        found.metric, found.value(TRAINED), {RANDOM: found.value(RANDOM)}, run=run_dir, seconds=clock.seconds()
    )
    shown.fields |= {**fields, **found.fields()}
    with Status("writing the report"):
        pictures = figures.report_figures(found, test, model, run_dir, phantoms=phantoms)
        plain = {key: value for key, value in shown.fields.items() if key == "baselines" or not isinstance(value, dict)}
        shown.fields["report"] = str(
            write_report(run_dir, title=f"{run_dir.name}: {recipe.system}", result=plain, figures=pictures)
        )
    shown.write(run_dir)
    if as_json:
        shown.show(as_json=True, title="")
        return
    show(found, f"{title}; measured on {len(test):,} images of {found.patients:,} other patients")
    sys.stdout.write(f"run     {run_dir}\nmodel   {run_dir / 'model'}\nreport  {shown.fields['report']}\n")
