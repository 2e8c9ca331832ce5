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
    from mc_core.growth.spec import ArchSpec, TowerSpec, candidates, heads_of, largest, moves

__all__ = [
    "ArchSpec",
    "Axis",
    "Block",
    "Expansion",
    "Growable",
    "Residual",
    "Stack",
    "TowerSpec",
    "candidates",
    "drawn",
    "grow",
    "grow_optimizer_state",
    "heads_of",
    "inherit",
    "largest",
    "moves",
    "narrowed",
    "stream_norm",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "blocks": ["Block", "Stack", "narrowed", "stream_norm"],
        "expansion": ["Expansion", "Growable", "drawn", "grow", "grow_optimizer_state"],
        "inheriting": ["inherit"],
        "layout": ["Axis", "Residual"],
        "spec": ["ArchSpec", "TowerSpec", "candidates", "heads_of", "largest", "moves"],
    },
)
