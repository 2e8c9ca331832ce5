"""What the stages after the experts learn from: pictures with a caption, and pictures with questions and captions to answer by.

Both follow the data contract of :mod:`mc_core.data`, and can be asked for all but the picture, so that kept maps take its place.

Legend: P pictures, Q questions, R samples, B of a batch, S side of a view, L tokens of the longest text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mc_core.errors import DataError
from mc_core.listing import fingerprint
from mc_core.random import BatchRandom, uniform
from mc_core.tokens import padded
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.data.annotated import AnnotatedPairs
from mc_vision_language.data.annotated_data import AnnotatedData
from mc_vision_language.data.captions import clean_caption
from mc_vision_language.data.pair_data import PairData
from mc_vision_language.data.views import ImageViews
from mc_vision_language.tokenizers import tokenize_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mc_vision_language.language_text import LanguageText

_STREAM = 0xA57  # of the random numbers that choose answers


def captioned(data: AnnotatedPairs) -> AnnotatedPairs:
    """The pictures that have a caption, with their questions and nothing else.

    Raises:
        DataError: none has.
    """
    kept = data.having("captions")
    bare = {"boxes": None, "masks": None, "labels": None, "labels_known": None, "labels_from": "", "class_names": ()}
    return replace(kept, **bare)  # type: ignore[arg-type]


class JointData(AnnotatedData):
    """Pictures with one of their captions, drawn anew for each (seed, epoch, picture).

    A batch holds ``view`` (B, 3, S, S) in [0, 1], ``input_ids`` and ``attention_mask`` (B, L), ``image_ids`` and ``text_ids`` (B,).

    Args:
        data: pictures; those without a caption are left out.
        tokenizer: of the captions.
        augment: random changes of each view; None shows the whole picture.
        size: side of a view.
        max_length: tokens of a caption.
        add_sep: whether ``[SEP]`` ends a caption.

    Raises:
        DataError: no picture has a caption.
    """

    def __init__(
        self,
        data: AnnotatedPairs,
        tokenizer: PreTrainedTokenizerFast,
        *,
        augment: AugmentConfig | None = None,
        size: int | None = None,
        max_length: int = 25,
        add_sep: bool = False,
    ) -> None:
        super().__init__(captioned(data), tokenizer, augment=augment, size=size, max_length=max_length, add_sep=add_sep)

    @property
    def captions(self) -> PairData:
        """The captions, tokenised."""
        assert self.texts is not None
        return self.texts

    def picture_rows(self, indices: np.ndarray) -> np.ndarray:
        """(B,) the picture of each sample: itself."""
        return indices

    def without_pictures(self, indices: np.ndarray, epoch: int, seed: int) -> dict[str, Any]:
        """The batch of these samples but for the views."""
        return dict(self.captions.texts(self.captions.drawn(indices, epoch, seed)))


class InstructData:
    """Captions to write and questions to answer: a sample is a picture with its caption to write, or a question.

    A batch holds that of :class:`JointData`, for contrast, and in the language model's ids ``answer_ids``, ``answer_mask`` and
    ``target_mask`` (B, L): question and answer in one row, and which of its tokens are to be predicted. With ``ask_router`` also
    ``question_ids`` and ``question_mask`` (B, L), the question in the ids of the captions' tokenizer, nothing where there is none.
    Of several captions or answers one is drawn for each (seed, epoch, sample).

    Args:
        pictures: with captions, and questions about them.
        language: between texts and the language model's ids.
        tokenizer: of the captions, for ``ask_router``.
        ask_router: whether the router reads questions.

    Attributes:
        asked: Q, questions with an answer that are among the samples.

    Raises:
        DataError: a question of more tokens than the language model's ``question_length``.
    """

    def __init__(
        self,
        pictures: JointData,
        language: LanguageText,
        tokenizer: PreTrainedTokenizerFast | None = None,
        *,
        ask_router: bool = False,
    ) -> None:
        self.pictures = pictures
        pairs = pictures.pairs.pairs
        first = pairs.first_caption
        rows_of = [np.arange(len(pairs), dtype=np.int64)]
        questions: list[str] = [""] * len(pairs.captions)
        answers = list(pairs.captions)
        counts = [np.diff(first)]
        asked: list[str] = []
        if (given := pictures.pairs.questions) is not None:
            written = [[text for one in each if (text := clean_caption(one))] for each in given.answers]
            rows = [row for row, each in enumerate(written) if each]
            asked = [clean_caption(given.texts[row]) for row in rows]
            for text, row in zip(asked, rows, strict=True):
                questions += [text] * len(written[row])
                answers += written[row]
            rows_of.append(given.image_of[rows].astype(np.int64))
            counts.append(np.array([len(written[row]) for row in rows], dtype=np.int64))
        self.picture = np.concatenate(rows_of)
        self._counts = np.concatenate(counts)
        self._first = np.cumsum(self._counts) - self._counts
        self.asked = len(asked)
        self._sided = pictures.pairs.sided()
        self.language = language
        self.examples = language.examples(questions, answers)
        self.questions = None
        if ask_router:
            if tokenizer is None:
                raise DataError("the router reads questions, and nobody gave the tokenizer of the captions")
            texts = [""] * len(pairs) + asked
            self.questions = tokenize_texts(
                tokenizer, texts, pictures.captions.max_length, add_sep=pictures.captions.add_sep
            )

    def __len__(self) -> int:
        return len(self.picture)

    @property
    def views(self) -> ImageViews:
        """Of the pictures."""
        return self.pictures.views

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One sample as a worker prepares it."""
        found = self.pictures.get(int(self.picture[index]), rng)
        return {**found, "sample": index, "choice": float(rng.random())}

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Samples as one batch."""
        rows = np.array([sample["sample"] for sample in samples], dtype=np.int64)
        choice = np.array([sample["choice"] for sample in samples])
        return {**self.pictures.collate(samples), **self._answers(rows, choice)}

    @property
    def get_batch(self) -> Callable[[Sequence[int], int, int], dict[str, Any]] | None:
        """``get_batch(indices, epoch, seed)`` where the pictures are in memory, else None."""
        return self._batch if self.views.in_memory else None

    def _batch(self, indices: Sequence[int], epoch: int, seed: int) -> dict[str, Any]:
        rows = np.asarray(indices, dtype=np.int64)
        pixels = self.views.batch(self.picture[rows], rows, epoch, seed)
        may_flip = torch.from_numpy(~self._sided[self.picture[rows]])
        return {**pixels, "may_flip": may_flip, **self.without_pictures(rows, epoch, seed)}

    def picture_rows(self, indices: np.ndarray) -> np.ndarray:
        """(B,) the picture of each sample."""
        return self.picture[indices]

    def without_pictures(self, indices: np.ndarray, epoch: int, seed: int) -> dict[str, Any]:
        """The batch of these samples but for the views."""
        index = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        choice = uniform(seed, epoch, index, 1, stream=_STREAM)[:, 0].numpy()
        captions = self.pictures.without_pictures(self.picture[indices], epoch, seed)
        return {**captions, **self._answers(np.asarray(indices, dtype=np.int64), choice)}

    def _answers(self, rows: np.ndarray, choice: np.ndarray) -> dict[str, Any]:
        counts = self._counts[rows]
        chosen = self._first[rows] + np.minimum((choice * counts).astype(np.int64), counts - 1)
        ids, mask, targets = self.examples.batch(chosen, self.language.config.pad_id)
        found = {"answer_ids": ids, "answer_mask": mask, "target_mask": targets}
        if self.questions is not None:
            places, lengths = self.questions.places(rows)
            question_ids, question_mask = padded(self.questions.ids[places], lengths, self.pictures.captions.pad_id)
            asked = torch.from_numpy(rows >= len(self.pictures))[:, None]
            found |= {"question_ids": question_ids, "question_mask": question_mask * asked}
        return found

    def device_transform(self, batch: Mapping[str, Any], random: BatchRandom) -> dict[str, Any]:
        """The views, in place of the stored pictures."""
        return self.pictures.device_transform(batch, random)

    def advice(self) -> list[str]:
        """What the user should know, one line each."""
        none = [] if self.asked else ["no question has an answer to learn: the language model learns captions alone"]
        return [*none, *self.pictures.advice()]

    def describe(self) -> dict[str, Any]:
        """What identifies the data."""
        return {
            **self.pictures.describe(),
            "kind": "captions and questions",
            "asked": self.asked,
            "examples": fingerprint(self.examples.tokens.ids, self.examples.answers_from, self.picture, self._counts),
            "ask_router": self.questions is not None,
        }
