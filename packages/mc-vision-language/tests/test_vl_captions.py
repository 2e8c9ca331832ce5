"""Cleaning of captions, keys of texts, and tokenizers."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mc_core.errors import ConfigError, DataError
from mc_vision_language.data import CaptionOptions, clean_caption, names_sides, text_key
from mc_vision_language.tokenizers import (
    check_tokenizer,
    encode_texts,
    load_tokenizer,
    tokenize_texts,
    train_tokenizer,
    with_sep,
)

CAPTIONS = ["a large red three", "a small blue nine left of a green two", "two dogs on grass"]


def as_published(caption, max_words):
    """The order of steps of the official code, one by one."""
    caption = re.sub(r"([,.'!?\"()*#:;~])", "", caption.lower()).replace("-", " ").replace("/", " ")
    caption = caption.replace("<person>", "person")
    caption = re.sub(r"\s{2,}", " ", caption).rstrip("\n").strip(" ")
    words = caption.split(" ")
    return " ".join(words[:max_words]) if len(words) > max_words else caption


@given(st.text(alphabet="aBé<person>,.'!?\"()*#:;~-/ 1", max_size=60), st.integers(1, 8))
def test_cleaning_is_that_of_the_official_code(text, words):
    assert clean_caption(text, CaptionOptions(max_words=words)) == as_published(text, words)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A <person>'s black-and-white/grey dog, (big)!", "a persons black and white grey dog big"),
        (" \t Two\n\ndogs ", "two dogs"),
        ("?!...", ""),
        ("#3: *yes*; ~no~", "3 yes no"),
        ("word " * 40, " ".join(["word"] * 30)),
        ("Ünïcödé – stays", "ünïcödé – stays"),
    ],
)
def test_cleaned_captions(text, cleaned):
    assert clean_caption(text) == cleaned


def test_cleaning_can_be_left_out():
    assert clean_caption("  A Dog,  BIG! ", CaptionOptions(clean=False, max_words=2)) == "A Dog,"


def test_keys_are_the_same_everywhere():
    assert text_key("a red house") == 1424649934703237025
    keys = [text_key(str(i)) for i in range(2000)]
    assert len(set(keys)) == 2000
    assert min(keys) >= 0
    assert max(keys) < 2**63


def test_sides():
    assert [names_sides(text) for text in ("LEFT of it", "the right one", "leftover", "bright", "up")] == [
        *(True, True),
        *(False, False, False),
    ]


def test_tokens_begin_with_cls_and_end_without_sep():
    tokenizer = train_tokenizer(CAPTIONS, 200)
    ids, mask = encode_texts(tokenizer, ["two dogs", "a red three"], 25)
    assert tokenizer.convert_ids_to_tokens(ids[0].tolist()) == ["[CLS]", "two", "dogs", "[PAD]"]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    ids, _ = encode_texts(tokenizer, ["two dogs"], 25, add_sep=True)
    assert tokenizer.convert_ids_to_tokens(ids[0].tolist()) == ["[CLS]", "two", "dogs", "[SEP]"]


@pytest.mark.parametrize("add_sep", [False, True])
def test_texts_are_cut_to_the_length_asked_for(add_sep):
    tokenizer = train_tokenizer(CAPTIONS, 200)
    tokens = tokenize_texts(tokenizer, [CAPTIONS[1], "two"], 5, add_sep=add_sep)
    assert tokens.lengths.tolist() == [5, 3 if add_sep else 2]
    first = tokenizer.convert_ids_to_tokens(tokens.ids[:5].tolist())
    assert first == ["[CLS]", "a", "small", "blue", "[SEP]" if add_sep else "nine"]


def test_the_word_sep_in_a_caption_is_no_end():
    tokenizer = train_tokenizer(CAPTIONS, 200)
    tokens = tokenize_texts(tokenizer, ["two [SEP] dogs [SEP]"], 25)
    assert tokens.ids[0] == tokenizer.cls_token_id
    assert len(tokens.ids) == 5


def test_the_tokenizer_given_is_not_changed():
    tokenizer = train_tokenizer(CAPTIONS, 200)
    before = tokenizer("two dogs").input_ids
    with_sep(tokenizer, False)
    tokenize_texts(tokenizer, CAPTIONS, 4)
    assert tokenizer("two dogs").input_ids == before
    assert with_sep(with_sep(tokenizer, False), True)("two dogs").input_ids == before


def test_the_same_captions_give_the_same_tokenizer_which_a_folder_keeps(tmp_path):
    first, second = train_tokenizer(CAPTIONS, 120), train_tokenizer(list(CAPTIONS), 120)
    assert first.get_vocab() == second.get_vocab()
    first.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert np.array_equal(tokenize_texts(loaded, CAPTIONS, 9).ids, tokenize_texts(first, CAPTIONS, 9).ids)
    plain = with_sep(first, False)
    plain.save_pretrained(tmp_path / "plain")
    assert load_tokenizer(tmp_path / "plain")("two dogs").input_ids == plain("two dogs").input_ids


def test_a_tokenizer_that_does_not_fit_is_said():
    tokenizer = train_tokenizer(CAPTIONS, 200)
    size = len(tokenizer)
    check_tokenizer(tokenizer, size)
    with pytest.raises(ConfigError, match=rf"up to {size - 1}, the text encoder knows {size - 1} \(0 to {size - 2}\)"):
        check_tokenizer(tokenizer, size - 1)
    for token, said in (
        ("mask_token", r"no \[MASK\] token"),
        ("pad_token", "no padding token"),
        ("cls_token", r"no \[CLS\]"),
    ):
        lacking = train_tokenizer(CAPTIONS, 200)
        setattr(lacking, token, None)
        with pytest.raises(ConfigError, match=said):
            check_tokenizer(lacking, 500)
    with pytest.raises(ConfigError, match=r"no \[CLS\] token"):
        with_sep(lacking, False)


def test_what_is_no_tokenizer_is_said(tmp_path):
    with pytest.raises(ConfigError, match="somewhere/else.*--method.text.download"):
        load_tokenizer("somewhere/else")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="tokenizer"):
        load_tokenizer(tmp_path / "empty")
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([])
