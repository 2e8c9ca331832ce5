"""Is the nearest sentence one of the same group: module, document, topic? A check that needs no scored pairs.

Ours. Where groups are Python modules it asks whether what is about one thing lies together; shared words answer much of it, so BM25
belongs beside each figure.

Legend: N sentences, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mc_core.errors import DataError
from mc_text_code.evaluation.retrieval import TIE, Scorer
from mc_text_code.evaluation.vectors import Encode, encode_texts, normalized, similarity_blocks


@dataclass(frozen=True)
class GroupAgreement:
    """What :func:`group_agreement` returns.

    Attributes:
        top1: expected share of sentences whose nearest other sentence is of their group; equally near ones are drawn from.
        chance: the same for a neighbour drawn at random.
        sentences: how many had another of their group.
    """

    top1: float
    chance: float
    sentences: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def group_agreement(encode: Encode, texts: Sequence[str], groups: Sequence[Any]) -> GroupAgreement:
    """By cosine.

    Args:
        encode: sentences → (N, D) vectors.
        texts: N different sentences.
        groups: N, what each belongs to; sentences that are alone in theirs are not asked for, but may be found.

    Raises:
        DataError: no group has two sentences.

    >>> letters = lambda texts: np.array([[t.count("a"), t.count("b")] for t in texts], dtype=float)
    >>> group_agreement(letters, ["a", "aab", "b", "bb"], [0, 0, 1, 1])
    GroupAgreement(top1=1.0, chance=0.3333333333333333, sentences=4)
    """

    def score(queries: Sequence[str], candidates: Sequence[str]) -> Iterator[tuple[slice, np.ndarray]]:
        vectors = normalized(encode_texts(encode, candidates))
        yield from similarity_blocks(vectors, vectors)

    return group_agreement_by_scores(score, texts, groups, tie=TIE)


def group_agreement_by_scores(
    scorer: Scorer, texts: Sequence[str], groups: Sequence[Any], *, tie: float = 0.0
) -> GroupAgreement:
    """By any score, as for :func:`mc_text_code.evaluation.retrieval.retrieval_by_scores`."""
    _, group_N = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(group_N) != len(texts):
        raise DataError(f"{len(group_N)} groups for {len(texts)} sentences; one for each is needed")
    size_N = np.bincount(group_N)[group_N]
    asked_N = size_N > 1
    if not asked_N.any():
        raise DataError("no group has two sentences: there is nothing to find")
    found = []
    for rows, scores in scorer(texts, texts):
        scores = np.array(scores, dtype=np.float64)
        here = np.arange(rows.start, rows.start + len(scores))
        scores[np.arange(len(scores)), here] = -np.inf
        nearest = scores >= scores.max(axis=1, keepdims=True) - tie
        same = group_N[None, :] == group_N[here][:, None]
        found.append((nearest & same).sum(axis=1) / nearest.sum(axis=1))
    top1_N = np.concatenate(found)
    chance = (size_N[asked_N] - 1) / (len(texts) - 1)
    return GroupAgreement(float(top1_N[asked_N].mean()), float(chance.mean()), int(asked_N.sum()))
