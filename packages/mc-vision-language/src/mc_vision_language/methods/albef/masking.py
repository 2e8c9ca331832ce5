"""Which tokens are hidden for masked language modelling.

Legend: B texts, L tokens, M masked tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mc_core.engine.method import Batch, Progress
from mc_core.random import uniform
from mc_vision_language.encoders_config import TextEncoderConfig

DRAWS = 3
"""Uniform numbers that a token takes: whether it is chosen, what becomes of it, and another word."""
_MASKED, _REPLACED = 0.8, 0.9  # the first 80 % become [MASK], the next 10 % another word, the rest stays


class Masked(NamedTuple):
    """What :func:`mask_tokens` gives.

    Attributes:
        input_ids: (B, L) with the chosen ones hidden.
        rows, columns: (M,) where they are.
        words: (M,) what stood there.
    """

    input_ids: Tensor
    rows: Tensor
    columns: Tensor
    words: Tensor


def mask_tokens(
    input_ids: Tensor, attention_mask: Tensor, noise: Tensor, config: TextEncoderConfig, vocabulary: int, rate: float
) -> Masked:
    """Choose tokens with probability ``rate``; of those 80 % become [MASK], 10 % any word of the vocabulary, 10 % stay.

    Padding, [CLS] and [SEP] are never chosen. At least one token of the batch is, where there is one to choose.

    Args:
        input_ids: (B, L).
        attention_mask: (B, L).
        noise: (B, at least L, 3) uniform in [0, 1).
        config: ids of the special tokens.
        vocabulary: words to replace by.
        rate: between 0 and 1.

    >>> ids = torch.tensor([[2, 9, 7]])
    >>> masked = mask_tokens(ids, torch.ones(1, 3), torch.zeros(1, 3, 3), TextEncoderConfig(), 10, 0.15)
    >>> masked.input_ids.tolist(), masked.words.tolist()
    ([[2, 4, 4]], [9, 7])
    """
    chance, fate, other = noise[:, : input_ids.shape[1]].unbind(2)
    special = (input_ids == config.cls_id) | (input_ids == config.sep_id) | (input_ids == config.pad_id)
    chance = chance.masked_fill(special | (attention_mask == 0), 2.0)
    least = chance.min()
    chosen = (chance < rate) | ((chance == least) & (least >= rate) & (least < 2))
    word = (other * vocabulary).long().clamp_max(vocabulary - 1)
    hidden = torch.where(fate < _MASKED, config.mask_id, torch.where(fate < _REPLACED, word, input_ids))
    rows, columns = chosen.nonzero(as_tuple=True)
    return Masked(torch.where(chosen, hidden, input_ids), rows, columns, input_ids[rows, columns])


def masked_batch(
    batch: Batch, progress: Progress, config: TextEncoderConfig, vocabulary: int, rate: float, *, stream: int
) -> Masked:
    """:func:`mask_tokens` of a training batch by chance that is a function of seed, epoch and sample.

    Args:
        batch: with ``input_ids`` and ``attention_mask`` (B, L), ``index`` (B,) and ``epoch``.
        progress: of the run.
        config, vocabulary, rate: as of :func:`mask_tokens`.
        stream: see :func:`mc_core.random.uniform`.
    """
    ids = batch["input_ids"]
    noise = uniform(progress.run_seed, int(batch["epoch"]), batch["index"], DRAWS * ids.shape[1], stream=stream)
    return mask_tokens(ids, batch["attention_mask"], noise.unflatten(1, (-1, DRAWS)), config, vocabulary, rate)
