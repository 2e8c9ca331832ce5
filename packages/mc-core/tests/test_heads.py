"""Heads have exactly the layers of the papers; prototypes stay unit vectors through steps, copies and checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mc_core.errors import ConfigError
from mc_core.heads import PredictionHead, ProjectionHead, Prototypes, mlp


def described(head: nn.Sequential) -> list[str]:
    """One word per layer: ``64>16+b`` is a linear layer with bias, ``BN16+a`` a batch norm that scales and shifts."""
    words = []
    for layer in head:
        if isinstance(layer, nn.Linear):
            words.append(f"{layer.in_features}>{layer.out_features}" + ("+b" if layer.bias is not None else ""))
        elif isinstance(layer, nn.BatchNorm1d):
            words.append(f"BN{layer.num_features}" + ("+a" if layer.affine else ""))
        else:
            words.append(type(layer).__name__)
    return words


@pytest.mark.parametrize(
    ("kind", "in_dim", "out_dim", "expected"),
    [
        ("linear", 64, 16, ["64>16+b"]),
        ("mlp", 64, 16, ["64>64+b", "ReLU", "64>16+b"]),
        ("mlp-bn", 64, 16, ["64>64+b", "BN64+a", "ReLU", "64>16+b"]),
        ("simclr", 64, 16, ["64>64", "BN64+a", "ReLU", "64>16", "BN16+a"]),
        ("moco-v3", 64, 16, ["64>4096", "BN4096+a", "ReLU", "4096>16", "BN16"]),
        (
            "moco-v3-vit",
            64,
            16,
            ["64>4096", "BN4096+a", "ReLU", "4096>4096", "BN4096+a", "ReLU", "4096>16", "BN16"],
        ),
    ],
)
def test_projection_heads_are_the_published_ones(kind, in_dim, out_dim, expected):
    head = ProjectionHead(in_dim, out_dim, kind=kind)
    assert described(head) == expected
    assert head(torch.randn(4, in_dim)).shape == (4, out_dim)


def test_prediction_heads_are_the_published_ones():
    assert described(PredictionHead()) == ["256>4096", "BN4096+a", "ReLU", "4096>256"]
    expected = ["32>48", "BN48+a", "ReLU", "48>32", "BN32"]
    assert described(PredictionHead(32, kind="moco-v3-vit", hidden_dim=48)) == expected


def test_hidden_width_can_be_chosen():
    assert described(ProjectionHead(8, 4, kind="mlp-bn", hidden_dim=32)) == ["8>32+b", "BN32+a", "ReLU", "32>4+b"]
    assert described(ProjectionHead(8, 4, kind="moco-v3", hidden_dim=32))[0] == "8>32"


def test_the_number_of_layers_is_that_of_linear_layers():
    assert described(nn.Sequential(*mlp(3, 5, 2, layers=3))) == ["3>5+b", "ReLU", "5>5+b", "ReLU", "5>2+b"]


def test_state_dicts_are_those_of_a_plain_sequential():
    head = ProjectionHead(8, 4, kind="mlp")
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    plain.load_state_dict(head.state_dict())
    x = torch.randn(3, 8)
    torch.testing.assert_close(plain(x), head(x), rtol=0, atol=0)


def test_bad_heads_are_named():
    with pytest.raises(ConfigError, match=r"head 'mlp-bm' is not known; did you mean mlp-bn"):
        ProjectionHead(8, 4, kind="mlp-bm")  # pyrefly: ignore
    with pytest.raises(ConfigError, match=r"head 'linear' is not known"):
        PredictionHead(8, kind="linear")  # pyrefly: ignore
    with pytest.raises(ConfigError, match=r"2 layers with widths 8, 8, 0"):
        ProjectionHead(8, 0)
    with pytest.raises(ConfigError, match=r"0 prototypes of dim 4"):
        Prototypes(4, 0)


def norms(prototypes: Prototypes) -> torch.Tensor:
    return prototypes.weight.detach().norm(dim=1)


def test_prototypes_score_by_cosine():
    prototypes, z = Prototypes(6, 5), F.normalize(torch.randn(3, 6), dim=1)
    torch.testing.assert_close(norms(prototypes), torch.ones(5))
    assert list(prototypes.state_dict()) == ["weight"]
    torch.testing.assert_close(prototypes(z), F.cosine_similarity(z[:, None], prototypes.weight[None], dim=2))


@pytest.mark.parametrize("change", ["step", "load", "no_grad", "assign"])
def test_prototypes_are_unit_again_in_the_next_forward(change):
    prototypes, z = Prototypes(6, 5), torch.randn(3, 6)
    if change == "step":
        prototypes(z).square().sum().backward()
        torch.optim.SGD(prototypes.parameters(), lr=0.5).step()
    elif change == "load":
        prototypes.load_state_dict({"weight": torch.randn(5, 6) * 3})
    elif change == "assign":
        prototypes.load_state_dict({"weight": torch.randn(5, 6) * 3}, assign=True)
    else:
        with torch.no_grad():
            prototypes.weight.mul_(3)
    assert (norms(prototypes) - 1).abs().max() > 1e-3
    expected = F.linear(z, F.normalize(prototypes.weight.detach(), dim=1))
    with torch.inference_mode() if change == "no_grad" else torch.enable_grad():
        torch.testing.assert_close(prototypes(z).detach(), expected)
    torch.testing.assert_close(norms(prototypes), torch.ones(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalising_again_changes_no_bit(dtype):
    prototypes = Prototypes(513, 2000).to(dtype)
    with torch.no_grad():
        prototypes.weight.mul_(torch.logspace(-6, 6, 2000, dtype=dtype)[:, None])
    prototypes.normalise()
    before = prototypes.weight.detach().clone()
    torch.testing.assert_close(norms(prototypes), torch.ones(2000, dtype=dtype))
    prototypes.normalise()
    assert torch.equal(prototypes.weight, before)


def test_several_passes_share_one_backward():
    prototypes, z = Prototypes(6, 5), torch.randn(3, 6, requires_grad=True)
    (prototypes(z).sum() + prototypes(z * 2).sum()).backward()
    torch.testing.assert_close(z.grad, 3 * prototypes.weight.detach().sum(0).expand(3, 6))


def test_the_gradient_of_prototypes_is_that_of_a_linear_layer():
    prototypes, z = Prototypes(6, 5), torch.randn(3, 6)
    prototypes(z).sum().backward()  # not that of normalise(weight): SwAV steps in the free space, then projects
    torch.testing.assert_close(prototypes.weight.grad, z.sum(0).expand(5, 6))


def test_a_copy_of_stepped_prototypes_normalises_itself():
    prototypes = Prototypes(6, 5)
    with torch.no_grad():
        prototypes.weight.mul_(3)
    twin = copy.deepcopy(prototypes)
    twin(torch.randn(2, 6))
    torch.testing.assert_close(norms(twin), torch.ones(5))
    assert (norms(prototypes) - 1).abs().max() > 1
