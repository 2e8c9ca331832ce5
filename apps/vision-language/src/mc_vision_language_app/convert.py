"""``mc-vision-language convert``: a model of this package from an official ALBEF checkpoint."""

from __future__ import annotations

from pathlib import Path

from mc_core.cli import Status, print_json
from mc_core.errors import ConfigError
from mc_vision_language.checkpoint import convert_albef_checkpoint
from mc_vision_language.tokenizers import load_tokenizer


def run_convert(
    checkpoint: Path,
    out: Path,
    *,
    tokenizer: str | None,
    download: bool,
    image_heads: int | None,
    text_heads: int | None,
    as_json: bool,
) -> None:
    """Do it, and say what was made."""
    if out.exists():
        raise ConfigError(f"{out} exists; name another folder")
    words = None if tokenizer is None else load_tokenizer(tokenizer, download=download)
    with Status(f"reading {checkpoint.name}"):
        model = convert_albef_checkpoint(checkpoint, tokenizer=words, image_heads=image_heads, text_heads=text_heads)
        model.save(out, card={"title": checkpoint.stem, "description": f"Converted from {checkpoint.name}."})
    count = sum(one.numel() for one in model.parameters())
    image, text = model.config.image, model.config.text
    fields = {
        "out": str(out),
        "parameters": count,
        "image_size": image.image_size,
        "text_layers": text.text_layers,
        "fusion_layers": text.fusion_layers,
        "tokenizer": words is not None,
    }
    if as_json:
        print_json(fields)
        return
    print(f"{out}: {count:,} parameters, images of {image.image_size} pixels")
    if words is None:
        print("without tokenizer: give --tokenizer to encode words")
