"""Settings of MSD, of GradCache and of plain accumulation. Imports no torch."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from mc_medical.encoders_config import ImageTextConfig

Keys = Literal["ema", "grad_cache", "grad_cache+ema_targets", "batch"]

ALPHA = 0.4
_ALPHA_LIMIT = 0.9


class MSDConfig(ImageTextConfig):
    """MSD. Where the paper's numbers could not be read they are ours; so are all defaults here.

    >>> MSDConfig().distillation, MSDConfig(keys="grad_cache").distillation
    (0.4, 0.0)
    """

    keys: Keys = "ema"
    """What a micro-batch is contrasted with. `ema`: the teacher's embeddings of the whole batch. `grad_cache`: the trained
    encoders' own, with the full two-sided gradient, without teacher. `grad_cache+ema_targets`: the same with targets from the
    teacher. `batch`: only the micro-batch itself, which is plain accumulation."""
    alpha: float | None = Field(default=None, ge=0)
    """Share of the targets that comes from the teacher; default: 0.4 where there is one."""
    alpha_ramp_epochs: float = Field(default=1.0, ge=0)
    """Epochs in which that share rises from 0."""
    horizon: float = Field(default=100_000.0, gt=0)
    """How far back the teacher looks, in pairs S: its momentum is exp(−N/S) for N pairs an optimizer step."""
    horizon_share: float = Field(default=0.05, gt=0, le=1)
    """The teacher looks back no further than this share of the run."""
    queue_size: int = Field(default=0, ge=0)
    """Keys of earlier steps to contrast with besides, of the teacher; 0: none."""
    intra_modal: float = Field(default=0.0, ge=0)
    """Weight of the terms image against images and text against texts, with `keys: ema`."""

    @property
    def has_teacher(self) -> bool:
        """Whether a slow copy of the encoders is kept."""
        return self.keys in ("ema", "grad_cache+ema_targets")

    @property
    def distillation(self) -> float:
        """α after its ramp."""
        if self.alpha is None:
            return ALPHA if self.has_teacher else 0.0
        return self.alpha

    def alpha_at(self, epochs: float) -> float:
        """α after so many epochs.

        >>> MSDConfig(alpha=0.4).alpha_at(0.5)
        0.2
        """
        ramp = self.alpha_ramp_epochs
        return self.distillation * (min(epochs / ramp, 1.0) if ramp else 1.0)

    def momentum_at(self, step: int, total_steps: int, batch_size: int) -> float:
        """The teacher's momentum after optimizer step ``step`` (from 0): a horizon in pairs, ramped, and capped for short runs.

        >>> round(MSDConfig().momentum_at(5_000, 100_000, batch_size=1024), 3)
        0.99
        """
        horizon = min(self.horizon, self.horizon_share * total_steps * batch_size)
        return min(math.exp(-batch_size / horizon), 1 - 1 / (step + 2))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.alpha is not None and self.alpha > _ALPHA_LIMIT:
            raise ValueError(
                f"alpha {self.alpha} is more than {_ALPHA_LIMIT}: with targets from the teacher alone, a student that equals it "
                "learns nothing; take about 0.4"
            )
        if self.alpha and not self.has_teacher:
            raise ValueError(
                f"alpha {self.alpha} needs a teacher, which keys: {self.keys} has not; set alpha to 0 or take ema"
            )
        if self.queue_size and self.keys != "ema":
            raise ValueError(f"queue_size {self.queue_size} needs keys: ema, whose keys it holds; set it to 0")
        if self.intra_modal and self.keys != "ema":
            raise ValueError(f"intra_modal {self.intra_modal} needs keys: ema; set it to 0")
        return self
