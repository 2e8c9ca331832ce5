"""Elevation models: derivatives on their own grid, brought to the image; units, holes, the cache."""

from __future__ import annotations

import math
import pickle
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from rasterio import CRS, Affine

from mc_core.errors import ConfigError, DataError
from mc_remote_sensing.data import ElevationSource, RasterSource
from mc_remote_sensing.data import elevation as elevation_module
from mc_remote_sensing.data.grid import Grid
from mc_remote_sensing.data.relief import elevation_features

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_geo.py"))))
IMAGE = Grid(CRS.from_epsg(32632), write.place(4, west=write.WEST + 100, north=write.NORTH - 100), 150, 120)
CELL = 30.0


def heights(function, height: int = 30, width: int = 40) -> np.ndarray:
    """float32 of ``function`` of metres east and south of the model's corner, at the middle of each cell."""
    y, x = (np.mgrid[:height, :width] + 0.5) * CELL
    return function(x, y).astype(np.float32)


def model(
    tmp_path: Path, z: np.ndarray, grid: Grid | None = IMAGE, *, name: str = "dem.tif", **options
) -> ElevationSource:
    written = {key: options.pop(key) for key in ("crs", "transform", "nodata") if key in options}
    path = write.raster(tmp_path / name, z, **{"transform": write.place(CELL), "nodata": -9999, **written})
    return ElevationSource(path, grid, **{"vertical_unit": "metre", "cache": tmp_path / "cache", **options})


def test_a_plane_keeps_its_slope_on_the_image_grid(tmp_path):
    source = model(tmp_path, heights(lambda x, y: 1000 + 0.3 * x - 0.25 * y))
    found = source.read(0, 0, *IMAGE.shape)
    assert found.dtype == np.float32
    slope = math.degrees(math.atan(math.hypot(0.3, 0.25))) / 45
    assert found[1] == pytest.approx(np.full(IMAGE.shape, slope), abs=5e-6)  # heights are float32: 1000 m to 6e-5 m
    assert np.abs(found[2]).max() < 1e-4
    assert (found[3] == 1).all()


def test_what_a_model_sees_lies_where_the_ground_is(tmp_path):
    bend = 5e-4
    source = model(tmp_path, heights(lambda x, y: 0.5 * bend * x**2))
    x, _ = IMAGE.coordinates(np.full(IMAGE.width, 0.5), np.arange(IMAGE.width) + 0.5)
    slope = np.degrees(np.arctan(bend * (x - write.WEST)))
    found = source.read(60, 0, 1, IMAGE.width)[1, 0] * 45
    assert found == pytest.approx(slope, abs=0.02)  # half a cell to the side would be 0.43 degrees
    assert source.read(0, 0, *IMAGE.shape)[2] == pytest.approx(np.full(IMAGE.shape, bend * CELL / 0.5), abs=2e-3)


def test_feet_are_metres_times_0_3048(tmp_path):
    metres = model(tmp_path, heights(lambda x, y: 0.3 * x + 40 * np.sin(y / 90)))
    feet = model(
        tmp_path, heights(lambda x, y: (0.3 * x + 40 * np.sin(y / 90)) / 0.3048), name="feet.tif", vertical_unit="foot"
    )
    assert feet.read(0, 0, 120, 150) == pytest.approx(metres.read(0, 0, 120, 150), abs=1e-4)
    wrong = ElevationSource(feet.path, IMAGE, vertical_unit="metre", cache=tmp_path / "cache")
    assert wrong.read(0, 0, 120, 150)[1].mean() > 1.5 * metres.read(0, 0, 120, 150)[1].mean()


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("m", "metre"), ("metre", "metre"), ("ft", "foot"), ("US survey foot", "foot"), ("Meters", "metre")],
)
def test_a_file_may_name_its_unit(tmp_path, unit, expected):
    path = write.raster(tmp_path / "dem.tif", heights(lambda x, y: x), transform=write.place(CELL))
    with rasterio.open(path, "r+") as file:
        file.units = (unit,)
    assert ElevationSource(path, IMAGE, cache=tmp_path).vertical_unit == expected


@pytest.mark.parametrize(("vertical", "expected"), [("EPSG:5773", "metre"), ("EPSG:6360", "foot")])
def test_or_its_vertical_system_does(tmp_path, vertical, expected):
    from pyproj.crs import CompoundCRS

    crs = CompoundCRS("UTM and heights", [write.UTM, vertical]).to_wkt()
    path = write.raster(tmp_path / "dem.tif", heights(lambda x, y: x), transform=write.place(CELL), crs=crs)
    assert ElevationSource(path, IMAGE, cache=tmp_path).vertical_unit == expected


def test_else_the_unit_is_asked_for(tmp_path):
    with pytest.raises(
        ConfigError, match=r"dem.tif: does not say whether its heights are metres or feet.*--vertical-unit foot"
    ):
        model(tmp_path, heights(lambda x, y: x), vertical_unit=None)
    with pytest.raises(ConfigError, match="vertical unit 'yard': give metre or foot"):
        model(tmp_path, heights(lambda x, y: x), vertical_unit="yard")


def test_a_model_in_degrees_has_slopes_on_the_ground(tmp_path):
    step = 3e-4
    place = Affine(step, 0, 10.30, 0, -step, 46.96)
    z = (0.4 * 76_030 * step * np.arange(80)[None, :] + np.zeros((80, 1))).astype(
        np.float32
    )  # metres of a degree at 46.95°
    source = model(tmp_path, z, crs="EPSG:4326", transform=place)
    found = source.read(0, 0, *IMAGE.shape)
    assert found[3].all()
    assert found[1] * 45 == pytest.approx(np.full(IMAGE.shape, math.degrees(math.atan(0.4))), abs=0.1)


def test_a_degree_is_shorter_in_the_north(tmp_path):
    z = (10_000 * 0.5 * np.arange(20)[None, :] + np.zeros((120, 1))).astype(np.float32)
    source = model(tmp_path, z, None, crs="EPSG:4326", transform=Affine(0.5, 0, 10, 0, -0.5, 60))
    slopes = np.tan(np.radians(source.read(0, 10, 120, 1)[1, :, 0] * 45))
    latitude = np.radians(60 - 0.5 * (np.arange(120) + 0.5))
    assert slopes == pytest.approx(10_000 / (111_320 * np.cos(latitude)), rel=0.005)


def test_an_image_in_degrees_over_a_model_in_feet(tmp_path):
    grid = Grid(CRS.from_epsg(4326), Affine(6e-5, 0, 10.3165, 0, -4e-5, 46.9435), 60, 60)
    source = model(tmp_path, heights(lambda x, y: (200 + 0.5 * y) / 0.3048), grid, vertical_unit="foot")
    found = source.read(0, 0, 60, 60)
    assert found[3].all()
    assert found[1] * 45 == pytest.approx(np.full((60, 60), math.degrees(math.atan(0.5))), abs=0.01)


def test_pieces_make_the_whole_and_no_read_is_larger_than_a_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(elevation_module, "_STRIP", 256)
    monkeypatch.setattr(elevation_module, "_CHUNK", 64)
    z = heights(lambda x, y: 30 * np.sin(x / 200) * np.cos(y / 170) + 0.1 * x, 700, 150)
    asked = []
    read = RasterSource.read

    def counted(self, row, col, height, width):
        asked.append((height, width))
        return read(self, row, col, height, width)

    monkeypatch.setattr(RasterSource, "read", counted)
    source = model(tmp_path, z, None, relief_radius_m=120)
    whole = elevation_features(z.astype(np.float64), CELL, CELL, relief_radius_m=120)
    assert source.read(0, 0, 700, 150) == pytest.approx(whole.astype(np.float32), abs=1e-6)
    assert max(height for height, _ in asked) == 256 + 2 * 5
    assert max(width for _, width in asked) == 64 + 2 * 5


def test_a_hole_is_widened_by_the_window_and_by_the_kernel(tmp_path):
    z = heights(lambda x, y: 0.2 * x)
    z[8, 9] = -9999
    source = model(tmp_path, z)
    found = source.read(0, 0, *IMAGE.shape)
    x, y = IMAGE.coordinates(*(np.mgrid[: IMAGE.height, : IMAGE.width] + 0.5))
    column, row = (x - write.WEST) / CELL - 0.5, (write.NORTH - y) / CELL - 0.5  # in centres of cells
    touched = (row > 6) & (row < 10) & (column > 7) & (column < 11)  # a weight above 0 on a cell without derivatives
    assert touched.any()
    assert (found[3] == ~touched).all()
    assert (found[:, touched] == 0).all()


def test_heights_that_are_nan_or_that_the_user_disowns(tmp_path):
    z = heights(lambda x, y: 0.2 * x)
    z[8, 9] = np.nan
    by_nan = model(tmp_path, z).read(0, 0, *IMAGE.shape)
    z[8, 9] = -1
    by_user = model(tmp_path, z, name="other.tif", nodata=-1).read(0, 0, *IMAGE.shape)
    assert 0 < by_nan[3].mean() < 1
    assert (by_nan == by_user).all()


def test_windows_are_parts_of_the_whole_and_beyond_the_image_nothing_is_known(tmp_path):
    source = model(tmp_path, heights(lambda x, y: 20 * np.sin(x / 100) + y / 9))
    whole = source.read(0, 0, *IMAGE.shape)
    for row, col, height, width in [(0, 0, 7, 9), (50, 61, 40, 30), (119, 149, 1, 1)]:
        assert (source.read(row, col, height, width) == whole[:, row : row + height, col : col + width]).all()
    beyond = source.read(-10, 140, 20, 20)
    assert (beyond[3] == np.pad(np.ones((10, 10)), ((10, 0), (0, 10)))).all()
    assert (beyond[1, 10:, :10] == whole[1, :10, 140:]).all()
    assert (beyond[1, 9] == beyond[1, 11]).all()  # reflected about the first row


def test_a_model_that_covers_a_part_of_the_image(tmp_path):
    source = model(tmp_path, heights(lambda x, y: x), transform=write.place(CELL, west=write.WEST + 400))
    valid = source.read(0, 0, *IMAGE.shape)[3]
    assert (valid[:, :75] == 0).all()  # 100 + 75 · 4 = 400 m
    assert (valid[:, 76:] == 1).all()
    assert source.covers == pytest.approx(0.5, abs=0.02)


def test_a_model_elsewhere(tmp_path):
    with pytest.raises(DataError, match=r"dem.tif: the elevation model does not overlap the image"):
        model(tmp_path, heights(lambda x, y: x), transform=write.place(CELL, west=write.WEST + 5_000))


def test_no_coordinate_system(tmp_path):
    with pytest.raises(DataError, match=r"dem.tif: has no coordinate system.*--assume-crs"):
        model(tmp_path, heights(lambda x, y: x), crs=None)
    source = model(tmp_path, heights(lambda x, y: 0.3 * x), crs=None, assume_crs="EPSG:32632")
    assert source.read(0, 0, *IMAGE.shape)[3].all()


def test_derivatives_are_computed_once_for_a_file_as_it_is(tmp_path, monkeypatch):
    calls = []
    real = elevation_module.write_derivatives
    monkeypatch.setattr(elevation_module, "write_derivatives", lambda *given: (calls.append(given), real(*given)))
    first = model(tmp_path, heights(lambda x, y: 0.2 * x))
    ElevationSource(first.path, None, vertical_unit="metre", cache=tmp_path / "cache")
    assert len(calls) == 1
    ElevationSource(first.path, IMAGE, vertical_unit="foot", cache=tmp_path / "cache")
    ElevationSource(first.path, IMAGE, vertical_unit="metre", cache=tmp_path / "cache", relief_radius_m=90)
    assert len(calls) == 3
    model(tmp_path, heights(lambda x, y: 0.5 * x + 0 * y, 31, 41))
    assert len(calls) == 4
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".tif"] * 4


def test_a_computation_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    def broken(*given, **options):
        raise RuntimeError("power cut")

    monkeypatch.setattr(elevation_module, "elevation_features", broken)
    with pytest.raises(RuntimeError, match="power cut"):
        model(tmp_path, heights(lambda x, y: x))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_source_is_picklable_and_can_be_moved_to_another_grid(tmp_path):
    source = model(tmp_path, heights(lambda x, y: 20 * np.sin(x / 100)))
    whole = source.read(0, 0, *IMAGE.shape)
    assert (pickle.loads(pickle.dumps(source)).read(0, 0, *IMAGE.shape) == whole).all()
    part = source.on(IMAGE.window(20, 30, 40, 50))
    assert part.read(0, 0, 40, 50) == pytest.approx(whole[:, 20:60, 30:80], abs=1e-5)
    assert (source.read(0, 0, *IMAGE.shape) == whole).all()


def test_an_overview_is_small(tmp_path):
    source = model(tmp_path, heights(lambda x, y: 0.3 * x))
    found = source.overview(30)
    assert found.shape == (4, 24, 30)
    assert (found[3] == 1).all()
