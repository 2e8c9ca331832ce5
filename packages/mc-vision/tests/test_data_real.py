"""Real sets from the folder named by MC_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mc_core.errors import DataError
from mc_vision.data import inspect_source, open_source, split_source

pytestmark = pytest.mark.skipif("MC_DATA" not in os.environ, reason="MC_DATA names no folder of real data")
CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def vision(tmp_path, monkeypatch):
    monkeypatch.setenv("MC_CACHE", str(tmp_path / "cache"))
    folder = Path(os.environ["MC_DATA"]) / "vision"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def test_cifar10(vision):
    part = open_source(vision / "cifar10-train-00.parquet")
    train = open_source(f"{vision}/cifar10-train-*.parquet")
    test = open_source(vision / "cifar10-test.parquet")
    assert (len(part), len(train), len(test)) == (25_000, 50_000, 10_000)
    assert part.classes == train.classes == test.classes == CIFAR
    assert np.bincount(train.labels).tolist() == [5000] * 10
    rng = np.random.default_rng(0)
    for index in rng.integers(0, 50_000, 200).tolist():
        image = train.load(index)
        assert (image.mode, image.size) == ("RGB", (32, 32))
    assert np.array_equal(np.asarray(train.load(7)), np.asarray(part.load(7)))
    rest, held_out = split_source(train, 0.1, seed=0)
    assert np.bincount(held_out.labels).tolist() == [500] * 10
    assert len(rest) == 45_000


def test_photos(vision):
    source = open_source(vision / "imagenet-sample-photos.tar")
    assert len(source) == 130
    assert len(source.classes) == 130
    assert source.classes[source.labels[1]] == "cock"
    report = inspect_source(source)
    assert report["unreadable"] == 0
    assert report["sampled"] == 130
    assert report["width"]["max"] <= 512
    small = open_source(vision / "imagenet-sample-photos.tar", min_side=100)
    assert all(100 <= min(small.load(i).size) <= 250 for i in range(0, 130, 10))


def test_pictures_beside_masks(vision):
    source = open_source(vision / "bsds500-segments.tar")
    assert len(source) == 70
    assert source.load(0).mode == "RGB"
    masks = open_source(vision / "camvid-street-masks.tar", image_column="seg.png", channels=1)
    assert len(masks) == 90
    assert np.asarray(masks.load(0)).max() <= 11


def test_a_mixed_folder_asks_which(vision):
    with pytest.raises(DataError, match=r"several sets: cifar10-test\*\.parquet"):
        open_source(vision)


def test_bands_of_real_rasters(vision):
    rasters = vision.parent / "remote-sensing"
    if not rasters.is_dir():
        pytest.skip("no remote-sensing data")
    for name, channels in [
        ("s2-coast/beaufort-west-8band.tif", 8),
        ("s2-landslide/chittagong-north-image.tif", 4),
        ("naip-series/naip-west-20090818.tif", 4),
    ]:
        with pytest.raises(DataError, match=f"has {channels} channels, the encoder takes 3"):
            open_source(rasters / name).load(0)
    with pytest.raises(DataError, match="floating-point"):
        open_source(rasters / "dem").load(0)
