"""Which signal encoder, and the segments it is made for. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel

STRIDE_SLOTS = 6
"""Places in the EfficientNet that may halve the length: its stem and five of its stages."""


class EncoderConfig(StrictModel):
    """An encoder from a segment to one embedding. The defaults are the published PPG encoder as its authors' code builds it.

    >>> EncoderConfig().samples, EncoderConfig(architecture="vit").patch
    (3840, 32)
    """

    architecture: Literal["efficientnet", "resnet", "vit"] = "efficientnet"
    """`efficientnet` (the paper's), or `resnet` and `vit`, which stand for the paper's ablation encoders: their layers are
    not published, so these are ours."""
    channels: int = Field(default=4, ge=1)
    """Channels of a segment: 4 optical ones of PPG, 1 of ECG."""
    sampling_rate: float = Field(default=64.0, gt=0)
    """Hz."""
    seconds: float = Field(default=60.0, gt=0)
    """Length of a segment."""
    width: int = Field(default=256, ge=4)
    """Width of the embedding; all other widths follow in proportion."""
    expansion: int = Field(default=7, ge=1)
    """Of `efficientnet`: how much wider a block is inside (7 for PPG in the released code; 6 fits the paper's ECG size)."""
    kernel: int | None = Field(default=None, ge=1)
    """Odd length of the convolutions in samples; default: 3 in `efficientnet` (2·3 − 1 in its later stages), 21 in `resnet`."""
    downsample: int = Field(default=64, ge=1)
    """Of `efficientnet`: samples per step of its last layer, a power of two up to 64."""
    depth: int | None = Field(default=None, ge=1)
    """Blocks; default: 18 in `resnet` (at least 4), 9 in `vit`. `efficientnet` has its 16."""
    patch_seconds: float = Field(default=0.5, gt=0)
    """Of `vit`: length of a patch."""
    standardise: bool = False
    """Begin with the z-score of each channel and segment, for encoders that are handed raw signals."""

    @property
    def samples(self) -> int:
        """T, the length of a segment."""
        return round(self.sampling_rate * self.seconds)

    @property
    def patch(self) -> int:
        """Samples in a patch of ``vit``."""
        return round(self.patch_seconds * self.sampling_rate)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kernel is not None and self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} has no middle; take {self.kernel + 1}")
        if self.samples < 1:
            raise ValueError(f"{self.seconds} s at {self.sampling_rate} Hz hold no sample")
        if self.downsample not in {2**n for n in range(STRIDE_SLOTS + 1)}:
            raise ValueError(f"downsample {self.downsample} is none of 1, 2, 4, 8, 16, 32, 64")
        if self.architecture == "efficientnet" and self.depth is not None:
            raise ValueError(f"depth {self.depth}: the efficientnet has 16 blocks; leave depth out, or change width")
        if self.architecture == "resnet" and self.depth is not None and self.depth < 4:
            raise ValueError(f"depth {self.depth}: a resnet has four stages of at least one block; take 4 or more")
        if self.architecture == "vit":
            if self.patch < 1 or self.samples % self.patch:
                raise ValueError(
                    f"patches of {self.patch_seconds:g} s ({self.patch} samples) do not fill {self.samples} samples "
                    f"({self.seconds:g} s at {self.sampling_rate:g} Hz); change patch_seconds"
                )
            if self.width % 4:
                raise ValueError(f"width {self.width}: a vit needs a multiple of 4")
        return self
