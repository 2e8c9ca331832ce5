"""What is said about digit scenes: true by the attributes, and not given away by the words alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from mc_core.errors import ConfigError
from mc_core.samples import (
    COLORS,
    DIGITS,
    ENTAILMENT_LABELS,
    FURTHER_KINDS,
    QUESTION_KINDS,
    RELATIONS,
    SIZES,
    DigitScenes,
    digit_scenes,
    entailments,
    phrases,
    question_only_accuracy,
    questions,
    statement_pairs,
)
from mc_core.samples.scenes import shown_together

NUMBERS = ("zero", "one", "two", "three", "four")


@pytest.fixture(scope="module")
def scenes() -> DigitScenes:
    return digit_scenes(3000, size=16, digits=(1, 4), seed=1)


@pytest.fixture(scope="module")
def few() -> DigitScenes:
    return digit_scenes(400, size=32, digits=(1, 4), seed=2)


def objects(scenes: DigitScenes, row: int) -> list[dict]:
    """The digits of a scene as the attributes record them."""
    o = scenes.objects
    return [
        {
            "digit": DIGITS[int(o.digit[row, k])],
            "color": COLORS[int(o.color[row, k])],
            "size": SIZES[int(o.size[row, k])],
            "x": float(o.center[row, k, 0]),
            "y": float(o.center[row, k, 1]),
        }
        for k in range(int(o.count[row]))
    ]


def one(found: list[dict], **wanted: str) -> dict:
    """The only object like this."""
    (only,) = [each for each in found if all(each[key] == value for key, value in wanted.items())]
    return only


def lies(first: dict, second: dict) -> str:
    """Along the axis on which they are further apart."""
    x, y = first["x"] - second["x"], first["y"] - second["y"]
    if abs(x) >= abs(y):
        return "right of" if x > 0 else "left of"
    return "below" if y > 0 else "above"


def answer(text: str, found: list[dict]) -> str:
    """Read the question as a person would."""
    word = text.split()
    if text == "how many digits are there":
        return NUMBERS[len(found)]
    if text.startswith("what color is the "):
        return one(found, digit=word[-1])["color"]
    if text.startswith("how large is the "):
        return one(found, color=word[-2])["size"]
    if text.startswith("is there "):
        if word[-1] == "digit":
            return "yes" if any(each["color"] == word[-2] for each in found) else "no"
        return "yes" if any(each["digit"] == word[-1] for each in found) else "no"
    relation = next((name for name in RELATIONS if f" {name} " in text), None)
    if text.startswith("which digit is "):
        if relation is None:
            return one(found, color=word[-1])["digit"]
        place = one(found, color=word[-2])
        (there,) = [each for each in found if each is not place and lies(each, place) == relation]
        return there["digit"]
    assert text.startswith("is the ")
    if relation is None:
        return "yes" if one(found, color=word[2])["digit"] == word[-1] else "no"
    return "yes" if lies(one(found, color=word[2]), one(found, color=word[-2])) == relation else "no"


class TestQuestions:
    def test_answers_follow_from_the_attributes(self, few: DigitScenes) -> None:
        asked = questions(few, per_scene=8)
        assert set(asked.kind) == set(QUESTION_KINDS)
        for row, text, told in zip(asked.scene.tolist(), asked.text, asked.answer, strict=True):
            assert told == answer(text, objects(few, row)), text

    def test_wrong_claims_name_what_else_is_there(self, few: DigitScenes) -> None:
        """Where the scene has another digit, seeing that it is there does not answer the question."""
        asked = questions(few, per_scene=1, kinds=["verify"])
        for row, text in zip(asked.scene.tolist(), asked.text, strict=True):
            found = {each["digit"] for each in objects(few, row)}
            if len(found) > 1:
                assert text.split()[-1] in found

    def test_the_ground_does_not_answer_for_a_colour(self, few: DigitScenes) -> None:
        asked = questions(few, per_scene=1, kinds=["exists"])
        colored = 0
        for row, text in zip(asked.scene.tolist(), asked.text, strict=True):
            if text.endswith("digit"):
                colored += 1
                assert text.split()[-2] in shown_together(COLORS[int(few.objects.color[row, 0])])
        assert colored > 100

    def test_the_words_alone_do_not_answer(self, scenes: DigitScenes) -> None:
        others = digit_scenes(1500, size=16, digits=(1, 4), seed=1, split="test")
        train, test = questions(scenes), questions(others)
        for kind, chance in {"digit": 0.1, "color": 0.1, "size": 0.5, "count": 0.25, "neighbour": 0.1}.items():
            assert _only(train, test, kind) < chance + 0.06, kind
        for kind in ("exists", "verify", "side"):
            assert 0.4 < _only(train, test, kind) < 0.56, kind

    def test_kinds_are_asked_equally_often_whatever_the_number_of_digits(self, scenes: DigitScenes) -> None:
        asked = questions(scenes)
        counts = scenes.objects.count[asked.scene]
        for digits in (1, 4):
            share = (
                torch.tensor([kind == "count" for kind in asked.kind])[counts == digits].sum()
                / (counts == digits).sum()
            )
            share *= (counts == digits).sum() / (scenes.objects.count == digits).sum()
            assert abs(float(share) - 0.5) < 0.06  # four of eight kinds are drawn

    def test_are_a_function_of_seed_and_scene(self) -> None:
        whole = digit_scenes(30, size=16, digits=(1, 3), seed=4)
        part = digit_scenes(5, size=16, digits=(1, 3), seed=4, start=20)
        asked, again = questions(whole), questions(part)
        mine = [(row - 20, text) for row, text in zip(asked.scene.tolist(), asked.text, strict=True) if 20 <= row < 25]
        assert mine == list(zip(again.scene.tolist(), again.text, strict=True))
        assert questions(whole, seed=1).text != asked.text

    def test_train_and_test_scenes_are_asked_other_things(self) -> None:
        sets = [digit_scenes(50, size=16, split=name) for name in ("train", "test")]
        kinds = [questions(scenes, per_scene=1, kinds=["digit", "size"]).kind for scenes in sets]
        assert kinds[0] != kinds[1]  # either can be asked of any scene, so that the draws alone decide

    def test_one_digit_has_no_neighbour(self) -> None:
        asked = questions(digit_scenes(60, size=16), per_scene=8)
        assert set(asked.kind) == set(QUESTION_KINDS) - {"side", "neighbour"}
        assert len(questions(digit_scenes(3, size=16), kinds=["side"])) == 0

    def test_how_many_are_large_is_asked_where_it_is_named(self, scenes: DigitScenes) -> None:
        asked = questions(scenes, per_scene=1, kinds=["number"])
        assert len(asked) == len(scenes)
        assert set(asked.answer) == {"zero", "one", "two", "three", "four"}
        for row, text, told in zip(asked.scene.tolist(), asked.text, asked.answer, strict=True):
            size = text.split()[2]
            assert text == f"how many {size} digits are there"
            count = sum(each["size"] == size for each in objects(scenes, row))
            assert told == ("zero", "one", "two", "three", "four")[count]
        others = questions(digit_scenes(1500, size=16, digits=(2, 2), seed=1, split="test"), kinds=["number"])
        train = questions(digit_scenes(1500, size=16, digits=(2, 2)), kinds=["number"])
        assert 0.4 < _only(train, others, "number") < 0.6  # half of the pairs differ in size

    def test_further_kinds_change_nothing_for_who_does_not_ask(self, few: DigitScenes) -> None:
        assert not set(questions(few, per_scene=8).kind) & set(FURTHER_KINDS)

    def test_answers_are_listed_once(self, few: DigitScenes) -> None:
        asked = questions(few, kinds=["size", "count"])
        assert asked.answers() == ("four", "large", "one", "small", "three", "two")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"kinds": ["colour"]}, "kinds names 'colour'; choose from color"),
            ({"per_scene": 0}, "per_scene=0"),
            ({"kinds": []}, "0 kinds"),
        ],
    )
    def test_say_what_is_wrong(self, few: DigitScenes, changes: dict, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            questions(few, **changes)


def _only(train, test, kind: str) -> float:
    ours, theirs = ([i for i, name in enumerate(part.kind) if name == kind] for part in (train, test))
    return question_only_accuracy(
        [train.text[i] for i in ours],
        [train.answer[i] for i in ours],
        [test.text[i] for i in theirs],
        [test.answer[i] for i in theirs],
    )


class TestQuestionOnly:
    def test_the_usual_answer_to_the_same_words_else_the_usual_answer(self) -> None:
        train = ["a", "a", "a", "b", "b"], ["yes", "no", "no", "two", "one"]
        assert question_only_accuracy(*train, ["a", "b", "c"], ["no", "one", "no"]) == 1.0
        assert question_only_accuracy(*train, ["a", "b", "c"], ["yes", "two", "one"]) == 0.0

    @pytest.mark.parametrize(
        ("arguments", "message"), [(([], [], ["a"], ["b"]), "0 training"), ((["a"], [], ["a"], ["b"]), "one answer")]
    )
    def test_says_what_is_wrong(self, arguments: tuple, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            question_only_accuracy(*arguments)


def holds(text: str, left: list[dict], right: list[dict]) -> bool:
    """Whether a sentence is true of two scenes."""
    sides = {"left": left, "right": right}
    if "more digits" in text:
        first = text.split()[1]
        second = "right" if first == "left" else "left"
        return len(sides[first]) > len(sides[second])
    if text.startswith("only the "):
        first, word = text.split()[2], text.split()
        second = "right" if first == "left" else "left"
        key, value = ("color", word[-2]) if word[-1] == "digit" else ("digit", word[-1])
        here, there = (any(each[key] == value for each in sides[side]) for side in (first, second))
        return here and not there
    parts = text.split(" and ")
    assert len(parts) == 2
    for part in parts:
        word = part.split()
        if not any(each["size"] == word[-2] and each["digit"] == word[-1] for each in sides[word[1]]):
            return False
    return True


class TestStatementPairs:
    def test_labels_follow_from_the_attributes(self, few: DigitScenes) -> None:
        pairs = statement_pairs(few)
        starts = Counter()
        for first, second, text, label in zip(
            pairs.first.tolist(), pairs.second.tolist(), pairs.text, pairs.label.tolist(), strict=True
        ):
            assert (first % 2, second) == (0, first + 1)
            assert holds(text, objects(few, first), objects(few, second)) == bool(label), text
            starts["more" if "more" in text else "only" if text.startswith("only") else "both"] += 1
        assert min(starts.values()) > 20
        assert len(starts) == 3

    def test_half_are_true_and_the_words_do_not_say_which(self, scenes: DigitScenes) -> None:
        pairs = statement_pairs(scenes)
        assert abs(pairs.label.float().mean() - 0.5) < 0.04
        half = len(pairs) // 2
        words, labels = list(pairs.text), [str(label) for label in pairs.label.tolist()]
        assert question_only_accuracy(words[:half], labels[:half], words[half:], labels[half:]) < 0.57

    def test_one_picture_does_not_say_which_side_of_colours(self, scenes: DigitScenes) -> None:
        """Colours are said of grounds that could both show them."""
        pairs = statement_pairs(scenes)
        for first, second, text in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.text, strict=True):
            if text.startswith("only") and text.endswith("digit"):
                color = text.split()[-2]
                for row in (first, second):
                    assert color in shown_together(COLORS[int(scenes.objects.color[row, 0])])

    def test_a_longer_set_holds_the_same_pairs(self) -> None:
        whole = statement_pairs(digit_scenes(20, size=16, digits=(1, 3)))
        part = statement_pairs(digit_scenes(7, size=16, digits=(1, 3), start=9))
        assert (part.first + 9).tolist() == [10, 12, 14]
        assert part.text == tuple(
            text for row, text in zip(whole.first.tolist(), whole.text, strict=True) if row in (10, 12, 14)
        )

    def test_one_scene_is_no_pair(self) -> None:
        with pytest.raises(ConfigError, match="2 scenes hold no pair"):
            statement_pairs(digit_scenes(2, size=16, start=1))


def judged(text: str, found: list[dict]) -> str:
    word = text.split()
    if word[2] == "digit":
        about = [each for each in found if each["color"] == word[1]]
        true = bool(about) and word[-1] in (about[0]["digit"], about[0]["size"])
    else:
        about = [each for each in found if each["digit"] == word[1]]
        true = bool(about) and about[0]["color"] == word[-1]
    return "entailment" if true else "contradiction" if about else "neutral"


class TestEntailments:
    def test_labels_follow_from_the_attributes(self, few: DigitScenes) -> None:
        said = entailments(few)
        for row, text, label in zip(said.scene.tolist(), said.text, said.label.tolist(), strict=True):
            assert judged(text, objects(few, row)) == ENTAILMENT_LABELS[label], text

    def test_labels_are_even_and_the_words_do_not_say_which(self, scenes: DigitScenes) -> None:
        said = entailments(scenes)
        assert (said.label.bincount(minlength=3) / len(said) - 1 / 3).abs().max() < 0.03
        half = len(said) // 2
        labels = [ENTAILMENT_LABELS[label] for label in said.label.tolist()]
        assert question_only_accuracy(said.text[:half], labels[:half], said.text[half:], labels[half:]) < 0.41
        kinds = [" ".join(word for word in text.split() if word not in (*COLORS, *DIGITS)) for text in said.text]
        assert question_only_accuracy(kinds[:half], labels[:half], kinds[half:], labels[half:]) < 0.4

    def test_neutral_ones_name_a_colour_that_the_ground_could_show(self, few: DigitScenes) -> None:
        said = entailments(few)
        for row, text in zip(said.scene.tolist(), said.text, strict=True):
            named = [word for word in text.split() if word in COLORS]
            ground = shown_together(COLORS[int(few.objects.color[row, 0])])
            assert all(color in ground for color in named)

    def test_are_a_function_of_seed_and_scene(self) -> None:
        whole, part = (entailments(digit_scenes(n, size=16, start=s)) for n, s in ((12, 0), (2, 7)))
        assert part.text == whole.text[7:9]


class TestPhrases:
    def test_name_one_digit_and_no_other(self, few: DigitScenes) -> None:
        named = phrases(few)
        ways = Counter()
        for row, place, text in zip(named.scene.tolist(), named.place.tolist(), named.text, strict=True):
            word = text.split()
            keys = ("size", "color", "digit") if len(word) == 4 else ("color",) if word[-1] == "digit" else ("digit",)
            values = word[-4:] if len(word) == 4 else [word[1]] if word[-1] == "digit" else [word[-1]]
            values = values[-len(keys) :]
            found = [
                k
                for k, each in enumerate(objects(few, row))
                if all(each[key] == value for key, value in zip(keys, values, strict=True))
            ]
            assert found == [place], text
            ways[keys] += 1
        assert min(ways.values()) > 50
        assert len(ways) == 3

    def test_every_digit_once_with_its_box(self, few: DigitScenes) -> None:
        named = phrases(few)
        assert len(named) == int(few.objects.count.sum())
        assert torch.equal(named.scene.bincount(), few.objects.count)
        assert torch.equal(named.box, few.boxes[named.scene, named.place])
        assert (named.box[:, 2:] > named.box[:, :2]).all()
