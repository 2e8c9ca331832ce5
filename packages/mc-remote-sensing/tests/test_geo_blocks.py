"""Blocks of ground: a partition, far enough apart, with targets shared out, as a file to look at."""

from __future__ import annotations

import itertools
import runpy
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import CRS
from scipy.ndimage import distance_transform_cdt

from mc_core.errors import ConfigError
from mc_remote_sensing.data import open_scene, spatial_blocks, write_blocks
from mc_remote_sensing.data.blocks import BUFFER, PARTS, _cut, _subtract
from mc_remote_sensing.data.coverage import footprint
from mc_remote_sensing.data.grid import Grid, Window

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_geo.py"))))


@pytest.fixture
def scene(tmp_path):
    values = write.bands(2, 400, 300)
    values[:, :, 280:] = 0
    image = write.raster(tmp_path / "a.tif", values, nodata=0)
    rng = np.random.default_rng(3)
    slides = [write.box(*rng.integers(5, (385, 265)), 6, 6) for _ in range(40)]
    return open_scene(image, labels=write.polygons(tmp_path / "a.gpkg", slides))


def painted(blocks) -> np.ndarray:
    """(H, W) which part each pixel belongs to; how often it is named."""
    found = np.zeros((*blocks.grid.shape, 4), dtype=int)
    for part, (row, col, height, width) in blocks.windows:
        found[row : row + height, col : col + width, (*PARTS, BUFFER).index(part)] += 1
    return found


def test_every_pixel_belongs_to_one_part_and_parts_keep_their_distance(scene):
    blocks = spatial_blocks(scene, block_m=500, buffer_m=150, seed=1)
    found = painted(blocks)
    assert (found.sum(axis=2) == 1).all()
    assert blocks.buffer_px == 15
    parts = [found[..., i].astype(bool) for i in range(3)]
    assert all(part.any() for part in parts)
    for a, b in itertools.combinations(parts, 2):
        assert distance_transform_cdt(~b, "chessboard")[a].min() > 15
    for i, name in enumerate((*PARTS, BUFFER)):
        assert (blocks.mask(name, 0, 0, 400, 300) == found[..., i].astype(bool)).all()
        assert (blocks.mask(name, 31, 47, 90, 80) == found[31:121, 47:127, i].astype(bool)).all()
        outside = blocks.mask(name, -10, -10, 20, 20)
        assert not outside[:10].any()


def test_valid_ground_and_targets_are_shared_out(scene):
    blocks = spatial_blocks(scene, block_m=350, buffer_m=10, shares=(0.6, 0.2, 0.2))
    whole = footprint(scene, 1)
    for name, share in zip(PARTS, (0.6, 0.2, 0.2), strict=True):
        part = footprint(scene, 1, blocks.part(name))
        assert part.target.sum() / whole.target.sum() == pytest.approx(share, abs=0.1)
        assert part.valid.sum() / whole.valid.sum() == pytest.approx(share, abs=0.12)


def test_the_draw_is_a_function_of_the_seed(scene):
    one, same, other = (spatial_blocks(scene, block_m=500, buffer_m=50, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one.windows != other.windows


def test_two_shares_make_no_test_part(scene):
    blocks = spatial_blocks(scene, block_m=500, buffer_m=50, shares=(3, 1))
    assert blocks.part("test") == []
    assert blocks.part("validation")
    with pytest.raises(ConfigError, match="no part 'training'"):
        blocks.part("training")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_m": 9000, "buffer_m": 10}, "into 1: too few for train, validation, test; make blocks smaller"),
        ({"block_m": 300, "buffer_m": 2000}, "nothing is left for train; make blocks larger or the buffer smaller"),
        ({"block_m": 300, "buffer_m": 10, "shares": (1.0,)}, "give two or three numbers above 0"),
        ({"block_m": 300, "buffer_m": 10, "shares": (1, 0, 1)}, "give two or three numbers above 0"),
    ],
)
def test_blocks_that_leave_a_part_empty(scene, options, message):
    with pytest.raises(ConfigError, match=message):
        spatial_blocks(scene, **options)


def test_blocks_are_measured_on_the_ground(tmp_path):
    step = 1e-4
    image = write.raster(
        tmp_path / "a.tif", write.bands(1, 300, 300), crs="EPSG:4326", transform=write.place(step, west=11, north=60)
    )
    blocks = spatial_blocks(open_scene(image), block_m=556, buffer_m=55.6)
    first = blocks.windows[0][1]
    assert blocks.buffer_px == 10  # 5.56 m across, 11.1 m down
    whole = [w for part, w in blocks.windows if part == "test"]
    assert (whole[0].height, whole[0].width) == (50, 100)
    assert first.row == first.col == 0


@settings(max_examples=60, deadline=None)
@given(
    a=st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 12), st.integers(1, 12)),
    b=st.tuples(st.integers(-5, 15), st.integers(-5, 15), st.integers(1, 15), st.integers(1, 15)),
)
def test_a_rectangle_without_another(a, b):
    found = np.zeros((30, 30), dtype=int)
    for row, col, height, width in _subtract(Window(*a), Window(*b)):
        found[row : row + height, col : col + width] += 1
    expected = np.zeros((30, 30), dtype=int)
    expected[a[0] : a[0] + a[2], a[1] : a[1] + a[3]] = 1
    expected[max(b[0], 0) : max(b[0] + b[2], 0), max(b[1], 0) : max(b[1] + b[3], 0)] = 0
    assert (found == expected).all()


def test_test_blocks_stay_whole_and_validation_gives_way_to_them_alone():
    grid = Grid(CRS.from_epsg(32632), write.place(), 30, 10)
    blocks = _cut(grid, [Window(0, 0, 10, 10), Window(0, 10, 10, 10), Window(0, 20, 10, 10)], [0, 1, 2], 3)
    assert blocks.part("train") == [Window(0, 0, 10, 7)]
    assert blocks.part("validation") == [Window(0, 10, 10, 7)]
    assert blocks.part("test") == [Window(0, 20, 10, 10)]


def test_the_file_shows_the_parts_where_they_are(scene, tmp_path):
    blocks = spatial_blocks(scene, block_m=500, buffer_m=100)
    write_blocks(blocks, tmp_path / "blocks.gpkg")
    frame = geopandas.read_file(tmp_path / "blocks.gpkg")
    assert frame.crs.to_epsg() == 32632
    assert set(frame["part"]) == {*PARTS, BUFFER}
    assert frame.total_bounds.tolist() == list(blocks.grid.bounds)
    for name in (*PARTS, BUFFER):
        pixels = sum(w.height * w.width for w in blocks.part(name))
        chosen = frame[frame["part"] == name]
        assert chosen.area.sum() == pytest.approx(pixels * 100)
        assert chosen["pixels"].sum() == pixels
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gpkg", "a.tif", "blocks.gpkg"]
