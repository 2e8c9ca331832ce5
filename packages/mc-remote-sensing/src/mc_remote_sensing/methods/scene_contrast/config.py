"""Settings of scene contrast. All values are ours. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mc_core.engine.config import StrictModel
from mc_core.momentum_schedule import MomentumSchedule
from mc_remote_sensing.encoders_config import BandsConfig, Norm, PyramidConfig


class SceneContrastConfig(StrictModel):
    """MoCo or DCL on crops of unlabelled scenes, for the encoders of image and elevation."""

    modality: Literal["image", "elevation", "both"] = "both"
    """Which encoders to train; each has its own projection and queue."""
    image: PyramidConfig = PyramidConfig(backbone="resnet101")
    """The image encoder."""
    elevation: PyramidConfig = PyramidConfig(backbone="resnet34")
    """The encoder of relative elevation, slope, curvature and their validity."""
    output_stride: Literal[4, 8, 16, 32] = 32
    """Pixels of a cell of the coarse map; weights fit any."""
    norm: Norm = "batch"
    """Normalisation in the encoders `small-wN`; must be that of the network they are meant for."""
    bands: BandsConfig = BandsConfig()
    """Bands of the image, with their mean and deviation in the training data."""
    loss: Literal["info_nce", "dcl"] = "info_nce"
    """`info_nce` as in MoCo, or decoupled: without the positive in the denominator."""
    projector: Literal["linear", "mlp"] = "mlp"
    """One layer, or two."""
    dim: int = Field(default=128, ge=1)
    """Width of queries and keys."""
    queue_size: int = Field(default=16384, ge=1)
    """Keys in the queue of each modality."""
    temperature: float = Field(default=0.2, gt=0)
    """Temperature of the softmax."""
    momentum: MomentumSchedule = MomentumSchedule(momentum=0.999)
    """How slowly the key encoder follows."""

    def modalities(self) -> tuple[Literal["image", "elevation"], ...]:
        """The encoders that are trained, in order."""
        return ("image", "elevation") if self.modality == "both" else (self.modality,)
