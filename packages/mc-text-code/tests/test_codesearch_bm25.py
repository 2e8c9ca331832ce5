"""BM25 over word counts: the formula, bm25s, and the order of equals."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from mc_text_code.codesearch.bm25 import Postings, best, bm25_scores
from mc_text_code.codesearch.chunking import count_words, words_of
from mc_text_code.source.words import split_words

WORDS = [f"word{chr(97 + i)}" for i in range(12)] + ["readFile", "read_line", "HTTPServer2", "größe"]


def corpus(seed: int, count: int = 60) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randrange(0, 40))) for _ in range(count)]


def postings_of(texts: list[str]) -> tuple[Postings, dict[str, int]]:
    words, lengths, uniques, terms, counts = count_words(texts)
    chunks = np.repeat(np.arange(len(texts), dtype=np.int32), uniques)
    return Postings(lengths, chunks, terms, counts), {word: number for number, word in enumerate(words)}


def naive(texts: list[str], query: list[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    documents = [split_words(text) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in query:
            having = sum(word in other for other in documents)
            times = document.count(word)
            idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            score += idf * times / (times + k1 * (1 - b + b * len(document) / mean)) if times else 0
        scores.append(score)
    return scores


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_a_counter(seed):
    texts = [*corpus(seed), "", "a a a"]
    words, lengths, uniques, terms, counts = count_words(texts)
    place = 0
    for text, length, unique in zip(texts, lengths, uniques, strict=True):
        expected = Counter(split_words(text))
        found = dict(zip(terms[place : place + unique], counts[place : place + unique], strict=True))
        assert {words[term]: count for term, count in found.items()} == expected
        assert length == expected.total()
        place += unique
    assert place == len(terms) == len(counts)


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_the_formula(seed):
    texts = corpus(seed)
    postings, numbers = postings_of(texts)
    query = words_of("readFile worda worda HTTP größe")
    asked = Counter(word for word in query if word in numbers)
    scores = bm25_scores(postings, {numbers[word]: times for word, times in asked.items()})
    np.testing.assert_allclose(scores, naive(texts, query), rtol=1e-12)
    assert scores.max() > 0


def test_scores_are_those_of_bm25s():
    bm25s = pytest.importorskip("bm25s")
    texts = [text for text in corpus(9, 200) if text]
    postings, numbers = postings_of(texts)
    theirs = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    ids = [[numbers[word] for word in split_words(text)] for text in texts]
    theirs.index(bm25s.tokenization.Tokenized(ids, numbers), show_progress=False)
    for query in ("read file", "wordc", "http server 2", "worda wordb wordb"):
        asked = Counter(numbers[word] for word in words_of(query))
        expected = theirs.get_scores_from_ids(list(asked.elements()))
        np.testing.assert_allclose(bm25_scores(postings, asked), expected, rtol=2e-6)


def test_other_constants():
    texts = corpus(3)
    postings, numbers = postings_of(texts)
    scores = bm25_scores(postings, {numbers["worda"]: 1}, k1=0.5, b=0.2)
    np.testing.assert_allclose(scores, naive(texts, ["worda"], 0.5, 0.2), rtol=1e-12)


def test_nothing_is_found_in_nothing():
    empty, _ = postings_of([])
    assert bm25_scores(empty, {1: 1}).shape == (0,)
    blank, _ = postings_of(["", " "])
    assert bm25_scores(blank, {5: 1}).tolist() == [0, 0]
    some, _ = postings_of(["a b"])
    assert bm25_scores(some, {}).tolist() == [0]
    assert bm25_scores(some, {10_000: 1}).tolist() == [0]


def test_a_word_that_is_everywhere_still_counts_for_something():
    postings, numbers = postings_of(["a b", "a c", "a"])
    assert (bm25_scores(postings, {numbers["a"]: 1}) > 0).all()


def test_long_words_are_cut_and_very_frequent_ones_counted_as_far_as_two_bytes_go():
    words, lengths, _, _, counts = count_words(["x" * 500 + " " + "a " * 70_000])
    assert sorted(map(len, words)) == [1, 64]
    assert lengths.tolist() == [70_001]
    assert sorted(counts.tolist()) == [1, 65_535]


def test_the_best_are_in_order_and_equal_ones_by_number():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(-2, 6, 40).astype(float)
        for count in (1, 3, 10, 100):
            expected = sorted((number for number in range(40) if scores[number] > 0), key=lambda n: (-scores[n], n))[
                :count
            ]
            assert best(scores, count).tolist() == expected
    low = np.array([-3.0, -np.inf, -1.0])
    assert best(low, 5, above=-np.inf).tolist() == [2, 0]
