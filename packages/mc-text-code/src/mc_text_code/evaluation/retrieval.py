"""Can a sentence be found again: from its first half, with words repeated, by a rewrite?

The rank of the right sentence among all candidates by cosine: mean reciprocal rank (MRR) and recall at k. Candidates that are
as close as the right one, to within rounding, share their mean rank, so that an encoder to which all is alike gains nothing.

None of the three is a measure of how good an encoder is: training for similarity may well lower the retrieval by halves, whose
right answer is decided by shared words; BM25 belongs beside each. Sources: the first two are ours (ESimCSE has no such test);
rewrites as in TurkCorpus (Xu et al. 2016) and ASSET (Alva-Manchego et al. 2020).

Legend: Q queries, R candidates, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mc_core.errors import ConfigError, DataError
from mc_core.random import uniform
from mc_text_code.evaluation.vectors import Encode, encode_texts, normalized, similarity_blocks

TIE = 1e-6
"""Cosines closer than this are equal: two products of float32 vectors that should agree differ by less."""
_REPEAT_STREAM = 0x4E9

Blocks = Iterable[tuple[slice, np.ndarray]]
Scorer = Callable[[Sequence[str], Sequence[str]], Blocks]
"""(queries, candidates) → which queries, and their (…, R) scores, a block at a time."""


@dataclass(frozen=True)
class Retrieval:
    """How high the right sentence is ranked.

    Attributes:
        mrr: mean of 1 / rank.
        recall: by k, the expected share of queries whose right sentence is among the first k.
        median_rank: 1 is first.
        queries: how many.
        candidates: among how many.
        left_out: sentences that gave no query (too short, or as they were).
    """

    mrr: float
    recall: dict[int, float]
    median_rank: float
    queries: int
    candidates: int
    left_out: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Queries:
    """Queries and where their answers lie.

    Attributes:
        queries: Q texts.
        candidates: R different texts.
        answer: (Q,) the right candidate of each query.
        left_out: sentences that gave no query.
    """

    queries: tuple[str, ...]
    candidates: tuple[str, ...]
    answer: np.ndarray
    left_out: int = 0


def half_queries(texts: Sequence[str], *, fewest: int = 4) -> Queries:
    """Each sentence asked for by the first half of its words, ⌊n / 2⌋ of n.

    Args:
        texts: sentences; equal ones count once.
        fewest: words that a sentence must have.

    >>> half_queries(["the cat sat on mats", "too short"]).queries
    ('the cat',)
    """
    unique = list(dict.fromkeys(texts))
    words = [text.split() for text in unique]
    long = [row for row, found in enumerate(words) if len(found) >= fewest]
    queries = tuple(" ".join(words[row][: len(words[row]) // 2]) for row in long)
    return Queries(queries, tuple(unique), np.array(long, dtype=np.int64), len(unique) - len(long))


def repeated_queries(texts: Sequence[str], *, rate: float = 0.3, seed: int = 0) -> Queries:
    """Each sentence asked for by itself with a share of its words doubled in place.

    Args:
        texts: sentences; equal ones count once.
        rate: share of the words, rounded, at least one of a sentence.
        seed: of the choice, which depends on nothing else but the sentence's place.

    >>> repeated_queries(["one two three"], rate=1.0).queries
    ('one one two two three three',)
    """
    if not 0 < rate <= 1:
        raise ConfigError(f"rate={rate}: give the share of words to repeat, above 0 and at most 1")
    unique = list(dict.fromkeys(texts))
    words = [text.split() for text in unique]
    some = [row for row, found in enumerate(words) if found]
    longest = max((len(found) for found in words), default=0)
    queries = []
    step = max(1, (1 << 22) // max(1, longest))
    for start in range(0, len(some), step):
        rows = some[start : start + step]
        order = uniform(seed, 0, torch.tensor(rows), longest, stream=_REPEAT_STREAM).numpy()
        for row, keys in zip(rows, order, strict=True):
            found = words[row]
            count = max(1, round(rate * len(found)))
            twice = set(np.argsort(keys[: len(found)], kind="stable")[:count].tolist())
            queries.append(" ".join(f"{word} {word}" if place in twice else word for place, word in enumerate(found)))
    return Queries(tuple(queries), tuple(unique), np.array(some, dtype=np.int64), len(unique) - len(some))


def rewrite_queries(sentences: Sequence[str], rewrites: Sequence[Sequence[str]]) -> Queries:
    """Each sentence asked for by what people rewrote it to; rewrites equal to a candidate are left out.

    Args:
        sentences: the candidates; equal ones count once, with the rewrites of all.
        rewrites: of each sentence.
    """
    if len(sentences) != len(rewrites):
        raise DataError(f"{len(rewrites)} lists of rewrites for {len(sentences)} sentences; one for each is needed")
    row = {text: number for number, text in enumerate(dict.fromkeys(sentences))}
    pairs = [(text, row[sentence]) for sentence, texts in zip(sentences, rewrites, strict=True) for text in texts]
    kept = list(dict.fromkeys((text, answer) for text, answer in pairs if text.strip() and text not in row))
    answer = np.array([answer for _, answer in kept], dtype=np.int64)
    return Queries(tuple(text for text, _ in kept), tuple(row), answer, len(pairs) - len(kept))


def evaluate_retrieval(encode: Encode, asked: Queries, *, ks: Sequence[int] = (1, 5, 10)) -> Retrieval:
    """Ranks by cosine.

    Args:
        encode: sentences → vectors.
        asked: from :func:`half_queries`, :func:`repeated_queries` or :func:`rewrite_queries`.
        ks: for recall.

    Raises:
        DataError: no query is left.

    >>> letters = lambda texts: np.array([[t.count(c) for c in "abc"] for t in texts], dtype=float)
    >>> evaluate_retrieval(letters, Queries(("a", "b"), ("aab", "bbc", "c"), np.array([0, 1])), ks=(1,)).mrr
    1.0
    """

    def score(queries: Sequence[str], candidates: Sequence[str]) -> Iterator[tuple[slice, np.ndarray]]:
        texts = list(dict.fromkeys((*candidates, *queries)))
        vectors = normalized(encode_texts(encode, texts))
        row = {text: number for number, text in enumerate(texts)}
        wanted = [row[text] for text in queries]
        yield from similarity_blocks(vectors[wanted], vectors[: len(candidates)])

    return retrieval_by_scores(score, asked, ks=ks, tie=TIE)


def retrieval_by_scores(
    scorer: Scorer, asked: Queries, *, ks: Sequence[int] = (1, 5, 10), tie: float = 0.0
) -> Retrieval:
    """Ranks by any score, for baselines such as :func:`mc_text_code.evaluation.baselines.bm25_scores`.

    Args:
        scorer: gives the scores of all candidates for blocks of queries, in order; larger is closer.
        asked: the queries.
        ks: for recall.
        tie: scores this close are equal.

    Raises:
        DataError: no query is left, or a score is NaN.
    """
    if not len(asked.queries) or not len(asked.candidates):
        raise DataError(f"no sentence gave a query ({asked.left_out} were left out); give longer ones, or more")
    if not ks or min(ks) < 1:
        raise ConfigError(f"ks={tuple(ks)}: recall needs one or more ranks of 1 and above")
    before, level = [], []
    for rows, score in scorer(asked.queries, asked.candidates):
        right = score[np.arange(len(score)), asked.answer[rows]][:, None]
        if np.isnan(score).any():
            raise DataError(f"the scores of query {rows.start + int(np.isnan(score).any(1).argmax())} contain NaN")
        before.append((score > right + tie).sum(axis=1))
        level.append((score >= right - tie).sum(axis=1))
    ahead = np.concatenate(before).astype(np.int64)
    tied = np.concatenate(level).astype(np.int64) - ahead  # the right one among them
    rank = ahead + (tied + 1) / 2
    return Retrieval(
        mrr=float((1 / rank).mean()),
        recall={k: float(np.clip((k - ahead) / tied, 0, 1).mean()) for k in ks},
        median_rank=float(np.median(rank)),
        queries=len(rank),
        candidates=len(asked.candidates),
        left_out=asked.left_out,
    )
