"""Baselines that keep what the model before said: LwF, and with a memory of old samples iCaRL-style and LUCIR-style.

Constants of CTP's official code (Zhu et al. 2023, arXiv:2308.07146); "old" is the model at the end of the last task::

    LwF      ½ [ KL( softmax(x_old/τ) ‖ softmax(x/τ) ) + the same of texts ] + L_mlm-dis      x: features before they are normalised
    LUCIR    ½ [ 1 − cos(image tokens, old ones) + 1 − cos(text tokens, old ones) ] + L_mlm-dis

Legend: B pairs, G of all processes, L tokens, d width of the shared space, D features of a token, M masked tokens, V words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.continual.contract import Task
from mc_core.distributed import gather_rows
from mc_core.engine.method import Progress
from mc_core.momentum import MomentumEncoder
from mc_vision_language.backbone import Backbone, Encoded
from mc_vision_language.continual.base import Sequential, Step, encode_step, wide
from mc_vision_language.continual.baseline_configs import LUCIRConfig, LwFConfig
from mc_vision_language.continual.loss import divergence, soft_words
from mc_vision_language.model import VisionLanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def turned(states: Tensor, old: Tensor, weight: Tensor | None, axis: int = -1) -> Tensor:
    """Scalar: 1 − mean cosine of states with old ones.

    Args:
        states: (B, L, D).
        old: (B, L, D), constants.
        weight: (B, L), which tokens count; None: all.
        axis: along which the cosine is taken: −1, the features; 1, the tokens, as the official code does after making each token's
            state a unit vector.

    >>> turned(torch.ones(1, 2, 4), 3 * torch.ones(1, 2, 4), None)
    tensor(0.)
    """
    states, old = (F.normalize(wide(one), dim=-1) for one in (states, old.detach()))
    cosine = F.cosine_similarity(states, old, dim=axis)
    if weight is None or axis != -1:
        return 1 - cosine.mean()
    return 1 - (cosine * weight).sum() / weight.sum()


class Distilled(Sequential):
    """Base of what compares with the model before.

    Attributes:
        old: the backbone at the end of the last task, frozen and in evaluation mode; None in the first task.
    """

    def __init__(
        self,
        config: LwFConfig | LUCIRConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: VisionLanguageModel | None = None,
    ) -> None:
        super().__init__(config, tokenizer, model)
        self.old: MomentumEncoder | None = None

    def start_task(self, task: Task) -> None:
        """The first task is plain fine-tuning; later ones begin with a copy."""
        self.old = None if task.first else self.frozen_copy()

    @torch.no_grad()
    def told(self, step: Step) -> tuple[Backbone, Encoded, Tensor | None]:
        """The old backbone, what it makes of the batch, and its (M, V) logits at masked places."""
        assert self.old is not None
        old = self.old.module
        assert isinstance(old, Backbone)
        encoded, words = encode_step(old, step.batch, step.masked)
        return old, encoded, words

    @staticmethod
    def kept_words(step: Step, words: Tensor | None, weight: float) -> dict[str, Tensor]:
        """L_mlm-dis, where there are masked words."""
        if step.word_log_p is None or words is None or not weight:
            return {}
        return {"mlm_distil": weight * soft_words(step.word_log_p, words)}


class LwF(Distilled):
    """Learning without forgetting (Li and Hoiem 2016, arXiv:1606.09282); with a memory by herding the iCaRL-style baseline.

    Args:
        config: see :class:`~mc_vision_language.continual.baseline_configs.LwFConfig`.
        tokenizer, model: as for :class:`~mc_vision_language.continual.base.Sequential`.
    """

    config: LwFConfig

    def extra_losses(self, step: Step) -> dict[str, Tensor]:
        """From the second task on."""
        if self.old is None:
            return {}
        config, backbone = self.config, self.backbone
        old, told, words = self.told(step)
        losses: dict[str, Tensor] = {}
        if config.feature:
            with torch.no_grad():
                before = old.image_projection(told.tokens[:, 0]), old.text_projection(told.states[:, 0])
            now = (
                backbone.image_projection(step.encoded.tokens[:, 0]),
                backbone.text_projection(step.encoded.states[:, 0]),
            )
            tau = config.temperature
            both = [divergence(wide(a) / tau, wide(b) / tau) for a, b in zip(before, now, strict=True)]
            losses["feature_distil"] = config.feature * torch.stack(both).mean()
        if config.similarity:
            images, texts = gather_rows(told.image), gather_rows(told.text)
            both = [
                divergence(self.logits(told.image, texts), step.of_images),
                divergence(self.logits(told.text, images), step.of_texts),
            ]
            losses["similarity_distil"] = config.similarity * torch.stack(both).mean()
        return losses | self.kept_words(step, words, config.distil_mlm)


class CosineProjection(nn.Linear):
    """A projection whose rows have length 1, of inputs of length 1: (…, n) → (…, d) cosines.

    The learned scale of the official code cancels, as features are normalised afterwards; so does the length of the input. With its
    rows at length 1 (:meth:`settle`) a plain linear layer with the same weights gives the same unit features.

    >>> layer = CosineProjection(3, 2)
    >>> bool((layer(torch.rand(5, 3)).abs() <= 1 + 1e-6).all())
    True
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        nn.init.zeros_(self.bias)
        self.bias.requires_grad_(False)
        self.settle()

    def forward(self, input: Tensor) -> Tensor:
        """Cosines of inputs with the rows."""
        return F.linear(F.normalize(input, dim=-1), F.normalize(self.weight, dim=1))

    @torch.no_grad()
    def settle(self) -> None:
        """Bring the rows back to length 1, which changes nothing in what they give."""
        self.weight.copy_(F.normalize(self.weight, dim=1))


class LUCIR(Distilled):
    """Projections that only turn, and token states that keep their direction (Hou et al. 2019, CVPR, "Learning a Unified Classifier
    Incrementally via Rebalancing"), with a memory by herding; no margin loss, as in CTP's official code.

    Args:
        config: see :class:`~mc_vision_language.continual.baseline_configs.LUCIRConfig`.
        tokenizer: as for :class:`~mc_vision_language.continual.base.Sequential`.
        model: to go on from; its projections keep the direction of their rows and lose length and bias.
    """

    config: LUCIRConfig

    def __init__(
        self,
        config: LUCIRConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: VisionLanguageModel | None = None,
    ) -> None:
        super().__init__(config, tokenizer, model)
        for name in ("image_projection", "text_projection"):
            plain = getattr(self.backbone, name)
            turning = CosineProjection(plain.in_features, plain.out_features).to(plain.weight)
            with torch.no_grad():
                turning.weight.copy_(plain.weight)
            turning.settle()
            setattr(self.backbone, name, turning)

    def extra_losses(self, step: Step) -> dict[str, Tensor]:
        """From the second task on."""
        if self.old is None:
            return {}
        config = self.config
        _, told, words = self.told(step)
        axis = 1 if config.token_axis else -1
        both = [
            turned(step.encoded.tokens, told.tokens, None, axis),
            turned(step.encoded.states, told.states, step.batch["attention_mask"], axis),
        ]
        return {"direction": config.direction * torch.stack(both).mean()} | self.kept_words(
            step, words, config.distil_mlm
        )

    def after_step(self, progress: Progress) -> None:
        """Projections keep rows of length 1, so that the saved model gives the same features."""
        super().after_step(progress)
        for name in ("image_projection", "text_projection"):
            getattr(self.backbone, name).settle()
