"""Vision transformers like timm's grow as the same function, or say what stands in the way."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mc_core.errors import ConfigError
from mc_core.growth import Residual, grow_vision_transformer, vision_transformer_expansion
from mc_core.momentum import MomentumEncoder


class Attention(nn.Module):
    """With ``free``, heads of a fixed width as many as there are; without, those that make up the width."""

    def __init__(self, width: int, heads: int, free: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        if free:
            self.attn_dim = width
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        inner = getattr(self, "attn_dim", x.shape[-1])
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(*x.shape[:2], inner))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, free: bool = True, order: str = "pre") -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp, self.order = Attention(width, heads, free), Mlp(width, 2 * width), order

    def forward(self, x):
        if self.order == "post":
            x = x + self.norm1(self.attn(x))
            return x + self.norm2(self.mlp(x))
        x = x + self.attn(self.norm1(x)) + (0.1 if self.order == "added" else 0.0)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """What timm's VisionTransformer is, in a few lines."""

    def __init__(self, width: int = 24, blocks: int = 2, heads: int = 3, **options) -> None:
        super().__init__()
        self.embed_dim = self.num_features = width
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.Sequential(*[Layer(width, heads, **options) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 7)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


@torch.no_grad()
def shaken(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def made(**options) -> Transformer:
    torch.manual_seed(0)
    model = shaken(Transformer(**options))
    assert isinstance(model, Transformer)
    return model


def pictures() -> torch.Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(2))


SIZES = [
    {"blocks": 4},
    {"heads": 5},
    {"hidden": 70},
    {"width": 28},
    {"width": 64},
    {"width": 40, "blocks": 3, "heads": 4, "hidden": 50},
]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(sizes))
def test_every_growth_keeps_the_function(sizes):
    model, x = made(), pictures()
    before = copy.deepcopy(model.state_dict())
    grown = grow_vision_transformer(model, **sizes)
    with torch.no_grad():
        bound = 5e-6 if "width" in sizes else 1e-6
        assert (grown(x) - model(x)).abs().max() <= bound
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    block = grown.blocks[-1]
    found = {
        "width": block.attn.qkv.in_features,
        "blocks": len(grown.blocks),
        "heads": block.attn.num_heads,
        "hidden": block.mlp.fc1.out_features,
    }
    assert found == {"width": 24, "blocks": 2, "heads": 3, "hidden": 48, **sizes}
    assert grown.embed_dim == grown.num_features == grown.pos_embed.shape[-1] == found["width"]
    assert block.attn.qkv.out_features == 3 * 8 * found["heads"]
    assert grown.patch_embed.proj.out_channels == found["width"]
    assert (block.mlp.fc2.in_features, block.norm1.normalized_shape) == (found["hidden"], (found["width"],))


def test_new_entries_learn_after_two_updates():
    model, x = made(), pictures()
    grown = grow_vision_transformer(model, width=40, blocks=3, heads=4, hidden=50).train()
    steps = torch.optim.SGD(grown.parameters(), lr=0.01)
    for _ in range(3):
        steps.zero_grad()
        grown(x).square().mean().backward()
        steps.step()
    for name in ("patch_embed.proj.weight", "blocks.2.attn.qkv.weight", "blocks.2.mlp.fc1.weight", "head.weight"):
        assert (grown.get_parameter(name).grad != 0).float().mean() > 0.99, name
    assert grown.norm.weight.grad[24:].all()
    assert grown.blocks[0].attn.proj.weight.grad[:, 24:].all()


def test_the_seed_decides_the_new_entries_by_the_name_of_their_parameter():
    model = made()
    one, again, other = (grow_vision_transformer(model, heads=4, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    new = [m.blocks[0].attn.qkv.weight.unflatten(0, (3, -1))[:, 24:] for m in (one, other)]
    assert not torch.equal(*new)
    assert not torch.equal(new[0], one.blocks[1].attn.qkv.weight.unflatten(0, (3, -1))[:, 24:])
    more = grow_vision_transformer(model, heads=4, blocks=3, seed=0)
    assert torch.equal(more.blocks[0].attn.qkv.weight, one.blocks[0].attn.qkv.weight)
    assert not torch.equal(more.blocks[2].attn.qkv.weight, one.blocks[1].attn.qkv.weight)
    assert new[0].std().item() == pytest.approx(0.02, rel=0.1)


def test_the_moving_average_grows_too():
    model, x = made(), pictures()
    encoder = MomentumEncoder(model, 0.9)
    expansion = vision_transformer_expansion(model, width=40, blocks=3)
    grown = expansion(model)
    twin = expansion.twin(encoder, grown)
    assert all(torch.equal(a, b) for a, b in zip(twin.module.parameters(), grown.parameters(), strict=True))
    with torch.no_grad():
        assert (twin(x) - model(x)).abs().max() < 5e-6


def test_heads_that_make_up_the_width_grow_with_it():
    model, x = made(free=False), pictures()
    grown = grow_vision_transformer(model, width=40)
    assert grown.blocks[0].attn.num_heads == 5
    with torch.no_grad():
        assert (grown(x) - model(x)).abs().max() < 5e-6
    assert grow_vision_transformer(model, width=40, heads=5).blocks[0].attn.num_heads == 5
    with pytest.raises(ConfigError, match="width 28 does not divide by the head width 8; take 24 or 32"):
        grow_vision_transformer(model, width=28)
    with pytest.raises(ConfigError, match="4 heads of 8 need width=32"):
        grow_vision_transformer(model, heads=4)
    with pytest.raises(ConfigError, match="4 heads of 8 need width=32"):
        grow_vision_transformer(model, width=40, heads=4)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"width": 20}, "width 20, the model has 24"),
        ({"blocks": 1}, "blocks 1, the model has 2"),
        ({"heads": 2}, "heads 2, the model has 3"),
        ({"hidden": 47}, "hidden 47, the model has 48"),
    ],
)
def test_a_smaller_target_is_refused(sizes, told):
    with pytest.raises(ConfigError, match=f"growth target is smaller than the model: {told}; a model can only grow"):
        grow_vision_transformer(made(), **sizes)


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ("post", "it reads the residual stream past norm1 and norm2"),
        ("added", "it adds to the residual stream past attn.proj and mlp.fc2"),
    ],
)
def test_what_a_block_does_is_tried_out(order, told):
    with pytest.raises(ConfigError, match=rf"blocks.0 \(Layer\) cannot be handled by the expansion: {told}"):
        grow_vision_transformer(made(order=order), blocks=3)


def test_a_block_that_lacks_a_part_or_does_not_run_is_named():
    model = made()
    model.blocks[1].mlp = nn.Linear(24, 24)
    with pytest.raises(
        ConfigError, match=r"blocks.1 \(Layer\) cannot .* it has no mlp.fc1; it can handle .*norm1, attn.qkv"
    ):
        grow_vision_transformer(model, blocks=3)
    model = made()
    model.blocks[1].attn.num_heads = 2
    with pytest.raises(ConfigError, match=r"blocks.1 \(Layer\) .* it does not run on three tokens alone"):
        grow_vision_transformer(model, blocks=3)


def test_other_models_are_named_with_what_can_be_handled():
    with pytest.raises(ConfigError, match="Linear has no row of blocks .*timm's VisionTransformer.*Residual"):
        grow_vision_transformer(nn.Linear(2, 2), width=3)


def test_blocks_of_different_sizes_are_refused():
    model = made()
    model.blocks[1].mlp = Mlp(24, 30)
    with pytest.raises(ConfigError, match="blocks of this Transformer differ in size"):
        grow_vision_transformer(model, blocks=3)


def obstructed(name: str) -> Transformer:
    model = made()
    if name == "attn.gate":
        model.blocks[1].attn.gate = nn.Linear(24, 24)
    elif name == "attn.norm":
        model.blocks[1].attn.norm = nn.LayerNorm(24)
    elif name == "mlp.norm":
        model.blocks[1].mlp.norm = nn.LayerNorm(48)
    elif name == "ls1":
        model.blocks[1].ls1 = nn.Module()
    elif name == "norm_pre":
        model.norm_pre = nn.LayerNorm(24)
    elif name == "patch_embed.norm":
        model.patch_embed.norm = nn.LayerNorm(24)
    elif name == "attn_pool":
        model.attn_pool = nn.Linear(24, 24)
    elif name == "norm":
        model.norm = nn.Identity()
    elif name == "decoder.weight":
        model.decoder = nn.Linear(24, 2)
    return model


@pytest.mark.parametrize(
    ("name", "grown", "possible"),
    [
        ("attn.gate", "heads", "blocks and hidden units and width"),
        ("attn.norm", "heads", "blocks and hidden units and width"),
        ("mlp.norm", "hidden", "blocks and heads and width"),
        ("ls1", "width", "blocks and heads and hidden units"),
        ("norm_pre", "width", "blocks and heads and hidden units"),
        ("patch_embed.norm", "width", "blocks and heads and hidden units"),
        ("attn_pool", "width", "blocks and heads and hidden units"),
        ("norm", "width", "blocks and heads and hidden units"),
        ("decoder.weight", "width", "blocks and heads and hidden units"),
    ],
)
def test_what_stands_in_the_way_is_named_with_what_is_possible(name, grown, possible):
    model = obstructed(name)
    with pytest.raises(ConfigError, match=rf"the expansion cannot handle more .*{name}.*; it can handle {possible}"):
        grow_vision_transformer(model, **{grown: 80})
    assert len(grow_vision_transformer(model, blocks=3).blocks) == 3


class GatedMlp(Mlp):
    """Half of the units gate the others."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        self.fc2 = nn.Linear(hidden // 2, width)

    def forward(self, x):
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(value * gate.sigmoid())


def test_a_gated_mlp_grows_in_all_but_its_units():
    model, x = made(), pictures()
    for block in model.blocks:
        block.mlp = GatedMlp(24, 48)
    grown = grow_vision_transformer(model, blocks=3, heads=4, width=40)
    with torch.no_grad():
        assert (grown(x) - model(x)).abs().max() < 5e-6
    with pytest.raises(
        ConfigError, match=r"hidden units with the gate in blocks.0.mlp \(GatedMlp\); it can handle blocks"
    ):
        grow_vision_transformer(model, hidden=60)


TIMM = [{}, {"global_pool": "avg"}, {"qkv_bias": False}, {"reg_tokens": 2}, {"qk_norm": True}]


@pytest.mark.parametrize("options", TIMM, ids=lambda options: "-".join(options) or "plain")
def test_models_of_timm(options):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sizes = {
        "img_size": 16,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        "num_classes": 7,
        "mlp_ratio": 2.0,
    }
    model = shaken(timm.models.VisionTransformer(**sizes, **options))
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        for growth in SIZES:
            bound = 5e-6 if "width" in growth else 1e-6
            grown = grow_vision_transformer(model, **growth)
            assert (grown(x) - model(x)).abs().max() <= bound, growth
    grown = grow_vision_transformer(model, width=40, blocks=3)
    assert [entry["num_chs"] for entry in grown.feature_info] == [40] * 3
    assert [entry["num_chs"] for entry in model.feature_info] == [24] * 2
    assert grown.feature_info[-1]["module"] == "blocks.2"
    assert grown.forward_features(x).shape[-1] == 40


def test_features_without_a_head_keep_their_values():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = shaken(timm.models.VisionTransformer(16, 8, embed_dim=24, depth=1, num_heads=3, num_classes=0))
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        found = grow_vision_transformer(model, width=40)(x)
        assert (found[:, :24] - model(x)).abs().max() < 5e-6
        assert found[:, 24:].abs().max() < 1e-6


@pytest.mark.parametrize("block", ["ResPostBlock", "ParallelScalingBlock"])
def test_other_blocks_of_timm_are_named(block):
    timm = pytest.importorskip("timm")
    kind = getattr(timm.models.vision_transformer, block)
    model = timm.models.VisionTransformer(16, 8, embed_dim=24, depth=1, num_heads=3, block_fn=kind)
    with pytest.raises(ConfigError, match=rf"blocks.0 \({block}\) cannot be handled by the expansion"):
        grow_vision_transformer(model, blocks=2)


def test_a_model_that_holds_one_describes_it_itself():
    """An owner of such an encoder names its writers and readers, as any other model does."""
    from mc_core.growth import Expansion

    small, large = made(), Transformer(24, 4, 3)
    table = Residual(stacks=("blocks",), norms=("norm",))
    grown = Expansion(small, large, table)(small)
    with torch.no_grad():
        assert torch.equal(grown.eval()(pictures()), small(pictures()))
