"""Scene contrast: encoders of image and elevation from scenes without labels, by the parts of MoCo and DCL.

Ours, from published parts: momentum contrast with a queue (He et al. 2020, arXiv:1911.05722; MoCo v2, arXiv:2003.04297) or its
decoupled loss (Yeh et al. 2022, arXiv:2110.06848). Two views of a crop show the same ground, under one geometric and two
photometric changes, or in two seasons of one place. For each modality by itself, with f an encoder, its mean over positions
and a projection::

    q = n(f_θ(view 1)),  k = sg n(f_ξ(view 2)),  Q the queue
    L = −log exp(q·k/τ) / [exp(q·k/τ) + Σ_j exp(q·Q_j/τ)]       DCL: without the first summand of the denominator
    then, once per optimizer step: ξ ← m ξ + (1 − m) θ,  enqueue k

Keys with the id of the query, which are crops of the same place, are never among its negatives. The loss is the mean over
modalities.

Legend: B crops of this process and micro-batch, D width of queries and keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mc_core.engine.method import Batch, Method, Progress, StepOutput
from mc_core.errors import DataError
from mc_core.heads import ProjectionHead
from mc_core.losses import anchor_terms, decoupled_from_terms, info_nce_from_terms, npc_multiplier
from mc_core.momentum import MomentumEncoder
from mc_core.momentum_schedule import horizon_advice
from mc_core.queue import FeatureQueue, PendingKeys
from mc_remote_sensing.encoders import Pyramid, build_pyramid
from mc_remote_sensing.encoders_config import ELEVATION_CHANNELS
from mc_remote_sensing.methods.scene_contrast.config import SceneContrastConfig
from mc_remote_sensing.pretrained import SceneEncoders, SceneEncodersConfig


class ProjectedEncoder(nn.Module):
    """An encoder, the mean over positions of its coarse map, and a projection. (B, C, H, W) → (B, D), not of unit length."""

    def __init__(self, encoder: Pyramid, projector: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Projected features."""
        return self.projector(self.features(x_BCHW))

    def features(self, x_BCHW: Tensor) -> Tensor:
        """(B, out_channels) mean of the coarse map."""
        return self.encoder(x_BCHW.contiguous(memory_format=torch.channels_last))[1].mean((2, 3))


class SceneContrast(Method):
    """MoCo or DCL on crops of unlabelled scenes.

    Args:
        config: see :class:`SceneContrastConfig`.

    Batches need, by modality, ``image_1`` and ``image_2`` (B, C, H, W) in the units of the raster with ``valid_1`` and ``valid_2``
    (B, H, W), ``elevation_1`` and ``elevation_2`` (B, 4, H, W), and may have ``ids`` (B,), the places.
    """

    config: SceneContrastConfig
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: SceneContrastConfig) -> None:
        super().__init__()
        self.config = config
        parts: dict[str, nn.Module] = {}
        for name in config.modalities():
            of, channels = (
                (config.image, config.bands.count) if name == "image" else (config.elevation, ELEVATION_CHANNELS)
            )
            encoder = build_pyramid(of, channels, config.output_stride, norm=config.norm)
            parts[name] = ProjectedEncoder(
                encoder, ProjectionHead(encoder.out_channels, config.dim, kind=config.projector)
            )
        self.online = nn.ModuleDict(parts)
        self.momentum_encoders = nn.ModuleDict(
            {name: MomentumEncoder(part, config.momentum.at(0.0, 256)) for name, part in parts.items()}
        )
        self.queues = nn.ModuleDict(
            {name: FeatureQueue(config.queue_size, config.dim, with_ids=True) for name in parts}
        )
        self._pending = {name: PendingKeys() for name in parts}
        self.register_buffer("mean", torch.tensor(config.bands.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(config.bands.std).view(-1, 1, 1), persistent=False)

    def view(self, batch: Batch, name: str, number: int) -> Tensor:
        """What the encoder of this modality sees as view 1 or 2.

        Raises:
            DataError: the batch has no such view.
        """
        key = f"{name}_{number}"
        if key not in batch:
            raise DataError(f"a batch for scene contrast needs {key}; it has {', '.join(batch)}")
        if name == "elevation":
            return batch[key].float()
        image = (batch[key].float() - self.mean) / self.deviation
        valid = batch.get(f"valid_{number}")
        return image if valid is None else image.masked_fill(~valid[:, None], 0.0)

    def training_step(self, batch: Batch, progress: Progress, prepared: Any = None) -> StepOutput:
        """The loss of one micro-batch; its keys wait for :meth:`after_step`."""
        losses: list[Tensor] = []
        metrics: dict[str, Tensor | float] = {}
        features: dict[str, Tensor] = {}
        for name in self.online:
            query = normalize(self.online[name](self.view(batch, name, 1)).float(), dim=1)
            key = normalize(self.momentum_encoders[name](self.view(batch, name, 2)).float(), dim=1)
            ids = batch["ids"] if "ids" in batch else -1 - batch["index"]
            queue = self.queues[name]
            assert isinstance(queue, FeatureQueue)
            terms = anchor_terms(
                query,
                key,
                queue.features,
                temperature=self.config.temperature,
                query_ids=ids,
                negative_ids=queue.ids,
            )
            loss = decoupled_from_terms(terms) if self.config.loss == "dcl" else info_nce_from_terms(terms)
            losses.append(loss)
            metrics |= {f"{name}_loss": loss.detach(), f"{name}_npc_multiplier": npc_multiplier(terms.detach())}
            features = features or {"query": query, "key": key}
            self._pending[name].add(progress.step, key, ids)
        return StepOutput(torch.stack(losses).mean(), metrics, features)

    def after_step(self, progress: Progress) -> None:
        """Move the key encoders, then enqueue this step's keys."""
        for name, queue in self.queues.items():
            copied = self.momentum_encoders[name]
            assert isinstance(copied, MomentumEncoder)
            assert isinstance(queue, FeatureQueue)
            copied.update(self.config.momentum.at(progress.fraction, progress.batch_size))
            if pending := self._pending[name].take():
                queue.enqueue(*pending)

    def encode(self, batch: Batch) -> Tensor:
        """(B, E) features of the first views, those of all modalities side by side."""
        parts = []
        for name, part in self.online.items():
            assert isinstance(part, ProjectedEncoder)
            parts.append(part.features(self.view(batch, name, 1)))
        return torch.cat(parts, dim=1)

    def export_module(self) -> SceneEncoders:
        """The encoders without projections."""
        config, trained = self.config, self.config.modalities()
        encoders: dict[str, Pyramid] = {}
        for name in trained:
            part = self.online[name]
            assert isinstance(part, ProjectedEncoder)
            encoders[name] = part.encoder
        return SceneEncoders(
            SceneEncodersConfig(
                bands=config.bands,
                image=config.image if "image" in trained else None,
                elevation=config.elevation if "elevation" in trained else None,
                output_stride=config.output_stride,
                norm=config.norm,
            ),
            encoders,
        )

    def advice(self, batch_size: int, data_size: int) -> list[str]:
        """Warn of a key encoder too fast for its queue."""
        found = horizon_advice(self.config.momentum.at(0.0, batch_size), self.config.queue_size, batch_size)
        return [found] if found else []
