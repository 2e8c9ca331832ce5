"""Real image–caption pairs of the folder that MC_DATA names."""

import os
from pathlib import Path

import numpy as np
import pytest

from mc_core.data import in_order
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.data import ColumnOptions, PairData, SplitOptions, TarImages, open_pairs
from mc_vision_language.tokenizers import train_tokenizer

ROOT = Path(os.environ.get("MC_DATA", "")) / "vision-language"
pytestmark = pytest.mark.skipif(
    not os.environ.get("MC_DATA") or not ROOT.is_dir(), reason="MC_DATA names no folder of real data"
)


def test_coco_photos_have_five_captions_each():
    pairs = open_pairs(ROOT / "coco-captions-mini.tar")
    assert len(pairs) == 295
    assert len(pairs.captions) == 1475
    assert (np.diff(pairs.first_caption) == 5).all()
    assert pairs.split_counts() == {"train": 60, "validation": 235}
    assert pairs.captions_of(0)[0] == "a woman stands in the dining area at the table"
    assert pairs.columns["image_id"] == "field 'image_id'"
    anew = open_pairs(ROOT / "coco-captions-mini.tar", split=SplitOptions(own=False))
    counts = anew.split_counts()
    assert sum(counts.values()) == 295
    assert 200 < counts["train"] < 270


@pytest.mark.parametrize(
    ("name", "count", "field", "different"),
    [("fashion", 918, "text", 905), ("ikea", 1120, "title", None), ("grocery", 627, "text", 81)],
)
def test_products(name, count, field, different):
    pairs = open_pairs(ROOT / f"{name}-products.tar", columns=ColumnOptions(caption=field))
    assert len(pairs) == count
    assert all(pairs.captions)
    if different is not None:
        assert len(np.unique(pairs.text_ids)) == different
    if name == "grocery":
        assert pairs.dropped == {"split of another name": 81}


def test_every_photo_is_read_and_batched():
    pairs = open_pairs(ROOT / "coco-captions-mini.tar")
    data = PairData(
        pairs, train_tokenizer(pairs.captions, 2000), augment=AugmentConfig(size=48), unit="caption", max_length=30
    )
    seen = 0
    for batch in in_order(data, batch_size=100, workers=1):
        assert "bad" not in batch
        assert batch["image"].shape[1:] == (3, 48, 48)
        assert batch["input_ids"].shape[1] <= 30
        seen += len(batch["image"])
    assert seen == 1475


def test_rooms_of_the_question_set_are_pictures():
    images = TarImages.of(ROOT / "daquar-vqa-train.tar")
    assert len(images) == 430
    assert images.read(429).mode == "RGB"
