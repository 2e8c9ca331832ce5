"""The networks of MMC: a vision transformer with the heads of SiT and MC-SSL.

Legend: V views, C channels, H × W pixels, N patches, D features, P trunk outputs, E classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mc_vision.encoders import TimmEncoder
from mc_vision.methods.mmc.config import MMCConfig


class UnitLinear(nn.Linear):
    """Scores against rows of norm 1, whatever the length of the weight's rows: weight normalisation with its gain fixed.

    Args:
        dim: P.
        count: E.

    Shapes: (…, P) → (…, E).
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(dim, count, bias=False)
        nn.init.trunc_normal_(self.weight, std=0.02)

    def rows(self) -> Tensor:
        """(E, P) the rows in use, differentiable."""
        return normalize(self.weight, dim=1)

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.rows())


class Outputs(NamedTuple):
    """What a network makes of (V, C, H, W) images; parts that no loss asks for are None."""

    patches: Tensor
    """(V, N, D) of the encoder."""
    local: Tensor | None
    """(V, N, P) unit trunk outputs of the patches."""
    image: Tensor | None
    """(V, P) the same of the image's token."""
    contrast: Tensor | None
    """(V, P) contrast head, not normalised."""


class MMCNetwork(nn.Module):
    """Encoder and heads that student and teacher have in common.

    Args:
        config: see :class:`~mc_vision.methods.mmc.config.MMCConfig`.
    """

    def __init__(self, config: MMCConfig) -> None:
        super().__init__()
        self.encoder = TimmEncoder(config.encoder)
        dim = self.encoder.num_features
        to_image = config.global_to_local_weight > 0
        to_patches = config.distillation_weight > 0 or to_image
        contrast, separate = config.contrast_weight > 0, config.separate_heads
        self.trunk_on_image = to_image or (contrast and not separate)
        self.trunk_on_patches = to_patches
        self.trunk = _trunk(dim, config) if self.trunk_on_image or to_patches else None
        self.classes = UnitLinear(config.dim, config.outputs) if to_patches else None
        self.contrast: nn.Module | None = None
        if contrast:
            self.contrast = _contrast_head(dim, config) if separate else _short_contrast_head(config)
        self.separate = separate

    def forward(self, x_VCHW: Tensor) -> Outputs:
        """See :class:`Outputs`."""
        pooled_VD, patches_VND = self.encoder.forward_both(x_VCHW)
        raw_VP = local_VNP = None
        if self.trunk is not None:
            if self.trunk_on_image and self.trunk_on_patches:
                both = self.trunk(torch.cat([pooled_VD[:, None], patches_VND], dim=1))
                raw_VP, local_VNP = both[:, 0], both[:, 1:]
            elif self.trunk_on_image:
                raw_VP = self.trunk(pooled_VD)
            else:
                local_VNP = self.trunk(patches_VND)
        contrast_VP = None
        if self.contrast is not None:
            contrast_VP = self.contrast(pooled_VD if self.separate else raw_VP)
        return Outputs(patches_VND, _unit(local_VNP), _unit(raw_VP), contrast_VP)


def _trunk(dim: int, config: MMCConfig) -> nn.Module:
    """MC-SSL's head up to its bottleneck."""
    hidden = config.hidden_dim
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, config.dim)
    )


def _short_contrast_head(config: MMCConfig) -> nn.Module:
    """After the shared trunk (ours)."""
    return nn.Sequential(nn.Linear(config.dim, config.dim), nn.BatchNorm1d(config.dim, affine=False))


def _contrast_head(dim: int, config: MMCConfig) -> nn.Module:
    """SiT's, on the image's token."""
    hidden = config.contrast_hidden_dim
    return nn.Sequential(
        *(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)),
        *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.GELU()),
        *(nn.Linear(hidden, config.dim), nn.BatchNorm1d(config.dim, affine=False)),
    )


def _unit(x: Tensor | None) -> Tensor | None:
    return None if x is None else normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


class Reconstruction(nn.Module):
    """Pixels from patches: (Linear, GELU) three times, then a linear map of each patch to its pixels.

    The last is SiT's transposed convolution, whose stride is its kernel, with a bias for each pixel.

    Args:
        dim: D.
        channels: C.
        patch: (height, width) in pixels.

    Shapes: (V, N, D) → (V, C, H, W).
    """

    def __init__(self, dim: int, channels: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.channels, self.patch = channels, patch
        layers = [layer for _ in range(3) for layer in (nn.Linear(dim, dim), nn.GELU())]
        self.layers = nn.Sequential(*layers, nn.Linear(dim, channels * patch[0] * patch[1]))

    def forward(self, patches_VND: Tensor, rows: int) -> Tensor:
        """Pixels of images that are ``rows`` patches high."""
        pixels = self.layers(patches_VND).unflatten(2, (self.channels, *self.patch)).unflatten(1, (rows, -1))
        return pixels.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
