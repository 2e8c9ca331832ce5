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

from mc_core.errors import DataError
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
    table_of,
    web_dataset,
    write_json,
    write_tar,
)
from mc_vision_language.data import ColumnOptions, ReadOptions, SplitOptions, clean_caption, open_pairs

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
    assert words(open_pairs(tmp_path)) == words(pairs)


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


def test_a_path_as_it_stands_comes_before_one_without_its_folders(tmp_path):
    pictures(tmp_path / "photos", 4)
    (tmp_path / "sub").mkdir()
    for number in range(4):
        (tmp_path / "sub" / f"{number}.jpg").write_bytes(picture(9))
    table = table_of(tmp_path / "sub", [f"photos/{number}.jpg,a dog" for number in range(4)])
    assert all(same_pixels(open_pairs(table), row, row) for row in range(4))
