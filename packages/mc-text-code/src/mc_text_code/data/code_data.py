"""Batches for training on pairs of question and function.

Pairs are parsed and tokenised once, when the data set is made; what is changed in their keys is drawn anew at each step by the
method, on its device.

Legend: B pairs of a batch, L tokens of the longest, N pairs of all.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mc_core.errors import ConfigError, DataError
from mc_core.random import derive_seed
from mc_core.tokens import padded
from mc_text_code.code_recipe import CodeBatchOptions
from mc_text_code.data.code_pairs import CodePair
from mc_text_code.data.code_tokens import CodeTokens, code_hashes, text_hashes, tokenize_code, tokenize_queries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_STREAM = 0xC0D  # of the order of batches


class CodeData:
    """Pairs of question and function; follows the data contract of :mod:`mc_core.data`.

    A batch holds ``code_input_ids`` and ``code_attention_mask``, (B, L) int64, ``code_type_ids``, (B, L) uint8, and
    ``code_own_name``, (B, L) bool; ``query_input_ids``, ``query_attention_mask`` and ``query_type_ids`` of its own L; and
    ``code_ids`` and ``query_ids``, (B,) int64: equal for functions and questions that are equal.

    Args:
        pairs: N of them.
        tokenizer: a fast one, with the special tokens that its encoder wants.
        code_length: tokens of a function, special ones included; longer ones are cut.
        batches: how questions are cut, what is read of code, and what comes into one batch.
        processes: that parse; 0 for one on each processor where there are enough pairs.

    Raises:
        ConfigError: a tokenizer that cannot pad.
        DataError: fewer than two pairs.

    >>> from mc_text_code.tokenizers import train_tokenizer
    >>> pairs = [
    ...     CodePair("area", "def area(r): return r * r", "python"),
    ...     CodePair("nothing", "def f(): pass", "python"),
    ... ]
    >>> data = CodeData(pairs, train_tokenizer([pair.code for pair in pairs], 128), 32)
    >>> batch = data.get_batch([1, 0], epoch=0, seed=0)
    >>> batch["code_input_ids"].shape == batch["code_type_ids"].shape, len(batch["query_ids"])
    (True, 2)
    """

    def __init__(
        self,
        pairs: Sequence[CodePair],
        tokenizer: PreTrainedTokenizerFast,
        code_length: int = 256,
        batches: CodeBatchOptions = CodeBatchOptions(),  # noqa: B008 - frozen
        *,
        processes: int = 1,
    ) -> None:
        if len(pairs) < 2:
            raise DataError(f"{len(pairs)} pair to train on: there is nothing to contrast it with; give more")
        if tokenizer.pad_token_id is None:
            raise ConfigError("the tokenizer has no padding token: set tokenizer.pad_token, or take another encoder")
        self.batches, self.code_length = batches, code_length
        self.pad_id: int = tokenizer.pad_token_id
        self.code = tokenize_code(tokenizer, pairs, code_length, form=batches.form, processes=processes)
        self.query = tokenize_queries(tokenizer, [pair.query for pair in pairs], batches.query_length)
        self.code_ids, self.languages = code_hashes(pairs)
        self.query_ids = text_hashes([pair.query for pair in pairs])
        number = {language: place for place, language in enumerate(self.languages)}
        self._spoken = np.array([number[pair.language] for pair in pairs], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.code)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """One pair; nothing about it is random."""
        return {name: value[0] for name, value in self.get_batch([index], 0, 0).items()}

    def get_batch(self, indices: Sequence[int], epoch: int, seed: int) -> dict[str, Tensor]:
        """These pairs."""
        rows = np.asarray(indices, dtype=np.int64)
        query = _padded(self.query, rows, self.pad_id, "query")
        del query["query_own_name"]
        return {
            **_padded(self.code, rows, self.pad_id, "code"),
            **query,
            "code_ids": torch.from_numpy(self.code_ids[rows]),
            "query_ids": torch.from_numpy(self.query_ids[rows]),
        }

    def arrange(self, permutation: np.ndarray, *, epoch: int, batch_size: int, seed: int) -> np.ndarray:
        """An epoch's order with one language in a batch, where ``batches.one_language`` asks for it.

        Each batch draws its language by (number of its pairs) ^ ``language_exponent`` and takes the next of them, from the
        beginning again when they are through; so rare languages come more often than they occur.
        """
        if not self.batches.one_language or len(self.languages) < 2:
            return permutation
        rng = np.random.Generator(np.random.Philox(key=derive_seed(seed, epoch, _STREAM)))
        of_language = [permutation[self._spoken[permutation] == place] for place in range(len(self.languages))]
        of_language = [rows for rows in of_language if len(rows) >= batch_size] or [permutation]
        weights = np.array([len(rows) for rows in of_language], dtype=np.float64) ** self.batches.language_exponent
        drawn = rng.choice(len(of_language), size=len(permutation) // batch_size, p=weights / weights.sum())
        taken = np.zeros(len(of_language), dtype=np.int64)
        parts = []
        for language in drawn.tolist():
            rows = of_language[language]
            if taken[language] + batch_size > len(rows):
                taken[language] = 0
            parts.append(rows[taken[language] : taken[language] + batch_size])
            taken[language] += batch_size
        left = permutation[: len(permutation) - len(drawn) * batch_size]  # no batch of its own
        return np.concatenate([*parts, left])

    def describe(self) -> dict[str, Any]:
        """What identifies the data: its token ids and classes, and how they were made."""
        return {
            "kind": "code pairs",
            "count": len(self),
            "languages": list(self.languages),
            "code_crc32": zlib.crc32(self.code.type_ids.tobytes(), zlib.crc32(self.code.ids.tobytes())),
            "query_crc32": zlib.crc32(self.query.ids.tobytes()),
            "code_length": self.code_length,
            **self.batches.model_dump(mode="json"),
        }


def _padded(tokens: CodeTokens, rows: np.ndarray, pad_id: int, name: str) -> dict[str, Tensor]:
    places, lengths = tokens.places(rows)
    input_ids, mask = padded(tokens.ids[places], lengths, pad_id)
    inside = mask.numpy().astype(bool)
    types = np.zeros(inside.shape, dtype=np.uint8)
    types[inside] = tokens.type_ids[places]
    own = np.zeros(inside.shape, dtype=bool)
    own[inside] = tokens.own_name[places]
    return {
        f"{name}_input_ids": input_ids,
        f"{name}_attention_mask": mask,
        f"{name}_type_ids": torch.from_numpy(types),
        f"{name}_own_name": torch.from_numpy(own),
    }
