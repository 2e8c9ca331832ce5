"""Vision transformers like timm's, told by what they have (timm is not imported), grown in place of being built anew.

A block is handled that computes ``x += attn(norm1(x))``, ``x += mlp(norm2(x))`` with packed ``attn.qkv``.
"""

from __future__ import annotations

from torch import nn

from mc_core.growth.blocks import block_axes
from mc_core.growth.layout import Axis

_LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def is_vision_block(block: nn.Module) -> bool:
    """Whether a module has the parts of such a block."""
    return all(isinstance(_part(block, path), nn.Linear) for path in _LINEAR) and all(
        isinstance(_part(block, path), nn.Module) for path in ("norm1", "norm2")
    )


def vision_block_axes(block: nn.Module) -> dict[str, tuple[Axis, ...]]:
    """How each parameter of such a block grows."""
    return block_axes(*_LINEAR)


def vision_block_norms(block: nn.Module) -> tuple[str, ...]:
    """Paths of its norms over the residual stream."""
    return ("norm1", "norm2")


def _part(module: nn.Module, path: str) -> object:
    found: object = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found
