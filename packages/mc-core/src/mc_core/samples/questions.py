"""Questions about digit scenes whose answer the question alone does not give.

Each kind is balanced by construction, for scenes of all colours: among questions with the same words, yes is as frequent as
no, and the digits, colours and sizes asked for are as frequent as in the scenes. :func:`question_only_accuracy` measures
what is left for one who never looks at the picture.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mc_core.errors import ConfigError, closest
from mc_core.samples.scenes import RELATIONS, SIZES, DigitScenes
from mc_core.samples.wording import Choice, Seen, a, choices, seen

_NUMBERS = ("zero", "one", "two", "three", "four")
_STREAM = 0xA5C
_DRAWS_EACH = 8  # a kind never uses more


@dataclass(frozen=True)
class Questions:
    """What :func:`questions` returns, one row for each question.

    Attributes:
        scene: (Q,) int64, row of the scene in the set.
        text: Q questions in lower case, without a question mark.
        answer: Q answers of one word.
        kind: Q names from ``QUESTION_KINDS``.
    """

    scene: Tensor
    text: tuple[str, ...]
    answer: tuple[str, ...]
    kind: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.text)

    def answers(self) -> tuple[str, ...]:
        """Every answer that occurs, once, in alphabetical order."""
        return tuple(sorted(set(self.answer)))


def _digit(scene: Seen, choice: Choice) -> tuple[str, str]:
    place = choice.one(range(len(scene)))
    return f"which digit is {scene.colors[place]}", scene.digits[place]


def _color(scene: Seen, choice: Choice) -> tuple[str, str] | None:
    places = scene.unique()
    if not places:
        return None
    place = choice.one(places)
    return f"what color is the {scene.digits[place]}", scene.colors[place]


def _size(scene: Seen, choice: Choice) -> tuple[str, str]:
    place = choice.one(range(len(scene)))
    return f"how large is the {scene.colors[place]} digit", scene.sizes[place]


def _count(scene: Seen, _: Choice) -> tuple[str, str]:
    return "how many digits are there", _NUMBERS[len(scene)]


def _exists(scene: Seen, choice: Choice) -> tuple[str, str]:
    true = choice.coin()
    by_color = choice.coin()
    if by_color:
        color = choice.one(scene.colors if true else scene.absent_colors())
        return f"is there {a(color)} digit", "yes" if true else "no"
    digit = choice.one(scene.digits if true else scene.absent_digits())
    return f"is there {a(digit)}", "yes" if true else "no"


def _verify(scene: Seen, choice: Choice) -> tuple[str, str]:
    """A wrong digit is taken from the same scene where it has another: seeing what is there is not enough."""
    place = choice.one(range(len(scene)))
    true = choice.coin()
    others = [digit for digit in scene.digits if digit != scene.digits[place]] or scene.absent_digits()
    digit = scene.digits[place] if true else choice.one(others)
    return f"is the {scene.colors[place]} digit {a(digit)}", "yes" if true else "no"


def _side(scene: Seen, choice: Choice) -> tuple[str, str] | None:
    """A wrong side is the opposite one, so that it is wrong however one looks at a pair along the diagonal."""
    if len(scene) < 2:
        return None
    first, second = choice.order(range(len(scene)))[:2]
    true = choice.coin()
    relation = scene.relations[first][second] if true else scene.relations[second][first]
    return f"is the {scene.colors[first]} digit {relation} the {scene.colors[second]} digit", "yes" if true else "no"


def _neighbour(scene: Seen, choice: Choice) -> tuple[str, str] | None:
    """Asked only where a single digit lies on that side."""
    asked = []
    for place in range(len(scene)):
        for relation in RELATIONS:
            there = [
                other for other in range(len(scene)) if other != place and scene.relations[other][place] == relation
            ]
            if len(there) == 1:
                asked.append((relation, place, there[0]))
    if not asked:
        return None
    relation, place, other = choice.one(asked)
    return f"which digit is {relation} the {scene.colors[place]} one", scene.digits[other]


def _number(scene: Seen, choice: Choice) -> tuple[str, str]:
    """How many are large, or small: of two digits mostly one, and nothing in the words tells when not."""
    size = choice.one(SIZES)
    return f"how many {size} digits are there", _NUMBERS[scene.sizes.count(size)]


_ASK: dict[str, Callable[[Seen, Choice], tuple[str, str] | None]] = {
    "digit": _digit,
    "color": _color,
    "size": _size,
    "count": _count,
    "exists": _exists,
    "verify": _verify,
    "side": _side,
    "neighbour": _neighbour,
}
QUESTION_KINDS = tuple(_ASK)
"""Kinds that are asked unless others are named."""
FURTHER_KINDS = ("number",)
"""Kinds that are asked only where they are named."""
_ASK["number"] = _number


def questions(
    scenes: DigitScenes, *, per_scene: int = 4, seed: int = 0, kinds: Sequence[str] = QUESTION_KINDS
) -> Questions:
    """Ask about each scene, every time in another way.

    Args:
        scenes: with at least two digits for the kinds ``"side"`` and ``"neighbour"``; scenes of different counts for
            ``"count"``, else that answer is always the same.
        per_scene: most questions on one scene, each of another kind. A kind that a scene has nothing for falls away.
        seed: another seed, other questions.
        kinds: which kinds to ask, from ``QUESTION_KINDS`` and ``FURTHER_KINDS``.

    Raises:
        ConfigError: a kind that does not exist, or ``per_scene`` below 1.

    >>> from mc_core.samples import digit_scenes
    >>> asked = questions(digit_scenes(2, size=32, digits=(2, 3)), per_scene=1, kinds=["digit"])
    >>> asked.text[0].startswith("which digit is "), asked.scene.tolist()
    (True, [0, 1])
    """
    for kind in kinds:
        if kind not in _ASK:
            raise ConfigError(f"kinds names {kind!r}; choose from {closest(kind, tuple(_ASK))}")
    if per_scene < 1 or not kinds:
        raise ConfigError(f"per_scene={per_scene}, {len(kinds)} kinds: ask at least one question of one kind")
    known = (*QUESTION_KINDS, *(kind for kind in FURTHER_KINDS if kind in kinds))
    draws = len(known) * (1 + _DRAWS_EACH)
    asked: list[tuple[int, str, str, str]] = []
    for row, (scene, choice) in enumerate(zip(seen(scenes), choices(scenes, seed, draws, stream=_STREAM), strict=True)):
        # a kind that a scene has nothing for is not made up for: else few digits would mean more of the other kinds
        for kind in [kind for kind in choice.order(known) if kind in kinds][:per_scene]:
            question = _ASK[kind](scene, choice)
            if question is not None:
                asked.append((row, *question, kind))
    rows, text, answer, kind = zip(*asked, strict=True) if asked else ((), (), (), ())
    return Questions(torch.tensor(rows, dtype=torch.int64), tuple(text), tuple(answer), tuple(kind))


def question_only_accuracy(
    train_questions: Sequence[str],
    train_answers: Sequence[str],
    test_questions: Sequence[str],
    test_answers: Sequence[str],
) -> float:
    """Accuracy of one who never looks: the most frequent training answer to the same words, else the most frequent of all.

    The bar that a model has to pass before it can be said to look at the picture. Ties go to the alphabetically first.

    Returns:
        Share of test questions answered rightly, in [0, 1].

    Raises:
        ConfigError: no training or no test question, or as many questions as answers are not given.

    >>> question_only_accuracy(["is it", "is it", "what"], ["yes", "yes", "cup"], ["is it", "who"], ["yes", "cup"])
    0.5
    """
    if not train_questions or not test_questions:
        raise ConfigError(f"{len(train_questions)} training and {len(test_questions)} test questions: give both")
    if len(train_questions) != len(train_answers) or len(test_questions) != len(test_answers):
        raise ConfigError("give one answer to each question")
    told: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in zip(train_questions, train_answers, strict=True):
        told[question][answer] += 1
    usual = {question: _most(counts) for question, counts in told.items()}
    default = _most(Counter(train_answers))
    pairs = zip(test_questions, test_answers, strict=True)
    return sum(usual.get(question, default) == answer for question, answer in pairs) / len(test_questions)


def _most(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))
