"""Intervals over patients: a patient's studies are no independent evidence, so that whole patients are resampled.

Legend: N rows, C observations, B resamples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mc_core import resampling
from mc_core.errors import DataError
from mc_core.resampling import resampled_values
from mc_medical.evaluation.checks import groups

Area = Literal["auroc", "auprc"]
"""Area under the ROC curve, or average precision."""
Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(truth, score, weights (B, N)) → (B,); NaN where undefined."""


@dataclass(frozen=True)
class Interval:
    """A measured number and how sure it is.

    Attributes:
        value: on all rows.
        low: lower end of the 95 % interval; None where no resample allowed one.
        high: upper end.
        rows: measured on.
        patients: they belong to.
        skipped: resamples on which the metric was undefined.
    """

    value: float
    low: float | None
    high: float | None
    rows: int
    patients: int
    skipped: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        ends = "" if self.low is None else f" ({self.low:.3f}–{self.high:.3f})"
        return f"{self.value:.3f}{ends}"


def area(name: Area, truth: np.ndarray, score: np.ndarray) -> float:
    """An area of all rows.

    Args:
        name: ``auroc`` or ``auprc``; of equal scores none is before another.
        truth: (N,) of 0 and 1.
        score: (N,).

    Raises:
        DataError: one class is missing, lengths differ, values that are not finite.

    >>> area("auroc", np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    0.75
    """
    truth, score = np.asarray(truth, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != score.shape or not len(truth):
        raise DataError(f"truth {truth.shape} and score {score.shape} must be rows of the same length, not empty")
    if not np.isfinite(score).all():
        raise DataError(f"score is not finite at {int((~np.isfinite(score)).sum())} of {len(score)} places")
    value = float(resampling.metric(name)(truth, score, np.ones((1, len(truth))))[0])
    if np.isnan(value):
        raise DataError(f"{name} needs positives and negatives; there are {int(truth.sum())} of {len(truth)} positives")
    return value


def area_interval(
    name: Area,
    truth: np.ndarray,
    score: np.ndarray,
    patients: Sequence[Any] | np.ndarray | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """:func:`area` with its 95 % percentile interval over resampled patients.

    Args:
        name: ``auroc`` or ``auprc``.
        truth: (N,) of 0 and 1.
        score: (N,).
        patients: (N,) of each row; None: every row is a patient.
        draws: resamples; 0 for no interval.
        seed: of the resamples.

    >>> truth, score = np.array([0, 1, 0, 1.0]), np.array([0.1, 0.9, 0.2, 0.8])
    >>> area_interval("auroc", truth, score, ["a", "a", "b", "b"], draws=20).patients
    2
    """
    value = area(name, truth, score)
    return _interval(
        resampling.metric(name), np.asarray(truth, float), np.asarray(score, float), value, patients, draws, seed
    )


def mean_interval(
    values: np.ndarray, patients: Sequence[Any] | np.ndarray | None = None, *, draws: int = 1000, seed: int = 0
) -> Interval:
    """The mean of (N,) values, such as hits, with its interval over patients.

    >>> mean_interval(np.array([1, 0, 1, 1]), draws=0).value
    0.75
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise DataError(f"values have shape {values.shape}; a list that is not empty is needed")
    return _interval(_mean, values, values, float(values.mean()), patients, draws, seed)


def macro_interval(
    name: Area,
    truth: np.ndarray,
    score: np.ndarray,
    patients: Sequence[Any] | np.ndarray | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """The mean over observations of an area; a resample on which one observation is undefined is skipped.

    Args:
        name: ``auroc`` or ``auprc``.
        truth: (N, C) of 0, 1 and NaN; NaN rows are left out of their observation.
        score: (N, C).
        patients: (N,).
        draws: resamples; 0 for no interval.
        seed: of the resamples.

    >>> y = np.array([[0, 1], [1, np.nan], [1, 0]])
    >>> macro_interval("auroc", y, np.nan_to_num(y), draws=0).value
    1.0
    """
    truth, score = np.asarray(truth, dtype=np.float64), np.asarray(score, dtype=np.float64)
    known = ~np.isnan(truth)
    columns = range(truth.shape[1])
    value = float(np.mean([area(name, truth[known[:, c], c], score[known[:, c], c]) for c in columns]))
    measure = resampling.metric(name)

    def mean_over_columns(_: np.ndarray, __: np.ndarray, weight: np.ndarray) -> np.ndarray:
        found = [measure(truth[known[:, c], c], score[known[:, c], c], weight[:, known[:, c]]) for c in columns]
        return np.mean(found, axis=0)

    rows = np.zeros(len(truth))
    return _interval(mean_over_columns, rows, rows, value, patients, draws, seed)


def interval_of(
    metric: Callable[[np.ndarray, np.ndarray], float],
    truth: np.ndarray,
    score: np.ndarray,
    patients: Sequence[Any] | np.ndarray | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """Any ``metric(truth, score)`` with its interval over patients, one resample after the other.

    >>> interval_of(lambda a, b: float((a == b).mean()), np.array([1, 2]), np.array([1, 1]), draws=0).value
    0.5
    """

    def each(_: np.ndarray, __: np.ndarray, weight: np.ndarray) -> np.ndarray:
        found = np.full(len(weight), np.nan)
        for place, times in enumerate(weight):
            rows = np.repeat(np.arange(len(truth)), times.astype(np.int64))
            with contextlib.suppress(DataError):  # undefined on this resample
                found[place] = metric(truth[rows], score[rows])
        return found

    rows = np.zeros(len(truth))
    return _interval(each, rows, rows, float(metric(truth, score)), patients, draws, seed)


def _mean(_: np.ndarray, values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight @ values / weight.sum(axis=1)


def _interval(
    measure: Measure, truth: np.ndarray, score: np.ndarray, value: float, patients: Any, draws: int, seed: int
) -> Interval:
    code = groups(patients, len(truth))
    count = int(code.max()) + 1
    if not draws:
        return Interval(value, None, None, len(truth), count)
    sampled = resampled_values(measure, truth, [score], code, draws, 0.95, seed)[0]
    kept = sampled[~np.isnan(sampled)]
    if not len(kept):  # as where one patient has all positives
        return Interval(value, None, None, len(truth), count, draws)
    low, high = np.quantile(kept, [0.025, 0.975])
    return Interval(value, float(low), float(high), len(truth), count, draws - len(kept))
