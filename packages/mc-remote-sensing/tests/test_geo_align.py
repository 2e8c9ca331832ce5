"""Scenes from files, and what ``align`` says about files that do not fit."""

from __future__ import annotations

import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import shapely
from PIL import Image
from rasterio import Affine

from mc_core.errors import ConfigError, DataError
from mc_remote_sensing.data import alignment_figure, check_alignment, open_scene
from mc_remote_sensing.data.alignment_picture import composite

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_geo.py"))))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MC_CACHE", str(tmp_path / "cache"))


def plane(height: int = 40, width: int = 50) -> np.ndarray:
    return (100 + 3 * np.mgrid[:height, :width][1]).astype(np.float32)


@pytest.fixture
def files(tmp_path):
    return {
        "image": write.raster(tmp_path / "image.tif", write.bands(), names=("red", "green", "blue")),
        "elevation": write.raster(tmp_path / "dem.tif", plane(), transform=write.place(30)),
        "labels": write.polygons(tmp_path / "slides.gpkg", [write.box(10, 20, 30, 40)]),
        "extent": write.polygons(tmp_path / "extent.gpkg", [write.box(0, 0, 80, 100)]),
        "vertical_unit": "metre",
    }


def codes(report) -> dict[str, str]:
    return {finding.code: finding.level for finding in report.findings}


def message(report, code) -> str:
    return next(finding.message for finding in report.findings if finding.code == code)


def test_a_scene_reads_everything_on_one_grid(files):
    scene = open_scene(**files)
    found = pickle.loads(pickle.dumps(scene)).read(-2, -3, 50, 60)
    assert scene.name == "image"
    assert scene.band_names == ("red", "green", "blue")
    assert [found[k].shape for k in ("image", "image_valid", "elevation", "labels")] == [
        (3, 50, 60),
        (50, 60),
        (4, 50, 60),
        (50, 60),
    ]
    assert (found["labels"][:2] == 255).all()
    assert found["labels"][12:42, 23:].all()
    assert found["elevation"][3, 2:, 3:].all()
    assert (scene.read_valid(-2, -3, 50, 60) == found["image_valid"]).all()


def test_where_the_image_has_no_data_nothing_is_labelled(tmp_path, files):
    values = write.bands()
    values[:, 15:20, 30:40] = 0
    files["image"] = write.raster(tmp_path / "holes.tif", values, nodata=0)
    found = open_scene(**files).read(0, 0, 96, 128)
    assert (found["labels"][15:20, 30:40] == 255).all()
    assert (found["labels"][20:25, 30:40] == 1).all()


def test_a_scene_of_elevation_alone_lies_on_its_grid(tmp_path):
    z = plane()
    z[3, 4] = -9999
    path = write.raster(tmp_path / "dem.tif", z, transform=write.place(30), nodata=-9999)
    labels = write.polygons(tmp_path / "slides.gpkg", [write.box(2, 2, 6, 6, 30)])
    scene = open_scene(elevation=path, labels=labels, vertical_unit="metre")
    found = scene.read(0, 0, 40, 50)
    assert found["image"].shape == (0, 40, 50)
    assert (found["image_valid"] == (found["elevation"][3] > 0)).all()
    assert (found["labels"][2:5, 3:6] == 255).all()
    assert found["labels"][6, 6] == 1
    assert (scene.read_valid(0, 0, 40, 50) == found["image_valid"]).all()
    with pytest.raises(ConfigError, match="give an image, an elevation model or both"):
        open_scene(labels=labels)


def test_a_scene_without_labels_or_elevation(files):
    found = open_scene(files["image"]).read(0, 0, 10, 10)
    assert (found["labels"] == 255).all()
    assert (found["elevation"] == 0).all()


@pytest.mark.parametrize("what", ["elevation", "labels"])
def test_files_that_lie_elsewhere_are_refused(tmp_path, files, what):
    if what == "elevation":
        files[what] = write.raster(tmp_path / "far.tif", plane(), transform=write.place(30, west=900_000))
    else:
        files[what] = write.polygons(tmp_path / "far.gpkg", [write.box(5000, 5000, 10, 10)])
    with pytest.raises(
        DataError, match=r"far\.(tif|gpkg): (the elevation model does not overlap|none of its 1 polygons)"
    ):
        open_scene(**files)


def test_files_that_fit_give_nothing_to_remark(files):
    report = check_alignment(**files)
    assert report.findings == ()
    assert report.to_dict() == {"findings": []}


def test_errors_are_collected_not_raised(tmp_path, files):
    files["image"] = write.raster(tmp_path / "none.tif", write.bands(), crs=None)
    files["labels"] = tmp_path / "nothing.gpkg"
    files["vertical_unit"] = None
    report = check_alignment(**files)
    assert codes(report) == {"image": "error", "vertical-unit": "error", "target": "error"}
    assert "--assume-crs" in message(report, "image")
    assert "--vertical-unit" in message(report, "vertical-unit")
    assert "nothing.gpkg: does not exist" in message(report, "target")


def test_worst_first(tmp_path, files):
    files["extent"] = None
    files["labels"] = write.polygons(tmp_path / "a.gpkg", [write.box(10, 20, 30, 40), write.box(900, 900, 5, 5)])
    files["elevation"] = write.raster(tmp_path / "far.tif", plane(), transform=write.place(30, west=900_000))
    assert [finding.level for finding in check_alignment(**files).findings] == ["error", "warning", "note"]
    assert [finding.code for finding in check_alignment(**files).errors] == ["overlap"]
    assert [finding.code for finding in check_alignment(**files).warnings] == ["outside"]


def test_the_image(tmp_path, files):
    values = write.bands(3, 96, 128)
    values[:, :, :20] = 7
    values[1] = 7
    step = 1e-4
    degrees = write.raster(tmp_path / "a.tif", values, crs="EPSG:4326", transform=Affine(step, 0, 11, 0, -step, 60.0))
    report = check_alignment(degrees)
    assert codes(report) == {"degrees": "warning", "constant-band": "warning", "undeclared-nodata": "warning"}
    assert "a pixel is 5.58 × 11.1 m" in message(report, "degrees")
    assert "band B2 is 7" in message(report, "constant-band")
    assert message(report, "undeclared-nodata").endswith("looks like no data: --nodata 7")
    values[1, :, 20:] = write.bands(1, 96, 108)[0]
    told = check_alignment(write.raster(tmp_path / "d.tif", values), nodata=7)
    assert codes(told) == {"nodata": "note"}
    assert "about 16% of it has no data" in message(told, "nodata")
    empty = write.raster(tmp_path / "b.tif", np.zeros((2, 30, 30), np.uint16), nodata=0)
    assert codes(check_alignment(empty)) == {"no-valid-pixel": "error"}
    unplaced = write.raster(tmp_path / "c.tif", write.bands(), crs=None)
    assert codes(check_alignment(unplaced, assume_crs="EPSG:32632")) == {"assumed-crs": "warning"}


def test_the_elevation_beside_the_image(tmp_path, files):
    part = write.raster(tmp_path / "part.tif", plane(), transform=write.place(30, west=write.WEST + 640))
    report = check_alignment(files["image"], part, vertical_unit="metre")
    assert codes(report) == {"overlap": "warning"}
    assert "covers 50% of the image" in message(report, "overlap")
    coarse = write.raster(tmp_path / "coarse.tif", plane(12, 14), transform=write.place(100))
    report = check_alignment(files["image"], coarse, vertical_unit="metre")
    assert codes(report) == {"coarse-elevation": "warning"}
    assert "10 times as wide as a pixel of the image (100 m against 10 m)" in message(report, "coarse-elevation")
    fine = write.raster(tmp_path / "fine.tif", plane(13, 16), transform=write.place(90))
    assert codes(check_alignment(files["image"], fine, vertical_unit="metre")) == {}
    step = 3e-4
    degrees = write.raster(
        tmp_path / "deg.tif", plane(80, 90), crs="EPSG:4326", transform=Affine(step, 0, 10.31, 0, -step, 46.95)
    )
    assert codes(check_alignment(files["image"], degrees, vertical_unit="metre")) == {
        "elevation-degrees": "note",
        "elevation-crs": "note",
    }


def test_heights_that_cannot_be_metres(tmp_path, files):
    high = write.raster(tmp_path / "high.tif", plane() + 12_000, transform=write.place(30))
    assert codes(check_alignment(files["image"], high, vertical_unit="metre")) == {"heights": "warning"}
    assert codes(check_alignment(files["image"], high, vertical_unit="foot")) == {}
    z = plane()
    z[0] = -9999
    undeclared = write.raster(tmp_path / "holes.tif", z, transform=write.place(30))
    report = check_alignment(files["image"], undeclared, vertical_unit="metre")
    assert codes(report) == {"heights": "warning"}
    assert "from -9,999 to 247" in message(report, "heights")
    assert codes(check_alignment(files["image"], undeclared, vertical_unit="metre", elevation_nodata=-9999)) == {}
    unit = write.raster(tmp_path / "feet.tif", plane(), transform=write.place(30))
    with rasterio.open(unit, "r+") as file:
        file.units = ("ft",)
    assert codes(check_alignment(files["image"], unit)) == {}
    assert "says its heights are in foot, you said metre" in message(
        check_alignment(files["image"], unit, vertical_unit="metre"), "vertical-unit"
    )


def test_the_polygons(tmp_path, files):
    w, n = write.WEST, write.NORTH
    bow_tie = shapely.Polygon([(w + 100, n - 100), (w + 500, n - 500), (w + 500, n - 100), (w + 100, n - 500)])
    shapes = [bow_tie, None, write.box(500, 500, 5, 5), write.box(40, 40, 0.5, 0.5), write.box(85, 110, 9, 30)]
    files["labels"] = write.polygons(tmp_path / "a.gpkg", shapes)
    files["hard_negatives"] = write.polygons(
        tmp_path / "hard.gpkg", [write.box(20, 20, 20, 80), write.box(60, 60, 5, 5)]
    )
    report = check_alignment(**files)
    assert codes(report) == {
        "repaired": "warning",
        "empty": "warning",
        "outside": "warning",
        "tiny": "warning",
        "outside-extent": "warning",
        "contradiction": "warning",
        "cut": "note",
    }
    assert "1 of 5 target polygons intersected themselves" in message(report, "repaired")
    assert "1 of 3 polygons lie outside the surveyed extent" in message(report, "outside-extent")
    assert "hard.gpkg: 1 hard negatives overlap targets" in message(report, "contradiction")
    files["extent"] = None
    assert codes(check_alignment(**files))["no-extent"] == "note"


def test_a_mask_that_covers_a_part(tmp_path, files):
    mask = np.zeros((48, 128), np.uint8)
    mask[5:9, 5:9] = 1
    files["labels"] = write.raster(tmp_path / "mask.tif", mask)
    report = check_alignment(**files)
    assert codes(report) == {"mask-grid": "warning"}
    assert "covers 50% of it" in message(report, "mask-grid")


def test_the_picture_shows_image_relief_and_outlines(tmp_path, files):
    files["hard_negatives"] = write.polygons(tmp_path / "hard.gpkg", [write.box(60, 60, 10, 10)])
    alignment_figure(open_scene(**files), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape == (96, 128 * 2 + 12, 3)
    red = (np.abs(pixels - [255, 59, 48]).sum(axis=2) < 10)[:, :128]
    assert red[10, 20:60].all()
    assert red[10:40, 20].all()
    assert not red[15:35, 25:55].any()
    blue = np.abs(pixels - [50, 173, 230]).sum(axis=2) < 10
    assert blue[60, 60:70].all()
    assert blue[60, 128 + 12 + 60 : 128 + 12 + 70].all()
    relief = pixels[:, 140:][np.ptp(pixels[:, 140:], axis=2) == 0]
    assert len(np.unique(relief)) < 30  # one slope, one tone but for the height above the surroundings


def test_a_mask_is_dots_in_the_picture(tmp_path, files):
    mask = np.zeros((96, 128), np.uint8)
    mask[30:34, 50:60] = 1
    files["labels"] = write.raster(tmp_path / "mask.tif", mask)
    alignment_figure(open_scene(**files), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    hit = np.abs(pixels - [255, 59, 48]).sum(axis=2) < 5
    assert np.argwhere(hit[:, :128]).min(axis=0).tolist() == [30, 50]
    assert hit[:, :128].sum() == 40


def test_colours_are_of_the_named_bands():
    values = np.stack([np.full((8, 8), v, np.float32) for v in (1, 2, 3, 4)])
    values[2, :, 4:] = 9  # "red" alone has contrast
    picture = composite(values, np.ones((8, 8), bool), ("blue", "green", "Red", "nir"))
    assert (picture[..., 0] == [0] * 4 + [255] * 4).all()
    assert (picture[..., 1] == picture[0, 0, 1]).all()
    grey = composite(values[2:3], np.ones((8, 8), bool), ("B1",))
    assert (grey[..., 0] == grey[..., 2]).all()
    assert (composite(values, np.zeros((8, 8), bool), ("a", "b", "c", "d")) == 255).all()


def test_importing_the_package_loads_neither_torch_nor_rasterio():
    code = "import sys, mc_remote_sensing.data; print([m for m in ('torch', 'rasterio', 'geopandas', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_loads():
    import mc_remote_sensing.data as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))


@pytest.mark.skipif("MC_DATA" not in os.environ, reason="MC_DATA names no folder of real data")
def test_real_files():
    folder = Path(os.environ["MC_DATA"]) / "remote-sensing"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    coast = check_alignment(
        folder / "s2-coast/beaufort-west-8band.tif", labels=folder / "s2-coast/beaufort-landcover.gpkg"
    )
    assert codes(coast) == {"degrees": "warning", "undeclared-nodata": "warning", "no-extent": "note"}
    site = {
        "elevation": folder / "dem/landslide-site-pre-dem-10m.tif",
        "labels": folder / "dem/landslide-site-mask-10m.tif",
    }
    assert codes(check_alignment(**site, vertical_unit="metre")) == {"elevation": "error"}
    assert codes(check_alignment(**site, vertical_unit="metre", assume_crs="EPSG:32610")) == {"assumed-crs": "warning"}
    olinda = check_alignment(
        folder / "landsat7/landsat7-olinda.tif", folder / "dem/olinda-dem-90m.tif", vertical_unit="metre"
    )
    assert olinda.errors == ()
