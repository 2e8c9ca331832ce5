"""Intervals over patients, and the metrics they are put around.

A patient's studies are no independent evidence, so that whole patients are resampled.

Legend: N rows, C observations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mc_core.errors import DataError
from mc_core.evaluation import BootstrapInterval, auroc, bootstrap_interval
from mc_medical.evaluation.checks import groups

Metric = Callable[[np.ndarray, np.ndarray], float]
"""(truth, score) → a number; raises DataError where it is undefined."""


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


def average_precision(truth: np.ndarray, score: np.ndarray) -> float:
    """Area under the precision-recall curve, as the mean of precision over gained recall; ties move together.

    Args:
        truth: (N,) of 0 and 1.
        score: (N,).

    Raises:
        DataError: no positive, or NaN.

    >>> round(average_precision(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])), 4)
    0.8333
    """
    truth, score = np.asarray(truth, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if truth.shape != score.shape or truth.ndim != 1 or np.isnan(score).any():
        raise DataError(
            f"truth {truth.shape} and score {score.shape} must be two lists of the same length, without NaN"
        )
    total = truth.sum()
    if not total:
        raise DataError("no positive; the precision-recall curve needs one")
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)
    hits = truth[order].cumsum()[last]
    seen = np.flatnonzero(last) + 1
    return float((np.diff(hits, prepend=0) * hits / seen).sum() / total)


def macro(metric: Metric) -> Callable[[np.ndarray, np.ndarray], float]:
    """The mean of ``metric`` over the columns on which it is defined; rows with NaN labels are left out of their column."""

    def mean(truth: np.ndarray, score: np.ndarray) -> float:
        found = []
        for place in range(truth.shape[1]):
            known = ~np.isnan(truth[:, place])
            try:
                found.append(metric(truth[known, place], score[known, place]))
            except DataError:
                continue
        if len(found) < truth.shape[1]:
            raise DataError(f"the metric is defined for {len(found)} of {truth.shape[1]} observations")
        return float(np.mean(found))

    return mean


def patient_interval(
    metric: Metric,
    truth: np.ndarray,
    score: np.ndarray,
    patients: Sequence[Any] | np.ndarray | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """``metric`` with its 95 % percentile interval over resampled patients.

    Args:
        metric: called with rows of ``truth`` and ``score``.
        truth: (N, …).
        score: (N, …).
        patients: (N,) of each row; None: every row is a patient.
        draws: resamples; 0 for no interval.
        seed: of the resamples.

    Raises:
        DataError: the metric is undefined on the data themselves.

    >>> truth, score = np.array([0, 1, 0, 1.0]), np.array([0.1, 0.9, 0.2, 0.8])
    >>> patient_interval(auroc, truth, score, ["a", "a", "b", "b"], draws=20).patients
    2
    """
    code = groups(patients, len(truth))
    count = int(code.max()) + 1 if len(code) else 0
    value = float(metric(truth, score))
    if not draws:
        return Interval(value, None, None, len(truth), count)
    try:
        found: BootstrapInterval = bootstrap_interval(metric, truth, score, n=draws, seed=seed, groups=code)
    except DataError:  # on no resample, as where one patient has all positives
        return Interval(value, None, None, len(truth), count, draws)
    return Interval(found.value, found.low, found.high, len(truth), count, found.resamples_skipped)


AUROC: Metric = auroc
"""Area under the ROC curve; see :func:`mc_core.evaluation.auroc`."""
