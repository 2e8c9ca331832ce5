"""Settings of CoCoSoDa, of its steps from plain in-batch contrast, and of its fine-tuning. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel
from mc_core.momentum_schedule import MomentumSchedule
from mc_text_code.encoders_config import EncoderConfig

SoftKind = Literal["dm", "dr", "drst", "dmst"]
ALL_KINDS: tuple[SoftKind, ...] = ("dm", "dr", "drst", "dmst")


class SoftAugmentConfig(StrictModel):
    """The soft augmentations of the keys; see :mod:`mc_text_code.soft_augment`."""

    kinds: tuple[SoftKind, ...] = ALL_KINDS
    """Of code: dm dynamic masking, dr replacement by type, drst and dmst the same of one type alone. None: keys are as they are."""
    rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the eligible tokens that is changed."""
    query: bool = True
    """Mask tokens of questions (dm) in their keys."""
    per: Literal["step", "sample"] = "sample"
    """One kind for the whole step, or one drawn for each function."""
    hide_names: float = Field(default=0.0, ge=0, le=1)
    """Share of the keys of code in which the function's own name is hidden behind its type (ours)."""
    token_ids: tuple[int, ...] | None = None
    """For an encoder without tokenizer: id of the mask token, then those of the twelve type tokens."""


class BlockWeights(StrictModel):
    """Weight of each of the six terms of the loss: anchor → what it is told from others."""

    code_query: float = Field(default=1.0, ge=0)
    """Code → question, both of the encoder that is trained (block 1)."""
    code_query_key: float = Field(default=1.0, ge=0)
    """Code → augmented question of the slow copy (block 2)."""
    query_code: float = Field(default=1.0, ge=0)
    """Question → code, both of the encoder that is trained (block 3)."""
    query_code_key: float = Field(default=1.0, ge=0)
    """Question → augmented code of the slow copy (block 4)."""
    code_code_key: float = Field(default=1.0, ge=0)
    """Code → itself augmented, of the slow copy (block 5)."""
    query_query_key: float = Field(default=1.0, ge=0)
    """Question → itself augmented, of the slow copy (block 6)."""

    @property
    def values(self) -> tuple[float, ...]:
        """Blocks 1 to 6."""
        return (
            self.code_query,
            self.code_query_key,
            self.query_code,
            self.query_code_key,
            self.code_code_key,
            self.query_query_key,
        )


class CoCoSoDaConfig(StrictModel):
    """CoCoSoDa. The defaults are the paper's where it gives them; the temperature is ours (see the loss).

    >>> CoCoSoDaConfig().block_weights, CoCoSoDaConfig(intra_modal=False).block_weights
    ((1.0, 1.0, 1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0, 0.0, 0.0))
    """

    encoder: EncoderConfig = EncoderConfig(pooling="mean", max_length=256)
    """The one encoder of questions and code; its `max_length` cuts code."""
    temperature: float = Field(default=0.05, gt=0)
    """Temperature τ. Under `parity: released` it is divided by 20, as in the released code."""
    queue_size: int = Field(default=4096, ge=0)
    """Keys in each queue; 0: none."""
    momentum: MomentumSchedule = MomentumSchedule(momentum=0.999)
    """How slowly the copy follows."""
    weights: BlockWeights = BlockWeights()
    """Weights of the six terms."""
    intra_modal: bool = True
    """Blocks 5 and 6; off, their weights count as 0."""
    momentum_keys: bool = True
    """Blocks 2, 4, 5 and 6, and the slow copy. Off, and without queues, this is plain in-batch contrast."""
    exclude_same: bool = True
    """A function or question that equals the anchor's is no negative (ours)."""
    same_language: bool = False
    """Only keys of the anchor's language are negatives from the queues (ours)."""
    augment: SoftAugmentConfig = SoftAugmentConfig()
    """What is done to the keys."""
    parity: Literal["ours", "released"] = "ours"
    """`released`: four queues, two of them of the trained encoder's own outputs, 20·cos/τ, no duplicates left out."""
    queue_start: Literal["empty", "random"] | None = None
    """How queues begin: with nothing, or full of random unit rows. Default: random under `parity: released`, else empty."""

    @property
    def block_weights(self) -> tuple[float, ...]:
        """Weights of blocks 1 to 6 after the switches."""
        values = list(self.weights.values)
        for place in (1, 3, 4, 5) if not self.momentum_keys else (4, 5) if not self.intra_modal else ():
            values[place] = 0.0
        return tuple(values)

    @property
    def true_temperature(self) -> float:
        """What cosines are divided by."""
        return self.temperature / 20 if self.parity == "released" else self.temperature

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not any(self.block_weights):
            raise ValueError("all terms of the loss have weight 0: give one of weights.* a weight, or switch it on")
        if self.queue_size and not self.momentum_keys:
            raise ValueError(f"queue_size {self.queue_size} needs momentum_keys, whose keys it holds; set one of them")
        if self.parity == "released" and not self.queue_size:
            raise ValueError("parity: released needs queues; the released scripts have queue_size 1024")
        if self.parity == "released" and self.same_language:
            raise ValueError("parity: released knows no same_language; leave one of them out")
        ids = self.augment.token_ids
        if ids is not None and len(ids) != 13:
            raise ValueError(f"augment.token_ids has {len(ids)} entries; it takes 13: the mask, then twelve types")
        return self
