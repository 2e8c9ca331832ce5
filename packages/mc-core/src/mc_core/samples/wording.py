"""The digits of a scene as plain Python values, and the random numbers that choose what is said about them.

What is said about a scene is a function of (seed, the scene): the same alone, in a set of 10 or of 10,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from mc_core.random import uniform
from mc_core.samples.scenes import COLORS, DIGITS, RELATIONS, SIZES, DigitScenes, shown_together

T = TypeVar("T")


def a(words: str) -> str:
    """The words with their article.

    >>> a("red digit"), a("eight"), a("one")
    ('a red digit', 'an eight', 'a one')
    """
    return f"{'an' if words[0] in 'aeiu' or words.startswith('or') else 'a'} {words}"


@dataclass(frozen=True)
class Seen:
    """One scene: a word for each attribute of each digit, and how the digits lie to each other.

    Attributes:
        digits, colors, sizes: one word for each digit of the scene; colours differ within a scene.
        relations: ``relations[a][b]`` says where digit a lies seen from digit b.
    """

    digits: list[str]
    colors: list[str]
    sizes: list[str]
    relations: list[list[str]]

    def __len__(self) -> int:
        return len(self.digits)

    def unique(self) -> list[int]:
        """Places of the digits that no other digit of the scene equals."""
        return [place for place, digit in enumerate(self.digits) if self.digits.count(digit) == 1]

    def absent_digits(self) -> list[str]:
        return [digit for digit in DIGITS if digit not in self.digits]

    def absent_colors(self) -> list[str]:
        """Colours that this ground could show and the scene lacks: the ground alone does not rule them out."""
        return [color for color in shown_together(self.colors[0]) if color not in self.colors]

    def phrases(self) -> list[str]:
        """Each digit in words, as captions name it: ``"a large red three"``."""
        parts = zip(self.sizes, self.colors, self.digits, strict=True)
        return [f"a {size} {color} {digit}" for size, color, digit in parts]


def seen(scenes: DigitScenes) -> list[Seen]:
    """Every scene as :class:`Seen`."""
    objects = scenes.objects
    most = objects.digit.shape[1]
    between = [[objects.relation(a, b).tolist() for b in range(most)] for a in range(most)]
    digit, color, size = (column.tolist() for column in (objects.digit, objects.color, objects.size))
    found = []
    for scene, count in enumerate(objects.count.tolist()):
        places = range(count)
        found.append(
            Seen(
                [DIGITS[digit[scene][k]] for k in places],
                [COLORS[color[scene][k]] for k in places],
                [SIZES[size[scene][k]] for k in places],
                [[RELATIONS[between[a][b][scene]] for b in places] for a in places],
            )
        )
    return found


class Choice:
    """Uniform numbers of one scene, used up one after another."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self._numbers = iter(numbers)

    def coin(self) -> bool:
        return next(self._numbers) < 0.5

    def one(self, options: Sequence[T]) -> T:
        return options[int(next(self._numbers) * len(options))]

    def order(self, options: Sequence[T]) -> list[T]:
        """All options in random order."""
        keys = [next(self._numbers) for _ in options]
        return [option for _, option in sorted(zip(keys, options, strict=True), key=lambda pair: pair[0])]


def choices(scenes: DigitScenes, seed: int, draws: int, *, stream: int) -> list[Choice]:
    """Numbers for every scene. The scan of the main digit takes part, so that scene 7 of another seed or split differs."""
    key = scenes.index * 2048 + scenes.objects.source[:, 0]
    numbers = uniform(seed, 0, key, draws, stream=stream).to(torch.float64)
    return [Choice(row) for row in numbers.tolist()]
