"""What ``mc-text-code code train`` does: mine pairs from source code, train an encoder, and say what it is worth on others."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mc_core.cli import Clock, Result, Status, keep_freed_memory, print_json, print_table
from mc_core.distributed import rank
from mc_core.engine.distribution import join_processes
from mc_core.engine.loop import RunResult
from mc_core.errors import ConfigError, DataError, McError
from mc_core.recipes import merge, to_yaml
from mc_core.report import write_report
from mc_text_code.code_recipe import CodeRecipe, resolve_code_recipe
from mc_text_code.code_training import new_code_encoder, train_code
from mc_text_code.codesearch.config import RankingConfig
from mc_text_code.data.code_files import open_pairs, write_pairs
from mc_text_code.data.code_mining import mine, mine_standard_library
from mc_text_code.data.code_pairs import CodePair, require_pairs, split_pairs
from mc_text_code.data.code_search_sets import CodeSearchSet
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.evaluation.code_search import (
    DENSE,
    HYBRID,
    LEXICAL,
    OneEncoder,
    choose_dense_weight,
    evaluate_code_search,
)
from mc_text_code.methods.cocosoda.model import CITATION
from mc_text_code_app.code_eval import HELD_OUT, VALID
from mc_text_code_app.folders import write_ranking

TINY = "tiny"
FEWEST = 100
"""Documented functions that are needed, of which eight in ten are trained on."""
_log = logging.getLogger("mc_core")


def run_train(
    path: Path | None,
    *,
    stdlib: bool,
    encoder: str | None,
    recipe_name: str | None,
    changes: Mapping[str, Any],
    out: Path | None,
    as_json: bool,
    print_recipe: bool,
) -> None:
    """Do it, and print the result to standard output."""

    clock = Clock()
    if path is not None and stdlib:
        raise ConfigError(f"{path} and --stdlib are two things to train on: take one of them")
    name = recipe_name or ("cocosoda-laptop" if encoder in (None, TINY) else "cocosoda")
    if encoder is not None:
        changes = merge({"method": {"encoder": {"name": None if encoder == TINY else encoder}}}, changes)
    recipe = resolve_code_recipe(name, changes)
    if print_recipe:
        sys.stdout.write(to_yaml(recipe))
        return
    keep_freed_memory()
    parts = open_parts(path)
    run_dir = (
        out or Path("runs") / f"{Path(name).stem}-{'stdlib' if path is None else path.resolve().name.split('.')[0]}"
    )
    train_and_measure(recipe, parts, run_dir, clock=clock, as_json=as_json)


@dataclass(frozen=True)
class Parts:
    """Pairs to train on, to measure now and to measure later; a name for where they come from."""

    train: Sequence[CodePair]
    valid: Sequence[CodePair]
    test: Sequence[CodePair]
    name: str


def open_parts(path: Path | None) -> Parts:
    """The pairs of a folder, a file or the standard library, parted so that no package, folder or file is on two sides.

    A file that says which pair is in which part is taken at its word.

    Raises:
        DataError: too few documented functions, or a path that is not there.
    """

    name = "the standard library" if path is None else str(path)
    if path is not None and not path.exists():
        raise DataError(f"{path}: no such folder or file; name a folder with source code, or say --stdlib")
    with Status("mining" if path is None or path.is_dir() else "reading pairs"):
        if path is None:
            pairs = mine_standard_library(processes=0).pairs
        elif path.is_dir():
            pairs = mine(path, processes=0).pairs
        else:
            pairs = open_pairs(path).pairs
        require_pairs(pairs, FEWEST, source=name)
        stated = {part: [pair for pair in pairs if pair.partition == part] for part in ("train", "valid", "test")}
        if all(len(part) > 1 for part in stated.values()):
            return Parts(stated["train"], stated["valid"], stated["test"], name)
        parts = split_pairs(pairs)
    return Parts(parts.train, parts.valid, parts.test, name)


def train_and_measure(recipe: CodeRecipe[Any], parts: Parts, run_dir: Path, *, clock: Clock, as_json: bool) -> None:
    """Train, measure on the validation part and report; under torchrun, process 0 does the latter two."""

    join_processes(recipe.fit)
    kept = {HELD_OUT: parts.test, VALID: parts.valid}
    new = rank() == 0 and not (run_dir / HELD_OUT).exists()
    if new:
        for name, pairs in kept.items():
            write_pairs(run_dir / name, pairs)  # so that a run that was interrupted can be measured, too
    _log.info("%s: %s pairs to train on", parts.name, f"{len(parts.train):,}")
    try:
        result = train_code(recipe, parts.train, run_dir, processes=0)
    except McError:
        if new and not any((run_dir / name).exists() for name in ("checkpoints", "tokenizer")):
            for name in kept:
                (run_dir / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                run_dir.rmdir()
        raise
    if rank() != 0:
        return
    with Status("measuring"):
        shown = _measured(recipe, result, parts, run_dir, clock)
    if as_json:
        print_json(shown.fields)
        return
    both = (f"both, the model at {shown.fields['dense_weight']:g}", shown.fields[HYBRID])
    rows = [("trained", shown.fields["trained"]), *shown.fields["baselines"].items(), both]
    print_table(
        f"{recipe.system}, {len(parts.train):,} pairs; {len(parts.valid):,} others to choose with, protocol B",
        ["mrr", "value"],
        [({LEXICAL: "words (split BM25)"}.get(name, name), f"{value:.3f}") for name, value in rows],
    )
    sys.stdout.write(
        f"run     {run_dir}\nencoder {run_dir / 'model'}\nreport  {shown.fields['report']}\n"
        f"measure on {len(parts.test):,} functions held out: mc-text-code code eval {run_dir}\n"
    )


def _measured(recipe: CodeRecipe[Any], result: RunResult, parts: Parts, run_dir: Path, clock: Clock) -> Result:
    trained = result.method.encoder
    assert isinstance(trained, SentenceEncoder)
    assert trained.tokenizer is not None
    trained.eval()
    device = next(trained.parameters()).device
    start = new_code_encoder(recipe.method.encoder, trained.tokenizer, recipe.fit.seed).to(device).eval()
    asked, encoder = CodeSearchSet.of(parts.valid), OneEncoder(trained.encode)
    ranking = RankingConfig(dense_weight=choose_dense_weight(asked, encoder))
    write_ranking(run_dir, ranking)
    found = evaluate_code_search(asked, encoder, others={"before training": OneEncoder(start.encode)}, ranking=ranking)
    values = {name: row.mrr for name, row in found.rows.items()}
    more = {HYBRID: values.pop(HYBRID), "part": "valid"}  # the model is in it, so that it is no baseline of the model's
    shown = Result("mrr", values.pop(DENSE), values, run=run_dir, seconds=clock.seconds(), more=more)
    shown.fields |= {
        "recall": {name: row.recall for name, row in found.rows.items()},
        "training_seconds": round(result.seconds, 1),
        "steps": result.step,
        "dense_weight": ranking.dense_weight,
        "pairs": {"train": len(parts.train), "valid": len(parts.valid), "test": len(parts.test)},
    }
    plain = {name: value for name, value in shown.fields.items() if name == "baselines" or not isinstance(value, dict)}
    title = f"{run_dir.name}: {recipe.system}"
    shown.fields["report"] = str(write_report(run_dir, title=title, result=plain, bibtex=CITATION))
    shown.write(run_dir)
    return shown
