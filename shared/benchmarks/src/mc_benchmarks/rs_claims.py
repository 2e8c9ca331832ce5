"""HPCL-Net part by part: on made terrains, where decoys make elevation necessary, and on real landslide tiles."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mc_benchmarks.contract import Report, Row, environment
from mc_core.errors import ConfigError
from mc_remote_sensing.ablation import COLUMNS, possible_modalities, rows_of, run_row
from mc_remote_sensing.baselines import fit_pixel_logistic
from mc_remote_sensing.data import PatchScenes, open_scene
from mc_remote_sensing.evaluation import choose_threshold, histogram_of, score
from mc_remote_sensing.recipe import resolve_recipe
from mc_remote_sensing.terrain import write_terrain
from mc_remote_sensing.training import Ground, part_windows, split_ground

_log = logging.getLogger("mc_core")

RECIPE = "hpcl-net-laptop"
PIXELS = "pixel by pixel"
_TERRAIN_PX = 1536

Each = dict[str, list[dict[str, float]]]


def run_rs_terrain(*, seeds: int, keep: Path) -> Report:
    """A terrain, a split and initial weights of its own for each seed; every row of the ablation on each.

    Args:
        seeds: terrains.
        keep: where finished rows are kept.
    """
    found: Each = {}
    for seed in range(seeds):
        folder = keep / "rs-terrain" / f"terrain-{seed}"
        files = write_terrain(folder / "files", size_px=_TERRAIN_PX, seed=seed)
        scene = open_scene(files.image, files.elevation, files.labels, extent=files.extent, cache=folder / "cache")
        base = {"split": {"seed": seed}}
        ground = split_ground([scene], resolve_recipe(RECIPE, base))
        _rows(found, ground, base, seed, folder)
    return _report(
        "rs_terrain",
        f"HPCL-Net part by part on {seeds} made terrains: scars among decoys",
        "uv run mc-benchmark rs-terrain" + (f" --seeds {seeds}" if seeds != 5 else ""),
        found,
        seeds,
        "Decoys share the tone or the bowl of a scar, so image and elevation are needed together.",
    )


def run_rs_landslides(*, data: Path, seeds: int, keep: Path) -> Report:
    """Real landslide photographs with masks; no elevation comes with them.

    Args:
        data: a tar or folder of images and masks.
        seeds: splits and initial weights.
        keep: where finished rows are kept.
    """
    if not data.exists():
        raise ConfigError(f"{data}: no such tiles; name them with --data, or the folder that holds them with MC_DATA")
    found: Each = {}
    for seed in range(seeds):
        base = {"split": {"seed": seed}, "fit": {"steps": 600, "workers": 1}}
        patches = PatchScenes(data, tile=64, seed=seed)
        _rows(found, Ground((), (), patches), base, seed, keep / "rs-landslides" / f"split-{seed}")
    return _report(
        "rs_landslides",
        f"HPCL-Net part by part on {patches.count} real landslide images with masks, {seeds} splits",
        "uv run mc-benchmark rs-landslides" + (f" --seeds {seeds}" if seeds != 3 else ""),
        found,
        seeds,
        "Photographs alone, 35 to learn from and 7 to test on in each split, from two countries and of two kinds: too few to "
        "tell small differences apart. 600 steps.",
    )


def _rows(found: Each, ground: Ground, base: Mapping[str, Any], seed: int, folder: Path) -> None:
    recipe = resolve_recipe(RECIPE, base)
    modalities = possible_modalities(ground)
    pixels = fit_pixel_logistic(ground.tiles(recipe), "both" if "fused" in modalities else "image", seed=seed)
    threshold = choose_threshold(histogram_of(part_windows(pixels, ground, "validation", device="cpu")))
    scores = score(part_windows(pixels, ground, "test", device="cpu"), threshold).to_dict()
    found.setdefault(PIXELS, []).append(scores)
    for row in rows_of(modalities, everything=False):
        scores = run_row(RECIPE, base, row, seed, ground, folder)
        found.setdefault(row.name, []).append(scores)
        _log.info("%s, seed %d: %s", row.name, seed, ", ".join(f"{c} {scores[c]:.3f}" for c in COLUMNS))


def _report(name: str, question: str, command: str, found: Each, seeds: int, about: str) -> Report:
    report = Report(
        benchmark=name,
        command=command,
        question=question,
        settings={"seeds": seeds, "recipe": RECIPE, "each": {n: [_kept(r) for r in rows] for n, rows in found.items()}},
        environment=environment(),
        columns=[c.replace("_", " ") for c in COLUMNS],
        rows=[
            Row(name=row, values={c.replace("_", " "): _cell([r[c] for r in each]) for c in COLUMNS})
            for row, each in found.items()
        ],
        reading=f"{about} {reading(found)}",
    )
    report.save()
    report.show()
    return report


def _kept(scores: Mapping[str, float]) -> dict[str, float]:
    return {c: round(scores[c], 4) for c in (*COLUMNS, "precision", "recall", "average_precision")}


def _cell(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def reading(found: Each) -> str:
    """Differences within the same seed, mean and deviation, whatever their sign."""
    richest = next((m for m in ("fused", "image", "elevation") if f"{m}, cross-entropy" in found), None)
    assert richest is not None
    pairs = [
        (f"{richest}, {b}", f"{richest}, {a}", b) for a, b in (("cross-entropy", "contrast"), ("contrast", "queue"))
    ]
    pairs += [(f"{richest}, momentum", f"{richest}, queue", "momentum")]
    pairs += [(f"{richest}, momentum", f"{richest}, momentum, uniform", "boundary instead of uniform sampling")]
    if richest == "fused":
        pairs = [("fused, cross-entropy", "image, cross-entropy", "elevation beside the image"), *pairs]
    parts = []
    for more, less, what in pairs:
        if more in found and less in found:
            shown = []
            for column in ("iou", "boundary_f1"):
                gain = np.array([a[column] - b[column] for a, b in zip(found[more], found[less], strict=True)])
                spread = f" ± {gain.std(ddof=1):.3f}" if len(gain) > 1 else ""
                shown.append(f"{column.replace('_', ' ')} {gain.mean():+.3f}{spread}")
            parts.append(f"{what}: {', '.join(shown)}")
    return (
        "Against the row without it, of the same seed: "
        + "; ".join(parts)
        + ". Thresholds are chosen on validation ground."
    )
