"""Tokenizers, token ids in bulk, and batches of pairs: the same as one by one, and the same in any order."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from mc_core.data import StepPlan, step_loader
from mc_core.errors import ConfigError, DataError
from mc_core.random import BatchRandom
from mc_core.tokens import ragged, tokenize
from mc_text_code.augment import repeat_subwords
from mc_text_code.augment_config import AugmentConfig
from mc_text_code.data.pairs import SentenceData, stop_word_ids
from mc_text_code.recipe import BatchOptions
from mc_text_code.tokenizers import load_tokenizer, train_tokenizer

TEXTS = [
    f"The {i}th boat sails over the {w} sea, doesn't it?" + " far" * (i % 9) for i in range(50) for w in ("red", "wide")
]


@pytest.fixture(scope="module")
def wordpiece():
    return train_tokenizer(TEXTS, 200)


@pytest.fixture(scope="module")
def bpe():
    return train_tokenizer(TEXTS, 400, "bpe")


def test_word_pieces_fold_case_and_bytes_know_everything(wordpiece, bpe):
    assert wordpiece.tokenize("the RED sea") == wordpiece.tokenize("The réd sea") == ["the", "red", "sea"]
    assert wordpiece("sea 船").input_ids[-2] == wordpiece.unk_token_id
    text = "A 船, déjà  vu!"
    assert bpe.decode(bpe(text).input_ids, skip_special_tokens=True) == text
    cased = train_tokenizer(TEXTS, 200, lowercase=False)
    assert cased.tokenize("The") != cased.tokenize("the")


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_trained_tokenizer_comes_back_from_its_folder(tmp_path, kind, request):
    tokenizer = request.getfixturevalue(kind)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again(TEXTS[3]).input_ids == tokenizer(TEXTS[3]).input_ids
    first, last = again(TEXTS[3]).input_ids[0], again(TEXTS[3]).input_ids[-1]
    assert (first, last) == (again.cls_token_id, again.sep_token_id)
    assert None not in (again.pad_token_id, again.mask_token_id, again.unk_token_id)


def test_what_no_tokenizer_can_be_trained_on():
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(["", " "])
    with pytest.raises(ConfigError, match="choose one of wordpiece, bpe"):
        train_tokenizer(TEXTS, kind="unigram")


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_in_bulk_is_as_one_by_one(kind, request, monkeypatch):
    monkeypatch.setattr("mc_core.tokens._CHUNK", 7)
    tokenizer = request.getfixturevalue(kind)
    texts = [*TEXTS[:20], "", "boat " * 100]
    tokenizer(texts, truncation=True, max_length=5, padding=True)
    before = tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding
    tokens = tokenize(tokenizer, texts, 12)
    assert (tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding) == before
    assert len(tokens) == 22
    for row, text in enumerate(texts):
        expected = tokenizer(text, truncation=True, max_length=12).input_ids
        assert tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]].tolist() == expected
    assert tokens.lengths.max() == 12
    assert len(tokenize(tokenizer, [], 12)) == 0


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_where_words_begin(kind, request):
    tokenizer = request.getfixturevalue(kind)
    tokens = tokenize(tokenizer, ["over the wailed, sea", "a"], 32, words=True)
    for row, words in ((0, ["over", "the", "wailed,", "sea"]), (1, ["a"])):
        span = slice(tokens.offsets[row], tokens.offsets[row + 1])
        ids, starts = tokens.ids[span], tokens.word_starts[span]
        parts = np.split(ids, np.flatnonzero(starts)[1:])
        decoded = [tokenizer.decode(part).replace(" ", "") for part in parts]
        assert decoded == [tokenizer.cls_token, *words, tokenizer.sep_token]


def test_words_of_a_tokenizer_without_special_tokens_stay_in_their_sentence():
    words = Tokenizer(WordLevel({"[PAD]": 0, **{w: n for n, w in enumerate("abcdefgh", start=1)}}, unk_token="[PAD]"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[PAD]")
    texts = ["a b c d", "e f g h"]
    assert tokenize(tokenizer, texts, 8, words=True).word_starts.tolist() == [True] * 8
    data = SentenceData(texts, tokenizer, AugmentConfig(kind="word", rate=1.0, cap="paper"))
    for epoch in range(8):
        batch = data.get_batch([0, 1], epoch, 0)
        for text, row in zip(texts, batch["positive_input_ids"], strict=True):
            assert list(dict.fromkeys(tokenizer.decode(row[row > 0]).split())) == text.split()


def test_a_batch_is_the_sentences_and_their_second_views(wordpiece):
    data = SentenceData(TEXTS, wordpiece, max_length=16)
    rows = [5, 0, 31]
    batch = data.get_batch(rows, epoch=2, seed=9)
    for place, row in enumerate(rows):
        expected = wordpiece(TEXTS[row], truncation=True, max_length=16).input_ids
        mask = batch["attention_mask"][place].bool()
        assert batch["input_ids"][place][mask].tolist() == expected
        assert bool((batch["input_ids"][place][~mask] == wordpiece.pad_token_id).all())
    tokens, lengths = ragged(batch["input_ids"], batch["attention_mask"])
    draw = BatchRandom(9, 2, torch.tensor(rows))
    longer, grown = repeat_subwords(tokens, lengths, draw)
    found = ragged(batch["positive_input_ids"], batch["positive_attention_mask"])
    assert [part.tolist() for part in found] == [longer.tolist(), grown.tolist()]
    assert grown.max() > 16, "repetition comes after cutting"
    assert batch["ids"].tolist() == [data.sentences.hashes[row] for row in rows]


@pytest.mark.parametrize("kind", ["subword", "word", "stop-word", "mask", "none"])
def test_views_are_of_seed_epoch_and_sentence(wordpiece, kind):
    data = SentenceData(TEXTS, wordpiece, AugmentConfig(kind=kind, rate=0.6))
    together, alone = data.get_batch([3, 8, 40], 1, 5), data.get_batch([8], 1, 5)
    size = int(alone["positive_attention_mask"].sum())
    assert torch.equal(together["positive_input_ids"][1, :size], alone["positive_input_ids"][0, :size])
    others = [data.get_batch(range(100), *where)["positive_input_ids"] for where in ((1, 5), (2, 5), (1, 6))]
    same = [other.shape == others[0].shape and torch.equal(other, others[0]) for other in others[1:]]
    assert same == ([True, True] if kind == "none" else [False, False])


def test_duplicates_are_left_out_or_share_an_id(wordpiece):
    texts = [*TEXTS[:4], TEXTS[1], TEXTS[1]]
    assert len(SentenceData(texts, wordpiece)) == 4
    data = SentenceData(texts, wordpiece, batches=BatchOptions(deduplicate=False))
    ids = data.get_batch(range(6), 0, 0)["ids"].tolist()
    assert len(data) == 6
    assert ids[1] == ids[4] == ids[5]
    assert len(set(ids)) == 4


def test_batches_of_like_length_hold_every_sentence_once(wordpiece):
    data = SentenceData(TEXTS, wordpiece, batches=BatchOptions(length_window=3))
    lengths = data.tokens.lengths
    plan = StepPlan(len(data), 8, seed=4)
    batches = [b["index"].numpy() for b in step_loader(data, plan, start=0, stop=24, workers=0)]
    for epoch in range(2):
        rows = np.concatenate(batches[12 * epoch : 12 * epoch + 12])
        assert len(set(rows.tolist())) == 96
    spread = [np.ptp(lengths[rows]) for rows in batches[:12]]
    shuffled = [np.ptp(lengths[rows]) for rows in plan.permutation(0)[:96].reshape(12, 8)]
    assert np.mean(spread) < 0.5 * np.mean(shuffled)
    for window in range(4):  # a window holds the sentences that it held before
        before = set(plan.permutation(0)[24 * window : 24 * window + 24].tolist())
        assert set(np.concatenate(batches[3 * window : 3 * window + 3]).tolist()) == before
    place = np.argsort(plan.permutation(0))
    assert all((np.diff(place[rows]) > 0).all() for rows in batches[:12]), "within a batch as shuffled, not by length"
    means = [lengths[rows].mean() for rows in batches[:12]]
    assert any(np.diff(means[at : at + 3]).min() < 0 for at in range(0, 12, 3)), "not from short to long"
    later = [b["index"].numpy() for b in step_loader(data, plan, start=14, stop=24, workers=0)]
    assert all(np.array_equal(a, b) for a, b in zip(later, batches[14:], strict=True))
    whole = data.arrange(plan.permutation(0), epoch=0, batch_size=8, seed=4)
    assert sorted(whole.tolist()) == list(range(100))


def test_what_identifies_the_data(wordpiece):
    data = SentenceData(TEXTS, wordpiece)
    described = data.describe()
    assert described == SentenceData(TEXTS, wordpiece).describe()
    for other in (
        SentenceData(TEXTS[1:], wordpiece),
        SentenceData(TEXTS, wordpiece, AugmentConfig(rate=0.2)),
        SentenceData(TEXTS, wordpiece, batches=BatchOptions(length_window=2)),
        SentenceData(TEXTS, wordpiece, max_length=9),
        SentenceData(TEXTS, train_tokenizer(TEXTS, 64)),
    ):
        assert other.describe() != described


def test_stop_words_are_single_tokens_within_a_sentence(wordpiece, bpe):
    texts = ["The boat is on the sea and it was there for me"] * 40
    for kind in ("wordpiece", "bpe"):
        tokenizer = train_tokenizer(texts, 400, kind)
        words = {tokenizer.decode([number]).strip() for number in stop_word_ids(tokenizer)}
        assert {"the", "is", "on", "and", "it", "was", "there", "for"} <= words
        assert "boat" not in words
    empty = train_tokenizer(["xq zv"], 64)
    with pytest.raises(ConfigError, match="stop-word"):
        SentenceData(["xq zv", "zv"], empty, AugmentConfig(kind="stop-word", rate=0.9))


def test_data_that_cannot_be_trained_on(wordpiece):
    with pytest.raises(DataError, match="1 sentence to train on"):
        SentenceData(["a boat", "a boat"], wordpiece)
    with pytest.raises(ConfigError, match="batch_size 64 is larger than the data"):
        StepPlan(len(SentenceData(TEXTS[:40], wordpiece)), 64, 0)
    import copy

    bare = copy.deepcopy(wordpiece)
    bare.pad_token = None
    with pytest.raises(ConfigError, match="no padding token"):
        SentenceData(TEXTS, bare)
    masked = copy.deepcopy(wordpiece)
    masked.mask_token = None
    with pytest.raises(ConfigError, match="mask token"):
        SentenceData(TEXTS, masked, AugmentConfig(kind="mask"))
