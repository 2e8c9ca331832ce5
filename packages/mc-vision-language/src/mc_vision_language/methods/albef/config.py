"""Settings of ALBEF. Imports no torch."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from mc_vision_language.encoders_config import VisionLanguageConfig


class ALBEFConfig(VisionLanguageConfig):
    """ALBEF; the defaults of momentum, queue, α and masking are those of the official pretraining.

    >>> ALBEFConfig().momentum, ALBEFConfig().alpha_at(0.5)
    (0.995, 0.2)
    """

    momentum: float = Field(default=0.995, ge=0, le=1)
    """Of the teacher: its weights become m·theirs + (1 − m)·the trained ones, once per optimizer step."""
    queue_size: int = Field(default=65_536, ge=0)
    """Keys of earlier steps to contrast with, for images and for texts; 0: none."""
    alpha: float = Field(default=0.4, ge=0, le=1)
    """Share of the targets that comes from the teacher."""
    alpha_ramp_epochs: float = Field(default=1.0, ge=0)
    """Epochs in which that share rises from 0."""
    itc: float = Field(default=1.0, ge=0)
    """Weight of image-text contrast; 0: off."""
    itm: float = Field(default=1.0, ge=0)
    """Weight of image-text matching; 0: off."""
    mlm: float = Field(default=1.0, ge=0)
    """Weight of masked language modelling; 0: off."""
    distil_itc: bool = True
    """Whether the teacher softens the targets of image-text contrast."""
    distil_mlm: bool = True
    """Whether it softens those of masked language modelling."""
    hard_negative_strength: float = Field(default=1.0, ge=0, le=1)
    """How much matching prefers negatives that look alike: 1 as in the paper, 0 all alike. Where many captions are wrong the
    hardest negative is often the true one."""
    mask_rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that are to be predicted."""
    ids: bool = True
    """Pairs with the same picture or the same words are positives of each other in the contrast and never negatives in matching;
    off, as in the official pretraining, a pair is its own positive alone."""
    teacher_train_mode: bool = False
    """Leave the teacher's dropout on, as in the official code."""

    @property
    def distils(self) -> bool:
        """Whether anything is learned from the teacher's opinion."""
        return self.alpha > 0 and ((self.distil_itc and self.itc > 0) or (self.distil_mlm and self.mlm > 0))

    def alpha_at(self, epochs: float) -> float:
        """α after so many epochs."""
        ramp = self.alpha_ramp_epochs
        return self.alpha * (min(epochs / ramp, 1.0) if ramp else 1.0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.itc or self.itm or self.mlm):
            raise ValueError("itc, itm and mlm are all 0: nothing would be trained")
        return self
