"""Runs of several settings and seeds whose results are kept one by one, so that an interrupted study goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mc_benchmarks.contract import Row
from mc_core.engine import fit
from mc_core.files import read_json, write_json
from mc_vision.data import ImageSource
from mc_vision.methods import METHODS
from mc_vision.methods.base import ImageMethod
from mc_vision.recipe import Recipe
from mc_vision.transforms import ViewDataset

Scores = dict[str, dict[str, float]]
"""Row name → column → value, of one run."""


def trained(recipe: Recipe[Any], source: ImageSource, folder: Path) -> ImageMethod:
    """The method after its whole run in ``folder``."""
    torch.manual_seed(recipe.fit.seed)
    method = METHODS.method_class(recipe.system)(recipe.method)
    data = ViewDataset(source, recipe.views.views(), where="device")
    found = fit(method, data, fit=recipe.fit, run_dir=folder).method
    assert isinstance(found, ImageMethod)
    return found


def kept(folder: Path, name: str, settings: Mapping[str, Any], work: Callable[[], Scores]) -> Scores:
    """What ``work`` found, now or, with the very same settings, earlier."""
    text = json.dumps(settings, sort_keys=True)
    path = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    if not path.exists():
        write_json(path, work())
    scores: Scores = read_json(path)
    shown = "; ".join(
        f"{row}: {', '.join(f'{column} {value:.3f}' for column, value in values.items())}"
        for row, values in scores.items()
    )
    print(f"{name}: {shown}", flush=True)
    return scores


def over_seeds(runs: Sequence[Scores]) -> list[Row]:
    """A row for each name: mean and standard deviation of each column over the runs that have it."""
    names = dict.fromkeys(name for run in runs for name in run)
    rows = []
    for name in names:
        found = [run[name] for run in runs if name in run]
        values: dict[str, float | str | None] = {}
        for column in found[0]:
            numbers = np.array([scores[column] for scores in found])
            values[column] = float(numbers.mean())
            values[f"{column} sd"] = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
        rows.append(Row(name=name, values=values))
    return rows


def value(rows: Sequence[Row], name: str, column: str) -> float:
    """One mean."""
    found = next(row for row in rows if row.name == name).values[column]
    return float(found) if isinstance(found, (int, float)) else math.nan
