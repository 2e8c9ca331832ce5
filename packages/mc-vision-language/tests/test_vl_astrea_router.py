"""Astrea's router: weights against their definition, what reaches which expert, the two slow states, and balance by a bias."""

from __future__ import annotations

import copy
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mc_core.errors import DataError
from mc_vision_language.methods.astrea.router import Allocator, BalanceBias, Router, routed_weights

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_astrea.py"))))
E, C, B, N = 4, 18, 3, 4


def router(seed: int = 0, stir: bool = True, text: int = 0, **more) -> Router:
    torch.manual_seed(seed)
    made = Router(tiny.config(**more), C, text).double()
    return tiny.stirred(made, 0.5) if stir else made


def tokens(seed: int = 0, count: int = B) -> torch.Tensor:
    return 3 + 5 * torch.randn(count, N, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_weights(made: Router, x: torch.Tensor, floor: float, temperature: float) -> torch.Tensor:
    """w of one token, in Python numbers."""
    values = x.tolist()
    mean = sum(values) / len(values)
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + 1e-5)
    r = [
        (value - mean) / std * scale + shift
        for value, scale, shift in zip(values, made.norm.weight.tolist(), made.norm.bias.tolist(), strict=True)
    ]
    logits = [
        sum(a * b for a, b in zip(row, r, strict=True)) + bias
        for row, bias in zip(made.gate.weight.tolist(), made.gate.bias.tolist(), strict=True)
    ]
    powers = [math.exp(logit / temperature) for logit in logits]
    return torch.tensor([(1 - E * floor) * one / sum(powers) + floor for one in powers], dtype=torch.float64)


@pytest.mark.parametrize(("floor", "temperature"), [(0.05, 1.0), (0.0, 2.5)])
def test_weights_are_those_of_their_definition(floor, temperature):
    made = router(router={"floor": floor, "temperature": temperature})
    x = tokens()
    found = made(x).weights
    assert found.shape == (B, N, E)
    for row in range(B):
        for place in range(N):
            expected = naive_weights(made, x[row, place], floor, temperature)
            torch.testing.assert_close(found[row, place], expected, rtol=0, atol=1e-10)


def test_weights_of_a_picture_are_those_of_its_mean_token():
    x = tokens()
    made = router(router={"per": "image"})
    per_token = router()
    found = made(x)
    assert found.weights.shape == (B, E)
    torch.testing.assert_close(found.weights, per_token(x.mean(1, keepdim=True)).weights[:, 0], rtol=0, atol=1e-12)


def test_at_the_start_all_experts_count_alike():
    for settings in ({}, {"router": {"per": "image"}}, {"router": {"floor": 0.0}}):
        assert torch.equal(router(stir=False, **settings)(tokens()).weights.unique(), torch.tensor([0.25]).double())


@pytest.mark.parametrize("per", ["token", "image"])
@pytest.mark.parametrize("top_k", [None, 1, 2, 4])
def test_weights_sum_to_one_and_keep_the_floor(per, top_k):
    made = router(router={"per": per, "top_k": top_k, "floor": 0.07})
    with torch.no_grad():
        made.gate.weight.mul_(20)  # nearly all weight to one
    found = made(tokens())
    torch.testing.assert_close(found.weights.sum(-1), torch.ones_like(found.weights[..., 0]), rtol=0, atol=1e-12)
    kept = found.weights.detach()[found.weights > 0]
    assert float(kept.min()) >= 0.07 - 1e-12
    assert int((found.weights > 0).sum(-1).unique().item()) == (top_k or E)
    assert float(kept.max()) > 0.6  # the floor does not level


def test_top_k_keeps_the_largest_and_renormalises():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, 0.0]], dtype=torch.float64)
    dense = routed_weights(logits, floor=0.05).weights
    found = routed_weights(logits, floor=0.05, top_k=2)
    assert found.selected.tolist() == [[True, True, False, False], [True, False, True, False]]
    kept = dense * found.selected
    torch.testing.assert_close(found.weights, kept / kept.sum(-1, keepdim=True), rtol=0, atol=1e-15)
    torch.testing.assert_close(found.probabilities, logits.softmax(-1), rtol=0, atol=1e-15)


def test_gradient_reaches_the_chosen_alone_with_top_k_and_all_without():
    each = torch.randn(5, E, 3, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(5, E, dtype=torch.float64, requires_grad=True)
    for top_k in (1, 2, None):
        found = routed_weights(logits, top_k=top_k)
        (gradient,) = torch.autograd.grad((found.weights[..., None] * each).sum(1).square().sum(), each)
        reached = gradient.abs().sum(-1) > 0
        assert torch.equal(reached, found.selected if top_k else torch.ones_like(reached))
    (at_logits,) = torch.autograd.grad((routed_weights(logits, top_k=2).weights ** 2).sum(), logits)
    assert float(at_logits.abs().sum()) > 0


def test_absent_experts_weigh_nothing_and_the_rest_sums_to_one():
    made = router(router={"floor": 0.1, "top_k": 2})
    present = torch.tensor([[True, False, True, True], [True] * 4, [False, False, False, True]])
    found = made(tokens(), present=present)
    assert not (found.weights > 0)[~present[:, None].expand(-1, N, -1)].any()
    assert not (found.selected & ~present[:, None]).any()
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(B, N, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.weights[1], made(tokens()).weights[1], rtol=0, atol=1e-12)
    assert torch.equal(found.weights[2, :, 3], torch.ones(N, dtype=torch.float64))


def test_removing_an_expert_is_renormalising_where_there_is_no_floor():
    made = router(router={"floor": 0.0})
    present = torch.tensor([[True, True, False, True]]).expand(B, -1)
    kept = made(tokens()).weights * present[:, None]
    torch.testing.assert_close(
        made(tokens(), present=present).weights, kept / kept.sum(-1, keepdim=True), rtol=0, atol=1e-12
    )


def test_a_sample_without_experts_is_refused():
    with pytest.raises(DataError, match="no expert at all"):
        router().eval()(tokens(), present=torch.zeros(B, E, dtype=torch.bool))


def test_no_gradient_flows_into_features_and_text():
    made = router(text=5, router={"text": True})
    x, text = tokens().requires_grad_(), torch.randn(B, 5, dtype=torch.float64, requires_grad=True)
    made(x, text).weights.square().sum().backward()
    assert x.grad is None
    assert text.grad is None
    assert made.gate.weight.grad is not None
    assert float(made.gate.weight.grad[:, C:].abs().sum()) > 0


def test_the_router_reads_the_direction_of_a_text_and_that_there_is_none():
    made = router(text=5, router={"text": True})
    text = torch.randn(B, 5, dtype=torch.float64)
    found = made(tokens(), text)
    torch.testing.assert_close(made(tokens(), 7 * text).logits, found.logits, rtol=0, atol=1e-10)
    assert not torch.allclose(made(tokens(), -text).logits, found.logits, atol=1e-3)
    none, zeros = made(tokens()), made(tokens(), torch.zeros_like(text))
    assert torch.equal(none.logits, zeros.logits)
    with torch.no_grad():
        made.gate.weight[:, -1] += 1.0  # of the flag
    torch.testing.assert_close(made(tokens()).logits, none.logits + 1.0, rtol=0, atol=1e-10)
    torch.testing.assert_close(made(tokens(), text).logits, found.logits, rtol=0, atol=1e-10)
    one = text.clone()
    one[1] = 0
    mixed = made(tokens(), one).logits
    torch.testing.assert_close(mixed[1], made(tokens()).logits[1], rtol=0, atol=1e-10)
    torch.testing.assert_close(mixed[0], found.logits[0], rtol=0, atol=1e-10)


def test_a_text_changes_nothing_where_it_is_not_read():
    made = router(text=5)
    assert made.gate.in_features == C
    assert torch.equal(made(tokens(), torch.ones(B, 5).double()).logits, made(tokens()).logits)


def test_the_router_computes_in_float32_whatever_surrounds_it():
    torch.manual_seed(0)
    made = tiny.stirred(Router(tiny.config(), C), 0.5)
    x = tokens().float()
    plain = made(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = made(x)
    assert inside.weights.dtype == torch.float32
    assert torch.equal(inside.weights, plain.weights)
    halved = copy.deepcopy(made).bfloat16()(x.bfloat16())
    assert halved.weights.dtype == halved.logits.dtype == torch.float32


def naive_alpha(steps: list[list[float]], eta: float) -> list[float]:
    average = [0.0] * len(steps[0])
    for c in steps:
        total = sum(abs(value) for value in c) + 1e-8
        average = [0.99 * old + 0.01 * value / total for old, value in zip(average, c, strict=True)]
    mean = sum(average) / len(average)
    return [max(-1.0, min(1.0, eta * (mean - value))) for value in average]


@pytest.mark.parametrize("eta", [0.0, 3.0, -3.0, 500.0])
def test_alpha_is_that_of_the_loop(eta):
    steps = torch.randn(30, E, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor(
        [1.0, 10.0, 0.1, 1.0]
    )
    allocator = Allocator(E).double()
    for c in steps:
        allocator.update(c)
    torch.testing.assert_close(
        allocator.alpha(eta), torch.tensor(naive_alpha(steps.tolist(), eta), dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert (float(allocator.alpha(eta).abs().max()) == 1.0) is (eta == 500.0)


def test_alpha_lifts_what_is_used_too_little_or_rewards_what_is_useful():
    made = router(allocator=5.0)
    before = made(tokens()).weights.mean((0, 1))
    for _ in range(50):
        made.allocator.update(torch.tensor([1.0, -1.0, 0.0, 0.0]).double())
    lifted = made(tokens()).weights.mean((0, 1))
    assert lifted[0] < before[0]
    assert lifted[1] > before[1]
    made.config = tiny.config(allocator=-5.0)
    rewarded = made(tokens()).weights.mean((0, 1))
    assert rewarded[0] > before[0]
    assert rewarded[1] < before[1]
    made.config = tiny.config()
    torch.testing.assert_close(made(tokens()).weights.mean((0, 1)), before, rtol=0, atol=1e-12)


def test_usefulness_of_a_skipped_step_does_not_spoil_the_average():
    allocator = Allocator(2)
    allocator.update(torch.tensor([float("inf"), float("nan")]))
    assert torch.equal(allocator.average, torch.zeros(2))


def test_a_bias_changes_the_selection_and_never_a_weight():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(E, dtype=torch.float64, requires_grad=True)
    lifted = torch.tensor([-5.0, 0.0, 0.0, 5.0], dtype=torch.float64, requires_grad=True)
    plain, moved = (routed_weights(logits, top_k=2, beta=beta) for beta in (zero, lifted))
    assert plain.selected.tolist() == [[True, True, False, False]]
    assert moved.selected.tolist() == [[False, True, False, True]]
    scores = logits.detach().sigmoid()
    for found in (plain, moved):
        kept = scores * found.selected
        torch.testing.assert_close(found.weights.detach(), kept / kept.sum(-1, keepdim=True), rtol=0, atol=1e-15)
        torch.testing.assert_close(found.probabilities.detach(), scores / scores.sum(), rtol=0, atol=1e-15)
    moved.weights.square().sum().backward()
    assert lifted.grad is None
    assert logits.grad is not None


def test_the_bias_levels_skewed_logits_within_400_steps():
    generator = torch.Generator().manual_seed(0)
    skew, bias = torch.tensor([2.0, 1.0, 0.0, -1.0]), BalanceBias(E)
    first = None
    for _ in range(400):
        logits = skew + torch.randn(256, E, generator=generator)
        share = routed_weights(logits, top_k=2, beta=bias.beta).selected.float().mean(0) / 2
        first = share if first is None else first
        bias.update(share, speed=1e-3)
    assert float((first - 0.25).abs().max()) > 0.15
    assert float((share - 0.25).abs().max()) < 0.06
    assert abs(float(bias.beta.sum())) < 1e-5
    assert bias.beta.tolist() == sorted(bias.beta.tolist())


def test_the_bias_moves_by_its_speed_and_is_recentred():
    bias = BalanceBias(E).double()
    bias.update(torch.tensor([4.0, 2.0, 1.0, 1.0]), speed=0.1)  # mean 2: −, 0, +, +
    expected = torch.tensor([-0.1, 0.0, 0.1, 0.1], dtype=torch.float64) - 0.025
    torch.testing.assert_close(bias.beta, expected, rtol=0, atol=1e-12)


def test_slow_states_stay_in_float32_are_saved_and_take_no_gradient():
    made = router(balance={"kind": "bias"}, router={"top_k": 2}, allocator=1.0).float()
    assert made.bias is not None
    made.allocator.update(torch.tensor([1.0, 2.0, -1.0, 0.5]))
    made.bias.update(torch.tensor([4.0, 2.0, 1.0, 1.0]), speed=1e-3)
    made.bfloat16()
    assert made.gate.weight.dtype == torch.bfloat16
    assert made.bias.beta.dtype == made.allocator.average.dtype == torch.float32
    fresh = router(seed=1, balance={"kind": "bias"}, router={"top_k": 2}, allocator=1.0).float()
    fresh.load_state_dict(made.state_dict())
    assert fresh.bias is not None
    assert torch.equal(fresh.bias.beta, made.bias.beta)
    assert torch.equal(fresh.allocator.alpha(2.0), made.allocator.alpha(2.0))
    names = [name for name, _ in made.named_parameters()]
    assert names == ["norm.weight", "norm.bias", "gate.weight", "gate.bias"]


def test_processes_do_not_exchange_the_slow_states_at_each_step():
    from mc_core.distributed import exclude_from_ddp

    found = exclude_from_ddp(nn.ModuleDict({"router": router(balance={"kind": "bias"}, router={"top_k": 2})}))
    assert {name.rsplit(".", 2)[-2] + "." + name.rsplit(".", 1)[-1] for name in found} == {
        "allocator.average",
        "allocator.last",
        "bias.beta",
    }
