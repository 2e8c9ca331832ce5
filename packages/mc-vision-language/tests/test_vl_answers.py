"""The accuracy of the VQA challenge against its own words, and the baselines that do not look."""

import pytest

from mc_core.errors import DataError
from mc_vision_language.evaluation.answers import QuestionOnly, answer_score, answer_scores, normalise_answer


def leave_one_out(predicted, answers):
    """The mean over each nine of ten people of min(1, matches / 3), literally."""
    scores = []
    for out in range(len(answers)):
        others = [answer for place, answer in enumerate(answers) if place != out]
        scores.append(min(1.0, sum(answer == predicted for answer in others) / 3))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("matches", range(11))
def test_score_of_ten_answers(matches):
    answers = ["red"] * matches + ["blue"] * (10 - matches)
    assert answer_score("red", answers) == pytest.approx(leave_one_out("red", answers))


def test_few_answers_are_right_or_wrong():
    assert [answer_score("Red!", ["red"]), answer_score("red", ["blue", "red"]), answer_score("red", ["blue"])] == [
        1,
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("written", "compared"),
    [
        ("A Dog", "dog"),
        ("the  dog's", "dog's"),
        ("isnt", "isn't"),
        ("Ten", "10"),
        ("none", "0"),
        ("1,000", "1000"),
        ("2.5 m.", "2.5 m"),
        ("yes.", "yes"),
        ("black/white", "black white"),
        ("t-shirt", "t shirt"),
        ("an", ""),
    ],
)
def test_what_is_compared(written, compared):
    assert normalise_answer(written) == compared
    assert normalise_answer(normalise_answer(written)) == compared


def test_scores_need_answers_and_predictions():
    with pytest.raises(DataError, match="without answers"):
        answer_score("red", [])
    with pytest.raises(DataError, match="1 answers were predicted for 2 questions"):
        answer_scores(["red"], [["red"], ["blue"]])


def test_who_does_not_look_takes_the_most_frequent_answer():
    questions = ["is it red", "is it red", "is it big", "what is it", "what is it", "what is that"]
    kinds = ["is", "is", "is", "", "", ""]
    answers = [["yes"], ["yes"], ["no"], ["cup"], ["cup"], ["box"]]
    blind = QuestionOnly.of(questions, kinds, answers)
    assert blind.overall == "cup"  # as frequent as yes, first in the alphabet
    asked, asked_kinds = ["is it red", "is it new", "what is that", "who"], ["is", "is", "", ""]
    assert blind.majority(asked, asked_kinds) == ["yes", "yes", "cup", "cup"]
    assert blind.answers(asked, asked_kinds) == ["yes", "yes", "box", "cup"]
