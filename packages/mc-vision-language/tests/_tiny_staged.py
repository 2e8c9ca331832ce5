"""Recipes and pictures of a size that a test can afford: all stages of Astrea in seconds."""

from __future__ import annotations

from typing import Any

from mc_core.samples import SceneConfig, digit_scenes
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.data.annotated import AnnotatedPairs
from mc_vision_language.data.annotated_sources import scene_annotations
from mc_vision_language.experts.config import KINDS, ExpertConfig
from mc_vision_language.recipe import Recipe, resolve_recipe

SIDE = 16
ALIKE = {"size": SIDE, "resize": "squash", "flip": 0.0, "rand_augment": 0}
VARIED = {"size": SIDE, "scale": [0.7, 1.0], "flip": 0.5, "rand_augment": 0}


def pictures(train: int = 24, test: int = 12) -> AnnotatedPairs:
    """Scenes of two digits by split, with all annotations and two questions each."""
    config = SceneConfig(colors=("red", "blue", "yellow", "white"), scale=(0.4, 0.5), tint=0.0)
    counts = {"train": train, "test": test}
    scenes = {
        part: digit_scenes(count, size=SIDE, digits=(2, 2), split="test" if part == "test" else "train", config=config)
        for part, count in counts.items()
    }
    return scene_annotations(scenes, questions=2)


def recipe(*, alike: bool = True, steps: int = 3, fit: dict[str, Any] | None = None, **method: Any) -> Recipe[Any]:
    """All stages of a few steps, on pictures of 16 pixels."""
    experts = [ExpertConfig(kind=kind, image_size=SIDE, width=8, depth=1, stages=2) for kind in KINDS]
    language = {"hidden_size": 16, "heads": 2, "layers": 1, "positions": 80, "question_length": 16, "answer_length": 20}
    given: dict[str, Any] = {
        "experts": [
            one.model_copy(
                update={"captioning": one.captioning.model_validate({"language": {**language, "positions": 120}})}
            ).model_dump(mode="json")
            for one in experts
        ],
        "image": {"image_size": SIDE},
        "grid": 4,
        "width": 16,
        "dim": 8,
        "queue_size": 16,
        "momentum": 0.9,
        "text": {"hidden_size": 16, "heads": 2, "text_layers": 1, "dropout": 0.0, "vocabulary": 200, "max_length": 16},
        "language": language,
        "stages": {name: {"steps": steps, "batch_size": 8} for name in ("experts", "prealign", "instruct")},
        **method,
    }
    return resolve_recipe(
        "astrea-laptop",
        {
            "method": given,
            "augment": AugmentConfig.model_validate(ALIKE if alike else VARIED).model_dump(mode="json"),
            "fit": {
                "steps": steps,
                "batch_size": 8,
                "warmup_epochs": 0.3,
                "log_every": 1,
                "health_every": 1000,
                **(fit or {}),
            },
        },
    )
