"""BM25 over split identifiers: its scores against a naive sum, its ranks against sorting, and what hiding names does."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from mc_core.errors import DataError
from mc_text_code.data.code_pairs import CodePair
from mc_text_code.data.code_search_sets import CodeSearchSet
from mc_text_code.evaluation.code_lexical import evaluate_code_lexical, lexical_scores, lexical_table
from mc_text_code.source.words import split_words

WORDS = ["readFile", "read_all", "HTTPServer", "x", "größe", "max2", "self", "open", "Parser", "close_all"]


def naive_bm25(query: list[str], documents: list[list[str]], k1: float, b: float) -> np.ndarray:
    """Lucene's form, term by term in float64."""
    mean = sum(map(len, documents)) / len(documents)
    scores = np.zeros(len(documents))
    for word in query:
        with_word = sum(word in document for document in documents)
        if not with_word:
            continue
        idf = math.log(1 + (len(documents) - with_word + 0.5) / (with_word + 0.5))
        for row, document in enumerate(documents):
            times = Counter(document)[word]
            scores[row] += idf * times / (times + k1 * (1 - b + b * len(document) / mean))
    return scores


@pytest.mark.parametrize("words", ["split", "plain"])
@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (2.0, 0.0)])
def test_scores_are_those_of_the_formula(words, k1, b):
    rng = random.Random(0)
    codes = ["def " + " ( ".join(rng.choices(WORDS, k=rng.randrange(1, 30))) for _ in range(40)]
    queries = [" ".join(rng.choices([*WORDS, "unknown", "read", "file"], k=4)) for _ in range(15)]
    taken = split_words if words == "split" else lambda text: [word.lower() for word in text.split() if word != "("]
    expected = np.stack([naive_bm25(taken(query), [taken(code) for code in codes], k1, b) for query in queries])
    found = np.concatenate([scores for _, scores in lexical_scores(queries, codes, words=words, k1=k1, b=b)])
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_ranks_are_those_of_sorting_and_ties_share_theirs():
    codes = ["open file", "open file", "close file", "nothing here"]
    asked = CodeSearchSet(("open", "close", "absent"), tuple(codes), np.array([0, 2, 3]), ("",) * 4)
    found = evaluate_code_lexical(asked, ks=(1, 2))
    ranks = [1.5, 1, 2.5]  # two alike; alone; all four alike
    assert found.mrr == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert found.recall[1] == pytest.approx(np.mean([1 / 2, 1, 1 / 4]))
    assert (found.queries, found.candidates) == (3, 4)


def test_identifiers_taken_apart_and_names_hidden():
    pairs = [
        CodePair(
            "parse the http header", "def parseHTTPHeader(line):\n    return line.split(':')", name="parseHTTPHeader"
        ),
        CodePair("open a file", "def open_file(path):\n    return open(path)", name="open_file"),
        CodePair("total of values", "def total_of(xs):\n    return sum(xs)", name="total_of"),
    ]
    table = lexical_table(CodeSearchSet.of(pairs))
    assert table["split"].mrr == 1.0
    assert table["plain"].mrr < 1.0
    assert table["split, name hidden"].mrr < 1.0
    hidden = evaluate_code_lexical(CodeSearchSet.of(pairs[1:2] * 1 + pairs[2:]), names_hidden=True)
    assert hidden.recall[1] >= 0.5  # `open` is still in the body


def test_code_without_words_is_told():
    with pytest.raises(DataError, match="BM25 finds no words in 2 candidates"):
        evaluate_code_lexical(CodeSearchSet.of([CodePair("a", "("), CodePair("b", ")")]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("getHTTPResponseCode", ["get", "http", "response", "code"]),
        ("snake_case_2x", ["snake", "case", "2", "x"]),
        ("SCREAMING_CASE", ["screaming", "case"]),
        ("x1y22", ["x", "1", "y", "22"]),
        ("__init__", ["init"]),
        ("größeTest_ÄX", ["größe", "test", "ä", "x"]),
        ("日本語", ["日本語"]),
        ("()", []),
    ],
)
def test_words(text, words):
    assert split_words(text) == words
