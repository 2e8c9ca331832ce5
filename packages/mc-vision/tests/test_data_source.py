"""What every source can do: subsets, splits, a look inside, workers; labels from columns; which format a name means."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mc_core.errors import ConfigError, DataError
from mc_core.images import parquet as parquet_cells
from mc_core.listing import PackedStrings, fingerprint
from mc_vision.data import (
    ArraySource,
    ImageSource,
    ReadOptions,
    align_labels,
    inspect_source,
    open_source,
    split_source,
    subset,
    take,
)
from mc_vision.data.source import make_ids, make_labels


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MC_CACHE", str(tmp_path / "cache"))


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


KINDS = ["folder", "list", "csv", "parquet", "mapped", "tar", "saved", "array", "subset"]
LABELS = [0, 0, 1, 1, 0, 1, 2, 2, 2, 0]


@pytest.fixture(params=KINDS)
def source(request, tmp_path, monkeypatch):
    """Ten images whose red value is their position, in every format."""
    root, kind = tmp_path / "data", request.param
    for i in range(10):
        path = root / "files" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    if kind == "folder":
        return open_source(root / "files")
    if kind == "list":
        (root / "t.txt").write_text("".join(f"files/{i}.png\n" for i in range(10)))
        return open_source(root / "t.txt")
    if kind == "csv":
        (root / "t.csv").write_text("path,label\n" + "".join(f"files/{i}.png,{LABELS[i]}\n" for i in range(10)))
        return open_source(root / "t.csv")
    if kind in ("parquet", "mapped"):
        monkeypatch.setattr(parquet_cells, "IN_MEMORY", 0 if kind == "mapped" else 1 << 30)
        pq.write_table(
            pa.table({"image": [png(i) for i in range(10)], "label": LABELS}), root / "t.parquet", row_group_size=3
        )
        return open_source(root / "t.parquet")
    if kind == "tar":
        with tarfile.open(root / "t.tar", "w") as tar:
            for i in range(10):
                tar.add(root / "files" / f"{i}.png", f"{i}.png")
        return open_source(root / "t.tar")
    if kind == "saved":
        datasets = pytest.importorskip("datasets")
        rows = {"image": [str(root / "files" / f"{i}.png") for i in range(10)]}
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(root / "saved")
        return open_source(root / "saved")
    images = np.zeros((12, 3, 3, 4), np.uint8)
    images[:, 0] = np.arange(12)[:, None, None]
    memory = ArraySource(images[:10], LABELS)
    return memory if kind == "array" else subset(open_source(root / "files"), range(10))


class Reds(Dataset):
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source.load(index).getpixel((0, 0))[0]


def test_contract(source):
    assert isinstance(source, ImageSource)
    assert len(source) == 10
    assert [source.load(i).getpixel((1, 1)) for i in (7, 2, 9)] == [(7, 0, 0), (2, 0, 0), (9, 0, 0)]
    assert source.load(0).size == (4, 3)
    assert len({source.name(i) for i in range(10)}) == 10
    described = json.loads(json.dumps(source.describe()))
    assert {"kind", "location", "count", "digest"} <= set(described)
    assert described["count"] == 10
    if source.labels is not None:
        assert source.labels.dtype == np.int64
        assert source.labels.tolist() == LABELS
    assert hasattr(source, "ids")


def test_workers_and_pickle(source):
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0)).tolist()
    source.load(3)  # what is open in the parent must not be shared by position with the workers
    loader = DataLoader(Reds(source), batch_size=2, sampler=order, num_workers=2)
    for _ in range(2):
        assert torch.cat(list(loader)).tolist() == order
    copy = pickle.loads(pickle.dumps(source))
    assert [copy.load(i).getpixel((0, 0))[0] for i in order] == order
    assert copy.describe() == source.describe()


def test_subset(source):
    part = subset(source, [4, 1, 1, 8])
    assert [part.load(i).getpixel((0, 0))[0] for i in range(4)] == [4, 1, 1, 8]
    nested = subset(part, [3, 0])
    assert [nested.load(i).getpixel((0, 0))[0] for i in range(2)] == [8, 4]
    if source.labels is not None:
        assert nested.labels.tolist() == [LABELS[8], LABELS[4]]
    digests = {s.describe()["digest"] for s in (source, part, nested, subset(source, [1, 4, 1, 8]))}
    assert len(digests) == 4
    assert part.describe()["count"] == 4
    with pytest.raises(DataError, match="indices run from 3 to 10, the source has 0 to 9"):
        subset(source, [3, 10])
    with pytest.raises(DataError, match="at least one index"):
        subset(source, [])


def test_take(source):
    assert len(take(source, 3)) == 3
    assert take(source, 99) is source
    drawn = take(source, 5, seed=1)
    values = [drawn.load(i).getpixel((0, 0))[0] for i in range(5)]
    assert values == sorted(set(values))
    again = take(source, 5, seed=1)
    assert [again.load(i).getpixel((0, 0))[0] for i in range(5)] == values
    assert any(take(source, 5, seed=s).describe() != drawn.describe() for s in range(2, 5))
    with pytest.raises(ConfigError, match="count=0"):
        take(source, 0)


def test_inspect(source):
    report = json.loads(json.dumps(inspect_source(source, 4)))
    assert report["count"] == 10
    assert report["sampled"] == 4
    assert report["width"] == {"min": 4, "median": 4.0, "max": 4}
    assert report["height"]["median"] == 3.0
    assert report["modes"] == {"RGB": 4}
    assert report["unreadable"] == 0
    if source.labels is not None:
        assert report["classes"] == 3
        assert report["images_per_class"] == {"min": 3, "max": 4}


def test_inspect_counts_the_unreadable(tmp_path):
    for name, data in {"a.png": png(1), "b.png": png(2)[:45], "c.jpg": b"<html>"}.items():
        (tmp_path / name).write_bytes(data)
    Image.new("L", (50, 20)).save(tmp_path / "d.jpg")
    report = inspect_source(open_source(tmp_path))
    assert report["unreadable"] == 2
    assert "c.jpg: an HTML or XML page" in report["unreadable_examples"][1]
    assert report["modes"] == {"RGB": 1, "L": 1}
    assert report["formats"] == {"PNG": 1, "JPEG": 1}
    assert report["width"] == {"min": 4, "median": 27.0, "max": 50}


def test_inspect_reports_stored_sizes_not_decoded_ones(tmp_path):
    Image.new("RGB", (400, 400)).save(tmp_path / "a.jpg")
    source = open_source(tmp_path, min_side=50)
    assert source.load(0).size == (50, 50)
    assert inspect_source(source)["width"]["max"] == 400


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_split_is_stratified_and_deterministic(seed, fraction):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 203)
    values = np.arange(203).astype(np.uint8).reshape(-1, 1, 1, 1)
    source = ArraySource(values, labels)
    rest, held_out = split_source(source, fraction, seed)
    together = np.concatenate([rest.array.ravel(), held_out.array.ravel()])
    assert sorted(together.tolist()) == list(range(203))
    assert len(held_out) == round(fraction * 203)
    assert np.all(np.diff(held_out.array.ravel().astype(int)) > 0)
    per_class = np.bincount(held_out.labels, minlength=5)
    assert np.abs(per_class - fraction * np.bincount(labels, minlength=5)).max() <= 1
    assert split_source(source, fraction, seed)[1].describe() == held_out.describe()
    assert split_source(source, fraction, seed + 100)[1].describe() != held_out.describe()


def test_split_without_labels_is_even_chance():
    source = ArraySource(np.arange(40, dtype=np.uint8).reshape(-1, 1, 1, 1))
    counts = np.zeros(40)
    for seed in range(300):
        counts[split_source(source, 0.25, seed)[1].array.ravel()] += 1
    assert counts.sum() == 3000
    assert 40 < counts.min() <= counts.max() < 115  # 75 expected, standard deviation 7.5


def test_split_keeps_groups_together():
    ids = np.repeat(np.arange(10), 4)
    source = ArraySource(np.zeros((40, 1, 1, 1), np.uint8), np.arange(40) % 2, ids=ids)
    rest, held_out = split_source(source, 0.3, seed=0)
    assert not set(rest.ids.tolist()) & set(held_out.ids.tolist())
    assert len(set(held_out.ids.tolist())) == 3
    assert len(held_out) == 12


def test_split_errors():
    source = ArraySource(np.zeros((4, 1, 1, 1), np.uint8), ids=[1, 1, 1, 1])
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(ConfigError, match="hold out a share between 0 and 1"):
            split_source(source, fraction, 0)
    with pytest.raises(DataError, match="cannot split 4 images in 1 group"):
        split_source(source, 0.5, 0)
    tiny = ArraySource(np.zeros((2, 1, 1, 1), np.uint8))
    assert [len(part) for part in split_source(tiny, 0.01, 0)] == [1, 1]
    assert [len(part) for part in split_source(tiny, 0.99, 0)] == [1, 1]


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_array_source(tensor, channels):
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 4, 6), dtype=np.uint8)
    source = ArraySource(
        torch.from_numpy(images) if tensor else images, classes=["a"], labels=torch.zeros(5, dtype=torch.int32)
    )
    assert source.array.base is not None or source.array is images
    assert np.shares_memory(source.array, images)
    loaded = source.load(2)
    if channels == 4:
        assert np.array_equal(loaded, images[2].transpose(1, 2, 0))
    else:
        assert loaded.mode == {1: "L", 3: "RGB"}[channels]
        assert np.array_equal(np.asarray(loaded).reshape(4, 6, channels), images[2].transpose(1, 2, 0))
    assert source.labels.dtype == np.int64
    part = subset(source, [3, 3])
    assert np.array_equal(part.array, images[[3, 3]])
    changed = images.copy()
    changed[4, 0, 0, 0] ^= 1
    assert ArraySource(changed).describe()["digest"] != ArraySource(images).describe()["digest"]


def test_array_source_errors():
    with pytest.raises(DataError, match=r"shape \(N, C, H, W\) and type uint8, got \(2, 3, 4, 4\) and float32"):
        ArraySource(np.zeros((2, 3, 4, 4), np.float32))
    with pytest.raises(DataError, match=r"got \(2, 4, 4\)"):
        ArraySource(np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(DataError, match=r"labels need 2 integers, got shape \(3,\)"):
        ArraySource(np.zeros((2, 1, 4, 4), np.uint8), [1, 2, 3])
    with pytest.raises(DataError, match=r"ids need 2 integers, .* float64"):
        ArraySource(np.zeros((2, 1, 4, 4), np.uint8), ids=[0.5, 1.0])


@pytest.mark.parametrize(
    ("values", "names", "labels", "classes"),
    [
        (None, None, None, None),
        (["3", "0"], None, [3, 0], None),
        (np.array([3, 0], np.int8), None, [3, 0], None),
        (["b", "a", "b"], None, [1, 0, 1], ["a", "b"]),
        (None, ["b", "a", "b"], [1, 0, 1], ["a", "b"]),
        (None, ["10", "2"], [10, 2], None),  # numbers are not sorted as words
        (None, np.array([10, 2]), [10, 2], None),
        (["2", "0"], ["z", "y"], [2, 0], ["y", "1", "z"]),
        (["-1", "4"], ["z", "y"], [1, 0], ["y", "z"]),
        (np.array([987654321, 5]), ["z", "y"], [1, 0], ["y", "z"]),
        (["x1", "x2"], ["dog", "cat"], [1, 0], ["cat", "dog"]),
    ],
)
def test_labels_from_columns(values, names, labels, classes):
    made, made_classes = make_labels(values, names, str)
    assert (None if made is None else made.tolist()) == labels
    assert made_classes == classes
    assert made is None or made.dtype == np.int64


def test_ids_from_columns():
    assert make_ids(None) is None
    assert make_ids(np.array([5, -2], np.int32)).tolist() == [5, -2]
    assert make_ids(["b", "a", "b"]).tolist() == [1, 0, 1]


def test_align_labels():
    train = ArraySource(np.zeros((1, 1, 1, 1), np.uint8), [0], ["ant", "bee", "cat"])
    test = ArraySource(np.zeros((3, 1, 1, 1), np.uint8), [1, 0, 1], ["bee", "cat"])
    assert align_labels(test, train.classes).tolist() == [2, 1, 2]
    with pytest.raises(DataError, match="class 'cat' is not among the 2 known ones; closest: cats"):
        align_labels(test, ["bee", "cats"])
    with pytest.raises(DataError, match="no class names"):
        align_labels(ArraySource(np.zeros((1, 1, 1, 1), np.uint8)), ["a"])


def test_packed_strings():
    texts = ["", "a/b.jpg", "ü/é.png", "\udcff.png", "x"]
    packed = PackedStrings(texts)
    assert list(packed) == texts
    assert packed[-2:] == texts[-2:]
    assert list(PackedStrings.from_arrays(*packed.arrays())) == texts
    with pytest.raises(IndexError):
        packed[5]
    assert fingerprint(PackedStrings(["ab", "c"])) != fingerprint(PackedStrings(["a", "bc"]))
    assert fingerprint("a", None) != fingerprint("a", "None")


def test_options():
    with pytest.raises(ConfigError, match="labels='folders'"):
        ReadOptions(labels="folders")
    with pytest.raises(ConfigError, match="channels=4"):
        ReadOptions(channels=4)
    with pytest.raises(ConfigError, match="min_side=0"):
        ReadOptions(min_side=0)


def test_which_format(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(png(3))
    assert open_source(tmp_path / "photos/a.png").load(0).getpixel((0, 0))[0] == 3
    assert open_source(f"{tmp_path}/photos/*.png").name(0) == str(tmp_path / "photos/a.png")
    assert open_source(tmp_path / "photos", channels=1).load(0).mode == "L"
    (tmp_path / "t.docx").write_text("x")
    with pytest.raises(
        DataError, match=r"t\.docx is of no kind known here; understood are a folder of images.*\.parquet.*torchvision:"
    ):
        open_source(tmp_path / "t.docx")
    with pytest.raises(DataError, match=r"photo does not exist; .* holds photos"):
        open_source(tmp_path / "photo")
    with pytest.raises(DataError, match=r"nothing matches .*\*\.gif"):
        open_source(f"{tmp_path}/photos/*.gif")
    with pytest.raises(DataError, match=r"matches files of the kinds \.docx"):
        open_source(f"{tmp_path}/*.docx")
    with pytest.raises(ConfigError, match="no data named; understood are"):
        open_source("")
    (tmp_path / "t.txt").write_text("photos/a.png\n")
    with pytest.raises(ConfigError, match=r"labels='folder' is for folders of images, .*t\.txt is none"):
        open_source(tmp_path / "t.txt", labels="folder")


def test_home_is_expanded(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png(3))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("~/a.png").load(0).getpixel((0, 0))[0] == 3


def test_folder_of_tables_is_one_set_or_an_error(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002"):
        pq.write_table(pa.table({"image": [png(1)]}), tmp_path / f"{name}.parquet")
    assert len(open_source(tmp_path)) == 2
    pq.write_table(pa.table({"image": [png(1)]}), tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(
        DataError, match=r"several sets: test\*\.parquet \(1 file\), train\*\.parquet \(2 files\); name one, '.*test\*"
    ):
        open_source(tmp_path)
    assert len(open_source(f"{tmp_path}/train*.parquet")) == 2


def test_package_import_is_light():
    code = "import sys, mc_vision.data; print([m for m in ('torch', 'PIL', 'numpy', 'pyarrow') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_public_names_resolve():
    import mc_vision.data as package

    for name in package.__all__:
        assert getattr(package, name) is not None, name
    assert set(package.__all__) <= set(dir(package))
    assert callable(package.decode)
