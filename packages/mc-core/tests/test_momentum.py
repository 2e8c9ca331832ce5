"""The momentum encoder is the exact moving average of what `online` holds now, and the schedules are their formulas."""

from __future__ import annotations

import copy
import io
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from mc_core.errors import ConfigError
from mc_core.momentum import (
    MomentumEncoder,
    MomentumSchedule,
    cosine_momentum,
    half_life_of,
    horizon_advice,
    momentum_from_half_life,
)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


@torch.no_grad()
def change(module: nn.Module, seed: int = 1) -> None:
    """Another value for every parameter and floating buffer, and one more for every integer buffer."""
    torch.manual_seed(seed)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.add_(torch.rand_like(tensor) if tensor.is_floating_point() else 1)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


class Pair(nn.Module):
    def __init__(self, online: nn.Module | None = None, **options) -> None:
        super().__init__()
        self.online = network() if online is None else online
        self.key = MomentumEncoder(self.online, **options)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.5, 0.996, 1.0])
@pytest.mark.parametrize("buffers", ["own", "copy", "ema"])
def test_an_update_is_the_formula_on_every_tensor(momentum, buffers):
    online = network()
    key = MomentumEncoder(online, 0.5, buffers=buffers)
    change(online)
    before, target = tensors(key.module), tensors(online)
    key.update(momentum)
    parameters = dict(online.named_parameters())
    for name, value in key.module.state_dict().items():
        averaged = momentum * before[name].double() + (1 - momentum) * target[name].double()
        if name in parameters or (buffers == "ema" and value.is_floating_point()):
            torch.testing.assert_close(value.double(), averaged, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(value, before[name] if buffers == "own" else target[name]), name


def test_a_constant_target_is_approached_as_the_closed_form_says():
    online = network().double()
    key = MomentumEncoder(online, 0.99)
    change(online)
    start, target = tensors(key.module)["0.weight"], online[0].weight
    for _ in range(200):
        key.update()
    torch.testing.assert_close(key.module[0].weight, target + 0.99**200 * (start - target), rtol=0, atol=1e-14)


def test_at_the_fixed_point_not_a_bit_moves():
    online = network()
    key = MomentumEncoder(online, 0.999)
    before = tensors(key.module)
    for momentum in (0.1, 0.5, 0.7, 0.999) * 500:
        key.update(momentum)
    assert all(torch.equal(value, before[name]) for name, value in key.module.state_dict().items())


def test_tied_weights_move_once_and_stay_tied():
    online = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    online["b"].weight = online["a"].weight
    key = MomentumEncoder(online, 0.75)
    change(online)
    before = key.module["a"].weight.clone()
    key.update()
    assert key.module["a"].weight is key.module["b"].weight
    torch.testing.assert_close(key.module["a"].weight, 0.75 * before + 0.25 * online["a"].weight)


def test_a_bfloat16_network_has_a_float32_copy_that_really_moves():
    online = nn.Linear(1, 1, bias=False).bfloat16()
    online.weight.data.fill_(1.0)
    key = MomentumEncoder(online, 0.999)
    online.weight.data.fill_(2.0)
    for _ in range(5000):
        key.update()
    assert key.module.weight.dtype == torch.float32
    assert key.module.weight.item() == pytest.approx(2 - 0.999**5000, abs=1e-5)


def test_mixed_dtypes_keep_theirs_and_integer_parameters_are_copied():
    online = nn.Module()
    online.double_ = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    online.half_ = nn.Parameter(torch.zeros(2, dtype=torch.float16))
    online.complex_ = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    online.integer_ = nn.Parameter(torch.zeros(2, dtype=torch.int32), requires_grad=False)
    key = MomentumEncoder(online, 0.75)
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.fill_(4)
    key.update()
    found = {name: (value.dtype, value[0].item()) for name, value in key.module.named_parameters()}
    assert found == {
        "double_": (torch.float64, 1.0),
        "half_": (torch.float32, 1.0),
        "complex_": (torch.complex64, 1.0),
        "integer_": (torch.int32, 4),
    }


def test_the_copy_is_frozen_and_the_online_network_is_not_shown():
    pair = Pair()
    assert pair.key.online is pair.online
    assert all(name.startswith("module.") for name in pair.key.state_dict())
    assert not any(parameter.requires_grad for parameter in pair.key.parameters())
    assert all(parameter.requires_grad for parameter in pair.online.parameters())
    shared = {p.data_ptr() for p in pair.online.parameters()} & {p.data_ptr() for p in pair.key.parameters()}
    assert not shared
    x = torch.randn(5, 3, requires_grad=True)
    assert not pair.key(x).requires_grad


def test_replaced_parameters_are_followed():
    pair = Pair(momentum=0.0)
    pair.key.update()
    replacement = network(seed=5)
    pair.online.load_state_dict(replacement.state_dict(), assign=True)
    pair.key.update()
    assert torch.equal(pair.key.module[0].weight, replacement[0].weight)
    pair.to(torch.float64)
    pair.online[0].weight = nn.Parameter(torch.full((4, 3), 3.0, dtype=torch.float64))
    pair.key.update()
    assert (pair.key.module[0].weight == 3).all()


def test_what_is_cast_or_moved_in_place_between_updates_is_followed():
    """The same parameter objects, of which some hold another dtype now."""
    online = network()
    encoder = MomentumEncoder(online, momentum=0.5)
    change(online)
    encoder.update()
    online[3].double()
    change(online, 2)
    expected = [
        0.5 * k + 0.5 * q.float() for k, q in zip(encoder.module.parameters(), online.parameters(), strict=True)
    ]
    encoder.update()
    for mine, reference in zip(encoder.module.parameters(), expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, reference.detach())


@pytest.mark.parametrize("policy", ["copy", "ema"])
def test_a_replaced_buffer_is_followed(policy):
    online = network()
    encoder = MomentumEncoder(online, momentum=0.5, buffers=policy)
    encoder.update()
    before = encoder.module[1].running_mean.clone()
    online[1].running_mean = torch.full((4,), 3.0)
    encoder.update()
    expected = torch.full((4,), 3.0) if policy == "copy" else 0.5 * before + 1.5
    torch.testing.assert_close(encoder.module[1].running_mean, expected)


def test_a_replaced_layer_of_the_same_shape_is_followed_and_another_shape_is_an_error():
    pair = Pair(momentum=0.0)
    pair.key.update()
    pair.online[3] = nn.Linear(4, 2)
    pair.key.update()
    assert torch.equal(pair.key.module[3].weight, pair.online[3].weight)
    pair.online[3] = nn.Linear(4, 1)  # would broadcast
    with pytest.raises(
        ConfigError, match=r"3\.weight is \(1, 4\) in the online network but \(2, 4\) in its momentum copy"
    ):
        pair.key.update()


@pytest.mark.parametrize("part", ["online", "copy"])
def test_a_restructured_network_is_an_error(part):
    pair = Pair()
    pair.key.update()
    (pair.online if part == "online" else pair.key.module).append(nn.Linear(2, 2))
    only = "nothing; only online: 4.bias, 4.weight" if part == "online" else "4.bias, 4.weight; only online: nothing"
    for action in (pair.key.update, pair.key.synchronise, pair.key.drift):
        with pytest.raises(ConfigError, match=f"only in the copy: {only}"):
            action()


def test_synchronise_copies_weights_and_buffers_whatever_the_policy():
    pair = Pair(momentum=1.0, buffers="own")
    change(pair.online)
    pair.key.synchronise()
    assert all(
        torch.equal(value, pair.online.state_dict()[name]) for name, value in pair.key.module.state_dict().items()
    )


def test_a_copied_parent_holds_a_copied_reference():
    pair = Pair(momentum=0.0)
    pair.key.update()  # fills what is remembered of the original
    twin = copy.deepcopy(pair)
    assert twin.key.online is twin.online
    assert twin.online is not pair.online
    before = tensors(pair.key)
    change(twin.online)
    twin.key.update()
    assert torch.equal(twin.key.module[0].weight, twin.online[0].weight)
    assert all(torch.equal(value, before[name]) for name, value in pair.key.state_dict().items())

    stream = io.BytesIO()
    torch.save(pair, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    assert loaded.key.online is loaded.online


def test_a_layer_that_copies_itself_its_own_way_is_found_anew():
    class Own(nn.Linear):
        def __deepcopy__(self, memo):
            twin = Own(self.in_features, self.out_features)
            twin.load_state_dict(self.state_dict())
            memo[id(self)] = twin
            return twin

    pair = Pair(Own(2, 1), momentum=0.0)
    pair.key.update()
    twin = copy.deepcopy(pair)
    change(twin.online)
    twin.key.update()
    assert torch.equal(twin.key.module.weight, twin.online.weight)


def test_state_round_trips_and_the_average_goes_on():
    pair, other = Pair(momentum=0.9), Pair(network(seed=3), momentum=0.9)
    change(pair.online)
    pair.key.update()
    other.load_state_dict(pair.state_dict())
    for one in (pair, other):
        one.key.update()
    assert all(torch.equal(value, pair.key.state_dict()[name]) for name, value in other.key.state_dict().items())


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, lambda module: module.to(torch.float16)])
def test_casting_the_parent_down_leaves_the_copy_and_its_bits(cast):
    pair = Pair()
    before = tensors(pair.key)
    cast(pair)
    assert pair.online[0].weight.dtype.itemsize == 2
    after = pair.key.state_dict()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())
    pair.key.update()
    pair.double()
    assert pair.key.module[0].weight.dtype == torch.float64


def test_half_inputs_are_cast_up_outside_autocast_only():
    pair = Pair(nn.Linear(3, 4).bfloat16())
    x = torch.randn(5, 3).bfloat16()
    assert pair.key(x).dtype == torch.float32
    torch.testing.assert_close(pair.key(x), pair.key(x.float()), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert pair.key(x).dtype == torch.bfloat16
        assert pair.key(x.float()).dtype == torch.bfloat16


def test_inputs_of_any_structure_arrive():
    class Echo(nn.Module):
        def forward(self, batch, *, ids):
            return batch["x"][0], ids

    key, batch = MomentumEncoder(Echo()), {"x": [torch.ones(2).half()]}
    x, ids = key(batch, ids=torch.arange(2))
    assert (x.dtype, ids.dtype) == (torch.float32, torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        assert key(batch, ids=ids)[0].dtype == torch.float16


def test_the_mode_follows_the_parent_unless_evaluation_mode():
    follows, fixed = Pair(), Pair(evaluation_mode=True)
    assert [follows.key.module.training, fixed.key.module.training] == [True, False]
    for mode in (False, True):
        follows.train(mode)
        fixed.train(mode)
        assert follows.key.module[1].training is mode
        assert not any(part.training for part in fixed.key.module.modules())
    x = torch.randn(8, 3) + 3
    for pair, moved in ((follows, True), (fixed, False)):
        before = pair.key.module[1].running_mean.clone()
        pair.key(x)
        assert torch.equal(pair.key.module[1].running_mean, before) is not moved


def test_drift_is_the_relative_distance():
    pair = Pair()
    assert pair.key.drift().item() == 0
    change(pair.online)
    flat_k = torch.cat([p.flatten() for p in pair.key.parameters()]).double()
    flat_q = torch.cat([p.detach().flatten() for p in pair.online.parameters()]).double()
    drift = pair.key.drift()
    assert drift.shape == ()
    assert drift.item() == pytest.approx(((flat_k - flat_q).norm() / flat_q.norm()).item(), rel=1e-6)
    assert MomentumEncoder(nn.Identity()).drift().item() == 0


def test_bad_values_are_named():
    for momentum in (-0.1, 1.5, math.nan):
        with pytest.raises(ConfigError, match=f"momentum is {momentum}; it must lie between 0"):
            MomentumEncoder(nn.Linear(1, 1), momentum)
        with pytest.raises(ConfigError, match=f"momentum is {momentum}"):
            MomentumEncoder(nn.Linear(1, 1)).update(momentum)
    with pytest.raises(ConfigError, match="buffers is 'both'; choose one of own, copy, ema"):
        MomentumEncoder(nn.Linear(1, 1), buffers="both")


def test_networks_on_two_devices_are_an_error():
    online = nn.Linear(2, 1)
    key = MomentumEncoder(online)
    key.to("meta")
    with pytest.raises(ConfigError, match="the online network is on cpu but its momentum copy on meta"):
        key.update()


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_cosine_is_the_published_formula(base, fraction):
    published = 1 - (1 - base) * 0.5 * (1 + math.cos(math.pi * fraction))
    assert cosine_momentum(base, fraction) == pytest.approx(published, abs=1e-15)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_cosine_runs_monotonically_between_its_ends(base, end, first, second):
    assert cosine_momentum(base, 0.0, end) == pytest.approx(base, abs=1e-15)
    assert cosine_momentum(base, 1.0, end) == end
    early, late = (cosine_momentum(base, fraction, end) for fraction in sorted((first, second)))
    assert (late - early) * (1 if end >= base else -1) >= -1e-15


@given(st.floats(0.01, 0.99999), st.integers(1, 4096))
def test_half_life_and_momentum_are_inverse(momentum, batch_size):
    samples = half_life_of(momentum, batch_size)
    assert momentum ** (samples / batch_size) == pytest.approx(0.5)
    assert momentum_from_half_life(samples, batch_size) == pytest.approx(momentum)
    twice = momentum_from_half_life(samples, 2 * batch_size)
    assert twice == pytest.approx(momentum**2)  # twice the samples in a step: two steps in one


def test_the_ends_of_half_life():
    assert (half_life_of(0.0, 8), half_life_of(1.0, 8)) == (0.0, math.inf)


@pytest.mark.parametrize(
    ("momentum", "queue_size", "batch_size", "warns"),
    [
        (0.99, 4096, 512, False),  # the CIFAR demo: 100 steps against 8
        (0.999, 512, 16, False),  # 1000 against 32
        (0.99, 512, 16, True),  # 100 against 32 fails
        (0.9999, 65536, 256, False),
        (0.99, 65536, 256, True),
        (0.0, 0, 16, False),
        (1.0, 10**9, 1, False),
    ],
)
def test_the_horizon_rule(momentum, queue_size, batch_size, warns):
    advice = horizon_advice(momentum, queue_size, batch_size)
    assert (advice is not None) is warns
    if advice is not None:
        assert f"momentum {momentum:g} looks back {1 / (1 - momentum):.0f} steps" in advice
        assert f"{queue_size}/{batch_size} = {queue_size / batch_size:.0f} steps" in advice


@given(st.floats(0, 0.9999), st.integers(1, 100_000), st.integers(1, 4096))
@example(0.0, 50_000, 1)  # the advised value lies on the boundary itself
@example(0.0, 1, 1)  # no queue is short enough
def test_following_the_advice_ends_it(momentum, queue_size, batch_size):
    advice = horizon_advice(momentum, queue_size, batch_size)
    if advice is not None:
        better = float(advice.split("set momentum to ")[1].split()[0])
        assert momentum < better <= 1
        assert horizon_advice(better, queue_size, batch_size) is None
        _, found, shorter = advice.partition("or the queue to ")
        assert bool(found) is (horizon_advice(momentum, 1, batch_size) is None)
        if found:
            assert horizon_advice(momentum, int(shorter.split()[0]), batch_size) is None


def test_a_schedule_chooses_the_momentum():
    assert MomentumSchedule().at(0.7, 256) == 0.999
    cosine = MomentumSchedule(momentum=0.99, schedule="cosine")
    assert [cosine.at(s, 8) for s in (0.0, 1.0)] == [0.99, 1.0]
    assert MomentumSchedule(momentum=0.9, schedule="cosine", end=0.99).at(1.0, 8) == 0.99
    slow = MomentumSchedule(half_life=half_life_of(0.99, 64))
    assert slow.at(0.3, 64) == pytest.approx(0.99)
    assert slow.at(0.3, 128) == pytest.approx(0.99**2)
    assert MomentumSchedule(half_life=1000, schedule="cosine").at(1.0, 64) == 1.0


@pytest.mark.parametrize(
    "schedule", [MomentumSchedule(), MomentumSchedule(half_life=5e4), MomentumSchedule(momentum=0.9, schedule="cosine")]
)
def test_a_resolved_schedule_reads_back(schedule):
    assert MomentumSchedule.model_validate(schedule.model_dump()) == schedule
    assert MomentumSchedule.model_validate_json(schedule.model_dump_json()) == schedule


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 0.99, "half_life": 1000}, r"give momentum \(0.99\) or half_life \(1000.0 samples\), not both"),
        ({"momentum": None}, "give momentum .* or half_life"),
        ({"momentum": 1.01}, "less than or equal to 1"),
        ({"half_life": 0}, "greater than 0"),
        ({"schedule": "linear"}, "'constant' or 'cosine'"),
        ({"ending": 1.0}, "Extra inputs"),
    ],
)
def test_a_schedule_that_cannot_work_says_why(options, message):
    with pytest.raises(ValidationError, match=message):
        MomentumSchedule(**options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cosine_momentum(1.2, 0.5), "momentum is 1.2"),
        (lambda: cosine_momentum(0.9, 1.5), "fraction of the run is 1.5"),
        (lambda: cosine_momentum(0.9, 0.5, -1), "end momentum is -1"),
        (lambda: momentum_from_half_life(0, 8), "half-life is 0 samples"),
        (lambda: momentum_from_half_life(10, 0), "batch size is 0"),
        (lambda: half_life_of(2.0, 8), "momentum is 2.0"),
        (lambda: horizon_advice(0.9, 8, 0), "batch size is 0"),
    ],
)
def test_schedule_functions_name_the_bad_value(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_schedules_need_no_torch():
    code = "import sys, mc_core.momentum_schedule; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
