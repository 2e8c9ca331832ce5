"""The four experts at the size of the embedded digit scenes (:func:`mc_vision_language.staged.sample.staged_sample`): less than a
minute for each on one core.

No two are alike: two families of blocks, maps of 4, 8 and 16 places a side, of one to three stages. Sizes, steps and rates were
chosen on validation scenes.
"""

from __future__ import annotations

from typing import Any

from mc_core.engine.config import Fit
from mc_vision_language.experts.config import CaptionHead, DetectionHead, ExpertConfig, Kind, SegmentationHead
from mc_vision_language.language_config import LanguageConfig

SIZE = 32

EXPERTS: dict[Kind, ExpertConfig] = {
    "classification": ExpertConfig(kind="classification", image_size=SIZE, family="resnet", width=24, stages=3),
    "captioning": ExpertConfig(
        kind="captioning",
        image_size=SIZE,
        family="resnet",
        width=32,
        stages=3,
        lr_scale=0.25,
        captioning=CaptionHead(
            language=LanguageConfig(
                hidden_size=96, heads=4, layers=2, positions=64, question_length=8, answer_length=16, vocabulary=200
            )
        ),
    ),
    "detection": ExpertConfig(
        kind="detection",
        image_size=SIZE,
        family="resnet",
        width=20,
        stages=3,
        levels=2,
        detection=DetectionHead(width=48, depth=1, scale=0.35),
    ),
    "segmentation": ExpertConfig(
        kind="segmentation",
        image_size=SIZE,
        family="convnext",
        width=24,
        stages=3,
        levels=3,
        segmentation=SegmentationHead(width=48, depth=1, upsample=1, background=0.3),
    ),
}
"""One of each kind."""
STEPS: dict[Kind, int] = {"classification": 500, "captioning": 500, "detection": 400, "segmentation": 400}


def sample_fit(kind: Kind, **changes: Any) -> Fit:
    """How the sample's expert is trained.

    Args:
        kind: of expert.
        changes: of the settings.

    >>> sample_fit("detection", steps=3).steps
    3
    """
    settings: dict[str, Any] = {
        "steps": STEPS[kind],
        "batch_size": 32,
        "optimizer": "adamw",
        "lr": 4e-3 * EXPERTS[kind].lr_scale,
        "betas": (0.9, 0.98),
        "weight_decay": 0.05,
        "clip_norm": 1.0,
        "warmup_epochs": 0.25,
        "log_every": 50,
        **changes,
    }
    return Fit(**settings)
