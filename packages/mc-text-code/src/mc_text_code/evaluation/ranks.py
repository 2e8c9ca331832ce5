"""Ranks of what was meant among all candidates, from blocks of scores: one way of counting for words, vectors and both.

Nothing here sorts all scores: a rank is a count of those that are higher. Candidates that score the same share their mean rank.

Legend: Q queries, C candidates, B queries of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_text_code.codesearch.config import RankingConfig
from mc_text_code.evaluation.retrieval import Retrieval

MISSING = -1
"""The answer of a query whose answer is not among the candidates: its reciprocal rank is 0."""


@dataclass(frozen=True)
class Ranks:
    """Where what was meant stands.

    Attributes:
        ahead: (Q,) int64, candidates that score higher; C where the answer is missing.
        tied: (Q,) int64, candidates that score the same, the right one among them.
        candidates: C.
    """

    ahead: np.ndarray
    tied: np.ndarray
    candidates: int

    def __len__(self) -> int:
        return len(self.ahead)

    @property
    def middle(self) -> np.ndarray:
        """(Q,) float64, the mean rank of those tied, from 1."""
        return self.ahead + (self.tied + 1) / 2

    def ties_against(self) -> Ranks:
        """The right one stands behind all that it is tied with."""
        return Ranks(self.ahead + self.tied - 1, np.ones_like(self.tied), self.candidates)

    def reciprocal(self, cutoff: int | None = None) -> np.ndarray:
        """(Q,) float64, 1 / rank; 0 where the answer is missing or beyond ``cutoff``.

        >>> Ranks(np.array([0, 3, 1500]), np.array([1, 1, 1]), 2000).reciprocal(1000).tolist()
        [1.0, 0.25, 0.0]
        """
        rank = self.middle
        gone = self.ahead >= self.candidates
        return np.where(gone | (rank > (cutoff or np.inf)), 0.0, 1 / rank)

    def recall(self, k: int) -> float:
        """The expected share of queries whose answer is among the first k, if those tied come in any order."""
        return float(np.clip((k - self.ahead) / self.tied, 0, 1).mean())

    def retrieval(self, *, cutoff: int | None = None, ks: Sequence[int] = (1, 5, 10), left_out: int = 0) -> Retrieval:
        """The usual figures of these ranks.

        Args:
            cutoff: see :meth:`reciprocal`.
            ks: for recall.
            left_out: see :class:`~mc_text_code.evaluation.retrieval.Retrieval`.

        Raises:
            ConfigError: a rank below 1.
        """
        if not ks or min(ks) < 1 or (cutoff is not None and cutoff < 1):
            raise ConfigError(f"ks={tuple(ks)}, cutoff={cutoff}: ranks count from 1")
        return Retrieval(
            mrr=float(self.reciprocal(cutoff).mean()),
            recall={k: self.recall(k) for k in ks},
            median_rank=float(np.median(self.middle)),
            queries=len(self),
            candidates=self.candidates,
            left_out=left_out,
        )

    @classmethod
    def joined(cls, parts: Sequence[Ranks]) -> Ranks:
        """Those of several blocks of queries, all among equally many candidates."""
        if not parts:
            raise DataError("no query was ranked")
        return cls(
            np.concatenate([part.ahead for part in parts]),
            np.concatenate([part.tied for part in parts]),
            parts[0].candidates,
        )


def ranks_of(scores: np.ndarray, answer: np.ndarray, *, tie: float = 0.0) -> Ranks:
    """The ranks of one block.

    Args:
        scores: (B, C), higher is closer.
        answer: (B,) what was meant, or :data:`MISSING`.
        tie: scores this close are equal.

    Raises:
        DataError: a score is NaN.

    >>> found = ranks_of(np.array([[0.9, 0.5, 0.5, 0.1]]), np.array([2]))
    >>> found.ahead.tolist(), found.tied.tolist(), found.middle.tolist()
    ([1], [2], [2.5])
    """
    if np.isnan(scores).any():
        raise DataError("a score is not a number (NaN); the encoder gave a vector that is not finite")
    count = scores.shape[1]
    missing = answer < 0
    right = scores[np.arange(len(scores)), np.where(missing, 0, answer)][:, None]
    ahead = (scores > right + tie).sum(axis=1)
    level = (scores >= right - tie).sum(axis=1)
    return Ranks(
        np.where(missing, count, ahead).astype(np.int64), np.where(missing, 1, level - ahead).astype(np.int64), count
    )


def rank_blocks(blocks: Iterable[tuple[slice, np.ndarray]], answer: np.ndarray, *, tie: float = 0.0) -> Ranks:
    """The ranks of all queries.

    Args:
        blocks: which queries, and their (B, C) scores, in order.
        answer: (Q,) as for :func:`ranks_of`.
        tie: likewise.
    """
    return Ranks.joined([ranks_of(scores, answer[rows], tie=tie) for rows, scores in blocks])


def fused_scores(
    lexical: np.ndarray,
    dense: np.ndarray,
    weights: np.ndarray,
    config: RankingConfig,
    *,
    depth: int,
) -> np.ndarray:
    """Reciprocal rank fusion of a block, as :func:`mc_text_code.codesearch.ranking.fuse` does it for one query.

    The two differ in one thing: here candidates that an arm scores the same share their mean rank, where a search takes them in
    the order of their numbers.

    Args:
        lexical: (B, C) BM25; what does not reach ``config.lexical_floor`` of the best counts for nothing.
        dense: (B, C) cosines.
        weights: (B,) of the words of each query.
        config: constant, floor, and weight of the vectors.
        depth: how many each arm hands over; more where the last of them are tied.

    Returns:
        (B, C) float64, 0 for what neither arm hands over.

    >>> config = RankingConfig()
    >>> found = fused_scores(np.array([[3.0, 2.0, 0.0]]), np.array([[0.1, 0.9, 0.5]]), np.ones(1), config, depth=2)
    >>> found.round(4).tolist()  # 1/61, then 1/62 + 1/61, then 1/62
    [[0.0164, 0.0325, 0.0161]]
    """
    fused = np.zeros(lexical.shape, dtype=np.float64)
    best = lexical.max(axis=1, initial=0.0)
    for scores, above, weight in (
        (lexical, config.lexical_floor * best, weights),
        (dense, np.full(len(dense), -np.inf), np.full(len(dense), config.dense_weight)),
    ):
        rows, columns, ranks = _handed_over(scores, above, depth)
        fused[rows, columns] += weight[rows] / (config.rrf_constant + ranks)
    return fused


def _handed_over(scores: np.ndarray, above: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and mean ranks of the best ``depth`` of each row that are higher than ``above``."""
    count = scores.shape[1]
    taken = scores > above[:, None]
    if depth < count:
        edge = np.partition(scores, count - depth, axis=1)[:, count - depth]
        taken &= scores >= edge[:, None]
    rows, columns = np.nonzero(taken)
    values = scores[rows, columns]
    order = np.lexsort((-values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    first = np.searchsorted(rows, np.arange(len(scores)))  # of each row
    place = np.arange(len(rows)) - first[rows] + 1
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (rows[1:] != rows[:-1]) | (values[1:] != values[:-1])
    group = np.cumsum(new) - 1
    mean = np.bincount(group, weights=place) / np.maximum(np.bincount(group), 1) if len(rows) else np.empty(0)
    return rows, columns, mean[group] if len(rows) else mean
