"""Batches of questions and sentences."""

import runpy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mc_core.data import StepPlan, finish_on_device, step_loader
from mc_core.errors import DataError
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.data.images import FileImages
from mc_vision_language.data.questions import AnswerList, Questions
from mc_vision_language.data.scene_tasks import scene_entailments, scene_phrases, scene_questions, scene_statements
from mc_vision_language.data.statements import Entailments, Statements
from mc_vision_language.data.task_data import JudgedData, QuestionData

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_tasks.py"))))
WORDS, pictures, tokenizer = tiny.WORDS, tiny.pictures, tiny.tokenizer


def questions(images=None, count=6) -> Questions:
    images = pictures(4) if images is None else images
    given = [("red",) * 7 + ("Dark red",) * 3, ("yes",), ("blue", "blue", "no"), ("purple",), ("no",), ("Yes!", "yes")]
    return Questions(
        images,
        np.arange(len(images)),
        np.array([0, 1, 2, 3, 0, 1])[:count],
        np.array(["train"] * count),
        Counter(),
        {},
        tuple(WORDS[n % 3] for n in range(count)),
        tuple(given[:count]),
        ("",) * count,
        np.array([1.0, 0.5, 1.0, 1.0, 1.0, 1.0])[:count],
        tuple(map(str, range(count))),
    )


LISTED = AnswerList(("red", "dark red", "yes", "no", "blue"))


def test_a_batch_of_questions_holds_each_answer_once_with_its_share():
    data = QuestionData(questions(), LISTED, tokenizer(), size=16)
    assert len(data) == 5  # nobody can learn purple from this list
    assert data.left_out == 1
    batch = data.get_batch([2, 0, 1, 4], 0, 0)
    assert batch["answer_of"].tolist() == [0, 0, 1, 1, 2, 3]
    torch.testing.assert_close(batch["answer_weights"], torch.tensor([2 / 3, 1 / 3, 0.7, 0.3, 0.5, 1.0]))
    names = tokenizer().batch_decode(batch["answer_ids"], skip_special_tokens=True)
    assert names == ["blue", "no", "red", "dark red", "yes", "yes"]
    ends = batch["answer_mask"].sum(1) - 1
    assert (batch["answer_ids"][:, 0] == tokenizer().cls_token_id).all()
    assert (batch["answer_ids"].gather(1, ends[:, None]) == tokenizer().sep_token_id).all()
    assert tokenizer().sep_token_id not in batch["input_ids"]


def test_questions_without_any_answer_of_the_list():
    with pytest.raises(DataError, match="no question has one of the 1 answers"):
        QuestionData(questions(), AnswerList(("green",)), tokenizer(), size=16)


def test_files_and_arrays_give_the_same_batch(tmp_path):
    array = pictures(4)
    for row in range(4):
        array.read(row).save(tmp_path / f"{row}.png")
    files = FileImages([f"{row}.png" for row in range(4)], tmp_path)
    found = []
    for images, workers in ((array, 0), (files, 0), (files, 1)):
        data = QuestionData(questions(images), LISTED, tokenizer(), size=16)
        batch = next(iter(step_loader(data, StepPlan(5, 4, 0), start=0, stop=1, workers=workers)))
        found.append(finish_on_device(data, batch, 0))
    for other in found[1:]:
        for name in ("view", "input_ids", "answer_ids", "answer_of", "answer_weights", "index"):
            assert torch.equal(found[0][name], other[name]), name


def two_pictures(kind=Statements):
    image_of = np.array([[0, 1], [1, 0], [2, 2]]) if kind is Statements else np.array([0, 1, 2])
    return kind(
        pictures(3),
        np.arange(3),
        image_of,
        np.array(["train"] * 3),
        Counter(),
        {},
        tuple(WORDS[:3]),
        np.array([1, 0, 1]),
        ("0", "1", "2"),
    )


def test_two_pictures_of_a_sentence_are_varied_apart():
    augment = AugmentConfig(size=16, scale=(0.3, 1.0), flip=0.5, rand_augment=0)
    data = JudgedData(two_pictures(), tokenizer(), augment=augment)
    batch = finish_on_device(data, {**data.get_batch([0, 1, 2], 0, 0), "index": torch.arange(3), "epoch": 0}, 0)
    assert batch["view_1"].shape == batch["view_2"].shape == (3, 3, 16, 16)
    assert not torch.equal(batch["view_1"][2], batch["view_2"][2])  # the same picture, seen twice
    assert batch["label"].tolist() == [1, 0, 1]
    whole = JudgedData(two_pictures(), tokenizer(), augment=None, size=16)
    plain = finish_on_device(whole, {**whole.get_batch([0, 1, 2], 0, 0), "index": torch.arange(3), "epoch": 0}, 0)
    assert torch.equal(plain["view_1"][0], plain["view_2"][1])
    assert torch.equal(plain["view_1"][2], plain["view_2"][2])


def test_one_picture_of_a_sentence():
    data = JudgedData(two_pictures(Entailments), tokenizer(), augment=None, size=16)
    batch = finish_on_device(data, {**data.get_batch([2, 0], 0, 0), "index": torch.tensor([2, 0]), "epoch": 0}, 0)
    expected = torch.from_numpy(data.rows.images.array[[2, 0]]).float() / 255
    assert torch.equal(batch["view"], expected)


def test_texts_are_cleaned_and_sides_are_told_of():
    rows = two_pictures(Entailments)
    rows = Entailments(
        *(getattr(rows, name) for name in ("images", "image_ids", "image_of", "splits", "dropped", "examples")),
        ("It is LEFT, of it!", "no", "red"),
        rows.labels,
        rows.ids,
    )
    data = JudgedData(rows, tokenizer(), augment=AugmentConfig(size=16, flip=0.5))
    assert data.texts[0] == "it is left of it"
    assert "1 texts (33%) say left or right" in data.advice()[0]
    assert JudgedData(rows, tokenizer(), augment=AugmentConfig(size=16, flip=0.0)).advice() == []


def test_scenes_of_several_splits_are_joined(tiny_scenes):
    asked, pairs = scene_questions(tiny_scenes), scene_statements(tiny_scenes)
    said, named = scene_entailments(tiny_scenes), scene_phrases(tiny_scenes)
    for rows in (asked, pairs, said, named):
        assert len(rows.images) == 36
        train, test = rows.part("train"), rows.part("test")
        assert train.image_of.max() < 24 <= test.image_of.min()
    for row in (0, len(named) - 1):  # the phrase's colour is in its box
        picture, (x1, y1, x2, y2) = named.images.array[named.image_of[row]], named.boxes[row].astype(int)
        assert 0 <= x1 < x2 <= 32
        assert picture[:, y1:y2, x1:x2].size
    assert (np.diff(pairs.image_of, axis=1) == 1).all()


@pytest.fixture
def tiny_scenes():
    return tiny.scenes()
