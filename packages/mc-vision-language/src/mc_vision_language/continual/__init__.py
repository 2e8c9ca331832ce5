"""Vision-language training on a sequence of tasks. Public names load on first use; importing this package loads no torch."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision_language.continual.base import Sequential, Step
    from mc_vision_language.continual.config import ContinualConfig

_NAMES = {
    "base": ["Sequential", "Step"],
    "config": ["ContinualConfig"],
}

__all__ = ["ContinualConfig", "Sequential", "Step"]

_load, __dir__ = attach(__name__, _NAMES)


def __getattr__(name: str) -> Any:
    return _load(name)
