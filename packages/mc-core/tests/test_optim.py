"""LARS against a loop over parameters, Adam against torch's, their limits and state, and the optimizer that a Fit asks for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mc_core.engine.config import Fit
from mc_core.errors import ConfigError
from mc_core.optim import LARS, StraightAdam, build_optimizer, clip_each_gradient

LR, MOMENTUM, DECAY, TRUST = 0.3, 0.9, 0.02, 0.01


def parameters() -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (5,), (2, 3, 1, 1), (), (3, 3)]
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=g)) for shape in shapes]


def gradients(step: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, dtype=torch.float64, generator=g) for p in parameters()]


def naive(steps: int, *, exclude_1d: bool) -> list[torch.Tensor]:
    """One parameter at a time, as the equations read."""
    result = [p.detach().clone() for p in parameters()]
    buffers = [torch.zeros_like(p) for p in result]
    for step in range(steps):
        for p, buffer, g in zip(result, buffers, gradients(step), strict=True):
            update = g
            if p.ndim > 1 or not exclude_1d:
                update = g + DECAY * p
                update = update * TRUST * p.norm().item() / update.norm().item()
            buffer.copy_(MOMENTUM * buffer + update)
            p.sub_(LR * buffer)
    return result


def lars(params: list[nn.Parameter], **options: bool) -> LARS:
    return LARS(params, LR, momentum=MOMENTUM, weight_decay=DECAY, trust_coefficient=TRUST, **options)


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for p, g in zip(params, gradients(step), strict=True):
            p.grad = g
        optimizer.step()


@pytest.mark.parametrize("exclude_1d", [True, False])
def test_lars_equals_a_loop_over_parameters(exclude_1d):
    params = parameters()
    run(lars(params, exclude_1d=exclude_1d), params, range(4))
    for mine, reference in zip(params, naive(4, exclude_1d=exclude_1d), strict=True):
        torch.testing.assert_close(mine.detach(), reference, rtol=1e-12, atol=1e-14)


def test_vectors_follow_plain_momentum_sgd_without_decay():
    params, plain = parameters(), parameters()
    run(lars(params), params, range(4))
    run(torch.optim.SGD(plain, LR, momentum=MOMENTUM), plain, range(4))
    for mine, reference in zip(params, plain, strict=True):
        assert torch.allclose(mine, reference, rtol=1e-12) == (mine.ndim <= 1)


def test_the_first_step_is_a_fixed_share_of_the_norm_whatever_the_gradient_size():
    for scale in (1e-6, 1.0, 1e6):
        weight = nn.Parameter(torch.full((2, 2), 3.0))
        weight.grad = torch.randn(2, 2, generator=torch.Generator().manual_seed(0)) * scale
        before = weight.detach().clone()
        LARS([weight], 0.5, trust_coefficient=0.01).step()
        torch.testing.assert_close((weight - before).norm(), torch.tensor(0.5 * 0.01 * 6.0), rtol=1e-4, atol=0)


def test_zero_norms_have_ratio_one():
    fresh, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    fresh.grad, still.grad = torch.full((2, 2), 0.5), torch.zeros(2, 2)
    LARS([fresh, still], 1.0).step()
    assert torch.equal(fresh.detach(), torch.full((2, 2), -0.5))
    assert torch.equal(still.detach(), torch.ones(2, 2))


def test_gradients_are_left_alone_and_missing_ones_skipped():
    params = parameters()
    optimizer = lars(params)
    kept = gradients(0)
    for p, g in zip(params[1:], kept[1:], strict=True):
        p.grad = g.clone()
    optimizer.step()
    assert torch.equal(params[0].detach(), parameters()[0].detach())
    for p, g, before in zip(params[1:], kept[1:], parameters()[1:], strict=True):
        assert torch.equal(p.grad, g)
        assert not torch.equal(p, before)


def test_groups_have_their_own_values():
    a, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    a.grad, b.grad = torch.ones(2, 2), torch.ones(2, 2)
    LARS([{"params": [a]}, {"params": [b], "lr": 0.0}], 1.0).step()
    assert (a < 1).all()
    assert (b == 1).all()


def test_state_round_trips():
    params = parameters()
    optimizer = lars(params)
    run(optimizer, params, range(2))
    resumed = [nn.Parameter(p.detach().clone()) for p in params]
    other = LARS(resumed, 1.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, params, range(2, 4))
    run(other, resumed, range(2, 4))
    for mine, reference in zip(resumed, params, strict=True):
        assert torch.equal(mine, reference)


def test_a_closure_is_called_with_gradients():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight], 1.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert (weight < 1).all()


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -0.1}, {"trust_coefficient": 0.0}])
def test_values_out_of_range_are_named(bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(ConfigError, match=f"{name} {value}"):
        LARS([nn.Parameter(torch.ones(1))], **{"lr": 1.0, **bad})


@pytest.mark.parametrize(
    ("fit", "kind", "expected"),
    [
        (Fit(optimizer="sgd", lr=0.1), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}),
        (
            Fit(optimizer="lars", lr=0.3, lr_scaling="linear", batch_size=512, trust_coefficient=0.002, momentum=0.8),
            LARS,
            {"lr": 0.6, "momentum": 0.8, "trust_coefficient": 0.002, "weight_decay": 1e-4, "exclude_1d": True},
        ),
        (Fit(optimizer="lars", adapt_1d=True), LARS, {"exclude_1d": False}),
        (
            Fit(optimizer="adam", lr=1e-3, betas=(0.8, 0.9)),
            StraightAdam,
            {"lr": 1e-3, "betas": (0.8, 0.9), "decoupled_weight_decay": False},
        ),
        (
            Fit(optimizer="adamw", lr=1e-3, weight_decay=0.1),
            StraightAdam,
            {"lr": 1e-3, "weight_decay": 0.1, "decoupled_weight_decay": True},
        ),
        (Fit(optimizer="adamw", precision="fp16"), torch.optim.AdamW, {"foreach": True}),
    ],
)
def test_a_fit_builds_its_optimizer(fit, kind, expected):
    a, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(iter([{"params": iter([a])}, {"params": [b], "weight_decay": 0.0}]), fit)
    assert type(optimizer) is kind
    first, second = optimizer.param_groups
    assert {name: first[name] for name in expected} == expected
    assert (first["params"], second["params"]) == ([a], [b])
    assert (first["weight_decay"], second["weight_decay"]) == (fit.weight_decay, 0.0)


def test_nothing_to_train_is_an_error():
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizer([{"params": []}], Fit())


def test_each_gradient_is_clipped_by_its_own_norm():
    params = parameters()
    norms = [0.5, 7.0, 3.0, 2.9, 100.0]
    for p, g, norm in zip(params, gradients(0), norms, strict=True):
        p.grad = g * (norm / g.norm())
    directions = [p.grad / p.grad.norm() for p in params]
    params.append(nn.Parameter(torch.zeros(2)))  # took no part
    clip_each_gradient(params, 3.0)
    for p, direction, norm in zip(params[:-1], directions, norms, strict=True):
        torch.testing.assert_close(p.grad, direction * min(norm, 3.0), rtol=1e-6, atol=0)
    assert params[-1].grad is None


def adams(decoupled: bool, **options: object) -> list[tuple[torch.optim.Optimizer, list[nn.Parameter]]]:
    """torch's and ours, each on parameters of its own in two groups."""
    found = []
    for kind in ({True: torch.optim.AdamW, False: torch.optim.Adam}[decoupled], StraightAdam):
        params = parameters()
        groups = [{"params": params[:3], "weight_decay": 0.1}, {"params": params[3:], "lr": 0.05}]
        if kind is StraightAdam:
            given = {**options, "decoupled_weight_decay": decoupled}
        else:
            given = {**options, "fused": True}
        found.append((kind(groups, lr=0.01, betas=(0.8, 0.95), weight_decay=0.0, **given), params))  # type: ignore[arg-type]
    return found


def same(made: list[tuple[torch.optim.Optimizer, list[nn.Parameter]]]) -> bool:
    (theirs, p_theirs), (ours, p_ours) = made
    equal = [torch.equal(a, b) for a, b in zip(p_theirs, p_ours, strict=True)]
    for a, b in zip(p_theirs, p_ours, strict=True):
        first, second = theirs.state.get(a, {}), ours.state.get(b, {})
        assert first.keys() == second.keys()
        equal += [torch.equal(first[name], second[name]) for name in first]
    return all(equal)


@pytest.mark.parametrize("decoupled", [True, False], ids=["adamw", "adam"])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True}], ids=["plain", "amsgrad", "maximize"])
def test_adam_is_torchs_to_the_bit(decoupled, options):
    """Also while tensors get their first gradient later than others, or none."""
    made = adams(decoupled, **options)
    start = parameters()
    for step in range(6):
        for optimizer, params in made:
            for number, (p, g) in enumerate(zip(params, gradients(step), strict=True)):
                p.grad = None if number == 4 or (number == 1 and step in (0, 3)) else g
            optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
            optimizer.step()
        assert same(made)
    moved = [not torch.equal(p, old) for p, old in zip(made[1][1], start, strict=True)]
    assert moved == [True, True, True, True, False]


def test_adam_goes_straight_from_the_second_step_on(monkeypatch):
    """torch's own step is taken where state is made, and where the gradient is scaled."""
    (_, _), (ours, params) = adams(True)
    taken = []
    whole = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, closure=None: (taken.append(1), whole(self, closure))[1])
    run(ours, params, range(3))
    assert len(taken) == 1
    before = [p.detach().clone() for p in params]
    ours.grad_scale, ours.found_inf = torch.tensor(8.0), torch.tensor(1.0)  # type: ignore[attr-defined]
    run(ours, params, range(3, 4))
    assert len(taken) == 2
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))  # infinite: skipped
    del ours.grad_scale, ours.found_inf  # type: ignore[attr-defined]
    assert ours.step(lambda: 3.0) == 3.0
    assert len(taken) == 3


def test_adam_and_torchs_go_on_from_each_others_state():
    made = adams(True)
    (theirs, p_theirs), (ours, p_ours) = made
    run(theirs, p_theirs, range(3))
    run(ours, p_ours, range(3))
    states = [copy.deepcopy(optimizer.state_dict()) for optimizer in (theirs, ours)]
    theirs.load_state_dict(states[1])
    ours.load_state_dict(states[0])
    run(theirs, p_theirs, range(3, 5))
    run(ours, p_ours, range(3, 5))
    assert same(made)


def test_adam_takes_groups_of_several_dtypes():
    mixed = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.float64))]
    optimizer = StraightAdam(mixed, lr=0.1, decoupled_weight_decay=True)
    for _ in range(3):
        for p in mixed:
            p.grad = torch.full_like(p, 2.0)
        optimizer.step()
    assert mixed[0].dtype == torch.float32
    torch.testing.assert_close(mixed[0].double(), mixed[1].detach(), rtol=1e-6, atol=0)
    assert float(mixed[1].detach()[0]) < 0.8
