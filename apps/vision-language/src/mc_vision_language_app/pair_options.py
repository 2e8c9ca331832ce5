"""Options that say where pairs are, shared by all verbs. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mc_vision_language.data.options import ColumnOptions, ReadOptions


class PairOptions(ReadOptions):
    """Where the images of a list of captions are, and how both are read."""

    images: Path | None = None
    """Folder that image paths in the list are relative to, or a .tar whose members they are. Default: the list's own folder."""
    column: ColumnOptions = Field(default_factory=ColumnOptions)
    """Names of columns or fields, where the usual ones are not those meant."""


class MeasuredOptions(PairOptions):
    """Pairs, or the rows of a task, to measure on."""

    annotations: Path | None = None
    """Of a run for vqa: the answers of VQA v2. Default: the file beside that of the questions."""
    boxes: Path | None = None
    """Of a run for grounding: annotations with the true boxes of RefCOCO. Default: instances.json beside the rows."""
    proposals: Path | None = None
    """Of a run for grounding: detected boxes to choose from. Default: a box is drawn around what is warm."""
