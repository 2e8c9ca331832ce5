"""Topology preservation of CTP (Zhu et al. 2023, arXiv:2308.07146) as a pure function::

    P(S)_i = softmax_j( S_ij )            S: cosines over τ of rows of this process with those of all; own columns left out or not
    L(S)   = KL( P(S of the old model) ‖ P(S) )        mean over local rows

With rows and columns of different kinds (images against texts) it is cross-modal, of one kind same-modal. It looks at cosines
alone: turning all features of a model together changes nothing.

Legend: B rows of this process, G of all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mc_vision_language.continual.loss import divergence

_LEFT_OUT = -1e30  # before the softmax: exactly nothing after it; finite, so that a row with nothing left stays finite


def without(logits: Tensor, left_out: Tensor) -> Tensor:
    """(B, G) logits of which some columns take no part.

    Args:
        logits: (B, G), in at least float32.
        left_out: (B, G) bool.
    """
    return logits.masked_fill(left_out, _LEFT_OUT)


def own_columns(rows: int, columns: int, first: int, device: torch.device | None = None) -> Tensor:
    """(B, G) bool: the similarity of a row with itself.

    >>> own_columns(1, 3, 1)
    tensor([[False,  True, False]])
    """
    at = torch.arange(first, first + rows, device=device)
    return at[:, None] == torch.arange(columns, device=device)


def topology(old_logits: Tensor, logits: Tensor) -> Tensor:
    """Scalar KL of the old model's distributions over columns from the present ones, mean over rows; 0 where they agree.

    Args:
        old_logits: (B, G) cosines over τ, a constant.
        logits: (B, G) the same of the model in training.

    >>> topology(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    tensor(0.)
    >>> topology(torch.zeros(1, 2), torch.tensor([[0.0, 2.0]]))  # log cosh 1
    tensor(0.4338)
    """
    return divergence(old_logits, logits)
