"""How pictures are varied for training. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel

Operation = Literal[
    "identity",
    "autocontrast",
    "equalize",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
MOVING: tuple[Operation, ...] = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
"""Those of them that move pixels, and so what boxes and masks are about."""


class AugmentConfig(StrictModel):
    """Random views of pictures, as ALBEF trains on them (Li et al. 2021; its official code): a random crop resized bicubically, a
    horizontal flip, RandAugment(2, 7).

    >>> AugmentConfig().rand_augment, AugmentConfig(size=384, scale=(0.5, 1.0)).size
    (2, 384)
    """

    size: int = Field(default=256, ge=16)
    """Side of a view in pixels: that of the image encoder."""
    resize: Literal["crop", "squash"] = "crop"
    """`crop`: a random box becomes the view; `squash`: the whole picture does, as for grounding."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the picture's area in a crop."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width/height of a crop."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a mirror image. Captions that say left or right then no longer fit."""
    rand_augment: int = Field(default=2, ge=0)
    """Operations drawn for each view, each applied with `rand_augment_p`; 0: none."""
    rand_augment_p: float = Field(default=0.5, ge=0, le=1)
    """Probability that a drawn operation is applied."""
    magnitude: float = Field(default=7.0, ge=0, le=10)
    """Strength of the operations, of 10."""
    translate: float = Field(default=10.0, ge=0)
    """Shift of a picture at magnitude 10, in pixels of the view."""
    operations: tuple[Operation, ...] = OPERATIONS
    """To draw from, with replacement."""
    fill: int = Field(default=128, ge=0, le=255)
    """Level of what a shift, shear or turn uncovers, of 255."""

    def still(self) -> AugmentConfig:
        """The same without what moves pixels within a view: crop and flip stay.

        >>> AugmentConfig().still().operations
        ('identity', 'autocontrast', 'equalize', 'brightness', 'sharpness')
        """
        kept = tuple(one for one in self.operations if one not in MOVING)
        return self.model_copy(update={"operations": kept or OPERATIONS[:1]})

    @property
    def moves(self) -> bool:
        """Whether pixels are moved by more than crop and flip."""
        return self.rand_augment > 0 and any(one in MOVING for one in self.operations)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {self.scale} must be two rising shares of the area, in (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {self.ratio} must be two rising positive numbers")
        if self.rand_augment and not self.operations:
            raise ValueError("operations is empty: name some, or set rand_augment to 0")
        return self
