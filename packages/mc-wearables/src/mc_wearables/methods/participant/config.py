"""Settings of participant contrast. The defaults are the published PPG ones. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel
from mc_core.momentum_schedule import MomentumSchedule
from mc_wearables.encoders_config import EncoderConfig


class ParticipantConfig(StrictModel):
    """Participant contrast, and the frameworks its authors compare it with."""

    encoder: EncoderConfig = EncoderConfig()
    """The encoder of segments."""
    framework: Literal["momentum", "simclr", "byol"] = "momentum"
    """`momentum`: against a slow copy (the paper); `simclr`: one network, gradient through both views; `byol`: predict the
    slow copy's projection, no negatives. What else the paper's SimCLR and BYOL variants changed is not published."""
    dim: int = Field(default=128, ge=1)
    """Width of the projection."""
    hidden_dim: int = Field(default=1024, ge=1)
    """Hidden width of the projector, and of BYOL's predictor."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout in the projector, also in that of the slow copy."""
    head_norm: bool = False
    """BatchNorm in projector and predictor (ours; BYOL needs it not to collapse)."""
    temperature: float = Field(default=0.04, gt=0)
    """Temperature τ."""
    contrast_weight: float = Field(default=1.0, ge=0)
    """Weight λ of the contrast, or of BYOL's regression."""
    koleo_weight: float = Field(default=0.1, ge=0)
    """Weight γ of the KoLeo terms, which spread each batch over the sphere; 0 leaves them out."""
    within_view: bool = True
    """Negatives also among the projections of the same network, as in the released code; without, plain InfoNCE."""
    mask_same_participant: Literal["everywhere", "within-view"] = "everywhere"
    """Where other segments of a person are no negatives: `everywhere` (ours), or only among the projections of the same
    network, as in the released code. The same thing while no person is twice in a batch."""
    momentum: MomentumSchedule = MomentumSchedule(momentum=0.99)
    """How slowly the copy follows."""
    frozen_steps: int = Field(default=0, ge=0)
    """The copy stands still for so many steps first."""
    joint_views: bool = False
    """Both views in one forward pass, which is faster on a GPU but lets BatchNorm see them together (ours)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.contrast_weight and not self.koleo_weight:
            raise ValueError("contrast_weight and koleo_weight are both 0: nothing is left to train on")
        return self
