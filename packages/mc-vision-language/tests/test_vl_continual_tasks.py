"""Lists of tasks: from YAML over tars and tables, from a tiny copy of P9D, and the embedded sample; what is wrong is said."""

import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mc_core.errors import ConfigError, DataError
from mc_vision_language.continual import read_tasks, sample_tasks
from mc_vision_language.continual.tasks import shared_classes
from mc_vision_language.data.images import ArrayImages
from mc_vision_language.data.joined import JoinedImages, joined
from mc_vision_language.data.options import CaptionOptions, ReadOptions, SplitOptions
from mc_vision_language.data.p9d import INDUSTRIES, P9D
from mc_vision_language.data.pairs import Pairs

SPLIT = SplitOptions(shares=(0.5, 0.0, 0.5))
real = pytest.mark.skipif("MC_DATA" not in os.environ, reason="MC_DATA names no folder of real data")


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, rows: list[dict]) -> Path:
    with tarfile.open(path, "w") as archive:
        for number, row in enumerate(rows):
            for ending, content in (("jpg", picture(number)), ("json", json.dumps(row).encode())):
                member = tarfile.TarInfo(f"item-{number}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def write_table(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        (folder / f"{number}.jpg").write_bytes(picture(100 + number))
        row["path"] = f"{number}.jpg"
    path = folder / "items.csv"
    names = list(rows[0])
    path.write_text("\n".join([",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]))
    return path


def shop(count: int = 12) -> list[dict]:
    return [
        {"text": f"thing number {n}", "category": "cup" if n % 2 else "plate", "room": "kitchen" if n < 8 else "garden"}
        for n in range(count)
    ]


def write_list(folder: Path, rows) -> Path:
    path = folder / "tasks.yaml"
    path.write_text(yaml.safe_dump(rows))
    return path


@pytest.fixture
def folder(tmp_path):
    write_tar(tmp_path / "shop.tar", shop())
    write_table(
        tmp_path / "table", [{"title": row["text"], "kind": row["category"], "room": row["room"]} for row in shop()]
    )
    return tmp_path


def test_one_file_holds_several_domains(folder):
    rows = [{"name": room, "data": "shop.tar", "where": {"room": room}} for room in ("kitchen", "garden")]
    tasks = read_tasks(write_list(folder, rows), split=SPLIT)
    assert [(task.name, len(task.pairs)) for task in tasks] == [("kitchen", 8), ("garden", 4)]
    for task, first in zip(tasks, (0, 8), strict=True):
        for row in range(len(task.pairs)):
            number = int(task.pairs.captions_of(row)[0].rpartition(" ")[2])
            assert task.pairs.images.key(row) == f"item-{number}.jpg"
            assert task.classes[row] == ("cup" if number % 2 else "plate")
            assert number >= first
    both = tasks[0].part("train"), tasks[0].part("test")
    assert len(both[0].pairs) + len(both[1].pairs) == 8
    assert len(both[0].classes) == len(both[0].pairs)


def test_tables_name_their_columns(folder):
    rows = [
        {"name": "kitchen", "data": "table/items.csv", "category": "kind", "where": {"room": ["kitchen", "garden"]}}
    ]
    (task,) = read_tasks(write_list(folder, rows), split=SPLIT)
    assert len(task.pairs) == 12
    assert set(task.classes) == {"cup", "plate"}
    rows[0].pop("category")
    (task,) = read_tasks(write_list(folder, {"tasks": rows}), split=SPLIT)
    assert set(task.classes) == {"kitchen"}  # there is no column 'category'


def test_the_other_order(folder):
    rows = [{"name": room, "data": "shop.tar", "where": {"room": room}} for room in ("kitchen", "garden")]
    tasks = read_tasks(write_list(folder, rows), split=SPLIT, reverse=True)
    assert [task.name for task in tasks] == ["garden", "kitchen"]


def test_a_category_in_two_tasks_is_allowed_and_said(folder, caplog):
    rows = [{"name": room, "data": "shop.tar", "where": {"room": room}} for room in ("kitchen", "garden")]
    with caplog.at_level("WARNING", "mc_core"):
        tasks = read_tasks(write_list(folder, rows), split=SPLIT)
    assert "2 categories (cup, plate) are in 2 tasks (kitchen, garden) and count as one each" in caplog.text
    renamed = [replace(tasks[0], classes=np.where(tasks[0].classes == "cup", "jar", tasks[0].classes)), tasks[1]]
    assert shared_classes(renamed) == ["note: the category 'plate' is in 2 tasks (kitchen, garden) and counts as one"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "a list of tasks is needed"),
        ("words", "a list of tasks is needed"),
        ([{"data": "shop.tar"}], "task 1: name: Field required"),
        ([{"name": "a", "data": "shop.tar", "were": {}}], "task 1: were: .*; fields are name, data"),
        ([{"name": "a", "data": "gone.tar"}], "gone.tar"),
        ([{"name": "a", "data": "shop.tar", "where": {"rom": "x"}}], "no column 'rom'; it has room"),
        (
            [{"name": "a", "data": "shop.tar", "where": {"room": "kitchn"}}],
            "no pairs: room is nowhere 'kitchn'.* has kitchen",
        ),
        ([{"name": "a", "data": "shop.tar"}, {"name": "a", "data": "shop.tar"}], "tasks 1 and 2 are both named 'a'"),
        ([{"name": "a", "data": "p9d:shop"}], "say which industry"),
    ],
    ids=["none", "text", "no-name", "unknown-field", "gone", "column", "value", "twice", "industry"],
)
def test_what_is_wrong_with_a_list_is_said(folder, rows, said):
    with pytest.raises((ConfigError, DataError), match=said) as caught:
        read_tasks(write_list(folder, rows), split=SPLIT)
    assert "\n" not in str(caught.value)


def test_a_task_without_test_pairs_is_refused(folder):
    path = write_list(folder, [{"name": "a", "data": "shop.tar"}])
    with pytest.raises(DataError, match="task 1 'a' has no pairs in the split 'test'; there are train"):
        read_tasks(path, split=SplitOptions(shares=(1.0, 0.0, 0.0)))
    with pytest.raises(ConfigError, match="no such file; give a YAML list"):
        read_tasks(folder / "none.yaml")
    (folder / "broken.yaml").write_text("- [")
    with pytest.raises(ConfigError, match=r"broken.yaml is no YAML"):
        read_tasks(folder / "broken.yaml")


def test_where_needs_columns(folder):
    (folder / "photos").mkdir()
    for number in range(4):
        (folder / "photos" / f"{number}.jpg").write_bytes(picture(number))
        (folder / "photos" / f"{number}.txt").write_text(f"number {number}")
    path = write_list(folder, [{"name": "a", "data": "photos", "where": {"room": "x"}}])
    with pytest.raises(ConfigError, match="where and category need a table"):
        read_tasks(path, split=SPLIT)
    path = write_list(folder, [{"name": "a", "data": "photos"}])
    assert set(read_tasks(path, split=SPLIT)[0].classes) == {"a"}


def test_sample_turns_the_same_digits_further_from_task_to_task():
    counts = {"train": 1000, "validation": 250, "test": 250}
    tasks = sample_tasks("turns", counts=counts)
    assert [task.name for task in tasks] == ["upright", "turned 30", "turned 60", "turned 90", "turned 120"]
    pixels = [one for task in tasks for one in task.pairs.images.array]
    assert len({one.tobytes() for one in pixels}) == 1500  # no scene twice
    for task in tasks:
        assert task.pairs.split_counts() == {"train": 200, "validation": 50, "test": 50}
        assert set(task.classes.tolist()) == {"zero", "one", "two", "three", "four"}
        assert all(word in task.pairs.captions_of(row)[0].split() for row, word in enumerate(task.classes.tolist()))
        assert "turn" not in " ".join(task.pairs.captions)
    where = "upright, turned 30, turned 60, turned 90, turned 120"
    (line,) = shared_classes(tasks)
    assert line == f"note: 5 categories (four, one, three, two …) are in 5 tasks ({where}) and count as one each"
    assert [task.name for task in sample_tasks("turns", counts=counts, reverse=True)] == [task.name for task in tasks][
        ::-1
    ]


def test_sample_of_what_is_known_before_is_of_other_digits_in_the_same_turns():
    counts = {"train": 200, "validation": 50, "test": 50}
    before, after = sample_tasks("before", counts=counts), sample_tasks("turns", counts=counts)
    assert [task.name for task in before] == [task.name for task in after]
    for one in before:
        assert set(one.classes.tolist()) == {"five", "six", "seven", "eight", "nine"}
        assert one.pairs.split_counts() == {"train": 40, "validation": 10, "test": 10}
    looks = [[text.rsplit(" ", 1)[0] for task in tasks for text in task.pairs.captions] for tasks in (before, after)]
    assert looks[0] != looks[1]  # other scenes, not the same with other digits in them


def test_sample_of_two_new_digits_in_each_task():
    counts = {"train": 80, "validation": 40, "test": 40}
    tasks = sample_tasks(counts=counts)
    assert sum(len(task.pairs) for task in tasks) == 160
    for task in tasks:
        for row, word in enumerate(task.classes.tolist()):
            assert word in task.pairs.captions_of(row)[0].split()
            assert word in task.name.split()
    assert shared_classes(tasks) == []
    assert [task.name for task in sample_tasks(counts=counts, reverse=True)] == [task.name for task in tasks][::-1]


def write_p9d(folder: Path) -> Path:
    """The published layout with two industries: four training items, two test items, a query and two gallery items each."""
    for name in ("json", "train_images", "gallery_images"):
        (folder / name).mkdir(parents=True)
    lists: dict = {"train": {}, "test": {}, "query": {}, "gallery": {}}
    number = 0
    for industry in ("3C数码", "食品/保健"):
        for part, count in (("train", 4), ("test", 2), ("query", 1), ("gallery", 2)):
            for place in range(count):
                number += 1
                about = {"title": f"{industry} 商品 {number}", "cate_name": f"类{place % 2}", "item_url": "x"}
                images = "train_images" if part == "train" else "gallery_images"
                (folder / images / f"{number}.jpg").write_bytes(picture(number % 3))  # equal files are other items
                if part == "train":
                    lists["train"].setdefault(industry, {})[str(number)] = about
                else:
                    lists[part][str(number)] = {**about, "industry_name": industry}
    for part, content in lists.items():
        (folder / "json" / f"{part}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def test_p9d_in_its_published_layout(tmp_path):
    data = P9D(write_p9d(tmp_path / "p9d"))
    assert data.industries == ("食品/保健", "3C数码")  # the published order, not that of the file
    domain = data.domain("Food", captions=CaptionOptions(clean=False))
    assert domain.name == INDUSTRIES["Food"] == "食品/保健"
    products = domain.products
    assert products.pairs.split_counts() == {"train": 4, "test": 2}
    assert products.pairs.captions_of(0) == ("食品/保健 商品 10",)
    assert products.pairs.images.name(0).endswith("train_images/10.jpg")
    assert products.pairs.part("test").images.name(0).endswith("gallery_images/14.jpg")
    assert products.classes.tolist() == ["类0", "类1", "类0", "类1", "类0", "类1"]
    assert (len(domain.queries.pairs), len(domain.gallery.pairs)) == (1, 2)
    assert len(np.unique(products.pairs.image_ids)) == 6  # an item is one picture, whatever its bytes


def test_p9d_as_tasks(tmp_path):
    write_p9d(tmp_path / "p9d")
    tasks = read_tasks(f"p9d:{tmp_path / 'p9d'}")
    assert [task.name for task in tasks] == ["Food", "Electronics"]
    assert tasks[0].queries is not None
    rows = [{"name": "first", "data": "p9d:p9d", "where": {"industry": "Electronics"}}]
    (task,) = read_tasks(write_list(tmp_path, rows))
    assert task.pairs.captions_of(0)[0].startswith("3c数码")


def test_p9d_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="no such folder of P9D"):
        P9D(tmp_path / "none")
    folder = write_p9d(tmp_path / "p9d")
    with pytest.raises(ConfigError, match="no industry 'Foot'"):
        P9D(folder).domain("Foot")
    (folder / "train_images" / "10.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 6 pictures is missing or empty.*train_images/10.jpg"):
        P9D(folder).domain("Food")
    domain = P9D(folder).domain("Food", read=ReadOptions(max_bad=0.5))
    assert domain.products.classes.tolist() == ["类1", "类0", "类1", "类0", "类1"]
    (folder / "json" / "query.json").unlink()
    with pytest.raises(DataError, match="query.json"):
        P9D(folder)
    (folder / "json" / "test.json").write_text('{"7": {"title": "x"}}')
    with pytest.raises(DataError, match="item 7 has no industry_name"):
        P9D(folder)


def array_pairs(count: int, first: int, side: int = 6) -> Pairs:
    pixels = (np.arange(count)[:, None, None, None] + first + np.zeros((1, 3, side, side))).astype(np.uint8)
    return Pairs(
        ArrayImages(pixels, location=f"from {first}"),
        tuple(f"{n} {k}" for n in range(first, first + count) for k in range(2)),
        np.repeat(np.arange(count), 2),
        image_ids=np.arange(first, first + count),
        text_ids=np.arange(2 * first, 2 * (first + count)),
        splits=np.full(count, "train"),
    )


def test_joined_pairs_are_those_of_each():
    each = [array_pairs(3, 0), array_pairs(4, 50), array_pairs(2, 90)]
    both = joined(each)
    where = [(one, row) for one in each for row in range(len(one))]
    for row, (one, own) in enumerate(where):
        assert both.captions_of(row) == one.captions_of(own)
        assert both.image_ids[row] == one.image_ids[own]
        assert both.images.name(row) == one.images.name(own)
        assert (np.asarray(both.images.read(row)) == np.asarray(one.images.read(own))).all()
    rows = np.array([8, 0, 4, 4])
    taken = both.take(rows)
    expected = np.stack([where[row][0].images.array[where[row][1]] for row in rows])
    assert (taken.images.array[np.arange(4)] == expected).all()
    assert (taken.images.array[2] == expected[2]).all()
    assert taken.images.array.shape == (4, 3, 6, 6)


def test_joined_pictures_are_not_copied_and_know_when_they_are_no_array():
    one, other = array_pairs(3, 0).images, array_pairs(2, 9, side=7).images
    assert JoinedImages([one, other]).array is None
    both = JoinedImages([one, one])
    assert all(part is one.array for part in both.array.arrays)
    assert both.describe()["digest"] != both.take(np.array([1, 0])).describe()["digest"]
    with pytest.raises(DataError, match="no pictures to join"):
        JoinedImages([])


@real
def test_real_products_as_categories(tmp_path):
    folder = Path(os.environ["MC_DATA"]) / "vision-language"
    rows = [
        {"name": name, "data": str(folder / f"{file}-products.tar"), "columns": {"caption": "text"}, **more}
        for name, file, more in (
            ("clothes", "fashion", {"where": {"category": "Apparel"}, "category": "subCategory"}),
            ("things", "fashion", {"where": {"category": ["Accessories", "Footwear"]}}),
            ("furniture", "ikea", {}),
        )
    ]
    tasks = read_tasks(write_list(tmp_path, rows))
    assert len(tasks[0].pairs) + len(tasks[1].pairs) <= 918
    assert "Topwear" in tasks[0].classes
    assert set(tasks[1].classes) == {"Accessories", "Footwear"}
    assert len(set(tasks[2].classes)) == 9
