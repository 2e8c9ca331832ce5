"""From a recording to segments of one length and rate, with the reason for each that was rejected.

Gaps split a recording into runs; whole runs are filtered and resampled, then cut, so that no segment has the edges of a filter.
What counts as a gap, flat or saturated is our choice (the paper names none) and is set by ``IngestOptions``.

Legend: C channels, T samples, N segments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_wearables.data.config import IngestOptions
from mc_wearables.data.quality import Quality, assess
from mc_wearables.data.recording import Recording
from mc_wearables.data.resampling import check_rate, clean, resample

if TYPE_CHECKING:
    from mc_wearables.data.segments import Segments

REASONS = {
    "short_recording": "the recording is shorter than a segment",
    "short_run": "between two gaps, shorter than a segment",
    "remainder": "the end of a run, shorter than a segment",
    "missing": "a hole without samples",
    "filled": "too many missing samples",
    "flat": "a flat line",
    "clipped": "at the limits of its range",
    "no_signal": "not one sample is there",
    "not_finite": "overflowed in the filter",
}
_FLAT_SECONDS = 1.0
_PLATEAU_SECONDS = 0.04
_SAME = 1e-6  # of the range of the recording


class Rejection(NamedTuple):
    """A stretch that became no segment: seconds from the start of the recording, its length, and a key of ``REASONS``."""

    offset: float
    seconds: float
    reason: str


@dataclass(frozen=True)
class Cut:
    """The segments of one recording.

    Attributes:
        signals: (N, C, T) float32, z-scored per channel and segment.
        offset: (N,) seconds from the start of the recording.
        amplitude: (N,) mean over channels of the standard deviation before z-scoring, in the units of the recording.
        filled: (N,) share of samples that were missing.
        flat: (N,) share in flat lines.
        clipped: (N,) share at the limits of the range.
        quality: scores of the segments.
        rejected: the rest of the recording.
    """

    signals: np.ndarray
    offset: np.ndarray
    amplitude: np.ndarray
    filled: np.ndarray
    flat: np.ndarray
    clipped: np.ndarray
    quality: Quality
    rejected: tuple[Rejection, ...]

    @property
    def index(self) -> np.ndarray:
        """(N,) one figure for the quality, 0 to 1."""
        return self.quality.index(self.filled + np.maximum(self.flat, self.clipped))


def cut_segments(recording: Recording, options: IngestOptions) -> Cut:
    """Segments of ``options.segment_seconds`` at ``options.segment_rate``, one after the other, and what was rejected.

    Args:
        recording: NaN or infinite where samples are missing; a sample missing in one channel is missing.
        options: lengths, rates, thresholds.

    Raises:
        DataError: the sampling rate cannot hold the signal.
        ConfigError: the recording is of another kind.

    >>> t = np.arange(64 * 130) / 64
    >>> pulse = Recording(np.sin(2 * np.pi * 1.2 * t)[None].astype(np.float32), 64.0, "p1", "ppg", ("BVP",), "a.u.")
    >>> cut = cut_segments(pulse, IngestOptions(signal="ppg"))
    >>> cut.signals.shape, [tuple(r) for r in cut.rejected]
    ((2, 1, 3840), [(120.0, 10.0, 'remainder')])
    """
    if recording.kind != options.signal:
        raise ConfigError(f"{recording.source or 'recording'} is {recording.kind}, but signal is {options.signal}")
    rate = recording.sampling_rate
    check_rate(rate, options, recording.source or "recording")
    signal = recording.signal.astype(np.float64)
    missing = np.any(~np.isfinite(signal), axis=0, keepdims=True)[0]
    signal[:, missing] = np.nan
    length = signal.shape[1]
    empty = _empty(len(signal), options)
    if missing.all():
        return _merge([], (Rejection(0.0, recording.seconds, "no_signal"),), empty)
    if recording.seconds < options.segment_seconds * (1 - 1e-9):
        return _merge([], (Rejection(0.0, recording.seconds, "short_recording"),), empty)
    flat, clipped = _flat(signal, missing, rate), _clipped(signal, missing, rate)
    runs = _runs(missing, round(options.hole_seconds * rate))
    rejected = _holes(runs, length, rate)
    cuts = []
    for begin, end in runs:
        if (end - begin) / rate < options.segment_seconds * (1 - 1e-9):
            reason = "short_run" if (begin, end) != (0, length) else "short_recording"
            rejected.append(Rejection(begin / rate, (end - begin) / rate, reason))
            continue
        part = slice(begin, end)
        cut = _cut_run(signal[:, part], missing[part], flat[part], clipped[part], begin / rate, rate, options)
        cuts.append(cut)
        rejected += cut.rejected
    return _merge(cuts, tuple(sorted(rejected)), empty)


def segment_recordings(recordings: Iterable[Recording], options: IngestOptions) -> Segments:
    """Segments in memory, for one signal or a few; a cohort belongs in a store (:func:`mc_wearables.data.ingestion.ingest`).

    Participants keep their raw ids as keys: nothing is written.

    Raises:
        DataError: not one segment came out; the message says why.
    """
    from mc_wearables.data.segments import Segments

    cuts = [(recording, cut_segments(recording, options)) for recording in recordings]
    rows = [len(cut.signals) for _, cut in cuts]
    if not sum(rows):
        reasons = sorted({rejection.reason for _, cut in cuts for rejection in cut.rejected})
        raise DataError(
            f"no segment of {options.segment_seconds:g} s: "
            + ("; ".join(REASONS[reason] for reason in reasons) or "no recording")
        )
    people = list(dict.fromkeys(recording.participant for recording, _ in cuts))
    devices = list(dict.fromkeys(recording.device for recording, _ in cuts))
    sittings = list(dict.fromkeys((recording.participant, recording.session) for recording, _ in cuts))
    names = sorted(
        {name for recording, _ in cuts for name, value in recording.labels.items() if isinstance(value, float)}
    )
    return Segments(
        signals=np.concatenate([cut.signals for _, cut in cuts]),
        sampling_rate=options.segment_rate,
        kind=options.signal,
        participant=np.repeat([people.index(recording.participant) for recording, _ in cuts], rows),
        participant_keys=tuple(people),
        session=np.repeat([sittings.index((recording.participant, recording.session)) for recording, _ in cuts], rows),
        start=np.concatenate([cut.offset + (np.nan if r.start is None else r.start) for r, cut in cuts]),
        device=np.repeat([devices.index(recording.device) for recording, _ in cuts], rows),
        devices=tuple(devices),
        quality=np.concatenate([cut.index for _, cut in cuts]),
        labels={
            name: np.repeat([_number(recording.labels.get(name)) for recording, _ in cuts], rows) for name in names
        },
    )


def _number(value: object) -> float:
    return value if isinstance(value, float) else np.nan


def _runs(missing: np.ndarray, longest_hole: int) -> list[tuple[int, int]]:
    """Stretches without a hole of more than ``longest_hole`` samples, from a sample that is there to one that is."""
    there = np.flatnonzero(~missing)
    breaks = np.flatnonzero(np.diff(there) - 1 > longest_hole)
    starts = there[np.concatenate([[0], breaks + 1])]
    ends = there[np.concatenate([breaks, [len(there) - 1]])] + 1
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _holes(runs: list[tuple[int, int]], length: int, rate: float) -> list[Rejection]:
    """What lies before, between and after the runs."""
    edges = [0, *(edge for run in runs for edge in run), length]
    return [
        Rejection(a / rate, (b - a) / rate, "missing") for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a
    ]


def _lengths(marked: np.ndarray) -> np.ndarray:
    """For each marked sample, how many marked samples in a row it belongs to; 0 elsewhere."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]]).astype(np.int8)))
    sizes = np.zeros(len(marked), dtype=np.int64)
    starts, ends = edges[::2], edges[1::2]
    sizes[marked] = np.repeat(ends - starts, ends - starts)
    return sizes


def _flat(signal: np.ndarray, missing: np.ndarray, rate: float) -> np.ndarray:
    """Samples in a stretch of a second or more without any change, in any channel."""
    found = np.zeros(signal.shape[1], dtype=bool)
    for channel in signal:
        there = channel[~missing]
        step = np.abs(np.diff(channel, prepend=np.nan)) <= _SAME * (there.max() - there.min())
        still = step | np.append(step[1:], False)
        found |= _lengths(still & ~missing) >= _FLAT_SECONDS * rate
    return found


def _clipped(signal: np.ndarray, missing: np.ndarray, rate: float) -> np.ndarray:
    """Samples on a plateau at the highest or lowest value of the recording, in any channel."""
    least = max(3, round(_PLATEAU_SECONDS * rate))
    found = np.zeros(signal.shape[1], dtype=bool)
    for channel in signal:
        there = channel[~missing]
        low, high = there.min(), there.max()
        for limit in (low, high):
            at = np.abs(channel - limit) <= _SAME * (high - low)
            found |= _lengths(at & ~missing) >= least
    return found


def _cut_run(
    signal: np.ndarray,
    missing: np.ndarray,
    flat: np.ndarray,
    clipped: np.ndarray,
    offset: float,
    rate: float,
    options: IngestOptions,
) -> Cut:
    """Segments of one run: fill, filter, resample, cut, check, z-score."""
    from mc_wearables.data.segments import standardise

    here = np.arange(signal.shape[1])
    if missing.any():
        signal = np.stack([np.interp(here, here[~missing], channel[~missing]) for channel in signal])
    target, samples, seconds = options.segment_rate, options.samples, options.segment_seconds
    cleaned = resample(clean(signal, rate, options), rate, target)
    raw = resample(signal, rate, target)
    # rounding of the ratio may cost the last sample of a run that is just long enough
    count = int(np.floor(signal.shape[1] / rate / seconds + 1e-9))
    short = count * samples - cleaned.shape[1]
    if short > 0:
        cleaned, raw = (np.pad(x, ((0, 0), (0, short)), mode="edge") for x in (cleaned, raw))
    edges = np.round(np.arange(count + 1) * seconds * rate).astype(int).clip(max=signal.shape[1])
    share = {name: _share(mask, edges) for name, mask in (("filled", missing), ("flat", flat), ("clipped", clipped))}
    scores = assess(cleaned[:, : count * samples], raw[:, : count * samples], target, samples, options.signal)
    cut_NCT = cleaned[:, : count * samples].reshape(len(cleaned), count, samples).swapaxes(0, 1)
    finite = np.isfinite(cut_NCT).all(axis=(1, 2))
    limits = {"filled": options.max_filled, "flat": options.max_flat, "clipped": options.max_clipped}
    reason = np.full(count, "", dtype="U16")
    for name, limit in limits.items():
        reason[(reason == "") & (share[name] > limit)] = name
    reason[(reason == "") & ~finite] = "not_finite"
    offsets = offset + np.arange(count) * seconds
    rejected = [Rejection(float(offsets[i]), seconds, str(reason[i])) for i in np.flatnonzero(reason != "")]
    rest = signal.shape[1] / rate - count * seconds
    if rest * rate >= 1:
        rejected.append(Rejection(offset + count * seconds, rest, "remainder"))
    kept = reason == ""
    signals = standardise(cut_NCT[kept])
    holes = missing & (_lengths(missing) > options.fill_seconds * rate)
    if holes.any():
        # a longer hole is a blank for the model, not a line that nobody measured
        place = np.minimum(np.round(np.arange(count * samples) / target * rate).astype(int), len(holes) - 1)
        signals = np.where(holes[place].reshape(count, 1, samples)[kept], 0, signals)
    return Cut(
        signals=signals.astype(np.float32),
        offset=offsets[kept],
        amplitude=cut_NCT[kept].std(axis=2).mean(axis=1).astype(np.float32),
        filled=share["filled"][kept],
        flat=share["flat"][kept],
        clipped=share["clipped"][kept],
        quality=Quality(scores.template[kept], scores.agreement[kept], scores.rate[kept], scores.band_power[kept]),
        rejected=tuple(rejected),
    )


def _share(mask: np.ndarray, edges: np.ndarray) -> np.ndarray:
    total = np.concatenate([[0], np.cumsum(mask)])[edges]
    return (np.diff(total) / np.maximum(np.diff(edges), 1)).astype(np.float32)


def _empty(channels: int, options: IngestOptions) -> Cut:
    none = np.zeros(0, dtype=np.float32)
    quality = Quality(none, none, none, none)
    signals = np.zeros((0, channels, options.samples), dtype=np.float32)
    return Cut(signals, np.zeros(0), none, none, none, none, quality, ())


def _merge(cuts: list[Cut], rejected: tuple[Rejection, ...], empty: Cut) -> Cut:
    parts = [empty, *cuts]

    def joined(column: Callable[[Cut], np.ndarray]) -> np.ndarray:
        return np.concatenate([column(cut) for cut in parts])

    return Cut(
        signals=joined(lambda cut: cut.signals),
        offset=joined(lambda cut: cut.offset),
        amplitude=joined(lambda cut: cut.amplitude),
        filled=joined(lambda cut: cut.filled),
        flat=joined(lambda cut: cut.flat),
        clipped=joined(lambda cut: cut.clipped),
        quality=Quality(
            template=joined(lambda cut: cut.quality.template),
            agreement=joined(lambda cut: cut.quality.agreement),
            rate=joined(lambda cut: cut.quality.rate),
            band_power=joined(lambda cut: cut.quality.band_power),
        ),
        rejected=rejected,
    )
