"""``mc-vision-language convert``: a model of this package from an official ALBEF checkpoint."""

from __future__ import annotations

from pathlib import Path

from mc_core.cli import Status, print_json
from mc_core.errors import ConfigError
from mc_vision_language.albef_names import SAID, Layout, layout_of_model
from mc_vision_language.checkpoint import convert_albef
from mc_vision_language.data.questions import AnswerList
from mc_vision_language.tokenizers import load_tokenizer

_NEXT: dict[Layout, str] = {
    "pretraining": "search, ground and finetune take it",
    "vqa": "vqa takes it",
    "nlvr2": "judge takes it, with two images",
    "assignment": "finetune --task nlvr2 takes it",
    "entailment": "judge takes it, with one image",
}


def run_convert(
    checkpoint: Path,
    out: Path,
    *,
    answers: Path | None,
    tokenizer: str | None,
    download: bool,
    image_heads: int | None,
    text_heads: int | None,
    as_json: bool,
) -> None:
    """Do it, and say what was made."""
    if out.exists():
        raise ConfigError(f"{out} exists; name another folder")
    known = () if answers is None else AnswerList.read(answers).answers
    words = None if tokenizer is None else load_tokenizer(tokenizer, download=download)
    with Status(f"reading {checkpoint.name}"):
        model = convert_albef(
            checkpoint, answers=known, tokenizer=words, image_heads=image_heads, text_heads=text_heads
        )
        model.save(out, card={"title": checkpoint.stem, "description": f"Converted from {checkpoint.name}."})
    layout = layout_of_model(model)
    count = sum(one.numel() for one in model.parameters())
    image, text = model.config.image, model.config.text
    fields = {
        "out": str(out),
        "layout": layout,
        "parameters": count,
        "image_size": image.image_size,
        "text_layers": text.text_layers,
        "fusion_layers": text.fusion_layers,
        "tokenizer": words is not None,
    }
    if as_json:
        print_json(fields | ({"answers": len(known)} if layout == "vqa" else {}))
        return
    said = "pretraining or retrieval" if layout == "pretraining" else SAID[layout]
    print(f"{out}: of {said}, {count:,} parameters, images of {image.image_size} pixels; {_NEXT[layout]}")
    if words is None:
        print("without tokenizer: give --tokenizer to encode words")
    if layout == "vqa" and not known:
        print("without answers: give --answers to choose from a list, or vqa --generate")
