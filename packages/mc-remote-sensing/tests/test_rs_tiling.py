"""Tiles cover scenes of every size, their weights add up to one, and nothing counts within a halo but at the scene's border."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.errors import ConfigError
from mc_remote_sensing.inference.tiling import Tiling, axis_spans, tile_windows


@st.composite
def scenes(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    stride = draw(st.sampled_from([1, 2, 3, 8, 16]))
    halo = draw(st.integers(0, 20))
    overlap = draw(st.integers(2 * halo + 1, 2 * halo + 24))
    tile = (-(-overlap // stride) + draw(st.integers(1, 6))) * stride
    length = draw(st.integers(1, 400))
    return length, tile, overlap, halo, stride


@settings(max_examples=300, deadline=None, derandomize=True)
@given(scenes())
def test_spans_cover_every_length_and_their_weights_add_up_to_one(case):
    length, tile, overlap, halo, stride = case
    spans = axis_spans(length, tile, overlap=overlap, halo=halo, stride=stride)
    padded = -(-length // stride) * stride
    total = np.zeros(padded)
    for span in spans:
        assert span.start % stride == 0
        assert span.size % stride == 0
        assert span.size == min(tile, padded)
        assert span.start >= 0
        assert span.start + span.size <= padded
        assert span.weights.dtype == np.float32
        assert span.weights.min() >= 0
        total[span.start : span.start + span.size] += span.weights
    assert np.allclose(total, 1, atol=1e-6)
    assert spans[0].start == 0
    assert spans[-1].start + spans[-1].size == padded
    starts = [span.start for span in spans]
    assert starts == sorted(set(starts)), "no tile twice"
    for before, after in itertools.pairwise(spans):
        assert before.start + tile - after.start >= overlap
        assert before.first <= after.first, "rows finish in order"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(scenes())
def test_nothing_counts_within_the_halo_except_at_the_border_of_the_scene(case):
    length, tile, overlap, halo, stride = case
    spans = axis_spans(length, tile, overlap=overlap, halo=halo, stride=stride)
    for span in spans[1:]:
        assert not span.weights[:halo].any()
    for span in spans[:-1]:
        assert not span.weights[span.size - halo :].any()
    assert spans[0].weights[0] == spans[-1].weights[-1] == 1


def test_weights_are_a_raised_cosine_between_the_halos():
    first, second = axis_spans(42, 26, overlap=10, halo=2, stride=1)
    middle = (1 - np.cos(np.pi * (np.arange(6) + 0.5) / 6)) / 2
    assert np.allclose(second.weights[:10], [0, 0, *middle, 1, 1])
    assert np.allclose(first.weights[-10:], [1, 1, *middle[::-1], 0, 0])
    assert np.all(first.weights[:16] == 1)
    assert (second.first, first.last) == (16 + 2, 26 - 3)


def test_a_tile_is_the_outer_product_of_both_axes_and_rows_come_first():
    tiling = Tiling(56, 50, tile=32, halo=2, overlap=8, stride=4)
    tiles = list(tiling)
    assert len(tiles) == len(tiling) == 4
    assert [(tile.row, tile.col) for tile in tiles] == [(0, 0), (0, 20), (24, 0), (24, 20)]
    assert np.array_equal(tiles[1].weights, tiling.rows[0].weights[:, None] * tiling.columns[1].weights)
    total = np.zeros((56, 52))
    for tile in tiles:
        total[tile.row : tile.row + tile.height, tile.col : tile.col + tile.width] += tile.weights
    assert np.allclose(total, 1, atol=1e-6)
    for left, right in zip(tiles, tile_windows(56, 50, 32, 2, 4, overlap=8), strict=True):
        assert left[:4] == right[:4]


def test_the_default_overlap_is_a_quarter_or_what_the_halo_needs():
    assert Tiling(1000, 1000, tile=256).shared == 64
    assert Tiling(1000, 1000, tile=256, halo=50, stride=16).shared == 116
    assert Tiling(100, 100, tile=512, halo=200, stride=16).rows[0].size == 112


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 30, "stride": 16}, "tile 30: must be a multiple of the model's stride 16"),
        ({"tile": 64, "halo": 8, "overlap": 16}, "overlap 16: .* more than twice the halo of 8"),
        ({"tile": 64, "halo": 30, "stride": 16}, "tile 64: too small to share 76 pixels .* at least 96"),
        ({"tile": 64, "halo": -1}, "halo of -1"),
        ({"height": 0, "tile": 64}, "0 × 200 pixels"),
    ],
)
def test_impossible_tilings_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Tiling(**{"height": 200, "width": 200, **arguments})
