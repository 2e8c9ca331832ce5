"""``mc-text-code sentences pretrain``: from raw sentences to an encoder, what it knows beside baselines, and a report."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mc_core.cli import Clock, Result, Status, keep_freed_memory, print_table
from mc_core.distributed import rank
from mc_core.engine.distribution import join_processes
from mc_core.engine.loop import RunResult
from mc_core.errors import McError
from mc_core.recipes import merge, to_yaml
from mc_core.report import write_report
from mc_core.runs import folder_name
from mc_text_code.data.sentences import Sentences
from mc_text_code.data.sts import StsTask, open_sts
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.recipe import Recipe, resolve_recipe
from mc_text_code.training import pretrain_sentences
from mc_text_code_app import figures
from mc_text_code_app.measure import FEWEST, TRAINED, UNTRAINED, Measured, measure, sts_table, table, untrained_like
from mc_text_code_app.opening import HELD_OUT, Split, corpus_name, open_corpus, split, write_held_out

TINY = "tiny"
_log = logging.getLogger("mc_core")


def run_pretrain(
    corpus: Sequence[str],
    *,
    encoder: str | None,
    recipe_name: str | None,
    changes: Mapping[str, Any],
    column: str | None,
    sts: Path | None,
    holdout: float | None,
    out: Path | None,
    as_json: bool,
    print_recipe: bool,
) -> None:
    """Do it, and print the result to standard output."""
    clock = Clock()
    name, recipe = chosen_recipe(encoder, recipe_name, changes)
    if print_recipe:
        sys.stdout.write(to_yaml(recipe))
        return
    keep_freed_memory()
    tasks = None if sts is None else open_sts(sts)
    parts = split(open_corpus(corpus, column), holdout)
    run_dir = out or Path("runs") / f"{folder_name(Path(name).stem)}-{folder_name(corpus_name(corpus))}"
    pretrain(recipe, parts, tasks, run_dir=run_dir, clock=clock, as_json=as_json)


def chosen_recipe(encoder: str | None, recipe_name: str | None, changes: Mapping[str, Any]) -> tuple[str, Recipe[Any]]:
    """The recipe that is asked for: a published one where a transformer is named, else the small one."""
    name = recipe_name or ("esimcse-laptop" if encoder in (None, TINY) else "esimcse")
    if encoder is not None:
        changes = merge({"method": {"encoder": {"name": None if encoder == TINY else encoder}}}, changes)
    return name, resolve_recipe(name, changes)


def pretrain(
    recipe: Recipe[Any],
    parts: Split,
    tasks: Mapping[str, StsTask] | None,
    *,
    run_dir: Path,
    clock: Clock,
    as_json: bool,
) -> Result | None:
    """Train, measure, report, and print; under torchrun, process 0 does the latter three and the others return None."""
    join_processes(recipe.fit)
    new = rank() == 0 and not (run_dir / HELD_OUT).exists()
    if new:
        write_held_out(run_dir, parts.test)  # so that a run that was interrupted can be measured, too
    try:
        result = pretrain_sentences(recipe, parts.train, run_dir)
    except McError:
        if new and not any((run_dir / name).exists() for name in ("checkpoints", "warm-start", "tokenizer")):
            (run_dir / HELD_OUT).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                run_dir.rmdir()
        raise
    if rank() != 0:
        return None
    trained = result.method.encoder
    assert isinstance(trained, SentenceEncoder)
    if not tasks and len(parts.test) < FEWEST:
        return _unmeasured(result, parts, run_dir, clock, as_json)
    found = measure(
        {TRAINED: trained.encode, UNTRAINED: untrained_like(trained, recipe.fit.seed).encode},
        test=parts.test,
        fitted_on=parts.train,
        tasks=tasks,
        seed=recipe.fit.seed,
    )
    shown = result_of(found, run_dir, clock)
    shown.fields |= {"training_seconds": round(result.seconds, 1), "steps": result.step, "sentences": len(parts.train)}
    with Status("writing the report"):
        shown.fields["report"] = str(_report(recipe, trained, parts.test, found, run_dir, shown))
    shown.write(run_dir)
    if as_json:
        shown.show(as_json=True, title="")
        return shown
    title = f"{recipe.system}, {len(parts.train):,} sentences; measured on {len(parts.test):,} others"
    show(found, title)
    sys.stdout.write(f"run     {run_dir}\nencoder {run_dir / 'model'}\nreport  {shown.fields['report']}\n")
    return shown


def _unmeasured(result: RunResult, parts: Split, run_dir: Path, clock: Clock, as_json: bool) -> Result:
    """Of a corpus too small to hold anything out: the loss alone."""
    shown = Result("loss", result.metrics["loss"], {}, run=run_dir, seconds=clock.seconds(), lower_is_better=True)
    shown.fields |= {"steps": result.step, "sentences": len(parts.train), "held_out": len(parts.test)}
    shown.write(run_dir)
    _log.warning(
        "%d sentences held out are too few to measure on: give more, a larger --holdout, or scored pairs with --sts",
        len(parts.test),
    )
    if as_json:
        shown.show(as_json=True, title="")
    else:
        sys.stdout.write(f"run     {run_dir}\nencoder {run_dir / 'model'}\n")
    return shown


def result_of(found: Measured, run_dir: Path, clock: Clock) -> Result:
    """The headline figure of the trained encoder beside that of the others."""
    metric = found.headline
    values = {name: row[metric] for name, row in found.rows.items() if metric in row}
    trained = values.pop(TRAINED)
    return Result(metric, trained, values, run=run_dir, seconds=clock.seconds(), more=found.to_dict())


def show(found: Measured, title: str) -> None:
    """All tables, to standard output."""
    print_table(title, *table(found))
    if found.sts:
        first = next(iter(found.sts.values()))
        print_table(f"STS, Spearman × 100; {first.average_name}", *sts_table(found))
    if TRAINED in found.more.get("length_bias", {}):
        bias = found.more["length_bias"]
        print_table(
            "Length bias: pairs whose lengths differ by at most 3 words (near), by more (far)",
            ["", *bias[TRAINED]],
            [(name, *(f"{value:.3g}" for value in row.values())) for name, row in bias.items()],
        )
    for name, reason in found.more.get("left_out", {}).items():
        _log.info("%s is not shown: %s", name.replace("_", " "), reason)


def _report(
    recipe: Recipe[Any], encoder: SentenceEncoder, test: Sentences, found: Measured, run_dir: Path, shown: Result
) -> Path:
    pictures = [("Every figure of the table, one panel each", figures.compared(found, run_dir / "figures.png"))]
    if len(test) > 2:
        pictures += [
            (
                "Sentences held out and the nearest of the others",
                figures.neighbours(encoder.encode, test.texts, run_dir / "neighbours.png", seed=recipe.fit.seed),
            ),
            (
                "Cosine of random pairs of sentences held out, by how much their lengths differ",
                figures.lengths(encoder.encode, test.texts, run_dir / "lengths.png", seed=recipe.fit.seed),
            ),
        ]
    plain = {name: value for name, value in shown.fields.items() if name == "baselines" or not isinstance(value, dict)}
    return write_report(run_dir, title=f"{run_dir.name}: {recipe.system}", result=plain, figures=pictures)
