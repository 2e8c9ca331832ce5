"""Visual entailment: whether a picture confirms a sentence, contradicts it or leaves it open (SNLI-VE).

L = 1/B Σ_b [ (1 − α) CE(p_b, y_b) − α Σ_c p′_c log p_c ], p = softmax(head(Z_[CLS])), Z the fused states, p′
of the teacher, head and all. In the official recipe α does not rise but is there from the first step.

Source: ALBEF (Li et al. 2021, arXiv:2107.07651), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mc_core.modules import evaluating
from mc_vision_language.backbone import Backbone
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.tasks.config import ENTAILMENT_LABELS, EntailmentConfig
from mc_vision_language.tasks.distilled import ClassificationTask
from mc_vision_language.tasks.model import Pieces, TaskModel, classifier, pooled
from mc_vision_language.tasks.starting import load_backbone, without_unused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class EntailmentNet(nn.Module):
    """Encoders, fusion layers and a head on [CLS].

    Args:
        config: of the task.
    """

    def __init__(self, config: EntailmentConfig) -> None:
        super().__init__()
        backbone = Backbone(config, load_pretrained=False)
        self.backbone = without_unused(backbone, "lm_head", "image_projection", "text_projection")
        self.head = classifier(self.backbone.text.num_features, len(ENTAILMENT_LABELS))

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3) logits of the labels, and (B, h) the fused states, averaged."""
        keys = self.backbone.keys(self.backbone.image_tokens(pixels))
        states = self.backbone.fuse(self.backbone.text_states(input_ids, attention_mask), attention_mask, keys)
        return self.head(states[:, 0]), pooled(states, attention_mask)


class EntailmentModel(TaskModel):
    """Judges sentences about pictures.

    >>> from mc_vision_language.encoders_config import ImageEncoderConfig, TextEncoderConfig
    >>> from mc_vision_language.tokenizers import train_tokenizer
    >>> image = ImageEncoderConfig(image_size=16, patch_size=8, width=12, depth=1)
    >>> text = TextEncoderConfig(hidden_size=16, heads=2, text_layers=1, fusion_layers=1)
    >>> config = EntailmentConfig(image=image, text=text, dim=8)
    >>> model = EntailmentModel(config, train_tokenizer(["it is red"], 64)).eval()
    >>> model.entails(torch.rand(1, 3, 16, 16), ["it is red"])[0] in ENTAILMENT_LABELS
    True
    """

    Config = EntailmentConfig
    title = "Whether a picture confirms a sentence"
    reads = ("view", "input_ids", "attention_mask")
    net: EntailmentNet

    def build(self, config: EntailmentConfig) -> EntailmentNet:
        """The network with random weights."""
        return EntailmentNet(config)

    def start_from(self, model: VisionLanguageModel, pieces: Pieces = ()) -> None:
        """Take the weights of a pretrained model; the head is new."""
        load_backbone(self.net.backbone, model.backbone, pieces=pieces)

    @torch.inference_mode()
    def probabilities(self, images: Any, sentences: Sequence[str]) -> np.ndarray:
        """(B, 3) of contradiction, neutral and entailment.

        Args:
            images: B, as for :meth:`~mc_vision_language.model.VisionLanguageModel.encode_image`.
            sentences: B.
        """
        with evaluating(self):
            logits, _ = self.net(self.pixels_of(images), *self.tokens_of(list(sentences)))
        return logits.float().softmax(1).cpu().numpy()

    def entails(self, images: Any, sentences: Sequence[str]) -> list[str]:
        """``contradiction``, ``neutral`` or ``entailment`` for each sentence and the picture in the same place."""
        return [ENTAILMENT_LABELS[label] for label in self.probabilities(images, sentences).argmax(1).tolist()]


class Entailment(ClassificationTask):
    """Trains an :class:`EntailmentModel`.

    Args:
        config: of the task.
        tokenizer: of the sentences.
        model: to train instead of the one that ``config`` describes.

    Batches are those of :class:`mc_vision_language.data.task_data.JudgedData`.
    """

    def __init__(
        self,
        config: EntailmentConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: EntailmentModel | None = None,
    ) -> None:
        model = EntailmentModel(config, tokenizer) if model is None else model
        super().__init__(model.config, model)
