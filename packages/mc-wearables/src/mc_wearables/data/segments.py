"""The one sample type of this package: fixed-length segments of a biosignal, each with its participant.

Legend: N segments, C channels, T samples, P participants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from mc_core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

SignalKind = Literal["ppg", "ecg"]
"""What was measured: an optical pulse wave, or a lead of the electrocardiogram."""

FLAT = 1e-6
"""A channel with a smaller standard deviation, in its own units, is flat: it stays zero instead of being blown up."""


@dataclass(frozen=True)
class Segments:
    """Segments of one kind, rate and length, in memory or memory-mapped.

    Attributes:
        signals: (N, C, T) float16 or float32, z-scored per channel and segment; an array or a memory map.
        sampling_rate: Hz.
        kind: ``"ppg"`` or ``"ecg"``.
        participant: (N,) int64, positions in ``participant_keys``.
        participant_keys: P names of the participants: salted hashes for real people.
        session: (N,) int64, which recording session; equal numbers mean the same sitting.
        start: (N,) float64, seconds since 1970 UTC, NaN where unknown.
        device: (N,) int64, positions in ``devices``.
        devices: names of the devices.
        quality: (N,) float32 from 0 to 1, higher is better; NaN where not assessed.
        labels: (N,) float64 each, NaN where unknown: what is known of single segments (rhythm, activity) or, repeated for
            each of their segments, of participants (age).
        classes: the texts behind a label's numbers 0, 1, …; labels that are numbers are not listed.

    Raises:
        DataError: lengths that do not fit together, or codes outside their tables.

    >>> import numpy as np
    >>> segments = Segments.of(np.random.default_rng(0).normal(size=(4, 1, 8)), 2.0, "ppg", [0, 0, 1, 1])
    >>> len(segments), segments.duration, segments.rows([3, 0]).shape
    (4, 4.0, torch.Size([2, 1, 8]))
    """

    signals: np.ndarray
    sampling_rate: float
    kind: SignalKind
    participant: np.ndarray
    participant_keys: tuple[str, ...]
    session: np.ndarray
    start: np.ndarray
    device: np.ndarray
    devices: tuple[str, ...]
    quality: np.ndarray
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.signals.ndim != 3:
            raise DataError(f"segments need signals of shape (N, C, T), got {self.signals.shape}")
        rows = len(self.signals)
        columns = {
            "participant": self.participant,
            "session": self.session,
            "start": self.start,
            "device": self.device,
            "quality": self.quality,
            **self.labels,
        }
        for name, column in columns.items():
            if column.shape != (rows,):
                raise DataError(f"{name} has shape {column.shape}, but there are {rows} segments")
        for name, codes, table in (
            ("participant", self.participant, self.participant_keys),
            ("device", self.device, self.devices),
        ):
            if rows and (codes.min() < 0 or codes.max() >= len(table)):
                raise DataError(f"{name} codes run from {codes.min()} to {codes.max()}, but there are {len(table)}")
        if not self.sampling_rate > 0:
            raise DataError(f"sampling rate {self.sampling_rate}: give a number of Hz above 0")

    @classmethod
    def of(
        cls,
        signals: np.ndarray,
        sampling_rate: float,
        kind: SignalKind,
        participant: Sequence[int] | np.ndarray,
        *,
        participant_keys: Sequence[str] | None = None,
        session: Sequence[int] | np.ndarray | None = None,
        start: Sequence[float] | np.ndarray | None = None,
        device: Sequence[int] | np.ndarray | None = None,
        devices: Sequence[str] = ("unknown",),
        quality: Sequence[float] | np.ndarray | None = None,
        labels: Mapping[str, np.ndarray] | None = None,
    ) -> Segments:
        """Segments from raw (N, C, T) signals: z-scores them, and fills in what is not known.

        Args:
            signals: in any units, finite.
            sampling_rate: Hz.
            kind: what was measured.
            participant: (N,) whole numbers from 0.
            participant_keys: names of the participants; default: their numbers.
            session: (N,); default: each segment is a session of its own.
            start: (N,) seconds since 1970 UTC.
            device: (N,) positions in ``devices``.
            devices: names.
            quality: (N,) from 0 to 1.
            labels: (N,) each.
        """
        signals = standardise(np.asarray(signals, dtype=np.float32))
        rows = len(signals)
        people = np.asarray(participant, dtype=np.int64)
        keys = participant_keys or [str(i) for i in range(int(people.max()) + 1 if len(people) else 0)]
        return cls(
            signals=signals,
            sampling_rate=float(sampling_rate),
            kind=kind,
            participant=people,
            participant_keys=tuple(keys),
            session=np.arange(rows) if session is None else np.asarray(session, dtype=np.int64),
            start=np.full(rows, np.nan) if start is None else np.asarray(start, dtype=np.float64),
            device=np.zeros(rows, dtype=np.int64) if device is None else np.asarray(device, dtype=np.int64),
            devices=tuple(devices),
            quality=np.full(rows, np.nan, dtype=np.float32)
            if quality is None
            else np.asarray(quality, dtype=np.float32),
            labels={name: np.asarray(column, dtype=np.float64) for name, column in (labels or {}).items()},
        )

    def __len__(self) -> int:
        return len(self.signals)

    @property
    def channels(self) -> int:
        """C."""
        return self.signals.shape[1]

    @property
    def targets(self) -> dict[str, np.ndarray]:
        """The labels as numbers that mean something: of more than two classes each against the rest, as ``rhythm=AFIB``."""
        found: dict[str, np.ndarray] = {}
        for name, column in self.labels.items():
            words = self.classes.get(name, ())
            if len(words) <= 2:
                found[name] = column
                continue
            for number, word in enumerate(words):
                found[f"{name}={word}"] = np.where(np.isnan(column), np.nan, column == number)
        return found

    @property
    def samples(self) -> int:
        """T."""
        return self.signals.shape[2]

    @property
    def duration(self) -> float:
        """Seconds of a segment."""
        return self.samples / self.sampling_rate

    def rows(self, index: Sequence[int] | np.ndarray) -> Tensor:
        """(n, C, T) float32 of the segments at ``index``, copied out of the memory map."""
        import torch  # here, because ingest cuts segments without it, in half the time

        # NumPy copies rows out of a map faster than torch, torch widens float16 twenty times as fast as NumPy
        return torch.from_numpy(np.asarray(self.signals[np.asarray(index, dtype=np.int64)])).float()

    def where(self, chosen: np.ndarray) -> Segments:
        """The segments at ``chosen`` (booleans or positions); participants and devices keep their codes."""
        rows = np.flatnonzero(chosen) if chosen.dtype == bool else np.asarray(chosen, dtype=np.int64)
        return replace(
            self,
            signals=self.signals[rows],
            participant=self.participant[rows],
            session=self.session[rows],
            start=self.start[rows],
            device=self.device[rows],
            quality=self.quality[rows],
            labels={name: column[rows] for name, column in self.labels.items()},
        )

    def of_participants(self, codes: Sequence[int] | np.ndarray) -> Segments:
        """All segments of the participants ``codes``."""
        return self.where(np.isin(self.participant, np.asarray(codes)))


def standardise(signals: np.ndarray) -> np.ndarray:
    """Z-score of each channel of each segment, over its last axis; a flat channel becomes zero.

    >>> standardise(np.array([[1.0, 3.0], [5.0, 5.0]])).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    centred = signals - signals.mean(axis=-1, keepdims=True)
    spread = centred.std(axis=-1, keepdims=True)
    return np.where(spread > FLAT, centred / np.maximum(spread, FLAT), 0).astype(signals.dtype)
