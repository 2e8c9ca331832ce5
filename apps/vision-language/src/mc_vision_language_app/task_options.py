"""Options that say where the rows of a task are. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mc_vision_language.data.options import ColumnOptions, ReadOptions, SplitOptions


class TaskOptions(ReadOptions):
    """Where the images of a task's rows are, and what belongs to the rows."""

    images: Path | None = None
    """Folder that image paths are relative to. Default: that of the rows."""
    annotations: Path | None = None
    """Of vqa: the answers of VQA v2. Default: the file beside that of the questions."""
    answers: Path | None = None
    """Of vqa: the list of answers to choose from, one in each line. Default: the most frequent of the training questions."""
    boxes: Path | None = None
    """Of grounding: annotations with the true boxes of RefCOCO. Default: instances.json beside the rows."""
    proposals: Path | None = None
    """Of grounding: detected boxes to choose from. Default: a box is drawn around what is warm."""
    column: ColumnOptions = Field(default_factory=ColumnOptions)
    """Of retrieval: names of columns, where the usual ones are not those meant."""
    split: SplitOptions = Field(default_factory=SplitOptions)
    """How images are divided where the rows do not say."""
