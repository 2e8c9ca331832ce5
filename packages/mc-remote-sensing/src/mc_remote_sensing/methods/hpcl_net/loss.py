"""The loss of HPCL-Net: pure functions.

For an anchor q of class c with P the keys of its class (the slow copy's embedding of its own cell among them) and N those of the
other class, s = q·k/τ::

    L_a = (1/|P|) Σ_p −log[ e^{s_p} / (e^{s_p} + Σ_n e^{s_n}) ] = (1/|P|) Σ_p softplus(S − s_p),     S = logsumexp_n s_n

Other positives are not in the denominator, as in the closest public code (tfzhou/ContrastiveSeg). The paper's own formula could not
be read. Gradients: ∂L_a/∂s_p = −σ(S − s_p)/|P| and ∂L_a/∂s_n = softmax_n(s) · mean_p σ(S − s_p). Keys are constants.

Legend: A anchors, P keys of their class, N keys of the other class, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mc_core.errors import DataError


@dataclass(frozen=True)
class Anchors:
    """Anchors of one class.

    Attributes:
        query: (A, D) unit rows; only they receive gradient.
        own: (A, D) unit rows, the keys of the same cells.
        own_counts: (A,) bool, whether the own key has to be counted: not where it is among the keys already.
        valid: (A,) bool, which rows are anchors.
    """

    query: Tensor
    own: Tensor
    own_counts: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Keys:
    """Keys of one class, from the batch and the queue.

    Attributes:
        features: (P, D) unit rows, constants.
        valid: (P,) bool, which rows are keys.
    """

    features: Tensor
    valid: Tensor


def hyper_pixel_terms(
    anchors: Anchors,
    positives: Keys,
    negatives: Keys,
    *,
    temperature: float,
    positives_are: Literal["class", "self"] = "class",
) -> tuple[Tensor, Tensor]:
    """L_a of each anchor of one class, and which of them count: anchors with a key of either class.

    Args:
        anchors: of class c.
        positives: keys of class c. Not used with ``positives_are="self"``, where the own key is the only positive.
        negatives: keys of the other class.
        temperature: τ > 0.

    Returns:
        (A,) terms, 0 where they do not count, and (A,) bool.

    Raises:
        DataError: rows of different widths.

    >>> one = torch.ones(1, dtype=torch.bool)
    >>> q = torch.tensor([[1.0, 0.0]])
    >>> k = torch.tensor([[0.0, 1.0]])
    >>> terms, counts = hyper_pixel_terms(Anchors(q, k, ~one, one), Keys(k, one), Keys(k, one), temperature=0.1)
    >>> terms  # all similarities equal, one negative: log 2
    tensor([0.6931])
    """
    widths = {part.shape[1] for part in (anchors.query, anchors.own, positives.features, negatives.features)}
    if len(widths) != 1:
        raise DataError(f"anchors and keys have widths {', '.join(map(str, sorted(widths)))}; all must have one")
    with torch.autocast(anchors.query.device.type, enabled=False):
        dtype = torch.promote_types(anchors.query.dtype, torch.float32)
        query_AD = anchors.query.to(dtype) / temperature
        total_A = _logsumexp(query_AD, negatives)
        own_A = softplus(total_A - (query_AD * anchors.own.detach()).sum(1))
        counts_A = anchors.valid & negatives.valid.any()
        if positives_are == "self":
            terms_A = own_A
        else:
            similarity_AP = query_AD @ positives.features.detach().to(dtype).T
            summed_A = softplus(total_A[:, None] - similarity_AP) @ positives.valid.to(dtype)
            number_A = positives.valid.sum() + anchors.own_counts
            terms_A = (summed_A + own_A.masked_fill(~anchors.own_counts, 0.0)) / number_A.clamp(min=1)
            counts_A = counts_A & (number_A > 0)
        return torch.where(counts_A, terms_A, 0.0), counts_A


def _logsumexp(query_AD: Tensor, keys: Keys) -> Tensor:
    """(A,) of the products with valid keys; very low, but finite, where there is none: its gradient is then no 0 · ∞."""
    lowest = torch.finfo(query_AD.dtype).min / 4
    if not len(keys.valid):
        return query_AD.sum(1) * 0 + lowest
    masked_N = torch.zeros_like(keys.valid, dtype=query_AD.dtype).masked_fill(~keys.valid, lowest)
    return torch.addmm(masked_N, query_AD, keys.features.detach().to(query_AD.dtype).T).logsumexp(1)


def hyper_pixel_contrast(
    anchors: Sequence[Anchors],
    keys: Sequence[Keys],
    *,
    temperature: float,
    positives: Literal["class", "self"] = "class",
    count: Tensor | None = None,
) -> Tensor:
    """L_hp: the mean of L_a over the anchors of both classes that have a positive and a negative.

    Args:
        anchors: of class 0 and of class 1.
        keys: of class 0 and of class 1.
        temperature: τ > 0.
        positives: ``"class"``: all keys of the class; ``"self"``: the own key alone.
        count: divide by this instead of the number of anchors that count, where they are part of a larger batch.

    Returns:
        A scalar; 0, still part of the graph, where no anchor counts.
    """
    sums, numbers = [], []
    for of_class in (0, 1):
        terms, counts = hyper_pixel_terms(
            anchors[of_class],
            keys[of_class],
            keys[1 - of_class],
            temperature=temperature,
            positives_are=positives,
        )
        sums.append(terms.sum())
        numbers.append(counts.sum())
    total = torch.stack(numbers).sum() if count is None else count
    return torch.stack(sums).sum() / total.clamp(min=1)
