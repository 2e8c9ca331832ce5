"""What heads are made of."""

from __future__ import annotations

import math

from torch import Tensor, nn

from mc_core.errors import ConfigError
from mc_vision_language.experts.config import ExpertConfig

_GROUPS = 8


def need_classes(config: ExpertConfig) -> int:
    """How many classes a head has.

    Raises:
        ConfigError: none is named.
    """
    if not config.class_names:
        raise ConfigError(
            f"a {config.kind} expert without class_names: name the classes, or build it for annotated pictures"
        )
    return len(config.class_names)


def convolutions(before: int, width: int, depth: int) -> nn.Sequential:
    """So many 3 × 3 convolutions with group norm and GELU; without any, a 1 × 1 convolution."""
    if not depth:
        return nn.Sequential(nn.Conv2d(before, width, 1))
    layers: list[nn.Module] = []
    for place in range(depth):
        convolution = nn.Conv2d(width if place else before, width, 3, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(math.gcd(_GROUPS, width), width), nn.GELU()]
    return nn.Sequential(*layers)


def tokens_of(features: Tensor) -> Tensor:
    """(B, H·W, C) of a map (B, C, H, W), row by row."""
    return features.flatten(2).transpose(1, 2)
