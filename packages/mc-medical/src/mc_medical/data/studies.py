"""A cohort: images, reports and who belongs together, from tables and archives.

Legend: N images, C labels.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.errors import DataError
from mc_medical.data.columns import ColumnOptions
from mc_medical.data.image_config import ImageOptions
from mc_medical.data.radiograph import Radiograph, read_radiograph
from mc_medical.data.reports import ReportOptions, text_key


@dataclass(frozen=True)
class ImageRef:
    """Where an image lies: a file, or a stretch of an archive.

    Attributes:
        path: of the file or the archive.
        offset: of the first byte in an archive; −1 for a file.
        size: in bytes in an archive.
    """

    path: str
    offset: int = -1
    size: int = -1

    def read(self) -> bytes | str:
        """What :func:`read_radiograph` takes."""
        if self.offset < 0:
            return self.path
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Studies:
    """N images, each with its report, patient, study, view, split and labels.

    Attributes:
        images: where they lie.
        reports: cleaned texts; equal for the images of a study.
        patients: (N,) int64 salted hashes.
        studies: (N,) int64 salted hashes.
        text_ids: (N,) int64, :func:`~mc_medical.data.reports.text_key` of the report.
        views: (N,) of ``PA``, ``AP``, ``frontal``, ``lateral``, ``other`` or empty.
        splits: (N,) of ``train``, ``validation``, ``test``; all empty where the data do not say.
        rows: (N,) int64, the row (or member) of the source, from 1: what messages name instead of ids and paths.
        label_names: C names.
        labels: (N, C) float32: 1 present, 0 absent, −1 uncertain, NaN not mentioned.
        options: how images are read.
        columns: what was taken for what.
        dropped: reasons, and how many rows were left out or changed for each.
        examples: one line for the first of each reason.
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
    columns: Mapping[str, str] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray | Sequence[int]) -> Studies:
        """Those at these positions."""
        rows = np.asarray(rows, dtype=np.int64)
        arrays = {
            name: getattr(self, name)[rows]
            for name in ("patients", "studies", "text_ids", "views", "splits", "rows", "labels")
        }
        images = tuple(self.images[i] for i in rows.tolist())
        return replace(self, images=images, reports=tuple(self.reports[i] for i in rows.tolist()), **arrays)

    def part(self, name: str) -> Studies:
        """Those of a split.

        Raises:
            DataError: none are.
        """
        rows = np.flatnonzero(self.splits == name)
        if not len(rows):
            raise DataError(
                f"no study is in the split {name!r}; there are {', '.join(sorted(set(self.splits.tolist())))}"
            )
        return self.take(rows)

    def read(self, index: int) -> Radiograph:
        """The image at a position."""
        return read_radiograph(self.images[index].read(), self.options, name=f"row {self.rows[index]}")

    def describe(self) -> dict[str, Any]:
        """Counts, and nothing that names anybody."""
        return {"images": len(self), "patients": len(np.unique(self.patients)), "studies": len(np.unique(self.studies))}


def open_studies(
    source: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    columns: ColumnOptions = ColumnOptions(),  # noqa: B008 - frozen
    reports: ReportOptions = ReportOptions(),  # noqa: B008 - frozen
    image: ImageOptions = ImageOptions(),  # noqa: B008 - frozen
    patient_ids: bool = True,
    labels: str | os.PathLike[str] | None = None,
    splits: str | os.PathLike[str] | None = None,
    salt: bytes | None = None,
) -> Studies:
    """The cohort of a table (CSV, TSV, JSONL, Parquet) or of a tar of images and notes."""
    import csv

    from mc_core.privacy import Salt
    from mc_medical.data.reports import report_text

    hasher = Salt(salt or b"mc-medical public salt")
    folder = Path(images) if images else Path(source).parent
    with open(source, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    texts = [report_text(row["report"], reports) for row in rows]
    own = {"image", "path", "report", "patient_id", "study_id", "split", "view"}
    names = tuple(name for name in rows[0] if name not in own) if rows else ()
    return Studies(
        images=tuple(ImageRef(str(folder / (row.get("image") or row["path"]))) for row in rows),
        reports=tuple(texts),
        patients=np.array([hasher.number("patient", row["patient_id"]) for row in rows]),
        studies=np.array([hasher.number("study", row["study_id"]) for row in rows]),
        text_ids=np.array([text_key(text) for text in texts]),
        views=np.array([row.get("view", "") for row in rows]),
        splits=np.array([row.get("split", "") for row in rows]),
        rows=np.arange(1, len(rows) + 1),
        label_names=names,
        labels=np.array([[float(row[n]) if row[n] else np.nan for n in names] for row in rows], dtype=np.float32),
        options=image,
    )
