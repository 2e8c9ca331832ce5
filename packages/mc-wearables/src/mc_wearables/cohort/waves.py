"""From parameters to a signal in closed form: intervals, beat times, time since the beat, a sum of Gaussians, artefacts.

Everything works on many segments at once; there is no loop over segments, beats or samples.

Legend: M segments, K beats, C channels, T samples at the device's own rate. Times are seconds, 0 is where the segment begins.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mc_wearables.cohort.traits import Table

PAD = 1.0
"""Seconds generated on either side of a segment, so that filters settle outside of it."""
_SHORTEST, _LONGEST = 0.3, 2.0  # of an interval, seconds
_AF_SPREAD = 0.22


def beats_needed(seconds: float) -> int:
    """How many beats cover ``seconds`` and the padding at the highest rate."""
    return int(np.ceil((seconds + 2 * PAD) / _SHORTEST)) + 4


def beat_times(segment: Table, irregular_MK: np.ndarray) -> np.ndarray:
    """(M, K) times of the beats. Two of them lie before the padding begins.

    In sinus rhythm the intervals are the mean plus a slow wave, a breathing wave and noise, together as wide as SDNN; in atrial
    fibrillation they are independent and log-normal (σ 0.22).
    """
    mean_M1 = 60 / segment["target_rate"][:, None]
    place_MK = np.arange(irregular_MK.shape[1]) * mean_M1
    low_M1 = 0.85 * segment["low_share"][:, None]  # shares of the variance; 0.15 is left to noise
    slow = np.sin(2 * np.pi * segment["low_frequency"][:, None] * place_MK + segment["phase_low"][:, None])
    breath = np.sin(2 * np.pi * segment["breathing"][:, None] * place_MK + segment["phase_breath"][:, None])
    wave_MK = np.sqrt(2 * low_M1) * slow + np.sqrt(2 * (0.85 - low_M1)) * breath + np.sqrt(0.15) * irregular_MK
    sinus_MK = mean_M1 + segment["sdnn"][:, None] * wave_MK
    af_MK = mean_M1 * np.exp(_AF_SPREAD * irregular_MK - _AF_SPREAD**2 / 2)
    interval_MK = np.where(segment["rhythm"][:, None] > 0, af_MK, sinus_MK).clip(_SHORTEST, _LONGEST)
    first_M1 = -PAD - (1 + segment["phase_start"][:, None]) * interval_MK[:, :1]
    return first_M1 + np.concatenate([np.zeros_like(first_M1), interval_MK[:, :-1].cumsum(axis=1)], axis=1)


def _neighbours(beats_MK: np.ndarray, time_T: np.ndarray, rate: float) -> Iterator[np.ndarray]:
    """(M, T) numbers of the last beat, of the one before, and of the next, for each sample."""
    samples = len(time_T)
    begins_MK = np.ceil((beats_MK - time_T[0]) * rate - 1e-9).clip(0, samples).astype(np.int64)
    marks = np.bincount(
        (begins_MK + np.arange(len(beats_MK))[:, None] * (samples + 1)).ravel(), minlength=len(beats_MK) * (samples + 1)
    )
    last_MT = marks.reshape(len(beats_MK), samples + 1)[:, :samples].cumsum(axis=1) - 1
    yield from (last_MT, last_MT - 1, last_MT + 1)


def ppg_wave(segment: Table, channel: Table, beats_MK: np.ndarray, time_T: np.ndarray, rate: float) -> np.ndarray:
    """(M, C, T) float32: systolic wave (its peak is the beat), reflected wave and dicrotic wave, each channel a little later.

    Beats after a short interval are weaker, as the heart had less time to fill.
    """
    interval_MK = np.diff(beats_MK, axis=1, prepend=beats_MK[:, :1] - 60 / segment["target_rate"][:, None])
    relative_MK = interval_MK * segment["target_rate"][:, None] / 60
    strength_MK = (relative_MK.clip(0.4, 1.6) ** 0.6).astype(np.float32)
    pace_MK = (interval_MK**0.3).astype(np.float32)
    single = {name: column[:, None, None].astype(np.float32) for name, column in segment.items()}
    lag_MC1, reflection_MC1 = (channel[name][..., None].astype(np.float32) for name in ("lag", "reflection"))
    found = np.zeros((*lag_MC1.shape[:2], len(time_T)), dtype=np.float32)
    for beat_MT in _neighbours(beats_MK, time_T, rate):
        since = (time_T - np.take_along_axis(beats_MK, beat_MT, axis=1)).astype(np.float32)[:, None] - lag_MC1
        strength, pace = (np.take_along_axis(x, beat_MT, axis=1)[:, None] for x in (strength_MK, pace_MK))
        pulse = _bell(since, np.where(since < 0, single["rise"], single["fall"]))
        for name in ("reflected", "dicrotic"):
            height = single[f"{name}_height"] * reflection_MC1
            pulse += height * _bell(since - single[f"{name}_delay"] * pace, single[f"{name}_width"])
        found += strength * pulse
    return found * (single["perfusion"] * channel["gain"][..., None].astype(np.float32))


def ecg_wave(segment: Table, beats_MK: np.ndarray, time_T: np.ndarray, rate: float) -> np.ndarray:
    """(M, 1, T) float32: P, Q, R (its peak is the beat), S and T, with fibrillatory waves in place of P in AF.

    The T wave comes later after long intervals (square root, after Bazett).
    """
    interval_MK = np.diff(beats_MK, axis=1, prepend=beats_MK[:, :1] - 60 / segment["target_rate"][:, None])
    pace_MK = np.sqrt(interval_MK).astype(np.float32)
    single = {name: column[:, None].astype(np.float32) for name, column in segment.items()}
    width = single["qrs_width"]
    found = np.zeros((len(beats_MK), len(time_T)), dtype=np.float32)
    for beat_MT in _neighbours(beats_MK, time_T, rate):
        since = (time_T - np.take_along_axis(beats_MK, beat_MT, axis=1)).astype(np.float32)
        pace = np.take_along_axis(pace_MK, beat_MT, axis=1)
        found += single["p_height"] * _bell(since + single["p_time"], single["p_width"])
        found -= single["q_height"] * _bell(since + 2.3 * width, 0.8 * width)
        found += _bell(since, width)
        found -= single["s_height"] * _bell(since - 2.3 * width, 0.9 * width)
        late = since - single["t_time"] * pace
        found += single["t_height"] * _bell(late, np.where(late < 0, 1.2, 0.9) * single["t_width"])
    wander = 0.5 * np.sin(0.9 * time_T + single["phase_breath"])  # the fibrillation does not tick like a clock
    found += single["fibrillation_height"] * np.sin(2 * np.pi * single["fibrillation"] * time_T + 3 * wander)
    return found[:, None]


def artefacts(segment: Table, time_T: np.ndarray, uniform_MU: np.ndarray) -> np.ndarray:
    """(M, T) float32, to be added to every channel: breathing and drift below 0.4 Hz, and one to three bursts of motion.

    Args:
        segment: columns ``drift``, ``motion``, ``breathing``, ``phase_breath``.
        time_T: seconds.
        uniform_MU: (M, 16) uniform numbers.
    """
    single = {name: segment[name][:, None] for name in ("drift", "motion", "breathing", "phase_breath")}
    u = uniform_MU.T[:, :, None]
    length = time_T[-1] - time_T[0]
    found = 0.5 * np.sin(2 * np.pi * single["breathing"] * time_T + single["phase_breath"])
    found += np.sin(2 * np.pi * ((0.03 + 0.12 * u[0]) * time_T + u[1]))
    found *= 0.25 * single["drift"]
    for burst in range(3):
        present, centre, width, frequency, phase = u[2 + burst], *(u[5 + burst + 3 * i] for i in range(3)), u[14]
        angle = 2 * np.pi * ((0.7 + 2.3 * frequency) * time_T + phase)
        window = _bell(time_T - (time_T[0] + length * centre), 0.5 + 1.5 * width)
        share = 1.0 if burst == 0 else (present < 0.5)
        found += 0.9 * share * single["motion"] * window * (np.sin(angle) + 0.5 * np.sin(2 * angle + 1))
    return found.astype(np.float32)


def _bell(x: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    return np.exp(-0.5 * (x / width) ** 2)
