"""Bringing a raster to the image's grid: against a naive reference, GDAL, exact coordinates, and itself in other windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rasterio import CRS, Affine
from rasterio.enums import Resampling
from rasterio.warp import reproject
from rasterio.warp import transform as transform_points

from mc_remote_sensing.data.grid import Grid
from mc_remote_sensing.data.resampling import along_axes, between_systems, parallel_axes

UTM = CRS.from_epsg(32632)
CELLS = np.random.default_rng(0).normal(size=(2, 40, 50)).astype(np.float32)


def source(cell: float = 30.0, *, down: float = -1.0, crs: CRS = UTM) -> Grid:
    return Grid(crs, Affine(cell, 0, 600_000, 0, down * cell, 5_200_000), 50, 40)


def image(pixel: float, height: int = 60, width: int = 70, west: float = 600_100.0, north: float = 5_199_930.0) -> Grid:
    return Grid(UTM, Affine(pixel, 0, west, 0, -pixel, north), width, height)


def read(row, col, height, width):
    assert row >= 0
    assert col >= 0
    found = CELLS[:, row : row + height, col : col + width]
    assert found.shape[1:] == (height, width)
    return found


def aligned(grid: Grid, there: Grid, window=None) -> np.ndarray:
    axes = parallel_axes(there, grid)
    assert axes is not None
    return along_axes(read, there.shape, axes, window or (0, 0, *grid.shape), 2)


def naive(grid: Grid, there: Grid) -> np.ndarray:
    """A triangle as wide as the coarser of pixel and cell, pixel by pixel in float64."""
    radius = max(1.0, grid.transform.a / there.transform.a)
    found = np.zeros((2, *grid.shape))
    for r in range(grid.height):
        for c in range(grid.width):
            row, column = (v[0] for v in there.pixels(*grid.coordinates(np.array([r + 0.5]), np.array([c + 0.5]))))
            if not (0 <= row <= there.height and 0 <= column <= there.width):
                continue
            weights = []
            for at, size in ((row - 0.5, there.height), (column - 0.5, there.width)):
                line = np.zeros(size)
                for tap in range(math.floor(at - radius), math.ceil(at + radius) + 1):
                    line[min(max(tap, 0), size - 1)] += max(0.0, 1 - abs(tap - at) / radius)
                weights.append(line / line.sum())
            found[:, r, c] = np.einsum("cij,i,j->c", CELLS.astype(np.float64), *weights)
    return found


@pytest.mark.parametrize("pixel", [7.0, 30.0, 41.0, 95.0])
@pytest.mark.parametrize("down", [-1.0, 1.0])
def test_along_axes_is_the_naive_kernel(pixel, down):
    there = source(down=down)
    north = 5_199_930.0 if down < 0 else 5_200_700.0
    grid = image(pixel, 24, 26, north=north)
    found = aligned(grid, there)
    assert np.abs(found).max() > 0.1
    assert found == pytest.approx(naive(grid, there), abs=2e-6)


@pytest.mark.parametrize("pixel", [7.0, 90.0])
def test_away_from_the_border_it_is_gdals_bilinear(pixel):
    there, grid = source(), image(pixel, 12, 14)
    expected = np.zeros((2, *grid.shape), dtype=np.float32)
    scale = min(1.0, 30 / pixel)
    reproject(
        CELLS,
        expected,
        src_transform=there.transform,
        src_crs=UTM,
        dst_transform=grid.transform,
        dst_crs=UTM,
        resampling=Resampling.bilinear,
        XSCALE=scale,
        YSCALE=scale,
    )
    inner = slice(1, 10), slice(1, 12)
    assert aligned(grid, there)[:, *inner] == pytest.approx(expected[:, *inner], abs=1e-4)


def test_between_systems_takes_the_four_nearest_at_exact_coordinates():
    step = 1.1e-4
    grid = Grid(CRS.from_epsg(4326), Affine(step, 0, 10.3175, 0, -0.7 * step, 46.9435), 90, 80)
    found = between_systems(read, source(), grid, (0, 0, 80, 90), 2)
    rows, columns = np.mgrid[:80, :90] + 0.5
    x, y = transform_points(grid.crs, UTM, *(v.ravel() for v in grid.coordinates(rows, columns)))
    row, column = source().pixels(np.asarray(x), np.asarray(y))
    assert 0.5 < ((row > 0) & (row < 40) & (column > 0) & (column < 50)).mean() <= 1
    expected = np.zeros((2, len(row)))
    for i, (r, c) in enumerate(zip(row - 0.5, column - 0.5, strict=True)):
        if -0.5 <= r <= 39.5 and -0.5 <= c <= 49.5:
            r0, c0 = math.floor(r), math.floor(c)
            for k, m in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (1 - abs(r - r0 - k)) * (1 - abs(c - c0 - m))
                expected[:, i] += weight * CELLS[:, min(max(r0 + k, 0), 39), min(max(c0 + m, 0), 49)]
    assert found.reshape(2, -1) == pytest.approx(expected, abs=1e-4)


def test_a_turned_grid_is_between_systems_too():
    turned = Grid(UTM, Affine(8.0, 6.0, 600_300.0, 6.0, -8.0, 5_199_600.0), 50, 40)
    assert parallel_axes(source(), turned) is None
    found = between_systems(read, source(), turned, (0, 0, 40, 50), 2)
    row, column = source().pixels(*turned.coordinates(np.array([20.5]), np.array([30.5])))
    r, c = row[0] - 0.5, column[0] - 0.5
    r0, c0 = math.floor(r), math.floor(c)
    corners = CELLS[:, r0 : r0 + 2, c0 : c0 + 2]
    assert found[:, 20, 30] == pytest.approx(
        np.einsum("cij,i,j->c", corners, [1 - r + r0, r - r0], [1 - c + c0, c - c0]), abs=1e-5
    )
    assert parallel_axes(source(), Grid(CRS.from_epsg(32633), source().transform, 50, 40)) is None


@pytest.mark.parametrize("kind", ["along", "coarse", "between"])
def test_windows_agree_with_the_whole_to_the_bit(kind):
    step = 1.1e-4
    grid = {
        "along": image(7.0),
        "coarse": image(64.0, west=599_800.0),
        "between": Grid(CRS.from_epsg(4326), Affine(step, 0, 10.3175, 0, -0.7 * step, 46.9435), 70, 60),
    }[kind]

    def whole(*window):
        if kind == "between":
            return between_systems(read, source(), grid, window, 2)
        return aligned(grid, source(), window)

    everything = whole(0, 0, 60, 70)
    for row, col, height, width in [(0, 0, 1, 1), (3, 17, 40, 33), (31, 5, 16, 64), (59, 69, 1, 1)]:
        part = everything[:, row : row + height, col : col + width]
        assert (whole(row, col, height, width) == part).all()


def test_outside_the_source_there_is_nothing():
    far = image(7.0, west=700_000.0)
    assert (aligned(far, source()) == 0).all()
    assert (between_systems(read, source(), far, (0, 0, 60, 70), 2) == 0).all()
    half = image(30.0, 20, 40, west=600_000.0 - 600)
    assert (aligned(half, source())[:, :, :20] == 0).all()
    assert (aligned(half, source())[:, :, 20:] != 0).all()
