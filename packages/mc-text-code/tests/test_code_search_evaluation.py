"""Ranks of code search: against sorting in float64, in blocks, with ties and missing answers; both protocols; the fusion."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from mc_core.errors import ConfigError, DataError
from mc_core.evaluation import alignment, uniformity
from mc_text_code.codesearch.bm25 import Postings, bm25_scores
from mc_text_code.codesearch.chunking import count_words, words_of
from mc_text_code.codesearch.config import RankingConfig
from mc_text_code.codesearch.ranking import fuse
from mc_text_code.data.code_pairs import CodePair
from mc_text_code.data.code_search_sets import CodeSearchSet
from mc_text_code.evaluation import baselines, code_search
from mc_text_code.evaluation.code_lexical import evaluate_code_lexical, lexical_scores
from mc_text_code.evaluation.code_search import choose_dense_weight, evaluate_code_search
from mc_text_code.evaluation.ranks import MISSING, Ranks, fused_scores, ranks_of

VERBS = ("open", "close", "parse", "write", "count", "sort", "merge", "split", "copy", "move")
THINGS = ("file", "socket", "tree", "table", "number", "string", "date", "path", "queue", "graph")


def pairs(count: int = 100) -> list[CodePair]:
    names = [(verb, thing) for verb in VERBS for thing in THINGS][:count]
    return [
        CodePair(
            f"{verb} a {thing} for row {place % 7}",
            f"def {verb}_{thing}(x):\n    return do_{place % 7}(x, {thing}s)",
            name=f"{verb}_{thing}",
        )
        for place, (verb, thing) in enumerate(names)
    ]


def vector(text: str, dim: int = 24) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(seed)).standard_normal(dim)


class Known:
    """Vectors in float64: those of queries lie near those of their code."""

    identity = "known"

    def __init__(self, asked: CodeSearchSet, noise: float = 0.8, seed: int = 0) -> None:
        rng = np.random.Generator(np.random.Philox(seed))
        self.code = {code: vector(code) for code in asked.codes}
        self.query = {
            query: vector(asked.codes[place]) + noise * rng.standard_normal(24) * 2
            for query, place in zip(asked.queries, asked.answer, strict=True)
        }

    def encode_queries(self, texts):
        return np.stack([self.query[text] for text in texts])

    def encode_code(self, texts):
        return np.stack([self.code[text] for text in texts])


def naive_rank(scores: np.ndarray, right: int) -> float:
    """By a full sort, those equal sharing the mean of their places."""
    order = np.sort(scores)[::-1]
    places = [place for place, value in enumerate(order, start=1) if value == scores[right]]
    return sum(places) / len(places)


@pytest.fixture(scope="module")
def asked() -> CodeSearchSet:
    return CodeSearchSet.of(pairs())


@pytest.fixture(scope="module")
def cosines(asked) -> np.ndarray:
    encoder = Known(asked)
    queries, codes = encoder.encode_queries(asked.queries), encoder.encode_code(asked.codes)
    return (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        codes / np.linalg.norm(codes, axis=1, keepdims=True)
    ).T


def test_dense_ranks_are_those_of_a_sort_in_float64(asked, cosines):
    found = evaluate_code_search(asked, Known(asked))
    ranks = np.array([naive_rank(row, place) for place, row in enumerate(cosines)])
    np.testing.assert_array_equal(found.ranks["dense"].middle, ranks)
    assert found.rows["dense"].mrr == pytest.approx((1 / ranks).mean(), abs=1e-12)
    assert found.rows["dense"].recall == {k: pytest.approx((ranks <= k).mean()) for k in (1, 5, 10)}
    assert 0.1 < found.rows["dense"].mrr < 0.95


def test_blocks_change_nothing(asked, monkeypatch):
    whole = evaluate_code_search(asked, Known(asked), others={"other": Known(asked, 2.0, 1)})
    monkeypatch.setattr(code_search, "_VALUES", 7 * len(asked.codes) + 3)
    parts = evaluate_code_search(asked, Known(asked), others={"other": Known(asked, 2.0, 1)})
    assert parts.to_dict() == whole.to_dict()
    monkeypatch.setattr(baselines, "_BM25_BLOCK", 20 * len(asked.codes))  # the words come in blocks, too
    parts = evaluate_code_search(asked, Known(asked), others={"other": Known(asked, 2.0, 1)})
    assert parts.to_dict() == whole.to_dict()
    assert list(whole.rows) == ["lexical", "dense", "hybrid", "other"]


def test_lexical_row_is_split_bm25_and_the_index_s_own(asked):
    found = evaluate_code_search(asked)
    assert list(found.rows) == ["lexical"]
    alone = evaluate_code_lexical(asked)
    assert found.rows["lexical"].mrr == pytest.approx(alone.mrr)
    assert found.rows["lexical"].recall == pytest.approx(alone.recall)
    words, lengths, uniques, terms, counts = count_words(asked.codes)
    postings = Postings(lengths, np.repeat(np.arange(len(asked.codes), dtype=np.int32), uniques), terms, counts)
    number = {word: place for place, word in enumerate(words)}
    theirs = np.concatenate([scores for _, scores in lexical_scores(asked.queries, asked.codes)])
    for query, scores in zip(asked.queries[:20], theirs, strict=False):
        own = bm25_scores(postings, {number[word]: 1 for word in words_of(query) if word in number})
        np.testing.assert_allclose(scores, own, rtol=1e-5, atol=1e-6)


def test_hidden_names_are_hidden_from_words_and_vectors(asked):
    seen = []

    class Spy(Known):
        def encode_code(self, texts):
            seen.extend(texts)
            return np.stack([vector(text) for text in texts])

    shown = evaluate_code_search(asked)
    hidden = evaluate_code_search(asked, Spy(asked), names_hidden=True)
    assert hidden.rows["lexical"].mrr < shown.rows["lexical"].mrr
    assert len(seen) == 100
    assert all(text.startswith("def function(x)") for text in seen)


def test_ties_share_their_mean_rank_and_a_collapsed_encoder_gains_nothing(asked):
    class Same(Known):
        def encode_queries(self, texts):
            return np.ones((len(texts), 8), np.float32)

        encode_code = encode_queries

    found = evaluate_code_search(asked, Same(asked))
    assert found.rows["dense"].mrr == pytest.approx(1 / 50.5)
    assert found.rows["dense"].recall[10] == pytest.approx(0.1)
    assert found.rows["hybrid"].mrr == pytest.approx(found.rows["lexical"].mrr, abs=1e-3)
    assert found.spread["dense"].alignment == pytest.approx(0, abs=1e-6)


def test_a_missing_answer_and_a_late_one_count_nothing():
    scores = np.tile(np.arange(2000, 0, -1.0), (4, 1))
    found = ranks_of(scores, np.array([0, 999, 1000, MISSING]))
    assert found.reciprocal(1000).tolist() == [1.0, 1 / 1000, 0.0, 0.0]
    assert found.reciprocal().tolist() == [1.0, 1 / 1000, 1 / 1001, 0.0]
    assert found.retrieval(cutoff=1000).recall[1] == 0.25
    lone = CodeSearchSet(("open file", "close file"), ("open file", "shut"), np.array([0, MISSING]), ("", ""))
    assert evaluate_code_search(lone).rows["lexical"].mrr == 0.5


def test_nan_is_refused(asked):
    class Broken(Known):
        def encode_code(self, texts):
            return np.full((len(texts), 24), np.nan)

    with pytest.raises(DataError, match="not finite"):
        evaluate_code_search(asked, Broken(asked))
    with pytest.raises(DataError, match="NaN"):
        ranks_of(np.array([[np.nan, 1.0]]), np.array([1]))


def test_an_encoder_of_two_dimensions_is_refused(asked):
    class Odd(Known):
        def encode_code(self, texts):
            return np.ones((len(texts), 3))

    with pytest.raises(DataError, match="24 numbers for a query and 3 for code"):
        evaluate_code_search(asked, Odd(asked))


@pytest.mark.parametrize("direction", ["query to code", "code to query"])
def test_protocol_a_by_its_definition(asked, cosines, direction):
    found = evaluate_code_search(asked, Known(asked), protocol="a", batch=30, seed=3, direction=direction)
    order = np.random.Generator(np.random.Philox(3)).permutation(100)
    ranks = []
    for start in (0, 30, 60):
        rows = order[start : start + 30]
        block = cosines[np.ix_(rows, rows)]
        block = block.T if direction == "code to query" else block
        ranks += [int((row >= row[place]).sum()) for place, row in enumerate(block)]
    assert len(ranks) == 90
    np.testing.assert_array_equal(found.ranks["dense"].middle, ranks)
    assert found.left_out == 10
    assert found.cutoff is None
    assert found.rows["dense"].mrr == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_in_protocol_a_ties_count_against():
    same = CodeSearchSet(("open file",) * 4, ("open file",) * 4, np.arange(4), ("",) * 4)
    assert evaluate_code_search(same, protocol="a", batch=4).rows["lexical"].mrr == pytest.approx(1 / 4)
    assert evaluate_code_search(same).rows["lexical"].mrr == pytest.approx(1 / 2.5)


def test_a_is_never_below_b_where_b_has_more_candidates(asked):
    found = {p: evaluate_code_search(asked, Known(asked), protocol=p, batch=50) for p in ("a", "b")}
    order = np.random.Generator(np.random.Philox(0)).permutation(100)
    assert (found["a"].ranks["dense"].middle <= found["b"].ranks["dense"].middle[order]).all()
    assert found["a"].rows["dense"].mrr > found["b"].rows["dense"].mrr


def test_the_fusion_is_that_of_a_search():
    rng = np.random.Generator(np.random.Philox(5))
    words = np.round(rng.random((20, 60)) * 4, 6)
    words[words < 2] = 0
    near = rng.standard_normal((20, 60))
    config = RankingConfig(lexical_floor=0.4, dense_weight=0.7)
    weights = np.where(np.arange(20) % 2, config.identifier_weight, config.lexical_weight)
    found = fused_scores(words, near, weights, config, depth=15)
    for row in range(20):
        query = "some_name" if row % 2 else "a sentence"
        arms = []
        for scores, above in ((words[row], 0.4 * words[row].max()), (near[row], -np.inf)):
            order = np.argsort(-scores, kind="stable")
            arms.append([int(place) for place in order[:15] if scores[place] > above])
        wanted = np.zeros(60)
        for place, score in fuse(*arms, query, config).items():
            wanted[place] = score
        np.testing.assert_allclose(found[row], wanted, atol=1e-15)


def test_tied_in_an_arm_they_share_the_mean_rank_however_many():
    config = RankingConfig()
    found = fused_scores(np.zeros((1, 5)), np.array([[1.0, 0, 0, 0, 0]]), np.ones(1), config, depth=2)
    np.testing.assert_allclose(found[0], [1 / 61, *[1 / 63.5] * 4])  # ranks 2 to 5


def test_both_are_better_than_each_where_each_knows_something_else(asked):
    vague = CodeSearchSet(
        tuple(f"{text.split()[0]} it, number {1000 + place}" for place, text in enumerate(asked.queries)),
        asked.codes,
        asked.answer,
        asked.names,
    )
    found = evaluate_code_search(vague, Known(vague))
    assert found.rows["hybrid"].mrr > max(found.rows["dense"].mrr, found.rows["lexical"].mrr)


def test_alignment_and_uniformity_are_of_the_pairs(asked):
    encoder = Known(asked)
    found = evaluate_code_search(asked, encoder).spread["dense"]
    queries, codes = (
        torch.from_numpy(v) for v in (encoder.encode_queries(asked.queries), encoder.encode_code(asked.codes))
    )
    assert found.alignment == pytest.approx(alignment(queries, codes), abs=1e-9)
    assert found.query_uniformity == pytest.approx(uniformity(queries), abs=1e-9)
    assert found.code_uniformity == pytest.approx(uniformity(codes), abs=1e-9)


def test_the_order_of_candidates_does_not_matter(asked):
    order = np.random.Generator(np.random.Philox(9)).permutation(100)
    turned = CodeSearchSet(
        asked.queries,
        tuple(asked.codes[place] for place in order),
        np.argsort(order),
        tuple(asked.names[place] for place in order),
    )
    first, second = (evaluate_code_search(one, Known(asked)).rows for one in (asked, turned))
    assert {n: row.mrr for n, row in first.items()} == pytest.approx({n: row.mrr for n, row in second.items()})
    first, second = (
        evaluate_code_search(one, Known(asked), protocol="a", batch=30).rows["dense"].mrr for one in (asked, turned)
    )
    assert first == pytest.approx(second)


@pytest.mark.parametrize(
    ("arguments", "error", "part"),
    [
        ({"protocol": "a"}, DataError, "batches of 1,000 pairs, and there are 100"),
        ({"protocol": "c"}, ConfigError, "protocol 'c'"),
        ({"direction": "code to query"}, ConfigError, "protocol a"),
        ({"protocol": "a", "batch": 1}, ConfigError, "batch=1"),
        ({"ks": ()}, ConfigError, "ranks count from 1"),
        ({"cutoff": 0}, ConfigError, "cutoff=0"),
    ],
    ids=["few", "unknown", "direction", "batch", "ks", "cutoff"],
)
def test_what_makes_no_sense_is_one_line(asked, arguments, error, part):
    with pytest.raises(error, match=part):
        evaluate_code_search(asked, **arguments)


def test_a_row_cannot_take_another_s_name(asked):
    with pytest.raises(ConfigError, match="name of another row"):
        evaluate_code_search(asked, others={"lexical": Known(asked)})
    with pytest.raises(DataError, match="no query was ranked"):
        Ranks.joined([])


@pytest.mark.parametrize("names_hidden", [False, True])
def test_the_weight_is_the_one_that_evaluation_shows_to_be_best(asked, names_hidden):
    encoder = Known(asked)
    if names_hidden:
        encoder.code |= {code: vector(code) for code in code_search._with_names_hidden(asked).codes}
    weights = (0.05, 0.4, 3.0)
    mrr = {
        weight: evaluate_code_search(
            asked, encoder, names_hidden=names_hidden, ranking=RankingConfig(dense_weight=weight)
        )
        .rows["hybrid"]
        .mrr
        for weight in weights
    }
    assert len(set(mrr.values())) > 1
    chosen = choose_dense_weight(asked, encoder, weights=weights, names_hidden=names_hidden)
    assert chosen == max(weights, key=lambda weight: mrr[weight])


def test_an_encoder_that_knows_nothing_gets_the_smallest_weight(asked):
    assert choose_dense_weight(asked, Known(asked, noise=1e6)) == min(code_search.DENSE_WEIGHTS)


@pytest.mark.parametrize("weights", [(), (0.0, 1.0), (-1.0,)])
def test_weights_that_make_no_sense_are_one_line(asked, weights):
    with pytest.raises(ConfigError, match="each above 0"):
        choose_dense_weight(asked, Known(asked), weights=weights)
