"""Which image encoder, and how it is adapted to the images. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mc_core.engine.config import StrictModel

CIFAR_STEM_SIDE = 32


class EncoderConfig(StrictModel):
    """A backbone without its classifier.

    >>> EncoderConfig(backbone="resnet18", image_size=32).uses_cifar_stem
    True
    >>> EncoderConfig(backbone="resnet18", image_size=64).uses_cifar_stem
    False
    """

    backbone: str = "resnet50"
    """A timm name (`resnet18`, `vit_small_patch16_224`, `convnext_tiny` …), or one of ours: `resnet10-w16` and
    `resnet10-w32` (small, for CPUs), `moco-vit-small-16`, `moco-vit-base-16` and `moco-vit-tiny-8` (MoCo v3)."""
    pretrained: bool | str = False
    """Start from published weights (downloaded by timm), or from a `.safetensors` file of the same backbone."""
    image_size: int | None = Field(default=None, ge=1)
    """Side of the images in pixels; default: that of the backbone."""
    channels: int = Field(default=3, ge=1)
    """Channels of the images."""
    cifar_stem: bool | Literal["auto"] = "auto"
    """Begin a ResNet with a 3×3 convolution of stride 1 and no max-pooling, as on CIFAR (`resnet10-…`: leave out the
    pooling only). `auto`: for an `image_size` of at most 32 pixels, unless `pretrained`."""
    zero_init_residual: bool = False
    """Start the last normalisation of each residual branch of a ResNet at zero (MoCo v3)."""

    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth: the probability of skipping the last residual branch in training, rising linearly from 0."""

    @property
    def uses_cifar_stem(self) -> bool:
        """What ``cifar_stem`` comes to for a ResNet."""
        if self.cifar_stem != "auto":
            return self.cifar_stem
        return self.image_size is not None and self.image_size <= CIFAR_STEM_SIDE and not self.pretrained
