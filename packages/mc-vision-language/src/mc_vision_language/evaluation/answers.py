"""Open answers against those that people gave: the accuracy of the VQA challenge.

Source: Antol et al. 2015, "VQA: Visual Question Answering", arXiv:1505.00468, and the rules of its evaluation server.

Legend: Q questions, n answers of one question, c of them equal to the prediction.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mc_core.errors import DataError

_ENOUGH = 4  # answers from which on the score of people among each other is defined
_ARTICLES = frozenset(("a", "an", "the"))
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS: dict[str, str] = {"none": "0", **{word: str(number) for number, word in enumerate(_COUNTED)}}
_SIGNS = re.compile(r"""[;/\[\]"{}()=+\\_\-><@`,?!]""")
_BETWEEN_DIGITS = re.compile(r"(?<=\d),(?=\d)")
_FULL_STOP = re.compile(r"\.(?!\d)")
_CONTRACTED = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's i'd've i'm "
    "i've isn't it'd it'll let's ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't she'd've "
    "she's should've shouldn't somebody'd somebody's someone'd someone's something'd something's that's there'd there're "
    "there's they'd they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's where'd "
    "where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"
)
_APOSTROPHES = {word.replace("'", ""): word for word in _CONTRACTED.split()}


@lru_cache(maxsize=65_536)
def normalise_answer(answer: str) -> str:
    """An answer as the challenge compares it: lower case, no punctuation or articles, number words as digits.

    >>> (
    ...     normalise_answer("The  Two dogs."),
    ...     normalise_answer("10,000"),
    ...     normalise_answer("dont know"),
    ...     normalise_answer("2.5"),
    ... )
    ('2 dogs', '10000', "don't know", '2.5')
    """
    text = " ".join(answer.lower().split())
    text = _SIGNS.sub(" ", _BETWEEN_DIGITS.sub("", text))
    text = _FULL_STOP.sub("", text)
    words = (_NUMBERS.get(word, word) for word in text.split())
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def answer_score(predicted: str, answers: Sequence[str]) -> float:
    """What a prediction earns, in [0, 1].

    With ten answers of people, the mean over each nine of them of min(1, matches / 3). With fewer than four, where that is not
    defined, 1 if it is one of them (ours). Both sides are normalised.

    >>> (
    ...     answer_score("dog", ["dog"] * 2 + ["cat"] * 8),
    ...     answer_score("Dogs", ["dogs", "cats"]),
    ...     answer_score("ox", ["dog"]),
    ... )
    (0.6, 1.0, 0.0)
    """
    if not answers:
        raise DataError("a question without answers cannot be scored; leave it out")
    wanted = normalise_answer(predicted)
    n, c = len(answers), sum(normalise_answer(one) == wanted for one in answers)
    if n < _ENOUGH:
        return float(c > 0)
    return round((c * min(1.0, (c - 1) / 3) + (n - c) * min(1.0, c / 3)) / n, 12)


def answer_scores(predicted: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """(Q,) scores of the predictions; their mean is the accuracy.

    Raises:
        DataError: another number of predictions than questions.
    """
    if len(predicted) != len(answers):
        raise DataError(f"{len(predicted)} answers were predicted for {len(answers)} questions")
    return np.array([answer_score(one, given) for one, given in zip(predicted, answers, strict=True)])


@dataclass(frozen=True)
class QuestionOnly:
    """What can be answered without looking: the most frequent training answer to the same question, else to the same kind of
    question, else of all. The baseline that a model has to beat.

    Attributes:
        overall: the most frequent answer.
        by_kind: that of each kind of question.
        by_question: that of each question.
    """

    overall: str
    by_kind: dict[str, str]
    by_question: dict[str, str]

    @classmethod
    def of(cls, questions: Sequence[str], kinds: Sequence[str], answers: Sequence[Sequence[str]]) -> QuestionOnly:
        """Counted on training questions; a tie is decided by the alphabet.

        Args:
            questions, kinds, answers: Q each; a kind may be empty, then the first two words stand for it.
        """
        if not questions:
            raise DataError("no training questions to count answers of")
        total: Counter[str] = Counter()
        by_kind: defaultdict[str, Counter[str]] = defaultdict(Counter)
        by_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for question, kind, given in zip(questions, kinds, answers, strict=True):
            found = Counter(normalise_answer(one) for one in given)
            for counts in (total, by_kind[kind or _kind(question)], by_question[question]):
                counts.update(found)
        return cls(
            _most(total), {k: _most(c) for k, c in by_kind.items()}, {q: _most(c) for q, c in by_question.items()}
        )

    def majority(self, questions: Sequence[str], kinds: Sequence[str]) -> list[str]:
        """The most frequent answer to the kind of each question."""
        return [
            self.by_kind.get(kind or _kind(question), self.overall)
            for question, kind in zip(questions, kinds, strict=True)
        ]

    def answers(self, questions: Sequence[str], kinds: Sequence[str]) -> list[str]:
        """The most frequent answer to each question itself, where it was seen in training."""
        return [
            self.by_question.get(question, fallback)
            for question, fallback in zip(questions, self.majority(questions, kinds), strict=True)
        ]


def _kind(question: str) -> str:
    return " ".join(question.split()[:2])


def _most(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))
