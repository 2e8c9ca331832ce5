"""A cohort: images, reports and who belongs together.

Legend: N images, C labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mc_core.errors import DataError
from mc_medical.data.image_config import ImageOptions
from mc_medical.data.image_ref import ImageRef
from mc_medical.data.radiograph import Radiograph, read_radiograph
from mc_medical.data.splits import SPLITS, split_by_patient

_ARRAYS = ("patients", "studies", "text_ids", "views", "splits", "rows", "labels")


@dataclass(frozen=True)
class Studies:
    """N images, each with its report, patient, study, view, split and labels. Holds no raw id.

    Attributes:
        images: where they lie.
        reports: cleaned texts; equal for the images of a study; empty where there is none.
        patients: (N,) int64 salted hashes.
        studies: (N,) int64 salted hashes.
        text_ids: (N,) int64, :func:`~mc_medical.data.reports.text_key` of the report; the study's where there is none.
        views: (N,) of ``PA``, ``AP``, ``frontal``, ``lateral``, ``other`` or empty.
        splits: (N,) of ``train``, ``validation``, ``test``; empty where the data do not say.
        rows: (N,) int64, the line, row or member of the source, from 1: what messages name instead of ids and paths.
        label_names: C names.
        labels: (N, C) float32: 1 present, 0 absent, −1 uncertain, NaN not mentioned.
        options: how images are read.
        unit: what ``rows`` count.
        columns: what was taken for what.
        dropped: reasons, and for how many rows: left out, or (labels) not understood.
        examples: one line for the first of each reason.

    Raises:
        DataError: lengths that do not fit together.
    """

    images: tuple[ImageRef, ...]
    reports: tuple[str, ...]
    patients: np.ndarray
    studies: np.ndarray
    text_ids: np.ndarray
    views: np.ndarray
    splits: np.ndarray
    rows: np.ndarray
    label_names: tuple[str, ...]
    labels: np.ndarray
    options: ImageOptions = field(default_factory=ImageOptions)
    unit: str = "row"
    columns: Mapping[str, str] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("images", "reports", *_ARRAYS)}
        if len(set(lengths.values())) > 1 or self.labels.shape[1:] != (len(self.label_names),):
            raise DataError(f"studies of unequal lengths: {lengths}, {len(self.label_names)} labels")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray | Sequence[int]) -> Studies:
        """Those at these positions."""
        rows = np.asarray(rows, dtype=np.int64)
        places = rows.tolist()
        return replace(
            self,
            images=tuple(self.images[i] for i in places),
            reports=tuple(self.reports[i] for i in places),
            **{name: getattr(self, name)[rows] for name in _ARRAYS},
        )

    def where(self, split: str) -> np.ndarray:
        """Positions of a split, for :meth:`take` here and of pixels.

        Raises:
            DataError: there are none.
        """
        found = np.flatnonzero(self.splits == split)
        if not len(found):
            there = ", ".join(one for one in SPLITS if (self.splits == one).any()) or "no splits; divide by `divided`"
            raise DataError(f"no image is in the split {split!r}; there are {there}")
        return found

    def part(self, split: str) -> Studies:
        """Those of a split.

        Raises:
            DataError: there are none.
        """
        return self.take(self.where(split))

    def divided(self, shares: tuple[float, float, float], seed: int = 0) -> Studies:
        """With splits by patient, where the data do not say; as they are where they do for all rows.

        Raises:
            DataError: the data say so for some rows only, or there are too few patients.
        """
        told = self.splits != ""
        if told.all() and len(self):
            return self
        if told.any():
            raise DataError(
                f"{int((~told).sum())} of {len(self)} images have no split: fill the column, or leave it out to divide anew"
            )
        return replace(self, splits=split_by_patient(self.patients, shares, seed))

    def read(self, index: int) -> Radiograph:
        """The image at a position.

        Raises:
            BadSampleError: it cannot be used; the message names its row.
        """
        name = f"{self.unit} {self.rows[index]}"
        return read_radiograph(self.images[index].read(name), self.options, name=name)

    def describe(self) -> dict[str, Any]:
        """Counts, and nothing that names anybody."""
        views, counts = np.unique(self.views, return_counts=True)
        return {
            "images": len(self),
            "patients": len(np.unique(self.patients)),
            "studies": len(np.unique(self.studies)),
            "texts": len({text for text in self.reports if text}),
            "without_report": sum(not text for text in self.reports),
            "views": {view or "unknown": int(n) for view, n in zip(views.tolist(), counts.tolist(), strict=True)},
            "splits": {
                split: {
                    "images": int((self.splits == split).sum()),
                    "patients": len(np.unique(self.patients[self.splits == split])),
                }
                for split in SPLITS
                if (self.splits == split).any()
            },
            "labels": {
                name: {
                    "present": int((column == 1).sum()),
                    "absent": int((column == 0).sum()),
                    "uncertain": int((column == -1).sum()),
                }
                for name, column in zip(self.label_names, self.labels.T, strict=True)
            },
            "columns": dict(self.columns),
            "dropped": dict(self.dropped),
            "examples": dict(self.examples),
        }
