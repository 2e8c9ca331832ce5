"""``mc-text-code code ablate``: what each part of CoCoSoDa does on one's own code, at equal steps, over several seeds."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from mc_core.cli import Clock, keep_freed_memory, print_json, print_table
from mc_core.errors import ConfigError
from mc_core.files import write_json
from mc_core.seeds import Spread
from mc_text_code.code_claims import HIDDEN, HIDDEN_BOTH, SHOWN, SHOWN_BOTH, CodeClaims, code_claims
from mc_text_code.code_recipe import resolve_code_recipe
from mc_text_code.data.code_search_sets import CodeSearchSet
from mc_text_code_app.code_training import open_parts

COLUMNS = (SHOWN, HIDDEN, SHOWN_BOTH, HIDDEN_BOTH)
_log = logging.getLogger("mc_core")


def run_ablate(
    path: Path | None,
    *,
    stdlib: bool,
    recipe_name: str,
    seeds: int,
    steps: int | None,
    out: Path,
    as_json: bool,
) -> CodeClaims:
    """Run what is missing, print the tables, and write them as ``ablation.json``."""
    clock = Clock()
    if path is not None and stdlib:
        raise ConfigError(f"{path} and --stdlib are two things to train on: take one of them")
    recipe = resolve_code_recipe(recipe_name, {"fit": {"steps": steps}} if steps else {})
    keep_freed_memory()
    parts = open_parts(path)
    asked = CodeSearchSet.of(parts.test, parts.valid)

    def told(name: str, values: Mapping[str, float]) -> None:
        _log.info("%s: %s", name, ", ".join(f"{column} {value:.3f}" for column, value in values.items()))

    choose = CodeSearchSet.of(parts.valid)
    found = code_claims(recipe, parts.train, asked, out, seeds=seeds, choose=choose, processes=0, on_row=told)
    fields = {
        **found.to_dict(),
        "data": parts.name,
        "pairs": {"train": len(parts.train), "queries": len(asked.queries), "candidates": len(asked.codes)},
        "steps": recipe.fit.steps,
        "seconds": round(clock.seconds(), 1),
        "out": str(out),
    }
    write_json(out / "ablation.json", fields)
    if as_json:
        print_json(fields)
        return found
    title = (
        f"{parts.name}: {len(parts.train):,} pairs, {recipe.fit.steps:,} steps; {len(asked.queries):,} questions among "
        f"{len(asked.codes):,} functions; mean ± sd over {seeds} seeds"
    )
    print_table(title, ["", *COLUMNS], _cells(found.rows()))
    if seeds > 1:
        print_table("minus the row before, of the same seed", ["", *COLUMNS], _cells(found.steps(), signed=True))
    for note in found.notes:
        sys.stdout.write(f"{note}\n")
    sys.stdout.write(f"{out / 'ablation.json'}\n")
    return found


def _cells(rows: Mapping[str, Mapping[str, Spread]], *, signed: bool = False) -> list[list[str]]:
    return [[name, *(_cell(row.get(column), signed) for column in COLUMNS)] for name, row in rows.items()]


def _cell(value: Spread | None, signed: bool) -> str:
    if value is None:
        return "–"
    sign = "+" if signed and value.mean >= 0 else ""
    return f"{sign}{value:.3f}"
