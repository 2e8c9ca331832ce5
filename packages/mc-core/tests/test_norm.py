"""Split statistics equal BatchNorm on each split, and what must not move does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mc_core.errors import ConfigError, DataError
from mc_core.norm import SplitBatchNorm, convert_split_batchnorm, no_running_stats, shuffled

CHANNELS = 3
SHAPES = [(12, CHANNELS), (12, CHANNELS, 5), (12, CHANNELS, 4, 5), (12, CHANNELS, 2, 4, 3)]
PLAIN = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def pair(ndim: int, splits: int, **options) -> tuple[nn.Module, list[nn.Module]]:
    """A split layer with random weights, and one BatchNorm with the same weights for each split."""
    torch.manual_seed(0)
    split = SplitBatchNorm(CHANNELS, splits, **options).double()
    for parameter in split.parameters():
        nn.init.normal_(parameter)
    plain = [PLAIN[ndim](CHANNELS, **options).double() for _ in range(splits)]
    for one in plain:
        one.load_state_dict(split.state_dict())
    return split, plain


def by_split(plain: list[nn.Module], x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for j, one in enumerate(plain):
        out[j :: len(plain)] = one(x[j :: len(plain)])
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}], ids=str
)
def test_each_split_is_normalised_by_itself(shape, splits, options):
    split, plain = pair(len(shape), splits, **options)
    for seed in range(3):
        torch.manual_seed(seed)
        x = (torch.randn(shape).double() * 3 + 1).requires_grad_()
        expected, found = by_split(plain, x), split(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        weight = torch.randn(shape).double()
        inputs = [x, *split.parameters()]
        got = torch.autograd.grad((found * weight).sum(), inputs)
        wanted = torch.autograd.grad((expected * weight).sum(), [x, *(p for one in plain for p in one.parameters())])
        torch.testing.assert_close(got[0], wanted[0], rtol=0, atol=1e-12)
        for i, gradient in enumerate(got[1:]):
            torch.testing.assert_close(gradient, sum(wanted[1 + i :: len(inputs) - 1]), rtol=0, atol=1e-11)
    if split.track_running_stats:
        for name in ("running_mean", "running_var"):
            mean = torch.stack([getattr(one, name) for one in plain]).mean(0)
            torch.testing.assert_close(getattr(split, name), mean, rtol=0, atol=1e-12)
        assert split.num_batches_tracked == 3


def test_in_eval_mode_it_is_batch_norm_for_any_batch_size():
    split, plain = pair(4, 4)
    split(torch.randn(8, CHANNELS, 2, 2).double())
    plain[0].load_state_dict(split.state_dict())
    split.eval()
    plain[0].eval()
    x = torch.randn(5, CHANNELS, 2, 2).double()
    before = {name: value.clone() for name, value in split.state_dict().items()}
    assert torch.equal(split(x), plain[0](x))
    assert all(torch.equal(value, before[name]) for name, value in split.state_dict().items())


@pytest.mark.parametrize(
    ("shape", "memory_format"), [(SHAPES[2], torch.channels_last), (SHAPES[3], torch.channels_last_3d)]
)
def test_channels_last_stays_and_changes_no_number(shape, memory_format):
    split, _ = pair(len(shape), 4)
    x = torch.randn(shape).double()
    expected, found = split(x), split(x.contiguous(memory_format=memory_format))
    assert found.is_contiguous(memory_format=memory_format)
    assert expected.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_rows_of_one_split_do_not_see_the_others():
    split, _ = pair(2, 4)
    x = torch.randn(8, CHANNELS).double()
    other = x.clone()
    other[1::4] += 100 * torch.rand(2, CHANNELS)
    changed = (split(x) != split(other)).any(1)
    assert changed.tolist() == [n % 4 == 1 for n in range(8)]


def test_bad_batches_and_splits_are_named():
    with pytest.raises(DataError, match="30 rows does not divide into 8 splits; take a multiple of 8"):
        SplitBatchNorm(CHANNELS, 8)(torch.zeros(30, CHANNELS))
    with pytest.raises(DataError, match=r"shape \(4, 5\); this layer takes \(N, 3, …\)"):
        SplitBatchNorm(CHANNELS, 2)(torch.zeros(4, 5))
    with pytest.raises(ConfigError, match="splits is 0"):
        SplitBatchNorm(CHANNELS, 0)
    with pytest.raises(ConfigError, match="splits is -1"):
        convert_split_batchnorm(nn.BatchNorm1d(2), -1)


def test_converting_keeps_parameters_state_and_mode():
    shared = nn.BatchNorm1d(4)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3, momentum=None), nn.Flatten(2), shared, shared)
    net[1](torch.randn(2, 4, 3, 3))
    shared(torch.randn(6, 4))
    net[3].eval()
    parameters, state = list(net.parameters()), {name: value.clone() for name, value in net.state_dict().items()}
    assert convert_split_batchnorm(net, 2) is net
    assert all(before is after for before, after in zip(parameters, net.parameters(), strict=True))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [type(part) for part in (net[1], net[3])] == [SplitBatchNorm] * 2
    assert net[3] is net[4]
    assert (net[1].splits, net[1].eps, net[1].momentum, net[1].training, net[3].training) == (
        2,
        1e-3,
        None,
        True,
        False,
    )
    assert convert_split_batchnorm(net, 4)[1].splits == 4
    assert isinstance(convert_split_batchnorm(nn.BatchNorm1d(2), 2), SplitBatchNorm)


def test_converting_refuses_what_it_would_change():
    class BatchNormAct(nn.BatchNorm2d):
        def forward(self, input):
            return super().forward(input).relu()

    net = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(BatchNormAct(2)))
    with pytest.raises(ConfigError, match=r"'1\.0' is a BatchNormAct"):
        convert_split_batchnorm(net, 2)
    assert type(net[0]) is nn.BatchNorm2d
    with pytest.raises(ConfigError, match="SyncBatchNorm"):
        convert_split_batchnorm(nn.SyncBatchNorm(2), 2)


def test_running_statistics_stay_where_they_were_inside_the_context():
    net = nn.Sequential(nn.BatchNorm1d(CHANNELS), SplitBatchNorm(CHANNELS, 2), nn.BatchNorm1d(CHANNELS))
    net[2].eval()
    x = torch.randn(8, CHANNELS) * 2 + 1
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with no_running_stats(net), no_running_stats(net[0]):
        inside = net(x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(inside, net(x))  # the same batch statistics in train mode, the same running ones in eval mode
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"{i}.{name}" for i in (0, 1) for name in ("running_mean", "running_var", "num_batches_tracked")}


def test_the_context_ends_also_after_an_error():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))

    def fails():
        with no_running_stats(net):
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [part.track_running_stats for part in net] == [True, False]


def test_shuffling_in_one_process_changes_nothing():
    x, norm = torch.randn(6, CHANNELS), nn.BatchNorm1d(CHANNELS)
    assert torch.equal(shuffled(norm, x, seed=3), norm(x))
    assert torch.equal(shuffled(norm, x, seed=4), norm(x))
