"""What is said of captions and pictures that are missing, empty, damaged or somewhere else."""

import pytest

from mc_core.errors import ConfigError, DataError
from mc_testkit.caption_files import (
    picture,
    pictures,
    table_of,
    web_dataset,
    write_json,
    write_tar,
)
from mc_vision_language.data import CaptionOptions, ColumnOptions, ReadOptions, open_pairs


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
        ("no caption column", DataError, r"no column of captions among 'image', 'price'; .*--column.caption"),
        ("no image column", DataError, r"no column of pictures among 'caption', 'price'; .*--column.image"),
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


def test_a_folder_of_pictures_for_data_that_hold_theirs_is_refused(tmp_path):
    pattern = web_dataset(tmp_path / "shards")
    with pytest.raises(ConfigError, match=r"--images .*: the pictures are in .* itself; leave the option out"):
        open_pairs(pattern, images=tmp_path)
