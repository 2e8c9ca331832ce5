"""MoCo: momentum contrast for unsupervised visual representation learning, versions 1, 2 and 3.

- v1: He, Fan, Wu, Xie, Girshick 2019, arXiv:1911.05722, equations 1 and 2, algorithm 1.
- v2: Chen, Fan, Girshick, He 2020, arXiv:2003.04297 (v1 with an MLP head, stronger augmentation, a cosine schedule).
- v3: Chen, Xie, He 2021, arXiv:2104.02057, algorithm 1 (no queue; symmetric; a predictor).

In equations: f_q is ``online``, f_k ``momentum_encoder``, n(·) :func:`~mc_vision.methods.base.unit`, sg "no gradient"::

    v1/v2   q = n(f_q(x_q)),  k = sg n(f_k(x_k))
            L = mean_i −log  exp(q_i·k_i/τ) / [exp(q_i·k_i/τ) + Σ_j exp(q_i·Q_j/τ)]        Q: queue before this step's keys
            then, once per optimizer step: θ_k ← m θ_k + (1−m) θ_q,  enqueue k
    v3      q = p(f_q(x)),  ctr(q, k) = 2τ · CE(n(q) n(k)ᵀ / τ, i),  L = ctr(q_1, k_2) + ctr(q_2, k_1)

The released code moves f_k before it encodes the keys of a step; here it moves after the optimizer step. For a constant momentum
the keys are the same, because the first of their moves is from equal weights to equal weights.

Legend: B samples of this process and micro-batch, G of all processes and micro-batches, D width of queries and keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mc_core.distributed import gather_rows, rank, world_size
from mc_core.engine.method import Batch, Progress, StepOutput
from mc_core.errors import ConfigError
from mc_core.heads import PredictionHead, ProjectionHead
from mc_core.losses import anchor_terms, info_nce_from_terms, npc_multiplier
from mc_core.momentum import MomentumEncoder
from mc_core.momentum_schedule import horizon_advice
from mc_core.norm import convert_split_batchnorm, shuffled
from mc_core.queue import FeatureQueue, PendingKeys
from mc_core.random import derive_seed
from mc_vision.encoders import TimmEncoder
from mc_vision.methods.base import (
    ImageMethod,
    contrast_of_step,
    detached,
    ids_of,
    networks,
    sync_batchnorm,
    unit,
)
from mc_vision.methods.moco.config import MoCoConfig, MoCoV3Config


class MoCo(ImageMethod):
    """MoCo v1 and v2.

    Args:
        config: see :class:`MoCoConfig`.

    Batches need ``view_1`` (queries) and ``view_2`` (keys), (B, C, H, W) each, and ``ids`` for ``exclude_same_id``.
    """

    config: MoCoConfig

    def __init__(self, config: MoCoConfig) -> None:
        super().__init__()
        self.config = config
        encoder = TimmEncoder(config.encoder)
        projector = ProjectionHead(encoder.num_features, config.dim, kind=config.projector)
        self.online = networks(encoder, projector)
        self.splits = max(1, config.split_bn // world_size())  # of this process's part of the batch
        if self.splits > 1:
            self.online = convert_split_batchnorm(self.online, self.splits)
        self.momentum_encoder = MomentumEncoder(self.online, config.momentum.at(0.0, 256))
        self.queue = FeatureQueue(config.queue_size, config.dim, with_ids=config.exclude_same_id)
        self._pending = PendingKeys()

    def contrast(self, query: Tensor, key: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """(loss, terms) of (B, D) unit queries and keys against the queue. Subclasses change the loss here."""
        terms = anchor_terms(
            query,
            key,
            self.queue.features,
            temperature=self.config.temperature,
            query_ids=ids,
            negative_ids=self.queue.ids,
        )
        return info_nce_from_terms(terms), terms

    @torch.no_grad()
    def keys(self, images: Tensor, shuffle_seed: int) -> Tensor:
        """(B, D) unit keys. BatchNorm sees them in other company than their queries, or the network could cheat."""
        if self.config.shuffle_bn and world_size() > 1:
            return unit(shuffled(self.momentum_encoder, images, shuffle_seed))
        if self.splits > 1:
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(shuffle_seed)).to(images.device)
            return unit(self.momentum_encoder(images[order])[torch.argsort(order)])
        return unit(self.momentum_encoder(images))

    def training_step(self, batch: Batch, progress: Progress, prepared: Any = None) -> StepOutput:
        """The loss of one micro-batch; its keys wait for :meth:`after_step`."""
        ids = ids_of(batch) if self.config.exclude_same_id else None
        views = [batch["view_1"], batch["view_2"]]
        pairs = [(views[0], views[1]), (views[1], views[0])] if self.config.symmetric else [(views[0], views[1])]
        losses, terms, query, keys = [], [], torch.empty(0), []
        for direction, (query_view, key_view) in enumerate(pairs):
            query = unit(self.online(query_view))
            key = self.keys(key_view, derive_seed(progress.step, int(batch.get("micro", 0)), direction))
            loss, d = self.contrast(query, key, ids)
            losses.append(loss)
            terms.append(d.detach())
            keys.append(key)
            self._pending.add(progress.step, key, ids)
        d = torch.cat(terms)
        metrics = detached(npc_multiplier=npc_multiplier(d))
        return StepOutput(torch.stack(losses).sum(), metrics, {"query": query, "key": keys[-1]})

    def after_step(self, progress: Progress) -> None:
        """Move the key encoder, then enqueue this step's keys: they were never their own negatives."""
        self.momentum_encoder.update(self.config.momentum.at(progress.fraction, progress.batch_size))
        if pending := self._pending.take():
            self.queue.enqueue(*pending)

    def check(self, micro_batch_size: int) -> None:
        """Split BatchNorm needs groups of equal size, of at least two images."""
        if micro_batch_size % self.splits or micro_batch_size < 2 * self.splits:
            raise ConfigError(
                f"split_bn {self.config.split_bn} cannot split {micro_batch_size} images (a batch of one process and "
                f"micro-batch) into groups of two or more: give --method.split-bn 1, or a batch that is a multiple of "
                f"{2 * self.splits}"
            )

    def advice(self, batch_size: int, data_size: int) -> list[str]:
        """Warn of a key encoder too fast for its queue, and of a queue as long as the data."""
        keys_per_step = batch_size * (2 if self.config.symmetric else 1)
        found = [horizon_advice(self.config.momentum.at(0.0, batch_size), self.config.queue_size, keys_per_step)]
        if self.config.queue_size >= data_size and not self.config.exclude_same_id:
            found.append(
                f"the queue ({self.config.queue_size} keys) is as long as the data ({data_size} images): older views of the "
                "query's own image are among its negatives; take a shorter queue (--method.queue-size)"
            )
        return [text for text in found if text]


@dataclass(frozen=True)
class _KeysOfStep:
    """The keys of both views of all micro-batches and processes, (G, D) each, and where this process's rows begin."""

    key_1: Tensor
    key_2: Tensor
    ids: Tensor | None
    offsets: tuple[int, ...]


class MoCoV3(ImageMethod):
    """MoCo v3.

    Args:
        config: see :class:`MoCoV3Config`.

    Batches need ``view_1`` and ``view_2``, (B, C, H, W) each. All keys of an optimizer step are negatives of each query,
    also under gradient accumulation: they are encoded first, without gradient.
    """

    config: MoCoV3Config

    def __init__(self, config: MoCoV3Config) -> None:
        super().__init__()
        self.config = config
        encoder = TimmEncoder(config.encoder)
        projector = ProjectionHead(
            encoder.num_features, config.dim, kind=config.projector, hidden_dim=config.hidden_dim
        )
        self.online = networks(encoder, projector)
        self.predictor: nn.Module = PredictionHead(config.dim, kind=config.projector, hidden_dim=config.hidden_dim)
        if config.sync_bn:
            self.online, self.predictor = sync_batchnorm(self.online), sync_batchnorm(self.predictor)
        self.momentum_encoder = MomentumEncoder(self.online, config.momentum.at(0.0, 256))

    def prepare_step(self, micro_batches: Sequence[Batch], progress: Progress) -> _KeysOfStep:
        """Encode the keys of the whole step and gather them over processes."""
        keys: dict[str, list[Tensor]] = {"view_1": [], "view_2": []}
        for batch in micro_batches:
            for name, found in keys.items():
                with torch.no_grad():
                    found.append(unit(self.momentum_encoder(batch[name])))
        ids = [ids_of(batch) for batch in micro_batches] if self.config.exclude_same_id else []
        joined = torch.cat([i for i in ids if i is not None]) if ids else None
        sizes = [len(key) for key in keys["view_1"]]
        start = rank() * sum(sizes)
        return _KeysOfStep(
            gather_rows(torch.cat(keys["view_1"])),
            gather_rows(torch.cat(keys["view_2"])),
            None if joined is None else gather_rows(joined),
            tuple(start + sum(sizes[:i]) for i in range(len(sizes))),
        )

    def contrast(
        self, query: Tensor, keys: Tensor, offset: int, ids: Tensor | None, key_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(loss, terms): ctr(q, k) of (B, D) unit queries against (G, D) unit keys. Subclasses change the loss here."""
        return contrast_of_step(query, keys, offset, temperature=self.config.temperature, ids=ids, key_ids=key_ids)

    def training_step(self, batch: Batch, progress: Progress, prepared: _KeysOfStep | None = None) -> StepOutput:
        """L = ctr(q_1, k_2) + ctr(q_2, k_1) of one micro-batch."""
        micro = int(batch.get("micro", 0)) if prepared is not None else 0
        keys = prepared if prepared is not None else self.prepare_step([batch], progress)
        ids = ids_of(batch) if self.config.exclude_same_id else None
        query_1 = unit(self.predictor(self.online(batch["view_1"])))
        query_2 = unit(self.predictor(self.online(batch["view_2"])))
        offset = keys.offsets[micro]
        loss_12, terms_12 = self.contrast(query_1, keys.key_2, offset, ids, keys.ids)
        loss_21, terms_21 = self.contrast(query_2, keys.key_1, offset, ids, keys.ids)
        d = torch.cat([terms_12, terms_21]).detach()
        metrics = detached(npc_multiplier=npc_multiplier(d))
        own = keys.key_2[offset : offset + len(query_1)]
        return StepOutput(loss_12 + loss_21, metrics, {"query": query_1, "key": own})

    def after_step(self, progress: Progress) -> None:
        """Move the key encoder."""
        self.momentum_encoder.update(self.config.momentum.at(progress.fraction, progress.batch_size))
