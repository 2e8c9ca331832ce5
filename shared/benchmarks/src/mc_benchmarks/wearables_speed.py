"""Is the loader ever what a step waits for, and how fast do encoders embed: beside per-sample cleaning, eager Conv1d and ONNX.

Legend: B samples, C channels, T time steps.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from mc_benchmarks.contract import Environment, Report, Row, environment, median, median_ratio, paired, spread
from mc_core.cli import keep_freed_memory
from mc_core.data import StepPlan, finish_on_device, step_loader
from mc_core.engine import Progress
from mc_core.export import export_onnx
from mc_core.optim import build_optimizer
from mc_core.optional import require
from mc_wearables import (
    METHODS,
    EncoderConfig,
    PairData,
    Segments,
    SignalEncoder,
    embed_segments,
    resolve_recipe,
    simulate_cohort,
    untrained_like,
)
from mc_wearables.augment_config import AugmentConfig
from mc_wearables.data.segments import SignalKind, standardise
from mc_wearables.encoders.efficientnet import EfficientNet1d, SqueezeExcite

BATCH = 64
SHAPES: dict[SignalKind, tuple[int, float, float]] = {"ppg": (4, 64.0, 60.0), "ecg": (1, 128.0, 30.0)}
"""Channels, Hz and seconds of the paper's segments."""
OURS = "mc-wearables: two segments a person, augmented"
CLEAN, PEAKS, QUALITY = (
    "neurokit2 per sample: clean, z-score",
    "neurokit2 per sample: clean, peaks, z-score",
    "neurokit2 per sample: clean, quality, z-score",
)
_PEER_PEOPLE = {CLEAN: 8, PEAKS: 8, QUALITY: 2}  # a sample costs the same in any batch, so a few will do
_OUR_BATCHES = 4  # so that a turn takes as long as a peer's
EAGER, CONV1D = "eager", "eager, plain Conv1d"
_LOADER_BAR, _EMBED_BAR, _ONNX_BAR = 20, 500, 5


def wearables_environment() -> Environment:
    """The machine and versions, with those of the packages that signals go through."""
    found = environment()
    more = {name: version(name) for name in ("mc-wearables", "neurokit2", "scipy", "onnxruntime")}
    return found.model_copy(update={"packages": {**found.packages, **more}})


def run_wearables_speed(
    *, repeats: int = 15, threads: int = 2, people: int = 256, batch: int = BATCH, segments: int = 256
) -> list[Report]:
    """Measure, save, show.

    Args:
        repeats: rounds.
        threads: of the CPU, for steps and embeddings; both loaders run on one.
        people: whose segments the loaders choose from.
        batch: pairs of a batch.
        segments: to embed in each round.
    """
    keep_freed_memory()
    before = torch.get_num_threads()
    try:
        return [
            _loader_report(repeats, threads, people, batch),
            _embedding_report(repeats, threads, segments),
        ]
    finally:
        torch.set_num_threads(before)


class PerSample(Dataset[tuple[Tensor, Tensor]]):
    """What is written first: two segments of a person, each cleaned with neurokit2 when it is asked for. No augmentation.

    Args:
        segments: as a store holds them.
        people: how many of the participants to take.
        what: :data:`CLEAN`, :data:`PEAKS` (one call, on the first channel) or :data:`QUALITY` (neurokit2's default, likewise).
    """

    def __init__(self, segments: Segments, people: int, what: str) -> None:
        import neurokit2

        self.nk, self.segments, self.what = neurokit2, segments, what
        self.rows = [np.flatnonzero(segments.participant == code) for code in range(people)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        first, second = np.random.default_rng().choice(self.rows[index], 2, replace=False)
        return self._sample(first), self._sample(second)

    def _sample(self, row: int) -> Tensor:
        nk, kind, rate = self.nk, self.segments.kind, int(self.segments.sampling_rate)
        clean = nk.ppg_clean if kind == "ppg" else nk.ecg_clean
        raw = self.segments.signals[row].astype(np.float32)
        signal = np.stack([np.asarray(clean(channel, sampling_rate=rate), dtype=np.float32) for channel in raw])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the finders, about segments in which they find little
            if self.what == PEAKS:
                (nk.ppg_findpeaks if kind == "ppg" else nk.ecg_findpeaks)(signal[0], sampling_rate=rate)
            elif self.what == QUALITY:
                (nk.ppg_quality if kind == "ppg" else nk.ecg_quality)(signal[0], sampling_rate=rate)
        return torch.from_numpy(standardise(signal))


def _segments(kind: SignalKind, people: int, folder: Path) -> Segments:
    """Memory-mapped float16, as a store holds them."""
    channels, rate, seconds = SHAPES[kind]
    signals = simulate_cohort(
        kind, participants=max(2, people // 16), segments=2, seconds=seconds, sampling_rate=rate, channels=channels
    ).segments.signals
    # a few true segments, repeated: what a loader costs does not depend on whose they are
    rows = np.arange(2 * people) % len(signals)
    segments = Segments.of(signals[rows], rate, kind, np.repeat(np.arange(people), 2))
    file, shape = folder / f"{kind}.f16", segments.signals.shape
    segments.signals.astype("<f2").tofile(file)
    return replace(segments, signals=np.memmap(file, "<f2", "r", shape=shape))


def our_batch(data: PairData, batch: int, seed: int = 0) -> Callable[[], dict[str, Any]]:
    """Each call makes the next batch, as training does: chosen, copied out, augmented."""
    chosen = iter(step_loader(data, StepPlan(len(data), batch, seed), start=0, stop=1 << 40, workers=0))
    return lambda: finish_on_device(data, next(chosen), seed)


def _loader_report(repeats: int, threads: int, people: int, batch: int) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        rows, slowest = _loader_rows(repeats, people, batch, Path(folder))
    torch.set_num_threads(threads)
    shares = [_share_of_step(kind, repeats) for kind in SHAPES]
    rows += shares
    share = max(float(row.values["share of a step"] or 0) for row in shares)
    report = Report(
        benchmark="wearables_loader",
        command="uv run mc-benchmark wearables-speed",
        question=f"Pairs of segments in batches of {batch} on one thread; then as part of a training step on {threads} threads",
        settings={"repeats": repeats, "people": people, "batch": batch, "threads": threads, "peer pairs": _PEER_PEOPLE},
        environment=wearables_environment(),
        columns=["segments/s (median)", "IQR", "ours is faster by", "ms per step", "share of a step"],
        rows=rows,
        reading="Faster at least by "
        + ", ".join(f"{ratio:.0f} × ({name.partition(': ')[2]})" for name, ratio in slowest.items())
        + f"; the bar of {_LOADER_BAR} × is {_met(min(slowest.values()) >= _LOADER_BAR)}"
        f"{'' if min(slowest.values()) >= _LOADER_BAR else ' throughout'}. All read memory-mapped float16. The per-sample "
        "loaders do not augment, ours does. Of a training step of the laptop recipes, choosing and augmenting takes at most "
        f"{100 * share:.1f} %.",
    )
    report.save()
    report.show()
    return report


def _loader_rows(repeats: int, people: int, batch: int, folder: Path) -> tuple[list[Row], dict[str, float]]:
    """On one thread: each loader's row, and by how much ours is faster than each other one, at least."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    slowest: dict[str, float] = {}
    for kind, (channels, rate, seconds) in SHAPES.items():
        segments = _segments(kind, people, folder)
        data = PairData(segments, augment=AugmentConfig.of_signal(kind))
        ours = our_batch(data, batch)
        counts = {OURS: _OUR_BATCHES * batch, **_PEER_PEOPLE}
        candidates: dict[str, Callable[[], object]] = {OURS: lambda ours=ours: [ours() for _ in range(_OUR_BATCHES)]}
        for name, pairs in _PEER_PEOPLE.items():
            candidates[name] = partial(list, DataLoader(PerSample(segments, pairs, name), batch_size=pairs))
        found = paired(candidates, repeats=repeats, warmup=2)
        each = {name: [s / (2 * counts[name]) for s in found[name]] for name in candidates}
        for name in candidates:
            speed = [1 / s for s in each[name]]
            rows.append(
                Row(
                    name=f"{name}; {kind.upper()}, {channels} × {seconds:g} s at {rate:g} Hz",
                    values={
                        "segments/s (median)": median(speed),
                        "IQR": spread(speed),
                        "ours is faster by": None if name == OURS else median_ratio(each[name], each[OURS]),
                    },
                )
            )
            if name != OURS:
                slowest[name] = min(slowest.get(name, np.inf), median_ratio(each[name], each[OURS]))
    return rows, slowest


def _share_of_step(kind: SignalKind, repeats: int) -> Row:
    """The laptop recipe's batch, beside its whole step without the batch."""
    recipe = resolve_recipe(f"ahms-{kind}-laptop", {"fit": {"device": "cpu"}})
    shape = recipe.method.encoder
    segments = simulate_cohort(
        kind, participants=2 * recipe.fit.batch_size, segments=2, seconds=shape.seconds, sampling_rate=shape.sampling_rate,
        channels=shape.channels,
    ).segments  # fmt: skip
    batches = our_batch(PairData(segments, augment=recipe.augment), recipe.fit.batch_size)
    found = paired({"batch": batches, "step": training_step(recipe, batches())}, repeats=repeats, warmup=2)
    whole = [a + b for a, b in zip(found["batch"], found["step"], strict=True)]
    return Row(
        name=f"ahms-{kind}-laptop, batch of {recipe.fit.batch_size}",
        values={
            "segments/s (median)": 2 * recipe.fit.batch_size / median(found["batch"]),
            "ms per step": 1e3 * median(whole),
            "share of a step": median_ratio(found["batch"], whole),
        },
    )


def training_step(recipe: Any, batch: dict[str, Any]) -> Callable[[], None]:
    """Forward, loss, backward, Adam and moving average, on one batch over and over."""
    torch.manual_seed(0)
    method = METHODS.method_class(recipe.system)(recipe.method).train()
    optimizer = build_optimizer(method.parameter_groups(recipe.fit.weight_decay), recipe.fit)
    progress = Progress(0, 100_000, 0, len(batch["ids"]))
    batch = {**batch, "micro": 0}

    def step() -> None:
        with torch.no_grad():
            prepared = method.prepare_step([batch], progress)
        method.training_step(batch, progress, prepared).loss.backward()
        method.before_optimizer_step(progress)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            method.after_step(progress)
        progress.step += 1

    return step


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


def onnx_session(model: nn.Module, example: Tensor, path: Path, threads: int) -> Callable[[Tensor], Any]:
    """The model through ONNX Runtime."""
    with torch.inference_mode():
        scale = float(model(example).std())
    export_onnx(model, example, path, tolerance=max(1e-4 * scale, 1e-9))
    runtime = require("onnxruntime", extra="mc-core[export]", purpose="run ONNX")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x_BCT: session.run(None, {name: x_BCT.numpy()})[0]


def _embedding_report(repeats: int, threads: int, count: int) -> Report:
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
            run = onnx_session(encoder, segments.rows(range(2)), Path(folder) / f"{len(rows)}.onnx", threads)
            parts = segments.rows(range(n)).split(32)
            found = paired(
                {
                    EAGER: partial(embed_segments, encoder, segments),
                    "ONNX Runtime, batches of 32": lambda r=run, p=parts: [r(x) for x in p],
                },
                repeats=repeats,
            )
            rows += _rows(name, found, n)
            speeds.append(n / median(found[EAGER]))
        paper_rows, ratios = _paper_rows(Path(folder), repeats, sorted({1, threads}))
    rows += paper_rows
    report = Report(
        benchmark="wearables_embedding",
        command="uv run mc-benchmark wearables-speed",
        question=f"60-second PPG segments embedded per second, on {threads} threads unless said otherwise",
        settings={"repeats": repeats, "segments": count, "threads": threads},
        environment=wearables_environment(),
        columns=["segments/s (median)", "ms per segment", "IQR ms", "GFLOP/s", "× eager"],
        rows=rows,
        reading=f"The laptop encoder embeds {speeds[0]:.0f} segments/s in its own form (bar {_EMBED_BAR}: "
        f"{_met(speeds[0] >= _EMBED_BAR)}), {speeds[1]:.0f} with 4 channels at 64 Hz. ONNX Runtime beside the paper's "
        f"encoder in eager PyTorch, over the lines shown: {_span(ratios[EAGER])} × as fast as ours, which runs convolutions "
        f"over time as 2-D ones with channels last, {_span(ratios[CONV1D])} × as fast as Conv1d (bar {_ONNX_BAR}: "
        f"{_met(min(ratios[EAGER]) >= _ONNX_BAR)} throughout). GFLOP/s show how far each is from what a core can do.",
    )
    report.save()
    report.show()
    return report


def _paper_rows(folder: Path, repeats: int, threads: list[int]) -> tuple[list[Row], dict[str, list[float]]]:
    """The paper's encoder one by one and in batches, and how much faster ONNX Runtime is than either eager form."""
    segments, encoder = _embeddable(resolve_recipe("ahms-ppg").method.encoder, 16)
    plain = PlainConv1d(encoder)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(segments.rows([0]))
    rows: list[Row] = []
    ratios: dict[str, list[float]] = {EAGER: [], CONV1D: []}
    for number in threads:
        torch.set_num_threads(number)
        run = onnx_session(encoder, segments.rows(range(2)), folder / f"paper-{number}.onnx", number)
        for batch in (1, 16):
            x = segments.rows(range(batch))
            with torch.inference_mode():
                found = paired(
                    {EAGER: partial(encoder, x), CONV1D: partial(plain, x), "ONNX Runtime": partial(run, x)},
                    repeats=repeats,
                )
            name = f"paper's encoder, {number} thread{'s' if number > 1 else ''}, batch of {batch}"
            rows += _rows(name, found, batch, flop=counter.get_total_flops())
            for eager, known in ratios.items():
                known.append(median_ratio(found[eager], found["ONNX Runtime"]))
    return rows, ratios


def _embeddable(config: EncoderConfig, count: int) -> tuple[Segments, SignalEncoder]:
    """Segments of that form, and an encoder whose statistics were taken from them: time does not depend on the weights."""
    cohort = simulate_cohort(
        "ppg", participants=8, segments=2, seconds=config.seconds, sampling_rate=config.sampling_rate, channels=config.channels
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


def _met(true: bool) -> str:
    return "reached" if true else "not reached"
