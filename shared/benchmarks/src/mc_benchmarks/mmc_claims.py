"""MMC's claims with each loss alone and all three: do patches of one object get more alike, and those of several less?

Trained and measured on scenes of handwritten digits, and trained on CIFAR-10's photos and measured on COCO photos with masks.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mc_benchmarks.cifar import load_cifar
from mc_benchmarks.claims import Scores, kept, over_seeds, trained, value
from mc_benchmarks.contract import Report, environment
from mc_core.errors import DataError
from mc_core.recipes import merge
from mc_core.samples import digit_scenes
from mc_vision.data import ArraySource, ImageSource, take
from mc_vision.data.mask_layouts import open_masks
from mc_vision.data.masks import MaskedImages, MaskedScenes
from mc_vision.patch_evaluation import PatchProtocol, evaluate_patches
from mc_vision.patch_evaluation.evaluate import MEAN_COLOR, POSITION_ONLY, RANDOM_INIT
from mc_vision.recipe import resolve_recipe

ALL = "all three losses"
CASES = {
    ALL: {},
    "reconstruction alone": {"distillation_weight": 0.0, "contrast_weight": 0.0},
    "distillation alone": {"reconstruction_weight": 0.0, "contrast_weight": 0.0},
    "contrast alone": {"reconstruction_weight": 0.0, "distillation_weight": 0.0},
}
OVERLAP, IOU, PRECISION = "overlap", "mIoU at t*", "AP"


@dataclass(frozen=True)
class _Study:
    """One pair of training images and images with masks."""

    name: str
    source: ImageSource
    masks: MaskedImages
    size: int  # of the images with masks
    changes: dict[str, Any]


def _studies(data: str | None, train_images: int, steps: int | None) -> list[_Study]:
    scenes = digit_scenes(6000, size=32, split="train")
    fit = {"fit": {"steps": steps}} if steps else {}
    studies = [
        _Study(
            "scenes",
            ArraySource(scenes.images, scenes.labels),
            MaskedScenes(200, size=96),
            96,
            fit,
        )
    ]
    root = Path(data or os.environ.get("MC_DATA", ""))
    photos = root / "vision-language" / "coco-captions-mini.tar"
    if not photos.exists():
        raise DataError(f"{photos} is not there; name the folder that holds vision/ and vision-language/ with --data")
    changes = {"views": {"preset": "small", "size": 32}, "fit": {"epochs": 5}}
    cifar = take(load_cifar(str(root / "vision"))[0], train_images)
    studies.append(_Study("COCO", cifar, open_masks(str(photos)), 160, merge(changes, fit)))
    return studies


def run_mmc_claims(*, data: str | None, seeds: int, train_images: int, steps: int | None, keep: Path) -> Report:
    """Measure, save, show."""
    runs: list[Scores] = []
    studies = _studies(data, train_images, steps)
    shared = {"fit": {"device": "cpu", "workers": 0, "stop_on_collapse": False}}
    for seed in range(seeds):
        for study in studies:
            for name, weights in CASES.items():
                changes = merge(merge(shared, study.changes), {"method": weights, "fit": {"seed": seed}})
                recipe = resolve_recipe("mmc-laptop", changes)

                def work(recipe: Any = recipe, study: _Study = study, name: str = name) -> Scores:
                    with tempfile.TemporaryDirectory() as folder:
                        method = trained(recipe, study.source, Path(folder) / "run")
                    return _measured(method.encoder, recipe, study, name)

                settings = {**recipe.model_dump(mode="json"), "images": len(study.source), "size": study.size}
                runs.append(kept(keep / "mmc-claims", f"{study.name}-{list(CASES).index(name)}-{seed}", settings, work))
    rows = over_seeds(runs)
    report = Report(
        benchmark="mmc_claims",
        command="uv run mc-benchmark mmc-claims",
        question=f"MMC with each loss alone and all three, mmc-laptop, {seeds} seeds: do frozen patches tell objects apart?",
        settings={
            "cases": CASES,
            "seeds": seeds,
            "studies": {
                s.name: {"images": len(s.source), "with masks": len(s.masks), "size": s.size, "changes": s.changes}
                for s in studies
            },
        },
        environment=environment(torch.device("cpu")),
        columns=[OVERLAP, f"{OVERLAP} sd", IOU, f"{IOU} sd", PRECISION, f"{PRECISION} sd"],
        rows=rows,
        reading=" ".join(_reading(rows, study.name) for study in studies),
    )
    report.save()
    report.show()
    return report


def _measured(encoder: torch.nn.Module, recipe: Any, study: _Study, name: str) -> Scores:
    view = recipe.views.views().views[0]
    protocol = PatchProtocol(size=study.size, seed=recipe.fit.seed, prompts=("center",), pixels=False, batch_size=4)
    found = evaluate_patches({name: encoder}, study.masks, protocol, mean=view.mean, std=view.std)
    # untrained encoder and colour once for each seed, position for the model that the claim is about
    wanted = [name, *([RANDOM_INIT, MEAN_COLOR, POSITION_ONLY] if name == ALL else [])]
    scores: Scores = {}
    for row in wanted:
        similarity, segmentation = found[row].similarity, found[row].segmentation
        assert similarity is not None
        assert segmentation is not None
        prompt = segmentation.prompts["center"]
        scores[f"{study.name}: {row}"] = {
            OVERLAP: similarity.overlap,
            IOU: prompt.patch.tuned,
            PRECISION: prompt.average_precision,
        }
    return scores


def _reading(rows: Any, study: str) -> str:
    """Which directions of the claims hold here."""

    def of(name: str, column: str) -> float:
        return value(rows, f"{study}: {name}", column)

    overlap, iou = of(ALL, OVERLAP), of(ALL, IOU)
    checks = {
        **{f"overlap below {name}": overlap < of(name, OVERLAP) for name in list(CASES)[1:]},
        "overlap below the untrained encoder": overlap < of(RANDOM_INIT, OVERLAP),
        "mIoU above the untrained encoder": iou > of(RANDOM_INIT, IOU),
        "mIoU above position only": iou > of(POSITION_ONLY, IOU),
    }
    holds = [text for text, true in checks.items() if true]
    fails = [text for text, true in checks.items() if not true]
    text = f"{study}, all three losses: {', '.join(holds) or 'nothing'}"
    return f"{text}; not so: {', '.join(fails)}." if fails else f"{text}."
