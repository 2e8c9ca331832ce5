"""Masked-language-model training, as a warm start for encoders with random weights."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_text_code.methods.mlm.config import MaskedLMConfig
    from mc_text_code.methods.mlm.model import MaskedLM

__all__ = ["MaskedLM", "MaskedLMConfig"]

_load, __dir__ = attach(__name__, {"config": ["MaskedLMConfig"], "model": ["MaskedLM"]})


def __getattr__(name: str) -> Any:
    return _load(name)
