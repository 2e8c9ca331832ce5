"""The losses of MSD and of what it is compared with: pure functions of unit rows.

With u, v the trained encoders' rows of images and texts, G_I, G_T the teacher's rows of all N pairs (and a queue), κ = 1/τ, and
κ̄ the same without gradient::

    Y_ij   = [study or text of i is that of j] / number of those
    Q^I_i  = α softmax_j( κ̄ G_I,i·G_T,j ) + (1 − α) Y_i          Q^T_i = α softmax_j( κ̄ G_T,i·G_I,j ) + (1 − α) Y_i
    ℓ^I_i  = − Σ_j Q^I_ij log softmax_j( κ u_i·G_T,j )           ℓ^T_i = − Σ_j Q^T_ij log softmax_j( κ v_i·G_I,j )
    L_R    = 1/(2N) Σ_{i in R} ( ℓ^I_i + ℓ^T_i )

Keys and targets are constants, so the gradients of L_R over micro-batches R add up to that of the whole batch.

Legend: b pairs of a micro-batch, N keys of all (queue included), d width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mc_core.errors import DataError
from mc_core.paired_losses import distilled_targets, entropy, keyed_cross_entropy, soft_cross_entropy


class PairTargets(NamedTuple):
    """(b, N) targets of the images among the texts, and of the texts among the images; rows sum to 1."""

    image: Tensor
    text: Tensor


def pair_targets(
    same: Tensor, teacher: tuple[Tensor, Tensor] | None, keys: tuple[Tensor, Tensor], kappa: Tensor, alpha: float
) -> PairTargets:
    """Q^I and Q^T of some rows.

    Args:
        same: (b, N) bool, what is the same study or text.
        teacher: (b, d) rows of the teacher for these images and texts; None with α = 0.
        keys: (N, d) rows of the teacher for all images and all texts.
        kappa: scalar κ; no gradient goes into it.
        alpha: α in [0, 1).
    """
    if teacher is None or not alpha:
        hard = distilled_targets(same, None, 0.0).to(keys[0].dtype)
        return PairTargets(hard, hard)
    image, text = teacher
    image_keys, text_keys = keys
    kappa = kappa.detach()
    return PairTargets(
        distilled_targets(same, kappa * (image @ text_keys.T), alpha),
        distilled_targets(same, kappa * (text @ image_keys.T), alpha),
    )


def distillation_loss(
    image: Tensor,
    text: Tensor,
    keys: tuple[Tensor, Tensor],
    targets: PairTargets,
    kappa: Tensor,
    *,
    intra_modal: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(ℓ^I + ℓ^T)/2 of each pair of a micro-batch, and what of it is divergence.

    Gradient flows into ``image``, ``text`` and ``kappa``; keys and targets are constants.

    Args:
        image, text: (b, d) unit rows u and v.
        keys: (N, d) unit rows G_I and G_T.
        targets: Q^I and Q^T.
        kappa: scalar κ.
        intra_modal: weight β of images against G_I and texts against G_T, with the same targets (ours).

    Returns:
        (b,) losses, and (b,) losses less the entropy of their targets, which is the part that can be learnt.

    Raises:
        DataError: rows that do not fit.

    >>> import torch
    >>> rows = torch.full((4, 4), 0.5)  # collapsed: log 4 whatever the targets
    >>> targets = PairTargets(torch.eye(4), torch.eye(4))
    >>> distillation_loss(rows, rows, (rows, rows), targets, torch.tensor(10.0))[0]
    tensor([1.3863, 1.3863, 1.3863, 1.3863])
    """
    image_keys, text_keys = (part.detach() for part in keys)
    for name, part in (("text", text), ("targets", targets.image)):
        if len(part) != len(image):
            raise DataError(f"{len(part)} rows of {name} do not fit {len(image)} of images")
    loss = keyed_cross_entropy(image, text_keys, kappa, targets.image)
    loss = loss + keyed_cross_entropy(text, image_keys, kappa, targets.text)
    divergence = loss.detach() - entropy(targets.image) - entropy(targets.text)
    if intra_modal:
        within = keyed_cross_entropy(image, image_keys, kappa, targets.image)
        within = within + keyed_cross_entropy(text, text_keys, kappa, targets.text)
        loss = loss + intra_modal * within
    return loss / 2, divergence / 2


def in_batch_loss(
    image: Tensor, text: Tensor, all_image: Tensor, all_text: Tensor, targets: PairTargets, kappa: Tensor
) -> Tensor:
    """(b,) two-sided contrastive losses within a micro-batch: plain accumulation, or the true large batch where there is one.

    Gradient flows into all rows.

    Args:
        image, text: (b, d) unit rows of this process.
        all_image, all_text: (N, d) of all processes; in a single one the same again.
        targets: (b, N), without gradient.
        kappa: scalar κ.
    """
    loss = soft_cross_entropy(kappa * (image @ all_text.T), targets.image)
    return (loss + soft_cross_entropy(kappa * (text @ all_image.T), targets.text)) / 2
