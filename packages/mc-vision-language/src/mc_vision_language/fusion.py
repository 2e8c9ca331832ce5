"""Layers that read text while looking at something else: an image, two images, or the states of a question.

A layer is a BERT layer with cross-attention between self-attention and feed-forward part, each with its residual and LayerNorm
after it. It is our own: that of transformers turns its self-attention causal where no token is padding, takes no other width for
what is looked at, and projects keys and values anew for every text that meets the same image.

Legend: B texts, L tokens, h features of a token, N things looked at (image tokens), D their width, H heads, e features of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.errors import ConfigError, DataError

_EPS = 1e-12


class KeyValue(NamedTuple):
    """Of one layer.

    Attributes:
        key: (B, H, N, e).
        value: (B, H, N, e).
    """

    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class ImageKeys:
    """What every fusion layer looks at, projected once: any number of texts may look at the same rows.

    Attributes:
        layers: keys and values of each layer.
        mask: (B, N) bool, what may be looked at; None: everything, as with images.
    """

    layers: tuple[KeyValue, ...]
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.layers[0].key)

    def take(self, rows: Tensor) -> ImageKeys:
        """Those of these rows, in this order, with repetition: (B′,) int64."""
        mask = None if self.mask is None else self.mask[rows]
        # index_select: where rows repeat, the backward pass of plain indexing adds up in an order that varies with threads
        layers = tuple(KeyValue(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.layers)
        return replace(self, layers=layers, mask=mask)


class Attention(nn.Module):
    """Multi-head attention with an output projection, as BERT has it.

    Args:
        hidden: h, of the queries and of the output; divides into ``heads``.
        heads: H.
        key_width: D, of what is looked at; default h.
        dropout: of attention probabilities, while training.
    """

    def __init__(self, hidden: int, heads: int, key_width: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if hidden % heads:
            raise ConfigError(f"{hidden} features do not divide into {heads} attention heads")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(key_width or hidden, hidden)
        self.value = nn.Linear(key_width or hidden, hidden)
        self.output = nn.Linear(hidden, hidden)

    def project(self, seen: Tensor) -> KeyValue:
        """Keys and values of what is looked at, (B, N, D)."""
        return KeyValue(self._split(self.key(seen)), self._split(self.value(seen)))

    def forward(self, states: Tensor, seen: KeyValue, mask: Tensor | None = None) -> Tensor:
        """(B, L, h). ``mask``: bool, to broadcast to (B, H, L, N), true where a query may look."""
        query_BHLe = self._split(self.query(states))
        dropout = self.dropout if self.training else 0.0
        context = F.scaled_dot_product_attention(query_BHLe, *seen, attn_mask=mask, dropout_p=dropout)
        return self.output(context.transpose(1, 2).flatten(2))

    def with_probabilities(self, states: Tensor, seen: KeyValue, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same, and (B, H, L, N) attention probabilities in the graph (before dropout)."""
        query_BHLe = self._split(self.query(states))
        scores_BHLN = query_BHLe @ seen.key.transpose(2, 3) / math.sqrt(query_BHLe.shape[-1])
        if mask is not None:
            scores_BHLN = scores_BHLN.masked_fill(~mask, -torch.inf)
        attention_BHLN = scores_BHLN.softmax(-1)
        kept = F.dropout(attention_BHLN, self.dropout, self.training)
        return self.output((kept @ seen.value).transpose(1, 2).flatten(2)), attention_BHLN

    def _split(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FusionLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; after each dropout, residual and LayerNorm.

    Args:
        hidden: h.
        heads: H.
        intermediate: width of the feed-forward part.
        key_width: D of what is looked at.
        dropout: of hidden states and of attention.
        eps: of the LayerNorms.
    """

    def __init__(
        self, hidden: int, heads: int, intermediate: int, key_width: int, dropout: float = 0.0, eps: float = _EPS
    ) -> None:
        super().__init__()
        self.self_attention = Attention(hidden, heads, dropout=dropout)
        self.self_norm = nn.LayerNorm(hidden, eps=eps)
        self.cross_attention = Attention(hidden, heads, key_width, dropout)
        self.cross_norm = nn.LayerNorm(hidden, eps=eps)
        self.inner = nn.Linear(hidden, intermediate)
        self.outer = nn.Linear(intermediate, hidden)
        self.norm = nn.LayerNorm(hidden, eps=eps)
        self.dropout = nn.Dropout(dropout)

    @overload
    def forward(
        self,
        states: Tensor,
        self_mask: Tensor | None,
        seen: KeyValue,
        key_mask: Tensor | None = ...,
        *,
        first: bool = ...,
        attention: Literal[False] = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        states: Tensor,
        self_mask: Tensor | None,
        seen: KeyValue,
        key_mask: Tensor | None = ...,
        *,
        first: bool = ...,
        attention: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...
    def forward(
        self,
        states: Tensor,
        self_mask: Tensor | None,
        seen: KeyValue,
        key_mask: Tensor | None = None,
        *,
        first: bool = False,
        attention: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, L, h); with ``attention`` also the (B, H, L, N) probabilities of the cross-attention, in the graph.

        Args:
            states: (B, L, h).
            self_mask: bool to broadcast to (B, H, L, L); see :func:`self_mask`.
            seen: keys and values of what is looked at, of this layer's ``cross_attention.project``.
            key_mask: bool to broadcast to (B, H, L, N).
            first: only the first token's state is wanted, (B, 1, h); not with a causal ``self_mask``.
            attention: whether to return probabilities.
        """
        own = self.self_attention.project(states)
        states = states[:, :1] if first else states
        states = self.self_norm(states + self.dropout(self.self_attention(states, own, self_mask)))
        probabilities = None
        if attention:
            context, probabilities = self.cross_attention.with_probabilities(states, seen, key_mask)
        else:
            context = self.cross_attention(states, seen, key_mask)
        states = self.cross_norm(states + self.dropout(context))
        states = self.norm(states + self.dropout(self.outer(F.gelu(self.inner(states)))))
        return states if probabilities is None else (states, probabilities)

    @torch.no_grad()
    def load_bert_layer(self, layer: Any) -> None:
        """Take the self-attention and the feed-forward part of a BERT layer of transformers; cross-attention stays as it is.

        Raises:
            ConfigError: a layer of another kind or size.
        """
        try:
            pairs = (
                (self.self_attention.query, layer.attention.self.query),
                (self.self_attention.key, layer.attention.self.key),
                (self.self_attention.value, layer.attention.self.value),
                (self.self_attention.output, layer.attention.output.dense),
                (self.self_norm, layer.attention.output.LayerNorm),
                (self.inner, layer.intermediate.dense),
                (self.outer, layer.output.dense),
                (self.norm, layer.output.LayerNorm),
            )
            for ours, theirs in pairs:
                ours.load_state_dict(theirs.state_dict())
        except (AttributeError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ConfigError(
                f"{type(layer).__name__} is no BERT layer of this size ({reason}); take a BERT-style text encoder"
            ) from error


class FusionEncoder(nn.Module):
    """A stack of :class:`FusionLayer`: the multimodal encoder, and with ``causal`` an answer decoder.

    Args:
        hidden: h.
        heads: H.
        intermediate: width of the feed-forward parts.
        key_width: D, width of what is looked at: that of the image encoder, or h where question states are.
        layers: how many.
        dropout: of hidden states and of attention.
        eps: of the LayerNorms.

    Shapes: states (B, L, h), mask (B, L), keys of B rows → (B, L, h).

    >>> fusion = FusionEncoder(hidden=8, heads=2, intermediate=16, key_width=6, layers=2)
    >>> keys = fusion.keys(torch.randn(3, 5, 6))
    >>> rows = torch.tensor([0, 0, 2, 1])
    >>> fusion(torch.randn(4, 7, 8), torch.ones(4, 7), keys.take(rows)).shape
    torch.Size([4, 7, 8])
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        intermediate: int,
        key_width: int,
        layers: int,
        dropout: float = 0.0,
        eps: float = _EPS,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            FusionLayer(hidden, heads, intermediate, key_width, dropout, eps) for _ in range(layers)
        )
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=weight_std(hidden))
                nn.init.zeros_(part.bias)

    def __len__(self) -> int:
        return len(self.layers)

    def keys(self, *seen: Tensor, mask: Tensor | None = None) -> ImageKeys:
        """Keys and values of every layer.

        Args:
            seen: (B, N, D) each. One is looked at by all layers; of two, the layers look at the first and the second in turn.
            mask: (B, N), nonzero for what may be looked at; default all.
        """
        found: list[KeyValue] = []
        for place, layer in enumerate(self._layers()):
            found.append(layer.cross_attention.project(seen[place % len(seen)]))
        return ImageKeys(tuple(found), None if mask is None else mask.bool())

    @overload
    def forward(
        self,
        states: Tensor,
        mask: Tensor | None,
        keys: ImageKeys,
        *,
        causal: bool = ...,
        first: bool = ...,
        attention_of: None = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self, states: Tensor, mask: Tensor | None, keys: ImageKeys, *, causal: bool = ..., attention_of: int
    ) -> tuple[Tensor, Tensor]: ...
    def forward(
        self,
        states: Tensor,
        mask: Tensor | None,
        keys: ImageKeys,
        *,
        causal: bool = False,
        first: bool = False,
        attention_of: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, L, h); with ``attention_of`` also the (B, H, L, N) cross-attention of that layer, with its graph.

        Args:
            states: (B, L, h).
            mask: (B, L), nonzero for tokens; None: no padding.
            keys: of B rows, see :meth:`keys`.
            causal: a token sees itself and what is before it.
            first: only the first token's state is wanted, (B, 1, h): the last layer then computes no other. Not with ``causal``.
            attention_of: index of a layer, negative ones from the last.

        Raises:
            DataError: keys of another number of rows, or no such layer.
        """
        if len(keys) != len(states):
            raise DataError(f"{len(states)} texts with keys of {len(keys)} images: take the rows that belong together")
        chosen = None if attention_of is None else self._checked(attention_of)
        own = self_mask(mask, states.shape[1], causal=causal, device=states.device)
        other = None if keys.mask is None else keys.mask[:, None, None]
        found = None
        for place, (layer, seen) in enumerate(zip(self._layers(), keys.layers, strict=True)):
            if place == chosen:
                states, found = layer(states, own, seen, other, attention=True)
            else:
                states = layer(states, own, seen, other, first=first and place == len(self) - 1)
        return states if found is None else (states, found)

    def load_bert_layers(self, layers: Sequence[Any]) -> None:
        """Take self-attention and feed-forward parts of BERT layers, one each.

        Raises:
            ConfigError: another number of layers, or layers of another kind.
        """
        if len(layers) != len(self):
            raise ConfigError(f"{len(layers)} BERT layers for {len(self)} fusion layers")
        for ours, theirs in zip(self._layers(), layers, strict=True):
            ours.load_bert_layer(theirs)

    def _layers(self) -> list[FusionLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    def _checked(self, layer: int) -> int:
        if not -len(self) <= layer < len(self):
            raise DataError(f"fusion layer {layer}: there are {len(self)}, counted from 0")
        return layer % len(self)


def self_mask(
    mask: Tensor | None, length: int, *, causal: bool = False, device: torch.device | str | None = None
) -> Tensor | None:
    """Who may look at whom: bool that broadcasts to (B, H, L, L), or None for everyone at everyone.

    Args:
        mask: (B, L), nonzero for tokens; None: no padding.
        length: L.
        causal: a token sees itself and what is before it.
        device: of the result.

    >>> self_mask(torch.tensor([[1, 1, 0]]), 3, causal=True)[0, 0].int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    """
    allowed = None if mask is None else mask.bool()[:, None, None]
    if not causal:
        return allowed
    before = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return before if allowed is None else allowed & before


def weight_std(width: int) -> float:
    """Standard deviation of new weights: BERT's 0.02 at its width of 768, more where it is narrower.

    At 0.02 a narrow layer adds next to nothing to the stream it is added to, so that all first tokens look alike for long.

    >>> weight_std(768), round(weight_std(192), 3)
    (0.02, 0.04)
    """
    return 0.02 * math.sqrt(768 / width)
