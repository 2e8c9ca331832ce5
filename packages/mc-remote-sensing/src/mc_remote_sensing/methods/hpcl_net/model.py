"""HPCL-Net: a hyper-pixel-wise contrastive learning network; Zhou et al. 2023, arXiv:2308.01251.

Of the paper only the abstract could be read. It says: image and elevation are fused as features; samples of the contrast are
hyper-pixels, taken at landslide boundaries; they live in global queues of sample pairs; their keys come from a momentum encoder.
Everything else here is ours, and no number of ours is the paper's. With θ the network, ξ its slow copy, x and d image and
elevation, x' and d' the same ground with other photometric changes::

    z  = n(g_θ(F_θ(x, d)))      embeddings of the cells of the coarse map F (hyper-pixels), n unit length
    z' = sg n(g_ξ(F_ξ(x', d')))
    L  = L_ce + λ(t) · L_hp     L_hp of z at anchors against z' at key cells and two queues, see loss.py
    then, once per optimizer step: ξ ← m_t ξ + (1 − m_t) θ,  enqueue the keys of the step, by class

Key cells are drawn from the labels alone, anchors also by where the prediction is wrong; the key of an anchor's own cell is always
among its positives. Keys are those of all micro-batches and processes, and L_ce and L_hp are means over the whole step, so that
neither accumulation nor the number of processes changes the loss. The copy runs in eval mode, on running statistics.

Legend: B tiles of this process and micro-batch, H × W pixels, N cells of a tile, M cells drawn of a tile and class, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, softplus

from mc_core.distributed import all_reduce_sum, gather_rows, world_size
from mc_core.engine.method import Batch, Method, Progress, StepOutput
from mc_core.errors import DataError
from mc_core.momentum import MomentumEncoder
from mc_core.momentum_schedule import horizon_advice
from mc_core.queue import FeatureQueue
from mc_core.random import BatchRandom
from mc_remote_sensing.hyper_pixels import (
    IGNORE,
    Cells,
    HyperPixels,
    candidates,
    draw_anchors,
    draw_keys,
    hyper_pixels,
)
from mc_remote_sensing.methods.hpcl_net.config import HPCLNetConfig
from mc_remote_sensing.methods.hpcl_net.loss import Anchors, Keys, hyper_pixel_contrast
from mc_remote_sensing.methods.hpcl_net.network import HyperPixelNetwork, SegmentationNetwork
from mc_remote_sensing.model import SegmentationConfig, SegmentationModel
from mc_remote_sensing.pretrained import load_encoders

_KEY_CELLS, _ANCHOR_CELLS, _MODALITY = 0x4B, 0x41, 0x4D  # streams of random numbers


@dataclass(frozen=True)
class _Micro:
    """Of one micro-batch: its cells, who may be drawn, the copy's embeddings (B, N, D), the keys among them."""

    cells: HyperPixels
    may_B2N: Tensor
    embedded_BND: Tensor
    keys: Cells
    random: BatchRandom


@dataclass(frozen=True)
class _Step:
    """Of the whole optimizer step: the keys of each class, and what the sums of L_ce and L_hp are divided by."""

    pixels: Tensor
    micro: list[_Micro]
    keys: tuple[Keys, ...] = ()
    anchors: Tensor | None = None


class HPCLNet(Method):
    """Segmentation from image and elevation with hyper-pixel contrast.

    Args:
        config: see :class:`HPCLNetConfig`.

    Batches need ``labels`` (B, H, W) of 0, 1 and 255, by modality ``image`` (B, C, H, W) in the units of the raster and
    ``elevation`` (B, 4, H, W), and may have ``image_valid`` (B, H, W). For the contrast, ``image_2`` and ``elevation_2`` are
    the same ground with other photometric changes (:class:`mc_remote_sensing.augment.TileAugment`); without them keys see
    what anchors see.
    """

    config: HPCLNetConfig

    def __init__(self, config: HPCLNetConfig) -> None:
        super().__init__()
        self.config = config
        segmenter = SegmentationNetwork(config.network, config.bands)
        load_encoders(segmenter, image=config.pretrained_image, elevation=config.pretrained_elevation)
        self.online = HyperPixelNetwork(segmenter, config.dim if config.contrast else None)
        self.momentum_encoder: MomentumEncoder | None = None
        if config.contrast or config.keep == "average":
            self.momentum_encoder = MomentumEncoder(
                self.online, config.momentum_at(0, 0.0, 1), buffers="copy", evaluation_mode=True
            )
        queues = 2 if config.contrast and config.queue_size else 0
        self.queues = nn.ModuleList(FeatureQueue(config.queue_size, config.dim) for _ in range(queues))
        self._pending: list[tuple[Tensor, Tensor]] = []  # of each class: keys of the running step, and which count

    @property
    def segmenter(self) -> SegmentationNetwork:
        """The network that is kept: the trained one, or its moving average."""
        network: nn.Module = self.online
        if self.config.keep == "average" and self.momentum_encoder is not None:
            network = self.momentum_encoder.module
        assert isinstance(network, HyperPixelNetwork)
        return network.segmenter

    def queue(self, of_class: int) -> FeatureQueue:
        """The keys of earlier steps that lie in background (0) or target (1)."""
        found = self.queues[of_class]
        assert isinstance(found, FeatureQueue)
        return found

    @torch.no_grad()
    def prepare_step(self, micro_batches: Sequence[Batch], progress: Progress) -> _Step:
        """Embed the second views by the slow copy, and draw the keys of the whole step."""
        share = world_size() * len(micro_batches)  # the engine takes the mean over processes and micro-batches
        pixels = torch.stack([(batch["labels"] != IGNORE).sum() for batch in micro_batches]).sum()
        pixels = all_reduce_sum(pixels) / share
        if not self.config.contrast:
            return _Step(pixels, [])
        micro = [self._look(batch, progress) for batch in micro_batches]
        self._pending = [
            (
                torch.cat([m.keys.take(m.embedded_BND)[:, of_class].flatten(0, 1) for m in micro]),
                torch.cat([m.keys.valid[:, of_class].flatten() for m in micro]),
            )
            for of_class in (0, 1)
        ]
        keys = tuple(self._keys(of_class) for of_class in (0, 1))
        other_exists = torch.stack([keys[1].valid.any(), keys[0].valid.any()])
        possible = torch.stack([m.may_B2N.sum(2).clamp(max=self.config.cells_per_class).sum(0) for m in micro])
        anchors = (possible * other_exists).sum(1).clamp(max=self.config.max_anchors).sum()
        return _Step(pixels, micro, keys, all_reduce_sum(anchors) / share)

    def _look(self, batch: Batch, progress: Progress) -> _Micro:
        """What the labels and the slow copy say of one micro-batch."""
        config = self.config
        random = BatchRandom(progress.run_seed, int(batch.get("epoch", 0)), batch["index"])
        cells = hyper_pixels(batch["labels"], config.network.output_stride)
        may_B2N = candidates(cells, uniform=config.sampling == "uniform")
        u_BN = random.uniform(may_B2N.shape[2], stream=_KEY_CELLS)
        keys = draw_keys(
            may_B2N, cells, u_BN, per_class=config.cells_per_class, background_cells=config.background_cells
        )
        segmenter = self.online.segmenter
        inputs = segmenter.inputs(
            batch.get("image_2", batch.get("image")),
            batch.get("elevation_2", batch.get("elevation")),
            batch.get("image_valid"),
        )
        assert self.momentum_encoder is not None
        _, embedded_BND = self.momentum_encoder(inputs, decode=False)
        return _Micro(cells, may_B2N, embedded_BND, keys, random)

    def _keys(self, of_class: int) -> Keys:
        """The step's keys of a class, from all processes, and those of its queue."""
        features, valid = (gather_rows(part) for part in self._pending[of_class])
        if len(self.queues):
            queued = self.queue(of_class).features
            features = torch.cat([features, queued])
            valid = torch.cat([valid, valid.new_ones(len(queued))])
        return Keys(features, valid)

    def training_step(self, batch: Batch, progress: Progress, prepared: _Step | None = None) -> StepOutput:
        """L of one micro-batch, as its share of the step's means."""
        step = self.prepare_step([batch], progress) if prepared is None else prepared
        number = 0 if prepared is None else int(batch.get("micro", 0))
        logits_BHW, embedded_BND = self.online(self._inputs(batch, progress))
        labels = batch["labels"]
        if logits_BHW.shape != labels.shape:
            raise DataError(f"labels {tuple(labels.shape)} do not fit the tiles {tuple(logits_BHW.shape)}")
        loss = cross_entropy(logits_BHW, labels) / step.pixels.clamp(min=1)
        metrics: dict[str, Tensor | float] = {"cross_entropy": loss.detach()}
        if step.anchors is None:
            return StepOutput(loss, metrics)
        anchors = self._draw(step.micro[number], logits_BHW.detach(), embedded_BND)
        contrast = hyper_pixel_contrast(
            anchors,
            step.keys,
            temperature=self.config.temperature,
            positives=self.config.positives,
            count=step.anchors,
        )
        weight = self.config.weight_at(progress.step, progress.total_steps)
        metrics |= {"contrast": contrast.detach(), "contrast_weight": weight, "anchors": step.anchors}
        # at a weight of 0 the embeddings are not trained: that they lie together is then nothing to stop for
        features = {"query": torch.cat([a.query for a in anchors])} if self.config.weight else {}
        return StepOutput(loss + weight * contrast, metrics, features)

    def _inputs(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """First views, some tiles without their elevation."""
        elevation = batch.get("elevation")
        if elevation is not None and self.config.modality_dropout and self.training:
            random = BatchRandom(progress.run_seed, int(batch.get("epoch", 0)), batch["index"])
            hidden_B = random.uniform(1, stream=_MODALITY)[:, 0] < self.config.modality_dropout
            elevation = elevation.masked_fill(hidden_B[:, None, None, None], 0.0)
        return self.online.segmenter.inputs(batch.get("image"), elevation, batch.get("image_valid"))

    def _draw(self, micro: _Micro, logits_BHW: Tensor, embedded_BND: Tensor) -> tuple[Anchors, ...]:
        """Anchors of both classes, half of them where the prediction is wrong."""
        config, cells = self.config, micro.cells
        probability = avg_pool2d(logits_BHW.float().sigmoid()[:, None], config.network.output_stride)[:, 0]
        wrong_BN = ((probability >= 0.5) != cells.target).flatten(1)
        u_BN = micro.random.uniform(wrong_BN.shape[1], stream=_ANCHOR_CELLS)
        drawn = draw_anchors(micro.may_B2N, wrong_BN, u_BN, per_class=config.cells_per_class, most=config.max_anchors)
        query, own = drawn.take(embedded_BND), drawn.take(micro.embedded_BND)
        is_key = drawn.take(micro.keys.marks(wrong_BN.shape[1])[..., None])[..., 0]
        return tuple(
            Anchors(
                query[:, of_class].flatten(0, 1),
                own[:, of_class].flatten(0, 1),
                ~is_key[:, of_class].flatten(),
                drawn.valid[:, of_class].flatten(),
            )
            for of_class in (0, 1)
        )

    def before_optimizer_step(self, progress: Progress) -> None:
        """At λ = 0 leave the projection out: not even the gradient's norm shall know of it."""
        if not self.config.weight and self.online.projection is not None:
            for parameter in self.online.projection.parameters():
                parameter.grad = None

    def after_step(self, progress: Progress) -> None:
        """Move the slow copy, then enqueue the step's keys: none was compared with itself."""
        if self.momentum_encoder is not None:
            self.momentum_encoder.update(self.config.momentum_at(progress.step, progress.fraction, progress.batch_size))
        pending, self._pending = self._pending, []
        for of_class, (features, valid) in enumerate(pending if len(self.queues) else []):
            self.queue(of_class).enqueue(features, keep=valid)

    def encode(self, batch: Batch) -> Tensor:
        """(B, F) mean of the fused coarse map of raw tiles."""
        inputs = self.segmenter.inputs(batch.get("image"), batch.get("elevation"), batch.get("image_valid"))
        return self.segmenter.encode(inputs)[0].mean((2, 3))

    def export_module(self) -> SegmentationModel:
        """The segmentation network with bands, statistics and resolution, without the heads of the contrast."""
        config = self.config
        return SegmentationModel(
            SegmentationConfig(
                network=config.network, bands=config.bands, target=config.target, resolution_m=config.resolution_m
            ),
            self.segmenter,
        )

    def advice(self, batch_size: int, data_size: int) -> list[str]:
        """Warn of a copy too fast for its queues, and of a fusion that looks at whole tiles."""
        config, found = self.config, []
        if self.queues and config.momentum_keys:
            keys = max(1, batch_size * config.cells_per_class // 2)  # about half of the tiles have a boundary
            found.append(horizon_advice(config.momentum.at(0.0, batch_size), config.queue_size, keys))
        if config.network.modality == "fused" and config.network.fusion == "squeeze":
            found.append(
                "fusion squeeze weighs channels by their mean over the tile: a map will depend on how it is cut into tiles; "
                "set --method.network.fusion position"
            )
        return [text for text in found if text]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over labelled pixels of −log of the probability that a softmax over two classes gives the right one.

    Args:
        logits: (B, H, W) log-odds of class 1.
        labels: (B, H, W) of 0, 1 and 255, which is ignored.

    >>> float(cross_entropy(torch.zeros(1, 1, 3), torch.tensor([[[0, 1, 255]]])))  # 2 log 2
    1.3862943649291992
    """
    logits = logits.float()
    # of the wrong class minus of the right one
    behind = torch.where(labels == 1, -logits, logits)
    return softplus(behind).masked_fill(labels == IGNORE, 0.0).sum()
