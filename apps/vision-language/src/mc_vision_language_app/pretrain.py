"""``mc-vision-language pretrain``: from pairs to a model of images and texts, what it finds on images held out, and a report."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mc_core.cli import Clock, Result, Status, given_fields, keep_freed_memory
from mc_core.distributed import first_process_first, rank
from mc_core.engine.distribution import join_processes
from mc_core.errors import ConfigError, McError
from mc_core.recipes import merge, to_yaml
from mc_core.report import write_report
from mc_core.runs import folder_name
from mc_vision_language.data.assembling import DIVIDED
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.recipe import Recipe, resolve_recipe
from mc_vision_language.sample import SAMPLE, sample_pairs
from mc_vision_language.training import PAIRS_FILE, pretrain_pairs, split_counts, untrained_model
from mc_vision_language_app import figures
from mc_vision_language_app.measure import RANDOM, TRAINED, compare, show
from mc_vision_language_app.pair_options import PairOptions
from mc_vision_language_app.runs import opened, source_name

FEWEST = 8  # images held out, below which figures say nothing


@dataclass(frozen=True)
class PretrainOptions:
    """What was typed; ``sections`` are the recipe's, as option models with only what was given set."""

    source: str | None
    pairs: PairOptions
    recipe: str | None
    out: Path | None
    batch: int | None
    rerank: int | None
    json: bool
    print_recipe: bool
    sections: Mapping[str, Any]


def run_pretrain(options: PretrainOptions) -> None:
    """Do it, and print the result to standard output."""
    clock = Clock()
    name = options.recipe or ("albef-laptop" if options.source is None else "albef")
    recipe = resolve_recipe(name, changes_of(options.sections, options.batch))
    if recipe.system == "astrea":
        raise ConfigError(f"--recipe {name}: astrea has experts and is trained in stages: mc-vision-language astrea")
    if options.print_recipe:
        sys.stdout.write(to_yaml(recipe))
        return
    keep_freed_memory()
    join_processes(recipe.fit)
    data_name = SAMPLE if options.source is None else source_name(options.source)
    run_dir = options.out or Path("runs") / f"{folder_name(Path(name).stem)}-{folder_name(Path(data_name).stem)}"
    with cleared(run_dir):
        pairs = read_pairs(options.source, options.pairs, recipe)
        result = pretrain_pairs(recipe, pairs, run_dir, source=data_name)
    if rank() != 0:
        return
    model = result.method.export_module()
    assert isinstance(model, VisionLanguageModel)
    model.eval()
    title = f"{recipe.system}, {len(pairs.part('train')):,} images of {data_name}"
    _report(recipe, pairs, model, run_dir, clock, options, title=title, seconds=result.seconds)


def changes_of(sections: Mapping[str, Any], batch: int | None) -> dict[str, Any]:
    """What was typed, as changes of the recipe."""
    changes = {
        key: given if isinstance(model, BaseModel) else model
        for key, model in sections.items()
        if (given := given_fields(model) if isinstance(model, BaseModel) else model) not in (None, {})
    }
    if batch is None:
        return changes
    if "batch_size" in changes.get("fit", {}):
        raise ConfigError("--batch and --fit.batch-size say the same thing: give one of them")
    return merge(changes, {"fit": {"batch_size": batch}})


def read_pairs(source: str | None, options: PairOptions, recipe: Recipe[Any]) -> Pairs:
    """The user's pairs, or the sample; with enough held out to measure on.

    Raises:
        ConfigError: too few.
    """
    with first_process_first():
        if source is None:
            with Status(f"drawing {SAMPLE}"):
                pairs = sample_pairs()
        else:
            with Status(f"opening {source_name(source)}"):
                pairs = opened(source, options, recipe.method.captions, recipe.split)
    check_held_out(pairs)
    return pairs


def check_held_out(pairs: Pairs) -> None:
    """Refuse too few images to measure on.

    Raises:
        ConfigError: with what would be right.
    """
    held_out = int((pairs.splits == "test").sum())
    if held_out < FEWEST:
        parts = {name: int((pairs.splits == name).sum()) for name in dict.fromkeys(pairs.splits.tolist())}
        told = ", ".join(f"{count} in {name}" for name, count in parts.items())
        if pairs.columns.get("split", DIVIDED).startswith(DIVIDED):
            advice = f"give at least {FEWEST}, by a larger third --split.shares, or more images"
        else:
            advice = f"the data's own parts hold {told}; divide the images anew with --split.no-own"
        raise ConfigError(f"{held_out} images held out (test) are too few to measure on: {advice}")


@contextlib.contextmanager
def cleared(run_dir: Path) -> Iterator[None]:
    """Nothing of a run that never began is left behind."""
    new = not run_dir.exists()
    try:
        yield
    except McError:
        if rank() == 0 and new and not (run_dir / "checkpoints").exists() and not (run_dir / PAIRS_FILE).exists():
            shutil.rmtree(run_dir, ignore_errors=True)
        raise


def _report(
    recipe: Recipe[Any],
    pairs: Pairs,
    model: VisionLanguageModel,
    run_dir: Path,
    clock: Clock,
    options: PretrainOptions,
    *,
    title: str,
    seconds: float,
) -> None:
    test = pairs.part("test")
    with Status("measuring on images held out"):
        untrained = untrained_model(recipe, model.tokenizer).to(model.device)
        found = compare({TRAINED: model, RANDOM: untrained}, test, k=options.rerank)
    shown = Result(
        found.metric, found.value(TRAINED), {RANDOM: found.value(RANDOM)}, run=run_dir, seconds=clock.seconds()
    )
    shown.fields |= {"training_seconds": round(seconds, 1), "splits": split_counts(pairs), **found.fields()}
    with Status("writing the report"):
        pictures = figures.report_figures(found, test, model, run_dir)
        plain = {key: value for key, value in shown.fields.items() if key == "baselines" or not isinstance(value, dict)}
        shown.fields["report"] = str(
            write_report(run_dir, title=f"{run_dir.name}: {recipe.system}", result=plain, figures=pictures)
        )
    shown.write(run_dir)
    if options.json:
        shown.show(as_json=True, title="")
        return
    show(found, f"{title}; measured on {found.images:,} others with {found.captions:,} captions")
    sys.stdout.write(f"run     {run_dir}\nmodel   {run_dir / 'model'}\nreport  {shown.fields['report']}\n")
