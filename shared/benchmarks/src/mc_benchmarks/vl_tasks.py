"""What pretraining and a teacher are worth to each task of ALBEF, on the embedded scenes, over seeds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mc_benchmarks.contract import Report, Row, environment
from mc_core.errors import CheckpointError
from mc_core.files import read_json, write_json
from mc_core.recipes import merge
from mc_core.seeds import Spread
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.recipe import resolve_recipe
from mc_vision_language.sample import sample_pairs
from mc_vision_language.tasks import TaskScores, finetune_task, resolve_task_recipe, sample_task_rows
from mc_vision_language.training import pretrain_pairs

_log = logging.getLogger("mc_core")

RECIPES = {
    "retrieval": "albef-retrieval-laptop",
    "vqa": "albef-vqa-laptop",
    "nlvr2": "albef-nlvr2-laptop",
    "entailment": "albef-ve-laptop",
    "grounding": "albef-grounding-laptop",
}
TAUGHT, PLAIN, SCRATCH, BLIND, ASSIGNED = (
    "pretrained",
    "without teacher",
    "random start",
    "without looking",
    "after text assignment",
)
COLUMNS = [TAUGHT, PLAIN, SCRATCH, ASSIGNED, BLIND]
_CHANGES: dict[str, dict[str, Any]] = {TAUGHT: {}, PLAIN: {"method": {"alpha": 0.0}}, SCRATCH: {}, ASSIGNED: {}}
_BLIND = {
    "retrieval": "chance",
    "vqa": "question_only",
    "nlvr2": "sentence_only",
    "entailment": "sentence_only",
    "grounding": "random_proposal",
}


def run_vl_tasks(
    *,
    seeds: int,
    keep: Path,
    tasks: Sequence[str] = tuple(RECIPES),
    changes: Mapping[str, Any] | None = None,
    pretraining: Mapping[str, Any] | None = None,
    counts: dict[str, int] | None = None,
) -> Report:
    """Pretrain once for each seed, then train each task from it with and without its teacher, and from random weights.

    Args:
        seeds: how many, each with its own weights and order.
        keep: where finished rows are kept.
        tasks: which.
        changes: of the recipes of all tasks.
        pretraining: changes of the recipe of pretraining.
        counts: scenes of each split; default: those of the sample.
    """
    folder = keep / "vl-tasks"
    found: dict[str, dict[str, list[float]]] = {task: {} for task in tasks}
    metrics: dict[str, str] = {}
    for seed in range(seeds):
        base = _pretrained(folder / f"seed-{seed}", seed, pretraining or {}, counts)
        for task in tasks:
            for arm in COLUMNS[:-1]:
                if arm == ASSIGNED and task != "nlvr2":
                    continue
                place = folder / f"seed-{seed}" / task / arm.replace(" ", "-")
                scores = _row(task, arm, seed, base, place, changes or {}, counts)
                metrics[task] = scores["metric"]
                found[task].setdefault(arm, []).append(scores["value"])
                if arm == TAUGHT:
                    found[task].setdefault(BLIND, []).append(scores["baselines"][_BLIND[task]])
                _log.info("seed %d, %s, %s: %.3f", seed, task, arm, scores["value"])
    report = Report(
        benchmark="vl_tasks",
        command="uv run mc-benchmark vl-tasks" + (f" --seeds {seeds}" if seeds != 3 else ""),
        question=f"What pretraining and a teacher are worth to each task, on the embedded scenes, {seeds} seeds",
        settings={"seeds": seeds, "recipes": {task: RECIPES[task] for task in tasks}, "each": found},
        environment=environment(),
        columns=COLUMNS,
        rows=[
            Row(
                name=f"{task}: {metrics[task].replace('_', ' ')}",
                values={
                    column: f"{Spread.of(found[task][column]):.3f}" if column in found[task] else None
                    for column in COLUMNS
                },
            )
            for task in tasks
        ],
        reading=_reading(found),
    )
    report.save()
    report.show()
    return report


def _reading(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    parts = []
    for task, arms in found.items():
        gains = {
            what: Spread.of([a - b for a, b in zip(arms[TAUGHT], arms[other], strict=True)])
            for what, other in (("pretraining", SCRATCH), ("teacher", PLAIN), ("looking", BLIND))
        }
        said = ", ".join(
            f"{what} {gain.mean:+.3f}" + ("" if gain.sd is None else f" ± {gain.sd:.3f}")
            for what, gain in gains.items()
        )
        parts.append(f"{task}: {said}")
    return (
        "Held-out scenes of other writers. Differences within a seed, mean ± deviation: "
        + "; ".join(parts)
        + ". Without looking: chance, the usual answer to the same question or label of the same sentence, or a proposal at random."
    )


def _pretrained(
    folder: Path, seed: int, changes: Mapping[str, Any], counts: dict[str, int] | None
) -> VisionLanguageModel:
    recipe = resolve_recipe("albef-laptop", merge(changes, {"fit": {"seed": seed}}))
    found = pretrain_pairs(recipe, sample_pairs(counts=counts), folder / "pretraining").method.export_module()
    assert isinstance(found, VisionLanguageModel)
    return found.eval()


def _row(
    task: str,
    arm: str,
    seed: int,
    base: VisionLanguageModel,
    place: Path,
    changes: Mapping[str, Any],
    counts: dict[str, int] | None,
) -> dict[str, Any]:
    """Train and measure, or read what was kept."""
    recipe = resolve_task_recipe(RECIPES[task], merge(merge(changes, _CHANGES[arm]), {"fit": {"seed": seed}}))
    settings = recipe.model_dump(mode="json", exclude={"source"})
    kept = place / "scores.json"
    if kept.is_file():
        content = read_json(kept)
        if content["settings"] != settings:
            raise CheckpointError(f"{place} holds this row under other settings: name another folder, or remove it")
        return content["scores"]
    stage: dict[str, Any] = {}
    if arm == ASSIGNED:
        stage["pairs"] = sample_pairs(counts=counts)
        stage["assignment"] = resolve_task_recipe("albef-ta-laptop", merge(changes, {"fit": {"seed": seed}}))
    start = _random(base, seed) if arm == SCRATCH else base
    rows = sample_task_rows(task, counts=counts)  # type: ignore[arg-type]
    if arm == SCRATCH:  # a start that says nothing may look like a collapse
        recipe = recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"stop_on_collapse": False})})
    found: TaskScores = finetune_task(task, start, rows, recipe, place, draws=0, **stage).scores  # type: ignore[arg-type]
    scores = {"metric": found.metric, "value": found.value, "baselines": found.baselines, "details": found.details}
    write_json(kept, {"scores": scores, "settings": settings})
    return scores


def _random(model: VisionLanguageModel, seed: int) -> VisionLanguageModel:
    torch.manual_seed(seed)
    return VisionLanguageModel(model.config, model.tokenizer, load_pretrained=False).eval()
