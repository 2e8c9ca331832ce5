"""A coarser raster on the grid of an image, bilinear: each pixel from its own coordinates alone, whatever window it is read in.

GDAL's warped rasters work in blocks of 512 × 128 pixels, several times what a small window needs, and judge their kernel by the
part they are given. Here a window costs what it holds, and two windows agree to the bit where they overlap.

Legend: C channels, h × w pixels of a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rasterio.warp import transform as transform_points

from mc_core.errors import DataError
from mc_remote_sensing.data.grid import Grid, name_of

Read = Callable[[int, int, int, int], np.ndarray]

_LATTICE = 16  # pixels between points that are converted exactly; between them coordinates are bilinear
_PARALLEL = 1e-9


@dataclass(frozen=True)
class Axes:
    """Where axes are parallel: source row = ``row_step`` · row + ``row_start``, and likewise for columns, in cells."""

    row_step: float
    row_start: float
    column_step: float
    column_start: float


def parallel_axes(source: Grid, grid: Grid) -> Axes | None:
    """How the pixels of ``grid`` lie in ``source``, if both are in one system and not turned against each other."""
    if source.crs != grid.crs:
        return None
    corners = grid.coordinates(np.array([0, grid.height, 0]), np.array([0, 0, grid.width]))
    rows, columns = source.pixels(*corners)
    turn = abs(columns[1] - columns[0]) / grid.height + abs(rows[2] - rows[0]) / grid.width
    if turn > _PARALLEL:
        return None
    return Axes(
        (rows[1] - rows[0]) / grid.height, float(rows[0]), (columns[2] - columns[0]) / grid.width, float(columns[0])
    )


def along_axes(
    read: Read, shape: tuple[int, int], axes: Axes, window: tuple[int, int, int, int], channels: int
) -> np.ndarray:
    """A window where axes are parallel, rows and columns one after the other; of a finer source, the mean with falling weights.

    Args:
        read: of windows of the source, to (C, h, w) float32.
        shape: of the source.
        axes: from :func:`parallel_axes`.
        window: row, column, height and width in the image.
        channels: C.

    Returns:
        (C, h, w) float32, 0 outside the source.
    """
    row, col, height, width = window
    at_row = axes.row_step * (row + np.arange(height) + 0.5) + axes.row_start
    at_column = axes.column_step * (col + np.arange(width) + 0.5) + axes.column_start
    rows_inside, columns_inside = _inside(at_row, shape[0]), _inside(at_column, shape[1])
    values = np.zeros((channels, height, width), dtype=np.float32)
    if rows_inside is None or columns_inside is None:
        return values
    rows, row_weights = _taps(at_row[rows_inside], abs(axes.row_step), shape[0])
    columns, column_weights = _taps(at_column[columns_inside], abs(axes.column_step), shape[1])
    top, left = int(rows.min()), int(columns.min())
    cells = read(top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1)
    across = cells.take(columns[0] - left, 2) * column_weights[0]
    for tap, weight in zip(columns[1:], column_weights[1:], strict=True):
        across += cells.take(tap - left, 2) * weight
    found = values[:, rows_inside, columns_inside]
    for tap, weight in zip(rows, row_weights, strict=True):
        found += across.take(tap - top, 1) * weight[:, None]
    return values


def _inside(at: np.ndarray, size: int) -> slice | None:
    """Which pixels of a row or column lie in the source."""
    found = np.flatnonzero((at >= 0) & (at <= size))
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else None


def _taps(at: np.ndarray, step: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(K, n) cells that enter each of n pixels, and their weights, which sum to 1: a triangle as wide as the coarser of both."""
    radius = max(1.0, step)
    centre = at - 0.5
    first = np.floor(centre - radius).astype(np.int64) + 1
    taps = first + np.arange(math.ceil(2 * radius))[:, None]
    weights = np.maximum(1 - np.abs(taps - centre) / radius, 0)
    return np.clip(taps, 0, size - 1), (weights / weights.sum(axis=0)).astype(np.float32)


def between_systems(
    read: Read, source: Grid, grid: Grid, window: tuple[int, int, int, int], channels: int
) -> np.ndarray:
    """A window where systems differ or grids are turned, from the four nearest cells; for sources not finer than the image.

    Args:
        read: of windows of the source, to (C, h, w) float32.
        source: grid that ``read`` speaks of.
        grid: of the image.
        window: row, column, height and width in the image.
        channels: C.

    Returns:
        (C, h, w) float32, 0 outside the source.
    """
    at_row, at_column = _coordinates(source, grid, window)
    inside = (at_row >= 0) & (at_row <= source.height) & (at_column >= 0) & (at_column <= source.width)
    values = np.zeros((channels, *at_row.shape), dtype=np.float32)
    if not inside.any():
        return values
    centre_row, centre_column = at_row[inside] - 0.5, at_column[inside] - 0.5
    row, column = np.floor(centre_row).astype(np.int64), np.floor(centre_column).astype(np.int64)
    down, right = (centre_row - row).astype(np.float32), (centre_column - column).astype(np.float32)
    rows = [np.clip(row + k, 0, source.height - 1) for k in (0, 1)]
    columns = [np.clip(column + k, 0, source.width - 1) for k in (0, 1)]
    top, left = int(rows[0].min()), int(columns[0].min())
    cells = read(top, left, int(rows[1].max()) - top + 1, int(columns[1].max()) - left + 1)
    found = np.zeros((channels, len(row)), dtype=np.float32)
    for k, weight_down in enumerate((1 - down, down)):
        for m, weight_right in enumerate((1 - right, right)):
            found += cells[:, rows[k] - top, columns[m] - left] * (weight_down * weight_right)
    values[:, inside] = found
    return values


def _coordinates(source: Grid, grid: Grid, window: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) rows and columns in ``source`` of the middle of each pixel; NaN where the systems do not convert."""
    row, col, height, width = window
    first_row, first_column = row // _LATTICE, col // _LATTICE
    node_rows = np.arange(first_row, (row + height) // _LATTICE + 2) * _LATTICE
    node_columns = np.arange(first_column, (col + width) // _LATTICE + 2) * _LATTICE
    x, y = grid.coordinates(*(axis.ravel() for axis in np.meshgrid(node_rows, node_columns, indexing="ij")))
    if source.crs != grid.crs:
        try:
            x, y = (np.asarray(v) for v in transform_points(grid.crs, source.crs, x, y))
        except Exception as error:
            raise DataError(f"{name_of(grid.crs)} and {name_of(source.crs)} do not convert ({error})") from error
    nodes = np.stack(source.pixels(x, y)).reshape(2, len(node_rows), len(node_columns))
    nodes[~np.isfinite(nodes)] = np.nan
    for axis, start, length, begin in ((1, first_row, height, row), (2, first_column, width, col)):
        position = (begin + np.arange(length) + 0.5) / _LATTICE
        node = np.floor(position).astype(np.int64)
        share = (position - node).reshape((-1, 1) if axis == 1 else (1, -1))
        lower = nodes.take(node - start, axis)
        nodes = lower + (nodes.take(node - start + 1, axis) - lower) * share
    return nodes[0], nodes[1]
