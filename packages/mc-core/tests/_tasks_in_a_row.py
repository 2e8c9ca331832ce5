"""A toy that learns tasks in a row, and what processes do with it that are killed, or work together:
``python _tasks_in_a_row.py killed FOLDER`` and ``python _tasks_in_a_row.py RANK FOLDER``.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mc_core.continual import ContinualMethod, Task, TaskData, fit_tasks
from mc_core.data import TensorData
from mc_core.engine import Fit, StepOutput
from mc_core.files import save_state
from mc_core.momentum import MomentumEncoder
from mc_core.queue import FeatureQueue

NAMES = ("food", "auto", "beauty")
SETTINGS = {
    "steps": 5,
    "batch_size": 6,
    "optimizer": "adam",
    "lr": 0.05,
    "workers": 0,
    "device": "cpu",
    "checkpoint_every": 2,
    "log_every": 1,
    "seed": 3,
}
FIT = Fit.model_validate(SETTINGS)


class Toy(ContinualMethod):
    """Regression beside a frozen copy and a queue; importances are partly chance. ``at`` hears of each moment."""

    def __init__(self, at: Callable[[str], object] = lambda moment: None, dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 3)
        self.dropout = nn.Dropout(dropout)
        self.queue = FeatureQueue(8, 3)
        self.register_buffer("importance", torch.zeros(3, 4))
        self.at, self.old, self.task = at, None, Task(0, "")

    def start_task(self, task: Task) -> None:
        assert not torch.is_grad_enabled()
        self.at(f"start {task.number}")
        self.task = task
        self.old = None if task.first else MomentumEncoder(self.net, 1.0, evaluation_mode=True)

    def training_step(self, batch: dict[str, Any], progress: Any, prepared: Any = None) -> StepOutput:
        out = self.net(self.dropout(batch["x"]))
        loss = nn.functional.mse_loss(out, batch["y"]) + 0.1 * (self.importance * self.net.weight).square().sum()
        if len(self.queue):
            loss = loss + 0.01 * (out @ self.queue.features.T).square().mean()
        if self.old is not None:
            loss = loss + 0.1 * (self.old(batch["x"]) - out).square().mean()
        self.keys = out.detach()
        return StepOutput(loss)

    def after_step(self, progress: Any) -> None:
        self.queue.enqueue(self.keys)
        self.at(f"step {self.task.number}.{progress.step + 1}")

    def end_task(self, task: Task, data: Any, fit: Fit) -> None:
        self.at(f"end {task.number}")
        assert torch.is_grad_enabled()
        assert self.training
        assert task == self.task
        (self.net(self.dropout(data.tensors["x"])) ** 2).sum().backward()
        self.importance.add_(self.net.weight.grad.square() * torch.rand(3, 4) / len(data))

    def encode(self, batch: dict[str, Any]) -> torch.Tensor:
        return self.net(batch["x"])

    def save(self, folder: Path, card: Any) -> None:
        save_state({"weight": self.net.weight, "card": dict(card)}, folder / "weights.safetensors")


class Keeps:
    """A memory of two rows of each task, drawn at random by torch's own generator, and a record of what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def choose(self, method: Any, task: Task, data: Any, held: np.ndarray, sizes: Any, fit: Fit) -> np.ndarray:
        assert not method.training
        assert not torch.is_grad_enabled()
        self.told.append((task.number, len(data), held.copy(), list(sizes), fit.seed))
        rows = torch.randperm(len(data))[:2].numpy()
        return np.concatenate([held, np.stack([np.full(2, task.index), rows], axis=1)])

    def describe(self) -> dict[str, Any]:
        return {"kind": "two of each"}


def samples(number: int, count: int = 20) -> TensorData:
    draw = torch.Generator().manual_seed(number)
    return TensorData(x=torch.randn(count, 4, generator=draw), y=torch.randn(count, 3, generator=draw))


def tasks(names: Any = NAMES, count: int = 20) -> list[TaskData]:
    data = [samples(number, count + number) for number, _ in enumerate(names)]

    def joined(own: int) -> Callable[[np.ndarray], TensorData]:
        def replaying(held: np.ndarray) -> TensorData:
            assert (held[:, 0] < own).all()
            kept = {n: [data[task].tensors[n][row : row + 1] for task, row in held.tolist()] for n in ("x", "y")}
            return TensorData(**{n: torch.cat([data[own].tensors[n], *rows]) for n, rows in kept.items()})

        return replaying

    return [TaskData(name, data[number], joined(number)) for number, name in enumerate(names)]


def measured(task: Task, method: Any) -> dict[str, Any]:
    assert not method.training
    assert not torch.is_grad_enabled()
    method.at(f"after {task.number}")
    return {"task": task.number, "loss": float(method.net.weight.square().sum()), "list": [1, float("nan")]}


def run(folder: Path, at: Callable[[str], object] = lambda moment: None, **more: Any) -> Any:
    return fit_tasks(
        Toy(at), tasks(), **{"fit": FIT, "run_dir": folder, "after_task": measured, "memory": Keeps(), **more}
    )


MOMENTS = ("step 1.3", "end 1", "after 1", "step 2.4", "step 2.5", "start 3", "after 3")


def killed(folder: Path) -> None:
    """Kill -9 at each of the moments, each in a process of its own, then go on to the end."""

    with contextlib.suppress(ImportError):
        import torch.utils.tensorboard  # once, not in each process
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])

    def go(place: Path, moment: str | None) -> int:
        child = os.fork()  # before any backward pass in this process
        if child == 0:
            torch.set_num_threads(1)

            def at(now: str) -> None:
                if now == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

            result = run(place, at)
            torch.save({"state": result.method.state_dict(), "held": result.held.tolist()}, place.with_suffix(".pt"))
            os._exit(0)
        return os.waitpid(child, 0)[1]

    codes = [go(folder / "broken", moment) for moment in MOMENTS]
    assert codes == [signal.SIGKILL] * len(MOMENTS), codes
    assert [go(folder / "broken", None), go(folder / "smooth", None)] == [0, 0]


def together(number: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = "0"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    told: list[str] = []
    result = fit_tasks(
        Toy(told.append, dropout=0.0),
        tasks(),
        fit=FIT,
        run_dir=folder / "run",
        after_task=measured,
        memory=Keeps(),
    )
    found = {"state": result.method.state_dict(), "held": result.held, "results": result.results, "told": told}
    torch.save(found, folder / f"{number}.pt")
    gc.collect()
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that is going (pytorch/pytorch#179291)


if __name__ == "__main__":
    if sys.argv[1] == "killed":
        killed(Path(sys.argv[2]))
    else:
        together(int(sys.argv[1]), Path(sys.argv[2]))
