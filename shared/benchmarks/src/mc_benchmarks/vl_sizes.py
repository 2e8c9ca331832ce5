"""Sizes of models of images and words that benchmarks compare. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

Size = Literal["pocket", "laptop", "vit-small", "vit-base"]

SIZES: dict[str, dict[str, Any]] = {
    "pocket": {
        "image": {"image_size": 32, "patch_size": 8, "width": 64, "depth": 2, "heads": 4, "stem": "convolution"},
        "text": {"text_layers": 1, "fusion_layers": 1, "hidden_size": 64, "heads": 4, "dropout": 0.0},
        "dim": 64,
    },
    "laptop": {
        "image": {"image_size": 64, "patch_size": 8, "width": 128, "depth": 2, "heads": 4, "stem": "convolution"},
        "text": {"text_layers": 1, "fusion_layers": 2, "hidden_size": 128, "heads": 4, "dropout": 0.0},
        "dim": 64,
    },
    "vit-small": {
        "image": {"name": "deit_small_patch16_224", "image_size": 224},
        "text": {"text_layers": 6, "fusion_layers": 6, "hidden_size": 384, "heads": 6},
        "dim": 256,
    },
    "vit-base": {
        "image": {"name": "deit_base_patch16_224", "image_size": 256},
        "text": {"text_layers": 6, "fusion_layers": 6, "hidden_size": 768, "heads": 12, "vocabulary": 30522},
        "dim": 256,
    },
}
"""That of the recipe albef-laptop, for 32 pixels; one of ours for 64; DeiT-S, with text and fusion layers alike; the paper's."""
