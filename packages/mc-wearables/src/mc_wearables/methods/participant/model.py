"""Participant contrast: Abbaspourazad et al. 2024 (ICLR), arXiv:2312.05409.

Two segments of a person are a positive pair, so that the embedding keeps what is stable in a person. A slow copy of the
network gives the second projection, and a KoLeo term spreads each batch. In equations, with x1 and x2 the two views, q = n(g(f(x)))
of the student, k = sg n(g(f(x))) of its copy, and L of :mod:`~mc_wearables.methods.participant.loss`::

    Loss = ½ [ L(q(x1), k(x2)) + L(q(x2), k(x1)) ]
    θ_copy ← m θ_copy + (1 − m) θ_student                        encoder and head, parameters only

The copy runs in training mode, with dropout and BatchNorm statistics of its own. The embedding is the encoder's output; the
head is thrown away. The equations are those of the authors' later released pipeline, which says to follow this paper.

Deviations: the released code moves the copy before the forward of each step, here it moves after the optimizer step. For a
constant momentum the keys are the same, because its first move is from equal weights to equal weights. Ours are the mask of a
person's other segments across views, and the precise form of the frameworks it is compared with::

    simclr   Loss = L(q(x1), q(x2)), gradient through both
    byol     Loss = ½ Σ over both directions of  λ (2 − 2 <n(p(g(f(x1)))), k(x2)>) + γ ½ (KoLeo(q(x1)) + KoLeo(k(x2)))

Legend: B samples of this process and micro-batch, G of all processes and micro-batches, D width of the projection.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mc_core.accumulation import CachedGradients, cache_gradients, first_pass, replay
from mc_core.distributed import gather_rows, gather_rows_with_grad, rank
from mc_core.engine.method import Batch, Progress, StepOutput
from mc_core.errors import ConfigError
from mc_core.momentum import MomentumEncoder
from mc_wearables.encoders.signal import SignalEncoder
from mc_wearables.methods.base import SignalMethod, networks, unit
from mc_wearables.methods.participant.config import ParticipantConfig
from mc_wearables.methods.participant.loss import byol_regression, direction_loss, participant_nce


class ParticipantContrast(SignalMethod):
    """Participant contrast with a slow copy, as SimCLR, or as BYOL.

    Args:
        config: see :class:`ParticipantConfig`.

    Batches need ``view_1`` and ``view_2``, (B, C, T) each, and may have ``ids``, the participants: other segments of a
    person are then no negatives. Under accumulation the gradient is that of the whole step's batch, by two passes (see
    :mod:`mc_core.accumulation`).
    """

    config: ParticipantConfig

    def __init__(self, config: ParticipantConfig) -> None:
        super().__init__()
        self.config = config
        encoder = SignalEncoder(config.encoder)
        self.online = networks(encoder, _head(encoder.num_features, config, dropout=config.dropout))
        self.momentum_encoder: MomentumEncoder | None = None
        self.predictor: nn.Module | None = None
        if config.framework != "simclr":
            self.momentum_encoder = MomentumEncoder(self.online, config.momentum.at(0.0, 256), buffers="own")
        if config.framework == "byol":
            self.predictor = _head(config.dim, config, dropout=0.0)

    def encoders(self) -> dict[str, SignalEncoder]:
        """The slow copy's encoder, as ``teacher``."""
        if self.momentum_encoder is None:
            return {}
        teacher = self.momentum_encoder.module.encoder
        assert isinstance(teacher, SignalEncoder)
        return {"teacher": teacher}

    def _views(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        views = batch["view_1"], batch["view_2"]
        if not self.config.joint_views:
            return network(views[0]), network(views[1])
        first, second = network(torch.cat(views)).chunk(2)
        return first, second

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """(B, D) unit rows: the projections of both views, and for BYOL the predictions from them."""
        projections = self._views(self.online, batch)
        predictions = () if self.predictor is None else tuple(self.predictor(z) for z in projections)
        return tuple(unit(z) for z in (*projections, *predictions))

    def keys(self, batch: Batch) -> tuple[Tensor, ...]:
        """(B, D) unit rows of the slow copy for both views; nothing for SimCLR."""
        if self.momentum_encoder is None:
            return ()
        return tuple(unit(z) for z in self._views(self.momentum_encoder, batch))

    def loss(
        self, embedded: Sequence[Tensor], keys: Sequence[Tensor], ids: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this process's rows in the batch of all processes, and figures to log."""
        config = self.config
        query_1, query_2 = embedded[:2]
        directions = [(query_1, query_2)] if not keys else [(query_1, keys[1]), (query_2, keys[0])]
        all_ids = None if ids is None else gather_rows(ids)
        losses, contrasts, spreads, positives = [], [], [], []
        for number, (query, key) in enumerate(directions):
            all_query = gather_rows_with_grad(query)
            all_key = gather_rows(key) if keys else gather_rows_with_grad(key)
            if self.predictor is not None:
                contrast = byol_regression(embedded[2 + number], key)
            else:
                contrast = participant_nce(
                    query,
                    key,
                    temperature=config.temperature,
                    ids=ids,
                    within_view=config.within_view,
                    mask_across=config.mask_same_participant == "everywhere",
                    all_query=all_query,
                    all_key=all_key,
                    all_ids=all_ids,
                    offset=rank() * len(query),
                )
            loss, spread = direction_loss(
                contrast,
                all_query,
                all_key,
                contrast_weight=config.contrast_weight,
                koleo_weight=config.koleo_weight,
            )
            losses.append(loss)
            contrasts.append(contrast.detach())
            spreads.append(spread)
            positives.append((query.detach() * key.detach()).sum(1).mean())
        metrics = {
            "contrast": torch.stack(contrasts).mean(),
            "koleo": torch.stack(spreads).mean(),
            "positive_cosine": torch.stack(positives).mean(),
        }
        return torch.stack(losses).mean(), metrics

    def prepare_step(self, micro_batches: Sequence[Batch], progress: Progress) -> CachedGradients | None:
        """With several micro-batches: the gradient of the whole batch's loss at its projections, each encoded once before."""
        if len(micro_batches) == 1:
            return None
        embedded, keys = [], []
        for batch in micro_batches:
            with first_pass(self), replay(progress, batch):
                embedded.append(self.embed(batch))
            keys.append(self.keys(batch))  # their only pass: here the copy's BatchNorm statistics do move
        joined = [torch.cat(parts) for parts in zip(*keys, strict=True)]
        known = [batch["ids"] for batch in micro_batches if "ids" in batch]
        ids = torch.cat(known) if known else None
        return cache_gradients(embedded, lambda *all_embedded: self.loss(all_embedded, joined, ids))

    def training_step(self, batch: Batch, progress: Progress, prepared: CachedGradients | None = None) -> StepOutput:
        """The loss of the batch, or this micro-batch's share of its gradient."""
        if prepared is None:
            embedded = self.embed(batch)
            value, metrics = self.loss(embedded, self.keys(batch), batch.get("ids"))
        else:
            with replay(progress, batch):
                embedded = self.embed(batch)
            value, metrics = prepared.surrogate(int(batch["micro"]), embedded), dict(prepared.metrics)
        return StepOutput(value, {**metrics}, {"query": embedded[0].detach(), "key": embedded[1].detach()})

    def after_step(self, progress: Progress) -> None:
        """Move the slow copy."""
        if self.momentum_encoder is None:
            return
        frozen = progress.step < self.config.frozen_steps
        momentum = self.config.momentum.at(progress.fraction, progress.batch_size)
        self.momentum_encoder.update(1.0 if frozen else momentum)

    def check(self, micro_batch_size: int) -> None:
        """A single pair has no negatives and no neighbour."""
        if micro_batch_size < 2:
            raise ConfigError(
                f"{micro_batch_size} pair per process and micro-batch: there is nothing to contrast it with; "
                "take a larger fit.batch_size or a smaller fit.accumulation"
            )

    def advice(self, batch_size: int, data_size: int) -> list[str]:
        """Warn of BYOL without BatchNorm in its heads."""
        if self.config.framework == "byol" and not self.config.head_norm:
            return ["BYOL without BatchNorm in its heads tends to collapse: set method.head_norm true"]
        return []


def _head(width: int, config: ParticipantConfig, *, dropout: float) -> nn.Sequential:
    """Linear, ReLU, dropout, Linear; 394,368 parameters as published."""
    layers: list[nn.Module] = [nn.Linear(width, config.hidden_dim)]
    if config.head_norm:
        layers.append(nn.BatchNorm1d(config.hidden_dim))
    layers += [nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(config.hidden_dim, config.dim)]
    return nn.Sequential(*layers)
