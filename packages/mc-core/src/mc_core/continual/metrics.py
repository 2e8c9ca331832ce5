"""What a sequence of tasks did to a model: forgetting, plasticity, and retrieval by class as CTP measures it.

Legend: T tasks, Q queries, G candidates of the gallery, D width, n looked at. ``R[k, j]`` is a figure (higher is better) of
the model after task k on the data of task j alone; ``U[k, j]`` the same on the data of tasks 0 … j together, so that
``A_k = U[k, k]`` and ``F_k = U[T−1, k]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError

_BLOCK = 1 << 24  # scores held at once


@dataclass(frozen=True)
class SequenceScores:
    """Figures of a sequence of tasks, from what was measured after each.

    Attributes:
        own: (T, T) R, NaN where nothing was measured.
        union: (T, T) U, NaN where nothing was measured.

    Raises:
        DataError: no square matrices of one size.

    >>> scores = SequenceScores(np.array([[0.9, np.nan], [0.5, 0.8]]), np.array([[0.9, np.nan], [0.5, 0.6]]))
    >>> round(scores.forgetting, 3), round(scores.plasticity, 3), round(scores.backward_transfer, 3)
    (0.4, 0.85, -0.4)
    """

    own: np.ndarray
    union: np.ndarray

    def __post_init__(self) -> None:
        shape = np.shape(self.own)
        if len(shape) != 2 or shape[0] != shape[1] or not shape[0] or np.shape(self.union) != shape:
            raise DataError(
                f"figures of shapes {shape} and {np.shape(self.union)}; give two square matrices of one size"
            )

    @property
    def after_each(self) -> np.ndarray:
        """(T,) A_k: the model after task k, on all tasks so far. It falls with k even where nothing is forgotten, as the gallery
        grows: compare methods at equal k."""
        return np.diagonal(self.union)

    @property
    def at_the_end(self) -> np.ndarray:
        """(T,) F_k: the last model on tasks 0 … k."""
        return self.union[-1]

    @property
    def last(self) -> float:
        """A_{T−1}: the last model on everything."""
        return float(self.union[-1, -1])

    @property
    def forgetting(self) -> float:
        """See :func:`forgetting`."""
        return forgetting(self.after_each, self.at_the_end)

    @property
    def plasticity(self) -> float:
        """Mean of R[k, k]: how well each task was learned when it was new. A frozen model forgets nothing and has little of it."""
        return float(np.diagonal(self.own).mean())

    @property
    def backward_transfer(self) -> float:
        """Mean over all tasks but the last of R[T−1, j] − R[j, j]; negative: forgotten. 0 for a single task.

        Source: Lopez-Paz and Ranzato 2017 (arXiv:1706.08840).
        """
        changes = (self.own[-1] - np.diagonal(self.own))[:-1]
        return float(changes.mean()) if len(changes) else 0.0

    @property
    def average(self) -> float:
        """Mean of R[T−1, j]: the last model on each task by itself."""
        return float(self.own[-1].mean())

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what was not measured is null."""
        return {
            "R": _listed(self.own),
            "union": _listed(self.union),
            "A": _listed(self.after_each),
            "F": _listed(self.at_the_end),
            "last": _number(self.last),
            "forgetting": _number(self.forgetting),
            "plasticity": _number(self.plasticity),
            "backward_transfer": _number(self.backward_transfer),
            "average": _number(self.average),
        }


def forgetting(after_each: Sequence[float] | np.ndarray, at_the_end: Sequence[float] | np.ndarray) -> float:
    """Mean over all tasks but the last of A_k − F_k. **Positive means forgotten**, negative means improved later; 0 for one task.

    The official code of CTP prints this sum as "BWT"; backward transfer usually has the other sign.

    Args:
        after_each: (T,) A_k, the model after task k on the union of tasks 0 … k.
        at_the_end: (T,) F_k, the last model on the same unions.

    Raises:
        DataError: lengths differ, or no task.

    >>> forgetting([0.9, 0.7, 0.6], [0.5, 0.5, 0.6])
    0.3
    """
    both = np.asarray(after_each, dtype=np.float64), np.asarray(at_the_end, dtype=np.float64)
    if both[0].shape != both[1].shape or both[0].ndim != 1 or not len(both[0]):
        raise DataError(f"figures of shapes {both[0].shape} and {both[1].shape}; give one of each task, at least one")
    lost = (both[0] - both[1])[:-1]
    return round(float(lost.mean()), 12) if len(lost) else 0.0


@dataclass(frozen=True)
class ClassPrecision:
    """Retrieval by class: mean average precision at each n, over the queries that something can be found for.

    Attributes:
        found: n → precision at each hit over the hits *found*, as the official code of CTP divides; one hit at rank 1 is 1.0
            even with 50 relevant ones.
        standard: n → the same over min(n, relevant).
        queries: with something relevant in the gallery.
        without: queries with nothing relevant, which are left out.
    """

    found: dict[int, float]
    standard: dict[int, float]
    queries: int
    without: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "map_found": {f"@{n}": _number(value) for n, value in self.found.items()},
            "map": {f"@{n}": _number(value) for n, value in self.standard.items()},
            "queries": self.queries,
            "queries_without_relevant": self.without,
        }


def average_precision(hits: np.ndarray, relevant: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q,) average precision at n, divided by the hits found and by what could have been found.

    Only the first min(n, relevant, ranked) places count. A query without a hit has 0.

    Args:
        hits: (Q, at least min(n, G)) bool, whether the candidate at each place is relevant, best first.
        relevant: (Q,) how many candidates are relevant.
        n: how many places.

    Raises:
        ConfigError: n below 1.

    >>> both = average_precision(np.array([[True, False, True, False]]), np.array([3]), 4)
    >>> [round(float(value[0]), 4) for value in both]  # (1 + 2/3) / 2 and / 3
    [0.8333, 0.5556]
    """
    if n < 1:
        raise ConfigError(f"n={n}: look at one candidate or more")
    hits, relevant = np.asarray(hits, dtype=bool)[:, :n], np.asarray(relevant)
    place_n = np.arange(1, hits.shape[1] + 1)
    looked_Q1 = np.minimum(n, relevant)[:, None]
    counted = hits & (place_n <= looked_Q1)
    total = (counted.cumsum(axis=1) / place_n * counted).sum(axis=1)
    return total / np.maximum(counted.sum(axis=1), 1), total / np.maximum(looked_Q1[:, 0], 1)


def class_precision(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_classes: np.ndarray,
    gallery_classes: np.ndarray,
    *,
    query_ids: np.ndarray | None = None,
    gallery_ids: np.ndarray | None = None,
    ns: Sequence[int] = (1, 5, 10),
) -> ClassPrecision:
    """Mean average precision of finding what has the query's class, by inner product; the query itself is no candidate.

    The official code of CTP cuts the list at ten before it drops the query's own id; here it is dropped first. Ties go to the
    earlier candidate.

    Args:
        queries: (Q, D) unit rows.
        gallery: (G, D) unit rows.
        query_classes: (Q,).
        gallery_classes: (G,).
        query_ids: (Q,) what each query is; without ids nothing is dropped.
        gallery_ids: (G,).
        ns: places looked at.

    Raises:
        DataError: lengths that differ, NaN, or nothing to measure.

    >>> x = np.eye(3)[[0, 0, 1]]
    >>> class_precision(
    ...     x, x, np.array([0, 0, 1]), np.array([0, 0, 1]), query_ids=np.arange(3), gallery_ids=np.arange(3)
    ... ).found[1]
    1.0
    """
    lengths = (len(query_classes), len(gallery_classes))
    if lengths != (len(queries), len(gallery)) or not len(queries) or not len(gallery):
        raise DataError(
            f"{len(queries)} queries and {len(gallery)} candidates with {lengths} classes; give one of each row"
        )
    if np.isnan(queries).any() or np.isnan(gallery).any():
        raise DataError("features contain NaN; look at the model that they come from")
    different, codes = np.unique(np.concatenate([query_classes, gallery_classes]), return_inverse=True)
    mine_Q, theirs_G = codes[: len(queries)], codes[len(queries) :]
    counts = np.bincount(theirs_G, minlength=len(different))
    width = min(max(ns), len(gallery))
    hits, relevant = np.zeros((len(queries), width), dtype=bool), counts[mine_Q]
    pace = max(1, _BLOCK // len(gallery))
    for first in range(0, len(queries), pace):
        part = slice(first, first + pace)
        scores = queries[part] @ gallery.T
        if query_ids is not None and gallery_ids is not None:
            own = np.asarray(query_ids)[part, None] == np.asarray(gallery_ids)[None, :]
            relevant[part] -= (own & (theirs_G == mine_Q[part, None])).sum(axis=1)
            scores = np.where(own, -np.inf, scores)
        ranked = np.argsort(-scores, axis=1, kind="stable")[:, :width]
        real = np.take_along_axis(scores, ranked, axis=1) > -np.inf
        hits[part] = (theirs_G[ranked] == mine_Q[part, None]) & real
    kept = relevant > 0
    both = {n: average_precision(hits[kept], relevant[kept], n) for n in ns}
    return ClassPrecision(
        {n: _mean(found) for n, (found, _) in both.items()},
        {n: _mean(standard) for n, (_, standard) in both.items()},
        int(kept.sum()),
        int((~kept).sum()),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _listed(values: np.ndarray) -> list[Any]:
    return [_number(one) if np.ndim(one) == 0 else _listed(one) for one in values]
