"""CTP: compatible momentum contrast and topology preservation, for training on one domain after the other."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision_language.methods.ctp.config import CTPConfig
    from mc_vision_language.methods.ctp.model import CTP

__all__ = ["CTP", "CTPConfig"]

_load, __dir__ = attach(__name__, {"config": ["CTPConfig"], "model": ["CTP"]})


def __getattr__(name: str) -> Any:
    return _load(name)
