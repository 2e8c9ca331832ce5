"""Questions and sentences with their pictures, for training; follow the data contract of :mod:`mc_core.data`.

Texts are tokenised once, when the data set is made.

Legend: M rows, B of a batch, S side of a view, L tokens of the longest text, A answers of the batch, T tokens of the longest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from mc_core.errors import ConfigError, DataError
from mc_core.listing import fingerprint
from mc_core.random import BatchRandom
from mc_core.tokens import Tokens, padded
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.data.captions import clean_caption, names_sides
from mc_vision_language.data.options import CaptionOptions
from mc_vision_language.data.questions import AnswerList, Questions
from mc_vision_language.data.statements import Judged
from mc_vision_language.data.task_rows import TaskRows
from mc_vision_language.data.views import ImageViews
from mc_vision_language.evaluation.answers import normalise_answer
from mc_vision_language.tokenizers import tokenize_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Rows = TypeVar("Rows", bound=TaskRows)


class _TaskData(Generic[Rows]):
    """Rows with one picture or several, and one text."""

    def __init__(
        self,
        rows: Rows,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerFast,
        *,
        augment: AugmentConfig | None,
        size: int | None,
        max_length: int,
        add_sep: bool,
        captions: CaptionOptions,
    ) -> None:
        if tokenizer.pad_token_id is None:
            raise ConfigError("the tokenizer has no padding token: set tokenizer.pad_token, or take another one")
        if not len(rows):
            raise DataError("no rows to train on")
        self.rows = rows
        self.views = ImageViews(rows.images, augment, size)
        self.pad_id = int(tokenizer.pad_token_id)
        self.texts = [clean_caption(text, captions) for text in texts]
        self.tokens = tokenize_texts(tokenizer, self.texts, max_length, add_sep=add_sep)
        self._pictures = rows.image_of.reshape(len(rows), -1)
        count = self._pictures.shape[1]
        self.names = ("view",) if count == 1 else tuple(f"view_{number + 1}" for number in range(count))

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One row, without the views that the device makes."""
        pictures = self._pictures[index].tolist()
        found = {name: self.views.sample(row, rng) for name, row in zip(self.names, pictures, strict=True)}
        return {**found, "row": index}

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Samples as one batch."""
        pictures = {name: torch.stack([sample[name] for sample in samples]) for name in self.names}
        return {**pictures, **self._rest(np.array([sample["row"] for sample in samples], dtype=np.int64))}

    @property
    def get_batch(self) -> Callable[[Sequence[int], int, int], dict[str, Any]] | None:
        """``get_batch(indices, epoch, seed)`` where the pictures are in memory, else None."""
        return self._batch if self.views.in_memory else None

    def _batch(self, indices: Sequence[int], epoch: int, seed: int) -> dict[str, Any]:
        rows = np.asarray(indices, dtype=np.int64)
        pictures = {
            name: self.views.batch(self._pictures[rows, place], rows, epoch, seed, place)["image"]
            for place, name in enumerate(self.names)
        }
        return {**pictures, **self._rest(rows)}

    def _rest(self, rows: np.ndarray) -> dict[str, Tensor]:
        """All but the pictures."""
        places, lengths = self.tokens.places(rows)
        input_ids, mask = padded(self.tokens.ids[places], lengths, self.pad_id)
        return {"input_ids": input_ids, "attention_mask": mask}

    def device_transform(self, batch: Mapping[str, Any], random: BatchRandom) -> dict[str, Any]:
        """The views, in place of the stored pictures."""
        made = {
            name: self.views.view({"image": batch[name]}, random, stream=place) for place, name in enumerate(self.names)
        }
        return {**batch, **made}

    def advice(self) -> list[str]:
        """What the user should know about these rows with these views, one line each."""
        augment = self.views.augment
        sides = sum(map(names_sides, self.texts))
        if augment is None or augment.flip == 0 or not sides:
            return []
        share = sides / len(self.texts)
        line = f"{sides:,} texts ({share:.0%}) say left or right, and pictures are mirrored with probability {augment.flip:g}"
        return [f"{line}, as in the paper; where sides matter, set augment.flip to 0 (--augment.flip 0)"]

    def describe(self) -> dict[str, Any]:
        """What identifies the data."""
        return {
            **self.rows.describe(),
            "views": self.views.describe(),
            "tokens": fingerprint(self.tokens.ids, self.tokens.offsets),
            "pictures": fingerprint(self._pictures),
        }


class QuestionData(_TaskData[Questions]):
    """Questions with the answers to learn.

    A batch holds ``view`` (B, 3, S, S) float32 in [0, 1], ``input_ids`` and ``attention_mask`` (B, L); the answers of all questions
    one after the other: ``answer_ids`` and ``answer_mask`` (A, T), ``answer_of`` (A,), the question of each in the batch, and
    ``answer_weights`` (A,), the share of people who gave it, times the weight of the question.

    Args:
        questions: with answers.
        answers: those outside this list are not learnt; questions without one of them are left out.
        tokenizer: a fast one.
        augment: random changes of each view; None shows the whole picture.
        size: side of a view.
        question_length: tokens of a question.
        answer_length: tokens of an answer, [CLS] and [SEP] included.
        add_sep: whether [SEP] ends a question.
        captions: what of a question is kept.

    Raises:
        DataError: no question has an answer of the list.
    """

    def __init__(
        self,
        questions: Questions,
        answers: AnswerList,
        tokenizer: PreTrainedTokenizerFast,
        *,
        augment: AugmentConfig | None = None,
        size: int | None = None,
        question_length: int = 25,
        answer_length: int = 10,
        add_sep: bool = False,
        captions: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen
    ) -> None:
        reachable = np.flatnonzero(answers.reachable(questions.answers))
        if not len(reachable):
            raise DataError(
                f"no question has one of the {len(answers)} answers of the list; is it the list of these questions?"
            )
        self.left_out = len(questions) - len(reachable)
        questions = questions.take(reachable)
        super().__init__(
            questions,
            questions.texts,
            tokenizer,
            augment=augment,
            size=size,
            max_length=question_length,
            add_sep=add_sep,
            captions=captions,
        )
        place = {answer: number for number, answer in enumerate(answers.answers)}
        chosen: list[int] = []
        weights: list[float] = []
        counts = np.zeros(len(questions), dtype=np.int64)
        for row, given in enumerate(questions.answers):
            found = Counter(map(normalise_answer, given))
            known = [(place[answer], times / len(given)) for answer, times in found.items() if answer in place]
            counts[row] = len(known)
            chosen += [number for number, _ in known]
            weights += [share * questions.weights[row] for _, share in known]
        self._chosen, self._weights = np.array(chosen, dtype=np.int64), np.array(weights, dtype=np.float32)
        self._first, self._counts = np.cumsum(counts) - counts, counts
        self.answer_tokens: Tokens = tokenize_texts(tokenizer, answers.answers, answer_length, add_sep=True)

    def _rest(self, rows: np.ndarray) -> dict[str, Tensor]:
        counts = self._counts[rows]
        ends = np.cumsum(counts)
        where = np.arange(ends[-1]) + np.repeat(self._first[rows] - (ends - counts), counts)
        places, lengths = self.answer_tokens.places(self._chosen[where])
        ids, mask = padded(self.answer_tokens.ids[places], lengths, self.pad_id)
        return {
            **super()._rest(rows),
            "answer_ids": ids,
            "answer_mask": mask,
            "answer_of": torch.from_numpy(np.repeat(np.arange(len(rows)), counts)),
            "answer_weights": torch.from_numpy(self._weights[where]),
        }

    def describe(self) -> dict[str, Any]:
        """With the answers."""
        return {**super().describe(), "answers": fingerprint(self.answer_tokens.ids, self._chosen)}


class JudgedData(_TaskData[Judged]):
    """Sentences with one label each, about one picture or two.

    A batch holds ``view``, or ``view_1`` and ``view_2``, (B, 3, S, S) float32 in [0, 1], ``input_ids`` and ``attention_mask``
    (B, L), and ``label`` (B,).

    Args:
        judged: sentences with labels.
        tokenizer: a fast one.
        augment: random changes of each view; None shows the whole picture.
        size: side of a view.
        max_length: tokens of a sentence.
        add_sep: whether [SEP] ends a sentence.
        captions: what of a sentence is kept.
    """

    def __init__(
        self,
        judged: Judged,
        tokenizer: PreTrainedTokenizerFast,
        *,
        augment: AugmentConfig | None = None,
        size: int | None = None,
        max_length: int = 30,
        add_sep: bool = False,
        captions: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(
            judged,
            judged.texts,
            tokenizer,
            augment=augment,
            size=size,
            max_length=max_length,
            add_sep=add_sep,
            captions=captions,
        )

    def _rest(self, rows: np.ndarray) -> dict[str, Tensor]:
        return {**super()._rest(rows), "label": torch.from_numpy(self.rows.labels[rows])}

    def describe(self) -> dict[str, Any]:
        """With the labels."""
        return {**super().describe(), "labels": fingerprint(self.rows.labels)}
