"""Settings of MoCo. The defaults are the published ones of v2 and of v3 with a ResNet-50. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mc_core.engine.config import StrictModel
from mc_core.momentum_schedule import MomentumSchedule
from mc_vision.encoders_config import EncoderConfig


class MoCoConfig(StrictModel):
    """MoCo v1 and v2: a query, its key, and a queue of keys of earlier batches."""

    encoder: EncoderConfig = EncoderConfig()
    """The image encoder."""
    projector: Literal["linear", "mlp"] = "mlp"
    """`linear` (v1) or a two-layer MLP as wide as the features (v2)."""
    dim: int = Field(default=128, ge=1)
    """Width of queries and keys."""
    queue_size: int = Field(default=65536, ge=1)
    """Keys in the queue."""
    temperature: float = Field(default=0.2, gt=0)
    """Temperature of the softmax (0.07 in v1)."""
    momentum: MomentumSchedule = MomentumSchedule(momentum=0.999)
    """How slowly the key encoder follows."""
    symmetric: bool = False
    """Add the loss with the two views exchanged, and enqueue both keys (the authors' CIFAR-10 demo; not in the papers)."""
    split_bn: int = Field(default=1, ge=1)
    """Groups of the batch in which BatchNorm counts separately, over all processes: 8 on one GPU is the paper's 8 GPUs."""
    shuffle_bn: bool = True
    """With several processes, encode keys in another process than their queries (shuffled BN)."""
    exclude_same_id: bool = False
    """Queue entries with the id of the query are no negatives (needs ids in the data; our option, not in the papers)."""


class MoCoV3Config(StrictModel):
    """MoCo v3: no queue, the other keys of the batch are the negatives, a predictor on the query side."""

    encoder: EncoderConfig = EncoderConfig(zero_init_residual=True)
    """The image encoder."""
    projector: Literal["moco-v3", "moco-v3-vit"] = "moco-v3"
    """Layers of projector and predictor: `moco-v3` for a ResNet, `moco-v3-vit` (one layer more) for a ViT."""
    dim: int = Field(default=256, ge=1)
    """Width of queries and keys."""
    hidden_dim: int = Field(default=4096, ge=1)
    """Hidden width of projector and predictor."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature (1.0 for ResNet-50, 0.2 for ViT)."""
    momentum: MomentumSchedule = MomentumSchedule(momentum=0.99, schedule="cosine")
    """How slowly the key encoder follows."""
    sync_bn: bool = True
    """With several processes on GPUs, BatchNorm counts over all of them."""
    exclude_same_id: bool = False
    """Keys with the id of the query are no negatives (needs ids in the data; our option, not in the paper)."""
