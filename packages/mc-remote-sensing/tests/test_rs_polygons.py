"""Polygons of a map: the same for every height of strip, measured in metres, a valid layer even when empty."""

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import Affine
from rasterio.features import geometry_mask
from scipy.ndimage import label

from mc_core.errors import ConfigError, DataError
from mc_remote_sensing.inference.polygons import ATTRIBUTES, write_polygons

UTM = "EPSG:32632"
NORTH_UP = Affine(2.0, 0.0, 600_000.0, 0.0, -2.0, 5_200_000.0)


def write_map(folder, classes, probability=None, *, crs=UTM, transform=NORTH_UP):
    """A class raster and a probability raster of 200 steps; 255 in ``classes`` is nodata."""
    probability = np.where(classes == 1, 180, 20).astype(np.uint8) if probability is None else probability
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 255, "crs": crs, "transform": transform}
    paths = []
    for name, values in (("classes", classes), ("probability", probability)):
        path = folder / f"{name}.tif"
        with rasterio.open(path, "w", height=values.shape[0], width=values.shape[1], **profile) as file:
            file.write(values.astype(np.uint8), 1)
            if name == "probability":
                file.scales = (1 / 200,)
        paths.append(path)
    return paths[::-1]


def polygons(folder, classes, probability=None, *, crs=UTM, transform=NORTH_UP, **options):
    paths = write_map(folder, classes, probability, crs=crs, transform=transform)
    summary = write_polygons(*paths, folder / "map.gpkg", **options)
    frame = geopandas.read_file(summary.path)
    assert summary.count == len(frame)
    return frame, summary


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(0, 10_000), st.sampled_from([0.2, 0.4, 0.5, 0.6]))
def test_strips_of_every_height_give_the_objects_of_the_whole(tmp_path_factory, strip, seed, density):
    folder = tmp_path_factory.mktemp("strips")
    rng = np.random.default_rng(seed)
    classes = (rng.random((37, 29)) < density).astype(np.uint8)
    probability = rng.integers(0, 201, classes.shape).astype(np.uint8)
    frame, _ = polygons(folder, classes, probability, strip=strip, simplify_px=0)
    labels, count = label(classes, np.ones((3, 3)))
    assert len(frame) == count
    expected = {}
    for k in range(1, count + 1):
        inside = labels == k
        expected[inside.tobytes()] = probability[inside].mean() / 200, probability[inside].max() / 200
    for _, row in frame.iterrows():
        mask = geometry_mask([row.geometry], classes.shape, NORTH_UP, invert=True)
        assert row.geometry.area == pytest.approx(mask.sum() * 4.0)
        mean, highest = expected.pop(mask.tobytes())
        assert row.mean_probability == pytest.approx(mean)
        assert row.max_probability == pytest.approx(highest)
        assert row.geometry.is_valid
    assert not expected


def test_pixels_that_touch_at_a_corner_are_one_object_also_across_a_seam(tmp_path):
    classes = np.zeros((8, 8), np.uint8)
    for row, col in ((1, 1), (2, 2), (3, 3), (4, 2), (5, 1)):
        classes[row, col] = 1
    for strip in (1, 2, 3, 4, 8):
        frame, _ = polygons(tmp_path, classes, strip=strip, simplify_px=0)
        assert len(frame) == 1
        assert frame.geometry[0].area == 20.0
        assert frame.geometry[0].is_valid


def test_an_object_that_joins_only_further_down_is_one(tmp_path):
    classes = np.zeros((12, 20), np.uint8)
    classes[1:10, [2, 6, 10, 14]] = 1
    classes[10, 2:15] = 1
    frame, _ = polygons(tmp_path, classes, strip=3)
    assert len(frame) == 1
    assert frame.area_m2[0] == pytest.approx(4.0 * classes.sum(), rel=2e-3)


def test_attributes_of_a_rectangle(tmp_path):
    classes = np.zeros((60, 60), np.uint8)
    classes[10:14, 20:40] = 1
    classes[30:32, 5:7] = 1
    classes[50, 50] = 255
    probability = np.full(classes.shape, 20, np.uint8)
    probability[10:14, 20:40] = 160
    probability[12, 30] = 198
    probability[50, 50] = 255

    class Slope:
        grid = None

        def read(self, row, col, height, width):
            found = np.zeros((4, height, width), np.float32)
            found[1] = (np.arange(row, row + height) / 45)[:, None]  # degrees equal the row
            found[3] = 1
            found[:, max(0, 13 - row) : max(0, 14 - row)] = 0  # row 13 is not known
            return found

    for strip in (5, 12, 100):
        frame, summary = polygons(tmp_path, classes, probability, strip=strip, elevation=Slope())
        assert list(frame.columns) == [*ATTRIBUTES, "geometry"]
        first, second = frame.iloc[0], frame.iloc[1]
        assert first.area_m2 == pytest.approx(80 * 4.0, rel=2e-3)
        assert first.mean_probability == pytest.approx((79 * 0.8 + 0.99) / 80)
        assert first.max_probability == pytest.approx(0.99)
        assert first.mean_slope == pytest.approx(11.0, abs=1e-4)
        assert (first.length_m, first.width_m) == pytest.approx((40.0, 8.0), rel=2e-3)
        assert second.mean_slope == pytest.approx(30.5, abs=1e-4)
        assert second.area_m2 == pytest.approx(16.0, rel=2e-3)
        assert summary.area_m2 == pytest.approx(first.area_m2 + second.area_m2)
        assert first.geometry.bounds == (600_040.0, 5_199_972.0, 600_080.0, 5_199_980.0)
    assert geopandas.read_file(tmp_path / "map.gpkg").crs.to_epsg() == 32632


def test_without_elevation_the_slope_is_empty(tmp_path):
    frame, _ = polygons(tmp_path, np.ones((4, 4), np.uint8))
    assert frame.mean_slope.isna().all()


def test_a_slanting_object_has_its_own_length_and_width(tmp_path):
    rows, columns = np.mgrid[:80, :80]
    along, across = (rows + columns - 80) / np.sqrt(2), (rows - columns) / np.sqrt(2)
    frame, _ = polygons(tmp_path, ((np.abs(along) < 25) & (np.abs(across) < 8)).astype(np.uint8))
    assert (frame.length_m[0], frame.width_m[0]) == pytest.approx((100.0, 32.0), abs=2.9)  # corners of pixels stick out


def test_areas_are_true_where_the_map_is_in_degrees(tmp_path):
    classes = np.zeros((50, 50), np.uint8)
    classes[10:30, 15:45] = 1
    transform = Affine(0.0001, 0.0, 10.0, 0.0, -0.0001, 60.0)
    frame, _ = polygons(tmp_path, classes, crs="EPSG:4326", transform=transform)
    box = shapely.box(10.0015, 60 - 0.003, 10.0045, 60 - 0.001)
    true_area = abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(box)[0])
    assert frame.area_m2[0] == pytest.approx(true_area, rel=1e-4)
    assert frame.crs.to_epsg() == 4326
    assert frame.length_m[0] == pytest.approx(20 * 11.14, rel=0.01)  # 0.002° of latitude


def test_areas_are_of_the_ground_not_of_the_projection(tmp_path):
    classes = np.ones((20, 20), np.uint8)
    frame, _ = polygons(tmp_path, classes, transform=Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_200_000.0))
    assert frame.area_m2[0] == pytest.approx(40_000 / 0.9996**2, rel=1e-4)  # scale of UTM on its central meridian


def test_holes_stay_holes(tmp_path):
    classes = np.zeros((20, 20), np.uint8)
    classes[2:18, 2:18] = 1
    classes[6:13, 6:13] = 0
    for strip in (4, 20):
        frame, _ = polygons(tmp_path, classes, strip=strip)
        assert frame.geometry[0].area == pytest.approx(4.0 * (256 - 49))
        assert sum(len(part.interiors) for part in frame.geometry[0].geoms) == 1


@pytest.mark.parametrize("strip", [3, 7, 64])
def test_small_objects_are_dropped_in_square_metres(tmp_path, strip):
    classes = np.zeros((40, 40), np.uint8)
    classes[1, 1] = classes[6, 30] = 1
    classes[10:13, 10:13] = 1
    classes[20:26, 20:22] = 1
    frame, summary = polygons(tmp_path, classes, strip=strip, min_area_m2=40.0)
    assert (len(frame), summary.dropped) == (1, 3)
    assert frame.area_m2[0] == pytest.approx(48.0, rel=2e-3)


def test_outlines_move_by_half_a_pixel_at_most(tmp_path):
    rows, columns = np.mgrid[:90, :90]
    classes = ((rows - 45) ** 2 + (columns - 40) ** 2 < 30**2).astype(np.uint8)
    exact, _ = polygons(tmp_path, classes, simplify_px=0)
    simple, _ = polygons(tmp_path, classes)
    assert shapely.hausdorff_distance(exact.geometry[0], simple.geometry[0]) <= 1.0 + 1e-9
    assert len(shapely.get_coordinates(simple.geometry[0])) < 0.7 * len(shapely.get_coordinates(exact.geometry[0]))
    assert simple.geometry.is_valid.all()
    assert simple.area_m2[0] == exact.area_m2[0]


@pytest.mark.parametrize("crs", [UTM, "+proj=laea +lat_0=46 +lon_0=9.3 +datum=WGS84 +units=m"])
def test_no_object_gives_a_valid_empty_layer(tmp_path, crs):
    frame, summary = polygons(tmp_path, np.zeros((9, 9), np.uint8), crs=crs)
    assert (summary.count, summary.dropped, summary.area_m2) == (0, 0, 0.0)
    assert list(frame.columns) == [*ATTRIBUTES, "geometry"]
    assert frame.crs == pyproj.CRS(crs)
    with rasterio.open(tmp_path / "classes.tif") as file:
        assert frame.crs == pyproj.CRS(file.crs.to_wkt())
    import pyogrio

    info = pyogrio.read_info(tmp_path / "map.gpkg")
    assert (info["layer_name"], info["geometry_type"], info["features"]) == ("landslides", "MultiPolygon", 0)


def test_a_coordinate_system_without_a_code_is_kept(tmp_path):
    frame, _ = polygons(tmp_path, np.ones((9, 9), np.uint8), crs="+proj=laea +lat_0=46 +lon_0=9.3 +units=m")
    assert frame.crs.to_epsg() is None
    assert frame.crs.name == pyproj.CRS("+proj=laea +lat_0=46 +lon_0=9.3 +units=m").name
    assert len(frame) == 1


def test_the_same_map_gives_the_same_bytes_and_progress_is_told(tmp_path):
    classes = (np.random.default_rng(0).random((30, 30)) < 0.3).astype(np.uint8)
    paths = write_map(tmp_path, classes)
    told = []
    one = write_polygons(*paths, tmp_path / "one.gpkg", strip=8, progress=lambda *rows: told.append(rows))
    two = write_polygons(*paths, tmp_path / "two.gpkg", strip=8)
    assert one.path.read_bytes() == two.path.read_bytes()
    assert told == [(8, 30), (16, 30), (24, 30), (30, 30)]


def test_what_cannot_work_is_refused(tmp_path):
    probability, classes = write_map(tmp_path, np.ones((9, 9), np.uint8))
    with pytest.raises(ConfigError, match="simplify_px 1: an outline may move by half a pixel"):
        write_polygons(probability, classes, tmp_path / "a.gpkg", simplify_px=1)
    with pytest.raises(ConfigError, match="min_area_m2 -1"):
        write_polygons(probability, classes, tmp_path / "a.gpkg", min_area_m2=-1)
    with pytest.raises(ConfigError, match=r"a.geojson: .* ends in .gpkg"):
        write_polygons(probability, classes, tmp_path / "a.geojson")
    with pytest.raises(DataError, match="missing.tif: does not exist"):
        write_polygons(probability, tmp_path / "missing.tif", tmp_path / "a.gpkg")
    other = tmp_path / "other"
    other.mkdir()
    elsewhere, _ = write_map(other, np.ones((9, 8), np.uint8))
    with pytest.raises(DataError, match="lies on another grid than"):
        write_polygons(elsewhere, classes, tmp_path / "a.gpkg")
    assert not list(tmp_path.glob("*.gpkg"))
