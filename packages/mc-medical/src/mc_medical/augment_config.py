"""How a radiograph is varied for training. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mc_core.engine.config import StrictModel


class AugmentConfig(StrictModel):
    """Random views of square radiographs, as in MedCLIP's script but for its mirror image, which would contradict "left".

    >>> AugmentConfig().flip
    'none'
    """

    size: int = Field(default=224, ge=16)
    """Side of a view in pixels: that of the image encoder."""
    crop: float = Field(default=0.875, gt=0, le=1)
    """Side of the random crop as a share of the stored square (224 of 256)."""
    brightness: float = Field(default=0.2, ge=0, lt=1)
    """Pixels are multiplied by a factor within 1 ± this."""
    contrast: float = Field(default=0.2, ge=0, lt=1)
    """Distances from the mean are multiplied by a factor within 1 ± this."""
    rotation: float = Field(default=10.0, ge=0, le=180)
    """Largest turn, in degrees."""
    scale: tuple[float, float] = (0.8, 1.1)
    """Smallest and largest magnification."""
    shift: float = Field(default=0.0625, ge=0, le=0.5)
    """Largest shift along each axis, as a share of the side."""
    flip: Literal["none", "swap"] = "none"
    """`swap` (ours): every second pair is mirrored, and left and right change places in its text."""
