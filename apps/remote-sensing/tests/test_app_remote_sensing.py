"""From rasters and polygons to a map and back: every verb on a tiny terrain, and what it leaves on disk."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import geopandas
import numpy as np
import pytest
import rasterio
import torch

from mc_core.files import read_jsonl
from mc_remote_sensing.model import load_segmentation_model


def test_train_says_what_it_found_and_leaves_a_whole_run(finished):
    run, done = finished
    found = done.json
    assert found["metric"] == "iou"
    assert found["modality"] == "fused"
    assert found["steps"] == 12
    assert set(found["baselines"]) == {"pixel_logistic"}
    assert found["trained"] == pytest.approx(found["test"]["trained"]["iou"], abs=1e-6)
    written = json.loads((run / "result.json").read_text())
    assert {name: value for name, value in found.items() if name != "report"} == written
    assert [record["step"] for record in read_jsonl(run / "metrics.jsonl")][-1] == 12
    for name in (
        "recipe.yaml",
        "blocks.gpkg",
        "report.html",
        "map.png",
        "scene.png",
        "precision-recall.png",
        "data.json",
    ):
        assert (run / name).stat().st_size > 0, name
    page = (run / "report.html").read_text()
    assert "test part: pixel logistic" in page
    assert "{&#x27;" not in page  # figures, not Python
    parts = geopandas.read_file(run / "blocks.gpkg")
    assert {"train", "validation", "test"} <= set(parts["part"])
    with rasterio.open(run / "map.tif") as file:
        assert parts.crs == file.crs


def test_the_model_has_the_threshold_of_the_validation_blocks_and_the_statistics_of_the_bands(finished, terrain):
    run, done = finished
    model = load_segmentation_model(run)
    assert model.threshold == pytest.approx(done.json["threshold"])
    assert model.config.bands.names == ("blue", "green", "red", "nir")
    with rasterio.open(terrain.image) as file:
        values = file.read(4, masked=True).compressed()
    assert abs(model.config.bands.mean[3] - values.mean()) < 3 * values.std()
    assert model.config.resolution_m == 2.0


def test_the_same_command_again_trains_nothing_more(finished, labelled, command, tiny):
    run, done = finished
    before = (run / "model" / "model.safetensors").read_bytes()
    again = command("train", *labelled, *tiny(), "--out", run, "--json").json
    assert (run / "model" / "model.safetensors").read_bytes() == before
    assert again["test"] == done.json["test"]
    refused = command("train", *labelled, *tiny("--fit.lr", "0.5"), "--out", run)
    assert refused.code == 2
    assert "lr" in refused.err


@pytest.fixture(scope="module")
def mapped(finished, scene, command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    options = ["--out", folder / "map.tif", "--polygons", folder / "map.gpkg", "--threshold", "0.3", "--json"]
    return folder, command("predict", finished[0], *scene, *options)


def test_a_map_opens_in_rasterio_on_the_grid_of_the_image_with_tags(mapped, terrain):
    folder, done = mapped
    found = done.json
    with rasterio.open(folder / "map.tif") as file, rasterio.open(terrain.image) as image:
        assert file.crs == image.crs
        assert file.bounds == image.bounds
        assert file.shape == image.shape
        assert file.nodata == 255
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert float(file.tags()["MC_THRESHOLD"]) == pytest.approx(0.3)
        known = image.dataset_mask() > 0
        probability = file.read(1)
    assert (probability[~known] == 255).all()
    assert (probability[known] <= 200).all()
    with rasterio.open(folder / "map-classes.tif") as file:
        classes = file.read(1)
    assert set(np.unique(classes)) <= {0, 1, 255}
    assert found["target_share"] == pytest.approx((classes == 1).sum() / known.sum(), abs=1e-5)


def test_polygons_open_in_geopandas_where_the_map_is(mapped, terrain):
    folder, done = mapped
    found = geopandas.read_file(folder / "map.gpkg")
    assert len(found) == done.json["polygon_count"]
    with rasterio.open(terrain.image) as image:
        assert found.crs == image.crs
        bounds, transform = image.bounds, image.transform
    with rasterio.open(folder / "map-classes.tif") as file:
        pixels = int((file.read(1) == 1).sum())
    if not len(found):
        assert pixels == 0
        return
    assert found.total_bounds[0] >= bounds.left - 1
    assert found.total_bounds[3] <= bounds.top + 1
    assert found["area_m2"].sum() == pytest.approx(pixels * abs(transform.a * transform.e), rel=0.01)
    assert set(found.columns) >= {"mean_probability", "max_probability", "mean_slope", "length_m", "width_m"}


def test_no_polygon_reaches_an_impossible_area_and_the_layer_is_valid_and_empty(finished, scene, command, tmp_path):
    options = ["--out", tmp_path / "m.tif", "--polygons", tmp_path / "m.gpkg", "--min-area", "1e9", "--json"]
    assert command("predict", finished[0], *scene, *options).json["polygon_count"] == 0
    empty = geopandas.read_file(tmp_path / "m.gpkg")
    assert len(empty) == 0
    assert empty.crs.to_epsg() == 32632


def test_a_fused_model_maps_without_elevation_too(finished, terrain, command, tmp_path):
    done = command("predict", finished[0], "--image", terrain.image, "--out", tmp_path / "m.tif", "--json")
    assert done.json["valid_share"] > 0.5


def test_evaluate_repeats_what_training_found_and_sets_baselines_beside(finished, command):
    run, done = finished
    found = command("evaluate", run, "--json").json
    assert found["trained"] == pytest.approx(done.json["trained"], abs=1e-6)
    share = found["scores"]["trained"]["target_pixels"] / found["scores"]["trained"]["labelled_pixels"]
    assert found["baselines"]["map_everything"] == pytest.approx(share)
    assert found["baselines"]["pixel_logistic"] == pytest.approx(done.json["baselines"]["pixel_logistic"], abs=1e-6)


def test_evaluate_on_another_scene_counts_all_of_it(finished, labelled, command):
    found = command("evaluate", finished[0], *labelled, "--json").json
    assert found["part"] == "all"
    assert (
        found["scores"]["trained"]["labelled_pixels"]
        > command("evaluate", finished[0], "--json").json["scores"]["trained"]["labelled_pixels"]
    )


def test_align_draws_and_says_nothing_bad(labelled, command, tmp_path):
    found = command("align", *labelled, "--out", tmp_path / "a.png", "--json").json
    (record,) = found["scenes"]
    assert not [f for f in record["findings"] if f["level"] == "error"]
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_embed_writes_a_row_for_each_square_with_coordinates(finished, scene, terrain, command, tmp_path):
    found = command("embed", finished[0], *scene, "--tile", "64", "--out", tmp_path / "e.npz", "--json").json
    with np.load(tmp_path / "e.npz") as rows, rasterio.open(terrain.image) as image:
        assert rows["features"].shape == (found["rows"], found["dim"])
        assert len(np.unique(rows["features"], axis=0)) == found["rows"]
        first = image.xy(rows["row"][0] + 31.5, rows["col"][0] + 31.5)
        assert (rows["x"][0], rows["y"][0]) == pytest.approx(first)


def test_export_to_onnx_computes_the_same(finished, command, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    found = command("export", finished[0], "--out", tmp_path / "m.onnx", "--tile", "64", "--json").json
    assert found["max_abs_difference"] < 1e-4
    model = load_segmentation_model(finished[0]).eval()
    image = torch.rand(3, 4, 64, 64) * 1000
    elevation = torch.rand(3, 4, 64, 64)
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    names = [given.name for given in session.get_inputs()]
    (there,) = session.run(None, dict(zip(names, (image.numpy(), elevation.numpy()), strict=True)))
    with torch.no_grad():
        np.testing.assert_allclose(there, model(image, elevation).numpy(), atol=1e-4)


def test_export_to_timm_of_our_own_encoder_is_refused_in_one_line(finished, command):
    done = command("export", finished[0], "--format", "timm")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1


def test_pretrained_encoders_are_where_training_starts(scene, labelled, command, tiny, tmp_path):
    options = ["--recipe", "scene-contrast-laptop", "--tiles.tile", "48", "--augment.size", "32", "--fit.steps", "4"]
    options += [
        "--fit.batch-size",
        "8",
        "--fit.workers",
        "0",
        "--method.queue-size",
        "16",
        "--out",
        tmp_path / "p",
        "--json",
    ]
    found = command("pretrain", *scene, *options).json
    assert found["metric"] == "other_view_recall_at_1"
    assert set(found["baselines"]) == {"random_encoder", "mean_of_inputs"}
    run = tmp_path / "run"
    started = command(
        "train",
        *labelled,
        *tiny("--fit.steps", "1", "--fit.lr", "1e-12"),
        "--pretrained",
        tmp_path / "p",
        "--out",
        run,
        "--json",
    )
    assert started.code == 0, started.err
    from mc_remote_sensing.pretrained import load_scene_encoders

    given = load_scene_encoders(tmp_path / "p").encoder("image").state_dict()
    used = load_segmentation_model(run).network.encoder("image").state_dict()
    weights = [name for name, value in given.items() if value.is_floating_point() and "running" not in name]
    assert weights
    for name in weights:
        torch.testing.assert_close(used[name], given[name], atol=1e-6, rtol=0)


def test_ablate_keeps_finished_rows(labelled, command, tmp_path):
    options = ["--steps", "2", "--seeds", "1", "--only", "fused, momentum", "--only", "image, cross-entropy"]
    options += ["--tiles.tile", "32", "--split.block-m", "128"]
    first = command("ablate", *labelled, *options, "--out", tmp_path, "--json")
    assert set(first.json["rows"]) == {"fused, momentum", "image, cross-entropy"}
    start = time.perf_counter()
    again = command("ablate", *labelled, *options, "--out", tmp_path, "--json").json
    assert again["each"] == first.json["each"]
    assert time.perf_counter() - start < first.json["seconds"] + 60
    assert (tmp_path / "fused-momentum-0" / "row.json").exists()


def test_tiles_with_masks_train_an_image_model(command, tiny, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    data = tmp_path / "tiles"
    data.mkdir()
    for i in range(12):
        mask = np.zeros((40, 40), np.uint8)
        mask[8:24, 10:30] = 1
        pixels = rng.integers(60, 100, (40, 40, 3)) + 80 * mask[..., None]
        Image.fromarray(pixels.astype(np.uint8)).save(data / f"{i:02d}.jpg", quality=95)
        Image.fromarray(mask).save(data / f"{i:02d}.seg.png")
    found = command("train", data, *tiny("--fit.steps", "40"), "--out", tmp_path / "run", "--json").json
    assert found["modality"] == "image"
    assert found["trained"] > found["test"]["trained"]["target_pixels"] / found["test"]["trained"]["labelled_pixels"]
    assert command("evaluate", tmp_path / "run", "--json").json["trained"] == pytest.approx(found["trained"], abs=1e-6)


def test_elevation_alone(terrain, command, tiny, tmp_path):
    options = ["--dem", terrain.elevation, "--labels", terrain.labels]
    done = command("train", *options, *tiny("--tiles.tile", "16"), "--out", tmp_path / "run", "--json")
    assert done.json["modality"] == "elevation"
    mapped = command("predict", tmp_path / "run", "--dem", terrain.elevation, "--out", tmp_path / "m.tif", "--json")
    assert mapped.json["pixels"] > 0
    with rasterio.open(tmp_path / "m.tif") as file, rasterio.open(terrain.elevation) as dem:
        assert file.bounds == dem.bounds


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_loads_no_torch(arguments):
    lines = ["import sys", f"sys.argv[1:] = {arguments!r}", "from mc_remote_sensing_app import main", "try: main()"]
    lines += ["except SystemExit: pass", "assert not {'torch', 'rasterio', 'geopandas'} & set(sys.modules)"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--image" in done.stdout or "predict" in done.stdout


def test_the_recipe_is_printed_with_all_options_in_place(command):
    done = command("train", "--recipe", "hpcl-net", "--tiles.tile", "256", "--method.weight", "0.2", "--print-recipe")
    assert done.code == 0, done.err
    assert "tile: 256" in done.out
    assert "weight: 0.2" in done.out
