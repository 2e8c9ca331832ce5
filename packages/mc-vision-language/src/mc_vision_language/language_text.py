"""Questions, captions and answers as the token ids that a language model reads.

::

    [start] question [separator] answer [end]        a caption answers the empty question

Legend: M texts, T tokens of all, B of a batch, L tokens of the longest of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mc_core.errors import ConfigError, DataError
from mc_core.tokens import Tokens, padded
from mc_vision_language.language_config import LanguageConfig

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

_CHUNK = 16_384
_SHOWN = 60  # characters of a text in a message


@dataclass(frozen=True)
class Examples:
    """Questions with their answers.

    Attributes:
        tokens: M rows, special tokens included.
        answers_from: (M,) int64, the place in each row where its answer begins.
    """

    tokens: Tokens
    answers_from: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: np.ndarray, pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L) int64 ids, mask and target mask of these rows, padded on the right; targets are the answer and its end."""
        places, lengths = self.tokens.places(rows)
        ids, mask = padded(self.tokens.ids[places], lengths, pad_id)
        late = torch.arange(ids.shape[1]) >= torch.from_numpy(self.answers_from[rows])[:, None]
        return ids, mask, mask * late


def with_language_ids(config: LanguageConfig, tokenizer: PreTrainedTokenizerFast) -> LanguageConfig:
    """With the ids of a tokenizer's special tokens and, for a model of our own, its size.

    The separator is ``[SEP]`` of a BERT-style tokenizer, and a line break of any other.

    Raises:
        ConfigError: a tokenizer with nothing that ends a text.

    >>> from mc_vision_language.tokenizers import train_tokenizer
    >>> config = with_language_ids(LanguageConfig(), train_tokenizer(["a red house"], 64))
    >>> config.start_id, config.separator, config.end_id, config.pad_id
    (2, (3,), 3, 0)
    """
    first = next((one for one in (tokenizer.bos_token_id, tokenizer.cls_token_id) if one is not None), None)
    end = next((one for one in (tokenizer.eos_token_id, tokenizer.sep_token_id) if one is not None), None)
    if end is None:
        raise ConfigError("the tokenizer has no token that ends a text ([SEP], </s> or the like): give one that has")
    bert = tokenizer.bos_token_id is None and tokenizer.sep_token_id is not None
    separator = (tokenizer.sep_token_id,) if bert else tuple(tokenizer("\n", add_special_tokens=False).input_ids)
    found: dict[str, Any] = {
        "start_id": first,
        "separator": separator or (end,),
        "end_id": end,
        "pad_id": end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    }
    if config.name is None:
        found["vocabulary"] = max(len(tokenizer), 8)
    return config.model_copy(update=found)


class LanguageText:
    """Between texts and the ids of a language model.

    Args:
        tokenizer: a fast one.
        config: with its ids filled in; see :func:`with_language_ids`.
        words: V of the model; a tokenizer with larger ids is refused.

    Raises:
        ConfigError: a tokenizer that does not fit the model.

    >>> from mc_vision_language.tokenizers import train_tokenizer
    >>> tokenizer = train_tokenizer(["what is it", "a red house"], 64)
    >>> text = LanguageText(tokenizer, with_language_ids(LanguageConfig(), tokenizer))
    >>> ids, mask = text.prompts(["what is it", ""])
    >>> ids.shape, mask.sum(1).tolist(), text.decode(text.answers(["a red house"])[0])
    (torch.Size([2, 5]), [5, 2], ['a red house'])
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: LanguageConfig, words: int | None = None) -> None:
        largest = max(tokenizer.get_vocab().values())
        if words is not None and largest >= words:
            raise ConfigError(
                f"the tokenizer numbers its tokens up to {largest}, the language model knows {words} (0 to {words - 1}): give the "
                "tokenizer that belongs to it"
            )
        self.tokenizer, self.config = tokenizer, config

    def prompts(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(M, L) int64 ids and mask of questions, up to where the answer begins; an empty one asks for a caption.

        Raises:
            DataError: a question of more than ``question_length`` tokens.
        """
        return self._padded(self._asked(questions))

    def answers(self, answers: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(M, L) int64 ids and mask of answers with their end.

        Raises:
            DataError: an empty answer, or one of more than ``answer_length`` tokens.
        """
        return self._padded(self._answered(answers, cut=False))

    def examples(self, questions: Sequence[str], answers: Sequence[str], *, cut: bool = True) -> Examples:
        """Questions with their answers, to train on.

        Args:
            questions: M; empty ones ask for a caption.
            answers: M.
            cut: cut what is longer than ``answer_length``, as captions are; else it is refused.

        Raises:
            DataError: another number of answers, a question that is too long, or an empty answer.
        """
        if len(questions) != len(answers):
            raise DataError(f"{len(questions)} questions and {len(answers)} answers: give one for each")
        asked, answered = self._asked(questions), self._answered(answers, cut=cut)
        rows = [first + last for first, last in zip(asked, answered, strict=True)]
        lengths = np.fromiter(map(len, rows), np.int64, count=len(rows))
        ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32, count=int(lengths.sum()))
        starts = np.fromiter(map(len, asked), np.int64, count=len(asked))
        return Examples(Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)), starts)

    def decode(self, ids: Tensor) -> list[str]:
        """Texts of generated ids (B, L), each up to its end token."""
        rows = ids.tolist()
        end = self.config.end_id
        kept = [row[: row.index(end)] if end in row else row for row in rows]
        return [text.strip() for text in self.tokenizer.batch_decode(kept, skip_special_tokens=True)]

    def _asked(self, questions: Sequence[str]) -> list[list[int]]:
        start = [] if self.config.start_id is None else [self.config.start_id]
        tail, most = list(self.config.separator), self.config.question_length
        rows = self._ids(questions)
        for place, row in enumerate(rows):
            if len(row) > most:
                raise DataError(
                    f"the question '{_short(questions[place])}' has {len(row)} tokens, more than question_length {most}: shorten "
                    "it, or train with a larger one"
                )
        return [[*start, *row, *tail] for row in rows]

    def _answered(self, answers: Sequence[str], *, cut: bool) -> list[list[int]]:
        most = self.config.answer_length - 1
        rows = self._ids(answers)
        for place, row in enumerate(rows):
            if not row:
                raise DataError(f"answer {place} is empty: leave it out")
            if len(row) > most and not cut:
                raise DataError(
                    f"the answer '{_short(answers[place])}' has {len(row)} tokens, more than answer_length {most + 1} less its "
                    "end: shorten it, or train with a larger one"
                )
        return [[*row[:most], self.config.end_id] for row in rows]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if isinstance(texts, str):
            raise ConfigError("give a list of texts, not one text: put it into brackets")
        backend = self.tokenizer.backend_tokenizer
        before = backend.truncation, backend.padding
        backend.no_truncation()
        backend.no_padding()
        try:
            found: list[list[int]] = []
            for first in range(0, len(texts), _CHUNK):
                chunk = list(texts[first : first + _CHUNK])
                found += [one.ids for one in backend.encode_batch_fast(chunk, add_special_tokens=False)]
            return found
        finally:
            if before[0] is not None:
                backend.enable_truncation(**before[0])
            if before[1] is not None:
                backend.enable_padding(**before[1])

    def _padded(self, rows: Iterable[list[int]]) -> tuple[Tensor, Tensor]:
        rows = list(rows)
        lengths = np.fromiter(map(len, rows), np.int64, count=len(rows))
        ids = np.fromiter(itertools.chain.from_iterable(rows), np.int64, count=int(lengths.sum()))
        return padded(ids, lengths, self.config.pad_id)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
