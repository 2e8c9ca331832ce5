"""What each part of CTP is worth beside sequential and joint training and other methods, over seeds: on tasks of two digits each
that have no word in common, on digits turned further from task to task, by a new model and by one that knows other digits, and on
real pictures of products in a sequence of categories.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from mc_benchmarks.contract import Report, Row, environment
from mc_benchmarks.vl_real import in_memory
from mc_core.continual.metrics import SequenceScores
from mc_core.errors import CheckpointError, ConfigError
from mc_core.files import read_json, write_json
from mc_core.recipes import merge
from mc_core.seeds import Spread
from mc_vision_language.continual.evaluating import MEASURES, sequence_scores
from mc_vision_language.continual.running import base_recipe, run_sequence, untrained_figures
from mc_vision_language.continual.sample import sample_start
from mc_vision_language.continual.tasks import SampleTasks, TaskPairs, read_tasks, sample_tasks
from mc_vision_language.model import VisionLanguageModel

_log = logging.getLogger("mc_core")
RECIPE = "ctp-laptop"
_FIT: dict[str, Any] = {
    "batch_size": 64,
    "optimizer": "adamw",
    "lr": 1e-3,  # at 2e-3 without warm-up some tasks collapse; chosen on validation scenes
    "weight_decay": 0.02,
    "decay_1d": False,
    "schedule": "cosine",
    "warmup_epochs": 2,
    "decay_to": 0.01,
    "clip_norm": 1.0,
    "accumulation": 1,
    "device": "cpu",
    "stop_on_collapse": False,  # a row that learns nothing is a result here
}
_TEXT: dict[str, Any] = {"hidden_size": 64, "heads": 4, "text_layers": 1, "fusion_layers": 1, "dropout": 0.0}
_CTP: dict[str, Any] = {
    "dim": 64,
    "temperature": 0.07,
    "mask_rate": 0.15,
    "ids": True,
    "momentum_first": 0.995,
    "momentum": 0.9,
    "interpolation": 0.5,
    "restart": True,
    "queue_size": 128,
}
DIGIT_SETTINGS: dict[str, Any] = {  # written out, so that a better recipe for laptops changes nothing here
    "method": {
        **_CTP,
        "image": {
            "image_size": 16,
            "patch_size": 4,
            "width": 64,
            "depth": 2,
            "heads": 4,
            "stem": "convolution",
            "mean": (0.48145466, 0.4578275, 0.40821073),
            "std": (0.26862954, 0.26130258, 0.27577711),
        },
        "text": {**_TEXT, "max_length": 25, "vocabulary": 500},
    },
    "unit": "image",
    "augment": {"size": 16, "scale": (0.85, 1.0), "ratio": (0.9, 1.1), "flip": 0.0, "rand_augment": 0},
    "fit": _FIT,
}
PRODUCT_SETTINGS: dict[str, Any] = {
    "method": {
        **_CTP,
        "image": {
            "image_size": 32,
            "patch_size": 8,
            "width": 64,
            "depth": 2,
            "heads": 4,
            "stem": "convolution",
            "mean": (0.6, 0.6, 0.6),
            "std": (0.3, 0.3, 0.3),
        },
        "text": {**_TEXT, "max_length": 25, "vocabulary": 2000},
    },
    "unit": "image",
    "augment": {"size": 32, "scale": (0.6, 1.0), "ratio": (0.9, 1.1), "flip": 0.5, "rand_augment": 0},
    "fit": _FIT,
}


@dataclass(frozen=True)
class Arm:
    """A row.

    Attributes:
        method: of the baselines of :mod:`mc_vision_language.continual.table`.
        changes: of its settings.
    """

    method: str
    changes: Mapping[str, Any]


_OFF: dict[str, Any] = {"contrast": 0.0, "cross": 0.0, "same": 0.0, "distil_mlm": 0.0}
SEQUENTIAL, JOINT, FULL, FIRST = "sequential", "joint, all tasks at once", "CTP", "CTP on task 1, then sequential"
CROSS, UNTRAINED, BEFORE = "cross-modal topology alone", "random encoder", "the model that all start from"
MOMENTUM, SAME = "compatible momentum contrast alone", "+ same-modal topology"
PARTS: dict[str, Arm] = {
    SEQUENTIAL: Arm("sequential", {}),
    FIRST: Arm("ctp-first", {}),
    MOMENTUM: Arm("ctp", {**_OFF, "contrast": 1.0}),
    "the same, one-way average (α = 0)": Arm("ctp", {**_OFF, "contrast": 1.0, "interpolation": 0.0}),
    CROSS: Arm("ctp", {**_OFF, "cross": 1.0}),
    SAME: Arm("ctp", {**_OFF, "cross": 1.0, "same": 1.0}),
    "+ same-modal, own column kept": Arm("ctp", {**_OFF, "cross": 1.0, "same": 1.0, "mask_own": False}),
    "CTP without distilled words": Arm("ctp", {"distil_mlm": 0.0}),
    FULL: Arm("ctp", {}),
    "replay of a reservoir": Arm("er", {}),
    "CTP and replay": Arm("ctp+er", {}),
    JOINT: Arm("joint", {}),
}
OTHERS: dict[str, Arm] = {
    name: Arm(name, {}) for name in ("ewc", "mas", "si", "rwalk", "afec", "lwf", "mof", "kmeans", "icarl", "lucir")
}
SHORT = (SEQUENTIAL, FIRST, CROSS, FULL, "replay of a reservoir", "CTP and replay", JOINT)
"""Rows on real pictures."""
STARTED = (SEQUENTIAL, FIRST, CROSS, FULL, JOINT)
"""Rows of a model that knows something already."""
START_STEPS = 300
"""Optimizer steps in which it learned each turn of other digits, all turns at once."""
FIFTHS = 5
TABLE = {
    "last": "R_m over all tasks, at the end",
    "forgetting": "forgetting (A − F)",
    "plasticity": "each task when new, R_m of its own",
    "average": "each task at the end, R_m of its own",
    "map": "same class by fused features, mAP@10",
}
PRODUCTS: tuple[dict[str, Any], ...] = (
    {"name": "storage", "data": "ikea-products.tar", "where": {"category": "storage"}, "category": "type"},
    {"name": "apparel", "data": "fashion-products.tar", "where": {"category": "Apparel"}, "category": "articleType"},
    {"name": "packages", "data": "grocery-products.tar", "where": {"category": "Packages"}, "category": "class_name"},
    {"name": "textiles", "data": "ikea-products.tar", "where": {"category": "textiles"}, "category": "type"},
    {"name": "footwear", "data": "fashion-products.tar", "where": {"category": "Footwear"}, "category": "articleType"},
    {"name": "fruit", "data": "grocery-products.tar", "where": {"category": "Fruit"}, "category": "class_name"},
)
Tasks = Literal["started", "turns", "digits", "products"]
BENCHMARKS: dict[Tasks, tuple[str, int, int, str]] = {
    "started": (
        "ctp_started",
        10,
        250,
        "five digits with captions, turned further from task to task, by a model that knows the other five in these turns",
    ),
    "turns": ("ctp_turns", 5, 250, "five digits with captions, turned further from task to task"),
    "digits": ("ctp_claims", 5, 200, "digits with captions, two new ones in each task"),
    "products": ("ctp_products", 5, 120, "real pictures of products with their titles"),
}
"""Name of the report, usual seeds, usual steps of a task, and what it is about."""
SHARES = (0.7, 0.0, 0.3)
_STORED = 40  # pixels that real pictures are kept at


def digit_tasks(kind: SampleTasks, seed: int, held_out: int = 0) -> list[TaskPairs]:
    """The embedded sample: plain scenes of one digit in five tasks, other scenes for each seed."""
    return sample_tasks(kind, seed=seed, held_out=held_out)


def started_model(
    tasks: Sequence[TaskPairs], changes: Mapping[str, Any], seed: int, place: Path
) -> VisionLanguageModel:
    """A model that has learned the other five digits in all turns, and has the words of these tasks in its vocabulary."""
    base = base_recipe(RECIPE, merge(changes, {"fit": {"steps": START_STEPS}}))
    return sample_start(base, place, seed=seed, tasks=tasks, held_out=writers(seed))


def writers(seed: int) -> int:
    """Which fifth of the scans a seed holds out: three writers or so are too few to speak for all, so each seed has others."""
    return seed % FIFTHS


def product_tasks(data: Path, seed: int) -> list[TaskPairs]:
    """Real pictures of products with their titles, category after category, divided anew for each seed."""
    anew = {"columns": {"caption": "text"}, "split": {"own": False}}  # the sets' own splits are not of all categories
    rows = [{**row, "data": str(data / row["data"]), **anew} for row in PRODUCTS]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.yaml"
        path.write_text(yaml.safe_dump(rows), encoding="utf-8")
        tasks = read_tasks(path)
    return [
        replace(task, pairs=replace(task.pairs, images=in_memory(task.pairs.images, _STORED)).divided(SHARES, seed))
        for task in tasks
    ]


def run_ctp_claims(
    *,
    seeds: int,
    steps: int,
    keep: Path,
    tasks: Tasks = "digits",
    others: bool = False,
    data: Path | None = None,
    only_seed: int | None = None,
) -> Report | None:
    """Every row under every seed; those that are done are kept.

    Args:
        seeds: how many, each with weights and order of its own.
        steps: optimizer steps of each task.
        keep: where finished rows are kept.
        tasks: ``digits`` or ``turns`` of the sample, ``started``: turns, by a model that knows other digits, or ``products``, in
            both orders.
        others: also the other methods that CTP was compared with.
        data: folder of the real sets, for ``products``.
        only_seed: compute the rows of this seed alone and report nothing, for several processes.
    """
    if tasks == "products" and (data is None or not data.is_dir()):
        raise ConfigError(f"{data}: no such folder; name it with --data, or the folder above it with MC_DATA")
    name, usual_seeds, usual_steps, what = BENCHMARKS[tasks]
    settings = PRODUCT_SETTINGS if tasks == "products" else DIGIT_SETTINGS
    shown: Sequence[str] = {"products": SHORT, "started": STARTED}.get(tasks, tuple(PARTS))
    arms = {row: PARTS[row] for row in shown} | (OTHERS if others else {})
    changes = merge(settings, {"fit": {"steps": steps}})
    found: dict[str, list[dict[str, float]]] = {}
    count = 0
    for seed in range(seeds) if only_seed is None else (only_seed,):
        if tasks == "products":
            assert data is not None
            drawn = product_tasks(data, seed)
        else:
            drawn = digit_tasks("turns", seed, writers(seed)) if tasks == "started" else digit_tasks(tasks, seed)
        count = len(drawn)
        for order in ("", "reversed: ") if tasks == "products" else ("",):
            sequence = drawn[::-1] if order else drawn
            place = keep / name.replace("_", "-") / f"seed-{seed}{'-reversed' if order else ''}"
            start = started_model(sequence, changes, seed, place / "start") if tasks == "started" else None
            for row, arm in arms.items():
                scores = _row(arm, sequence, changes, seed, place / _folder(row), start)
                found.setdefault(order + row, []).append(scores)
                _log.info("seed %d, %s: %s", seed, order + row, ", ".join(f"{c} {v:.3f}" for c, v in scores.items()))
            found.setdefault(order + (UNTRAINED if start is None else BEFORE), []).append(
                _untrained(sequence, changes, seed, place / "untrained.json", place / _folder(SEQUENTIAL), start)
            )
    if only_seed is not None:
        return None
    given = (("seeds", seeds, usual_seeds), ("steps", steps, usual_steps))
    report = Report(
        benchmark=name,
        command=f"uv run mc-benchmark {name.replace('_', '-')}"
        + "".join(f" --{n} {v}" for n, v, usual in given if v != usual)
        + (" --others" if others else ""),
        question=f"What CTP and its parts are worth on {what}, {count} tasks in a row, {seeds} seeds",
        settings={
            "seeds": seeds,
            "steps": steps,
            "settings": _plain(settings),
            "each": {
                row: [{c: round(v, 4) if np.isfinite(v) else None for c, v in one.items()} for one in rows]
                for row, rows in found.items()
            },
        },
        environment=environment(),
        columns=list(TABLE.values()),
        rows=[
            Row(
                name=row,
                values={
                    title: f"{Spread.of(values):.3f}"
                    if (values := [one[c] for one in rows if np.isfinite(one[c])])
                    else None
                    for c, title in TABLE.items()
                },
            )
            for row, rows in found.items()
        ],
        reading=_reading(found, steps, count, started=tasks == "started"),
    )
    report.save()
    report.show()
    return report


def _folder(row: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in row.lower())


def _row(
    arm: Arm,
    tasks: Sequence[TaskPairs],
    changes: Mapping[str, Any],
    seed: int,
    place: Path,
    start: VisionLanguageModel | None,
) -> dict[str, float]:
    """Train and measure, or read what was kept."""
    wanted = {"method": arm.method, "changes": dict(arm.changes), "recipe": changes, "tasks": [t.name for t in tasks]}
    kept = _kept(place / "row.json", wanted)
    if kept is not None:
        return kept
    base = base_recipe(RECIPE, changes)
    run = run_sequence(arm.method, tasks, base, place, seed=seed, changes=arm.changes, start=start)
    scores = _figures({measure: run.scores(measure) for measure in ("r_m", "map@10")})
    write_json(place / "row.json", {"scores": scores, "settings": wanted})
    return scores


def _figures(scores: Mapping[str, SequenceScores]) -> dict[str, float]:
    r_m = scores["r_m"]
    return {
        "last": r_m.last,
        "forgetting": r_m.forgetting,
        "plasticity": r_m.plasticity,
        "average": r_m.average,
        "map": scores["map@10"].last,
    }


def _untrained(
    tasks: Sequence[TaskPairs],
    changes: Mapping[str, Any],
    seed: int,
    place: Path,
    run_dir: Path,
    start: VisionLanguageModel | None,
) -> dict[str, float]:
    wanted = {"recipe": changes, "tasks": [task.name for task in tasks]}
    kept = _kept(place, wanted)
    if kept is not None:
        return kept
    base = base_recipe(RECIPE, merge(changes, {"fit": {"seed": seed}}))
    found = untrained_figures(tasks, base, run_dir, start=start)
    scores = _figures({name: sequence_scores([found], name) for name in MEASURES})
    write_json(place, {"scores": scores, "settings": wanted})
    return scores


def _kept(path: Path, wanted: Mapping[str, Any]) -> dict[str, float] | None:
    if not path.is_file():
        return None
    content = read_json(path)
    if content["settings"] != _plain(wanted):
        raise CheckpointError(f"{path.parent} holds this row under other settings: name another --keep, or remove it")
    return {name: float("nan") if value is None else float(value) for name, value in content["scores"].items()}


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


_DIFFERENCES = (
    (FULL, SEQUENTIAL),
    (FULL, FIRST),
    (FULL, JOINT),
    (MOMENTUM, SEQUENTIAL),
    (MOMENTUM, "the same, one-way average (α = 0)"),
    (CROSS, SEQUENTIAL),
    (FULL, CROSS),
    (SAME, CROSS),
    (SAME, "+ same-modal, own column kept"),
    ("CTP and replay", "replay of a reservoir"),
)


def _reading(
    found: Mapping[str, Sequence[Mapping[str, float]]], steps: int, count: int, *, started: bool = False
) -> str:
    parts = []
    for order in ("", "reversed: "):
        for more, less in _DIFFERENCES:
            if order + more not in found or order + less not in found:
                continue
            both = list(zip(found[order + more], found[order + less], strict=True))
            gains = {c: Spread.of([a[c] - b[c] for a, b in both]) for c in ("last", "forgetting")}
            said = {c: f"{g.mean:+.3f}" + ("" if g.sd is None else f" ± {g.sd:.3f}") for c, g in gains.items()}
            without = "" if JOINT in (more, less) else f", forgetting {said['forgetting']}"
            above = sum(a["last"] > b["last"] for a, b in both)
            parts.append(f"{order}{more} − {less}: R_m {said['last']} (above in {above} of {len(both)} seeds){without}")
    before = (
        f"All start from a model that learned the other five digits, in {START_STEPS} steps for each turn, all turns at once. Each "
        "seed holds out the scans of other writers, a fifth of all. "
        if started
        else ""
    )
    return (
        f"{before}{steps} steps on each of {count} tasks, joint training as many as all together. Held-out pictures; one gallery "
        "of all tasks for R_m, the mean of six recalls. Positive forgetting: forgotten. A memory holds a hundredth of all "
        f"samples, at least 10. Differences within a seed, mean ± deviation. {'; '.join(parts)}."
    )
