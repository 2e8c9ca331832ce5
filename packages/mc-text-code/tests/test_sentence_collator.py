"""Both views from one column: repetition as everywhere, drawn from (seed, epoch, sentence), whatever loads the data."""

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from mc_core.errors import ConfigError, DataError
from mc_core.random import BatchRandom
from mc_text_code.augment import repeat_subwords
from mc_text_code.augment_config import AugmentConfig
from mc_text_code.data.pairs import stop_word_ids
from mc_text_code.data.sentences import Sentences
from mc_text_code.trainer import ESimCSECollator

# torch's DataLoader starts workers by fork, which Python warns of in a process that has threads
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def st():
    place = Path(__file__).with_name("_sentence_transformers.py")
    spec = importlib.util.spec_from_file_location(place.stem, place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[place.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(st, tmp_path_factory):
    return st.open_model(st.write_bert(tmp_path_factory.mktemp("bert")))


def rows_of(st, first=0, count=8):
    return [{"sentence": text} for text in st.SENTENCES[first : first + count]]


def tokens(batch, view):
    ids, mask = batch[f"{view}_input_ids"], batch[f"{view}_attention_mask"].bool()
    return [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]


def test_the_second_view_is_the_first_with_tokens_repeated(st, model):
    collate = ESimCSECollator.of(model, AugmentConfig(rate=0.5), seed=3)
    batch = collate(rows_of(st))
    plain = model.preprocess(st.SENTENCES[:8])
    assert torch.equal(batch["anchor_input_ids"], plain["input_ids"])
    assert torch.equal(batch["anchor_attention_mask"], plain["attention_mask"])
    assert [n.removeprefix("anchor_") for n in batch if n.startswith("anchor_")] == list(plain)
    assert [n.removeprefix("positive_") for n in batch if n.startswith("positive_")] == list(plain)
    ragged = tokens(batch, "anchor")
    draw = BatchRandom(3, 0, torch.from_numpy(Sentences.of(st.SENTENCES[:8]).hashes))
    longer, lengths = repeat_subwords(np.concatenate(ragged), np.array(list(map(len, ragged))), draw, rate=0.5)
    assert [row.tolist() for row in np.split(longer, np.cumsum(lengths)[:-1])] == tokens(batch, "positive")
    assert any(len(a) < len(b) for a, b in zip(ragged, tokens(batch, "positive"), strict=True))
    pad = batch["positive_input_ids"][~batch["positive_attention_mask"].bool()]
    assert set(pad.tolist()) <= {model.tokenizer.pad_token_id}


def test_views_follow_seed_epoch_and_sentence_alone(st, model):
    collate = ESimCSECollator.of(model, AugmentConfig(rate=0.5), seed=3)
    first = dict(zip(st.SENTENCES[:8], tokens(collate(rows_of(st)), "positive"), strict=True))
    shifted = dict(zip(st.SENTENCES[4:12], tokens(collate(rows_of(st, 4)), "positive"), strict=True))
    assert all(first[text] == shifted[text] for text in st.SENTENCES[4:8])
    collate.epoch = 1
    assert tokens(collate(rows_of(st)), "positive") != list(first.values())
    collate.epoch = 0
    assert tokens(collate(rows_of(st)), "positive") == list(first.values())
    other = ESimCSECollator.of(model, AugmentConfig(rate=0.5), seed=4)
    assert tokens(other(rows_of(st)), "positive") != list(first.values())
    torch.manual_seed(1)
    assert tokens(collate(rows_of(st)), "positive") == list(first.values())


def test_workers_that_go_on_see_the_epoch_change(st, model):
    collate = ESimCSECollator.of(model, AugmentConfig(rate=0.5), seed=3)
    data = Dataset.from_dict({"sentence": st.SENTENCES[:8]})
    loader = DataLoader(data, batch_size=8, collate_fn=collate, num_workers=1, persistent_workers=True)
    found = []
    for epoch in range(2):
        collate.epoch = epoch
        (batch,) = loader
        found.append(tokens(batch, "positive"))
        assert found[-1] == tokens(collate(rows_of(st)), "positive")
    assert found[0] != found[1]


def test_plain_simcse_gives_the_same_view_twice(st, model):
    batch = ESimCSECollator.of(model, AugmentConfig(kind="none"))(rows_of(st))
    assert torch.equal(batch["anchor_input_ids"], batch["positive_input_ids"])
    assert torch.equal(batch["anchor_attention_mask"], batch["positive_attention_mask"])


def test_padding_on_the_left_stays_there(st, model, tmp_path):
    left = st.open_model(st.write_bert(tmp_path / "left"))
    left.tokenizer.padding_side = "left"
    augment = AugmentConfig(rate=0.5)
    batch = ESimCSECollator.of(left, augment, seed=3)(rows_of(st))
    assert bool(batch["anchor_attention_mask"][:, -1].all())
    assert bool(batch["positive_attention_mask"][:, -1].all())
    assert int(batch["positive_attention_mask"].sum()) < batch["positive_attention_mask"].numel()
    right = ESimCSECollator.of(model, augment, seed=3)(rows_of(st))
    assert tokens(batch, "positive") == tokens(right, "positive")


def test_second_views_fit_into_the_model(st, model):
    long = " ".join(st.NOUNS * 20)
    model.max_seq_length = 64  # all that it has positions for
    try:
        collate = ESimCSECollator.of(model, AugmentConfig(rate=1.0, cap="paper"), seed=1)
        batch = collate([{"sentence": f"{long} {i}"} for i in range(8)])
        model({name.removeprefix("positive_"): v for name, v in batch.items() if name.startswith("positive_")})
    finally:
        model.max_seq_length = 16
    rows = tokens(batch, "positive")
    assert max(map(len, rows)) == 64
    assert {row[-1] for row in rows} == {model.tokenizer.sep_token_id}
    assert {row[0] for row in rows} == {model.tokenizer.cls_token_id}
    assert any(a == b for row in rows for a, b in pairwise(row))


@pytest.mark.parametrize("kind", ["word", "stop-word", "mask"])
def test_the_ablations(st, model, kind):
    collate = ESimCSECollator.of(model, AugmentConfig(kind=kind, rate=0.5), seed=3)
    batch = collate(rows_of(st))
    grown = [(a, b) for a, b in zip(tokens(batch, "anchor"), tokens(batch, "positive"), strict=True) if a != b]
    assert grown
    inserted = {*stop_word_ids(model.tokenizer).tolist(), model.tokenizer.mask_token_id}
    for before, after in grown:
        assert len(after) > len(before)
        rest = list(after)
        for token in before:
            rest.remove(token)
        assert set(rest) <= (set(before) if kind == "word" else inserted)


def test_labels_names_and_prompts_pass_through(st, model):
    collate = ESimCSECollator.of(model, AugmentConfig(kind="none"), prompts="the ")
    rows = [{"text": text, "label": 0.5, "dataset_name": "mine"} for text in st.SENTENCES[:2]]
    batch = collate(rows)
    assert batch["label"].tolist() == [0.5, 0.5]
    assert batch["dataset_name"] == "mine"
    assert torch.equal(batch["anchor_input_ids"], model.preprocess(st.SENTENCES[:2], prompt="the ")["input_ids"])
    assert not any(name.startswith("text") for name in batch)
    assert collate([]) == {}


def test_bad_input(st, model):
    with pytest.raises(DataError, match="one column of sentences, the data has a, b"):
        ESimCSECollator.of(model)([{"a": "x", "b": "y"}])
    with pytest.raises(ConfigError, match="cannot tell where words begin"):
        ESimCSECollator.of(model, AugmentConfig(kind="word"), prompts="the ")(rows_of(st))
    with pytest.raises(ConfigError, match="needs the model's tokenizer"):
        ESimCSECollator(preprocess_fn=model.preprocess)

    def odd(texts, **_):
        made = model.preprocess(texts)
        return {**made, "bbox": torch.ones_like(made["input_ids"]), "token_type_ids": 0 * made["input_ids"]}

    collate = ESimCSECollator(preprocess_fn=odd, tokenizer=model.tokenizer)
    with pytest.raises(ConfigError, match="does not know how to lengthen 'bbox'"):
        collate(rows_of(st))
