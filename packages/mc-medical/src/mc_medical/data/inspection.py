"""Each step from a file to a picture, to look at: values, range, histogram."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mc_medical.data.image_config import ImageOptions
from mc_medical.data.radiograph import Radiograph, read_radiograph


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

    def describe(self) -> dict[str, Any]:
        """For a table or JSON."""
        return {
            "step": self.name,
            "declared": [float(self.low), float(self.high)],
            "found": [float(self.values.min()), float(self.values.max())],
            "mean": float(self.values.mean()),
            "note": self.note,
        }


@dataclass(frozen=True)
class Inspection:
    """A radiograph and the steps it was read in."""

    steps: tuple[Step, ...]
    radiograph: Radiograph


def inspect_image(
    path: str | os.PathLike[str] | bytes,
    options: ImageOptions = ImageOptions(),  # noqa: B008 - frozen
    *,
    name: str | None = None,
) -> Inspection:
    """Read an image as for training, keeping each step.

    Raises:
        BadSampleError: it cannot be used; see :func:`~mc_medical.data.radiograph.read_radiograph`.
    """
    steps: list[Step] = []
    radiograph = read_radiograph(path, options, name=name, record=lambda *step: steps.append(Step(*step)))
    return Inspection(tuple(steps), radiograph)


def inspection_figure(inspection: Inspection, path: str | os.PathLike[str]) -> Path:
    """A PNG with the picture and the histogram of each step."""
    from mc_core.files import atomic_path
    from mc_core.optional import require

    require("matplotlib", extra="mc-core[report]", purpose="draw pictures")
    from matplotlib.figure import Figure

    steps = inspection.steps
    figure = Figure(figsize=(3.2 * len(steps), 5.2), dpi=100, layout="constrained")
    axes = figure.subplots(2, len(steps), squeeze=False)
    for (top, bottom), step in zip(axes.T, steps, strict=True):
        top.imshow(step.values[::4, ::4], cmap="gray", vmin=step.low, vmax=step.high)
        top.set_title(step.name)
        top.axis("off")
        bottom.hist(step.values.reshape(-1)[::7], bins=64, color="0.35")
        bottom.set_xlabel(step.note, fontsize=8, wrap=True)
    with atomic_path(path) as draft:
        figure.savefig(draft, format="png")
    return Path(path)


def contact_sheet(radiographs: Sequence[Radiograph], path: str | os.PathLike[str]) -> Path:
    """A PNG with many radiographs beside each other."""
    from PIL import Image

    from mc_core.files import atomic_path
    from mc_medical.data.radiograph import square

    tiles = [square(one.pixels, 192) for one in radiographs]
    sheet = np.concatenate(tiles, axis=1) if tiles else np.zeros((1, 1), np.uint8)
    with atomic_path(path) as draft:
        Image.fromarray(sheet).save(draft, format="PNG")
    return Path(path)
