"""Annotated pictures: what is known of them, and that picture, boxes and mask stay together in every view."""

import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mc_core.data import StepPlan, finish_on_device, in_order, step_loader
from mc_core.errors import BadSampleError, ConfigError, DataError
from mc_core.random import BatchRandom
from mc_core.samples import digit_scenes
from mc_vision_language.augment import Geometry, draw_geometry, make_views
from mc_vision_language.augment_config import MOVING, AugmentConfig
from mc_vision_language.data.annotated import AnnotatedPairs, Boxes, annotated
from mc_vision_language.data.annotated_data import (
    LEAST_VISIBLE,
    AnnotatedData,
    crop_masks,
    labels_in_view,
    place_boxes,
)
from mc_vision_language.data.annotated_sources import scene_annotations
from mc_vision_language.data.class_masks import ArrayMasks, DrawnMasks, StoredMasks, classes_in
from mc_vision_language.data.images import ArrayImages, FileImages
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.data.questions import Questions
from mc_vision_language.tokenizers import train_tokenizer

NAMES = ("cat", "dog", "cup")
CROPS = AugmentConfig(size=24, scale=(0.3, 1.0), rand_augment=0)


def pairs(images, captions=None, splits=None) -> Pairs:
    count = len(images)
    captions = ["a cat"] * count if captions is None else captions
    rows = [row for row, text in enumerate(captions) if text]
    return Pairs(
        images,
        tuple(text for text in captions if text),
        np.array(rows, dtype=np.int64),
        np.arange(count),
        np.arange(len(rows)),
        np.array(["train"] * count if splits is None else splits),
    )


def rectangles(count=6, side=32, seed=0):
    """Black pictures with one bright rectangle each: pictures, boxes of the rectangles, and masks of class 1 + row % 3."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((count, 3, side, side), np.uint8)
    masks = np.zeros((count, side, side), np.uint8)
    boxes = []
    for row in range(count):
        x, y = rng.integers(2, side // 2, 2)
        w, h = rng.integers(side // 4, side // 2 - 1, 2)
        pixels[row, :, y : y + h, x : x + w] = 255
        masks[row, y : y + h, x : x + w] = 1 + row % 3
        boxes.append([((x + w / 2) / side, (y + h / 2) / side, w / side, h / side)])
    return pixels, Boxes.of(boxes, [[row % 3] for row in range(count)]), masks


def shown(data, indices, epoch=0, seed=0):
    batch = data.get_batch(indices, epoch, seed)
    return finish_on_device(data, {**batch, "index": torch.tensor(indices), "epoch": epoch}, seed)


# what is known


def test_boxes_are_taken_and_padded_as_a_loop_would():
    rng = np.random.default_rng(0)
    given = [None if n == 5 else [(0.5, 0.5, *rng.uniform(0.1, 0.5, 2)) for _ in range(n)] for n in (2, 0, 5, 1, 3)]
    classes = [list(rng.integers(0, 4, 0 if one is None else len(one))) for one in given]
    boxes = Boxes.of(given, classes)
    rows = np.array([4, 2, 0, 0, 1])
    taken = boxes.take(rows)
    padded, numbers, crowd = boxes.padded(rows)
    assert taken.known.tolist() == [True, False, True, True, True]
    assert padded.shape == (5, 3, 4)
    assert not crowd.any()
    for place, row in enumerate(rows.tolist()):
        wanted = [] if given[row] is None else given[row]
        span = slice(taken.box_offsets[place], taken.box_offsets[place + 1])
        np.testing.assert_allclose(taken.all_boxes[span], np.array(wanted).reshape(-1, 4), rtol=1e-6)
        assert taken.box_class[span].tolist() == classes[row]
        assert numbers[place].tolist() == [*classes[row], *[-1] * (3 - len(wanted))]
        np.testing.assert_allclose(padded[place, : len(wanted)], np.array(wanted).reshape(-1, 4), rtol=1e-6)
        assert boxes.labels(4)[row].tolist() == [c in classes[row] for c in range(4)]


@pytest.mark.parametrize(
    ("box", "number"),
    [((0.5, 0.5, 0.0, 0.2), 0), ((0.9, 0.5, 0.4, 0.2), 0), ((np.nan, 0.5, 0.2, 0.2), 0), ((0.5,) * 4, -1)],
)
def test_a_box_that_cannot_be_is_named_with_its_picture(box, number):
    with pytest.raises(DataError, match=r"picture 1: box \[.*shares of the picture"):
        Boxes.of([[], [box]], [[], [number]])


def test_lengths_that_do_not_fit():
    pixels, boxes, masks = rectangles(3)
    base = pairs(ArrayImages(pixels))
    with pytest.raises(DataError, match="boxes of 2 pictures, there are 3"):
        AnnotatedPairs(base, boxes.take(np.arange(2)), class_names=NAMES)
    with pytest.raises(DataError, match="a box of class 2, there are names for 2"):
        AnnotatedPairs(base, boxes, class_names=NAMES[:2])
    with pytest.raises(DataError, match="a mask with class 2, there are names for 2"):
        AnnotatedPairs(base, None, ArrayMasks(masks), class_names=NAMES[:2])
    with pytest.raises(DataError, match="labels of shape"):
        AnnotatedPairs(base, labels=np.zeros((3, 2), bool), class_names=NAMES)
    with pytest.raises(DataError, match=r"box_offsets must rise"):
        replace(boxes, box_offsets=np.array([1, 1, 2, 3]))


def test_labels_come_from_boxes_before_masks():
    pixels, boxes, masks = rectangles(3)
    base = pairs(ArrayImages(pixels))
    both = AnnotatedPairs(base, boxes.take(np.array([2, 1, 0])), ArrayMasks(masks), class_names=NAMES)
    assert both.labels_from == "boxes"
    assert both.labels.argmax(1).tolist() == [2, 1, 0]
    alone = AnnotatedPairs(base, None, ArrayMasks(masks), class_names=NAMES)
    assert (alone.labels_from, alone.labels.argmax(1).tolist()) == ("masks", [0, 1, 2])
    given = AnnotatedPairs(base, boxes, labels=np.eye(3, dtype=bool)[[1, 1, 1]], class_names=NAMES)
    assert given.labels_from == "given"
    assert annotated(base).missing() == ("labels", "boxes", "masks", "questions")
    assert annotated(both) is both


def test_taking_pictures_takes_what_is_known_of_them():
    scenes = digit_scenes(6, size=32, digits=(1, 3))
    whole = scene_annotations(
        {"train": digit_scenes(4, size=32, digits=(1, 3)), "test": digit_scenes(2, size=32, start=4)}
    )
    assert len(scenes) == len(whole)
    rows = [5, 2, 0]
    taken = whole.take(rows)
    for place, row in enumerate(rows):
        assert (taken.masks.read(place) == whole.masks.read(row)).all()
        assert (taken.labels[place] == whole.labels[row]).all()
        own, its = (one.questions.image_of == at for one, at in ((taken, place), (whole, row)))
        texts = [text for text, mine in zip(taken.questions.texts, own, strict=True) if mine]
        assert texts
        assert texts == [text for text, mine in zip(whole.questions.texts, its, strict=True) if mine]
    assert (taken.questions.splits == taken.pairs.splits[taken.questions.image_of]).all()
    assert len(whole.part("test")) == 2
    assert set(whole.part("test").questions.splits) == {"test"}
    with pytest.raises(DataError, match="no picture in the split 'validation'"):
        whole.part("validation")
    again = whole.divided((0.5, 0.0, 0.5), seed=3)
    assert (again.questions.splits == again.pairs.splits[again.questions.image_of]).all()
    assert again.labels_from == "boxes"


def test_pictures_nobody_looked_at_are_no_pictures_of_nothing():
    pixels, boxes, masks = rectangles(4)
    masks[3] = 255
    some = Boxes.of([[tuple(b) for b in boxes.all_boxes[:1]], [], None, None], [[0], [], [], []])
    base = AnnotatedPairs(
        pairs(ArrayImages(pixels), ["a cat", "", "a dog", "a cup"]), some, ArrayMasks(masks), class_names=NAMES
    )
    assert base.counts() == {"captions": 3, "labels": 2, "boxes": 2, "masks": 3, "questions": 0}
    assert base.missing() == ("questions",)
    assert len(base.having("boxes")) == 2
    with pytest.raises(DataError, match="no picture has questions; there are captions, labels, boxes, masks"):
        base.having("questions")
    with pytest.raises(ConfigError, match=r"no annotation 'mask': did you mean masks"):
        base.known("mask")
    batch = shown(AnnotatedData(base, augment=None, size=32), [1, 2, 3])
    assert batch["boxes_known"].tolist() == [True, False, False]
    assert (batch["box_class"] == -1).all()
    assert batch["labels"].tolist() == [[0, 0, 0], [-1, -1, -1], [-1, -1, -1]]
    assert (batch["mask"][2] == -1).all()
    assert "3 with captions" in base.summary()[0]
    assert base.summary()[1] == "none with questions"


def test_description_follows_every_annotation():
    whole = scene_annotations({"train": digit_scenes(3, size=32, digits=(2, 2))})
    boxes = whole.boxes
    moved = replace(whole, boxes=replace(boxes, all_boxes=boxes.all_boxes * np.float32(0.99)))
    other = replace(whole, masks=ArrayMasks(np.zeros((3, 32, 32), np.uint8)))
    unasked = replace(whole, questions=None)
    found = [one.describe() for one in (whole, moved, other, unasked)]
    assert all(a != b for a, b in itertools.combinations(found, 2))


# masks


def test_crops_of_masks_take_the_pixels_that_a_loop_takes():
    rng = np.random.default_rng(1)
    masks = torch.from_numpy(rng.integers(-1, 9, (5, 13, 21)).astype(np.int16))
    crop = torch.tensor([[0, 0, 1, 1], [0.2, 0.1, 0.5, 0.7], [0.6, 0.6, 0.4, 0.4], [0, 0.5, 1, 0.25], [0.1, 0, 0.9, 1]])
    flip = torch.tensor([False, True, False, True, True])
    found = crop_masks(masks, crop, 8, flip)
    for row, i, j in itertools.product(range(5), range(8), range(8)):
        top, left, height, width = crop[row].double().tolist()
        column = 7 - j if flip[row] else j
        y = min(int((top + height * (i + 0.5) / 8) * 13 + 1e-3), 12)
        x = min(int((left + width * (column + 0.5) / 8) * 21 + 1e-3), 20)
        assert found[row, i, j] == masks[row, y, x]


def test_a_mask_of_the_views_size_stays_as_it_is():
    mask = torch.arange(64).view(1, 8, 8)
    assert (crop_masks(mask, torch.tensor([[0.0, 0, 1, 1]]), 8) == mask).all()
    assert (crop_masks(mask, torch.tensor([[0.0, 0, 1, 1]]), 8, torch.tensor([True])) == mask.flip(2)).all()


def test_masks_of_files_say_classes_by_their_code(tmp_path):
    levels = np.array([[0, 17, 255], [3, 17, 0]], np.uint8)
    Image.fromarray(levels).save(tmp_path / "grey.png")
    palette = Image.fromarray(levels % 18, mode=None).convert("P")
    palette.putdata((levels % 18).reshape(-1).tolist())
    palette.putpalette([value for level in range(256) for value in (level, 9, 255 - level)])
    palette.save(tmp_path / "palette.png")
    Image.new("RGB", (3, 2)).save(tmp_path / "colour.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    files = FileImages(["grey.png", "palette.png", "colour.png", "broken.png"], tmp_path)
    masks = StoredMasks(files, np.array([1, -1, 0, 2, 3]), {0: 0, 3: 1, 17: 2})
    assert masks.known.tolist() == [True, False, True, True, True]
    assert masks.read(2).tolist() == [[0, 2, -1], [1, 2, 0]]
    assert masks.read(0).tolist() == [[0, 2, 1], [1, 2, 0]]
    assert masks.read(1).tolist() == [[-1]]
    assert pickle.loads(pickle.dumps(masks)).read(2).tolist() == masks.read(2).tolist()
    taken = masks.take(np.array([2, 1]))
    assert taken.read(0).tolist() == masks.read(2).tolist()
    assert taken.describe() != masks.describe()
    assert classes_in(taken, 2).tolist() == [[True, True], [False, False]]
    with pytest.raises(BadSampleError, match=r"colour.png: a mask has one channel"):
        masks.read(3)
    with pytest.raises(BadSampleError, match=r"broken.png: a mask that cannot be decoded"):
        masks.read(4)


def test_drawn_masks_put_small_things_on_top_and_leave_crowds_open():
    def square(x, y, side):
        return [[x, y, x + side, y, x + side, y + side, x, y + side]]

    objects = [
        (square(1, 1, 2), 3, False),
        (square(0, 0, 4), 1, False),
        ({"counts": [0, 6, 30], "size": [6, 6]}, 2, True),
    ]
    masks = DrawnMasks([[6, 6], [4, 4]], [objects, None], ["a.jpg", "b.jpg"])
    mask = masks.read(0)
    assert mask[1, 1] == 3  # the small one, though it is listed first
    assert mask[0, 0] == 1  # a thing, though the crowd reaches there
    assert mask[5, 0] == -1
    assert mask[5, 5] == 0
    assert masks.read(1).tolist() == [[-1]]
    assert masks.take(np.array([1, 0])).known.tolist() == [False, True]
    with pytest.raises(BadSampleError, match="c.jpg: object 0"):
        DrawnMasks([[4, 4]], [[([[1, 2]], 1, False)]], ["c.jpg"]).read(0)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 2)), np.zeros((2, 2, 2)), np.full((1, 2, 2), -2)], ids=["flat", "float", "low"]
)
def test_masks_of_another_form(wrong):
    with pytest.raises(DataError, match="masks"):
        ArrayMasks(wrong)


# geometry


def test_boxes_are_placed_as_a_float64_reference_places_them():
    rng = np.random.default_rng(0)
    size = rng.uniform(0.02, 0.6, (40, 5, 2))
    centre = size / 2 + rng.uniform(0, 1, size.shape) * (1 - size)
    boxes = np.concatenate([centre, size], 2)
    classes = rng.integers(-1, 3, (40, 5))
    extent = rng.uniform(0.2, 1.0, (40, 2))
    crop = np.concatenate([rng.uniform(0, 1, (40, 2)) * (1 - extent), extent], 1)  # top, left, height, width
    flip = rng.random(40) < 0.5
    found = place_boxes(*(torch.from_numpy(value) for value in (boxes, classes, crop, flip)))
    dropped = kept = 0
    for b, m in itertools.product(range(40), range(5)):
        cx, cy, w, h = boxes[b, m]
        top, left, tall, wide = crop[b]
        x1, x2 = max(cx - w / 2, left), min(cx + w / 2, left + wide)
        y1, y2 = max(cy - h / 2, top), min(cy + h / 2, top + tall)
        share = max(x2 - x1, 0) * max(y2 - y1, 0) / (w * h)
        if classes[b, m] < 0 or share < LEAST_VISIBLE - 1e-4:
            assert found.box_class[b, m] == -1
            assert (found.boxes[b, m] == 0).all()
            dropped += classes[b, m] >= 0
            continue
        kept += 1
        x = ((x1 + x2) / 2 - left) / wide
        wanted = [1 - x if flip[b] else x, ((y1 + y2) / 2 - top) / tall, (x2 - x1) / wide, (y2 - y1) / tall]
        assert found.box_class[b, m] == classes[b, m]
        np.testing.assert_allclose(found.boxes[b, m].numpy(), wanted, atol=1e-12)
        np.testing.assert_allclose(found.visible[b, m].item(), share, atol=1e-12)
    assert dropped > 20
    assert kept > 40


def test_picture_boxes_and_mask_stay_together(tmp_path):
    pixels, boxes, masks = rectangles(12)
    for row, (picture, mask) in enumerate(zip(pixels, masks, strict=True)):
        Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / f"{row}.png")
        Image.fromarray(mask).save(tmp_path / f"{row}.mask.png")
    files = FileImages([f"{row}.png" for row in range(12)], tmp_path)
    stored = StoredMasks(
        FileImages([f"{row}.mask.png" for row in range(12)], tmp_path), np.arange(12), {0: 0, 1: 1, 2: 2, 3: 3}
    )
    memory = AnnotatedPairs(pairs(ArrayImages(pixels)), boxes, ArrayMasks(masks), class_names=NAMES)
    disk = AnnotatedPairs(pairs(files), boxes, stored, class_names=NAMES)
    augment = CROPS.model_copy(update={"size": 48, "flip": 0.5})
    mirrored = 0
    for base in (memory, disk):
        data = AnnotatedData(base, augment=augment)
        for step, batch in enumerate(step_loader(data, StepPlan(12, 12, 0), start=0, stop=4, workers=0)):
            batch = finish_on_device(data, batch, 0)
            bright = batch["view"].mean(1) > 0.5
            inside = batch["mask"] > 0
            wrong = (bright != inside).float().mean((1, 2))
            assert (wrong < 0.06).all(), (step, wrong)
            for row in range(12):
                if batch["box_class"][row, 0] < 0:
                    continue
                y, x = bright[row].nonzero().unbind(1)
                cx, cy, w, h = (batch["boxes"][row, 0] * 48).tolist()
                edges = [x.min(), y.min(), x.max() + 1, y.max() + 1]
                np.testing.assert_allclose([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], edges, atol=1.6)
                assert (batch["mask"][row][inside[row]] == 1 + batch["box_class"][row, 0]).all()
            mirrored += len(batch["view"])
    assert mirrored == 96


def test_files_and_arrays_give_the_same_without_random_changes(tmp_path):
    pixels, boxes, masks = rectangles(4)
    for row in range(4):
        Image.fromarray(pixels[row].transpose(1, 2, 0)).save(tmp_path / f"{row}.png")
    disk = FileImages([f"{row}.png" for row in range(4)], tmp_path)
    words = train_tokenizer(["a cat"], 64)
    found = []
    for images, workers in ((ArrayImages(pixels), 0), (disk, 0), (disk, 1)):
        base = AnnotatedPairs(pairs(images), boxes, ArrayMasks(masks), class_names=NAMES)
        data = AnnotatedData(base, words, augment=None, size=20)
        found.append(finish_on_device(data, {"epoch": 0, **next(in_order(data, batch_size=4, workers=workers))}, 0))
    names = {
        "view",
        "boxes",
        "box_class",
        "boxes_known",
        "mask",
        "labels",
        "input_ids",
        "attention_mask",
        "image_ids",
        "text_ids",
    }
    for other in found:
        assert names <= set(other)
        assert not {"crop", "may_flip", "crowd", "image"} & set(other)
        for name in names:
            assert torch.equal(other[name], found[0][name]), name
    assert found[0]["mask"].dtype == torch.int64
    assert found[0]["mask"].shape == (4, 20, 20)


def test_views_are_a_function_of_seed_epoch_and_index():
    whole = scene_annotations({"train": digit_scenes(8, size=32, digits=(2, 3))})
    data = AnnotatedData(whole, train_tokenizer(whole.pairs.captions, 200), augment=CROPS)
    one, two = shown(data, [5, 1, 2], epoch=3), shown(data, [2, 7, 5, 0], epoch=3)
    for name in ("view", "mask", "labels"):
        assert torch.equal(one[name][0], two[name][2])
        assert torch.equal(one[name][2], two[name][0])
    assert torch.equal(one["boxes"][0], two["boxes"][2][: one["boxes"].shape[1]])
    assert not torch.equal(one["view"], shown(data, [5, 1, 2], epoch=4)["view"])
    assert not torch.equal(one["view"], shown(data, [5, 1, 2], epoch=3, seed=1)["view"])


def test_pictures_called_left_or_right_are_never_mirrored():
    pixels = np.zeros((4, 3, 16, 16), np.uint8)
    pixels[..., :4] = 255
    boxes = Boxes.of([[(0.125, 0.5, 0.25, 1.0)]] * 4, [[0]] * 4)
    masks = np.zeros((4, 16, 16), np.uint8)
    masks[..., :4] = 1
    base = AnnotatedPairs(
        pairs(ArrayImages(pixels), ["a cat", "a cat left of a dog", "a cat", "nothing"]),
        boxes,
        ArrayMasks(masks),
        class_names=NAMES,
    )
    asked = Questions(
        base.pairs.images,
        base.pairs.image_ids,
        np.array([2, 3]),
        np.array(["train", "train"]),
        base.pairs.dropped,
        {},
        ("is the cat on the right", "is it bright"),
        (("no",), ("yes",)),
        ("", ""),
        np.ones(2),
        ("0", "1"),
    )
    base = replace(base, questions=asked)
    assert base.sided().tolist() == [False, True, True, False]
    data = AnnotatedData(base, augment=AugmentConfig(size=16, resize="squash", flip=1.0, rand_augment=0))
    batch = shown(data, [0, 1, 2, 3])
    left = batch["view"][:, 0, :, :8].mean((1, 2)) > batch["view"][:, 0, :, 8:].mean((1, 2))
    assert left.tolist() == [False, True, True, False]
    torch.testing.assert_close(batch["boxes"][:, 0, 0], torch.tensor([0.875, 0.125, 0.125, 0.875]))
    assert ((batch["mask"][:, 0, 0] == 1) == left).all()
    assert "2 pictures (50%)" in data.advice()[0]
    assert not AnnotatedData(base, augment=None, size=16).advice()


def test_labels_follow_the_crop():
    """One box is whole in the left half, one is cut to a fifth, one is out of sight."""
    boxes = Boxes.of([[(0.2, 0.5, 0.2, 0.2), (0.58, 0.5, 0.2, 0.2), (0.9, 0.5, 0.1, 0.1)]] * 2, [[0, 1, 2]] * 2)
    placed = place_boxes(*map(torch.from_numpy, boxes.padded(np.array([0]))[:2]), torch.tensor([[0.0, 0.0, 1.0, 0.5]]))
    labels = torch.tensor([[1.0, 1.0, 1.0]])
    assert placed.box_class.tolist() == [[0, -1, -1]]
    assert placed.labels(labels, torch.tensor([[0, 1, 2]])).tolist() == [[1.0, -1.0, 0.0]]
    assert placed.labels(-labels, torch.tensor([[0, 1, 2]])).tolist() == [[-1.0] * 3]
    mask = torch.tensor([[[0, 3], [-1, 0]]])
    assert labels_in_view(torch.tensor([[1.0, 0.0, 1.0]]), mask).tolist() == [[-1.0, 0.0, 1.0]]


def test_crowds_are_no_boxes_to_learn_but_labels():
    boxes = Boxes.of([[(0.3, 0.5, 0.2, 0.2), (0.5, 0.5, 1.0, 1.0)]] * 2, [[0, 2]] * 2, [[False, True]] * 2)
    base = AnnotatedPairs(pairs(ArrayImages(np.zeros((2, 3, 16, 16), np.uint8))), boxes, class_names=NAMES)
    batch = shown(
        AnnotatedData(base, augment=CROPS.model_copy(update={"scale": (1.0, 1.0), "ratio": (1.0, 1.0)})), [0, 1]
    )
    assert batch["box_class"].tolist() == [[0, -1]] * 2
    assert batch["labels"].tolist() == [[1, 0, 1]] * 2


def test_changes_that_boxes_cannot_follow_are_refused():
    pixels, boxes, _ = rectangles(3)
    base = AnnotatedPairs(pairs(ArrayImages(pixels)), boxes, class_names=NAMES)
    with pytest.raises(
        ConfigError, match=r"augment.operations .* identity, autocontrast, equalize, brightness, sharpness"
    ):
        AnnotatedData(base, augment=AugmentConfig(size=32))
    assert not AugmentConfig().still().moves
    assert not set(AugmentConfig().still().operations) & set(MOVING)
    AnnotatedData(base, augment=AugmentConfig(size=32).still())
    AnnotatedData(base.pairs, augment=AugmentConfig(size=32))  # nothing there that could not follow


def test_pictures_in_memory_with_masks_in_files(tmp_path):
    pixels, _, masks = rectangles(2)
    Image.fromarray(masks[0]).save(tmp_path / "0.png")
    stored = StoredMasks(FileImages(["0.png"], tmp_path), np.array([0, -1]), {0: 0, 1: 1})
    base = AnnotatedPairs(pairs(ArrayImages(pixels)), None, stored, class_names=NAMES)
    with pytest.raises(DataError, match="in memory with masks in files"):
        AnnotatedData(base, augment=None, size=16)
    with pytest.raises(DataError, match="1 picture to train on"):
        AnnotatedData(annotated(base.pairs.take([0])), augment=None, size=16)


def test_a_mask_that_cannot_be_read_is_skipped_and_counted(tmp_path):
    pixels, boxes, masks = rectangles(4)
    for row in range(4):
        Image.fromarray(pixels[row].transpose(1, 2, 0)).save(tmp_path / f"{row}.png")
        Image.fromarray(masks[row]).save(tmp_path / f"m{row}.png")
    (tmp_path / "m2.png").write_bytes(b"broken")
    stored = StoredMasks(
        FileImages([f"m{row}.png" for row in range(4)], tmp_path), np.arange(4), {0: 0, 1: 1, 2: 2, 3: 3}
    )
    base = AnnotatedPairs(
        pairs(FileImages([f"{row}.png" for row in range(4)], tmp_path)),
        boxes,
        stored,
        np.eye(3, dtype=bool)[[0, 1, 2, 0]],
        NAMES,
    )
    (batch,) = in_order(AnnotatedData(base, augment=None, size=16), batch_size=4, workers=0)
    assert batch["index"].tolist() == [0, 1, 3]
    assert batch["bad"][0][0] == 2


def test_geometry_handed_in_is_the_geometry_used():
    pixels = torch.randint(0, 256, (3, 3, 20, 16), dtype=torch.uint8)
    random = BatchRandom(0, 1, torch.arange(3))
    drawn = draw_geometry(random, CROPS, 20, 16)
    assert torch.equal(make_views(pixels, random, CROPS), make_views(pixels, random, CROPS, geometry=drawn))
    mirrored = Geometry(drawn.box, ~drawn.flip)
    torch.testing.assert_close(
        make_views(pixels, random, CROPS, geometry=mirrored),
        make_views(pixels, random, CROPS).flip(3),
        atol=1.1 / 255,
        rtol=0,
    )
    never = draw_geometry(
        random, CROPS.model_copy(update={"flip": 1.0}), 20, 16, may_flip=torch.tensor([True, False, True])
    )
    assert never.flip.tolist() == [True, False, True]
