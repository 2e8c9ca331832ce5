"""How pairs of pictures and captions are read. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel


class ColumnOptions(StrictModel):
    """Names of columns, or of fields of a JSON file, where the usual ones are not those meant. What was taken for what is told in
    ``Pairs.columns``.

    >>> ColumnOptions(caption="title").caption
    'title'
    """

    image: str | None = None
    """Column of image paths or encoded images, or ending of the image files of a tar (`jpg`); default: `image`, `path` …"""
    caption: str | None = None
    """Column of captions, one or a list each; default: `caption`, `captions`, `text`, `title` …"""
    image_id: str | None = None
    """Column that says which pictures are the same; default: `image_id` …, else equal files are the same picture."""
    split: str | None = None
    """Column of splits; default: `split`."""


class CaptionOptions(StrictModel):
    """What of a caption is kept.

    >>> CaptionOptions().max_words
    30
    """

    clean: bool = True
    """Lower case, without punctuation, as the paper's captions are."""
    max_words: int = Field(default=30, ge=1)
    """Words kept."""


class ReadOptions(StrictModel):
    """How files are found and fetched.

    >>> ReadOptions().max_bad
    0.01
    """

    max_bad: float = Field(default=0.01, ge=0, le=1)
    """Share of pictures that may be missing, and of captions that may be empty, before it is an error."""
    duplicates: Literal["content", "name"] = "content"
    """What makes two pictures the same where no column says it: equal bytes, or (faster) the same file alone."""
    cache: Path | None = None
    """Where indexes and fetched files go; default: `$MC_CACHE`, else `~/.cache/momentum-contrast`."""


class SplitOptions(StrictModel):
    """How pictures are divided where the data do not say it. Equal pictures stay together, and adding pictures moves none.

    >>> SplitOptions(shares=(0.5, 0.5, 0.0)).shares
    (0.5, 0.5, 0.0)
    """

    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares to train on, to choose with, to measure with."""
    seed: int = Field(default=0, ge=0)
    """Of the division."""
    own: bool = True
    """Keep the splits that the data name."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares {self.shares}: three shares of 0 or more that sum to 1")
        return self
