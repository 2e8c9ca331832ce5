"""Annotated pictures from digit scenes, tars and COCO's files, and what can be wrong with them."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mc_core.data import in_order
from mc_core.errors import DataError
from mc_core.images.segmentations import rasterize
from mc_core.samples import DIGITS, digit_scenes
from mc_vision_language.data.annotated_data import AnnotatedData
from mc_vision_language.data.annotated_sources import open_annotated, scene_annotations
from mc_vision_language.data.options import ReadOptions, SplitOptions

ALL = SplitOptions(shares=(1.0, 0.0, 0.0))


def png(width=40, height=20, shade=90, mode="RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height), (shade, 80, 70) if mode == "RGB" else shade).save(file, "PNG")
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes | dict | list]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def levels(values) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.array(values, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_scenes_are_annotated_with_what_they_were_made_of():
    scenes = {
        "train": digit_scenes(20, size=32, digits=(1, 4)),
        "test": digit_scenes(6, size=32, digits=(2, 2), split="test"),
    }
    found = scene_annotations(scenes, questions=2, seed=3)
    assert found.class_names == DIGITS
    assert found.missing() == ()
    assert found.pairs.split_counts() == {"train": 20, "test": 6}
    row = 0
    for part in scenes.values():
        for scene in range(len(part)):
            there = [k for k in range(part.objects.digit.shape[1]) if part.boxes[scene, k, 2] >= 0]
            boxes, numbers, _ = found.boxes.take(np.array([row])).padded(np.array([0]))
            assert numbers[0].tolist() == part.objects.digit[scene, there].tolist()
            corner = part.boxes[scene, there].numpy() / 32
            np.testing.assert_allclose(boxes[0, :, :2] - boxes[0, :, 2:] / 2, corner[:, :2], atol=1e-6)
            np.testing.assert_allclose(boxes[0, :, :2] + boxes[0, :, 2:] / 2, corner[:, 2:], atol=1e-6)
            mask = found.masks.read(row)
            for place in range(part.objects.digit.shape[1]):
                here = part.masks[scene].numpy() == place + 1
                assert set(np.unique(mask[here])) <= {int(part.objects.digit[scene, place]) + 1}
            assert (mask[part.masks[scene].numpy() == 0] == 0).all()
            assert np.flatnonzero(found.labels[row]).tolist() == sorted(set(numbers[0].tolist()))
            row += 1
    assert {text for text, of in zip(found.questions.texts, found.questions.image_of, strict=True) if of >= 20}
    assert (found.questions.splits == found.pairs.splits[found.questions.image_of]).all()
    assert scene_annotations(scenes, questions=0).missing() == ("questions",)


def notes(**changes):
    return {"width": 40, "height": 20, "captions": ["A cat.", "Some cat"], **changes}


def whole_tar(path: Path) -> Path:
    objects = [
        {"category": "dog", "category_id": 18, "bbox": [10, 5, 20, 10], "iscrowd": 0},
        {"category": "cat", "category_id": 17, "bbox": [30, 10, 20, 20], "iscrowd": 1},
        {"category": "cat", "category_id": 17, "bbox": [50, 10, 5, 5]},
    ]
    mask = np.zeros((20, 40), np.uint8)
    mask[5:15, 10:30] = 18
    mask[0, 0] = 99
    return tar(
        path,
        {
            "categories.json": {"17": "cat", "18": "dog", "44": "bottle"},
            "a.png": png(),
            "a.json": notes(objects=objects, split="train"),
            "a.seg.png": levels(mask),
            "b.png": png(shade=20),
            "b.json": notes(split="val", captions=["a bottle"]),
            "c.png": png(shade=30),
            "c.json": notes(split="test", objects=[], qa=[{"question": "what is it", "answers": ["a_cup", "cup"]}]),
        },
    )


def test_a_tar_of_annotated_pictures(tmp_path):
    found = open_annotated(whole_tar(tmp_path / "set.tar"))
    assert found.class_names == ("cat", "dog", "bottle")
    assert found.counts() == {"captions": 3, "labels": 2, "boxes": 2, "masks": 1, "questions": 1}
    assert found.pairs.split_counts() == {"train": 1, "validation": 1, "test": 1}
    assert found.boxes.known.tolist() == [True, False, True]
    np.testing.assert_allclose(found.boxes.all_boxes, [[0.5, 0.5, 0.5, 0.5], [0.875, 0.75, 0.25, 0.5]], atol=1e-6)
    assert found.boxes.box_class.tolist() == [1, 0]
    assert found.boxes.crowd.tolist() == [False, True]
    assert found.pairs.dropped["box without area"] == 1
    mask = found.masks.read(0)
    assert (mask[5:15, 10:30] == 2).all()
    assert mask[0, 0] == -1  # a level that no category has
    assert mask[19, 0] == 0
    assert found.questions.answers == (("a cup", "cup"),)
    assert found.questions.image_of.tolist() == [2]
    (batch,) = in_order(AnnotatedData(found, augment=None, size=16), batch_size=3, workers=0)
    assert batch["mask"].shape == (3, 16, 16)
    assert found.part("test").boxes.known.tolist() == [True]


def test_categories_may_be_known_from_the_objects_alone(tmp_path):
    objects = [
        {"category_id": 7, "category": "zebra", "bbox": [0, 0, 4, 4]},
        {"category_id": 2, "category": "ant", "bbox": [1, 1, 4, 4]},
    ]
    named = open_annotated(
        tar(tmp_path / "a.tar", {"a.png": png(), "a.json": notes(objects=objects), "a.seg.png": levels([[7, 2]])}),
        split=ALL,
    )
    assert named.class_names == ("ant", "zebra")
    assert named.masks.read(0).tolist() == [[2, 1]]
    plain = [{"category": "zebra", "bbox": [0, 0, 4, 4]}, {"category": "ant", "bbox": [1, 1, 4, 4]}]
    found = open_annotated(tar(tmp_path / "b.tar", {"a.png": png(), "a.json": notes(objects=plain)}), split=ALL)
    assert found.class_names == ("ant", "zebra")
    assert found.boxes.box_class.tolist() == [1, 0]


def test_a_tar_without_captions(tmp_path):
    objects = [{"category": "cat", "bbox": [0, 0, 4, 4]}]
    found = open_annotated(
        tar(
            tmp_path / "a.tar",
            {f"{n}.png": png(shade=n) for n in range(3)} | {f"{n}.json": {"objects": objects} for n in range(3)},
        ),
        split=ALL,
    )
    assert found.missing() == ("captions", "masks", "questions")
    np.testing.assert_allclose(
        found.boxes.all_boxes[0], [0.05, 0.1, 0.1, 0.2], atol=1e-6
    )  # the size is the picture's own
    (batch,) = in_order(AnnotatedData(found, augment=None, size=16), batch_size=3, workers=0)
    assert "input_ids" not in batch
    with pytest.raises(DataError, match="no sample has a caption"):
        open_annotated(tar(tmp_path / "b.tar", {"0.png": png(), "0.json": {"colour": 3}}))


def test_pairs_of_which_nothing_else_is_known(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png(shade=1))
    (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / "b.txt").write_text("a dog")
    found = open_annotated(tmp_path, split=ALL)
    assert found.missing() == ("labels", "boxes", "masks", "questions")
    assert sorted(found.pairs.captions) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"objects": [{"category": "cat", "bbox": [1, 2, 3]}]},
            r"a.json, object 0: bbox \[1, 2, 3\] is not four numbers",
        ),
        ({"objects": [{"category": "cat", "bbox": [1, 2, 3, "x"]}]}, "object 0: bbox"),
        ({"objects": [{"category": "cow", "bbox": [1, 2, 3, 4]}]}, "category 'cow' is not among"),
        ({"objects": [{"bbox": [1, 2, 3, 4]}]}, "category None is not among"),
        ({"objects": {"cat": 1}}, "objects is a dict, not a list"),
        ({"objects": ["cat"]}, "object 0: a mapping with category and bbox"),
        ({"qa": [{"answer": "yes"}]}, "a.json, qa 0: no question"),
    ],
    ids=["three numbers", "text", "unknown", "unnamed", "mapping", "bare", "question"],
)
def test_wrong_notes_name_file_and_entry(tmp_path, content, message):
    path = tar(tmp_path / "a.tar", {"categories.json": {"1": "cat"}, "a.png": png(), "a.json": notes(**content)})
    with pytest.raises(DataError, match=message):
        open_annotated(path, split=ALL)


def test_masks_that_nobody_explains(tmp_path):
    path = tar(tmp_path / "a.tar", {"a.png": png(), "a.json": notes(), "a.seg.png": levels([[0, 1]])})
    with pytest.raises(DataError, match=r"no categories.json and no objects with category_id"):
        open_annotated(path, split=ALL)
    path = tar(
        tmp_path / "b.tar",
        {"categories.json": ["cat"], "a.png": png(), "a.json": notes(), "a.seg.png": levels([[0, 1]])},
    )
    with pytest.raises(DataError, match=r"categories.json: categories are"):
        open_annotated(path, split=ALL)


# COCO


def coco(folder: Path, part: str, pictures: int, *, captions=True, first=0) -> None:
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / part).mkdir()
    entries, things, said = [], [], []
    for number in range(first, first + pictures):
        name = f"{number:012d}.png"
        (folder / part / name).write_bytes(png(shade=number + 1))
        entries.append({"id": number, "file_name": name, "width": 40, "height": 20})
        said.append({"image_id": number, "id": number, "caption": f"Picture number {number}."})
        if number % 3 == 2:
            continue  # a picture of nothing
        square = [[10, 5, 30, 5, 30, 15, 10, 15]]
        things.append(
            {
                "id": 2 * number,
                "image_id": number,
                "category_id": 18,
                "bbox": [10, 5, 20, 10],
                "segmentation": square,
                "iscrowd": 0,
            }
        )
        runs = {"counts": [0, 20 * 10, 20 * 30], "size": [20, 40]}
        things.append(
            {
                "id": 2 * number + 1,
                "image_id": number,
                "category_id": 1,
                "bbox": [0, 0, 10, 20],
                "segmentation": runs,
                "iscrowd": 1,
            }
        )
    categories = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]
    content = {"images": entries, "annotations": things, "categories": categories}
    (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    if captions:
        (folder / "annotations" / f"captions_{part}.json").write_text(
            json.dumps({"images": entries, "annotations": said})
        )


def test_a_folder_of_coco(tmp_path):
    coco(tmp_path, "train2017", 4)
    coco(tmp_path, "val2017", 2, first=10)
    found = open_annotated(tmp_path)
    assert found.class_names == ("person", "dog")
    assert found.pairs.split_counts() == {"train": 4, "validation": 2}
    assert found.counts() == {"captions": 6, "labels": 6, "boxes": 6, "masks": 6, "questions": 0}
    row = next(r for r in range(6) if found.pairs.captions_of(r) == ("picture number 3",))
    np.testing.assert_allclose(
        found.boxes.take(np.array([row])).all_boxes, [[0.5, 0.5, 0.5, 0.5], [0.125, 0.5, 0.25, 1.0]], atol=1e-6
    )
    assert found.boxes.take(np.array([row])).crowd.tolist() == [False, True]
    mask = found.masks.read(row)
    assert (mask[5:15, 10:30] == 2).all()
    assert (mask[:, :10] == -1).all()
    assert (mask[:, 30:] == 0).all()
    empty = next(r for r in range(6) if found.pairs.captions_of(r) == ("picture number 2",))
    assert found.boxes.known[empty]
    assert not found.labels[empty].any()
    assert (found.masks.read(empty) == 0).all()
    (batch,) = in_order(AnnotatedData(found, augment=None, size=16), batch_size=6, workers=1)
    assert batch["boxes"].shape == (6, 2, 4)


def test_coco_without_captions_and_by_its_file(tmp_path):
    coco(tmp_path, "val2017", 3, captions=False)
    found = open_annotated(tmp_path / "annotations" / "instances_val2017.json", split=ALL)
    assert found.missing() == ("captions", "questions")
    assert found.pairs.split_counts() == {"train": 3}


def test_coco_with_a_missing_picture_keeps_boxes_with_their_pictures(tmp_path):
    coco(tmp_path, "val2017", 4)
    (tmp_path / "val2017" / f"{0:012d}.png").unlink()
    with pytest.raises(DataError, match="1 of 4 pictures is missing"):
        open_annotated(tmp_path)
    found = open_annotated(tmp_path, read=ReadOptions(max_bad=0.5), split=ALL)
    assert [found.pairs.captions_of(row)[0][-1] for row in range(3)] == ["1", "2", "3"]
    assert np.diff(found.boxes.box_offsets).tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "no list 'categories'"),
        (lambda c: c["annotations"][0].pop("image_id"), "annotation image_id"),
        (lambda c: c["annotations"][0].update(image_id=99), "annotation 0: image_id 99 is not among the images"),
        (lambda c: c["annotations"][0].update(category_id=99), "category 99 is not among"),
        (lambda c: c["annotations"][0].update(bbox=None), "bbox None is not four numbers"),
        (lambda c: c["images"][0].pop("width"), "image 0 has no width and height"),
        (lambda c: c["images"][0].pop("file_name"), "an image lacks id or file_name"),
        (lambda c: c.update(images=[], annotations=[]), "holds no images"),
    ],
    ids=["categories", "image id", "stray", "category", "bbox", "size", "name", "empty"],
)
def test_wrong_files_of_coco(tmp_path, change, message):
    coco(tmp_path, "val2017", 2)
    path = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        open_annotated(tmp_path, split=ALL)


def test_coco_whose_pictures_are_elsewhere(tmp_path):
    coco(tmp_path / "set", "val2017", 2)
    (tmp_path / "set" / "val2017").rename(tmp_path / "photos")
    with pytest.raises(DataError, match=r"no file '000000000000.png' .* --images"):
        open_annotated(tmp_path / "set")
    assert len(open_annotated(tmp_path / "set", images=tmp_path / "photos", split=ALL)) == 2


REAL = Path(os.environ.get("MC_DATA", "/nowhere")) / "vision-language" / "coco-captions-mini.tar"


@pytest.mark.skipif(not REAL.is_file(), reason="MC_DATA names no folder of real data")
def test_real_photographs_masks_agree_with_outlines_and_boxes():
    found = open_annotated(REAL)
    assert found.counts() == {"captions": 295, "labels": 123, "boxes": 123, "masks": 123, "questions": 0}
    assert len(found.class_names) == 80
    outlines = {}
    with tarfile.open(REAL) as archive:
        for name in archive.getnames():
            if name.endswith(".json") and name != "categories.json":
                outlines[name[:-5]] = json.load(archive.extractfile(name))
    checked = 0
    for row in np.flatnonzero(found.known("masks"))[:12].tolist():
        record = outlines[Path(found.pairs.images.name(row)).stem]
        mask = found.masks.read(row)
        assert mask.shape == (record["height"], record["width"])
        single = [one for one in record["objects"] if not one["iscrowd"]]
        smallest = min(single, key=lambda one: one["bbox"][2] * one["bbox"][3])
        inside = rasterize(smallest["polygons"], *mask.shape)
        number = 1 + found.class_names.index(smallest["category"])
        if inside.sum() >= 30:
            assert (mask[inside] == number).mean() > 0.8
            checked += 1
        there = set(np.unique(mask)) - {-1, 0}
        assert {c - 1 for c in there} <= set(np.flatnonzero(found.labels[row]).tolist())
    assert checked >= 4
