"""What each part of HPCL-Net is worth: rows of an ablation, each a run of its own that is kept when it is done.

The paper's own ablations are unknown to us; these rows answer what a user would ask of their data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.errors import ConfigError
from mc_core.files import read_json, write_json
from mc_core.recipes import merge
from mc_remote_sensing.evaluation import finite, score
from mc_remote_sensing.recipe import resolve_recipe
from mc_remote_sensing.training import (
    Ground,
    check_modality,
    data_fields,
    part_windows,
    train_segmentation,
    with_data,
)

MODALITIES = ("image", "elevation", "stacked", "fused")
PARTS: dict[str, dict[str, Any]] = {
    "cross-entropy": {"contrast": False},
    "contrast": {"contrast": True, "queue_size": 0, "momentum_keys": False},
    "queue": {"contrast": True, "momentum_keys": False},
    "momentum": {"contrast": True},
}
"""Each with the parts before it: ``momentum`` is the whole method."""

SAMPLING = ("boundary", "uniform")
WHOLE = ("momentum", "boundary")


@dataclass(frozen=True)
class Row:
    """One row: what the model looks at, up to which part the method goes, where its cells are drawn."""

    modality: str
    part: str
    sampling: str = "boundary"

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{self.modality}, {self.part}" + (", uniform" if self.sampling == "uniform" else "")

    def method(self) -> dict[str, Any]:
        """Changes of the recipe's method."""
        return {**PARTS[self.part], "sampling": self.sampling}


def rows_of(modalities: Sequence[str], *, everything: bool) -> list[Row]:
    """The rows for the modalities that the data has, the richest last: all of them, or the informative ones.

    >>> [row.name for row in rows_of(["image"], everything=False)]
    ['image, cross-entropy', 'image, contrast', 'image, queue', 'image, momentum', 'image, momentum, uniform']
    >>> len(rows_of(MODALITIES, everything=True))
    28
    """
    if everything:
        return [
            Row(modality, part, sampling)
            for modality in modalities
            for part in PARTS
            for sampling in (SAMPLING if part != "cross-entropy" else SAMPLING[:1])
        ]
    richest = modalities[-1]
    poorer = [Row(modality, part) for modality in modalities[:-1] for part in ("cross-entropy", "momentum")]
    return [*poorer, *(Row(richest, part) for part in PARTS), Row(richest, "momentum", "uniform")]


COLUMNS = ("iou", "f1", "boundary_f1", "object_recall")


def possible_modalities(ground: Ground) -> list[str]:
    """Of :data:`MODALITIES`, those that the data has."""
    found = []
    for modality in MODALITIES:
        with contextlib.suppress(ConfigError):
            check_modality(ground, modality)
            found.append(modality)
    return found


def run_row(
    recipe_name: str, base: Mapping[str, Any], row: Row, seed: int, ground: Ground, out: Path
) -> dict[str, float]:
    """Scores on the test part of one run; the threshold is chosen on its validation part. Done before, it is read."""
    changed = resolve_recipe(recipe_name, merge(base, {"fit": {"seed": seed}, "method": row.method()}))
    recipe = with_data(changed, data_fields(ground, row.modality))
    folder = out / f"{row.name.replace(', ', '-')}-{seed}"
    path, settings = folder / "row.json", recipe.model_dump(mode="json")
    if path.exists():
        earlier = read_json(path)
        if earlier["recipe"] != settings:
            raise ConfigError(f"{folder} holds a row of other settings; name another folder with --out, or delete it")
        kept = earlier["row"]
    else:
        trained = train_segmentation(recipe, ground, folder)
        assert trained is not None
        kept = finite(score(part_windows(trained.model, ground, "test"), trained.model.threshold).to_dict())
        write_json(path, {"recipe": settings, "row": kept})
    return {name: float("nan") if value is None else value for name, value in kept.items()}


def summary(
    found: Mapping[str, Sequence[Mapping[str, float]]],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float | None]]]:
    """Mean and standard deviation over seeds, by row and column."""
    means = {name: {c: float(np.mean([r[c] for r in rows])) for c in COLUMNS} for name, rows in found.items()}
    spread = {
        name: {c: float(np.std([r[c] for r in rows], ddof=1)) if len(rows) > 1 else None for c in COLUMNS}
        for name, rows in found.items()
    }
    return means, spread
