"""Patches with masks, from a tar, a folder and an npz file."""

from __future__ import annotations

import io
import json
import os
import pickle
import runpy
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mc_core.data import StepPlan, step_loader
from mc_core.errors import ConfigError, DataError
from mc_core.random import sample_rng
from mc_remote_sensing.data import PatchScenes, band_statistics

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_geo.py"))))


def picture(i: int, height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 255, (height, width, 3)).astype(np.uint8)


def mask(i: int, height: int = 40, width: int = 50) -> np.ndarray:
    found = np.zeros((height, width), dtype=np.uint8)
    if i % 2:
        found[5 : 10 + i, 8:20] = 1
    found[-2:] = 255
    return found


def write_folder(folder: Path, count: int = 12, **sizes) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.fromarray(picture(i, **sizes)).save(folder / f"p{i:02d}.png")
        Image.fromarray(mask(i, **sizes)).save(folder / f"p{i:02d}.seg.png")
        (folder / f"p{i:02d}.json").write_text(json.dumps({"source": "ab"[i % 3 == 0]}))
    return folder


def write_tar(path: Path, folder: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, arcname=file.name)
    return path


def test_a_patch_is_its_image_and_its_mask_from_folder_or_tar(tmp_path):
    folder = PatchScenes(write_folder(tmp_path / "set"))
    tar = PatchScenes(write_tar(tmp_path / "set.tar", tmp_path / "set"))
    assert folder.names == tar.names == [f"p{i:02d}" for i in range(12)]
    for i in (0, 5, 11):
        for found in (folder.read(i), tar.read(i)):
            assert (found["image"] == np.moveaxis(picture(i), -1, 0)).all()
            assert (found["labels"] == mask(i)).all()
            assert found["image"].dtype == np.float32
            assert found["labels"].dtype == np.uint8
            assert found["image_valid"].all()
            assert (found["elevation"] == 0).all()
            assert found["name"] == f"p{i:02d}"
    assert folder.band_names == ("red", "green", "blue")


def test_samples_are_crops_and_depend_on_the_random_numbers_alone(tmp_path):
    data = PatchScenes(write_folder(tmp_path / "set"), tile=24)
    again = pickle.loads(pickle.dumps(data))
    for i in range(12):
        sample, same = data.get(i, sample_rng(0, 0, i)), again.get(i, sample_rng(0, 0, i))
        assert all(torch.equal(torch.as_tensor(sample[k]), torch.as_tensor(same[k])) for k in sample)
        whole = np.moveaxis(picture(i), -1, 0)
        views = np.lib.stride_tricks.sliding_window_view(whole, (24, 24), axis=(1, 2))
        places = np.argwhere((views == sample["image"].numpy()[:, None, None]).all(axis=(0, 3, 4)))
        assert len(places) == 1
        row, col = places[0]
        assert (sample["labels"].numpy() == mask(i)[row : row + 24, col : col + 24]).all()
        assert sample["image_valid"].all()
    assert data.get(0, sample_rng(0, 0, 0))["ids"] == data.get(0, sample_rng(0, 1, 0))["ids"]
    assert len({data.get(i, sample_rng(0, 0, i))["ids"] for i in range(12)}) == 12
    plan = StepPlan(len(data), 4, seed=0)
    alone, shared = (list(step_loader(data, plan, start=0, stop=3, workers=n)) for n in (0, 1))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(alone, shared, strict=True))


def test_a_patch_smaller_than_a_tile_is_reflected_and_not_counted(tmp_path):
    data = PatchScenes(write_folder(tmp_path / "set", height=30, width=44), tile=64)
    sample = data.get(1, sample_rng(0, 0, 1))
    valid = np.zeros((64, 64), dtype=bool)
    valid[17:47, 10:54] = True
    assert (sample["image_valid"].numpy() == valid).all()
    assert (sample["labels"].numpy()[~valid] == 255).all()
    assert (sample["labels"].numpy()[17:47, 10:54] == mask(1, 30, 44)).all()
    padded = np.pad(np.moveaxis(picture(1, 30, 44), -1, 0), ((0, 0), (17, 17), (10, 10)), mode="reflect")
    assert (sample["image"].numpy() == padded).all()


def test_crops_are_drawn_around_targets_where_there_are_some(tmp_path):
    folder = write_folder(tmp_path / "set")
    for share, least, most in ((1.0, 1.0, 1.0), (0.0, 0.2, 0.9)):
        data = PatchScenes(folder, tile=12, target_share=share)
        held = [bool((data.get(1, sample_rng(0, e, 1))["labels"] == 1).any()) for e in range(60)]
        assert least <= np.mean(held) <= most
    assert not (PatchScenes(folder, tile=12, target_share=1).get(0, sample_rng(0, 0, 0))["labels"] == 1).any()


def test_parts_share_sources_and_targets_and_do_not_meet(tmp_path):
    data = PatchScenes(write_folder(tmp_path / "set", 60), shares=(0.6, 0.2, 0.2))
    parts = [data.part(name) for name in ("train", "validation", "test")]
    names = [[part.read(i)["name"] for i in range(part.count)] for part in parts]
    assert sorted(name for part in names for name in part) == data.names
    assert [len(n) for n in names] == [36, 12, 12]
    for part in parts:
        held = np.mean([bool((part.read(i)["labels"] == 1).any()) for i in range(part.count)])
        assert held == pytest.approx(0.5, abs=0.1)
    assert [part.read(0)["name"] for part in parts] == [
        data.part(n).read(0)["name"] for n in ("train", "validation", "test")
    ]
    other = PatchScenes(tmp_path / "set", shares=(0.6, 0.2, 0.2), seed=1).part("test")
    assert [other.read(i)["name"] for i in range(12)] != names[2]
    with pytest.raises(ConfigError, match="patches have no part 'training'; the closest is train"):
        data.part("training")
    with pytest.raises(DataError, match="2 patches leave none for validation"):
        PatchScenes(write_folder(tmp_path / "two", 2), shares=(0.98, 0.01, 0.01)).part("validation")


def test_an_epoch_may_show_patches_more_than_once(tmp_path):
    data = PatchScenes(write_folder(tmp_path / "set", 5), tile=16, per_epoch=12)
    assert len(data) == 12
    assert data.get(7, sample_rng(0, 0, 0))["ids"] == data.get(2, sample_rng(0, 0, 0))["ids"]


def test_masks_of_other_values_and_none_at_all(tmp_path):
    folder = write_folder(tmp_path / "set", 2)
    found = PatchScenes(folder, values={"background": 1, "target": 255}).read(1)["labels"]
    assert (found == np.array([255, 0] + [255] * 253 + [1])[mask(1)]).all()
    for file in folder.glob("*.seg.png"):
        file.unlink()
    assert (PatchScenes(folder).read(1)["labels"] == 255).all()


def test_alpha_and_many_bands(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    rgba = np.dstack([picture(0), np.full((40, 50), 255, np.uint8)])
    rgba[:4, :, 3] = 0
    Image.fromarray(rgba).save(folder / "a.png")
    found = PatchScenes(folder).read(0)
    assert (found["image_valid"][:4] == 0).all()
    assert (found["image"][:, :4] == 0).all()
    assert found["image_valid"][4:].all()
    many = tmp_path / "many"
    many.mkdir()
    values = write.bands(5, 40, 50)
    write.raster(many / "a.tif", values)
    np.savez(many / "b.npz", image=np.moveaxis(values, 0, -1))
    data = PatchScenes(many)
    assert data.band_names == ("B1", "B2", "B3", "B4", "B5")
    assert (data.read(0)["image"] == values).all()
    assert (data.read(1)["image"] == values).all()


def test_an_npz_of_all_patches_with_bands_that_are_relief(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 20, 24, 4)).astype(np.float32)
    values[0, 2, 2, 0] = np.nan
    masks = (values[..., 1] > 0).astype(np.uint8)
    np.savez(tmp_path / "a.npz", image=values, mask=masks, bands=np.array(["red", "nir", "dem", "slope"]))
    data = PatchScenes(tmp_path / "a.npz", tile=16, elevation_bands={"relative_elevation": "dem", "slope": "slope"})
    assert data.band_names == ("red", "nir")
    found = data.read(1)
    assert (found["image"] == np.moveaxis(values[1, ..., :2], -1, 0)).all()
    assert (found["elevation"][0] == values[1, ..., 2]).all()
    assert (found["elevation"][1] == values[1, ..., 3]).all()
    assert (found["elevation"][2] == 0).all()
    assert (found["elevation"][3] == 1).all()
    assert (found["labels"] == masks[1]).all()
    hole = data.read(0)
    assert not hole["image_valid"][2, 2]
    assert hole["labels"][2, 2] == 255
    assert (hole["elevation"][:, 2, 2] == 0).all()
    assert data.get(0, sample_rng(0, 0, 0))["elevation"].shape == (4, 16, 16)
    with pytest.raises(ConfigError, match="has no band 'demm'; the closest is dem"):
        PatchScenes(tmp_path / "a.npz", elevation_bands={"slope": "demm"})
    with pytest.raises(ConfigError, match="elevation has no channel 'height'"):
        PatchScenes(tmp_path / "a.npz", elevation_bands={"height": "dem"})


def test_statistics_of_patches(tmp_path):
    data = PatchScenes(write_folder(tmp_path / "set", 4))
    mean, deviation = band_statistics(data)
    pixels = np.concatenate([picture(i).reshape(-1, 3) for i in range(4)]).astype(np.float64)
    assert mean == pytest.approx(pixels.mean(axis=0))
    assert deviation == pytest.approx(pixels.std(axis=0))


def change_size(folder):
    Image.fromarray(mask(1, 30, 50)).save(folder / "p01.seg.png")


def change_colours(folder):
    Image.fromarray(picture(1)).save(folder / "p01.seg.png")


def change_words(folder):
    (folder / "p01.png").write_text("only words")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_size, r"p01: the image is 50×40 pixels, its mask 50×30; a mask has the size of its image"),
        (change_colours, r"p01.seg.png: its pixels are colours \(RGB\), not numbers"),
        (change_words, r"p01.png: cannot be read"),
    ],
)
def test_patches_that_cannot_be_read(tmp_path, change, message):
    folder = write_folder(tmp_path / "set", 3)
    change(folder)
    with pytest.raises(DataError, match=message):
        PatchScenes(folder).read(1)


def test_sets_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="nothing.tar: does not exist"):
        PatchScenes(tmp_path / "nothing.tar")
    (tmp_path / "words.tar").write_text("only words")
    with pytest.raises(DataError, match="is neither a folder, nor an uncompressed tar, nor an npz"):
        PatchScenes(tmp_path / "words.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no images"):
        PatchScenes(tmp_path / "empty")
    (tmp_path / "words.npz").write_text("only words")
    with pytest.raises(DataError, match="is no npz file"):
        PatchScenes(tmp_path / "words.npz")
    np.savez(tmp_path / "a.npz", image=np.zeros((3, 4, 4)))
    with pytest.raises(DataError, match=r"needs an array 'image' of shape \(N, H, W, C\)"):
        PatchScenes(tmp_path / "a.npz")
    folder = write_folder(tmp_path / "set", 3)
    (folder / "p02.seg.png").unlink()
    with pytest.raises(DataError, match="1 of 3 images have no mask, the first is p02"):
        PatchScenes(folder)
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).convert("L").save(buffer, "TIFF")
    (folder / "p02.png").unlink()
    (folder / "p02.tif").write_bytes(buffer.getvalue())
    (folder / "p02.seg.png").write_bytes((folder / "p01.seg.png").read_bytes())
    with pytest.raises(DataError, match="p02.tif: has 1 bands, the first image has 3"):
        PatchScenes(folder).read(2)


@pytest.mark.skipif("MC_DATA" not in os.environ, reason="MC_DATA names no folder of real data")
def test_real_patches():
    folder = Path(os.environ["MC_DATA"]) / "remote-sensing"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    slides = PatchScenes(folder / "landslide-pairs.tar", tile=128)
    parts = [slides.part(name) for name in ("train", "validation", "test")]
    assert sum(part.count for part in parts) == slides.count == 51
    for part in parts:
        kinds = {part.read(i)["name"].split("-")[0] for i in range(part.count)}
        assert kinds == {"bijie", "nepal"}
    with tarfile.open(folder / "landslide-pairs.tar") as tar:
        shown = json.loads(tar.extractfile("bijie-10009.json").read())
    fraction = slides.target_fractions[slides.names.index("bijie-10009")]
    assert fraction == pytest.approx(shown["landslide_fraction"], abs=0.01)
    relief = PatchScenes(
        folder / "landslide4sense-patches.npz", elevation_bands={"relative_elevation": "dem", "slope": "slope"}
    )
    assert len(relief.band_names) == 12
    assert relief.read(0)["elevation"][3].all()
