"""The full CIFAR-10 study for a GPU: ResNet-18, 200 epochs, MoCo, and DCL beside InfoNCE at small batches.

Published for comparison (lightly, ResNet-18, batch 128, 200 epochs): MoCo 83.8 % 200-NN in 112 minutes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from mc_benchmarks.cifar import _knn, load_cifar, train_ours
from mc_benchmarks.contract import RESULTS, Report, Row, environment
from mc_core.files import read_json
from mc_vision.data import take
from mc_vision.evaluation import encoder_of
from mc_vision.recipe import resolve_recipe

BATCHES = (32, 64, 128, 256)


def _cases(batches: tuple[int, ...]) -> list[tuple[str, str, int, dict[str, Any]]]:
    """(row, recipe, batch, changes): the CIFAR recipes of the papers' reproductions."""
    cases: list[tuple[str, str, int, dict[str, Any]]] = [("MoCo, batch 512", "moco-cifar10", 512, {})]
    for batch in batches:
        cases.append((f"DCL, batch {batch}", "dcl-cifar10", batch, {"method": {"loss": "dcl"}}))
        cases.append((f"InfoNCE (SimCLR), batch {batch}", "dcl-cifar10", batch, {"method": {"loss": "info_nce"}}))
    return cases


def run_cifar_gpu(
    *,
    data: str | None = None,
    epochs: int = 200,
    device: str = "auto",
    batches: tuple[int, ...] = BATCHES,
    train_images: int | None = None,
) -> Report:
    """Measure, save after each row, show. Rows that an earlier, interrupted call finished are not run again."""
    target = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    train, test = load_cifar(data)
    if train_images is not None:
        train = take(train, train_images)
    name = f"cifar10_resnet18_{target.type}"
    rows: list[Row] = []
    settings = {"epochs": epochs, "train_images": len(train)}
    path = RESULTS / f"{name}.json"
    if path.exists():
        earlier = Report.model_validate(read_json(path))
        if earlier.settings == settings:
            rows = list(earlier.rows)
    report: Report | None = None
    for label, recipe_name, batch, changes in _cases(batches):
        if any(row.name == label for row in rows):
            continue
        precision = "bf16"
        recipe = resolve_recipe(
            recipe_name,
            {
                **changes,
                "fit": {
                    "epochs": epochs,
                    "batch_size": batch,
                    "device": target.type,
                    "precision": precision,
                    "workers": 0,
                },
            },
        )
        with tempfile.TemporaryDirectory() as folder:
            encoder, seconds = train_ours(recipe, (train, test), Path(folder) / "run")
        accuracy = _knn(encoder_of(encoder), recipe, (train, test), target)
        rows.append(Row(name=label, values={"kNN %": accuracy, "minutes": seconds / 60}))
        report = Report(
            benchmark=name,
            command="uv run mc-benchmark cifar-gpu",
            question=f"CIFAR-10, ResNet-18, {epochs} epochs of {len(train):,} images, bf16, views on the device: 200-NN accuracy",
            settings=settings,
            environment=environment(target),
            columns=["kNN %", "minutes"],
            rows=rows,
            reading="One seed each.",
        )
        report.save()
        print(f"{label}: kNN {accuracy:.2f} % in {seconds / 60:.1f} min", flush=True)
    report = report or Report.model_validate(read_json(path))
    report.show()
    return report
