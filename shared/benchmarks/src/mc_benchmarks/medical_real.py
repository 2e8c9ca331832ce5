"""MSD on real chest X-rays with clinical notes: retrieval and label probes on patients held out, beside the random encoder."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mc_benchmarks.contract import Report, Row, environment
from mc_core.errors import ConfigError
from mc_core.seeds import Spread
from mc_medical.data import ColumnOptions, SplitOptions, Studies, open_studies
from mc_medical.evaluation import area_interval, first_of_each, fit_head, retrieval
from mc_medical.measure import Embedded, embed_cohort
from mc_medical.methods.msd.model import MSD
from mc_medical.recipe import resolve_recipe
from mc_medical.training import Cohort, prepare_cohort, pretrain_pairs, untrained_model

_log = logging.getLogger("mc_core")

RECIPE = "msd-laptop"
LABEL = "COVID-19"
COLUMNS = {
    "report_to_image": "note → image, recall at 5",
    "image_to_report": "image → note, recall at 5",
    "probe": f"{LABEL}, AUROC of a linear head",
}


def run_medical_real(*, data: Path, seeds: int, steps: int, keep: Path) -> Report:
    """Train on two thirds of the patients and measure on the others, for several splits.

    Args:
        data: a tar of images with notes.
        seeds: splits and initial weights.
        steps: optimizer steps.
        keep: where runs are kept.
    """
    if not data.exists():
        raise ConfigError(f"{data}: no such archive; name it with --data, or the folder that holds it with MC_DATA")
    found: dict[str, list[dict[str, float]]] = {"trained": [], "random encoder": []}
    told: dict[str, Any] = {}
    counts: dict[str, Any] = {}
    for seed in range(seeds):
        changes = {"fit": {"seed": seed, "steps": steps, "batch_size": 96, "accumulation": 3}}
        recipe = resolve_recipe(RECIPE, changes)
        studies = open_studies(
            data,
            columns=ColumnOptions(classes="finding"),
            image=recipe.image,
            reports=recipe.reports,
            need_reports=True,
        )
        studies = replace(studies, splits=np.full(len(studies), "", dtype="<U10"))
        cohort = prepare_cohort(studies, SplitOptions(shares=(0.65, 0.0, 0.35), seed=seed))
        method = pretrain_pairs(recipe, cohort, keep / "medical-real" / f"split-{seed}").method
        assert isinstance(method, MSD)
        counts = cohort.counts()
        for name, model in (
            ("trained", method.model),
            ("random encoder", untrained_model(recipe, method.model.tokenizer)),
        ):
            figures, intervals = _figures(embed_cohort(model, cohort), cohort)
            found[name].append(figures)
            if seed == 0:
                told[name] = intervals
            _log.info("split %d, %s: %s", seed, name, intervals)
    report = Report(
        benchmark="medical_real",
        command="uv run mc-benchmark medical-real" + (f" --seeds {seeds}" if seeds != 5 else ""),
        question=f"What MSD learns from {counts['train']['images']} real chest X-rays with clinical notes",
        settings={
            "seeds": seeds,
            "recipe": RECIPE,
            "steps": steps,
            "splits": counts,
            "first_split": told,
            "each": found,
        },
        environment=environment(),
        columns=list(COLUMNS.values()),
        rows=[
            Row(name=name, values={COLUMNS[c]: f"{Spread.of([r[c] for r in rows]):.3f}" for c in COLUMNS})
            for name, rows in found.items()
        ],
        reading=(
            f"Mean ± deviation over {seeds} splits by patient, {counts['train']['images']} images to learn from, "
            f"{counts['test']['images']} to test on. Chance of recall at 5 is {found['trained'][0]['chance']:.3f}. With 95 % "
            f"intervals over patients, first split: {'; '.join(f'{name}: {text}' for name, text in told.items())}. Encoders from "
            "scratch on so few images: nothing to build on, but the whole path on real files."
        ),
    )
    report.save()
    report.show()
    return report


def _figures(seen: Embedded, cohort: Cohort) -> tuple[dict[str, float], str]:
    train, test = (np.flatnonzero(cohort.studies.splits == part) for part in ("train", "test"))
    held: Studies = cohort.studies.take(test)
    rows = test[first_of_each(held.studies)]
    both = retrieval(
        seen.images[rows], seen.texts[rows], cohort.studies.text_ids[rows], patients=cohort.studies.patients[rows]
    )
    y = cohort.studies.labels[:, cohort.studies.label_names.index(LABEL)]
    y = (np.nan_to_num(y) == 1).astype(np.float64)
    head = fit_head(seen.features[train], y[train], patients=cohort.studies.patients[train])
    probe = area_interval("auroc", y[test], head.logits(seen.features[test]), held.patients)
    t2i, i2t = both.text_to_image.recall[5], both.image_to_text.recall[5]
    figures = {"report_to_image": t2i.value, "image_to_report": i2t.value, "probe": probe.value}
    return figures | {"chance": both.text_to_image.chance[5]}, f"{t2i}, {i2t}, {probe}"
