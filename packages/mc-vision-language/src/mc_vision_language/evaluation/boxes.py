"""Boxes and heat maps: overlap, which proposal holds most of a map, a box where there are no proposals.

Boxes are x1, y1, x2, y2 in pixels, x2 and y2 exclusive, unless a name says otherwise.

Source of the score of a proposal: ALBEF (Li et al. 2021, arXiv:2107.07651), its grounding protocol.

Legend: N, M, K boxes, H × W map.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mc_core.errors import DataError

EXPONENT = 0.5  # of the area that a proposal's sum is divided by
THRESHOLD = 0.5  # of the highest value, below which a map counts as nothing where there are no proposals
_MOST_CELLS = 24


def as_boxes(boxes: Any) -> np.ndarray:
    """(N, 4) float64.

    Raises:
        DataError: another shape, or a box without area.
    """
    found = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) if np.size(boxes) else np.zeros((0, 4))
    empty = ~((found[:, 2:] > found[:, :2]).all(1) & np.isfinite(found).all(1))
    if empty.any():
        raise DataError(f"box {found[empty][0].tolist()} has no area; give x1, y1, x2, y2 with x1 < x2 and y1 < y2")
    return found


def iou(boxes: Any, others: Any) -> np.ndarray:
    """(N, M) areas that two boxes share, divided by those that either covers.

    >>> iou([[0, 0, 2, 2]], [[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]]).round(3).tolist()
    [[1.0, 0.333, 0.0]]
    """
    a, b = as_boxes(boxes), as_boxes(others)
    lower = np.maximum(a[:, None, :2], b[None, :, :2])
    upper = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(upper - lower, 0, None).prod(2)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(1) for x in (a, b))
    return shared / (area_a[:, None] + area_b[None] - shared)


def box_scores(heat: np.ndarray, boxes: Any, *, exponent: float = EXPONENT) -> np.ndarray:
    """(K,) sum of the map within each box, divided by its area to the ``exponent``.

    Corners are cut to whole pixels; a box may reach beyond the map.

    Args:
        heat: (H, W).
        boxes: (K, 4) in pixels of the map.
        exponent: 0.5 in the paper's protocol; 0 prefers large boxes, 1 small ones.

    >>> box_scores(np.eye(4), [[0, 0, 1, 1], [0, 0, 2, 2], [2, 0, 4, 2]]).tolist()
    [1.0, 1.0, 0.0]
    """
    found = as_boxes(boxes)
    height, width = heat.shape
    table = _sums(heat)
    corner = np.trunc(found).astype(np.int64)
    x1, x2 = (np.clip(corner[:, i], 0, width) for i in (0, 2))
    y1, y2 = (np.clip(corner[:, i], 0, height) for i in (1, 3))
    inside = table[y2, x2] - table[y1, x2] - table[y2, x1] + table[y1, x1]
    return inside / (found[:, 2:] - found[:, :2]).prod(1) ** exponent


def best_box(heat: np.ndarray, boxes: Any, *, exponent: float = EXPONENT) -> int:
    """Which of the proposals the map points at.

    Raises:
        DataError: no proposals.
    """
    scores = box_scores(heat, boxes, exponent=exponent)
    if not len(scores):
        raise DataError("no proposals to choose from; give some, or none at all and take box_of_map")
    return int(scores.argmax())


def box_of_map(heat: np.ndarray, *, threshold: float = THRESHOLD, exponent: float = EXPONENT) -> np.ndarray:
    """(4,) box where there are no proposals; ours, not the paper's.

    Values below ``threshold`` of the highest count as nothing; of all rectangles of the map's cells (at most 24 a side: finer maps
    are averaged) the one with the best score is taken. A rectangle of constant heat is found exactly.

    Args:
        heat: (H, W); the box is in its pixels.

    >>> heat = np.zeros((8, 8))
    ... heat[2:5, 1:7] = 1.0
    >>> box_of_map(heat).tolist()
    [1.0, 2.0, 7.0, 5.0]
    """
    cells, (at_y, at_x) = _pooled(heat)
    rows, columns = cells.shape
    top = cells.max()
    if not top > 0:
        return np.array([0.0, 0.0, at_x[-1], at_y[-1]])
    table = _sums(np.where(cells >= threshold * top, cells, 0.0))
    y1, y2 = np.triu_indices(rows + 1, 1)
    x1, x2 = np.triu_indices(columns + 1, 1)
    band = table[y2] - table[y1]
    score = (band[:, x2] - band[:, x1]) / ((y2 - y1)[:, None] * (x2 - x1)) ** exponent
    v, h = np.unravel_index(score.argmax(), score.shape)
    return np.array([at_x[x1[h]], at_y[y1[v]], at_x[x2[h]], at_y[y2[v]]], dtype=np.float64)


def points_inside(heat: np.ndarray, box: Any) -> bool:
    """Whether the highest value of the map lies within the box: the pointing game (Zhang et al. 2016, arXiv:1608.00507)."""
    x1, y1, x2, y2 = as_boxes(box)[0]
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    return bool(x1 <= x + 0.5 < x2 and y1 <= y + 0.5 < y2)


def centre_boxes(widths: Any, heights: Any, share: tuple[float, float]) -> np.ndarray:
    """(N, 4) boxes in the middle of pictures of these sizes, with a share of their width and height: a baseline."""
    size = np.stack([np.asarray(widths, dtype=np.float64), np.asarray(heights, dtype=np.float64)], 1)
    half = size * np.asarray(share) / 2
    return np.concatenate([size / 2 - half, size / 2 + half], 1)


def _sums(heat: np.ndarray) -> np.ndarray:
    """(H + 1, W + 1) sums of all that lies above and to the left."""
    table = np.zeros((heat.shape[0] + 1, heat.shape[1] + 1))
    table[1:, 1:] = heat.astype(np.float64).cumsum(0).cumsum(1)
    return table


def _pooled(heat: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Means over blocks, so that no side has more than a few dozen cells, and where blocks begin and the last ends."""
    cells = heat.astype(np.float64)
    edges = [np.linspace(0, side, min(side, _MOST_CELLS) + 1).astype(np.int64) for side in heat.shape]
    for axis, at in enumerate(edges):
        counts = np.diff(at)
        cells = np.add.reduceat(cells, at[:-1], axis=axis) / (counts[:, None] if axis == 0 else counts)
    return cells, edges
