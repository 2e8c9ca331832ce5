"""From a data set to the micro-batches of an optimizer step: resumable, and the same for any number of workers and processes.

A data set is anything with ``__len__`` and ``get(index, rng)``; it may offer more (see :class:`Dataset`). The *global* batch of
a step is a slice of that epoch's permutation; process r of W takes the r-th of W equal parts and cuts it into micro-batches in
order, so joining micro-batches and then processes gives the global batch back whatever W and the accumulation are.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mc_core.errors import BadSampleError, ConfigError, DataError, McError
from mc_core.random import BatchRandom, derive_seed, sample_rng

_RETRIES = 20


@runtime_checkable
class Dataset(Protocol):
    """The data contract.

    Optional, looked up by name:

    - ``get_batch(indices, epoch, seed) -> dict``: a whole batch at once, for data in memory;
    - ``collate(samples) -> dict``: instead of stacking tensors;
    - ``device_transform(batch, random: BatchRandom) -> dict``: batched work on the device, after the transfer;
    - ``arrange(permutation, *, epoch, batch_size, seed) -> permutation``: another order of an epoch's shuffled samples, so that
      what belongs together comes into one batch (batches are its slices); a function of its arguments alone;
    - ``describe() -> dict``: what identifies the data, compared on resume (the key ``location`` is not compared).
    """

    def __len__(self) -> int: ...

    def get(self, index: int, rng: np.random.Generator) -> Mapping[str, Any]:
        """One sample as a dict of tensors and numbers; all its randomness comes from ``rng``."""
        ...


@dataclass(frozen=True)
class StepPlan:
    """Which samples enter which optimizer step. Pure arithmetic: nothing is consumed, so any step can be asked for.

    Attributes:
        length: samples in the data.
        batch_size: samples per optimizer step over all processes.
        seed: of the shuffling.
        rank: of this process.
        world_size: number of processes.
        accumulation: micro-batches per step and process.

    >>> plan = StepPlan(length=10, batch_size=4, seed=0)
    >>> plan.steps_per_epoch, [len(part) for part in plan.micro_batches(0)]
    (2, [4])
    """

    length: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    accumulation: int = 1

    def __post_init__(self) -> None:
        if self.batch_size > self.length:
            raise ConfigError(
                f"batch_size {self.batch_size} is larger than the data ({self.length} samples): "
                f"set fit.batch_size to {self.length} or less, or give more data"
            )
        parts = self.world_size * self.accumulation
        if self.batch_size % parts:
            raise ConfigError(
                f"batch_size {self.batch_size} does not divide into {self.world_size} processes × {self.accumulation} "
                f"micro-batches: take a multiple of {parts}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass; what is left over is dropped (each epoch drops others)."""
        return self.length // self.batch_size

    def permutation(self, epoch: int) -> np.ndarray:
        """(length,) int64: the order of one epoch, a function of (seed, epoch)."""
        return np.random.Generator(np.random.Philox(key=derive_seed(self.seed, epoch, 0x5E0))).permutation(self.length)

    def micro_batches(self, step: int, permutation: np.ndarray | None = None) -> list[np.ndarray]:
        """The indices of this process's micro-batches in optimizer step ``step``, counted from the start of the run."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = self.permutation(epoch) if permutation is None else permutation
        share = self.batch_size // self.world_size
        first = position * self.batch_size + self.rank * share
        return np.split(order[first : first + share], self.accumulation)


class _Keys:
    """Batch sampler for the DataLoader: a list of (epoch, index) for each micro-batch of the steps still to do."""

    def __init__(self, plan: StepPlan, start: int, stop: int, data: Dataset) -> None:
        self.plan, self.start, self.stop = plan, start, stop
        self.arrange = getattr(data, "arrange", None)

    def __len__(self) -> int:
        return (self.stop - self.start) * self.plan.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        known, order = -1, None
        for step in range(self.start, self.stop):
            epoch = step // self.plan.steps_per_epoch
            if epoch != known:
                known, order = epoch, self._order(epoch)
            for part in self.plan.micro_batches(step, order):
                yield [(epoch, index) for index in part.tolist()]

    def _order(self, epoch: int) -> np.ndarray:
        order = self.plan.permutation(epoch)
        if self.arrange is None:
            return order
        return self.arrange(order, epoch=epoch, batch_size=self.plan.batch_size, seed=self.plan.seed)


class _Fetch(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """What runs on a worker: read, retry bad samples, collate. Errors travel back as values, to keep them one line."""

    def __init__(self, data: Dataset, seed: int) -> None:
        self.data, self.seed = data, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        try:
            return self._batch(keys[0][0], [index for _, index in keys])
        except McError as error:
            return {"error": error}

    def _batch(self, epoch: int, indices: list[int]) -> dict[str, Any]:
        bad: list[tuple[int, str, str]] = []
        get_batch = getattr(self.data, "get_batch", None)
        if get_batch is not None:
            batch = dict(get_batch(indices, epoch, self.seed))
        else:
            samples = [self._sample(epoch, i, slot, indices, bad) for slot, i in enumerate(indices)]
            collate = getattr(self.data, "collate", None) or stack_samples
            batch = dict(collate(samples))
        batch["index"] = torch.tensor(indices, dtype=torch.int64)
        batch["epoch"] = epoch
        if bad:
            batch["bad"] = bad
        return batch

    def _sample(
        self, epoch: int, index: int, slot: int, indices: list[int], bad: list[tuple[int, str, str]]
    ) -> Mapping[str, Any]:
        for attempt in range(_RETRIES):
            try:
                sample = self.data.get(index, sample_rng(self.seed, epoch, index, stream=attempt))
            except BadSampleError as error:
                bad.append((index, error.name, error.reason))
                index = derive_seed(self.seed, epoch, index, attempt) % len(self.data)
            else:
                indices[slot] = index
                return sample
        raise DataError(
            f"{_RETRIES} unreadable samples in a row, the last {bad[-1][1]}: {bad[-1][2]}; is this the right data?"
        )


def stack_samples(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate by stacking: tensors and arrays become (B, …) tensors, numbers (B,) tensors, anything else a list.

    >>> stack_samples([{"x": torch.zeros(2), "label": 1}, {"x": torch.ones(2), "label": 0}])["label"]
    tensor([1, 0])
    """
    batch: dict[str, Any] = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        if isinstance(first, Tensor):
            batch[name] = torch.stack(values)
        elif isinstance(first, np.ndarray):
            batch[name] = torch.from_numpy(np.stack(values))
        elif isinstance(first, (bool, int, float, np.number)):
            batch[name] = torch.tensor(values)
        else:
            batch[name] = values
    return batch


def _identity(batch: Any) -> Any:
    return batch


def _quiet_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which finishes its step and saves


def default_workers(data: Dataset, processes: int = 1) -> int:
    """Loader processes when none are asked for: 0 for data in memory, else the spare cores of this process, at most 8."""
    if getattr(data, "get_batch", None) is not None:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // max(processes, 1) - 1))


def step_loader(
    data: Dataset, plan: StepPlan, *, start: int, stop: int, workers: int, pin_memory: bool = False
) -> DataLoader[dict[str, Any]]:
    """A DataLoader over the micro-batches of steps ``start`` … ``stop − 1``, in order.

    One loader serves the whole run, so workers live across epochs. Each batch carries ``index`` (B,) int64, ``epoch``, and
    ``bad``, a list of (index, name, reason), when samples had to be replaced. A batch with the key ``error`` carries an
    :class:`~mc_core.errors.McError` to raise.
    """
    return DataLoader(
        _Fetch(data, plan.seed),
        batch_sampler=_Keys(plan, start, stop, data),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_identity,
        pin_memory=pin_memory,
        worker_init_fn=_quiet_worker,
        prefetch_factor=4 if workers else None,
        persistent_workers=workers > 0,
    )


class _FetchInOrder(_Fetch):
    """For evaluation: unreadable samples are left out and reported, nothing takes their place."""

    def _batch(self, epoch: int, indices: list[int]) -> dict[str, Any]:
        get_batch = getattr(self.data, "get_batch", None)
        if get_batch is not None:
            return {**get_batch(indices, epoch, self.seed), "index": torch.tensor(indices)}
        samples, kept, bad = [], [], []
        for index in indices:
            try:
                samples.append(self.data.get(index, sample_rng(self.seed, epoch, index)))
                kept.append(index)
            except BadSampleError as error:
                bad.append((index, error.name, error.reason))
        batch = dict((getattr(self.data, "collate", None) or stack_samples)(samples)) if samples else {}
        return {**batch, "index": torch.tensor(kept, dtype=torch.int64), **({"bad": bad} if bad else {})}


def in_order(data: Dataset, *, batch_size: int, workers: int | None = None, start: int = 0) -> Iterator[dict[str, Any]]:
    """Batches of all samples in order, the last one shorter: for evaluation and embedding.

    Args:
        data: see :class:`Dataset`.
        batch_size: samples per batch.
        workers: loader processes; default as for training.
        start: first sample.

    Yields:
        Batches with ``index`` (B,), the positions that could be read, and ``bad`` where some could not. A batch in which none
        could be read has an empty ``index`` and no samples.
    """
    batches = [[(0, i) for i in range(a, min(a + batch_size, len(data)))] for a in range(start, len(data), batch_size)]
    workers = default_workers(data) if workers is None else workers
    loader = DataLoader(
        _FetchInOrder(data, 0),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers if len(batches) > 1 else 0,
        collate_fn=_identity,
        worker_init_fn=_quiet_worker,
    )
    for batch in loader:
        if "error" in batch:
            raise batch["error"]
        yield batch


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor in nested dicts, lists and tuples, without waiting for the copy."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def finish_on_device(data: Dataset, batch: dict[str, Any], seed: int) -> dict[str, Any]:
    """Apply the data set's ``device_transform``, if it has one, to a batch that is already on its device."""
    transform = getattr(data, "device_transform", None)
    if transform is None:
        return batch
    with torch.no_grad():
        return dict(transform(batch, BatchRandom(seed=seed, epoch=int(batch["epoch"]), index=batch["index"])))


class TensorData:
    """A data set from tensors in memory, handed out whole batches at a time.

    Args:
        **tensors: (N, …) each, the same N.

    Raises:
        DataError: no tensor, or different lengths.

    >>> data = TensorData(x=torch.arange(6.0).reshape(3, 2))
    >>> data.get_batch([2, 0], epoch=0, seed=0)["x"]
    tensor([[4., 5.],
            [0., 1.]])
    """

    def __init__(self, **tensors: Tensor) -> None:
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"all tensors need the same number of rows, got {lengths}")
        self.tensors = tensors
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Row ``index`` of each tensor; ``rng`` is not used."""
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def get_batch(self, indices: Sequence[int], epoch: int, seed: int) -> dict[str, Tensor]:
        """Rows ``indices`` of each tensor."""
        rows = torch.as_tensor(indices)
        return {name: tensor[rows] for name, tensor in self.tensors.items()}

    def describe(self) -> dict[str, Any]:
        """Names, shapes and count."""
        return {
            "kind": "tensors",
            "count": len(self),
            "shapes": {n: list(t.shape[1:]) for n, t in self.tensors.items()},
        }
