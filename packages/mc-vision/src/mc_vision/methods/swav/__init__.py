"""SwAV."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision.methods.swav.config import SwAVConfig
    from mc_vision.methods.swav.model import SwAV

__all__ = ["SwAV", "SwAVConfig"]

_load, __dir__ = attach(__name__, {"config": ["SwAVConfig"], "model": ["SwAV"]})


def __getattr__(name: str) -> Any:
    return _load(name)
