"""CoCoSoDa: one space for questions and code, by momentum contrast and soft augmentation."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_text_code.methods.cocosoda.config import CoCoSoDaConfig
    from mc_text_code.methods.cocosoda.model import CoCoSoDa

__all__ = ["CoCoSoDa", "CoCoSoDaConfig"]

_load, __dir__ = attach(__name__, {"config": ["CoCoSoDaConfig"], "model": ["CoCoSoDa"]})


def __getattr__(name: str) -> Any:
    return _load(name)
