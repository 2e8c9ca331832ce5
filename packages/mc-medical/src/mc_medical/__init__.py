"""Momentum contrast for medical images: radiographs and their reports.

Public names load on first use; ``import mc_medical`` itself imports no torch.
"""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_medical.methods import METHODS

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "__version__",
]

_load, __dir__ = attach(
    __name__,
    {
        "methods": ["METHODS"],
    },
)


def __getattr__(name: str) -> Any:
    return _load(name)
