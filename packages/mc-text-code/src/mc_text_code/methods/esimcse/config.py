"""Settings of ESimCSE, and of SimCSE, which is the same with repetition and queue switched off. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mc_core.engine.config import StrictModel
from mc_core.momentum_schedule import MomentumSchedule
from mc_text_code.encoders_config import EncoderConfig


class ESimCSEConfig(StrictModel):
    """ESimCSE. The defaults are those published for BERT-base.

    >>> (
    ...     ESimCSEConfig(queue_batches=0).queue_size(64),
    ...     ESimCSEConfig().queue_size(64),
    ...     ESimCSEConfig(queue_batches=1e-3).queue_size(64),
    ... )
    (0, 160, 1)
    """

    encoder: EncoderConfig = EncoderConfig()
    """The encoder of sentences."""
    head: bool = True
    """A linear layer with tanh behind the encoder, in training only."""
    temperature: float = Field(default=0.05, gt=0)
    """Temperature τ."""
    queue_batches: float = Field(default=2.5, ge=0)
    """Keys in the queue, as a multiple of the batch; 0: no queue and no momentum copy, as in SimCSE."""
    momentum: MomentumSchedule = MomentumSchedule(momentum=0.995)
    """How slowly the copy follows."""
    momentum_init: Literal["checkpoint", "random"] = "checkpoint"
    """Where the copy starts: at the encoder's weights, or at random ones as in the released code."""
    exclude_same: bool = True
    """The same sentence elsewhere in the batch or the queue is no negative (ours)."""

    def queue_size(self, batch_size: int) -> int:
        """Keys in the queue for a batch of that many sentences; at least one where there is a queue."""
        return max(round(self.queue_batches * batch_size), 1 if self.queue_batches else 0)
