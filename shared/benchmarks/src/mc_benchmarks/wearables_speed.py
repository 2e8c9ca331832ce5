"""Is the loader ever what a step waits for, and how fast do encoders embed: beside per-sample cleaning, eager Conv1d and ONNX.

Legend: B samples, C channels, T time steps.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mc_benchmarks.contract import Report, Row, median, median_ratio, paired, spread
from mc_benchmarks.wearables_common import reached, wearables_environment
from mc_benchmarks.wearables_embedding import embedding_report
from mc_core.cli import keep_freed_memory
from mc_core.data import StepPlan, finish_on_device, step_loader
from mc_core.engine import Progress
from mc_core.optim import build_optimizer
from mc_wearables import (
    METHODS,
    PairData,
    Segments,
    resolve_recipe,
    simulate_cohort,
)
from mc_wearables.augment_config import AugmentConfig
from mc_wearables.data.segments import SignalKind, standardise

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
_LOADER_BAR = 20


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
            embedding_report(repeats, threads, segments),
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
        + f"; the bar of {_LOADER_BAR} × is {reached(min(slowest.values()) >= _LOADER_BAR)}"
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
