"""Does an encoder take sentences of like length for similar? Four statistics, to be read together.

Length is the number of words between white space; a pair is *near* when its lengths differ by at most 3, else *far*.

* rank correlation of cosine and gold score among near and among far pairs (table 1 of ESimCSE v1, arXiv:2109.04380, which does
  not say what its unit of length is);
* bias, the mean of cosine − gold score scaled to [0, 1], among near and among far pairs;
* gap, near bias − far bias, whose mean over tasks is reported;
* leak, a probe without labels: rank correlation of the cosine with −|difference in length| over random pairs of sentences that
  nobody paired. 0: length does not show; positive: sentences of like length look similar.

The first two differ between near and far pairs for every encoder, also for one blind to length, because the pairs themselves
differ. Compare encoders, not groups. The bias compares cosines with scores: it moves with how spread out an encoder's vectors are,
which has nothing to do with length. The gap is better there, the leak free of it.

Random pairs are drawn from all sentences at once. Where several sources are mixed whose sentences differ in length, as headlines
and captions do, sentences of one source are alike in topic and in length: such a mixture leaks for any encoder. ``leak_within``
draws both sentences from one source, where sources are known.

Which of these are ours: the unit of length, the gap and the leak. Legend: N sentences, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_core.random import derive_seed
from mc_text_code.data.sts import StsTask
from mc_text_code.evaluation.sts import selected, spearman
from mc_text_code.evaluation.vectors import CachedEncoder, Encode, Vectors, pair_cosines

NEAR = 3
"""Largest difference in words of a near pair."""
_STREAM = 0x1EAC


@dataclass(frozen=True)
class TaskBias:
    """One task; values are NaN where a group has too few pairs to say.

    Attributes:
        near_pairs, far_pairs: how many.
        near_spearman, far_spearman: ×100.
        near_bias, far_bias: mean of cosine − scaled gold.
        gap: near_bias − far_bias.
        split: which was used.
    """

    near_pairs: int
    far_pairs: int
    near_spearman: float
    far_spearman: float
    near_bias: float
    far_bias: float
    gap: float
    split: str


@dataclass(frozen=True)
class Leak:
    """What :func:`length_leak` returns.

    Attributes:
        value: rank correlation of cosine and −|difference in length|, from −1 to 1.
        pairs: how many were drawn.
    """

    value: float
    pairs: int


@dataclass(frozen=True)
class LengthBias:
    """All four statistics.

    Attributes:
        tasks: by task; empty without labelled pairs.
        gap: mean of the tasks' gaps; NaN without.
        leak: over pairs of all sentences.
        leak_within: over pairs within one source; None where sources are not known.
    """

    tasks: dict[str, TaskBias]
    gap: float
    leak: Leak
    leak_within: Leak | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def columns(self) -> dict[str, float]:
        """The summary, for tables: correlations and biases are means over tasks."""
        found: dict[str, float] = {}
        if self.tasks:
            for name in ("near_spearman", "far_spearman", "near_bias", "far_bias"):
                values = np.array([getattr(task, name) for task in self.tasks.values()])
                found[name.replace("_", " ")] = _mean(values)
            found["gap"] = self.gap
        found["length leak"] = self.leak.value
        if self.leak_within is not None:
            found["length leak within"] = self.leak_within.value
        return found


def word_counts(texts: Sequence[str]) -> np.ndarray:
    """(N,) int64, words between white space.

    >>> word_counts(["A man  plays.", ""])
    array([3, 0])
    """
    return np.fromiter((len(text.split()) for text in texts), np.int64, len(texts))


def evaluate_length_bias(
    encode: Encode,
    tasks: Mapping[str, StsTask] | None = None,
    *,
    texts: Sequence[str] | None = None,
    sources: Sequence[Any] | None = None,
    split: str | None = None,
    random_pairs: int = 50_000,
    seed: int = 0,
) -> LengthBias:
    """The statistics above.

    Args:
        encode: sentences → vectors.
        tasks: pairs with gold scores, from :func:`mc_text_code.data.sts.open_sts`; without, only the leak is measured.
        texts: sentences to draw random pairs from; default: those of the tasks, whose subsets are then the sources.
        sources: where each of ``texts`` comes from (corpus, document, module …).
        split: of the tasks, as in :func:`mc_text_code.evaluation.sts.evaluate_sts`.
        random_pairs: how many to draw.
        seed: of the draws.

    Raises:
        DataError: neither tasks nor texts, or fewer than three different texts.
    """
    if tasks is None and texts is None:
        raise DataError("length bias needs tasks with gold scores, or sentences to draw random pairs from")
    encoder = CachedEncoder(encode)
    chosen = selected(tasks, split) if tasks else {}
    related: set[tuple[str, str]] = set()
    drawn: dict[str, Any] = {}
    found = {}
    everything = dict.fromkeys(text for _, pairs in chosen.values() for text in pairs.sentences())
    if everything:
        encoder(list(everything))  # in one go: an encoder sorts by length
    for name, (part, pairs) in chosen.items():
        task = tasks[name] if tasks else None
        assert task is not None
        found[name] = _task_bias(encoder, pairs.sentence1, pairs.sentence2, task.scaled(pairs.gold), part)
        if texts is None:
            related.update(zip(pairs.sentence1, pairs.sentence2, strict=True))
            for one, other, subset in zip(pairs.sentence1, pairs.sentence2, pairs.subset.tolist(), strict=True):
                drawn.setdefault(one, (name, subset))
                drawn.setdefault(other, (name, subset))
    if texts is None:
        texts, sources = list(drawn), list(drawn.values())
    leak = length_leak(encoder, texts, pairs=random_pairs, related=related, seed=seed)
    within = None
    if sources is not None and len(set(sources)) > 1:
        within = length_leak(encoder, texts, sources=sources, pairs=random_pairs, related=related, seed=seed)
    return LengthBias(found, _mean(np.array([task.gap for task in found.values()])), leak, within)


def length_leak(
    encode: Encode,
    texts: Sequence[str],
    *,
    sources: Sequence[Any] | None = None,
    pairs: int = 50_000,
    related: set[tuple[str, str]] | frozenset[tuple[str, str]] = frozenset(),
    seed: int = 0,
) -> Leak:
    """Rank correlation of cosine and −|difference in length| over random pairs of different sentences.

    Args:
        encode: sentences → vectors.
        texts: N sentences; equal ones count once.
        sources: the source of each; both sentences of a pair are then of one source.
        pairs: P, at least 2; every pair when there are not as many.
        related: pairs that are left out, in either order.
        seed: of the draws: the same seed and texts, the same pairs.

    Raises:
        DataError: fewer than three different texts, or no source with two.

    >>> texts = ["b " * n + "a" for n in range(40)]
    >>> by_length = lambda texts: np.array([[1.0, 0.02 * len(text.split())] for text in texts])
    >>> length_leak(by_length, texts).value > 0.9
    True
    """
    if pairs < 2:
        raise ConfigError(f"random_pairs={pairs}: draw at least 2, better 20,000 or more")
    row = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    unique = list(row)
    if len(unique) < 3:
        raise DataError(f"{len(unique)} different sentences are too few to draw random pairs from")
    group = np.zeros(len(unique), dtype=np.int64)
    if sources is not None:
        if len(sources) != len(texts):
            raise DataError(f"{len(sources)} sources for {len(texts)} sentences; one for each is needed")
        number = {source: place for place, source in enumerate(dict.fromkeys(sources))}
        for text, source in reversed(list(zip(texts, sources, strict=True))):
            group[row[text]] = number[source]  # of its first place
    known = [(row[a], row[b]) for a, b in related if a in row and b in row]
    first, second = _random_pairs(group, known, pairs, seed)
    vectors: Vectors = encode(unique) if isinstance(encode, CachedEncoder) else CachedEncoder(encode)(unique)
    cosines, _ = pair_cosines(vectors, first, second)
    words = word_counts(unique)
    return Leak(spearman(cosines, -np.abs(words[first] - words[second])), len(first))


def _task_bias(
    encoder: CachedEncoder, sentence1: Sequence[str], sentence2: Sequence[str], gold: np.ndarray, split: str
) -> TaskBias:
    texts = list(dict.fromkeys((*sentence1, *sentence2)))
    row = {text: number for number, text in enumerate(texts)}
    first, second = (np.array([row[text] for text in side]) for side in (sentence1, sentence2))
    cosines, _ = pair_cosines(encoder(texts), first, second)
    words = word_counts(texts)
    near = np.abs(words[first] - words[second]) <= NEAR
    bias = {side: _mean(cosines[mask] - gold[mask]) for side, mask in (("near", near), ("far", ~near))}
    return TaskBias(
        near_pairs=int(near.sum()),
        far_pairs=int((~near).sum()),
        near_spearman=100 * spearman(cosines[near], gold[near]),
        far_spearman=100 * spearman(cosines[~near], gold[~near]),
        near_bias=bias["near"],
        far_bias=bias["far"],
        gap=bias["near"] - bias["far"],
        split=split,
    )


def _random_pairs(
    group: np.ndarray, known: Sequence[tuple[int, int]], pairs: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Different pairs i < j of one group, none of them known, evenly among all such pairs."""
    order = np.argsort(group, kind="stable")
    size = np.bincount(group)
    begin = np.cumsum(size) - size
    possible = size.astype(np.int64) * (size - 1) // 2
    total = int(possible.sum())
    if not total:
        raise DataError("no source has two different sentences; no pairs can be drawn within one")
    ends = np.cumsum(possible)
    count = len(group)
    barred = np.array(sorted({min(a, b) * count + max(a, b) for a, b in known if a != b}), dtype=np.int64)

    def numbered(places: np.ndarray) -> np.ndarray:
        """Pair number → i · N + j of its two sentences."""
        which = np.searchsorted(ends, places, side="right")
        place = places - (ends[which] - possible[which])
        # of the pairs (a, b), a < b, in the order (0,1), (0,2), (1,2), (0,3) …; the root is exact enough up to 2⁵⁰ pairs
        b = ((1 + np.sqrt(1 + 8 * place.astype(np.float64))) / 2).astype(np.int64)
        a = place - b * (b - 1) // 2
        i, j = order[begin[which] + a], order[begin[which] + b]
        key = np.minimum(i, j) * count + np.maximum(i, j)
        return key[~np.isin(key, barred)]

    if total <= 2 * pairs + len(barred):
        key = np.concatenate(list(_numbered_blocks(numbered, total)))
        if len(key) > pairs:
            key = np.sort(_rng(seed).choice(key, pairs, replace=False))
    else:
        rng, key = _rng(seed), np.empty(0, dtype=np.int64)
        while len(key) < pairs:
            more = numbered(rng.integers(0, total, pairs))
            _, at = np.unique(np.concatenate([key, more]), return_index=True)
            key = np.concatenate([key, more])[np.sort(at)]
        key = key[:pairs]
    if not len(key):
        raise DataError("every pair of these sentences is a labelled one; no unrelated pairs can be drawn")
    return key // count, key % count


def _numbered_blocks(numbered: Any, total: int) -> Iterator[np.ndarray]:
    step = 1 << 20
    for start in range(0, total, step):
        yield numbered(np.arange(start, min(start + step, total), dtype=np.int64))


def _rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(derive_seed(seed, _STREAM)))


def _mean(values: np.ndarray) -> float:
    """Without NaN; NaN where nothing is left."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else math.nan
