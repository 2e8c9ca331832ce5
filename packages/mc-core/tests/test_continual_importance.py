"""Importances of weights: against loops by definition in float64, in closed form, and in their gradients."""

import copy
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mc_core.continual.importance import (
    Anchor,
    flat,
    flat_gradient,
    mean_gradient_power,
    path_importance,
    quadratic,
    running_mean,
)
from mc_core.errors import ConfigError


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batches(count=5):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_penalty_by_definition():
    net = model()
    anchor = Anchor(net.parameters())
    anchor.importance.copy_(torch.rand(len(anchor.point), dtype=torch.float64))
    at, expected = 0, torch.zeros((), dtype=torch.float64)
    start = [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        for p in net.parameters():
            p += torch.randn_like(p)
    for p, old in zip(net.parameters(), start, strict=True):
        for now, then in zip(p.reshape(-1), old.reshape(-1), strict=True):
            expected = expected + anchor.importance[at] * (now - then) ** 2
            at += 1
    assert anchor.penalty().item() == pytest.approx(expected.item(), abs=1e-12)
    anchor.penalty().backward()
    torch.testing.assert_close(flat_gradient(list(net.parameters())), anchor.slope(), atol=1e-12, rtol=0)


def test_penalty_is_zero_where_the_task_ended_and_gives_the_anchor_no_gradient():
    net = model()
    anchor = Anchor(net.parameters())
    anchor.importance.fill_(3.0)
    with torch.no_grad():
        net[0].weight += 1
    anchor.move()
    assert anchor.penalty().item() == 0
    assert not list(anchor.parameters())
    assert set(anchor.state_dict()) == {"point", "importance"}


def test_quadratic_passes_gradcheck():
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    fixed = torch.randn(2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w: quadratic(w, fixed[0], fixed[1]), (x,))


@pytest.mark.parametrize("power", [1, 2])
def test_mean_gradient_power_by_definition(power):
    net = model()
    total = torch.zeros(sum(p.numel() for p in net.parameters()), dtype=torch.float64)
    for batch in batches():
        net.zero_grad()
        net(batch).square().mean().backward()
        total += torch.cat([p.grad.reshape(-1) for p in net.parameters()]).abs() ** power
    net.zero_grad(set_to_none=True)
    with torch.no_grad():  # as end_task may be called
        found = mean_gradient_power(lambda x: net(x).square().mean(), batches(), list(net.parameters()), power)
    torch.testing.assert_close(found, total / 5, atol=1e-12, rtol=0)
    assert all(p.grad is None for p in net.parameters())


def test_what_a_loss_does_not_reach_does_not_matter():
    net, spare = model(), nn.Parameter(torch.ones(2, dtype=torch.float64))
    found = mean_gradient_power(lambda x: net(x).sum(), batches(1), [*net.parameters(), spare], 2)
    assert found[-2:].tolist() == [0, 0]
    assert (found[:-2] > 0).any()


def test_importances_need_a_batch_and_a_known_power():
    with pytest.raises(ConfigError, match="no batch"):
        mean_gradient_power(lambda x: x, [], [nn.Parameter(torch.ones(1))], 2)
    with pytest.raises(ConfigError, match="power 3"):
        mean_gradient_power(lambda x: x, [1], [nn.Parameter(torch.ones(1))], 3)


def test_running_mean_is_the_mean_of_all_tasks():
    each = torch.rand(6, 3, dtype=torch.float64)
    mean = torch.zeros(3, dtype=torch.float64)
    for before, new in enumerate(each):
        mean = running_mean(mean, new, before)
    torch.testing.assert_close(mean, each.mean(0))


def test_the_path_sums_to_the_fall_of_the_loss():
    """Small steps on a quadratic: Σ w is the loss at the start minus that at the end, and importances are positive."""
    torch.manual_seed(0)
    net, target = model(), torch.randn(6, 2, dtype=torch.float64)
    x, parameters = batches(1)[0], list(net.parameters())
    start = flat(p.detach() for p in parameters)
    path, first = torch.zeros_like(start), None
    for _ in range(2000):
        loss = (net(x) - target).square().mean()
        first = first if first is not None else loss.item()
        gradient = flat(torch.autograd.grad(loss, parameters))
        before = flat(p.detach() for p in parameters)
        with torch.no_grad():
            torch._foreach_add_(
                parameters,
                torch._foreach_mul(
                    [
                        g.view_as(p)
                        for g, p in zip(gradient.split([p.numel() for p in parameters]), parameters, strict=True)
                    ],
                    -1e-3,
                ),
            )
        path -= gradient * (flat(p.detach() for p in parameters) - before)
    last = (net(x) - target).square().mean().item()
    assert path.sum().item() == pytest.approx(first - last, rel=1e-2)
    assert (path_importance(path, flat(p.detach() for p in parameters) - start) >= 0).all()


def test_path_importance_by_hand():
    path, moved, fisher = torch.tensor([0.2, -0.1]), torch.tensor([0.3, 0.0]), torch.tensor([2.0, 5.0])
    torch.testing.assert_close(path_importance(path, moved), torch.tensor([0.2 / 0.19, -1.0]))
    torch.testing.assert_close(path_importance(path, moved, curvature=fisher), torch.tensor([0.2 / 0.28, -1.0]))


def test_flat_gradient_is_zero_where_there_is_none():
    net = model()
    net[0](batches(1)[0]).sum().backward()
    found = flat_gradient(list(net.parameters()))
    assert len(found) == 26
    assert not found[16:].any()
    assert found[:16].any()


def test_a_copy_with_its_model_follows_the_copy():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model()
            self.anchor = Anchor(self.net.parameters())

    both = copy.deepcopy(Both())
    both.anchor.importance.fill_(1.0)
    with torch.no_grad():
        both.net[0].weight += 1
    assert both.anchor.penalty().item() == pytest.approx(12)


def test_state_round_trip():
    one, other = (Anchor(model().parameters()) for _ in range(2))
    one.importance.normal_()
    one.point.add_(1)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.point, one.point)
    assert torch.equal(other.importance, one.importance)


def test_two_processes_measure_what_one_does_with_the_joint_batch(tmp_path):
    script = Path(__file__).with_name("_importance_of_two.py")
    runs = [
        subprocess.Popen([sys.executable, script, str(rank), "2", tmp_path], env={**os.environ, "OMP_NUM_THREADS": "1"})
        for rank in range(2)
    ]
    assert [run.wait(timeout=240) for run in runs] == [0, 0]
    alone = runpy.run_path(str(script))["measured"]
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        for power in (1, 2):
            torch.testing.assert_close(found[str(power)], alone(power), atol=1e-12, rtol=0)
