"""How the tokens of several experts become those of one picture: routed, or by one of the baselines, behind one interface.

::

    z = Σ_k w_k ⊙ Z_k                       routed; uniform: w = 1/E; single: the one; concat: MLP( LN [F_1 ; … ; F_E] ) + P
    y = z + MLP( LN z )
    ỹ = y + (b/q) R,   b ~ Bernoulli(q) per sample, R without gradient          evaluation: ỹ = y + R
    v = n( Linear( [a_1 ; … ; a_4] ) ),  a_i = attention of a learned query over ỹ + P

The shortcut is dropped, not the branch: the mirror of stochastic depth. How the paper means it is not known. ``concat`` is how
Eagle fuses, the baseline to beat.

Legend: B samples, N places of the grid, E experts, d width, C channels of all experts, e width of the shared space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.errors import DataError
from mc_vision_language.fusion import weight_std
from mc_vision_language.methods.astrea.adapters import Adapters, Maps, grid_tokens, on_grid, start_layers
from mc_vision_language.methods.astrea.config import AstreaConfig, ResidualSource
from mc_vision_language.methods.astrea.router import Router, Routing

DRAWS = 4
"""Random numbers that a sample takes: shortcut, its expert, dropout, the expert dropped."""


class Draws(NamedTuple):
    """What chance decides for the samples of a training batch.

    Attributes:
        gain: (B,) b/q, by which the shortcut is multiplied.
        expert: (B,) int64, the expert that the shortcut comes from, where it comes from one.
        present: (B, E) bool, which experts a sample has; None: all.
    """

    gain: Tensor
    expert: Tensor
    present: Tensor | None


def draw(noise: Tensor, config: AstreaConfig) -> Draws:
    """Draws from uniform numbers (B, 4) in [0, 1).

    >>> config = AstreaConfig(residual={"probability": 0.5}, expert_features={"detection": 4, "captioning": 4})
    >>> draw(torch.tensor([[0.4, 0.9, 0.0, 0.0], [0.6, 0.1, 0.0, 0.0]]), config)
    Draws(gain=tensor([2., 0.]), expert=tensor([1, 0]), present=None)
    """
    q, experts = config.residual.probability, len(config.kinds)
    gain = (noise[:, 0] < q) / q if q else torch.zeros_like(noise[:, 0])
    places = torch.arange(experts, device=noise.device)
    present = None
    if config.expert_dropout and experts > 1:
        dropped = noise[:, 2:3] < config.expert_dropout
        present = ~(dropped & (_place(noise[:, 3], experts)[:, None] == places))
    return Draws(gain.to(noise.dtype), _place(noise[:, 1], experts), present)


def _place(noise: Tensor, count: int) -> Tensor:
    return (noise * count).long().clamp(max=count - 1)


class Mixed(NamedTuple):
    """What a mix gives.

    Attributes:
        tokens: (B, N, d) z.
        each: (B, N, E, d) Z; None for ``concat``.
        routing: of ``routed``, with the weights in the graph; of ``uniform`` and ``single`` constants; None for ``concat``.
    """

    tokens: Tensor
    each: Tensor | None
    routing: Routing | None


def weighted(each: Tensor, weights: Tensor) -> Tensor:
    """(B, N, d) Σ_k w_k Z_k of tokens (B, N, E, d) with weights (B, N, E) or (B, E).

    >>> weighted(torch.tensor([[[[1.0], [3.0]]]]), torch.tensor([[0.5, 0.5]]))
    tensor([[[2.]]])
    """
    each_token = weights if weights.ndim == 3 else weights[:, None]
    return (each_token.to(each.dtype)[..., None, :] @ each).squeeze(-2)


class RoutedMix(nn.Module):
    """Adapted tokens, weighted by the router.

    Args:
        config: of the model.
        text_features: h, of a question's state.
    """

    def __init__(self, config: AstreaConfig, text_features: int) -> None:
        super().__init__()
        self.router = Router(config, sum(_features(config).values()), text_features)

    def forward(self, maps: Maps, adapters: Adapters, text: Tensor | None, present: Tensor | None) -> Mixed:
        each = adapters(maps)
        routing = self.router(side_by_side(maps, adapters.features), text, present)
        return Mixed(weighted(each, routing.weights), each, routing)


class UniformMix(nn.Module):
    """The mean of the adapted tokens of the experts that are there; of one expert, its tokens."""

    def forward(self, maps: Maps, adapters: Adapters, text: Tensor | None, present: Tensor | None) -> Mixed:
        each = adapters(maps)
        on = each.new_ones(len(each), each.shape[2], dtype=torch.bool) if present is None else present
        weights = on.to(torch.promote_types(each.dtype, torch.float32))
        weights = weights / weights.sum(-1, keepdim=True)
        return Mixed(weighted(each, weights), each, Routing(weights, weights, torch.zeros_like(weights), on))


class ConcatMix(nn.Module):
    """All channels side by side through one MLP; channels of an absent expert are 0.

    Args:
        config: of the model.
    """

    def __init__(self, config: AstreaConfig) -> None:
        super().__init__()
        self.features = _features(config)
        channels = sum(self.features.values())
        self.norm = nn.LayerNorm(channels)
        self.hidden, self.out = nn.Linear(channels, config.width), nn.Linear(config.width, config.width)
        self.positions = nn.Parameter(torch.randn(config.tokens, config.width) * weight_std(config.width))
        start_layers(self)

    def forward(self, maps: Maps, adapters: Adapters | None, text: Tensor | None, present: Tensor | None) -> Mixed:
        tokens = side_by_side(maps, self.features, present)
        return Mixed(self.out(F.gelu(self.hidden(self.norm(tokens)))) + self.positions, None, None)


def side_by_side(maps: Maps, features: Mapping[str, int], present: Tensor | None = None) -> Tensor:
    """(B, N, C): maps on the grid with their channels one after the other, those of absent experts 0."""
    parts = [grid_tokens(maps[kind]) for kind in features]
    if present is not None:
        parts = [part * on[:, None, None].to(part.dtype) for part, on in zip(parts, present.unbind(1), strict=True)]
    return torch.cat(parts, dim=2)


def shortcut(each: Tensor, expert: Tensor | None) -> Tensor:
    """(B, N, d) R from adapted tokens (B, N, E, d), without gradient: their mean, or the tokens of one expert (B,) each."""
    if expert is None:
        return each.detach().mean(2)
    return each.detach()[torch.arange(len(each), device=each.device), :, expert]


def with_shortcut(tokens: Tensor, residual: Tensor, gain: Tensor | None) -> Tensor:
    """ỹ of tokens y (B, N, d) and R (B, N, d), with b/q (B,) in training; None: their expectation.

    >>> y, r = torch.zeros(2, 1, 1), torch.ones(2, 1, 1)
    >>> with_shortcut(y, r, torch.tensor([2.0, 0.0])).flatten().tolist(), with_shortcut(y, r, None).flatten().tolist()
    ([2.0, 0.0], [1.0, 1.0])
    """
    if gain is not None:
        residual = residual * gain.to(residual.dtype)[:, None, None]
    return tokens + residual


class Pooling(nn.Module):
    """Learned queries look at the tokens; what they find, side by side, is projected.

    Args:
        width: d.
        dim: e.
        queries: how many.
        heads: of the attention; must divide d.

    >>> Pooling(8, 4, queries=2, heads=2)(torch.randn(3, 9, 8)).shape
    torch.Size([3, 4])
    """

    def __init__(self, width: int, dim: int, queries: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # wide apart, so that each query looks elsewhere: near 0 all of them would take the same mean over the picture
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.norm = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, 2 * width)
        self.projection = nn.Linear(queries * width, dim)
        start_layers(self)
        for part in self.key_value.weight.chunk(2):  # two layers in one
            nn.init.xavier_uniform_(part)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, e), not normalised, of tokens (B, N, d)."""
        key, value = self.key_value(self.norm(tokens)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query = (
            self.queries.to(key.dtype).unflatten(-1, (self.heads, -1)).transpose(0, 1).expand(len(tokens), -1, -1, -1)
        )
        found = F.scaled_dot_product_attention(query, key, value)
        return self.projection(found.transpose(1, 2).flatten(1))


class Fused(NamedTuple):
    """Visual tokens and how they came about.

    Attributes:
        tokens: (B, N, d) ỹ.
        weights: (B, N, E) or (B, E) w; None for ``concat``.
        probabilities: p, of the same shape; None for ``concat``.
        logits: ℓ; None for ``concat``.
        selected: bool, the experts with the largest weights; None for ``concat``.
    """

    tokens: Tensor
    weights: Tensor | None
    probabilities: Tensor | None
    logits: Tensor | None
    selected: Tensor | None


class FusionBlock(nn.Module):
    """From maps to tokens: the mix, its MLP and the shortcut.

    Args:
        config: of the model, with ``expert_features``.
        text_features: h, of a question's state.

    Attributes:
        adapters: :class:`~mc_vision_language.methods.astrea.adapters.Adapters`; None for ``concat``.
        mix: one of :class:`RoutedMix`, :class:`UniformMix`, :class:`ConcatMix`.
    """

    def __init__(self, config: AstreaConfig, text_features: int) -> None:
        super().__init__()
        self.config = config
        self.features = _features(config)
        width, hidden = config.width, max(1, round(config.mlp_ratio * config.width))
        concat = config.fusion == "concat"
        self.adapters = None if concat else Adapters(self.features, config.grid, width)
        self.mix: nn.Module = (
            ConcatMix(config) if concat else RoutedMix(config, text_features) if config.routes else UniformMix()
        )
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        start_layers(self.mlp)

    @property
    def positions(self) -> Tensor:
        """(N, d) P."""
        owner = self.mix if self.adapters is None else self.adapters
        assert isinstance(owner, (ConcatMix, Adapters))
        return owner.positions

    def forward(
        self, maps: Maps, text: Tensor | None = None, *, residual: Tensor | None = None, draws: Draws | None = None
    ) -> Fused:
        """Tokens of maps.

        Args:
            maps: kind → (B, C_k, H_k, W_k).
            text: (B, h) states of questions for the router, rows of zeros where there is none.
            residual: (B, N, d) R of another set of adapters; needed where ``config.reference``.
            draws: of training; None: all experts, and the expectation of the shortcut.

        Raises:
            DataError: a map is missing or has another shape, or R is missing.
        """
        found = on_grid(maps, self.features, self.config.grid)
        present = None if draws is None else draws.present
        mixed: Mixed = self.mix(found, self.adapters, text, present)
        tokens = mixed.tokens + self.mlp(self.norm(mixed.tokens))
        if self.config.residual.probability:
            r = self._shortcut(mixed, self.config.residual.source, residual, draws)
            tokens = with_shortcut(tokens, r, None if draws is None else draws.gain)
        routing = mixed.routing
        return Fused(tokens, *((None,) * 4 if routing is None else routing))

    @staticmethod
    def _shortcut(mixed: Mixed, source: ResidualSource, residual: Tensor | None, draws: Draws | None) -> Tensor:
        if source == "expert":
            assert mixed.each is not None
            return shortcut(mixed.each, None if draws is None else draws.expert)
        if residual is None:
            raise DataError(
                f"residual.source {source} adds tokens of another set of adapters: give them (AstreaBackbone.residual)"
            )
        return residual.detach()


def _features(config: AstreaConfig) -> dict[str, int]:
    return {kind: config.expert_features[kind] for kind in config.kinds}
