"""Positive pairs for training: two segments of one person, a person once in an epoch.

An epoch counts people, not segments, so each person has the same share and no batch holds a person twice: a second pair
of a person would be a false negative. What a person's pair is, is drawn anew in each epoch; for more draws, train for
more epochs. (Several rounds of people in one epoch could not keep people apart within a batch: batches are slices of one
permutation, drawn outside of the data.)

Legend: N segments, A usable ones in the order of people, P usable people, B pairs, C channels, T time steps.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mc_core.errors import ConfigError, DataError
from mc_core.random import BatchRandom, uniform
from mc_wearables.augment import make_view
from mc_wearables.augment_config import AugmentConfig
from mc_wearables.data.segments import Segments

PairKind = Literal["participant", "session", "segment"]
"""What the two views of a pair share: the person, the recording session, or the segment itself."""

_STREAM = 0x9A1  # of the random numbers that choose segments
_MILLISECONDS = 3_600_000  # in an hour


class PairData:
    """Pairs of segments of the same person, as random views; follows the data contract of :mod:`mc_core.data`.

    A batch holds ``view_1`` and ``view_2``, (B, C, T) float32; ``ids``, (B,) the participants; and ``segments``, (B, 2) the
    positions of the pair. Choosing takes constant time per pair, however many segments a person has. Views are changed at
    random on the device of the batch.

    Args:
        segments: z-scored.
        pair: ``"participant"``: two different segments of a person (the paper); ``"session"``: of one recording session
            of a person, which keeps what changes between sessions (ours); ``"segment"``: twice the same one.
        min_gap: hours that must lie between the beginnings of the two, so that one posture or one fit of the strap does not
            make the pair too easy (ours). Not for ``"segment"``.
        min_segments: people with fewer segments are left out, also for ``"segment"``, so that both kinds of pairs train on
            the same people. The paper's number is not published.
        quality_floor: segments of lower quality are left out; those that were not assessed stay.
        augment: random changes of each view; None for none.

    Attributes:
        people: (P,) int64, the participants in the order of this data set.

    Raises:
        ConfigError: an unknown ``pair``, or numbers out of range.
        DataError: fewer than two people have a pair, or ``min_gap`` is asked of segments whose time is not known.

    >>> signals = np.random.default_rng(0).normal(size=(6, 1, 64))
    >>> data = PairData(Segments.of(signals, 32.0, "ecg", [0, 0, 1, 1, 1, 2]), augment=None)
    >>> len(data), data.get_batch([0, 1], epoch=0, seed=0)["ids"]  # the third person has a single segment
    (2, tensor([0, 1]))
    """

    def __init__(
        self,
        segments: Segments,
        *,
        pair: PairKind = "participant",
        min_gap: float = 0.0,
        min_segments: int = 2,
        quality_floor: float = 0.0,
        augment: AugmentConfig | None = AugmentConfig(),  # noqa: B008 - frozen
    ) -> None:
        if pair not in get_args(PairKind):
            raise ConfigError(f"pair '{pair}': choose one of {', '.join(get_args(PairKind))}")
        if not min_gap >= 0 or not 0 <= quality_floor <= 1 or min_segments < 1:
            raise ConfigError(
                f"min_gap {min_gap} hours, quality_floor {quality_floor} and min_segments {min_segments}: "
                "they are at least 0, between 0 and 1, and at least 1"
            )
        if pair == "segment" and min_gap:
            raise ConfigError(f"min_gap {min_gap} hours: a pair of one segment with itself has no gap; leave it at 0")
        self.segments, self.pair, self.min_gap = segments, pair, float(min_gap)
        self.min_segments, self.quality_floor, self.augment = min_segments, float(quality_floor), augment
        self._index()

    def _index(self) -> None:
        """Lay out who may be paired with whom.

        Usable segments lie in the order of (person, group, time), where a group is what partners share. The partners of the
        one at place a are then all of its group before ``_before[a]`` and from ``_after[a]`` on.
        """
        kept = self._kept()
        person, session = self.segments.participant[kept], self.segments.session[kept]
        order = np.lexsort((self._clock(kept), session if self.pair == "session" else np.zeros_like(session), person))
        row, person = kept[order], person[order]
        group = self._group(person, session[order])
        start, size = _runs(group)
        first, last = np.repeat(start, size), np.repeat(start + size, size)
        place = np.arange(len(row))
        if self.pair == "segment":
            before, after = first, last  # nothing but itself
        elif self.min_gap:
            gap, clock = round(self.min_gap * _MILLISECONDS), self._clock(row)
            # groups far enough apart on one axis, so that all are searched at once
            axis = clock + np.cumsum(np.r_[0, np.diff(group) > 0]) * (int(np.ptp(clock)) + 2 * gap + 1)
            before = np.searchsorted(axis, axis - gap, side="right")
            after = np.searchsorted(axis, axis + gap, side="left")
        else:
            before, after = place, place + 1
        count = (before - first) + (last - after)
        usable = np.ones(len(row), dtype=bool) if self.pair == "segment" else count > 0
        # a place among all in this order, not among the usable: partners of usable ones are usable, so both are the same
        self._row, self._first, self._before, self._after, self._count = row, first, before, after, count
        anchor = np.flatnonzero(usable)
        people_start, self._anchors_of = _runs(person[anchor])
        self._anchor, self._start = anchor, people_start
        self.people = person[anchor][people_start]
        if len(self.people) < 2:
            shared = {"participant": "", "session": " in one session", "segment": ""}[self.pair]
            gap = f", {self.min_gap:g} hours apart" if self.min_gap else ""
            floor = f" of quality {self.quality_floor:g} or more" if self.quality_floor else ""
            raise DataError(
                f"{len(self.people)} of {len(self.segments.participant_keys)} participants have {self.min_segments} or "
                f"more segments{floor} and a pair{shared}{gap}; at least 2 are needed: record more, or ask for less"
            )

    def _kept(self) -> np.ndarray:
        segments = self.segments
        good = ~(segments.quality < self.quality_floor)  # NaN stays
        per_person = np.bincount(segments.participant[good], minlength=len(segments.participant_keys))
        kept = np.flatnonzero(good & (per_person[segments.participant] >= self.min_segments))
        if self.min_gap and np.isnan(segments.start[kept]).any():
            unknown = int(np.isnan(segments.start[kept]).sum())
            raise DataError(
                f"min_gap {self.min_gap:g} hours needs the time of every segment; {unknown} of {len(kept)} have none: "
                "leave min_gap at 0, or give segments with times"
            )
        return kept

    def _clock(self, rows: np.ndarray) -> np.ndarray:
        """Milliseconds since the first segment: whole numbers, in which gaps are exact. Zero where times do not matter."""
        if not self.min_gap or not len(rows):
            return np.zeros(len(rows), dtype=np.int64)
        start = self.segments.start[rows]
        return np.round((start - start.min()) * 1000).astype(np.int64)

    def _group(self, person: np.ndarray, session: np.ndarray) -> np.ndarray:
        """Numbers that rise from group to group."""
        new = np.diff(person, prepend=-1) != 0
        if self.pair == "session":
            new |= np.diff(session, prepend=session[:1] - 1) != 0
        return np.cumsum(new)

    def __len__(self) -> int:
        return len(self.people)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One pair, without the changes that the device makes."""
        batch = self._batch(np.array([index]), rng.random((1, 2)))
        return {name: value[0] for name, value in batch.items()}

    def get_batch(self, indices: Sequence[int], epoch: int, seed: int) -> dict[str, Any]:
        """The pairs of these people in this epoch, without the changes that the device makes."""
        people = np.asarray(indices, dtype=np.int64)
        return self._batch(people, uniform(seed, epoch, torch.from_numpy(people), 2, stream=_STREAM).numpy())

    def _batch(self, people: np.ndarray, u_B2: np.ndarray) -> dict[str, Any]:
        pairs_B2 = self._choose(people, u_B2)
        both = self.segments.rows(pairs_B2.T.reshape(-1))
        view_1, view_2 = both.chunk(2)
        ids = torch.from_numpy(self.people[people])
        return {"view_1": view_1, "view_2": view_2, "ids": ids, "segments": torch.from_numpy(pairs_B2)}

    def _choose(self, people: np.ndarray, u_B2: np.ndarray) -> np.ndarray:
        """(B, 2) positions in the segments: one of the person's, then one of its partners, each equally likely."""
        anchor = self._anchor[self._start[people] + _whole(u_B2[:, 0], self._anchors_of[people])]
        if self.pair == "segment":
            return self._row[np.stack([anchor, anchor], axis=1)]
        first, before = self._first[anchor], self._before[anchor]
        partner = first + _whole(u_B2[:, 1], self._count[anchor])
        partner = np.where(partner < before, partner, partner - before + self._after[anchor])
        return self._row[np.stack([anchor, partner], axis=1)]

    @property
    def device_transform(self) -> Callable[[Mapping[str, Any], BatchRandom], dict[str, Any]] | None:
        """``device_transform(batch, random)`` where views are changed, else None."""
        return None if self.augment is None else self._augmented

    def _augmented(self, batch: Mapping[str, Any], random: BatchRandom) -> dict[str, Any]:
        assert self.augment is not None
        views: dict[str, Tensor] = {
            f"view_{number}": make_view(batch[f"view_{number}"], random, number, self.augment) for number in (1, 2)
        }
        return {**batch, **views}

    def describe(self) -> dict[str, Any]:
        """What identifies the pairs: the segments, who they belong to, and how they are paired and changed."""
        segments = self.segments
        return {
            "kind": segments.kind,
            "segments": len(segments),
            "participants": len(self),
            "shape": [segments.channels, segments.samples],
            "sampling_rate": segments.sampling_rate,
            "pair": self.pair,
            "min_gap": self.min_gap,
            "min_segments": self.min_segments,
            "quality_floor": self.quality_floor,
            "augment": None if self.augment is None else self.augment.model_dump(mode="json"),
            "index_crc32": zlib.crc32(np.stack([self._row, self._count]).tobytes()),
        }


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(starts, lengths) of the runs of equal values."""
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    return starts, np.diff(starts, append=len(values))


def _whole(u: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Whole numbers 0 … count − 1 from uniform ones in [0, 1); the product may round up to ``count``."""
    return np.minimum((u * count).astype(np.int64), count - 1)
