"""Hyper-pixels: the cells of the coarse map with what the labels say of the pixels under them, and how cells are drawn.

The paper's own definition could not be read; this one is ours, after a later paper of the same group (MRIFE, arXiv:2411.17167),
which sorts blocks of pixels into background, edge and interior.

Legend: B tiles, H × W pixels, s side of a cell in pixels, h × w = N cells, M cells drawn of a tile and class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from mc_core.errors import ConfigError, DataError

IGNORE = 255
BACKGROUND, EDGE, INTERIOR = range(3)
_BACKGROUND_BELOW, _INTERIOR_FROM = 0.05, 0.95
_AMBIGUOUS = (0.35, 0.65)


@dataclass(frozen=True)
class HyperPixels:
    """What the labels say of each cell; all (B, h, w).

    Attributes:
        fraction: float32, share of the target class among the labelled pixels, exact at 0 and 1.
        kind: int64: BACKGROUND (share ≤ 0.05), INTERIOR (≥ 0.95) or EDGE.
        target: bool, whether the cell belongs to the target class (share ≥ 0.5).
        band: bool, edge cells and their eight neighbours: both sides of the boundary.
        valid: bool, at least half of the pixels are labelled.
        ambiguous: bool, 0.35 < share < 0.65: never drawn.
    """

    fraction: Tensor
    kind: Tensor
    target: Tensor
    band: Tensor
    valid: Tensor
    ambiguous: Tensor


def hyper_pixels(labels: Tensor, size: int) -> HyperPixels:
    """Sort the cells of tiles.

    Args:
        labels: (B, H, W), integers: 1 target, 0 background, 255 unknown. Where H or W is no multiple of ``size``, the last
            cells reach beyond the tile, into the unknown.
        size: s, pixels.

    Raises:
        DataError: labels of another shape.

    >>> labels = torch.zeros(1, 4, 8, dtype=torch.uint8)
    >>> labels[0, :, 5:] = 1
    >>> cells = hyper_pixels(labels, 4)
    >>> cells.fraction.tolist(), cells.target.tolist(), cells.band.tolist()
    ([[[0.0, 0.75]]], [[[False, True]]], [[[True, True]]])
    """
    if labels.ndim != 3:
        raise DataError(f"labels have shape {tuple(labels.shape)}; (tiles, height, width) is needed")
    if size < 1:
        raise ConfigError(f"hyper-pixels of {size} pixels; at least 1")
    beyond = (0, -labels.shape[2] % size, 0, -labels.shape[1] % size)
    if any(beyond):
        labels = pad(labels, beyond, value=IGNORE)
    with torch.autocast(labels.device.type, enabled=False):
        is_known, is_target = (labels != IGNORE).float(), (labels == 1).float()
        known, target = (
            avg_pool2d(mask[:, None], size, divisor_override=1)[:, 0] for mask in (is_known, is_target)
        )  # whole numbers
        fraction = target / known.clamp(min=1)
    edge = (fraction > _BACKGROUND_BELOW) & (fraction < _INTERIOR_FROM)
    return HyperPixels(
        fraction=fraction,
        kind=torch.where(edge, EDGE, torch.where(fraction >= _INTERIOR_FROM, INTERIOR, BACKGROUND)),
        target=fraction >= 0.5,
        band=max_pool2d(edge[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0,
        valid=known >= size * size / 2,
        ambiguous=(fraction > _AMBIGUOUS[0]) & (fraction < _AMBIGUOUS[1]),
    )


@dataclass(frozen=True)
class Cells:
    """Cells drawn of each tile and class.

    Attributes:
        index: (B, 2, M) int64, places among the N cells; also where ``valid`` is false they can be read.
        valid: (B, 2, M) bool.
    """

    index: Tensor
    valid: Tensor

    def take(self, rows_BND: Tensor) -> Tensor:
        """(B, 2, M, D): the rows of the drawn cells."""
        index = self.index.flatten(1)[..., None].expand(-1, -1, rows_BND.shape[2])
        return rows_BND.gather(1, index).unflatten(1, self.index.shape[1:])

    def marks(self, cells: int) -> Tensor:
        """(B, N) bool, the cells that were drawn."""
        flat = torch.zeros(len(self.index), cells, dtype=torch.float32, device=self.index.device)
        return flat.scatter_reduce_(1, self.index.flatten(1), self.valid.flatten(1).float(), "amax") > 0


def candidates(cells: HyperPixels, *, uniform: bool = False) -> Tensor:
    """(B, 2, N) bool, the cells of each class that may be drawn: labelled, of a clear class, and in the band.

    Args:
        cells: of the tiles.
        uniform: from all cells of tiles in which the target occurs, not only from the band.
    """
    place = (cells.fraction > 0).flatten(1).any(1)[:, None, None] if uniform else cells.band
    usable = (cells.valid & ~cells.ambiguous & place).flatten(1)
    target = cells.target.flatten(1)
    return torch.stack([usable & ~target, usable & target], dim=1)


def draw_keys(may_B2N: Tensor, cells: HyperPixels, u_BN: Tensor, *, per_class: int, background_cells: int) -> Cells:
    """The cells whose embeddings serve as keys: random candidates, and random cells of tiles that are all background.

    Args:
        may_B2N: :func:`candidates`.
        cells: of the tiles.
        u_BN: uniform in [0, 1), a number for each cell.
        per_class: M, most of a class and tile.
        background_cells: most of an all-background tile.
    """
    known = cells.valid.flatten(1)
    empty_B = known.any(1) & ~(cells.fraction > 0).flatten(1).any(1)
    background = may_B2N[:, 0] | (empty_B[:, None] & known)
    may = torch.stack([background, may_B2N[:, 1]], dim=1)
    most = min(max(per_class, background_cells), may.shape[2])
    drawn = _first(may, u_BN[:, None] + may, most)
    limit_B2 = torch.stack(
        [torch.where(empty_B, background_cells, per_class), torch.full_like(empty_B, per_class, dtype=torch.int64)], 1
    )
    rank_M = torch.arange(most, device=u_BN.device)
    return Cells(drawn.index, drawn.valid & (rank_M < limit_B2[..., None]))


def draw_anchors(may_B2N: Tensor, wrong_BN: Tensor, u_BN: Tensor, *, per_class: int, most: int) -> Cells:
    """Anchors: half of them hard, half random, and more of the one where the other is short.

    Args:
        may_B2N: :func:`candidates`.
        wrong_BN: bool, where the prediction misses the cell's class: hard.
        u_BN: uniform in [0, 1), a number for each cell.
        per_class: M, most of a class and tile.
        most: anchors over all tiles and classes; beyond, random ones are left out.
    """
    count = min(per_class, may_B2N.shape[2])
    score = u_BN[:, None] + may_B2N
    hard = _first(may_B2N & wrong_BN[:, None], score + 2.0 * wrong_BN[:, None], min((per_class + 1) // 2, count))
    chosen = torch.zeros_like(score).scatter_(2, hard.index, hard.valid.float())
    drawn = _first(may_B2N, score + 2.0 * chosen, count)
    valid = drawn.valid
    if valid.numel() > most:
        lot = torch.where(valid, u_BN[:, None].expand_as(score).gather(2, drawn.index), -1.0).flatten()
        keep = torch.zeros_like(lot).scatter_(0, lot.topk(most).indices, 1.0).view_as(valid) > 0
        valid = valid & keep
    return Cells(drawn.index, valid)


def _first(may_B2N: Tensor, score_B2N: Tensor, count: int) -> Cells:
    """The ``count`` cells of highest score, and which of them may be drawn."""
    index = score_B2N.topk(count, dim=2).indices
    return Cells(index, may_B2N.gather(2, index))
