"""What a large contrastive batch of radiographs and reports costs: time and memory at several micro-batches, and memory at several
batches.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mc_benchmarks.contract import Report, Row, environment
from mc_core.cli import keep_freed_memory
from mc_core.errors import RunError
from mc_medical.efficiency import (
    PLAIN,
    SCHEMES,
    TRUE_BATCH,
    Efficiency,
    MadePairs,
    graph_bytes,
    make_method,
    measure_efficiency,
    training_step,
)
from mc_medical.recipe import Recipe, resolve_recipe

RATE, TIME, SPREAD, RATIO, GRAPH, PEAK, EPOCH = (
    "pairs/s",
    "s a step (median)",
    "s a step (IQR)",
    "× plain accumulation",
    "held for backward, MiB",
    "allocated, MiB",
    "min an epoch of 200,000 pairs",
)
MEMORY_COLUMNS = (
    "held for backward, MiB",
    "% more than at the smallest",
    "resident memory of a step, MiB",
    "% more than at the smallest, resident",
    "raw images on the host, MiB",
)
TIME_BAR, GROWTH_BAR = 1.40, 5.0
_MIB = 1 << 20
_EPOCH = 200_000
SIZES: dict[str, dict[str, Any]] = {
    "laptop": {},
    "vit-small": {
        "method": {
            "image": {"name": "vit_small_patch16_224", "image_size": 224},
            "text": {"hidden_size": 256, "layers": 4, "heads": 4, "max_length": 64},
            "dim": 512,
        },
        "image": {"size": 256},
        "augment": {"size": 224},
    },
}
"""Encoders by name, as changes of the laptop's recipe."""


def recipe_of(size: str) -> Recipe[Any]:
    """The recipe of one of the sizes."""
    return resolve_recipe("msd-laptop", SIZES[size])


def measured(size: str, **options: Any) -> list[Efficiency]:
    """Times and memory at a size; see :func:`mc_medical.efficiency.measure_efficiency`."""
    recipe = recipe_of(size)
    return measure_efficiency(
        recipe.method, augment=recipe.augment, fit=recipe.fit, stored=recipe.image.size, **options
    )


def run_medical_efficiency(
    *,
    batch: int = 256,
    micro: Sequence[int] = (8, 16, 32, 64),
    repeats: int = 7,
    size: str = "laptop",
    true_batch: bool | None = None,
    device: str = "cpu",
) -> Report:
    """Measure, save, show.

    Args:
        batch: pairs of an optimizer step.
        micro: pairs in the graph.
        repeats: rounds.
        size: of the encoders: laptop or vit-small.
        true_batch: also the whole batch in the graph; default: for the laptop's encoders, of which it fits into memory.
        device: where.
    """
    keep_freed_memory()
    true_batch = size == "laptop" if true_batch is None else true_batch
    schemes = [*SCHEMES, *([TRUE_BATCH] if true_batch else [])]
    found = measured(size, batch=batch, micro_batches=micro, schemes=schemes, repeats=repeats, device=device)
    rows = []
    for one in found:
        values = {
            RATE: one.pairs_per_second,
            TIME: one.step_seconds,
            SPREAD: one.spread_seconds,
            RATIO: one.ratio,
            GRAPH: one.graph_bytes / _MIB,
            PEAK: None if one.device_bytes is None else one.device_bytes / _MIB,
            EPOCH: one.epoch_seconds(_EPOCH) / 60,
        }
        label = one.scheme if one.scheme == TRUE_BATCH else f"{one.scheme}, {one.micro_batch}"
        rows.append(Row(name=label, values=values))
    ours = [one for one in found if one.scheme == "MSD" and one.ratio is not None]
    most = max(one.ratio for one in ours if one.ratio is not None)
    cached = {one.micro_batch: one.ratio for one in found if one.scheme == "GradCache"}
    slower = [one.micro_batch for one in ours if one.ratio is not None and one.ratio > (cached[one.micro_batch] or 0)]
    reading = (
        f"{batch} pairs a step; the number after a name is the micro-batch. Ratios are medians over rounds of both in turn. MSD "
        f"takes at most {most:.2f} × {PLAIN} (bar {TIME_BAR}: {'reached' if most <= TIME_BAR else 'not reached'}), "
        + (
            f"and more than GradCache at {', '.join(map(str, slower))}."
            if slower
            else "and nowhere more than GradCache."
        )
    )
    report = Report(
        benchmark="medical_efficiency" + ("" if size == "laptop" else "_vit") + ("_cuda" if device == "cuda" else ""),
        command="uv run mc-benchmark medical-efficiency"
        + ("" if size == "laptop" else f" --size {size}")
        + ("" if device == "cpu" else f" --device {device}"),
        question="What does a large contrastive batch of images and reports cost?",
        settings={"batch": batch, "micro": list(micro), "repeats": repeats, "size": size},
        environment=environment(torch.device(device)),
        columns=[RATE, TIME, SPREAD, RATIO, GRAPH, PEAK, EPOCH],
        rows=rows,
        reading=reading,
    )
    report.save()
    report.show()
    return report


_CHILD = """
import json, sys
import torch
torch.set_num_threads(int(sys.argv[5]))
from mc_benchmarks.medical_efficiency import resident
print(json.dumps(resident(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
"""


def resident(size: str, scheme: str, batch: int, micro: int) -> dict[str, float]:
    """What one step takes in this process: the most that autograd holds, and how far resident memory rises, in bytes."""
    recipe = recipe_of(size)
    words = recipe.method.text
    method = make_method(recipe.method, scheme).train()
    small = MadePairs(micro, recipe.image.size, words.max_length, words.vocabulary, recipe.augment)
    training_step(method, small, micro, recipe.fit)()  # libraries load, and the optimizer's state is made
    data = MadePairs(batch, recipe.image.size, words.max_length, words.vocabulary, recipe.augment)
    step = training_step(method, data, micro, recipe.fit)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _peak_kib()
    held = graph_bytes(step, list(method.parameters()))
    return {"raw": float(data.pixels.numel()), "graph": float(held), "resident": 1024.0 * (_peak_kib() - before)}


def _peak_kib() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0])


def run_medical_memory(
    *,
    batches: Sequence[int] = (128, 512, 2048),
    micro: int = 32,
    size: str = "vit-small",
    schemes: Sequence[str] = ("MSD",),
) -> Report:
    """Measure in a fresh process each, save, show.

    Args:
        batches: N to try, smallest first.
        micro: pairs in the graph.
        size: of the encoders.
        schemes: names of :data:`mc_medical.efficiency.SCHEMES`.
    """
    rows, worst = [], 0.0
    for scheme in schemes:
        first: dict[str, float] = {}
        for batch in batches:
            told = _child(size, scheme, batch, micro)
            first = first or told
            more = {name: 100 * (told[name] / first[name] - 1) for name in ("graph", "resident")}
            worst = max(worst, *more.values())
            figures = (
                told["graph"] / _MIB,
                more["graph"],
                told["resident"] / _MIB,
                more["resident"],
                told["raw"] / _MIB,
            )
            rows.append(Row(name=f"{scheme}, N = {batch}", values=dict(zip(MEMORY_COLUMNS, figures, strict=True))))
    report = Report(
        benchmark="medical_memory",
        command="uv run mc-benchmark medical-memory",
        question=f"Does memory grow with the contrastive batch, {micro} pairs at a time?",
        settings={"batches": list(batches), "micro": micro, "size": size, "schemes": list(schemes)},
        environment=environment(),
        columns=list(MEMORY_COLUMNS),
        rows=rows,
        reading=f"{size} at {recipe_of(size).augment.size} px on a CPU, each in a process of its own. From the smallest to the "
        f"largest batch at most {worst:.1f} % more (bar {GROWTH_BAR:g} %: "
        f"{'reached' if worst <= GROWTH_BAR else 'not reached'}). Raw images wait on the host as uint8 and do grow with the "
        "batch. Freed memory is given back at once, so that resident memory shows what was needed.",
    )
    report.save()
    report.show()
    return report


def _child(size: str, scheme: str, batch: int, micro: int) -> dict[str, float]:
    arguments = [sys.executable, "-c", _CHILD, size, scheme, str(batch), str(micro), str(torch.get_num_threads())]
    # glibc otherwise keeps what is freed, and more of it the more sizes of tensors there were
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env={**os.environ, **at_once})
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"the process for {scheme} at a batch of {batch} failed: {reason}")
    return json.loads(done.stdout.strip().splitlines()[-1])
