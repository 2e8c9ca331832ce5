"""Training windows: where they lie, what they hold, what they depend on; statistics of bands; pairs of seasons."""

from __future__ import annotations

import dataclasses
import os
import pickle
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mc_core.data import StepPlan, step_loader
from mc_core.errors import ConfigError, DataError
from mc_core.random import sample_rng
from mc_remote_sensing.data import ScenePairs, TileDataset, band_statistics, footprint, open_scene, spatial_blocks
from mc_remote_sensing.data.grid import Window
from mc_remote_sensing.data.tiles import place_id, share_valid, window_around

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_geo.py"))))
SHAPE = (300, 400)


def make_scene(tmp_path, *, name="a", seed=0, slides=6, labels=True, **options):
    values = write.bands(3, *SHAPE, seed=seed)
    values[:, :100, :100] = 0  # a corner without data
    image = write.raster(tmp_path / f"{name}.tif", values, nodata=0, names=("red", "green", "blue"))
    z = (np.mgrid[:120, :160][1] * 6.0).astype(np.float32)
    elevation = write.raster(tmp_path / f"{name}-dem.tif", z, transform=write.place(25.0))
    rng = np.random.default_rng(seed)
    shapes = [write.box(*rng.integers(120, (270, 370)), 8, 10) for _ in range(slides)]
    polygons = write.polygons(tmp_path / f"{name}.gpkg", shapes)
    hard = write.polygons(tmp_path / f"{name}-hard.gpkg", [write.box(40, 300, 12, 12)])
    return open_scene(
        image,
        elevation,
        polygons if labels else None,
        hard_negatives=hard,
        vertical_unit="metre",
        cache=tmp_path / "cache",
        **options,
    )


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path)


def samples(data, count=60, epoch=0):
    return [data.get(i, sample_rng(0, epoch, i)) for i in range(count)]


def test_a_footprint_counts_pixels_of_each_kind(scene):
    found = footprint(scene, 16)
    read = scene.read(0, 0, *SHAPE)
    hard = scene.labels.hard_negatives.rasterise(0, 0, *SHAPE)
    for kind, plane in {
        "valid": read["image_valid"],
        "known": read["labels"] != 255,
        "target": read["labels"] == 1,
        "hard": hard & (read["labels"] != 255),
    }.items():
        padded = np.pad(plane, ((0, 4), (0, 0)))
        expected = padded.reshape(19, 16, 25, 16).sum(axis=(1, 3))
        assert (getattr(found, kind) == expected).all(), kind


def test_footprints_of_parts_add_up(scene, monkeypatch):
    import mc_remote_sensing.data.coverage as module

    monkeypatch.setattr(module, "_STRIP_PIXELS", 16 * 400 * 2)
    whole = footprint(scene, 16)
    windows = [Window(0, 0, 111, 203), Window(0, 203, 111, 197), Window(111, 0, 189, 400)]
    parts = [footprint(scene, 16, [w]) for w in windows]
    assert (sum(part.known for part in parts) == whole.known).all()
    assert (footprint(scene, 16, windows).target == whole.target).all()


def test_a_sample_is_the_scene_at_its_window(scene):
    data = TileDataset(scene, tile=48)
    sample = data.get(0, sample_rng(0, 0, 5))
    number, window = data.window(sample_rng(0, 0, 5))
    read = scene.read(*window)
    assert number == 0
    assert {name: tuple(value.shape) for name, value in sample.items() if name != "ids"} == {
        "image": (3, 48, 48),
        "image_valid": (48, 48),
        "elevation": (4, 48, 48),
        "labels": (48, 48),
    }
    assert [sample[n].dtype for n in ("image", "image_valid", "elevation", "labels")] == [
        torch.float32,
        torch.bool,
        torch.float32,
        torch.uint8,
    ]
    for name, value in read.items():
        assert (sample[name].numpy() == value).all()
    assert (sample["image"][:, ~sample["image_valid"]] == 0).all()
    assert (sample["labels"][~sample["image_valid"]] == 255).all()
    assert (sample["elevation"][3] == 1).all()


def test_elevation_is_left_out_where_no_scene_has_any_and_zero_where_one_lacks_it(scene):
    bare = dataclasses.replace(scene, elevation=None)
    assert all("elevation" not in sample for sample in samples(TileDataset(bare, tile=48), 4))
    mixed = samples(TileDataset([scene, bare], tile=48), 40)
    assert {bool(sample["elevation"][3].any()) for sample in mixed} == {True, False}


def test_a_sample_depends_on_seed_epoch_and_index_alone(scene):
    data = TileDataset(scene, tile=48, per_epoch=12)
    again = pickle.loads(pickle.dumps(data))
    for index in (0, 7):
        first, second = data.get(index, sample_rng(3, 1, index)), again.get(index, sample_rng(3, 1, index))
        assert all(torch.equal(torch.as_tensor(first[k]), torch.as_tensor(second[k])) for k in first)
    windows = {tuple(data.window(sample_rng(seed, epoch, index))[1]) for seed, epoch, index in np.ndindex(3, 3, 3)}
    assert len(windows) == 27


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(scene, workers):
    data = TileDataset(scene, tile=32, per_epoch=8)
    plan = StepPlan(len(data), 4, seed=0)
    alone, shared = (list(step_loader(data, plan, start=0, stop=4, workers=n)) for n in (0, workers))
    for a, b in zip(alone, shared, strict=True):
        for name in ("image", "labels", "elevation", "ids"):
            assert torch.equal(a[name], b[name])


def test_half_of_the_windows_hold_a_target_they_were_drawn_around(scene):
    for share in (0.0, 0.5, 1.0):
        data = TileDataset(scene, tile=16, target_share=share, hard_negative_share=0.0)
        holds = np.mean([bool((s["labels"] == 1).any()) for s in samples(data, 200)])
        by_chance = np.mean(
            [bool((s["labels"] == 1).any()) for s in samples(TileDataset(scene, tile=16, target_share=0), 200)]
        )
        if share == 1:
            assert holds == 1
        else:
            assert holds == pytest.approx(share + (1 - share) * by_chance, abs=0.12)


def test_hard_negatives_are_shown(scene):
    data = TileDataset(scene, tile=24, target_share=0.2, hard_negative_share=0.5)
    drawn = [data.window(sample_rng(0, 0, i))[1] for i in range(200)]
    near = [abs(w.row + 12 - 46) < 36 and abs(w.col + 12 - 306) < 36 for w in drawn]
    assert np.mean(near) == pytest.approx(0.5, abs=0.12)


def test_windows_stay_inside_and_on_valid_ground(scene):
    data = TileDataset(scene, tile=64, target_share=0)
    for sample_index in range(200):
        _, (row, col, height, width) = data.window(sample_rng(1, 0, sample_index))
        assert 0 <= row <= SHAPE[0] - height
        assert 0 <= col <= SHAPE[1] - width
    assert min(float(s["image_valid"].float().mean()) for s in samples(data, 100)) >= 0.05
    corners = {(w.row, w.col) for _, w in (data.window(sample_rng(2, 0, i)) for i in range(400))}
    assert any(row == SHAPE[0] - 64 for row, _ in corners)  # the border is reached
    assert any(col == 0 for _, col in corners)


def test_every_valid_pixel_can_be_seen(scene):
    data = TileDataset(scene, tile=64, target_share=0)
    seen = np.zeros(SHAPE, dtype=bool)
    for i in range(1500):
        _, (row, col, height, width) = data.window(sample_rng(0, 0, i))
        seen[row : row + height, col : col + width] = True
    valid = scene.read(0, 0, *SHAPE)["image_valid"]
    assert seen[valid].mean() > 0.999


def test_a_scene_smaller_than_a_tile_lies_in_its_middle(tmp_path):
    image = write.raster(tmp_path / "a.tif", write.bands(2, 20, 30))
    small = open_scene(image, labels=write.polygons(tmp_path / "a.gpkg", [write.box(5, 5, 6, 6)]))
    sample = TileDataset(small, tile=64, per_epoch=1).get(0, sample_rng(0, 0, 0))
    valid = np.zeros((64, 64), dtype=bool)
    valid[22:42, 17:47] = True
    assert (sample["image_valid"].numpy() == valid).all()
    assert (sample["labels"].numpy()[~valid] == 255).all()
    assert (sample["labels"] == 1).sum() == 36


def test_a_training_window_holds_nothing_of_another_part(scene):
    blocks = spatial_blocks(scene, block_m=1500, buffer_m=330)
    forbidden = [blocks.mask(name, 0, 0, *SHAPE) for name in ("validation", "test")]
    train = blocks.mask("train", 0, 0, *SHAPE)
    data = TileDataset(scene, blocks, "train", tile=32)
    for i in range(300):
        sample, (_, window) = data.get(i, sample_rng(0, 0, i)), data.window(sample_rng(0, 0, i))
        rows, columns = slice(window.row, window.row + 32), slice(window.col, window.col + 32)
        assert not any(part[rows, columns].any() for part in forbidden)
        assert (sample["labels"].numpy()[~train[rows, columns]] == 255).all()
        assert (sample["labels"] != 255).any()
    validation = TileDataset(scene, blocks, "validation", tile=32)
    assert len(validation) < len(data)


def test_places_have_ids(scene):
    assert place_id(0, Window(10, 20, 32, 32)) == place_id(0, Window(12, 22, 32, 32))
    assert place_id(0, Window(10, 20, 32, 32)) != place_id(1, Window(10, 20, 32, 32))
    assert place_id(0, Window(0, 0, 32, 32)) != place_id(0, Window(0, 32, 32, 32))
    assert place_id(0, Window(0, 32, 32, 32)) != place_id(0, Window(32, 0, 32, 32))
    for i in range(5):
        data = TileDataset([scene, scene], tile=32)
        assert data.get(i, sample_rng(0, 0, i))["ids"] == place_id(*data.window(sample_rng(0, 0, i)))


def test_several_scenes_are_drawn_by_their_ground(tmp_path, scene):
    other = make_scene(tmp_path, name="b", seed=1, slides=2)
    data = TileDataset([scene, other], tile=32)
    numbers = [data.window(sample_rng(0, 0, i))[0] for i in range(200)]
    assert 0.25 < np.mean(numbers) < 0.6
    assert len(data) == round(2 * (300 * 400 - 100 * 100) / 32**2)
    assert data.describe()["scenes"] == ["a", "b"]
    assert data.describe()["pixels"]["target"] == sum(
        int((s.read(0, 0, *SHAPE)["labels"] == 1).sum()) for s in (scene, other)
    )
    renamed = make_scene(tmp_path, name="c", band_names=["r", "g", "b"])
    with pytest.raises(
        ConfigError, match=r"c has the bands r, g, b, a has red, green, blue: choose the same with --bands"
    ):
        TileDataset([scene, renamed], tile=32)


def test_what_cannot_be_drawn_from(tmp_path, scene):
    blocks = spatial_blocks(scene, block_m=1000, buffer_m=100)
    with pytest.raises(
        ConfigError, match="the buffer between blocks is 10 pixels, narrower than a tile of 32: widen it to 320 m"
    ):
        TileDataset(scene, blocks, tile=32)
    with pytest.raises(ConfigError, match="a has no labels|a: has no labels"):
        TileDataset(make_scene(tmp_path, labels=False), tile=32)
    with pytest.raises(ConfigError, match="at most 1 together"):
        TileDataset(scene, tile=32, target_share=0.8, hard_negative_share=0.3)
    with pytest.raises(ConfigError, match="1 scenes need as many sets of blocks, got 2"):
        TileDataset(scene, [blocks, blocks], tile=8)
    with pytest.raises(ConfigError, match="at least one scene"):
        TileDataset([], tile=8)
    far = write.polygons(tmp_path / "far.gpkg", [write.box(0, 0, 20, 20)])
    nothing = open_scene(tmp_path / "a.tif", labels=tmp_path / "a.gpkg", extent=far)
    with pytest.raises(DataError, match="no labelled pixel in the train part of a"):
        TileDataset(nothing, tile=16)


def test_a_share_of_valid_pixels_is_a_lower_bound_on_whole_cells():
    plane = np.random.default_rng(0).random((80, 80)) < 0.5
    cells = plane.reshape(10, 8, 10, 8).sum(axis=(1, 3))
    assert share_valid(cells, Window(8, 16, 64, 64)) == plane[8:72, 16:80].mean()
    assert 0.7 * 0.5 < share_valid(cells, Window(3, 5, 64, 64)) <= plane[3:67, 5:69].mean()
    assert share_valid(cells, Window(-70, 0, 64, 64)) == 0


@pytest.mark.parametrize("tile", [8, 24, 200])
def test_a_window_around_a_cell_holds_a_pixel_of_it(tile):
    step = max(1, min(16, tile // 8))
    rng = np.random.default_rng(0)
    for _ in range(200):
        row, column = rng.integers(0, (90 // step, 130 // step))
        window = window_around((90, 130), tile, int(row), int(column), rng)
        for start, cell, size in ((window.row, row, 90), (window.col, column, 130)):
            assert start <= cell * step
            assert min((cell + 1) * step, size) <= start + tile


def test_statistics_of_bands_are_over_the_valid_pixels_of_the_part(scene):
    blocks = spatial_blocks(scene, block_m=1000, buffer_m=100)
    read = scene.read(0, 0, *SHAPE)
    chosen = read["image_valid"] & blocks.mask("train", 0, 0, *SHAPE)
    pixels = read["image"][:, chosen].astype(np.float64)
    mean, deviation = band_statistics(scene, blocks)
    assert mean == pytest.approx(pixels.mean(axis=1), rel=1e-10)
    assert deviation == pytest.approx(pixels.std(axis=1), rel=1e-10)
    everywhere, _ = band_statistics([scene, scene])
    assert everywhere == pytest.approx(read["image"][:, read["image_valid"]].astype(np.float64).mean(axis=1), rel=1e-10)


def test_a_sample_of_strips_is_close_and_a_constant_band_has_the_deviation_one(tmp_path):
    values = write.bands(2, 640, 100) + np.uint16(60_000)
    values[1] = 7
    scene = open_scene(write.raster(tmp_path / "a.tif", values))
    mean, deviation = band_statistics(scene, max_pixels=20_000)
    assert mean == pytest.approx([values[0].mean(), 7], rel=1e-3)
    assert deviation[0] == pytest.approx(values[0].std(), rel=0.02)
    assert deviation[1] == 1
    empty = open_scene(write.raster(tmp_path / "b.tif", np.zeros((2, 30, 30), np.uint16), nodata=0))
    with pytest.raises(DataError, match="no valid pixel"):
        band_statistics(empty)


def test_two_images_of_one_window(scene):
    data = ScenePairs(scene, tile=48)
    sample = data.get(0, sample_rng(0, 0, 3))
    assert torch.equal(sample["image_1"], sample["image_2"])
    sample["image_1"][0, 0, 0] = -1
    assert sample["image_2"][0, 0, 0] != -1
    assert sample["elevation"].shape == (4, 48, 48)
    assert sample["elevation"][3].all()
    assert len(data) == round((300 * 400 - 100 * 100) / 48**2)
    assert isinstance(sample["ids"], int)


def test_seasons_of_one_place_are_two_images_of_the_same_ground(tmp_path):
    y, x = np.mgrid[:200, :260]
    ground = (1000 + 3 * x + 5 * y).astype(np.uint16)[None]
    first = open_scene(write.raster(tmp_path / "a.tif", ground, names=("red",)))
    second = open_scene(write.raster(tmp_path / "b.tif", ground + np.uint16(10_000), names=("red",)))
    third_grid = write.place(10, west=write.WEST + 155, north=write.NORTH - 205)  # half a pixel off, and smaller
    third = open_scene(
        write.raster(
            tmp_path / "c.tif", ground[:, 20:150, 15:200] + np.uint16(20_000), names=("red",), transform=third_grid
        )
    )
    data = ScenePairs([[first, second, third]], tile=32)
    seen = set()
    for i in range(40):
        sample = data.get(i, sample_rng(0, 0, i))
        both = sample["valid_1"] & sample["valid_2"]
        season = [
            int(sample[f"image_{k}"][0][sample[f"valid_{k}"]].min() // 10_000)
            for k in (1, 2)
            if sample[f"valid_{k}"].any()
        ]
        seen.add(tuple(season))
        difference = (sample["image_2"] - sample["image_1"])[0][both]
        if len(difference):
            assert (difference % 10_000).round().abs().remainder(10_000).apply_(lambda v: min(v, 10_000 - v)).max() <= 5
    assert {(0, 1), (1, 0), (0, 2), (2, 1)} <= seen


def test_pairs_that_cannot_be(tmp_path, scene):
    elsewhere = open_scene(
        write.raster(
            tmp_path / "z.tif", write.bands(3), names=("red", "green", "blue"), transform=write.place(west=900_000)
        )
    )
    with pytest.raises(DataError, match="z does not overlap a: a series is of one place"):
        ScenePairs([[scene, elsewhere]], tile=32)
    relief = open_scene(elevation=tmp_path / "a-dem.tif", vertical_unit="metre", cache=tmp_path / "cache")
    with pytest.raises(ConfigError, match="needs an image"):
        ScenePairs([relief], tile=32)
    with pytest.raises(DataError, match="no valid pixel"):
        ScenePairs(open_scene(write.raster(tmp_path / "y.tif", np.zeros((1, 40, 40), np.uint16), nodata=0)), tile=8)


@pytest.mark.skipif("MC_DATA" not in os.environ, reason="MC_DATA names no folder of real data")
def test_real_scenes(tmp_path):
    folder = Path(os.environ["MC_DATA"]) / "remote-sensing"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    hills = open_scene(
        folder / "s2-landslide/chittagong-north-image.tif",
        labels=folder / "s2-landslide/chittagong-north-labels.tif",
        label_values={"background": 1, "target": 2},
    )
    assert hills.band_names == ("red", "green", "blue", "nir")
    blocks = spatial_blocks(hills, block_m=3000, buffer_m=700)
    found = samples(TileDataset(hills, blocks, tile=64), 40)
    assert all((s["labels"] != 255).any() for s in found)
    assert np.mean([bool((s["labels"] == 1).any()) for s in found]) > 0.4
    dates = sorted((folder / "naip-series").glob("*.tif"))
    wetlands = ScenePairs([[open_scene(path) for path in dates]], tile=64)
    assert wetlands.band_names == ("red", "green", "blue", "nir")
    pair = wetlands.get(0, sample_rng(0, 0, 0))
    assert not torch.equal(pair["image_1"], pair["image_2"])
    site = open_scene(
        elevation=folder / "dem/landslide-site-pre-dem-10m.tif",
        labels=folder / "dem/landslide-site-mask-10m.tif",
        assume_crs="EPSG:32610",
        vertical_unit="metre",
        cache=tmp_path,
    )
    sample = TileDataset(site, tile=32).get(0, sample_rng(0, 0, 0))
    assert sample["image"].shape == (0, 32, 32)
    assert torch.equal(sample["image_valid"], sample["elevation"][3] > 0)
