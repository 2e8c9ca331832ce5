"""Settings of DCL and DCLW in three settings. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mc_core.engine.config import StrictModel
from mc_core.momentum_schedule import MomentumSchedule
from mc_vision.encoders_config import EncoderConfig
from mc_vision.methods.moco.config import MoCoConfig, MoCoV3Config


class DCLConfig(StrictModel):
    """DCL as SimCLR trains: two views of each image through one network, gradients through both."""

    encoder: EncoderConfig = EncoderConfig()
    """The image encoder."""
    loss: Literal["dcl", "dclw", "info_nce"] = "dcl"
    """DCL, its weighted form, or plain InfoNCE over the same pairs (SimCLR), for comparison in the same trainer."""
    dim: int = Field(default=128, ge=1)
    """Width of the embeddings."""
    hidden_dim: int = Field(default=2048, ge=1)
    """Hidden width of the projector."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature τ."""
    sigma: float = Field(default=0.5, gt=0)
    """σ of the DCLW weights."""
    detach_weight: bool = True
    """No gradient through the DCLW weights (our choice; the paper does not say)."""
    weight_min: float | None = None
    """Lower clamp of the DCLW weights; null as in the paper, where a weight may become negative and repel its positive."""
    exclude_same_id: bool = False
    """Samples with the same id are no negatives of each other (needs ids in the data)."""


class DCLQueueConfig(MoCoConfig):
    """DCL in MoCo v1/v2: the positive leaves the denominator, everything else is MoCo's."""

    loss: Literal["dcl", "dclw"] = "dcl"
    """DCL or its weighted form."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature τ."""
    sigma: float = Field(default=0.5, gt=0)
    """σ of the DCLW weights."""
    detach_weight: bool = True
    """No gradient through the DCLW weights (our choice; the paper does not say)."""
    weight_min: float | None = None
    """Lower clamp of the DCLW weights; null as in the paper."""


class DCLV3Config(MoCoV3Config):
    """DCL in MoCo v3: the positive leaves the denominator, everything else is MoCo v3's."""

    loss: Literal["dcl", "dclw"] = "dcl"
    """DCL or its weighted form."""
    temperature: float = Field(default=0.2, gt=0)
    """Temperature τ."""
    momentum: MomentumSchedule = MomentumSchedule(momentum=0.99, schedule="cosine")
    """How slowly the key encoder follows."""
    sigma: float = Field(default=0.5, gt=0)
    """σ of the DCLW weights."""
    detach_weight: bool = True
    """No gradient through the DCLW weights (our choice; the paper does not say)."""
    weight_min: float | None = None
    """Lower clamp of the DCLW weights; null as in the paper."""
