"""Do frozen patch features tell objects apart? The two zero-shot evaluations of MMC, and the controls they need.

MMC is arXiv:2308.11448. Only its abstract could be read; what these modules fix beyond that is ours, or that of code from
the same group, and results are no reproduction of the paper's tables.

Public names load on first use; importing this package loads no torch.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision.patch_evaluation.config import PatchOptions, PatchProtocol
    from mc_vision.patch_evaluation.evaluate import PatchResult, evaluate_patches
    from mc_vision.patch_evaluation.segmentation import (
        THRESHOLDS,
        PromptScores,
        SegmentationResult,
        ThresholdScores,
        central_patches,
        connected_similarity,
    )
    from mc_vision.patch_evaluation.similarity import SimilarityResult

__all__ = [
    "THRESHOLDS",
    "PatchOptions",
    "PatchProtocol",
    "PatchResult",
    "PromptScores",
    "SegmentationResult",
    "SimilarityResult",
    "ThresholdScores",
    "central_patches",
    "connected_similarity",
    "evaluate_patches",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "config": ["PatchOptions", "PatchProtocol"],
        "evaluate": ["PatchResult", "evaluate_patches"],
        "segmentation": [
            "THRESHOLDS",
            "PromptScores",
            "SegmentationResult",
            "ThresholdScores",
            "central_patches",
            "connected_similarity",
        ],
        "similarity": ["SimilarityResult"],
    },
)
