"""ALBEF: align before fuse, with momentum distillation."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision_language.methods.albef.config import ALBEFConfig
    from mc_vision_language.methods.albef.model import ALBEF

__all__ = ["ALBEF", "ALBEFConfig"]

_load, __dir__ = attach(__name__, {"config": ["ALBEFConfig"], "model": ["ALBEF"]})


def __getattr__(name: str) -> Any:
    return _load(name)
