"""SwAV: unsupervised learning of visual features by contrasting cluster assignments.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin 2020 (NeurIPS), arXiv:2006.09882, equations 1 to 6; multi-crop from section 3.2.

Views are 2 crops of full resolution and any number of small ones. n(·) is :func:`~mc_vision.methods.base.unit`, sg "no gradient",
C the prototypes, rows of length 1::

    z_v = n(head(encoder(x_v))),   S_v = z_v Cᵀ
    Q_i = last B rows of Sinkhorn(sg [queue_i Cᵀ ; S_i]),   i ∈ {1, 2}: small crops are never assigned
    L   = mean over i and v ≠ i of  −mean_b Σ_k Q_i[b, k] · log softmax(S_v[b] / τ)[k]
    then, once per optimizer step: enqueue z_i

As in the released code, L is the mean over i and v (the paper's equations sum; the published learning rates belong to the mean),
and the first steps leave C alone. No pair is ever a negative, so ids play no part.

Ours: scores are taken in float32 whatever the run's precision; a queue is shared by all processes, each of which scores its
share (assignments do not depend on the order of samples), so that a run can be resumed on another number of them; under
accumulation the assignments are those of the whole step.

Legend: B samples of this process and micro-batch, V views, D width of embeddings, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count, groupby, takewhile

import torch
from torch import Tensor, nn

from mc_core.accumulation import first_pass, replay
from mc_core.distributed import rank, world_size
from mc_core.engine.method import Batch, Progress, StepOutput
from mc_core.errors import ConfigError, DataError
from mc_core.heads import ProjectionHead, Prototypes
from mc_core.losses import sinkhorn_assignments, swapped_prediction
from mc_core.queue import FeatureQueue, PendingKeys
from mc_vision.encoders import TimmEncoder
from mc_vision.methods.base import ImageMethod, detached, networks, sync_batchnorm, unit
from mc_vision.methods.swav.config import SwAVConfig

ASSIGNED = 2
"""Views with assignments: the first two."""


class SwAV(ImageMethod):
    """SwAV.

    Args:
        config: see :class:`SwAVConfig`.

    Batches need ``view_1`` and ``view_2``, (B, C, S, S), and may have ``view_3``, …, (B, C, s, s), of any size the encoder
    takes. Logged, as shares of ln K: ``loss_share``, the loss; ``code_entropy_share``, the mean entropy of the assignments;
    ``usage_share``, the entropy of their mean, 1 where all prototypes are used alike. A ``loss_share`` that stays at 1 is
    SwAV's way to fail: the predictions are uniform.
    """

    config: SwAVConfig

    def __init__(self, config: SwAVConfig) -> None:
        super().__init__()
        self.config = config
        encoder = TimmEncoder(config.encoder)
        projector = ProjectionHead(
            encoder.num_features, config.dim, kind=config.projector, hidden_dim=config.hidden_dim
        )
        self.online = networks(encoder, projector)
        if config.sync_bn:
            self.online = sync_batchnorm(self.online)
        self.prototypes = Prototypes(config.dim, config.prototypes)
        queues = ASSIGNED if config.queue_size else 0
        self.queues = nn.ModuleList(FeatureQueue(config.queue_size, config.dim) for _ in range(queues))
        self._pending = PendingKeys()

    def embed(self, views: Sequence[Tensor]) -> Tensor:
        """(V, B, D) unit embeddings: neighbours of one size pass the encoder together, all views the projector."""
        features = [
            self.encoder(torch.cat(list(alike))) for _, alike in groupby(views, key=lambda view: view.shape[2:])
        ]
        z_VB_D = unit(self.online.get_submodule("projector")(torch.cat(features)))
        return z_VB_D.unflatten(0, (len(views), -1))

    def scores(self, embeddings: Tensor) -> Tensor:
        """(…, K) cosines of (…, D) unit embeddings. In bfloat16, rounding would change assignments by up to 4 %."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.prototypes(embeddings.to(self.prototypes.weight.dtype))  # half precision under FSDP2 alone

    @torch.no_grad()
    def codes(self, scores: Tensor) -> Tensor:
        """(2, B, K) assignments, rows summing to 1, of (2, B, K) scores; balanced with the queues' once these are full."""
        if scores.device.type == "cpu" and not scores.sum().isfinite():
            return torch.full_like(scores, math.nan)  # so is the loss then, which the engine reports
        past = [queue.features for queue in self.queues if isinstance(queue, FeatureQueue) and queue.full]
        if len(past) < ASSIGNED:
            return self._balanced(scores.detach())
        own_2LD = torch.stack([rows[rank() :: world_size()] for rows in past])
        together = self._balanced(torch.cat([self.scores(own_2LD), scores], dim=1))
        return together[:, own_2LD.shape[1] :].clone()  # the queue's rows need not live until the backward

    def _balanced(self, scores: Tensor) -> Tensor:
        if not self.config.balanced:
            return (scores.float() / self.config.epsilon).softmax(-1)
        return sinkhorn_assignments(scores, epsilon=self.config.epsilon, iterations=self.config.iterations)

    def prepare_step(self, micro_batches: Sequence[Batch], progress: Progress) -> tuple[Tensor, ...] | None:
        """With several micro-batches: (2, B, K) assignments of each, balanced over all of them."""
        if len(micro_batches) == 1:
            return None
        embeddings = []
        for batch in micro_batches:
            with first_pass(self), replay(progress, batch):
                # small crops matter to the others' embeddings only through the head's BatchNorm
                views = _views(batch) if self.config.projector == "mlp-bn" else _views(batch)[:ASSIGNED]
                embeddings.append(self.embed(views)[:ASSIGNED])
        codes = self.codes(self.scores(torch.cat(embeddings, dim=1)))
        return codes.split([z.shape[1] for z in embeddings], dim=1)

    def training_step(self, batch: Batch, progress: Progress, prepared: tuple[Tensor, ...] | None = None) -> StepOutput:
        """The loss of one micro-batch; its embeddings wait for :meth:`after_step`."""
        views = _views(batch)
        if prepared is None:
            z_VBD = self.embed(views)
        else:
            with replay(progress, batch):
                z_VBD = self.embed(views)
        scores_VBK = self.scores(z_VBD)
        codes_2BK = self.codes(scores_VBK[:ASSIGNED]) if prepared is None else prepared[int(batch["micro"])]
        loss = swapped_prediction(scores_VBK, codes_2BK, temperature=self.config.temperature)
        full_2BD = z_VBD[:ASSIGNED].detach()
        if self.queues and progress.epoch >= self.config.queue_start_epoch:
            self._pending.add(progress.step, full_2BD)
        entropy = torch.special.entr(codes_2BK).sum(-1).mean()
        used = torch.special.entr(codes_2BK.mean((0, 1))).sum()
        ln_k = math.log(self.config.prototypes)
        metrics = detached(loss_share=loss / ln_k, code_entropy_share=entropy / ln_k, usage_share=used / ln_k)
        return StepOutput(loss, metrics, {"query": full_2BD[1], "key": full_2BD[0]})

    def before_optimizer_step(self, progress: Progress) -> None:
        """Drop the prototypes' gradient while they are frozen. A zero one would still decay them and feed their momentum."""
        if progress.step < self.config.freeze_prototypes_steps:
            self.prototypes.weight.grad = None

    def after_step(self, progress: Progress) -> None:
        """Bring the prototypes back to length 1, then enqueue this step's embeddings."""
        self.prototypes.normalise()
        if pending := self._pending.take():
            for queue, rows_BD in zip(self.queues, pending[0], strict=True):
                assert isinstance(queue, FeatureQueue)
                queue.enqueue(rows_BD)

    def check(self, micro_batch_size: int) -> None:
        """A queue holds at least the embeddings of one batch, or it is none."""
        size, batch = self.config.queue_size, micro_batch_size * world_size()
        if 0 < size < batch:
            raise ConfigError(
                f"queue_size {size} is shorter than a batch of {batch}: give --method.queue-size {15 * batch} "
                "(15 batches, as published), or 0 for no queue"
            )

    def advice(self, batch_size: int, data_size: int) -> list[str]:
        """Warn of more prototypes than samples to share among them, and of a queue as long as the data."""
        samples = batch_size + self.config.queue_size
        found = []
        if self.config.prototypes > samples:
            found.append(
                f"{self.config.prototypes} prototypes share {samples} samples of batch and queue, less than one each: "
                f"assignments will be noise; take about {max(2, samples // 2)} (--method.prototypes), a larger batch or a queue"
            )
        if self.config.queue_size >= data_size:
            found.append(
                f"the queue ({self.config.queue_size} embeddings) is as long as the data ({data_size} images): its embeddings "
                "are an epoch old, and come from another network; take a shorter queue (--method.queue-size)"
            )
        return found


def _views(batch: Batch) -> list[Tensor]:
    """``view_1``, ``view_2``, … of a batch, two or more."""
    names = takewhile(batch.__contains__, (f"view_{number}" for number in count(1)))
    views = [batch[name] for name in names]
    if len(views) < ASSIGNED:
        raise DataError(
            f"SwAV predicts one view from another, but batches hold {len(views)} (view_1, view_2, …): give at least two, "
            "such as those of --views.preset swav or swav-small"
        )
    return views
