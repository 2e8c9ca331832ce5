"""How fast encoders embed: in their own form, from plain Conv1d in eager PyTorch, and as exported through ONNX Runtime.

Legend: B samples, C channels, T time steps.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mc_benchmarks.contract import Report, Row, median, median_ratio, paired, spread
from mc_benchmarks.wearables_common import reached, wearables_environment
from mc_core.optional import require
from mc_wearables import (
    EncoderConfig,
    Segments,
    SignalEncoder,
    embed_segments,
    export_for_device,
    resolve_recipe,
    simulate_cohort,
    untrained_like,
)
from mc_wearables.encoders.efficientnet import EfficientNet1d, SqueezeExcite

EAGER, CONV1D = "eager", "eager, plain Conv1d"
ONNX, INT8 = "ONNX Runtime", "ONNX Runtime, 8 bits"
_EMBED_BAR, _ONNX_BAR = 500, 5
_REST = 0.05
"""Seconds until a runtime's threads, which wait busily for more work, leave the processor to the other's."""


class _SqueezeExcite1d(nn.Module):
    def __init__(self, reduce: nn.Module, expand: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand = reduce, expand

    def forward(self, x_BCT: Tensor) -> Tensor:
        return x_BCT * self.expand(nn.functional.silu(self.reduce(x_BCT.mean(2, keepdim=True)))).sigmoid()


class PlainConv1d(nn.Module):
    """The same EfficientNet with the same weights, from ``Conv1d`` and ``BatchNorm1d``: how one would write it down."""

    def __init__(self, encoder: SignalEncoder) -> None:
        super().__init__()
        assert isinstance(encoder.backbone, EfficientNet1d)
        self.layers = _flat(copy.deepcopy(encoder.backbone.layers)).eval()

    def forward(self, x_BCT: Tensor) -> Tensor:
        return self.layers(x_BCT).mean(2)


def _flat(module: nn.Module) -> nn.Module:
    """``module`` with every layer over (B, C, 1, T) replaced by its twin over (B, C, T)."""
    if isinstance(module, nn.Conv2d):
        twin = nn.Conv1d(
            module.in_channels,
            module.out_channels,
            module.kernel_size[1],
            module.stride[1],
            int(module.padding[1]),
            groups=module.groups,
            bias=module.bias is not None,
        )
        twin.load_state_dict({name: t.squeeze(2) if name == "weight" else t for name, t in module.state_dict().items()})
        return twin
    if isinstance(module, nn.BatchNorm2d):
        norm = nn.BatchNorm1d(module.num_features, eps=module.eps)
        norm.load_state_dict(module.state_dict())
        return norm
    for name, child in module.named_children():
        setattr(module, name, _flat(child))
    return _SqueezeExcite1d(module.reduce, module.expand) if isinstance(module, SqueezeExcite) else module


def onnx_session(path: Path, threads: int) -> Callable[[Tensor], Any]:
    """What ``mc-wearables export`` wrote, its z-score included, through ONNX Runtime."""
    runtime = require("onnxruntime", extra="mc-core[export]", purpose="run ONNX")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x_BCT: session.run(None, {name: x_BCT.numpy()})[0]


def embedding_report(repeats: int, threads: int, count: int) -> Report:
    torch.set_num_threads(threads)
    rows = []
    recipe = resolve_recipe("ahms-ppg-laptop").method.encoder
    laptop: dict[str, tuple[EncoderConfig, int]] = {
        f"laptop encoder, {config.channels} channels at {config.sampling_rate:g} Hz": (config, count)
        for config in (
            recipe.model_copy(update={"seconds": 60.0}),
            recipe.model_copy(update={"seconds": 60.0, "channels": 4, "sampling_rate": 64.0}),
        )
    }
    speeds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (config, n) in laptop.items():
            segments, encoder = _embeddable(config, n)
            run = onnx_session(export_for_device(encoder, Path(folder) / f"{len(rows)}.onnx", segments).path, threads)
            parts = segments.rows(range(n)).split(32)
            found = paired(
                {
                    EAGER: partial(embed_segments, encoder, segments),
                    "ONNX Runtime, batches of 32": lambda r=run, p=parts: [r(x) for x in p],
                },
                repeats=repeats,
                rest=_REST,
            )
            rows += _rows(name, found, n)
            speeds.append(n / median(found[EAGER]))
        paper_rows, ratios, cosine = _paper_rows(Path(folder), repeats, sorted({1, threads}))
    rows += paper_rows
    peak = _matrix_rate(repeats)
    eager = next(float(row.values["GFLOP/s"] or np.nan) for row in paper_rows if row.name.endswith(CONV1D))
    report = Report(
        benchmark="wearables_embedding",
        command="uv run mc-benchmark wearables-speed",
        question=f"60-second PPG segments embedded per second, on {threads} threads unless said otherwise",
        settings={"repeats": repeats, "segments": count, "threads": threads},
        environment=wearables_environment(),
        columns=["segments/s (median)", "ms per segment", "IQR ms", "GFLOP/s", "× eager"],
        rows=rows,
        reading=f"The laptop encoder embeds {speeds[0]:.0f} segments/s in its own form (bar {_EMBED_BAR}: "
        f"{reached(speeds[0] >= _EMBED_BAR)}), {speeds[1]:.0f} with 4 channels at 64 Hz. The paper's encoder through ONNX Runtime, "
        f"over the lines shown: in 32 bits {_span(ratios[ONNX, CONV1D])} × as fast as eager Conv1d and "
        f"{_span(ratios[ONNX, EAGER])} × as fast as ours, which runs convolutions over time as 2-D ones with channels last; in 8 "
        f"bits (median cosine of centred embeddings {cosine:.3f}, random weights) {_span(ratios[INT8, CONV1D])} × and "
        f"{_span(ratios[INT8, EAGER])} × (bar {_ONNX_BAR} × eager: {reached(min(ratios[ONNX, CONV1D]) >= _ONNX_BAR)} in 32 bits, "
        f"{reached(min(ratios[INT8, CONV1D]) >= _ONNX_BAR)} in 8). One thread multiplies matrices at {peak:.0f} GFLOP/s here: by "
        f"that alone no 32-bit runtime can be more than {peak / eager:.1f} × as fast as eager Conv1d on a segment.",
    )
    report.save()
    report.show()
    return report


def _paper_rows(
    folder: Path, repeats: int, threads: list[int]
) -> tuple[list[Row], dict[tuple[str, str], list[float]], float]:
    """The paper's encoder one by one and in batches, how much faster ONNX Runtime is than either eager form, and how closely
    8 bits agree."""
    segments, encoder = _embeddable(resolve_recipe("ahms-ppg").method.encoder, 64, people=32)
    plain = PlainConv1d(encoder)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(segments.rows([0]))
    fp32 = export_for_device(encoder, folder / "paper.onnx", segments)
    int8 = export_for_device(encoder, folder / "paper-int8.onnx", segments, format="int8")
    rows: list[Row] = []
    ratios: dict[tuple[str, str], list[float]] = {(a, b): [] for a in (ONNX, INT8) for b in (EAGER, CONV1D)}
    for number in threads:
        torch.set_num_threads(number)
        runs = {ONNX: onnx_session(fp32.path, number), INT8: onnx_session(int8.path, number)}
        for batch in (1, 16):
            x = segments.rows(range(batch))
            with torch.inference_mode():
                found = paired(
                    {EAGER: partial(encoder, x), CONV1D: partial(plain, x)}
                    | {name: partial(run, x) for name, run in runs.items()},
                    repeats=repeats,
                    rest=_REST,
                )
            name = f"paper's encoder, {number} thread{'s' if number > 1 else ''}, batch of {batch}"
            rows += _rows(name, found, batch, flop=counter.get_total_flops())
            for (runtime, eager), known in ratios.items():
                known.append(median_ratio(found[eager], found[runtime]))
    return rows, ratios, int8.cosine


def _matrix_rate(repeats: int) -> float:
    """GFLOP/s of one thread in a product of 512 × 512 matrices, the best of many."""
    before, size = torch.get_num_threads(), 512
    torch.set_num_threads(1)
    a, b = torch.randn(2, size, size).unbind()
    found = paired({"product": partial(torch.mm, a, b)}, repeats=20 * repeats)
    torch.set_num_threads(before)
    return 2e-9 * size**3 / min(found["product"])


def _embeddable(config: EncoderConfig, count: int, people: int = 8) -> tuple[Segments, SignalEncoder]:
    """Segments of that form, and an encoder whose statistics were taken from them: time does not depend on the weights."""
    cohort = simulate_cohort(
        "ppg", participants=people, segments=2, seconds=config.seconds, sampling_rate=config.sampling_rate,
        channels=config.channels,
    )  # fmt: skip
    rows = np.arange(count) % len(cohort.segments)
    segments = Segments.of(cohort.segments.signals[rows], config.sampling_rate, "ppg", rows)
    return segments, untrained_like(SignalEncoder(config), cohort.segments)


def _rows(name: str, found: Mapping[str, list[float]], count: int, flop: float | None = None) -> list[Row]:
    return [
        Row(
            name=f"{name}: {how}",
            values={
                "segments/s (median)": count / median(seconds),
                "ms per segment": 1e3 * median(seconds) / count,
                "IQR ms": 1e3 * spread(seconds) / count,
                "GFLOP/s": None if flop is None else 1e-9 * flop * count / median(seconds),
                "× eager": None if how == EAGER else median_ratio(found[EAGER], seconds),
            },
        )
        for how, seconds in found.items()
    ]


def _span(values: list[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}"
