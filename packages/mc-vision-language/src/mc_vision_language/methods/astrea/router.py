"""The router: how much each expert counts at each place, and what calibrates it slowly from outside its gradient.

::

    r  = LN( [F_1 ; … ; F_E] ) of a token, or of the token means of a picture; then n(h_text) and a flag that there is none
    ℓ  = W_g r + b_g + α                     W_g = b_g = 0 at the start
    p  = softmax( ℓ / τ_g ),    w = (1 − E ε) p + ε             top-k: the largest w, renormalised
    bias form: the largest σ( ℓ / τ_g ) + β are selected, w = σ( ℓ / τ_g ) of those, renormalised
    allocator: c_k = − Σ w_k ∂L/∂w_k;   ĉ ← 0.99 ĉ + 0.01 c / (Σ|c| + 1e-8);   α = clip( η (mean ĉ − ĉ), −1, 1 )
    balance:   β_k ← β_k + u sign( mean load − load_k );   β ← β − mean β

LayerNorm, zero start and floor are the answer to a router that gives all weight to one expert in some hundred steps. α and β take
no gradient; they are buffers that every process computes alike. The formulas are this project's choice (the abstract only names an
adaptive weight allocator), the bias form is that of DeepSeek-V3's code.

Legend: B samples, N places, C all channels of the experts, E experts, h features of a text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.errors import DataError
from mc_vision_language.methods.astrea.config import AstreaConfig

_KEEP = 0.99  # of ĉ in a step
_TINY = 1e-8


class Routing(NamedTuple):
    """What the router decides, for tokens (B, N, E) or pictures (B, E).

    Attributes:
        weights: w, rows that sum to 1.
        probabilities: p; in the bias form the renormalised σ(ℓ) of all experts.
        logits: ℓ, also of experts that are absent.
        selected: bool, the experts with the largest weights: the top-k, of dense weights the first.
    """

    weights: Tensor
    probabilities: Tensor
    logits: Tensor
    selected: Tensor


class SlowState(nn.Module):
    """Buffers that move by tiny steps: at least float32 whatever the model is cast to, and computed alike on every process."""

    replicated_buffers = True  # see mc_core.distributed.exclude_from_ddp

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def kept(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            half = made.is_floating_point() and made.dtype.itemsize < 4
            return tensor.to(made.device) if half else made

        return super()._apply(kept, recurse)


class Allocator(SlowState):
    """Slow calibration of the router by the measured usefulness of experts.

    Args:
        experts: E.

    Attributes:
        average: (E,) ĉ.
        last: (E,) c of the last step, as shares.

    >>> allocator = Allocator(2)
    >>> allocator.update(torch.tensor([3.0, -1.0]))  # ĉ = 0.01 (0.75, −0.25)
    >>> allocator.alpha(100.0)
    tensor([-0.5000,  0.5000])
    """

    average: Tensor
    last: Tensor

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(experts))
        self.register_buffer("last", torch.zeros(experts))

    def alpha(self, eta: float) -> Tensor:
        """(E,) α, added to the logits; all 0 with η = 0."""
        return (eta * (self.average.mean() - self.average)).clamp(-1.0, 1.0)

    @torch.no_grad()
    def update(self, usefulness: Tensor) -> None:
        """Take in c (E,) of one optimizer step, the same on every process; its scale does not matter."""
        share = usefulness.to(self.average.dtype).nan_to_num(
            0.0, 0.0, 0.0
        )  # a skipped fp16 step has infinite gradients
        share = share / (share.abs().sum() + _TINY)
        self.last.copy_(share)
        self.average.mul_(_KEEP).add_(share, alpha=1 - _KEEP)


class BalanceBias(SlowState):
    """β of the bias form.

    Args:
        experts: E.

    >>> bias = BalanceBias(2)
    >>> bias.update(torch.tensor([0.9, 0.1]), speed=0.5)
    >>> bias.beta
    tensor([-0.5000,  0.5000])
    """

    beta: Tensor

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.register_buffer("beta", torch.zeros(experts))

    @torch.no_grad()
    def update(self, load: Tensor, speed: float) -> None:
        """Take in the load (E,) of one optimizer step, selections or their shares, the same on every process; u is ``speed``."""
        load = load.to(self.beta.dtype)
        self.beta.add_(torch.sign(load.mean() - load), alpha=speed)
        self.beta.sub_(self.beta.mean())


def routed_weights(
    logits: Tensor,
    *,
    floor: float = 0.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    beta: Tensor | None = None,
    present: Tensor | None = None,
) -> Routing:
    """Weights from logits ℓ (…, E).

    Args:
        logits: with α in them.
        floor: ε, of the experts that are present; not of those that top-k leaves out, nor in the bias form.
        temperature: τ_g.
        top_k: experts that keep a weight; None: all. Of equal ones the first.
        beta: (E,) selects by the bias form; needs ``top_k``.
        present: (…, E) bool, broadcast: which experts there are; the others get the weight 0.

    >>> routed_weights(torch.zeros(4)).weights
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    >>> routed_weights(torch.tensor([9.0, 0.0, -9.0]), floor=0.1, top_k=2).selected
    tensor([ True,  True, False])
    """
    scaled = logits / temperature
    masked = scaled if present is None else scaled.masked_fill(~present, -torch.inf)
    if beta is not None:
        scores = masked.sigmoid()  # 0 where absent
        selected = _largest(scores.detach() + beta, top_k, present)
        chosen = scores * selected
        return Routing(chosen / chosen.sum(-1, keepdim=True), scores / scores.sum(-1, keepdim=True), logits, selected)
    probabilities = masked.softmax(-1)
    if present is None:
        weights = (1 - probabilities.shape[-1] * floor) * probabilities + floor
    else:
        count = present.sum(-1, keepdim=True).to(probabilities.dtype)
        weights = ((1 - count * floor) * probabilities + floor) * present
    selected = _largest(weights.detach(), top_k or 1, present)
    if top_k is not None:
        kept = weights * selected
        weights = kept / kept.sum(-1, keepdim=True)
    return Routing(weights, probabilities, logits, selected)


def _largest(scores: Tensor, count: int | None, present: Tensor | None) -> Tensor:
    """(…, E) bool: the ``count`` largest of those present; fewer where fewer are."""
    if present is not None:
        scores = scores.masked_fill(~present, -torch.inf)
    # stable, so that ties do not depend on the device
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., : count or scores.shape[-1]]
    found = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)
    return found if present is None else found & present


class Router(nn.Module):
    """Features of all experts to weights; always in at least float32.

    Args:
        config: whose ``router``, ``balance`` and ``allocator`` it follows.
        channels: C.
        text_features: h; of use with ``router.text`` alone.

    Attributes:
        allocator: :class:`Allocator`.
        bias: :class:`BalanceBias`, or None.

    >>> config = AstreaConfig(expert_features={"classification": 3, "detection": 5})
    >>> Router(config, 8)(torch.randn(2, 9, 8)).weights.shape
    torch.Size([2, 9, 2])
    """

    def __init__(self, config: AstreaConfig, channels: int, text_features: int = 0) -> None:
        super().__init__()
        self.config, experts = config, len(config.kinds)
        self.text_features = text_features if config.router.text else 0
        self.norm = nn.LayerNorm(channels)
        self.gate = nn.Linear(channels + (self.text_features + 1 if self.text_features else 0), experts)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.allocator = Allocator(experts)
        self.bias = BalanceBias(experts) if config.biased else None

    def forward(self, tokens: Tensor, text: Tensor | None = None, present: Tensor | None = None) -> Routing:
        """Weights for tokens (B, N, C), or for pictures with ``router.per: image``; no gradient flows into tokens and text.

        Args:
            tokens: features of all experts side by side, in their order.
            text: (B, h) states of questions, rows of zeros where there is none; None: there are none.
            present: (B, E) bool, which experts a sample has; None: all.

        Raises:
            DataError: a sample without any expert.
        """
        if present is not None and not self.training and not bool(present.any(-1).all()):
            raise DataError("a sample has no expert at all: leave at least one on")
        settings = self.config.router
        with torch.autocast(tokens.device.type, enabled=False):
            seen = tokens.detach().to(torch.promote_types(tokens.dtype, torch.float32))
            if settings.per == "image":
                seen = seen.mean(1)
            weight, bias = (one.to(seen.dtype) for one in (self.norm.weight, self.norm.bias))
            r = F.layer_norm(seen, self.norm.normalized_shape, weight, bias, self.norm.eps)
            if self.text_features:
                r = torch.cat([r, self._read(text, seen)], dim=-1)
            logits = F.linear(r, self.gate.weight.to(r.dtype), self.gate.bias.to(r.dtype))
            logits = logits + self.allocator.alpha(self.config.allocator).to(r.dtype)
            if present is not None and settings.per == "token":
                present = present[:, None]
            return routed_weights(
                logits,
                floor=settings.floor,
                temperature=settings.temperature,
                top_k=settings.top_k,
                beta=None if self.bias is None else self.bias.beta.to(r.dtype),
                present=present,
            )

    def _read(self, text: Tensor | None, seen: Tensor) -> Tensor:
        """(B, h + 1) or (B, N, h + 1): unit rows of the text, and 1 where there is none."""
        if text is None:
            text = seen.new_zeros(len(seen), self.text_features)
        text = text.detach().to(seen.dtype)
        flag = (text == 0).all(-1, keepdim=True).to(seen.dtype)
        both = torch.cat([F.normalize(text, dim=-1), flag], dim=-1)
        return both if seen.ndim == 2 else both[:, None].expand(-1, seen.shape[1], -1)
