"""Ranks, recalls and their intervals, against loops over the definition."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from mc_core.errors import ConfigError, DataError
from mc_core.evaluation import bootstrap_interval, retrieval_metrics
from mc_vision_language.evaluation import ranking
from mc_vision_language.evaluation.ranking import (
    RightAnswers,
    best_ranks,
    chance_recall,
    recalls,
    reranked_ranks,
    shortlist,
)


def naive_order(scores: np.ndarray, right: np.ndarray) -> list[int]:
    """Best first; among equal scores wrong answers come first."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], bool(right[i]), i))


def naive_rank(scores: np.ndarray, right: np.ndarray) -> int:
    return 1 + next(place for place, i in enumerate(naive_order(scores, right)) if right[i])


def naive_reranked(scores: np.ndarray, candidates: np.ndarray, match: np.ndarray, right: np.ndarray) -> int:
    """The whole list: candidates by match, then the others by score."""
    ours = [int(candidates[i]) for i in naive_order(match, right[candidates])]
    others = [i for i in naive_order(scores, right) if i not in ours]
    return 1 + next(place for place, i in enumerate(ours + others) if right[i])


def tied(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Few different values, so that many are equal."""
    return rng.integers(0, 6, shape).astype(np.float64)


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    right = rng.random((40, 15)) < 0.15
    right[np.arange(40), rng.integers(0, 15, 40)] = True
    return tied(rng, 40, 15), right


class TestRightAnswers:
    def test_same_picture_or_same_words_by_definition(self) -> None:
        rng = np.random.default_rng(0)
        image_ids, text_ids = rng.integers(100, 109, 14), rng.integers(0, 12, 30)
        image_of = np.sort(rng.integers(0, 14, 30))
        right = RightAnswers(image_ids, text_ids, image_of)
        expected = np.zeros((14, 30), dtype=bool)
        for image in range(14):
            for text in range(30):
                expected[image, text] = any(
                    image_ids[image_of[other]] == image_ids[image] and text_ids[other] == text_ids[text]
                    for other in range(30)
                )
        assert np.array_equal(right.texts_of(np.arange(14)), expected)
        assert np.array_equal(right.images_of(np.arange(30)), expected.T)
        assert np.array_equal(right.texts_of(np.array([3, 3, 0])), expected[[3, 3, 0]])

    def test_several_captions_of_one_picture(self) -> None:
        right = RightAnswers(np.array([5, 6]), np.array([1, 2, 3]), np.array([0, 0, 1]))
        assert right.texts_of(np.array([0, 1])).tolist() == [[True, True, False], [False, False, True]]

    @pytest.mark.parametrize(
        ("texts", "places", "message"), [([1], [0, 1], "1 text ids for 2"), ([1, 2], [0, 2], "pictures 0 to 2; there")]
    )
    def test_says_what_is_wrong(self, texts: list[int], places: list[int], message: str) -> None:
        with pytest.raises(DataError, match=message):
            RightAnswers(np.array([1, 2]), np.array(texts), np.array(places))


class TestRanks:
    def test_equal_a_sorted_list(self, problem) -> None:
        scores, right = problem
        assert best_ranks(scores, right).tolist() == [naive_rank(*row) for row in zip(scores, right, strict=True)]

    def test_agree_with_the_core(self, problem) -> None:
        import torch

        scores, right = problem
        found = retrieval_metrics(torch.from_numpy(scores), torch.from_numpy(right))
        ranks = best_ranks(scores, right)
        assert {k: float(np.mean(ranks <= k)) for k in (1, 5, 10)} == pytest.approx(found.recall)

    def test_a_collapsed_model_is_the_worst(self) -> None:
        assert best_ranks(np.zeros((2, 9)), np.eye(9, dtype=bool)[:2]).tolist() == [9, 9]

    def test_do_not_depend_on_the_order_of_candidates(self, problem) -> None:
        scores, right = problem
        order = np.random.default_rng(1).permutation(15)
        assert np.array_equal(best_ranks(scores, right), best_ranks(scores[:, order], right[:, order]))

    @pytest.mark.parametrize(
        ("scores", "right", "message"),
        [
            (np.zeros((2, 2)), np.array([[True, False], [False, False]]), "query 1 has no right answer"),
            (np.array([[np.nan, 1]]), np.array([[True, False]]), "NaN"),
            (np.zeros((1, 2)), np.array([[True]]), "differ in shape"),
            (np.zeros((0, 2)), np.zeros((0, 2)), "not empty"),
        ],
    )
    def test_say_what_is_wrong(self, scores: np.ndarray, right: np.ndarray, message: str) -> None:
        with pytest.raises(DataError, match=message):
            best_ranks(scores, right)


class TestShortlist:
    @pytest.mark.parametrize("k", [1, 4, 14, 15, 99])
    def test_is_the_head_of_a_stable_sort(self, problem, k: int) -> None:
        scores, _ = problem
        assert np.array_equal(shortlist(scores, k), np.argsort(-scores, axis=1, kind="stable")[:, :k])

    def test_needs_a_candidate(self) -> None:
        with pytest.raises(ConfigError, match="k=0"):
            shortlist(np.zeros((1, 2)), 0)


class TestReranked:
    @pytest.mark.parametrize("k", [1, 3, 8, 15])
    def test_equals_the_whole_list_put_in_order(self, problem, k: int) -> None:
        scores, right = problem
        chosen = shortlist(scores, k)
        match = tied(np.random.default_rng(k), *chosen.shape)
        expected = [naive_reranked(*row) for row in zip(scores, chosen, match, right, strict=True)]
        assert reranked_ranks(scores, chosen, match, right).tolist() == expected

    def test_nothing_outside_the_shortlist_moves(self, problem) -> None:
        scores, right = problem
        chosen = shortlist(scores, 5)
        outside = ~np.take_along_axis(right, chosen, axis=1).any(axis=1)
        assert outside.any()
        match = tied(np.random.default_rng(9), *chosen.shape)
        found = reranked_ranks(scores, chosen, match, right)
        assert np.array_equal(found[outside], best_ranks(scores, right)[outside])
        assert (found[outside] > 5).all()
        assert (found[~outside] <= 5).all()

    def test_the_order_it_had_changes_nothing(self, problem) -> None:
        scores, right = problem
        chosen = shortlist(scores, 15)
        again = reranked_ranks(scores, chosen, np.take_along_axis(scores, chosen, axis=1), right)
        assert np.array_equal(again, best_ranks(scores, right))

    def test_only_the_order_of_the_scores_counts(self, problem) -> None:
        scores, right = problem
        chosen = shortlist(scores, 6)
        match = tied(np.random.default_rng(2), *chosen.shape)
        assert np.array_equal(
            reranked_ranks(scores, chosen, match, right), reranked_ranks(scores, chosen, 0.1 * match - 100, right)
        )

    def test_says_what_is_wrong(self, problem) -> None:
        scores, right = problem
        with pytest.raises(DataError, match=r"candidates \(40, 3\) and their scores \(40, 2\)"):
            reranked_ranks(scores, shortlist(scores, 3), np.zeros((40, 2)), right)


class TestRecalls:
    def test_values_are_shares_of_ranks(self) -> None:
        images, texts = np.array([1, 6, 11, 2]), np.array([1, 1, 5, 10, 30])
        found = recalls(images, texts, np.arange(4), np.array([0, 0, 1, 2, 3]), draws=50)
        assert {k: one.value for k, one in found.image_to_text.items()} == {1: 0.25, 5: 0.5, 10: 0.75}
        assert {k: one.value for k, one in found.text_to_image.items()} == {1: 0.4, 5: 0.6, 10: 0.8}
        assert found.mean.value == pytest.approx((0.25 + 0.5 + 0.75 + 0.4 + 0.6 + 0.8) / 6)
        assert found.median_rank == (4.0, 5.0)
        assert set(found.to_dict()["image_to_text"]) == {"r@1", "r@5", "r@10"}

    def test_intervals_are_those_of_the_core_over_pictures(self) -> None:
        rng = np.random.default_rng(5)
        image_group, text_group = np.arange(30), np.sort(rng.integers(0, 30, 80))
        images, texts = rng.integers(1, 20, 30), rng.integers(1, 20, 80)
        found = recalls(images, texts, image_group, text_group, draws=200, seed=4)
        both = np.concatenate([image_group, text_group])
        of_text = np.concatenate([np.zeros(30), np.ones(80)])
        ranks = np.concatenate([images, texts]).astype(float)

        def r_mean(way: np.ndarray, rank: np.ndarray) -> float:
            return float(np.mean([(rank[way == side] <= k).mean() for side in (0, 1) for k in (1, 5, 10)]))

        expected = bootstrap_interval(r_mean, of_text, ranks, n=200, seed=4, groups=both)
        assert (found.mean.value, found.mean.low, found.mean.high) == pytest.approx(
            (expected.value, expected.low, expected.high)
        )

    def test_captions_of_one_picture_are_no_independent_evidence(self) -> None:
        ranks = np.tile([1, 99], 20).repeat(5)
        images, few = np.ones(40, dtype=int), np.arange(40).repeat(5)
        together = recalls(images, ranks, np.arange(40), few, draws=400).text_to_image[1]
        apart = recalls(np.ones(200, dtype=int), ranks, np.arange(200), np.arange(200), draws=400).text_to_image[1]
        assert together.high - together.low > 1.7 * (apart.high - apart.low)

    def test_no_resamples_no_interval(self) -> None:
        found = recalls(np.array([1, 9]), np.array([1]), np.array([0, 1]), np.array([0]), draws=0).mean
        assert found.low == found.value == found.high

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"ks": (0,)}, ConfigError, "ks="),
            ({"draws": -1}, ConfigError, "draws=-1"),
            ({"level": 1.0}, ConfigError, "level=1.0"),
            ({"text_group": np.array([0, 1])}, DataError, "1 ranks with 1 and 2 groups"),
            ({"text_ranks": np.zeros(0), "text_group": np.zeros(0)}, DataError, "no caption"),
        ],
    )
    def test_say_what_is_wrong(self, changes: dict, error: type[Exception], message: str) -> None:
        given = {"image_ranks": [1], "text_ranks": [1], "image_group": np.array([0]), "text_group": np.array([0])}
        with pytest.raises(error, match=message):
            recalls(**{**given, **changes})


@pytest.mark.parametrize(("right", "candidates", "k"), [(1, 7, 1), (3, 9, 5), (2, 4, 3), (1, 3, 10)])
def test_chance_is_counted_over_all_orders(right: int, candidates: int, k: int) -> None:
    wrong = math.comb(candidates - right, k) if k <= candidates else 0
    expected = 1 - wrong / math.comb(candidates, min(k, candidates))
    assert chance_recall(np.array([right]), candidates, k) == pytest.approx(expected)


def test_examples() -> None:
    assert doctest.testmod(ranking).failed == 0
