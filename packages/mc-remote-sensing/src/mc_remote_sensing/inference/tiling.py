"""How tiles cover a scene, and how much each counts where they overlap.

Along an axis, neighbouring tiles share ``overlap`` pixels. The outer ``halo`` of a tile, where a network sees its own padding
instead of the ground, counts for nothing; between the halos of two neighbours the weight goes over from one to the other as a
raised cosine. At the border of the scene there is no neighbour and no halo: what the network sees there is the same for any
size of tile.

The last tile is shifted inward, not dropped. All tiles start at multiples of the model's stride, so that a cell of its feature
map lies on the same ground in each of them. Where the scene is no multiple of the stride, the last tile ends up to stride − 1
pixels beyond it.

Legend: H, W rows and columns of the scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mc_core.errors import ConfigError


class Span(NamedTuple):
    """One tile along one axis.

    Attributes:
        start: first pixel, a multiple of the stride.
        size: pixels, a multiple of the stride; may end beyond the scene by less than one stride.
        weights: (size,) float32 from 0 to 1; those of all spans add up to 1 at every pixel.
    """

    start: int
    size: int
    weights: np.ndarray

    @property
    def first(self) -> int:
        """First pixel of the scene that this tile has a say in."""
        return self.start + int(np.flatnonzero(self.weights)[0])

    @property
    def last(self) -> int:
        """Last pixel that this tile has a say in."""
        return self.start + int(np.flatnonzero(self.weights)[-1])


class Tile(NamedTuple):
    """A window of the scene with its weights.

    Attributes:
        row, col, height, width: of the window.
        weights: (height, width) float32, the outer product of both axes'.
    """

    row: int
    col: int
    height: int
    width: int
    weights: np.ndarray


@dataclass(frozen=True)
class Tiling:
    """Tiles that cover a scene.

    Args:
        height, width: H and W.
        tile: side of a tile in pixels, a multiple of ``stride``.
        halo: pixels of a tile's inner border that count for nothing.
        overlap: pixels that neighbours share at least, more than twice the halo; default a quarter of the tile or, if that is more,
            the halos and a stride.
        stride: of the model; tiles start at multiples of it.

    Raises:
        ConfigError: a tile that is no multiple of the stride, or too small for its overlap.

    >>> tiling = Tiling(100, 70, tile=32, halo=4, overlap=12)
    >>> [span.start for span in tiling.rows], [span.start for span in tiling.columns]
    ([0, 20, 40, 60, 68], [0, 20, 38])
    """

    height: int
    width: int
    tile: int
    halo: int = 0
    overlap: int | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"a scene of {self.height} × {self.width} pixels has nothing to cover")
        if self.stride < 1 or self.tile < self.stride or self.tile % self.stride:
            raise ConfigError(f"tile {self.tile}: must be a multiple of the model's stride {self.stride}")
        if self.halo < 0 or self.shared <= 2 * self.halo:
            raise ConfigError(
                f"overlap {self.overlap}: neighbouring tiles must share more than twice the halo of {self.halo} pixels"
            )
        if self.shared > self.tile - self.stride and (self.height > self.tile or self.width > self.tile):
            raise ConfigError(
                f"tile {self.tile}: too small to share {self.shared} pixels with its neighbours (halo {self.halo}, stride "
                f"{self.stride}); give a tile of at least {_whole(self.shared + self.stride, self.stride)}"
            )

    @property
    def shared(self) -> int:
        """Pixels that neighbours share at least."""
        return max(self.tile // 4, 2 * self.halo + self.stride) if self.overlap is None else self.overlap

    @cached_property
    def rows(self) -> tuple[Span, ...]:
        """Along the first axis."""
        return axis_spans(self.height, self.tile, overlap=self.shared, halo=self.halo, stride=self.stride)

    @cached_property
    def columns(self) -> tuple[Span, ...]:
        """Along the second axis."""
        return axis_spans(self.width, self.tile, overlap=self.shared, halo=self.halo, stride=self.stride)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[Tile]:
        for row in self.rows:
            yield from self.tiles_of(row)

    def tiles_of(self, row: Span) -> list[Tile]:
        """The tiles of one row, from left to right."""
        return [
            Tile(row.start, column.start, row.size, column.size, row.weights[:, None] * column.weights[None, :])
            for column in self.columns
        ]


def tile_windows(
    height: int, width: int, tile: int, halo: int, stride: int, *, overlap: int | None = None
) -> list[Tile]:
    """Tiles that cover a scene of any size, row by row; see :class:`Tiling`.

    >>> tiles = tile_windows(33, 33, 32, 4, 8)
    >>> [(tile.row, tile.col, tile.height, tile.width) for tile in tiles]
    [(0, 0, 32, 32), (0, 8, 32, 32), (8, 0, 32, 32), (8, 8, 32, 32)]
    """
    return list(Tiling(height, width, tile, halo, overlap, stride))


def axis_spans(length: int, tile: int, *, overlap: int, halo: int, stride: int) -> tuple[Span, ...]:
    """Tiles along one axis; a scene shorter than a tile gets one span of its own size, rounded up to the stride."""
    padded = _whole(length, stride)
    if padded <= tile:
        return (Span(0, padded, np.ones(padded, dtype=np.float32)),)
    step = (tile - overlap) // stride * stride
    starts = [*range(0, padded - tile, step), padded - tile]
    weights = np.zeros((len(starts), tile))
    total = np.zeros(padded)
    for k, start in enumerate(starts):
        weights[k] = 1.0
        if k > 0:
            weights[k] *= _rise(tile, starts[k - 1] + tile - start, halo)
        if k < len(starts) - 1:
            weights[k] *= _rise(tile, start + tile - starts[k + 1], halo)[::-1]
        total[start : start + tile] += weights[k]
    # Pairs add up to 1 by construction; a last tile shifted far inward can meet two others.
    return tuple(
        Span(start, tile, (own / total[start : start + tile]).astype(np.float32))
        for start, own in zip(starts, weights, strict=True)
    )


def _rise(tile: int, shared: int, halo: int) -> np.ndarray:
    """(tile,) 0 within the halo, 1 beyond the neighbour's, a raised cosine at pixel centres between."""
    t = np.clip((np.arange(tile) + 0.5 - halo) / (shared - 2 * halo), 0.0, 1.0)
    return (1.0 - np.cos(np.pi * t)) / 2


def _whole(length: int, stride: int) -> int:
    return -(-length // stride) * stride
