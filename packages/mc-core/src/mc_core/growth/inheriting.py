"""Parameter inheriting with momentum: what a grown model keeps of the weights it grew from.

Two averages, both called momentum: the moving average θ̄ of the weights before the growth
(:class:`mc_core.momentum.MomentumEncoder`), and the share m of it that the grown model starts with.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from mc_core.errors import ConfigError

__all__ = ["inherit"]

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def inherit(expanded: M, fresh: nn.Module, momentum: float = 0.9, *, fresh_share: float | None = None) -> M:
    """A new model ``m · E(θ̄) + (1 − m) · θ_rand``; neither of the two given is changed.

    Only tensors of two or more dimensions are mixed: norms, biases and the temperature are inherited as they are. At m = 1 it
    has the expanded model's bits, at m = 0 its matrices are those of the fresh one. Below 1 the function is not kept.

    Args:
        expanded: E(θ̄), the grown moving average.
        fresh: θ_rand, an untrained model of the same size. To keep the variance of entries that growth drew, it must be
            another draw than the one the expansion filled them from (another seed).
        momentum: m in [0, 1].
        fresh_share: of θ_rand, 0 or more; default 1 − m. Shrink and perturb is ``momentum=0.4, fresh_share=0.1``.

    Raises:
        ConfigError: momentum outside [0, 1], a negative share, or models of different sizes.

    Source: GrowCLIP (Deng et al. 2023, arXiv:2308.11331) names the idea; the formula here is this project's. Shrink and
    perturb: Ash and Adams 2020, arXiv:1910.08475.

    >>> old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> torch.equal(inherit(old, new, 1.0).weight, old.weight), torch.equal(inherit(old, new, 0.0).weight, new.weight)
    (True, True)
    """
    if not 0.0 <= momentum <= 1.0:
        raise ConfigError(f"momentum is {momentum}; it must lie between 0 (start afresh) and 1 (inherit all)")
    share = 1.0 - momentum if fresh_share is None else fresh_share
    if share < 0.0:
        raise ConfigError(f"fresh_share is {share}; it must be 0 or more")
    theirs = dict(fresh.named_parameters())
    mixed = copy.deepcopy(expanded)
    for name, parameter in mixed.named_parameters():
        other = theirs.pop(name, None)
        if other is None or other.shape != parameter.shape:
            found = "missing" if other is None else tuple(other.shape)
            raise ConfigError(
                f"{name} is {tuple(parameter.shape)} in the expanded model but {found} in the fresh one; "
                "draw the fresh one in the grown size"
            )
        if parameter.ndim >= 2 and (momentum, share) != (1.0, 0.0):
            drawn = other.to(parameter)
            parameter.copy_(drawn if (momentum, share) == (0.0, 1.0) else momentum * parameter + share * drawn)
    if theirs:
        raise ConfigError(f"{next(iter(theirs))} is in the fresh model only; draw it in the grown size")
    return mixed
