"""MSD: Pham, Pham and Ly 2025 (WACV 2026), "Boosting Medical Vision-Language Pretraining via Momentum Self-Distillation under
Limited Computing Resources", arXiv:2512.02438.

What the abstract fixes: momentum self-distillation, and momentum together with gradient accumulation, so that the contrastive
batch is large on one small GPU. The equations of :mod:`~mc_medical.methods.msd.loss` are our reading of it, after ALBEF
(arXiv:2107.07651), with the teacher's keys of the whole accumulated batch in place of those of the micro-batch. Each optimizer
step has N pairs in micro-batches of b::

    pass 1   G_I = g_I(images), G_T = g_T(texts) of all N pairs, without activations             prepare_step
    pass 2   for each micro-batch R: L_R of f_I, f_T against G_I, G_T; backward                  training_step
    then     clip, optimizer step, clamp κ, ξ ← m ξ + (1 − m) θ, once                            after_step

f, θ are trained; g, ξ the teacher, which is a moving average of encoders and projections, in evaluation mode. Only b pairs are in
the graph at any time.

``keys`` chooses what is contrasted with: ``ema`` as above; ``grad_cache``, the trained encoders themselves with the gradient of
both sides (GradCache, arXiv:2101.06983); ``grad_cache+ema_targets``, the same with targets from the teacher (ours); ``batch``, the
micro-batch alone, which is plain accumulation, and the true large batch where there is one micro-batch.

Ours are: all numbers, several positives (the same study or the same text), the teacher's horizon in pairs and its ramp, its own
random view of each image, the queue, and the intra-modal terms.

Legend: b pairs of a micro-batch, n of this process in a step, N of all processes (and a queue), d width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mc_core.accumulation import CachedGradients, StepRows, encode_step, first_pass, replay
from mc_core.distributed import gather_rows, gather_rows_with_grad
from mc_core.engine.method import Batch, Method, Progress, StepOutput
from mc_core.errors import ConfigError
from mc_core.momentum import MomentumEncoder
from mc_core.paired_losses import same_thing, two_sided_gradients
from mc_core.queue import FeatureQueue, PendingKeys
from mc_medical.encoders import batch_norm_message
from mc_medical.encoders_config import ImageTextConfig
from mc_medical.methods.msd.config import MSDConfig
from mc_medical.methods.msd.loss import PairTargets, distillation_loss, in_batch_loss, pair_targets
from mc_medical.model import ImageTextModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CITATION = """@inproceedings{pham2026msd,
  title = {Boosting Medical Vision-Language Pretraining via Momentum Self-Distillation under Limited Computing Resources},
  author = {Pham, Phuc and Pham, Nhu and Ly, Ngoc Quoc},
  booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision},
  year = {2026}
}"""
_IDS = ("study_ids", "text_ids")
# Pairs that the teacher takes at once: without activations there is room for more than a micro-batch. On a CPU more than this
# no longer fits its caches.
_TEACHER_ROWS = {"cpu": 32, "cuda": 128}
_INTENDED = (
    "For research on radiographs and reports. Not a medical device: not for diagnosis or treatment. It learns what its training "
    "data show, their habits and shortcuts (drains, markers, devices, wards) included, and was not tested on other hospitals. "
    "Whether weights may be passed on is for the agreement to say under which the data were used."
)


@dataclass(frozen=True)
class StepKeys:
    """What one optimizer step is contrasted with: constants.

    Attributes:
        own: rows of this process by micro-batch: images (n, d), texts (n, d), study ids, text ids.
        keys: (N, d) images and texts, of all processes, then of the queue.
        ids: (N,) study ids and text ids of the keys.
        alpha: share of the targets that comes from the teacher.
        micro_batches: how many there are in this process.
        cached: gradients of the whole batch's loss, where ``keys`` asks for them.
    """

    own: StepRows
    keys: tuple[Tensor, Tensor]
    ids: tuple[Tensor, Tensor]
    alpha: float
    micro_batches: int
    cached: CachedGradients | None = None


class MSD(Method):
    """Momentum self-distillation of an image and a text encoder.

    Args:
        config: see :class:`MSDConfig`.
        tokenizer: of the reports; default: that of ``config.text.name``.
        model: to train instead of the one that ``config`` describes.

    Batches are those of :class:`mc_medical.data.pairs.PairData`: ``view_1`` and ``view_2`` (b, 1, S, S) in [0, 1], ``input_ids``
    and ``attention_mask`` (b, L), ``study_ids`` and ``text_ids`` (b,).

    Raises:
        ConfigError: encoders that cannot be had, or with BatchNorm that is not frozen.
    """

    config: MSDConfig
    streams_micro_batches = True

    def __init__(
        self, config: MSDConfig, tokenizer: PreTrainedTokenizerFast | None = None, model: ImageTextModel | None = None
    ) -> None:
        super().__init__()
        if model is None:
            model = ImageTextModel(
                ImageTextConfig(**{n: getattr(config, n) for n in ImageTextConfig.model_fields}), tokenizer
            )
        self.config = config.model_copy(update={n: getattr(model.config, n) for n in ImageTextConfig.model_fields})
        self.model = model
        self.teacher: MomentumEncoder | None = None
        if config.has_teacher:
            self.teacher = MomentumEncoder(model.encoders, buffers="copy", evaluation_mode=True)
        self.queues = nn.ModuleDict()
        self._pending: dict[str, PendingKeys] = {}
        for name in ("text", "image") if config.queue_size else ():
            self.queues[name] = FeatureQueue(config.queue_size, config.dim, with_ids=True)
            self._pending[name] = PendingKeys()

    @property
    def kappa(self) -> Tensor:
        """κ = 1/τ, a scalar with gradient."""
        return self.model.logit_scale.exp()

    def needs(self, phase: str) -> tuple[str, ...] | None:
        """The teacher looks at the second view, the trained encoders at the first."""
        if phase == "train" or self.config.keys == "grad_cache":
            return ("view_1",)
        return ("view_2",) if self.config.keys == "ema" else ("view_1", "view_2")

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(b, d) unit rows u and v."""
        return self.model(batch["view_1"], batch["input_ids"], batch["attention_mask"])

    @torch.no_grad()
    def teach(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(b, d) unit rows of the teacher."""
        assert self.teacher is not None
        return self.teacher(batch["view_2"], batch["input_ids"], batch["attention_mask"])

    def prepare_step(self, micro_batches: Sequence[Batch], progress: Progress) -> StepKeys | None:
        """Pass 1: keys of the whole batch, without activations; for GradCache also the gradient at the embeddings."""
        keys = self.config.keys
        if keys == "batch":
            return None

        def encode(batch: Batch) -> tuple[Tensor, ...]:
            made: tuple[Tensor, ...] = ()
            if keys != "grad_cache":
                made = self.teach(batch)
            if keys != "ema":
                with first_pass(self), replay(progress, batch):
                    made = (*self.embed(batch), *made)
            return (*made, *(batch[name] for name in _IDS))

        # what draws at random must see the micro-batches that are trained; the teacher draws nothing
        together = _TEACHER_ROWS.get(self.model.logit_scale.device.type, 1) if keys == "ema" else 1
        own = encode_step(micro_batches, encode, rows=together)
        *rows, studies, texts = own.values
        held = [self._queue(name) for name in ("image", "text")] if self.queues else []
        gathered = [gather_rows(part) for part in rows[-2:]]
        ids = [gather_rows(studies), gather_rows(texts)]
        if held:
            gathered = [torch.cat([k, q.features]) for k, q in zip(gathered, held, strict=True)]
            ids = [torch.cat([i, _ids(q)]) for i, q in zip(ids, held, strict=True)]
        alpha = self.config.alpha_at(progress.step / max(progress.steps_per_epoch, 1))
        step = StepKeys(own, (gathered[0], gathered[1]), (ids[0], ids[1]), alpha, len(micro_batches))
        return step if keys == "ema" else self._cached(step)

    def _cached(self, step: StepKeys) -> StepKeys:
        """With the gradient of the two-sided loss of the whole batch at each embedding and at log κ."""
        kappa = self.kappa.detach()
        image, text, *_ = step.own.values
        sizes = [step.own.rows(micro) for micro in range(step.micro_batches)]

        def targets(rows: slice, of_text: bool) -> Tensor:
            return self._targets(step, rows)[int(of_text)]

        found = two_sided_gradients(image, text, kappa, targets, rows=max(part.stop - part.start for part in sizes))
        cached = CachedGradients(
            found.loss,
            [(found.left[part], found.right[part]) for part in sizes],
            {"temperature": 1 / kappa, "alpha": step.alpha},
            shared=(found.scale * kappa,),
        )
        return StepKeys(step.own, step.keys, step.ids, step.alpha, step.micro_batches, cached)

    def _targets(self, step: StepKeys, rows: slice) -> PairTargets:
        """Q^I and Q^T of rows of this process."""
        *_, studies, texts = step.own.values
        same = same_thing((studies[rows], texts[rows]), step.ids)
        teacher = None
        if self.teacher is not None:
            image, text = step.own.values[-4:-2]
            teacher = image[rows], text[rows]
        return pair_targets(same, teacher, step.keys, self.kappa, step.alpha)

    def training_step(self, batch: Batch, progress: Progress, prepared: StepKeys | None = None) -> StepOutput:
        """Pass 2: the loss of a micro-batch, or its share of the whole batch's gradient."""
        if prepared is None:
            return self._plain_step(batch)
        micro = int(batch["micro"])
        if prepared.cached is not None:
            with replay(progress, batch):
                image, text = self.embed(batch)
            loss = prepared.cached.surrogate(micro, (image, text), (self.model.logit_scale,))
            return StepOutput(loss, dict(prepared.cached.metrics), {"query": image, "key": text.detach()})
        image, text = self.embed(batch)
        rows = prepared.own.rows(micro)
        with torch.autocast(image.device.type, enabled=False):
            losses, divergences = distillation_loss(
                image,
                text,
                prepared.keys,
                self._targets(prepared, rows),
                self.kappa,
                intra_modal=self.config.intra_modal,
            )
        share = prepared.micro_batches / len(prepared.own)  # the engine averages over micro-batches
        for name, pending in self._pending.items():
            value = {"image": 0, "text": 1}[name]
            pending.add(progress.step, prepared.own.part(value, micro), prepared.own.part(2 + value, micro))
        metrics: dict[str, Tensor | float] = {
            "divergence": divergences.sum() * share,
            "temperature": 1 / self.kappa.detach(),
            "alpha": prepared.alpha,
        }
        return StepOutput(losses.sum() * share, metrics, {"query": image, "key": prepared.own.part(1, micro)})

    def _plain_step(self, batch: Batch) -> StepOutput:
        """A micro-batch contrasted with itself."""
        image, text = self.embed(batch)
        all_image, all_text = gather_rows_with_grad(image), gather_rows_with_grad(text)
        ids = [batch[name] for name in _IDS]
        with torch.autocast(image.device.type, enabled=False):
            same = same_thing(ids, [gather_rows(i) for i in ids])
            targets = pair_targets(same, None, (all_image, all_text), self.kappa, 0.0)
            loss = in_batch_loss(image, text, all_image, all_text, targets, self.kappa).mean()
        return StepOutput(loss, {"temperature": 1 / self.kappa.detach()}, {"query": image, "key": text.detach()})

    def after_step(self, progress: Progress) -> None:
        """Clamp κ, move the teacher, then enqueue this step's keys."""
        self.model.clamp_temperature()
        if self.teacher is not None:
            self.teacher.update(self.config.momentum_at(progress.step, progress.total_steps, progress.batch_size))
        for name, pending in self._pending.items():
            if taken := pending.take():
                self._queue(name).enqueue(*taken)

    def _queue(self, name: str) -> FeatureQueue:
        queue = self.queues[name]
        assert isinstance(queue, FeatureQueue)
        return queue

    def encode(self, batch: Batch) -> Tensor:
        """(b, d) unit rows of ``view_1``, or of the whole ``pixels`` where there is no view."""
        if "view_1" in batch:
            return self.model.embed_images(batch["view_1"])
        return self.model.embed_images(self.model.prepare(batch["pixels"]))

    def export_module(self) -> ImageTextModel:
        """Both encoders with their projections."""
        return self.model

    def save(self, folder: Path, card: Mapping[str, Any]) -> None:
        """The model with its tokenizer; see :func:`mc_medical.model.load_image_text_model`."""
        told = {"title": "Radiographs and reports in one space", "description": _INTENDED, "citation": CITATION}
        self.model.save(folder, card={**told, **card})

    def check(self, micro_batch_size: int) -> None:
        """Refuse BatchNorm that is not frozen, and plain accumulation of single pairs."""
        norms = [part for part in self.model.modules() if isinstance(part, _BatchNorm)]
        if norms:
            raise ConfigError(batch_norm_message(str(self.config.image.name), len(norms)))
        if self.config.keys == "batch" and micro_batch_size < 2:
            raise ConfigError(
                f"{micro_batch_size} pair per process and micro-batch has nothing to be contrasted with under keys: batch; "
                "take a smaller fit.accumulation, or keys: ema"
            )

    def advice(self, batch_size: int, data_size: int) -> list[str]:
        """Warn of a queue as long as the data."""
        if self.config.queue_size and self.config.queue_size + batch_size > data_size:
            both = f"batch and queue ({batch_size} + {self.config.queue_size} keys) are as long as the data ({data_size} pairs)"
            return [f"{both}, so most pairs meet themselves again: set a smaller method.queue_size"]
        return []


def _ids(queue: FeatureQueue) -> Tensor:
    ids = queue.ids
    assert ids is not None
    return ids
