"""Losses of a few rows against the keys of a whole step, with soft targets and several positives.

With u a query, k_j the N keys it is contrasted with, κ = 1/τ, and Q a row of targets that sums to 1::

    ℓ(u, Q) = − Σ_j Q_j log softmax_j( κ u·k_j )                       (:func:`soft_cross_entropy`)
    Y_j     = [same thing as k_j] / number of those                    (:func:`shared_targets`)
    Q       = α softmax_j( κ g·k_j ) + (1 − α) Y                        (:func:`distilled_targets`), g a teacher's query

Only (b, N) numbers are held for b queries. All are pure functions and normalise nothing.

Source of momentum distillation: ALBEF (Li et al. 2021, arXiv:2107.07651), eq. 6. Several positives in place of one: ours.

Legend: b queries, N keys, D dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mc_core.distributed import gather_rows, sum_own_rows
from mc_core.errors import DataError


def same_thing(ids: Sequence[Tensor], key_ids: Sequence[Tensor]) -> Tensor:
    """(b, N) bool: queries and keys that agree in any of several ids, such as study and text.

    Args:
        ids: (b,) int64 each.
        key_ids: (N,) int64 each, as many.

    Raises:
        DataError: another number of ids.

    >>> same_thing([torch.tensor([1]), torch.tensor([7])], [torch.tensor([1, 2, 3]), torch.tensor([8, 7, 9])])
    tensor([[ True,  True, False]])
    """
    if len(ids) != len(key_ids) or not ids:
        raise DataError(f"{len(ids)} ids for the queries and {len(key_ids)} for the keys: give as many, at least one")
    same = ids[0][:, None] == key_ids[0]
    for ours, theirs in zip(ids[1:], key_ids[1:], strict=True):
        same |= ours[:, None] == theirs
    return same


def shared_targets(same: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(…, N) rows that sum to 1, in equal shares for whatever is the same thing.

    Args:
        same: (…, N) bool with at least one true in each row.
        dtype: of the result.

    >>> shared_targets(torch.tensor([[True, False, True]]))
    tensor([[0.5000, 0.0000, 0.5000]])
    """
    share = same.to(dtype)
    return share / share.sum(-1, keepdim=True)


def distilled_targets(same: Tensor, teacher_logits: Tensor | None, alpha: float) -> Tensor:
    """Q of the module's text: (…, N) rows that sum to 1, without gradient.

    Args:
        same: (…, N) bool.
        teacher_logits: (…, N), at the student's κ; None with α = 0. Gives the dtype.
        alpha: α in [0, 1].

    >>> distilled_targets(torch.tensor([[True, False]]), torch.zeros(1, 2), 0.5)
    tensor([[0.7500, 0.2500]])
    """
    if teacher_logits is None or not alpha:
        return shared_targets(same, torch.float32 if teacher_logits is None else teacher_logits.dtype)
    hard = shared_targets(same, teacher_logits.dtype)
    return hard.lerp_(teacher_logits.detach().softmax(-1), alpha)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(b,) cross-entropies of logits (b, N) with targets (b, N).

    >>> soft_cross_entropy(torch.zeros(1, 4), torch.tensor([[0.5, 0.5, 0.0, 0.0]]))  # log 4, whatever the targets
    tensor([1.3863])
    """
    return -(targets * logits.log_softmax(1)).sum(1)


def keyed_cross_entropy(query: Tensor, keys: Tensor, scale: Tensor, targets: Tensor) -> Tensor:
    """``soft_cross_entropy(scale · query @ keys.T, targets)``, of which only (b, D) numbers are kept for the backward pass.

    Gradient flows into ``query`` and ``scale``; keys and targets are constants. Differentiable once.

    Args:
        query: (b, D).
        keys: (N, D), of the same dtype.
        scale: scalar κ.
        targets: (b, N).

    Returns:
        (b,) losses.

    >>> rows = torch.full((2, 4), 0.5)
    >>> keyed_cross_entropy(rows, rows, torch.tensor(3.0), torch.eye(2))
    tensor([0.6931, 0.6931])
    """
    return cast(Tensor, _KeyedCrossEntropy.apply(query, keys, scale, targets))


class _KeyedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_bD: Tensor, keys_ND: Tensor, scale: Tensor, targets_bN: Tensor) -> Tensor:
        with torch.autocast(query_bD.device.type, enabled=False):
            cosine_bN = query_bD @ keys_ND.T
            log_p_bN = (scale * cosine_bN).log_softmax(1)
            loss_b = -(targets_bN * log_p_bN).sum(1)
            delta_bN = log_p_bN.exp_().mul_(targets_bN.sum(1, keepdim=True)).sub_(targets_bN)
            ctx.save_for_backward(scale * (delta_bN @ keys_ND), (delta_bN * cosine_bN).sum(1))
        return loss_b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_b: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        at_query_bD, at_scale_b = ctx.saved_tensors
        return at_query_bD * grad_b[:, None], None, (at_scale_b * grad_b).sum(), None


def entropy(targets: Tensor) -> Tensor:
    """(b,) entropies H(Q): the least that :func:`soft_cross_entropy` can be, so that the difference is a divergence."""
    return -torch.special.xlogy(targets, targets).sum(1)


class TwoSided(NamedTuple):
    """A two-sided loss and its gradients, all without graph.

    Attributes:
        loss: scalar, of this process's rows.
        left, right: (n, D) gradients at the rows.
        scale: scalar gradient at κ.
    """

    loss: Tensor
    left: Tensor
    right: Tensor
    scale: Tensor


Targets = Callable[[slice, bool], Tensor]
"""(rows, whether those of the right side) → (b, N) targets that sum to 1."""


@torch.no_grad()
def two_sided_gradients(left: Tensor, right: Tensor, scale: Tensor, targets: Targets, *, rows: int) -> TwoSided:
    """The loss of pairs against all pairs, in both directions, and its gradients, some rows at a time.

    ``1/(2n) Σ_i [ ℓ(left_i against all right, Q) + ℓ(right_i against all left, Q) ]``; the gradient of a row counts where it is
    a key as well. Only (rows, N) numbers are held. With several processes the loss is that of this one's rows against all, and
    gradients are such that their mean over processes is that of the whole batch, as DistributedDataParallel takes it (collective).

    Args:
        left, right: (n, D) unit rows of this process; not in half precision.
        scale: scalar κ.
        targets: see :data:`Targets`; rows are counted among those of this process, keys among all.
        rows: at a time, at least 1.

    >>> z = torch.eye(3)
    >>> found = two_sided_gradients(z, z, torch.tensor(1.0), lambda rows, right: torch.eye(3)[rows], rows=2)
    >>> found.loss  # log(e + 2) − 1
    tensor(0.5514)
    """
    n = len(left)
    sides = ((left, gather_rows(right)), (right, gather_rows(left)))
    at_query = [torch.zeros_like(left), torch.zeros_like(right)]
    at_keys = [torch.zeros_like(keys) for _, keys in sides]
    loss, at_scale = torch.zeros_like(scale), torch.zeros_like(scale)
    with torch.autocast(left.device.type, enabled=False):
        for start in range(0, n, rows):
            part = slice(start, min(start + rows, n))
            for side, (query, keys) in enumerate(sides):
                cosine_bN = query[part] @ keys.T
                log_p_bN = (scale * cosine_bN).log_softmax(1)
                targets_bN = targets(part, bool(side))
                loss -= (targets_bN * log_p_bN).sum()
                delta_bN = log_p_bN.exp_().sub_(targets_bN).mul_(0.5 / n)
                at_scale += (delta_bN * cosine_bN).sum()
                delta_bN *= scale
                at_query[side][part] += delta_bN @ keys
                at_keys[side].addmm_(delta_bN.T, query[part])
    # the keys of the first side are the right rows, those of the second the left ones
    at_query[0] += sum_own_rows(at_keys[1])
    at_query[1] += sum_own_rows(at_keys[0])
    return TwoSided(loss * (0.5 / n), at_query[0], at_query[1], at_scale)
