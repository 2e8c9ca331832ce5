"""From scenes to a model: what the data decides, which ground decides what, and the examples of these modules."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest
import rasterio

from mc_core.errors import ConfigError, DataError
from mc_remote_sensing.ablation import COLUMNS, MODALITIES, Row, possible_modalities, rows_of, run_row, summary
from mc_remote_sensing.data import Scene, open_scene
from mc_remote_sensing.evaluation import choose_threshold, histogram_of
from mc_remote_sensing.model import load_segmentation_model
from mc_remote_sensing.recipe import resolve_recipe
from mc_remote_sensing.terrain import write_terrain
from mc_remote_sensing.training import (
    check_modality,
    checked,
    data_fields,
    part_windows,
    split_ground,
    tile_of,
    train_segmentation,
    with_data,
)

TINY = {
    "tiles": {"tile": 32},
    "split": {"block_m": 128},
    "fit": {"steps": 4, "batch_size": 4, "workers": 0, "device": "cpu"},
    "method": {"queue_size": 16},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_terrain(tmp_path_factory.mktemp("terrain"), size_px=320, seed=1, scars=14)


@pytest.fixture(scope="module")
def scene(files, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return open_scene(files.image, files.elevation, files.labels, extent=files.extent, cache=cache)


@pytest.fixture(scope="module")
def ground(scene):
    return split_ground([scene], resolve_recipe("hpcl-net-laptop", TINY))


@pytest.mark.parametrize("name", ["evaluation", "baselines", "training", "ablation", "recipe"])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"mc_remote_sensing.{name}")).failed == 0


def test_the_data_decides_bands_resolution_and_modality(ground, files):
    fields = data_fields(ground)
    assert fields["network"] == {"modality": "fused"}
    assert fields["bands"]["names"] == ["blue", "green", "red", "nir"]
    assert fields["resolution_m"] == 2.0
    assert data_fields(ground, "elevation")["modality_dropout"] == 0.0
    with pytest.raises(ConfigError, match="sound"):
        check_modality(ground, "sound")


def test_what_a_scene_lacks_cannot_be_a_modality(scene):
    recipe = resolve_recipe("hpcl-net-laptop", TINY)
    image_only = split_ground([Scene(scene.image, None, scene.labels, "image")], recipe)
    assert possible_modalities(image_only) == ["image"]
    assert data_fields(image_only)["network"] == {"modality": "image"}
    with pytest.raises(ConfigError, match="fused needs an elevation model"):
        data_fields(image_only, "fused")


def test_statistics_come_from_training_blocks_alone(ground, files, tmp_path):
    before = data_fields(ground)["bands"]
    with rasterio.open(files.image) as file:
        values, profile = file.read(), file.profile
        names = file.descriptions
    for part in ("validation", "test"):
        for row, col, height, width in ground.blocks[0].part(part):
            values[:, row : row + height, col : col + width] = 60_000
    with rasterio.open(tmp_path / "changed.tif", "w", **profile) as file:
        file.write(values)
        file.descriptions = names
    changed = open_scene(
        tmp_path / "changed.tif", files.elevation, files.labels, extent=files.extent, cache=tmp_path / "cache"
    )
    again = data_fields(type(ground)((changed,), ground.blocks))["bands"]
    assert again == before


@pytest.fixture(scope="module")
def trained(ground, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    recipe = with_data(resolve_recipe("hpcl-net-laptop", TINY), data_fields(ground))
    return run, recipe, train_segmentation(recipe, ground, run)


def test_the_threshold_is_the_best_of_the_validation_part_and_is_saved(trained, ground):
    run, _, found = trained
    best = choose_threshold(histogram_of(part_windows(found.model, ground, "validation", device="cpu")))
    assert found.model.threshold == best
    assert load_segmentation_model(run).threshold == best
    assert found.validation.threshold == best


def test_a_finished_run_is_read_not_trained_again(trained, ground):
    run, recipe, found = trained
    again = train_segmentation(recipe, ground, run)
    for name, value in found.model.state_dict().items():
        assert (again.model.state_dict()[name] == value).all(), name
    assert again.model.threshold == found.model.threshold


def test_parts_do_not_share_a_pixel_and_windows_cover_them(ground):
    covered = np.zeros(ground.scenes[0].grid.shape, dtype=int)
    for part in ("train", "validation", "test"):
        for row, col, height, width in ground.blocks[0].part(part):
            covered[row : row + height, col : col + width] += 1
    assert covered.max() == 1


def test_a_scene_without_labels_or_a_part_without_target_is_refused(scene, ground):
    with pytest.raises(DataError, match="--labels"):
        split_ground([Scene(scene.image, scene.elevation, None, "bare")], resolve_recipe("hpcl-net-laptop", TINY))
    swapped = type(ground.blocks[0])(
        ground.blocks[0].grid,
        ground.blocks[0].buffer_px,
        tuple(("train" if part == "validation" else part, w) for part, w in ground.blocks[0].windows),
        ground.blocks[0].block_ids,
    )
    with pytest.raises(DataError, match="validation part holds no target"):
        checked(type(ground)(ground.scenes, (swapped,)))


def test_blocks_by_default_fit_a_small_scene(scene):
    recipe = resolve_recipe("hpcl-net-laptop", {**TINY, "split": {}})
    windows = split_ground([scene], recipe).blocks[0].windows
    assert {"train", "validation", "test"} <= {part for part, _ in windows}


def test_an_epoch_has_at_least_a_batch_of_tiles(ground):
    recipe = resolve_recipe("hpcl-net-laptop", {**TINY, "fit": {"batch_size": 500}})
    assert len(ground.tiles(recipe)) >= 500


def test_tiles_for_models_of_any_reach():
    class Far:
        stride, receptive_field = 16, 1641

    assert tile_of(Far()) == 2048
    Far.receptive_field = None
    assert tile_of(Far()) == 512


def test_every_row_of_the_ablation_is_its_own_method():
    rows = rows_of(MODALITIES, everything=True)
    assert len({row.name for row in rows}) == len(rows) == 28
    configs = set()
    for row in rows:
        changes = {"method": {**row.method(), "network": {"modality": row.modality}, "modality_dropout": 0.0}}
        configs.add(resolve_recipe("hpcl-net-laptop", changes).method.model_dump_json())
    assert len(configs) == 28


def test_a_row_is_kept_and_rows_of_other_settings_are_refused(ground, tmp_path):
    base = {**TINY, "fit": {**TINY["fit"], "steps": 1}}
    row = Row("image", "cross-entropy")
    first = run_row("hpcl-net-laptop", base, row, 0, ground, tmp_path)
    stamp = (tmp_path / "image-cross-entropy-0" / "row.json").stat().st_mtime_ns
    assert run_row("hpcl-net-laptop", base, row, 0, ground, tmp_path) == pytest.approx(first, nan_ok=True)
    assert (tmp_path / "image-cross-entropy-0" / "row.json").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="other settings"):
        run_row("hpcl-net-laptop", {**base, "tiles": {"tile": 24}}, row, 0, ground, tmp_path)


def test_means_and_spread_over_seeds():
    found = {"a": [dict.fromkeys(COLUMNS, 0.2), dict.fromkeys(COLUMNS, 0.4)], "b": [dict.fromkeys(COLUMNS, 0.5)]}
    means, spread = summary(found)
    assert means["a"]["iou"] == pytest.approx(0.3)
    assert spread["a"]["iou"] == pytest.approx(np.std([0.2, 0.4], ddof=1))
    assert spread["b"]["iou"] is None
