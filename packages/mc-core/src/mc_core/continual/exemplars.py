"""A small memory of old samples: which rows of which task are kept. Pure functions of features, sizes and a seed.

Legend: n samples of a task, D width of their features, T tasks, k clusters, C capacity of the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mc_core.errors import ConfigError, DataError
from mc_core.random import derive_seed, uniform

_STREAM, _CENTRES = 0xE7E0, 0xE7E1
_BLOCK = 1 << 24  # distances held at once


@dataclass(frozen=True)
class Exemplars:
    """Rows of tasks that are over, as (task, row).

    Attributes:
        capacity: how many may be kept.
        tasks: (m,) int64, m ≤ capacity.
        rows: (m,) int64, within the task's data; those of a task in the order in which they are given up, the last first.
        sizes: samples of each task seen.

    >>> memory = Exemplars.empty(2).add(5, reservoir, seed=0)
    >>> len(memory), memory.sizes, memory.of(0).tolist() == memory.rows.tolist()
    (2, (5,), True)
    """

    capacity: int
    tasks: np.ndarray
    rows: np.ndarray
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.tasks) != len(self.rows) or len(self.rows) > self.capacity:
            raise DataError(f"{len(self.rows)} rows of {len(self.tasks)} tasks in a memory of {self.capacity}")

    @classmethod
    def empty(cls, capacity: int) -> Exemplars:
        """Nothing yet.

        Raises:
            ConfigError: a capacity below 1.
        """
        if capacity < 1:
            raise ConfigError(f"a memory of {capacity} samples: take 1 or more, or a method without memory")
        return cls(capacity, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, task: int) -> np.ndarray:
        """Rows kept of a task."""
        return self.rows[self.tasks == task]

    def add(self, size: int, choose: Callable[..., Exemplars], **options: Any) -> Exemplars:
        """After a task of ``size`` samples: ``choose`` is :func:`reservoir` or :func:`proportional`."""
        return choose(self, size, **options)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "capacity": self.capacity,
            "tasks": self.tasks.tolist(),
            "rows": self.rows.tolist(),
            "sizes": list(self.sizes),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Exemplars:
        """Back from JSON."""
        tasks, rows = (np.asarray(content[name], dtype=np.int64) for name in ("tasks", "rows"))
        return cls(int(content["capacity"]), tasks, rows, tuple(content["sizes"]))


def reservoir(memory: Exemplars, size: int, *, seed: int) -> Exemplars:
    """The memory after another task: each sample of all tasks so far is in it with the same chance.

    Algorithm R of Vitter (1985): the i-th sample ever seen, from 0, draws j in 0 … i and takes place j where that is in the memory.
    The draw is a function of (seed, i) alone.

    Args:
        memory: before the task.
        size: samples of the task.
        seed: of the run.

    >>> reservoir(Exemplars.empty(10), 3, seed=0).rows.tolist()
    [0, 1, 2]
    """
    start, capacity = sum(memory.sizes), memory.capacity
    tasks, rows = (
        np.concatenate([old, np.zeros(capacity - len(memory), np.int64)]) for old in (memory.tasks, memory.rows)
    )
    ever = np.arange(start, start + size)
    place = np.where(ever < capacity, ever, _places(ever, seed))
    taken = place < capacity
    # of several samples that take one place, the last stays
    tasks[place[taken]] = len(memory.sizes)
    rows[place[taken]] = (ever - start)[taken]
    filled = min(capacity, start + size)
    return Exemplars(capacity, tasks[:filled], rows[:filled], (*memory.sizes, size))


def _places(ever: np.ndarray, seed: int) -> np.ndarray:
    """A whole number in 0 … i for each i, from 48 random bits."""
    draws = uniform(seed, 0, torch.from_numpy(ever), 2, stream=_STREAM).double().numpy()
    return np.minimum(((draws[:, 0] + draws[:, 1] / (1 << 24)) * (ever + 1)).astype(np.int64), ever)


def quotas(sizes: Sequence[int], capacity: int) -> list[int]:
    """Places of each task, in proportion to its size, by largest remainder; never more than it has samples.

    Source: CTP's herding and k-means memories (its page of constants: 10,000 · n_t / Σ n).

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


def proportional(memory: Exemplars, size: int, *, ranked: Callable[[int], np.ndarray]) -> Exemplars:
    """The memory after another task, divided anew in proportion to the sizes: older tasks keep their first rows.

    Args:
        memory: before the task.
        size: samples of the task.
        ranked: of a quota to that many rows of the new task, the most telling first, such as :func:`herding`.

    Raises:
        DataError: ``ranked`` gave other than the quota.
    """
    sizes = (*memory.sizes, size)
    shares = quotas(sizes, memory.capacity)
    kept = [memory.of(task)[: shares[task]] for task in range(len(memory.sizes))]
    chosen = np.asarray(ranked(shares[-1]), dtype=np.int64)
    if len(chosen) != shares[-1]:
        raise DataError(f"{len(chosen)} rows chosen for {shares[-1]} places")
    each = [*kept, chosen]
    tasks = np.repeat(np.arange(len(each)), [len(rows) for rows in each])
    return Exemplars(memory.capacity, tasks, np.concatenate(each), sizes)


def herding(features: np.ndarray, count: int) -> np.ndarray:
    """(count,) rows, in the order in which their mean comes closest to the mean of all; no row twice.

    Each step takes the row after which the mean of those taken is nearest to the mean of all (Welling 2009; iCaRL, Rebuffi et al. 2017,
    algorithm 4). The order is kept, so that the first few are a herding of fewer.

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
