"""``mc-text-code sentences claims``: what each component of ESimCSE does, at equal steps, over several seeds."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mc_core.cli import Clock, keep_freed_memory, print_json, print_table
from mc_core.files import write_json
from mc_core.seeds import Spread
from mc_text_code.claims import SIMCSE, Claims, component_claims
from mc_text_code.data.sts import open_sts
from mc_text_code.evaluation.retrieval import half_queries
from mc_text_code_app.opening import open_corpus, split
from mc_text_code_app.pretrain import chosen_recipe

_log = logging.getLogger("mc_core")


def run_claims(
    corpus: Sequence[str],
    *,
    sts: Path | None,
    recipe_name: str,
    encoder: str | None,
    seeds: int,
    steps: int | None,
    column: str | None,
    out: Path,
    as_json: bool,
) -> Claims:
    """Run what is missing, print the tables, and write them as ``claims.json``."""
    clock = Clock()
    changes: Mapping[str, Any] = {"fit": {"steps": steps}} if steps else {}
    _, recipe = chosen_recipe(encoder, recipe_name, changes)
    keep_freed_memory()
    tasks = None if sts is None else open_sts(sts)
    parts = split(open_corpus(corpus, column))
    asked = half_queries(parts.test.texts)

    def told(name: str, values: Mapping[str, float]) -> None:
        _log.info("%s: %s", name, ", ".join(f"{column} {_cell(column, value)}" for column, value in values.items()))

    found = component_claims(
        recipe,
        parts.train,
        out,
        tasks=tasks,
        texts=parts.test.texts if tasks is None else None,
        sources=parts.test.groups if tasks is None else None,
        queries={"half → whole": asked} if len(asked.queries) else None,
        seeds=seeds,
        on_row=told,
    )
    fields = {**found.to_dict(), "seconds": round(clock.seconds(), 1), "out": str(out)}
    write_json(out / "claims.json", fields)
    if as_json:
        print_json(fields)
        return found
    rows = found.rows()
    print_table(f"mean ± sd over {seeds} seeds", *_table(rows))
    if SIMCSE in found.cases and seeds > 1:
        print_table(f"minus {SIMCSE} of the same seed", *_table(found.differences()))
    for note in found.notes:
        sys.stdout.write(f"{note}\n")
    sys.stdout.write(f"{out / 'claims.json'}\n")
    return found


def _table(rows: Mapping[str, Mapping[str, Spread]]) -> tuple[list[str], list[list[str]]]:
    """Turned where there are many columns: a row for each figure, a column for each case."""
    names = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [[name, *(_cell(name, row[name]) if name in row else "–" for row in rows.values())] for name in names]
    return ["", *rows], cells


def _cell(column: str, value: Spread | float) -> str:
    spec = ".3f" if any(word in column for word in ("leak", "gap", "bias", "MRR", "alignment", "uniformity")) else ".1f"
    return format(value, spec)
