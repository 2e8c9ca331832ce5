"""Repetition and insertion on token ids: what they may touch, how often they do, and that chance is the sentence's own."""

import numpy as np
import pytest
import torch

from mc_core.errors import ConfigError
from mc_core.random import BatchRandom
from mc_text_code.augment import (
    insert_masks,
    insert_stop_words,
    lengthen,
    most_added,
    most_repeated,
    repeat_subwords,
    repeat_words,
)
from mc_text_code.augment_config import AugmentConfig

CLS, SEP, MASK = 2, 3, 4


def batch(*lengths, seed=0):
    """Rows [CLS] a b c … [SEP] of different tokens, ragged."""
    rows = [[CLS, *(10 + 100 * i + np.arange(n - 2)), SEP] for i, n in enumerate(lengths)]
    tokens = np.concatenate([np.array(row, dtype=np.int32) for row in rows])
    return tokens, np.array(lengths, dtype=np.int32), BatchRandom(seed, 0, torch.arange(len(lengths)))


def rows_of(tokens, lengths):
    return [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]


def doubled(before, after):
    """Places whose token is doubled; fails unless that is all that happened."""
    places, at = [], 0
    for place, token in enumerate(before):
        assert after[at] == token
        at += 1
        if at < len(after) and after[at] == token:
            places.append(place)
            at += 1
    assert at == len(after)
    return places


@pytest.mark.parametrize("cap", ["code", "paper"])
@pytest.mark.parametrize("rate", [0.08, 0.32, 1.0])
def test_sub_words_are_doubled_in_place_and_special_tokens_are_not(cap, rate):
    lengths = [2, 3, 4, 5, 7, 8, 12, 20, 32] * 30
    tokens, sizes, draw = batch(*lengths)
    longer, grown = repeat_subwords(tokens, sizes, draw, rate=rate, cap=cap)
    assert longer.dtype == tokens.dtype
    assert grown.dtype == sizes.dtype
    assert grown.sum() == len(longer)
    for before, after in zip(rows_of(tokens, sizes), rows_of(longer, grown), strict=True):
        places = doubled(before, after)
        n, k = len(before), len(places)
        most = max(min(10, int(rate * n)) - 1, 0) if cap == "code" else max(2, int(rate * n))
        assert k <= min(most, max(n - 2, 0))
        assert 0 not in places
        assert n - 1 not in places


@pytest.mark.parametrize(
    ("n", "cap", "mean", "none"),
    [
        (6, "code", 0.0, 1.0),
        (8, "code", 0.5, 0.5),
        (12, "code", 1.0, 1 / 3),
        (20, "code", 2.5, 1 / 6),
        (32, "code", 4.5, 0.1),
        (6, "paper", 1.0, 1 / 3),
        (8, "paper", 1.0, 1 / 3),
        (12, "paper", 1.5, 0.25),
        (20, "paper", 3.0, 1 / 7),
        (32, "paper", 5.0, 1 / 11),
    ],
)
def test_how_often_sub_words_are_doubled(n, cap, mean, none):
    count = 20_000
    tokens, sizes, draw = batch(*[n] * count)
    _, grown = repeat_subwords(tokens, sizes, draw, rate=0.32, cap=cap)
    k = grown - n
    assert abs(k.mean() - mean) < 0.05
    assert abs((k == 0).mean() - none) < 0.02
    assert k.max() == most_repeated(np.array([n]), 0.32, cap)[0]
    shares = np.bincount(k) / count
    assert np.abs(shares - none).max() < 0.02, "every count is equally likely"


def test_every_position_is_doubled_equally_often():
    tokens, sizes, draw = batch(*[12] * 20_000)
    longer, grown = repeat_subwords(tokens, sizes, draw, rate=0.32, cap="code")
    ends = np.cumsum(grown)
    same = np.zeros(12)
    for row, (end, size) in zip(rows_of(tokens, sizes), zip(ends, grown, strict=True), strict=True):
        same[doubled(row, longer[end - size : end].tolist())] += 1
    assert same[0] == same[11] == 0
    assert np.abs(same[1:11] / same.sum() - 0.1).max() < 0.01


@pytest.mark.parametrize("cap", ["code", "paper"])
@pytest.mark.parametrize("kind", ["subword", "word", "stop-word", "mask"])
def test_rate_0_changes_nothing(kind, cap):
    tokens, sizes, draw = batch(5, 32, 2)
    config = AugmentConfig(kind=kind, rate=0.0, cap=cap)
    same, lengths = lengthen(
        tokens,
        sizes,
        draw,
        config,
        word_starts=np.ones(len(tokens), bool),
        mask_id=MASK,
        stop_ids=np.array([7, 8]),
    )
    assert np.array_equal(same, tokens)
    assert np.array_equal(lengths, sizes)


@pytest.mark.parametrize("kind", ["subword", "word", "stop-word", "mask"])
def test_a_sentence_is_changed_alike_in_any_batch_and_anew_in_each_epoch(kind):
    config = AugmentConfig(kind=kind, rate=0.9, cap="paper")
    tokens, sizes, _ = batch(9, 30, 12)
    starts = np.ones(len(tokens), bool)
    first, last = sizes[0], sizes[2]

    def changed(tokens, sizes, starts, index, epoch=0):
        draw = BatchRandom(7, epoch, torch.tensor(index))
        return rows_of(
            *lengthen(tokens, sizes, draw, config, word_starts=starts, mask_id=MASK, stop_ids=np.arange(5, 9))
        )

    together = changed(tokens, sizes, starts, [4, 5, 6])
    assert changed(tokens[:first], sizes[:1], starts[:first], [4]) == together[:1]
    assert changed(tokens[-last:], sizes[2:], starts[-last:], [6]) == together[2:]
    assert changed(tokens, sizes, starts, [4, 5, 6], epoch=1) != together


def test_words_are_doubled_whole_and_the_last_one_never():
    # [CLS] w1 w2a w2b w3 w4a w4b w4c [SEP]
    row, starts = np.array([CLS, 1, 21, 22, 31, 41, 42, 43, SEP]), np.array([1, 1, 1, 0, 1, 1, 0, 0, 1], bool)
    words = [[1], [21, 22], [31], [41, 42, 43]]
    count = 4000
    tokens, sizes = np.tile(row, count), np.full(count, len(row))
    draw = BatchRandom(0, 0, torch.arange(count))
    longer, grown = repeat_words(tokens, sizes, np.tile(starts, count), draw, rate=1.0, cap="code")
    seen = np.zeros(4)
    for after in rows_of(longer, grown):
        at = 1
        for number, word in enumerate(words):
            times = 2 if after[at : at + 2 * len(word)] == word * 2 else 1
            at += times * len(word)
            seen[number] += times - 1
        assert after[0] == CLS
        assert after[at:] == [SEP]
    # k < min(10, 4, max(2, 4)) = 4: 0 … 3 with mean 1.5, spread over three words
    assert seen[3] == 0
    assert np.abs(seen[:3] / count - 0.5).max() < 0.03


def test_masks_and_stop_words_stand_in_gaps_and_leave_the_sentence_as_it_was():
    tokens, sizes, draw = batch(*[20, 3, 2] * 500)
    for longer, grown, allowed in (
        (*insert_masks(tokens, sizes, MASK, draw, rate=0.32), {MASK}),
        (*insert_stop_words(tokens, sizes, np.array([5, 6, 7]), draw, rate=0.32), {5, 6, 7}),
    ):
        found = set()
        for before, after in zip(rows_of(tokens, sizes), rows_of(longer, grown), strict=True):
            assert [token for token in after if token not in allowed] == before
            assert after[0] == CLS
            assert after[-1] == SEP
            found |= set(after) & allowed
        assert found == allowed
        assert abs((grown - sizes)[sizes == 20].mean() - 2.5) < 0.2


def test_no_sentences_are_no_trouble():
    empty, draw = np.zeros(0, np.int32), BatchRandom(0, 0, torch.arange(0))
    for kind in ("subword", "word", "mask"):
        config = AugmentConfig(kind=kind)
        tokens, lengths = lengthen(empty, empty, draw, config, word_starts=np.zeros(0, bool), mask_id=1)
        assert len(tokens) == len(lengths) == 0


@pytest.mark.parametrize("kind", ["word", "stop-word", "mask"])
def test_what_a_kind_needs_is_asked_for(kind):
    with pytest.raises(ConfigError, match=f"augment.kind {kind}"):
        lengthen(*batch(8), AugmentConfig(kind=kind))


@pytest.mark.parametrize("cap", ["code", "paper"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.32, 1.0])
@pytest.mark.parametrize("kind", ["subword", "word", "stop-word", "mask", "none"])
def test_no_sentence_grows_by_more_than_is_said(kind, rate, cap):
    config = AugmentConfig(kind=kind, rate=rate, cap=cap)
    for n in (2, 3, 7, 32):
        tokens, sizes, draw = batch(*[n] * 2000)
        starts = np.ones(len(tokens), bool)
        _, grown = lengthen(tokens, sizes, draw, config, word_starts=starts, mask_id=MASK, stop_ids=np.array([7, 8]))
        most = int((grown - sizes).max())
        assert most <= most_added(n, config)
        if kind != "word":
            assert most == most_added(n, config)
