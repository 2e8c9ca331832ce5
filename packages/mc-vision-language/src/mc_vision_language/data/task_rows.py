"""What questions, statements, entailments and phrases share: rows about pictures, with splits, and how their pictures are found.

Legend: N pictures, M rows, P pictures of a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from mc_core.errors import DataError
from mc_vision_language.data.captions import text_key
from mc_vision_language.data.images import FileImages, ImageSet, StoredImages
from mc_vision_language.data.options import ReadOptions
from mc_vision_language.data.pairs import divide
from mc_vision_language.data.records import Record
from mc_vision_language.data.stored_images import TarImages, member_name, tar_members

SPLITS = ("train", "validation", "test")
_KNOWN = {
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "testa": "test",
    "testb": "test",
    "test1": "test",
}


@dataclass(frozen=True)
class TaskRows:
    """Rows about pictures.

    Attributes:
        images: N pictures.
        image_ids: (N,) int64, equal for the same picture.
        image_of: (M,) int64, or (M, P), which pictures a row is about.
        splits: (M,) of text: train, validation, test, or empty where it is not said.
        dropped: why rows were left out, and how many for each reason.
        examples: one line for the first of each reason.
    """

    images: ImageSet
    image_ids: np.ndarray
    image_of: np.ndarray
    splits: np.ndarray
    dropped: Counter[str]
    examples: Mapping[str, str]

    columns: ClassVar[tuple[str, ...]] = ()
    """Fields of a subclass that have one entry for each row: tuples or arrays."""

    def __post_init__(self) -> None:
        for name in ("splits", *self.columns):
            if len(getattr(self, name)) != len(self.image_of):
                raise DataError(f"{len(getattr(self, name))} {name} for {len(self.image_of)} rows: give one for each")

    def __len__(self) -> int:
        return len(self.image_of)

    def take(self, rows: np.ndarray | Sequence[int]) -> Self:
        """These rows, in this order; pictures stay where they are."""
        rows = np.asarray(rows, dtype=np.int64)
        changes: dict[str, Any] = {"image_of": self.image_of[rows], "splits": self.splits[rows]}
        for name in self.columns:
            column = getattr(self, name)
            changes[name] = (
                column[rows] if isinstance(column, np.ndarray) else tuple(column[row] for row in rows.tolist())
            )
        return replace(self, **changes)

    def part(self, name: str) -> Self:
        """The rows of a split, or of ``"all"``.

        Raises:
            DataError: none are.
        """
        if name == "all":
            return self
        rows = np.flatnonzero(self.splits == name)
        if not len(rows):
            raise DataError(f"no row is in the {name} split, only {counted(self.splits)}")
        return self.take(rows)

    def divided(self, shares: tuple[float, float, float], seed: int, *, own: bool = True) -> Self:
        """With a split for each row that has none: rows about the same picture together, by a hash of the picture and the seed.

        Args:
            shares: to train on, to choose with, to measure with.
            seed: another seed, another division.
            own: keep what the data name, unless they name one split alone.
        """
        named = np.unique(self.splits[self.splits != ""])
        unknown = self.splits == "" if own and len(named) > 1 else np.ones(len(self), dtype=bool)
        if not unknown.any():
            return self
        splits = self.splits.astype(np.array(SPLITS).dtype)
        groups = self._groups()[unknown]
        pictures, parts = len(np.unique(self.image_ids[self.image_of[unknown]])), sum(share > 0 for share in shares)
        if len(np.unique(groups)) < parts <= pictures:
            raise DataError(
                f"{pictures} pictures cannot be divided into {parts} parts, since rows that share them link all to "
                f"{len(np.unique(groups))}; say in a column split which rows are to train on, or give a share of 0"
            )
        splits[unknown] = divide(groups, shares, seed)
        return replace(self, splits=splits)

    def describe(self) -> dict[str, Any]:
        """Rows, pictures and splits, without a word of the texts."""
        return {
            "rows": len(self),
            "images": len(np.unique(self.image_ids[self.image_of])),
            "splits": {name: int((self.splits == name).sum()) for name in sorted(set(self.splits.tolist()))},
            "left_out": dict(self.dropped),
        }

    def _groups(self) -> np.ndarray:
        """(M,) int64, equal for rows that share a picture, also over several others: the smallest id among them."""
        ids = self.image_ids[self.image_of].reshape(len(self), -1)
        if ids.shape[1] == 1:
            return ids[:, 0]
        found, place = np.unique(ids, return_inverse=True)
        place = place.reshape(ids.shape)
        label = np.arange(len(found))
        while True:  # the smallest label wanders along the rows until nothing changes
            row = label[place].min(1)
            spread = label.copy()
            np.minimum.at(spread, place, row[:, None])
            if (spread == label).all():
                return found[row]
            label = spread


class Pictures:
    """Which picture each row needs: files under a folder, or members of a tar. Missing files are noticed here.

    Args:
        root: folder of the files.
        source: of the annotations, for messages.
        read: how many may be missing.
    """

    def __init__(self, root: Path, source: str, read: ReadOptions) -> None:
        self.root, self.source, self.read = root, source, read
        self._tar = root.suffix.lower() == ".tar"
        self._members = tar_members(root) if self._tar else frozenset()
        self.names: list[str] = []
        self._rows: dict[str, int | None] = {}
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def row(self, *names: str) -> int | None:
        """Number of the picture that has one of these names under the root, or None where there is none."""
        if names[0] not in self._rows:
            there = next((name for name in names if self._there(name)), None)
            self._rows[names[0]] = None if there is None else len(self.names)
            if there is not None:
                self.names.append(there)
        return self._rows[names[0]]

    def _there(self, name: str) -> bool:
        return member_name(name) in self._members if self._tar else (self.root / name).is_file()

    def drop(self, reason: str, record: Record, what: str) -> None:
        """Count a row that is left out."""
        self.dropped[reason] += 1
        self.examples.setdefault(reason, f"{record.place}: {what}")

    def finished(self, kept: int) -> tuple[StoredImages, np.ndarray]:
        """All pictures, and their ids.

        Raises:
            DataError: nothing is left, or more pictures are missing than may be.
        """
        lost = self.dropped["missing image"]
        if lost > self.read.max_bad * (kept + lost) or not kept:
            reason = "missing image" if lost else next(iter(self.examples), "")
            raise DataError(
                f"{self.source}: {sum(self.dropped.values()) if not kept else lost} of {kept + sum(self.dropped.values())} rows "
                f"cannot be used ({reason}), the first {self.examples.get(reason, 'unknown')}; "
                "give the folder of the pictures by --images, or allow more with --max-bad"
            )
        images = TarImages.of(self.root, self.names) if self._tar else FileImages(self.names, self.root)
        ids = np.array([text_key(images.key(row)) for row in range(len(images))], dtype=np.int64)
        return images, ids


def split_name(value: Any) -> str:
    """A split as we call it.

    >>> split_name("val"), split_name("testA"), split_name(None), split_name("train2014")
    ('validation', 'test', '', 'train')
    """
    text = "" if value is None else str(value).strip().lower()
    text = text.rstrip("0123456789") if text not in _KNOWN else text
    return _KNOWN.get(text, text)


def counted(splits: np.ndarray) -> str:
    """How many are in each split, in words."""
    names, counts = np.unique(splits, return_counts=True)
    return ", ".join(f"{count} in {name or 'none'}" for name, count in zip(names, counts, strict=True)) or "none at all"
