"""Sentences as token ids: all in one flat array, taken out row by row without a loop.

Legend: N sentences, T tokens of all or of those taken, B sentences taken, L tokens of the longest of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Encoding

_CHUNK = 16_384  # sentences tokenised at once, which bounds memory


@dataclass(frozen=True)
class Tokens:
    """Token ids of N sentences, special tokens included.

    Attributes:
        ids: (T,) int32, sentence after sentence.
        offsets: (N + 1,) int64, where each begins.
        word_starts: (T,) bool, where a word between white space begins, special tokens being words; None if not asked for.
    """

    ids: np.ndarray
    offsets: np.ndarray
    word_starts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64 tokens of each sentence."""
        return np.diff(self.offsets)

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(T,) where the tokens of these sentences lie, and (B,) how many each has."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        ends = np.cumsum(lengths)
        return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths), lengths


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int, *, words: bool = False) -> Tokens:
    """Tokenise in bulk.

    Args:
        tokenizer: a fast one of Hugging Face, with its ``backend_tokenizer``.
        texts: N sentences.
        max_length: tokens of a sentence, special ones included; the rest is cut off.
        words: also find where words begin.

    Returns:
        Token ids of all sentences.
    """
    backend = tokenizer.backend_tokenizer
    before = backend.truncation, backend.padding
    backend.enable_truncation(max_length)
    backend.no_padding()
    encode = backend.encode_batch if words else backend.encode_batch_fast
    ids, lengths, starts = [], [], []
    try:
        for first in range(0, len(texts), _CHUNK):
            encoded = encode(list(texts[first : first + _CHUNK]))
            rows = [one.ids for one in encoded]
            length = np.fromiter(map(len, rows), np.int64, count=len(rows))
            ids.append(np.fromiter(itertools.chain.from_iterable(rows), np.int32, count=length.sum()))
            lengths.append(length)
            if words:
                chunk = texts[first : first + _CHUNK]
                starts += [_word_starts(*both) for both in zip(chunk, encoded, strict=True)]
    finally:
        backend.no_truncation() if before[0] is None else backend.enable_truncation(**before[0])
        if before[1] is not None:
            backend.enable_padding(**before[1])
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]) if lengths else np.zeros(1)
    return Tokens(
        np.concatenate(ids) if ids else np.zeros(0, np.int32),
        offsets.astype(np.int64),
        np.concatenate(starts) if starts else None,
    )


def _word_starts(text: str, encoded: Encoding) -> np.ndarray:
    """Where there is white space before a token, or it begins with some."""
    special = np.array(encoded.special_tokens_mask, dtype=bool)
    begin, end = np.array(encoded.offsets).reshape(-1, 2).T
    starts = special.copy()
    starts[:1] = True  # also where a tokenizer adds no special tokens
    starts[1:] |= special[:-1] | (begin[1:] > end[:-1])
    starts |= [text[at : at + 1].isspace() for at in begin]
    return starts


def padded(tokens: np.ndarray, lengths: np.ndarray, pad_id: int) -> tuple[Tensor, Tensor]:
    """(B, L) int64 ids and attention mask of ragged rows, padded on the right.

    >>> ids, mask = padded(np.array([2, 7, 3, 2, 3]), np.array([3, 2]), 0)
    >>> ids.tolist(), mask.tolist()
    ([[2, 7, 3], [2, 3, 0]], [[1, 1, 1], [1, 1, 0]])
    """
    mask_BL = np.arange(max(int(lengths.max(initial=0)), 1)) < lengths[:, None]
    ids_BL = np.full(mask_BL.shape, pad_id, dtype=np.int64)
    ids_BL[mask_BL] = tokens
    return torch.from_numpy(ids_BL), torch.from_numpy(mask_BL.astype(np.int64))


def ragged(input_ids: Tensor, attention_mask: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(T,) ids and (B,) lengths of padded rows, whichever side the padding is on; the reverse of :func:`padded`."""
    mask_BL = attention_mask.cpu().numpy().astype(bool)
    return input_ids.cpu().numpy()[mask_BL], mask_BL.sum(1)
