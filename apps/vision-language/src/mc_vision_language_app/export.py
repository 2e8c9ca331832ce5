"""``mc-vision-language export``: towers and matching for ONNX Runtime, weights for timm, or ALBEF's own checkpoint layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mc_core.cli import print_json
from mc_core.errors import ConfigError
from mc_core.export import export_onnx
from mc_core.files import atomic_path
from mc_core.runs import pick_device
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.tasks.training import load_task_model
from mc_vision_language_app.runs import open_run, task_of_run

_TOKENS = 12  # of the example that the towers are traced with
_OUT = {"onnx": "onnx", "timm": "image-timm.safetensors", "albef": "albef.safetensors"}


def run_export(run: Path, *, format: str, out: Path | None, as_json: bool) -> None:
    """Export, and say what was written."""
    target = out or run / "export" / _OUT[format]
    if format == "albef" and task_of_run(run) is not None:
        fields, lines = _albef(load_task_model(run), target)
    else:
        model = open_run(run, pick_device("cpu")).model
        fields, lines = {"onnx": _onnx, "timm": _timm, "albef": _albef}[format](model, target)
    if as_json:
        print_json({"format": format, "out": str(target), **fields})
    else:
        print("\n".join([str(target), *lines]))


class _Images(nn.Module):
    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.model.backbone.image_tokens(pixels)
        return self.model.backbone.embed_image_tokens(tokens), tokens


class _Texts(nn.Module):
    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.backbone.embed_tokens(input_ids, attention_mask)


class _Matches(nn.Module):
    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.match(tokens, input_ids, attention_mask)


def _onnx(model: VisionLanguageModel, target: Path) -> tuple[dict[str, Any], list[str]]:
    if target.suffix == ".onnx":
        raise ConfigError(
            f"--out {target}: three files are written, image.onnx, text.onnx and match.onnx; name a folder"
        )
    side, length = model.image_size, min(_TOKENS, model.config.text.max_length)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.text.vocabulary, (2, length), generator=draw)
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[1, length // 2 :] = 0
    pixels = torch.rand(2, 3, side, side, generator=draw)
    with torch.no_grad():
        tokens = model.backbone.image_tokens(pixels)
    parts = {
        "image": export_onnx(_Images(model), pixels, target / "image.onnx"),
        "text": export_onnx(_Texts(model), (ids, mask), target / "text.onnx"),
    }
    if model.config.matching:
        parts["match"] = export_onnx(_Matches(model), (tokens, ids, mask), target / "match.onnx")
    if model.tokenizer is not None:
        model.tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
    gaps = {name: part.max_abs_difference for name, part in parts.items()}
    fields = {name: {"max_abs_difference": gap} for name, gap in gaps.items()}
    shape, pad = f"(batch, 3, {side}, {side})", model.config.text.pad_id
    lines = [
        f"image.onnx  pixels {shape} in [0, 1] → unit vectors and tokens; differs from PyTorch by {gaps['image']:.1e}",
        f"text.onnx   input_ids, attention_mask (batch, {length}), padded with {pad} → unit vectors; by {gaps['text']:.1e}",
        f"match.onnx  image tokens, input_ids, attention_mask → logit of a match; by {gaps.get('match', 0.0):.1e}",
    ]
    lines = lines[: len(parts)]
    return fields | {"tokens": length, "temperature": float(model.temperature.detach())}, lines


def _timm(model: VisionLanguageModel, target: Path) -> tuple[dict[str, Any], list[str]]:
    if target.suffix != ".safetensors":
        raise ConfigError(f"--out {target}: timm tells the format by the file name, which must end in .safetensors")
    backbone: Any = model.backbone.image.backbone
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()}
    with atomic_path(target) as draft:
        save_file(state, draft, metadata={"format": "pt"})
    image = model.config.image
    if image.name is None:
        return {"backbone": None}, ["the small encoder is not a model of timm's; take another --method.image.name"]
    call = f"timm.create_model('{image.name}', num_classes=0, img_size={model.image_size}, checkpoint_path='{target}')"
    return {"backbone": image.name}, [call, f"pixels: (x − {image.mean}) / {image.std}"]


def _albef(model: Any, target: Path) -> tuple[dict[str, Any], list[str]]:
    from mc_vision_language.checkpoint import to_albef_names

    if target.suffix != ".safetensors":
        raise ConfigError(f"--out {target}: the weights are written as .safetensors")
    state = {
        name: value.detach().cpu().clone().contiguous() for name, value in to_albef_names(model).items()
    }  # some are tied
    with atomic_path(target) as draft:
        save_file(state, draft, metadata={"format": "pt"})
    return {"tensors": len(state)}, [f"{len(state)} tensors under the names of the official checkpoints"]
