"""Pairs from files of every published layout, read back word for word, and what is said when something is wrong."""

import json
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mc_core.errors import ConfigError, DataError
from mc_core.images.decoding import decode
from mc_testkit.caption_files import (
    WORDS,
    albef_test,
    albef_train,
    coco,
    flickr8k_txt,
    flickr_annotations,
    flickr_results,
    flickr_token,
    image_folder,
    karpathy_coco,
    karpathy_flickr,
    picture,
    pictures,
    web_dataset,
    write_json,
    write_tar,
)
from mc_vision_language.data import CaptionOptions, ColumnOptions, ReadOptions, SplitOptions, clean_caption, open_pairs

CLEAN = [clean_caption(text) for text in WORDS]


def words(pairs):
    """Captions of each picture."""
    return [pairs.captions_of(row) for row in range(len(pairs))]


def same_pixels(pairs, row, number):
    return np.array_equal(np.asarray(pairs.images.read(row)), np.asarray(decode(picture(number))))


def test_coco(tmp_path):
    pairs = open_pairs(coco(tmp_path))
    assert words(pairs) == [(CLEAN[i], CLEAN[i + 3]) for i in range(3)]
    assert pairs.dropped == {"picture without a caption": 1}
    assert "000000000003.jpg" in pairs.examples[0]
    assert all(same_pixels(pairs, row, row) for row in range(3))
    assert len(np.unique(pairs.image_ids)) == 3


def test_coco_with_the_pictures_elsewhere(tmp_path):
    table = coco(tmp_path / "a")
    (tmp_path / "a" / "val2017").rename(tmp_path / "photos")
    with pytest.raises(DataError, match=r"annotation 1: no file '000000000000.jpg'.*--images"):
        open_pairs(table)
    assert len(open_pairs(table, images=tmp_path / "photos")) == 3


def test_karpathy_coco(tmp_path):
    pairs = open_pairs(karpathy_coco(tmp_path), split=SplitOptions(seed=3))
    assert words(pairs) == [*((CLEAN[i], CLEAN[i + 1]) for i in range(4)), (CLEAN[5],)]
    assert pairs.splits.tolist() == ["train", "train", "validation", "test", "train"]
    assert [same_pixels(pairs, row, number) for row, number in enumerate((0, 1, 2, 3, 0))] == [True] * 5
    assert pairs.image_ids[0] == pairs.image_ids[4]  # the same bytes under two names
    assert pairs.part("test").captions == (CLEAN[3], CLEAN[4])


def test_karpathy_flickr(tmp_path):
    pairs = open_pairs(karpathy_flickr(tmp_path))
    assert words(pairs) == [(CLEAN[i],) for i in range(3)]
    assert pairs.split_counts() == {"train": 1, "validation": 1, "test": 1}


def test_flickr_token(tmp_path):
    pairs = open_pairs(flickr_token(tmp_path))
    assert words(pairs) == [(CLEAN[i], CLEAN[i + 1]) for i in range(3)]


def test_flickr8k_captions(tmp_path):
    pairs = open_pairs(flickr8k_txt(tmp_path))
    assert words(pairs) == [(CLEAN[0],), (CLEAN[1],), ("quoted once",)]


def test_flickr_results(tmp_path):
    pairs = open_pairs(flickr_results(tmp_path), images=tmp_path / "flickr30k_images")
    assert words(pairs) == [(CLEAN[i],) for i in range(3)]
    assert pairs.columns["caption"] == "column 'comment'"


def test_flickr_annotations(tmp_path):
    pairs = open_pairs(flickr_annotations(tmp_path))
    assert words(pairs) == [(CLEAN[i], CLEAN[i + 1]) for i in range(3)]
    assert pairs.splits.tolist() == ["train", "validation", "test"]


def test_lists_of_the_official_code(tmp_path):
    table = albef_train(tmp_path)
    with pytest.raises(DataError, match="entry 1: no file '/export/share"):
        open_pairs(table)
    pairs = open_pairs(table, images=tmp_path / "here")
    assert words(pairs) == [(CLEAN[i], CLEAN[i + 3]) for i in range(3)]
    assert pairs.columns["image_id"] == "field 'image_id'"
    assert words(open_pairs(albef_test(tmp_path / "test"))) == [(CLEAN[i], CLEAN[i + 1]) for i in range(3)]


def test_folder_of_hugging_face(tmp_path):
    assert words(open_pairs(image_folder(tmp_path))) == [(CLEAN[i],) for i in range(3)]


def test_folder_with_notes_beside(tmp_path):
    for part in ("train", "val"):
        pictures(tmp_path / part, 2)
    (tmp_path / "train" / "0.txt").write_text(f"{WORDS[0]}\n\n{WORDS[1]}\n")
    write_json(tmp_path / "train" / "1.json", {"captions": [WORDS[2]], "objects": []})
    write_json(tmp_path / "val" / "0.json", [WORDS[3], WORDS[4]])
    (tmp_path / "val" / "1.txt").write_text(WORDS[5])
    pairs = open_pairs(tmp_path)
    assert words(pairs) == [(CLEAN[0], CLEAN[1]), (CLEAN[2],), (CLEAN[3], CLEAN[4]), (CLEAN[5],)]
    assert pairs.splits.tolist() == ["train", "train", "validation", "validation"]
    assert pairs.image_ids[0] == pairs.image_ids[2] != pairs.image_ids[1]
    assert pairs.columns["split"] == "folders; 2 pictures in several parts"


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_tables(tmp_path, ending):
    names = pictures(tmp_path / "photos", 4)
    table = tmp_path / f"pairs.{ending}"
    rows = [(f"photos/{names[i % 4]}", WORDS[i], ("train", "dev")[i % 2]) for i in range(6)]
    if ending == "parquet":
        columns = zip(*rows, strict=True)
        pq.write_table(pa.table(dict(zip(("path", "text", "fold"), map(list, columns), strict=True))), table)
    elif ending == "jsonl":
        table.write_text(
            "".join(json.dumps(dict(zip(("path", "text", "fold"), row, strict=True))) + "\n" for row in rows)
        )
    else:
        mark = "\t" if ending == "tsv" else ","
        cells = [mark.join(f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row) for row in rows]
        table.write_text("\n".join([mark.join(("path", "text", "fold")), *cells]) + "\n")
    pairs = open_pairs(table)
    assert words(pairs) == [(CLEAN[0], CLEAN[4]), (CLEAN[1], CLEAN[5]), (CLEAN[2],), (CLEAN[3],)]
    assert pairs.splits.tolist() == ["train", "validation"] * 2
    assert set(pairs.columns) == {"image", "caption", "split", "image_id"}
    assert "'path'" in pairs.columns["image"]
    chosen = open_pairs(table, columns=ColumnOptions(image="path", caption="fold"))
    assert words(chosen)[0] == ("train", "train")


@pytest.mark.parametrize("kind", ["binary", "struct"])
def test_parquet_of_pictures(tmp_path, kind):
    for part, numbers in (("train", (0, 1, 2)), ("validation", (3, 1))):
        cells = [picture(number) for number in numbers]
        images = cells if kind == "binary" else [{"bytes": data, "path": "x.jpg"} for data in cells]
        captions = [[WORDS[number], WORDS[number + 1]] for number in numbers]
        pq.write_table(pa.table({"image": images, "caption": captions}), tmp_path / f"{part}-00000-of-00001.parquet")
    pairs = open_pairs(tmp_path)
    assert words(pairs) == [(CLEAN[i], CLEAN[i + 1]) for i in (0, 1, 2, 3, 1)]
    assert pairs.splits.tolist() == ["train"] * 3 + ["validation"] * 2
    assert [same_pixels(pairs, row, number) for row, number in enumerate((0, 1, 2, 3, 1))] == [True] * 5
    assert pairs.image_ids[1] == pairs.image_ids[4]
    assert len(np.unique(pairs.image_ids)) == 4


def test_web_dataset(tmp_path):
    pairs = open_pairs(web_dataset(tmp_path))
    assert words(pairs) == [(CLEAN[i],) for i in range(6)]
    assert all(same_pixels(pairs, row, row) for row in range(6))
    assert words(open_pairs(tmp_path)) == words(pairs)
    assert np.array_equal(open_pairs(tmp_path / "*.tar").image_ids, pairs.image_ids)
    chosen = open_pairs(tmp_path / "00000.tar", columns=ColumnOptions(caption="key"))
    assert words(chosen)[1] == ("000000001",)


def test_shards_named_after_their_part(tmp_path):
    for part in ("train", "val"):
        write_tar(tmp_path / f"{part}-000.tar", {f"{part}.jpg": picture(len(part)), f"{part}.txt": part})
    pairs = open_pairs(tmp_path)
    assert pairs.splits.tolist() == ["train", "validation"]


def test_saved_hugging_face_data(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Sequence(datasets.Value("string"))})
    parts = {
        part: datasets.Dataset.from_dict(
            {"image": [{"bytes": picture(n), "path": None} for n in numbers], "caption": [[WORDS[n]] for n in numbers]},
            features=features,
        )
        for part, numbers in (("train", (0, 1, 0)), ("test", (2,)))
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    pairs = open_pairs(tmp_path / "saved")
    assert words(pairs) == [(CLEAN[i],) for i in (0, 1, 0, 2)]
    assert pairs.splits.tolist() == ["train", "train", "train", "test"]
    assert pairs.image_ids[0] == pairs.image_ids[2]
    assert same_pixels(pairs, 3, 2)
    alone = open_pairs(f"{tmp_path / 'saved'}:test", split=SplitOptions(shares=(1.0, 0.0, 0.0)))
    assert words(alone) == [(CLEAN[2],)]


def table_of(folder, rows, header="image,caption"):
    (folder / "t.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "t.csv"


def test_missing_pictures_are_counted_listed_and_refused_beyond_a_share(tmp_path):
    names = pictures(tmp_path, 6)
    (tmp_path / names[2]).unlink()
    (tmp_path / names[4]).write_bytes(b"")
    table = table_of(tmp_path, [f"{name},a dog" for name in names])
    with pytest.raises(
        DataError,
        match=r"2 of 6 pictures are missing or empty \(33.3%, allowed 1.0%\): .*2\.jpg, .*4\.jpg; .*--max-bad",
    ):
        open_pairs(table)
    pairs = open_pairs(table, read=ReadOptions(max_bad=0.34))
    assert len(pairs) == 4
    assert pairs.dropped == {"missing picture": 2}
    assert [example.rpartition("/")[2] for example in pairs.examples] == ["2.jpg", "4.jpg"]


def test_empty_captions_are_counted_listed_and_refused_beyond_a_share(tmp_path):
    names = pictures(tmp_path, 6)
    table = table_of(
        tmp_path, [f"{name},{' ' if i == 3 else '!?' if i == 4 else 'a dog'}" for i, name in enumerate(names)]
    )
    with pytest.raises(DataError, match=r"2 of 6 captions are empty.*line 5, .*line 6; .*--max-bad"):
        open_pairs(table)
    pairs = open_pairs(table, read=ReadOptions(max_bad=0.5))
    assert pairs.dropped == {"empty caption": 2, "picture without a caption": 2}
    assert any("line 5" in example for example in pairs.examples)
    assert len(open_pairs(table, read=ReadOptions(max_bad=0.5), captions=CaptionOptions(clean=False))) == 5


def test_unreadable_rows_are_counted(tmp_path):
    names = pictures(tmp_path, 4)
    table = table_of(tmp_path, [*(f"{name},a dog" for name in names), "0.jpg,a,b,c"])
    with pytest.raises(DataError, match=r"1 of 5 rows is unreadable .*line 6: 4 cells, the header has 2"):
        open_pairs(table)
    assert open_pairs(table, read=ReadOptions(max_bad=0.3)).dropped == {"unreadable row": 1}


def test_equal_files_are_the_same_picture(tmp_path):
    names = pictures(tmp_path, 3)
    (tmp_path / "copy.jpg").write_bytes(picture(1))
    table = table_of(tmp_path, [f"{name},a dog" for name in (*names, "copy.jpg")])
    ids = open_pairs(table).image_ids
    assert ids[3] == ids[1]
    assert len(np.unique(ids)) == 3
    assert len(np.unique(open_pairs(table, read=ReadOptions(duplicates="name")).image_ids)) == 4
    # an id of the table and equal bytes both join
    joined = table_of(
        tmp_path,
        [f"{name},a dog,{key}" for name, key in zip((*names, "copy.jpg"), "xyzz", strict=True)],
        "image,caption,image_id",
    )
    ids = open_pairs(joined, split=SplitOptions(shares=(1.0, 0.0, 0.0))).image_ids
    assert ids[1] == ids[2] == ids[3] != ids[0]


def test_ids_and_parts_do_not_depend_on_where_the_folder_lies(tmp_path, monkeypatch):
    names = pictures(tmp_path / "a" / "photos", 6)
    table_of(tmp_path / "a", [f"photos/{name},a dog" for name in names])
    first = open_pairs(tmp_path / "a" / "t.csv")
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.chdir(tmp_path / "b")
    second = open_pairs("t.csv")
    assert np.array_equal(first.image_ids, second.image_ids)
    assert np.array_equal(first.splits, second.splits)


def test_own_parts_that_say_nothing_are_divided_anew(tmp_path):
    names = pictures(tmp_path, 6)
    rows = [f"{name},a dog,{'train' if i else 'iconic'}" for i, name in enumerate(names)]
    pairs = open_pairs(table_of(tmp_path, rows, "image,caption,split"))
    assert len(pairs) == 6
    assert "one part alone, 'train'" in pairs.columns["split"]
    rows[5] = rows[5].replace("train", "test")
    table = table_of(tmp_path, rows, "image,caption,split")
    pairs = open_pairs(table)
    assert pairs.dropped == {"split of another name": 1}
    assert pairs.splits.tolist() == ["train"] * 4 + ["test"]
    assert len(open_pairs(table, split=SplitOptions(own=False))) == 6


def wrong(tmp_path, kind):
    """A source with something wrong, and what open_pairs is asked for."""
    names = pictures(tmp_path, 2)
    if kind == "nothing":
        return tmp_path / "nothing.csv", {}
    if kind == "picture":
        return tmp_path / names[0], {}
    if kind == "no caption column":
        return table_of(tmp_path, ["0.jpg,3"], "image,price"), {}
    if kind == "no image column":
        return table_of(tmp_path, ["a dog,3"], "caption,price"), {}
    if kind == "column":
        return table_of(tmp_path, ["0.jpg,a dog"]), {"columns": ColumnOptions(caption="captoin")}
    if kind == "folder":
        return table_of(tmp_path, ["0.jpg,a dog"]), {"images": tmp_path / "fotos"}
    if kind == "no pictures there":
        return table_of(tmp_path, ["x/9.jpg,a dog"]), {}
    if kind == "not utf-8":
        (tmp_path / "t.csv").write_bytes(b"image,caption\n0.jpg,caf\xe9\n")
        return tmp_path / "t.csv", {}
    if kind == "json":
        (tmp_path / "t.json").write_text('[{"image": "0.jpg", "caption": ')
        return tmp_path / "t.json", {}
    if kind == "instances":
        notes = {"images": [{"id": 1, "file_name": "0.jpg"}], "annotations": [{"image_id": 1, "bbox": [0, 0, 2, 2]}]}
        return write_json(tmp_path / "instances.json", notes), {}
    if kind == "layout":
        return write_json(tmp_path / "t.json", {"version": 1}), {}
    if kind == "parquet":
        (tmp_path / "t.parquet").write_bytes(b"PAR1 not really")
        return tmp_path / "t.parquet", {}
    if kind == "cut tar":
        tar = write_tar(
            tmp_path / "t.tar", {"a.jpg": picture(0), "a.txt": "a dog", "b.jpg": picture(1) * 20, "b.txt": "x"}
        )
        tar.write_bytes(tar.read_bytes()[:4000])
        return tar, {}
    if kind == "tar without captions":
        return write_tar(tmp_path / "t.tar", {"a.jpg": picture(0), "a.cls": "3"}), {}
    if kind == "tar without pictures":
        return write_tar(tmp_path / "t.tar", {"a.txt": "a dog"}), {}
    if kind == "tar with two captions":
        return write_tar(tmp_path / "t.tar", {"a.jpg": picture(0), "a.seg.jpg": picture(1), "a.json": "{"}), {}
    if kind == "gz":
        (tmp_path / "t.tar.gz").write_bytes(b"\x1f\x8b")
        return tmp_path / "t.tar.gz", {}
    if kind == "no notes":
        return tmp_path, {}
    if kind == "several tables":
        for name in ("a.csv", "b.csv"):
            (tmp_path / name).write_text("image,caption\n")
        return tmp_path, {}
    if kind == "header alone":
        return table_of(tmp_path, []), {}
    if kind == "one picture":
        return table_of(tmp_path, ["0.jpg,a dog"]), {}
    raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("nothing", DataError, r"nothing.csv does not exist"),
        ("picture", DataError, r"0.jpg is of no kind known here; understood are a table"),
        ("no caption column", DataError, r"no column of captions among 'image', 'price'; .*--columns.caption"),
        ("no image column", DataError, r"no column of pictures among 'caption', 'price'; .*--columns.image"),
        ("column", ConfigError, r"no column 'captoin' for the caption; it has caption"),
        ("folder", DataError, r"--images .*fotos: no such folder"),
        ("no pictures there", DataError, r"line 2: no file 'x/9.jpg' .*--images"),
        ("not utf-8", DataError, r"line 2: not UTF-8 text"),
        ("json", DataError, r"line 1, column \d+: not JSON"),
        ("instances", DataError, r"hold no 'caption': give captions_\*.json"),
        ("layout", DataError, r"no layout known here; understood are COCO"),
        ("parquet", DataError, r"t.parquet is not a readable Parquet file"),
        ("cut tar", DataError, r"damaged or cut off .*last good key is 'a'"),
        ("tar without captions", DataError, r"no sample has a caption in a .txt or .json; the files end in cls, jpg"),
        ("tar without pictures", DataError, r"no sample has a picture"),
        ("tar with two captions", DataError, r"no sample has a caption|a.json: not JSON"),
        ("gz", DataError, r"compressed archive"),
        ("no notes", DataError, r"no .txt or .json of the same name beside any picture"),
        ("several tables", DataError, r"holds several tables \(a.csv, b.csv\)"),
        ("header alone", DataError, r"a header and no rows"),
        ("one picture", DataError, r"1 different pictures cannot be divided into 3 parts"),
    ],
)
def test_wrong_data_is_said_in_one_line(tmp_path, kind, error, words):
    source, options = wrong(tmp_path, kind)
    with pytest.raises(error, match=words) as caught:
        open_pairs(source, **options)
    assert "\n" not in str(caught.value)


def test_nothing_is_downloaded_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("MC_CACHE", str(tmp_path / "cache"))
    open_pairs(web_dataset(tmp_path / "data"))
    open_pairs(coco(tmp_path / "coco"))
    assert not os.path.exists(tmp_path / "cache")


def test_pictures_that_begin_alike_are_not_the_same(tmp_path):
    """Equal size and equal first 4,096 bytes; only the last byte differs."""
    tail = b"\0" * 8000
    for name, last in (("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"1"), ("d.jpg", b"3")):
        (tmp_path / name).write_bytes(picture(0) + tail + last)
    ids = open_pairs(table_of(tmp_path, [f"{name}.jpg,a dog" for name in "abcd"])).image_ids
    assert ids[0] == ids[2]
    assert len(set(ids.tolist())) == 3
    members = {
        f"{name}.{ending}": (tmp_path / f"{name}.jpg").read_bytes() if ending == "jpg" else "a dog"
        for name in "abcd"
        for ending in ("jpg", "txt")
    }
    ids = open_pairs(write_tar(tmp_path / "t.tar", members)).image_ids
    assert ids[0] == ids[2]
    assert len(set(ids.tolist())) == 3


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Of a server of ``tmp_path / "data"``."""
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "data").mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "data")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_shards_and_tables_behind_an_address(tmp_path, address):
    web_dataset(tmp_path / "data")
    read = ReadOptions(cache=tmp_path / "cache")
    pairs = open_pairs(f"{address}/{{00000..00001}}.tar", read=read)
    assert words(pairs) == [(CLEAN[i],) for i in range(6)]
    assert all(same_pixels(pairs, row, row) for row in range(6))
    assert len(list((tmp_path / "cache" / "remote").glob("*.tar"))) == 2
    names = pictures(tmp_path / "photos", 4)
    table_of(tmp_path / "data", [f"{name},a dog" for name in names])
    assert len(open_pairs(f"{address}/t.csv", images=tmp_path / "photos", read=read)) == 4
    with pytest.raises(DataError, match="HTTP 404 .*; check the address"):
        open_pairs(f"{address}/00002.tar", read=read)


def test_a_folder_of_pictures_for_data_that_hold_theirs_is_refused(tmp_path):
    pattern = web_dataset(tmp_path / "shards")
    with pytest.raises(ConfigError, match=r"--images .*: the pictures are in .* itself; leave the option out"):
        open_pairs(pattern, images=tmp_path)
