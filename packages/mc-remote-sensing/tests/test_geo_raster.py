"""Grids and rasters: windows, bands by name, validity from every source, other grids, and files that are wrong."""

from __future__ import annotations

import runpy
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import CRS, Affine

from mc_core.errors import ConfigError, DataError
from mc_remote_sensing.data import RasterSource, handles
from mc_remote_sensing.data.grid import Grid, local_equal_area, local_utm, name_of, overlap
from mc_remote_sensing.data.handles import handle

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_geo.py"))))


def utm_grid(**changes) -> Grid:
    return Grid(**{"crs": CRS.from_epsg(32632), "transform": write.place(), "width": 128, "height": 96, **changes})


def test_a_window_of_a_grid_lies_where_its_pixels_do():
    grid = utm_grid()
    part = grid.window(10, 20, 30, 40)
    x, y = part.coordinates(np.array([0.5]), np.array([0.5]))
    row, column = grid.pixels(x, y)
    assert (row[0], column[0]) == pytest.approx((10.5, 20.5))
    assert part.bounds == (600_200, 5_199_600, 600_600, 5_199_900)


def test_the_bounds_of_a_turned_grid_are_its_envelope():
    turned = utm_grid(transform=Affine(8.0, 6.0, 600_000.0, 6.0, -8.0, 5_200_000.0))
    assert turned.bounds == (600_000, 5_199_232, 600_000 + 8 * 128 + 6 * 96, 5_200_768)
    assert turned.pixel_metres == (10, 10)


@pytest.mark.parametrize("latitude", [0.0, 45.0, -70.0])
def test_degrees_have_a_length_on_the_ground(latitude):
    step = 1e-4
    grid = Grid(CRS.from_epsg(4326), Affine(step, 0, 11.0, 0, -step, latitude), 100, 100)
    across, down = grid.pixel_metres
    assert across == pytest.approx(111_320 * step * np.cos(np.radians(latitude)), rel=5e-3)
    assert down == pytest.approx(111_133 * step, rel=7e-3)
    assert grid.area_m2() == pytest.approx(across * down * 1e4, rel=1e-3)


def test_a_mercator_map_is_not_taken_at_its_word_and_feet_are_converted():
    mercator = Grid(CRS.from_epsg(3857), Affine(10, 0, 1_000_000, 0, -10, 8_399_738), 100, 100)  # 60° north
    assert mercator.pixel_metres == pytest.approx((5, 5), rel=0.01)
    feet = Grid(CRS.from_epsg(2263), Affine(10, 0, 980_000, 0, -10, 200_000), 100, 100)  # New York, US survey feet
    assert feet.pixel_metres == pytest.approx((3.048006, 3.048006), rel=1e-6)
    assert utm_grid().pixel_metres == (10, 10)


def test_overlap_is_a_share_of_the_first():
    grid = utm_grid()
    assert overlap(grid, grid) == 1
    assert overlap(grid, grid.window(0, 64, 96, 128)) == 0.5
    assert overlap(grid, grid.window(96, 0, 96, 128)) == 0
    small = grid.window(0, 0, 48, 64)
    assert overlap(grid, small) == 0.25
    assert overlap(small, grid) == 1
    in_degrees = Grid(CRS.from_epsg(4326), Affine(1e-3, 0, 10.0, 0, -1e-3, 47.2), 1000, 1000)
    assert overlap(grid, in_degrees) == 1


def test_grids_match_to_a_hundredth_of_a_pixel():
    assert utm_grid().matches(utm_grid(transform=write.place(west=600_000.05)))
    assert not utm_grid().matches(utm_grid(transform=write.place(west=600_001)))
    assert not utm_grid().matches(utm_grid(width=127))
    assert not utm_grid().matches(utm_grid(crs=CRS.from_epsg(32633)))


def test_local_systems():
    south = Grid(CRS.from_epsg(4326), Affine(1e-4, 0, -74.5, 0, -1e-4, -8.3), 100, 100)
    assert local_utm(south).to_epsg() == 32718
    area = local_equal_area(south)
    assert area.linear_units == "metre"
    assert name_of(CRS.from_epsg(4326)) == "EPSG:4326"


def test_any_window_is_the_array_cut_there(tmp_path):
    values = write.bands()
    source = RasterSource(write.raster(tmp_path / "a.tif", values))
    for window in [(0, 0, 96, 128), (17, 3, 40, 77), (95, 127, 1, 1)]:
        row, col, height, width = window
        found, valid = source.read(*window)
        assert found.dtype == np.float32
        assert valid.all()
        assert (found == values[:, row : row + height, col : col + width]).all()


@pytest.mark.parametrize("window", [(-5, -7, 20, 20), (90, 120, 30, 30), (-200, 10, 500, 8), (10, 400, 5, 5)])
def test_beyond_the_raster_values_are_reflected_and_invalid(tmp_path, window):
    values = write.bands()
    source = RasterSource(write.raster(tmp_path / "a.tif", values))
    padded = np.pad(values, ((0, 0), (600, 600), (600, 600)), mode="reflect")
    row, col, height, width = window
    found, valid = source.read(*window)
    assert (found == padded[:, 600 + row : 600 + row + height, 600 + col : 600 + col + width]).all()
    rows, columns = np.arange(row, row + height), np.arange(col, col + width)
    assert (valid == ((rows >= 0) & (rows < 96))[:, None] & ((columns >= 0) & (columns < 128))).all()


def test_a_raster_of_one_pixel_can_be_read_around(tmp_path):
    source = RasterSource(write.raster(tmp_path / "a.tif", np.full((1, 1, 1), 7, np.uint8)))
    found, valid = source.read(-1, -1, 3, 3)
    assert (found == 7).all()
    assert valid.sum() == 1


ELSEWHERE = """
import pickle, sys
from multiprocessing import get_context

import numpy as np

from mc_remote_sensing.data.raster import RasterSource

if __name__ == "__main__":
    source, expected = RasterSource(sys.argv[1]), np.load(sys.argv[2])
    source.read(0, 0, 5, 5)  # the handle is open when it is pickled and when the process forks
    windows = [(i % 60, i % 90, 32, 32) for i in range(5)]
    for method in ("fork", "spawn"):
        with get_context(method).Pool(1) as pool:
            found = pool.starmap(pickle.loads(pickle.dumps(source)).read, windows)
        if all((a == b).all() for (a, _), b in zip(found, expected, strict=True)):
            print(method)
"""


def test_a_source_is_picklable_and_every_process_and_thread_opens_its_own(tmp_path):
    values = write.bands()
    source = RasterSource(write.raster(tmp_path / "a.tif", values))
    source.read(0, 0, 5, 5)
    windows = [(i % 60, i % 90, 32, 32) for i in range(40)]
    expected = [source.read(*window)[0] for window in windows]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda window: source.read(*window)[0], windows))
    assert all((a == b).all() for a, b in zip(threaded, expected, strict=True))
    # in a process of its own: a fork of one in which other tests left threads behind may hang
    np.save(tmp_path / "expected.npy", np.stack(expected[:5]))
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "a.tif", tmp_path / "expected.npy"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["fork", "spawn"], done.stderr


def test_a_forked_process_leaves_the_handles_of_its_parent_alone():
    context = get_context("fork")
    there, here = context.Pipe()
    opened = handle("forked", object)
    assert handle("forked", object) is opened
    child = context.Process(target=lambda: there.send(handle("forked", lambda: "its own") == "its own"))
    child.start()
    assert here.recv()
    child.join()


def test_the_handle_asked_for_longest_ago_is_closed_first(monkeypatch):
    monkeypatch.setattr(handles, "_MOST_OPEN", 3)
    monkeypatch.setattr(handles, "_local", threading.local())
    closed = []

    def opener(name):
        return lambda: SimpleNamespace(close=lambda: closed.append(name))

    for name in "abcad":
        handle(name, opener(name))
    assert closed == ["b"]


def test_an_overview_is_every_nth_pixel(tmp_path):
    values, valid = RasterSource(write.raster(tmp_path / "a.tif", write.bands())).overview(32)
    assert values.shape == (3, 24, 32)
    assert valid.shape == (24, 32)


def test_validity_alone_is_the_same(tmp_path):
    values = write.bands()
    values[:, 10:20, 30:50] = 0
    for name, nodata in (("a", 0), ("b", None)):
        source = RasterSource(write.raster(tmp_path / f"{name}.tif", values, nodata=nodata))
        for window in [(0, 0, 96, 128), (-5, 20, 30, 40)]:
            assert (source.read_valid(*window) == source.read(*window)[1]).all()


def test_blocks_are_not_hoarded(tmp_path):
    path = write.raster(
        tmp_path / "a.tif",
        np.zeros((8192, 65536), np.uint8),
        blockxsize=1024,
        blockysize=1024,
        sparse_ok=True,
        compress="deflate",
    )
    code = f"""
import os
from mc_remote_sensing.data import RasterSource, handles
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
source = RasterSource({str(path)!r})
source.read(0, 0, 8, 8)
before = resident()
for row in range(0, 8192, 256):
    source.read(row, 0, 256, 65536)
print(resident() - before)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 256 + 160  # the cache, and one strip as read and as float32


def test_bands_are_chosen_by_name_or_number_in_the_order_asked_for(tmp_path):
    values = write.bands(4)
    path = write.raster(tmp_path / "a.tif", values, names=("blue", "green", "red", "nir"))
    assert RasterSource(path).band_names == ("blue", "green", "red", "nir")
    chosen = RasterSource(path, bands=["nir", 1])
    assert chosen.band_names == ("nir", "blue")
    assert (chosen.read(0, 0, 5, 5)[0] == values[[3, 0], :5, :5]).all()
    renamed = RasterSource(path, band_names=["B2", "B3", "B4", "B8"], bands=["B8"])
    assert (renamed.read(0, 0, 5, 5)[0] == values[3:, :5, :5]).all()
    assert RasterSource(write.raster(tmp_path / "b.tif", values)).band_names == ("B1", "B2", "B3", "B4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": ["nri"]}, "has no band 'nri'; it has blue, green, red, nir.*closest is nir"),
        ({"bands": [5]}, "has no band 5"),
        ({"bands": [0]}, "has no band 0"),
        ({"bands": []}, "give at least one"),
        ({"bands": ["red", 3]}, "each once"),
        ({"band_names": ["red", "green", "blue"]}, "has 4 bands, but 3 names were given"),
        ({"band_names": ["a", "b", "c", "d", "e"]}, "has 4 bands, but 5 names were given"),
        ({"band_names": ["a", "b", "c", "a"]}, "a name of its own"),
    ],
)
def test_bands_that_do_not_exist(tmp_path, options, message):
    path = write.raster(tmp_path / "a.tif", write.bands(4), names=("blue", "green", "red", "nir"))
    with pytest.raises(ConfigError, match=message):
        RasterSource(path, **options)


def hole(shape=(96, 128)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[10:20, 30:50] = True
    return mask


def test_declared_nodata(tmp_path):
    values = write.bands().astype(np.int16)
    values[:, hole()] = -9999
    values[1, 40, 40] = -9999  # one band is enough
    found, valid = RasterSource(write.raster(tmp_path / "a.tif", values, nodata=-9999)).read(0, 0, 96, 128)
    missing = hole()
    missing[40, 40] = True
    assert (valid == ~missing).all()
    assert (found[:, missing] == 0).all()


def test_nodata_at_an_end_of_an_unsigned_range_must_hold_in_all_bands(tmp_path):
    values = write.bands()
    values[:, hole()] = 0
    values[2, 40, 40] = 0  # a dark pixel, not a missing one
    found, valid = RasterSource(write.raster(tmp_path / "a.tif", values, nodata=0)).read(0, 0, 96, 128)
    assert (valid == ~hole()).all()
    assert (found[:, 40, 40] == values[:, 40, 40]).all()


def test_a_mask_band(tmp_path):
    path = write.raster(tmp_path / "a.tif", write.bands(), mask=~hole())
    assert (RasterSource(path).read(0, 0, 96, 128)[1] == ~hole()).all()
    assert (RasterSource(path).read(5, 25, 20, 20)[1] == ~hole()[5:25, 25:45]).all()


def test_a_true_alpha_band_is_a_mask_and_no_band(tmp_path):
    values = write.bands(4).astype(np.uint8)
    values[3] = np.where(hole(), 0, 255)
    path = write.raster(tmp_path / "a.tif", values, alpha=True)
    source = RasterSource(path)
    assert source.band_names == ("B1", "B2", "B3")
    assert source.count == 3
    found, valid = source.read(0, 0, 96, 128)
    assert (valid == ~hole()).all()
    assert (found[:, ~hole()] == values[:3, ~hole()]).all()
    named = RasterSource(path, band_names=["r", "g", "b"])
    assert named.band_names == ("r", "g", "b")
    assert RasterSource(path, bands=[4]).read(0, 0, 96, 128)[1].all()  # asked for by number, it is a measurement


@pytest.mark.parametrize("names", [(), ("red", "green", "blue", "nir")])
def test_a_band_wrongly_marked_as_alpha_is_a_band(tmp_path, names):
    values = (write.bands(4) % 200).astype(np.uint8)
    values[3, 0, 0] = 0
    source = RasterSource(write.raster(tmp_path / "a.tif", values, alpha=True, names=names))
    assert source.count == 4
    assert source.read(0, 0, 96, 128)[1].all()


def test_nan_infinity_and_what_float32_cannot_hold(tmp_path):
    values = write.bands().astype(np.float64)
    values[0, 1, 1], values[1, 2, 2], values[2, 3, 3] = np.nan, np.inf, 1e300
    found, valid = RasterSource(write.raster(tmp_path / "a.tif", values)).read(0, 0, 96, 128)
    assert np.argwhere(~valid).tolist() == [[1, 1], [2, 2], [3, 3]]
    assert np.isfinite(found).all()
    declared = RasterSource(write.raster(tmp_path / "b.tif", values, nodata=np.nan))
    assert (declared.read(0, 0, 96, 128)[1] == valid).all()


def test_the_user_overrides_what_the_file_says(tmp_path):
    values = write.bands().astype(np.int16)
    values[:, hole()] = -1
    values[:, 0, 0] = -9999
    path = write.raster(tmp_path / "a.tif", values, nodata=-9999)
    assert (RasterSource(path, nodata=-1).read(0, 0, 96, 128)[1] == ~hole()).all()
    assert RasterSource(path, nodata="none").read(0, 0, 96, 128)[1].all()


def test_on_another_grid_values_are_bilinear_and_the_mask_is_dilated_by_the_kernel(tmp_path):
    y, x = np.mgrid[:96, :128]
    values = (3.0 * x + 2.0 * y).astype(np.float32)
    values[40:44, 60:70] = -9999
    source = RasterSource(write.raster(tmp_path / "a.tif", values, nodata=-9999))
    grid = Grid(CRS.from_epsg(32632), write.place(5, west=write.WEST + 100, north=write.NORTH - 100), 160, 120)
    moved = source.on(grid)
    found, valid = moved.read(0, 0, 120, 160)
    rows, columns = np.mgrid[:120, :160]
    sub_row, sub_col = 10 + (rows + 0.5) / 2 - 0.5, 10 + (columns + 0.5) / 2 - 0.5  # in centres of the source
    assert found[0][valid] == pytest.approx((3 * sub_col + 2 * sub_row)[valid], abs=1e-3)
    touched = (sub_row > 39) & (sub_row < 44) & (sub_col > 59) & (sub_col < 70)  # a weight above 0 on an invalid pixel
    assert (valid == ~touched).all()
    assert (found[:, ~valid] == 0).all()


@pytest.mark.parametrize("step", [0.5e-4, 1.4e-4, 4e-4])
def test_windows_on_another_grid_agree_with_the_whole(tmp_path, step):
    source = RasterSource(write.raster(tmp_path / "a.tif", write.bands()))
    grid = Grid(CRS.from_epsg(4326), Affine(step, 0, 10.316, 0, -0.7 * step, 46.944), 100, 80)
    assert overlap(grid, source.native_grid) > 0
    moved = source.on(grid)
    whole, valid = moved.read(0, 0, 80, 100)
    assert valid.any()
    for window in [(0, 0, 20, 20), (37, 41, 30, 17), (70, 90, 10, 10)]:
        row, col, height, width = window
        part, its = moved.read(*window)
        assert (its == valid[row : row + height, col : col + width]).all()
        difference = np.abs(part - whole[:, row : row + height, col : col + width])
        assert (
            difference.max() < 0.005 * 4000
        )  # GDAL interpolates coordinates along a row, to a few thousandths of a pixel


def test_a_window_far_from_the_source_is_invalid(tmp_path):
    source = RasterSource(write.raster(tmp_path / "a.tif", write.bands()))
    far = Grid(CRS.from_epsg(32632), write.place(west=write.WEST + 50_000), 30, 30)
    values, valid = source.on(far).read(0, 0, 30, 30)
    assert not valid.any()
    assert (values == 0).all()


def test_no_coordinate_system_is_refused_unless_it_is_given(tmp_path):
    path = write.raster(tmp_path / "a.tif", write.bands(), crs=None)
    with pytest.raises(DataError, match=r"a.tif: has no coordinate system.*--assume-crs EPSG:32632"):
        RasterSource(path)
    with pytest.raises(ConfigError, match="--assume-crs EPSG:99999999: is no coordinate system"):
        RasterSource(path, assume_crs="EPSG:99999999")
    source = RasterSource(path, assume_crs="EPSG:32632")
    assert source.grid.crs.to_epsg() == 32632
    assert not source.has_crs
    assert (
        RasterSource(write.raster(tmp_path / "b.tif", write.bands()), assume_crs="EPSG:32633").grid.crs.to_epsg()
        == 32632
    )


def test_no_place_on_earth(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(path)
    with pytest.raises(DataError, match="does not say where on Earth"):
        RasterSource(path, assume_crs="EPSG:32632")


def test_files_that_are_no_rasters(tmp_path):
    with pytest.raises(DataError, match="nothing.tif: does not exist"):
        RasterSource(tmp_path / "nothing.tif")
    (tmp_path / "empty.tif").touch()
    with pytest.raises(DataError, match="the file is empty"):
        RasterSource(tmp_path / "empty.tif")
    (tmp_path / "words.tif").write_text("these are only words")
    with pytest.raises(DataError, match=r"words.tif: is no raster that can be read"):
        RasterSource(tmp_path / "words.tif")
    with pytest.raises(DataError, match="is no raster"):
        RasterSource(tmp_path)


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_a_cut_off_geotiff_is_found_when_it_is_opened(tmp_path, keep, compress, capfd):
    whole = write.raster(tmp_path / "whole.tif", write.bands(), compress=compress)
    data = whole.read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=r"cut.tif: (is cut off|is no raster)"):
        RasterSource(cut)
    assert capfd.readouterr().err == ""


def test_damage_inside_is_one_line_that_names_the_window(tmp_path, capfd):
    path = write.raster(tmp_path / "a.tif", write.bands(), compress="deflate")
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_1_0", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[offset : offset + 64] = b"\xff" * 64
    path.write_bytes(data)
    source = RasterSource(path)
    assert source.read(0, 0, 64, 64)[1].all()
    with pytest.raises(
        DataError, match=r"a.tif: pixels \(0, 64, 10, 10\) cannot be read, the file is cut off or damaged"
    ):
        source.read(0, 64, 10, 10)
    assert capfd.readouterr().err == ""


def test_complex_numbers_are_refused(tmp_path):
    path = write.raster(tmp_path / "a.tif", write.bands(1).astype(np.complex64))
    with pytest.raises(DataError, match="holds complex numbers"):
        RasterSource(path)
