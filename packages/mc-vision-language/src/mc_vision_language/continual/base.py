"""What every method on a sequence of tasks starts from: contrast within the batch and masked words, τ fixed (``finetune_forward``
of the official code of CTP, Zhu et al. 2023, arXiv:2308.07146).

:class:`Sequential` alone is sequential fine-tuning, the baseline that forgets. A method overrides :meth:`Sequential.extra_losses`,
which gets all that the step has already computed, and the hooks of :class:`~mc_core.continual.contract.ContinualMethod`.

Features of all processes are gathered with gradient on both sides, so that the gradient, averaged over processes, is that of the
joint batch.

Legend: B pairs of this process, G of all, L tokens, d width of the shared space, M masked tokens, V words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from mc_core.continual.contract import ContinualMethod
from mc_core.distributed import gather_rows, gather_rows_with_grad, rank
from mc_core.engine.method import Batch, Progress, StepOutput
from mc_core.errors import ConfigError
from mc_core.momentum import MomentumEncoder
from mc_core.paired_losses import same_thing
from mc_vision_language.backbone import Backbone, Encoded
from mc_vision_language.continual.config import ContinualConfig
from mc_vision_language.continual.loss import both_ways
from mc_vision_language.decay import spare_positions
from mc_vision_language.encoders_config import VisionLanguageConfig
from mc_vision_language.methods.albef.masking import Masked, masked_batch
from mc_vision_language.model import VisionLanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Config = TypeVar("Config", bound=ContinualConfig)
CITATION = """@inproceedings{zhu2023ctp,
  title = {CTP: Towards Vision-Language Continual Pretraining via Compatible Momentum Contrast and Topology Preservation},
  author = {Zhu, Hongguang and Wei, Yunchao and Liang, Xiaodan and Zhang, Chunjie and Zhao, Yao},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year = {2023}
}"""
_INTENDED = (
    "Finds images by words and words by images, and goes on learning from new domains. It learns what its captions say, their "
    "habits, gaps and prejudices included, and forgets some of what it learned before: look at what it finds before anyone relies "
    "on it. Whether weights may be passed on is for the licence of the training data to say."
)
IDS = ("image_ids", "text_ids")
_MASKING = 0xC7B0


@dataclass(frozen=True)
class Step:
    """What one micro-batch has already cost.

    Attributes:
        batch: as it came.
        progress: of the run.
        encoded: image tokens, text states, and unit rows of this process, with gradient.
        images, texts: (G, d) unit rows of all processes, with gradient.
        of_images, of_texts: (B, G) logits of images against texts and of texts against images, with gradient; at least float32.
        masked: which tokens are hidden; None without masked words.
        word_log_p: (M, V) log-probabilities at masked places, with gradient; None without masked words.
        features: for the health monitor, see :class:`~mc_core.engine.method.StepOutput`; a method with keys of its own puts them
            in place of ``key``.
    """

    batch: Batch
    progress: Progress
    encoded: Encoded
    images: Tensor
    texts: Tensor
    of_images: Tensor
    of_texts: Tensor
    masked: Masked | None
    word_log_p: Tensor | None
    features: dict[str, Tensor]

    @property
    def first(self) -> int:
        """Where the rows of this process begin among those of all."""
        return rank() * len(self.encoded.image)


class Sequential(ContinualMethod):
    """Contrast within the batch and masked words, task after task, with nothing against forgetting.

    Args:
        config: see :class:`~mc_vision_language.continual.config.ContinualConfig`.
        tokenizer: of the captions; default: that of ``config.text.name``.
        model: to train instead of the one that ``config`` describes, such as a pretrained one.

    Batches: ``view`` (B, 3, S, S) in [0, 1], ``input_ids`` and ``attention_mask`` (B, L), ``image_ids`` and ``text_ids`` (B,),
    which are equal for the same picture or the same words, and ``index`` and ``epoch``.

    Raises:
        ConfigError: encoders that cannot be had, or a tokenizer that does not fit.
    """

    config: Any  # a ContinualConfig, in methods one of their own

    def __init__(
        self,
        config: ContinualConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: VisionLanguageModel | None = None,
    ) -> None:
        super().__init__()
        if model is None:
            model = VisionLanguageModel(
                VisionLanguageConfig(**{n: getattr(config, n) for n in VisionLanguageConfig.model_fields}), tokenizer
            )
        taken = {n: getattr(model.config, n) for n in VisionLanguageConfig.model_fields if n != "matching"}
        self.config = config.model_copy(update=taken)
        self.model = model
        for part in self._untrained():
            part.requires_grad_(False)

    @property
    def backbone(self) -> Backbone:
        """The trained encoders and fusion layers."""
        return self.model.backbone

    def _untrained(self) -> list[nn.Module | nn.Parameter]:
        """What no objective reaches stays as it is: several processes would wait for its gradient."""
        backbone = self.backbone
        parts: list[nn.Module | nn.Parameter] = [self.model.log_temperature]
        if self.model.itm_head is not None:
            parts.append(self.model.itm_head)
        if not self.config.mlm:
            parts += [backbone.lm_head, backbone.fusion]
        return parts

    def frozen_copy(self) -> MomentumEncoder:
        """The backbone as it is now, in evaluation mode, to compare with: it never moves and takes no gradient."""
        return MomentumEncoder(self.backbone, 1.0, evaluation_mode=True)

    def training_step(self, batch: Batch, progress: Progress, prepared: Any = None) -> StepOutput:
        """The losses of a micro-batch."""
        step = self.step_of(batch, progress)
        losses = self.base_losses(step) | self.extra_losses(step)
        metrics: dict[str, Tensor | float] = {name: loss.detach() for name, loss in losses.items()}
        return StepOutput(torch.stack(list(losses.values())).sum(), metrics, step.features)

    def extra_losses(self, step: Step) -> dict[str, Tensor]:
        """What a method adds: scalars by name, with their weights in them."""
        return {}

    def base_losses(self, step: Step) -> dict[str, Tensor]:
        """L_ita and L_mlm, with their weights in them."""
        config = self.config
        losses = {"ita": config.ita * both_ways(step.of_images, step.of_texts, self.same(step.batch), step.first)}
        if step.masked is not None and step.word_log_p is not None:
            losses["mlm"] = config.mlm * nn.functional.nll_loss(step.word_log_p, step.masked.words)
        return losses

    def step_of(self, batch: Batch, progress: Progress) -> Step:
        """One pass of the backbone over plain and masked captions."""
        masked = self.masked(batch, progress) if self.config.mlm else None
        encoded, words = encode_step(self.backbone, batch, masked)
        images, texts = gather_rows_with_grad(encoded.image), gather_rows_with_grad(encoded.text)
        of_images = self.logits(encoded.image, texts)
        # in a single process one block of products serves both directions
        of_texts = of_images.T if texts is encoded.text else self.logits(encoded.text, images)
        log_p = None if words is None else wide(words).log_softmax(1)
        features = {"query": encoded.image.detach(), "key": encoded.text.detach()}
        return Step(batch, progress, encoded, images, texts, of_images, of_texts, masked, log_p, features)

    def logits(self, rows: Tensor, others: Tensor) -> Tensor:
        """(…) cosines of unit rows over τ, in at least float32."""
        with torch.autocast(rows.device.type, enabled=False):
            return rows @ others.T / self.config.temperature

    def same(self, batch: Batch, others: tuple[Tensor, Tensor] | None = None) -> Tensor | None:
        """(B, N) which pairs show the same picture or say the same; None where only the own one counts.

        Args:
            batch: this process's.
            others: image and text ids (N,) of what it is compared with; default: the pairs of all processes.
        """
        if not self.config.ids:
            return None
        own = [batch[name] for name in IDS]
        return same_thing(own, [gather_rows(ids) for ids in own] if others is None else list(others))

    def masked(self, batch: Batch, progress: Progress) -> Masked:
        """Which tokens are hidden: a function of seed, epoch and sample."""
        vocabulary, config = self.backbone.text.word_embeddings.num_embeddings, self.config
        return masked_batch(batch, progress, config.text, vocabulary, config.mask_rate, stream=_MASKING)

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
        if micro_batch_size < 2:
            raise ConfigError(
                f"{micro_batch_size} pair per process and micro-batch has no other to be told from: take a larger "
                "fit.batch_size or a smaller fit.accumulation"
            )

    def parameter_groups(self, weight_decay: float, *, decay_1d: bool = True) -> list[dict[str, Any]]:
        """As every method's; without ``decay_1d`` class token and position tables do not decay either."""
        return spare_positions(super().parameter_groups(weight_decay, decay_1d=decay_1d), self.model)


def encode_step(backbone: Backbone, batch: Batch, masked: Masked | None) -> tuple[Encoded, Tensor | None]:
    """What a step needs of a backbone: tokens, states and unit rows, and (M, V) logits at masked places.

    Plain and masked captions go through the text layers as one batch of 2B.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    encoded = backbone(batch["view"], ids, mask, None if masked is None else masked.input_ids)
    if masked is None or encoded.masked is None:
        return encoded, None
    fused = backbone.fuse(encoded.masked, mask, backbone.keys(encoded.tokens))
    return encoded, backbone.lm_logits(fused[masked.rows, masked.columns])


def wide(x: Tensor) -> Tensor:
    """``x`` in at least float32."""
    return x.float() if x.dtype.itemsize < 4 else x
