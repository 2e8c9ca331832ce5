"""A GrowCLIP of a size that a test can afford, and pairs for it."""

import numpy as np
import torch

from mc_vision_language.data.images import ArrayImages
from mc_vision_language.data.pairs import Pairs, array_ids
from mc_vision_language.methods.growclip.config import GrowCLIPConfig
from mc_vision_language.methods.growclip.model import GrowCLIPModel, Towers
from mc_vision_language.tokenizers import train_tokenizer

SIDE = 16
COLORS = ("red", "green", "blue", "white", "black", "pink")
THINGS = ("dog", "cat", "car", "house", "boat")
CAPTIONS = [f"a {color} {thing}" for color in COLORS for thing in THINGS]


def fields(**more) -> dict:
    """Settings: 4 patches, width 12, one block in each part."""
    part = {"blocks": 1, "heads": 1, "hidden": 16}
    base = {
        "image": {"image_size": SIDE, "patch_size": 8, "stem": "convolution", "stem_width": 16},
        "text": {"vocabulary": 64, "max_length": 12},
        "width": 12,
        "head_width": 6,
        "dim": 8,
        "momentum": 0.9,
        **{f"{name}_part": part for name in ("image", "text", "shared")},
    }
    return {**base, **more}


def config(**more) -> GrowCLIPConfig:
    """The same, checked."""
    return GrowCLIPConfig.model_validate(fields(**more))


def tokenizer():
    """Of a few words."""
    return train_tokenizer(CAPTIONS, 64)


def towers(seed: int = 0, dtype=torch.float32, **more) -> Towers:
    """Random ones with norms that differ from their first values."""
    torch.manual_seed(seed)
    made = Towers(config(**more)).to(dtype)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made.eval()


def model(seed: int = 0, **more) -> GrowCLIPModel:
    """A whole model with a tokenizer."""
    torch.manual_seed(seed)
    return GrowCLIPModel(config(**more), tokenizer()).eval()


def batch(count: int = 6, seed: int = 0, dtype=torch.float32) -> dict:
    """A finished batch; texts of 3 to 6 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 7, (count,), generator=generator)
    mask = (torch.arange(6) < lengths[:, None]).long()
    ids = torch.randint(5, 60, (count, 6), generator=generator) * mask
    return {
        "view": torch.rand(count, 3, SIDE, SIDE, generator=generator).to(dtype),
        "input_ids": ids,
        "attention_mask": mask,
        "image_ids": torch.arange(count),
        "text_ids": torch.tensor([0, 1, 2, 0, *range(4, count)])[:count],
        "index": torch.arange(count),
        "epoch": 0,
    }


def pairs(train: int = 48, held_out: int = 16, test: int = 8, seed: int = 0) -> Pairs:
    """Pictures of one shade with noise, captioned by colour and thing."""
    count = train + held_out + test
    rng = np.random.default_rng(seed)
    which = rng.integers(0, len(CAPTIONS), count)
    shade = (which * 8)[:, None, None, None] + rng.integers(0, 6, (count, 3, SIDE, SIDE))
    pixels = shade.astype(np.uint8)
    return Pairs(
        ArrayImages(pixels),
        tuple(CAPTIONS[i] for i in which),
        np.arange(count),
        image_ids=array_ids(pixels),
        text_ids=which.astype(np.int64),
        splits=np.array(["train"] * train + ["validation"] * held_out + ["test"] * test),
    )
