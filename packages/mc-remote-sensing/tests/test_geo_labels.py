"""Labels: polygons of every format, filtered, repaired, reprojected; mask rasters; layers; windows."""

from __future__ import annotations

import os
import pickle
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import shapely
from rasterio import CRS
from rasterio.features import rasterize

from mc_core.errors import ConfigError, DataError
from mc_remote_sensing.data import LabelLayers, read_labels
from mc_remote_sensing.data.grid import Grid

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_geo.py"))))
GRID = Grid(CRS.from_epsg(32632), write.place(), 128, 96)
WHOLE = (0, 0, 96, 128)


def squares() -> list[shapely.Polygon]:
    return [write.box(10, 20, 30, 40), write.box(60, 70, 8, 8), write.box(90, 120, 20, 20)]


def truth() -> np.ndarray:
    found = np.zeros((96, 128), dtype=np.uint8)
    found[10:40, 20:60] = found[60:68, 70:78] = found[90:, 120:] = 1
    return found


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".geojson", ".fgb"])
@pytest.mark.parametrize("crs", [write.UTM, "EPSG:4326", "EPSG:3035"])
def test_every_format_in_every_system_gives_the_same_pixels(tmp_path, suffix, crs):
    frame = geopandas.GeoDataFrame(geometry=squares(), crs=write.UTM).to_crs(crs)
    frame.to_file(tmp_path / f"a{suffix}")
    layer = read_labels(tmp_path / f"a{suffix}", GRID)
    assert len(layer) == 3
    found = layer.rasterise(*WHOLE)
    differs = (found != truth()).mean()
    assert (
        differs < 0.002 if crs != write.UTM else differs == 0
    )  # a reprojected edge is no longer on the edge of a pixel


def test_a_pixel_is_inside_when_its_centre_is(tmp_path):
    small = [write.box(10.3, 10.3, 0.9, 0.9), write.box(20.6, 20.6, 0.8, 0.8), write.box(30.1, 30.1, 0.3, 0.3)]
    layer = read_labels(write.polygons(tmp_path / "a.gpkg", small), GRID)
    assert np.argwhere(layer.rasterise(*WHOLE)).tolist() == [[10, 10]]


def star(row: float, col: float, points: int = 400, seed: int = 0) -> shapely.Polygon:
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = 250 * (1 + 0.6 * rng.random(points))
    x, y = write.WEST + col * 10 + radius * np.cos(angle), write.NORTH - row * 10 + radius * np.sin(angle)
    return shapely.Polygon(np.column_stack([x, y]))


def test_windows_are_parts_of_the_whole(tmp_path):
    shapes = [star(30, 40), star(70, 90, seed=1), star(5, 120, seed=2)]
    ring = (
        shapely.Point(write.WEST + 640, write.NORTH - 480)
        .buffer(900)
        .difference(shapely.Point(600_640, 5_199_520).buffer(420))
    )
    layer = read_labels(write.polygons(tmp_path / "a.gpkg", [*shapes, ring]), GRID)
    expected = rasterize([*shapes, ring], out_shape=GRID.shape, transform=GRID.transform).astype(bool)
    assert (layer.rasterise(*WHOLE) == expected).all()
    padded = np.pad(
        rasterize([*shapes, ring], out_shape=(136, 168), transform=GRID.window(-20, -20, 1, 1).transform), 0
    )
    for row in range(-20, 100, 13):
        for col in range(-20, 130, 17):
            window = layer.rasterise(row, col, 16, 18)
            assert (window == padded[row + 20 : row + 36, col + 20 : col + 38]).all()


def test_a_layer_is_picklable(tmp_path):
    layer = read_labels(write.polygons(tmp_path / "a.gpkg", squares()), GRID)
    assert (pickle.loads(pickle.dumps(layer)).rasterise(*WHOLE) == layer.rasterise(*WHOLE)).all()


def test_rows_are_chosen_by_a_column(tmp_path):
    path = write.polygons(tmp_path / "a.gpkg", squares(), kind=["slide", "scar", "slide"], grade=[1, 2, 3])
    assert len(read_labels(path, GRID, where="kind=slide")) == 2
    assert len(read_labels(path, GRID, where="grade=1,2")) == 2
    assert (read_labels(path, GRID, where="kind=scar").rasterise(*WHOLE)[60:68, 70:78]).all()
    with pytest.raises(ConfigError, match=r"a.gpkg: has no column 'kinds'; it has kind"):
        read_labels(path, GRID, where="kinds=slide")
    with pytest.raises(ConfigError, match=r"no row has kind = slides; it has slide"):
        read_labels(path, GRID, where="kind=slides")
    with pytest.raises(ConfigError, match="give a column and a value"):
        read_labels(path, GRID, where="kind")


def test_a_layer_is_chosen_by_name(tmp_path):
    path = tmp_path / "a.gpkg"
    geopandas.GeoDataFrame(geometry=squares()[:1], crs=write.UTM).to_file(path, layer="scars")
    geopandas.GeoDataFrame(geometry=squares(), crs=write.UTM).to_file(path, layer="all", mode="a")
    assert len(read_labels(path, GRID)) == 1
    assert len(read_labels(path, GRID, layer="all")) == 3
    with pytest.raises(ConfigError, match="has no layer 'scar'; it has scars"):
        read_labels(path, GRID, layer="scar")


def test_a_self_intersecting_polygon_is_repaired_and_counted(tmp_path):
    w, n = write.WEST, write.NORTH
    bow_tie = shapely.Polygon([(w + 100, n - 100), (w + 500, n - 500), (w + 500, n - 100), (w + 100, n - 500)])
    layer = read_labels(write.polygons(tmp_path / "a.gpkg", [bow_tie, *squares()[1:]]), GRID)
    assert layer.repaired == 1
    assert shapely.is_valid(layer.geometries).all()
    found = layer.rasterise(*WHOLE)
    assert found[30, 15]
    assert found[30, 45]  # both wings
    assert not found[15, 30]
    assert found[:50, :50].sum() == pytest.approx(800, abs=45)


def test_empty_shapes_points_and_polygons_outside_are_counted(tmp_path):
    shapes = [
        squares()[0],
        shapely.Polygon(),
        None,
        shapely.Point(write.WEST + 5, write.NORTH - 5),
        write.box(500, 500, 9, 9),
    ]
    layer = read_labels(write.polygons(tmp_path / "a.gpkg", shapes), GRID)
    assert (layer.read, len(layer), layer.empty, layer.outside) == (5, 1, 3, 1)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], r"a.gpkg: has no polygons \(0 rows, 0 without geometry\)"),
        ([None, shapely.Polygon()], r"has no polygons \(2 rows, 2 without geometry\)"),
        ([shapely.Point(600_100, 5_199_900)], "holds no polygons but points or lines"),
        (
            [shapely.box(700_000, 5_100_000, 700_100, 5_100_100)],
            "none of its 1 polygons lies in the image: they cover 700000",
        ),
    ],
)
def test_a_file_without_usable_polygons(tmp_path, shapes, message):
    path = tmp_path / "a.gpkg"
    geopandas.GeoDataFrame(geometry=geopandas.GeoSeries(shapes, crs=write.UTM)).to_file(path)
    with pytest.raises(DataError, match=message):
        read_labels(path, GRID)


def test_polygons_without_coordinate_system(tmp_path):
    frame = geopandas.GeoDataFrame(geometry=squares(), crs=write.UTM)
    frame.to_file(tmp_path / "a.shp")
    (tmp_path / "a.prj").unlink()
    with pytest.raises(DataError, match=r"a.shp: has no coordinate system.*--assume-crs"):
        read_labels(tmp_path / "a.shp", GRID)
    assert (read_labels(tmp_path / "a.shp", GRID, assume_crs="EPSG:32632").rasterise(*WHOLE) == truth()).all()


def test_polygons_in_the_wrong_system_lie_elsewhere(tmp_path):
    path = write.polygons(tmp_path / "a.gpkg", squares(), crs="EPSG:32633")
    with pytest.raises(DataError, match="none of its 3 polygons lies in the image"):
        read_labels(path, GRID)


def test_files_that_are_no_labels(tmp_path):
    with pytest.raises(DataError, match="nothing.gpkg: does not exist"):
        read_labels(tmp_path / "nothing.gpkg", GRID)
    (tmp_path / "words.gpkg").write_text("only words")
    with pytest.raises(DataError, match="words.gpkg: is no vector file"):
        read_labels(tmp_path / "words.gpkg", GRID)
    path = write.polygons(tmp_path / "a.gpkg", squares())
    with pytest.raises(ConfigError, match="values are for a raster"):
        read_labels(path, GRID, values={"target": 2})
    mask = write.raster(tmp_path / "a.tif", truth())
    with pytest.raises(ConfigError, match="a column or layer is for polygons"):
        read_labels(mask, GRID, where="kind=slide")


def codes() -> np.ndarray:
    """0 unlabelled, 1 background, 2 target."""
    found = np.zeros((96, 128), dtype=np.uint8)
    found[20:60, 10:100] = 1
    found[30:40, 30:60] = 2
    return found


def test_values_say_what_a_pixel_is(tmp_path):
    mask = read_labels(write.raster(tmp_path / "a.tif", codes()), GRID, values={"background": 1, "target": 2})
    assert (LabelLayers(GRID, mask).rasterise(*WHOLE) == np.array([255, 0, 1])[codes()]).all()
    target_only = read_labels(tmp_path / "a.tif", GRID, values={"target": 2})
    assert (target_only.classes(*WHOLE) == np.array([0, 0, 1])[codes()]).all()
    plain = write.raster(tmp_path / "b.tif", np.where(codes() == 0, 255, codes() - 1).astype(np.uint8))
    assert (read_labels(plain, GRID).classes(*WHOLE) == mask.classes(*WHOLE)).all()


def test_with_the_target_alone_nodata_is_no_background(tmp_path):
    path = write.raster(tmp_path / "a.tif", codes().astype(np.int16), nodata=0)
    assert (read_labels(path, GRID, values={"target": 2}).classes(*WHOLE) == np.array([255, 0, 1])[codes()]).all()


def test_a_value_that_never_occurs(tmp_path):
    path = write.raster(tmp_path / "a.tif", (codes() // 2 * 255).astype(np.uint8))
    with pytest.raises(
        DataError, match=r"no pixel has the value 1 of the target; it holds 0, 255: .*--label-values target=…"
    ):
        read_labels(path, GRID)
    assert read_labels(path, GRID, values={"target": 255, "background": 0}).rasterise(*WHOLE).sum() == 300
    for values in ({"background": 1}, {"target": 1, "background": 1}, {"target": 1, "foo": 2}):
        with pytest.raises(ConfigError, match="give the value of target"):
            read_labels(path, GRID, values=values)
    noise = write.raster(tmp_path / "b.tif", np.random.default_rng(0).random((96, 128)).astype(np.float32))
    with pytest.raises(DataError, match="is it a raster of labels"):
        read_labels(noise, GRID)


def test_a_mask_on_another_grid_takes_the_nearest_value_and_nothing_beyond_it(tmp_path):
    transform = write.place(20, west=write.WEST + 200, north=write.NORTH - 100)
    path = write.raster(
        tmp_path / "a.tif", np.array([[0, 1], [1, 0]], np.uint8).repeat(10, 0).repeat(20, 1), transform=transform
    )
    mask = read_labels(path, GRID)
    expected = np.full((96, 128), 255, np.uint8)
    block = np.array([[0, 1], [1, 0]], np.uint8).repeat(20, 0).repeat(40, 1)
    expected[10:50, 20:100] = block
    assert (mask.classes(*WHOLE) == expected).all()
    assert (mask.classes(25, 50, 20, 20) == expected[25:45, 50:70]).all()
    beyond = mask.classes(-5, -5, 30, 30)
    assert (beyond[5:, 5:] == expected[:25, :25]).all()
    assert (beyond[:5] == 255).all()
    with pytest.raises(DataError, match="the labels do not overlap the image"):
        read_labels(write.raster(tmp_path / "b.tif", codes(), transform=write.place(west=900_000)), GRID)


@pytest.fixture
def layers(tmp_path):
    def read(name, role, *shapes):
        return read_labels(write.polygons(tmp_path / f"{name}.gpkg", list(shapes)), GRID, role=role)

    return LabelLayers(
        GRID,
        read("target", "target", write.box(10, 10, 20, 20)),
        extent=read("extent", "extent", write.box(0, 0, 60, 60)),
        uncertain=read("uncertain", "uncertain", write.box(25, 25, 10, 10)),
        hard_negatives=read("hard", "hard_negative", write.box(5, 5, 10, 10), write.box(70, 70, 10, 10)),
    )


def test_each_layer_has_its_say(layers):
    found = layers.rasterise(*WHOLE)
    expected = np.zeros((96, 128), np.uint8)
    expected[10:30, 10:30] = 1
    expected[10:15, 10:15] = 255  # both target and hard negative
    expected[25:35, 25:35] = 255
    expected[60:] = expected[:, 60:] = 255
    assert (found == expected).all()
    assert (layers.rasterise(-4, -4, 20, 20)[4:, 4:] == expected[:16, :16]).all()
    assert (layers.rasterise(-4, -4, 20, 20)[:4] == 255).all()
    assert (layers.rasterise(20, 22, 9, 11) == expected[20:29, 22:33]).all()


def test_without_an_extent_all_of_the_image_was_mapped(layers):
    found = replace(layers, extent=None).rasterise(*WHOLE)
    assert (found[60:] == 0).all()
    assert (replace(layers, extent=None).rasterise(90, 120, 10, 10)[6:] == 255).all()


def test_hard_negatives_label_ground_that_a_mask_leaves_open(tmp_path, layers):
    mask = read_labels(write.raster(tmp_path / "m.tif", codes()), GRID, values={"background": 1, "target": 2})
    found = LabelLayers(GRID, mask, hard_negatives=layers.hard_negatives).rasterise(*WHOLE)
    assert (found[70:80, 70:80] == 0).all()
    assert found[85, 85] == 255


@pytest.mark.parametrize("pixels", [1, 3])
def test_a_ring_at_the_boundary_does_not_count(layers, pixels):
    ringed = LabelLayers(GRID, layers.target, boundary_ignore_px=pixels)
    expected = np.zeros((96, 128), np.uint8)
    expected[10 - pixels : 30 + pixels, 10 - pixels : 30 + pixels] = 255
    expected[10 + pixels : 30 - pixels, 10 + pixels : 30 - pixels] = 1
    assert (ringed.rasterise(*WHOLE) == expected).all()
    assert (ringed.rasterise(11, 12, 9, 9) == expected[11:20, 12:21]).all()


@pytest.mark.skipif("MC_DATA" not in os.environ, reason="MC_DATA names no folder of real data")
def test_real_labels():
    folder = Path(os.environ["MC_DATA"]) / "remote-sensing"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    from mc_remote_sensing.data import RasterSource

    coast = RasterSource(folder / "s2-coast/beaufort-west-8band.tif").grid
    cover = folder / "s2-coast/beaufort-landcover.gpkg"
    assert [len(read_labels(cover, coast, where=f"class_name={name}")) for name in ("Sand", "Forested Wetland")] == [
        4,
        5,
    ]
    hills = RasterSource(folder / "s2-landslide/chittagong-north-image.tif").grid
    slides = read_labels(
        folder / "s2-landslide/chittagong-north-labels.tif", hills, values={"background": 1, "target": 2}
    )
    labels = LabelLayers(hills, slides).rasterise(0, 0, *hills.shape)
    assert [int((labels == value).sum()) for value in (0, 1)] == [1919, 1066]
    site = folder / "dem/landslide-site-mask-10m.tif"
    with pytest.raises(DataError, match="has no coordinate system"):
        read_labels(site, hills)
