"""The embedded sample of a growing model: plain scenes of one handwritten digit, which a minute's training tells apart."""

from __future__ import annotations

from mc_core.samples import DIGITS, DigitScenes, digit_scenes
from mc_vision_language.data.images import ArrayImages
from mc_vision_language.data.labelled import LabelledImages
from mc_vision_language.data.pairs import Pairs, scene_pairs
from mc_vision_language.sample import PLAIN_SCENE, PLAIN_SIZE

GROWING_SAMPLE = "plain digits"
COUNTS = {"train": 2000, "validation": 400, "test": 500}
"""Validation scenes are made of the scans of the training scenes, test scenes of those of other writers."""


def growing_scenes(part: str, *, seed: int = 0, count: int | None = None) -> DigitScenes:
    """The scenes of one split.

    Args:
        part: train, validation or test.
        seed: another seed, other scenes.
        count: how many. Default: as many as the sample has.

    >>> growing_scenes("test", count=2).images.shape
    torch.Size([2, 3, 16, 16])
    """
    start = COUNTS["train"] if part == "validation" else 0
    split = "test" if part == "test" else "train"
    return digit_scenes(count or COUNTS[part], size=PLAIN_SIZE, seed=seed, split=split, start=start, config=PLAIN_SCENE)


def growing_pairs(*, seed: int = 0, counts: dict[str, int] | None = None) -> Pairs:
    """All scenes with their captions, such as "a large black nine", and splits.

    Args:
        seed: another seed, other scenes.
        counts: scenes of each split. Default: those of the sample.

    >>> growing_pairs(counts={"train": 4, "validation": 2, "test": 2}).split_counts()
    {'train': 4, 'validation': 2, 'test': 2}
    """
    counts = counts or COUNTS
    return scene_pairs({part: growing_scenes(part, seed=seed, count=n) for part, n in counts.items()})


def growing_classes(part: str = "test", *, seed: int = 0, count: int | None = None) -> LabelledImages:
    """The scenes of a split with their digits as classes, named in words; see :func:`growing_scenes`.

    >>> growing_classes(count=3).classes[:2]
    ('zero', 'one')
    """
    scenes = growing_scenes(part, seed=seed, count=count)
    return LabelledImages(ArrayImages(scenes.images), scenes.labels.numpy(), DIGITS, GROWING_SAMPLE, GROWING_SAMPLE)
