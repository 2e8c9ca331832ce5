"""What a momentum-contrast step costs beyond its encoders, and beside lightly's, in one run.

The floor is what no implementation can avoid: the query encoder forward and backward, the key encoder forward. Loss, optimizer,
moving average and queue come on top. The optimizer alone is shown too, since every trainer pays it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mc_benchmarks.contract import Report, Row, environment, median, median_ratio, paired, spread
from mc_core.engine import Progress
from mc_core.optional import require
from mc_vision.encoders_config import EncoderConfig
from mc_vision.methods.moco import MoCo, MoCoConfig


def _network(size: int) -> MoCo:
    torch.manual_seed(0)
    encoder = EncoderConfig(backbone="resnet18", image_size=size)
    return MoCo(MoCoConfig(encoder=encoder, projector="mlp", dim=128, queue_size=65536, temperature=0.2)).train()


def _fill(method: MoCo, device: torch.device) -> None:
    method.queue.enqueue(normalize(torch.randn(method.config.queue_size, method.config.dim, device=device), dim=1))


def floor_step(method: MoCo, query_view: Tensor, key_view: Tensor) -> Callable[[], object]:
    """Query forward and backward, key forward."""
    online, key_net = method.online, method.momentum_encoder.module

    def step() -> None:
        query = online(query_view)
        with torch.no_grad():
            key_net(key_view)
        query.backward(torch.ones_like(query))
        for parameter in online.parameters():
            parameter.grad = None

    return step


def our_step(method: MoCo, query_view: Tensor, key_view: Tensor) -> Callable[[], object]:
    """A whole step of ours: loss, backward, SGD, moving average, enqueue."""
    optimizer = torch.optim.SGD(method.parameter_groups(1e-4), lr=1e-3, momentum=0.9, foreach=True)
    progress = Progress(0, 10_000, 1000, len(query_view))
    batch: dict[str, Any] = {"view_1": query_view, "view_2": key_view, "micro": 0}

    def step() -> None:
        method.training_step(batch, progress).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            method.after_step(progress)
        progress.step += 1

    return step


def lightly_step(method: MoCo, query_view: Tensor, key_view: Tensor) -> Callable[[], object]:
    """The step of lightly's MoCo v2 example, on the same networks, with the same optimizer."""
    purpose, extra = "time lightly's step", "lightly"
    loss_module = require("lightly.loss", extra=extra, purpose=purpose)
    utils = require("lightly.models.utils", extra=extra, purpose=purpose)
    online, key_net = copy.deepcopy(method.online), copy.deepcopy(method.online)
    utils.deactivate_requires_grad(key_net)
    criterion = loss_module.NTXentLoss(temperature=0.2, memory_bank_size=(65536, 128)).to(query_view.device)
    optimizer = torch.optim.SGD(online.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, foreach=True)

    def step() -> None:
        utils.update_momentum(online, key_net, m=0.999)
        query = online(query_view)
        with torch.no_grad():
            shuffled, order = utils.batch_shuffle(key_view)
            key = utils.batch_unshuffle(key_net(shuffled), order)
        criterion(query, key).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def optimizer_step(method: MoCo) -> Callable[[], object]:
    """SGD with momentum alone, on gradients that are there."""
    online = copy.deepcopy(method.online)
    for parameter in online.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD(online.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, foreach=True)
    return optimizer.step


def run_step_time(
    *, repeats: int = 30, batch_size: int = 64, size: int = 64, device: str = "cpu", lightly: bool = True
) -> Report:
    """Measure, save, show."""
    target = torch.device(device)
    floor_method, our_method = _network(size).to(target), _network(size).to(target)
    _fill(our_method, target)
    views = [torch.randn(batch_size, 3, size, size, device=target) for _ in range(2)]
    candidates: dict[str, Callable[[], object]] = {
        "floor": floor_step(floor_method, *views),
        "ours": our_step(our_method, *views),
        "SGD alone": optimizer_step(floor_method),
    }
    if lightly:
        candidates["lightly"] = lightly_step(floor_method, *views)
    nn.Module.train(floor_method)
    seconds = paired(candidates, repeats=repeats, warmup=5, device=target)
    floor = seconds["floor"]
    trained = [a + b for a, b in zip(floor, seconds["SGD alone"], strict=True)]
    names = {
        "floor": "floor: query forward + backward, key forward",
        "SGD alone": "SGD with momentum alone",
        "ours": "mc-vision MoCo, whole step",
        "lightly": "lightly MoCo, whole step",
    }
    rows = [
        Row(
            name=names[name],
            values={
                "ms (median)": 1e3 * median(found),
                "ms (IQR)": 1e3 * spread(found),
                "× floor": median_ratio(found, floor),
                "× (floor + SGD)": median_ratio(found, trained),
            },
        )
        for name, found in seconds.items()
    ]
    ratio, with_sgd = median_ratio(seconds["ours"], floor), median_ratio(seconds["ours"], trained)
    reading = f"A whole step is {ratio:.3f} × its encoders ({with_sgd:.3f} × encoders and optimizer)"
    if lightly:
        reading += f"; lightly's is {median_ratio(seconds['lightly'], floor):.3f} ×"
    report = Report(
        benchmark=f"step_time_{target.type}",
        command="uv run --group peers mc-benchmark step-time" + ("" if device == "cpu" else f" --device {device}"),
        question=f"Time of a step: ResNet-18, {size} px, B = {batch_size}, K = 65,536, D = 128",
        settings={"batch_size": batch_size, "size": size, "repeats": repeats, "queue": 65536, "dim": 128},
        environment=environment(target),
        columns=["ms (median)", "ms (IQR)", "× floor", "× (floor + SGD)"],
        rows=rows,
        reading=reading + ".",
    )
    report.save()
    report.show()
    return report
