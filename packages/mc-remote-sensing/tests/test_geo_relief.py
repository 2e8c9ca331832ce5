"""Slope, curvature and relative elevation against closed forms and a naive reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_remote_sensing.data.relief import (
    CHANNELS,
    elevation_features,
    laplacian,
    neighbourhood,
    relative_elevation,
    slope_degrees,
)


def surface(height: int = 24, width: int = 31, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rough = np.cumsum(np.cumsum(rng.normal(size=(height, width)), axis=0), axis=1)
    return 400 + 3 * rough


def naive_slope(z: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """Horn's window cell by cell, inside only."""
    found = np.full(z.shape, np.nan)
    for r in range(1, z.shape[0] - 1):
        for k in range(1, z.shape[1] - 1):
            (a, b, c), (d, _, f), (g, h, i) = z[r - 1 : r + 2, k - 1 : k + 2].tolist()
            p = ((c + 2 * f + i) - (a + 2 * d + g)) / (8 * dx)
            q = ((g + 2 * h + i) - (a + 2 * b + c)) / (8 * dy)
            found[r, k] = math.degrees(math.atan(math.sqrt(p * p + q * q)))
    return found


@settings(max_examples=40, deadline=None)
@given(
    a=st.floats(-3, 3),
    b=st.floats(-3, 3),
    dx=st.floats(0.5, 90),
    dy=st.floats(0.5, 90),
    base=st.floats(-400, 8000),
)
def test_a_plane_has_one_slope_and_no_curvature_up_to_its_border(a, b, dx, dy, base):
    y, x = np.mgrid[:9, :11]
    z = base + a * x * dx + b * y * dy
    assert slope_degrees(z, dx, dy) == pytest.approx(
        np.full(z.shape, math.degrees(math.atan(math.hypot(a, b)))), abs=1e-6
    )
    features = elevation_features(z, dx, dy, relief_radius_m=2 * max(dx, dy))
    assert features[2] == pytest.approx(np.zeros_like(z), abs=1e-9)
    assert features[1] * 45 == pytest.approx(slope_degrees(z, dx, dy))


def test_slope_is_horns():
    z = surface()
    naive = naive_slope(z, 7.0, 5.0)
    inside = np.isfinite(naive)
    assert slope_degrees(z, 7.0, 5.0)[inside] == pytest.approx(naive[inside], abs=1e-10)


def test_the_laplacian_of_a_paraboloid_is_exact():
    y, x = np.mgrid[:9, :12] * 1.0
    z = 0.03 * (x * 4.0) ** 2 - 0.01 * (y * 6.0) ** 2
    assert laplacian(z, 4.0, 6.0)[1:-1, 1:-1] == pytest.approx(np.full((7, 10), 2 * 0.03 - 2 * 0.01), abs=1e-12)
    bowl = elevation_features(0.02 * ((x * 5 - 20) ** 2 + (y * 5 - 20) ** 2), 5.0, 5.0)
    assert bowl[2, 4, 4] == pytest.approx(0.08 * 5 / 0.5)  # above 0 in a bowl
    assert bowl[0, 4, 4] < 0 < bowl[0, 0, 0]


def test_curvature_is_clipped():
    z = surface() * 100
    assert np.abs(elevation_features(z, 5.0, 5.0)[2]).max() == 1.0


@pytest.mark.parametrize("name", ["left-right", "up-down", "quarter"])
def test_flips_and_turns_commute_with_every_channel(name):
    change = {"left-right": np.fliplr, "up-down": np.flipud, "quarter": np.rot90}[name]
    z = surface()
    z[4:6, 7] = np.nan
    before = np.stack([change(channel) for channel in elevation_features(z, 8.0, 8.0, relief_radius_m=40)])
    assert elevation_features(change(z), 8.0, 8.0, relief_radius_m=40) == pytest.approx(before, abs=1e-9)


def test_relative_elevation_is_the_height_above_the_mean_of_the_known_cells_around():
    z = surface()
    valid = np.ones(z.shape, dtype=bool)
    valid[10:14, 3:20] = False
    found = relative_elevation(z, valid, 3, 5)
    for r, c in [(0, 0), (9, 10), (23, 30), (15, 15)]:
        rows, columns = slice(max(0, r - 3), r + 4), slice(max(0, c - 5), c + 6)
        mean = z[rows, columns][valid[rows, columns]].mean()
        assert found[r, c] == pytest.approx(z[r, c] - mean, abs=1e-9)
    assert relative_elevation(z + 3000, valid, 3, 5)[valid] == pytest.approx(found[valid], abs=1e-8)


def test_the_neighbourhood_is_a_length_on_the_ground():
    assert neighbourhood(10.0, 5.0, 100.0) == (20, 10)
    assert neighbourhood(90.0, 90.0, 100.0) == (2, 2)


def test_an_unknown_cell_and_its_neighbours_are_zero_in_all_channels():
    z = surface()
    z[10, 12] = np.nan
    features = elevation_features(z, 5.0, 5.0)
    hole = np.zeros(z.shape, dtype=bool)
    hole[9:12, 11:14] = True
    assert len(features) == len(CHANNELS)
    assert (features[:, hole] == 0).all()
    assert (features[3, ~hole] == 1).all()
    assert np.isfinite(features).all()
    filled = elevation_features(np.where(np.isnan(z), 1e6, z), 5.0, 5.0, valid=np.isfinite(z))
    assert filled == pytest.approx(features)  # what stands in a hole does not matter


def test_cells_may_differ_from_row_to_row():
    y, x = np.mgrid[:9, :11] * 1.0
    dx = np.linspace(5, 9, 9)[:, None]
    slopes = slope_degrees(2.0 * x + 0 * y, dx, 5.0)
    assert slopes == pytest.approx(np.degrees(np.arctan(2.0 / dx)) + np.zeros((9, 11)))


def test_a_single_row_or_cell_is_flat():
    assert slope_degrees(np.full((1, 1), 7.0), 1.0, 1.0) == pytest.approx(np.zeros((1, 1)))
    assert slope_degrees(np.arange(4.0)[None], 1.0, 1.0) == pytest.approx(np.full((1, 4), 45.0))


@pytest.mark.parametrize("rows", [slice(0, 7), slice(5, 6), slice(20, 24), slice(None)])
@pytest.mark.parametrize("columns", [slice(0, 31), slice(11, 20), slice(30, 31)])
def test_a_part_is_cut_from_the_whole(rows, columns):
    z = surface()
    z[4:6, 12] = np.nan
    dx = np.linspace(5, 9, 24)[:, None]
    whole = elevation_features(z, dx, 5.0, relief_radius_m=20)
    part = elevation_features(z, dx, 5.0, relief_radius_m=20, part=(rows, columns))
    assert part == pytest.approx(whole[:, rows, columns], abs=1e-12)
