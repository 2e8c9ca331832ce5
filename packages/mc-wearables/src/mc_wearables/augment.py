"""Random views of whole batches of segments, on the device of the batch.

Each operation is a function of the segments and of random numbers; these are a function of (seed, epoch, sample index,
view) alone, so that no view depends on its batch, worker or process. On the CPU an operation is computed only for the
segments whose coin came up, and by NumPy where its loops are the faster ones.

Abbaspourazad et al. 2024 (ICLR, arXiv:2312.05409), section 3.1, in the order of the authors' later released pipeline (the
paper lists the time warp last). The monotone time warp is ours.

Legend: B segments, C channels, T time steps, K knots.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mc_core.random import BatchRandom
from mc_wearables.augment_config import AugmentConfig

# Each choice draws from a stream of its own, so that turning one operation off leaves the others alone.
_COINS, _CUT, _MAGNITUDE, _TIME, _SIGMA, _NOISE, _PERMUTE, _STREAMS = range(8)


def make_view(x_BCT: Tensor, random: BatchRandom, view: int, config: AugmentConfig) -> Tensor:
    """One random view of each segment of a batch.

    Args:
        x_BCT: float32, z-scored; not written to.
        random: of the batch: seed, epoch and the B indices.
        view: its number; views of the same segment differ by it.
        config: what to do, with which probability.

    Returns:
        (B, C, T), not normalised again.

    >>> x = torch.randn(4, 2, 64)
    >>> random = BatchRandom(seed=0, epoch=0, index=torch.arange(4))
    >>> make_view(x, random, 1, AugmentConfig()).shape
    torch.Size([4, 2, 64])
    """
    channels, knots = x_BCT.shape[1], config.knots
    first = view * _STREAMS

    def stream(which: int) -> int:
        return first + which

    def cut(x: Tensor, some: BatchRandom) -> Tensor:
        return cut_out(x, some.uniform(2, stream=stream(_CUT)), config.cut_fraction)

    def magnitude(x: Tensor, some: BatchRandom) -> Tensor:
        return magnitude_warp(x, 1 + config.magnitude_sigma * normal(some, knots, stream(_MAGNITUDE)))

    def time(x: Tensor, some: BatchRandom) -> Tensor:
        if config.time_warp == "monotone":
            return time_warp(x, (config.time_sigma * normal(some, knots, stream(_TIME))).exp())
        z_BCK = normal(some, channels * knots, stream(_TIME)).unflatten(1, (channels, knots))
        return released_time_warp(x, 1 + config.time_sigma * z_BCK)

    def noise(x: Tensor, some: BatchRandom) -> Tensor:
        low, high = config.noise_sigma
        sigma_B = low + (high - low) * some.uniform(1, stream=stream(_SIGMA))[:, 0]
        z_BCT = normal(some, x[0].numel(), stream(_NOISE)).view_as(x)
        return z_BCT.mul_(sigma_B[:, None, None]).add_(x)

    def permute(x: Tensor, some: BatchRandom) -> Tensor:
        order_BC = some.uniform(channels, stream=stream(_PERMUTE)).argsort(1)
        return x.gather(1, order_BC[:, :, None].expand_as(x))

    steps = (
        (config.cut_p, cut),
        (config.magnitude_p, magnitude),
        (config.time_p, time),
        (config.noise_p, noise),
        (config.permute_p if channels > 1 else 0.0, permute),
    )
    with torch.autocast(x_BCT.device.type, enabled=False):
        x_BCT = x_BCT.to(torch.float32, copy=True)
        coin_B5 = random.uniform(len(steps), stream=stream(_COINS))
        for number, (probability, operation) in enumerate(steps):
            if probability:
                x_BCT = _where(x_BCT, coin_B5[:, number] < probability, operation, random)
    return x_BCT


def _where(
    x_BCT: Tensor, chosen_B: Tensor, operation: Callable[[Tensor, BatchRandom], Tensor], random: BatchRandom
) -> Tensor:
    """The operation on the chosen segments. May write into ``x``."""
    if not _on_cpu(x_BCT):  # to choose rows by number, the device would have to be waited for
        return torch.where(chosen_B[:, None, None], operation(x_BCT, random), x_BCT)
    rows = chosen_B.nonzero().squeeze(1)
    if not len(rows):
        return x_BCT
    some = BatchRandom(random.seed, random.epoch, random.index[rows])
    x_BCT.numpy()[rows.numpy()] = operation(x_BCT.index_select(0, rows), some).numpy()
    return x_BCT


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def normal(random: BatchRandom, draws: int, stream: int) -> Tensor:
    """(B, draws) float32 standard normal numbers, by Box and Muller from uniform ones; none beyond ±5.8.

    >>> normal(BatchRandom(0, 0, torch.arange(3)), 5, stream=0).shape
    torch.Size([3, 5])
    """
    half = (draws + 1) // 2
    z_BR = random.uniform(2 * half, stream=stream)
    if _on_cpu(z_BR):
        _box_muller(z_BR.numpy())
        return z_BR[:, :draws]
    radius, turn = z_BR.split(half, dim=1)
    radius = (1 - radius).log_().mul_(-2).sqrt_()  # 1 − u is never 0
    angle = turn * (2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :draws]


def _box_muller(u_BR: np.ndarray) -> None:
    """Uniform numbers to normal ones in place, the first half of each row with the second."""
    first, second = np.split(u_BR, 2, axis=1)
    radius, angle = 1 - first, second * np.float32(2 * math.pi)
    np.log(radius, out=radius)
    radius *= -2
    np.sqrt(radius, out=radius)
    np.multiply(np.cos(angle), radius, out=first)
    np.sin(angle, out=angle)
    np.multiply(angle, radius, out=second)


def cut_out(x_BCT: Tensor, u_B2: Tensor, fraction: tuple[float, float]) -> Tensor:
    """Zero in one window on all channels.

    Args:
        x_BCT: segments.
        u_B2: uniform in [0, 1): of the window's length and of its start.
        fraction: of the segment, the shortest and the longest window; whole numbers of samples between are equally likely.

    >>> cut_out(torch.ones(1, 1, 10), torch.tensor([[0.0, 0.99]]), (0.3, 0.5)).squeeze().tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """
    samples = x_BCT.shape[2]
    shortest = min(math.ceil(samples * fraction[0] - 1e-6), samples)
    longest = max(math.floor(samples * fraction[1] + 1e-6), shortest)
    length_B = _whole(u_B2[:, 0], longest - shortest + 1) + shortest
    start_B = _whole(u_B2[:, 1], samples - length_B + 1)
    first_B1, end_B1 = start_B[:, None], (start_B + length_B)[:, None]
    if _on_cpu(x_BCT):
        at_T = np.arange(samples, dtype=np.int32)
        cut_BT = (at_T >= first_B1.int().numpy()) & (at_T < end_B1.int().numpy())
        made_BCT = x_BCT.clone()
        np.copyto(made_BCT.numpy(), 0.0, where=cut_BT[:, None])
        return made_BCT
    at_T = torch.arange(samples, device=x_BCT.device)
    return x_BCT.masked_fill(((at_T >= first_B1) & (at_T < end_B1))[:, None], 0.0)


def _whole(u_B: Tensor, count: Tensor | int) -> Tensor:
    """Whole numbers 0 … count − 1 from uniform ones; the product may round up to ``count``."""
    return torch.minimum((u_B * count).long(), torch.as_tensor(count - 1, device=u_B.device))


def magnitude_warp(x_BCT: Tensor, factor_BK: Tensor) -> Tensor:
    """All channels times the cubic spline (not-a-knot) through these factors.

    Args:
        x_BCT: segments.
        factor_BK: at K ≥ 4 knots, from the first sample to the last.
    """
    curve_BT = factor_BK @ spline_weights(factor_BK.shape[1], x_BCT.shape[2], x_BCT.device)
    return x_BCT * curve_BT[:, None]


def time_warp(x_BCT: Tensor, rate_BK: Tensor) -> Tensor:
    """Run through each segment at a changing rate, from its first sample to its last; ours.

    The rate is linear between the knots; its integral, scaled to end at T − 1, says where to read. Positive rates make
    it increase, so time never runs backwards, and all channels are read at the same places, so they keep together.

    Args:
        x_BCT: segments.
        rate_BK: positive, at K ≥ 2 knots from the first sample to the last.
    """
    return read_at(x_BCT, warped_positions(rate_BK, x_BCT.shape[2])[:, None])


def warped_positions(rate_BK: Tensor, samples: int) -> Tensor:
    """(B, T) where :func:`time_warp` reads, in samples: increasing, from 0 to T − 1.

    >>> warped_positions(torch.tensor([[1.0, 1.0, 4.0]]), 5)
    tensor([[0.0000, 0.5714, 1.1429, 2.1429, 4.0000]])
    """
    travelled_BT = rate_BK @ _travel_weights(rate_BK.shape[1], samples, rate_BK.device)
    return travelled_BT * ((samples - 1) / travelled_BT[:, -1:])


def released_time_warp(x_BCT: Tensor, factor_BCK: Tensor) -> Tensor:
    """The time warp of the authors' released pipeline, to reproduce it; it is not monotone, and takes channels apart.

    Args:
        x_BCT: segments.
        factor_BCK: around 1, at K ≥ 4 knots, for each channel.
    """
    return read_at(x_BCT, released_positions(factor_BCK, x_BCT.shape[2]))


def released_positions(factor_BCK: Tensor, samples: int) -> Tensor:
    """(B, C, T) where :func:`released_time_warp` reads: a spline through the knots' places times the factors, scaled to end
    at T − 1 and clipped to the segment.
    """
    knots = factor_BCK.shape[-1]
    place_K = torch.linspace(0, samples - 1, knots, device=factor_BCK.device)
    curve_BCT = (factor_BCK * place_K) @ spline_weights(knots, samples, factor_BCK.device)
    return (curve_BCT * ((samples - 1) / curve_BCT[..., -1:])).clamp_(0, samples - 1)


def read_at(x_BCT: Tensor, position_BCT: Tensor) -> Tensor:
    """Segments at positions between samples, linearly interpolated.

    Args:
        x_BCT: segments.
        position_BCT: in samples, from 0 to T − 1; (B, 1, T) serves all channels.

    >>> read_at(torch.tensor([[[0.0, 10.0, 20.0]]]), torch.tensor([[[0.0, 0.25, 2.0]]]))
    tensor([[[ 0.0000,  2.5000, 20.0000]]])
    """
    left_BCT = position_BCT.floor().clamp_(0, x_BCT.shape[2] - 2)
    share_BCT = (position_BCT - left_BCT).clamp_(0, 1)
    left_BCT = left_BCT.long().expand_as(x_BCT)
    before_BCT, after_BCT = x_BCT.gather(2, left_BCT), x_BCT[:, :, 1:].gather(2, left_BCT)
    return torch.lerp(before_BCT, after_BCT, share_BCT.expand_as(x_BCT))


@functools.lru_cache(maxsize=16)
def spline_weights(knots: int, samples: int, device: torch.device) -> Tensor:
    """(K, T) that turns values at equally spaced knots into the cubic spline through them, not-a-knot at both ends.

    Such a spline is a cubic polynomial plus one truncated cube for each knot but the first and the last two.
    """
    inner = np.linspace(0, 1, knots)[2:-2]

    def basis(at: np.ndarray) -> np.ndarray:
        powers = at[:, None] ** np.arange(4)
        return np.concatenate([powers, np.clip(at[:, None] - inner, 0, None) ** 3], axis=1)

    weights_TK = basis(np.linspace(0, 1, samples)) @ np.linalg.inv(basis(np.linspace(0, 1, knots)))
    return torch.from_numpy(weights_TK.T.astype(np.float32)).contiguous().to(device)


@functools.lru_cache(maxsize=16)
def _travel_weights(knots: int, samples: int, device: torch.device) -> Tensor:
    """(K, T) that turns rates at equally spaced knots into the integral of their linear interpolation up to each sample."""
    at = np.linspace(0, knots - 1, samples)
    hats_KT = np.clip(1 - np.abs(at - np.arange(knots)[:, None]), 0, None)
    steps = (hats_KT[:, 1:] + hats_KT[:, :-1]) / 2
    weights = np.concatenate([np.zeros((knots, 1)), steps.cumsum(axis=1)], axis=1)
    return torch.from_numpy(weights.astype(np.float32)).to(device)
