"""Hashing gives uniform, independent, reproducible numbers on any batch."""

import numpy as np
import torch

from mc_core import random
from mc_core.random import BatchRandom, derive_seed, sample_rng, uniform


def test_rows_do_not_depend_on_their_batch():
    index = torch.tensor([5, 0, 1_000_000_007, 3])
    whole = uniform(1, 2, index, 6)
    for row, i in enumerate(index.tolist()):
        assert torch.equal(uniform(1, 2, torch.tensor([i]), 6)[0], whole[row])
    assert torch.equal(uniform(1, 2, index, 3), whole[:, :3]), "more draws do not change the first ones"
    assert torch.equal(BatchRandom(1, 2, index).uniform(6), whole)


def test_every_argument_matters():
    index = torch.arange(100)
    base = uniform(1, 2, index, 4)
    for other in (
        uniform(2, 2, index, 4),
        uniform(1, 3, index, 4),
        uniform(1, 2, index, 4, stream=1),
        uniform(1, 2, index + 100, 4),
    ):
        assert (base == other).float().mean() < 0.01


def test_numbers_are_uniform_and_uncorrelated():
    u = uniform(0, 0, torch.arange(50_000), 8).double()
    assert u.min() >= 0
    assert u.max() < 1
    torch.testing.assert_close(u.mean(0), torch.full((8,), 0.5, dtype=torch.float64), rtol=0, atol=0.006)
    torch.testing.assert_close(u.var(0), torch.full((8,), 1 / 12, dtype=torch.float64), rtol=0, atol=0.002)
    correlation = torch.corrcoef(u.T) - torch.eye(8, dtype=torch.float64)
    assert correlation.abs().max() < 0.02
    neighbours = torch.corrcoef(torch.stack([u[:-1, 0], u[1:, 0]]))[0, 1]
    assert abs(neighbours) < 0.02
    counts = torch.histc(u[:, 3], 32, 0, 1)
    assert ((counts - 50_000 / 32).abs() < 6 * (50_000 / 32) ** 0.5).all()


def test_matches_splitmix_in_plain_integers():
    """The int64 tensor arithmetic is splitmix64's, bit for bit."""
    mask = (1 << 64) - 1

    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    base = mix(derive_seed(7, 1, 0))
    for i in (0, 1, 12345):
        state = mix((i * golden + base) & mask)
        expected = [(mix((state + d * golden) & mask) >> 40) / (1 << 24) for d in (1, 2, 3)]
        np.testing.assert_allclose(uniform(7, 1, torch.tensor([i]), 3)[0].numpy(), expected, rtol=0, atol=0)


def test_every_device_has_the_numbers_of_the_cpu():
    """What runs on a GPU is run here on the CPU; negative and strided positions among them."""
    index = torch.from_numpy(np.random.default_rng(0).integers(-(1 << 62), 1 << 62, 400))[::2]
    for base in (0, 5, (1 << 64) - 1):
        expected = random._uniform_on_device(base, index, 33)
        assert torch.equal(torch.from_numpy(random._uniform_on_cpu(base, index.numpy(), 33)), expected)
    assert uniform(0, 0, index[:0], 5).shape == (0, 5)
    assert uniform(0, 0, index, 0).shape == (200, 0)
    assert torch.equal(uniform(0, 0, torch.arange(4, dtype=torch.int32), 3), uniform(0, 0, torch.arange(4), 3))


def test_sample_generators():
    draws = sample_rng(1, 2, 3).random(4)
    np.testing.assert_array_equal(draws, sample_rng(1, 2, 3).random(4))
    for other in (sample_rng(0, 2, 3), sample_rng(1, 0, 3), sample_rng(1, 2, 0), sample_rng(1, 2, 3, stream=1)):
        assert not np.any(draws == other.random(4))


def test_derived_seeds_fit_a_generator_and_differ():
    seeds = {derive_seed(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))
