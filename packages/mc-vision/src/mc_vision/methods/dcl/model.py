"""Decoupled contrastive learning: Yeh, Hong, Hsu, Liu, Chen, LeCun 2022 (ECCV), arXiv:2110.06848.

InfoNCE multiplies each gradient by q = 1 − p(positive), which vanishes when the positive is easy among the negatives at hand:
the normal state of a small batch. DCL takes the positive out of the denominator, and q with it (paper, proposition 1)::

    U_ik = Σ_l Σ_{j≠i} exp(<z_i^k, z_j^l>/τ)                       z: unit embeddings of view k or l of image i or j
    D_ik = −<z_i^1, z_i^2>/τ + log U_ik                            DCL; InfoNCE is softplus(D_ik), exactly
    W_ik = −w_i <z_i^1, z_i^2>/τ + log U_ik,   w_i = 2 − exp(s_i/σ) / mean_j exp(s_j/σ),   s_i = <z_i^1, z_i^2>      DCLW

The loss is the mean over i and k (the paper writes the sum). No gradient is stopped in :class:`DCL`. :class:`DCLQueue` and
:class:`DCLV3` put the same change into MoCo v1/v2 and v3: there the negatives are the queue's, or the step's other keys.

Deviation: no gradient through w (``detach_weight``), since the paper does not say and the gradient would push a positive away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mc_core.accumulation import CachedGradients, cache_gradients, first_pass, replay
from mc_core.distributed import gather_rows, gather_rows_with_grad, rank
from mc_core.engine.method import Batch, Progress, StepOutput
from mc_core.heads import ProjectionHead
from mc_core.losses import (
    dclw_weights,
    decoupled_from_terms,
    info_nce_from_terms,
    npc_multiplier,
    two_view_terms,
)
from mc_vision.encoders import TimmEncoder
from mc_vision.methods.base import ImageMethod, detached, ids_of, networks, unit
from mc_vision.methods.dcl.config import DCLConfig, DCLQueueConfig, DCLV3Config
from mc_vision.methods.moco.model import MoCo, MoCoV3


def decoupled_loss(
    terms: Tensor, similarity: Tensor, all_similarity: Tensor, config: DCLConfig | DCLQueueConfig | DCLV3Config
) -> Tensor:
    """Mean DCL or DCLW of per-anchor terms.

    Args:
        terms: (B,) or (2, B), D of each anchor.
        similarity: (B,) s_i of this process's pairs.
        all_similarity: (G,) s_j of all pairs of the step: the weights' mean is over them.
        config: ``loss``, ``temperature``, ``sigma``, ``detach_weight`` and ``weight_min``.
    """
    if config.loss != "dclw":
        return decoupled_from_terms(terms)
    own, everyone = (
        (similarity.detach(), all_similarity.detach()) if config.detach_weight else (similarity, all_similarity)
    )
    weights = dclw_weights(own, config.sigma, all_similarity=everyone, weight_min=config.weight_min)
    return decoupled_from_terms(terms, weights=weights, positive=similarity / config.temperature)


class DCL(ImageMethod):
    """DCL and DCLW as SimCLR trains; ``loss: info_nce`` gives SimCLR itself, to compare with.

    Args:
        config: see :class:`DCLConfig`.

    Batches need ``view_1`` and ``view_2``, (B, C, H, W) each. Under accumulation the gradient is that of the whole step's
    batch, by two passes (see :mod:`mc_core.accumulation`).
    """

    config: DCLConfig

    def __init__(self, config: DCLConfig) -> None:
        super().__init__()
        self.config = config
        encoder = TimmEncoder(config.encoder)
        projector = ProjectionHead(encoder.num_features, config.dim, kind="simclr", hidden_dim=config.hidden_dim)
        self.online = networks(encoder, projector)

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """z^1 and z^2, (B, D) each: both views in one pass, so that BatchNorm sees them together."""
        z_1, z_2 = unit(self.online(torch.cat([batch["view_1"], batch["view_2"]]))).chunk(2)
        return z_1, z_2

    def loss(self, z_1: Tensor, z_2: Tensor, ids: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
        """The loss of this process's anchors against the views of all processes, and figures to log."""
        all_1, all_2 = gather_rows_with_grad(z_1), gather_rows_with_grad(z_2)
        all_ids = None if ids is None else gather_rows(ids)
        offset = rank() * len(z_1)
        terms_2B = two_view_terms(
            z_1,
            z_2,
            temperature=self.config.temperature,
            ids=ids,
            all_a=all_1,
            all_b=all_2,
            all_ids=all_ids,
            offset=offset,
        )
        if self.config.loss == "info_nce":
            value = info_nce_from_terms(terms_2B)
        else:
            value = decoupled_loss(terms_2B, (z_1 * z_2).sum(1), (all_1 * all_2).sum(1), self.config)
        return value, detached(npc_multiplier=npc_multiplier(terms_2B))

    def prepare_step(self, micro_batches: Sequence[Batch], progress: Progress) -> CachedGradients | None:
        """With several micro-batches: the gradient of the whole batch's loss at their embeddings."""
        if len(micro_batches) == 1:
            return None
        embeddings = []
        for batch in micro_batches:
            with first_pass(self), replay(progress, batch):
                embeddings.append(self.embed(batch))
        ids = self._ids(micro_batches)
        return cache_gradients(embeddings, lambda z_1, z_2: self.loss(z_1, z_2, ids))

    def training_step(self, batch: Batch, progress: Progress, prepared: CachedGradients | None = None) -> StepOutput:
        """The loss of the batch, or this micro-batch's share of its gradient."""
        if prepared is None:
            z_1, z_2 = self.embed(batch)
            value, metrics = self.loss(z_1, z_2, self._ids([batch]))
        else:
            with replay(progress, batch):
                z_1, z_2 = self.embed(batch)
            value, metrics = prepared.surrogate(int(batch["micro"]), (z_1, z_2)), dict(prepared.metrics)
        return StepOutput(value, metrics, {"query": z_1.detach(), "key": z_2.detach()})

    def _ids(self, batches: Sequence[Mapping[str, Any]]) -> Tensor | None:
        ids = [ids_of(dict(batch)) for batch in batches] if self.config.exclude_same_id else []
        known = [i for i in ids if i is not None]
        return torch.cat(known) if known else None


class DCLQueue(MoCo):
    """DCL or DCLW in MoCo v1/v2: D_i = −<q_i, k_i>/τ + log Σ_j exp(<q_i, Q_j>/τ); nothing else of MoCo changes."""

    config: DCLQueueConfig  # pyrefly: ignore[bad-override-mutable-attribute]

    def contrast(self, query: Tensor, key: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """(loss, terms) of (B, D) unit queries and keys against the queue."""
        _, terms = super().contrast(query, key, ids)
        similarity = (query * key).sum(1)
        return decoupled_loss(terms, similarity, gather_rows(similarity.detach()), self.config), terms


class DCLV3(MoCoV3):
    """DCL or DCLW in MoCo v3: the keys of the step's other images are the only candidates; nothing else changes."""

    config: DCLV3Config  # pyrefly: ignore[bad-override-mutable-attribute]

    def contrast(
        self, query: Tensor, keys: Tensor, offset: int, ids: Tensor | None, key_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(loss, terms) of (B, D) unit queries against (G, D) unit keys, scaled by 2τ as MoCo v3 does."""
        _, terms = super().contrast(query, keys, offset, ids, key_ids)
        similarity = (query * keys[offset : offset + len(query)]).sum(1)
        loss = decoupled_loss(terms, similarity, gather_rows(similarity.detach()), self.config)
        return 2 * self.config.temperature * loss, terms
