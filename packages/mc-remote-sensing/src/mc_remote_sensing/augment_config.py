"""How tiles are changed at random for training. Imports no torch."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel


class AugmentConfig(StrictModel):
    """One geometric change of image, elevation and labels together, and photometric ones of each view by itself. All ours."""

    size: int | None = Field(default=None, ge=1)
    """Side of the result in pixels; default: that of the tiles. Smaller than a tile, it leaves room to zoom out."""
    flip: bool = True
    """Mirror and turn by quarter turns, all eight ways equally likely."""
    scale: tuple[float, float] = (0.75, 1.5)
    """Range of the zoom; below 1, what lies beyond the tile is ignored."""
    brightness: float = Field(default=0.4, ge=0)
    """Most that all bands are shifted, in their standard deviations."""
    contrast: float = Field(default=0.4, ge=0, lt=1)
    """Most that the contrast of the image changes, as a share."""
    gamma: float = Field(default=0.3, ge=0)
    """Exponents from 1/(1 + gamma) to 1 + gamma, on values from three deviations below the mean to three above."""
    blur_p: float = Field(default=0.5, ge=0, le=1)
    """Probability of blurring the image, by up to the mean of each pixel's 3×3 neighbours."""
    elevation_scale: float = Field(default=0.1, ge=0, lt=1)
    """Most that heights are multiplied by, as a share; slope and curvature follow exactly."""
    elevation_noise: float = Field(default=0.02, ge=0)
    """Deviation of a smooth noise (a value each 8 pixels) on relative elevation, slope and curvature, in their own units."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {self.scale}: give the smaller zoom first, above 0")
        return self
