"""Classical features of PPG and ECG segments: rate, variability, irregularity, beat shape and spectrum.

What a trained encoder has to beat. Beats come from neurokit2's peak finders (Elgendi 2013 for PPG; its gradient method for ECG),
one call for each segment; all the rest works on all segments, or all beats, at once. Values that need beats are NaN where too
few were found.

Legend: N segments, C channels, T samples, B beats of all segments together, W samples around a beat, F features.
"""

from __future__ import annotations

import itertools
import logging
import time
import warnings
from dataclasses import dataclass

import numpy as np

from mc_wearables.data.segments import Segments, SignalKind
from mc_wearables.evaluation.splits import Features

_log = logging.getLogger("mc_core")

_BANDS: dict[SignalKind, tuple[float, float]] = {"ppg": (0.5, 8.0), "ecg": (0.5, 40.0)}
_FINE_RATE: dict[SignalKind, float] = {"ppg": 100.0, "ecg": 250.0}
"""Hz to which signals are interpolated before beats are looked for: the finders count in samples."""
_WINDOW: dict[SignalKind, tuple[float, float]] = {"ppg": (-0.35, 0.65), "ecg": (-0.30, 0.50)}
"""Seconds around a beat that make its shape."""
_SPECTRUM: dict[SignalKind, tuple[float, ...]] = {
    "ppg": (0.5, 1, 1.5, 2, 3, 4, 6, 8),
    "ecg": (0.5, 2, 4, 6, 9, 13, 20, 40),
}
"""Hz, edges of the bands whose share of the power is a feature."""
_FEWEST_BEATS = 4
_LEAST_PEAK = 0.3  # of the range of the mean beat
_WIDEST_R = 0.1  # seconds on one side, after which it is no R wave any more
_BLOCK = 512
_PATIENCE = 5.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Beats:
    """Beats of many segments.

    Attributes:
        segment: (B,) int64, which segment a beat belongs to, ascending.
        time: (B,) float64, seconds from the start of the segment.
    """

    segment: np.ndarray
    time: np.ndarray

    def of(self, segment: int) -> np.ndarray:
        """Seconds of the beats of one segment."""
        return self.time[self.segment == segment]


def detect_beats(segments: Segments) -> Beats:
    """R peaks (ECG) or systolic peaks (PPG, mean of the channels) of every segment.

    The signal is band-passed and interpolated without aliasing to 100 Hz (PPG) or 250 Hz (ECG) for all segments at once; a peak is
    then refined by a parabola. A segment in which none is found has no row. Costs 1 to 2 ms a segment.

    >>> from mc_wearables.cohort import simulate_cohort
    >>> cohort = simulate_cohort("ecg", participants=1, segments=1, seconds=10, sampling_rate=128)
    >>> len(detect_beats(cohort.segments).of(0)), int(np.isfinite(cohort.beats[0]).sum())
    (10, 10)
    """
    segment, found, began, told = [], [], time.monotonic(), time.monotonic()
    for begin in range(0, len(segments), _BLOCK):
        wave, rate = _prepared(segments, begin, begin + _BLOCK)
        for row, peaks in enumerate(_peaks(wave, segments.kind, rate)):
            segment.append(np.full(len(peaks), begin + row))
            found.append(peaks / rate)
        if (now := time.monotonic()) - told > _PATIENCE:
            told, done = now, min(begin + _BLOCK, len(segments))
            _log.info("beats: %d of %d segments, %.0f per second", done, len(segments), done / (now - began))
    return Beats(
        np.concatenate([*segment, np.empty(0)]).astype(np.int64),
        np.concatenate([*found, np.empty(0)]).astype(np.float64),
    )


def heart_rate(segments: Segments, *, beats: Beats | None = None) -> Features:
    """(N, 1) beats per minute, from the median interval: the baseline that knows nothing else. NaN with fewer than four beats.

    Args:
        segments: of either kind.
        beats: where they were found before.
    """
    beats = beats or detect_beats(segments)
    return Features.of(_rhythm(beats, len(segments))["rate"][:, None], segments, names=("rate",))


def classical_features(segments: Segments, *, beats: Beats | None = None) -> Features:
    """(N, F) classical features, named; NaN where beats are missing (a probe fills them from training participants).

    Rhythm: rate, time-domain variability (SDNN, RMSSD, pNN50, SD1/SD2; logarithms where they are skewed) and irregularity.
    Shape, from the segment's mean beat scaled to a peak of 1: heights, widths, times and areas, and how alike the beats are.
    Spectrum: shares of the power in fixed bands, skewness and kurtosis.

    Args:
        segments: of either kind.
        beats: where they were found before.

    >>> from mc_wearables.cohort import simulate_cohort
    >>> cohort = simulate_cohort("ppg", participants=2, segments=2, seconds=16, sampling_rate=32)
    >>> features = classical_features(cohort.segments)
    >>> features.values.shape == (4, len(features.names)), "rmssd" in features.names
    (True, True)
    """
    beats = beats or detect_beats(segments)
    columns = _rhythm(beats, len(segments))
    blocks = []
    for begin in range(0, len(segments), _BLOCK):
        wave, rate = _prepared(segments, begin, begin + _BLOCK)
        inside = (beats.segment >= begin) & (beats.segment < begin + _BLOCK)
        local = Beats(beats.segment[inside] - begin, beats.time[inside])
        blocks.append(_shape(wave, local, segments.kind, rate) | _distribution(wave, segments.kind, rate))
    columns |= {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return Features.of(np.stack(list(columns.values()), axis=1), segments, names=tuple(columns))


def _prepared(segments: Segments, begin: int, end: int) -> tuple[np.ndarray, float]:
    """(n, T) band-passed, interpolated signals of a range of segments, and their rate in Hz."""
    from scipy.signal import butter, resample_poly, sosfiltfilt

    low, high = _BANDS[segments.kind]
    rate = segments.sampling_rate
    wave = np.asarray(segments.signals[begin:end], dtype=np.float64).mean(axis=1)
    if high < 0.45 * rate:
        sos = butter(2, (low, high), "bandpass", fs=rate, output="sos")
    else:
        sos = butter(2, low, "highpass", fs=rate, output="sos")
    wave = sosfiltfilt(sos, wave, axis=-1, padlen=min(3 * len(sos) * 3, wave.shape[1] - 1))
    times = max(1, round(_FINE_RATE[segments.kind] / rate))
    return (resample_poly(wave, times, 1, axis=-1) if times > 1 else wave), rate * times


def _peaks(wave: np.ndarray, kind: SignalKind, rate: float) -> list[np.ndarray]:
    """Positions in samples, refined to fractions, for each row."""
    found = []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of the finders, about rows without peaks
        import neurokit2 as nk

        for row in wave:
            try:
                if kind == "ppg":
                    peaks = nk.ppg_findpeaks(row, sampling_rate=rate)["PPG_Peaks"]
                else:
                    peaks = nk.ecg_findpeaks(row, sampling_rate=rate)["ECG_R_Peaks"]
            except (IndexError, ValueError, ZeroDivisionError):  # how the finders say that there is nothing to find
                peaks = np.empty(0)
            at = np.asarray(peaks, dtype=np.int64)
            at = at[(at > 0) & (at < len(row) - 1)]
            left, middle, right = row[at - 1], row[at], row[at + 1]
            bend = left - 2 * middle + right
            offset = np.divide(left - right, 2 * bend, out=np.zeros_like(bend), where=bend < 0)
            found.append(at + offset.clip(-0.5, 0.5))
    return found


def _rhythm(beats: Beats, rows: int) -> dict[str, np.ndarray]:
    """Columns (rows,) of rate, variability and irregularity."""
    interval_B = np.diff(beats.time)
    same_B = np.diff(beats.segment) == 0
    interval, owner = interval_B[same_B], beats.segment[1:][same_B]
    step_same = (np.diff(owner) == 0) if len(owner) else np.empty(0, dtype=bool)
    step, step_owner = np.diff(interval)[step_same], owner[1:][step_same]
    count = np.bincount(beats.segment, minlength=rows)

    median = _median(interval, owner, rows)
    mean, sdnn = _mean(interval, owner, rows), _deviation(interval, owner, rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        rmssd = np.sqrt(_mean(step**2, step_owner, rows))
        sd1_squared = rmssd**2 / 2
        change = np.abs(step) / median[step_owner]
        typical = _median(change, step_owner, rows)
        found = {
            "rate": 60 / median,
            "mean_rate": 60 / mean,
            "sdnn": np.log(sdnn + 0.002),
            "rmssd": np.log(rmssd + 0.002),
            "pnn50": _mean((np.abs(step) > 0.05).astype(np.float64), step_owner, rows),
            "variation": np.log(sdnn / mean + 0.002),
            "sd1_sd2": np.log(np.sqrt(sd1_squared + 1e-6) / np.sqrt(np.maximum(2 * sdnn**2 - sd1_squared, 0) + 1e-6)),
            "irregularity": np.log(typical + 0.002),
            "irregular_share": _mean((change > 0.12).astype(np.float64), step_owner, rows),
            "interval_spread": np.log(_median(np.abs(interval - median[owner]), owner, rows) / median + 0.002),
        }
    return {name: np.where(count >= _FEWEST_BEATS, column, np.nan) for name, column in found.items()}


def _shape(wave: np.ndarray, beats: Beats, kind: SignalKind, rate: float) -> dict[str, np.ndarray]:
    """Columns (n,) of the mean beat of each row, zero at its lowest and one at its peak (PPG), or from baseline to R (ECG)."""
    before, after = _WINDOW[kind]
    offset_W = np.arange(round(before * rate), round(after * rate) + 1)
    centre_B = np.rint(beats.time * rate).astype(np.int64)
    inside = (centre_B + offset_W[0] >= 0) & (centre_B + offset_W[-1] < wave.shape[1])
    owner, centre_B = beats.segment[inside], centre_B[inside]
    beat_BW = wave[owner[:, None], centre_B[:, None] + offset_W]
    count = np.bincount(owner, minlength=len(wave))
    mean = np.full((len(wave), len(offset_W)), np.nan)
    order_first = np.flatnonzero(np.diff(owner, prepend=-1))
    if len(owner):
        present = owner[order_first]
        mean[present] = np.add.reduceat(beat_BW, order_first, axis=0) / count[present][:, None]
    mean[count < _FEWEST_BEATS - 1] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        alike_B = _correlation(beat_BW, mean[owner])
        found = _ppg_shape(mean, offset_W / rate) if kind == "ppg" else _ecg_shape(mean, offset_W / rate)
    return {**found, "likeness": _mean(alike_B, owner, len(wave))}


def _ppg_shape(mean: np.ndarray, at: np.ndarray) -> dict[str, np.ndarray]:
    peak = np.argmin(np.abs(at))
    foot = mean[:, : peak + 1].min(axis=1)
    height = mean[:, peak] - foot
    height[~(height > _LEAST_PEAK * np.ptp(mean, axis=1))] = np.nan
    y = (mean - foot[:, None]) / height[:, None]
    found = {f"height_{round(1000 * s)}": y[:, np.argmin(np.abs(at - s))] for s in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)}
    for share in (0.25, 0.5, 0.75):
        found[f"rise_{round(100 * share)}"] = _crossing(y[:, peak::-1], share, at)
        found[f"fall_{round(100 * share)}"] = _crossing(y[:, peak:], share, at)
    found["foot_time"] = _time_of(np.argmin(_filled(y[:, : peak + 1]), axis=1), at, y)
    found["area_ratio"] = y[:, peak:].mean(axis=1) / y[:, : peak + 1].mean(axis=1)
    bend = np.gradient(np.gradient(y, at, axis=1), at, axis=1)
    found["upstroke"] = np.gradient(y, at, axis=1)[:, : peak + 1].max(axis=1)
    # the reflected wave is a shoulder on the way down: where the curve bends down most, and up most before it
    late = (at > 0.12) & (at < 0.45)
    found["shoulder_time"] = _time_of(np.argmin(_filled(bend[:, late]), axis=1), at[late], y)
    found["shoulder_bend"] = bend[:, late].min(axis=1) / np.abs(bend[:, peak])
    found["notch_time"] = _time_of(np.argmax(_filled(bend[:, late]), axis=1), at[late], y)
    found["notch_bend"] = bend[:, late].max(axis=1) / np.abs(bend[:, peak])
    return found


def _ecg_shape(mean: np.ndarray, at: np.ndarray) -> dict[str, np.ndarray]:
    peak = np.argmin(np.abs(at))
    level = np.median(_filled(mean[:, (at > -0.09) & (at < -0.05)]), axis=1)  # between P and Q
    height = mean[:, peak] - level
    # a mean beat whose R does not stand out is no beat: scaling by it would only make outliers
    height[~(height > _LEAST_PEAK * np.ptp(mean, axis=1))] = np.nan
    y = (mean - level[:, None]) / height[:, None]
    found = {}
    for name, begin, end, sign in (
        ("p", -0.25, -0.09, 1),
        ("q", -0.06, 0, -1),
        ("s", 0, 0.07, -1),
        ("t", 0.13, 0.48, 1),
    ):
        part = (at >= begin) & (at <= end)
        wave = sign * y[:, part]
        top = np.argmax(_filled(wave), axis=1)
        found[f"{name}_height"] = wave[np.arange(len(y)), top]
        found[f"{name}_time"] = _time_of(top, at[part], y)
        found[f"{name}_area"] = wave.mean(axis=1)
    found["p_spread"] = y[:, (at >= -0.25) & (at <= -0.09)].std(axis=1)
    t_part = (at >= 0.13) & (at <= 0.48)
    t_width = (y[:, t_part] > 0.5 * found["t_height"][:, None]).mean(axis=1)
    found["t_width"] = np.where(np.isnan(height), np.nan, t_width)
    for share in (0.25, 0.5, 0.75):
        for side, half in (("left", y[:, peak::-1]), ("right", y[:, peak:])):
            width = _crossing(half, share, at)
            found[f"r_{side}_{round(100 * share)}"] = np.where(width <= _WIDEST_R, width, np.nan)
    return found


def _distribution(wave: np.ndarray, kind: SignalKind, rate: float) -> dict[str, np.ndarray]:
    """Columns (n,): logarithms of the share of power in each band, skewness and kurtosis."""
    taper = np.hanning(wave.shape[1])
    power = np.abs(np.fft.rfft(wave * taper, axis=1)) ** 2
    frequency = np.fft.rfftfreq(wave.shape[1], 1 / rate)
    edges = _SPECTRUM[kind]
    total = power[:, (frequency >= edges[0]) & (frequency < edges[-1])].sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            f"power_{low:g}_{high:g}": np.log(
                power[:, (frequency >= low) & (frequency < high)].sum(axis=1) / total + 1e-4
            )
            for low, high in itertools.pairwise(edges)
        }
        centred = wave - wave.mean(axis=1, keepdims=True)
        spread = centred.std(axis=1)
        found["skewness"] = (centred**3).mean(axis=1) / spread**3
        found["kurtosis"] = (centred**4).mean(axis=1) / spread**4
    return {name: np.where(spread > 1e-6, column, np.nan) for name, column in found.items()}


def _crossing(falling: np.ndarray, share: float, at: np.ndarray) -> np.ndarray:
    """(n,) seconds from the first column until rows fall below ``share``, between samples; NaN where they never do."""
    below = falling < share
    first = np.argmax(below, axis=1)
    row = np.arange(len(falling))
    high, low = falling[row, np.maximum(first - 1, 0)], falling[row, first]
    exact = first - 1 + (high - share) / (high - low)
    return np.where(below.any(axis=1) & (first > 0), exact * (at[1] - at[0]), np.nan)


def _time_of(index: np.ndarray, at: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(y[:, 0]), np.nan, at[index])


def _filled(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x), 0, x)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))


def _mean(values: np.ndarray, owner: np.ndarray, rows: int) -> np.ndarray:
    """(rows,) mean of the values of each owner; NaN where there is none."""
    count = np.bincount(owner, minlength=rows)
    with np.errstate(invalid="ignore"):
        return np.bincount(owner, weights=values, minlength=rows) / np.where(count > 0, count, np.nan)


def _deviation(values: np.ndarray, owner: np.ndarray, rows: int) -> np.ndarray:
    """(rows,) deviation with n − 1, as SDNN is defined."""
    count = np.bincount(owner, minlength=rows)
    square = np.bincount(owner, weights=(values - _mean(values, owner, rows)[owner]) ** 2, minlength=rows)
    return np.sqrt(square / np.where(count > 1, count - 1, np.nan))


def _median(values: np.ndarray, owner: np.ndarray, rows: int) -> np.ndarray:
    """(rows,) median of the values of each owner; NaN where there is none. ``owner`` ascends."""
    count = np.bincount(owner, minlength=rows)
    begin = count.cumsum() - count
    ordered = np.append(values[np.lexsort((values, owner))], np.nan)
    low, high = begin + np.maximum(count - 1, 0) // 2, begin + count // 2
    return np.where(count > 0, (ordered[low.clip(max=len(values))] + ordered[high.clip(max=len(values))]) / 2, np.nan)
