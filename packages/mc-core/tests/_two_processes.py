"""What each of several gloo processes does for test_distributed.py: ``python _two_processes.py RANK WORLD FOLDER``.

Every case returns tensors, numbers and text; they are written to ``FOLDER/RANK.pt`` and judged by the tests.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from mc_core.distributed import (
    all_reduce_mean,
    all_reduce_sum,
    broadcast_permutation,
    exclude_from_ddp,
    gather_rows,
    gather_rows_with_grad,
    is_distributed,
    own_rows,
    rank,
    world_size,
)
from mc_core.errors import ConfigError
from mc_core.momentum import MomentumEncoder
from mc_core.norm import shuffle_rows, shuffled
from mc_core.paired_losses import TwoSided, distilled_targets, two_sided_gradients
from mc_core.queue import FeatureQueue

BATCH, DIM = 4, 3
CASES: dict[str, Callable[[Path], Any]] = {}


def case(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    CASES[function.__name__] = function
    return function


def whole_batch(world: int, *shape: int, seed: int = 0) -> Tensor:
    """The rows of all processes, as the single process sees them."""
    return torch.randn(world * BATCH, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def own(x: Tensor) -> Tensor:
    return x[own_rows(len(x) // world_size())]


def encoder() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(DIM, 8), nn.Tanh(), nn.Linear(8, 5)).double()


def in_batch_loss(q_BD: Tensor, k_GD: Tensor, first: int) -> Tensor:
    return F.cross_entropy(q_BD @ k_GD.T, torch.arange(first, first + len(q_BD)))


def two_sided(left: Tensor, right: Tensor, teacher: Tensor, first: int) -> TwoSided:
    """Of these rows, of which the first stands at ``first`` among all; targets partly from a teacher."""

    def targets(rows: slice, of_right: bool) -> Tensor:
        at = torch.arange(first + rows.start, first + rows.stop)
        logits_bN = teacher[at] @ (teacher.T if of_right else teacher.flip(0).T)
        return distilled_targets(at[:, None] == torch.arange(len(teacher)), logits_bN, 0.4)

    return two_sided_gradients(left, right, torch.tensor(3.0, dtype=torch.float64), targets, rows=3)


def pairs(world: int) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(whole_batch(world, DIM, seed=seed) for seed in (5, 6, 7))  # type: ignore[return-value]


@case
def streamed_gradients(folder: Path) -> dict[str, Tensor]:
    left, right, teacher = pairs(world_size())
    return two_sided(own(left), own(right), teacher, rank() * BATCH)._asdict()


@case
def basics(folder: Path) -> dict[str, Any]:
    integers = torch.arange(BATCH) + 10 * rank()
    number = torch.tensor([1.0 + rank(), 2.0])
    untouched = number.clone()
    return {
        "who": (is_distributed(), rank(), world_size()),
        "gathered": gather_rows(integers),
        "strided": gather_rows(own(whole_batch(world_size(), 2, 3)).transpose(1, 2)),
        "requires_grad": gather_rows(torch.ones(2, requires_grad=True)).requires_grad,
        "sum": all_reduce_sum(number),
        "mean": all_reduce_mean(number),
        "untouched": torch.equal(number, untouched),
        "permutation": broadcast_permutation(11, seed=3),
    }


@case
def gradient_of_a_gather(folder: Path) -> dict[str, Any]:
    x = own(whole_batch(world_size(), DIM)).requires_grad_()
    weight = whole_batch(world_size(), DIM, seed=1 + rank())  # each process weighs all rows its own way
    (gather_rows_with_grad(x) * weight).sum().backward()
    return {"grad": x.grad}


@case
def gradient_under_ddp(folder: Path) -> dict[str, Any]:
    model = DistributedDataParallel(encoder())
    q_BD, k_BD = model(own(whole_batch(world_size(), 2, DIM))).unbind(1)
    in_batch_loss(q_BD, gather_rows_with_grad(k_BD), rank() * BATCH).backward()
    return {name: parameter.grad for name, parameter in model.module.named_parameters()}


@case
def queue(folder: Path) -> dict[str, Any]:
    fresh = FeatureQueue(size=11, dim=DIM, with_ids=True)
    grown = FeatureQueue(size=11, dim=DIM, with_ids=True)
    grown.load_state_dict(torch.load(folder / "from_one_process.pt"))
    for seed in range(3):
        rows = whole_batch(world_size(), DIM, seed=seed)
        ids = torch.arange(len(rows)) + 100 * seed
        for one in (fresh, grown):
            one.enqueue(own(rows), own(ids))
    some = FeatureQueue(size=11, dim=DIM, with_ids=True)
    rows = whole_batch(world_size(), DIM, seed=0)
    some.enqueue(own(rows), own(torch.arange(len(rows))), keep=own(some_kept(len(rows))))
    return {"fresh": fresh.state_dict(), "grown": grown.in_order(), "some": some.in_order()}


def some_kept(count: int) -> Tensor:
    """One row of the first process, all of the others."""
    return torch.arange(count) >= count // world_size() - 1


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(DIM)
        self.queue = FeatureQueue(size=4, dim=DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


@case
def ddp_leaves_the_queue_alone(folder: Path) -> dict[str, Any]:
    holder = Holder()
    excluded = exclude_from_ddp(holder)
    wrapped = DistributedDataParallel(holder)
    holder.queue.ring.fill_(rank())
    holder.norm.running_mean.fill_(rank())
    wrapped.eval()
    wrapped.train()
    wrapped(torch.zeros(2, DIM))
    return {"excluded": excluded, "ring": holder.queue.ring, "running_mean": holder.norm.running_mean}


@case
def shuffled_norm(folder: Path) -> dict[str, Any]:
    x = own(whole_batch(world_size(), DIM)).float()
    seen = []

    @torch.no_grad()
    def forward(rows: Tensor) -> Tensor:
        seen.append(rows)
        return rows * 2

    norm = nn.BatchNorm1d(DIM)
    with torch.no_grad():
        normalised = shuffled(norm, x, seed=5)
    result = {"out": shuffled(forward, x, seed=5), "seen": seen[0], "x": x, "normalised": normalised}
    _, restore = shuffle_rows(x, seed=5)
    try:
        restore(x.clone().requires_grad_())
    except ConfigError as error:
        result["message"] = str(error)
    return result


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.online = encoder()
        self.key = MomentumEncoder(self.online, momentum=0.9)
        self.queue = FeatureQueue(size=6, dim=5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.keys = self.key(x)
        return self.online(x)


def pair_steps(pair: Pair, x: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    drifts = []
    for _ in range(3):
        optimizer.zero_grad()
        pair(x).square().mean().backward()
        optimizer.step()
        pair.key.update()
        pair.queue.enqueue(pair.keys.float())
        drifts.append(pair.key.drift())
    return drifts


@case
def fully_sharded(folder: Path) -> dict[str, Any]:
    pair = Pair()
    for part in (*pair.online, *pair.key.module):
        if isinstance(part, nn.Linear):
            fully_shard(part)
    fully_shard(pair)
    trained = list(pair.online.parameters())
    drifts = pair_steps(pair, own(whole_batch(world_size(), DIM)), trained)
    sharded = [hasattr(parameter, "to_local") for parameter in pair.key.parameters()]
    state = get_model_state_dict(pair, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    lopsided = Pair()
    fully_shard(lopsided.online)
    try:
        lopsided.key.update()
        message = ""
    except ConfigError as error:
        message = str(error)
    return {"state": state, "drifts": torch.stack(drifts), "sharded": sharded, "message": message}


def main(number: int, world: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=number, world_size=world)
    results = {name: function(folder) for name, function in CASES.items()}
    torch.save(results, folder / f"{number}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that is going (pytorch/pytorch#179291)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
