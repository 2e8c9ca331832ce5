"""Coarse maps of a scene: how much of each cell of a few pixels is valid, labelled and target. What windows are drawn from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mc_remote_sensing.data.grid import Window
from mc_remote_sensing.data.labels import IGNORE, TARGET
from mc_remote_sensing.data.scene import Scene

_STRIP_PIXELS = 1 << 20


@dataclass(frozen=True)
class Footprint:
    """Pixels of each kind in each cell of ``step`` × ``step`` pixels.

    Attributes:
        step: side of a cell, pixels.
        valid: (rows, columns) int32: where image or elevation is known.
        known: labelled 0 or 1, and valid.
        target: labelled 1, and valid.
        hard: in hard negatives, and labelled.
    """

    step: int
    valid: np.ndarray
    known: np.ndarray
    target: np.ndarray
    hard: np.ndarray


def footprint(scene: Scene, step: int = 16, windows: Iterable[Window] | None = None) -> Footprint:
    """Read a scene once, in strips, and count.

    Args:
        scene: to look at.
        step: side of a cell, pixels.
        windows: only these parts of it; default all.
    """
    height, width = scene.grid.shape
    shape = -(-height // step), -(-width // step)
    counts = [np.zeros(shape, dtype=np.int32) for _ in range(4)]
    strip = max(step, _STRIP_PIXELS // max(width, 1) // step * step)
    for part in windows if windows is not None else [Window(0, 0, height, width)]:
        for top in range(part.row // step * step, part.row + part.height, strip):
            first, last = max(top, part.row), min(top + strip, part.row + part.height)
            _count(scene, Window(first, part.col, last - first, part.width), step, counts)
    return Footprint(step, *counts)


def _count(scene: Scene, window: Window, step: int, counts: list[np.ndarray]) -> None:
    valid = scene.read_valid(*window)
    kinds = [valid]
    if scene.labels is not None:
        labels = scene.labels.rasterise(*window)
        labels[~valid] = IGNORE
        hard = scene.labels.hard_negatives
        known = labels != IGNORE
        kinds += [known, labels == TARGET]
        if hard is not None:
            kinds.append(hard.rasterise(*window) & known)
    rows = np.arange(window.row, window.row + window.height) // step
    columns = np.arange(window.col, window.col + window.width) // step
    row_starts = np.flatnonzero(np.diff(rows, prepend=-1))
    column_starts = np.flatnonzero(np.diff(columns, prepend=-1))
    take = np.ix_(rows[row_starts], columns[column_starts])
    for total, kind in zip(counts, kinds, strict=False):
        if kind.any():
            sums = np.add.reduceat(kind, column_starts, axis=1, dtype=np.int32)
            total[take] += np.add.reduceat(sums, row_starts, axis=0)
