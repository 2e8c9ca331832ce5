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
