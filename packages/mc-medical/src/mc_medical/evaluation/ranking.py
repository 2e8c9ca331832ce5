"""Retrieval both ways: the report of an image, the image of a report, and whether what is found shows the same finding.

Identical reports are one answer: "no acute cardiopulmonary process" is dictated a thousand times, and any of them is a hit. Ties
are broken against the query, so that a collapsed model scores like the worst one.

Legend: Q queries, R candidates, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_medical.evaluation.checks import groups, unit
from mc_medical.evaluation.intervals import Interval, mean_interval

_BLOCK = 1 << 22  # similarities at a time


@dataclass(frozen=True)
class RankResult:
    """One direction of :func:`retrieval`.

    Attributes:
        recall: k → share of queries with a right answer among the best k.
        chance: k → the same for candidates in random order.
        mrr: mean of 1 / rank of the best right answer.
        median_rank: of the best right answer; 1 is first.
        queries: Q.
        candidates: R.
    """

    recall: dict[int, Interval]
    chance: dict[int, float]
    mrr: Interval
    median_rank: float
    queries: int
    candidates: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "recall": {str(k): one.to_dict() for k, one in self.recall.items()},
            "chance": {str(k): value for k, value in self.chance.items()},
            "mrr": self.mrr.to_dict(),
            "median_rank": self.median_rank,
            "queries": self.queries,
            "candidates": self.candidates,
        }


@dataclass(frozen=True)
class RetrievalResult:
    """What :func:`retrieval` returns.

    Attributes:
        image_to_text: reports found by image.
        text_to_image: images found by report.
    """

    image_to_text: RankResult
    text_to_image: RankResult

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"image_to_text": self.image_to_text.to_dict(), "text_to_image": self.text_to_image.to_dict()}


def first_of_each(studies: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Rows of the first image of each study, in order: retrieval takes one frontal view a study.

    >>> first_of_each(["b", "a", "b", "c"]).tolist()
    [0, 1, 3]
    """
    return np.sort(np.unique(np.asarray(studies), return_index=True)[1])


def best_ranks(
    queries: np.ndarray, candidates: np.ndarray, query_ids: np.ndarray, candidate_ids: np.ndarray
) -> np.ndarray:
    """(Q,) int64 rank of each query's best right answer, from 1; a right answer stands behind wrong ones just as similar.

    Args:
        queries: (Q, D) of length one.
        candidates: (R, D) of length one.
        query_ids: (Q,) what counts as the same.
        candidate_ids: (R,).

    Raises:
        DataError: a query without right answer, shapes that do not match.

    >>> best_ranks(np.eye(2), np.eye(2), np.array([0, 1]), np.array([1, 0])).tolist()
    [2, 2]
    """
    queries = unit(queries, "queries")
    candidates = unit(candidates, "candidates", dim=queries.shape[1])
    query_ids, candidate_ids = np.asarray(query_ids), np.asarray(candidate_ids)
    if query_ids.shape != (len(queries),) or candidate_ids.shape != (len(candidates),):
        raise DataError(
            f"ids {query_ids.shape} and {candidate_ids.shape}: each of {len(queries)} and {len(candidates)} rows needs one"
        )
    ranks = np.empty(len(queries), dtype=np.int64)
    pace = max(1, _BLOCK // len(candidates))
    for start in range(0, len(queries), pace):
        rows = slice(start, start + pace)
        similarity = queries[rows] @ candidates.T
        right = query_ids[rows][:, None] == candidate_ids[None, :]
        if not right.any(axis=1).all():
            raise DataError(f"query {start + int(right.any(axis=1).argmin())} has no right answer among the candidates")
        best = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
        ranks[rows] = 1 + (~right & (similarity >= best)).sum(axis=1)
    return ranks


def retrieval(
    images: np.ndarray,
    texts: np.ndarray,
    text_ids: np.ndarray,
    *,
    ks: Sequence[int] = (1, 5, 10),
    patients: Sequence[Any] | np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> RetrievalResult:
    """Recall at k both ways, over pairs of which row i of ``images`` and of ``texts`` belong together.

    Args:
        images: (N, D) of length one, one a study.
        texts: (N, D) of length one, their reports.
        text_ids: (N,): equal where reports are the same words.
        ks: ranks.
        patients: (N,), for the intervals.
        draws: resamples.
        seed: of the resamples.

    Raises:
        DataError: shapes that do not match.
        ConfigError: no rank, or one below 1.

    >>> result = retrieval(np.eye(4), np.eye(4), np.array([0, 0, 1, 2]), ks=(1, 2), draws=0)
    >>> result.image_to_text.recall[1].value, round(result.image_to_text.chance[1], 4)
    (1.0, 0.375)
    """
    if not ks or min(ks) < 1:
        raise ConfigError(f"ks={tuple(ks)}: recall needs one or more ranks of 1 and above")
    if len(images) != len(texts):
        raise DataError(f"{len(images)} images and {len(texts)} reports; row i of one belongs to row i of the other")
    text_ids, who = np.asarray(text_ids), groups(patients, len(images))
    same = np.unique(text_ids, return_inverse=True, return_counts=True)
    answers = same[2][same[1]]
    found = []
    for queries, candidates in ((images, texts), (texts, images)):
        ranks = best_ranks(queries, candidates, text_ids, text_ids)
        recall = {k: mean_interval(ranks <= k, who, draws=draws, seed=seed) for k in ks}
        chance = {k: float(np.mean([_by_chance(len(images), int(n), k) for n in answers])) for k in ks}
        found.append(
            RankResult(
                recall,
                chance,
                mean_interval(1 / ranks, who, draws=draws, seed=seed),
                float(np.median(ranks)),
                len(ranks),
                len(candidates),
            )
        )
    return RetrievalResult(*found)


def _by_chance(candidates: int, right: int, k: int) -> float:
    """Chance that one of ``right`` among ``candidates`` in random order stands among the first k."""
    missed = 1.0
    for place in range(min(k, candidates)):
        missed *= max(candidates - right - place, 0) / (candidates - place)
    return 1 - missed


def class_precision(
    queries: np.ndarray,
    candidates: np.ndarray,
    query_class: np.ndarray,
    candidate_class: np.ndarray,
    *,
    ks: Sequence[int] = (5, 10, 100),
    patients: Sequence[Any] | np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[int, Interval]:
    """Mean share of the best k candidates that are of the query's class, as GLoRIA (Huang et al. 2021) measures retrieval.

    Args:
        queries: (Q, D) of length one, such as images.
        candidates: (R, D) of length one, such as reports.
        query_class: (Q,) class numbers; rows with −1 are left out.
        candidate_class: (R,) the same.
        ks: ranks; those beyond the candidates are left out.
        patients: (Q,) of the queries.
        draws: resamples.
        seed: of the resamples.

    Raises:
        DataError: no query or no candidate of any class, or fewer candidates than the smallest k.

    >>> points = np.array([[1.0, 0], [0.8, 0.6], [0, 1]])
    >>> found = class_precision(points[:1], points, np.array([0]), np.array([0, 0, 1]), ks=(2, 3, 100), draws=0)
    >>> {k: round(interval.value, 3) for k, interval in found.items()}
    {2: 1.0, 3: 0.667}
    """
    query_class, candidate_class = np.asarray(query_class), np.asarray(candidate_class)
    asked, offered = np.flatnonzero(query_class >= 0), np.flatnonzero(candidate_class >= 0)
    if not len(asked) or len(offered) < min(ks, default=1):
        raise DataError(
            f"{len(asked)} queries and {len(offered)} candidates have a class; P@{min(ks, default=1)} needs more"
        )
    who = groups(patients, len(queries))[asked]
    queries = unit(np.asarray(queries)[asked], "queries")
    candidates = unit(np.asarray(candidates)[offered], "candidates", dim=queries.shape[1])
    right = query_class[asked][:, None] == candidate_class[offered][None, :]
    # of equals the wrong ones come first
    order = np.lexsort((right, -(queries @ candidates.T)), axis=1)
    hits = np.take_along_axis(right, order, axis=1).cumsum(axis=1)
    return {k: mean_interval(hits[:, k - 1] / k, who, draws=draws, seed=seed) for k in ks if k <= len(offered)}
