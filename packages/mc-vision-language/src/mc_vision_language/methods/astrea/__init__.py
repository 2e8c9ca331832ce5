"""Astrea: four heterogeneous vision experts, pre-aligned, routed and trained with momentum contrast."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision_language.methods.astrea.config import AstreaConfig
    from mc_vision_language.methods.astrea.model import AstreaFusion, AstreaModel

__all__ = ["AstreaConfig", "AstreaFusion", "AstreaModel"]

_load, __dir__ = attach(__name__, {"config": ["AstreaConfig"], "model": ["AstreaFusion", "AstreaModel"]})


def __getattr__(name: str) -> Any:
    return _load(name)
