"""Blocks like those of timm's vision transformers, told by what they have and tried out for what they do."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mc_core.errors import ConfigError
from mc_core.growth.blocks import block_axes
from mc_core.growth.layout import Axis
from mc_core.modules import evaluating

LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
NORMS = ("norm1", "norm2")
_HANDLED = (
    "it can handle mc_core.growth.Block and timm's pre-LN blocks (norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2)"
)


def part(module: nn.Module, path: str) -> object:
    """What lies at a dotted path, or None."""
    found: object = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def vision_block_axes(block: nn.Module, path: str) -> dict[str, tuple[Axis, ...]]:
    """How the linear layers of such a block grow.

    Args:
        block: to look at.
        path: where it is in its model, for the message.

    Raises:
        ConfigError: it lacks a part, or does not compute ``x += attn(norm1(x))``, ``x += mlp(norm2(x))``.
    """
    missing = [name for name in LINEAR if not isinstance(part(block, name), nn.Linear)]
    missing += [name for name in NORMS if not isinstance(part(block, name), nn.Module)]
    reason = f"it has no {missing[0]}" if missing else _unlike_pre_norm(block)
    if reason is not None:
        raise ConfigError(f"{path} ({type(block).__name__}) cannot be handled by the expansion: {reason}; {_HANDLED}")
    axes = block_axes(*LINEAR)
    return {name: axis for name, axis in axes.items() if isinstance(part(block, name), Tensor)}


@torch.no_grad()
def _unlike_pre_norm(block: nn.Module) -> str | None:
    """Why a block is none that reads and writes the residual stream through its norms and linear layers alone."""
    weight = part(block, "attn.qkv.weight")
    assert isinstance(weight, Tensor)
    x = torch.randn(1, 3, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    writers = [f"{name}.{kind}" for name in ("attn.proj", "mlp.fc2") for kind in ("weight", "bias")]
    silent = {name: torch.zeros_like(held) for name in writers if isinstance(held := part(block, name), Tensor)}
    with evaluating(block):
        try:
            added, shifted = (block(x + offset) - (x + offset) for offset in (0.0, 3.0))
            nothing = functional_call(block, silent, (x,)) - x
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            told = (str(error).splitlines() or [""])[0]
            return f"it does not run on three tokens alone ({type(error).__name__}: {told})"
    tolerance = 0.1 if weight.dtype.itemsize < 4 else 1e-3
    if (added - shifted).abs().max() > tolerance * added.abs().max().clamp_min(1e-2):
        return "it reads the residual stream past norm1 and norm2"
    if nothing.abs().max() > 1e-6:
        return "it adds to the residual stream past attn.proj and mlp.fc2"
    return None
