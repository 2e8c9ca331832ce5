"""``mc-remote-sensing predict``: a scene of any size becomes a probability raster, a class raster and polygons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mc_core.cli import Clock, Status, print_json, print_table
from mc_core.errors import ConfigError, DataError
from mc_core.runs import pick_device
from mc_remote_sensing.data import RasterSource, Scene, check_alignment, open_scene
from mc_remote_sensing.inference.polygons import write_polygons
from mc_remote_sensing.inference.predict import SceneMap, predict_scene
from mc_remote_sensing.model import SegmentationModel
from mc_remote_sensing.training import tile_of
from mc_remote_sensing_app.runs import OpenedRun, open_run
from mc_remote_sensing_app.scene_options import SceneOptions, scene_arguments


def run_predict(
    run: Path,
    options: SceneOptions,
    *,
    out: Path,
    classes: Path | None,
    polygons: Path | None,
    probability: Any,
    threshold: float | None,
    min_area: float,
    tile: int | None,
    overlap: int | None,
    device: str,
    as_json: bool,
) -> dict[str, Any]:
    """Map the scene, and print what was written."""
    clock = Clock()
    if min_area < 0:
        raise ConfigError(f"--min-area {min_area}: give square metres, 0 or more")
    if polygons is not None and polygons.suffix.lower() != ".gpkg":
        raise ConfigError(f"--polygons {polygons}: polygons are written as GeoPackage; give a name that ends in .gpkg")
    arguments = scene_arguments(options)
    if len(arguments) != 1:
        raise ConfigError(f"{len(arguments)} scenes: predict maps one at a time")
    opened = open_run(run, str(pick_device(device)))
    scene = scene_for(opened, arguments[0], cache=opened.folder / "elevation")
    found = map_scene(
        opened.model,
        scene,
        out,
        classes=classes,
        probability=probability,
        threshold=threshold,
        tile=tile,
        overlap=overlap,
    )
    fields: dict[str, Any] = {
        "map": str(found.probability),
        "classes": str(found.classes),
        "threshold": round(found.threshold, 4),
        "pixels": found.pixels,
        "valid_share": round(found.valid / found.pixels, 4),
        "target_share": round(found.target / max(found.valid, 1), 6),
        "resumed_rows": found.resumed_rows,
        "compute_share": round(found.compute_share, 3),
    }
    if polygons is not None:
        with Status(f"outlining {polygons}"):
            written = write_polygons(
                found.probability,
                found.classes,
                polygons,
                elevation=scene.elevation,
                min_area_m2=min_area,
                layer=opened.model.config.target,
            )
        fields |= {"polygons": str(polygons), "polygon_count": written.count}
    fields |= {"seconds": round(clock.seconds(), 1), "run": str(run)}
    if as_json:
        print_json(fields)
        return fields
    target = opened.model.config.target
    rows = [
        ("pixels with data", f"{100 * fields['valid_share']:.1f} %"),
        (f"of these {target}, from a probability of {found.threshold:.2f}", f"{100 * fields['target_share']:.2f} %"),
        *([("polygons", str(fields["polygon_count"]))] if polygons is not None else []),
        ("seconds", f"{fields['seconds']:.1f}"),
    ]
    print_table(f"{scene.name}: {target} by {opened.folder.name}", ["", "value"], rows)
    for path in (found.probability, found.classes, *([polygons] if polygons is not None else [])):
        print(path)
    print(f"A screening map: have an expert look at every {target} before anyone relies on it.")
    return fields


def scene_for(opened: OpenedRun, arguments: dict[str, Any], *, cache: Path | None, labels: bool = False) -> Scene:
    """The scene as this model is to see it, or why it cannot.

    Raises:
        DataError: files that do not fit together, or lack what the model was trained on.
    """
    if not labels:
        arguments = {n: v for n, v in arguments.items() if n not in ("labels", "extent", "uncertain", "hard_negatives")}
    model = opened.model
    wanted = model.config.bands.names
    if model.config.network.uses_image:
        if "image" not in arguments:
            raise DataError(f"{opened.folder} looks at the bands {', '.join(wanted)}: name an image with --image")
        arguments = with_bands(arguments, wanted)
    else:
        arguments = {n: v for n, v in arguments.items() if n not in ("image", "bands", "band_names")}
    if not model.config.network.uses_elevation:
        arguments = {n: v for n, v in arguments.items() if n not in ("elevation", "vertical_unit")}
    elif "elevation" not in arguments and model.modality == "elevation":
        raise DataError(f"{opened.folder} looks at the elevation: name an elevation model with --dem")
    with Status("looking whether the files fit together"):
        report = check_alignment(**arguments)
        say(report)
        scene = open_scene(**arguments, cache=cache)
    return scene


def with_bands(arguments: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """The bands that a model was trained on, in its order, unless the user chose others on purpose.

    Raises:
        DataError: the file has no bands of these names.
    """
    if arguments.get("bands") is None:
        arguments = {**arguments, "bands": list(wanted)}
    names = ("bands", "band_names", "nodata", "assume_crs")
    try:
        source = RasterSource(arguments["image"], **{n: arguments[n] for n in names if n in arguments})
    except ConfigError as error:
        raise DataError(
            f"{error}; the model was trained on {', '.join(wanted)}: say which bands the file has with --band-names"
        ) from error
    if source.count != len(wanted):
        raise DataError(
            f"{arguments['image']}: {source.count} bands chosen, the model was trained on {len(wanted)}: {', '.join(wanted)}"
        )
    return arguments


def say(report: Any) -> None:
    """Log the warnings of an alignment report, stop at its errors."""
    import logging

    log = logging.getLogger("mc_core")
    for finding in report.warnings:
        log.warning("%s", finding.message)
    if report.errors:
        raise DataError(report.errors[0].message)


def map_scene(
    model: SegmentationModel,
    scene: Scene,
    out: Path,
    *,
    classes: Path | None = None,
    probability: Any = "uint8",
    threshold: float | None = None,
    tile: int | None = None,
    overlap: int | None = None,
) -> SceneMap:
    """:func:`predict_scene` with a progress bar, and tiles that the model's receptive field fits into."""
    side = tile or tile_of(model)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} tiles"))
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(f"mapping {scene.name}", total=None)
        return predict_scene(
            model,
            scene.image,
            scene.elevation,
            out,
            classes=classes,
            encoding=probability,
            threshold=threshold,
            tile=side,
            overlap=overlap,
            device=next(model.parameters()).device,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
