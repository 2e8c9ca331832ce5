"""The embedded sample of Astrea: digit scenes with all four kinds of annotation, captions and questions; no download."""

from __future__ import annotations

from mc_core.samples import DigitScenes, SceneConfig, digit_scenes
from mc_vision_language.data.annotated import AnnotatedPairs
from mc_vision_language.data.annotated_sources import scene_annotations

STAGED_SAMPLE = "annotated digit scenes"
SIZE = 32
DIGITS = (2, 2)
"""Fewest and most in a scene: with two, what is where matters, and what one expert sees is not all there is to say."""
SCENE = SceneConfig(
    colors=("red", "blue", "yellow", "white"),
    scale=(0.4, 0.5),
    tint=0.0,
    rotation=5.0,
    clouds=0.0,
    texture=0.0,
    noise=0.0,
)
"""Four inks and little else, so that minutes of training are enough."""
COUNTS = {"train": 4000, "validation": 400, "test": 500}
"""Validation scenes are made of the scans of the training scenes, test scenes of those of other writers."""
KINDS = ("digit", "exists", "neighbour", "color", "size", "number")
"""Kinds of questions that so small a language model can learn to answer."""
QUESTIONS = 2
"""Most about each scene."""


def staged_scenes(part: str, *, seed: int = 0, count: int | None = None, held_out: int = 0) -> DigitScenes:
    """The scenes of one split.

    Args:
        part: train, validation or test.
        seed: another seed, other scenes.
        count: how many. Default: as many as the sample has.
        held_out: whose scans test scenes are made of, see :class:`~mc_core.samples.scenes.SceneConfig`.

    >>> staged_scenes("test", count=2).images.shape
    torch.Size([2, 3, 32, 32])
    """
    start = COUNTS["train"] if part == "validation" else 0
    split = "test" if part == "test" else "train"
    config = SceneConfig.model_validate({**SCENE.model_dump(), "held_out": held_out})
    return digit_scenes(
        count or COUNTS[part], size=SIZE, digits=DIGITS, seed=seed, split=split, start=start, config=config
    )


def staged_sample(*, seed: int = 0, counts: dict[str, int] | None = None, held_out: int = 0) -> AnnotatedPairs:
    """All scenes with what is known of them: captions, digits as classes, boxes, pixels, questions.

    Args:
        seed: another seed, other scenes and questions.
        counts: scenes of each split. Default: those of the sample.
        held_out: whose scans test scenes are made of, see :class:`~mc_core.samples.scenes.SceneConfig`.

    >>> staged_sample(counts={"train": 4, "test": 2}).missing()
    ()
    """
    scenes = {
        part: staged_scenes(part, seed=seed, count=count, held_out=held_out)
        for part, count in (counts or COUNTS).items()
    }
    return scene_annotations(scenes, questions=QUESTIONS, kinds=KINDS, seed=seed)
