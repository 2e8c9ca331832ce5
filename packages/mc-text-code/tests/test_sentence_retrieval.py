"""Retrieval of sentences, and the baselines beside it: ranks by a naive loop, formulas recomputed, real rewrites."""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest

from mc_core.errors import ConfigError, DataError, MissingDependencyError
from mc_text_code.data.rewrites import open_rewrites
from mc_text_code.evaluation import (
    MeanWordVectors,
    Queries,
    bm25_scores,
    evaluate_mteb,
    evaluate_retrieval,
    evaluate_sentences,
    half_queries,
    repeated_queries,
    retrieval_by_scores,
    rewrite_queries,
    tfidf_encoder,
)
from mc_text_code.evaluation import baselines as baselines_module

DATA = os.environ.get("MC_DATA")
CORPUS = [
    "the cat sat on the mat",
    "a dog lay on the mat",
    "the cat chased a grey mouse",
    "rain fell on the old town",
    "snow fell on the small town",
    "a mouse ate the cheese",
]


def hashed(dim=12, seed=0):
    return lambda texts: np.array([np.random.default_rng([seed, *text.encode()]).normal(size=dim) for text in texts])


def naive(scores, answer):
    """1 + those ahead + half of those level."""
    ranks = []
    for row, right in zip(scores, answer, strict=True):
        ahead = sum(score > row[right] for score in row)
        level = sum(score == row[right] for score in row) - 1
        ranks.append(1 + ahead + level / 2)
    return np.array(ranks)


def given(scores, blocks=3):
    def scorer(queries, candidates):
        for start in range(0, len(queries), blocks):
            yield slice(start, min(start + blocks, len(queries))), scores[start : start + blocks]

    return scorer


def test_ranks_with_ties_by_a_naive_loop():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (40, 15)).astype(float)
    answer = rng.integers(0, 15, 40)
    asked = Queries(tuple(map(str, range(40))), tuple(map(str, range(100, 115))), answer, left_out=3)
    found = retrieval_by_scores(given(scores), asked, ks=(1, 4, 15))
    rank = naive(scores, answer)
    assert found.mrr == pytest.approx((1 / rank).mean())
    assert found.median_rank == np.median(rank)
    assert (found.queries, found.candidates, found.left_out) == (40, 15, 3)
    expected = {k: [] for k in (1, 4, 15)}
    for row, right in zip(scores, answer, strict=True):
        ahead, level = (row > row[right]).sum(), (row == row[right]).sum()
        places = range(ahead + 1, ahead + level + 1)  # the right one may stand at any of them
        for k in expected:
            expected[k].append(np.mean([place <= k for place in places]))
    assert found.recall == pytest.approx({k: np.mean(values) for k, values in expected.items()})


def test_cosines_are_ranked_whatever_the_length_of_vectors():
    texts = [f"{a} {b} {c} {d}" for a in "pq" for b in "rs" for c in "tuv" for d in "wx"]
    asked = half_queries(texts)
    encode = hashed()
    found = evaluate_retrieval(lambda t: encode(t) * np.linspace(1, 5, len(t))[:, None], asked)
    queries, candidates = encode(asked.queries), encode(asked.candidates)
    cosine = queries @ candidates.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(candidates, axis=1)
    assert found.mrr == pytest.approx((1 / naive(cosine, asked.answer)).mean())


def test_an_encoder_to_which_all_is_alike_scores_as_chance():
    texts = [f"w{n} x y z" for n in range(101)]
    rng = np.random.default_rng(0)
    noise = lambda t: 1 + 1e-8 * rng.normal(size=(len(t), 64))  # noqa: E731
    for encode in (lambda t: np.ones((len(t), 64), dtype=np.float32), noise):
        found = evaluate_retrieval(encode, half_queries(texts), ks=(1, 101))
        assert found.median_rank == 51
        assert found.mrr == pytest.approx(1 / 51)
        assert found.recall == {1: pytest.approx(1 / 101), 101: 1.0}


def test_halves():
    asked = half_queries(["a b c d e", "a b c d e", "one two three", "", "p q r s"])
    assert asked.queries == ("a b", "p q")
    assert asked.candidates == ("a b c d e", "one two three", "", "p q r s")
    assert asked.answer.tolist() == [0, 3]
    assert asked.left_out == 2


def test_repetition_doubles_the_share_asked_for_in_place():
    texts = [" ".join(f"w{i}" for i in range(n)) for n in (1, 2, 5, 10, 20)]
    asked = repeated_queries(texts, rate=0.3, seed=4)
    for text, query, count in zip(texts, asked.queries, (1, 1, 2, 3, 6), strict=True):
        words, longer = text.split(), query.split()
        assert len(longer) == len(words) + count
        doubled = [w for w, after in itertools.pairwise(longer) if w == after]
        assert len(set(doubled)) == count
        assert list(dict.fromkeys(longer)) == words
    assert asked.answer.tolist() == [0, 1, 2, 3, 4]
    assert repeated_queries(texts, rate=0.3, seed=4).queries == asked.queries
    assert repeated_queries(texts, rate=0.3, seed=5).queries != asked.queries
    assert repeated_queries([*texts, "w " * 500], rate=0.3, seed=4).queries[:5] == asked.queries
    assert repeated_queries(["  ", "a"]).left_out == 1
    with pytest.raises(ConfigError, match="rate=0"):
        repeated_queries(texts, rate=0)


def test_rewrites_equal_to_a_sentence_are_no_queries():
    asked = rewrite_queries(["a", "b", "a"], [["A!", "b", ""], ["B", "A!"], ["A!", "A?"]])
    assert asked.candidates == ("a", "b")
    assert list(zip(asked.queries, asked.answer.tolist(), strict=True)) == [("A!", 0), ("B", 1), ("A!", 1), ("A?", 0)]
    assert asked.left_out == 3
    with pytest.raises(DataError, match="1 lists of rewrites for 2"):
        rewrite_queries(["a", "b"], [[]])


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(DataError, match="no sentence gave a query .2 were left out"):
        evaluate_retrieval(hashed(), half_queries(["too short", "this too"]))
    with pytest.raises(ConfigError, match=r"ks=\(0,\)"):
        evaluate_retrieval(hashed(), half_queries(CORPUS), ks=(0,))
    broken = np.zeros((6, 6))
    broken[4, 2] = math.nan
    with pytest.raises(DataError, match="scores of query 4 contain NaN"):
        retrieval_by_scores(given(broken), half_queries(CORPUS))


def test_bm25_is_the_formula_of_lucene():
    queries = ["the cat", "old mouse mouse", "nothing known"]
    words = [text.split() for text in CORPUS]
    mean = np.mean([len(found) for found in words])
    expected = np.zeros((3, len(CORPUS)))
    for row, query in enumerate(queries):
        for word in query.split():
            having = sum(word in found for found in words)
            if having:
                idf = math.log(1 + (len(CORPUS) - having + 0.5) / (having + 0.5))
                for column, found in enumerate(words):
                    times = found.count(word)
                    expected[row, column] += idf * times / (times + 1.5 * (1 - 0.75 + 0.75 * len(found) / mean))
    got = np.concatenate([scores for _, scores in bm25_scores(queries, CORPUS)])
    assert got == pytest.approx(expected, abs=1e-5)


def test_bm25_in_blocks_and_on_odd_text(monkeypatch):
    whole = retrieval_by_scores(bm25_scores, half_queries(CORPUS))
    monkeypatch.setattr(baselines_module, "_BM25_BLOCK", 7)
    assert retrieval_by_scores(bm25_scores, half_queries(CORPUS)) == whole
    assert whole.mrr > 0.7
    [(rows, scores)] = bm25_scores(["Größe ПРИВЕТ 東京!"], ["größe", "привет", "", "...", "東京"])
    assert rows == slice(0, 1)
    assert (scores[0] > 0).tolist() == [True, True, False, False, True]
    with pytest.raises(DataError, match="no words in 2 candidates"):
        next(bm25_scores(["a"], ["", "?!"]))


def test_word_vectors_are_those_of_the_definition():
    vectors = MeanWordVectors(CORPUS, dim=100, window=2, fewest=1)
    words = list(vectors.words)
    counts = np.zeros((len(words), len(words)))
    for text in CORPUS:
        found = [vectors.words[word] for word in text.split()]
        for i, one in enumerate(found):
            for j, other in enumerate(found):
                if i != j and abs(i - j) <= 2:
                    counts[one, other] += 1
    share = counts.sum(0) ** 0.75 / (counts.sum(0) ** 0.75).sum()
    with np.errstate(divide="ignore"):
        ppmi = np.maximum(np.log(counts / counts.sum(1, keepdims=True) / share), 0)
    left, values, _ = np.linalg.svd(ppmi)
    expected = left * np.sqrt(values)
    assert vectors.vectors @ vectors.vectors.T == pytest.approx(expected @ expected.T, abs=1e-3)
    mean = vectors(["cat mouse unknown cat"])[0]
    assert mean == pytest.approx((2 * vectors(["cat"])[0] + vectors(["mouse"])[0]) / 3, abs=1e-6)
    assert vectors(["", "unknown"]).tolist() == np.zeros((2, len(words))).tolist()


def test_words_of_two_sentences_are_never_near_each_other():
    vectors = MeanWordVectors(["one two", "three four"] * 3, dim=4, window=5)
    similarity = vectors.vectors @ vectors.vectors.T
    one, two, three, four = (vectors.words[word] for word in ("one", "two", "three", "four"))
    assert abs(similarity[[one, two]][:, [three, four]]).max() < 1e-5


def test_word_vectors_need_words():
    with pytest.raises(DataError, match="0 words occur 3 times or more in 1 sentences"):
        MeanWordVectors(["a b c"])
    with pytest.raises(DataError, match="near each other"):
        MeanWordVectors(["a", "b"] * 3)
    with pytest.raises(ConfigError, match="window=0"):
        MeanWordVectors(CORPUS, window=0)
    with pytest.raises(DataError, match="TF-IDF finds no words in 2 sentences"):
        tfidf_encoder(["?", "!"])


def test_retrieval_is_part_of_the_whole_report():
    report = evaluate_sentences(tfidf_encoder(CORPUS), queries={"halves": half_queries(CORPUS)})
    assert report.columns() == {"halves MRR": evaluate_retrieval(tfidf_encoder(CORPUS), half_queries(CORPUS)).mrr}
    assert list(report.to_dict()) == ["retrieval"]


def test_mteb_is_optional():
    try:
        import mteb  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(MissingDependencyError, match=r'pip install "mc-text-code\[mteb\]"'):
            evaluate_mteb(hashed(), ["STS17"])
        return
    from mteb.mocks.mock_tasks.sts import MockSTSTask

    assert evaluate_mteb(hashed(), [MockSTSTask()]) == {"MockSTSTask": pytest.approx(0, abs=1)}
    with pytest.raises(ConfigError, match="no task 'STS99'; closest: STS"):
        evaluate_mteb(hashed(), ["STS99"])
    with pytest.raises(ConfigError, match="download=True"):
        evaluate_mteb(hashed(), ["STS17"])


@pytest.mark.skipif(not DATA, reason="needs the data folder named by MC_DATA")
def test_baselines_find_real_rewrites():
    asked = rewrite_queries(*open_rewrites(Path(DATA, "text", "wiki-rewrites.parquet")))
    few = Queries(asked.queries[:3000], asked.candidates, asked.answer[:3000])
    lexical = retrieval_by_scores(bm25_scores, few)
    words = evaluate_retrieval(MeanWordVectors(asked.candidates), few)
    counted = evaluate_retrieval(tfidf_encoder(asked.candidates), few)
    assert lexical.mrr > 0.95
    assert counted.mrr > 0.95
    assert 0.5 < words.mrr < counted.mrr
