"""Pairs: parts, rows, division, shuffled captions; and the data set that training reads."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mc_core.data import Dataset, StepPlan, finish_on_device, in_order, step_loader
from mc_core.errors import ConfigError, DataError
from mc_core.random import BatchRandom
from mc_core.samples import digit_scenes
from mc_testkit.caption_files import pictures
from mc_testkit.files import write_broken_image
from mc_vision_language.augment import make_views
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.data import (
    ArrayImages,
    FileImages,
    ImageViews,
    PairData,
    Pairs,
    divide,
    scene_pairs,
    shuffled_captions,
    squashed,
    text_key,
)
from mc_vision_language.tokenizers import encode_texts, train_tokenizer

COUNTS = (2, 1, 3, 1, 2, 1)
TEXTS = tuple(f"picture {row} text {i}" for row, count in enumerate(COUNTS) for i in range(count))


def pairs_of(images=None, splits="train"):
    """Six pictures with 2, 1, 3, 1, 2, 1 captions; the last two are the same picture."""
    if images is None:
        noise = np.random.default_rng(0).integers(0, 256, (6, 3, 20, 24), dtype=np.uint8)
        images = ArrayImages(noise)
    return Pairs(
        images,
        TEXTS,
        np.repeat(np.arange(6), COUNTS),
        image_ids=np.array([10, 11, 12, 13, 14, 14]),
        text_ids=np.array([text_key(text) for text in TEXTS]),
        splits=np.array([splits] * 6 if isinstance(splits, str) else splits),
    )


def test_rows_keep_their_captions_whatever_the_order():
    pairs = pairs_of()
    taken = pairs.take([4, 0, 4])
    assert [taken.captions_of(row) for row in range(3)] == [pairs.captions_of(row) for row in (4, 0, 4)]
    assert taken.image_of.tolist() == [0, 0, 1, 1, 2, 2]
    assert taken.image_ids.tolist() == [14, 10, 14]
    assert [text_key(text) for text in taken.captions] == taken.text_ids.tolist()
    assert len(pairs.take([]).captions) == 0
    with pytest.raises(DataError, match="rows run from 0 to 6, there are 0 to 5"):
        pairs.take([0, 6])


def test_parts():
    pairs = pairs_of(splits=["train", "test", "train", "test", "train", "train"])
    assert pairs.part("test").captions == ("picture 1 text 0", "picture 3 text 0")
    assert pairs.split_counts() == {"train": 4, "test": 2}
    with pytest.raises(DataError, match=r"no picture in the split 'validation'; there are train \(4\), test \(2\)"):
        pairs.part("validation")


def test_lengths_must_fit():
    pairs = pairs_of()
    with pytest.raises(DataError, match="6 pictures and 10 captions with"):
        Pairs(pairs.images, TEXTS, pairs.image_of, pairs.image_ids[:5], pairs.text_ids, pairs.splits)
    with pytest.raises(DataError, match="image_of must rise from 0 to 5"):
        Pairs(pairs.images, TEXTS, pairs.image_of[::-1].copy(), pairs.image_ids, pairs.text_ids, pairs.splits)


def test_division_keeps_equal_pictures_together_and_moves_none_when_more_come():
    ids = np.random.default_rng(0).integers(0, 2**62, 4000)
    ids[1::2] = ids[::2]
    parts = divide(ids, (0.7, 0.2, 0.1), seed=5)
    assert (parts[1::2] == parts[::2]).all()
    assert np.array_equal(divide(ids[:999], (0.7, 0.2, 0.1), seed=5), parts[:999])
    shuffled = np.random.default_rng(1).permutation(4000)
    assert np.array_equal(divide(ids[shuffled], (0.7, 0.2, 0.1), seed=5), parts[shuffled])
    shares = [(parts == name).mean() for name in ("train", "validation", "test")]
    assert np.allclose(shares, (0.7, 0.2, 0.1), atol=0.03)
    other = divide(ids, (0.7, 0.2, 0.1), seed=6)
    assert 0.4 < (other == parts).mean() < 0.7  # 0.54 if the two are independent
    assert set(divide(ids, (0.5, 0.0, 0.5), seed=0)) == {"train", "test"}
    assert set(divide(ids, (1.0, 0.0, 0.0), seed=0)) == {"train"}


@pytest.mark.parametrize("seed", range(20))
def test_every_part_with_a_share_has_a_picture(seed):
    ids = np.arange(3) + 100 * seed
    assert sorted(divide(ids, (0.8, 0.1, 0.1), seed)) == ["test", "train", "validation"]
    assert Counter(divide(np.arange(8), (0.98, 0.01, 0.01), seed).tolist())["train"] == 6
    with pytest.raises(DataError, match="2 different pictures cannot be divided into 3 parts"):
        divide(np.array([1, 2, 2]), (0.8, 0.1, 0.1), seed)


def test_pairs_are_divided_by_their_ids():
    pairs = pairs_of().divided((0.5, 0.0, 0.5), seed=1)
    assert pairs.splits[4] == pairs.splits[5]
    assert np.array_equal(pairs.splits, divide(pairs.image_ids, (0.5, 0.0, 0.5), 1))
    with pytest.raises(ValueError, match="three shares of 0 or more that sum to 1"):
        pairs.divided((0.5, 0.1, 0.1))


def test_scenes():
    train, test = digit_scenes(5, size=32, digits=(2, 2)), digit_scenes(3, size=32, digits=(2, 2), split="test")
    pairs = scene_pairs({"train": train, "test": test})
    assert pairs.split_counts() == {"train": 5, "test": 3}
    assert [pairs.captions_of(row) for row in range(5)] == [(text,) for text in train.captions]
    assert np.array_equal(pairs.images.array[5:], test.images.numpy())
    assert len(np.unique(pairs.image_ids)) == 8
    again = scene_pairs(digit_scenes(1, size=32, digits=(2, 2), start=2))
    assert again.image_ids[0] == pairs.image_ids[2]
    assert again.text_ids[0] == pairs.text_ids[2]
    with pytest.raises(ConfigError, match="split 'dev': choose train, validation, test"):
        scene_pairs(train, "dev")


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_shuffled_captions(share):
    scenes = digit_scenes(50, size=16)
    pairs = scene_pairs(scenes, ["train"] * 40 + ["test"] * 10)
    numbered = Pairs(
        pairs.images,
        tuple(f"caption {i}" for i in range(50)),
        pairs.image_of,
        pairs.image_ids,
        np.arange(50),
        pairs.splits,
    )
    noisy = shuffled_captions(numbered, share, seed=3)
    moved = noisy.text_ids != np.arange(50)
    assert moved.sum() == round(40 * share)
    assert not moved[40:].any()
    assert sorted(noisy.text_ids.tolist()) == list(range(50))
    assert noisy.captions == tuple(f"caption {i}" for i in noisy.text_ids)
    assert np.array_equal(noisy.text_ids, shuffled_captions(numbered, share, seed=3).text_ids)
    if share > 0:
        assert not np.array_equal(noisy.text_ids, shuffled_captions(numbered, share, seed=4).text_ids)
    with pytest.raises(ConfigError, match=r"share=1.5"):
        shuffled_captions(numbered, 1.5, 0)


def data_of(pairs, **options):
    return PairData(pairs, train_tokenizer(TEXTS, 200), augment=AugmentConfig(size=16), **options)


def batches(data, workers, steps=4, batch_size=3, seed=0, accumulation=1):
    plan = StepPlan(len(data), batch_size, seed, accumulation=accumulation)
    loader = step_loader(data, plan, start=0, stop=steps, workers=workers)
    return [finish_on_device(data, batch, seed) for batch in loader]


@pytest.fixture
def files(tmp_path):
    return FileImages(pictures(tmp_path, 6), tmp_path)


@pytest.mark.parametrize("unit", ["image", "caption"])
@pytest.mark.parametrize("kind", ["memory", "files"])
def test_batches(kind, unit, files):
    pairs = pairs_of(files if kind == "files" else None)
    data = data_of(pairs, unit=unit)
    assert isinstance(data, Dataset)
    assert len(data) == (6 if unit == "image" else 10)
    seen = batches(data, workers=0)
    shuffled = batches(data, workers=2)
    for batch, other in zip(seen, shuffled, strict=True):
        for name in ("view", "input_ids", "attention_mask", "image_ids", "text_ids", "index"):
            assert torch.equal(batch[name], other[name]), name
        assert batch["view"].shape == (3, 3, 16, 16)
        assert "image" not in batch
        assert batch["image_ids"].dtype == batch["text_ids"].dtype == torch.int64
        tokenizer = train_tokenizer(TEXTS, 200)
        for row, index in enumerate(batch["index"].tolist()):
            key = int(batch["text_ids"][row])
            caption = pairs.text_ids.tolist().index(key)
            picture = pairs.image_of[caption]
            assert picture == (index if unit == "image" else pairs.image_of[index])
            assert unit == "image" or caption == index
            assert batch["image_ids"][row] == pairs.image_ids[picture]
            length = int(batch["attention_mask"][row].sum())
            expected, _ = encode_texts(tokenizer, [TEXTS[caption]], 25)
            assert batch["input_ids"][row, :length].tolist() == expected[0].tolist()
            assert (batch["input_ids"][row, length:] == tokenizer.pad_token_id).all()


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_what_is_drawn_depends_on_seed_epoch_and_sample_alone(kind, files):
    pairs = pairs_of(files if kind == "files" else None)
    data = data_of(pairs)
    whole = {}
    for batch in batches(data, 0, steps=2, batch_size=6):
        for row, index in enumerate(batch["index"].tolist()):
            whole[batch["epoch"], index] = (batch["view"][row], int(batch["text_ids"][row]))
    for batch in batches(data, 0, steps=4, batch_size=3):
        for row, index in enumerate(batch["index"].tolist()):
            view, text = whole[batch["epoch"], index]
            assert torch.equal(batch["view"][row], view)
            assert int(batch["text_ids"][row]) == text
    changed = [not torch.equal(whole[0, i][0], whole[1, i][0]) for i in range(6)]
    assert sum(changed) >= 5
    others = [batch["view"] for batch in batches(data, 0, steps=1, batch_size=6, seed=1)]
    assert not torch.equal(torch.stack([whole[0, i][0] for i in range(6)]), others[0])


def test_every_caption_of_a_picture_is_drawn_in_time():
    data = data_of(pairs_of())
    drawn = Counter()
    for epoch in range(600):
        drawn.update(data.drawn(np.arange(6), epoch, 0).tolist())
    first = data.pairs.first_caption
    for row, count in enumerate(COUNTS):
        for caption in range(first[row], first[row + 1]):
            assert abs(drawn[caption] - 600 / count) < 4 * np.sqrt(600 / count)


@pytest.mark.parametrize("unit", ["image", "caption"])
def test_pictures_in_memory_are_cropped_as_the_views_say(unit):
    pairs = pairs_of()
    data = data_of(pairs, unit=unit)
    batch = batches(data, 0, steps=1, batch_size=6)[0]
    index = batch["index"].numpy()
    shown = pairs.images.array[index if unit == "image" else pairs.image_of[index]]
    expected = make_views(torch.from_numpy(shown), BatchRandom(0, 0, batch["index"]), AugmentConfig(size=16))
    assert torch.equal(batch["view"], expected)


def test_crops_of_files_are_not_cropped_again(files):
    plain = AugmentConfig(size=16, flip=0, rand_augment=0)
    data = PairData(pairs_of(files), train_tokenizer(TEXTS, 200), augment=plain)
    batch = data.collate([data.get(row, np.random.default_rng(row)) for row in range(6)])
    view = data.device_transform(batch, BatchRandom(0, 0, torch.arange(6)))["view"]
    assert torch.equal(view, batch["image"].float() / 255)
    lively = PairData(pairs_of(files), train_tokenizer(TEXTS, 200), augment=AugmentConfig(size=16))
    view = lively.device_transform(batch, BatchRandom(0, 0, torch.arange(6)))["view"]
    assert torch.equal(
        view, make_views(batch["image"], BatchRandom(0, 0, torch.arange(6)), AugmentConfig(size=16), cropped=True)
    )


def test_crops_of_files_lie_where_their_numbers_say(files):
    """A picture whose level is its column: what a crop shows says where it lay."""
    from PIL import Image

    ramp = np.broadcast_to(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (100, 120, 3))
    for row in range(6):
        Image.fromarray(np.ascontiguousarray(ramp)).save(files.name(row), "PNG")
    views = ImageViews(files, AugmentConfig(size=16, scale=(0.3, 0.3), ratio=(1.0, 1.0)))
    lefts = []
    for seed in range(40):
        crop = views.sample(0, np.random.default_rng(seed)).float()
        assert crop.shape == (3, 16, 16)
        widths = (crop[0, :, -1] - crop[0, :, 0]) / 2 * 16 / 15
        assert ((widths - 60).abs() < 3).all()  # √(0.3·100·120) = 60 columns
        lefts.append(float(crop[0, 0, 0] / 2))
    assert min(lefts) < 12
    assert max(lefts) > 50


class Asked(FileImages):
    """Notes how large pictures are wanted."""

    def read(self, row, *, min_side=None):
        self.min_side = min_side
        return super().read(row, min_side=min_side)


def test_pictures_are_decoded_large_enough_for_the_smallest_crop(files):
    asked = Asked(files.paths, files.root)
    ImageViews(asked, AugmentConfig(size=64, scale=(0.25, 1.0))).sample(0, np.random.default_rng(0))
    assert asked.min_side == 128
    ImageViews(asked, AugmentConfig(size=64, resize="squash")).sample(0, np.random.default_rng(0))
    assert asked.min_side == 64
    ImageViews(asked, None, 48).sample(0, np.random.default_rng(0))
    assert asked.min_side == 48


def test_without_augmentation_a_view_is_the_whole_picture(files):
    for images in (files, ArrayImages(np.stack([squashed(files.read(i), 40) for i in range(6)]))):
        data = PairData(pairs_of(images), train_tokenizer(TEXTS, 200), augment=None, size=24)
        batch = finish_on_device(data, next(iter(in_order(data, batch_size=6, workers=0))) | {"epoch": 0}, 0)
        expected = np.stack([squashed(images.read(i), 24) for i in range(6)])
        assert (batch["view"] * 255 - torch.from_numpy(expected)).abs().max() <= 1.01
    same = ImageViews(ArrayImages(expected), None, 24)
    part = same.batch(np.arange(6), np.arange(6), 0, 0)
    assert torch.equal(same.view(part, BatchRandom(0, 0, torch.arange(6))), torch.from_numpy(expected).float() / 255)


def test_two_pictures_of_a_sample_get_views_of_their_own(files):
    views = ImageViews(files, AugmentConfig(size=16))
    rows = np.arange(3)
    first = views.batch(rows, rows, 0, 0, stream=1)["image"]
    second = views.batch(rows, rows, 0, 0, stream=2)["image"]
    assert not torch.equal(first, second)
    random = BatchRandom(0, 0, torch.arange(3))
    assert not torch.equal(views.view({"image": first}, random, 1), views.view({"image": first}, random, 2))
    assert torch.equal(first, torch.cat([views.batch(rows[[i]], rows[[i]], 0, 0, stream=1)["image"] for i in range(3)]))


def test_a_picture_that_is_none_is_counted_and_another_takes_its_place(files):
    write_broken_image(Path(files.name(2)), "text")
    data = data_of(pairs_of(files))
    seen = batches(data, 0, steps=2, batch_size=3)
    bad = [entry for batch in seen for entry in batch.get("bad", [])]
    assert [(index, reason) for index, _, reason in bad] == [(2, "not an image (it begins with b'these ar')")]
    assert all(len(batch["view"]) == 3 for batch in seen)
    assert all((batch["index"] != 2).all() for batch in seen)
    for batch in seen:
        assert torch.equal(batch["image_ids"], torch.from_numpy(data.pairs.image_ids[batch["index"]]))


def test_mirrored_pictures_of_captions_with_sides_are_told():
    scenes = digit_scenes(20, size=32, digits=(2, 2))
    pairs = scene_pairs(scenes)
    tokenizer = train_tokenizer(pairs.captions, 200)
    (line,) = PairData(pairs, tokenizer, augment=AugmentConfig(size=16)).advice()
    sides = sum("left" in text or "right" in text for text in scenes.captions)
    assert line.startswith(f"{sides} captions")
    assert "--augment.flip 0" in line
    assert PairData(pairs, tokenizer, augment=AugmentConfig(size=16, flip=0)).advice() == []
    assert PairData(pairs, tokenizer, augment=None, size=16).advice() == []
    assert data_of(pairs_of()).advice() == []


def test_the_description_changes_with_what_training_sees():
    pairs = pairs_of()
    base = data_of(pairs).describe()
    assert base == data_of(pairs_of()).describe()
    moved = ArrayImages(pairs.images.array, location="elsewhere")
    assert {**data_of(pairs_of(moved)).describe(), "location": ""} == {**base, "location": ""}
    for other in (
        data_of(pairs.take([1, 0, 2, 3, 4, 5])),
        data_of(pairs, unit="caption"),
        data_of(pairs, max_length=3),
        data_of(pairs, add_sep=True),
        PairData(pairs, train_tokenizer(TEXTS, 200), augment=AugmentConfig(size=16, flip=0)),
    ):
        assert other.describe() != base


def test_data_that_cannot_train_is_refused():
    pairs = pairs_of()
    with pytest.raises(DataError, match="1 pair to train on"):
        data_of(pairs.take([1]))
    with pytest.raises(ConfigError, match="unit 'pair'"):
        data_of(pairs, unit="pair")
    alone = Pairs(pairs.images, TEXTS[:9], pairs.image_of[:9], pairs.image_ids, pairs.text_ids[:9], pairs.splits)
    with pytest.raises(DataError, match=r"memory\[5\]: a picture without a caption"):
        data_of(alone)
    tokenizer = train_tokenizer(TEXTS, 200)
    tokenizer.pad_token = None
    with pytest.raises(ConfigError, match="no padding token"):
        PairData(pairs, tokenizer)
