"""The objectives of Astrea as pure functions. The abstract (arXiv:2503.09445) names momentum contrast, pre-alignment by contrast
and a balanced load; the formulas are this project's choice, those of balance after V-MoE and Switch::

    T_ij   = [same thing] / number of those                                       over C = [keys of the step ; queue]
    L_mc   = −½ mean_i Σ_j ( T_ij log softmax_j( s v_i·C_t,j ) + T_ij log softmax_j( s t_i·C_v,j ) )
    L_pre  = sym( v^(k), t ) + λ_x sym( v^(k), sg n( mean_{j<k} v^(j) ) )          sym: contrast within the batch, both ways
    L_bal  = E Σ_k f_k p̄_k                                1 at uniform, E where all goes to one; gradient through p̄ alone
    L_imp  = ( std_k Σ p / mean_k Σ p )²                   std with 1/E
    L_z    = mean ( logsumexp_k ℓ )²                       (ln E)² at zero logits

Legend: B pairs of this process, N keys of the step of all processes, K keys of a queue, e width of the shared space, E experts, R
rows that are routed (tokens or pictures).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mc_core.paired_losses import distilled_targets, shared_targets
from mc_vision_language.backbone import unit
from mc_vision_language.methods.growclip.loss import pair_loss

SCALES = (0.0, math.log(100))
"""Between which log s is kept."""


def contrast_logits(query: Tensor, keys: Tensor, queue: Tensor | None, scale: Tensor) -> Tensor:
    """(B, N + K) logits s q·c, those of the keys first.

    Args:
        query: (B, e) unit rows.
        keys: (N, e) unit rows, those of the step.
        queue: (K, e) unit rows of earlier steps, or None.
        scale: scalar s.
    """
    cosines = query @ keys.to(query.dtype).T
    if queue is not None:
        # the products are joined, not the keys: a long queue is not copied
        cosines = torch.cat([cosines, query @ queue.to(query.dtype).T], dim=1)
    return scale * cosines


def contrast(logits: Tensor, same: Tensor, teacher_logits: Tensor | None = None, soft: float = 0.0) -> Tensor:
    """Scalar: L_mc of one direction without its ½, or of several directions one after the other, their mean.

    Args:
        logits: (B, N + K), or (D, B, N + K) of D directions.
        same: (B, N + K) bool, what is no negative, in all directions; at least one true in each row.
        teacher_logits: as ``logits``, of the keys' own encoder, without gradient; for ``soft`` above 0.
        soft: share of the targets that is their softmax, as in ALBEF.

    >>> contrast(torch.zeros(2, 4), torch.eye(2, 4, dtype=torch.bool))  # log 4
    tensor(1.3863)
    """
    if teacher_logits is None:
        targets = shared_targets(same, logits.dtype)
    else:
        targets = distilled_targets(same.expand(logits.shape), teacher_logits.to(logits.dtype), soft)
    return -(targets * logits.log_softmax(-1)).sum(-1).mean()


def prealign_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    before: Sequence[Tensor] = (),
    *,
    cross: float = 0.5,
    same: Tensor | None = None,
) -> Tensor:
    """Scalar L_pre of one expert.

    Args:
        image: (B, e) unit rows v^(k).
        text: (B, e) unit rows t.
        logit_scale: scalar log s.
        before: (B, e) unit rows v^(j) of the experts that have joined, j < k; no gradient reaches them.
        cross: λ_x; of no effect for the first expert.
        same: (B, G) bool, what is no negative among the pairs of all processes; None: all pairs differ.

    >>> rows = torch.eye(4)
    >>> round(float(prealign_loss(rows, rows.flip(0), torch.tensor(-30.0), [rows])), 4)  # s → 0: 1.5 log 4
    2.0794
    """
    loss = pair_loss(image, text, logit_scale, same)
    if not before or not cross:
        return loss
    target = unit(torch.stack([rows.detach() for rows in before]).mean(0))
    return loss + cross * pair_loss(image, target, logit_scale, same)


def load_shares(selected: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(E,) f: how often each expert is selected, of all selections; sums to 1, without gradient.

    Args:
        selected: (…, E) bool.
        dtype: of the result.

    >>> load_shares(torch.tensor([[True, False], [True, True]]))
    tensor([0.6667, 0.3333])
    """
    count = selected.flatten(0, -2).sum(0).to(dtype)
    return count / count.sum()


def balance_loss(probabilities: Tensor, selected: Tensor) -> Tensor:
    """Scalar L_bal; gradient through p̄ alone.

    Args:
        probabilities: (…, E) p, rows that sum to 1.
        selected: (…, E) bool, the top-k of each row; of dense weights the largest.

    >>> collapsed = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    >>> balance_loss(collapsed, collapsed.bool()), balance_loss(torch.full((1, 4), 0.25), torch.ones(1, 4).bool())
    (tensor(4.), tensor(1.))
    """
    experts = probabilities.shape[-1]
    mean = probabilities.flatten(0, -2).mean(0)
    return experts * (load_shares(selected, mean.dtype) * mean).sum()


def importance_loss(probabilities: Tensor) -> Tensor:
    """Scalar L_imp: squared coefficient of variation of the experts' summed probabilities, std with 1/E.

    Args:
        probabilities: (…, E).

    >>> round(float(importance_loss(torch.tensor([[3.0, 1.0, 1.0, 1.0]]))), 4)
    0.3333
    """
    total = probabilities.flatten(0, -2).sum(0)
    return total.var(correction=0) / total.mean().square()


def z_loss(logits: Tensor) -> Tensor:
    """Scalar L_z.

    Args:
        logits: (…, E) ℓ.

    >>> round(float(z_loss(torch.zeros(3, 4))), 3)  # (ln 4)²
    1.922
    """
    return logits.logsumexp(-1).square().mean()


def normalised_entropy(weights: Tensor) -> Tensor:
    """Scalar H(w̄) / ln E of the mean weights, 1 where all experts count alike; without gradient.

    Args:
        weights: (…, E) rows that sum to 1.

    >>> normalised_entropy(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(1.)
    """
    mean = weights.detach().flatten(0, -2).mean(0)
    return -torch.special.xlogy(mean, mean).sum() / math.log(max(len(mean), 2))
