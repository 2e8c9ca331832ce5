"""Semantic textual similarity, protocol "all": one rank correlation over everything a year's task consists of.

Cosine of the two sentences against the gold score; the subsets of STS 2012 to 2016 are put one after another and ranked
together; STS-B and SICK-R by their test split; no regressor; ×100; the average of the seven is the headline. The means of the
subsets' own correlations ("mean", "wmean") are other numbers: SimCSE-BERT-base has 76.25 here and 76.46 under "wmean".

Sources: SimCSE (Gao et al. 2021, arXiv:2104.08821), appendix B and the SentEval fork in its repository (Conneau & Kiela 2018);
ESimCSE (Wu et al. 2021, arXiv:2109.04380), tables 3 and 5. Where the cosine is undefined it counts as 0, as there.

Legend: N pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from mc_core.errors import DataError
from mc_core.evaluation import BootstrapInterval, bootstrap_interval
from mc_text_code.data.sts import OFFICIAL, StsPairs, StsTask, difference_from_official
from mc_text_code.evaluation.vectors import CachedEncoder, Encode, pair_cosines

OFFICIAL_AVERAGE = "average"


@dataclass(frozen=True)
class StsScore:
    """One task.

    Attributes:
        spearman: over all pairs at once, ×100; NaN for an encoder to which all pairs are alike.
        pairs: how many.
        split: which.
        by_subset: the same within each subset; not what papers report.
        difference: what tells the pairs from the official test set, in words; empty where nothing does.
        dropped: pairs without a gold score.
        undefined: pairs whose cosine was not defined and counted as 0.
        interval: percentile interval over pairs, where asked for.
        gold: (N,) scores as given.
        cosines: (N,) of the encoder.
    """

    spearman: float
    pairs: int
    split: str
    by_subset: dict[str, float]
    difference: str
    dropped: int
    undefined: int
    interval: BootstrapInterval | None = None
    gold: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    cosines: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the pairs."""
        found: dict[str, Any] = {"spearman": self.spearman, "pairs": self.pairs, "split": self.split}
        if self.interval is not None:
            found["interval"] = [self.interval.low, self.interval.high]
        if self.by_subset:
            found["by_subset"] = self.by_subset
        for name in ("difference", "dropped", "undefined"):
            if value := getattr(self, name):
                found[name] = value
        return found


@dataclass(frozen=True)
class StsResult:
    """All tasks.

    Attributes:
        scores: by task.
        average: plain mean of the tasks that are there.
        average_name: ``"average"`` only for the whole of the seven official test sets; otherwise what it is an average of.
    """

    scores: dict[str, StsScore]
    average: float
    average_name: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
            "average": self.average,
            "average_name": self.average_name,
        }

    def columns(self) -> dict[str, float]:
        """Task → score, and the average, for tables; it is called "average" only where it is the official one."""
        average = OFFICIAL_AVERAGE if self.average_name == OFFICIAL_AVERAGE else f"average of these {len(self.scores)}"
        return {name: score.spearman for name, score in self.scores.items()} | {average: self.average}


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, equal values sharing their mean rank; NaN where one side is constant.

    >>> spearman(np.array([1.0, 2, 2, 4]), np.array([10.0, 30, 20, 40])).__round__(4)
    0.9487
    """
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(stats.spearmanr(x, y).statistic)


def evaluate_sts(
    encode: Encode, tasks: Mapping[str, StsTask], *, split: str | None = None, resamples: int = 0, seed: int = 0
) -> StsResult:
    """Rank correlation of cosines and gold scores for each task.

    Args:
        encode: sentences → vectors, in evaluation mode and without a limit of length other than the model's.
        tasks: from :func:`mc_text_code.data.sts.open_sts`.
        split: of every task that has it; default: ``test`` where there is one, see
            :meth:`~mc_text_code.data.sts.StsTask.select`.
        resamples: for a 95 % interval over pairs around each score; 0: none.
        seed: of the resamples.

    Raises:
        DataError: no tasks, or none with this split.

    >>> from mc_text_code.data.sts import StsPairs
    >>> pairs = StsPairs(("a", "a", "a"), ("a", "ab", "b"), np.array([5.0, 3, 0]), np.array(["x"] * 3))
    >>> letters = lambda texts: np.array([[t.count("a"), t.count("b")] for t in texts], dtype=float)
    >>> result = evaluate_sts(letters, {"mine": StsTask("mine", {"dev": pairs}, (0, 5))})
    >>> result.columns()
    {'mine': 100.0, 'average of these 1': 100.0}
    >>> result.average_name
    'average of mine (dev)'
    """
    chosen = selected(tasks, split)
    encoder = CachedEncoder(encode)
    texts = list(dict.fromkeys(text for _, pairs in chosen.values() for text in pairs.sentences()))
    vectors = encoder(texts)
    row = {text: number for number, text in enumerate(texts)}
    scores = {}
    for name, (part, pairs) in chosen.items():
        first, second = (
            np.array([row[text] for text in side], dtype=np.int64) for side in (pairs.sentence1, pairs.sentence2)
        )
        cosines, undefined = pair_cosines(vectors, first, second)
        subsets = pairs.subsets()
        within = {s: 100 * spearman(cosines[pairs.subset == s], pairs.gold[pairs.subset == s]) for s in subsets}
        interval = None
        if resamples:
            interval = bootstrap_interval(_times_100, pairs.gold, cosines, n=resamples, seed=seed)
        scores[name] = StsScore(
            spearman=_times_100(pairs.gold, cosines),
            pairs=len(pairs),
            split=part,
            by_subset=within if len(subsets) > 1 else {},
            difference=difference_from_official(name, part, pairs),
            dropped=pairs.dropped,
            undefined=undefined,
            interval=interval,
            gold=pairs.gold,
            cosines=cosines,
        )
    average = float(np.mean([score.spearman for score in scores.values()]))
    return StsResult(scores, average, _name_of_average(scores))


def difference_in_sts(
    first: StsResult, second: StsResult, *, resamples: int = 1000, seed: int = 0
) -> dict[str, BootstrapInterval]:
    """Score of ``first`` minus score of ``second`` on the same pairs, with a paired interval for each task.

    The interval holds for these two encoders; how much training differs from seed to seed, only several seeds tell.

    Raises:
        DataError: the two were not evaluated on the same pairs.
    """
    found = {}
    for name in first.scores:
        one, other = first.scores[name], second.scores.get(name)
        if other is None or not np.array_equal(one.gold, other.gold):
            raise DataError(f"{name} was not evaluated on the same pairs for both encoders")
        both = np.stack([one.cosines, other.cosines], axis=1)
        found[name] = bootstrap_interval(_difference, one.gold, both, n=resamples, seed=seed)
    return found


class StsEvaluator:
    """Scores of an encoder while it is trained, for ``evaluators`` of :func:`mc_core.fit`: logged as ``eval/sts/<task>``.

    Args:
        tasks: from :func:`mc_text_code.data.sts.open_sts`.
        split: ``dev`` is what checkpoints may be chosen by.
    """

    name = "sts"

    def __init__(self, tasks: Mapping[str, StsTask], *, split: str | None = "dev") -> None:
        selected(tasks, split)  # what is not there is missed now, not in the middle of a run
        self.tasks, self.split = tasks, split

    def __call__(self, method: Any) -> dict[str, float]:
        """Task → score."""
        return evaluate_sts(method.encoder.encode, self.tasks, split=self.split).columns()


def selected(tasks: Mapping[str, StsTask], split: str | None = None) -> dict[str, tuple[str, StsPairs]]:
    """Task → name of the split and its pairs; with ``split``, of the tasks that have it.

    Raises:
        DataError: no tasks, or none with this split.
    """
    if not tasks:
        raise DataError("there are no STS tasks to evaluate on")
    having = {n: t for n, t in tasks.items() if split in (None, "all") or split in t.splits}
    if not having:
        raise DataError(f"none of {', '.join(tasks)} has a split {split!r}")
    return {name: task.select(split) for name, task in having.items()}


def _times_100(gold: np.ndarray, cosines: np.ndarray) -> float:
    return 100 * spearman(cosines, gold)


def _difference(gold: np.ndarray, both: np.ndarray) -> float:
    return _times_100(gold, both[:, 0]) - _times_100(gold, both[:, 1])


def _name_of_average(scores: Mapping[str, StsScore]) -> str:
    if set(scores) == set(OFFICIAL) and not any(score.difference for score in scores.values()):
        return OFFICIAL_AVERAGE
    parts = {score.split for score in scores.values()}
    named = [name if len(parts) == 1 else f"{name} {score.split}" for name, score in scores.items()]
    same = f" ({parts.pop()})" if len(parts) == 1 else ""
    incomplete = any(score.difference and score.split == "test" and name in OFFICIAL for name, score in scores.items())
    return f"average of {', '.join(named)}{same}{', incomplete' if incomplete else ''}"
