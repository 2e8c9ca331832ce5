"""Features that know whose they are, and splits that keep people apart.

Legend: N segments, D dimensions, P participants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from mc_core.errors import ConfigError, DataError
from mc_wearables.data.segments import Segments


@dataclass(frozen=True)
class Features:
    """Frozen features of segments: embeddings, classical features, or what a generator knows.

    Attributes:
        values: (N, D) float32; NaN where a feature could not be computed.
        participant: (N,) int64, positions in ``participant_keys``.
        participant_keys: P names.
        session: (N,) int64; equal numbers mean the same sitting.
        labels: (N,) float64 each, NaN where unknown.
        names: D names, or empty.

    >>> features = Features(np.eye(2, dtype=np.float32), np.array([0, 1]), ("a", "b"), np.array([0, 1]))
    >>> len(features), features.participants
    (2, 2)
    """

    values: np.ndarray
    participant: np.ndarray
    participant_keys: tuple[str, ...]
    session: np.ndarray
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or not self.values.size:
            raise DataError(f"features have shape {self.values.shape}; they must be (segments, dimensions), not empty")
        if np.isinf(self.values).any():
            rows = np.flatnonzero(np.isinf(self.values).any(axis=1))
            raise DataError(f"features are infinite in {len(rows)} of {len(self.values)} rows, first in row {rows[0]}")
        for name, column in {"participant": self.participant, "session": self.session, **self.labels}.items():
            if column.shape != (len(self.values),):
                raise DataError(f"{name} has shape {column.shape}, but there are {len(self.values)} rows of features")
        if self.names and len(self.names) != self.values.shape[1]:
            raise DataError(f"{len(self.names)} names for {self.values.shape[1]} features")

    @classmethod
    def of(cls, values: Tensor | np.ndarray, segments: Segments, *, names: Sequence[str] = ()) -> Features:
        """Features of all ``segments``, in their order, with their participants, sessions and labels
        (``segments.targets``: one for each of several classes).
        """
        array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else values
        return cls(
            np.asarray(array, dtype=np.float32),
            segments.participant,
            segments.participant_keys,
            segments.session,
            segments.targets,
            tuple(names),
        )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def participants(self) -> int:
        """How many participants have a segment here."""
        return len(np.unique(self.participant))

    def where(self, chosen: np.ndarray) -> Features:
        """The rows at ``chosen`` (booleans or positions)."""
        return replace(
            self,
            values=self.values[chosen],
            participant=self.participant[chosen],
            session=self.session[chosen],
            labels={name: column[chosen] for name, column in self.labels.items()},
        )

    def of_participants(self, codes: Sequence[int] | np.ndarray) -> Features:
        """All rows of the participants ``codes``."""
        return self.where(np.isin(self.participant, np.asarray(codes)))


def participant_split(
    keys: Sequence[str], fractions: Mapping[str, float] | None = None, *, salt: str = ""
) -> dict[str, np.ndarray]:
    """Parts of the participants by the hash of their key: neither order nor who else takes part moves anyone.

    Shares are therefore met on average, not exactly.

    Args:
        keys: of the participants.
        fractions: part → share, adding up to 1; by default 80 % train, 10 % validation, 10 % test, as in the paper (§4).
        salt: another salt is another split.

    Returns:
        Part → positions in ``keys``, ascending.

    Raises:
        ConfigError: shares that do not add up to 1.
        DataError: a key that appears twice.

    >>> parts = participant_split([f"p{i}" for i in range(1000)])
    >>> {name: len(part) for name, part in parts.items()}
    {'train': 792, 'validation': 103, 'test': 105}
    """
    fractions = fractions or {"train": 0.8, "validation": 0.1, "test": 0.1}
    shares = np.array(list(fractions.values()), dtype=np.float64)
    if (shares < 0).any() or abs(shares.sum() - 1) > 1e-9:
        raise ConfigError(f"fractions {dict(fractions)} add up to {shares.sum():g}; give shares that add up to 1")
    if len(set(keys)) < len(keys):
        repeated = next(key for i, key in enumerate(keys) if key in set(keys[:i]))
        raise DataError(f"participant {repeated!r} is listed twice; give each key once")
    place = np.array([_place(f"{salt}\0{key}") for key in keys], dtype=np.float64)
    part = np.searchsorted(shares.cumsum()[:-1], place, side="right")
    return {name: np.flatnonzero(part == number) for number, name in enumerate(fractions)}


def check_disjoint(train: Features | Segments | Sequence[str], test: Features | Segments | Sequence[str]) -> None:
    """Raise DataError when a participant has segments on both sides: labels of people would leak (AUC 1.00 for pure noise)."""
    first, second = _people(train), _people(test)
    both = sorted(first & second)
    if both:
        raise DataError(
            f"{len(both)} of {len(second)} test participants are in the training data too, first {both[0]!r}; "
            "split by participant (participant_split)"
        )


def _place(text: str) -> float:
    """Where in [0, 1) a text falls."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _people(side: Features | Segments | Sequence[str]) -> set[str]:
    if isinstance(side, (Features, Segments)):
        return {side.participant_keys[code] for code in np.unique(side.participant)}
    return set(side)
