"""``mc-medical export``: the towers for ONNX Runtime, timm and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mc_core.cli import print_json
from mc_core.errors import ConfigError
from mc_core.export import export_onnx, staging
from mc_core.files import atomic_path
from mc_core.runs import pick_device
from mc_medical.model import ImageTextModel
from mc_medical_app.runs import open_run

_TOKENS = 16  # of the example that the text tower is traced with


def run_export(run: Path, *, format: str, out: Path | None, as_json: bool) -> None:
    """Export, and say what was written."""
    model = open_run(run, pick_device("cpu")).model
    target = out or run / "export" / {"onnx": "onnx", "timm": "image-timm.safetensors", "transformers": "text"}[format]
    write = {"onnx": _onnx, "timm": _timm, "transformers": _transformers}[format]
    fields, lines = write(model, target)
    if as_json:
        print_json({"format": format, "out": str(target), **fields})
    else:
        print("\n".join([str(target), *lines]))


class _Images(nn.Module):
    def __init__(self, model: ImageTextModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.embed_images(pixels)


class _Texts(nn.Module):
    def __init__(self, model: ImageTextModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.embed_tokens(input_ids, attention_mask)


def _onnx(model: ImageTextModel, target: Path) -> tuple[dict[str, Any], list[str]]:
    if target.suffix == ".onnx":
        raise ConfigError(f"--out {target}: two files are written, image.onnx and text.onnx; name a folder")
    side, length = model.image_size, min(_TOKENS, model.config.text.max_length)
    ids = torch.randint(0, model.config.text.vocabulary, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[1, length // 2 :] = 0
    pixels = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    images = export_onnx(_Images(model), pixels, target / "image.onnx")
    texts = export_onnx(_Texts(model), (ids, mask), target / "text.onnx")
    if model.tokenizer is not None:
        model.tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
    fields = {
        "image": {"max_abs_difference": images.max_abs_difference, "input": [1, side, side]},
        "text": {"max_abs_difference": texts.max_abs_difference, "tokens": length},
        "kappa": model.kappa,
    }
    shape, pad = f"(batch, 1, {side}, {side})", model.encoders.text.pad_id
    return fields, [
        f"image.onnx  pixels {shape} in [0, 1] → unit vectors; differs from PyTorch by {images.max_abs_difference:.1e}",
        f"text.onnx   input_ids, attention_mask (batch, {length}), padded with {pad}; by {texts.max_abs_difference:.1e}",
        f"logits are κ × cosine, κ = {model.kappa:.3f}",
    ]


def _timm(model: ImageTextModel, target: Path) -> tuple[dict[str, Any], list[str]]:
    if target.suffix != ".safetensors":
        raise ConfigError(f"--out {target}: timm tells the format by the file name, which must end in .safetensors")
    name = model.config.image.name
    backbone: nn.Module = model.encoders.image.backbone
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()}
    with atomic_path(target) as draft:
        save_file(state, draft, metadata={"format": "pt"})
    if name is None:
        return {"backbone": None}, ["the small encoder is not a model of timm's; take another --method.image.name"]
    size = f", img_size={model.image_size}" if hasattr(backbone, "pos_embed") else ""
    call = f"timm.create_model('{name}', num_classes=0, in_chans=1{size}, checkpoint_path='{target}')"
    return {"backbone": name}, [call, f"pixels: (x − {model.config.image.mean}) / {model.config.image.std}"]


def _transformers(model: ImageTextModel, target: Path) -> tuple[dict[str, Any], list[str]]:
    if target.exists():
        raise ConfigError(f"{target} exists; name another folder with --out")
    transformer: Any = model.encoders.text.transformer
    with staging(target) as stage:
        transformer.save_pretrained(stage, safe_serialization=True)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(stage)
        stage.rename(target)
    return {"architecture": type(transformer).__name__}, [f"AutoModel.from_pretrained('{target}')"]
