"""Which column of a table of studies is what: names of MIMIC-CXR, CheXpert, Open-i and of common exports. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from mc_core.engine.config import StrictModel


class ColumnOptions(StrictModel):
    """Names of columns, where the usual ones are not those meant. What is taken for what is always told."""

    image: str | None = None
    """Column of image paths; default: `Path`, `path`, `image`, `dicom_id` …"""
    report: str | None = None
    """Column of report texts or of paths to them; default: `report`, `text`, `impression` and `findings` …"""
    patient: str | None = None
    """Column of patient ids; default: `patient_id`, `subject_id`, else read from CheXpert's paths."""
    study: str | None = None
    """Column of study ids; default: `study_id`, else read from CheXpert's paths; without one each image is a study."""
    view: str | None = None
    """Column of views; default: `ViewPosition`, `view` …"""
    split: str | None = None
    """Column of splits; default: `split`."""
    labels: tuple[str, ...] | None = Field(default=None)
    """Columns of labels in {1, 0, -1, blank}; default: CheXpert's observations where they are there. Empty: none."""
