"""From source code to token ids and the classes behind them."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from mc_core.errors import ConfigError
from mc_text_code.data.code_pairs import CodePair
from mc_text_code.data.code_text import classed_text
from mc_text_code.data.code_tokens import (
    code_hashes,
    language_of_hash,
    text_hashes,
    tokenize_code,
    tokenize_queries,
)
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.encoders_config import EncoderConfig
from mc_text_code.source.parsing import leaves
from mc_text_code.source.token_classes import TOKEN_CLASSES, TYPE_TOKENS
from mc_text_code.tokenizers import load_tokenizer, train_tokenizer
from mc_text_code.type_tokens import ENCODER_ONLY, add_type_tokens, start_type_rows, type_token_ids

SOURCES = {
    "python": "def größe(ä):\n    # Länge in Metern — naïve\n    return f'{ä}: {len(\"日本語\")}\\n' + str(ä ** 2)\n",
    "java": 'int area(int r) { String größe = "日本 \\n"; /* ü */ return r * 31 + größe.length(); }',
    "go": 'func area(r int) int {\n\tgröße := "日本\\n" // ü\n\treturn r*31 + len(größe)\n}',
    "javascript": "function area(r) { const größe = `日本 ${r}`; /* ü */ return r * 31 + größe.length; }",
    "php": '<?php function area($r) { $größe = "日本 $r\\n"; # ü\n return $r * 31; }',
    "ruby": 'def area(r)\n  größe = "日本 #{r}" # ü\n  r * 31 + größe.length\nend\n',
}
PAIRS = [CodePair("the area", code, language, name="area") for language, code in SOURCES.items()]
KINDS = ["wordpiece", "bpe"]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    texts = [pair.code for pair in PAIRS] + ["hostname name string class number comment none extends area_of"]
    return add_type_tokens(train_tokenizer(texts, 400, request.param))


@pytest.mark.parametrize("language", SOURCES)
def test_each_character_has_the_class_of_the_leaf_over_its_bytes(language):
    """Byte by byte, whatever lies outside ASCII."""
    source = SOURCES[language].encode()
    found = leaves(source, language)
    expected = []
    for place in range(len(source)):
        over = np.flatnonzero((found.starts <= place) & (place < found.ends))
        if source[place] & 0xC0 != 0x80:  # the first byte of a character
            expected.append(int(found.class_ids[over[0]]) if len(over) else 0)
    assert classed_text(CodePair("", SOURCES[language], language)).classes.tolist() == expected


@pytest.mark.parametrize("language", SOURCES)
def test_tokens_with_spaces_between_have_their_own_classes(language):
    source = SOURCES[language].encode()
    found = leaves(source, language)
    classed = classed_text(CodePair("", SOURCES[language], language), "tokens")
    assert classed.text == found.joined(source)[0]
    at = 0
    for text, number in zip(found.texts(source), found.class_ids.tolist(), strict=True):
        assert set(classed.classes[at : at + len(text)].tolist()) == {number}
        at += len(text) + 1
    assert at - 1 == len(classed.text)


@pytest.mark.parametrize("form", ["tokens", "source"])
def test_all_pieces_of_a_token_share_its_class(tokenizer, form):
    """Found again by another way: from each piece's characters to the leaf that the first of them lies in."""
    tokens = tokenize_code(tokenizer, PAIRS, 128, form=form)
    for row, pair in enumerate(PAIRS):
        classed = classed_text(pair, form)
        encoded = tokenizer(classed.text, return_offsets_mapping=True, return_special_tokens_mask=True)
        mine = slice(tokens.offsets[row], tokens.offsets[row + 1])
        assert tokens.ids[mine].tolist() == encoded["input_ids"]
        for (first, last), special, found in zip(
            encoded["offset_mapping"], encoded["special_tokens_mask"], tokens.type_ids[mine].tolist(), strict=True
        ):
            covered = [place for place in range(first, last) if classed.classes[place]]
            expected = 0 if special or not covered else int(classed.classes[covered[0]]) & 0x7F
            assert found == expected


def test_pieces_of_one_string_are_all_string(tokenizer):
    """White space inside it too; outside, white space has no class."""
    pair = CodePair("", "x = 'return while None 12'  ", "python")
    tokens = tokenize_code(tokenizer, [pair], 128)
    names = ["-", *TOKEN_CLASSES]
    found = [names[number] for number in tokens.type_ids.tolist() if number]
    assert found[:2] == ["identifier", "operator"]
    assert set(found[2:]) == {"string"}
    assert len(found) > 6


def test_special_tokens_are_never_eligible(tokenizer):
    tokens = tokenize_code(tokenizer, PAIRS, 24)
    queries = tokenize_queries(tokenizer, ["the area of a circle", ""], 16)
    for found in (tokens, queries):
        special = np.isin(found.ids, tokenizer.all_special_ids)
        assert special.sum() == 2 * len(found)
        assert not found.type_ids[special].any()
    assert (queries.type_ids[~np.isin(queries.ids, tokenizer.all_special_ids)] == 1).all()
    assert tokens.lengths.max() == 24


def test_the_own_name_is_marked_piece_by_piece(tokenizer):
    tokens = tokenize_code(
        tokenizer, [CodePair("", "def area_of(r): return area_of(r) + area", "python", name="area_of")], 64
    )
    text = tokenizer.decode(tokens.ids[tokens.own_name]).replace(" ", "")
    assert text == "area_ofarea_of"
    assert not tokenize_code(tokenizer, [CodePair("", "def f(): pass", "python")], 64).own_name.any()


def test_a_language_without_grammar_is_all_other(tokenizer):
    tokens = tokenize_code(tokenizer, [CodePair("", "let é = 1", "zig")], 32)
    assert set(tokens.type_ids.tolist()) == {0, TOKEN_CLASSES.index("other") + 1}


def test_several_processes_give_the_same(tokenizer):
    pairs = PAIRS * 12
    alone, two = (tokenize_code(tokenizer, pairs, 64, processes=n) for n in (1, 2))
    for name in ("ids", "offsets", "type_ids", "own_name"):
        assert np.array_equal(getattr(alone, name), getattr(two, name))


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_text_tokenises_as_before(kind):
    """The published names, added as special tokens, cut words apart; these do not."""
    texts = [*SOURCES.values(), 'the hostname "text" of a string class, none extends it', "a <t and t:keyword>"]
    plain, typed = (train_tokenizer(texts, 400, kind) for _ in range(2))
    add_type_tokens(typed)
    for text in texts:
        assert typed(text)["input_ids"] == plain(text)["input_ids"]
    assert len(typed) == len(plain) + len(TYPE_TOKENS)
    assert not set(type_token_ids(typed)[1:].tolist()) & set(typed.all_special_ids)
    assert not any(typed.added_tokens_decoder[number].special for number in type_token_ids(typed)[1:].tolist())
    assert add_type_tokens(typed).get_vocab() == typed.get_vocab()


def test_type_tokens_survive_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.tokenize("x <t:keyword>") == tokenizer.tokenize("x <t:keyword>")
    assert type_token_ids(again).tolist() == type_token_ids(tokenizer).tolist()


def test_the_prefix_of_unixcoder():
    """``<s> <encoder-only> </s> … </s>``, of which nothing is eligible, also after a round trip."""
    tokenizer = train_tokenizer([pair.code for pair in PAIRS], 400, "bpe")
    tokenizer.add_special_tokens({"additional_special_tokens": [ENCODER_ONLY]})
    typed = add_type_tokens(tokenizer)
    assert isinstance(typed, PreTrainedTokenizerFast)
    tokens = tokenize_code(typed, [CodePair("", "def f(x): return x", "python")], 8)
    assert typed.convert_ids_to_tokens(tokens.ids.tolist())[:3] == ["<s>", ENCODER_ONLY, "</s>"]
    assert typed.convert_ids_to_tokens(tokens.ids.tolist())[-1] == "</s>"
    assert len(tokens.ids) == 8
    assert not tokens.type_ids[[0, 1, 2, -1]].any()


def test_the_prefix_survives_saving(tmp_path):
    tokenizer = train_tokenizer([pair.code for pair in PAIRS], 400, "bpe")
    tokenizer.add_special_tokens({"additional_special_tokens": [ENCODER_ONLY]})
    typed = add_type_tokens(tokenizer)
    typed.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)("x = 1")["input_ids"] == typed("x = 1")["input_ids"]


def test_rows_of_type_tokens_begin_as_the_mean_of_their_names(tokenizer):
    encoder = SentenceEncoder(EncoderConfig(hidden_size=16, heads=2, layers=1, pooling="mean"), tokenizer)
    before = encoder.embeddings.weight.detach().clone()
    start_type_rows(encoder)
    after = encoder.embeddings.weight
    ids = type_token_ids(tokenizer)[1:].tolist()
    for row, name in zip(ids, TOKEN_CLASSES, strict=True):
        pieces = tokenizer(f" {name}", add_special_tokens=False)["input_ids"]
        assert after[row].allclose(before[pieces].mean(0), atol=1e-6)
    others = np.setdiff1d(np.arange(len(before)), ids)
    assert after[others].equal(before[others])


def test_a_published_encoder_grows_by_the_type_tokens(tmp_path):
    """And an encoder that has them keeps what it learnt."""
    plain = train_tokenizer([pair.code for pair in PAIRS], 300)
    small = EncoderConfig(hidden_size=16, heads=2, layers=1, pooling="mean", max_length=16)
    first = SentenceEncoder(small, plain)
    first.transformer.save_pretrained(tmp_path)
    plain.save_pretrained(tmp_path)
    named = small.model_copy(update={"name": str(tmp_path)})
    grown = SentenceEncoder(named, add_type_tokens(load_tokenizer(tmp_path)))
    start_type_rows(grown)
    assert grown.embeddings.num_embeddings == len(grown.tokenizer) == len(plain) + 12
    rows = len(plain)
    assert grown.embeddings.weight[:rows].equal(first.embeddings.weight[:rows])
    assert grown.encode(["def f(x)"]).shape == (1, 16)
    grown.transformer.save_pretrained(tmp_path)
    grown.tokenizer.save_pretrained(tmp_path)
    again = SentenceEncoder(named, load_tokenizer(tmp_path))
    start_type_rows(again)
    assert again.embeddings.weight.equal(grown.embeddings.weight)


def test_a_tokenizer_without_type_tokens_or_mask_says_so():
    tokenizer = train_tokenizer(["def f(): pass"], 64)
    with pytest.raises(ConfigError, match="<t:keyword>"):
        type_token_ids(tokenizer)
    tokenizer.mask_token = None
    with pytest.raises(ConfigError, match="mask token"):
        type_token_ids(tokenizer)


def test_hashes_know_equal_code_and_its_language():
    pairs = [
        CodePair("", "def f(x):\n  return x", "python"),
        CodePair("", "def f(x): return  x", "python"),
        CodePair("", "def f(x): return  x", "ruby"),
        CodePair("", "def f(y): return y", "python"),
    ]
    hashes, languages = code_hashes(pairs)
    assert languages == ("python", "ruby")
    assert hashes[0] == hashes[1]
    assert len(set(hashes.tolist())) == 3
    assert language_of_hash(hashes).tolist() == [0, 0, 1, 0]
    assert hashes.dtype == text_hashes(["a"]).dtype == np.int64
