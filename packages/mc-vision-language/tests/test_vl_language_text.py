"""Questions and answers as ids: what is predicted, what is refused, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mc_core.errors import ConfigError, DataError
from mc_vision_language.language_config import LanguageConfig
from mc_vision_language.language_text import LanguageText, with_language_ids
from mc_vision_language.tokenizers import train_tokenizer

TEXTS = ["what is it", "is it red", "a red house", "yes"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 64)


def text(tokenizer, **more) -> LanguageText:
    return LanguageText(tokenizer, with_language_ids(LanguageConfig(**more), tokenizer))


def test_an_example_is_question_separator_answer_end_and_only_the_answer_is_predicted(tokenizer):
    made = text(tokenizer).examples(["is it red", ""], ["yes", "a red house"])
    ids, mask, targets = made.batch(np.array([1, 0]), 0)
    words = [tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
    assert words == [
        ["[CLS]", "[SEP]", "a", "red", "house", "[SEP]", "[PAD]"],
        ["[CLS]", "is", "it", "red", "[SEP]", "yes", "[SEP]"],
    ]
    assert mask.tolist() == [[1, 1, 1, 1, 1, 1, 0], [1] * 7]
    assert targets.tolist() == [[0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1]]


def test_a_prompt_is_what_stands_before_the_answer(tokenizer):
    reading = text(tokenizer)
    ids, mask = reading.prompts(["is it red", ""])
    example, _, targets = reading.examples(["is it red", ""], ["yes", "yes"]).batch(np.arange(2), 0)
    for row in range(2):
        length = int(mask[row].sum())
        assert ids[row, :length].tolist() == example[row, :length].tolist()
        assert targets[row].tolist().index(1) == length


def test_captions_are_cut_and_keep_their_end_but_questions_are_refused(tokenizer):
    reading = text(tokenizer, answer_length=3, question_length=2)
    made = reading.examples([""], ["a red house"])
    assert tokenizer.convert_ids_to_tokens(made.tokens.ids.tolist()) == ["[CLS]", "[SEP]", "a", "red", "[SEP]"]
    with pytest.raises(DataError, match="the question 'what is it' has 3 tokens, more than question_length 2"):
        reading.prompts(["is", "what is it"])
    with pytest.raises(DataError, match="the answer 'a red house' has 3 tokens"):
        reading.answers(["a red house"])
    with pytest.raises(DataError, match="answer 1 is empty"):
        reading.examples(["", ""], ["yes", " "])
    with pytest.raises(DataError, match="2 questions and 1 answers"):
        reading.examples(["", ""], ["yes"])
    with pytest.raises(ConfigError, match="not one text"):
        reading.prompts("is it red")


def test_what_was_generated_is_read_up_to_its_end(tokenizer):
    reading = text(tokenizer)
    ids, _ = reading.answers(["a red house", "yes"])
    ids[1, 2] = ids[0, 0]  # after the end: not read
    assert reading.decode(ids) == ["a red house", "yes"]


def test_a_tokenizer_of_the_other_kind_has_start_line_break_and_end():
    words = {word: place for place, word in enumerate(["<s>", "</s>", "\n", "red", "it"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Split("[ ]", "removed")
    other = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    config = with_language_ids(LanguageConfig(), other)
    assert (config.start_id, config.separator, config.end_id, config.pad_id) == (0, (2,), 1, 1)
    ids, mask, targets = LanguageText(other, config).examples(["it"], ["red"]).batch(np.array([0]), 1)
    assert ids.tolist() == [[0, 4, 2, 3, 1]]
    assert mask.sum() == 5
    assert targets.tolist() == [[0, 0, 0, 1, 1]]


def test_a_tokenizer_that_does_not_fit_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"the language model knows 10 \(0 to 9\)"):
        LanguageText(tokenizer, with_language_ids(LanguageConfig(), tokenizer), 10)
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ConfigError, match="no token that ends a text"):
        with_language_ids(LanguageConfig(), bare)
