"""ESimCSE: sentence embeddings from a sentence and its repeated self, with a queue of keys."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_text_code.methods.esimcse.config import ESimCSEConfig
    from mc_text_code.methods.esimcse.model import ESimCSE

__all__ = ["ESimCSE", "ESimCSEConfig"]

_load, __dir__ = attach(__name__, {"config": ["ESimCSEConfig"], "model": ["ESimCSE"]})


def __getattr__(name: str) -> Any:
    return _load(name)
