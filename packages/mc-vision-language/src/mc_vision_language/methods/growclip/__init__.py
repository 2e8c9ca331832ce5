"""GrowCLIP: a dual encoder whose towers grow as pairs arrive."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision_language.methods.growclip.config import GrowCLIPConfig, GrowthConfig
    from mc_vision_language.methods.growclip.model import GrowCLIP, GrowCLIPModel, Towers

__all__ = ["GrowCLIP", "GrowCLIPConfig", "GrowCLIPModel", "GrowthConfig", "Towers"]

_load, __dir__ = attach(
    __name__,
    {"config": ["GrowCLIPConfig", "GrowthConfig"], "model": ["GrowCLIP", "GrowCLIPModel", "Towers"]},
)


def __getattr__(name: str) -> Any:
    return _load(name)
