"""Kept maps of frozen experts: what they are, when they are taken again and when not, and how an interruption is made up for."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mc_core.engine.config import StrictModel
from mc_core.errors import ConfigError, DataError
from mc_core.random import BatchRandom
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.data.images import ArrayImages, FileImages
from mc_vision_language.data.views import ImageViews
from mc_vision_language.methods.astrea.adapters import on_grid
from mc_vision_language.staged import features
from mc_vision_language.staged.features import KeptMaps, MapData, keep_maps, weights_fingerprint

SIDE = 16
ALIKE = AugmentConfig(size=SIDE, resize="squash", flip=0, rand_augment=0)


class _Settings(StrictModel):
    scale: float = 1.0


class _Expert(nn.Module):
    """With batch norm, whose buffers are part of what it is."""

    def __init__(self, channels: int, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.config = _Settings(scale=scale)
        self.layers = nn.Sequential(nn.Conv2d(3, channels, 4, stride=4), nn.BatchNorm2d(channels))
        self.seen = 0

    def features(self, view):
        self.seen += len(view)
        return self.layers(view) * self.config.scale


def pictures(count=10, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 20, 20), dtype=np.uint8)


def views(count=10, seed=0, augment=ALIKE):
    return ImageViews(ArrayImages(pictures(count, seed)), augment, SIDE)


def experts(**more):
    return {"classification": _Expert(5, **more), "detection": _Expert(3, seed=1)}


def test_kept_maps_are_those_of_the_experts_in_evaluation_mode_rounded_to_16_bits(tmp_path):
    made, looked = experts(), views()
    for expert in made.values():
        expert.train()
    kept = keep_maps(made, looked, tmp_path, batch_size=4)
    assert len(kept) == 10
    assert kept.features == {"classification": 5, "detection": 3}
    assert all(expert.training for expert in made.values())
    rows = np.array([7, 0, 7])
    part = looked.batch(rows, rows, 0, 0)
    view = looked.view(part, BatchRandom(3, 5, torch.from_numpy(rows)))
    for kind, expert in made.items():
        with torch.no_grad():
            expected = expert.eval().features(view)
        found = kept.take(rows)[kind]
        assert found.dtype == torch.float16
        torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=1e-3)


def test_each_picture_is_looked_at_once_and_again_only_for_other_weights_pictures_or_sizes(tmp_path):
    made = experts()
    keep_maps(made, views(), tmp_path, batch_size=4)
    first = [expert.seen for expert in made.values()]
    again = experts()
    keep_maps(again, views(), tmp_path)
    assert [expert.seen for expert in again.values()] == [0, 0]
    assert first == [11, 11]  # and once at nothing, to learn the shape
    for other, looked in (
        (experts(scale=2.0), views()),
        (experts(seed=5), views()),
        (experts(), views(seed=3)),
        (experts(), ImageViews(ArrayImages(pictures()), None, 12)),
    ):
        keep_maps(other, looked, tmp_path)
        assert other["classification"].seen == 11
    moved = experts()
    with torch.no_grad():
        moved["detection"].state_dict()["layers.1.running_mean"].add_(1.0)  # a buffer
    keep_maps(moved, views(), tmp_path)
    assert [expert.seen for expert in moved.values()] == [0, 11]
    whole = experts()
    keep_maps(whole, views(augment=None), tmp_path)  # the same views by another name
    assert whole["classification"].seen == 0
    rows, random = np.arange(10), BatchRandom(0, 0, torch.arange(10))
    both = [one.view(one.batch(rows, rows, 0, 0), random) for one in (views(), views(augment=None))]
    torch.testing.assert_close(both[0], both[1], atol=1e-6, rtol=0)


def test_maps_finer_than_the_grid_are_kept_as_the_fusion_will_see_them(tmp_path):
    made = experts()  # maps of 4 x 4
    whole = keep_maps(made, views(), tmp_path)
    finer = keep_maps(made, views(), tmp_path, grid=8)
    coarse = keep_maps(made, views(), tmp_path, grid=2)
    rows = np.arange(10)
    np.testing.assert_array_equal(finer.maps["detection"], whole.maps["detection"])
    full = {kind: found.float() for kind, found in whole.take(rows).items()}
    expected = on_grid(full, whole.features, 2)
    for kind, found in coarse.take(rows).items():
        assert found.shape[2:] == (2, 2)
        torch.testing.assert_close(found.float(), expected[kind], atol=2e-3, rtol=1e-3)


def test_an_interrupted_work_goes_on_where_it_was_to_the_same_bits(tmp_path, monkeypatch):
    expected = keep_maps(experts(), views(), tmp_path / "whole", batch_size=4)
    original = features._Writer.write

    def stopping(self, first, maps):
        if self.kind == "detection" and first >= 4:
            raise KeyboardInterrupt
        original(self, first, maps)

    monkeypatch.setattr(features._Writer, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        keep_maps(experts(), views(), tmp_path / "parts", batch_size=4)
    monkeypatch.undo()
    assert not list((tmp_path / "parts").glob("*/meta.json"))
    (torn,) = (tmp_path / "parts").glob("detection-*/maps.f16.part")
    with torn.open("ab") as file:
        file.write(b"half a row")
    made = experts()
    kept = keep_maps(made, views(), tmp_path / "parts", batch_size=4)
    assert made["detection"].seen == 1 + 6
    assert made["classification"].seen == 1 + 2
    for kind, found in kept.maps.items():
        np.testing.assert_array_equal(found, expected.maps[kind])
    assert not list((tmp_path / "parts").glob("*/*.part"))


def test_pictures_that_cannot_be_read_are_marked_also_after_an_interruption(tmp_path, monkeypatch):
    for place, pixels in enumerate(pictures(5)):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / f"{place}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    looked = ImageViews(FileImages([f"{place}.png" for place in range(5)], tmp_path), ALIKE, SIDE)
    expert = {"detection": _Expert(3)}
    kept = keep_maps(expert, looked, tmp_path / "maps", batch_size=2, workers=0)
    assert list(kept.bad) == [1]
    assert kept.bad[1][0].endswith("1.png")
    whole = ImageViews(ArrayImages(pictures(5)), None, SIDE)
    alike = keep_maps(expert, whole, tmp_path / "maps", batch_size=5)
    good = np.array([0, 2, 3, 4])
    np.testing.assert_allclose(kept.maps["detection"][good], alike.maps["detection"][good], atol=0.05)
    (tmp_path / "0.png").write_bytes(b"")
    bad = ImageViews(FileImages(["0.png", "1.png"], tmp_path), ALIKE, SIDE)
    with pytest.raises(DataError, match="no picture can be read, the first is"):
        keep_maps(expert, bad, tmp_path / "maps", workers=0)


def test_views_that_differ_and_features_out_of_range_are_refused(tmp_path):
    with pytest.raises(DataError, match="maps cannot be kept: set augment.resize squash"):
        keep_maps(experts(), views(augment=AugmentConfig(size=SIDE)), tmp_path)
    with pytest.raises(DataError, match="the classification expert gives features up to .* more than 16 bits"):
        keep_maps(experts(scale=1e6), views(), tmp_path)
    assert not list(tmp_path.glob("classification*/meta.json"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError):
        keep_maps(experts(), views(), tmp_path / "file")


def test_a_fingerprint_changes_with_every_weight_and_setting():
    base = weights_fingerprint(_Expert(3))
    assert base == weights_fingerprint(_Expert(3))
    assert base != weights_fingerprint(_Expert(3, scale=1.5))
    for name in _Expert(3).state_dict():
        other = _Expert(3)
        with torch.no_grad():
            other.state_dict()[name].add_(1)
        assert weights_fingerprint(other) != base, name


class _Rows:
    """Two samples for each of five pictures."""

    def __init__(self, looked):
        self.views = looked

    def __len__(self):
        return 10

    def picture_rows(self, indices):
        return indices // 2

    def without_pictures(self, indices, epoch, seed):
        return {"input_ids": torch.from_numpy(indices), "seen": torch.full((len(indices),), epoch)}

    def advice(self):
        return ["a line"]

    def describe(self):
        return {"kind": "rows"}


def test_a_batch_has_the_maps_of_its_pictures(tmp_path):
    looked = views(5)
    kept = keep_maps(experts(), looked, tmp_path)
    data = MapData(_Rows(looked), kept)
    assert len(data) == 10
    batch = data.get_batch([9, 0, 1], 3, 0)
    assert batch["input_ids"].tolist() == [9, 0, 1]
    assert batch["seen"].tolist() == [3, 3, 3]
    assert "bad" not in batch
    done = data.device_transform(batch, BatchRandom(0, 0, torch.arange(3)))
    assert done["map_detection"].dtype == torch.float32
    np.testing.assert_array_equal(done["map_detection"].numpy(), kept.maps["detection"][[4, 0, 0]].astype(np.float32))
    alone = data.get(9, np.random.default_rng(0))
    torch.testing.assert_close(alone["map_detection"], batch["map_detection"][0])
    assert json.dumps(data.describe())
    assert data.advice() == ["a line"]
    with pytest.raises(DataError, match="maps of 5 pictures, there are 4"):
        MapData(_Rows(views(4)), kept)


def test_samples_of_unreadable_pictures_are_replaced_and_named(tmp_path):
    looked = views(5)
    kept = keep_maps(experts(), looked, tmp_path)
    data = MapData(_Rows(looked), KeptMaps(kept.maps, {1: ("one.png", "is torn")}))
    batch = data.get_batch([2, 4, 3], 0, 7)
    assert batch["bad"][0] == (2, "one.png", "is torn")
    assert {index for index, *_ in batch["bad"]} <= {2, 3}
    used = batch["input_ids"].tolist()
    assert used[1] == 4
    assert not {2, 3} & set(used)
    assert data.get_batch([2], 0, 7)["input_ids"].tolist() == used[:1]  # whatever else is in the batch


def test_examples():
    found = doctest.testmod(features)
    assert found.attempted
    assert not found.failed
