"""Encoders of biosignal segments: the paper's 1-D EfficientNet, and a ResNet and a ViT to compare it with."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_wearables.encoders.signal import SignalEncoder, load_encoder, recalibrate_batchnorm

__all__ = ["SignalEncoder", "load_encoder", "recalibrate_batchnorm"]

_load, __dir__ = attach(__name__, {"signal": ["SignalEncoder", "load_encoder", "recalibrate_batchnorm"]})


def __getattr__(name: str) -> Any:
    return _load(name)
