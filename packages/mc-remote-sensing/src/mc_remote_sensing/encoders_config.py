"""Which encoders, and the segmentation network around them. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel

Modality = Literal["image", "elevation", "stacked", "fused"]
Norm = Literal["batch", "layer"]
ELEVATION_CHANNELS = 4
"""relative elevation, slope, curvature, valid"""


class BandsConfig(StrictModel):
    """The bands of the image and their statistics over valid training pixels, in the units of the raster.

    >>> BandsConfig(names=("nir",), mean=(310.0,), std=(55.0,)).count
    1
    """

    names: tuple[str, ...] = ("red", "green", "blue")
    """Names of the bands, in order."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Mean of each band."""
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    """Standard deviation of each band, above 0."""

    @property
    def count(self) -> int:
        """How many bands."""
        return len(self.names)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not len(self.names) == len(self.mean) == len(self.std):
            raise ValueError(f"{len(self.names)} band names, {len(self.mean)} means and {len(self.std)} deviations")
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"band names {', '.join(self.names) or '(none)'}: each band needs a name of its own")
        if not all(deviation > 0 for deviation in self.std):
            raise ValueError(f"standard deviations {self.std}: each must be above 0 (a constant band says nothing)")
        return self


class PyramidConfig(StrictModel):
    """A convolutional encoder that gives a fine and a coarse feature map."""

    backbone: str = "resnet34"
    """A timm name that can give feature maps (`resnet34`, `convnext_tiny` …), or `small-wN`: ours, for CPUs, N channels in
    its first layer."""
    pretrained: bool = False
    """Start from published weights, downloaded by timm."""


class NetworkConfig(StrictModel):
    """The segmentation network: an encoder for each modality, atrous pooling, fusion, decoder. Every choice here is ours."""

    modality: Modality = "fused"
    """`fused`: image and elevation each through its own encoder, joined as features; `stacked`: joined as bands of one
    encoder; `image` or `elevation` alone."""
    image: PyramidConfig = PyramidConfig(backbone="resnet101")
    """The image encoder; also that of `stacked`."""
    elevation: PyramidConfig = PyramidConfig(backbone="resnet34")
    """The encoder of relative elevation, slope, curvature and their validity."""
    output_stride: Literal[4, 8, 16] = 16
    """Pixels of a cell of the coarse map, which is a hyper-pixel (4 only for `small-wN`)."""
    width: int = Field(default=256, ge=1)
    """Channels of the coarse map."""
    rates: tuple[int, ...] | None = None
    """Dilations of the atrous convolutions, in cells; default 6, 12 and 18 at a stride of 16, and in proportion at others."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout after the atrous pooling."""
    fusion: Literal["position", "squeeze"] = "position"
    """How the channels of both encoders are weighed before they are joined: at each position by itself, or by their mean
    over the whole tile (squeeze and excitation), which makes the map depend on how a scene is cut into tiles."""
    reduction: int = Field(default=16, ge=1)
    """How many times narrower the hidden layer of the fusion's gate is."""
    detail: Literal["first", "both"] = "first"
    """Whose fine features the decoder sees: those of the image (of the elevation, where that is alone), or of both."""
    detail_width: int = Field(default=48, ge=1)
    """Channels that the fine features are reduced to."""
    decoder_width: int = Field(default=256, ge=1)
    """Channels of the decoder."""
    decoder_layers: int = Field(default=2, ge=1)
    """3×3 convolutions of the decoder."""
    norm: Norm = "batch"
    """Normalisation of all layers but timm's: over the batch, or over the channels of each position."""

    def atrous_rates(self) -> tuple[int, ...]:
        """The dilations, in cells.

        >>> NetworkConfig(output_stride=8).atrous_rates()
        (12, 24, 36)
        """
        if self.rates is not None:
            return self.rates
        return tuple(rate * 16 // self.output_stride for rate in (6, 12, 18))

    @property
    def uses_image(self) -> bool:
        """Whether the network looks at the image."""
        return self.modality != "elevation"

    @property
    def uses_elevation(self) -> bool:
        """Whether the network looks at the elevation."""
        return self.modality != "image"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rates is not None and not all(rate >= 1 for rate in self.rates):
            raise ValueError(f"rates {self.rates}: dilations are at least 1")
        used = [self.image] * self.uses_image + [self.elevation] * (self.modality in ("elevation", "fused"))
        if self.output_stride == 4 and not all(pyramid.backbone.startswith("small-w") for pyramid in used):
            raise ValueError("output_stride 4 is for the encoders small-wN; take 8 or 16")
        return self
