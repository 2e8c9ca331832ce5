"""Each augmentation against a loop over samples in float64 with numpy and scipy, and what the views promise."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.integrate import cumulative_trapezoid
from scipy.interpolate import CubicSpline
from scipy.stats import kstest

from mc_core.random import BatchRandom
from mc_wearables.augment import (
    cut_out,
    magnitude_warp,
    make_view,
    normal,
    released_positions,
    released_time_warp,
    time_warp,
    warped_positions,
)
from mc_wearables.augment_config import AugmentConfig

OFF = {"cut_p": 0.0, "magnitude_p": 0.0, "time_p": 0.0, "noise_p": 0.0, "permute_p": 0.0}
NAMES = list(OFF)
B, C, T, K = 12, 3, 200, 7


def only(**fields):
    return AugmentConfig(**{**OFF, **fields})


def random_of(count: int, seed: int = 0, epoch: int = 0) -> BatchRandom:
    return BatchRandom(seed, epoch, torch.arange(count))


@pytest.fixture
def signal():
    """Smooth, so that a read-out half a thousandth of a sample off does not show."""
    time = torch.linspace(0, 4, T)
    phase = torch.rand(B, C, 1, generator=torch.Generator().manual_seed(1)) * 6
    return torch.sin(2 * torch.pi * time + phase) + 0.3 * torch.cos(5 * time * phase)


def test_cut_out_zeroes_one_window_of_the_asked_length(signal):
    u = random_of(B).uniform(2, stream=5)
    made = cut_out(signal, u, (0.3, 0.5))
    for row in range(B):
        length = 60 + int(float(u[row, 0]) * 41)  # 60 … 100 samples of 200
        start = int(float(u[row, 1]) * (T - length + 1))
        expected = signal[row].double().numpy().copy()
        expected[:, start : start + length] = 0
        np.testing.assert_array_equal(made[row].numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("samples", [200, 640, 3840, 7])
def test_cut_windows_lie_between_the_fractions_and_inside_the_segment(samples):
    u = torch.cat([random_of(500).uniform(2, stream=1), torch.tensor([[0.0, 0.0], [1 - 2**-24] * 2])])
    zero = cut_out(torch.ones(len(u), 1, samples), u, (0.3, 0.5)).squeeze(1) == 0
    share = zero.sum(1) / samples
    assert float(share.min()) >= 0.3
    assert float(share.max()) <= 0.5
    assert int(zero.int().diff(dim=1).abs().sum(1).max()) <= 2  # one window
    assert zero[:, 0].any()
    assert zero[:, -1].any()  # both ends can be reached


def test_magnitude_warp_is_scipys_spline_through_the_factors(signal):
    factor = 1 + 0.2 * normal(random_of(B), K, stream=3)
    made = magnitude_warp(signal, factor)
    knots = np.linspace(0, T - 1, K)
    for row in range(B):
        curve = CubicSpline(knots, factor[row].double().numpy())(np.arange(T))
        np.testing.assert_allclose(made[row].numpy(), signal[row].double().numpy() * curve, atol=2e-6)


def test_time_warp_reads_at_the_integral_of_the_rate(signal):
    rate = (0.1 * normal(random_of(B), K, stream=4)).exp()
    made = time_warp(signal, rate)
    for row in range(B):
        at = np.interp(np.arange(T), np.linspace(0, T - 1, K), rate[row].double().numpy())
        place = cumulative_trapezoid(at, initial=0)
        place *= (T - 1) / place[-1]
        for channel in range(C):
            expected = np.interp(place, np.arange(T), signal[row, channel].double().numpy())
            np.testing.assert_allclose(made[row, channel].numpy(), expected, atol=2e-5)


def test_released_time_warp_is_a_clipped_spline_for_each_channel(signal):
    factor = 1 + 0.1 * normal(random_of(B), C * K, stream=4).unflatten(1, (C, K))
    made = released_time_warp(signal, factor)
    knots = np.linspace(0, T - 1, K)
    for row in range(B):
        for channel in range(C):
            place = CubicSpline(knots, knots * factor[row, channel].double().numpy())(np.arange(T))
            place = np.clip(place * (T - 1) / place[-1], 0, T - 1)
            expected = np.interp(place, np.arange(T), signal[row, channel].double().numpy())
            np.testing.assert_allclose(made[row, channel].numpy(), expected, atol=5e-5)


def test_the_monotone_warp_keeps_order_and_ends_and_the_released_one_does_not():
    """The shares measured for the released pipeline: 48 % not monotone, median largest shift 7.1 s of 60 s; ours 1.2 s."""
    random, samples, rate = random_of(1000), 3840, 64
    place = warped_positions((0.1 * normal(random, K, stream=1)).exp(), samples)
    assert float(place.diff(dim=1).min()) > 0.6
    torch.testing.assert_close(place[:, 0], torch.zeros(1000))
    torch.testing.assert_close(place[:, -1], torch.full((1000,), samples - 1.0), rtol=0, atol=2e-3)
    assert float((place - torch.arange(samples)).abs().amax(1).median()) / rate == pytest.approx(1.2, abs=0.1)

    factor = 1 + 0.1 * normal(random, K, stream=2)
    released = released_positions(factor[:, None], samples)[:, 0]
    assert float((released - torch.arange(samples)).abs().amax(1).median()) / rate == pytest.approx(7.1, abs=0.6)
    backwards = (
        (released.diff(dim=1) <= 0).any(1).float().mean()
    )  # clipping turns some of the way back into a standstill
    assert 0.44 < float(backwards) < 0.54
    assert float(released.min()) == 0
    assert float(released.max()) == samples - 1


def test_the_monotone_warp_keeps_channels_together_and_the_released_one_parts_them(signal):
    same = signal[:, :1].expand(B, C, T)
    warped = make_view(same, random_of(B), 1, only(time_p=1))
    assert all(torch.equal(warped[:, 0], warped[:, channel]) for channel in range(C))
    parted = make_view(same, random_of(B), 1, only(time_p=1, time_warp="released"))
    assert not torch.allclose(parted[:, 0], parted[:, 1], atol=0.1)


def test_noise_is_gaussian_with_a_standard_deviation_between_the_bounds():
    x = torch.randn(200, 2, 500)
    added = make_view(x, random_of(200), 1, only(noise_p=1)) - x
    spread = added.std((1, 2))
    assert 0.045 < float(spread.min()) < 0.055
    assert 0.095 < float(spread.max()) < 0.105
    assert kstest((added / spread[:, None, None])[::20].flatten().numpy(), "norm").pvalue > 1e-3
    assert float((added[:, 0] * added[:, 1]).mean().abs()) < 1e-4  # channels have noise of their own


def test_normal_numbers_are_normal_and_independent():
    z = normal(random_of(300), 401, stream=9)
    assert z.shape == (300, 401)
    assert kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(float((z[:, :200] * z[:, 201:]).mean())) < 0.015  # both halves of Box and Muller's pairs


def test_permutation_exchanges_whole_channels(signal):
    made = make_view(signal, random_of(B), 1, only(permute_p=1))
    seen = set()
    for row in range(B):
        order = [next(c for c in range(C) if torch.equal(made[row, k], signal[row, c])) for k in range(C)]
        assert sorted(order) == list(range(C))
        seen.add(tuple(order))
    assert len(seen) > 2


def test_without_probability_nothing_changes(signal):
    assert torch.equal(make_view(signal, random_of(B), 1, only()), signal)
    single = signal[:, :1].contiguous()
    assert torch.equal(make_view(single, random_of(B), 1, only(permute_p=1)), single)


def test_the_input_is_left_as_it_was(signal):
    before = signal.clone()
    make_view(signal, random_of(B), 1, AugmentConfig(**dict.fromkeys(NAMES, 1.0)))
    assert torch.equal(signal, before)


@pytest.mark.parametrize("warp", ["monotone", "released"])
def test_a_view_is_a_function_of_seed_epoch_index_and_view_alone(signal, warp):
    config = AugmentConfig(**dict.fromkeys(NAMES, 0.5), time_warp=warp)
    whole = make_view(signal, random_of(B), 1, config)
    assert torch.equal(whole, make_view(signal, random_of(B), 1, config))
    rows = torch.tensor([7, 2, 11])
    part = make_view(signal[rows], BatchRandom(0, 0, rows), 1, config)
    torch.testing.assert_close(part, whole[rows], rtol=0, atol=2e-5)  # matrix products of other sizes round otherwise
    for other in (
        make_view(signal, random_of(B), 2, config),
        make_view(signal, random_of(B, seed=1), 1, config),
        make_view(signal, random_of(B, epoch=1), 1, config),
    ):
        assert not torch.equal(whole, other)


@pytest.mark.parametrize("warp", ["monotone", "released"])
def test_other_devices_make_the_views_of_the_cpu(signal, warp, monkeypatch):
    """What a GPU would run is run here on the CPU."""
    config = AugmentConfig(**dict.fromkeys(NAMES, 0.5), time_warp=warp)
    expected = make_view(signal, random_of(B), 2, config)
    monkeypatch.setattr("mc_wearables.augment._on_cpu", lambda x: False)
    made = make_view(signal, random_of(B), 2, config)
    torch.testing.assert_close(made, expected, rtol=0, atol=2e-5)
    assert torch.equal(made == 0, expected == 0)  # the same windows


def test_each_operation_has_its_own_coin_in_each_view():
    x = torch.randn(3000, 4, 16)
    random = random_of(len(x))
    changed = {
        (name, view): (make_view(x, random, view, only(**{name: 0.5})) != x).flatten(1).any(1).double()
        for name in NAMES
        for view in (1, 2)
    }
    for (name, view), hit in changed.items():
        expected = 0.5 * (1 - 1 / 24) if name == "permute_p" else 0.5  # one permutation of four in 24 changes nothing
        assert float(hit.mean()) == pytest.approx(expected, abs=0.03), (name, view)
    table = torch.stack(list(changed.values()))
    correlation = torch.corrcoef(table) - torch.eye(len(table))
    assert float(correlation.abs().max()) < 0.08


def test_turning_one_operation_off_leaves_the_others_alone(signal):
    noisy = make_view(signal, random_of(B), 1, only(noise_p=0.5))
    both = make_view(signal, random_of(B), 1, only(noise_p=0.5, permute_p=0.5))
    ordered = [sorted(x[0].tolist()) for x in both[:, :, 0:1].flatten(1)[:, None]]
    assert ordered == [sorted(x[0].tolist()) for x in noisy[:, :, 0:1].flatten(1)[:, None]]


def test_published_probabilities():
    ppg, ecg = AugmentConfig.of_signal("ppg"), AugmentConfig.of_signal("ecg")
    assert [getattr(ppg, name) for name in NAMES] == [0.4, 0.25, 0.15, 0.25, 0.25]
    assert [getattr(ecg, name) for name in NAMES] == [0.8, 0.5, 0.3, 0.5, 0.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cut_fraction": (0.5, 0.3)}, r"cut_fraction \(0.5, 0.3\) is \(low, high\) with 0 ≤ low ≤ high ≤ 1"),
        ({"noise_sigma": (-0.1, 0.3)}, r"noise_sigma \(-0.1, 0.3\) is \(low, high\) with 0 ≤ low"),
        ({"knots": 3}, "greater than or equal to 4"),
    ],
)
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        AugmentConfig(**fields)


def test_defaults_are_the_published_strengths():
    """Table of the method's augmentations: probabilities of the paper, strengths of the released code."""
    ppg, ecg = AugmentConfig.of_signal("ppg"), AugmentConfig.of_signal("ecg")
    names = ("cut_p", "magnitude_p", "noise_p", "permute_p", "time_p")
    assert [getattr(ppg, name) for name in names] == [0.4, 0.25, 0.25, 0.25, 0.15]
    assert [getattr(ecg, name) for name in names] == [0.8, 0.5, 0.5, 0.0, 0.3]
    for config in (ppg, ecg):
        assert (config.cut_fraction, config.noise_sigma) == ((0.3, 0.5), (0.05, 0.1))
        assert (config.magnitude_sigma, config.time_sigma, config.knots) == (0.2, 0.1, 7)
        assert config.time_warp == "monotone"


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_time_never_runs_backwards_in_a_view(sigma):
    """Through the whole path, on a ramp: the warp's rates must be positive however wide they are drawn."""
    ramp = torch.linspace(0, 1, T).expand(300, 2, T).contiguous()
    view = make_view(ramp, random_of(300), 1, only(time_p=1.0, time_sigma=sigma))
    assert float(view.diff(dim=2).min()) >= 0
    assert torch.equal(view[:, 0], view[:, 1])
    torch.testing.assert_close(view[..., [0, -1]], ramp[..., [0, -1]])
    assert float((view - ramp).abs().amax((1, 2)).min()) > 1e-4


def test_operations_run_in_the_order_of_the_released_code():
    """Cut before noise: the window holds noise. Cut before the time warp: it moves with time. Magnitude before noise."""
    ones = torch.ones(200, 1, T)
    noisy = make_view(ones, random_of(200), 1, only(cut_p=1.0, noise_p=1.0))
    assert float((noisy == 0).float().mean()) < 1e-3
    cut = make_view(ones, random_of(200), 1, only(cut_p=1.0))
    warped = make_view(ones, random_of(200), 1, only(cut_p=1.0, time_p=1.0, time_sigma=0.5))
    width = [(x == 0).sum(2).squeeze(1) for x in (cut, warped)]
    assert int((width[0] != width[1]).sum()) > 150
    zeros = torch.zeros(50, 1, T)
    alone, both = (
        make_view(zeros, random_of(50), 1, only(noise_p=1.0, magnitude_p=p, magnitude_sigma=2.0)) for p in (0.0, 1.0)
    )
    assert torch.equal(alone, both)
