"""What cannot work ends with exit code 2 and one line that says what to do, and leaves nothing half-written."""

from __future__ import annotations

import re
import shutil

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin


def refused(done, *parts):
    """Exit code 2, one line of error, and all ``parts`` (patterns) in it."""
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    line = done.err.splitlines()[-1]
    assert line.startswith("error: ")
    for part in parts:
        assert re.search(part, line), f"{part!r} is not in {line!r}"
    return line


def rewrite(source, target, keep_units=True, **profile):
    """The same raster with another header."""
    with rasterio.open(source) as file:
        values, found = file.read(), file.profile | profile
        names, units = file.descriptions, file.units
    with rasterio.open(target, "w", **found) as file:
        file.write(values)
        file.descriptions = names
        if keep_units:
            file.units = units
    return target


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--recipe", "hpcl-nett"], [r"'hpcl-nett'", r"hpcl-net\b"]),
        (["--recipe", "scene-contrast"], [r"scene-contrast", r"pretrain"]),
        (["--nope"], [r"--nope", r"mc-remote-sensing train --help"]),
        (["--fit.lr", "-1"], [r"--fit\.lr", r"greater than 0"]),
        (["--labels", "x.gpkg"], [r"--labels x\.gpkg", r"--image"]),
        (["--method.network.modality", "sound"], [r"modality", r"sound"]),
        (["--image", "missing.tif"], [r"missing\.tif"]),
    ],
)
def test_options_that_cannot_work(command, tmp_path, arguments, parts):
    run = tmp_path / "run"
    refused(command("train", *arguments, "--out", run), *parts)
    assert not run.exists()


def test_a_raster_without_coordinate_system_is_asked_for_it(command, terrain, tiny, tmp_path):
    bare = rewrite(terrain.image, tmp_path / "bare.tif", crs=None)
    options = ["--image", bare, "--labels", terrain.labels]
    refused(command("train", *options, *tiny(), "--out", tmp_path / "run"), r"bare\.tif", r"--assume-crs")
    assert not (tmp_path / "run").exists()
    done = command("align", *options, "--assume-crs", "EPSG:32632", "--out", tmp_path / "a.png")
    assert done.code == 0, done.err


def test_rasters_that_do_not_overlap(command, terrain, tiny, tmp_path):
    far = rewrite(terrain.elevation, tmp_path / "far.tif", transform=from_origin(100_000, 5_000_000, 5, 5))
    options = ["--image", terrain.image, "--dem", far, "--labels", terrain.labels]
    refused(command("train", *options, *tiny(), "--out", tmp_path / "run"), r"far\.tif", r"overlap")
    assert not (tmp_path / "run").exists()


def test_labels_elsewhere_or_none_at_all(command, terrain, scene, tiny, tmp_path):
    frame = geopandas.read_file(terrain.labels)
    moved = frame.set_geometry(frame.geometry.translate(90_000, 0))
    moved.to_file(tmp_path / "moved.gpkg")
    frame.iloc[:0].to_file(tmp_path / "empty.gpkg")
    for name in ("moved", "empty"):
        options = [*scene, "--labels", tmp_path / f"{name}.gpkg", *tiny(), "--out", tmp_path / "run"]
        refused(command("train", *options), rf"{name}\.gpkg")


def test_a_part_without_target_is_said_before_training(command, terrain, scene, tiny, tmp_path):
    frame = geopandas.read_file(terrain.labels)
    frame.iloc[:1].to_file(tmp_path / "one.gpkg")
    options = [*scene, "--labels", tmp_path / "one.gpkg", *tiny(), "--out", tmp_path / "run"]
    refused(command("train", *options), r"validation part holds no target|train part holds no target", r"--split")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_polygons_in_another_system_and_self_intersecting_ones_are_mended(command, terrain, scene, tmp_path):
    frame = geopandas.read_file(terrain.labels).to_crs(4326)
    x, y = frame.geometry.iloc[0].centroid.coords[0]
    bow = shapely.Polygon([(x, y), (x + 1e-4, y + 1e-4), (x + 1e-4, y), (x, y + 1e-4)])
    frame.geometry = [bow, *frame.geometry.iloc[1:]]
    frame.to_file(tmp_path / "degrees.geojson")
    done = command("align", *scene, "--labels", tmp_path / "degrees.geojson", "--out", tmp_path / "a.png", "--json")
    (record,) = done.json["scenes"]
    assert not [f for f in record["findings"] if f["level"] == "error"]


def test_more_bands_than_names(command, terrain, tiny, tmp_path):
    options = ["--image", terrain.image, "--band-names", "red,green", "--labels", terrain.labels, *tiny()]
    refused(command("train", *options, "--out", tmp_path / "run"), r"4 bands|4", r"red, green|2")


def test_a_model_is_not_run_on_other_bands(command, finished, terrain, tmp_path):
    options = ["--image", terrain.image, "--band-names", "a,b,c,d", "--out", tmp_path / "m.tif"]
    refused(command("predict", finished[0], *options), r"no band 'blue'", r"blue, green, red, nir", r"--band-names")
    refused(
        command("embed", finished[0], *options[:-2], "--out", tmp_path / "e.npz"), r"no band 'blue'", r"--band-names"
    )
    refused(
        command("predict", finished[0], *options[:2], "--bands", "1,2", *options[-2:]), r"2 bands", r"4: blue, green"
    )
    assert not (tmp_path / "m.tif").exists()


def test_a_truncated_geotiff(command, terrain, tiny, tmp_path):
    cut = tmp_path / "cut.tif"
    cut.write_bytes(terrain.image.read_bytes()[: terrain.image.stat().st_size // 2])
    refused(
        command("train", "--image", cut, "--labels", terrain.labels, *tiny(), "--out", tmp_path / "run"), r"cut\.tif"
    )
    assert not (tmp_path / "run").exists()


def test_elevation_in_an_unknown_unit_is_asked_for(command, terrain, tmp_path):
    bare = rewrite(terrain.elevation, tmp_path / "bare.tif", keep_units=False)
    options = ["--image", terrain.image, "--dem", bare, "--out", tmp_path / "a.png"]
    refused(command("align", *options), r"bare\.tif", r"metres or feet", r"--vertical-unit")
    assert command("align", *options, "--vertical-unit", "foot").code == 0


def test_a_coarse_elevation_model_is_warned_of(command, terrain, tmp_path):
    with rasterio.open(terrain.elevation) as file:
        bounds, crs = file.bounds, file.crs
    coarse = tmp_path / "coarse.tif"
    profile = {"driver": "GTiff", "height": 20, "width": 20, "count": 1, "dtype": "float32", "crs": crs}
    side = (bounds.right - bounds.left) / 20
    with rasterio.open(coarse, "w", **profile, transform=from_origin(bounds.left, bounds.top, side, side)) as file:
        file.write(np.random.default_rng(0).normal(1000, 50, (1, 20, 20)).astype(np.float32))
        file.units = ["metre"]
    done = command("align", "--image", terrain.image, "--dem", coarse, "--out", tmp_path / "a.png", "--json")
    (record,) = done.json["scenes"]
    assert [f for f in record["findings"] if f["level"] == "warning" and "coarse" in f["message"]]


def test_a_run_that_is_none_or_not_finished(command, finished, scene, tmp_path):
    out = ["--out", tmp_path / "m.tif"]
    refused(command("predict", tmp_path / "nope", *scene, *out), r"nope")
    (tmp_path / "empty").mkdir()
    refused(command("predict", tmp_path / "empty", *scene, *out), r"empty")
    half = tmp_path / "half"
    shutil.copytree(finished[0], half)
    shutil.rmtree(half / "model")
    refused(command("predict", half, *scene, *out), r"half", r"train")
    assert not (tmp_path / "m.tif").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--out", "m.png"], [r"m\.png", r"\.tif"]),
        (["--out", "m.tif", "--polygons", "m.shp"], [r"m\.shp", r"\.gpkg"]),
        (["--out", "m.tif", "--threshold", "1.5"], [r"1\.5"]),
        (["--out", "m.tif", "--tile", "100"], [r"100", r"stride"]),
        (["--out", "m.tif", "--min-area", "-3"], [r"--min-area -3"]),
    ],
)
def test_predict_options_that_cannot_work(command, finished, scene, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    refused(command("predict", finished[0], *scene, *arguments), *parts)
    assert not list(tmp_path.iterdir())


def test_tiles_and_rasters_together(command, scene, tmp_path):
    refused(command("train", tmp_path, *scene), r"not both")
    refused(command("evaluate", tmp_path, tmp_path, *scene), r"not both|nothing|neither")
