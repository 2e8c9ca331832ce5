"""MSD's keys, GradCache, plain accumulation and the true batch on phantoms: retrieval and zero-shot, over seeds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mc_benchmarks.contract import Report, Row, environment
from mc_core.recipes import merge
from mc_core.seeds import Spread
from mc_medical.ablation import ARMS, COLUMNS, UNTRAINED, arm_of, run_arm, run_untrained
from mc_medical.data.studies import open_studies
from mc_medical.phantom import write_phantoms
from mc_medical.recipe import resolve_recipe
from mc_medical.training import Cohort, prepare_cohort

_log = logging.getLogger("mc_core")

RECIPE = "msd-laptop"
SETTINGS: dict[str, Any] = {  # written out, so that a better recipe for laptops changes nothing here
    "method": {
        "image": {"image_size": 64, "width": 32},
        "text": {"max_length": 64, "hidden_size": 128, "layers": 1, "heads": 4, "dropout": 0.0},
        "dim": 128,
        "horizon_share": 0.05,
        "alpha_ramp_epochs": 1.0,
    },
    "image": {"size": 72},
    "reports": {"sentence_share": 0.5},
    "augment": {"size": 64, "crop": 0.875},
    "fit": {
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.01,
        "decay_1d": False,
        "schedule": "cosine",
        "warmup_epochs": 2,
        "decay_to": 0.01,
        "clip_norm": 1.0,
    },
}
TABLE = {
    "report_to_image_at_5": "report → image, recall at 5",
    "image_to_report_at_5": "image → report, recall at 5",
    "zero_shot_auroc": "zero-shot, macro AUROC",
    "zero_shot_accuracy": "zero-shot, which of 5, accuracy",
}
_PAIRS = (
    ("GradCache", "plain accumulation", "a large batch with the whole gradient"),
    ("momentum keys, α = 0", "plain accumulation", "a large batch with momentum keys"),
    ("momentum keys, α = 0", "GradCache", "momentum keys instead of the whole gradient"),
    ("fresh keys without gradient", "GradCache", "keys without gradient, but fresh"),
    ("momentum keys, α = 0", "fresh keys without gradient", "stale keys instead of fresh ones"),
    ("momentum keys, α = 0, twice the rate", "momentum keys, α = 0", "twice the rate"),
    ("momentum keys, α = 0.4", "momentum keys, α = 0", "α = 0.4"),
    ("momentum keys, α = 0.8", "momentum keys, α = 0", "α = 0.8"),
    ("GradCache, teacher's targets", "GradCache", "teacher's targets with the whole gradient"),
)


def run_medical_claims(
    *, seeds: int, keep: Path, patients: int, batch: int, micro: int, steps: int, only_seed: int | None = None
) -> Report | None:
    """Phantoms and weights of its own for each seed; every row on each.

    Args:
        seeds: how many.
        keep: where finished rows are kept.
        patients: phantoms of a seed.
        batch: N.
        micro: pairs in the graph.
        steps: optimizer steps of each row.
        only_seed: train the rows of this seed alone and report nothing: for several processes.
    """
    changes = merge(SETTINGS, {"fit": {"batch_size": batch, "accumulation": batch // micro, "steps": steps}})
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds) if only_seed is None else (only_seed,):
        folder = keep / "medical-claims"
        cohort = _cohort(folder / f"phantoms-{seed}", patients, seed)
        found.setdefault(UNTRAINED, []).append(run_untrained(RECIPE, changes, seed, cohort, folder))
        for arm in ARMS:
            scores = run_arm(RECIPE, changes, arm, seed, cohort, folder)
            found.setdefault(arm.name, []).append(scores)
            _log.info("seed %d, %s: %s", seed, arm.name, ", ".join(f"{c} {scores[c]:.3f}" for c in COLUMNS))
    if only_seed is not None:
        return None
    report = Report(
        benchmark="medical_claims",
        command="uv run mc-benchmark medical-claims"
        + "".join(
            f" --{name} {value}"
            for name, value, usual in (
                ("seeds", seeds, 5),
                ("patients", patients, 540),
                ("batch", batch, 128),
                ("micro", micro, 8),
                ("steps", steps, 120),
            )
            if value != usual
        ),
        question=f"What a contrastive batch of {batch} pairs is worth with {micro} in the graph, on phantoms, {seeds} seeds",
        settings={
            "seeds": seeds,
            "recipe": RECIPE,
            "patients": patients,
            "batch": batch,
            "micro": micro,
            "steps": steps,
            "each": {name: [{c: round(r[c], 4) for c in COLUMNS} for r in rows] for name, rows in found.items()},
        },
        environment=environment(),
        columns=list(TABLE.values()),
        rows=[
            Row(name=name, values={TABLE[c]: _cell([r[c] for r in rows]) for c in COLUMNS})
            for name, rows in found.items()
        ],
        reading=_reading(found),
    )
    report.save()
    report.show()
    return report


def _cohort(folder: Path, patients: int, seed: int) -> Cohort:
    if not (folder / "studies.csv").is_file():
        write_phantoms(folder, patients=patients, seed=seed)
    image = resolve_recipe(RECIPE, SETTINGS).image
    return prepare_cohort(open_studies(folder / "studies.csv", image=image))


def _cell(values: list[float]) -> str:
    return f"{Spread.of(values):.3f}"


def _reading(found: dict[str, list[dict[str, Any]]]) -> str:
    parts = []
    for more, less, what in _PAIRS:
        arm_of(more), arm_of(less)
        shown = []
        for column in ("report_to_image_at_5", "zero_shot_auroc", "zero_shot_accuracy"):
            gain = Spread.of([a[column] - b[column] for a, b in zip(found[more], found[less], strict=True)])
            spread = "" if gain.sd is None else f" ± {gain.sd:.3f}"
            shown.append(f"{column.replace('_', ' ')} {gain.mean:+.3f}{spread}")
        parts.append(f"{what}: {', '.join(shown)}")
    return "Differences within a seed, mean ± deviation. " + "; ".join(parts) + "."
