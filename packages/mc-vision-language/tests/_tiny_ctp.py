"""CTP at a size for tests, in float64, and what two gloo processes do with it: ``python _tiny_ctp.py RANK WORLD FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mc_core.continual import Task
from mc_core.distributed import exclude_from_ddp, own_rows
from mc_core.engine import Progress
from mc_testkit.toys import captioned_images
from mc_vision_language.methods.ctp import CTP, CTPConfig

B, K = 8, 20
FIRST, SECOND, THIRD = Task(0, "one"), Task(1, "two"), Task(2, "three")
SMALL = {
    "image": {"image_size": 16, "patch_size": 8, "width": 12, "depth": 1, "heads": 2},
    "text": {
        "vocabulary": 64,
        "hidden_size": 16,
        "text_layers": 1,
        "fusion_layers": 2,
        "heads": 2,
        "dropout": 0.0,
        "cls_id": 1,
        "sep_id": 2,
        "mask_id": 63,
    },
    "dim": 8,
    "temperature": 0.2,
    "queue_size": K,
}
ALONE = {  # one row of the ablation: what is on beside L_ita, with masked words off
    "seqf": {"contrast": 0.0, "cross": 0.0, "same": 0.0},
    "cmc": {"cross": 0.0, "same": 0.0},
    "cmc-one-way": {"cross": 0.0, "same": 0.0, "interpolation": 0.0},
    "tp-cross": {"contrast": 0.0, "same": 0.0},
    "tp": {"contrast": 0.0},
    "tp-no-mask": {"contrast": 0.0, "mask_own": False},
    "ctp": {},
}
TOPOLOGY = {"mlm": 0.0, "contrast": 0.0}  # what is the same on any number of processes


def build(task: Task = FIRST, *, cls: type[CTP] = CTP, text=None, **changes) -> CTP:
    """With weights large enough that what is wrong shows; in a later task all three models differ."""
    torch.manual_seed(0)
    fields = {**SMALL, **changes, "text": {**SMALL["text"], **(text or {})}}
    method = cls(CTPConfig.model_validate(fields)).double()
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        method.start_task(FIRST)
        if not task.first:
            method.start_task(task)
            shake(method.backbone.parameters())
        shake(method.compatible.module.parameters())
    return method


def shake(parameters, by: float = 0.1) -> None:
    for parameter in parameters:
        parameter.add_(by * torch.randn_like(parameter))


def batch_of(rows, epoch: int = 0) -> dict:
    rows = torch.as_tensor(rows)
    found = {name: tensor[rows] for name, tensor in captioned_images().tensors.items()}
    return {**found, "view": found["view"].double(), "index": rows, "epoch": epoch, "micro": 0}


def at(step: int = 5) -> Progress:
    return Progress(step=step, total_steps=100, steps_per_epoch=10, batch_size=B, run_seed=7)


def filled(method: CTP) -> CTP:
    """With some keys in the queues, of pairs 4 … 9 and 16 … 21; nothing else moves."""
    kept = {name: value.clone() for name, value in method.compatible.state_dict().items()}
    for first in (4, 16):
        method.training_step(batch_of(range(first, first + 6)), at(0))
        with torch.no_grad():
            method.after_step(at(0))
    method.compatible.load_state_dict(kept)
    return method


def gradients(method: CTP) -> dict[str, Tensor]:
    return {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


CASES = {
    "topology": (SECOND, TOPOLOGY),
    "no-ids": (SECOND, {**TOPOLOGY, "ids": False}),
    "no-mask": (SECOND, {**TOPOLOGY, "mask_own": False}),
    "first-task": (FIRST, TOPOLOGY),
}


def main(rank: int, world: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    found = {}
    for name, (task, changes) in CASES.items():
        method = build(task, **changes)
        exclude_from_ddp(method)
        wrapped = DistributedDataParallel(method)
        output = wrapped("training_step", batch_of(torch.arange(B)[own_rows(B // world)]), at(), None)
        output.loss.backward()
        found[name] = {"metrics": output.metrics, "gradients": gradients(method)}
    method = build(SECOND)
    wrapped = DistributedDataParallel(method)  # all parts: whatever asks for a gradient gets one
    for step in range(2):
        output = wrapped("training_step", batch_of(torch.arange(B)[own_rows(B // world)], epoch=step), at(step), None)
        output.loss.backward()
        with torch.no_grad():
            method.after_step(at(step))
    found["queues"] = {name: queue.in_order() for name, queue in method.queues.items()}
    found["compatible"] = method.compatible.state_dict()
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that is going (pytorch/pytorch#179291)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
