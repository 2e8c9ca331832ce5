"""Momentum contrast for images with words.

Public names load on first use; ``import mc_vision_language`` itself imports no torch.
"""

from typing import Any

from mc_core.lazy import attach

__version__ = "0.1.0"

__all__ = ["__version__"]

_load, __dir__ = attach(__name__, {})


def __getattr__(name: str) -> Any:
    return _load(name)
