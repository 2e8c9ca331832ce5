"""MSD: images and reports in one space, with the negatives of a large batch and the memory of a small one."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_medical.methods.msd.config import MSDConfig
    from mc_medical.methods.msd.model import MSD

__all__ = ["MSD", "MSDConfig"]

_load, __dir__ = attach(__name__, {"config": ["MSDConfig"], "model": ["MSD"]})


def __getattr__(name: str) -> Any:
    return _load(name)
