"""Encoders, fusion layers, the head for words and the projections: what a teacher is a copy of.

Legend: B samples, S side in pixels, P patches, D features of an image token, L tokens of a text, h their features, V words, d width
of the shared space, M tokens of any texts.
"""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import normalize

from mc_core.errors import ConfigError
from mc_vision_language.encoders import ImageEncoder, TextEncoder
from mc_vision_language.encoders_config import VisionLanguageConfig
from mc_vision_language.fusion import FusionEncoder, ImageKeys, weight_std


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1, in at least float32."""
    return normalize(rows.float() if rows.dtype.itemsize < 4 else rows, dim=1)


class WordHead(nn.Module):
    """Predicts words from states: dense, GELU, LayerNorm, then the word embeddings themselves and a bias.

    The embeddings are handed in, so that they exist once.
    """

    def __init__(self, hidden: int, vocabulary: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.dense.weight, std=weight_std(hidden))
        nn.init.zeros_(self.dense.bias)

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """(…, V) logits of states (…, h) with embeddings (V, h)."""
        return F.linear(self.norm(F.gelu(self.dense(states))), word_embeddings, self.bias)

    @torch.no_grad()
    def load_published(self, head: Any) -> None:
        """Take the head of a BERT (``cls``) or a RoBERTa (``lm_head``) of transformers."""
        if hasattr(head, "predictions"):
            found = head.predictions
            dense, norm, bias = found.transform.dense, found.transform.LayerNorm, found.bias
        else:
            dense, norm, bias = head.dense, head.layer_norm, head.bias
        self.dense.load_state_dict(dense.state_dict())
        self.norm.load_state_dict(norm.state_dict())
        self.bias.copy_(bias)


class Encoded(NamedTuple):
    """What :meth:`Backbone.forward` gives.

    Attributes:
        tokens: (B, 1 + P, D) of the image.
        states: (B, L, h) of the text alone.
        image: (B, d) unit rows.
        text: (B, d) unit rows.
        masked: (B, L, h) of the same texts under masks, where asked for.
    """

    tokens: Tensor
    states: Tensor
    image: Tensor
    text: Tensor
    masked: Tensor | None = None


class Backbone(nn.Module):
    """Everything of the model that a teacher follows; see :class:`mc_vision_language.model.VisionLanguageModel`.

    Args:
        config: of both encoders.
        load_pretrained: load published weights where the configuration asks for them.

    Attributes:
        image: :class:`~mc_vision_language.encoders.ImageEncoder`.
        text: :class:`~mc_vision_language.encoders.TextEncoder`.
        fusion: :class:`~mc_vision_language.fusion.FusionEncoder`.
        lm_head: :class:`WordHead`.
        image_projection, text_projection: into the shared space, linear with bias.

    Raises:
        ConfigError: as the encoders.
    """

    def __init__(self, config: VisionLanguageConfig, *, load_pretrained: bool = True) -> None:
        super().__init__()
        self.image = ImageEncoder(config.image, load_pretrained=load_pretrained)
        self.text = TextEncoder(config.text, load_pretrained=load_pretrained)
        described = self.text.described
        if described["hidden_act"] != "gelu":
            raise ConfigError(
                f"text encoder '{config.text.name}' uses {described['hidden_act']}; fusion layers use gelu"
            )
        dropout = config.text.dropout
        self.fusion = FusionEncoder(
            hidden=self.text.num_features,
            heads=described["num_attention_heads"],
            intermediate=described["intermediate_size"],
            key_width=self.image.num_features,
            layers=config.text.fusion_layers,
            dropout=described["hidden_dropout_prob"] if dropout is None else dropout,
            eps=described["layer_norm_eps"],
        )
        self.lm_head = WordHead(self.text.num_features, described["vocab_size"], described["layer_norm_eps"])
        if (parts := self.text.pretrained) is not None:
            self.fusion.load_bert_layers(parts.layers)
            if parts.head is not None:
                self.lm_head.load_published(parts.head)
            self.text.pretrained = None
        self.image_projection = nn.Linear(self.image.num_features, config.dim)
        self.text_projection = nn.Linear(self.text.num_features, config.dim)

    def forward(
        self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor, masked_ids: Tensor | None = None
    ) -> Encoded:
        """Both encoders and both projections; ``masked_ids`` (B, L) go through the text encoder in the same pass."""
        tokens, masked = self.image_tokens(pixels), None
        if masked_ids is None:
            states = self.text_states(input_ids, attention_mask)
        else:
            ids, mask = torch.cat([input_ids, masked_ids]), torch.cat([attention_mask, attention_mask])
            states, masked = self.text_states(ids, mask).chunk(2)
        return Encoded(tokens, states, self.embed_image_tokens(tokens), self.embed_text_states(states), masked)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """(B, 1 + P, D) of images (B, 3, S, S) in [0, 1]."""
        return self.image(pixels)

    def text_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L, h) of ids (B, L) with their mask."""
        return self.text(input_ids, attention_mask)

    def keys(self, tokens: Tensor) -> ImageKeys:
        """What the fusion layers look at, of image tokens (B, 1 + P, D)."""
        return self.fusion.keys(tokens)

    @overload
    def fuse(self, states: Tensor, mask: Tensor, keys: ImageKeys, *, attention_of: None = ...) -> Tensor: ...
    @overload
    def fuse(self, states: Tensor, mask: Tensor, keys: ImageKeys, *, attention_of: int) -> tuple[Tensor, Tensor]: ...
    def fuse(
        self, states: Tensor, mask: Tensor, keys: ImageKeys, *, attention_of: int | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, L, h): text states (B, L, h) after looking at the images of ``keys``.

        With ``attention_of`` also the cross-attention (B, H, L, 1 + P) of that fusion layer, with its graph.
        """
        if attention_of is None:
            return self.fusion(states, mask, keys)
        return self.fusion(states, mask, keys, attention_of=attention_of)

    def fuse_first(self, states: Tensor, mask: Tensor, keys: ImageKeys) -> Tensor:
        """(B, h): what :meth:`fuse` gives for the first token, without the last layer's other tokens."""
        return self.fusion(states, mask, keys, first=True)[:, 0]

    def lm_logits(self, states: Tensor) -> Tensor:
        """(M, V) logits over the vocabulary of states (M, h)."""
        return self.lm_head(states, self.text.word_embeddings.weight)

    def embed_image_tokens(self, tokens: Tensor) -> Tensor:
        """(B, d) unit rows of image tokens (B, 1 + P, D)."""
        return unit(self.image_projection(tokens[:, 0]))

    def embed_text_states(self, states: Tensor) -> Tensor:
        """(B, d) unit rows of text states (B, L, h)."""
        return unit(self.text_projection(states[:, 0]))

    def embed_images(self, pixels: Tensor) -> Tensor:
        """(B, d) unit rows of images (B, 3, S, S) in [0, 1]."""
        return unit(self.image_projection(self.image.class_token(pixels)))

    def embed_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, d) unit rows of token ids (B, L) with their mask."""
        return self.embed_text_states(self.text_states(input_ids, attention_mask))
