"""Who wears the device and what differs between their segments: every parameter of the generator, drawn here.

Effect sizes were set by what the parameters themselves, classical features and the heart rate reveal, not by what an encoder
learns. Age-like and sex-like traits reach the parameters through a saturating curve, beside idiosyncratic offsets of similar
size, and segments then move the same parameters by about twice as much. All of it is ours; only the ordering is realistic.

Legend: P participants, S segments of each, N = P·S segments, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from mc_core.random import sample_rng
from mc_wearables.data.segments import SignalKind

Table = dict[str, np.ndarray]
"""Named columns, a row for each participant or each segment."""

TARGETS: dict[str, tuple[Literal["regression", "classification"], Literal["participant", "segment"]]] = {
    "age": ("regression", "participant"),
    "sex": ("classification", "participant"),
    "af": ("classification", "participant"),
    "nothing": ("classification", "participant"),
    "rhythm": ("classification", "segment"),
    "activity": ("regression", "segment"),
    "rate": ("regression", "segment"),
}
"""Label → what kind of probe it asks for, and whether it belongs to a participant or to a segment."""

SEGMENTS_PER_SESSION = 2
_PEOPLE, _CHANNELS, _SESSIONS, _SEGMENTS, _BEATS, _MOTION, _NOISE = range(7)  # streams of randomness of a participant
_WIDTH = 32  # numbers drawn for each row of a stream; more than any table below takes
_START = 1704067200.0  # 2024-01-01 UTC


class _Draws:
    """Random columns handed out in order: a column added at the end changes none before it."""

    def __init__(self, seed: int, people: range, rows: int, stream: int) -> None:
        generators = [sample_rng(seed, 0, person, stream) for person in people]
        self._normal = np.concatenate([g.standard_normal((rows, _WIDTH)) for g in generators]).T
        # a second sequence: the first rows must stay the same when more are asked for
        generators = [sample_rng(seed, 1, person, stream) for person in people]
        self._uniform = np.concatenate([g.random((rows, _WIDTH)) for g in generators]).T
        self._next = [0, 0]

    def normal(self) -> np.ndarray:
        self._next[0] += 1
        return self._normal[self._next[0] - 1]

    def uniform(self, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        self._next[1] += 1
        return low + (high - low) * self._uniform[self._next[1] - 1]


def draw_participants(seed: int, people: range, kind: SignalKind, devices: int) -> Table:
    """(P,) columns: labels (``age`` in years, ``sex``, ``af``, ``nothing``), ``device``, rhythm and beat shape.

    Args:
        seed: of the split.
        people: numbers of the participants; a participant does not depend on who else is drawn.
        kind: whose beat shape.
        devices: how many there are to own.
    """
    draw = _Draws(seed, people, 1, _PEOPLE)
    age = draw.uniform(20, 80)
    sex = (draw.uniform() < 0.5).astype(np.float64)
    af = (draw.uniform() < 0.05 + 0.3 * (age - 20) / 60).astype(np.float64)
    nothing = (draw.uniform() < 0.5).astype(np.float64)
    old, male = np.tanh(1.2 * (age - 50) / 30), 2 * sex - 1

    def around(middle: float, *, spread: float, age: float = 0.0, sex: float = 0.0) -> np.ndarray:
        return middle * np.exp(age * old + sex * male + spread * draw.normal())

    person: Table = {
        "age": age,
        "sex": sex,
        "af": af,
        "nothing": nothing,
        "device": np.floor(draw.uniform(0, devices)),
        "resting_rate": np.clip(66 + 8 * draw.normal() - 1.5 * male, 42, 100),
        "sdnn": around(0.045, age=-0.30, spread=0.30),
        "low_share": 1 / (1 + np.exp(-0.3 * old - 0.6 * draw.normal())),
        "low_frequency": around(0.095, spread=0.10),
        "breathing": np.clip(around(0.25, spread=0.15), 0.15, 0.42),
        "noise": around(1.0, spread=0.35),
    }
    return person | (_ppg_shape(around) if kind == "ppg" else _ecg_shape(around))


def _ppg_shape(around: Callable[..., np.ndarray]) -> Table:
    """Systolic wave, reflected wave, dicrotic wave: heights relative to the first, times in seconds."""
    return {
        "rise": around(0.075, age=0.10, sex=0.05, spread=0.12),
        "fall": around(0.105, age=0.07, spread=0.10),
        "reflected_delay": around(0.25, age=-0.15, sex=-0.05, spread=0.11),
        "reflected_height": around(0.42, age=0.20, sex=0.10, spread=0.22),
        "reflected_width": around(0.095, spread=0.10),
        "dicrotic_delay": around(0.44, age=-0.04, spread=0.06),
        "dicrotic_height": around(0.20, age=-0.30, spread=0.25),
        "dicrotic_width": around(0.105, spread=0.10),
    }


def _ecg_shape(around: Callable[..., np.ndarray]) -> Table:
    """P, Q, S, T relative to an R wave of 1; ``qrs_width`` is the deviation of R in seconds, times are from R."""
    return {
        "p_height": around(0.13, age=-0.08, spread=0.22),
        "p_time": around(0.16, age=0.09, spread=0.08),
        "p_width": around(0.021, age=0.05, spread=0.10),
        "q_height": around(0.10, spread=0.30),
        "s_height": around(0.24, age=-0.24, sex=0.10, spread=0.30),
        "qrs_width": around(0.0115, age=0.05, sex=0.05, spread=0.09),
        "t_height": around(0.28, age=-0.28, sex=0.10, spread=0.24),
        "t_time": around(0.30, age=0.04, sex=-0.02, spread=0.05),
        "t_width": around(0.046, age=0.05, spread=0.11),
    }


def draw_segments(seed: int, people: range, segments: int, person: Table, kind: SignalKind) -> Table:
    """(N,) columns, participant by participant: each parameter as it is in that segment.

    Activity raises the rate and lowers its variability; half of the segments of someone with AF are in AF; the way the device
    sits (``fit``, mostly a matter of the session) moves the same heights and widths as age and sex, about twice as far.
    """
    sessions = -(-segments // SEGMENTS_PER_SESSION)
    sitting = np.arange(segments) // SEGMENTS_PER_SESSION
    rows = (np.arange(len(people))[:, None] * sessions + sitting).ravel()  # of each segment's session
    shared, draw = _Draws(seed, people, sessions, _SESSIONS), _Draws(seed, people, segments, _SEGMENTS)
    own = {name: np.repeat(column, segments) for name, column in person.items()}

    day = shared.uniform(0.2, 1.8).reshape(len(people), sessions).cumsum(axis=1).ravel()
    fit = 0.8 * shared.normal()[rows] + 0.6 * draw.normal()
    turn = 0.8 * shared.normal()[rows] + 0.6 * draw.normal()
    activity = np.where(draw.uniform() < 0.6, draw.uniform(0, 0.15), draw.uniform(0.15, 1))
    rhythm = own["af"] * (draw.uniform() < 0.5)
    calm = np.exp(-0.8 * activity)
    beats_per_minute = own["resting_rate"] + 2.5 * shared.normal()[rows] + 2 * draw.normal()
    beats_per_minute += 28 * activity * np.exp(0.2 * draw.normal()) + 6 * rhythm

    found = own | {
        "session": rows.astype(np.float64),
        "start": _START + 86400 * day[rows] + 300.0 * np.tile(np.arange(segments) % SEGMENTS_PER_SESSION, len(people)),
        "activity": activity,
        "rhythm": rhythm,
        "target_rate": np.clip(beats_per_minute, 40, 170),
        "sdnn": own["sdnn"] * calm * np.exp(0.2 * draw.normal()),
        "breathing": own["breathing"] * (1 + 0.4 * activity) * np.exp(0.1 * draw.normal()),
        "phase_low": draw.uniform(0, 2 * np.pi),
        "phase_breath": draw.uniform(0, 2 * np.pi),
        "phase_start": draw.uniform(),
        "noise": own["noise"] * np.exp(0.3 * draw.normal() + 0.6 * activity),
        "perfusion": np.exp(0.35 * draw.normal()),
        "drift": np.exp(0.4 * draw.normal()),
        "motion": activity * np.exp(0.5 * draw.normal()),
        "fibrillation": draw.uniform(4, 9),
        "fibrillation_height": 0.05 * np.exp(0.3 * draw.normal()) * rhythm,
    }
    if kind == "ppg":
        found["reflected_height"] = own["reflected_height"] * np.exp(0.25 * fit)
        found["dicrotic_height"] = own["dicrotic_height"] * np.exp(0.15 * fit + 0.15 * turn)
        for name in ("rise", "fall", "reflected_width", "dicrotic_width"):
            found[name] = own[name] * np.exp(0.12 * fit)
        found["reflected_delay"] = own["reflected_delay"] * np.exp(0.07 * turn)
    else:
        found["s_height"] = own["s_height"] * np.exp(0.30 * fit)
        found["t_height"] = own["t_height"] * np.exp(0.20 * fit + 0.20 * turn)
        found["p_height"] = own["p_height"] * np.exp(0.15 * turn) * (1 - rhythm)
        found["q_height"] = own["q_height"] * np.exp(0.25 * turn)
    return found


def draw_channels(seed: int, people: range, channels: int) -> Table:
    """(P, C) columns: what sets the channels of a participant apart (gain, lag in seconds, share of the reflected wave)."""
    drawn = np.stack([sample_rng(seed, 0, person, _CHANNELS).standard_normal((channels, 3)) for person in people])
    first = np.arange(channels) == 0  # the first is the reference
    return {
        "gain": np.exp(0.3 * drawn[..., 0]),
        "lag": np.where(first, 0, 0.010 * np.abs(drawn[..., 1])),
        "reflection": np.where(first, 1, np.exp(0.15 * drawn[..., 2])),
    }


def draw_beats(seed: int, people: range, segments: int, beats: int) -> np.ndarray:
    """(N, beats) standard normal: the irregular part of the intervals."""
    return np.concatenate([sample_rng(seed, 0, i, _BEATS).standard_normal((segments, beats)) for i in people])


def draw_artefacts(seed: int, people: range, segments: int) -> np.ndarray:
    """(N, 16) uniform: when and how the wearer moves."""
    return np.concatenate([sample_rng(seed, 0, i, _MOTION).random((segments, 16)) for i in people])


def draw_noise(seed: int, people: np.ndarray, segments: int, channels: int, samples: int) -> np.ndarray:
    """(N, C, samples) standard normal float32: of the sensor."""
    size = (segments, channels, samples)
    return np.concatenate([sample_rng(seed, 0, int(i), _NOISE).standard_normal(size, dtype=np.float32) for i in people])
