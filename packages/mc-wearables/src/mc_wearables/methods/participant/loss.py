"""The loss of participant contrast: pure functions, in the order of its equations.

For one direction, with unit rows q of the student and k of its slow copy, τ the temperature and M_ij = 1 where i and j are
different people::

    a_ij = <q_i, k_j>/τ        b_ij = <q_i, q_j>/τ        c_ij = <k_i, k_j>/τ
    l1_i = −a_ii + log( Σ_j exp(a_ij) + Σ_j M_ij exp(b_ij) )          anchor: a row of the student
    l2_i = −a_ii + log( Σ_j exp(a_ji) + Σ_j M_ij exp(c_ij) )          anchor: a row of the copy
    NCE(q, k)   = ½ mean_i l1_i + ½ mean_i l2_i
    L(q, k)     = λ NCE(q, k) + γ ½ (KoLeo(q) + KoLeo(k))

KoLeo is :func:`mc_core.losses.koleo`. Without ``within_view`` the sums over b and c are left out. Ours is the mask on a, which
leaves out j ≠ i of the same person there too.

Legend: B rows of this process, G of all processes, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mc_core.errors import DataError
from mc_core.losses import koleo


def participant_nce(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float,
    ids: Tensor | None = None,
    within_view: bool = True,
    mask_across: bool = True,
    all_query: Tensor | None = None,
    all_key: Tensor | None = None,
    all_ids: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """NCE(q, k), symmetric in its arguments. All logits come from one matrix product, (2B × 2G), in float32 or float64.

    Args:
        query: (B, D) unit rows.
        key: (B, D) unit rows, row i the positive of query i. Receives gradient only if it requires it.
        temperature: τ > 0.
        ids: (B,) people; default: all different.
        within_view: whether the sums over b and c take part.
        mask_across: whether the other segments of a person are left out of the sums over a, too.
        all_query, all_key, all_ids: (G, D), (G, D), (G,) of all processes in the same order, where there are several. The
            mean over processes is then the loss of the whole batch.
        offset: where this process's rows begin among them.

    Returns:
        A scalar. log(2B − 1) where all rows are equal and all people different, log B without ``within_view``.

    Raises:
        DataError: shapes that do not fit.

    >>> rows = torch.full((4, 3), 3**-0.5)  # collapsed
    >>> participant_nce(rows, rows, temperature=0.04)  # log 7
    tensor(1.9459)
    """
    if query.ndim != 2 or query.shape != key.shape:
        raise DataError(f"query {tuple(query.shape)} and key {tuple(key.shape)} need one shape (batch, dim)")
    all_query = query if all_query is None else all_query
    all_key = key if all_key is None else all_key
    all_ids = ids if all_ids is None else all_ids
    rows, everyone = len(query), len(all_query)
    self_BG = torch.eye(rows, everyone, dtype=torch.bool, device=query.device).roll(offset, 1)
    same_BG = self_BG if ids is None or all_ids is None else ids[:, None] == all_ids[None, :]
    across_BG = same_BG & ~self_BG if mask_across else torch.zeros_like(same_BG)
    within_BG = same_BG if within_view else torch.ones_like(same_BG)
    left_out_2B2G = torch.stack([within_BG, across_BG, across_BG, within_BG]).view(2, 2, rows, everyone).transpose(1, 2)

    with torch.autocast(query.device.type, enabled=False):
        dtype = torch.promote_types(query.dtype, torch.float32)
        anchors_2BD = torch.cat([query, key]).to(dtype) / temperature
        others_2GD = torch.cat([all_query, all_key]).to(dtype)
        logits_2B2G = (anchors_2BD @ others_2GD.T).view(2, rows, 2, everyone)  # in blocks: b a, aᵀ c
        positive_B = logits_2B2G[0, :, 1].diagonal(offset)
        kept_2BN = logits_2B2G.masked_fill(left_out_2B2G, -torch.inf).flatten(2)
        return (kept_2BN.logsumexp(2) - positive_B).mean()


def direction_loss(
    contrast: Tensor, query: Tensor, key: Tensor, *, contrast_weight: float = 1.0, koleo_weight: float = 0.1
) -> tuple[Tensor, Tensor]:
    """L(q, k) of one direction, and its mean KoLeo term for the log.

    Where ``key`` takes no gradient, half of the KoLeo terms are a constant: the student feels γ/2 of its own.

    Args:
        contrast: NCE(q, k), or BYOL's regression.
        query, key: (G, D) unit rows of the whole batch.
        contrast_weight: λ.
        koleo_weight: γ.
    """
    spread = 0.5 * (koleo(query) + koleo(key))
    return contrast_weight * contrast + koleo_weight * spread, spread.detach()


def byol_regression(prediction: Tensor, key: Tensor) -> Tensor:
    """BYOL's squared distance of unit rows, 2 − 2·mean_i <p_i, k_i>; Grill et al. 2020 (arXiv:2006.07733), eq. 2.

    >>> byol_regression(torch.eye(2), torch.eye(2).flip(0))
    tensor(2.)
    """
    return 2 - 2 * (prediction * key).sum(1).mean()
