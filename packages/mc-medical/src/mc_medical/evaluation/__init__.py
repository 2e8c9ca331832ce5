"""Protocols of the field, as pure functions of arrays: zero-shot, few-shot, retrieval, calibration, intervals, similarity maps.

Public names load on first use; importing this package loads no torch.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_medical.evaluation.calibration import Reliability, reliability
    from mc_medical.evaluation.heads import FewShotResult, Head, few_shot, fit_head
    from mc_medical.evaluation.intervals import (
        Interval,
        area,
        area_interval,
        interval_of,
        macro_interval,
        mean_interval,
    )
    from mc_medical.evaluation.ranking import RetrievalResult, best_ranks, class_precision, first_of_each, retrieval
    from mc_medical.evaluation.similarity import overlay, phrase_map, pointing_hit, write_overlay
    from mc_medical.evaluation.zero_shot import (
        BinaryResult,
        MultiClassResult,
        binary_probabilities,
        class_probabilities,
        class_scores,
        exclusive_class,
        score_binary,
        zero_shot_multiclass,
    )

__all__ = [
    "BinaryResult",
    "FewShotResult",
    "Head",
    "Interval",
    "MultiClassResult",
    "Reliability",
    "RetrievalResult",
    "area",
    "area_interval",
    "best_ranks",
    "binary_probabilities",
    "class_precision",
    "class_probabilities",
    "class_scores",
    "exclusive_class",
    "few_shot",
    "first_of_each",
    "fit_head",
    "interval_of",
    "macro_interval",
    "mean_interval",
    "overlay",
    "phrase_map",
    "pointing_hit",
    "reliability",
    "retrieval",
    "score_binary",
    "write_overlay",
    "zero_shot_multiclass",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "calibration": ["Reliability", "reliability"],
        "heads": ["FewShotResult", "Head", "few_shot", "fit_head"],
        "intervals": ["Interval", "area", "area_interval", "interval_of", "macro_interval", "mean_interval"],
        "ranking": ["RetrievalResult", "best_ranks", "class_precision", "first_of_each", "retrieval"],
        "similarity": ["overlay", "phrase_map", "pointing_hit", "write_overlay"],
        "zero_shot": [
            "BinaryResult",
            "MultiClassResult",
            "binary_probabilities",
            "class_probabilities",
            "class_scores",
            "exclusive_class",
            "score_binary",
            "zero_shot_multiclass",
        ],
    },
)
