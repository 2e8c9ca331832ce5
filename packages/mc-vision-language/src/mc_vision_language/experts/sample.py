"""The four experts at the size of the embedded sample: digit scenes, a minute for each on one core, no download.

Sizes and rates were chosen on validation scenes; test scenes are of other writers.
"""

from __future__ import annotations

from typing import Any

from mc_core.engine.config import Fit
from mc_core.samples import DigitScenes, SceneConfig, digit_scenes
from mc_vision_language.data.annotated import AnnotatedPairs
from mc_vision_language.experts.config import (
    CaptionHead,
    ClassificationHead,
    DetectionHead,
    ExpertConfig,
    Kind,
    SegmentationHead,
)
from mc_vision_language.language_config import LanguageConfig

SIZE = 32
COUNTS = {"train": 2000, "validation": 300, "test": 400}
"""Validation scenes are made of the scans of the training scenes, test scenes of those of other writers."""
SCENE = SceneConfig(scale=(0.32, 0.48), tint=0.0, rotation=5.0, clouds=0.02, texture=0.01, noise=0.01)

EXPERTS: dict[Kind, ExpertConfig] = {
    "classification": ExpertConfig(
        kind="classification",
        image_size=SIZE,
        family="resnet",
        width=24,
        stages=3,
        classification=ClassificationHead(pool="max"),
    ),
    "captioning": ExpertConfig(
        kind="captioning",
        image_size=SIZE,
        family="convnext",
        width=32,
        stages=3,
        captioning=CaptionHead(
            language=LanguageConfig(
                hidden_size=96, heads=4, layers=2, positions=64, question_length=8, answer_length=16
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
"""One of each kind, no two alike."""
STEPS: dict[Kind, int] = {"classification": 500, "captioning": 500, "detection": 500, "segmentation": 500}


def sample_fit(kind: Kind, **changes: Any) -> Fit:
    """How the sample's expert is trained.

    >>> sample_fit("detection", steps=3).steps
    3
    """
    settings: dict[str, Any] = {
        "steps": STEPS[kind],
        "batch_size": 32,
        "optimizer": "adamw",
        "lr": 2e-3,
        "betas": (0.9, 0.98),
        "weight_decay": 0.05,
        "clip_norm": 1.0,
        "log_every": 50,
        "warmup_epochs": 0.5,
        **changes,
    }
    return Fit(**settings)


def sample_digits(
    part: str, *, seed: int = 0, count: int | None = None, digits: tuple[int, int] = (2, 2)
) -> DigitScenes:
    """The scenes of one split.

    Args:
        part: train, validation or test.
        seed: another seed, other scenes.
        count: how many. Default: as many as the sample has.
        digits: fewest and most in a scene.

    >>> sample_digits("test", count=3).images.shape
    torch.Size([3, 3, 32, 32])
    """
    start = COUNTS["train"] if part == "validation" else 0
    split = "test" if part == "test" else "train"
    return digit_scenes(
        count or COUNTS[part], size=SIZE, digits=digits, seed=seed, split=split, start=start, config=SCENE
    )


def sample_annotations(
    *, seed: int = 0, counts: dict[str, int] | None = None, digits: tuple[int, int] = (2, 2), questions: int = 4
) -> AnnotatedPairs:
    """All scenes with captions, boxes, masks, classes and questions.

    Args:
        seed: another seed, other scenes.
        counts: scenes of each split. Default: those of the sample.
        digits: fewest and most in a scene.
        questions: most about each.

    >>> found = sample_annotations(counts={"train": 4, "test": 2})
    >>> len(found), found.missing(), len(found.part("test"))
    (6, (), 2)
    """
    from mc_vision_language.data.annotated_sources import scene_annotations

    scenes = {part: sample_digits(part, seed=seed, count=n, digits=digits) for part, n in (counts or COUNTS).items()}
    return scene_annotations(scenes, questions=questions, seed=seed)
