"""The embedded sample: scenes of handwritten digits with captions, which need no download."""

from __future__ import annotations

from mc_core.samples import DigitScenes, SceneConfig, digit_scenes
from mc_vision_language.data.pairs import Pairs, scene_pairs

SAMPLE = "digit scenes"
SIZE = 32
DIGITS = (1, 1)
"""Fewest and most in a scene. What several digits have to do with each other takes longer to learn than a sample may take."""
SCENE = SceneConfig(scale=(0.6, 0.9), tint=0.0, rotation=5.0, clouds=0.02, texture=0.01, noise=0.01)
"""Plainer than the default: a minute and a half is not enough to see digits through coloured clouds."""
PLAIN_SIZE = 16
PLAIN_SCENE = SceneConfig(
    colors=("black", "white"), scale=(0.8, 1.0), tint=0.0, rotation=5.0, clouds=0.0, texture=0.0, noise=0.0
)
"""For samples that several models are trained on: two inks and little else, so that digits are learned in a minute. With more
colours most of a short training goes into those."""
COUNTS = {"train": 4000, "validation": 500, "test": 500}
"""Validation scenes are made of the scans of the training scenes, test scenes of those of other writers."""


def sample_scenes(
    part: str, *, seed: int = 0, count: int | None = None, digits: tuple[int, int] = DIGITS
) -> DigitScenes:
    """The scenes of one split. Those with several digits have the canvas of four, so that digits are as large as alone.

    Args:
        part: train, validation or test.
        seed: another seed, other scenes.
        count: how many. Default: as many as the sample has.
        digits: fewest and most in a scene.

    >>> len(sample_scenes("test", count=3)), sample_scenes("test", count=1, digits=(1, 2)).images.shape[-1]
    (3, 64)
    """
    start = COUNTS["train"] if part == "validation" else 0
    split = "test" if part == "test" else "train"
    several = digits[1] > 1
    config = SCENE.model_copy(update={"scale": (0.3, 0.45)}) if several else SCENE
    size = SIZE * (2 if several else 1)
    return digit_scenes(
        count or COUNTS[part], size=size, digits=digits, seed=seed, split=split, start=start, config=config
    )


def sample_pairs(*, seed: int = 0, counts: dict[str, int] | None = None, digits: tuple[int, int] = DIGITS) -> Pairs:
    """All scenes with their captions and splits.

    Args:
        seed: another seed, other scenes.
        counts: scenes of each split. Default: those of the sample.
        digits: fewest and most in a scene.

    >>> pairs = sample_pairs(counts={"train": 4, "validation": 2, "test": 2})
    >>> len(pairs), pairs.splits.tolist()[-1]
    (8, 'test')
    """
    counts = counts or COUNTS
    return scene_pairs({part: sample_scenes(part, seed=seed, count=n, digits=digits) for part, n in counts.items()})
