"""Windows of one raster on the grid of another, from what a reader of the first gives: its own idea of validity stays in force."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from rasterio.enums import Resampling
from rasterio.warp import reproject
from rasterio.warp import transform as transform_points

from mc_core.errors import DataError
from mc_remote_sensing.data.grid import Grid, name_of

_EDGE_POINTS = 21
_WHOLE = 1 - 1e-4  # share of a resampled pixel that must be valid; less than 1 by the rounding of float32 weights


def kernel_scale(source: Grid, wanted: Grid) -> dict[str, float]:
    """GDAL's options for how far its kernel reaches. Left alone it judges by the part it is given, and the same pixel comes out
    differently in another window."""
    return {
        name: min(1.0, there / here)
        for name, there, here in zip(("XSCALE", "YSCALE"), source.pixel_metres, wanted.pixel_metres, strict=True)
    }


def source_window(source: Grid, wanted: Grid) -> tuple[int, int, int, int] | None:
    """The pixels of ``source`` that enter a resampled ``wanted``: row, column, height, width; None where they do not meet."""
    along = np.linspace(0, 1, _EDGE_POINTS)
    rows, columns = (axis.ravel() for axis in np.meshgrid(along * wanted.height, along * wanted.width, indexing="ij"))
    x, y = wanted.coordinates(rows, columns)
    if wanted.crs != source.crs:
        try:
            x, y = (np.asarray(v) for v in transform_points(wanted.crs, source.crs, x, y))
        except Exception as error:
            raise DataError(f"{name_of(wanted.crs)} and {name_of(source.crs)} do not convert ({error})") from error
    row, column = source.pixels(x, y)
    finite = np.isfinite(row) & np.isfinite(column)
    if not finite.any():
        return None
    # bilinear reaches one pixel of the coarser of the two grids; as much again for edges that bend between the points
    row, column = row[finite], column[finite]
    reach_rows = 3 + math.ceil(2 * np.ptp(row) / wanted.height)
    reach_columns = 3 + math.ceil(2 * np.ptp(column) / wanted.width)
    top, bottom = max(math.floor(row.min()) - reach_rows, 0), min(math.ceil(row.max()) + reach_rows, source.height)
    left = max(math.floor(column.min()) - reach_columns, 0)
    right = min(math.ceil(column.max()) + reach_columns, source.width)
    return (top, left, bottom - top, right - left) if top < bottom and left < right else None


def bilinear_window(
    read: Callable[[int, int, int, int], tuple[np.ndarray, np.ndarray]],
    source: Grid,
    grid: Grid,
    window: tuple[int, int, int, int],
    channels: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Values and validity of a window, bilinear; a pixel is valid when all that enters it is.

    Args:
        read: of windows of ``source``, to (values (C, h, w), valid (h, w)).
        source: grid that ``read`` speaks of.
        grid: that the raster is brought to.
        window: of that grid: row, column, height, width.
        channels: C.
    """
    wanted = grid.window(*window)
    values = np.zeros((channels + 1, *wanted.shape), dtype=np.float32)
    there = source_window(source, wanted)
    if there is not None:
        found, valid = read(*there)
        part = source.window(*there)
        reproject(
            np.concatenate([found, valid[None].astype(np.float32)]),
            values,
            src_transform=part.transform,
            src_crs=source.crs,
            dst_transform=wanted.transform,
            dst_crs=wanted.crs,
            resampling=Resampling.bilinear,
            init_dest_nodata=False,
            **kernel_scale(source, grid),
        )
    inside = values[-1] > _WHOLE
    values[:, ~inside] = 0
    return values[:-1], inside


def nearest_window(
    read: Callable[[int, int, int, int], np.ndarray], source: Grid, wanted: Grid, fill: int
) -> np.ndarray:
    """uint8 codes of ``wanted``, each of the nearest pixel of ``source``, ``fill`` where there is none.

    Args:
        read: of windows of ``source``, to codes (h, w).
        source: grid that ``read`` speaks of.
        wanted: grid of the window wanted.
        fill: code outside.
    """
    values = np.full(wanted.shape, fill, dtype=np.uint8)
    window = source_window(source, wanted)
    if window is not None:
        reproject(
            read(*window),
            values,
            src_transform=source.window(*window).transform,
            src_crs=source.crs,
            dst_transform=wanted.transform,
            dst_crs=wanted.crs,
            resampling=Resampling.nearest,
            init_dest_nodata=False,
        )
    return values
