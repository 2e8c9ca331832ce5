"""One pass over a task's data after it was trained on, for what is measured then."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mc_core.data import Dataset, StepPlan, default_workers, finish_on_device, step_loader, to_device
from mc_core.distributed import rank, world_size
from mc_core.engine.config import Fit
from mc_core.engine.method import Batch, Progress
from mc_core.random import derive_seed

_STREAM = 0xC0A1


def one_pass(data: Dataset, fit: Fit, device: torch.device) -> Iterator[tuple[Batch, Progress]]:
    """The micro-batches of one epoch as training would see them, in an order and with views of their own.

    Samples that cannot be read are replaced, as in training. Each process gets its share.

    Args:
        data: of the task.
        fit: how it was trained: batch size, accumulation, workers, seed.
        device: to put batches on.

    Yields:
        A batch and the :class:`~mc_core.engine.method.Progress` that belongs to it.

    Raises:
        ConfigError: fewer samples than a batch. DataError: nothing but unreadable samples.

    >>> from mc_core.data import TensorData
    >>> found = list(one_pass(TensorData(x=torch.arange(5.0)), Fit(batch_size=2), torch.device("cpu")))
    >>> [len(batch["x"]) for batch, _ in found], found[1][1].step
    ([2, 2], 1)
    """
    seed = derive_seed(fit.seed, _STREAM)
    plan = StepPlan(len(data), fit.batch_size, seed, rank(), world_size(), fit.accumulation)
    steps = plan.steps_per_epoch
    workers = default_workers(data, world_size()) if fit.workers is None else fit.workers
    loader = step_loader(data, plan, start=0, stop=steps, workers=workers)
    progress = Progress(0, steps, steps, fit.batch_size, derive_seed(seed, rank()), run_seed=seed)
    for number, batch in enumerate(loader):
        if "error" in batch:
            raise batch["error"]
        batch.pop("bad", None)
        batch["micro"] = number % fit.accumulation
        progress.step = number // fit.accumulation
        yield finish_on_device(data, to_device(batch, device), seed), progress
