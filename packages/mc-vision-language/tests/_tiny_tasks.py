"""Models and rows of a size that a test can afford."""

import numpy as np
import torch

from mc_core.samples import digit_scenes
from mc_vision_language.data.images import ArrayImages
from mc_vision_language.encoders_config import ImageEncoderConfig, TextEncoderConfig, VisionLanguageConfig
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.tokenizers import train_tokenizer

WORDS = [
    "is it red",
    "is it blue",
    "what is it",
    "a large red three left of a small blue two",
    "yes",
    "no",
    "red",
    "blue",
    "dark red",
]
SIDE = 16


def encoders(**text) -> dict:
    """Settings of both encoders: 4 patches, width 16, one text layer, two fusion layers."""
    given = {
        "text_layers": 1,
        "fusion_layers": 2,
        "hidden_size": 16,
        "heads": 2,
        "dropout": 0.0,
        "vocabulary": 64,
        **text,
    }
    return {
        "image": ImageEncoderConfig(image_size=SIDE, patch_size=8, width=16, depth=1, heads=2),
        "text": TextEncoderConfig(**given),
        "dim": 8,
    }


def tokenizer(words=WORDS):
    """Of a few words."""
    return train_tokenizer(words, 64)


def pretrained(seed: int = 0, **text) -> VisionLanguageModel:
    """Random weights, as large as they would be after training, so that attention is not even."""
    torch.manual_seed(seed)
    model = VisionLanguageModel(VisionLanguageConfig(**encoders(**text)), tokenizer())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embeddings" not in name:
                parameter.mul_(4.0)
    return model.eval()


def pictures(count: int, seed: int = 0) -> ArrayImages:
    """Random ones."""
    rng = np.random.default_rng(seed)
    return ArrayImages(rng.integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8))


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 3, S, S) in [0, 1]."""
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def scenes(train: int = 24, test: int = 12, size: int = 32):
    """Scenes of two digits by split."""
    return {
        "train": digit_scenes(train, size=size, digits=(2, 2)),
        "test": digit_scenes(test, size=size, digits=(2, 2), split="test"),
    }
