"""Runs of several settings and seeds whose results are kept one by one, so that an interrupted study goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mc_benchmarks.contract import Row
from mc_core import seeds
from mc_core.engine import fit
from mc_core.files import read_json, write_json

if TYPE_CHECKING:
    from mc_vision.data import ImageSource
    from mc_vision.methods.base import ImageMethod
    from mc_vision.recipe import Recipe
    from mc_wearables import Segments, SignalEncoder
    from mc_wearables.recipe import Recipe as SignalRecipe

Scores = dict[str, dict[str, float]]
"""Row name → column → value, of one run."""
LOW, HIGH = " low", " high"
"""Endings of the columns that hold the ends of an interval."""


def trained(recipe: Recipe[Any], source: ImageSource, folder: Path) -> ImageMethod:
    """The method on images after its whole run in ``folder``."""
    from mc_vision.methods import METHODS
    from mc_vision.methods.base import ImageMethod
    from mc_vision.transforms import ViewDataset

    torch.manual_seed(recipe.fit.seed)
    method = METHODS.method_class(recipe.system)(recipe.method)
    data = ViewDataset(source, recipe.views.views(), where="device")
    found = fit(method, data, fit=recipe.fit, run_dir=folder).method
    assert isinstance(found, ImageMethod)
    return found


def trained_on_segments(recipe: SignalRecipe[Any], segments: Segments, folder: Path) -> SignalEncoder:
    """The encoder of signals after the recipe's whole run on ``segments`` in ``folder``."""
    from mc_wearables import METHODS, PairData
    from mc_wearables.methods.base import SignalMethod

    torch.manual_seed(recipe.fit.seed)
    method = METHODS.method_class(recipe.system)(recipe.method)
    data = PairData(segments, **recipe.pairs.model_dump(), augment=recipe.augment)
    found = fit(method, data, fit=recipe.fit, run_dir=folder).method
    assert isinstance(found, SignalMethod)
    return found.encoder.eval()


def kept(folder: Path, name: str, settings: Mapping[str, Any], work: Callable[[], Scores]) -> Scores:
    """What ``work`` found, now or, with the very same settings, earlier."""
    text = json.dumps(settings, sort_keys=True)
    path = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    if not path.exists():
        write_json(path, work())
    scores: Scores = read_json(path)
    shown = "; ".join(
        f"{row}: {', '.join(f'{name} {value:.3f}' for name, value in values.items() if not name.endswith((LOW, HIGH)))}"
        for row, values in scores.items()
    )
    print(f"{name}: {shown}", flush=True)
    return scores


def over_seeds(runs: Sequence[Scores]) -> list[Row]:
    """A row for each name: mean and standard deviation of each column over the runs that have it."""
    rows = []
    for name, columns in seeds.over_seeds(runs).items():
        values: dict[str, float | str | None] = {}
        for column, found in columns.items():
            values |= {column: found.mean, f"{column} sd": found.sd}
        rows.append(Row(name=name, values=values))
    return rows


def mean_and_spread(rows: Sequence[Row], digits: int = 2) -> list[Row]:
    """The rows of :func:`over_seeds` with one text for each column, as in ``0.66 ± 0.01``, so that wide tables stay readable."""
    shown = []
    for row in rows:
        values: dict[str, float | str | None] = {}
        for column, mean in row.values.items():
            if column.endswith(" sd") or not isinstance(mean, (int, float)):
                continue
            sd = row.values[f"{column} sd"]
            values[column] = f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if isinstance(sd, (int, float)) else "")
        shown.append(Row(name=row.name, values=values))
    return shown


def value(rows: Sequence[Row], name: str, column: str) -> float:
    """One mean."""
    found = next(row for row in rows if row.name == name).values[column]
    return float(found) if isinstance(found, (int, float)) else math.nan
