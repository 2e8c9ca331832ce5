"""Settings of HPCL-Net. All values are ours: those of the paper could not be read. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel
from mc_core.momentum_schedule import MomentumSchedule
from mc_remote_sensing.encoders_config import BandsConfig, NetworkConfig


class HPCLNetConfig(StrictModel):
    """Segmentation from image and elevation with hyper-pixel contrast; each part of the contrast can be turned off."""

    network: NetworkConfig = NetworkConfig()
    """Encoders, fusion and decoder."""
    bands: BandsConfig = BandsConfig()
    """Bands of the image, with their mean and deviation in the training data."""
    target: str = "landslide"
    """Name of the class that is mapped."""
    resolution_m: float | None = Field(default=None, gt=0)
    """Metres that a pixel of the training images measures."""
    pretrained_image: str | None = None
    """Folder of a scene-contrast run, whose image encoder to start from."""
    pretrained_elevation: str | None = None
    """Folder of a scene-contrast run, whose elevation encoder to start from."""
    modality_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of training on a tile without its elevation, so that the model also runs where there is none."""
    keep: Literal["online", "average"] = "online"
    """Which network to keep: the trained one, or its moving average (then of all parts)."""

    contrast: bool = True
    """Whether there is a contrast at all; without, this is plain cross-entropy."""
    weight: float = Field(default=0.1, ge=0)
    """Weight λ of the contrast. 0 changes no weight of the segmentation network against `contrast: false`."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the run over which λ rises from 0."""
    dim: int = Field(default=128, ge=1)
    """Width of hyper-pixel embeddings."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature τ."""
    positives: Literal["class", "self"] = "class"
    """`class`: all keys of the anchor's class; `self`: only the slow copy's embedding of the same cell (InfoNCE)."""
    sampling: Literal["boundary", "uniform"] = "boundary"
    """Where anchors and keys come from: cells at boundaries and beside them, or all cells."""
    queue_size: int = Field(default=4096, ge=0)
    """Keys in the queue of each class; 0 for no queues."""
    momentum_keys: bool = True
    """Keys from the slow copy; without, from the trained network itself, without gradient."""
    momentum: MomentumSchedule = MomentumSchedule(momentum=0.999)
    """How slowly the copy follows."""
    momentum_ramp: bool = True
    """At step t no slower than 1 − 1/(t + 2): the copy starts as the plain mean of the weights so far."""
    cells_per_class: int = Field(default=32, ge=1)
    """Most anchors, and most keys, of a class in a tile."""
    background_cells: int = Field(default=16, ge=0)
    """Most keys of a tile that is all background: look-alike terrain."""
    max_anchors: int = Field(default=1024, ge=1)
    """Most anchors of a process and micro-batch."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.modality_dropout and self.network.modality == "elevation":
            raise ValueError(
                "modality_dropout hides the elevation, and modality elevation has nothing else: set it to 0"
            )
        if self.pretrained_image is not None and self.network.modality not in ("image", "fused"):
            raise ValueError(f"pretrained_image: modality {self.network.modality} has no encoder of the image alone")
        if self.pretrained_elevation is not None and self.network.modality not in ("elevation", "fused"):
            raise ValueError(f"pretrained_elevation: modality {self.network.modality} has no elevation encoder")
        return self

    def weight_at(self, step: int, total_steps: int) -> float:
        """λ(t) = λ · min(1, t / t_warm).

        >>> [HPCLNetConfig(weight=0.2, warmup=0.5).weight_at(step, 100) for step in (0, 25, 50, 99)]
        [0.0, 0.1, 0.2, 0.2]
        """
        warm = self.warmup * total_steps
        return self.weight * min(1.0, step / warm) if warm else self.weight

    def momentum_at(self, step: int, fraction: float, batch_size: int) -> float:
        """m_t = min(m, 1 − 1/(t + 2)); 0 where keys come from the trained network itself.

        >>> [HPCLNetConfig().momentum_at(step, 0.0, 8) for step in (0, 2, 10_000)]
        [0.5, 0.75, 0.999]
        """
        if not self.momentum_keys:
            return 0.0
        momentum = self.momentum.at(fraction, batch_size)
        return min(momentum, 1 - 1 / (step + 2)) if self.momentum_ramp else momentum
