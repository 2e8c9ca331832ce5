"""The few collectives that momentum contrast needs, each the identity in a single process.

Legend: B rows of this process (the same number on each), W processes, G = W·B rows in rank order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from mc_core.errors import DataError
from mc_core.random import uniform


def is_distributed() -> bool:
    """Whether ``torch.distributed`` is initialised (with however many processes)."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 … W−1; 0 when there is only one."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """The number of processes W; 1 when ``torch.distributed`` is not initialised."""
    return dist.get_world_size() if is_distributed() else 1


def _gathered(x: Tensor) -> Tensor:
    if x.ndim == 0:
        raise DataError("a scalar has no rows to gather; give a tensor of at least one dimension")
    out = x.new_empty((world_size() * x.shape[0], *x.shape[1:]))
    dist.all_gather_into_tensor(out, x.contiguous())
    return out


@torch.no_grad()
def gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes in rank order, without gradient.

    Shapes: (B, …) → (G, …). In a single process ``x`` itself comes back, detached, not copied.

    Raises:
        DataError: ``x`` is a scalar.

    >>> gather_rows(torch.arange(3)).tolist()
    [0, 1, 2]
    """
    return _gathered(x) if world_size() > 1 else x.detach()


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _gathered(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyrefly: ignore[bad-override]  (one output, one gradient)
        return sum_own_rows(grad)


def gather_rows_with_grad(x: Tensor) -> Tensor:
    """The rows of all processes in rank order; the backward sums each row's gradient over the processes that used it.

    A loss that is the mean over local rows against gathered ones, averaged over processes by DistributedDataParallel,
    then has the gradient of the same loss over the whole batch in one process.

    Shapes: (B, …) → (G, …). In a single process ``x`` itself comes back.

    Raises:
        DataError: ``x`` is a scalar.
    """
    return cast(Tensor, _GatherWithGrad.apply(x)) if world_size() > 1 else x


@torch.no_grad()
def sum_own_rows(x: Tensor) -> Tensor:
    """This process's rows of the sum of ``x`` over processes: the reverse of :func:`gather_rows`.

    Shapes: (G, …) → (B, …). In a single process ``x`` itself comes back, detached.
    """
    if world_size() == 1:
        return x.detach()
    own = x.new_empty((x.shape[0] // world_size(), *x.shape[1:]))
    dist.reduce_scatter_tensor(own, x.contiguous())
    return own


@contextlib.contextmanager
def first_process_first() -> Generator[None]:
    """Process 0 goes through the block before the others do, who then find what it made: files, salts, samples.

    In a single process nothing happens. When process 0 fails, the launcher stops those that wait.

    >>> with first_process_first():
    ...     print("made once")
    made once
    """
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        dist.barrier()


@torch.no_grad()
def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of ``x`` over processes, without gradient; ``x`` itself (detached) in a single process."""
    if world_size() == 1:
        return x.detach()
    total = x.clone()
    dist.all_reduce(total)
    return total


def all_reduce_mean(x: Tensor) -> Tensor:
    """The mean of a floating-point ``x`` over processes, without gradient."""
    return all_reduce_sum(x) / world_size()


def own_rows(batch: int) -> slice:
    """Where this process's ``batch`` rows stand among the gathered ones.

    >>> own_rows(4)
    slice(0, 4, None)
    """
    return slice(rank() * batch, (rank() + 1) * batch)


def broadcast_permutation(n: int, seed: int, *, device: torch.device | str | None = None) -> Tensor:
    """The same random permutation on every process: a function of the seed, so that nothing is sent and nothing waits.

    Args:
        n: length.
        seed: the same on every process, and another one at each step (``derive_seed(seed, step)``).
        device: where to make it; the result does not depend on it.

    Returns:
        (n,) int64.

    >>> order = broadcast_permutation(5, seed=0)
    >>> order.sort().values.tolist(), bool((order == broadcast_permutation(5, seed=0)).all())
    ([0, 1, 2, 3, 4], True)
    """
    keys_n = uniform(seed, 0, torch.arange(n, device=device), 1)[:, 0]
    return keys_n.argsort(stable=True)  # stable: ties would otherwise depend on the device


def _replicated_buffers(module: nn.Module) -> Iterator[str]:
    for path, part in module.named_modules():
        if getattr(part, "replicated_buffers", False):
            for name, _ in part.named_buffers(prefix=path):
                yield name


def exclude_from_ddp(module: nn.Module) -> list[str]:
    """Tell DistributedDataParallel to leave alone the buffers that every process computes alike; before wrapping.

    DDP otherwise sends every buffer from rank 0 at each forward: megabytes per step for a queue, which also hides it
    when processes diverge. Chosen are the buffers of modules whose attribute ``replicated_buffers`` is true, such as
    :class:`~mc_core.queue.FeatureQueue`; what was excluded before stays so.

    Returns:
        The qualified names excluded by this call.
    """
    names = list(_replicated_buffers(module))
    before = getattr(module, "_ddp_params_and_buffers_to_ignore", ())
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, [*dict.fromkeys([*before, *names])])
    return names
