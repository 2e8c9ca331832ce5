"""True, false and open statements about digit scenes, and phrases that name their digits.

Labels are balanced by construction, for scenes of all colours: a text is as likely under each label, so only the pictures
decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.samples.scenes import DIGITS, SIZES, DigitScenes, shown_together
from mc_core.samples.wording import Choice, Seen, a, choices, seen

ENTAILMENT_LABELS = ("contradiction", "neutral", "entailment")
_PAIR_STREAM, _ENTAILMENT_STREAM, _PHRASE_STREAM = 0x2B1, 0x3E7, 0x9F4
_SIDES = ("left", "right")


@dataclass(frozen=True)
class StatementPairs:
    """What :func:`statement_pairs` returns, one row for each pair of scenes.

    Attributes:
        first, second: (P,) int64, rows of the left and of the right scene.
        text: P sentences.
        label: (P,) int64, 1 where the sentence is true of the pair, else 0.
    """

    first: Tensor
    second: Tensor
    text: tuple[str, ...]
    label: Tensor

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class Entailments:
    """What :func:`entailments` returns, one row for each statement.

    Attributes:
        scene: (E,) int64, row of the scene.
        text: E sentences.
        label: (E,) int64, index into ``ENTAILMENT_LABELS``: 0 contradiction, 1 neutral, 2 entailment.
    """

    scene: Tensor
    text: tuple[str, ...]
    label: Tensor

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class Phrases:
    """What :func:`phrases` returns, one row for each digit.

    Attributes:
        scene: (R,) int64, row of the scene.
        place: (R,) int64, which digit of the scene.
        text: R phrases; each fits one digit of its scene and no other.
        box: (R, 4) float32, x1 y1 x2 y2 in pixels of the scene (x2, y2 exclusive).
    """

    scene: Tensor
    place: Tensor
    text: tuple[str, ...]
    box: Tensor

    def __len__(self) -> int:
        return len(self.text)


def _more(left: Seen, right: Seen, true: bool, _: Choice) -> str | None:
    if len(left) == len(right):
        return None
    side = (len(left) < len(right)) == true
    return f"the {_SIDES[side]} image shows more digits than the {_SIDES[not side]} image"


def _only(name: str, left: list[str], right: list[str], true: bool, choice: Choice) -> str | None:
    """Something that exactly one of the images shows, said of the right or of the wrong one."""
    differ = sorted(set(left) ^ set(right))
    if not differ:
        return None
    value = choice.one(differ)
    side = (value in right) == true
    return f"only the {_SIDES[side]} image shows {a(name.format(value))}"


def _only_digit(left: Seen, right: Seen, true: bool, choice: Choice) -> str | None:
    return _only("{}", left.digits, right.digits, true, choice)


def _only_color(left: Seen, right: Seen, true: bool, choice: Choice) -> str | None:
    """Colours that both grounds could show, so that the grounds alone do not decide."""
    if right.colors[0] not in shown_together(left.colors[0]):
        return None
    return _only("{} digit", left.colors, right.colors, true, choice)


def _both(left: Seen, right: Seen, true: bool, choice: Choice) -> str | None:
    """One digit of each image, said of these images or of the two exchanged."""
    ours, theirs = (choice.order(list(zip(scene.sizes, scene.digits, strict=True))) for scene in (left, right))
    here = [pair for pair in ours if pair not in theirs]
    there = [pair for pair in theirs if pair not in ours]
    if not here or not there:
        return None
    said = (here[0], there[0]) if true else (there[0], here[0])
    parts = [f"the {side} image shows a {size} {digit}" for side, (size, digit) in zip(_SIDES, said, strict=True)]
    return " and ".join(parts)


_SAY: tuple[Callable[[Seen, Seen, bool, Choice], str | None], ...] = (_more, _only_digit, _only_color, _both)


def statement_pairs(scenes: DigitScenes, *, seed: int = 0) -> StatementPairs:
    """A sentence about each two scenes in a row, true of half of them, as in NLVR2.

    A pair is a scene whose index is even and the one after it, so that a longer set holds the same pairs and more. Exchanging
    the images makes every sentence as likely to be false as it was to be true. A pair whose images show the same is left out.

    Args:
        scenes: at least two.
        seed: another seed, other sentences.

    Raises:
        ConfigError: no scene of even index is followed by another.

    >>> from mc_core.samples import digit_scenes
    >>> pairs = statement_pairs(digit_scenes(4, size=32, digits=(1, 3)))
    >>> pairs.first.tolist(), pairs.second.tolist(), set(pairs.label.tolist()) <= {0, 1}
    ([0, 2], [1, 3], True)
    """
    index = scenes.index
    starts = ((index[:-1] % 2 == 0) & (index[1:] == index[:-1] + 1)).nonzero()[:, 0].tolist()
    if not starts:
        raise ConfigError(f"{len(scenes)} scenes hold no pair; give an even index and the one after it")
    views = seen(scenes)
    numbers = choices(scenes, seed, len(_SAY) + 1 + 3 * 8, stream=_PAIR_STREAM)
    rows, texts, labels = [], [], []
    for row in starts:
        choice = numbers[row]
        true = choice.coin()
        for say in choice.order(_SAY):
            text = say(views[row], views[row + 1], true, choice)
            if text is not None:
                rows.append(row)
                texts.append(text)
                labels.append(int(true))
                break
    first = torch.tensor(rows, dtype=torch.int64)
    return StatementPairs(first, first + 1, tuple(texts), torch.tensor(labels, dtype=torch.int64))


def _of_digit(scene: Seen, label: int, choice: Choice) -> str:
    if label == 1:
        return f"the {choice.one(scene.absent_colors())} digit is {a(choice.one(DIGITS))}"
    place = choice.one(range(len(scene)))
    other = [name for name in DIGITS if name != scene.digits[place]]
    return f"the {scene.colors[place]} digit is {a(scene.digits[place] if label == 2 else choice.one(other))}"


def _of_size(scene: Seen, label: int, choice: Choice) -> str:
    place = choice.one(range(len(scene)))
    if label == 1:
        return f"the {choice.one(scene.absent_colors())} digit is {choice.one(SIZES)}"
    size = SIZES.index(scene.sizes[place])
    return f"the {scene.colors[place]} digit is {SIZES[size if label == 2 else 1 - size]}"


def _of_color(scene: Seen, label: int, choice: Choice) -> str | None:
    """Said only where some digit can be named alone, under every label: else the kind of sentence would tell the label."""
    group, places = shown_together(scene.colors[0]), scene.unique()
    if not places:
        return None
    if label == 1:
        return f"the {choice.one(scene.absent_digits())} is {choice.one(group)}"
    place = choice.one(places)
    other = [color for color in group if color != scene.colors[place]]
    return f"the {scene.digits[place]} is {scene.colors[place] if label == 2 else choice.one(other)}"


_CLAIM: tuple[Callable[[Seen, int, Choice], str | None], ...] = (_of_digit, _of_size, _of_color)


def entailments(scenes: DigitScenes, *, seed: int = 0) -> Entailments:
    """A sentence for each scene that the picture confirms, contradicts or leaves open, as in SNLI-VE.

    Neutral sentences speak about a digit the picture does not show, in a colour its ground could show: nothing in the
    picture makes them true or false. Their words are those of the other two labels.

    Args:
        scenes: of any number of digits.
        seed: another seed, other sentences.

    >>> from mc_core.samples import digit_scenes
    >>> said = entailments(digit_scenes(3, size=32, digits=(2, 3)))
    >>> len(said), said.label.dtype
    (3, torch.int64)
    """
    rows, texts, labels = [], [], []
    numbers = choices(scenes, seed, 1 + len(_CLAIM) + 4 * len(_CLAIM), stream=_ENTAILMENT_STREAM)
    for row, (scene, choice) in enumerate(zip(seen(scenes), numbers, strict=True)):
        label = choice.one((0, 1, 2))
        for claim in choice.order(_CLAIM):
            text = claim(scene, label, choice)
            if text is not None:
                rows.append(row)
                texts.append(text)
                labels.append(label)
                break
    return Entailments(torch.tensor(rows, dtype=torch.int64), tuple(texts), torch.tensor(labels, dtype=torch.int64))


def phrases(scenes: DigitScenes, *, seed: int = 0) -> Phrases:
    """Name every digit so that no other digit of its scene is meant, with its box.

    A digit is named as in captions (``"a large red three"``), by colour (``"the red digit"``) or, where no other equals it,
    alone (``"the three"``).

    Args:
        scenes: of any number of digits.
        seed: another seed, other ways of naming.

    >>> from mc_core.samples import digit_scenes
    >>> named = phrases(digit_scenes(2, size=32, digits=(2, 2)))
    >>> named.scene.tolist(), named.place.tolist(), named.box.shape
    ([0, 0, 1, 1], [0, 1, 0, 1], torch.Size([4, 4]))
    """
    rows, places, texts = [], [], []
    numbers = choices(scenes, seed, scenes.objects.digit.shape[1], stream=_PHRASE_STREAM)
    for row, (scene, choice) in enumerate(zip(seen(scenes), numbers, strict=True)):
        unique = scene.unique()
        for place, full in enumerate(scene.phrases()):
            ways = [full, f"the {scene.colors[place]} digit"]
            ways += [f"the {scene.digits[place]}"] if place in unique else []
            rows.append(row)
            places.append(place)
            texts.append(choice.one(ways))
    scene, place = torch.tensor(rows, dtype=torch.int64), torch.tensor(places, dtype=torch.int64)
    return Phrases(scene, place, tuple(texts), scenes.boxes[scene, place])
