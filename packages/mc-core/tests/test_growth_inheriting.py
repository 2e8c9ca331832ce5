"""What is inherited: all at m = 1, nothing but vectors at m = 0, and in between the mixture that the formula says."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mc_core.errors import ConfigError
from mc_core.growth import inherit


class Net(nn.Module):
    def __init__(self, seed: int, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(5, width)
        self.norm = nn.LayerNorm(width)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.scale = nn.Parameter(torch.tensor(2.0 + seed))
        with torch.no_grad():
            self.norm.weight += torch.rand(width)


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def test_m_1_has_the_bits_of_the_expanded_model():
    old = Net(0)
    with torch.no_grad():
        old.linear.weight[0, 0] = -0.0  # adding 0 · θ_rand would turn its sign
    found = tensors(inherit(old, Net(1), 1.0))
    for name, value in tensors(old).items():
        assert torch.equal(found[name].view(torch.int32), value.view(torch.int32)), name


def test_m_0_has_the_bits_of_the_fresh_model_in_tensors_of_two_dimensions_or_more():
    old, fresh = Net(0), Net(1)
    found = tensors(inherit(old, fresh, 0.0))
    for name, value in found.items():
        assert torch.equal(value, (fresh if value.ndim >= 2 else old).get_parameter(name)), name
    assert {name for name, value in found.items() if value.ndim >= 2} == {"linear.weight", "token"}


@pytest.mark.parametrize(("m", "share"), [(0.9, None), (0.5, None), (0.4, 0.1), (1.0, 0.2), (0.0, 0.3)])
def test_in_between_it_is_the_formula(m, share):
    old, fresh = Net(0).double(), Net(1).double()
    found = inherit(old, fresh, m, fresh_share=share)
    other = 1 - m if share is None else share
    for name, value in found.named_parameters():
        expected = old.get_parameter(name)
        if value.ndim >= 2:
            expected = m * expected + other * fresh.get_parameter(name)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-15)


def test_the_deviation_of_independent_entries():
    torch.manual_seed(0)
    old, fresh = nn.Linear(500, 400), nn.Linear(500, 400)
    nn.init.normal_(old.weight, std=0.08)
    nn.init.normal_(fresh.weight, std=0.02)
    found = inherit(old, fresh, 0.9).weight.std().item()
    expected = (0.9**2 * 0.08**2 + 0.1**2 * 0.02**2) ** 0.5
    assert expected == pytest.approx(0.07203, abs=1e-5)
    assert found == pytest.approx(expected, rel=0.005)


def test_neither_model_is_changed_and_nothing_is_shared():
    old, fresh = Net(0).eval(), Net(1)
    old.linear.bias.requires_grad_(False)
    before = copy.deepcopy(old.state_dict()), copy.deepcopy(fresh.state_dict())
    found = inherit(old, fresh, 0.5)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.fill_(7.0)
    for module, state in zip((old, fresh), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert not found.training
    assert not found.linear.bias.requires_grad
    assert found.linear.weight.requires_grad


def test_shares_out_of_range_and_other_sizes_are_refused():
    with pytest.raises(ConfigError, match="momentum is 1.1"):
        inherit(Net(0), Net(1), 1.1)
    with pytest.raises(ConfigError, match="fresh_share is -0.1"):
        inherit(Net(0), Net(1), 0.5, fresh_share=-0.1)
    with pytest.raises(
        ConfigError, match=r"token is \(1, 1, 8\) in the expanded model but \(1, 1, 9\) in the fresh one"
    ):
        inherit(Net(0), Net(1, width=9))
    with pytest.raises(ConfigError, match="weight is .* but missing in the fresh one"):
        inherit(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ConfigError, match="bias is in the fresh model only"):
        inherit(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
