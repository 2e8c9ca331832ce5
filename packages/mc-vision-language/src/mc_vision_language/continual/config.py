"""Settings that all methods on a sequence of tasks share. Imports no torch."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from mc_vision_language.encoders_config import VisionLanguageConfig


class ContinualConfig(VisionLanguageConfig):
    """Contrast within the batch and masked words, at a temperature that is not learned.

    >>> ContinualConfig().matching, ContinualConfig().mask_rate
    (False, 0.15)
    """

    matching: bool = False
    """These models learn no matching: nothing ranks candidates again."""
    ita: float = Field(default=1.0, gt=0)
    """Weight of image-text contrast within the batch."""
    mlm: float = Field(default=1.0, ge=0)
    """Weight of masked language modelling; 0: off."""
    mask_rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that are to be predicted."""
    ids: bool = True
    """Pairs with the same picture or the same words are positives of each other; off, as in the official code of CTP, a pair is its
    own positive alone."""

    @model_validator(mode="after")
    def _check_matching(self) -> Self:
        if self.matching:
            raise ValueError("matching: this method trains no matching; leave it false")
        return self
