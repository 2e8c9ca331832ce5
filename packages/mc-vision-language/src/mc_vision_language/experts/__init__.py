"""Four vision experts, each of use alone: what is there (classification), what could be said (captioning), where it is (detection),
and which pixels belong to it (segmentation).

The abstract of Astrea (arXiv:2503.09445) names these four kinds; their models, sizes and losses are ours. Public names load on
first use; importing this package loads no torch.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision_language.experts.backbone import TimmGrid
    from mc_vision_language.experts.base import (
        Expert,
        ExpertMethod,
        build_expert,
        expert_class,
        load_expert,
        trainable_kinds,
    )
    from mc_vision_language.experts.config import KINDS, NEEDS, ExpertConfig, Kind
    from mc_vision_language.experts.detection import Detections
    from mc_vision_language.experts.evaluating import ExpertScores, detection_scores, measure_expert
    from mc_vision_language.experts.training import expert_data, expert_for, train_expert

__all__ = [
    "KINDS",
    "NEEDS",
    "Detections",
    "Expert",
    "ExpertConfig",
    "ExpertMethod",
    "ExpertScores",
    "Kind",
    "TimmGrid",
    "build_expert",
    "detection_scores",
    "expert_class",
    "expert_data",
    "expert_for",
    "load_expert",
    "measure_expert",
    "train_expert",
    "trainable_kinds",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "backbone": ["TimmGrid"],
        "base": ["Expert", "ExpertMethod", "build_expert", "expert_class", "load_expert", "trainable_kinds"],
        "config": ["KINDS", "NEEDS", "ExpertConfig", "Kind"],
        "detection": ["Detections"],
        "evaluating": ["ExpertScores", "detection_scores", "measure_expert"],
        "training": ["expert_data", "expert_for", "train_expert"],
    },
)
