"""Splits that keep patients apart, and what crosses them all the same.

Legend: N studies' images, P patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from mc_core.errors import DataError
from mc_medical.data.image_config import SplitOptions

if TYPE_CHECKING:
    from mc_medical.data.cohort import Studies
    from mc_medical.data.pixels import PixelStore

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Duplicates:
    """What is in several splits although its patients are not.

    Attributes:
        texts: different reports that are.
        text_images: images with such a report, by split. Stock sentences such as "no acute process" repeat rightly; many long
            ones that repeat hint at patients with two ids.
        images: different pictures that are, which no two patients share: the same image under two ids.
        image_rows: (R,) int64, positions of these.
    """

    texts: int
    text_images: dict[str, int]
    images: int = 0
    image_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def describe(self) -> dict[str, Any]:
        """For a report."""
        return {"texts": self.texts, "images_with_them": self.text_images, "pictures": self.images}


def split_by_patient(
    patients: np.ndarray | Sequence[int], shares: tuple[float, float, float] = SplitOptions().shares, seed: int = 0
) -> np.ndarray:
    """The part of each row; all rows of a patient are in one.

    Patients lie on a ring by a hash of (seed, id), cut at the shares: adding a patient moves few others.

    Args:
        patients: (N,) int64.
        shares: of the patients to train on, to choose with, to measure with. A part with a share above 0 gets at least one
            patient where there are enough.
        seed: of the division.

    Returns:
        (N,) of ``train``, ``validation``, ``test``.

    Raises:
        DataError: fewer patients than parts.

    >>> split_by_patient(np.array([7, 7, 8, 9, 10, 11]), (0.6, 0.2, 0.2))[:2].tolist()
    ['train', 'train']
    """
    patients = np.asarray(patients, dtype=np.int64)
    people, row_of = np.unique(patients, return_inverse=True)
    wanted = np.asarray(SplitOptions(shares=shares).shares)
    parts = int((wanted > 0).sum())
    if len(people) < parts:
        raise DataError(f"{len(people)} patients cannot be divided into {parts} parts; give more, or a share of 0")
    counts = np.floor(wanted * len(people) + 0.5).astype(np.int64)
    counts[wanted > 0] = np.maximum(counts[wanted > 0], 1)
    counts[int(counts.argmax())] += len(people) - counts.sum()
    order = np.argsort(_scattered(people, seed), kind="stable")
    part_P = np.empty(len(people), dtype=np.int64)
    part_P[order] = np.repeat(np.arange(3), counts)
    return np.array(SPLITS)[part_P[row_of]]


def _scattered(people: np.ndarray, seed: int) -> np.ndarray:
    """(P,) uint64 that are a function of the seed and the patient alone."""
    x = people.astype(np.uint64) ^ np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % (1 << 64))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    return x


def check_splits(studies: Studies) -> None:
    """Raise DataError when a patient is in more than one split; says how many, never who."""
    splits, codes = np.unique(studies.splits, return_inverse=True)
    people, first = np.unique(studies.patients, return_inverse=True)
    table = np.zeros((len(people), len(splits)), dtype=bool)
    table[first, codes] = True
    crossing = table.sum(1) > 1
    if crossing.any():
        rows = np.flatnonzero(crossing[first])
        pairs = " and ".join(splits[table[crossing].any(0)].tolist())
        raise DataError(
            f"{int(crossing.sum())} of {len(people)} patients are in several splits ({pairs}; {len(rows)} images, the "
            f"first in {studies.unit} {studies.rows[rows[0]]}): give each patient one split, or leave the column out to divide anew"
        )


def cross_split_duplicates(studies: Studies, pixels: np.ndarray | PixelStore | None = None) -> Duplicates:
    """Reports, and pictures where given, that are in more than one split.

    Args:
        studies: N images with splits.
        pixels: their squares, row for row: (N, S, S) uint8, or a store. Unreadable ones, all black, are left out.
    """
    splits = np.unique(studies.splits, return_inverse=True)
    with_text = np.array([bool(text) for text in studies.reports])
    rows = np.flatnonzero(with_text)[_crossing(studies.text_ids[with_text], splits[1][with_text])]
    found, counts = np.unique(studies.splits[rows], return_counts=True)
    texts = len(np.unique(studies.text_ids[rows])), dict(zip(found.tolist(), counts.tolist(), strict=True))
    if pixels is None:
        return Duplicates(*texts)
    keys = np.array([_picture_key(pixels, i) for i in range(len(studies))], dtype=np.int64)
    seen = np.flatnonzero(keys >= 0)
    image_rows = seen[_crossing(keys[seen], splits[1][seen])]
    return Duplicates(*texts, len(np.unique(keys[image_rows])), image_rows)


def _crossing(keys: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(N,) bool: whether a row's key occurs under several codes."""
    _, group = np.unique(keys, return_inverse=True)
    lowest = np.full(group.max(initial=-1) + 1, np.iinfo(np.int64).max)
    highest = np.full_like(lowest, -1)
    np.minimum.at(lowest, group, codes)
    np.maximum.at(highest, group, codes)
    return (lowest < highest)[group]


def _picture_key(pixels: np.ndarray | PixelStore, i: int) -> int:
    picture = pixels[i] if isinstance(pixels, np.ndarray) else pixels.rows(np.array([i]))[0]
    if not picture.any():
        return -1
    return int.from_bytes(blake2b(picture.tobytes(), digest_size=8).digest(), "big") >> 1
