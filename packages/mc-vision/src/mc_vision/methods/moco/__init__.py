"""MoCo v1, v2 and v3."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision.methods.moco.config import MoCoConfig, MoCoV3Config
    from mc_vision.methods.moco.model import MoCo, MoCoV3

__all__ = ["MoCo", "MoCoConfig", "MoCoV3", "MoCoV3Config"]

_load, __dir__ = attach(__name__, {"config": ["MoCoConfig", "MoCoV3Config"], "model": ["MoCo", "MoCoV3"]})


def __getattr__(name: str) -> Any:
    return _load(name)
