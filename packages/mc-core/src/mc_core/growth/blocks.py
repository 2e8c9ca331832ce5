"""Transformer blocks that can grow in every dimension and stay the same function.

Legend: B sequences, N tokens, D residual width, I inner width (heads · head width), p head width, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mc_core.errors import ConfigError, closest
from mc_core.growth.layout import Axis, Residual
from mc_core.growth.spec import TowerSpec

__all__ = ["Block", "Stack", "narrowed", "stream_norm"]

_EPS_SUM = 6.4e-4


def stream_norm(width: int) -> nn.LayerNorm:
    """A LayerNorm over the residual stream, ε = 6.4e-4 / width (1e-5 at 64 channels, 1.25e-6 at 512).

    ε falls with the width as the variance of a stream does whose new channels are 0: a model built anew in its grown size has
    the ε that growth asks for, without keeping it anywhere.

    >>> stream_norm(64).eps
    1e-05
    """
    return nn.LayerNorm(width, eps=_EPS_SUM / width)


class Block(nn.Module):
    """A pre-LN block, ``x += W_o · MHA(LN(x))``, ``x += W_2 · GELU(W_1 LN(x))``, whose inner width does not hang on the width.

    Weights may serve several streams (modalities), each with LayerNorms of its own.

    Args:
        width: D, of the residual stream.
        heads: attention heads.
        head_width: p, channels of a head; fixed for good, so that another head changes none of those before.
        hidden: H, units of the MLP.
        streams: names of the streams that pass through, none of them with a dot.
        depth: blocks of the whole tower; what a block adds starts smaller by √(2 · depth).

    Weights start normal with the deviations of CLIP (Radford et al. 2021, arXiv:2103.00020), D^-½ for queries, keys and values,
    (2D)^-½ for W_1, (2D · depth)^-½ for W_o and W_2; biases 0.

    Raises:
        ConfigError: a size below 1, or no streams.

    >>> block = Block(width=8, heads=2, head_width=4, hidden=16, streams=("image", "text"))
    >>> block(torch.zeros(3, 5, 8), "image").shape
    torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        hidden: int,
        streams: Sequence[str] = ("image",),
        *,
        depth: int = 1,
    ) -> None:
        super().__init__()
        sizes = {"width": width, "heads": heads, "head_width": head_width, "hidden": hidden, "depth": depth}
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; a block needs 1 or more")
        if not streams:
            raise ConfigError("a block without streams; name at least one, such as streams=('image',)")
        self.width, self.heads, self.head_width, self.hidden = width, heads, head_width, hidden
        self.streams = tuple(streams)
        self.depth = depth
        inner = heads * head_width
        self.norm1 = nn.ModuleDict({name: stream_norm(width) for name in streams})
        self.qkv = nn.Linear(width, 3 * inner)  # rows: all queries, all keys, all values
        self.proj = nn.Linear(inner, width)
        self.norm2 = nn.ModuleDict({name: stream_norm(width) for name in streams})
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, from torch's random state."""
        added = (2 * self.width * self.depth) ** -0.5
        for linear, deviation in (
            (self.qkv, self.width**-0.5),
            (self.proj, added),
            (self.fc1, (2 * self.width) ** -0.5),
            (self.fc2, added),
        ):
            nn.init.normal_(linear.weight, std=deviation)
            nn.init.zeros_(linear.bias)
        for norms in (self.norm1, self.norm2):
            for norm in norms.values():
                assert isinstance(norm, nn.LayerNorm)
                norm.reset_parameters()

    def forward(
        self,
        x_BND: Tensor,
        stream: str | None = None,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
        heads: int | None = None,
        hidden: int | None = None,
    ) -> Tensor:
        """The stream behind this block.

        Args:
            x_BND: (B, N, D) the stream before it.
            stream: whose LayerNorms to use; may be left out where there is one.
            mask: (B, N) bool, true where there is a token to attend to; default: everywhere.
            causal: a token attends to itself and those before it alone.
            heads: compute with the first ones alone, as a view of the weights; default: all.
            hidden: compute with the first units of the MLP alone; default: all.

        Raises:
            ConfigError: an unknown stream, or more heads or units than there are.
        """
        heads, hidden = self._view(heads, hidden)
        name = self._stream(stream)
        x_BND = x_BND + self._attention(self.norm1[name](x_BND), mask, causal, heads)
        return x_BND + self._mlp(self.norm2[name](x_BND), hidden)

    def _attention(self, x_BND: Tensor, mask_BN: Tensor | None, causal: bool, heads: int) -> Tensor:
        B, N, _ = x_BND.shape
        inner = heads * self.head_width
        if heads == self.heads:
            q, k, v = self.qkv(x_BND).unflatten(-1, (3, heads, self.head_width)).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            weight_3ID = self.qkv.weight.unflatten(0, (3, -1))[:, :inner]
            bias_3I = self.qkv.bias.unflatten(0, (3, -1))[:, :inner]
            q, k, v = (
                F.linear(x_BND, weight, bias).unflatten(-1, (heads, self.head_width)).transpose(1, 2)
                for weight, bias in zip(weight_3ID, bias_3I, strict=True)
            )
        allowed = None
        if mask_BN is not None:
            allowed = mask_BN.bool()[:, None, None, :]
            if causal:
                allowed = allowed & torch.ones(N, N, dtype=torch.bool, device=x_BND.device).tril()
        y_BHNp = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal and allowed is None)
        y_BNI = y_BHNp.transpose(1, 2).reshape(B, N, inner)
        return F.linear(y_BNI, self.proj.weight[:, :inner], self.proj.bias)

    def _mlp(self, x_BND: Tensor, hidden: int) -> Tensor:
        h_BNH = F.gelu(F.linear(x_BND, self.fc1.weight[:hidden], self.fc1.bias[:hidden]))
        return F.linear(h_BNH, self.fc2.weight[:, :hidden], self.fc2.bias)

    def _view(self, heads: int | None, hidden: int | None) -> tuple[int, int]:
        heads = self.heads if heads is None else heads
        hidden = self.hidden if hidden is None else hidden
        for name, value, held in (("heads", heads, self.heads), ("hidden", hidden, self.hidden)):
            if not 1 <= value <= held:
                raise ConfigError(f"a view with {name} {value} of a block that has {held}; choose 1 to {held}")
        return heads, hidden

    def _stream(self, stream: str | None) -> str:
        if stream is None and len(self.streams) == 1:
            return self.streams[0]
        if stream is None or stream not in self.norm1:
            raise ConfigError(
                f"stream is {stream!r}; this block has norms for {closest(str(stream), self.streams, count=5)}"
            )
        return stream

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        """How each parameter grows."""
        norms = {
            f"{norm}.{stream}.{name}": (Axis(0, role),)
            for norm in ("norm1", "norm2")
            for stream in self.streams
            for name, role in (("weight", "gain"), ("bias", "shift"))
        }
        return norms | block_axes("qkv", "proj", "fc1", "fc2")

    def norms(self) -> tuple[str, ...]:
        """Paths of the LayerNorms over the residual stream."""
        return tuple(f"{norm}.{stream}" for norm in ("norm1", "norm2") for stream in self.streams)

    def extra_repr(self) -> str:
        return f"width={self.width}, heads={self.heads}, head_width={self.head_width}, hidden={self.hidden}"


def block_axes(qkv: str, proj: str, fc1: str, fc2: str) -> dict[str, tuple[Axis, ...]]:
    """How the four linear layers of a pre-LN block grow, by their names."""
    return {
        f"{qkv}.weight": (Axis(0, "new", groups=3), Axis(1, "read")),
        f"{qkv}.bias": (Axis(0, "new", groups=3),),
        f"{proj}.weight": (Axis(0, "write"), Axis(1, "unread")),
        f"{proj}.bias": (Axis(0, "write"),),
        f"{fc1}.weight": (Axis(0, "new"), Axis(1, "read")),
        f"{fc1}.bias": (Axis(0, "new"),),
        f"{fc2}.weight": (Axis(0, "write"), Axis(1, "unread")),
        f"{fc2}.bias": (Axis(0, "write"),),
    }


def narrowed(block: Block, heads: int, hidden: int) -> partial[Tensor]:
    """A smaller block as a view of a larger one: its first heads and hidden units. Weights are sliced, not copied.

    It computes what a block of that size with those weights computes; gradients reach the block.

    Raises:
        ConfigError: more heads or units than the block has.

    >>> block = Block(width=8, heads=4, head_width=2, hidden=16)
    >>> narrowed(block, heads=2, hidden=8)(torch.zeros(1, 3, 8)).shape
    torch.Size([1, 3, 8])
    """
    block._view(heads, hidden)
    return partial(block, heads=heads, hidden=hidden)


class Stack(nn.ModuleList):
    """A part of a model: a row of equal blocks.

    Args:
        spec: blocks, heads, hidden units.
        width: D, of the residual stream.
        head_width: p, channels of a head.
        streams: that pass through; see :class:`Block`.
        depth: blocks of the whole tower, for the scale of the first weights; default: those of this part.

    >>> stack = Stack(TowerSpec(blocks=2, heads=2, hidden=16), width=8, head_width=4, streams=("image", "text"))
    >>> x = torch.zeros(1, 3, 8)
    >>> stack(x, "text").shape, torch.equal(stack(x, "text", view=TowerSpec(0, 1, 1)), x)
    (torch.Size([1, 3, 8]), True)
    """

    def __init__(
        self,
        spec: TowerSpec,
        width: int,
        head_width: int,
        streams: Sequence[str] = ("image",),
        *,
        depth: int | None = None,
    ) -> None:
        super().__init__(
            Block(width, spec.heads, head_width, spec.hidden, streams, depth=depth or max(spec.blocks, 1))
            for _ in range(spec.blocks)
        )
        self.spec = spec
        self.width, self.head_width, self.streams, self.depth = width, head_width, tuple(streams), depth

    def residual(self) -> Residual:
        """Nothing touches the stream of a part alone but its blocks."""
        return Residual(stacks=("",))

    def resized(self, spec: TowerSpec) -> Stack:
        """An untrained part of another size, for :func:`mc_core.growth.grow`."""
        return Stack(spec, self.width, self.head_width, self.streams, depth=self.depth)

    def forward(
        self,
        x_BND: Tensor,
        stream: str | None = None,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
        view: TowerSpec | None = None,
    ) -> Tensor:
        """The stream behind this part.

        Args:
            x_BND: (B, N, D) the stream before it.
            stream: see :meth:`Block.forward`.
            mask: see :meth:`Block.forward`.
            causal: see :meth:`Block.forward`.
            view: compute as a smaller part does that has the first blocks, heads and hidden units of this one; nothing is copied.

        Raises:
            ConfigError: a view larger than the part.
        """
        view = self.spec if view is None else view
        if not view <= self.spec:
            raise ConfigError(f"a view of {view} on a part of {self.spec}; a view cannot be larger")
        for block in list(self)[: view.blocks]:
            x_BND = block(x_BND, stream, mask, causal=causal, heads=view.heads, hidden=view.hidden)
        return x_BND
