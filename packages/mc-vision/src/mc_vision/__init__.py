"""Momentum contrast for images: MoCo v1/v2/v3, DCL, DCLW, SwAV and MMC, on your own pictures.

Public names load on first use; ``import mc_vision`` itself imports no torch.
"""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision.data import open_source
    from mc_vision.data.mask_layouts import open_masks
    from mc_vision.encoders import TimmEncoder
    from mc_vision.encoders_config import EncoderConfig
    from mc_vision.methods import METHODS
    from mc_vision.methods.dcl import DCL, DCLV3, DCLQueue
    from mc_vision.methods.mmc import MMC
    from mc_vision.methods.moco import MoCo, MoCoV3
    from mc_vision.methods.swav import SwAV
    from mc_vision.patch_evaluation import evaluate_patches
    from mc_vision.prompt import encode_photo
    from mc_vision.recipe import resolve_recipe
    from mc_vision.transforms import EvalDataset, ViewDataset
    from mc_vision.transforms_config import View, Views, views_preset

__version__ = "0.1.0"

__all__ = [
    "DCL",
    "DCLV3",
    "METHODS",
    "MMC",
    "DCLQueue",
    "EncoderConfig",
    "EvalDataset",
    "MoCo",
    "MoCoV3",
    "SwAV",
    "TimmEncoder",
    "View",
    "ViewDataset",
    "Views",
    "__version__",
    "encode_photo",
    "evaluate_patches",
    "open_masks",
    "open_source",
    "resolve_recipe",
    "views_preset",
]

_load, __dir__ = attach(
    __name__,
    {
        "data": ["open_source"],
        "data.mask_layouts": ["open_masks"],
        "encoders": ["TimmEncoder"],
        "encoders_config": ["EncoderConfig"],
        "methods": ["METHODS"],
        "methods.dcl": ["DCL", "DCLV3", "DCLQueue"],
        "methods.mmc": ["MMC"],
        "methods.moco": ["MoCo", "MoCoV3"],
        "methods.swav": ["SwAV"],
        "patch_evaluation": ["evaluate_patches"],
        "prompt": ["encode_photo"],
        "recipe": ["resolve_recipe"],
        "transforms": ["EvalDataset", "ViewDataset"],
        "transforms_config": ["View", "Views", "views_preset"],
    },
)


def __getattr__(name: str) -> Any:
    return _load(name)
