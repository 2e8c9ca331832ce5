"""A block computes what its equations say, its norms belong to streams, and a view computes what a smaller block would."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mc_core.errors import ConfigError
from mc_core.growth import Block, Stack, TowerSpec, narrowed, stream_norm


@torch.no_grad()
def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """No parameter at its start, so that gains, shifts and biases count."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module.double()


def block(**sizes) -> Block:
    torch.manual_seed(0)
    made = Block(**{"width": 6, "heads": 3, "head_width": 4, "hidden": 10, "streams": ("image", "text"), **sizes})
    return shaken(made)


def normed(x, norm):
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + norm.eps) * norm.weight + norm.bias


def by_hand(b: Block, x_BND, stream, mask_BN, causal):
    """Token by token and head by head."""
    out = x_BND.clone()
    B, N, _ = x_BND.shape
    p, inner = b.head_width, b.heads * b.head_width
    for i in range(B):
        rows = [b.qkv.weight @ normed(x_BND[i, n], b.norm1[stream]) + b.qkv.bias for n in range(N)]
        for n in range(N):
            heads = []
            for h in range(b.heads):
                seen = [m for m in range(N) if mask_BN[i, m] and (m <= n or not causal)]
                query = rows[n][h * p : (h + 1) * p]
                keys = [rows[m][inner + h * p : inner + (h + 1) * p] for m in seen]
                values = [rows[m][2 * inner + h * p : 2 * inner + (h + 1) * p] for m in seen]
                weights = torch.stack([query @ key / math.sqrt(p) for key in keys]).softmax(0)
                heads.append(sum(w * v for w, v in zip(weights, values, strict=True)))
            out[i, n] += b.proj.weight @ torch.cat(heads) + b.proj.bias
    after = out.clone()
    for i in range(B):
        for n in range(N):
            h = b.fc1.weight @ normed(after[i, n], b.norm2[stream]) + b.fc1.bias
            h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
            out[i, n] += b.fc2.weight @ h + b.fc2.bias
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stream", ["image", "text"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_block_is_its_equations(stream, masked, causal):
    b, x = block(), torch.randn(2, 5, 6, dtype=torch.float64)
    mask = torch.ones(2, 5, dtype=torch.bool)
    if masked:
        mask[0, 3:] = False
    with torch.no_grad():
        found = b(x, stream, mask if masked else None, causal=causal)
        torch.testing.assert_close(found, by_hand(b, x, stream, mask, causal), rtol=0, atol=1e-12)


def test_what_is_masked_or_comes_later_is_not_seen():
    b, x = block(), torch.randn(2, 5, 6, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False, False]]).expand(2, -1)
    other = x.clone()
    other[:, 3:, 0] += 1.0
    assert torch.equal(b(x, "text", mask)[:, :3], b(other, "text", mask)[:, :3])
    torch.testing.assert_close(
        b(x, "text", causal=True)[:, :3], b(other, "text", causal=True)[:, :3], rtol=0, atol=1e-14
    )
    assert not torch.allclose(b(x, "text")[:, :3], b(other, "text")[:, :3])


def test_streams_share_all_but_their_norms():
    b, x = block(), torch.randn(2, 5, 6, dtype=torch.float64)
    before = b(x, "image"), b(x, "text")
    with torch.no_grad():
        b.norm2["text"].weight.mul_(2)
    assert torch.equal(b(x, "image"), before[0])
    assert not torch.allclose(b(x, "text"), before[1])
    names = {name.split(".")[1] for name, _ in b.named_parameters() if name.startswith("norm")}
    assert names == {"image", "text"}


def test_a_single_stream_needs_no_name():
    b, x = block(streams=("image",)), torch.randn(2, 5, 6, dtype=torch.float64)
    assert torch.equal(b(x), b(x, "image"))


def test_the_inner_width_does_not_hang_on_the_width():
    b = Block(width=7, heads=3, head_width=5, hidden=11)
    assert (b.qkv.weight.shape, b.proj.weight.shape) == ((45, 7), (7, 15))
    assert b(torch.zeros(1, 2, 7)).shape == (1, 2, 7)


def test_first_weights_have_the_deviations_said():
    torch.manual_seed(0)
    b = Block(width=64, heads=4, head_width=16, hidden=256, depth=8)
    for weight, deviation in (
        (b.qkv.weight, 64**-0.5),
        (b.fc1.weight, 128**-0.5),
        (b.proj.weight, (2 * 64 * 8) ** -0.5),
        (b.fc2.weight, (2 * 64 * 8) ** -0.5),
    ):
        assert weight.std().item() == pytest.approx(deviation, rel=0.05)
    assert not any(linear.bias.any() for linear in (b.qkv, b.proj, b.fc1, b.fc2))


def test_epsilon_falls_with_the_width():
    assert stream_norm(48).eps * 48 == pytest.approx(stream_norm(96).eps * 96, rel=1e-12)


def first(b: Block, heads: int, hidden: int) -> Block:
    """A block of its own with the first heads and hidden units of another, weights picked by index."""
    small = block(heads=heads, hidden=hidden)
    p, inner = b.head_width, b.heads * b.head_width
    rows = [third * inner + i for third in range(3) for i in range(heads * p)]
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            source = b.get_parameter(name)
            if name.startswith("qkv"):
                source = source[rows]
            elif name == "proj.weight":
                source = source[:, : heads * p]
            elif name.startswith("fc1"):
                source = source[:hidden]
            elif name == "fc2.weight":
                source = source[:, :hidden]
            parameter.copy_(source)
    return small


@pytest.mark.parametrize(("heads", "hidden"), [(1, 10), (2, 7), (3, 1), (3, 10)])
def test_a_view_computes_what_a_smaller_block_does(heads, hidden):
    b, x = block(), torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    small = first(b, heads, hidden)
    view = narrowed(b, heads, hidden)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    ours, theirs = view(x, "text", mask, causal=True), small(x, "text", mask, causal=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    inner = heads * b.head_width
    assert b.proj.weight.grad is not None
    torch.testing.assert_close(b.proj.weight.grad[:, :inner], small.proj.weight.grad, rtol=0, atol=1e-11)
    assert not b.proj.weight.grad[:, inner:].any()
    gradient = b.qkv.weight.grad.unflatten(0, (3, -1))
    torch.testing.assert_close(gradient[:, :inner].flatten(0, 1), small.qkv.weight.grad, rtol=0, atol=1e-11)
    assert not gradient[:, inner:].any()
    assert not b.fc1.weight.grad[hidden:].any()


def test_a_view_copies_nothing():
    b, x = block(), torch.randn(1, 3, 6, dtype=torch.float64)
    view = narrowed(b, 2, 5)
    before = view(x, "image")
    with torch.no_grad():
        b.qkv.weight.mul_(2)
    assert not torch.allclose(view(x, "image"), before)


def test_a_part_is_its_blocks_in_a_row_and_a_view_the_first_of_them():
    torch.manual_seed(0)
    stack = Stack(TowerSpec(3, 2, 8), 6, 4, ("image", "text"))
    shaken(stack)
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    assert torch.equal(stack(x, "text"), stack[2](stack[1](stack[0](x, "text"), "text"), "text"))
    expected = narrowed(stack[1], 1, 5)(narrowed(stack[0], 1, 5)(x, "text"), "text")
    assert torch.equal(stack(x, "text", view=TowerSpec(2, 1, 5)), expected)
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    once = stack[0](x, "image", mask, causal=True)
    assert torch.equal(stack(x, "image", mask, causal=True, view=TowerSpec(1, 2, 8)), once)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"heads": 0}, "heads is 0"),
        ({"width": 0}, "width is 0"),
        ({"hidden": -1}, "hidden is -1"),
        ({"streams": ()}, "streams"),
    ],
)
def test_a_block_without_a_size_is_refused(sizes, told):
    with pytest.raises(ConfigError, match=told):
        block(**sizes)


def test_a_view_larger_than_its_block_is_refused():
    with pytest.raises(ConfigError, match="heads 4 of a block that has 3; choose 1 to 3"):
        narrowed(block(), 4, 10)
    with pytest.raises(ConfigError, match="hidden 0 of a block that has 10"):
        block()(torch.zeros(1, 2, 6, dtype=torch.float64), "image", hidden=0)
    with pytest.raises(ConfigError, match="a view cannot be larger"):
        Stack(TowerSpec(1, 2, 8), 6, 4)(torch.zeros(1, 2, 6), view=TowerSpec(2, 2, 8))


@pytest.mark.parametrize("stream", [None, "sound"])
def test_an_unknown_stream_is_refused_with_those_there_are(stream):
    with pytest.raises(ConfigError, match="norms for .*image"):
        block()(torch.zeros(1, 2, 6, dtype=torch.float64), stream)
