"""Vision transformers like timm's grow too. They are told by what they have; timm is not imported.

A block is handled that has ``norm1``, ``attn.qkv`` (packed), ``attn.proj``, ``norm2``, ``mlp.fc1`` and ``mlp.fc2`` and reads and
writes the residual stream through them alone; that is tried out, not believed.
"""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn

from mc_core.errors import ConfigError
from mc_core.growth._vision_block import part, vision_block_axes
from mc_core.growth.expansion import Expansion, described
from mc_core.growth.layout import Residual
from mc_core.growth.spec import heads_of
from mc_core.random import derive_seed

__all__ = ["grow_vision_transformer", "vision_transformer_expansion"]

M = TypeVar("M", bound=nn.Module)
_TOKENS = ("cls_token", "reg_token", "dist_token", "pos_embed")
_HEADS = ("head", "head_dist")
_DEVIATION = 0.02
_MORE = {"blocks": "blocks", "heads": "heads", "hidden": "hidden units", "width": "width"}


@dataclass(frozen=True)
class _Sizes:
    width: int
    blocks: int
    heads: int
    head_width: int
    hidden: int

    @property
    def inner(self) -> int:
        return self.heads * self.head_width


def grow_vision_transformer(
    model: M,
    *,
    width: int | None = None,
    blocks: int | None = None,
    heads: int | None = None,
    hidden: int | None = None,
    seed: int = 0,
) -> M:
    """A larger vision transformer that is the same function; the one given stays as it is.

    In width, features without a head (``num_classes=0``) keep their values and get zeros behind them.

    Args:
        model: like timm's ``VisionTransformer``: ``blocks``, and where it has them ``patch_embed.proj``, ``cls_token``,
            ``reg_token``, ``dist_token``, ``pos_embed``, ``norm``, ``fc_norm``, ``head``, ``head_dist``.
        width: of the residual stream.
        blocks: their number.
        heads: of each block. Head widths stay: the inner width of attention becomes ``heads · head width``.
        hidden: units of each MLP.
        seed: of the new entries, each a function of (seed, name of the parameter): normal, of deviation 0.02.

    Raises:
        ConfigError: a target smaller than the model, or a part that cannot grow so, named.

    The larger model is no longer one that its own constructor can build where inner width and width differ: keep it with
    ``torch.save`` of a state dict and grow an untrained one of the first size before loading.
    """
    expansion = vision_transformer_expansion(model, width=width, blocks=blocks, heads=heads, hidden=hidden, seed=seed)
    return expansion(model)


def vision_transformer_expansion(
    model: nn.Module,
    *,
    width: int | None = None,
    blocks: int | None = None,
    heads: int | None = None,
    hidden: int | None = None,
    seed: int = 0,
) -> Expansion:
    """The expansion by which :func:`grow_vision_transformer` grows a model: for its moving average and its optimizer too.

    Args:
        model: see :func:`grow_vision_transformer`.
        width: see there.
        blocks: see there.
        heads: see there.
        hidden: see there.
        seed: see there.

    Raises:
        ConfigError: see there.
    """
    now = _sizes(model)
    if not hasattr(_blocks(model)[0].attn, "attn_dim"):  # attention that takes heads · head width for the width
        heads = _tied_heads(now, width, heads)
    wanted = {"width": width, "blocks": blocks, "heads": heads, "hidden": hidden}
    target = _Sizes(
        head_width=now.head_width, **{name: getattr(now, name) if n is None else n for name, n in wanted.items()}
    )
    for name in wanted:
        if getattr(target, name) < getattr(now, name):
            raise ConfigError(
                f"the growth target is smaller than the model: {name} {getattr(target, name)}, the model has "
                f"{getattr(now, name)}; a model can only grow"
            )
    for name in wanted:
        if getattr(target, name) > getattr(now, name):
            _require_no_obstacle(model, name)
    residual = _residual(model)
    if target.width > now.width:
        _require_known(model, residual, now.width)
    fresh = _resized(model, now, target, residual, seed)
    return Expansion(model, fresh, residual)


def _sizes(model: nn.Module) -> _Sizes:
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or not len(blocks):
        raise ConfigError(
            f"{type(model).__name__} has no row of blocks (model.blocks), so the expansion cannot handle it; it can handle "
            "models like timm's VisionTransformer and those that describe themselves (mc_core.growth.Residual)"
        )
    found: set[_Sizes] = set()
    for i, block in enumerate(_blocks(model)):
        vision_block_axes(block, f"blocks.{i}")
        heads = getattr(block.attn, "num_heads", None)
        if not isinstance(heads, int) or block.attn.qkv.out_features % (3 * heads):
            raise ConfigError(f"blocks.{i}.attn does not say how many heads it has (num_heads)")
        found.add(
            _Sizes(
                width=block.attn.qkv.in_features,
                blocks=len(blocks),
                heads=heads,
                head_width=block.attn.qkv.out_features // (3 * heads),
                hidden=block.mlp.fc1.out_features,
            )
        )
    if len(found) > 1:
        raise ConfigError(
            f"the blocks of this {type(model).__name__} differ in size; the expansion can handle equal ones"
        )
    return found.pop()


def _blocks(model: nn.Module) -> list[Any]:
    """What was tried out to have the parts of a block."""
    return list(cast(nn.Sequential, model.blocks))


def _tied_heads(now: _Sizes, width: int | None, heads: int | None) -> int:
    """Heads where their widths add up to the width of the model."""
    needed = heads_of(now.width if width is None else width, now.head_width)
    if heads is not None and heads != needed:
        raise ConfigError(
            f"blocks.0.attn takes heads · head width for the width of the model, so that {heads} heads of {now.head_width} need "
            f"width={heads * now.head_width}"
        )
    return needed


def _require_no_obstacle(model: nn.Module, dimension: str) -> None:
    """Refuse a part that makes growth in a dimension lossy."""
    blocks = _blocks(model)
    obstacles = {
        "heads": [
            (f"blocks.{i}.attn.{name}", part(b.attn, name)) for i, b in enumerate(blocks) for name in ("norm", "gate")
        ],
        "hidden": [(f"blocks.{i}.mlp.norm", part(b.mlp, "norm")) for i, b in enumerate(blocks)],
        "width": [
            *((f"blocks.{i}.{name}", part(b, name)) for i, b in enumerate(blocks) for name in ("ls1", "ls2")),
            *((name, part(model, name)) for name in ("norm_pre", "patch_embed.norm", "attn_pool")),
        ],
        "blocks": [],
    }[dimension]
    for path, found in obstacles:
        if found is not None and not isinstance(found, nn.Identity):
            others = " and ".join(told for name, told in _MORE.items() if name != dimension)
            raise ConfigError(
                f"the expansion cannot handle more {_MORE[dimension]} with {path} ({type(found).__name__}); it can handle {others}"
            )
    for i, block in enumerate(blocks):
        if dimension == "hidden" and block.mlp.fc2.in_features != block.mlp.fc1.out_features:
            raise ConfigError(
                f"the expansion cannot handle more hidden units with the gate in blocks.{i}.mlp ({type(block.mlp).__name__}); it "
                "can handle blocks and heads and width"
            )


def _require_known(model: nn.Module, residual: Residual, width: int) -> None:
    """Refuse what may touch the residual stream in a way nobody knows of."""
    if not residual.norms:
        raise ConfigError(
            f"the expansion cannot handle more width of a {type(model).__name__} without a LayerNorm behind its blocks (norm or "
            "fc_norm); it can handle blocks and heads and hidden units"
        )
    known = {*residual.writers, *residual.readers}
    for name, parameter in model.named_parameters():
        if name in known or name.startswith(("blocks.", *(f"{norm}." for norm in residual.norms))):
            continue
        if width in parameter.shape:
            raise ConfigError(
                f"the expansion cannot handle more width with {name} {tuple(parameter.shape)}, of which it does not know how it "
                "meets the residual stream; it can handle blocks and heads and hidden units"
            )


def _residual(model: nn.Module) -> Residual:
    """What such a model has around its blocks, as far as it is there."""
    parameters = dict(model.named_parameters())
    norms = tuple(
        name
        for name in ("norm", "fc_norm")
        if isinstance(part(model, name), nn.Module) and f"{name}.weight" in parameters
    )
    writers = {"patch_embed.proj.weight": 0, "patch_embed.proj.bias": 0, **dict.fromkeys(_TOKENS, -1)}
    return Residual(
        stacks=("blocks",),
        writers={name: dim for name, dim in writers.items() if name in parameters},
        readers={f"{name}.weight": 1 for name in _HEADS if f"{name}.weight" in parameters},
        norms=norms,
    )


def _resized(model: M, now: _Sizes, target: _Sizes, residual: Residual, seed: int) -> M:
    """An untrained model of the target's size, in the precision and place of the one given."""
    larger = copy.deepcopy(model)
    blocks = cast(nn.Sequential, larger.blocks)
    for _ in range(target.blocks - now.blocks):
        blocks.append(copy.deepcopy(blocks[-1]))
    added = tuple(f"blocks.{i}." for i in range(now.blocks, target.blocks))
    parameters = dict(larger.named_parameters())
    for name, axes in described(larger, residual).axes.items():
        shape = list(parameters[name].shape)
        for axis in axes:
            if axis.role in ("new", "unread"):
                dimension = "inner" if ".attn." in name else "hidden"
            else:
                dimension = "width"
            if getattr(target, dimension) != getattr(now, dimension):
                shape[axis.dim] = axis.groups * getattr(target, dimension)
        if name.startswith(added) or torch.Size(shape) != parameters[name].shape:
            _replace(larger, name, torch.Size(shape), seed)
    for block in _blocks(larger):
        block.attn.num_heads = target.heads
        if hasattr(block.attn, "attn_dim"):
            block.attn.attn_dim = target.inner
    for name in ("embed_dim", "num_features", "head_hidden_size"):
        if getattr(larger, name, None) == now.width:
            setattr(larger, name, target.width)
    info = getattr(larger, "feature_info", None)
    if isinstance(info, list) and len(info) == now.blocks:
        info += [{**info[-1], "module": f"blocks.{i}"} for i in range(now.blocks, target.blocks)]
        larger.feature_info = cast(Any, [{**entry, "num_chs": target.width} for entry in info])
    return larger


def _replace(model: nn.Module, name: str, shape: torch.Size, seed: int) -> None:
    """Another parameter of some shape in the place of one, drawn, and what its module says of its size."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    before = getattr(owner, leaf)
    assert isinstance(before, nn.Parameter)
    if isinstance(owner, nn.LayerNorm):
        value = torch.ones(shape) if leaf == "weight" else torch.zeros(shape)
        owner.normalized_shape = tuple(shape)
    elif len(shape) >= 2:
        generator = torch.Generator().manual_seed(derive_seed(seed, zlib.crc32(name.encode())))
        value = torch.randn(shape, generator=generator) * _DEVIATION
    else:
        value = torch.zeros(shape)
    setattr(owner, leaf, nn.Parameter(value.to(before), requires_grad=before.requires_grad))
    if leaf == "weight" and isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = shape
    elif leaf == "weight" and isinstance(owner, nn.Conv2d):
        owner.out_channels = shape[0]
