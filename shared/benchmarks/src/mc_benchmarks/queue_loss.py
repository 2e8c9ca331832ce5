"""The queue loss without its logits: time and memory of the streamed form beside the dense one, forward and backward."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from mc_benchmarks.contract import Report, Row, environment, median, paired, spread
from mc_core.losses import info_nce

SIZES = ((64, 4096), (256, 4096), (64, 65536), (256, 65536), (1024, 65536), (64, 1 << 20), (1024, 1 << 20))
_DENSE_LIMIT = 3 << 30  # bytes of one logits matrix; beyond, the dense form is not run


def dense_info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """The literal form: all logits, then cross-entropy."""
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1) / temperature
    return cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))


def _inputs(batch: int, queue: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [normalize(torch.randn(rows, 128, generator=generator), dim=1).to(device) for rows in (batch, batch, queue)]
    return made[0].requires_grad_(), made[1], made[2]


def _step(loss: Callable[..., Tensor], query: Tensor, key: Tensor, queue: Tensor) -> Callable[[], Tensor]:
    def step() -> Tensor:
        query.grad = None
        value = loss(query, key, queue, temperature=0.2)
        value.backward()
        return value.detach()

    return step


def _peak_kib() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0])


def _memory_worker(form: str, batch: int, queue: int, answer: Any) -> None:
    inputs = _inputs(batch, queue, "cpu")
    small = tuple(part[:256] for part in _inputs(256, 256, "cpu"))
    step = _step(info_nce if form == "streamed" else dense_info_nce, *inputs)
    _step(
        info_nce if form == "streamed" else dense_info_nce, small[0].detach().requires_grad_(), *small[1:]
    )()  # libraries load
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _peak_kib()
    step()
    answer.put((_peak_kib() - before) / 1024)


def peak_extra_mib(form: str, batch: int, queue: int) -> float | None:
    """Memory beyond queries, keys and queue at the worst moment of one forward and backward, in a process of its own (Linux)."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    worker = context.Process(target=_memory_worker, args=(form, batch, queue, answer))
    worker.start()
    worker.join()
    return float(answer.get()) if worker.exitcode == 0 else None


def run_queue_loss(*, repeats: int = 15, device: str = "cpu", memory: bool = True) -> Report:
    """Measure, save, show."""
    target = torch.device(device)
    rows = []
    for batch, queue in SIZES:
        inputs = _inputs(batch, queue, device)
        feasible = batch * queue * 4 <= _DENSE_LIMIT or target.type == "cuda"
        candidates = {"streamed": _step(info_nce, *inputs)}
        if feasible:
            candidates["dense"] = _step(dense_info_nce, *inputs)
        rounds = max(3, repeats // 3) if batch * queue > 1 << 27 else repeats
        seconds = paired(candidates, repeats=rounds, warmup=2, device=target)
        difference = gradient = None
        if feasible:
            ours, ours_gradient = candidates["streamed"](), inputs[0].grad
            dense, dense_gradient = candidates["dense"](), inputs[0].grad
            difference = float((ours - dense).abs() / dense.abs())
            assert ours_gradient is not None
            assert dense_gradient is not None
            gradient = float((ours_gradient - dense_gradient).norm() / dense_gradient.norm())
        extra = {form: peak_extra_mib(form, batch, queue) for form in candidates} if memory and device == "cpu" else {}
        rows.append(
            Row(
                name=f"B = {batch:,}, K = {queue:,}",
                values={
                    "streamed ms": 1e3 * median(seconds["streamed"]),
                    "IQR ms": 1e3 * spread(seconds["streamed"]),
                    "dense ms": 1e3 * median(seconds["dense"]) if feasible else "not run",
                    "streamed extra MiB": extra.get("streamed"),
                    "dense extra MiB": extra.get("dense") if feasible else f"> {batch * queue * 4 >> 20:,}",
                    "value, relative": difference,
                    "gradient, relative": gradient,
                },
            )
        )
    report = Report(
        benchmark=f"queue_loss_{target.type}",
        command="uv run mc-benchmark queue-loss" + ("" if device == "cpu" else f" --device {device}"),
        question="InfoNCE against a queue (D = 128), forward and backward: streamed beside dense",
        settings={"repeats": repeats, "dim": 128},
        environment=environment(target),
        columns=[
            "streamed ms",
            "IQR ms",
            "dense ms",
            "streamed extra MiB",
            "dense extra MiB",
            "value, relative",
            "gradient, relative",
        ],
        rows=rows,
        reading="The streamed form never builds the logits: its memory does not grow with the queue.",
    )
    report.save()
    report.show()
    return report
