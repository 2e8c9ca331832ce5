"""Pairs for training: drawn texts, length buckets, ids, mirrored sides, and no Python per sample."""

from __future__ import annotations

import json
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from mc_core.data import StepPlan, finish_on_device, step_loader
from mc_core.errors import ConfigError, DataError
from mc_core.random import BatchRandom
from mc_medical.augment import flip_coins, make_view
from mc_medical.augment_config import AugmentConfig
from mc_medical.data.cohort import Studies
from mc_medical.data.image_ref import ImageRef
from mc_medical.data.pairs import PairData
from mc_medical.data.pixels import PixelStore
from mc_medical.data.reports import ReportOptions, swap_sides, text_key
from mc_medical.tokenizers import train_tokenizer

REPORTS = [
    "No acute cardiopulmonary process.",
    "Left pleural effusion. Mild cardiomegaly. No pneumothorax.",
    "No acute cardiopulmonary process.",
    "Right basal consolidation with a small right effusion, and the heart at the upper limit of normal in size.",
    "Clear lungs. Normal heart.",
    "No acute cardiopulmonary process.",
    "Edema.",
    "Left pleural effusion. Mild cardiomegaly. No pneumothorax.",
]
AUGMENT = AugmentConfig(size=16)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(REPORTS, 200)


def cohort(reports=tuple(REPORTS)) -> Studies:
    n = len(reports)
    return Studies(
        images=tuple(ImageRef(f"SECRET{i}") for i in range(n)),
        reports=tuple(reports),
        patients=np.arange(n) // 2,
        studies=100 + np.arange(n) // 2,
        text_ids=np.array([text_key(text) for text in reports]),
        views=np.array(["PA"] * n),
        splits=np.array(["train"] * n),
        rows=np.arange(2, n + 2),
        label_names=(),
        labels=np.zeros((n, 0), np.float32),
    )


def pictures(n=8, size=20) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (n, size, size), dtype=np.uint8)


def pairs(tokenizer, **options) -> PairData:
    return PairData(cohort(), pictures(), tokenizer, **{"augment": AUGMENT, "max_length": 16, **options})


def test_a_batch_holds_what_was_asked_for(tokenizer):
    data = pairs(tokenizer, reports=ReportOptions(sentence_share=0.0))
    rows = [3, 0, 6]
    batch = data.get_batch(rows, epoch=2, seed=5)
    assert batch["pixels"].shape == (3, 1, 20, 20)
    assert batch["pixels"].dtype == torch.uint8
    np.testing.assert_array_equal(batch["pixels"][:, 0].numpy(), pictures()[rows])
    assert batch["study_ids"].tolist() == [101, 100, 103]
    assert batch["text_ids"].tolist() == [text_key(REPORTS[i]) for i in rows]
    for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
        expected = tokenizer(REPORTS[row], truncation=True, max_length=16)["input_ids"]
        assert ids[: len(expected)].tolist() == expected
        assert mask.tolist() == [1] * len(expected) + [0] * (len(ids) - len(expected))
        assert (ids[len(expected) :] == tokenizer.pad_token_id).all()
    assert batch["input_ids"].shape == (3, 16)
    assert {t.dtype for name, t in batch.items() if name != "pixels"} == {torch.int64}


def test_a_store_gives_the_same_as_an_array(tokenizer):
    array = pictures()
    order = np.array([7, 6, 5, 4, 3, 2, 1, 0])
    store = PixelStore(array[order], order, np.ones(8, dtype=bool))
    a = PairData(cohort(), array, tokenizer).get_batch([1, 5, 2], 0, 0)
    b = PairData(cohort(), store, tokenizer).get_batch([1, 5, 2], 0, 0)
    assert all(torch.equal(a[name], b[name]) for name in a)


def drawn(data: PairData, epochs: int) -> dict[int, Counter[str]]:
    texts = [*data.texts, *map(swap_sides, data.texts)]
    found: dict[int, Counter[str]] = {row: Counter() for row in range(len(data))}
    for epoch in range(epochs):
        for row, text in enumerate(data.drawn(np.arange(len(data)), epoch, 0).tolist()):
            found[row][texts[text]] += 1
    return found


def test_sentences_are_drawn_as_often_as_asked_and_each_alike(tokenizer):
    found = drawn(pairs(tokenizer, reports=ReportOptions(sentence_share=0.6)), 2000)
    assert found[0] == {REPORTS[0]: 2000}  # one sentence is the whole
    assert set(found[1]) == {REPORTS[1], "Left pleural effusion.", "Mild cardiomegaly.", "No pneumothorax."}
    assert found[1][REPORTS[1]] / 2000 == pytest.approx(0.4, abs=0.04)
    for sentence in ("Left pleural effusion.", "Mild cardiomegaly.", "No pneumothorax."):
        assert found[1][sentence] / 2000 == pytest.approx(0.2, abs=0.03)
    assert found[1] != found[7]  # the same report of another image is drawn on its own
    whole = drawn(pairs(tokenizer, reports=ReportOptions(sentence_share=0.0)), 20)
    assert all(len(texts) == 1 for texts in whole.values())
    alone = drawn(pairs(tokenizer, reports=ReportOptions(sentence_share=1.0)), 200)
    assert REPORTS[1] not in alone[1]


def test_text_ids_are_those_of_the_drawn_text(tokenizer):
    data = pairs(tokenizer, reports=ReportOptions(sentence_share=1.0))
    for epoch in range(6):
        batch = data.get_batch(range(8), epoch, 3)
        texts = [data.texts[i] for i in data.drawn(np.arange(8), epoch, 3)]
        assert batch["text_ids"].tolist() == [text_key(text) for text in texts]
        decoded = [
            tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        assert [text_key(text) for text in decoded if len(text) < 60] == [
            text_key(text) for text in texts if len(text) < 60
        ]


def test_a_pair_is_a_function_of_seed_epoch_and_index(tokenizer):
    data = pairs(tokenizer)
    one = data.get_batch([6, 1, 4], 3, 9)
    other = data.get_batch([4, 0, 1, 6, 2], 3, 9)
    for a, b in ((0, 3), (1, 2), (2, 0)):
        assert one["text_ids"][a] == other["text_ids"][b]
        assert torch.equal(one["pixels"][a], other["pixels"][b])
    many = [data.get_batch(range(8), epoch, seed)["text_ids"] for epoch in range(4) for seed in range(4)]
    assert len({tuple(ids.tolist()) for ids in many}) > 8


def test_batches_keep_their_images_and_sort_their_texts(tokenizer):
    data = pairs(tokenizer)
    permutation = np.random.default_rng(1).permutation(8)
    arranged = data.arrange(permutation, epoch=4, batch_size=3, seed=2)
    lengths = data.tokens.lengths[data.drawn(arranged, 4, 2)]
    for first in (0, 3):
        assert sorted(arranged[first : first + 3]) == sorted(permutation[first : first + 3])
        assert (np.diff(lengths[first : first + 3]) >= 0).all()
    assert arranged[6:].tolist() == permutation[6:].tolist()
    plain = pairs(tokenizer, length_buckets=False)
    assert plain.arrange(permutation, epoch=4, batch_size=3, seed=2) is permutation


def test_micro_batches_of_the_loader_are_padded_less(tokenizer):
    reports = tuple(" ".join(["effusion"] * (1 + i % 30)) + "." for i in range(120))
    plan = StepPlan(length=120, batch_size=60, seed=0, accumulation=6)

    def tokens(length_buckets: bool) -> int:
        data = PairData(
            cohort(reports), pictures(120), tokenizer, augment=None, max_length=40, length_buckets=length_buckets
        )
        batches = list(step_loader(data, plan, start=0, stop=2, workers=0))
        assert sorted(i for batch in batches for i in batch["index"].tolist()) == list(range(120))
        return sum(batch["input_ids"].numel() for batch in batches)

    assert tokens(True) < 0.75 * tokens(False)


def test_views_are_those_of_the_augmentation_and_only_those_needed(tokenizer):
    data = pairs(tokenizer)
    batch = {**data.get_batch([2, 5], 1, 0), "index": torch.tensor([2, 5]), "epoch": 1}
    random = BatchRandom(0, 1, torch.tensor([2, 5]))
    both = finish_on_device(data, batch, 0)
    assert both["view_1"].shape == (2, 1, 16, 16)
    for number in (1, 2):
        assert torch.equal(both[f"view_{number}"], make_view(batch["pixels"], random, number, AUGMENT))
    assert not torch.equal(both["view_1"], both["view_2"])
    assert "pixels" not in both
    assert torch.equal(both["input_ids"], batch["input_ids"])
    teacher = data.device_transform({**batch, "needs": ("view_2",)}, random)
    assert "view_1" not in teacher
    assert torch.equal(teacher["view_2"], both["view_2"])
    plain = pairs(tokenizer, augment=None).device_transform(batch, random)
    assert torch.equal(plain["view_1"], batch["pixels"].float() / 255)


def test_mirrored_images_have_mirrored_words(tokenizer):
    augment = AugmentConfig(
        size=20, crop=1.0, brightness=0, contrast=0, rotation=0, scale=(1.0, 1.0), shift=0, flip="swap"
    )
    data = pairs(tokenizer, augment=augment, reports=ReportOptions(sentence_share=0.0))
    index = torch.arange(8)
    coins = flip_coins(3, 1, index)
    assert 0 < coins.sum() < 8
    batch = data.get_batch(range(8), 1, 3)
    expected = [swap_sides(text) if coin else text for text, coin in zip(REPORTS, coins.tolist(), strict=True)]
    assert batch["text_ids"].tolist() == [text_key(text) for text in expected]
    found = finish_on_device(data, {**batch, "index": index, "epoch": 1}, 3)
    for view in (found["view_1"], found["view_2"]):
        for i, coin in enumerate(coins.tolist()):
            shown = torch.from_numpy(pictures()[i]).float() / 255
            assert torch.allclose(view[i, 0], shown.flip(1) if coin else shown, atol=1e-4)


def test_one_sample_at_a_time(tokenizer):
    data = pairs(tokenizer)
    sample = data.get(3, np.random.default_rng(0))
    assert sample["pixels"].shape == (1, 20, 20)
    assert sample["input_ids"].shape == sample["attention_mask"].shape
    assert int(sample["study_ids"]) == 101


def test_what_cannot_be_paired_is_one_line(tokenizer):
    with pytest.raises(DataError, match="^1 image with a report to train on"):
        PairData(cohort(REPORTS[:1]), pictures(1), tokenizer)
    with pytest.raises(DataError, match="^7 pictures for 8 images"):
        PairData(cohort(), pictures(7), tokenizer)
    with pytest.raises(DataError, match="^2 images have no report, the first in row 3; leave them out$"):
        PairData(cohort(("Clear.", "", "Clear.", "")), pictures(4), tokenizer)
    blind = train_tokenizer(REPORTS, 100)
    blind.pad_token = None
    with pytest.raises(ConfigError, match="no padding token"):
        PairData(cohort(), pictures(), blind)


def test_the_description_tells_data_apart_and_no_text(tokenizer):
    first = pairs(tokenizer).describe()
    assert json.loads(json.dumps(first)) == first
    assert first == pairs(tokenizer).describe()
    others = [
        pairs(tokenizer, max_length=12),
        pairs(tokenizer, reports=ReportOptions(sentence_share=0.2)),
        pairs(tokenizer, augment=AugmentConfig(size=18)),
        PairData(cohort(REPORTS[::-1]), pictures(), tokenizer, augment=AUGMENT, max_length=16),
        PairData(cohort(), pictures()[::-1].copy(), tokenizer, augment=AUGMENT, max_length=16),
    ]
    assert all(other.describe() != first for other in others)
    assert "SECRET" not in json.dumps(first)
    assert "effusion" not in json.dumps(first)


def test_a_large_batch_costs_no_python_per_sample(tokenizer):
    reports = tuple(f"Finding {i} in the left lung. No effusion. Heart {i % 7}." for i in range(3000))
    data = PairData(cohort(reports), pictures(3000, 8), tokenizer, max_length=24)

    def calls(count: int) -> int:
        made = 0

        def profile(frame, event, argument):
            nonlocal made
            made += event in ("call", "c_call")

        rows = list(range(count))
        sys.setprofile(profile)
        try:
            data.get_batch(rows, 0, 0)
        finally:
            sys.setprofile(None)
        return made

    calls(10)
    assert calls(2000) == calls(200)
