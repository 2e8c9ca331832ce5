"""The second view of a sentence: its own tokens, some of them repeated, so that a positive pair has no equal length.

Token ids of a batch are *ragged*: all rows one after another in ``tokens`` (T,), and how many each has in ``lengths`` (B,).
Rows begin and end with a special token, which counts in n but is never repeated::

    cap "code"     k ~ U{0, …, min(10, ⌊r·n⌋) − 1}, k = 0 where that is empty        (released code)
    cap "paper"    k ~ U{0, …, max(2, ⌊r·n⌋)}                                         (equations 4 and 5)

k distinct positions are drawn without replacement, at most as many as there are, and each is doubled in place. Ours are the
guard on k for short sentences, that the first and the last token are left alone also under the paper's cap, and that r = 0
changes nothing under either cap.

Source: Wu et al. 2021 (ESimCSE, arXiv:2109.04380), section 3.1 and table 10; the released code.

Legend: B sentences, T tokens of all of them, N tokens of the longest, R draws.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from mc_core.errors import ConfigError
from mc_text_code.augment_config import AugmentConfig, Cap

_MOST_BY_CODE = 10
_COUNT, _PLACE, _WHICH = 0x5E0, 0x5E1, 0x5E2  # streams of random numbers


class Uniform(Protocol):
    """Where random numbers come from: :class:`mc_core.random.BatchRandom`, or anything with its one method."""

    def uniform(self, draws: int, *, stream: int = 0) -> Tensor:
        """(B, draws) in [0, 1)."""
        ...


def lengthen(
    tokens: np.ndarray,
    lengths: np.ndarray,
    random: Uniform,
    config: AugmentConfig,
    *,
    word_starts: np.ndarray | None = None,
    mask_id: int | None = None,
    stop_ids: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of the second view, as ``config.kind`` says.

    Args:
        tokens: (T,) integers.
        lengths: (B,) integers, which add up to T.
        random: of these B sentences.
        config: see :class:`AugmentConfig`.
        word_starts: (T,) bool, needed for ``word``: where a word begins; special tokens are words of their own.
        mask_id: needed for ``mask``.
        stop_ids: (S,) integers, needed for ``stop-word``.

    Returns:
        Tokens and lengths of the same dtypes. Rows never become shorter.

    Raises:
        ConfigError: what the kind needs is not given.

    >>> import torch
    >>> from mc_core.random import BatchRandom
    >>> draw = BatchRandom(seed=0, epoch=0, index=torch.arange(1))
    >>> lengthen(np.array([2, 10, 11, 12, 13, 3]), np.array([6]), draw, AugmentConfig(rate=1.0))
    (array([ 2, 10, 10, 11, 11, 12, 12, 13, 13,  3]), array([10]))
    """
    kind, rate, cap = config.kind, config.rate, config.cap
    if kind == "none":
        return tokens, lengths
    if kind == "subword":
        return repeat_subwords(tokens, lengths, random, rate=rate, cap=cap)
    if kind == "word":
        if word_starts is None:
            raise ConfigError("augment.kind word needs to know where words begin: give word_starts")
        return repeat_words(tokens, lengths, word_starts, random, rate=rate, cap=cap)
    if kind == "mask":
        if mask_id is None:
            raise ConfigError("augment.kind mask needs a tokenizer with a mask token: take another kind")
        return insert_masks(tokens, lengths, mask_id, random, rate=rate, cap=cap)
    if stop_ids is None or not len(stop_ids):
        raise ConfigError("augment.kind stop-word needs a tokenizer that knows English stop-words: take another kind")
    return insert_stop_words(tokens, lengths, stop_ids, random, rate=rate, cap=cap)


def repeat_subwords(
    tokens: np.ndarray, lengths: np.ndarray, random: Uniform, *, rate: float = 0.32, cap: Cap = "code"
) -> tuple[np.ndarray, np.ndarray]:
    """Double some tokens in place, each at most once, never the first or the last of a sentence.

    Args:
        tokens, lengths: a ragged batch.
        random: of its sentences.
        rate: r in [0, 1].
        cap: the formula for the greatest number, see above.

    Returns:
        Tokens and lengths.
    """
    chosen_T = _chosen(lengths, lengths - 2, _counts(lengths, random, rate, cap), random, first=1)
    return np.repeat(tokens, 1 + chosen_T), _grown(lengths, chosen_T)


def repeat_words(
    tokens: np.ndarray,
    lengths: np.ndarray,
    word_starts: np.ndarray,
    random: Uniform,
    *,
    rate: float = 0.32,
    cap: Cap = "code",
) -> tuple[np.ndarray, np.ndarray]:
    """Double some words, all tokens of a word together; the paper's ablation.

    n counts words, not special tokens. As released, the last word is never doubled, and with cap ``"code"`` k is below
    min(10, n, max(2, ⌊r·n⌋)). Ours: words are doubled after the sentence was cut to its greatest length, not before.

    Args:
        tokens, lengths: a ragged batch.
        word_starts: (T,) bool; the first and the last token of a sentence are words of their own.
        random: of its sentences.
        rate: r in [0, 1].
        cap: the formula for the greatest number.
    """
    row_T = np.repeat(np.arange(len(lengths)), lengths)
    begin_W = np.flatnonzero(word_starts)
    size_W = np.diff(begin_W, append=len(tokens))
    words = np.bincount(row_T[begin_W], minlength=len(lengths)).astype(lengths.dtype)  # two of them special
    count = _counts(words - 2, random, rate, cap, words=True)
    chosen_W = _chosen(words, words - 3, count, random, first=1)
    again_W = np.repeat(np.arange(len(begin_W)), 1 + chosen_W)
    taken = _ranges(begin_W[again_W], size_W[again_W])
    longer = np.bincount(row_T[begin_W], weights=chosen_W * size_W, minlength=len(lengths))
    return tokens[taken], (lengths + longer).astype(lengths.dtype)


def insert_masks(
    tokens: np.ndarray, lengths: np.ndarray, mask_id: int, random: Uniform, *, rate: float = 0.32, cap: Cap = "code"
) -> tuple[np.ndarray, np.ndarray]:
    """Put the mask token into some of the gaps between the tokens of a sentence; the paper's ablation.

    Args:
        tokens, lengths: a ragged batch.
        mask_id: of the tokenizer.
        random: of its sentences.
        rate: r in [0, 1].
        cap: the formula for the greatest number.
    """
    return _insert(tokens, lengths, np.array([mask_id]), random, rate, cap)


def insert_stop_words(
    tokens: np.ndarray,
    lengths: np.ndarray,
    stop_ids: np.ndarray,
    random: Uniform,
    *,
    rate: float = 0.32,
    cap: Cap = "code",
) -> tuple[np.ndarray, np.ndarray]:
    """Put stop-words, drawn anew for each gap, between some tokens of a sentence; the paper's ablation.

    The paper does not say which words, nor how many: here they follow the same cap.

    Args:
        tokens, lengths: a ragged batch.
        stop_ids: (S,) tokens that are stop-words, S ≥ 1.
        random: of its sentences.
        rate: r in [0, 1].
        cap: the formula for the greatest number.
    """
    return _insert(tokens, lengths, stop_ids, random, rate, cap)


def most_repeated(n: np.ndarray, rate: float, cap: Cap = "code") -> np.ndarray:
    """(B,) the greatest k for sentences of n tokens, special ones included.

    >>> [most_repeated(np.array([6, 8, 12, 20, 32]), 0.32, cap).tolist() for cap in ("code", "paper")]
    [[0, 1, 2, 5, 9], [2, 2, 3, 6, 10]]
    """
    share = np.floor(rate * np.asarray(n, dtype=np.float64)).astype(np.int64)
    if rate == 0:
        return np.zeros_like(share)
    if cap == "paper":
        return np.maximum(2, share)
    return np.maximum(np.minimum(_MOST_BY_CODE, share) - 1, 0)


def most_added(n: int, config: AugmentConfig) -> int:
    """How much longer a sentence of at most ``n`` tokens, special ones included, may become.

    >>> (
    ...     most_added(32, AugmentConfig()),
    ...     most_added(32, AugmentConfig(cap="paper")),
    ...     most_added(32, AugmentConfig(kind="none")),
    ... )
    (9, 10, 0)
    """
    if config.kind == "none" or config.rate == 0:
        return 0
    room = max(n - (1 if config.kind in ("mask", "stop-word") else 2), 0)
    if config.kind == "word":
        return room  # one word may be all there is
    return min(int(most_repeated(np.array([n]), config.rate, config.cap)[0]), room)


def _counts(n: np.ndarray, random: Uniform, rate: float, cap: Cap, *, words: bool = False) -> np.ndarray:
    """(B,) k, each number from 0 to the greatest equally likely."""
    most = most_repeated(n, rate, cap)
    if words and cap == "code" and rate:
        share = np.floor(rate * n.astype(np.float64)).astype(np.int64)
        most = np.maximum(np.minimum(np.minimum(_MOST_BY_CODE, n), np.maximum(2, share)) - 1, 0)
    u_B = random.uniform(1, stream=_COUNT)[:, 0].cpu().numpy().astype(np.float64)
    return np.minimum((u_B * (most + 1)).astype(np.int64), most)


def _chosen(
    lengths: np.ndarray, candidates: np.ndarray, count: np.ndarray, random: Uniform, *, first: int
) -> np.ndarray:
    """(T,) bool: in each row ``count`` of the ``candidates`` places from place ``first`` on, all sets equally likely."""
    longest = max(int(lengths.max(initial=0)) - first, 1)
    key_BN = random.uniform(longest, stream=_PLACE).cpu().numpy().copy()
    at_N = np.arange(longest)
    key_BN[at_N >= candidates[:, None]] = 2.0  # behind all others
    rank_BN = np.argsort(np.argsort(key_BN, axis=1, kind="stable"), axis=1)
    most = np.minimum(count, np.maximum(candidates, 0))
    chosen_BN = np.zeros((len(lengths), longest + first), dtype=bool)
    chosen_BN[:, first:] = rank_BN < most[:, None]
    return chosen_BN[np.arange(longest + first) < lengths[:, None]]


def _insert(
    tokens: np.ndarray, lengths: np.ndarray, values: np.ndarray, random: Uniform, rate: float, cap: Cap
) -> tuple[np.ndarray, np.ndarray]:
    """One of ``values`` behind each chosen token, which may be any but the last."""
    chosen_T = _chosen(lengths, lengths - 1, _counts(lengths, random, rate, cap), random, first=0)
    longer = np.repeat(tokens, 1 + chosen_T)
    places = np.flatnonzero(chosen_T) + np.arange(1, chosen_T.sum() + 1)
    row_T = np.repeat(np.arange(len(lengths)), lengths)
    if len(values) == 1:
        longer[places] = values[0]
    else:
        u_BN = random.uniform(max(int(lengths.max(initial=0)), 1), stream=_WHICH).cpu().numpy()
        column_T = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        u = u_BN[row_T[chosen_T], column_T[chosen_T]]
        longer[places] = values[np.minimum((u * len(values)).astype(np.int64), len(values) - 1)]
    return longer, _grown(lengths, chosen_T)


def _grown(lengths: np.ndarray, chosen_T: np.ndarray) -> np.ndarray:
    row_T = np.repeat(np.arange(len(lengths)), lengths)
    return lengths + np.bincount(row_T, weights=chosen_T, minlength=len(lengths)).astype(lengths.dtype)


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """``start, start + 1, … start + size − 1`` of each, one after another."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)
