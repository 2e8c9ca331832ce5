"""The loss of ESimCSE: a pure function.

With h_i the embedding of a sentence, h_i⁺ that of its repeated self, q_m ∈ Q the keys of earlier sentences, τ the temperature
and sim the cosine (equation 7)::

    l_i = −log  exp(sim(h_i, h_i⁺)/τ) / ( Σ_j exp(sim(h_i, h_j⁺)/τ) + Σ_m exp(sim(h_i, q_m)/τ) )

One direction only: the sentence is the anchor. Without a queue this is SimCSE (Gao et al. 2021, arXiv:2104.08821, equation 4).

Legend: B sentences of this process, G of all processes, M keys in the queue, D width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from mc_core.losses import Reduction, info_nce


def unit(features: Tensor) -> Tensor:
    """Rows divided by max(‖row‖₂, 1e-12), in at least float32; the cosine of two rows is then their product."""
    return normalize(features.float() if features.dtype.itemsize < 4 else features, dim=1)


def esimcse_loss(
    anchor: Tensor,
    positive: Tensor,
    queue: Tensor | None = None,
    *,
    temperature: float = 0.05,
    ids: Tensor | None = None,
    positive_ids: Tensor | None = None,
    queue_ids: Tensor | None = None,
    offset: int = 0,
    reduction: Reduction = "mean",
) -> Tensor:
    """−log of the share that the positive has among all candidates, in the mean over anchors.

    All rows are unit vectors, made so by the caller (:func:`unit`). Gradient flows into the anchors and into every positive.

    Args:
        anchor: (B, D), the sentences h.
        positive: (G, D), their repeated selves h⁺; the positive of anchor i is row ``i + offset``.
        queue: (M, D), also with M = 0: keys of earlier steps, constants.
        temperature: τ > 0.
        ids: (B,) int64, what counts as the same sentence. A positive of another row, or a key in the queue, with the id of
            the anchor is no negative (ours: neither the paper nor the released code leaves them out).
        positive_ids: (G,), needed beside ``ids`` where G is not B.
        queue_ids: (M,), ids of the queue; without, none of its rows is left out.
        offset: where the rows of these anchors begin among the positives of all processes.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for (B,) values l_i.

    Returns:
        A scalar: log(B + M) where all rows are equal, log(1 + (B − 1)·e^(−1/τ)) for orthonormal rows without a queue.

    Raises:
        DataError, ConfigError: as :func:`mc_core.losses.info_nce`.

    Source: Wu et al. 2021 (ESimCSE, arXiv:2109.04380), equation 7.

    >>> import torch
    >>> rows = torch.full((4, 9), 1 / 3)  # collapsed
    >>> esimcse_loss(rows, rows, rows[:2])  # log 6
    tensor(1.7918)
    """
    return info_nce(
        anchor,
        positive,
        None if queue is None else queue.detach(),
        temperature=temperature,
        in_batch=True,
        reduction=reduction,
        query_ids=ids,
        key_ids=positive_ids,
        negative_ids=queue_ids if ids is not None else None,
        positive_offset=offset,
    )
