"""ALBEF: Li et al. 2021 (NeurIPS), "Align before Fuse: Vision and Language Representation Learning with Momentum Distillation",
arXiv:2107.07651.

Two encoders are aligned by contrast (ITC, section 3.2) before fusion layers bring them together, which matching (ITM) and masked
language modelling (MLM) train. A moving average of everything but the matching head, the teacher, gives the keys of the contrast
and, in shares of α, its targets and those of MLM (section 3.3). One step, θ trained, θ′ the teacher::

    V, T       = f_v(images), f_t(texts)                 z_v, z_t   = unit rows of their first tokens       (and V′, T′, z′)
    L_itc      = ½ [ z_v against z′_t, queue  +  z_t against z′_v, queue ],  targets α softmax(s′) + (1 − α) y
    L_itm      = does f_m(T, V) match: B pairs, B with an image and B with a text that look alike
    L_mlm      = words behind masks, from f_m(f_t(masked), V)
    L          = L_itc + L_itm + L_mlm
    then       θ′ ← m θ′ + (1 − m) θ; the batch's z′ enter the queues                                           after_step

Images are projected to keys and values once for all four passes through the fusion layers; those of matching run as one batch of
3B, plain and masked captions pass the text encoder as one of 2B, and the head for words sees masked places alone.

Deviations from the official code, each without effect on what the paper defines: negatives are masked with −∞ before the softmax
(the code zeroes them after it, and stops when nothing is left), a queue has no random rows before it is filled, the teacher moves
after the optimizer's step, and the temperature is always kept within its bounds. Ours are: ``ids`` in pretraining,
``hard_negative_strength``, log τ as what is learned, and the teacher's evaluation mode (``teacher_train_mode`` is the official
one).

Legend: B pairs, L tokens, P patches, h features of a token, d width of the shared space, K keys of a queue.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mc_core.engine.method import Batch, Method, Progress, StepOutput
from mc_core.errors import ConfigError
from mc_core.momentum import MomentumEncoder
from mc_core.paired_losses import same_thing
from mc_core.queue import FeatureQueue, PendingKeys
from mc_core.random import uniform
from mc_vision_language.backbone import Backbone, Encoded
from mc_vision_language.decay import spare_positions
from mc_vision_language.encoders_config import VisionLanguageConfig
from mc_vision_language.fusion import ImageKeys
from mc_vision_language.methods.albef.config import ALBEFConfig
from mc_vision_language.methods.albef.loss import contrast, contrast_logits, hard_negatives, masked_words, matching
from mc_vision_language.methods.albef.masking import Masked, masked_batch
from mc_vision_language.model import VisionLanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CITATION = """@inproceedings{li2021albef,
  title = {Align before Fuse: Vision and Language Representation Learning with Momentum Distillation},
  author = {Li, Junnan and Selvaraju, Ramprasaath R. and Gotmare, Akhilesh Deepak and Joty, Shafiq and Xiong, Caiming and
    Hoi, Steven},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2021}
}"""
_INTENDED = (
    "Finds images by words and words by images, and starts models that answer questions about images. It learns what its captions "
    "say, their habits, gaps and prejudices included: look at what it finds before anyone relies on it. Whether weights may be "
    "passed on is for the licence of the training data to say."
)
_IDS = ("image_ids", "text_ids")
_MASKING, _IMAGE_NEGATIVES, _TEXT_NEGATIVES = 0xA1B0, 0xA1B1, 0xA1B2


class ALBEF(Method):
    """Contrast, matching and masked words, with momentum distillation.

    Args:
        config: see :class:`~mc_vision_language.methods.albef.config.ALBEFConfig`.
        tokenizer: of the captions; default: that of ``config.text.name``.
        model: to train instead of the one that ``config`` describes, such as a pretrained one to fine-tune.

    Batches: ``view`` (B, 3, S, S) in [0, 1], ``input_ids`` and ``attention_mask`` (B, L), ``image_ids`` and ``text_ids`` (B,),
    which are equal for the same picture or the same words, and ``index`` and ``epoch``.

    Raises:
        ConfigError: encoders that cannot be had, or a tokenizer that does not fit.
    """

    config: ALBEFConfig

    def __init__(
        self,
        config: ALBEFConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: VisionLanguageModel | None = None,
    ) -> None:
        super().__init__()
        if model is None:
            model = VisionLanguageModel(
                VisionLanguageConfig(**{n: getattr(config, n) for n in VisionLanguageConfig.model_fields}), tokenizer
            )
        if config.itm:
            model.config = model.config.model_copy(update={"matching": True})  # from now on, where it began without
        self.config = config.model_copy(update={n: getattr(model.config, n) for n in VisionLanguageConfig.model_fields})
        self.model = model
        for part in self._unused():
            part.requires_grad_(False)
        self.teacher = MomentumEncoder(
            model.backbone, config.momentum, buffers="copy", evaluation_mode=not config.teacher_train_mode
        )
        self.queues = nn.ModuleDict()
        self._pending: dict[str, PendingKeys] = {}
        for name in ("text", "image") if config.queue_size and config.itc else ():
            self.queues[name] = FeatureQueue(config.queue_size, config.dim, with_ids=True)
            self._pending[name] = PendingKeys()

    @property
    def backbone(self) -> Backbone:
        """The trained encoders and fusion layers."""
        return self.model.backbone

    def _unused(self) -> list[nn.Module | nn.Parameter]:
        """What no objective reaches stays as it is: several processes would wait for its gradient."""
        config, backbone = self.config, self.backbone
        parts: list[nn.Module | nn.Parameter] = []
        if not config.itc:
            parts += [backbone.image_projection, backbone.text_projection, self.model.log_temperature]
        if not config.itm:
            parts.append(self.model.itm_head)
        if not config.mlm:
            parts.append(backbone.lm_head)
        if not (config.itm or config.mlm):
            parts.append(backbone.fusion)
        return parts

    def training_step(self, batch: Batch, progress: Progress, prepared: Any = None) -> StepOutput:
        """The three losses of a micro-batch."""
        config = self.config
        alpha = config.alpha_at(progress.step / max(progress.steps_per_epoch, 1))
        distilled = alpha if config.distil_mlm else 0.0
        masked = self._masked(batch, progress) if config.mlm else None
        student = self.backbone(*_inputs(batch, masked))
        taught = self._taught(batch, masked if distilled else None)
        same = self._same(batch)
        logits = self._contrast_logits(student, taught)
        losses: dict[str, Tensor] = {}
        if config.itc:
            losses["itc"] = self._contrast(logits, taught, same, alpha if config.distil_itc else 0.0)
            self._remember(batch, taught, progress.step)
        keys = self.backbone.keys(student.tokens) if config.itm or config.mlm else None
        if config.itm and keys is not None:
            losses["itm"] = self._matching(batch, student.states, keys, logits, same, progress)
        if masked is not None and keys is not None:
            losses["mlm"] = self._masked_words(batch["attention_mask"], masked, student, keys, taught, distilled)
        total = torch.stack([getattr(config, name) * loss for name, loss in losses.items()]).sum()
        metrics: dict[str, Tensor | float] = {name: loss.detach() for name, loss in losses.items()}
        metrics |= {"temperature": self.model.temperature.detach(), "alpha": alpha}
        return StepOutput(total, metrics, {"query": student.image, "key": taught.text})

    @torch.no_grad()
    def _taught(self, batch: Batch, masked: Masked | None = None) -> Encoded:
        """The teacher's V′, T′ and z′."""
        return self.teacher(*_inputs(batch, masked))

    def _contrast_logits(self, query: Encoded, taught: Encoded) -> tuple[Tensor, Tensor]:
        """(B, B + K) logits of images against texts and of texts against images; keys are the teacher's, of batch and queue."""
        image, text = (self._queue(name) for name in ("image", "text"))
        tau = self.model.temperature
        with torch.autocast(query.image.device.type, enabled=False):
            return (
                contrast_logits(query.image, taught.text, None if text is None else text.features, tau),
                contrast_logits(query.text, taught.image, None if image is None else image.features, tau),
            )

    def _contrast(self, logits: tuple[Tensor, Tensor], taught: Encoded, same: Tensor, alpha: float) -> Tensor:
        """L_itc: half of each direction; the teacher's own logits soften the targets."""
        soft: tuple[Tensor | None, Tensor | None] = (None, None)
        if alpha:
            with torch.no_grad():
                soft = self._contrast_logits(taught, taught)
        return torch.stack([contrast(*both, same, alpha) for both in zip(logits, soft, strict=True)]).mean()

    def _same(self, batch: Batch) -> Tensor:
        """(B, B + K) which pairs of batch and queues show the same picture or say the same as each pair of the batch."""
        own = [batch[name] for name in _IDS]
        queues = [self._queue(name) for name in ("image", "text")]
        if not self.config.ids:
            held = 0 if queues[0] is None else len(queues[0])
            return torch.eye(len(own[0]), len(own[0]) + held, dtype=torch.bool, device=own[0].device)
        known = [
            ids if queue is None else torch.cat([ids, _ids(queue)]) for ids, queue in zip(own, queues, strict=True)
        ]
        return same_thing(own, known)

    def _matching(
        self,
        batch: Batch,
        states: Tensor,
        keys: ImageKeys,
        logits: tuple[Tensor, Tensor],
        same: Tensor,
        progress: Progress,
    ) -> Tensor:
        """L_itm: pairs, texts with an image like theirs, images with a text like theirs, as one batch of 3B."""
        mask = batch["attention_mask"]
        B = len(states)
        # per text an image, by the logits of texts against images; per image a text, by the others
        image_of, image_found = self._negatives(logits[1], same, _IMAGE_NEGATIVES, batch, progress)
        text_of, text_found = self._negatives(logits[0], same, _TEXT_NEGATIVES, batch, progress)
        pairs = torch.arange(B, device=states.device)
        text_rows = torch.cat([pairs, pairs, text_of])
        image_rows = torch.cat([pairs, image_of, pairs])
        fused = self._fused(states, mask, keys, text_rows, image_rows)
        return matching(self.model.itm_head(fused), torch.cat([torch.ones_like(image_found), image_found, text_found]))

    def _fused(self, states: Tensor, mask: Tensor, keys: ImageKeys, texts: Tensor, images: Tensor) -> Tensor:
        """(R, h) first tokens of R pairs of a text and an image."""
        return self.backbone.fuse_first(states.index_select(0, texts), mask[texts], keys.take(images))

    def _negatives(
        self, logits: Tensor, same: Tensor, stream: int, batch: Batch, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        B = len(logits)
        noise = uniform(progress.run_seed, int(batch["epoch"]), batch["index"], B, stream=stream)
        return hard_negatives(logits[:, :B], same[:, :B], noise, self.config.hard_negative_strength)

    def _masked_words(
        self, mask: Tensor, masked: Masked, student: Encoded, keys: ImageKeys, taught: Encoded, alpha: float
    ) -> Tensor:
        """L_mlm: the whole text stack on masked ids, with the image; the head at masked places alone."""
        logits = self._words(self.backbone, student, masked, mask, keys)
        soft = None
        if alpha:
            with torch.no_grad():
                teacher = self.teacher.module
                assert isinstance(teacher, Backbone)
                soft = self._words(teacher, taught, masked, mask, teacher.keys(taught.tokens))
        return masked_words(logits, masked.words, soft, alpha).mean()

    def _masked(self, batch: Batch, progress: Progress) -> Masked:
        vocabulary, config = self.backbone.text.word_embeddings.num_embeddings, self.config
        return masked_batch(batch, progress, config.text, vocabulary, config.mask_rate, stream=_MASKING)

    @staticmethod
    def _words(backbone: Backbone, encoded: Encoded, masked: Masked, mask: Tensor, keys: ImageKeys) -> Tensor:
        """(M, V) logits at masked places."""
        assert encoded.masked is not None
        fused = backbone.fuse(encoded.masked, mask, keys)
        return backbone.lm_logits(fused[masked.rows, masked.columns])

    def _remember(self, batch: Batch, taught: Encoded, step: int) -> None:
        for name, keys in (("image", taught.image), ("text", taught.text)):
            if name in self._pending:
                self._pending[name].add(step, keys, batch[f"{name}_ids"])

    def after_step(self, progress: Progress) -> None:
        """Keep τ within its bounds, move the teacher, then enqueue this step's keys."""
        self.model.clamp_temperature()
        self.teacher.update()
        for name, pending in self._pending.items():
            queue = self._queue(name)
            if queue is not None and (taken := pending.take()):
                queue.enqueue(*taken)

    def sync_teacher(self) -> None:
        """Copy the trained weights into the teacher: after loading weights into the model."""
        self.teacher.synchronise()

    def _queue(self, name: str) -> FeatureQueue | None:
        if name not in self.queues:
            return None
        queue = self.queues[name]
        assert isinstance(queue, FeatureQueue)
        return queue

    def encode(self, batch: Batch) -> Tensor:
        """(B, d) unit rows of the images of a batch."""
        return self.backbone.embed_images(batch["view"])

    def export_module(self) -> VisionLanguageModel:
        """The trained model."""
        return self.model

    def save(self, folder: Path, card: Mapping[str, Any]) -> None:
        """The model with its tokenizer; see :func:`mc_vision_language.model.load_vision_language_model`."""
        told = {"title": "Images and words in one space", "description": _INTENDED, "citation": CITATION}
        self.model.save(folder, card={**told, **card})

    def check(self, micro_batch_size: int) -> None:
        """Refuse a batch of one, which has no negatives."""
        if micro_batch_size < 2 and (self.config.itm or (self.config.itc and not self.config.queue_size)):
            raise ConfigError(
                f"{micro_batch_size} pair per process and micro-batch has no other to be told from: take a larger "
                "fit.batch_size or a smaller fit.accumulation"
            )

    def advice(self, batch_size: int, data_size: int) -> list[str]:
        """Warn of a queue as long as the data without ids, and of keys older than the teacher's memory."""
        told: list[str] = []
        size = self.config.queue_size if self.config.itc else 0
        if size and size + batch_size > data_size and not self.config.ids:
            both = f"batch and queue ({batch_size} + {size} keys) are as long as the data ({data_size} pairs)"
            told.append(
                f"{both}, so that pairs meet themselves as negatives: set method.ids, or a smaller method.queue_size"
            )
        horizon = 1 / (1 - self.config.momentum) if self.config.momentum < 1 else math.inf
        if size / batch_size > horizon:
            told.append(
                f"the oldest of {size} keys are {size / batch_size:.0f} steps old, more than the {horizon:.0f} that the "
                "teacher looks back: set a higher method.momentum or a smaller method.queue_size"
            )
        return told

    def parameter_groups(self, weight_decay: float, *, decay_1d: bool = True) -> list[dict[str, Any]]:
        """As every method's; without ``decay_1d`` the temperature, class token and position tables do not decay either."""
        return spare_positions(super().parameter_groups(weight_decay, decay_1d=decay_1d), self.model)


def _ids(queue: FeatureQueue) -> Tensor:
    ids = queue.ids
    assert ids is not None
    return ids


def _inputs(batch: Batch, masked: Masked | None) -> tuple[Tensor | None, ...]:
    """What :meth:`Backbone.forward` takes."""
    return batch["view"], batch["input_ids"], batch["attention_mask"], None if masked is None else masked.input_ids
