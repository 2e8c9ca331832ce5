"""Lists, CSV and Parquet: columns found or named, row numbers in errors, bytes at random without decoding the rest."""

from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mc_core.data import BadSampleError
from mc_core.errors import DataError
from mc_core.images import parquet as parquet_cells
from mc_vision.data import ReadOptions, open_csv, open_list, open_parquet, open_source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    for i in range(6):
        path = tmp_path / f"photos/{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3), (i, 0, 0)).save(path)
    return tmp_path


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def reds(source):
    return [source.load(i).getpixel((0, 0))[0] for i in range(len(source))]


def test_list_of_paths(photos):
    (photos / "list.txt").write_text(
        f"\ufeffphotos/3.png\n\n  photos/1.png  \n{photos}/photos/5.png\n", encoding="utf-8"
    )
    source = open_list(photos / "list.txt")
    assert reds(source) == [3, 1, 5]
    assert source.name(0) == str(photos / "photos/3.png")
    assert source.describe()["kind"] == "list"


def test_list_errors(photos):
    (photos / "list.txt").write_text("\n \n")
    with pytest.raises(DataError, match="is empty: write the path of one image per line"):
        open_list(photos / "list.txt")
    (photos / "list.txt").write_text("\nnowhere/1.png\n")
    with pytest.raises(DataError, match=r"list\.txt, line 2: no file '.*nowhere/1\.png'"):
        open_list(photos / "list.txt")
    (photos / "list.txt").write_bytes(b"photos/1.png\n\xff\xfe\n")
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        open_list(photos / "list.txt")
    (photos / "list.txt").write_text("photos/1.png\nphotos/99.png\n")
    with pytest.raises(BadSampleError, match=r"99\.png: no such file"):
        open_list(photos / "list.txt").load(1)


@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.csv", ";"), ("t.tsv", "\t")])
def test_delimited_table(photos, name, delimiter):
    rows = [
        ("File_Name", "label", "class_name", "id"),
        ("photos/2.png", "1", "dog", "x"),
        ("photos/0.png", "0", "cat", "y"),
    ]
    rows.append(("photos/4.png", "1", "dog", "x"))
    (photos / name).write_text("".join(delimiter.join(row) + "\r\n" for row in rows))
    source = open_csv(photos / name)
    assert reds(source) == [2, 0, 4]
    assert source.labels.tolist() == [1, 0, 1]
    assert source.classes == ["cat", "dog"]
    assert source.ids[0] == source.ids[2] != source.ids[1]
    assert open_csv(photos / name, ReadOptions(labels="none")).labels is None


def test_named_columns(photos):
    (photos / "t.csv").write_text('where,species,note\nphotos/0.png,newt,"a, b"\nphotos/1.png,frog,"c\nd"\n')
    source = open_csv(photos / "t.csv", ReadOptions(image_column="where", label_column="species"))
    assert source.classes == ["frog", "newt"]
    assert source.labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"has no label_column 'spices'; closest: species"):
        open_csv(photos / "t.csv", ReadOptions(image_column="where", label_column="spices"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column of image paths among no columns"),
        ("a,b\n1,2\n", "line 1: no column of image paths among 'a', 'b'.*image_column"),
        ("photos/0.png\nphotos/1.png\n", "the first line must name the columns"),
        ("path\n", "has a header and no rows"),
        ("path,label\nphotos/0.png,1\nphotos/1.png\n", r"t\.csv, line 3: 1 cells, the header has 2"),
        ("path,label\nphotos/0.png,1\n,1\n", "line 3: the cell 'path' is empty"),
        ("path,label\nphotos/0.png,1\n\nphotos/1.png,\n", "line 4: the label is empty.*labels='none'"),
        ('path,label\nphotos/0.png,"1\n', "line 2: unexpected end of data"),
        ("path\nnowhere.png\n", r"line 2: no file '.*nowhere\.png'"),
        (
            "path,label,class_name\nphotos/0.png,1,cat\nphotos/1.png,1,dog\n",
            "line 3: label 1 is called 'dog', but 'cat' at .*line 2",
        ),
    ],
)
def test_csv_errors(photos, text, message):
    (photos / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_csv(photos / "t.csv")


def test_parquet_of_paths(photos):
    pq.write_table(pa.table({"path": ["photos/5.png", "photos/1.png"], "class": [10, 2]}), photos / "t.parquet")
    source = open_source(photos / "t.parquet")
    assert reds(source) == [5, 1]
    assert source.labels.tolist() == [10, 2]  # integers stay what they are, also in a column of class names
    (photos / "more").mkdir()
    pq.write_table(pa.table({"path": ["../photos/0.png"], "class": [2]}), photos / "more/t.parquet")
    both = open_parquet([photos / "t.parquet", photos / "more/t.parquet"])
    assert reds(both) == [5, 1, 0]


def bytes_table(values, kind):
    cells = [png(value) for value in values]
    if kind == "struct":
        cells = [{"bytes": cell, "path": f"{value}.png"} for cell, value in zip(cells, values, strict=True)]
        column = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    else:
        column = pa.array(cells, pa.large_binary() if kind == "large" else pa.binary())
    return pa.table({"image": column, "label": pa.array([v % 2 for v in values], pa.int8())})


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", ["binary", "large", "struct"])
def test_parquet_of_bytes(tmp_path, monkeypatch, kind, mapped):
    monkeypatch.setattr(parquet_cells, "IN_MEMORY", 0 if mapped else 1 << 30)
    pq.write_table(bytes_table(range(7), kind), tmp_path / "set-00.parquet", row_group_size=3)
    pq.write_table(bytes_table(range(7, 12), kind), tmp_path / "set-01.parquet", row_group_size=2)
    source = open_source(tmp_path / "set-*.parquet")
    assert reds(source) == list(range(12))
    assert source.labels.tolist() == [i % 2 for i in range(12)]
    assert source.name(8) == f"{tmp_path}/set-01.parquet[1]"
    assert source.load(-1).getpixel((0, 0))[0] == 11
    with pytest.raises(IndexError):
        source.load(12)
    assert reds(pickle.loads(pickle.dumps(source))) == list(range(12))
    files = list((tmp_path / "cache").rglob("*.arrow"))
    assert len(files) == (2 if mapped else 0)
    stamps = [file.stat().st_mtime_ns for file in files]
    assert reds(open_source(tmp_path)) == list(range(12))  # the folder is one set; nothing is unpacked twice
    assert [file.stat().st_mtime_ns for file in files] == stamps


def test_pickle_carries_no_images(tmp_path):
    noise = [Image.effect_noise((64, 64), 90) for _ in range(20)]
    cells = []
    for image in noise:
        file = io.BytesIO()
        image.save(file, "PNG")
        cells.append(file.getvalue())
    pq.write_table(pa.table({"image": cells}), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    source.load(3)
    assert len(pickle.dumps(source)) < 3000 < sum(map(len, cells))


def test_changed_parquet_is_unpacked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_cells, "IN_MEMORY", 0)
    for values in ([1, 2], [3, 4, 5]):
        pq.write_table(bytes_table(values, "binary"), tmp_path / "t.parquet")
        assert reds(open_source(tmp_path / "t.parquet")) == values


def test_struct_with_a_path_alone_and_empty_cells(photos):
    cells = [{"bytes": None, "path": "photos/4.png"}, {"bytes": None, "path": None}, {"bytes": png(9), "path": None}]
    column = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": column}), photos / "t.parquet")
    source = open_source(photos / "t.parquet")
    assert source.load(0).getpixel((0, 0))[0] == 4
    assert source.load(2).getpixel((0, 0))[0] == 9
    with pytest.raises(BadSampleError, match=r"t\.parquet\[1\]: the image cell is empty"):
        source.load(1)


def test_class_names_of_hugging_face_schemas(tmp_path):
    features = {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}, "image": {"_type": "Image"}}
    made = bytes_table([4, 5, 6], "struct")
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(made.replace_schema_metadata(metadata), tmp_path / "t.parquet")
    assert open_source(tmp_path / "t.parquet").classes == ["no", "yes"]
    pq.write_table(made.replace_schema_metadata({b"huggingface": b"{}"}), tmp_path / "t.parquet")
    assert open_source(tmp_path / "t.parquet").classes is None


def test_dictionary_labels_and_ids(tmp_path):
    made = pa.table(
        {
            "picture": [png(i) for i in range(4)],
            "class_name": pa.array(["b", "a", "b", "c"]).dictionary_encode(),
            "patient": [7, 7, 8, 9],
        }
    )
    pq.write_table(made, tmp_path / "t.parquet")
    source = open_parquet([tmp_path / "t.parquet"], ReadOptions(id_column="patient"))
    assert source.classes == ["a", "b", "c"]
    assert source.labels.tolist() == [1, 0, 1, 2]
    assert source.ids.tolist() == [7, 7, 8, 9]


def test_parquet_errors(tmp_path):
    def written(name="t.parquet", **columns):
        pq.write_table(pa.table(columns), tmp_path / name)
        return [tmp_path / name]

    with pytest.raises(DataError, match=r"no column of encoded images or paths found among a \(int64\), b \(double\)"):
        open_parquet(written(a=[1], b=[0.5]))
    with pytest.raises(DataError, match=r"t\.parquet, row 2: 'label' is empty"):
        open_parquet(written(image=[png(0)] * 3, label=[1, 2, None]))
    with pytest.raises(DataError, match="column 'label' is int64; images are bytes or paths"):
        open_parquet(written(image=[png(0)], label=[1]), ReadOptions(image_column="label"))
    with pytest.raises(DataError, match="no rows"):
        open_parquet(written(image=pa.array([], pa.binary())))
    with pytest.raises(DataError, match=r"u\.parquet: column 'label' is missing, in .*t\.parquet it is int64"):
        open_parquet(written(image=[png(0)], label=[1]) + written("u.parquet", image=[png(0)]))
    with pytest.raises(DataError, match=r"u\.parquet, row 1: 'label' is empty"):
        open_parquet(written(image=[png(0)], label=[1]) + written("u.parquet", image=[png(0)] * 2, label=[1, None]))
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"t\.parquet is not a readable Parquet file"):
        open_parquet([tmp_path / "t.parquet"])


@pytest.mark.parametrize("mapped", [False, True])
def test_damaged_parquet_names_the_file_and_leaves_no_half_cache(tmp_path, monkeypatch, mapped):
    monkeypatch.setattr(parquet_cells, "IN_MEMORY", 0 if mapped else 1 << 30)
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"image": [png(i) * 50 for i in range(40)]}), path, compression="zstd", use_dictionary=False
    )
    data = bytearray(path.read_bytes())
    data[8:400] = bytes(392)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"t\.parquet.* damaged"):
        open_source(path).load(0)
    assert not list(tmp_path.rglob("*.arrow"))


def test_full_cache_disk_is_said_before_unpacking(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_cells, "IN_MEMORY", 0)
    monkeypatch.setattr(parquet_cells.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    pq.write_table(bytes_table([1], "binary"), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"needs \d+ B in the cache .* has 10 B free: name another folder as cache_dir"):
        open_source(tmp_path / "t.parquet")


def test_reading_one_row_does_not_touch_the_others(tmp_path):
    pq.write_table(pa.table({"image": [png(1), b"broken", png(3)]}), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    assert source.load(2).getpixel((0, 0))[0] == 3
    with pytest.raises(BadSampleError, match=r"t\.parquet\[1\]: not an image"):
        source.load(1)
    assert np.array_equal(np.frombuffer(source.read(0), np.uint8), np.frombuffer(png(1), np.uint8))
