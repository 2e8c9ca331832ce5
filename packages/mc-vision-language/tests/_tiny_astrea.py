"""An Astrea of a size that a test can afford: two or four small experts on pictures of 16 pixels."""

import torch
from torch import nn

from mc_core.engine.method import Progress
from mc_testkit.toys import captioned_images
from mc_vision_language.methods.astrea.config import AstreaConfig
from mc_vision_language.methods.astrea.model import AstreaFusion, AstreaModel

FEATURES = {"classification": 6, "captioning": 5, "detection": 3, "segmentation": 4}
SIDES = {"classification": 4, "captioning": 2, "detection": 8, "segmentation": 3}
TEXT = {
    "vocabulary": 64,
    "hidden_size": 16,
    "text_layers": 1,
    "heads": 2,
    "max_length": 16,
    "dropout": 0.0,
    "cls_id": 1,
    "sep_id": 2,
    "mask_id": 63,
}


def fields(**more) -> dict:
    """Settings: 2 × 2 places, width 8, four experts known by their channels alone."""
    base = {
        "expert_features": FEATURES,
        "image": {"image_size": 16},
        "grid": 2,
        "width": 8,
        "dim": 8,
        "pool_queries": 2,
        "pool_heads": 2,
        "text": TEXT,
        "language": {"vocabulary": 64, "hidden_size": 16, "heads": 2, "layers": 1, "positions": 96, "dropout": 0.0},
        "temperature": 0.2,
        "momentum": 0.9,
        "queue_size": 20,
    }
    return {**base, **more}


def config(**more) -> AstreaConfig:
    """The same, checked."""
    return AstreaConfig.model_validate(fields(**more))


class StandIn(nn.Module):
    """An expert that is a convolution with batch norm and dropout, so that a wrong mode shows."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.num_features, self.side = channels, side
        self.conv, self.norm, self.dropout = nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.Dropout(0.5)
        self.calls = 0

    def features(self, view):
        """(B, C, H, W)."""
        self.calls += 1
        return nn.functional.adaptive_avg_pool2d(self.dropout(self.norm(self.conv(view))), self.side)


def experts() -> dict[str, StandIn]:
    """One of each kind."""
    return {kind: StandIn(count, SIDES[kind]) for kind, count in FEATURES.items()}


def stirred(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """With norms and gates that differ from their first values, so that nothing cancels."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1 or "gate" in name:
                parameter.add_(scale * torch.randn_like(parameter))
    return module


def fusion(seed: int = 0, dtype=torch.float64, stir: bool = True, **more) -> AstreaFusion:
    """Random weights."""
    torch.manual_seed(seed)
    made = AstreaFusion(config(**more)).to(dtype)
    return stirred(made) if stir else made  # type: ignore[return-value]


def model(seed: int = 0, stir: bool = True, **more) -> AstreaModel:
    """With stand-ins for experts."""
    torch.manual_seed(seed)
    made = AstreaModel(config(**more), experts=experts())
    if stir:
        stirred(made.fusion)
        if made.own.reference is not None:
            made.own.take_reference()
    return made


def maps(count: int = 3, seed: int = 0, dtype=torch.float64) -> dict:
    """Random maps of all experts, each of its own size."""
    generator = torch.Generator().manual_seed(seed)
    return {
        kind: torch.randn(count, channels, SIDES[kind], SIDES[kind], generator=generator, dtype=dtype)
        for kind, channels in FEATURES.items()
    }


def batch(first: int = 0, count: int = 8) -> dict:
    """Captioned pictures; rows 0 and 1 show the same, rows 2 and 3 say the same."""
    rows = slice(first, first + count)
    found = {name: column[rows] for name, column in captioned_images().tensors.items()}
    return {**found, "index": torch.arange(first, first + count), "epoch": 0, "micro": 0}


def progress() -> Progress:
    """Of a run of ten steps."""
    return Progress(0, 10, 5, 8)
