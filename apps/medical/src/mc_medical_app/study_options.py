"""Options that name a cohort, shared by all verbs. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mc_core.engine.config import StrictModel
from mc_medical.data.columns import ColumnOptions


class StudyOptions(StrictModel):
    """Where the images, labels and splits of a cohort are, and which column is what."""

    images: Path | None = None
    """Folder that image paths in the table are relative to. Default: the table's own."""
    texts: Path | None = None
    """Folder of report files, or table of reports by study, where the table of images has none."""
    labels: Path | None = None
    """Table of labels by study, such as CheXpert's for MIMIC-CXR. Default: the label columns of the studies themselves."""
    splits: Path | None = None
    """Table of splits by study or image, such as MIMIC-CXR's. Default: the split column, else patients are divided by --split.*"""
    no_patient_ids: bool = False
    """The table has no patient ids, and each study is somebody else: only then is a split without them fair."""
    column: ColumnOptions = Field(default_factory=ColumnOptions)
    """Names of columns, where the usual ones are not those meant."""
