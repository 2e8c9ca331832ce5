"""``mc-remote-sensing embed``: a feature vector for each square of a scene, with its coordinates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mc_core.cli import Clock, Status, print_json
from mc_core.embeddings import check_format, write_embeddings
from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.export import load_model
from mc_core.runs import need_run_folder, pick_device
from mc_remote_sensing.data import Scene, open_scene
from mc_remote_sensing.model import SegmentationModel
from mc_remote_sensing.pretrained import SceneEncoders
from mc_remote_sensing_app.predict import with_bands
from mc_remote_sensing_app.runs import COMMAND
from mc_remote_sensing_app.scene_options import SceneOptions, scene_arguments

_BATCH = 16
_LEAST_VALID = 0.05


def run_embed(run: Path, options: SceneOptions, *, out: Path, tile: int, device: str, as_json: bool) -> dict[str, Any]:
    """Write the features, and say how many."""
    clock = Clock()
    check_format(out)
    if tile < 8:
        raise ConfigError(f"--tile {tile}: a square needs at least 8 pixels")
    need_run_folder(run, command=COMMAND)
    model = load_model(run / "model" if (run / "model").is_dir() else run).eval().to(pick_device(device))
    if not isinstance(model, (SegmentationModel, SceneEncoders)):
        raise CheckpointError(f"{run} holds a {type(model).__name__}, not a model of mc-remote-sensing")
    stride = model.stride if isinstance(model, SegmentationModel) else model.config.output_stride
    if tile % stride:
        raise ConfigError(f"--tile {tile}: must be a multiple of {stride}, the model's stride")
    columns: dict[str, list[Any]] = {name: [] for name in ("scene", "row", "col", "x", "y", "valid_share")}
    rows: list[np.ndarray] = []
    crs = ""
    for arguments in scene_arguments(options):
        names = ("labels", "extent", "uncertain", "hard_negatives")
        given = {name: value for name, value in arguments.items() if name not in names}
        if _sees_image(model):
            if "image" not in given:
                raise DataError(f"{run} looks at an image: name one with --image")
            given = with_bands(given, model.config.bands.names)
        with Status("opening the scene"):
            scene = open_scene(**given, cache=run / "elevation")
        crs = scene.grid.crs.to_string()
        with Status(f"embedding {scene.name}"):
            _embed(model, scene, tile, columns, rows)
    if not rows:
        raise ConfigError("no square of the scene has data")
    features = np.concatenate(rows).astype(np.float32)
    write_embeddings(out, features, columns)
    fields = {
        "embeddings": str(out),
        "rows": len(features),
        "dim": features.shape[1],
        "crs": crs,
        "seconds": round(clock.seconds(), 1),
        "run": str(run),
    }
    if as_json:
        print_json(fields)
    else:
        print(f"{out}: {len(features)} squares of {tile} pixels, {features.shape[1]} features each, x and y in {crs}")
    return fields


def _sees_image(model: SegmentationModel | SceneEncoders) -> bool:
    return model.config.network.uses_image if isinstance(model, SegmentationModel) else "image" in model.encoders


def _embed(
    model: SegmentationModel | SceneEncoders,
    scene: Scene,
    tile: int,
    columns: dict[str, list[Any]],
    rows: list[np.ndarray],
) -> None:
    device = next(model.parameters()).device
    height, width = scene.grid.shape
    waiting: list[dict[str, np.ndarray]] = []

    def flush() -> None:
        if waiting:
            batch = {n: torch.from_numpy(np.stack([w[n] for w in waiting])).to(device) for n in waiting[0]}
            rows.append(features_of(model, batch).cpu().numpy())
            waiting.clear()

    for row in range(0, height, tile):
        for col in range(0, width, tile):
            window = scene.read(row, col, tile, tile)
            share = float(window["image_valid"].mean())
            if share < _LEAST_VALID:
                continue
            x, y = scene.grid.coordinates(np.array([row + tile / 2]), np.array([col + tile / 2]))
            for name, value in (
                ("scene", scene.name),
                ("row", row),
                ("col", col),
                ("x", float(x[0])),
                ("y", float(y[0])),
                ("valid_share", share),
            ):
                columns[name].append(value)
            waiting.append({name: window[name] for name in ("image", "image_valid", "elevation")})
            if len(waiting) == _BATCH:
                flush()
    flush()


@torch.inference_mode()
def features_of(model: SegmentationModel | SceneEncoders, batch: dict[str, Tensor]) -> Tensor:
    """(B, D) mean of the coarse feature map of a batch of windows; of all encoders side by side.

    Args:
        model: trained by ``train`` or ``pretrain``.
        batch: ``image`` (B, C, H, W) as stored, ``image_valid`` (B, H, W), ``elevation`` (B, 4, H, W).
    """
    image, elevation, valid = batch["image"], batch["elevation"], batch["image_valid"]
    if isinstance(model, SegmentationModel):
        network = model.network
        return network.encode(network.inputs(image, elevation, valid))[0].mean((2, 3))
    parts = []
    if "image" in model.encoders:
        bands = model.config.bands
        mean, deviation = (torch.tensor(v, device=image.device).view(-1, 1, 1) for v in (bands.mean, bands.std))
        parts.append(model("image", ((image - mean) / deviation).masked_fill(~valid[:, None], 0.0)))
    if "elevation" in model.encoders:
        parts.append(model("elevation", elevation))
    return torch.cat(parts, dim=1)
