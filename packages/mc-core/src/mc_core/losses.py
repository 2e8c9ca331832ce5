"""Contrastive, clustering and spreading losses: pure functions of tensors.

Everything contrastive is one quantity per anchor, with the positive's logit kept out of the sum::

    d_i = log Σ_j exp(<q_i, n_j>/τ) − <q_i, k_i>/τ          (:func:`anchor_terms`, :func:`two_view_terms`)

of which DCL is the mean of ``d`` (Yeh et al. 2022, arXiv:2110.06848), InfoNCE the mean of ``softplus(d)`` exactly, and
the share of DCL's gradient that InfoNCE lets through (the paper's NPC multiplier) ``sigmoid(d)``. A method that wants
several of these computes ``d`` once and passes it to :func:`info_nce_from_terms`, :func:`decoupled_from_terms`,
:func:`npc_multiplier`.

No function normalises its features; queries, keys and prototypes' scores are expected on the unit sphere, normalised by
the caller. Under autocast the matrix products run in its dtype and everything else in float32; float64 stays float64.

Ids (int64) say what counts as the same thing: an entry with the query's id is never a negative. An anchor left without
any negative has ``d = −inf``, loss 0 and zero gradient.

Legend: B anchors, M rows of key (B, or all ranks' together), K queue rows, D dim, G rows of all ranks, N logits, V
crops, I crops with assignments, P prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from mc_core._streaming import streamed_logsumexp
from mc_core.distributed import all_reduce_sum, gather_rows_with_grad, world_size
from mc_core.errors import ConfigError, DataError

Reduction = Literal["mean", "sum", "none"]

# Below this ε, exp((S − 1)/ε) can underflow for a whole row or column in float32.
_SINKHORN_SCALING_EPSILON = 0.03
_SINKHORN_BLOCK_ELEMENTS = 1 << 19  # 2 MiB of float32, which a core's caches hold
_KOLEO_CHUNK_ELEMENTS = 1 << 24


def anchor_terms(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor,
    in_batch: bool = False,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    positive_offset: int = 0,
) -> Tensor:
    """``d_i = log Σ exp(negative logits of anchor i) − positive logit of anchor i``, from which all else follows.

    Negatives are the rows of ``negatives`` (a queue, streamed in chunks: memory does not grow with it) and, with
    ``in_batch``, every other row of ``key``.

    Args:
        query: (B, D) unit vectors.
        key: (B, D), row i the positive of query i; with ``in_batch`` (M, D), M ≥ B, for example gathered over ranks,
            and the positive of query i is row ``i + positive_offset``. Receives gradient only if it requires it.
        negatives: (K, D), also with K = 0; used in place. Changing it before the backward pass raises a RuntimeError
            there: enqueue afterwards.
        temperature: τ > 0; a scalar tensor may require gradient.
        in_batch: also contrast with the other rows of ``key``.
        query_ids, key_ids, negative_ids: (B,), (M,), (K,) integers. ``key_ids`` may be left out where ``key`` has B
            rows (a pair has one id) and matters only with ``in_batch``; without ``negative_ids`` no row of the queue is
            left out.
        positive_offset: where this rank's rows begin in ``key``.

    Returns:
        (B,) in at least float32; −inf where no negative is left.

    Raises:
        DataError: shapes that do not fit. ConfigError: a temperature that is not positive, or ids without
            ``query_ids``.

    >>> q = torch.eye(3)[:2]
    >>> anchor_terms(q, q, torch.eye(3), temperature=1.0)  # log(e + 2) − 1
    tensor([0.5514, 0.5514])
    >>> anchor_terms(q, q, temperature=1.0, in_batch=True)  # one negative, orthogonal: 0 − 1
    tensor([-1., -1.])
    """
    _check_pairs(query, key, negatives, temperature, in_batch, positive_offset)
    key_ids = _check_ids(query, key, negatives, query_ids, key_ids, negative_ids, in_batch)
    dtype = _matmul_dtype(query)
    scaled_BD = _widen(query) / temperature
    parts = []
    if in_batch:
        parts.append(
            streamed_logsumexp(
                scaled_BD, key, query_ids=query_ids, key_ids=key_ids, diagonal=positive_offset, matmul_dtype=dtype
            )
        )
    if negatives is not None:
        known = None if negative_ids is None else query_ids
        parts.append(
            streamed_logsumexp(scaled_BD, negatives, query_ids=known, key_ids=negative_ids, matmul_dtype=dtype)
        )
    positive_B = (scaled_BD * key[positive_offset : positive_offset + len(query)]).sum(1)
    return _logaddexp(parts, like=positive_B) - positive_B


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.2,
    in_batch: bool = False,
    targets: Tensor | None = None,
    reduction: Reduction = "mean",
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    positive_offset: int = 0,
) -> Tensor:
    """InfoNCE: cross-entropy of picking the positive among all candidates.

    The logits of row i are, in this order, ``[q_i·k_i, q_i·n_1 … q_i·n_K]/τ``, or with ``in_batch``
    ``[q_i·k_1 … q_i·k_M, q_i·n_1 … q_i·n_K]/τ``, of which ``i + positive_offset`` is the positive. Without ``targets``
    no such matrix is built (see :func:`anchor_terms`, which also describes the other arguments).

    Args:
        targets: (B, N) soft labels over the logits in that order, each row summing to 1 (not checked); the loss is then
            ``−Σ_j t_j log softmax(logits)_j``, computed densely. What they put on an entry left out by its id is
            ignored.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``.

    Returns:
        A scalar, or (B,) with ``reduction="none"``.

    Raises:
        DataError, ConfigError: as :func:`anchor_terms`; DataError also for targets of another shape.

    Source: van den Oord et al. 2018 (arXiv:1807.03748); He et al. 2020 (MoCo, arXiv:1911.05722), eq. 1; soft labels as
    in ALBEF (Li et al. 2021, arXiv:2107.07651), eq. 6.

    >>> q = torch.eye(3)[:2]
    >>> info_nce(q, q, torch.eye(3)[2:], temperature=1.0)  # log(1 + e⁻¹)
    tensor(0.3133)
    """
    if targets is None:
        terms_B = anchor_terms(
            query,
            key,
            negatives,
            temperature=temperature,
            in_batch=in_batch,
            query_ids=query_ids,
            key_ids=key_ids,
            negative_ids=negative_ids,
            positive_offset=positive_offset,
        )
        return info_nce_from_terms(terms_B, reduction=reduction)
    _check_pairs(query, key, negatives, temperature, in_batch, positive_offset)
    key_ids = _check_ids(query, key, negatives, query_ids, key_ids, negative_ids, in_batch)
    logits_BN = _dense_logits(query, key, negatives, in_batch) / temperature
    if targets.shape != logits_BN.shape:
        raise DataError(
            f"targets have shape {tuple(targets.shape)}; these candidates have logits of shape {tuple(logits_BN.shape)}"
        )
    if query_ids is not None:
        same_BN = _same_thing(query, key, negatives, query_ids, key_ids, negative_ids, in_batch, positive_offset)
        logits_BN = logits_BN.masked_fill(same_BN, -torch.inf)
    log_p_BN = logits_BN.log_softmax(1)
    return _reduce(-(targets * log_p_BN.masked_fill(log_p_BN == -torch.inf, 0.0)).sum(1), reduction)


def decoupled_key_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor,
    sigma: float | None = None,
    detach_weight: bool = True,
    weight_min: float | None = None,
    in_batch: bool = False,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    positive_offset: int = 0,
    distributed: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """DCL or DCLW of queries against keys: with a queue (MoCo v1/v2 form) or in the batch (MoCo v3 and cross-modal
    form).

    ``−w_i <q_i, k_i>/τ + log Σ_j exp(<q_i, n_j>/τ)`` with ``w ≡ 1``, or the weights of :func:`dclw_weights` where
    ``sigma`` is given. Other arguments as :func:`anchor_terms`. Can be negative, and is unbounded below as τ → 0.

    Args:
        sigma: σ of the weights (the paper takes 0.5); None is DCL.
        detach_weight: no gradient through the weights.
        weight_min: lower bound of the weights, for example 0; None as published.
        distributed: take the mean in the weights over all ranks, when there are several.
        reduction: over the batch.

    Returns:
        A scalar, or (B,) with ``reduction="none"``. Anchors without a negative count as 0.

    Raises:
        DataError, ConfigError: as :func:`anchor_terms`; ConfigError also for ``sigma`` ≤ 0.

    Source: Yeh et al. 2022 (DCL, arXiv:2110.06848), eqs. 3 and 6 with a momentum encoder's keys.

    >>> q = torch.eye(3)[:2]
    >>> decoupled_key_nce(q, q, torch.eye(3)[2:], temperature=1.0)
    tensor(-1.)
    """
    terms_B = anchor_terms(
        query,
        key,
        negatives,
        temperature=temperature,
        in_batch=in_batch,
        query_ids=query_ids,
        key_ids=key_ids,
        negative_ids=negative_ids,
        positive_offset=positive_offset,
    )
    if sigma is None:
        return decoupled_from_terms(terms_B, reduction=reduction)
    similarity_B = (_widen(query) * key[positive_offset : positive_offset + len(query)]).sum(1)
    source_B = similarity_B.detach() if detach_weight else similarity_B
    everyone_G = gather_rows_with_grad(source_B) if distributed else None
    weights_B = dclw_weights(source_B, sigma, all_similarity=everyone_G, weight_min=weight_min)
    return decoupled_from_terms(terms_B, weights=weights_B, positive=similarity_B / temperature, reduction=reduction)


def two_view_terms(
    view_a: Tensor,
    view_b: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    ids: Tensor | None = None,
    all_a: Tensor | None = None,
    all_b: Tensor | None = None,
    all_ids: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """:func:`anchor_terms` of two views of a batch, each against both views of every *other* sample.

    Args:
        view_a, view_b: (B, D) unit vectors, row i of each the same sample. Both receive gradient.
        temperature: τ > 0.
        ids: (B,) integers; samples with the same id are not negatives of each other.
        all_a, all_b: (G, D), the views of all ranks in the same row order, gathered with gradient; the anchors are the
            local views. DDP's average of the ranks' mean losses is then the loss of the whole batch.
        all_ids: (G,), needed when ``ids`` and ``all_a`` are given.
        offset: where the local rows begin in ``all_a``.

    Returns:
        (2, B) in at least float32: anchors of ``view_a``, then of ``view_b``.

    Raises:
        DataError: shapes that do not fit, or a single sample, which has no negative. ConfigError: a temperature ≤ 0,
            one of ``all_a`` and ``all_b`` without the other, or ids for one side only.

    Source: Chen et al. 2020 (SimCLR, arXiv:2002.05709), eq. 1; Yeh et al. 2022 (DCL, arXiv:2110.06848), eq. 1.

    >>> pairs = torch.eye(2)
    >>> two_view_terms(pairs, pairs, temperature=1.0)  # log 2 − 1
    tensor([[-0.3069, -0.3069],
            [-0.3069, -0.3069]])
    """
    all_a, all_b, ids_B, all_ids_G = _check_views(view_a, view_b, temperature, ids, all_a, all_b, all_ids, offset)
    pairs_2BD = torch.cat([view_a, view_b])
    scaled_2BD = _widen(pairs_2BD) / temperature
    lse_2B = streamed_logsumexp(
        scaled_2BD,
        pairs_2BD if all_a is view_a else torch.cat([all_a, all_b]),
        query_ids=ids_B.repeat(2),
        key_ids=all_ids_G.repeat(2),
        matmul_dtype=_matmul_dtype(view_a),
    )
    positive_B = (scaled_2BD[: len(view_a)] * view_b).sum(1)
    return lse_2B.view(2, -1) - positive_B


def decoupled_info_nce(
    view_a: Tensor,
    view_b: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    sigma: float | None = None,
    detach_weight: bool = True,
    weight_min: float | None = None,
    ids: Tensor | None = None,
    all_a: Tensor | None = None,
    all_b: Tensor | None = None,
    all_ids: Tensor | None = None,
    offset: int = 0,
    reduction: Reduction = "mean",
) -> Tensor:
    """DCL over 2B views, or DCLW where ``sigma`` is given.

    ``mean over i and k of −w_i s_i/τ + log Σ_{l, j≠i} exp(<z_i^(k), z_j^(l)>/τ)``: one sum over both views of the other
    samples, the sample itself left out. Arguments as :func:`two_view_terms` and :func:`decoupled_key_nce`; with
    ``all_a`` and ``all_b`` the mean in the weights is over all ranks.

    Returns:
        A scalar, or (2, B) with ``reduction="none"``. Anchors without a negative count as 0.

    Raises:
        DataError, ConfigError: as :func:`two_view_terms`; ConfigError also for ``sigma`` ≤ 0.

    Source: Yeh et al. 2022 (DCL, arXiv:2110.06848), eqs. 3 and 6.

    >>> pairs = torch.eye(2)
    >>> decoupled_info_nce(pairs, pairs, temperature=1.0)  # −1/τ + log(2N − 2)
    tensor(-0.3069)
    """
    terms_2B = two_view_terms(
        view_a, view_b, temperature=temperature, ids=ids, all_a=all_a, all_b=all_b, all_ids=all_ids, offset=offset
    )
    if sigma is None:
        return decoupled_from_terms(terms_2B, reduction=reduction)
    similarity_B = (_widen(view_a) * view_b).sum(1)
    source_B = similarity_B.detach() if detach_weight else similarity_B
    everyone_G = None
    if all_a is not None and all_b is not None:
        everyone_G = (_widen(all_a) * all_b).sum(1)
        everyone_G = everyone_G.detach() if detach_weight else everyone_G
    weights_B = dclw_weights(source_B, sigma, all_similarity=everyone_G, weight_min=weight_min)
    return decoupled_from_terms(terms_2B, weights=weights_B, positive=similarity_B / temperature, reduction=reduction)


def nt_xent(
    view_a: Tensor,
    view_b: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    ids: Tensor | None = None,
    all_a: Tensor | None = None,
    all_b: Tensor | None = None,
    all_ids: Tensor | None = None,
    offset: int = 0,
    reduction: Reduction = "mean",
) -> Tensor:
    """SimCLR's loss: InfoNCE over 2B views, 2G − 2 negatives for each anchor. Arguments as :func:`two_view_terms`.

    Returns:
        A scalar, or (2, B) with ``reduction="none"``.

    Source: Chen et al. 2020 (SimCLR, arXiv:2002.05709), eq. 1.

    >>> pairs = torch.eye(2)
    >>> nt_xent(pairs, pairs, temperature=1.0)  # log(1 + 2/e)
    tensor(0.5514)
    """
    terms_2B = two_view_terms(
        view_a, view_b, temperature=temperature, ids=ids, all_a=all_a, all_b=all_b, all_ids=all_ids, offset=offset
    )
    return info_nce_from_terms(terms_2B, reduction=reduction)


def info_nce_from_terms(terms: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """InfoNCE from the terms ``d`` of :func:`anchor_terms` or :func:`two_view_terms`: ``softplus(d)``, exactly.

    >>> info_nce_from_terms(torch.tensor([0.0, -torch.inf]), reduction="none")
    tensor([0.6931, 0.0000])
    """
    return _reduce(torch.logaddexp(terms, terms.new_zeros(())), reduction)  # F.softplus is linear above a threshold


def decoupled_from_terms(
    terms: Tensor, *, weights: Tensor | None = None, positive: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """DCL from the terms ``d`` of :func:`anchor_terms` or :func:`two_view_terms`; DCLW with weights.

    Args:
        terms: (…, B).
        weights, positive: (B,) each, for DCLW: :func:`dclw_weights` and the positive logits ``s/τ``. Give both or
            neither.

    >>> decoupled_from_terms(torch.tensor([0.5, -torch.inf]))  # an anchor without a negative counts as 0
    tensor(0.2500)
    """
    if (weights is None) != (positive is None):
        raise ConfigError("give weights and positive together (DCLW), or neither (DCL)")
    loss = terms
    if weights is not None and positive is not None:
        loss = loss + (1.0 - weights) * positive
    return _reduce(loss.masked_fill(terms == -torch.inf, 0.0), reduction)


def npc_multiplier(terms: Tensor) -> Tensor:
    """Mean NPC multiplier, ``mean(sigmoid(d))``, without gradient: the share of DCL's gradient that InfoNCE keeps.

    Close to 1 there is nothing to gain from decoupling; small values say that the batch or queue is too easy.

    Source: Yeh et al. 2022 (DCL, arXiv:2110.06848), proposition 1.

    >>> npc_multiplier(torch.tensor([0.0, -torch.inf]))
    tensor(0.2500)
    """
    return terms.detach().sigmoid().mean()


def dclw_weights(
    similarity: Tensor, sigma: float = 0.5, *, all_similarity: Tensor | None = None, weight_min: float | None = None
) -> Tensor:
    """Negative von-Mises–Fisher weights ``w_i = 2 − exp(s_i/σ) / mean_j exp(s_j/σ)``: less pull for pairs already
    aligned.

    Args:
        similarity: (B,) cosines of the positive pairs.
        sigma: σ > 0.
        all_similarity: (G,) those the mean is taken over, where it is not ``similarity`` itself (all ranks).
        weight_min: lower bound. None as published: a weight is below 0, and repels, for a pair aligned far above the
            mean.

    Returns:
        (B,), at most 2, with mean 1 over ``all_similarity`` (without ``weight_min``). Differentiable; detach
        ``similarity`` if that is not wanted.

    Raises:
        ConfigError: σ ≤ 0.

    Source: Yeh et al. 2022 (DCL, arXiv:2110.06848), section 3.

    >>> dclw_weights(torch.tensor([0.3, 0.3]))
    tensor([1., 1.])
    """
    if not sigma > 0:
        raise ConfigError(f"sigma is {sigma}; it has to be positive (the paper takes 0.5)")
    everyone = similarity if all_similarity is None else all_similarity
    log_mean = (everyone / sigma).logsumexp(0) - math.log(len(everyone))
    weights = 2.0 - (similarity / sigma - log_mean).exp()
    return weights if weight_min is None else weights.clamp_min(weight_min)


@torch.no_grad()
def sinkhorn_assignments(
    scores: Tensor, *, epsilon: float = 0.05, iterations: int = 3, distributed: bool = True
) -> Tensor:
    """Soft assignments of samples to prototypes that use all prototypes about equally (SwAV's codes).

    Each iteration gives every prototype an equal share of the samples, then every sample a sum of 1. Computed in
    float32 outside autocast: by scaling ``exp(S/ε)`` for ε ≥ 0.03; below, where that could leave float32's range, the first
    iteration is done in the log domain. On a CPU rows pass in blocks that stay in a core's cache, so that an iteration reads
    the matrix once.

    Args:
        scores: (B, P) cosines of samples and prototypes, or (V, B, P) for several independent problems at once.
        epsilon: ε > 0, smaller is harder.
        iterations: at least 1.
        distributed: balance over the samples of all ranks, when there are several. Only (V,) P-vectors are exchanged.

    Returns:
        Like ``scores``, in at least float32, without gradient; rows sum to 1.

    Raises:
        ConfigError: ε ≤ 0 or iterations < 1. DataError: another shape, no rows, or (checked on a CPU only, where it
            costs no synchronisation) scores that are no cosines.

    Source: Caron et al. 2020 (SwAV, arXiv:2006.09882), section 3.1 and appendix; Cuturi 2013 (arXiv:1306.0895).

    >>> sinkhorn_assignments(torch.zeros(4, 2))[0]
    tensor([0.5000, 0.5000])
    """
    if not epsilon > 0:
        raise ConfigError(f"epsilon is {epsilon}; it has to be positive (SwAV takes 0.05)")
    if iterations < 1:
        raise ConfigError(f"iterations is {iterations}; at least 1 is needed (SwAV takes 3)")
    _check_scores(scores)
    across = distributed and world_size() > 1
    with torch.autocast(scores.device.type, enabled=False):
        scores_VBP = _widen(scores).view(-1, *scores.shape[-2:])
        form = _sinkhorn_scaling if epsilon >= _SINKHORN_SCALING_EPSILON else _sinkhorn_log
        return form(scores_VBP, epsilon, iterations, across).view(scores.shape)


def _row_blocks(scores_VBP: Tensor) -> list[tuple[int, slice]]:
    """(crop, rows) of every block: what stays in a CPU's cache from one operator to the next; elsewhere, whole crops."""
    crops, samples, prototypes = scores_VBP.shape
    rows = max(1, _SINKHORN_BLOCK_ELEMENTS // prototypes) if scores_VBP.device.type == "cpu" else samples
    return [(crop, slice(start, start + rows)) for crop in range(crops) for start in range(0, samples, rows)]


def _sinkhorn_scaling(scores_VBP: Tensor, epsilon: float, iterations: int, across: bool) -> Tensor:
    """Of ``exp(S/ε)``, up to a constant, which the iterations cancel."""
    kernel_VBP, mass_VP = torch.empty_like(scores_VBP), torch.zeros_like(scores_VBP[:, 0])
    for crop, rows in _row_blocks(scores_VBP):
        scores_BP, kernel_BP = scores_VBP[crop, rows], kernel_VBP[crop, rows]
        _check_cosines(scores_BP)
        if scores_BP.device.type == "cpu":  # here an exponential costs less than a power does
            torch.add(scores_BP.new_tensor(-1.0 / epsilon), scores_BP, alpha=1.0 / epsilon, out=kernel_BP).exp_()
        else:
            torch.pow(math.exp(1.0 / epsilon), scores_BP, out=kernel_BP)  # one kernel; at most e^34 for ε ≥ 0.03
        mass_VP[crop].addmv_(kernel_BP.mT, torch.ones_like(kernel_BP[:, 0]))
    return _balance(kernel_VBP, mass_VP, iterations, across)


def _sinkhorn_log(scores_VBP: Tensor, epsilon: float, iterations: int, across: bool) -> Tensor:
    """The first iteration in the log domain; the others scale what it leaves.

    Nothing underflows then: each column, summing to 1, had an entry of at least 1/B, and no row of P such entries is divided
    by more than P.
    """
    blocks = _row_blocks(scores_VBP)
    peak_VP = torch.full_like(scores_VBP[:, 0], -torch.inf)
    for crop, rows in blocks:
        _check_cosines(scores_VBP[crop, rows])
        peak_VP[crop] = peak_VP[crop].maximum(scores_VBP[crop, rows].amax(0))
    if across:
        dist.all_reduce(peak_VP, op=dist.ReduceOp.MAX)

    def log_kernel(crop: int, rows: slice) -> Tensor:
        return (scores_VBP[crop, rows] - peak_VP[crop]).div_(epsilon)

    mass_VP = torch.zeros_like(peak_VP)
    for crop, rows in blocks:
        # log-sum-exp, but for subnormal terms, which are slow on a CPU and nothing beside the 1 of the peak
        mass_VP[crop] += log_kernel(crop, rows).clamp_(min=-80.0).exp_().sum(0)
    log_mass_VP = (all_reduce_sum(mass_VP) if across else mass_VP).log()
    kernel_VBP, mass_VP = torch.empty_like(scores_VBP), torch.zeros_like(peak_VP)
    for crop, rows in blocks:
        kernel_BP = torch.softmax(log_kernel(crop, rows).sub_(log_mass_VP[crop]), -1, out=kernel_VBP[crop, rows])
        mass_VP[crop].addmv_(kernel_BP.mT, torch.ones_like(kernel_BP[:, 0]))
    return _balance(kernel_VBP, mass_VP, iterations - 1, across)


def _balance(kernel_VBP: Tensor, mass_VP: Tensor, iterations: int, across: bool) -> Tensor:
    """Scale columns, then rows, of a kernel whose column sums are known; overwrites it.

    A block is read once in an iteration: for its rows' scales and for its share of the next column sums, while it is in cache.
    The marginals' constants 1/P and 1/B cancel in the rows, so they are left out.
    """
    for left in reversed(range(iterations)):
        prototype_VP = (all_reduce_sum(mass_VP) if across else mass_VP).reciprocal()
        mass_VP = torch.zeros_like(mass_VP)
        for crop, rows in _row_blocks(kernel_VBP):
            kernel_BP = kernel_VBP[crop, rows]
            sample_B = (kernel_BP @ prototype_VP[crop]).reciprocal()
            if left:
                mass_VP[crop].addmv_(kernel_BP.mT, sample_B)
            else:
                kernel_BP.mul_(sample_B[:, None]).mul_(prototype_VP[crop])
    return kernel_VBP


def swapped_prediction(
    scores_per_crop: Sequence[Tensor] | Tensor,
    assignments_per_crop: Sequence[Tensor] | Tensor,
    *,
    temperature: float = 0.1,
) -> Tensor:
    """Predict the assignments of each of the first crops from every other crop's scores (SwAV's loss).

    ``mean over i ≤ I, v ≠ i and samples of −Σ_p Q_i[p] log softmax(S_v/τ)[p]``: averaged over crops as in the official
    code (the paper's equations sum), because the published learning rates belong to that.

    Args:
        scores_per_crop: V ≥ 2 times (B, P), or one (V, B, P); differentiable.
        assignments_per_crop: 1 ≤ I ≤ V times (B, P), or one (I, B, P), those of the first I crops, each row summing to
            1 (not checked): :func:`sinkhorn_assignments`. A constant: no gradient flows into them.
        temperature: τ > 0.

    Returns:
        A scalar; at least the mean entropy of the assignments, log P when predictions are uniform.

    Raises:
        DataError: shapes or numbers of crops that do not fit. ConfigError: a temperature ≤ 0.

    Source: Caron et al. 2020 (SwAV, arXiv:2006.09882), eqs. 1, 2 and 6.

    >>> swapped_prediction([torch.zeros(3, 4)] * 2, [torch.full((3, 4), 0.25)] * 2)  # log 4
    tensor(1.3863)
    """
    _check_temperature(temperature)
    crops, codes = len(scores_per_crop), len(assignments_per_crop)
    if crops < 2 or not 1 <= codes <= crops:
        raise DataError(
            f"{crops} crops, {codes} with assignments; at least 2 are needed, and 1 to all with assignments"
        )
    shapes = {tuple(x.shape) for x in (*scores_per_crop, *assignments_per_crop)}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise DataError(f"scores and assignments have shapes {sorted(shapes)}; they need one (batch, prototypes)")
    scores = [_widen(scores_BP) for scores_BP in scores_per_crop]
    everything_BP = reduce(torch.add, scores)
    loss = scores[0].new_zeros(())
    for crop, scores_BP in enumerate(scores):
        predicts = codes - (crop < codes)  # assignments this crop predicts: all but its own
        loss = loss + predicts * (scores_BP / temperature).logsumexp(1).mean()
    for scores_BP, assignments_BP in zip(scores, assignments_per_crop, strict=False):
        others_BP = everything_BP - scores_BP
        loss = loss - (assignments_BP.detach() * others_BP).sum(1).mean() / temperature
    return loss / (codes * (crops - 1))


def koleo(features: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Kozachenko–Leonenko spread: ``−mean_i log(‖z_i − z_n(i) + ε‖ + ε)``, n(i) the nearest other row by inner product.

    Pushes every row away from its nearest neighbour. Gradient reaches both ends of that distance; the search has none.

    Args:
        features: (B, D), B ≥ 2, unit vectors, normalised by the caller.
        eps: ε, keeps identical rows finite.

    Returns:
        A scalar; −log 2 or more, the lower the more spread.

    Raises:
        DataError: another shape or a single row.

    Source: Sablayrolles et al. 2019 (arXiv:1806.03198), eq. 3; nearest neighbours as in DINOv2 (Oquab et al. 2023).

    >>> koleo(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # opposite ends: −log 2
    tensor(-0.6931)
    """
    if features.ndim != 2 or len(features) < 2:
        raise DataError(f"features have shape {tuple(features.shape)}; koleo needs (batch, dim) with at least two rows")
    z_BD = _widen(features)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        rows = max(1, _KOLEO_CHUNK_ELEMENTS // len(z_BD))
        nearest = []
        for start in range(0, len(z_BD), rows):
            similarity = z_BD[start : start + rows] @ z_BD.T
            similarity.diagonal(start).fill_(-torch.inf)
            nearest.append(similarity.argmax(1))
        nearest_B = torch.cat(nearest)
    distance_B = (z_BD - z_BD[nearest_B] + eps).norm(dim=1)
    return -(distance_B + eps).log().mean()


def _widen(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _matmul_dtype(x: Tensor) -> torch.dtype:
    """What autocast would choose for a matrix product of ``x``."""
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _reduce(loss: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ConfigError(f"reduction is {reduction!r}; choose mean, sum or none")


def _logaddexp(parts: list[Tensor], *, like: Tensor) -> Tensor:
    """``log Σ exp`` of up to two (B,) tensors; where all are −inf so is the result, with gradient 0 instead of NaN."""
    if not parts:
        return torch.full_like(like, -torch.inf)
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    empty = (first == -torch.inf) & (second == -torch.inf)
    return torch.logaddexp(first.masked_fill(empty, 0.0), second).masked_fill(empty, -torch.inf)


def _dense_logits(query: Tensor, key: Tensor, negatives: Tensor | None, in_batch: bool) -> Tensor:
    """Cosines in the documented order: (B, M or 1, + K)."""
    first = query @ key.to(query.dtype).T if in_batch else (_widen(query) * key).sum(1, keepdim=True)
    parts = [_widen(first)]
    if negatives is not None:
        parts.append(_widen(query @ negatives.to(query.dtype).T))
    return torch.cat(parts, 1)


def _same_thing(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    query_ids: Tensor,
    key_ids: Tensor | None,
    negative_ids: Tensor | None,
    in_batch: bool,
    positive_offset: int,
) -> Tensor:
    """(B, N) bool in the order of the logits: entries left out, the positive never among them."""
    parts = []
    if in_batch and key_ids is not None:
        same_BM = query_ids[:, None] == key_ids[None, :]
        same_BM.diagonal(positive_offset).fill_(False)
        parts.append(same_BM)
    else:
        parts.append(query.new_zeros((len(query), 1), dtype=torch.bool))
    if negatives is not None:
        if negative_ids is None:
            parts.append(query.new_zeros((len(query), len(negatives)), dtype=torch.bool))
        else:
            parts.append(query_ids[:, None] == negative_ids[None, :])
    return torch.cat(parts, 1)


def _check_temperature(temperature: float | Tensor) -> None:
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1:
            raise ConfigError(f"temperature has shape {tuple(temperature.shape)}; it has to be one number")
        if temperature.device.type != "cpu":
            return  # looking at the value would wait for the GPU
        temperature = temperature.item()
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}; it has to be positive (0.07 to 1 is usual)")


def _check_pairs(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    temperature: float | Tensor,
    in_batch: bool,
    positive_offset: int,
) -> None:
    _check_temperature(temperature)
    if query.ndim != 2 or len(query) == 0:
        raise DataError(f"query has shape {tuple(query.shape)}; it has to be (batch, dim) with at least one row")
    for name, other in (("key", key), ("negatives", negatives)):
        if other is not None and (other.ndim != 2 or other.shape[1] != query.shape[1]):
            raise DataError(f"{name} has shape {tuple(other.shape)}; the query's dim asks for (rows, {query.shape[1]})")
    if not in_batch:
        if positive_offset:
            raise ConfigError(f"positive_offset is {positive_offset}; it only means something with in_batch=True")
        if len(key) != len(query):
            raise DataError(f"{len(query)} queries but {len(key)} keys; each query needs its own (or in_batch=True)")
    elif not 0 <= positive_offset <= len(key) - len(query):
        raise DataError(
            f"{len(query)} queries with positive_offset {positive_offset} do not fit {len(key)} keys; "
            "query i needs key i + positive_offset"
        )


def _check_ids(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    negative_ids: Tensor | None,
    in_batch: bool,
) -> Tensor | None:
    """Checks all ids and returns ``key_ids`` with its default filled in."""
    if query_ids is None:
        if key_ids is not None or negative_ids is not None:
            raise ConfigError("ids of keys or negatives were given without query_ids, so nothing can be compared")
        return None
    _check_id_shape("query_ids", query_ids, len(query))
    if negative_ids is not None:
        if negatives is None:
            raise ConfigError("negative_ids were given without negatives")
        _check_id_shape("negative_ids", negative_ids, len(negatives))
    if key_ids is not None:
        _check_id_shape("key_ids", key_ids, len(key))
    elif in_batch:
        if len(key) != len(query):
            raise ConfigError(f"key has {len(key)} rows for {len(query)} queries: give key_ids of all of them")
        return query_ids
    return key_ids


def _check_id_shape(name: str, ids: Tensor, rows: int) -> None:
    if ids.shape != (rows,) or ids.is_floating_point():
        raise DataError(f"{name} is {ids.dtype} of shape {tuple(ids.shape)}; it has to be integers of shape ({rows},)")


def _check_views(
    view_a: Tensor,
    view_b: Tensor,
    temperature: float | Tensor,
    ids: Tensor | None,
    all_a: Tensor | None,
    all_b: Tensor | None,
    all_ids: Tensor | None,
    offset: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Checks everything and fills in the defaults: (all_a, all_b, ids, all_ids)."""
    _check_temperature(temperature)
    if view_a.ndim != 2 or view_a.shape != view_b.shape:
        raise DataError(
            f"the views have shapes {tuple(view_a.shape)} and {tuple(view_b.shape)}; they need one (batch, dim)"
        )
    batch, dim = view_a.shape
    if (all_a is None) != (all_b is None):
        raise ConfigError("give all_a and all_b together, or neither")
    if all_a is None or all_b is None:
        if all_ids is not None or offset:
            raise ConfigError("all_ids and offset only mean something with all_a and all_b")
        all_a, all_b, all_ids = view_a, view_b, ids
    rows = len(all_a)
    if all_a.shape != all_b.shape or all_a.ndim != 2 or all_a.shape[1] != dim or not 0 <= offset <= rows - batch:
        raise DataError(
            f"views of shape {tuple(view_a.shape)} with offset {offset} do not fit all_a of shape {tuple(all_a.shape)} "
            f"and all_b of shape {tuple(all_b.shape)}"
        )
    if rows < 2:
        raise DataError(f"a batch of {rows} has no negatives; take at least 2 samples (drop the last, partial batch)")
    if (ids is None) != (all_ids is None):
        raise ConfigError("give ids and all_ids together when the views of all ranks are given")
    if ids is None or all_ids is None:
        all_ids = torch.arange(rows, device=view_a.device)
        return all_a, all_b, all_ids[offset : offset + batch], all_ids
    _check_id_shape("ids", ids, batch)
    _check_id_shape("all_ids", all_ids, rows)
    return all_a, all_b, ids, all_ids


def _check_scores(scores: Tensor) -> None:
    if scores.ndim not in (2, 3) or 0 in scores.shape:
        raise DataError(
            f"scores have shape {tuple(scores.shape)}; give (batch, prototypes), or (crops, batch, prototypes)"
        )


def _check_cosines(scores: Tensor) -> None:
    if scores.device.type != "cpu":
        return  # looking at the values would wait for the GPU
    low, high = scores.aminmax()
    slack = 1e-3 if scores.dtype.itemsize >= 4 else 2e-2
    if not (low >= -1 - slack and high <= 1 + slack):
        raise DataError(
            f"scores lie in [{low:.4g}, {high:.4g}]; cosines lie in [-1, 1]: normalise embeddings and prototypes"
        )
