"""``mc-vision export``: the encoder for other tools."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import timm
import torch

from mc_core.cli import print_json
from mc_core.errors import ConfigError
from mc_core.export import export_onnx, save_model
from mc_vision.encoders import OWN_BACKBONES, TimmEncoder, save_timm_checkpoint
from mc_vision_app.runs import open_run


def run_export(run: Path, *, format: str, out: Path | None, size: int | None, as_json: bool) -> Path:
    """Export, and say what was written."""
    opened = open_run(run)
    encoder = opened.encoder
    names = {"timm": "encoder-timm.safetensors", "onnx": "encoder.onnx", "hub": "hub"}
    target = out or run / "export" / names[format]
    fields: dict[str, object] = {"format": format, "out": str(target), "backbone": encoder.config.backbone}
    if format == "timm":
        save_timm_checkpoint(encoder, target)
        note = _how_timm_reads(encoder, target)
    elif format == "onnx":
        if size is None and opened.recipe is not None:
            size = opened.recipe.views.views().views[0].size
        side = (encoder.config.image_size or 224) if size is None else size
        if side < 1:
            raise ConfigError(f"image size {side}; give a side of 1 pixel or more")
        example = torch.rand(2, encoder.config.channels, side, side)
        report = export_onnx(encoder, example, target)
        fields |= {
            "max_abs_difference": report.max_abs_difference,
            "opset": report.opset,
            "input": list(example.shape[1:]),
        }
        shape = ", ".join(map(str, example.shape[1:]))
        note = f"largest difference to PyTorch {report.max_abs_difference:.1e}; input (batch, {shape})"
    else:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            what = "is not empty" if target.is_dir() else "is a file"
            raise ConfigError(f"{target} exists and {what}; name another folder with --out")
        recipe = opened.recipe
        card = {
            "method": recipe.system if recipe else "unknown",
            "backbone": encoder.config.backbone,
            "steps": opened.step,
        }
        save_model(encoder, target, card=card)
        if (run / "recipe.yaml").exists():
            shutil.copy(run / "recipe.yaml", target / "recipe.yaml")
        note = f"push it with: huggingface-cli upload NAME {target}"
    if as_json:
        print_json(fields)
    else:
        print(f"{target}\n{note}")
    return target


def _how_timm_reads(encoder: TimmEncoder, path: Path) -> str:
    """The line of Python that loads the checkpoint, or what else it is good for."""
    config = encoder.config
    if config.backbone in OWN_BACKBONES:
        return (
            f"{config.backbone} is not a model of timm's; a recipe starts from the file with method.encoder.pretrained"
        )
    channels = "" if config.channels == 3 else f", in_chans={config.channels}"
    published = timm.get_pretrained_cfg(config.backbone)
    fixed = published is not None and published.fixed_input_size and config.image_size is not None
    size = f", img_size={config.image_size}" if fixed else ""
    model = f"timm.create_model('{config.backbone}', num_classes=0{channels}{size}"
    if config.uses_cifar_stem and isinstance(encoder.backbone, timm.models.ResNet):
        return f"timm.models.load_checkpoint(mc_vision.encoders.use_cifar_stem({model})), {os.fspath(path)!r})"
    return f"{model}, checkpoint_path={os.fspath(path)!r})"
