"""Batches for training: each sentence twice, as it is and with some of its tokens repeated.

Sentences are tokenised once, when the data set is made; what is repeated is drawn anew for each (seed, epoch, sentence).

Legend: B sentences of a batch, L tokens of the longest, N sentences of all.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mc_core.errors import ConfigError, DataError
from mc_core.random import BatchRandom, derive_seed
from mc_core.tokens import padded, tokenize
from mc_text_code.augment import lengthen
from mc_text_code.augment_config import AugmentConfig
from mc_text_code.data.sentences import Sentences
from mc_text_code.recipe import BatchOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_STREAM = 0x5E9  # of the order of batches within a window

STOP_WORDS = """
a about after all also an and any are as at be because been but by can could did do for from had has have he her him
his how i if in into is it its may more no not of on one only or other our out over she should so some such than that
the their them then there these they this to under up was we were what when where which while who will with would you
your
"""
"""The commonest English function words, for ``augment.kind: stop-word``."""


class SentenceData:
    """Sentences and their lengthened selves; follows the data contract of :mod:`mc_core.data`.

    A batch holds ``input_ids`` and ``attention_mask`` of the sentences, ``positive_input_ids`` and
    ``positive_attention_mask`` of their second views, (B, L) int64 each with its own L, and ``ids``, (B,) int64: equal for
    equal sentences.

    Args:
        sentences: N of them; a plain list of texts will do.
        tokenizer: a fast one, with the special tokens that its encoder wants.
        augment: what is done to the second view.
        batches: how sentences are put together.
        max_length: tokens of a sentence, special ones included; longer ones are cut before repetition, so that a second
            view may be longer.

    Attributes:
        sentences: those that are trained on, duplicates left out where ``batches.deduplicate`` says so.
        tokens: their token ids.

    Raises:
        ConfigError: a tokenizer that cannot pad, or lacks what ``augment.kind`` needs.
        DataError: fewer than two sentences.

    >>> from mc_text_code.tokenizers import train_tokenizer
    >>> texts = ["a red house by the sea", "a boat", "two red boats on the sea"]
    >>> data = SentenceData(texts, train_tokenizer(texts, 64))
    >>> batch = data.get_batch([1, 2], epoch=0, seed=0)
    >>> batch["input_ids"].shape, batch["positive_input_ids"].shape[0], batch["attention_mask"].sum(1)[0]
    (torch.Size([2, 8]), 2, tensor(4))
    """

    def __init__(
        self,
        sentences: Sentences | Sequence[str],
        tokenizer: PreTrainedTokenizerFast,
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008 - frozen
        batches: BatchOptions = BatchOptions(),  # noqa: B008 - frozen
        max_length: int = 32,
    ) -> None:
        sentences = sentences if isinstance(sentences, Sentences) else Sentences.of(sentences)
        self.sentences = sentences.deduplicated() if batches.deduplicate else sentences
        if len(self.sentences) < 2:
            raise DataError(
                f"{len(self.sentences)} sentence to train on: there is nothing to contrast it with; give more"
            )
        if tokenizer.pad_token_id is None:
            raise ConfigError("the tokenizer has no padding token: set tokenizer.pad_token, or take another encoder")
        self.augment, self.batches, self.max_length = augment, batches, max_length
        self.pad_id: int = tokenizer.pad_token_id
        self.mask_id: int | None = tokenizer.mask_token_id
        self.vocabulary = len(tokenizer)
        self.stop_ids = stop_word_ids(tokenizer) if augment.kind == "stop-word" else None
        self.tokens = tokenize(tokenizer, self.sentences.texts, max_length, words=augment.kind == "word")
        self._check()

    def _check(self) -> None:
        """What the second view needs is asked for now, not in the first step."""
        self._views(np.array([0]), BatchRandom(0, 0, torch.zeros(1, dtype=torch.int64)))

    def again(self, augment: AugmentConfig, batches: BatchOptions) -> SentenceData:
        """The same sentences and token ids under other settings; duplicates stay as they are."""
        other = copy.copy(self)
        other.augment, other.batches = augment, batches
        other._check()
        return other

    def __len__(self) -> int:
        return len(self.sentences)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """One sentence and its second view."""
        random = BatchRandom(int(rng.integers(1 << 62)), 0, torch.tensor([index]))
        return {name: value[0] for name, value in self._views(np.array([index]), random).items()}

    def get_batch(self, indices: Sequence[int], epoch: int, seed: int) -> dict[str, Tensor]:
        """These sentences and their second views in this epoch."""
        rows = np.asarray(indices, dtype=np.int64)
        return self._views(rows, BatchRandom(seed, epoch, torch.from_numpy(rows)))

    def _views(self, rows: np.ndarray, random: BatchRandom) -> dict[str, Tensor]:
        places, lengths = self.tokens.places(rows)
        tokens, starts = self.tokens.ids[places], self.tokens.word_starts
        longer, grown = lengthen(
            tokens,
            lengths,
            random,
            self.augment,
            word_starts=None if starts is None else starts[places],
            mask_id=self.mask_id,
            stop_ids=self.stop_ids,
        )
        input_ids, mask = padded(tokens, lengths, self.pad_id)
        positive, positive_mask = padded(longer, grown, self.pad_id)
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "positive_input_ids": positive,
            "positive_attention_mask": positive_mask,
            "ids": torch.from_numpy(self.sentences.hashes[rows]),
        }

    def arrange(self, permutation: np.ndarray, *, epoch: int, batch_size: int, seed: int) -> np.ndarray:
        """An epoch's order with sentences of like length in a batch, where ``batches.length_window`` asks for it.

        Within each window of so many batches sentences go to batches by their length; the batches of a window then follow
        each other at random, and so do the sentences of a batch.
        """
        window = self.batches.length_window * batch_size
        if not window:
            return permutation
        length = self.tokens.lengths
        rng = np.random.Generator(np.random.Philox(key=derive_seed(seed, epoch, _STREAM)))
        parts = []
        for first in range(0, len(permutation), window):
            part = permutation[first : first + window]
            whole = len(part) // batch_size * batch_size
            left = part[whole:]  # no batch of its own, wherever in the epoch it stands
            rows = part[:whole]
            by_length = np.argsort(length[rows], kind="stable").reshape(-1, batch_size)
            by_length.sort(axis=1)
            parts += [rows[rng.permutation(by_length, axis=0)].reshape(-1), left]
        return np.concatenate(parts)

    def describe(self) -> dict[str, Any]:
        """What identifies the data: its token ids, and what is done with them."""
        return {
            **self.sentences.describe(),
            "tokens": len(self.tokens.ids),
            "tokens_crc32": zlib.crc32(self.tokens.ids.tobytes()),
            "max_length": self.max_length,
            "augment": self.augment.model_dump(mode="json"),
            "length_window": self.batches.length_window,
        }


def stop_word_ids(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """(S,) ids of the English stop-words that are one token each, as they stand within a sentence."""
    ids = [tokenizer(f"a {word}", add_special_tokens=False)["input_ids"] for word in STOP_WORDS.split()]
    alone = [len(tokenizer("a", add_special_tokens=False)["input_ids"]) + 1 == len(tokens) for tokens in ids]
    unknown = tokenizer.unk_token_id
    found = {tokens[-1] for tokens, one in zip(ids, alone, strict=True) if one and tokens[-1] != unknown}
    return np.array(sorted(found), dtype=np.int64)
