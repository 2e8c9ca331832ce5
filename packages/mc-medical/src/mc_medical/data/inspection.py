"""Each step from a file to a picture, to look at: what was declared, what was found, histogram and picture.

Legend: H rows, W columns.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.errors import DataError
from mc_core.files import atomic_path
from mc_core.optional import require
from mc_medical.data.image_config import ImageOptions
from mc_medical.data.radiograph import Radiograph, read_radiograph, square

_PREVIEW = 480  # pixels of the longer side of a picture in a figure
_TILE = 224
_BINS = 96


@dataclass(frozen=True)
class Step:
    """Values after a step of reading.

    Attributes:
        name: of the step.
        values: (H, W).
        low: end of the declared range.
        high: its other end.
        note: what was done.
    """

    name: str
    values: np.ndarray
    low: float
    high: float
    note: str = ""

    @property
    def within(self) -> bool:
        """Whether all values lie in the declared range."""
        return bool(self.low - 1e-6 <= self.values.min() and self.values.max() <= self.high + 1e-6)

    def describe(self) -> dict[str, Any]:
        """For a table or JSON."""
        return {
            "step": self.name,
            "declared": [float(self.low), float(self.high)],
            "found": [float(self.values.min()), float(self.values.max())],
            "median": float(np.median(self.values)),
            "share_used": round(float(np.ptp(self.values)) / max(float(self.high - self.low), 1e-12), 4),
            "within": self.within,
            "note": self.note,
        }


@dataclass(frozen=True)
class Inspection:
    """A radiograph and the steps it was read in."""

    steps: tuple[Step, ...]
    radiograph: Radiograph

    def describe(self) -> dict[str, Any]:
        """For JSON: technical facts alone."""
        one = self.radiograph
        return {
            "shape": list(one.pixels.shape),
            "view": one.view or "unknown",
            "laterality": one.laterality,
            "modality": one.modality,
            "bits": one.bits,
            "steps": [step.describe() for step in self.steps],
            "notes": list(one.notes),
            "header": dict(one.header),
        }


def inspect_image(
    path: str | os.PathLike[str] | bytes,
    options: ImageOptions = ImageOptions(),  # noqa: B008 - frozen
    *,
    name: str | None = None,
) -> Inspection:
    """Read an image as for training, keeping each step, whatever its view.

    Raises:
        BadSampleError: it cannot be used; see :func:`~mc_medical.data.radiograph.read_radiograph`.
    """
    steps: list[Step] = []
    radiograph = read_radiograph(path, options, name=name, record=lambda *step: steps.append(Step(*step)))
    squared = square(radiograph.pixels, options.size)
    steps.append(Step("stored square", squared, 0.0, 255.0, f"padded and resized to {options.size}×{options.size}"))
    return Inspection(tuple(steps), radiograph)


def inspection_figure(inspection: Inspection, path: str | os.PathLike[str]) -> Path:
    """A PNG with the picture and the histogram of each step; the declared range is what the axes show.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", extra="mc-core[report]", purpose="draw pictures")
    from matplotlib.figure import Figure

    steps = inspection.steps
    figure = Figure(figsize=(3.1 * len(steps), 5.0), dpi=100, layout="constrained")
    axes = figure.subplots(2, len(steps), squeeze=False, height_ratios=(3, 1.4))
    for (top, bottom), step in zip(axes.T, steps, strict=True):
        stride = max(1, max(step.values.shape) // _PREVIEW)
        top.imshow(step.values[::stride, ::stride], cmap="gray", vmin=step.low, vmax=step.high)
        top.set_title(step.name, fontsize=10)
        top.axis("off")
        low, high = min(step.low, float(step.values.min())), max(step.high, float(step.values.max()))
        bottom.hist(step.values.reshape(-1), bins=_BINS, range=(low, high), color="0.35", log=True)
        bottom.set_xlim(low, high)
        bottom.set_yticks([])
        bottom.tick_params(labelsize=8)
        bottom.set_xlabel(step.note, fontsize=8, wrap=True)
    if inspection.radiograph.notes:
        figure.suptitle("; ".join(inspection.radiograph.notes), fontsize=9, color="#a00000", wrap=True)
    with atomic_path(path) as draft:
        figure.savefig(draft, format="png")
    return Path(path)


def contact_sheet(
    inspections: Sequence[Inspection], path: str | os.PathLike[str], *, columns: int = 4, tile: int = _TILE
) -> Path:
    """A PNG with pairs of pictures, as stored and as read, in which inversion and window can be checked at a glance.

    Args:
        inspections: of the images, in order.
        path: of the PNG.
        columns: pairs in a row.
        tile: side of a picture in pixels.

    Raises:
        DataError: no image.
    """
    from PIL import Image

    if not inspections:
        raise DataError("no images for a contact sheet")
    rows, columns = math.ceil(len(inspections) / columns), min(columns, len(inspections))
    sheet = np.full((rows * (tile + 6), columns * (2 * tile + 10)), 96, dtype=np.uint8)
    for i, one in enumerate(inspections):
        y, x = i // columns * (tile + 6) + 3, i % columns * (2 * tile + 10) + 3
        before = one.steps[0]
        stored = (before.values.astype(np.float64) - before.low) / (before.high - before.low)
        sheet[y : y + tile, x : x + tile] = square(np.clip(stored, 0, 1).astype(np.float32), tile)
        sheet[y : y + tile, x + tile + 2 : x + 2 * tile + 2] = square(one.radiograph.pixels, tile)
    with atomic_path(path) as draft:
        Image.fromarray(sheet).save(draft, format="PNG")
    return Path(path)
