"""A small memory of old samples: which rows of which task are kept. Pure functions of features, sizes and a seed.

A memory is (m, 2) int64 of (task, row), both from 0, as :func:`mc_core.continual.sequence.fit_tasks` carries it.

Legend: n samples of a task, D width of their features, k clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from mc_core.errors import ConfigError, DataError
from mc_core.random import derive_seed, uniform

_STREAM, _CENTRES = 0xE7E0, 0xE7E1
_BLOCK = 1 << 24  # distances held at once


def reservoir(held: np.ndarray, sizes: Sequence[int], capacity: int, *, seed: int) -> np.ndarray:
    """(m, 2) what is held after the last task: each sample of all tasks so far with the same chance.

    Algorithm R of Vitter (1985): the i-th sample ever seen, from 0, draws j in 0 … i and takes place j where that is in the memory.
    The draw is a function of (seed, i) alone.

    Args:
        held: (n, 2) of (task, row), as after the task before.
        sizes: samples of each task seen, the last one included.
        capacity: places, at least 1.
        seed: of the draws.

    Raises:
        ConfigError: a capacity below 1. DataError: a memory that is not that of the tasks before.

    >>> reservoir(np.zeros((0, 2), np.int64), [3], 10, seed=0).tolist()
    [[0, 0], [0, 1], [0, 2]]
    """
    start, size = sum(sizes[:-1]), sizes[-1]
    _check(held, min(start, capacity), capacity)
    places = np.zeros((capacity, 2), dtype=np.int64)
    places[: len(held)] = held
    ever = np.arange(start, start + size)
    place = np.where(ever < capacity, ever, _places(ever, seed))
    taken = place < capacity
    # of several samples that take one place, the last stays
    places[place[taken]] = np.stack([np.full(size, len(sizes) - 1), ever - start], axis=1)[taken]
    return places[: min(capacity, start + size)]


def _places(ever: np.ndarray, seed: int) -> np.ndarray:
    """A whole number in 0 … i for each i, from 48 random bits."""
    draws = uniform(seed, 0, torch.from_numpy(ever), 2, stream=_STREAM).double().numpy()
    return np.minimum(((draws[:, 0] + draws[:, 1] / (1 << 24)) * (ever + 1)).astype(np.int64), ever)


def quotas(sizes: Sequence[int], capacity: int) -> list[int]:
    """Places of each task, in proportion to its size, by largest remainder; never more than it has samples.

    Source: the herding and k-means memories of CTP's official code (10,000 · n_t / Σ n).

    >>> quotas([60, 30, 10], 10), quotas([2, 2], 10)
    ([6, 3, 1], [2, 2])
    """
    total = sum(sizes)
    if total <= capacity:
        return list(sizes)
    exact = np.asarray(sizes, dtype=np.float64) * capacity / total
    shares = np.floor(exact).astype(np.int64)
    for task in np.argsort(-(exact - shares), kind="stable")[: capacity - int(shares.sum())]:
        shares[task] += 1
    return shares.tolist()


def proportional(
    held: np.ndarray, sizes: Sequence[int], capacity: int, ranked: Callable[[int], np.ndarray]
) -> np.ndarray:
    """(m, 2) what is held after the last task, divided anew in proportion to the sizes: older tasks keep their first rows.

    Args:
        held: (n, 2) of (task, row), as after the task before; those of a task in the order in which they are kept.
        sizes: samples of each task seen, the last one included.
        capacity: places, at least 1.
        ranked: of a quota to that many rows of the last task, those to keep longest first, such as :func:`herding`.

    Raises:
        ConfigError: a capacity below 1. DataError: ``ranked`` gave other than the quota, or a memory that is too small.

    >>> held = proportional(np.zeros((0, 2), np.int64), [4], 4, np.arange)
    >>> proportional(held, [4, 12], 4, np.arange).tolist()
    [[0, 0], [1, 0], [1, 1], [1, 2]]
    """
    _check(held, min(sum(sizes[:-1]), capacity), capacity)
    *old, new = quotas(sizes, capacity)
    chosen = np.asarray(ranked(new), dtype=np.int64).reshape(-1)
    if len(chosen) != new:
        raise DataError(f"{len(chosen)} rows chosen for {new} places")
    kept = [held[held[:, 0] == task][:quota] for task, quota in enumerate(old)]
    return np.concatenate([*kept, np.stack([np.full(new, len(sizes) - 1), chosen], axis=1)])


def _check(held: np.ndarray, wanted: int, capacity: int) -> None:
    if capacity < 1:
        raise ConfigError(f"a memory of {capacity} samples: take 1 or more, or a method without memory")
    if np.shape(held) != (wanted, 2):
        raise DataError(f"a memory of shape {np.shape(held)} after tasks that leave ({wanted}, 2)")


def herding(features: np.ndarray, count: int) -> np.ndarray:
    """(count,) rows, in the order in which their mean comes closest to the mean of all; no row twice.

    Each step takes the row after which the mean of those taken is nearest to the mean of all (Welling 2009; iCaRL, Rebuffi et
    al. 2017, algorithm 4). The order is kept, so that the first few are a herding of fewer.

    Args:
        features: (n, D).
        count: at most n.

    Raises:
        DataError: more rows than there are.

    >>> herding(np.array([[0.0], [10.0], [4.0], [6.0]]), 2).tolist()
    [2, 3]
    """
    x = _features(features, count)
    mean, length = x.mean(axis=0), (x * x).sum(axis=1)
    total, taken = np.zeros(x.shape[1]), np.zeros(len(x), dtype=bool)
    rows = np.zeros(count, dtype=np.int64)
    for place in range(count):
        # ‖(total + x) / (place + 1) − mean‖² but for a factor and a constant
        far = length - 2 * (x @ ((place + 1) * mean - total))
        rows[place] = np.where(taken, np.inf, far).argmin()
        taken[rows[place]] = True
        total += x[rows[place]]
    return rows


def k_means_rows(features: np.ndarray, count: int, *, seed: int, iterations: int = 500) -> np.ndarray:
    """(count,) rows nearest to the centres of ``count`` clusters, those of the largest clusters first; no row twice.

    Args:
        features: (n, D).
        count: at most n; also the number of clusters.
        seed: of the first centres, which are drawn by k-means++ (Arthur and Vassilvitskii 2007).
        iterations: of Lloyd's algorithm, at most.

    Raises:
        DataError: more rows than there are.

    >>> sorted(k_means_rows(np.array([[0.0], [0.1], [0.2], [9.0], [9.2]]), 2, seed=0).tolist())
    [1, 3]
    """
    x = _features(features, count)
    if not count:
        return np.zeros(0, dtype=np.int64)
    centres = _first_centres(x, count, seed)
    nearest = _nearest(x, centres)
    for _ in range(iterations):
        sizes = np.bincount(nearest, minlength=count)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, x)
        centres = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres)
        before, nearest = nearest, _nearest(x, centres)
        if (before == nearest).all():
            break
    order = np.argsort(-np.bincount(nearest, minlength=count), kind="stable")
    taken, rows = np.zeros(len(x), dtype=bool), np.zeros(count, dtype=np.int64)
    for place, cluster in enumerate(order):
        far = ((x - centres[cluster]) ** 2).sum(axis=1)
        rows[place] = np.where(taken, np.inf, far).argmin()
        taken[rows[place]] = True
    return rows


def _features(features: np.ndarray, count: int) -> np.ndarray:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not 0 <= count <= len(x):
        raise DataError(f"{count} rows of features of shape {x.shape}: choose at most as many as there are")
    return x


def _first_centres(x: np.ndarray, count: int, seed: int) -> np.ndarray:
    """k-means++: each further centre is a row drawn in proportion to its squared distance from the nearest one so far."""
    rng = np.random.Generator(np.random.Philox(key=derive_seed(seed, _CENTRES)))
    rows = [int(rng.integers(len(x)))]
    far = ((x - x[rows[0]]) ** 2).sum(axis=1)
    while len(rows) < count:
        far[rows] = 0.0
        edges = far.cumsum()
        if edges[-1] > 0:
            rows.append(int(np.searchsorted(edges, rng.random() * edges[-1], side="right").clip(max=len(x) - 1)))
        else:  # as many different rows as there are: the others are copies
            rows.append(int(np.setdiff1d(np.arange(len(x)), rows)[0]))
        far = np.minimum(far, ((x - x[rows[-1]]) ** 2).sum(axis=1))
    return x[rows].copy()


def _nearest(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    length = (centres * centres).sum(axis=1)
    pace = max(1, _BLOCK // len(centres))
    parts = [(length - 2 * x[i : i + pace] @ centres.T).argmin(axis=1) for i in range(0, len(x), pace)]
    return np.concatenate(parts)
