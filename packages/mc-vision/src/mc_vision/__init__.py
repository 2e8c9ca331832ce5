"""Momentum contrast for images: MoCo v1/v2/v3, DCL and DCLW, on your own pictures.

Public names load on first use; ``import mc_vision`` itself imports no torch.
"""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision.data import open_source
    from mc_vision.encoders import TimmEncoder
    from mc_vision.encoders_config import EncoderConfig
    from mc_vision.methods import METHODS
    from mc_vision.methods.dcl import DCL, DCLV3, DCLQueue
    from mc_vision.methods.moco import MoCo, MoCoV3
    from mc_vision.recipe import resolve_recipe
    from mc_vision.transforms import EvalDataset, ViewDataset
    from mc_vision.transforms_config import View, Views, views_preset

__version__ = "0.1.0"

__all__ = [
    "DCL",
    "DCLV3",
    "METHODS",
    "DCLQueue",
    "EncoderConfig",
    "EvalDataset",
    "MoCo",
    "MoCoV3",
    "TimmEncoder",
    "View",
    "ViewDataset",
    "Views",
    "__version__",
    "open_source",
    "resolve_recipe",
    "views_preset",
]

_load, __dir__ = attach(
    __name__,
    {
        "data": ["open_source"],
        "encoders": ["TimmEncoder"],
        "encoders_config": ["EncoderConfig"],
        "methods": ["METHODS"],
        "methods.dcl": ["DCL", "DCLV3", "DCLQueue"],
        "methods.moco": ["MoCo", "MoCoV3"],
        "recipe": ["resolve_recipe"],
        "transforms": ["EvalDataset", "ViewDataset"],
        "transforms_config": ["View", "Views", "views_preset"],
    },
)


def __getattr__(name: str) -> Any:
    return _load(name)
