"""torchvision and Hugging Face data sets, from files written here: nothing is downloaded."""

from __future__ import annotations

import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from mc_core.data import BadSampleError
from mc_core.errors import ConfigError, DataError
from mc_vision.data import ReadOptions, hf, open_source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))


def write_mnist(root, count=5):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.stack([np.full((28, 28), i * 10, np.uint8) for i in range(count)])
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 2049, count) + bytes(i % 3 for i in range(count))
        )


def test_torchvision(tmp_path):
    write_mnist(tmp_path)
    source = open_source(f"torchvision:MNIST?root={tmp_path}&train=0")
    assert len(source) == 5
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 1, 2, 0, 1]
    assert source.classes[:2] == ["0 - zero", "1 - one"]
    assert (source.load(3).mode, source.load(3).getpixel((5, 5))) == ("RGB", (30, 30, 30))
    assert open_source(f"torchvision:MNIST?root={tmp_path}", channels=1).load(3).getpixel((5, 5)) == 30
    assert open_source(f"torchvision:MNIST?root={tmp_path}", labels="none").labels is None
    assert source.name(2) == f"torchvision:MNIST?root={tmp_path}&train=0[2]"
    assert source.describe()["kind"] == "torchvision"
    assert pickle.loads(pickle.dumps(source)).load(3).getpixel((5, 5)) == (30, 30, 30)


def test_torchvision_default_root_is_the_cache(tmp_path):
    write_mnist(tmp_path / "cache/torchvision")
    assert len(open_source("torchvision:MNIST")) == 5


def test_torchvision_folders_are_turned_upright_and_labelled(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (40, 20)).save(tmp_path / "photos" / name / "1.jpg", exif=exif)
    source = open_source(f"torchvision:ImageFolder?root={tmp_path}/photos")
    assert source.load(0).size == (20, 40)
    assert source.labels.tolist() == [0, 1]
    assert source.classes == ["cat", "dog"]


def test_torchvision_messages(tmp_path):
    with pytest.raises(ConfigError, match="no data set 'CIFAR1'; closest: CIFAR10"):
        open_source("torchvision:CIFAR1")
    with pytest.raises(ConfigError, match="CIFAR10 takes no 'trian'; closest: train"):
        open_source("torchvision:CIFAR10?trian=1")
    with pytest.raises(ConfigError, match="train='maybe': write 1 or 0"):
        open_source("torchvision:CIFAR10?train=maybe")
    spec = f"torchvision:CIFAR10?root={tmp_path}/none"
    with pytest.raises(
        DataError, match=r"could not be opened under .*/none .*write torchvision:CIFAR10\?root=.*none&download=1"
    ):
        open_source(spec)
    assert not (tmp_path / "none").exists()
    with pytest.raises(DataError, match=r"FakeData.* is empty"):
        open_source("torchvision:FakeData?size=0")


datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    for i in range(4):
        Image.new("RGB", (4, 3), (i, 0, 0)).save(root / f"{i}.png")
    features = datasets.Features(
        {"photo": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"]), "id": datasets.Value("string")}
    )
    rows = {"photo": [str(root / f"{i}.png") for i in range(4)], "label": [1, 0, 1, 1], "id": ["a", "b", "a", "c"]}
    embedded = datasets.Dataset.from_dict(rows, features=features)
    both = datasets.DatasetDict({"train": embedded, "test": embedded.select([2, 0])})
    both.save_to_disk(root / "both")
    embedded.save_to_disk(root / "one")
    return root


def reds(source):
    return [source.load(i).getpixel((0, 0))[0] for i in range(len(source))]


@pytest.mark.parametrize(("name", "expected"), [("one", [0, 1, 2, 3]), ("both", [0, 1, 2, 3]), ("both:test", [2, 0])])
def test_saved_to_disk(saved, name, expected):
    source = open_source(saved / name)
    assert reds(source) == expected
    assert source.classes == ["no", "yes"]
    assert source.labels.tolist() == [[1, 0, 1, 1][i] for i in expected]
    assert len(set(source.ids.tolist())) == len({"abac"[i] for i in expected})
    assert source.describe()["kind"] == "huggingface"
    assert source.name(1) == f"{saved / name}[1]"
    assert reds(pickle.loads(pickle.dumps(source))) == expected


def test_arrow_file(saved):
    assert reds(open_source(next((saved / "one").glob("*.arrow")))) == [0, 1, 2, 3]


def test_saved_errors(saved, tmp_path):
    with pytest.raises(DataError, match="has no split 'tset'; closest: test"):
        open_source(f"{saved}/both:tset")
    with pytest.raises(DataError, match="one:train has no splits"):
        open_source(f"{saved}/one:train")
    with pytest.raises(DataError, match="column 'label' holds no images; image columns: photo"):
        open_source(saved / "one", image_column="label")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(DataError, match=r"has no image column among text \(Value\)"):
        open_source(tmp_path / "text")
    rows = {"a": [None, {"bytes": b"junk", "path": None}]}
    datasets.Dataset.from_dict(rows, features=datasets.Features({"a": datasets.Image()})).save_to_disk(tmp_path / "bad")
    source = open_source(tmp_path / "bad")
    with pytest.raises(BadSampleError, match=r"bad\[0\]: the image cell is empty"):
        source.load(0)
    with pytest.raises(BadSampleError, match=r"bad\[1\]: not an image"):
        source.load(1)


def test_hub_names(saved, monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        if args[0] == "gone/away":
            raise FileNotFoundError("Dataset 'gone/away' doesn't exist\non the Hub")
        return datasets.load_from_disk(saved / "both")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert reds(open_source("hf:user/name:test?config=plain")) == [2, 0]
    assert calls == [(("user/name", "plain"), {"revision": None})]
    assert reds(hf.open_hub("hf:user/name", ReadOptions(labels="none"))) == [0, 1, 2, 3]
    with pytest.raises(DataError, match="hf:gone/away: Dataset 'gone/away' doesn't exist on the Hub"):
        open_source("hf:gone/away")
    with pytest.raises(ConfigError, match="unknown 'split'; after"):
        open_source("hf:user/name?split=test")
