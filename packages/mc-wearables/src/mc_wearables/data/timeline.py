"""From time stamps, or pieces with a start, to stretches on a regular grid; gaps and jumps of the clock are found here.

Legend: C channels, T samples.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mc_core.errors import ConfigError, DataError

GAP_STEPS = 1.5
"""A step of more than this many sampling intervals is a gap (ours; half an interval of jitter is common)."""
SPLIT_SECONDS = 60.0
"""A longer gap ends the stretch, so that a night without samples takes no memory."""
_COARSE = 0.1  # share of equal stamps from which their clock is too coarse to place samples
_HOUR, _HOUR_SLACK = 3600.0, 2.0


@dataclass(frozen=True)
class Stretch:
    """(C, T) float32 on a regular grid from ``start`` seconds on; NaN in gaps."""

    start: float
    signal: np.ndarray


def rate_of(times: np.ndarray, where: str) -> float:
    """Hz, from the mean of the steps that are no gaps. Stamps in whole milliseconds have no step of 15.625 ms, their mean has.

    Raises:
        DataError: fewer than three different stamps.

    >>> round(rate_of(np.round(np.arange(640) / 64, 3), "a.csv"), 2)
    64.0
    """
    steps = np.diff(times)
    steps = steps[steps > 0]
    if len(steps) < 2:
        raise DataError(
            f"{where}: of {len(times)} time stamps {len(steps)} are later than the one before, too few to tell a sampling rate"
        )
    typical = np.median(steps)
    return float(1 / steps[steps <= GAP_STEPS * typical].mean())


def on_grid(
    times: np.ndarray, values: np.ndarray, *, fs: float | None, where: str, civil: bool = False
) -> tuple[list[Stretch], float, Counter[str]]:
    """Samples with time stamps, on a regular grid by linear interpolation; gaps of more than 1.5 steps become NaN.

    Samples with equal stamps are averaged. Where time goes backwards, or stands still for more than a minute, a new stretch
    begins. A clock so coarse that many samples share a stamp places no samples: they are then evenly spaced, and the clock
    only tells the gaps.

    Args:
        times: (T,) seconds, in the order of recording.
        values: (C, T), NaN where missing.
        fs: Hz, where known; the stamps must then agree within 2 %.
        where: file, for messages.
        civil: the stamps are local times without a zone: jumps of one hour are counted as daylight saving.

    Returns:
        The stretches, the sampling rate in Hz, and counts of what was seen.

    Raises:
        DataError: no stamps, or NaN among them.
        ConfigError: a coarse clock and no ``fs``, or one that contradicts the stamps.

    >>> t = np.array([0.0, 0.25, 0.5, 1.25, 1.5])
    >>> (piece,), rate, seen = on_grid(t, t[None], fs=None, where="a.csv")
    >>> rate, piece.signal.tolist(), dict(seen)
    (4.0, [[0.0, 0.25, 0.5, nan, nan, 1.25, 1.5]], {'gaps': 1})
    """
    if not len(times):
        raise DataError(f"{where} holds no samples")
    if bad := int((~np.isfinite(times)).sum()):
        first = int(np.argmin(np.isfinite(times))) + 1
        raise DataError(f"{where}: {bad} of {len(times)} time stamps are empty or no numbers, first in sample {first}")
    steps = np.diff(times)
    notes: Counter[str] = Counter()
    if len(steps) and (equal := int((steps == 0).sum())):
        notes["duplicate_times"] = equal
        if equal > _COARSE * len(steps):
            if fs is None:
                raise ConfigError(
                    f"{where}: {equal} of {len(steps)} time stamps equal the one before, the clock is too coarse to tell "
                    "the sampling rate: give it in Hz, as in --fs 64"
                )
            times = _spread(times, fs)
            steps = np.diff(times)
    rate = rate_of(times, where) if fs is None or len(times) > 2 else fs
    if fs is not None and abs(rate / fs - 1) > 0.02:
        raise ConfigError(
            f"{where}: the time stamps say {rate:.4g} Hz, --fs says {fs:g}; leave it out, or check --time-unit"
        )
    backwards = steps < 0
    far = steps > SPLIT_SECONDS
    hour = np.abs(np.abs(steps) - _HOUR) < _HOUR_SLACK if civil else np.zeros_like(backwards)
    notes["daylight_saving"] = int((hour & (backwards | far)).sum())
    notes["clock_backwards"] = int((backwards & ~hour).sum())
    notes["gaps"] = int((steps > GAP_STEPS / rate).sum())
    bounds = [0, *(np.flatnonzero(backwards | far) + 1).tolist(), len(times)]
    pieces = [_interpolate(times[a:b], values[:, a:b], rate) for a, b in itertools.pairwise(bounds)]
    return pieces, rate, +notes


def _spread(times: np.ndarray, fs: float) -> np.ndarray:
    """Evenly spaced times that follow a coarse clock: set anew only where it is off by more than its own step."""
    steps = np.diff(times)
    step = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
    slack = step + GAP_STEPS / fs
    even = np.arange(len(times)) / fs
    spread = np.empty(len(times))
    begin = 0
    while begin < len(times):
        ahead = times[begin:] - times[begin] - (even[begin:] - even[begin])
        off = np.flatnonzero(np.abs(ahead) > slack)
        end = begin + int(off[0]) if len(off) else len(times)
        spread[begin:end] = times[begin] + even[: end - begin]
        if (
            end < len(times)
            and end > begin
            and 0 <= times[end] - times[end - 1] <= step
            and spread[end - 1] >= times[end]
        ):
            times = times.copy()
            times[end] = spread[end - 1] + 1 / fs
        begin = end
    return spread


def _interpolate(times: np.ndarray, values: np.ndarray, rate: float) -> Stretch:
    distinct, first = np.unique(times, return_index=True)
    if len(distinct) < len(times):
        with np.errstate(invalid="ignore"):
            counts = np.diff([*first, len(times)])
            values = np.add.reduceat(values, first, axis=1) / counts
    grid = distinct[0] + np.arange(int(np.floor((distinct[-1] - distinct[0]) * rate + 0.5)) + 1) / rate
    after = np.clip(np.searchsorted(distinct, grid), 1, max(len(distinct) - 1, 1))
    if len(distinct) == 1:
        return Stretch(float(distinct[0]), values.astype(np.float32))
    width = distinct[after] - distinct[after - 1]
    share = np.clip((grid - distinct[after - 1]) / width, 0, 1)
    signal = values[:, after - 1] * (1 - share) + values[:, after] * share
    # NaN × 0 is NaN: a sample that is hit exactly does not care whether its neighbour is missing
    signal = np.where(share < 1e-3, values[:, after - 1], np.where(share > 1 - 1e-3, values[:, after], signal))
    near = np.minimum(grid - distinct[after - 1], distinct[after] - grid) * rate
    signal[:, (width * rate > GAP_STEPS) & (near > 0.5)] = np.nan
    return Stretch(float(distinct[0]), signal.astype(np.float32))


def join(pieces: Sequence[Stretch], fs: float) -> tuple[list[Stretch], Counter[str]]:
    """Pieces in the order of recording, joined where one continues the other; short gaps become NaN, long ones split.

    >>> a, b = Stretch(0.0, np.ones((1, 3), np.float32)), Stretch(5.0, np.ones((1, 2), np.float32))
    >>> (whole,), seen = join([a, b], 1.0)
    >>> whole.signal.tolist(), dict(seen)
    ([[1.0, 1.0, 1.0, nan, nan, 1.0, 1.0]], {'gaps': 1})
    """
    notes: Counter[str] = Counter()
    groups: list[list[Stretch]] = []
    offsets: list[list[int]] = []
    for piece in pieces:
        if groups:
            here = round((piece.start - groups[-1][0].start) * fs)
            end = offsets[-1][-1] + groups[-1][-1].signal.shape[1]
            late = (piece.start - groups[-1][0].start) * fs - end
            if abs(late) <= GAP_STEPS - 1:
                here = end
            if here >= end and late <= SPLIT_SECONDS * fs:
                notes["gaps"] += here > end
                groups[-1].append(piece)
                offsets[-1].append(here)
                continue
            notes["gaps" if here >= end else "clock_backwards"] += 1
        groups.append([piece])
        offsets.append([0])
    joined = []
    for group, places in zip(groups, offsets, strict=True):
        signal = np.full((len(group[0].signal), places[-1] + group[-1].signal.shape[1]), np.nan, dtype=np.float32)
        for piece, place in zip(group, places, strict=True):
            signal[:, place : place + piece.signal.shape[1]] = piece.signal
        joined.append(Stretch(group[0].start, signal))
    return joined, +notes
