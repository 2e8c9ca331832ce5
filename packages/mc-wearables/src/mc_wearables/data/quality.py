"""How good a segment is, from beats that two independent detectors find in whole runs. Cheap: no Python per segment.

The rule is that of the thresholds measured on noise, motion and clean signals: beats agree with their template, detectors agree,
the rate is one of a heart, nothing flat or clipped. Scores are stored; nobody is dropped for a low one, because quality filters
select for healthier, stiller, lighter-skinned people. Apply them when sampling, and keep a test set without.

Legend: C channels, T samples of a run, N segments, B beats, W samples around a beat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mc_wearables.data.config import Kind

RATES = (35.0, 200.0)
"""Beats per minute taken for those of a heart."""
# Seconds: the two moving averages of Elgendi's detectors (PPG: PLoS ONE 2013; QRS: 2013), and the stretch around a beat
_BLOCK: dict[Kind, tuple[float, float, float]] = {"ppg": (0.111, 0.667, 0.02), "ecg": (0.097, 0.611, 0.08)}
_AROUND: dict[Kind, tuple[float, float]] = {"ppg": (0.3, 0.5), "ecg": (0.25, 0.4)}
_TOLERANCE: dict[Kind, float] = {"ppg": 0.1, "ecg": 0.06}
# Share of power: the bands of neurokit2's `relative_power` (PPG, Elgendi 2016) and of pSQI (ECG, Li et al. 2008)
_BANDS: dict[Kind, tuple[tuple[float, float], tuple[float, float]]] = {
    "ppg": ((1.0, 2.25), (0.0, 8.0)),
    "ecg": ((5.0, 15.0), (5.0, 40.0)),
}
_REFRACTORY = 0.3
_LEAST_BEATS = 4


@dataclass(frozen=True)
class Quality:
    """(N,) float32 each.

    Attributes:
        template: mean correlation of the beats with their mean, 0 to 1.
        agreement: share of beats that both detectors find (F1), 0 to 1.
        rate: beats per minute; NaN with fewer than four beats.
        band_power: share of the raw signal's power in the band of the pulse; compare within one device.
    """

    template: np.ndarray
    agreement: np.ndarray
    rate: np.ndarray
    band_power: np.ndarray

    def index(self, unusable: np.ndarray) -> np.ndarray:
        """(N,) float32 from 0 to 1: the lesser of template and agreement, times the usable share; 0 if no heart beats so.

        Above 0.8 a segment meets the thresholds of the rule, except that of its band power, which depends on the device.

        Args:
            unusable: (N,) share of samples that are filled, flat or clipped.
        """
        beats = np.minimum(self.template, self.agreement) * np.clip(1 - unusable, 0, 1)
        with np.errstate(invalid="ignore"):
            possible = (self.rate >= RATES[0]) & (self.rate <= RATES[1])
        return np.where(possible, beats, 0).astype(np.float32)


def assess(cleaned: np.ndarray, raw: np.ndarray, sampling_rate: float, samples: int, kind: Kind) -> Quality:
    """Quality of the segments that a run will be cut into; over several channels, the mean.

    Args:
        cleaned: (C, T) filtered run.
        raw: (C, T) the same, unfiltered.
        sampling_rate: Hz of both.
        samples: of a segment; N = T // samples.
        kind: ``"ppg"`` or ``"ecg"``.
    """
    each = [_assess_channel(c, r, sampling_rate, samples, kind) for c, r in zip(cleaned, raw, strict=True)]
    return Quality(*(np.stack(column).mean(axis=0).astype(np.float32) for column in zip(*each, strict=True)))


def _assess_channel(
    cleaned: np.ndarray, raw: np.ndarray, rate: float, samples: int, kind: Kind
) -> tuple[np.ndarray, ...]:
    count = len(cleaned) // samples
    cleaned, raw = cleaned[: count * samples], raw[: count * samples]
    local = _even(cleaned, rate)
    beats, others = block_beats(local, rate, kind), slope_beats(local, rate, kind)
    return (
        _template(local, beats, rate, samples, count, kind),
        _agreement(beats, others, rate, samples, count, kind),
        _rate(beats, rate, samples, count),
        _band_power(raw.reshape(count, samples), rate, kind),
    )


def _even(signal: np.ndarray, rate: float) -> np.ndarray:
    """The signal over its own spread within ten seconds, so that one artefact does not hide the beats beside it."""
    from scipy.ndimage import uniform_filter1d

    spread = np.sqrt(np.maximum(uniform_filter1d(signal**2, max(1, round(10 * rate))), 0))
    floor = 1e-3 * float(np.sqrt(np.mean(signal**2))) + 1e-12
    return signal / np.maximum(spread, floor)


def block_beats(signal: np.ndarray, rate: float, kind: Kind) -> np.ndarray:
    """(B,) positions of the beats, by Elgendi's two moving averages: where the short one exceeds the long one."""
    from scipy.ndimage import uniform_filter1d

    peak, beat, offset = _BLOCK[kind]
    energy = _energy(signal, rate, kind)
    short = uniform_filter1d(energy, max(1, round(peak * rate)))
    long = uniform_filter1d(energy, max(1, round(beat * rate)))
    level = uniform_filter1d(energy, max(1, round(10 * rate)))
    inside = np.concatenate([[False], short > long + offset * level, [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]
    wide = ends - starts >= round(peak * rate)
    starts, ends = starts[wide], ends[wide]
    if not len(starts):
        return starts
    target = signal if kind == "ppg" else energy
    bounds = np.stack([starts, ends], axis=1).ravel()
    highest = np.maximum.reduceat(np.append(target, -np.inf), bounds)[::2]
    owner = np.repeat(np.arange(len(starts)), ends - starts)
    places = np.concatenate([[0], np.cumsum(ends - starts)])[:-1]
    index = np.arange(len(owner)) - places[owner] + starts[owner]
    hits = np.flatnonzero(target[index] == highest[owner])
    first = hits[np.unique(owner[hits], return_index=True)[1]]
    return _refractory(index[first], rate)


def _energy(signal: np.ndarray, rate: float, kind: Kind) -> np.ndarray:
    if kind == "ppg":
        return np.maximum(signal, 0) ** 2
    from scipy.signal import butter, sosfiltfilt

    sos = butter(2, [8, min(20, 0.45 * rate)], "bandpass", fs=rate, output="sos")
    return sosfiltfilt(sos, signal) ** 2


def slope_beats(signal: np.ndarray, rate: float, kind: Kind) -> np.ndarray:
    """(B,) positions of the steepest rises (PPG) or of the greatest slope either way (ECG) that stand out of their surroundings."""
    from scipy.ndimage import uniform_filter1d
    from scipy.signal import find_peaks

    slope = np.gradient(signal)
    if kind == "ecg":
        slope = uniform_filter1d(np.abs(slope), max(1, round(0.08 * rate)))
    slope = _even(slope - slope.mean(), rate)
    found, _ = find_peaks(slope, distance=max(1, round(_REFRACTORY * rate)), prominence=1.5)
    return found


def _refractory(peaks: np.ndarray, rate: float) -> np.ndarray:
    near = np.diff(peaks, prepend=-round(10 * rate)) < _REFRACTORY * rate
    return peaks[~near]


def _spans(peaks: np.ndarray, samples: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) first beat of each segment, and how many it has."""
    first = np.searchsorted(peaks, np.arange(count) * samples)
    return first, np.diff(np.append(first, len(peaks)))


def _template(signal: np.ndarray, beats: np.ndarray, rate: float, samples: int, count: int, kind: Kind) -> np.ndarray:
    before, after = (round(part * rate) for part in _AROUND[kind])
    whole = beats[(beats >= before) & (beats + after < len(signal))]
    _, number = _spans(whole, samples, count)
    if not len(whole):
        return np.zeros(count)
    shape_BW = signal[whole[:, None] + np.arange(-before, after)]
    shape_BW = shape_BW - shape_BW.mean(axis=1, keepdims=True)
    shape_BW /= np.maximum(np.linalg.norm(shape_BW, axis=1, keepdims=True), 1e-12)
    segment_B = np.repeat(np.arange(count), number)
    total_NW = np.zeros((count, before + after))
    filled = number > 0
    total_NW[filled] = np.add.reduceat(shape_BW, np.concatenate([[0], np.cumsum(number[filled])[:-1]]), axis=0)
    # each beat against the mean of the others: its own part would flatter it
    rest_BW = total_NW[segment_B] - shape_BW
    rest_BW /= np.maximum(np.linalg.norm(rest_BW, axis=1, keepdims=True), 1e-12)
    likeness_N = np.bincount(segment_B, weights=(shape_BW * rest_BW).sum(axis=1), minlength=count)
    return np.where(number >= _LEAST_BEATS, np.clip(likeness_N / np.maximum(number, 1), 0, 1), 0)


def _agreement(beats: np.ndarray, others: np.ndarray, rate: float, samples: int, count: int, kind: Kind) -> np.ndarray:
    (_, ours), (_, theirs) = _spans(beats, samples, count), _spans(others, samples, count)
    if len(beats) < 2 or len(others) < 2:
        return np.zeros(count)
    lag = _nearest(beats, others)
    usual = np.median(lag)  # the steepest rise comes before the top
    matched = np.abs(lag - usual) <= _TOLERANCE[kind] * rate
    both = np.bincount(np.minimum(beats // samples, count - 1), weights=matched, minlength=count)
    return np.where(ours >= _LEAST_BEATS, np.clip(2 * both / np.maximum(ours + theirs, 1), 0, 1), 0)


def _nearest(peaks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Signed distance from each peak to the nearest of the others."""
    right = np.clip(np.searchsorted(others, peaks), 1, len(others) - 1)
    left, after = others[right - 1] - peaks, others[right] - peaks
    return np.where(np.abs(left) <= np.abs(after), left, after)


def _rate(beats: np.ndarray, rate: float, samples: int, count: int) -> np.ndarray:
    first, number = _spans(beats, samples, count)
    enough = number >= _LEAST_BEATS
    found = np.full(count, np.nan)
    span = beats[(first + number - 1)[enough]] - beats[first[enough]]
    found[enough] = 60 * rate * (number[enough] - 1) / np.maximum(span, 1)
    return found


def _band_power(raw: np.ndarray, rate: float, kind: Kind) -> np.ndarray:
    window = np.hanning(raw.shape[1])
    power = np.abs(np.fft.rfft((raw - raw.mean(axis=1, keepdims=True)) * window, axis=1)) ** 2
    frequency = np.fft.rfftfreq(raw.shape[1], 1 / rate)
    (low, high), (least, most) = _BANDS[kind]
    band = power[:, (frequency >= low) & (frequency <= high)].sum(axis=1)
    total = power[:, (frequency >= least) & (frequency <= most)].sum(axis=1)
    return band / np.maximum(total, 1e-300)
