"""``mc-remote-sensing evaluate``: a run on its own held-out blocks, or on another labelled scene."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mc_core.cli import Clock, Result, Status
from mc_core.errors import ConfigError, DataError
from mc_core.runs import pick_device
from mc_remote_sensing.data import PatchScenes
from mc_remote_sensing.evaluation import Scores, finite, patch_windows, scene_windows, score
from mc_remote_sensing.training import Ground, part_windows, split_ground, tile_of
from mc_remote_sensing_app.figures import precision_recall_figure
from mc_remote_sensing_app.predict import scene_for
from mc_remote_sensing_app.runs import OpenedRun, open_run
from mc_remote_sensing_app.scene_options import SceneOptions, label_values, scene_arguments
from mc_remote_sensing_app.train import METRIC, measure, pixel_baseline, show

Windows = Iterator[tuple[np.ndarray, np.ndarray]]


def run_evaluate(
    run: Path,
    tiles: Path | None,
    options: SceneOptions,
    *,
    part: str | None,
    threshold: float | None,
    device: str,
    as_json: bool,
) -> Result:
    """Measure, and print beside what maps everything and, on own blocks, beside the pixel baseline."""
    clock = Clock()
    if threshold is not None and not 0 < threshold <= 1:
        raise ConfigError(f"--threshold {threshold}: a probability lies above 0 and not above 1")
    if tiles is not None and options.given:
        raise ConfigError(f"{tiles} and --image or --dem: give tiles with masks, or rasters, not both")
    opened = open_run(run, str(pick_device(device)))
    level = opened.model.threshold if threshold is None else threshold
    own = tiles is None and not options.given
    ground: Ground | None = None
    if own:
        ground = own_ground(opened)
        where = part or "test"
        parts = ("train", "validation", "test") if where == "all" else (where,)
        windows: Windows = (w for name in parts for w in part_windows(opened.model, ground, name))
    else:
        where = part or "all"
        if where != "all":
            raise ConfigError(
                f"--part {where}: the blocks are those of the run's own data; leave it out for other data"
            )
        windows = _patches(opened, tiles, options) if tiles is not None else _scenes(opened, options)
    with Status(f"measuring on {where}"):
        measured = {"trained": score(windows, level)}
        if not measured["trained"].histogram.counts.sum():
            raise DataError("no labelled pixel to measure on")
        if ground is not None and opened.recipe is not None and where == "test":
            rival = pixel_baseline(opened.recipe, ground)
            measured["pixel_logistic"] = measure(rival, ground, next(opened.model.parameters()).device)
    values = {name: scores.to_dict() for name, scores in measured.items()}
    values["map_everything"] = everything(measured["trained"])
    folder = run if own else Path(f"{run}-evaluation")
    baselines = {name: found[METRIC] for name, found in values.items() if name != "trained"}
    more = {
        "target": opened.model.config.target,
        "part": where,
        "threshold": level,
        "scores": {name: finite(found) for name, found in values.items()},
    }
    found = Result(METRIC, values["trained"][METRIC], baselines, run=run, seconds=clock.seconds(), more=more)
    folder.mkdir(parents=True, exist_ok=True)
    result = found.write(folder, "evaluation.json")
    if measured["trained"].histogram.counts[1].sum():
        _, precision, recall = measured["trained"].histogram.curve()
        at = measured["trained"].confusion
        chosen = None if np.isnan(at.precision) else (at.recall, at.precision)
        precision_recall_figure([("trained", recall, precision)], chosen, folder / "evaluation.png")
    title = f"{opened.folder.name}: {opened.model.config.target} on {'its own ' if own else ''}{where}"
    show(found, values, as_json=as_json, title=title, files=[result])
    return found


def own_ground(opened: OpenedRun) -> Ground:
    """The data of the run, split as it was for training.

    Raises:
        DataError: the run does not say what its data was.
    """
    if opened.recipe is None or not opened.data:
        raise DataError(f"{opened.folder} does not say what it was trained on: name data to measure on")
    if opened.data.get("tiles"):
        split = opened.recipe.split
        values = label_values(opened.data.get("label_values"))
        tile = opened.recipe.tiles.tile
        return Ground(
            (), (), PatchScenes(opened.data["tiles"], tile=tile, values=values, shares=split.shares, seed=split.seed)
        )
    scenes = [scene_for(opened, dict(a), cache=opened.folder / "elevation", labels=True) for a in opened.data["scenes"]]
    return split_ground(scenes, opened.recipe)


def everything(scores: Scores) -> dict[str, float]:
    """What calling every pixel a target would score: its IoU is the share of the target."""
    counts = scores.histogram.counts
    target, labelled = float(counts[1].sum()), float(counts.sum())
    share = target / labelled if labelled else float("nan")
    f1 = 2 * share / (1 + share) if target else float("nan")
    return {
        "iou": share if target else float("nan"),
        "f1": f1,
        "precision": share,
        "recall": 1.0 if target else float("nan"),
        "boundary_f1": float("nan"),
        "object_recall": 1.0 if target else float("nan"),
    }


def _patches(opened: OpenedRun, tiles: Path, options: SceneOptions) -> Windows:
    patches = PatchScenes(tiles, values=label_values(options.label_values))
    wanted = opened.model.config.bands.names
    if opened.model.config.network.uses_image and patches.band_names != wanted:
        raise DataError(
            f"{tiles} has the bands {', '.join(patches.band_names)}, the model was trained on {', '.join(wanted)}"
        )
    yield from patch_windows(opened.model, patches, device=next(opened.model.parameters()).device)


def _scenes(opened: OpenedRun, options: SceneOptions) -> Windows:
    for arguments in scene_arguments(options):
        scene = scene_for(opened, arguments, cache=opened.folder / "elevation", labels=True)
        yield from scene_windows(opened.model, scene, tile=tile_of(opened.model))
