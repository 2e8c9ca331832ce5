"""Fusion layers that look at two pictures in turn, with a head on [CLS]: what statements and text assignment share.

Each fusion layer of the pretrained model is there twice in a row, the first looks at the first picture, the second at the
second. The two start equal; their keys and values are projected by the same weights and stay so, all else is separate.

Source: ALBEF (Li et al. 2021, arXiv:2107.07651), section 4, NLVR2.

Legend: B sentences, N pictures, P patches, D features of an image token, h features of a token of text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mc_vision_language.backbone import Backbone
from mc_vision_language.encoders_config import VisionLanguageConfig
from mc_vision_language.fusion import FusionEncoder, FusionLayer, ImageKeys, KeyValue
from mc_vision_language.tasks.model import Pieces, classifier, pooled
from mc_vision_language.tasks.starting import doubled, load_backbone, load_doubled, without_unused


class TwoImageNet(nn.Module):
    """Encoders, fusion layers in pairs, and a head.

    Args:
        config: of both encoders.
        classes: outputs of the head.
        linear: one linear layer as head; else two with ReLU between.
    """

    def __init__(self, config: VisionLanguageConfig, classes: int, *, linear: bool = False) -> None:
        super().__init__()
        backbone = Backbone(config, load_pretrained=False)
        backbone.fusion = doubled(backbone.fusion)
        self.backbone = without_unused(backbone, "lm_head", "image_projection", "text_projection")
        hidden = backbone.text.num_features
        self.head = nn.Linear(hidden, classes) if linear else classifier(hidden, classes)

    def start_from(self, backbone: Backbone, pieces: Pieces = ()) -> None:
        """Take the weights of a pretrained backbone; both layers of a pair from the same one."""
        load_backbone(self.backbone, backbone, fusion=False, pieces=pieces)
        load_doubled(self.backbone.fusion, backbone.fusion)

    def judge(
        self, tokens: Tensor, first: Tensor, second: Tensor, input_ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, C) logits and (B, h) the fused states, averaged.

        Args:
            tokens: (N, 1 + P, D) of pictures.
            first, second: (B,) int64, rows of ``tokens``: what each sentence is about.
            input_ids, mask: (B, L).
        """
        keys = paired_keys(self.backbone.fusion, tokens, first, second)
        states = self.backbone.fuse(self.backbone.text_states(input_ids, mask), mask, keys)
        return self.head(states[:, 0]), pooled(states, mask)

    def forward(
        self, first: Tensor, second: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, C) logits and (B, h) features of sentences (B, L) about two pictures (B, 3, S, S) each."""
        tokens = self.backbone.image_tokens(torch.cat([first, second]))
        rows = torch.arange(len(tokens), device=tokens.device)
        return self.judge(tokens, rows[: len(first)], rows[len(first) :], input_ids, attention_mask)


def paired_keys(fusion: FusionEncoder, tokens: Tensor, first: Tensor, second: Tensor) -> ImageKeys:
    """Keys and values of B sentences: layers look at the picture of ``first`` and of ``second`` in turn.

    What a pair shares is projected once for all N pictures.

    Args:
        fusion: with layers in pairs; see :func:`mc_vision_language.tasks.starting.doubled`.
        tokens: (N, 1 + P, D).
        first, second: (B,) int64 rows of ``tokens``.
    """
    found: list[KeyValue] = []
    for layer in fusion.layers[::2]:
        assert isinstance(layer, FusionLayer)
        key, value = layer.cross_attention.project(tokens)
        found += [KeyValue(key.index_select(0, rows), value.index_select(0, rows)) for rows in (first, second)]
    return ImageKeys(tuple(found))
