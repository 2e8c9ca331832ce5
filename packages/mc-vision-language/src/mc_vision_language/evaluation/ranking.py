"""Ranks and recalls of retrieval, both ways and again after re-ranking: pure functions on arrays.

Equal pictures and equal words are one answer (:class:`RightAnswers`). Ties are broken against the query, so that a collapsed model
scores like the worst one and not like the best.

Legend: N pictures, M captions, Q queries, R candidates, K candidates ranked again, E relations, B resamples, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_core.evaluation import BootstrapInterval
from mc_core.random import derive_seed

RANKS = (1, 5, 10)
_STREAM = 0xB007
_BLOCK = 1 << 22


class RightAnswers:
    """Which captions fit which pictures: their own, and those with the same words or of the same picture.

    Args:
        image_ids: (N,) equal for the same picture.
        text_ids: (M,) equal for the same words.
        image_of: (M,) row of the picture that each caption was written for.

    Raises:
        DataError: lengths differ, or a caption of no picture.

    >>> right = RightAnswers(np.array([7, 8, 9]), np.array([1, 2, 2]), np.array([0, 1, 2]))
    >>> right.texts_of(np.array([0, 1])).astype(int).tolist()
    [[1, 0, 0], [0, 1, 1]]
    """

    def __init__(self, image_ids: np.ndarray, text_ids: np.ndarray, image_of: np.ndarray) -> None:
        image_of = np.asarray(image_of, dtype=np.int64)
        if len(text_ids) != len(image_of):
            raise DataError(f"{len(text_ids)} text ids for {len(image_of)} captions")
        if len(image_of) and not 0 <= image_of.min() <= image_of.max() < len(image_ids):
            raise DataError(f"captions of pictures {image_of.min()} to {image_of.max()}; there are {len(image_ids)}")
        self.image_group = np.unique(np.asarray(image_ids), return_inverse=True)[1].reshape(-1)
        self.text_group = np.unique(np.asarray(text_ids), return_inverse=True)[1].reshape(-1)
        relation = np.unique(np.stack([self.image_group[image_of], self.text_group], 1), axis=0)
        self._texts = _Relation(relation[:, 0], relation[:, 1], self.image_group, self.text_group)
        self._images = _Relation(relation[:, 1], relation[:, 0], self.text_group, self.image_group)

    def texts_of(self, rows: np.ndarray) -> np.ndarray:
        """(Q, M) bool: the right captions of these pictures."""
        return self._texts.of(rows)

    def images_of(self, rows: np.ndarray) -> np.ndarray:
        """(Q, N) bool: the right pictures of these captions."""
        return self._images.of(rows)


class _Relation:
    """Pairs of groups, looked up from one side."""

    def __init__(self, ours: np.ndarray, theirs: np.ndarray, group: np.ndarray, other: np.ndarray) -> None:
        order = np.lexsort((theirs, ours))
        self.theirs, self.group, self.other = theirs[order], group, other
        count = int(group.max(initial=-1)) + 1
        self.first = np.searchsorted(ours[order], np.arange(count + 1))
        self.width = int(other.max(initial=-1)) + 1

    def of(self, rows: np.ndarray) -> np.ndarray:
        group = self.group[np.asarray(rows, dtype=np.int64)]
        begin, lengths = self.first[group], self.first[group + 1] - self.first[group]
        ends = np.cumsum(lengths)
        places = np.arange(lengths.sum()) + np.repeat(begin - (ends - lengths), lengths)
        found = np.zeros((len(group), self.width), dtype=bool)
        found[np.repeat(np.arange(len(group)), lengths), self.theirs[places]] = True
        return found[:, self.other]


def shortlist(scores: np.ndarray, k: int) -> np.ndarray:
    """(Q, K) int64: the best candidates of each query, best first, the earlier of equal ones first; K = min(k, R).

    Args:
        scores: (Q, R), larger is better.
        k: how many.

    Raises:
        ConfigError: k below 1.

    >>> shortlist(np.array([[0.1, 0.9, 0.9, 0.3]]), 3).tolist()
    [[1, 2, 3]]
    """
    scores = _scores(scores)
    if k < 1:
        raise ConfigError(f"k={k}: rank at least one candidate again")
    queries, candidates = scores.shape
    k = min(k, candidates)
    edge_Q1 = np.partition(scores, candidates - k, axis=1)[:, candidates - k, None]
    kept_QR, tied_QR = scores > edge_Q1, scores == edge_Q1
    kept_QR |= tied_QR & (tied_QR.cumsum(axis=1) <= k - kept_QR.sum(axis=1, keepdims=True))
    rows_QK = kept_QR.nonzero()[1].reshape(queries, k)
    order_QK = np.argsort(-np.take_along_axis(scores, rows_QK, axis=1), axis=1, kind="stable")
    return np.take_along_axis(rows_QK, order_QK, axis=1)


def best_ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(Q,) int64 rank of each query's best right answer, from 1, behind all wrong ones with the same score.

    Args:
        scores: (Q, R), larger is better.
        right: (Q, R) bool.

    Raises:
        DataError: NaN, shapes that differ, or a query without right answer.

    >>> best_ranks(np.array([[0.9, 0.5, 0.5]]), np.array([[False, True, False]])).tolist()
    [3]
    """
    scores, right = _scores(scores), _right(right, scores)
    best_Q1 = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + (~right & (scores >= best_Q1)).sum(axis=1)


def reranked_ranks(scores: np.ndarray, candidates: np.ndarray, match: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(Q,) int64 rank of each query's best right answer once its candidates stand in the order of ``match``.

    What is no candidate stays behind them, in the order of ``scores``.

    Args:
        scores: (Q, R), larger is better.
        candidates: (Q, K) rows of :func:`shortlist`.
        match: (Q, K) scores of the candidates.
        right: (Q, R) bool.

    Raises:
        DataError: NaN, shapes that differ, or a query without right answer.

    >>> scores, right = np.array([[0.9, 0.8, 0.1]]), np.array([[False, True, False]])
    >>> reranked_ranks(scores, np.array([[0, 1]]), np.array([[-1.0, 2.0]]), right).tolist()
    [1]
    """
    scores, match = _scores(scores), _scores(match)
    right = _right(right, scores)
    if candidates.shape != match.shape or len(match) != len(scores):
        raise DataError(f"candidates {candidates.shape} and their scores {match.shape} of {len(scores)} queries")
    chosen_QK = np.take_along_axis(right, candidates, axis=1)
    best_Q1 = np.where(chosen_QK, match, -np.inf).max(axis=1, keepdims=True)
    inside = 1 + (~chosen_QK & (match >= best_Q1)).sum(axis=1)
    return np.where(chosen_QK.any(axis=1), inside, best_ranks(scores, right))


def chance_recall(right_counts: np.ndarray, candidates: int, k: int) -> float:
    """Share of queries with a right answer among k candidates in random order.

    Args:
        right_counts: (Q,) right answers of each query.
        candidates: R.
        k: how many are looked at.

    >>> round(chance_recall(np.array([1, 2]), 10, 1), 6)
    0.15
    """
    wrong = candidates - np.asarray(right_counts, dtype=np.float64)
    places = np.arange(min(k, candidates))
    missed = np.clip((wrong[:, None] - places) / (candidates - places), 0, None).prod(axis=1)
    return float(1 - missed.mean())


@dataclass(frozen=True)
class Recalls:
    """Recall both ways, with 95 % intervals over pictures.

    Attributes:
        image_to_text: by k, the share of pictures with a right caption among the best k.
        text_to_image: by k, the share of captions with a right picture among the best k.
        mean: of all of them, with k = 1, 5, 10 the r_mean of the literature.
        median_rank: of the best right answer, 1 is first: of pictures, of captions.
    """

    image_to_text: Mapping[int, BootstrapInterval]
    text_to_image: Mapping[int, BootstrapInterval]
    mean: BootstrapInterval
    median_rank: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        ways: dict[str, Any] = {
            way: {f"r@{k}": asdict(one) for k, one in getattr(self, way).items()}
            for way in ("image_to_text", "text_to_image")
        }
        return {**ways, "mean": asdict(self.mean), "median_rank": list(self.median_rank)}


def recalls(
    image_ranks: np.ndarray,
    text_ranks: np.ndarray,
    image_group: np.ndarray,
    text_group: np.ndarray,
    *,
    ks: Sequence[int] = RANKS,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Recalls:
    """Recalls of ranks, with percentile intervals: whole pictures are resampled, each with all its captions.

    Args:
        image_ranks: (N,) rank of the best right caption of each picture.
        text_ranks: (M,) rank of the best right picture of each caption.
        image_group: (N,) group of each picture.
        text_group: (M,) group of the picture of each caption.
        ks: for recall at k.
        draws: resamples; 0: no intervals, their ends are the value.
        level: of the intervals.
        seed: of the resamples.

    Raises:
        DataError: lengths differ, or nothing to measure. ConfigError: a k below 1.

    >>> found = recalls(np.array([1, 3]), np.array([1, 1, 7]), np.array([0, 1]), np.array([0, 0, 1]), draws=0)
    >>> found.image_to_text[1].value, round(found.text_to_image[5].value, 3), round(found.mean.value, 3)
    (0.5, 0.667, 0.806)
    """
    if not ks or min(ks) < 1:
        raise ConfigError(f"ks={tuple(ks)}: recall needs one or more ranks of 1 and above")
    if draws < 0 or not 0 < level < 1:
        raise ConfigError(f"draws={draws}, level={level}: take 0 or more resamples and a level between 0 and 1")
    if len(image_ranks) != len(image_group) or len(text_ranks) != len(text_group):
        raise DataError(
            f"{len(image_ranks)} and {len(text_ranks)} ranks with {len(image_group)} and {len(text_group)} groups"
        )
    if not len(image_ranks) or not len(text_ranks):
        raise DataError("no picture or no caption to measure retrieval on")
    different, group = np.unique(np.concatenate([image_group, text_group]), return_inverse=True)
    ways = (np.asarray(image_ranks), group[: len(image_ranks)]), (np.asarray(text_ranks), group[len(image_ranks) :])
    weight_BG = np.concatenate([np.ones((1, len(different))), _resamples(len(different), draws, seed)])
    with np.errstate(invalid="ignore"):  # a resample may have pictures without captions only
        both = [np.stack([_share(ranks <= k, of, weight_BG) for k in ks], 1) for ranks, of in ways]
    intervals = [[_interval(way[:, place], level) for place in range(len(ks))] for way in both]
    return Recalls(
        dict(zip(ks, intervals[0], strict=True)),
        dict(zip(ks, intervals[1], strict=True)),
        _interval(np.concatenate(both, axis=1).mean(axis=1), level),
        (float(np.median(image_ranks)), float(np.median(text_ranks))),
    )


def _resamples(groups: int, draws: int, seed: int) -> np.ndarray:
    """(draws, groups) how often each group was drawn."""
    rng = np.random.Generator(np.random.Philox(derive_seed(seed, _STREAM)))
    weights = np.zeros((draws, groups))
    pace = max(1, _BLOCK // groups)
    for first in range(0, draws, pace):
        drawn = rng.integers(0, groups, (min(pace, draws - first), groups))
        flat = (drawn + groups * np.arange(len(drawn))[:, None]).ravel()
        weights[first : first + pace] = np.bincount(flat, minlength=drawn.size).reshape(drawn.shape)
    return weights


def _share(hit: np.ndarray, group: np.ndarray, weight_BG: np.ndarray) -> np.ndarray:
    """(B,) share of hits, each row as often as its group."""
    groups = weight_BG.shape[1]
    return (weight_BG @ np.bincount(group, hit, groups)) / (weight_BG @ np.bincount(group, minlength=groups))


def _interval(values_B: np.ndarray, level: float) -> BootstrapInterval:
    """The first is that of all rows, the others those of resamples."""
    value, sampled = float(values_B[0]), values_B[1:]
    kept = sampled[~np.isnan(sampled)]
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2]) if len(kept) else (value, value)
    return BootstrapInterval(value, float(low), float(high), len(kept), len(sampled) - len(kept))


def _scores(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.ndim != 2 or not scores.size:
        raise DataError(f"scores of shape {scores.shape}; give (queries, candidates), not empty")
    if np.isnan(scores).any():
        raise DataError("scores contain NaN; look at the model that they come from")
    return scores


def _right(right: np.ndarray, scores: np.ndarray) -> np.ndarray:
    right = np.asarray(right, dtype=bool)
    if right.shape != scores.shape:
        raise DataError(f"right answers {right.shape} and scores {scores.shape} differ in shape")
    if not (found := right.any(axis=1)).all():
        raise DataError(f"query {int(found.argmin())} has no right answer among the candidates")
    return right
