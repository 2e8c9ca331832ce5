"""Stage 2 of Astrea (arXiv:2503.09445, of which only the abstract could be read): adapters, router and fusion, trained together by
momentum contrast on the maps of frozen experts.

One step, θ trained, θ′ its moving average, both on the same maps, computed once::

    F      = experts( views )                             no gradient
    v′, t′ = θ′( F, texts )                               all micro-batches of all processes, with their ids: prepare_step
    v, t   = θ( F, texts )                                shortcut and expert dropout drawn for each sample
    L      = L_mc( v, t against [t′ ; Q_t], [v′ ; Q_v] ) + λ_bal L_bal + λ_z L_z
    then     α and β, θ′ ← m θ′ + (1 − m) θ, enqueue v′, t′                                         after_step

Keys are those of the whole step, so that micro-batches and processes give the contrast of the undivided batch; balance alone is
taken within each. The moving average moves after the optimizer's step, as everywhere in this project: the same sequence as
moving it before the next forward pass. θ′ sees the expectation of the shortcut.

Legend: B pairs, n of this process in a step, N of all processes, K keys of a queue, e width of the shared space, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mc_core.distributed import all_reduce_mean, all_reduce_sum, gather_rows, rank
from mc_core.engine.method import Batch, Progress, StepOutput
from mc_core.errors import ConfigError
from mc_core.momentum import MomentumEncoder
from mc_core.paired_losses import same_thing
from mc_core.queue import FeatureQueue
from mc_vision_language.methods.astrea.adapters import on_grid
from mc_vision_language.methods.astrea.base import AstreaMethod
from mc_vision_language.methods.astrea.config import AstreaConfig
from mc_vision_language.methods.astrea.fusion import Fused
from mc_vision_language.methods.astrea.loss import (
    balance_loss,
    contrast,
    contrast_logits,
    importance_loss,
    normalised_entropy,
    z_loss,
)
from mc_vision_language.methods.astrea.model import AstreaFusion, Seen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SIDES = ("text", "image")


@dataclass(frozen=True)
class Keys:
    """What the moving average makes of a step.

    Attributes:
        maps: of each micro-batch, on the grid.
        residuals: (B, N, d) R of each micro-batch, or None.
        keys: side → (N, e) unit rows of all processes.
        ids: side → (N,) int64.
        starts: place of each micro-batch's first row among ``keys``.
    """

    maps: list[dict[str, Tensor]]
    residuals: list[Tensor | None]
    keys: dict[str, Tensor]
    ids: dict[str, Tensor]
    starts: list[int]


class AstreaJoint(AstreaMethod):
    """Momentum contrast of adapters, router and fusion.

    Args:
        config: see :class:`~mc_vision_language.methods.astrea.config.AstreaConfig`.
        tokenizer: of the captions.
        model: to train, such as one with pre-aligned adapters; its adapters, as they are now, are what the shortcut ``pre`` takes.

    Attributes:
        teacher: θ′.
        queues: keys of θ′ by side, ``text`` and ``image``; empty with ``queue_size`` 0.

    Batches: ``view`` (B, 3, S, S) in [0, 1] or kept maps (:data:`~mc_vision_language.methods.astrea.base.MAP`), ``input_ids`` and
    ``attention_mask`` (B, L), ``image_ids`` and ``text_ids`` (B,), ``index`` and ``epoch``.

    Raises:
        ConfigError: settings that do not fit the model, or parts that cannot be had.
    """

    def __init__(
        self,
        config: AstreaConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(config, tokenizer, model)
        self.start_shortcut()
        self.teacher: MomentumEncoder | None = None
        self.queues = nn.ModuleDict()
        self.model.train_only(*self.trained_parts())
        if self.contrast_weight:
            self.teacher = MomentumEncoder(self.fusion, self.config.momentum, buffers="copy", evaluation_mode=True)
            for side in _SIDES if self.config.queue_size else ():
                self.queues[side] = FeatureQueue(self.config.queue_size, self.config.dim, with_ids=True)
        self._fresh: dict[str, tuple[Tensor, Tensor]] = {}
        self._useful: dict[tuple[int, str], Tensor] = {}
        self._load: dict[tuple[int, str], Tensor] = {}

    def start_shortcut(self) -> None:
        """The shortcut takes the adapters as they are now."""
        if self.config.reference:
            self.model.own.take_reference()

    @property
    def contrast_weight(self) -> float:
        """Of L_mc."""
        return 1.0

    def trained_parts(self) -> list[nn.Module | nn.Parameter]:
        """What takes gradient."""
        return [self.fusion]

    def prepare_step(self, micro_batches: Sequence[Batch], progress: Progress) -> Keys:
        """Maps of all micro-batches, and θ′'s view of them."""
        maps = [on_grid(self.maps(batch), self.fusion.block.features, self.config.grid) for batch in micro_batches]
        residuals = [self.model.own.residual(one) for one in maps]
        starts, keys, ids = [0], {}, {}
        if self.teacher is not None:
            taught: list[Seen] = [
                self.teacher(one, batch["input_ids"], batch["attention_mask"], residual=residual)
                for one, residual, batch in zip(maps, residuals, micro_batches, strict=True)
            ]
            for side in _SIDES:
                own = torch.cat([getattr(one, side) for one in taught])
                own_ids = torch.cat([batch[f"{side}_ids"] for batch in micro_batches])
                self._fresh[side] = own, own_ids
                keys[side], ids[side] = gather_rows(own), gather_rows(own_ids)
            first = rank() * sum(len(one.image) for one in taught)
            starts = [first + sum(len(one.image) for one in taught[:micro]) for micro in range(len(taught))]
        return Keys(maps, residuals, keys, ids, starts)

    def prepared(self, batch: Batch, progress: Progress, found: Keys | None) -> tuple[Keys, int]:
        """What :meth:`prepare_step` found, and the place of the micro-batch in it; made now where the step is this batch alone."""
        if found is not None:
            return found, int(batch["micro"])
        with torch.no_grad():
            return self.prepare_step([batch], progress), 0

    def training_step(self, batch: Batch, progress: Progress, prepared: Keys | None = None) -> StepOutput:
        """L of one micro-batch."""
        prepared, micro = self.prepared(batch, progress, prepared)
        seen = self.fusion(
            prepared.maps[micro],
            batch["input_ids"],
            batch["attention_mask"],
            residual=prepared.residuals[micro],
            draws=self.draws(batch, progress),
        )
        self.watch(seen.fused, micro)
        losses = {"contrast": self.contrast(seen, prepared, micro)} | self.balance(seen.fused)
        metrics: dict[str, Tensor | float] = {name: loss.detach() for name, loss in losses.items()}
        metrics["logit_scale"] = self.fusion.logit_scale.detach()
        key = self._own(prepared, "text", micro, len(seen.image))
        return StepOutput(
            torch.stack([self.weight_of(name) * loss for name, loss in losses.items()]).sum(),
            metrics | self.router_metrics(seen.fused),
            {"query": seen.image, "key": key},
        )

    def weight_of(self, name: str) -> float:
        """λ of a part of the loss."""
        return {
            "contrast": self.contrast_weight,
            "balance": self.config.balance_weight,
            "z": self.config.balance.z,
        }[name]

    def contrast(self, seen: Seen, prepared: Keys, micro: int) -> Tensor:
        """L_mc of a micro-batch against the keys of the step and of the queues."""
        with torch.autocast(seen.image.device.type, enabled=False):
            soft, scale = self.config.soft_targets, self.fusion.logit_scale.to(seen.image.dtype).exp()
            logits, taught = [], []
            for query, own, other in ((seen.image, "image", "text"), (seen.text, "text", "image")):
                keys, queue = prepared.keys[other], self._queued(other)
                logits.append(contrast_logits(query, keys, queue, scale))
                if soft:
                    asked = self._own(prepared, own, micro, len(query)).to(query.dtype)
                    taught.append(contrast_logits(asked, keys, queue, scale.detach()))
            same = self._same(prepared, micro, len(seen.image))
            # the mean over rows of both directions is half of each
            return contrast(torch.stack(logits), same, torch.stack(taught) if soft else None, soft)

    def balance(self, fused: Fused) -> dict[str, Tensor]:
        """L_bal or L_imp, and L_z, of a micro-batch; nothing for the baselines."""
        if not self.config.routes or fused.probabilities is None or fused.selected is None or fused.logits is None:
            return {}
        losses = {}
        if self.config.balance_weight:
            kind = self.config.balance.kind
            p = fused.probabilities
            losses["balance"] = importance_loss(p) if kind == "importance" else balance_loss(p, fused.selected)
        if self.config.balance.z:
            losses["z"] = z_loss(fused.logits)
        return losses

    def _same(self, prepared: Keys, micro: int, count: int) -> Tensor:
        """(B, N + K) which pairs of step and queues show the same picture or say the same as each pair of a micro-batch."""
        first = prepared.starts[micro]
        held = 0 if "text" not in self.queues else len(self._queue("text"))
        total = len(prepared.ids["text"])
        if not self.config.ids:
            device = prepared.ids["text"].device
            own = torch.arange(first, first + count, device=device)
            return own[:, None] == torch.arange(total + held, device=device)
        rows = [prepared.ids[side][first : first + count] for side in _SIDES]
        known = [
            torch.cat([prepared.ids[side], _ids(self._queue(side))]) if held else prepared.ids[side] for side in _SIDES
        ]
        return same_thing(rows, known)

    def _own(self, prepared: Keys, side: str, micro: int, count: int) -> Tensor:
        """(B, e) the keys of a micro-batch."""
        first = prepared.starts[micro]
        return prepared.keys[side][first : first + count]

    def _queued(self, side: str) -> Tensor | None:
        return self._queue(side).features if side in self.queues else None

    def _queue(self, side: str) -> FeatureQueue:
        queue = self.queues[side]
        assert isinstance(queue, FeatureQueue)
        return queue

    def watch(self, fused: Fused, micro: int, name: str = "") -> None:
        """Take note of how useful each expert turns out to be, and of the load, for :meth:`after_step`."""
        weights = fused.weights
        if not self.config.routes or weights is None or fused.selected is None:
            return
        place = micro, name
        if self.config.biased:
            self._load[place] = fused.selected.flatten(0, -2).sum(0)
        if weights.requires_grad:
            held = weights.detach()

            def note(gradient: Tensor) -> None:
                self._useful[place] = -(held * gradient).flatten(0, -2).sum(0)

            weights.register_hook(note)

    @torch.no_grad()
    def router_metrics(self, fused: Fused) -> dict[str, Tensor | float]:
        """Mean weight and share of selections of each expert, their entropy, and usefulness in the step before."""
        weights, router = fused.weights, self.fusion.router
        if router is None or weights is None or fused.selected is None:
            return {}
        experts = len(self.config.kinds)
        mean = weights.flatten(0, -2).mean(0)
        each = -torch.special.xlogy(weights, weights).sum(-1).mean() / math.log(max(experts, 2))
        found: dict[str, Tensor | float] = {"entropy": normalised_entropy(mean[None]), "entropy_each": each}
        named = {
            "weight": mean,
            "load": fused.selected.flatten(0, -2).sum(0) / fused.selected[..., 0].numel(),
            "usefulness": router.allocator.last.clone(),  # moves in place
        }
        if self.config.allocator:
            named["alpha"] = router.allocator.alpha(self.config.allocator)
        if router.bias is not None:
            named["beta"] = router.bias.beta.clone()
        for name, values in named.items():
            found |= {f"{name}/{kind}": value for kind, value in zip(self.config.kinds, values.unbind(), strict=True)}
        return found

    def after_step(self, progress: Progress) -> None:
        """Keep s within its bounds, calibrate the router, move θ′, then enqueue this step's keys."""
        self.fusion.clamp_temperature()
        router = self.fusion.router
        if router is not None and self._useful:
            router.allocator.update(all_reduce_mean(torch.stack(list(self._useful.values())).sum(0).float()))
        if router is not None and router.bias is not None and self._load:
            load = all_reduce_sum(torch.stack(list(self._load.values())).sum(0))
            router.bias.update(load.float(), self.config.balance.speed)
        self._useful.clear()
        self._load.clear()
        if self.teacher is None:
            return
        self.teacher.update()
        if self.config.reference and self.config.residual.source == "ema":
            adapters = self.taught.adapters
            assert adapters is not None
            self.model.own.follow(adapters)
        for side, (keys, ids) in self._fresh.items():
            if side in self.queues:
                self._queue(side).enqueue(keys, ids)
        self._fresh.clear()

    @property
    def taught(self) -> AstreaFusion:
        """The network of θ′."""
        assert self.teacher is not None
        module = self.teacher.module
        assert isinstance(module, AstreaFusion)
        return module

    def check(self, micro_batch_size: int) -> None:
        """Refuse a batch of one without a queue, which has no negatives."""
        if micro_batch_size < 2 and not self.config.queue_size:
            raise ConfigError(
                f"{micro_batch_size} pair per process and micro-batch has no other to be told from: take a larger "
                "fit.batch_size, or a queue (method.queue_size)"
            )

    def advice(self, batch_size: int, data_size: int) -> list[str]:
        """Warn of a queue as long as the data, of keys older than θ′'s memory, and of a bias for whole pictures."""
        told: list[str] = []
        size, config = self.config.queue_size if self.queues else 0, self.config
        if size and size + batch_size > data_size:
            both = f"batch and queue ({batch_size} + {size} keys) are as long as the data ({data_size} pairs)"
            told.append(
                f"{both}, so that pairs meet themselves as negatives: set method.ids, or a smaller method.queue_size"
                if not config.ids
                else f"{both}: with so few pairs a shorter queue, or none (method.queue_size 0), found more in our measurements, "
                "and so did pre-alignment with the shortcut (method.prealign.mode parallel, method.residual.probability 0.5)"
            )
        horizon = 1 / (1 - config.momentum) if config.momentum < 1 else math.inf
        if size / batch_size > horizon:
            told.append(
                f"the oldest of {size} keys are {size / batch_size:.0f} steps old, more than the {horizon:.0f} that the "
                "moving average looks back: set a higher method.momentum or a smaller method.queue_size"
            )
        if config.biased and config.router.per == "image":
            told.append(
                "a balancing bias with weights for whole pictures moves the same experts in and out for a whole batch: set "
                "method.router.per token, or method.balance.kind loss"
            )
        return told


def _ids(queue: FeatureQueue) -> Tensor:
    assert queue.ids is not None
    return queue.ids
