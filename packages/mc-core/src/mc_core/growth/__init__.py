"""Models that grow: lossless expansion of transformers, inheriting with momentum, choosing how to grow.

Public names load on first use; sizes and selection import no torch.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_core.growth.blocks import Block, Stack, narrowed, stream_norm
    from mc_core.growth.expansion import Expansion, Growable, drawn, grow, grow_optimizer_state
    from mc_core.growth.inheriting import inherit
    from mc_core.growth.layout import Axis, Residual
    from mc_core.growth.selection import Selection, cost_exponent, growth_scores, select_growth
    from mc_core.growth.spec import ArchSpec, TowerSpec, candidates, heads_of, largest, moves
    from mc_core.growth.vision_transformer import grow_vision_transformer, vision_transformer_expansion

__all__ = [
    "ArchSpec",
    "Axis",
    "Block",
    "Expansion",
    "Growable",
    "Residual",
    "Selection",
    "Stack",
    "TowerSpec",
    "candidates",
    "cost_exponent",
    "drawn",
    "grow",
    "grow_optimizer_state",
    "grow_vision_transformer",
    "growth_scores",
    "heads_of",
    "inherit",
    "largest",
    "moves",
    "narrowed",
    "select_growth",
    "stream_norm",
    "vision_transformer_expansion",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "blocks": ["Block", "Stack", "narrowed", "stream_norm"],
        "expansion": ["Expansion", "Growable", "drawn", "grow", "grow_optimizer_state"],
        "inheriting": ["inherit"],
        "layout": ["Axis", "Residual"],
        "selection": ["Selection", "cost_exponent", "growth_scores", "select_growth"],
        "spec": ["ArchSpec", "TowerSpec", "candidates", "heads_of", "largest", "moves"],
        "vision_transformer": ["grow_vision_transformer", "vision_transformer_expansion"],
    },
)
