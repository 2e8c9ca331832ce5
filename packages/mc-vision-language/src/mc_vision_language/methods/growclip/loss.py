"""The objective of GrowCLIP, which is CLIP's (Radford et al. 2021, arXiv:2103.00020), with several positives::

    S = s · U Vᵀ                                            s = exp(logit_scale)
    L = ½ [ CE( S, T ) + CE( Sᵀ, T ) ]                      mean over rows; gradient to both sides and to s
    T = [same picture or same words] / number of those      the diagonal where all pairs differ; ours

Legend: B pairs of this process, G of all, d width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mc_core.distributed import gather_rows, gather_rows_with_grad, own_rows
from mc_core.paired_losses import same_thing, shared_targets, soft_cross_entropy

SCALES = (0.0, math.log(100))
"""Between which log s is kept."""


def pair_loss(image: Tensor, text: Tensor, logit_scale: Tensor, same: Tensor | None = None) -> Tensor:
    """Scalar L over the pairs of all processes, this one's rows against everyone's.

    The mean over processes, which DistributedDataParallel takes, has the gradient of the whole batch in one process.

    Args:
        image: (B, d) unit rows.
        text: (B, d) unit rows.
        logit_scale: scalar log s.
        same: (B, G) bool, true at least at each pair's own place; None: there alone.

    >>> rows = torch.eye(4)
    >>> round(float(pair_loss(rows, rows.flip(0), torch.tensor(-30.0))), 4)  # s → 0: log 4
    1.3863
    """
    image, text = (rows.float() if rows.dtype.itemsize < 4 else rows for rows in (image, text))
    with torch.autocast(image.device.type, enabled=False):
        scale = logit_scale.to(image.dtype).exp()
        of_images = scale * image @ gather_rows_with_grad(text).T
        of_texts = scale * text @ gather_rows_with_grad(image).T
        if same is None:
            targets = torch.zeros_like(of_images)
            targets[:, own_rows(len(image))].fill_diagonal_(1)
        else:
            targets = shared_targets(same, of_images.dtype)
        return 0.5 * (soft_cross_entropy(of_images, targets).mean() + soft_cross_entropy(of_texts, targets).mean())


def same_pairs(image_ids: Tensor, text_ids: Tensor) -> Tensor:
    """(B, G) bool: this process's pairs, and all that show the same picture or say the same.

    >>> same_pairs(torch.tensor([1, 2]), torch.tensor([5, 5]))
    tensor([[True, True],
            [True, True]])
    """
    return same_thing([image_ids, text_ids], [gather_rows(image_ids), gather_rows(text_ids)])
