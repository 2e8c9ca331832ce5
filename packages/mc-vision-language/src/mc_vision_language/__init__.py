"""Momentum contrast for images with words: pretraining on pairs, search, questions, statements and grounding.

Public names load on first use; ``import mc_vision_language`` itself imports no torch.
"""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision_language.augment_config import AugmentConfig
    from mc_vision_language.checkpoint import convert_albef, convert_albef_checkpoint
    from mc_vision_language.data import (
        ArrayImages,
        CaptionOptions,
        ColumnOptions,
        FileImages,
        ImageSet,
        PairData,
        Pairs,
        ReadOptions,
        SplitOptions,
        TarImages,
        open_pairs,
        read_image,
        scene_pairs,
    )
    from mc_vision_language.data.labelled import LabelledImages, open_labelled
    from mc_vision_language.data.phrases import open_phrases
    from mc_vision_language.data.questions import open_questions
    from mc_vision_language.data.statements import open_entailments, open_statements
    from mc_vision_language.encoders_config import ImageEncoderConfig, TextEncoderConfig, VisionLanguageConfig
    from mc_vision_language.evaluation.retrieval import RetrievalResult, retrieval
    from mc_vision_language.evaluation.zero_shot import ZeroShotResult, class_embeddings, zero_shot
    from mc_vision_language.growing import GrowthRun, arriving, run_growth, sliced
    from mc_vision_language.language import LanguageModel
    from mc_vision_language.language_config import LanguageConfig
    from mc_vision_language.methods import METHODS
    from mc_vision_language.methods.albef import ALBEF, ALBEFConfig
    from mc_vision_language.methods.astrea import AstreaConfig, AstreaJoint, AstreaModel, load_astrea
    from mc_vision_language.methods.growclip import GrowCLIP, GrowCLIPConfig, GrowCLIPModel
    from mc_vision_language.model import VisionLanguageModel, load_vision_language_model
    from mc_vision_language.recipe import resolve_recipe
    from mc_vision_language.sample import sample_pairs
    from mc_vision_language.search import SearchIndex, captions_for
    from mc_vision_language.staged.running import StagedRun, run_astrea
    from mc_vision_language.tasks import finetune_task, ground, heat_map, load_task_model, resolve_task_recipe
    from mc_vision_language.tokenizers import load_tokenizer, train_tokenizer
    from mc_vision_language.training import pretrain_pairs

__version__ = "0.1.0"

_NAMES = {
    "augment_config": ["AugmentConfig"],
    "checkpoint": ["convert_albef", "convert_albef_checkpoint"],
    "data": [
        "ArrayImages",
        "CaptionOptions",
        "ColumnOptions",
        "FileImages",
        "ImageSet",
        "PairData",
        "Pairs",
        "ReadOptions",
        "SplitOptions",
        "TarImages",
        "open_pairs",
        "read_image",
        "scene_pairs",
    ],
    "data.labelled": ["LabelledImages", "open_labelled"],
    "data.phrases": ["open_phrases"],
    "data.questions": ["open_questions"],
    "data.statements": ["open_entailments", "open_statements"],
    "encoders_config": ["ImageEncoderConfig", "TextEncoderConfig", "VisionLanguageConfig"],
    "evaluation.retrieval": ["RetrievalResult", "retrieval"],
    "evaluation.zero_shot": ["ZeroShotResult", "class_embeddings", "zero_shot"],
    "growing": ["GrowthRun", "arriving", "run_growth", "sliced"],
    "language": ["LanguageModel"],
    "language_config": ["LanguageConfig"],
    "methods": ["METHODS"],
    "methods.albef": ["ALBEF", "ALBEFConfig"],
    "methods.astrea": ["AstreaConfig", "AstreaJoint", "AstreaModel", "load_astrea"],
    "methods.growclip": ["GrowCLIP", "GrowCLIPConfig", "GrowCLIPModel"],
    "model": ["VisionLanguageModel", "load_vision_language_model"],
    "recipe": ["resolve_recipe"],
    "sample": ["sample_pairs"],
    "search": ["SearchIndex", "captions_for"],
    "staged.running": ["StagedRun", "run_astrea"],
    "tasks": ["finetune_task", "ground", "heat_map", "load_task_model", "resolve_task_recipe"],
    "tokenizers": ["load_tokenizer", "train_tokenizer"],
    "training": ["pretrain_pairs"],
}

__all__ = [
    "ALBEF",
    "METHODS",
    "ALBEFConfig",
    "ArrayImages",
    "AstreaConfig",
    "AstreaJoint",
    "AstreaModel",
    "AugmentConfig",
    "CaptionOptions",
    "ColumnOptions",
    "FileImages",
    "GrowCLIP",
    "GrowCLIPConfig",
    "GrowCLIPModel",
    "GrowthRun",
    "ImageEncoderConfig",
    "ImageSet",
    "LabelledImages",
    "LanguageConfig",
    "LanguageModel",
    "PairData",
    "Pairs",
    "ReadOptions",
    "RetrievalResult",
    "SearchIndex",
    "SplitOptions",
    "StagedRun",
    "TarImages",
    "TextEncoderConfig",
    "VisionLanguageConfig",
    "VisionLanguageModel",
    "ZeroShotResult",
    "__version__",
    "arriving",
    "captions_for",
    "class_embeddings",
    "convert_albef",
    "convert_albef_checkpoint",
    "finetune_task",
    "ground",
    "heat_map",
    "load_astrea",
    "load_task_model",
    "load_tokenizer",
    "load_vision_language_model",
    "open_entailments",
    "open_labelled",
    "open_pairs",
    "open_phrases",
    "open_questions",
    "open_statements",
    "pretrain_pairs",
    "read_image",
    "resolve_recipe",
    "resolve_task_recipe",
    "retrieval",
    "run_astrea",
    "run_growth",
    "sample_pairs",
    "scene_pairs",
    "sliced",
    "train_tokenizer",
    "zero_shot",
]

_load, __dir__ = attach(__name__, _NAMES)


def __getattr__(name: str) -> Any:
    return _load(name)
