"""Whether probabilities mean what they say.

Legend: N rows, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mc_core.errors import ConfigError, DataError


@dataclass(frozen=True)
class Reliability:
    """What :func:`reliability` returns: a curve of stated against observed shares.

    Attributes:
        stated: (B,) mean probability in each bin that holds something.
        observed: (B,) share of positives there.
        count: (B,) rows there.
        error: expected calibration error: the mean of |stated − observed| over rows.
        largest: the largest |stated − observed| of a bin.
        brier: mean squared distance of probability and label.
    """

    stated: np.ndarray
    observed: np.ndarray
    count: np.ndarray
    error: float
    largest: float
    brier: float


def reliability(
    probability: np.ndarray, truth: np.ndarray, *, bins: int = 10, by: Literal["width", "count"] = "width"
) -> Reliability:
    """The reliability curve, the expected calibration error (Naeini et al. 2015) and the Brier score.

    Args:
        probability: (N,) in [0, 1].
        truth: (N,) of 0 and 1; for several classes give the largest probability and whether that class is right.
        bins: B at most.
        by: bins of equal width, or with equally many rows.

    Raises:
        DataError: no rows, lengths that differ, values out of range.

    >>> curve = reliability(np.array([0.9, 0.9, 0.1, 0.1]), np.array([1, 0, 0, 0]))
    >>> round(curve.error, 3), curve.count.tolist()
    (0.25, [2, 2])
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape or not len(p):
        raise DataError(f"probability {p.shape} and truth {y.shape} must be two lists of the same length, not empty")
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError("probability must lie in [0, 1], without NaN")
    if not np.isin(y, (0, 1)).all():
        raise DataError("truth must hold 0 and 1 only")
    if bins < 1 or by not in ("width", "count"):
        raise ConfigError(f"bins={bins}, by={by!r}: take one bin or more, by width or count")
    if by == "width":
        place = np.minimum((p * bins).astype(np.int64), bins - 1)
    else:
        # equal probabilities stay together
        place = (np.searchsorted(np.sort(p), p, side="left") * bins) // len(p)
    count = np.bincount(place, minlength=bins)
    used = count > 0
    stated = np.bincount(place, p, minlength=bins)[used] / count[used]
    observed = np.bincount(place, y, minlength=bins)[used] / count[used]
    gap = np.abs(stated - observed)
    return Reliability(
        stated,
        observed,
        count[used],
        error=float((count[used] * gap).sum() / len(p)),
        largest=float(gap.max()),
        brier=float(((p - y) ** 2).mean()),
    )
