"""The soft data augmentations of CoCoSoDa, on the device, from the classes of tokens.

Four of them, each on a share p of the eligible positions (Shi et al. 2023, arXiv:2204.03293, section III-C)::

    name                                   eligible                       becomes
    DM    dynamic masking                  all content tokens             <mask>
    DR    dynamic replacement              all content tokens             the token of its class
    DRST  replacement of one class         tokens of one class T          the token of T
    DMST  masking of one class             tokens of one class T          <mask>

Choices of ours, where the paper says nothing: T is drawn for each sample from the classes of which it has two tokens or more; where
there is none, DRST and DMST work on all content tokens. Each sample with an eligible token has at least one of them changed, so no
augmentation is ever the identity.

Legend: B samples, L tokens of the longest, T classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mc_core.random import BatchRandom, derive_seed
from mc_text_code.methods.cocosoda.config import ALL_KINDS, SoftKind
from mc_text_code.source.token_classes import CLASS_IDS, TOKEN_CLASSES

_PLACES, _TYPE, _KIND, _NAMES, _STEP = 0x401, 0x402, 0x403, 0x404, 0x405  # streams of random numbers
_FEWEST_OF_A_TYPE = 2


def soft_augment(
    input_ids: Tensor,
    type_ids: Tensor,
    kinds: Tensor,
    random: BatchRandom,
    replacements: Tensor,
    *,
    rate: float = 0.15,
    stream: int = 0,
) -> Tensor:
    """Some tokens of each sample replaced, by the kind drawn for it.

    Args:
        input_ids: (B, L) int64.
        type_ids: (B, L) integers, the class of each token from 1; 0 is never touched.
        kinds: (B,) int64, 0 DM, 1 DR, 2 DRST, 3 DMST.
        random: of the batch; the same draws give the same result whatever else is in the batch.
        replacements: (13,) int64, the ids of the mask token and of the tokens of the twelve classes.
        rate: p.
        stream: tells apart several uses for the same samples.

    Returns:
        (B, L) int64.

    >>> ids, types = torch.tensor([[5, 6, 7, 2]]), torch.tensor([[2, 2, 1, 0]])
    >>> random = BatchRandom(0, 0, torch.tensor([3]))
    >>> soft_augment(ids, types, torch.tensor([2]), random, torch.arange(100, 113), rate=0.99)  # of class 2 alone
    tensor([[102, 102,   7,   2]])
    """
    L = input_ids.shape[1]
    types_BL = type_ids.long()
    typed_B = kinds >= 2
    chosen_B, known_B = _chosen_type(types_BL, random, stream)
    eligible_BL = types_BL > 0
    eligible_BL = eligible_BL & (~(typed_B & known_B)[:, None] | (types_BL == chosen_B[:, None]))
    u_BL = random.uniform(L, stream=_PLACES + (stream << 8)).masked_fill(~eligible_BL, 2.0)
    least_B1 = u_BL.argmin(1, keepdim=True)
    changed_BL = (u_BL < rate).scatter(1, least_B1, u_BL.gather(1, least_B1) < 1)
    by_type_B = (kinds == 1) | (kinds == 2)
    value_BL = replacements[types_BL * by_type_B[:, None]]
    return torch.where(changed_BL, value_BL, input_ids)


def _chosen_type(types_BL: Tensor, random: BatchRandom, stream: int) -> tuple[Tensor, Tensor]:
    """(B,) a class of which there are enough tokens, and (B,) whether there is one."""
    B, count = len(types_BL), len(TOKEN_CLASSES) + 1
    counts_BT = torch.zeros(B, count, dtype=torch.int32, device=types_BL.device)
    counts_BT.scatter_add_(1, types_BL, torch.ones_like(types_BL, dtype=torch.int32))
    counts_BT[:, 0] = 0
    enough_BT = counts_BT >= _FEWEST_OF_A_TYPE
    u_BT = random.uniform(count, stream=_TYPE + (stream << 8)).masked_fill(~enough_BT, -1.0)
    return u_BT.argmax(1), enough_BT.any(1)


def draw_kinds(kinds: tuple[SoftKind, ...], random: BatchRandom, *, step: int | None = None) -> Tensor:
    """(B,) int64, the kind of each sample.

    Args:
        kinds: to draw from.
        random: of the batch.
        step: draw one kind for all samples of this optimizer step; None draws one for each.
    """
    numbers = torch.tensor([ALL_KINDS.index(kind) for kind in kinds], device=random.index.device)
    if step is not None:
        return numbers[derive_seed(random.seed, step, _STEP) % len(kinds)].expand(len(random.index))
    u_B = random.uniform(1, stream=_KIND)[:, 0]
    return numbers[(u_B * len(kinds)).long().clamp_(max=len(kinds) - 1)]


def hide_names(input_ids: Tensor, own_name: Tensor, random: BatchRandom, replacements: Tensor, share: float) -> Tensor:
    """The function's own name replaced, piece by piece, by the token of identifiers, in a share of the samples.

    Args:
        input_ids: (B, L) int64.
        own_name: (B, L) bool, the tokens of the name.
        random: of the batch.
        replacements: (13,) as in :func:`soft_augment`.
        share: of the samples, in [0, 1].
    """
    hidden_B = random.uniform(1, stream=_NAMES)[:, 0] < share
    return torch.where(own_name & hidden_B[:, None], replacements[CLASS_IDS["identifier"]], input_ids)
