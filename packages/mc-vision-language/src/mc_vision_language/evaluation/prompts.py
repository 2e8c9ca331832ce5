"""Sentences that name a class, for zero-shot classification.

Those of the standard sets are CLIP's (Radford et al. 2021, arXiv:2103.00020, and its released prompts), of ImageNet the seven that
its authors kept of eighty.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mc_core.errors import ConfigError
from mc_core.samples.scenes import COLORS, SIZES

PLACE = "{}"
"""Where the name of the class goes."""
PLAIN = ("a photo of a {}.",)
SCENES = tuple(f"a {size} {color} {PLACE}" for size in SIZES for color in COLORS)
"""For the embedded digit scenes."""


def _both(*templates: str) -> tuple[str, ...]:
    """With "a", then with "the" in its place."""
    definite = (one.replace("a {}", "the {}") if "a {}" in one else f"the{one.removeprefix('a')}" for one in templates)
    return (*templates, *definite)


_SMALL_PICTURES = (
    *_both(
        "a photo of a {}.",
        "a blurry photo of a {}.",
        "a black and white photo of a {}.",
        "a low contrast photo of a {}.",
        "a high contrast photo of a {}.",
        "a bad photo of a {}.",
        "a good photo of a {}.",
    ),
    *(f"a photo of {article} {size} {PLACE}." for article in ("a", "the") for size in ("small", "big")),
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "digit scenes": SCENES,
    "plain digits": tuple(f"a {size} {color} {PLACE}" for size in SIZES for color in ("black", "white")),
    "imagenet": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "cifar10": _SMALL_PICTURES,
    "cifar100": _SMALL_PICTURES,
    "caltech101": _both(
        "a photo of a {}.",
        "a painting of a {}.",
        "a plastic {}.",
        "a sculpture of a {}.",
        "a sketch of a {}.",
        "a tattoo of a {}.",
        "a toy {}.",
        "a rendition of a {}.",
        "a embroidered {}.",
        "a cartoon {}.",
        "a {} in a video game.",
        "a plushie {}.",
        "a origami {}.",
        "art of a {}.",
        "graffiti of a {}.",
        "a drawing of a {}.",
        "a doodle of a {}.",
    ),
    "flowers102": ("a photo of a {}, a type of flower.",),
    "food101": ("a photo of {}, a type of food.",),
    "sun397": _both("a photo of a {}."),
    "dtd": tuple(
        f"a photo of {article} {PLACE} {kind}."
        for article in ("a", "the")
        for kind in ("texture", "pattern", "thing", "object")
    ),
    "pets": ("a photo of a {}, a type of pet.",),
}
"""By the name that :func:`mc_vision_language.data.labelled.open_labelled` gives a set."""


def checked(templates: Sequence[str], *, source: str) -> tuple[str, ...]:
    """The templates, each with one place for the class.

    Raises:
        ConfigError: none, or one without ``{}``.

    >>> checked(["a photo of a {}."], source="templates")
    ('a photo of a {}.',)
    """
    if not templates:
        raise ConfigError(f"{source} holds no template: give sentences such as 'a photo of a {PLACE}.'")
    for place, one in enumerate(templates, 1):
        if one.count(PLACE) != 1:
            raise ConfigError(
                f"{source}, template {place} '{one}' must have {PLACE} in one place, where the class goes: 'a photo of a {PLACE}.'"
            )
    return tuple(templates)


def read_templates(path: Path) -> tuple[str, ...]:
    """Templates of a text file, one in each line; empty lines and those that begin with # do not count.

    Raises:
        ConfigError: the file cannot be read, or a line has no ``{}``.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the templates {path}: {error}") from error
    return checked([line for line in lines if line and not line.startswith("#")], source=str(path))
