"""Astrea: four heterogeneous vision experts, pre-aligned, routed and trained with momentum contrast."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision_language.methods.astrea.config import AstreaConfig
    from mc_vision_language.methods.astrea.instruct import AstreaInstruct
    from mc_vision_language.methods.astrea.joint import AstreaJoint
    from mc_vision_language.methods.astrea.model import AstreaFusion, AstreaModel, load_astrea
    from mc_vision_language.methods.astrea.prealign import AstreaPrealign

__all__ = [
    "AstreaConfig",
    "AstreaFusion",
    "AstreaInstruct",
    "AstreaJoint",
    "AstreaModel",
    "AstreaPrealign",
    "load_astrea",
]

_load, __dir__ = attach(
    __name__,
    {
        "config": ["AstreaConfig"],
        "instruct": ["AstreaInstruct"],
        "joint": ["AstreaJoint"],
        "model": ["AstreaFusion", "AstreaModel", "load_astrea"],
        "prealign": ["AstreaPrealign"],
    },
)


def __getattr__(name: str) -> Any:
    return _load(name)
