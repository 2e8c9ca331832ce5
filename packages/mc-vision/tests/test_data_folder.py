"""Folders of images: order, labels, links, and what is said when something is missing."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
from PIL import Image

from mc_core.data import BadSampleError
from mc_core.errors import DataError
from mc_vision.data import ReadOptions, open_folder


def write(root, *names, color=(1, 2, 3)):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), color).save(path)


def relative(source):
    return [os.path.relpath(source.name(i), source.root) for i in range(len(source))]


def test_flat_folder(tmp_path):
    write(tmp_path, "b.png", "a.jpg", "C.PNG", "deep/er/x.webp", ".hidden.png", ".git/y.png")
    (tmp_path / "notes.txt").write_text("x")
    source = open_folder(tmp_path)
    assert relative(source) == ["C.PNG", "a.jpg", "b.png", "deep/er/x.webp"]
    assert source.labels is None
    assert source.classes is None
    assert source.load(2).getpixel((0, 0)) == (1, 2, 3)
    assert source.name(1) == str(tmp_path / "a.jpg")


def test_order_does_not_depend_on_the_order_of_creation(tmp_path):
    names = [f"{c}/{i}.png" for c in "ab" for i in range(6)]
    digests = []
    for seed in range(3):
        root = tmp_path / str(seed)
        write(root, *random.Random(seed).sample(names, len(names)))
        source = open_folder(root)
        assert relative(source) == names
        digests.append(source.describe()["digest"])
    assert len(set(digests)) == 1  # the digest does not look at where the folder lies
    (tmp_path / "2/b/5.png").rename(tmp_path / "2/b/6.png")
    assert open_folder(tmp_path / "2").describe()["digest"] != digests[0]


def test_class_folders(tmp_path):
    write(tmp_path, "dog/1.png", "cat/1.png", "cat/kittens/2.png", "ant/1.png")
    source = open_folder(tmp_path)
    assert source.classes == ["ant", "cat", "dog"]
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 1, 1, 2]
    assert open_folder(tmp_path, ReadOptions(labels="none")).labels is None
    assert source.describe() == {
        "kind": "folder",
        "location": str(tmp_path),
        "count": 4,
        "digest": source.digest,
    }
    assert open_folder(tmp_path, ReadOptions(labels="none")).digest != source.digest


def test_labels_need_every_image_in_a_folder(tmp_path):
    write(tmp_path, "dog/1.png", "cat/1.png", "stray.png")
    assert open_folder(tmp_path).labels is None
    with pytest.raises(DataError, match=r"stray\.png lies in no class folder"):
        open_folder(tmp_path, ReadOptions(labels="folder"))


def test_one_folder_is_no_classification(tmp_path):
    write(tmp_path, "images/1.png", "images/2.png")
    assert open_folder(tmp_path).labels is None
    assert open_folder(tmp_path, ReadOptions(labels="folder")).classes == ["images"]


def test_parts_of_a_data_set_are_not_classes(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/cat/1.png")
    with pytest.raises(
        DataError, match=r"holds 2 parts of a data set \(train and val\), not classes: name one, .*train"
    ):
        open_folder(tmp_path)
    assert open_folder(tmp_path / "train").classes == ["cat", "dog"]
    assert len(open_folder(tmp_path, ReadOptions(labels="none"))) == 3
    write(tmp_path, "tulip/1.png")  # then "train" may well be a locomotive
    assert open_folder(tmp_path).classes == ["train", "tulip", "val"]


def test_links(tmp_path):
    write(tmp_path, "data/a/1.png", "elsewhere/2.png")
    root = tmp_path / "data"
    (root / "a/up").symlink_to(root, target_is_directory=True)
    (root / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "b2.png").symlink_to(tmp_path / "elsewhere/2.png")
    (root / "self").symlink_to(root / "self")
    source = open_folder(root)
    assert relative(source) == ["a/1.png", "b/2.png", "b2.png"]


def test_dangling_link_is_a_bad_sample(tmp_path):
    write(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(BadSampleError, match=r"b\.png: no such file"):
        open_folder(tmp_path).load(1)


def test_bad_files_are_bad_samples_and_the_rest_still_loads(tmp_path):
    write(tmp_path, "a.png", "c.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:45])
    source = open_folder(tmp_path)
    with pytest.raises(BadSampleError) as caught:
        source.load(1)
    assert caught.value.name == str(tmp_path / "b.png")
    assert source.load(2).size == (4, 3)


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"no images with extensions .* it is empty"):
        open_folder(tmp_path)
    for i in range(3):
        (tmp_path / f"{i}.npy").write_bytes(b"")
    (tmp_path / "README").write_text("")
    with pytest.raises(DataError, match=r"found 3 \.npy files, 1 extensionless files"):
        open_folder(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"fotos does not exist; .* holds photos"):
        open_folder(tmp_path / "fotos")
    with pytest.raises(DataError, match=r"missing/deep does not exist; .*photos"):
        open_folder(tmp_path / "missing/deep")
    with pytest.raises(DataError, match="is a file, not a folder"):
        open_folder(tmp_path / "README")


def test_unreadable_folder_is_not_passed_over(tmp_path, monkeypatch):
    write(tmp_path, "a/1.png", "b/1.png")
    scandir = os.scandir

    def refusing(path):
        if os.path.normpath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"cannot read the folder .*b/? \(Permission denied\)"):
        open_folder(tmp_path)


def test_no_stat_per_file(tmp_path, monkeypatch):
    write(tmp_path, *(f"{c}/{i}.png" for c in "abc" for i in range(20)))
    calls = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *a, **k: calls.append(a) or stat(*a, **k))
    assert len(open_folder(tmp_path)) == 60
    assert len(calls) <= 8


def test_names_that_are_not_unicode(tmp_path):
    write(tmp_path, "a.png")
    os.rename(os.fsencode(tmp_path / "a.png"), os.fsencode(tmp_path) + b"/\xff.png")
    source = open_folder(tmp_path)
    assert source.load(0).size == (4, 3)
    assert os.fsencode(source.name(0)).endswith(b"\xff.png")
    assert len(source.describe()["digest"]) == 32
