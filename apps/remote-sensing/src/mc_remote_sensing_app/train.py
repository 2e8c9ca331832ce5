"""``mc-remote-sensing train``: from rasters and labels to a model with a threshold, its measure beside baselines, and a report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from mc_core.cli import Clock, Result, Status, given_fields, keep_freed_memory, print_table
from mc_core.errors import ConfigError
from mc_core.files import write_json
from mc_core.recipes import to_yaml
from mc_core.report import write_report
from mc_core.runs import folder_name
from mc_remote_sensing.baselines import PixelLogistic, fit_pixel_logistic
from mc_remote_sensing.data import PatchScenes, Scene, check_alignment, open_scene, write_blocks
from mc_remote_sensing.evaluation import Scores, choose_threshold, finite, histogram_of, score
from mc_remote_sensing.inference.running import Segmenter
from mc_remote_sensing.recipe import Recipe, resolve_recipe
from mc_remote_sensing.terrain import write_terrain
from mc_remote_sensing.training import (
    Ground,
    Trained,
    checked,
    data_fields,
    part_windows,
    split_ground,
    tile_of,
    train_segmentation,
    with_data,
)
from mc_remote_sensing_app.figures import (
    comparison,
    precision_recall_figure,
    read_map,
    save_png,
    scene_labels,
    scene_picture,
)
from mc_remote_sensing_app.predict import map_scene, say
from mc_remote_sensing_app.runs import DATA_FILE
from mc_remote_sensing_app.scene_options import SceneOptions, refuse_lone_labels, scene_arguments

SAMPLE = "terrain"
METRIC = "iou"
_TERRAIN_PX = 1536
_MAPPED = 30_000_000  # pixels; a larger scene is mapped by `predict`, when the user asks for it
_log = logging.getLogger("mc_core")


@dataclass(frozen=True)
class TrainOptions:
    """The options of ``mc-remote-sensing train`` as parsed."""

    tiles: Path | None
    scene: SceneOptions
    recipe: str | None
    out: Path | None
    modality: str
    pretrained: Path | None
    json: bool
    print_recipe: bool
    sections: Mapping[str, BaseModel | None]

    def changes(self) -> dict[str, Any]:
        """What the command line changes of the recipe, nested."""
        found = {name: given_fields(section) for name, section in self.sections.items()}
        return {name: fields for name, fields in found.items() if fields}


def run_train(options: TrainOptions) -> None:
    """Do it, and print the result to standard output."""
    embedded = options.tiles is None and not options.scene.given
    if embedded:
        refuse_lone_labels(options.scene)
    if options.tiles is not None and options.scene.given:
        raise ConfigError(f"{options.tiles} and --image or --dem: give tiles with masks, or rasters, not both")
    name = options.recipe or ("hpcl-net-laptop" if embedded else "hpcl-net")
    recipe = resolve_recipe(name, options.changes())
    if recipe.system != "hpcl-net":
        raise ConfigError(f"--recipe {name}: trains {recipe.system}; that is `mc-remote-sensing pretrain`")
    if options.print_recipe:
        sys.stdout.write(to_yaml(recipe))
        return
    clock = Clock()
    keep_freed_memory()
    run_dir = options.out or Path("runs") / f"{folder_name(Path(name).stem)}-{folder_name(_data_name(options))}"
    arguments = None if options.tiles is not None else scenes_of(options.scene, run_dir, recipe)
    ground = ground_of(options.tiles, arguments, recipe, options.scene, run_dir)
    with Status("statistics of the training blocks"):
        fields = data_fields(ground, options.modality)
        if options.pretrained is not None:
            fields |= pretrained_fields(options.pretrained, fields["network"]["modality"])
        recipe = with_data(recipe, fields)
    data = {
        "scenes": [_plain(a) for a in arguments or []],
        "tiles": None if options.tiles is None else str(options.tiles),
        "label_values": options.scene.label_values,
        "embedded": embedded,
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    for i, blocks in enumerate(ground.blocks):
        path = run_dir / ("blocks.gpkg" if len(ground.blocks) == 1 else f"blocks-{i + 1}.gpkg")
        if not path.exists():  # a run that goes on has them; one of other settings is refused below, and keeps its own
            write_blocks(blocks, path)
    trained = train_segmentation(recipe, ground, run_dir)
    if trained is None:
        return
    write_json(run_dir / DATA_FILE, data)
    baselines: dict[str, Segmenter] = {}
    if embedded and trained.model.modality == "fused":
        baselines["image_only"] = _image_only(recipe, ground, run_dir)
    finish(recipe, ground, trained, baselines, run_dir=run_dir, clock=clock, as_json=options.json)


def scenes_of(options: SceneOptions, run_dir: Path, recipe: Recipe[Any]) -> list[dict[str, Any]]:
    """Arguments of :func:`open_scene` for each scene named; without any, the made terrain, written into the run."""
    if options.given:
        return scene_arguments(options)
    with Status("making a terrain"):
        files = write_terrain(run_dir / SAMPLE, size_px=_TERRAIN_PX, seed=recipe.split.seed)
    return [{"image": files.image, "elevation": files.elevation, "labels": files.labels, "extent": files.extent}]


def ground_of(
    tiles: Path | None,
    arguments: Sequence[Mapping[str, Any]] | None,
    recipe: Recipe[Any],
    options: SceneOptions,
    run_dir: Path,
) -> Ground:
    """What the data options name, split into parts."""
    if tiles is not None:
        from mc_remote_sensing_app.scene_options import label_values

        with Status(f"reading {tiles}"):
            patches = PatchScenes(
                tiles,
                tile=recipe.tiles.tile,
                values=label_values(options.label_values),
                target_share=recipe.tiles.target_share,
                shares=recipe.split.shares,
                seed=recipe.split.seed,
            )
            return checked(Ground((), (), patches))
    scenes: list[Scene] = []
    for given in arguments or []:
        with Status("looking whether the files fit together"):
            say(check_alignment(**given))
            scenes.append(open_scene(**given, cache=run_dir / "elevation"))
    with Status("cutting the ground into blocks"):
        return split_ground(scenes, recipe)


def pretrained_fields(run: Path, modality: str) -> dict[str, Any]:
    """Where the encoders of a modality start from a run of ``pretrain``."""
    found = {}
    if modality in ("image", "fused"):
        found["pretrained_image"] = str(run)
    if modality in ("elevation", "fused"):
        found["pretrained_elevation"] = str(run)
    if not found:
        raise ConfigError(f"--pretrained {run}: modality {modality} has no encoder of the image or the elevation alone")
    return found


def _image_only(recipe: Recipe[Any], ground: Ground, run_dir: Path) -> Segmenter:
    """The same recipe without elevation, trained to see what elevation is worth."""
    _log.info("now the same without elevation, to compare with")
    trained = train_segmentation(with_data(recipe, data_fields(ground, "image")), ground, run_dir / "image-only")
    assert trained is not None
    return trained.model


def finish(
    recipe: Recipe[Any],
    ground: Ground,
    trained: Trained,
    rivals: Mapping[str, Segmenter],
    *,
    run_dir: Path,
    clock: Clock,
    as_json: bool,
) -> Result:
    """Measure on the test part beside the baselines, draw, report, print."""
    model = trained.model
    device = next(model.parameters()).device
    with Status("measuring on the test part beside the baselines"):
        measured = {"trained": score(part_windows(model, ground, "test", device=device), model.threshold)}
        for name, rival in {**rivals, "pixel_logistic": pixel_baseline(recipe, ground)}.items():
            measured[name] = measure(rival, ground, device)
    figures = draw(model, ground, measured, run_dir)
    values = {name: scores.to_dict() for name, scores in measured.items()}
    baselines = {name: found[METRIC] for name, found in values.items() if name != "trained"}
    more = {
        "target": model.config.target,
        "modality": model.modality,
        "threshold": model.threshold,
        "test": {name: finite(found) for name, found in values.items()},
        "validation": finite(trained.validation.to_dict()),
        "steps": trained.run.step,
        "training_seconds": round(trained.run.seconds, 1),
        "bad_samples": trained.run.bad_samples,
    }
    found = Result(METRIC, values["trained"][METRIC], baselines, run=run_dir, seconds=clock.seconds(), more=more)
    found.write(run_dir)
    shown = {name: value for name, value in found.fields.items() if name not in ("test", "validation")}
    shown |= {f"test part: {name.replace('_', ' ')}": _line(scores) for name, scores in values.items()}
    shown["validation part"] = _line(trained.validation.to_dict())
    with Status("writing the report"):
        report = write_report(run_dir, title=f"{run_dir.name}: {model.config.target}", result=shown, figures=figures)
    found.fields["report"] = str(report)
    title = f"{model.config.target}, {model.modality}: test part"
    show(found, values, as_json=as_json, title=title, files=[run_dir, run_dir / "model", report])
    return found


def measure(model: Segmenter, ground: Ground, device: torch.device) -> Scores:
    """Scores on the test part, at the threshold that is best on the validation part."""
    threshold = choose_threshold(histogram_of(part_windows(model, ground, "validation", device=device)))
    return score(part_windows(model, ground, "test", device=device), threshold)


def pixel_baseline(recipe: Recipe[Any], ground: Ground) -> PixelLogistic:
    """Logistic regression on a pixel's own values, of what the recipe's model sees."""
    inputs: Any = {"image": "image", "elevation": "elevation"}.get(recipe.method.network.modality, "both")
    return fit_pixel_logistic(ground.tiles(recipe), inputs, seed=recipe.fit.seed)


_COLUMNS = ("iou", "f1", "precision", "recall", "boundary_f1", "object_recall")


def show(
    found: Result,
    values: Mapping[str, Mapping[str, float]],
    *,
    as_json: bool,
    title: str,
    files: Sequence[Path] = (),
) -> None:
    """Print the result, one row for each model, and the files that were written."""
    if as_json:
        found.show(as_json=True, title=title)
        return
    rows = [(name.replace("_", " "), *(_shown(scores[c]) for c in _COLUMNS)) for name, scores in values.items()]
    print_table(title, ["", *_COLUMNS], rows)
    sys.stdout.write("".join(f"{path}\n" for path in files))


def _line(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{column.replace('_', ' ')} {_shown(scores[column])}" for column in _COLUMNS)


def _shown(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def draw(model: Any, ground: Ground, measured: Mapping[str, Scores], run_dir: Path) -> list[tuple[str, Path]]:
    """Pictures for the report: precision against recall, and the map of the first scene against its labels."""
    figures: list[tuple[str, Path]] = []
    curves = [
        (name.replace("_", " "), recall, precision)
        for name, scores in measured.items()
        if scores.histogram.counts[1].sum()
        for _, precision, recall in [scores.histogram.curve()]
    ]
    if curves:
        at = measured["trained"].confusion
        chosen = None if np.isnan(at.precision) else (at.recall, at.precision)
        path = precision_recall_figure(curves, chosen, run_dir / "precision-recall.png")
        figures.append(("Precision and recall on the test part; the threshold was chosen on the validation part", path))
    if ground.scenes and ground.scenes[0].grid.height * ground.scenes[0].grid.width <= _MAPPED:
        scene = ground.scenes[0]
        found = map_scene(model, scene, run_dir / "map.tif", tile=tile_of(model))
        picture = scene_picture(scene)
        shown = comparison(picture, read_map(found.probability), scene_labels(scene), model.threshold)
        figures += [
            ("The scene", save_png(picture, run_dir / "scene.png")),
            (
                "The map of the whole scene, training blocks too: found (green), missed (blue), mapped for nothing (orange)",
                save_png(shown, run_dir / "map.png"),
            ),
        ]
    return figures


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in arguments.items() if value is not None
    }


def _data_name(options: TrainOptions) -> str:
    if options.tiles is not None:
        return options.tiles.stem
    paths = options.scene.image or options.scene.dem
    return paths[0].stem if paths else SAMPLE
