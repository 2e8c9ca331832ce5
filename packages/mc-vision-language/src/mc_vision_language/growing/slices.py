"""Pairs that arrive one slice after another; each step trains on all that have arrived.

Legend: N pictures, T slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_core.listing import fingerprint
from mc_core.random import derive_seed
from mc_vision_language.data.pairs import Pairs

_STREAM, _HELD = 0x51CE, 0x51CF


@dataclass(frozen=True)
class Slices:
    """All pairs, and in which slice each picture arrives.

    Attributes:
        pairs: with splits; N pictures.
        slice_of: (N,) int64, from 0.
        names: T names.

    Raises:
        DataError: lengths that do not fit, or a slice without a picture to train on.

    >>> from mc_vision_language.sample import sample_pairs
    >>> slices = sliced(sample_pairs(counts={"train": 8, "validation": 4, "test": 2}), 4)
    >>> [len(slices.train(step)) for step in range(4)], len(slices.held_out(0))
    ([2, 4, 6, 8], 1)
    """

    pairs: Pairs
    slice_of: np.ndarray
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.slice_of) != len(self.pairs):
            raise DataError(f"{len(self.pairs)} pictures and {len(self.slice_of)} slices: give one for each")
        if not self.names:
            raise DataError("no slice of data: give one at least")
        counts = np.bincount(self.slice_of[self.pairs.splits == "train"], minlength=len(self.names))
        if (empty := np.flatnonzero(counts == 0)).size:
            raise DataError(f"slice {empty[0] + 1} ('{self.names[empty[0]]}') holds no picture to train on")

    def __len__(self) -> int:
        return len(self.names)

    def _arrived(self, step: int, split: str) -> Pairs:
        rows = np.flatnonzero((self.pairs.splits == split) & (self.slice_of <= step))
        if not len(rows):
            raise DataError(
                f"{self.pairs.location}: no picture in the split '{split}' up to slice {step + 1}: growth chooses by pairs held "
                "out; give a share for each split (--split.shares 0.8 0.1 0.1)"
            )
        return self.pairs.take(rows)

    def train(self, step: int) -> Pairs:
        """Those to train on that have arrived by a step, from 0."""
        return self._arrived(step, "train")

    def held_out(self, step: int) -> Pairs:
        """Those to choose by: the validation pairs that have arrived."""
        return self._arrived(step, "validation")

    def describe(self) -> list[dict[str, Any]]:
        """Name, size and a digest of each slice."""
        found = []
        for number, name in enumerate(self.names):
            rows = np.flatnonzero(self.slice_of == number)
            own = np.isin(self.pairs.image_of, rows)
            found.append(
                {
                    "name": name,
                    "images": len(rows),
                    "captions": int(own.sum()),
                    "digest": fingerprint(
                        self.pairs.image_ids[rows], self.pairs.text_ids[own], list(self.pairs.splits[rows])
                    ),
                }
            )
        return found


def sliced(pairs: Pairs, shares: int | Sequence[float], *, seed: int = 0) -> Slices:
    """One set of pairs as slices, drawn at random within each split; equal pictures arrive together.

    Args:
        pairs: with splits.
        shares: how many slices of one size, or the share of the data that each brings, in order, summing to 1.
        seed: of the draw.

    Raises:
        ConfigError: no slice, or shares that do not sum to 1. DataError: fewer pictures than slices.
    """
    wanted = np.full(shares, 1 / shares) if isinstance(shares, int) and shares > 0 else np.atleast_1d(shares)
    if isinstance(shares, int) and shares < 1:
        raise ConfigError(f"{shares} slices: give 1 or more")
    if wanted.min() <= 0 or abs(wanted.sum() - 1) > 1e-6:
        raise ConfigError(f"shares {tuple(wanted.tolist())} of the slices: numbers above 0 that sum to 1")
    edges = np.cumsum(wanted)[:-1]
    slice_of = np.zeros(len(pairs), dtype=np.int64)
    for place, split in enumerate(sorted(set(pairs.splits.tolist()))):
        rows = np.flatnonzero(pairs.splits == split)
        different, group = np.unique(pairs.image_ids[rows], return_inverse=True)
        order = np.random.Generator(np.random.Philox(key=derive_seed(seed, place, _STREAM))).permutation(len(different))
        rank = np.empty(len(different), dtype=np.int64)
        rank[order] = np.arange(len(different))
        slice_of[rows] = np.searchsorted(np.round(edges * len(different)), rank, side="right")[group.reshape(-1)]
    return Slices(pairs, slice_of, tuple(f"slice-{number + 1}" for number in range(len(wanted))))


def with_validation(pairs: Pairs, *, share: float = 0.1, seed: int = 0) -> Pairs:
    """Pairs that have some to choose by: where none are, a share of the training pictures, never trained on.

    Args:
        pairs: with splits.
        share: of the training pictures, equal ones together.
        seed: of the draw.

    >>> from mc_vision_language.sample import sample_pairs
    >>> with_validation(sample_pairs(counts={"train": 20, "test": 2})).split_counts()
    {'train': 18, 'validation': 2, 'test': 2}
    """
    if (pairs.splits == "validation").any():
        return pairs
    rows = np.flatnonzero(pairs.splits == "train")
    different, group = np.unique(pairs.image_ids[rows], return_inverse=True)
    order = np.random.Generator(np.random.Philox(key=derive_seed(seed, _HELD))).permutation(len(different))
    held = np.zeros(len(different), dtype=bool)
    held[order[: round(share * len(different))]] = True
    splits = pairs.splits.astype("<U10")
    splits[rows[held[group.reshape(-1)]]] = "validation"
    return replace(pairs, splits=splits)


def arriving(sets: Sequence[Pairs], names: Sequence[str]) -> Slices:
    """Several sets of pairs as slices, in their order.

    Args:
        sets: T of them, each with splits.
        names: T.

    Raises:
        DataError: no set, or one without a picture to train on.
    """
    from mc_vision_language.data.joined import joined

    if not sets:
        raise DataError("no pairs: give one source for each slice")
    slice_of = np.repeat(np.arange(len(sets)), [len(one) for one in sets])
    return Slices(joined(sets), slice_of, tuple(names))
