"""The simulated cohort: participants, their devices, their segments, and the ceiling of what can be read from them.

neurokit2's simulators cannot stand in for people: the pulse shape of ``ppg_simulate`` is fixed, and ``ecg_simulate`` costs a
quarter of a second a segment and knows no fibrillation. This generator costs about a millisecond.

Legend: N segments, P participants, S segments of each, C channels, T samples, F oracle features, K beats.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np

from mc_core.errors import ConfigError
from mc_core.random import derive_seed
from mc_wearables.cohort.traits import (
    TARGETS,
    Table,
    draw_artefacts,
    draw_beats,
    draw_channels,
    draw_noise,
    draw_participants,
    draw_segments,
)
from mc_wearables.cohort.waves import PAD, artefacts, beat_times, beats_needed, ecg_wave, ppg_wave
from mc_wearables.data.segments import Segments, SignalKind

_SPLITS = {"train": 0x7EA1, "test": 0x7E57}
_ROWS_AT_ONCE = 64  # bounds memory, changes no number


class Device(NamedTuple):
    """What wears off on a signal.

    Attributes:
        name: of the device.
        native_rate: Hz at which it samples.
        band: Hz, edges of its filter.
        step: of its converter, in units of a normal pulse (PPG) or R wave (ECG).
        noise: deviation of its sensor, in the same units, times that of the participant.
    """

    name: str
    native_rate: float
    band: tuple[float, float]
    step: float
    noise: float


DEVICES: dict[SignalKind, tuple[Device, ...]] = {
    "ppg": (
        Device("wrist-64", 64.0, (0.5, 8.0), 0.01, 0.12),
        Device("wrist-128", 128.0, (0.5, 12.0), 0.004, 0.16),
        Device("ring-50", 50.0, (0.4, 5.0), 0.02, 0.10),
    ),
    "ecg": (
        Device("watch-256", 256.0, (0.5, 40.0), 0.005, 0.05),
        Device("watch-500", 500.0, (0.5, 40.0), 0.002, 0.07),
        Device("patch-250", 250.0, (0.67, 20.0), 0.01, 0.04),
    ),
}
"""Devices that participants own, one each and independent of every label: what a shortcut test looks for."""


@dataclass(frozen=True)
class Oracle:
    """What the generator's own parameters allow: features to probe as a ceiling. Heights and times as logarithms.

    Attributes:
        names: F.
        segment: (N, F) float32, the parameters each segment was made with.
        participant: (P, F) float32, those of the participants without what segments add; ``rhythm`` is the share of their
            segments in atrial fibrillation.
    """

    names: tuple[str, ...]
    segment: np.ndarray
    participant: np.ndarray


@dataclass(frozen=True)
class Cohort:
    """A simulated cohort.

    Attributes:
        segments: with labels :data:`TARGETS`: ``age`` (years), ``sex`` and ``af`` (0 or 1, of participants), ``nothing`` (a coin
            per participant that leaves no trace in the signal), ``rhythm`` (1 in atrial fibrillation), ``activity`` (0 to 1),
            ``rate`` (beats per minute, as generated).
        oracle: the ceiling.
        beats: (N, K) float32, seconds from the start of the segment to each R peak or systolic peak, NaN beyond the last.
    """

    segments: Segments
    oracle: Oracle
    beats: np.ndarray


def simulate_cohort(
    kind: SignalKind,
    *,
    participants: int,
    segments: int,
    seconds: float,
    sampling_rate: float,
    channels: int = 1,
    seed: int = 0,
    split: Literal["train", "test"] = "train",
) -> Cohort:
    """People with their own rate, variability, beat shape, rhythm, noise and device, and several segments of each.

    A participant's first segments are the same whatever ``participants`` and ``segments`` are. The signal is generated at the
    device's native rate, quantised, filtered, resampled with anti-aliasing, and z-scored.

    Args:
        kind: ``"ppg"`` or ``"ecg"``.
        participants: P.
        segments: S of each participant; two make a session.
        seconds: length of a segment.
        sampling_rate: Hz of the result.
        channels: C; an ECG has one.
        seed: of the cohort.
        split: ``"train"`` and ``"test"`` people come from different branches of the seed.

    Raises:
        ConfigError: sizes that cannot be.

    >>> cohort = simulate_cohort("ppg", participants=3, segments=2, seconds=8, sampling_rate=32, channels=2)
    >>> cohort.segments.signals.shape, sorted(cohort.segments.labels)
    ((6, 2, 256), ['activity', 'af', 'age', 'nothing', 'rate', 'rhythm', 'sex'])
    """
    _check(kind, participants, segments, seconds, sampling_rate, channels, split)
    people, branch = range(participants), derive_seed(seed, _SPLITS[split], list(DEVICES).index(kind))
    person = draw_participants(branch, people, kind, len(DEVICES[kind]))
    segment = draw_segments(branch, people, segments, person, kind)
    channel = {name: column.repeat(segments, 0) for name, column in draw_channels(branch, people, channels).items()}
    beats = beat_times(segment, draw_beats(branch, people, segments, beats_needed(seconds)))
    motion = draw_artefacts(branch, people, segments)

    samples = round(seconds * sampling_rate)
    signals = np.empty((participants * segments, channels, samples), dtype=np.float32)
    for code, device in enumerate(DEVICES[kind]):
        owners = np.flatnonzero(person["device"] == code)
        for block in np.array_split(owners, max(1, -(-len(owners) * segments // _ROWS_AT_ONCE))):
            if len(block):
                rows = (block[:, None] * segments + np.arange(segments)).ravel()
                time = np.arange(round((seconds + 2 * PAD) * device.native_rate)) / device.native_rate - PAD
                noise = draw_noise(branch, block, segments, channels, len(time))
                part = {name: column[rows] for name, column in segment.items()}
                wave = (
                    ecg_wave(part, beats[rows], time, device.native_rate)
                    if kind == "ecg"
                    else ppg_wave(part, {n: c[rows] for n, c in channel.items()}, beats[rows], time, device.native_rate)
                )
                wave += artefacts(part, time, motion[rows])[:, None]
                wave += (device.noise * part["noise"]).astype(np.float32)[:, None, None] * noise
                signals[rows] = _measured(wave, device, sampling_rate, samples)

    inside = np.where((beats >= 0) & (beats < seconds), beats, np.nan)
    segment["rate"] = _mean_rate(beats, seconds)
    return Cohort(
        Segments.of(
            signals,
            sampling_rate,
            kind,
            np.repeat(np.arange(participants), segments),
            participant_keys=[f"simulated-{split}-{i:05d}" for i in people],
            session=segment["session"].astype(np.int64),
            start=segment["start"],
            device=segment["device"].astype(np.int64),
            devices=[device.name for device in DEVICES[kind]],
            labels={name: segment[name] for name in TARGETS},
        ),
        _oracle(person, segment, segments),
        np.sort(inside, axis=1).astype(np.float32),
    )


def _measured(wave: np.ndarray, device: Device, sampling_rate: float, samples: int) -> np.ndarray:
    """(M, C, samples): the wave as the device stores it, resampled and cut to the segment."""
    from scipy.signal import butter, resample_poly, sosfiltfilt

    counts = np.round(wave / device.step) * device.step
    filtered = sosfiltfilt(butter(2, device.band, "bandpass", fs=device.native_rate, output="sos"), counts, axis=-1)
    ratio = Fraction(sampling_rate / device.native_rate).limit_denominator(1000)
    resampled = resample_poly(filtered, ratio.numerator, ratio.denominator, axis=-1)
    begin = round(PAD * sampling_rate)
    return resampled[..., begin : begin + samples].astype(np.float32)


def _mean_rate(beats: np.ndarray, seconds: float) -> np.ndarray:
    """(N,) beats per minute: beats in the segment, the cut intervals at its ends counted by their share."""
    row, phase = np.arange(len(beats)), []
    for end in (0.0, seconds):
        last = (beats <= end).sum(axis=1) - 1
        before, after = beats[row, last], beats[row, last + 1]
        phase.append(last + (end - before) / (after - before))
    return (phase[1] - phase[0]) * 60 / seconds


def _oracle(person: Table, segment: Table, segments: int) -> Oracle:
    shape = [name for name in person if name.endswith(("height", "width", "delay", "time")) or name in ("rise", "fall")]
    rhythmic = ["sdnn", "breathing", "noise"]
    per_segment = {"rate": segment["target_rate"], "low_share": segment["low_share"], "rhythm": segment["rhythm"]}
    per_person = {
        "rate": person["resting_rate"],
        "low_share": person["low_share"],
        "rhythm": segment["rhythm"].reshape(-1, segments).mean(axis=1),
    }
    for name in shape + rhythmic:
        # no P wave in fibrillation: the participant's own stands in, `rhythm` says that it is not seen
        missing = segment[name] <= 0
        per_segment[name] = np.log(np.where(missing, np.repeat(person[name], segments), segment[name]))
        per_person[name] = np.log(person[name])
    for name, column in (("motion", segment["motion"]), ("log_motion", np.log(segment["motion"]))):
        per_segment[name], per_person[name] = column, np.zeros(len(person["age"]))  # nobody is active by nature
    names = tuple(per_segment)
    return Oracle(
        names,
        np.stack([per_segment[name] for name in names], axis=1).astype(np.float32),
        np.stack([per_person[name] for name in names], axis=1).astype(np.float32),
    )


def _check(
    kind: str, participants: int, segments: int, seconds: float, sampling_rate: float, channels: int, split: str
) -> None:
    if kind not in DEVICES:
        raise ConfigError(f"signal kind {kind!r}: 'ppg' or 'ecg'")
    if split not in _SPLITS:
        raise ConfigError(f"split {split!r}: 'train' or 'test'")
    if participants < 1 or segments < 1 or channels < 1:
        raise ConfigError(
            f"participants={participants}, segments={segments}, channels={channels}: all must be 1 or more"
        )
    if kind == "ecg" and channels != 1:
        raise ConfigError(f"channels={channels}: the simulated ECG is lead I alone, give 1")
    if not 16 <= sampling_rate <= 1000:
        raise ConfigError(f"sampling_rate={sampling_rate} Hz: from 16 to 1000 for a simulated cohort")
    samples = seconds * sampling_rate
    if not 2 <= seconds <= 600 or abs(samples - round(samples)) > 1e-6:
        raise ConfigError(
            f"seconds={seconds} at {sampling_rate} Hz make {samples:g} samples: "
            "take 2 to 600 seconds that hold a whole number of them"
        )
