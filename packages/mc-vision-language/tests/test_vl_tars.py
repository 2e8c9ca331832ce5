"""Pictures in tars: all of them to search in, or those that a table names."""

import csv

import numpy as np
import pytest

from mc_core.errors import ConfigError, DataError
from mc_testkit.caption_files import picture, write_tar
from mc_vision_language import ReadOptions, TarImages, open_pairs


@pytest.fixture
def table(tmp_path):
    """Writes a table of captions for pictures by these names."""

    def write(names):
        path = tmp_path / "captions.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [["image", "caption"], *((name, f"a {n} of dogs") for n, name in enumerate(names))]
            )
        return path

    return write


def shards(folder, counts):
    """One tar for each count, pictures numbered through."""
    made, number = [], 0
    for place, count in enumerate(counts):
        members = {f"{n:03d}.jpg": picture(n) for n in range(number, number + count)}
        made.append(write_tar(folder / f"part-{place:02d}.tar", members))
        number += count
    return made


def test_all_pictures_of_several_shards_in_order(tmp_path):
    shards(tmp_path, [2, 3])
    for pattern in ("part-*.tar", "part-{00..01}.tar", f"part-00.tar::{tmp_path}/part-01.tar"):
        images = TarImages.every(f"{tmp_path}/{pattern}")
        assert [images.key(row) for row in range(5)] == [f"{n:03d}.jpg" for n in range(5)]
        for row in (0, 2, 4):
            assert images.data(row) == picture(row)
    assert images.name(2) == f"{tmp_path}/part-01.tar/002.jpg"


def test_a_sample_has_one_picture_and_notes_are_none(tmp_path):
    tar = write_tar(
        tmp_path / "t.tar", {"a.jpg": picture(1), "a.seg.png": picture(2), "a.json": "{}", "b.PNG": picture(3)}
    )
    images = TarImages.every(str(tar))
    assert [images.key(row) for row in range(len(images))] == ["a.jpg", "b.png"]


@pytest.mark.parametrize(
    ("members", "pattern", "message"),
    [
        ({"a.txt": "words"}, "t.tar", "holds no picture"),
        ({"a.txt": "words"}, "t{0..1}.tar", r"no shard .*t0.tar"),
        ({"a.txt": "words"}, "u*.tar", r"no shard .*u\*.tar"),
    ],
)
def test_a_tar_without_pictures_or_none(tmp_path, members, pattern, message):
    write_tar(tmp_path / "t.tar", members)
    with pytest.raises(DataError, match=message):
        TarImages.every(f"{tmp_path}/{pattern}")


@pytest.mark.parametrize("below", ["", "photos/2020/"])
def test_a_table_names_members_of_a_tar(tmp_path, table, below):
    """As they are, or with folders of another machine before them; the pairs are those of the same files in a folder."""
    names = [f"photos/{n}.jpg" for n in range(6)]
    tar = write_tar(tmp_path / "t.tar", {f"./{name}": picture(n) for n, name in enumerate(names)})
    path = table([("/data/" if below else "") + name for name in names])
    found = open_pairs(path, images=tar)
    for n, name in enumerate(names):
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(picture(n))
    other = open_pairs(path, images=tmp_path / "copy")
    assert found.captions == other.captions
    assert np.array_equal(found.image_of, other.image_of)
    for row in range(len(other)):
        assert np.array_equal(np.asarray(found.images.read(row)), np.asarray(other.images.read(row)))


def test_members_that_are_not_there_are_counted_and_allowed(tmp_path, table):
    tar = write_tar(tmp_path / "t.tar", {f"{n}.jpg": picture(n) for n in (0, 1, 3)})
    path = table([f"{n}.jpg" for n in range(4)])
    with pytest.raises(DataError, match=r"1 of 4 pictures is missing or empty \(25.0%, allowed 1.0%\): .*t.tar/2.jpg"):
        open_pairs(path, images=tar)
    pairs = open_pairs(path, images=tar, read=ReadOptions(max_bad=0.5))
    assert [pairs.images.key(row) for row in range(len(pairs))] == ["0.jpg", "1.jpg", "3.jpg"]
    assert pairs.dropped == {"missing picture": 1}
    assert pairs.captions == ("a 0 of dogs", "a 1 of dogs", "a 3 of dogs")


def test_another_tar_another_file_and_a_folder_without_table(tmp_path, table):
    tar = write_tar(tmp_path / "t.tar", {"x.jpg": picture(0)})
    with pytest.raises(
        DataError, match=r"t.tar has no member '0.jpg', nor any other that the table names; it has x.jpg"
    ):
        open_pairs(table(["0.jpg"]), images=tar)
    with pytest.raises(DataError, match=r"captions.csv: a file, neither a folder nor a .tar"):
        open_pairs(table(["x.jpg"]), images=tmp_path / "captions.csv")
    (tmp_path / "notes").mkdir()
    with pytest.raises(DataError, match=r"notes holds no table of captions that names pictures of .*t.tar"):
        open_pairs(tmp_path / "notes", images=tar)
    shard = write_tar(tmp_path / "s.tar", {"a.jpg": picture(1), "a.txt": "a dog"})
    with pytest.raises(ConfigError, match="leave the option out"):
        open_pairs(shard, images=tar)


def test_other_members_of_the_same_length_are_other_pictures(tmp_path):
    content = picture(1)
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        images = TarImages.every(str(write_tar(tmp_path / name / "t.tar", {f"{name}.jpg": content})))
        digests.append(images.describe()["digest"])
    assert digests[0] != digests[1]
