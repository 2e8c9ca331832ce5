"""Momentum contrast for medical images: radiographs and their reports.

Public names load on first use; ``import mc_medical`` itself imports no torch. Research use; nothing here is a medical device.
"""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_medical.augment_config import AugmentConfig
    from mc_medical.data import (
        ColumnOptions,
        ImageOptions,
        PairData,
        PixelStore,
        Radiograph,
        ReportOptions,
        Studies,
        inspect_image,
        open_studies,
        read_radiograph,
    )
    from mc_medical.encoders_config import ImageEncoderConfig, ImageTextConfig, TextEncoderConfig
    from mc_medical.inference import ZeroShotScores, nearest, zero_shot
    from mc_medical.measure import Measured
    from mc_medical.methods import METHODS
    from mc_medical.methods.msd import MSD, MSDConfig
    from mc_medical.model import ImageTextModel, load_image_text_model
    from mc_medical.phantom import PhantomFiles, write_phantoms
    from mc_medical.prompts import Prompts, default_prompts, load_prompts
    from mc_medical.recipe import resolve_recipe
    from mc_medical.training import Cohort, prepare_cohort, pretrain_pairs

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "MSD",
    "AugmentConfig",
    "Cohort",
    "ColumnOptions",
    "ImageEncoderConfig",
    "ImageOptions",
    "ImageTextConfig",
    "ImageTextModel",
    "MSDConfig",
    "Measured",
    "PairData",
    "PhantomFiles",
    "PixelStore",
    "Prompts",
    "Radiograph",
    "ReportOptions",
    "Studies",
    "TextEncoderConfig",
    "ZeroShotScores",
    "__version__",
    "default_prompts",
    "inspect_image",
    "load_image_text_model",
    "load_prompts",
    "nearest",
    "open_studies",
    "prepare_cohort",
    "pretrain_pairs",
    "read_radiograph",
    "resolve_recipe",
    "write_phantoms",
    "zero_shot",
]

_load, __dir__ = attach(
    __name__,
    {
        "augment_config": ["AugmentConfig"],
        "data": [
            "ColumnOptions",
            "ImageOptions",
            "PairData",
            "PixelStore",
            "Radiograph",
            "ReportOptions",
            "Studies",
            "inspect_image",
            "open_studies",
            "read_radiograph",
        ],
        "encoders_config": ["ImageEncoderConfig", "ImageTextConfig", "TextEncoderConfig"],
        "inference": ["ZeroShotScores", "nearest", "zero_shot"],
        "measure": ["Measured"],
        "methods": ["METHODS"],
        "methods.msd": ["MSD", "MSDConfig"],
        "model": ["ImageTextModel", "load_image_text_model"],
        "phantom": ["PhantomFiles", "write_phantoms"],
        "prompts": ["Prompts", "default_prompts", "load_prompts"],
        "recipe": ["resolve_recipe"],
        "training": ["Cohort", "prepare_cohort", "pretrain_pairs"],
    },
)


def __getattr__(name: str) -> Any:
    return _load(name)
