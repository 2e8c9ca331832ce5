"""How images are read and studies split: two models, shared by recipes, commands and Python callers. Imports no torch."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from mc_core.engine.config import StrictModel


class ImageOptions(StrictModel):
    """How a radiograph becomes a picture, and which ones are wanted.

    >>> ImageOptions().size, ImageOptions(voi="percentile").voi
    (256, 'percentile')
    """

    size: int = Field(default=256, ge=8, le=4096)
    """Side of the stored square in pixels; augmentation crops it."""
    voi: Literal["auto", "percentile", "full"] = "auto"
    """How grey values are chosen. `auto`: what the file declares (VOI LUT, else window); where it declares nothing, or stores
    16 bits as PNG, `percentile`: from the 0.5th to the 99.5th percentile of what is not padding. `full`: the whole range of
    the stored bits."""
    window: int = Field(default=0, ge=0)
    """Which of several VOI LUTs or windows of a file, from 0; the last one where a file has fewer."""
    burned_in: Literal["refuse", "warn", "allow"] = "refuse"
    """What to do with a DICOM image that says it has text burned into its pixels, which often names the patient."""
    views: Literal["frontal", "all"] = "frontal"
    """`frontal` leaves out images known to be of another view than PA or AP; those of unknown view stay."""
    modalities: tuple[str, ...] = ("CR", "DX", "RG")
    """DICOM modalities that are radiographs; others are left out."""

    @field_validator("modalities")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("no modality is wanted; give CR, DX or RG")
        return tuple(one.strip().upper() for one in value)


class SplitOptions(StrictModel):
    """How patients are divided where the data do not say."""

    shares: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of the patients to train on, to choose with and to measure with."""
    seed: int = 0
    """Of the division."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if min(self.shares) < 0 or not math.isclose(sum(self.shares), 1.0, abs_tol=1e-6) or not self.shares[0]:
            raise ValueError(f"shares {self.shares} must be 0 or more and add up to 1, with some to train on")
        return self
