"""SwAV's two claims on CIFAR-10: small crops help at equal epochs, and balance keeps the assignments from collapsing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from mc_benchmarks.cifar import _knn, load_cifar
from mc_benchmarks.claims import Scores, kept, over_seeds, trained, value
from mc_benchmarks.contract import Report, environment
from mc_core.files import read_jsonl
from mc_core.recipes import merge
from mc_vision.data import take
from mc_vision.evaluation import encoder_of, raw_pixels
from mc_vision.methods import METHODS
from mc_vision.recipe import resolve_recipe

MULTI, TWO, TWO_WIDE, SOFTMAX = (
    "2 full + 4 small crops, balanced",
    "2 full crops, balanced",
    "2 full crops of 10 to 100 % of the image, balanced",
    "2 full + 4 small crops, softmax targets",
)
CASES: dict[str, dict[str, Any]] = {
    MULTI: {},
    TWO: {"views": {"small_crops": 0}},
    # what small crops cover too, as the paper widens the crops of its two-crop runs
    TWO_WIDE: {"views": {"small_crops": 0, "crop_scale": (0.1, 1.0)}},
    SOFTMAX: {"method": {"balanced": False}},
}


def run_swav_claims(*, data: str | None, epochs: int, seeds: int, train_images: int, keep: Path) -> Report:
    """Measure, save, show."""
    train, test = load_cifar(data)
    train = take(train, train_images)
    sets = (train, test)
    device = torch.device("cpu")
    runs: list[Scores] = []
    shared: dict[str, Any] = {
        "views": {"preset": "swav-small", "size": 32, "flip_p": 0.5},
        "method": {"encoder": {"image_size": 32}},
        "fit": {"epochs": epochs, "device": "cpu", "workers": 0, "stop_on_collapse": False},
    }
    for seed in range(seeds):
        for name, changes in CASES.items():
            recipe = resolve_recipe("swav-laptop", merge(merge(shared, changes), {"fit": {"seed": seed}}))

            def work(recipe: Any = recipe, name: str = name) -> Scores:
                with tempfile.TemporaryDirectory() as folder:
                    method = trained(recipe, train, Path(folder) / "run")
                    last = read_jsonl(Path(folder) / "run" / "metrics.jsonl")[-1]
                knn = _knn(encoder_of(method.encoder), recipe, sets, device)
                return {name: {"kNN %": knn, "prototype usage": last["usage_share"], "loss / ln K": last["loss_share"]}}

            settings = {**recipe.model_dump(mode="json"), "train_images": len(train)}
            runs.append(kept(keep / "swav-claims", f"{list(CASES).index(name)}-{seed}", settings, work))

        def controls(recipe: Any = recipe) -> Scores:
            torch.manual_seed(recipe.fit.seed)
            fresh = METHODS.method_class(recipe.system)(recipe.method).encoder
            return {
                "untrained encoder": {"kNN %": _knn(encoder_of(fresh), recipe, sets, device)},
                "raw pixels": {"kNN %": _knn(raw_pixels, recipe, sets, device)},  # the same for each seed
            }

        runs.append(kept(keep / "swav-claims", f"controls-{seed}", {"train_images": len(train)}, controls))
    rows = over_seeds(runs)
    gain = value(rows, MULTI, "kNN %") - max(value(rows, TWO, "kNN %"), value(rows, TWO_WIDE, "kNN %"))
    report = Report(
        benchmark="swav_claims",
        command="uv run mc-benchmark swav-claims",
        question=f"SwAV on CIFAR-10, swav-laptop, {epochs} epochs of {len(train):,} images, {seeds} seeds: 200-NN accuracy",
        settings={"shared": shared, "cases": CASES, "seeds": seeds, "train_images": len(train)},
        environment=environment(device),
        columns=["kNN %", "kNN % sd", "prototype usage", "prototype usage sd", "loss / ln K", "loss / ln K sd"],
        rows=rows,
        reading=f"Small crops: {gain:+.1f} points over the better run with two crops at equal epochs. Usage: entropy of the "
        f"mean assignment as a share of ln K, 1 where all prototypes are used alike; {value(rows, MULTI, 'prototype usage'):.2f} "
        f"balanced, {value(rows, SOFTMAX, 'prototype usage'):.2f} with softmax targets.",
    )
    report.save()
    report.show()
    return report
