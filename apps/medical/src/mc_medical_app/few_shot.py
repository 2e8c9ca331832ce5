"""``mc-medical few-shot``: heads on frozen features from few labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mc_core.cli import Clock, Result, Status, print_table
from mc_core.errors import ConfigError, DataError, closest
from mc_core.files import write_json
from mc_core.runs import folder_name, pick_device
from mc_medical.evaluation import few_shot, fit_head
from mc_medical.measure import embed_cohort, findings_of, labels_of
from mc_medical_app.measure import RANDOM, TRAINED
from mc_medical_app.runs import open_run
from mc_medical_app.study_options import StudyOptions


def run_few_shot(
    run: Path,
    source: Path | None,
    studies: StudyOptions,
    *,
    findings: Sequence[str],
    draws: int,
    save: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Do it, and print the result to standard output."""
    clock = Clock()
    opened = open_run(run, pick_device(device))
    whole, name, _ = opened.studies(source, studies)
    train, test = whole.part("train"), whole.part("test")
    names = _names(whole.studies.label_names, findings, findings_of(whole.studies, None)[1])
    labels = labels_of(train.studies, names), labels_of(test.studies, names)
    models = {TRAINED: opened.model}
    untrained = opened.untrained()
    if untrained is not None:
        models[RANDOM] = untrained
    results, features = {}, {}
    with Status("fitting heads"):
        for key, model in models.items():
            features[key] = embed_cohort(model, train).features
            results[key] = few_shot(
                features[key],
                labels[0],
                embed_cohort(model, test).features,
                labels[1],
                names,
                draws=draws,
                train_patients=train.studies.patients,
                test_patients=test.studies.patients,
            )
    if save is not None:
        _save(run, save, names, features[TRAINED], labels[0], train.studies.patients)
    first = results[TRAINED]
    last = list(first.macro)[-1]
    shown = Result(
        "few_shot_macro_auroc",
        first.macro[last],
        {key: found.macro[last] for key, found in results.items() if key != TRAINED},
        run=run,
        seconds=clock.seconds(),
        more={"few_shot": {key: found.to_dict() for key, found in results.items()}},
    )
    if as_json:
        shown.show(as_json=True, title="")
        return
    heads = [key.replace("_", " ") for key in results]
    for finding in names:
        rows = [
            [_size(size), *(f"{f.auroc[size][finding]:.3f} ± {f.spread[size][finding]:.3f}" for f in results.values())]
            for size in first.auroc
            if all(finding in f.auroc.get(size, {}) for f in results.values())
        ]
        if rows:
            print_table(f"{finding}: AUROC ± deviation over {draws} draws, {name}", ["labelled", *heads], rows)


def _size(size: str) -> str:
    return f"{size} of all" if size.endswith("%") else f"{size} with, {size} without"


def _names(known: Sequence[str], asked: Sequence[str], default: Sequence[str]) -> tuple[str, ...]:
    if not known:
        raise DataError("the studies have no labels: name a table with --labels, or columns with --column.labels")
    for name in asked:
        if name not in known:
            raise ConfigError(f"--finding {name!r} is no label of the studies; closest: {closest(name, known)}")
    return tuple(asked) or tuple(default)


def _save(
    run: Path, finding: str, names: Sequence[str], features: np.ndarray, labels: np.ndarray, patients: np.ndarray
) -> None:
    if finding not in names:
        raise ConfigError(f"--save {finding!r} is not among the findings measured; closest: {closest(finding, names)}")
    y = labels[:, list(names).index(finding)]
    known = ~np.isnan(y)
    head = fit_head(features[known], y[known], patients=patients[known])
    path = run / "heads" / f"{folder_name(finding)}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(
        path,
        {"finding": finding, "rows": int(known.sum()), "weight": head.weight.tolist(), "bias": head.bias, "c": head.c},
    )
