"""Splitting a scene into training, validation and test blocks of ground, with a strip between them that belongs to none."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mc_core.errors import ConfigError
from mc_core.random import derive_seed
from mc_remote_sensing.data.coverage import Footprint, footprint
from mc_remote_sensing.data.grid import Grid, Window
from mc_remote_sensing.data.scene import Scene
from mc_remote_sensing.vectors import write_geopackage

PARTS = ("train", "validation", "test")
BUFFER = "buffer"


@dataclass(frozen=True)
class Blocks:
    """Which pixels belong to which part, as rectangles that do not overlap.

    Attributes:
        grid: of the scene.
        buffer_px: width of the strip between parts, pixels.
        windows: of each part and of ``"buffer"``; together they cover the grid.
        block_ids: for each of ``windows``, the number of its block.
    """

    grid: Grid
    buffer_px: int
    windows: tuple[tuple[str, Window], ...]
    block_ids: tuple[int, ...]

    def part(self, name: str) -> list[Window]:
        """The rectangles of ``"train"``, ``"validation"``, ``"test"`` or ``"buffer"``.

        Raises:
            ConfigError: no such part.
        """
        if name not in (*PARTS, BUFFER):
            raise ConfigError(f"no part {name!r} of the blocks; there are {', '.join((*PARTS, BUFFER))}")
        return [window for part, window in self.windows if part == name]

    def mask(self, name: str, row: int, col: int, height: int, width: int) -> np.ndarray:
        """(h, w) bool: pixels of a window that belong to a part."""
        found = np.zeros((height, width), dtype=bool)
        for top, left, h, w in self.part(name):
            found[max(top - row, 0) : max(top + h - row, 0), max(left - col, 0) : max(left + w - col, 0)] = True
        return found


def spatial_blocks(
    scene: Scene,
    *,
    block_m: float,
    buffer_m: float,
    shares: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
) -> Blocks:
    """Split a scene into blocks of ground.

    Args:
        scene: with labels, so that targets are spread over the parts.
        block_m: side of a block, metres.
        buffer_m: width of the strip around validation and test blocks that no training pixel lies in, metres.
        shares: of training, validation and test.
        seed: of the draw.

    Raises:
        ConfigError: blocks or shares that leave a part empty.
    """
    names = PARTS[: len(shares)]
    if not 2 <= len(shares) <= len(PARTS) or min(shares) <= 0:
        raise ConfigError(f"shares {tuple(shares)}: give two or three numbers above 0, of train, validation and test")
    grid = scene.grid
    across, down = grid.pixel_metres
    height, width = max(1, round(block_m / down)), max(1, round(block_m / across))
    cells = _cells(grid, height, width)
    if len(cells) < len(names):
        raise ConfigError(
            f"blocks of {block_m:g} m cut {scene.name} ({grid.width * across:,.0f} × {grid.height * down:,.0f} m) into "
            f"{len(cells)}: too few for {', '.join(names)}; make blocks smaller"
        )
    found = footprint(scene, step=max(1, min(16, height, width)))
    weights = np.array([_inside(found, cell) for cell in cells], dtype=np.float64)
    assigned = _assign(weights, np.asarray(shares, dtype=np.float64) / sum(shares), seed)
    buffer_px = math.ceil(buffer_m / min(across, down))
    blocks = _cut(grid, cells, assigned, buffer_px)
    for name in names:
        if not blocks.part(name):
            raise ConfigError(
                f"{scene.name}: with blocks of {block_m:g} m and a buffer of {buffer_m:g} m nothing is left for {name}; "
                "make blocks larger or the buffer smaller"
            )
    return blocks


def _cells(grid: Grid, height: int, width: int) -> list[Window]:
    """Blocks of about the given size that cover the grid; a remainder under half a block widens its neighbour."""
    rows = np.linspace(0, grid.height, max(1, round(grid.height / height)) + 1).round().astype(int).tolist()
    columns = np.linspace(0, grid.width, max(1, round(grid.width / width)) + 1).round().astype(int).tolist()
    return [
        Window(top, left, bottom - top, right - left)
        for top, bottom in itertools.pairwise(rows)
        for left, right in itertools.pairwise(columns)
    ]


def _inside(found: Footprint, cell: Window) -> tuple[float, float]:
    step = found.step
    rows = slice(cell.row // step, max(cell.row // step + 1, (cell.row + cell.height) // step))
    columns = slice(cell.col // step, max(cell.col // step + 1, (cell.col + cell.width) // step))
    return float(found.valid[rows, columns].sum()), float(found.target[rows, columns].sum())


def _assign(weights: np.ndarray, shares: np.ndarray, seed: int) -> list[int | None]:
    """A part for each block (None: nothing valid in it), so that valid pixels and targets are shared out as asked.

    Blocks with most target first, each to the part that lacks most of its share; the draw decides between equals.
    """
    valid, target = weights.T
    order = np.random.Generator(np.random.Philox(key=derive_seed(seed, 0xB10C))).permutation(len(weights))
    order = order[np.argsort(-target[order], kind="stable")]
    given = np.zeros((len(shares), 2))
    totals = np.maximum(weights.sum(axis=0), 1)
    parts: list[int | None] = [None] * len(weights)
    for block in order.tolist():
        if valid[block] == 0:
            continue
        column = 1 if target[block] > 0 else 0
        part = int(np.argmax(shares - given[:, column] / totals[column]))
        parts[block] = part
        given[part] += weights[block]
    return parts


def _cut(grid: Grid, cells: Sequence[Window], assigned: Sequence[int | None], buffer_px: int) -> Blocks:
    """Test blocks stay whole; validation keeps away from test, training from both."""
    windows: list[tuple[str, Window]] = []
    ids: list[int] = []
    for block, (cell, part) in enumerate(zip(cells, assigned, strict=True)):
        if part is None:
            windows.append((BUFFER, cell))
            ids.append(block)
            continue
        kept, cut = [cell], []
        for other, later in zip(cells, assigned, strict=True):
            if later is not None and later > part:
                zone = _grown(other, buffer_px)
                cut += [piece for w in kept if (piece := _intersection(w, zone)) is not None]
                kept = [piece for w in kept for piece in _subtract(w, zone)]
        windows += [(PARTS[part], w) for w in kept] + [(BUFFER, w) for w in cut]
        ids += [block] * (len(kept) + len(cut))
    return Blocks(grid, buffer_px, tuple(windows), tuple(ids))


def _grown(window: Window, by: int) -> Window:
    return Window(window.row - by, window.col - by, window.height + 2 * by, window.width + 2 * by)


def _intersection(a: Window, b: Window) -> Window | None:
    top, left = max(a.row, b.row), max(a.col, b.col)
    bottom, right = min(a.row + a.height, b.row + b.height), min(a.col + a.width, b.col + b.width)
    return Window(top, left, bottom - top, right - left) if top < bottom and left < right else None


def _subtract(a: Window, b: Window) -> list[Window]:
    """``a`` without ``b``, as up to four rectangles."""
    inner = _intersection(a, b)
    if inner is None:
        return [a]
    a_bottom, a_right = a.row + a.height, a.col + a.width
    bottom, right = inner.row + inner.height, inner.col + inner.width
    pieces = [
        Window(a.row, a.col, inner.row - a.row, a.width),
        Window(bottom, a.col, a_bottom - bottom, a.width),
        Window(inner.row, a.col, inner.height, inner.col - a.col),
        Window(inner.row, right, inner.height, a_right - right),
    ]
    return [piece for piece in pieces if piece.height and piece.width]


def write_blocks(blocks: Blocks, path: str | os.PathLike[str]) -> None:
    """Write the parts as polygons into a GeoPackage, to look at on a map.

    One row for each block and part: ``part``, ``block``, ``pixels``. The file appears under its name when it is whole.
    """
    import geopandas
    import shapely

    shapes: dict[tuple[str, int], list[Any]] = {}
    pixels: dict[tuple[str, int], int] = {}
    for (part, window), block in zip(blocks.windows, blocks.block_ids, strict=True):
        key = (part, block)
        rows, columns = zip(*_corners(window), strict=True)
        x, y = blocks.grid.coordinates(np.array(rows), np.array(columns))
        shapes.setdefault(key, []).append(shapely.Polygon(np.column_stack([x, y])))
        pixels[key] = pixels.get(key, 0) + window.height * window.width
    frame = geopandas.GeoDataFrame(
        {
            "part": [part for part, _ in shapes],
            "block": [block for _, block in shapes],
            "pixels": [pixels[key] for key in shapes],
        },
        geometry=[_multi(shapely.union_all(parts)) for parts in shapes.values()],
        crs=blocks.grid.crs.to_wkt(),
    )
    write_geopackage(path, frame, layer="blocks", geometry_type="MultiPolygon")


def _multi(shape: Any) -> Any:
    import shapely

    return shapely.MultiPolygon([shape]) if shape.geom_type == "Polygon" else shape


def _corners(w: Window) -> list[tuple[int, int]]:
    bottom, right = w.row + w.height, w.col + w.width
    return [(w.row, w.col), (w.row, right), (bottom, right), (bottom, w.col)]
