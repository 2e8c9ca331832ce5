"""Metrics, and how sure one can be of them: bootstrap over groups such as people, paired differences, many targets at once.

A metric takes weights for its rows and returns one number per set of weights, so that a thousand resamples are one call: a
resample of groups gives each row the number of times its group was drawn.

Legend: N rows, B sets of weights, G groups (participants, patients).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError, closest
from mc_core.evaluation import BootstrapInterval
from mc_core.random import derive_seed

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(truth (N,), score (N,), weight (B, N)) → (B,); NaN where undefined."""

PARTIAL_LIMIT = 0.1
"""False-positive rate up to which the partial area is taken."""

_STREAM = 0xB007  # the same resamples as mc_core.evaluation.bootstrap_interval
_BLOCK = 1 << 22  # weights at a time


def mae(truth: np.ndarray, score: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mean absolute error, in units of the target."""
    return weight @ np.abs(truth - score) / weight.sum(axis=1)


def r2(truth: np.ndarray, score: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Coefficient of determination: 1 is perfect, 0 the mean of the test rows, negative worse."""
    total = weight.sum(axis=1)
    centred = truth - truth.mean()
    spread = weight @ centred**2 - (weight @ centred) ** 2 / total
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 1e-12 * total, 1 - weight @ (truth - score) ** 2 / spread, np.nan)


def auroc(truth: np.ndarray, score: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: the chance that a positive scores above a negative; ties count half."""
    false, true = _curve(truth, score, weight)
    return (np.diff(false, axis=1) * (true[:, 1:] + true[:, :-1]) / 2).sum(axis=1)


def partial_auroc(truth: np.ndarray, score: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Area under the ROC curve up to 10 % false positives, divided by 0.1: the mean sensitivity there; chance is 0.05.

    Dividing the area is our choice. McClish's version, which scikit-learn returns for
    ``max_fpr=0.1``, is ½ (1 + (0.1·value − 0.005) / 0.095).
    """
    false, true = _curve(truth, score, weight)
    left, right = false[:, :-1].clip(max=PARTIAL_LIMIT), false[:, 1:].clip(max=PARTIAL_LIMIT)
    rise = np.diff(true, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(right > left, (right - left) / np.diff(false, axis=1), 0)  # of the last step, what is inside
    return ((right - left) * (true[:, :-1] + share * rise / 2)).sum(axis=1) / PARTIAL_LIMIT


def auprc(truth: np.ndarray, score: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Average precision: precision at each threshold, weighted by the recall gained there; chance is the share of positives."""
    positive, negative = _counts(truth, score, weight)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(positive + negative > 0, positive / (positive + negative), 0)
        gained = np.diff(positive, axis=1, prepend=0) / positive[:, -1:]
        return (precision * gained).sum(axis=1)


METRICS: dict[str, Metric] = {
    "mae": mae,
    "r2": r2,
    "auroc": auroc,
    "partial_auroc": partial_auroc,
    "auprc": auprc,
}
"""Metrics by name."""


@dataclass(frozen=True)
class Difference:
    """How two scores of the same rows differ in a metric.

    Attributes:
        metric: name.
        value: metric of the first minus that of the second.
        low: lower end of the interval.
        high: upper end of the interval.
        p_value: two-sided, from the same resamples: how often the difference has the other sign, doubled.
    """

    metric: str
    value: float
    low: float
    high: float
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def metric(name: str) -> Metric:
    """The metric called ``name``.

    Raises:
        ConfigError: there is none.
    """
    if name not in METRICS:
        raise ConfigError(f"metric {name!r} is unknown; closest: {closest(name, METRICS)}")
    return METRICS[name]


def bootstrap_metrics(
    truth: np.ndarray,
    score: np.ndarray,
    groups: np.ndarray | None,
    names: Sequence[str],
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, BootstrapInterval]:
    """Metrics with percentile intervals, all from the same resamples of groups.

    Equal, up to rounding, to :func:`mc_core.evaluation.bootstrap_interval` with these ``groups`` and ``seed``.

    Args:
        truth: (N,) numbers; 0 and 1 for the metrics of classification.
        score: (N,) numbers.
        groups: (N,) the group of each row; None resamples rows, which is far too sure where a person has several.
        names: of :data:`METRICS`.
        draws: resamples.
        level: of the interval.
        seed: of the resamples.

    Raises:
        DataError: lengths differ, no rows, or a metric that is undefined on the rows themselves.

    >>> y = np.array([0.0, 0, 0, 1, 1, 1])
    >>> found = bootstrap_metrics(y, y + 1, np.arange(6), ["auroc"], draws=100)["auroc"]
    >>> found.value, found.low, found.high
    (1.0, 1.0, 1.0)
    """
    truth, score = _rows(truth, score)
    group = _groups(groups, len(truth))
    found = {}
    for name in names:
        value = _value(name, truth, score)
        sampled = resampled_values(metric(name), truth, [score], group, draws, level, seed)[0]
        kept = sampled[~np.isnan(sampled)]
        if not len(kept):
            raise DataError(f"{name} is undefined on all {draws} resamples of {int(group.max()) + 1} groups")
        low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
        found[name] = BootstrapInterval(value, float(low), float(high), len(kept), draws - len(kept))
    return found


def paired_difference(
    name: str,
    truth: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    groups: np.ndarray | None,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Metric ``name`` of ``first`` minus that of ``second``, both on the same resamples: much sharper than two intervals.

    Args:
        name: of :data:`METRICS`.
        truth: (N,) numbers.
        first: (N,) scores.
        second: (N,) scores of the same rows.
        groups: (N,) the group of each row, or None.
        draws: resamples.
        level: of the interval.
        seed: of the resamples.

    >>> y = np.arange(20.0)
    >>> paired_difference("mae", y, y + 1, y + 3, None).value
    -2.0
    """
    truth, first = _rows(truth, first)
    _, second = _rows(truth, second)
    sampled = resampled_values(metric(name), truth, [first, second], _groups(groups, len(truth)), draws, level, seed)
    delta = sampled[0] - sampled[1]
    delta = delta[~np.isnan(delta)]
    if not len(delta):
        raise DataError(f"{name} is undefined on all {draws} resamples")
    low, high = np.quantile(delta, [(1 - level) / 2, (1 + level) / 2])
    # the draw itself counts as one: no p-value of zero from a finite number of resamples
    tail = (1 + min(int((delta <= 0).sum()), int((delta >= 0).sum()))) / (1 + len(delta))
    value = _value(name, truth, first) - _value(name, truth, second)
    return Difference(name, value, float(low), float(high), min(1.0, 2 * tail))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for looking at several targets (Holm 1979): below 0.05 keeps the chance of any false alarm at 5 %.

    >>> holm({"age": 0.01, "sex": 0.04, "af": 0.03})
    {'age': 0.03, 'sex': 0.06, 'af': 0.06}
    """
    order = sorted(p_values, key=lambda name: p_values[name])
    adjusted, largest = {}, 0.0
    for place, name in enumerate(order):
        if not 0 <= p_values[name] <= 1:
            raise DataError(f"p-value of {name} is {p_values[name]}; it must be from 0 to 1")
        largest = max(largest, min(1.0, (len(order) - place) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def _rows(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, score = np.asarray(truth, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != score.shape or not len(truth):
        raise DataError(f"truth {truth.shape} and score {score.shape} must be rows of the same length, not empty")
    if not (np.isfinite(truth).all() and np.isfinite(score).all()):
        raise DataError("truth or score holds NaN or infinite values; leave those rows out")
    return truth, score


def _groups(groups: np.ndarray | None, rows: int) -> np.ndarray:
    if groups is None:
        return np.arange(rows)
    if len(groups) != rows:
        raise DataError(f"groups has {len(groups)} rows, truth {rows}; each row needs its group")
    return np.unique(groups, return_inverse=True)[1]


def _value(name: str, truth: np.ndarray, score: np.ndarray) -> float:
    value = float(metric(name)(truth, score, np.ones((1, len(truth))))[0])
    if np.isnan(value):
        raise DataError(f"{name} is undefined: all {len(truth)} rows have the same truth, {truth[0]:g}")
    return value


def resampled_values(
    measure: Metric,
    truth: np.ndarray,
    scores: Sequence[np.ndarray],
    group: np.ndarray,
    draws: int,
    level: float,
    seed: int,
) -> list[np.ndarray]:
    """(draws,) values for each of ``scores``, on the same resamples of groups.

    Args:
        measure: called with ``truth``, one of ``scores`` and (B, N) weights.
        truth: (N,).
        scores: each (N,).
        group: (N,) int64, groups numbered from 0, none left out.
        draws: resamples.
        level: of an interval, only checked here.
        seed: the same, the same resamples as :func:`mc_core.evaluation.bootstrap_interval`.
    """
    if draws < 1 or not 0 < level < 1:
        raise ConfigError(f"draws={draws}, level={level}: take at least one resample and a level between 0 and 1")
    count = int(group.max()) + 1
    rng = np.random.Generator(np.random.Philox(derive_seed(seed, _STREAM)))
    drawn = rng.integers(0, count, (draws, count))
    found: list[list[np.ndarray]] = [[] for _ in scores]
    for block in np.array_split(drawn, max(1, -(-draws * len(truth) // _BLOCK))):
        times = np.bincount((block + count * np.arange(len(block))[:, None]).ravel(), minlength=block.shape[0] * count)
        weight = times.reshape(-1, count)[:, group].astype(np.float64)
        for column, score in zip(found, scores, strict=True):
            column.append(measure(truth, score, weight))
    return [np.concatenate(column) for column in found]


def _counts(truth: np.ndarray, score: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B, thresholds) weight of positives and of negatives at or above each distinct score, from the highest down."""
    if not np.isin(truth, (0, 1)).all():
        raise DataError("a metric of classification needs truth of 0 and 1")
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=np.nan) != 0)  # of each run of equal scores
    weight, truth = weight[:, order], truth[order]
    return (weight * truth).cumsum(axis=1)[:, last], (weight * (1 - truth)).cumsum(axis=1)[:, last]


def _curve(truth: np.ndarray, score: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B, thresholds + 1) false-positive and true-positive rate, from (0, 0); NaN where one class is missing."""
    positive, negative = _counts(truth, score, weight)
    with np.errstate(divide="ignore", invalid="ignore"):
        false, true = negative / negative[:, -1:], positive / positive[:, -1:]
    start = ((0, 0), (1, 0))
    return np.pad(false, start), np.pad(true, start)
