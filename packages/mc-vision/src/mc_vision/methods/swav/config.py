"""Settings of SwAV. The defaults are those of the published large-batch run. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mc_core.engine.config import StrictModel
from mc_vision.encoders_config import EncoderConfig


class SwAVConfig(StrictModel):
    """SwAV: predict the balanced cluster assignment of one view from every other view."""

    encoder: EncoderConfig = EncoderConfig()
    """The image encoder."""
    projector: Literal["mlp-bn", "mlp", "linear"] = "mlp-bn"
    """Two layers with BatchNorm between them (published), without (against a loss stuck at ln K), or one layer."""
    dim: int = Field(default=128, ge=1)
    """Width of the embeddings."""
    hidden_dim: int = Field(default=2048, ge=1)
    """Hidden width of the projector (published: 2048; 8192 for the wide ResNets)."""
    prototypes: int = Field(default=3000, ge=2)
    """Prototypes K. In small runs about half of batch and queue, and a few times the classes to expect (our advice)."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature τ of the predictions."""
    epsilon: float = Field(default=0.05, gt=0)
    """Entropy weight ε of the assignments: smaller is harder (the authors advise 0.03 when the loss stays at ln K)."""
    iterations: int = Field(default=3, ge=1)
    """Sinkhorn iterations."""
    balanced: bool = True
    """Assignments that use all prototypes equally. False is for the ablation: targets are softmax(S / ε), which may all be one
    prototype."""
    freeze_prototypes_steps: int = Field(default=313, ge=0)
    """Optimizer steps before the prototypes move (published: one epoch of ImageNet)."""
    queue_size: int = Field(default=0, ge=0)
    """Past embeddings per assigned view, over all processes, that take part in the assignments; 0 without queue."""
    queue_start_epoch: int = Field(default=15, ge=0)
    """Epoch from which embeddings enter the queue; it is used once it is full."""
    sync_bn: bool = True
    """With several processes on GPUs, BatchNorm counts over all of them."""
