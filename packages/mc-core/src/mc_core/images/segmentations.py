"""Outlines as COCO writes them, polygons and run lengths, to pixels.

Legend: H × W pixels, P corners of a polygon.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mc_core.errors import DataError


def rasterize(segmentation: Any, height: int, width: int, *, where: str = "segmentation") -> np.ndarray:
    """(height, width) bool from COCO polygons ``[[x, y, …], …]`` or run lengths ``{"counts": …, "size": [h, w]}``.

    A pixel belongs to a polygon when its centre does (even-odd rule); of several polygons the union is taken. COCO's own
    tool rounds corners on a finer grid, so single pixels of an edge may differ from its.

    Args:
        segmentation: as in a COCO annotation; run lengths as numbers or as COCO's compressed text.
        height: of the image.
        width: of the image.
        where: for the error message.

    Raises:
        DataError: neither of the two, too few corners, or run lengths for another size.

    >>> rasterize([[1, 0, 3, 0, 3, 2, 1, 2]], 3, 4).astype(int).tolist()
    [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    >>> rasterize({"counts": [2, 3, 1], "size": [2, 3]}, 2, 3).astype(int).tolist()
    [[0, 1, 1], [0, 1, 0]]
    """
    if isinstance(segmentation, dict) and "counts" in segmentation:
        return _decode_runs(segmentation, height, width, where)
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(f"{where}: neither polygons nor run lengths")
    mask_HW = np.zeros((height, width), dtype=bool)
    for polygon in segmentation:
        try:
            corners_P2 = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: a polygon is a list of x, y, x, y, …, got {str(polygon)[:60]}") from error
        if len(corners_P2) < 3 or not np.isfinite(corners_P2).all():
            raise DataError(f"{where}: a polygon needs at least three finite corners, got {str(polygon)[:60]}")
        mask_HW |= _fill(corners_P2, height, width)
    return mask_HW


def _fill(corners_P2: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels whose centre has an odd number of edges to its left."""
    x0, y0 = corners_P2.T
    x1, y1 = np.roll(corners_P2, -1, axis=0).T
    centre_H1 = np.arange(height)[:, None] + 0.5
    crosses_HP = (y0 <= centre_H1) != (y1 <= centre_H1)
    row, edge = np.nonzero(crosses_HP)
    share = (row + 0.5 - y0[edge]) / (y1 - y0)[edge]
    crossing = x0[edge] + share * (x1 - x0)[edge]
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    toggles = np.bincount(row * (width + 1) + column, minlength=height * (width + 1)).reshape(height, width + 1)
    return np.cumsum(toggles, axis=1)[:, :width] % 2 == 1


def _decode_runs(runs: Mapping[str, Any], height: int, width: int, where: str) -> np.ndarray:
    """Run lengths of zeros and ones in turn, down the columns."""
    size, counts = runs.get("size"), runs["counts"]
    if list(size or ()) != [height, width]:
        raise DataError(f"{where}: run lengths of size {size} for an image of height and width {[height, width]}")
    counts = _uncompress(counts) if isinstance(counts, str) else counts
    if sum(counts) != height * width or min(counts) < 0:
        raise DataError(f"{where}: run lengths add up to {sum(counts)} pixels, the image has {height * width}")
    ones = np.arange(len(counts)) % 2 == 1
    return np.repeat(ones, counts).reshape(width, height).T


def _uncompress(text: str) -> list[int]:
    """COCO's compressed counts: five bits a character, lowest first, from the fourth on as a difference to two before."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
