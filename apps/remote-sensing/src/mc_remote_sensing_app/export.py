"""``mc-remote-sensing export``: the model for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mc_core.cli import print_json
from mc_core.errors import CheckpointError, ConfigError
from mc_core.export import export_onnx, load_model
from mc_core.runs import need_run_folder
from mc_remote_sensing.encoders import save_timm_checkpoint
from mc_remote_sensing.encoders_config import ELEVATION_CHANNELS
from mc_remote_sensing.model import SegmentationModel
from mc_remote_sensing.pretrained import SceneEncoders
from mc_remote_sensing.training import tile_of
from mc_remote_sensing_app.runs import COMMAND


def run_export(run: Path, *, format: str, out: Path | None, tile: int | None, as_json: bool) -> dict[str, Any]:
    """Export, and say what was written."""
    need_run_folder(run, command=COMMAND)
    model = load_model(run / "model" if (run / "model").is_dir() else run).eval()
    if not isinstance(model, (SegmentationModel, SceneEncoders)):
        raise CheckpointError(f"{run} holds a {type(model).__name__}, not a model of mc-remote-sensing")
    fields = _onnx(model, run, out, tile) if format == "onnx" else _timm(model, out or run / "export")
    if as_json:
        print_json(fields)
    else:
        for path in fields["files"]:
            print(path)
        print(fields["note"])
    return fields


class _Both(nn.Module):
    """A segmentation model of image and elevation."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, elevation: Tensor) -> Tensor:
        """(B, H, W) probabilities."""
        return self.model(image, elevation)


class _Alone(nn.Module):
    """A segmentation model of one of them."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, given: Tensor) -> Tensor:
        """(B, H, W) probabilities."""
        return self.model(given) if self.model.config.network.uses_image else self.model(None, given)


def _onnx(model: SegmentationModel | SceneEncoders, run: Path, out: Path | None, tile: int | None) -> dict[str, Any]:
    if not isinstance(model, SegmentationModel):
        raise ConfigError(
            f"{run} was pretrained without labels and maps nothing yet: export its encoders with --format timm"
        )
    side = tile or tile_of(model)
    if side % model.stride:
        raise ConfigError(f"--tile {side}: must be a multiple of {model.stride}, the model's stride")
    network, bands = model.config.network, model.config.bands
    torch.manual_seed(0)
    inputs, names = [], []
    if network.uses_image:
        mean, deviation = (torch.tensor(v).view(-1, 1, 1) for v in (bands.mean, bands.std))
        inputs.append(torch.randn(1, bands.count, side, side) * deviation + mean)
        names.append(f"image (batch, {bands.count}: {', '.join(bands.names)}, {side}, {side}) as stored in the raster")
    if network.uses_elevation:
        relief = torch.randn(1, ELEVATION_CHANNELS, side, side) * 0.3
        relief[:, 3] = 1
        inputs.append(relief)
        names.append(f"elevation (batch, 4: relative elevation, slope, curvature, valid, {side}, {side})")
    target = out or run / "export" / "model.onnx"
    if target.suffix != ".onnx":
        raise ConfigError(f"--out {target}: give a name that ends in .onnx")
    target.parent.mkdir(parents=True, exist_ok=True)
    report = export_onnx(_Both(model) if len(inputs) == 2 else _Alone(model), tuple(inputs), target)
    return {
        "format": "onnx",
        "files": [str(target)],
        "inputs": names,
        "threshold": model.threshold,
        "max_abs_difference": report.max_abs_difference,
        "note": f"in: {'; '.join(names)}; out: probability of {model.config.target}, threshold {model.threshold:.3f}; largest "
        f"difference to PyTorch {report.max_abs_difference:.1e}",
    }


def _timm(model: SegmentationModel | SceneEncoders, folder: Path) -> dict[str, Any]:
    if isinstance(model, SegmentationModel):
        names = ("image", "elevation") if model.modality == "fused" else (model.modality,)
        names = tuple("image" if name == "stacked" else name for name in names)
        encoders = {name: model.network.encoder(name) for name in names}
    else:
        encoders = {name: model.encoder(name) for name in ("image", "elevation") if name in model.encoders}
    files = []
    known = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, encoder in encoders.items():
        path = folder / f"{name}-timm.safetensors"
        save_timm_checkpoint(encoder, path)
        files.append(str(path))
        known.append(_shape(model, name))
    return {
        "format": "timm",
        "files": files,
        "note": "; ".join(
            f"timm.create_model('{backbone}', num_classes=0, in_chans={channels}, checkpoint_path='{file}')"
            for file, (backbone, channels) in zip(files, known, strict=True)
        ),
    }


def _shape(model: SegmentationModel | SceneEncoders, name: str) -> tuple[str, int]:
    """timm name and input channels of an encoder."""
    of = model.config.network if isinstance(model, SegmentationModel) else model.config
    pyramid = of.image if name == "image" else of.elevation
    assert pyramid is not None
    if name == "elevation":
        return pyramid.backbone, ELEVATION_CHANNELS
    stacked = isinstance(model, SegmentationModel) and model.modality == "stacked"
    return pyramid.backbone, model.config.bands.count + (ELEVATION_CHANNELS if stacked else 0)
