"""What a momentum-contrast step costs beyond its encoders, and beside lightly's, in one run.

The floor is what no implementation can avoid: the query encoder forward and backward, the key encoder forward. Loss, optimizer,
moving average and queue come on top. The optimizer alone is shown too, since every trainer pays it. There are two floors: timm's
encoder as a loop written by hand has it, and our encoder, which lays images out with the channels last and is faster for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mc_benchmarks.contract import Report, Row, environment, median, median_ratio, paired, spread
from mc_core.cli import keep_freed_memory
from mc_core.engine import Fit, Progress
from mc_core.heads import ProjectionHead
from mc_core.optim import build_optimizer
from mc_core.optional import require
from mc_vision.encoders_config import EncoderConfig
from mc_vision.methods.moco import MoCo, MoCoConfig


def _network(size: int) -> MoCo:
    torch.manual_seed(0)
    encoder = EncoderConfig(backbone="resnet18", image_size=size)
    return MoCo(MoCoConfig(encoder=encoder, projector="mlp", dim=128, queue_size=65536, temperature=0.2)).train()


def _plain(size: int) -> nn.Module:
    """The same network as a loop written by hand has it: timm's ResNet-18 and the head, images as they come."""
    torch.manual_seed(0)
    return nn.Sequential(timm.create_model("resnet18", num_classes=0), ProjectionHead(512, 128, kind="mlp")).train()


def _fill(method: MoCo, device: torch.device) -> None:
    method.queue.enqueue(normalize(torch.randn(method.config.queue_size, method.config.dim, device=device), dim=1))


def floor_step(online: nn.Module, query_view: Tensor, key_view: Tensor) -> Callable[[], object]:
    """Query forward and backward, key forward."""
    key_net = copy.deepcopy(online).requires_grad_(False)

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
    optimizer = build_optimizer(method.parameter_groups(1e-4), Fit(optimizer="sgd", lr=1e-3, weight_decay=1e-4))
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


def lightly_step(network: nn.Module, query_view: Tensor, key_view: Tensor) -> Callable[[], object]:
    """The step of lightly's MoCo v2 example, on the same networks, with the same optimizer."""
    purpose, extra = "time lightly's step", "lightly"
    loss_module = require("lightly.loss", extra=extra, purpose=purpose)
    utils = require("lightly.models.utils", extra=extra, purpose=purpose)
    online, key_net = copy.deepcopy(network), copy.deepcopy(network)
    utils.deactivate_requires_grad(key_net)
    criterion = loss_module.NTXentLoss(temperature=0.2, memory_bank_size=(65536, 128)).to(query_view.device)
    optimizer = torch.optim.SGD(online.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)

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


def optimizer_step(network: nn.Module) -> Callable[[], object]:
    """SGD with momentum alone, on gradients that are there."""
    online = copy.deepcopy(network)
    for parameter in online.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD(online.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)
    return optimizer.step


def run_step_time(
    *, repeats: int = 30, batch_size: int = 64, size: int = 64, device: str = "cpu", lightly: bool = True
) -> Report:
    """Measure, save, show."""
    keep_freed_memory()  # as our commands do; for all candidates alike
    target = torch.device(device)
    method = _network(size).to(target)
    plain, laid_out = _plain(size).to(target), copy.deepcopy(method.online)
    _fill(method, target)
    views = [torch.randn(batch_size, 3, size, size, device=target) for _ in range(2)]
    candidates: dict[str, Callable[[], object]] = {
        "floor": floor_step(plain, *views),
        "our floor": floor_step(laid_out, *views),
        "ours": our_step(method, *views),
        "SGD alone": optimizer_step(plain),
    }
    if lightly:
        candidates["lightly"] = lightly_step(plain, *views)
        candidates["lightly on our encoder"] = lightly_step(laid_out, *views)
    seconds = paired(candidates, repeats=repeats, warmup=5, device=target)
    floor, our_floor = seconds["floor"], seconds["our floor"]
    names = {
        "floor": "floor: timm encoder, query forward + backward, key forward",
        "our floor": "the same on our encoder (channels last)",
        "SGD alone": "SGD with momentum alone",
        "ours": "mc-vision MoCo, whole step",
        "lightly": "lightly MoCo, whole step",
        "lightly on our encoder": "lightly MoCo on our encoder, whole step",
    }
    columns = ["ms (median)", "ms (IQR)", "× floor", "× floor, channels last"]
    rows = [
        Row(
            name=names[name],
            values=dict(
                zip(
                    columns,
                    (
                        1e3 * median(found),
                        1e3 * spread(found),
                        median_ratio(found, floor),
                        median_ratio(found, our_floor),
                    ),
                    strict=True,
                )
            ),
        )
        for name, found in seconds.items()
    ]
    ours = seconds["ours"]
    reading = (
        f"A whole step of ours is {median_ratio(ours, floor):.2f} × the encoders alone in a loop written by hand, and "
        f"{median_ratio(ours, our_floor):.2f} × our own encoders alone, which keep channels last"
    )
    if lightly:
        reading += (
            f"; lightly's step takes {median_ratio(seconds['lightly'], ours):.2f} × the time of ours, "
            f"on our encoder {median_ratio(seconds['lightly on our encoder'], ours):.2f} ×"
        )
    report = Report(
        benchmark=f"step_time_{target.type}",
        command="uv run --group peers mc-benchmark step-time" + ("" if device == "cpu" else f" --device {device}"),
        question=f"Time of a step: ResNet-18, {size} px, B = {batch_size}, K = 65,536, D = 128",
        settings={"batch_size": batch_size, "size": size, "repeats": repeats, "queue": 65536, "dim": 128},
        environment=environment(target),
        columns=columns,
        rows=rows,
        reading=reading + ".",
    )
    report.save()
    report.show()
    return report
