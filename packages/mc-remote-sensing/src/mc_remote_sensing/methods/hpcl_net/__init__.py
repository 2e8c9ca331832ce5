"""HPCL-Net: hyper-pixel-wise contrast for segmentation from image and elevation."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_remote_sensing.methods.hpcl_net.config import HPCLNetConfig
    from mc_remote_sensing.methods.hpcl_net.loss import hyper_pixel_contrast
    from mc_remote_sensing.methods.hpcl_net.model import HPCLNet
    from mc_remote_sensing.methods.hpcl_net.network import SegmentationNetwork

__all__ = ["HPCLNet", "HPCLNetConfig", "SegmentationNetwork", "hyper_pixel_contrast"]

_load, __dir__ = attach(
    __name__,
    {
        "config": ["HPCLNetConfig"],
        "loss": ["hyper_pixel_contrast"],
        "model": ["HPCLNet"],
        "network": ["SegmentationNetwork"],
    },
)


def __getattr__(name: str) -> Any:
    return _load(name)
