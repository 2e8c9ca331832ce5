"""Which sizes a model may grow to in a step, and what it may cost.

All numbers are this project's choice; the paper names the dimensions alone (blocks, heads, MLP, shared encoder).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mc_core.growth.spec import ArchSpec, TowerSpec, candidates
from mc_vision_language.methods.growclip.config import PARTS, GrowCLIPConfig, GrowthConfig

CURRENT = "current"
"""Name of the candidate that does not grow."""
Tokens = Mapping[str, Sequence[int]]


def tokens_of(config: GrowCLIPConfig, text: int) -> dict[str, list[int]]:
    """Lengths of the sequences that pass through each part, for :meth:`mc_core.growth.spec.ArchSpec.flops`.

    Args:
        config: of the model.
        text: tokens of a usual text.
    """
    image = 1 + config.image.patches
    return {"image": [image], "text": [text], "shared": [image, text]}


def growth_budget(first: float, growth: GrowthConfig, pairs: int, pairs_at_first: int) -> float:
    """κ: what a model may cost once so many pairs have arrived, ``budget · c_1 · (|D_t| / |D_1|)^β``.

    Args:
        first: c_1, cost of the first model.
        growth: with ``budget`` and ``beta``.
        pairs: |D_t|.
        pairs_at_first: |D_1|.

    >>> growth_budget(100.0, GrowthConfig(), 400, 100)
    200.0
    """
    return growth.budget * first * (pairs / pairs_at_first) ** growth.beta


def growth_space(
    current: ArchSpec, growth: GrowthConfig, tokens: Tokens, budget: float, *, seed: int = 0
) -> dict[str, ArchSpec]:
    """Candidates by name: no growth first, then moves within budget and limits.

    Args:
        current: what there is.
        growth: the moves and their limits.
        tokens: see :func:`tokens_of`.
        budget: κ, in FLOPs of a forward pass of one pair.
        seed: of the pairs of moves.

    >>> from mc_vision_language.methods.growclip.config import PixelConfig
    >>> config = GrowCLIPConfig(image=PixelConfig(image_size=32, patch_size=8), width=32, head_width=16)
    >>> spec, tokens = config.arch(), tokens_of(config, 8)
    >>> list(growth_space(spec, config.growth, tokens, spec.flops(tokens)))
    ['current']
    """
    every = candidates(
        current, pairs=growth.pairs, seed=seed, blocks=growth.blocks, heads=growth.heads, hidden=growth.hidden
    )
    return {
        name: spec
        for name, spec in every.items()
        if name == CURRENT or (spec.flops(tokens) <= budget and _within(spec, growth))
    }


def _within(spec: ArchSpec, growth: GrowthConfig) -> bool:
    return all(_below(spec.parts[name], getattr(growth, name)) for name in PARTS)


def _below(part: TowerSpec, limit: object) -> bool:
    return all(
        (most := getattr(limit, size)) is None or getattr(part, size) <= most for size in ("blocks", "heads", "hidden")
    )
