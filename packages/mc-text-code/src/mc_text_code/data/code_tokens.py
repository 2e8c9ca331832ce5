"""Pairs of question and function → token ids, with the class of the source token that each id comes from.

Legend: N texts, T tokens of all, C characters of a text.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mc_core.pool import map_items
from mc_core.tokens import Tokens
from mc_text_code.data.code_pairs import CodePair
from mc_text_code.data.code_text import OWN_NAME, ClassedText, Classing, CodeForm

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

_CHUNK = 4096  # texts tokenised at once, which bounds memory
_FEWEST = 2_000  # texts for which it pays to start processes
_LANGUAGE_BITS = 8


@dataclass(frozen=True)
class CodeTokens(Tokens):
    """Token ids of N texts, special tokens included, and what each comes from.

    Attributes:
        type_ids: (T,) uint8, the class of the source token, from 1; 0 for what no augmentation may touch: special tokens and
            white space.
        own_name: (T,) bool, the tokens of the function's own name.
    """

    type_ids: np.ndarray = None  # type: ignore[assignment]  # the base class has a default before it
    own_name: np.ndarray = None  # type: ignore[assignment]


def tokenize_code(
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[CodePair],
    max_length: int,
    *,
    form: CodeForm = "source",
    processes: int = 1,
) -> CodeTokens:
    """The tokens of the functions. All pieces of a source token have its class.

    Args:
        tokenizer: a fast one.
        pairs: N of them.
        max_length: tokens of a text, special ones included; the rest is cut off.
        form: see :func:`mc_text_code.data.code_text.classed_text`.
        processes: that parse; 0 for one on each processor where there are enough pairs.

    >>> from mc_text_code.tokenizers import train_tokenizer
    >>> pair = CodePair("area", "def area(r): return r * r", "python", name="area")
    >>> found = tokenize_code(train_tokenizer([pair.code], 300), [pair], 64)
    >>> found.type_ids[:6].tolist(), found.own_name[:4].tolist()
    ([0, 1, 2, 8, 2, 8], [False, False, True, False])
    """
    if not processes and len(pairs) < _FEWEST:
        processes = 1
    texts = map_items(Classing(form), pairs, processes=processes, chunk=64)
    return _tokenize(tokenizer, texts, len(pairs), max_length)


def tokenize_queries(tokenizer: PreTrainedTokenizerFast, queries: Sequence[str], max_length: int) -> CodeTokens:
    """The tokens of questions; type id 1 is any token that is not special."""
    texts = (ClassedText(query, np.ones(len(query), dtype=np.uint8)) for query in queries)
    return _tokenize(tokenizer, texts, len(queries), max_length)


def _tokenize(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[ClassedText], count: int, max_length: int
) -> CodeTokens:
    backend = tokenizer.backend_tokenizer
    before = backend.truncation, backend.padding
    backend.enable_truncation(max_length)
    backend.no_padding()
    ids, lengths, types = [], [], []
    source = iter(texts)
    try:
        for _ in range(0, count, _CHUNK):
            chunk = list(itertools.islice(source, _CHUNK))
            encoded = backend.encode_batch([one.text for one in chunk])
            length = np.fromiter((len(one.ids) for one in encoded), np.int64, count=len(encoded))
            total = int(length.sum())
            ids.append(np.fromiter(itertools.chain.from_iterable(one.ids for one in encoded), np.int32, count=total))
            spans = itertools.chain.from_iterable(itertools.chain.from_iterable(one.offsets for one in encoded))
            spans_T2 = np.fromiter(spans, np.int64, count=2 * total).reshape(-1, 2)
            types.append(_first_class([one.classes for one in chunk], spans_T2, length))
            lengths.append(length)
    finally:
        backend.no_truncation() if before[0] is None else backend.enable_truncation(**before[0])
        if before[1] is not None:
            backend.enable_padding(**before[1])
    both = np.concatenate(types).astype(np.uint8) if types else np.zeros(0, np.uint8)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]) if lengths else np.zeros(1)
    return CodeTokens(
        np.concatenate(ids) if ids else np.zeros(0, np.int32),
        offsets.astype(np.int64),
        type_ids=both & ~np.uint8(OWN_NAME),
        own_name=both >= OWN_NAME,
    )


def _first_class(classes: Sequence[np.ndarray], spans: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(T,) the class of the first character with one in each span; some tokenizers count the space before a word to it.

    Special tokens span nothing.
    """
    begins = np.concatenate([[0], np.cumsum([len(one) for one in classes])])
    base = np.repeat(begins[:-1], lengths)
    of_character = np.concatenate([*classes, np.zeros(1, np.uint8)])
    beyond = len(of_character) - 1
    places = np.where(of_character > 0, np.arange(len(of_character)), beyond)
    following = np.minimum.accumulate(places[::-1])[::-1]
    first = following[spans[:, 0] + base]
    return np.where(first < spans[:, 1] + base, of_character[first], 0)


def text_hashes(texts: Sequence[str]) -> np.ndarray:
    """(N,) int64, equal for texts that are equal but for white space and case; the same on every machine.

    >>> a, b, c = text_hashes(["Reads  the line.", "reads the\\nline.", "reads a line."])
    >>> bool(a == b), bool(a == c)
    (True, False)
    """
    normal = (" ".join(text.lower().split()).encode("utf-8", "replace") for text in texts)
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in normal)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def code_hashes(pairs: Sequence[CodePair]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(N,) int64, equal for functions that are equal but for white space, whose lowest byte is the number of the language; and the
    languages by that number."""
    languages = tuple(sorted({pair.language for pair in pairs}))
    number = {language: place for place, language in enumerate(languages)}
    digests = b"".join(
        hashlib.blake2b("".join(pair.code.split()).encode("utf-8", "replace"), digest_size=8).digest() for pair in pairs
    )
    hashes = np.frombuffer(digests, dtype="<i8").astype(np.int64)
    spoken = np.array([number[pair.language] for pair in pairs], dtype=np.int64) & ((1 << _LANGUAGE_BITS) - 1)
    return (hashes >> _LANGUAGE_BITS << _LANGUAGE_BITS) | spoken, languages


def language_of_hash(code_ids: Tensor) -> Tensor:
    """The language's number in what :func:`code_hashes` gives."""
    return code_ids & ((1 << _LANGUAGE_BITS) - 1)
