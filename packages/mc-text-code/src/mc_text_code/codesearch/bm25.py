"""Okapi BM25 over the word counts of chunks, computed at query time from the counts themselves.

Nothing but counts is stored, so a file that changes changes its own counts and nothing else, and the scores of the whole are
exact at any moment: the same as of an index made anew.

Legend: N chunks, E pairs of a chunk and a word in it, Q different words of a query.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

K1, B = 1.2, 0.75


@dataclass(frozen=True)
class Postings:
    """Word counts of N chunks.

    Attributes:
        lengths: (N,) words of each chunk, repeated ones too.
        chunks: (E,) int32, ascending.
        terms: (E,) uint32, number of a word.
        counts: (E,) uint16, how often it is in the chunk.
    """

    lengths: np.ndarray
    chunks: np.ndarray
    terms: np.ndarray
    counts: np.ndarray


def bm25_scores(postings: Postings, query: Mapping[int, int], *, k1: float = K1, b: float = B) -> np.ndarray:
    """Scores of all chunks, as Lucene and bm25s (``method="lucene"``) define them.

    Σ over the query's words of ln(1 + (N − n + ½)/(n + ½)) · f / (f + k1·(1 − b + b·length/mean length)), n being the chunks that
    have the word and f its count in this one. A word that stands twice in the query counts twice.

    Args:
        postings: of N chunks.
        query: number of a word → how often it is in the query.
        k1: how fast repeated words saturate.
        b: how much long chunks are held back.

    Returns:
        (N,) float64, 0 where no word is found.

    >>> one = np.ones(3, np.uint16)
    >>> postings = Postings(np.array([2, 1]), np.array([0, 0, 1]), np.array([7, 8, 8], np.uint32), one)
    >>> bm25_scores(postings, {7: 1}).round(3).tolist()
    [0.277, 0.0]
    """
    total = len(postings.lengths)
    if not total or not query:
        return np.zeros(total)
    place, term, count = _found(postings, query)
    lengths = postings.lengths.astype(np.float64)
    found = np.bincount(term, minlength=len(query))
    idf = np.log1p((total - found + 0.5) / (found + 0.5)) * np.array(list(query.values()), dtype=np.float64)
    norm = k1 * (1 - b + b * lengths[place] / max(lengths.mean(), 1e-12))
    return np.bincount(place, weights=idf[term] * count / (count + norm), minlength=total)


def _found(postings: Postings, query: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the query's words are: chunk, which word of the query, count."""
    slots = np.zeros(max(int(postings.terms.max(initial=0)), max(query)) + 1, dtype=np.uint16)
    slots[list(query)] = np.arange(1, len(query) + 1, dtype=np.uint16)
    slot = slots[postings.terms]
    where = np.flatnonzero(slot)
    return postings.chunks[where], slot[where].astype(np.int64) - 1, postings.counts[where].astype(np.float64)


def best(scores: np.ndarray, count: int, *, above: float = 0.0) -> np.ndarray:
    """Numbers of the highest scores, the highest first; equal ones in the order of their numbers.

    Args:
        scores: (N,).
        count: most of them.
        above: only scores higher than this.

    >>> best(np.array([1.0, 3.0, 0.0, 3.0, 2.0]), 3).tolist()
    [1, 3, 4]
    """
    where = np.flatnonzero(scores > above)
    if len(where) > count:
        kept = scores[where]
        edge = np.partition(kept, len(kept) - count)[len(kept) - count]
        higher, equal = where[kept > edge], where[kept == edge]
        where = np.concatenate([higher, equal[: count - len(higher)]])
    return where[np.lexsort((where, -scores[where]))]
