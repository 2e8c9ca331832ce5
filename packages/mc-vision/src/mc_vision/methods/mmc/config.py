"""Settings of MMC. Only the paper's abstract could be read: the defaults are those of the same group's SiT and MC-SSL where
these agree, and ours elsewhere. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel
from mc_core.momentum_schedule import MomentumSchedule
from mc_vision.encoders_config import EncoderConfig


class CorruptionConfig(StrictModel):
    """Group masking: what the student does not see of a view (GMML's blocks and copies, as SiT and MC-SSL use them)."""

    ratio: float = Field(default=0.5, ge=0, le=0.8)
    """Share p of the image that blocks cover, drawn for each view from [min(½, p), p]; 0 corrupts nothing."""
    max_side: float = Field(default=0.3, gt=0, le=1)
    """Longest side of a block, as a share of the image's."""
    align: Literal["auto", "pixel", "patch"] = "auto"
    """Whether blocks begin and end anywhere or at patches. `auto` (our choice): at patches for `distill_on: masked`, where
    a token should be hidden whole, else anywhere, as in the sister methods."""
    fill: Literal["zeros", "noise"] = "zeros"
    """What blocks are filled with after normalisation: zeros (SiT, MC-SSL) or standard normal noise (GMML)."""
    copy_p: float = Field(default=0.5, ge=0, le=1)
    """Probability that an image is, instead, corrupted by blocks of another image of the batch at the same place."""
    copy_ratio: float = Field(default=0.3, ge=0, le=0.8)
    """Share of the image that these blocks cover."""


class MMCConfig(StrictModel):
    """MMC: masked image modelling, momentum distillation of patches and contrast of whole images, in one ViT.

    >>> MMCConfig(contrast_weight=0.0).corruption.ratio
    0.5
    """

    encoder: EncoderConfig = EncoderConfig(backbone="vit_small_patch16_224", image_size=224, drop_path=0.1)
    """The vision transformer; `drop_path` acts in the student only."""
    reconstruction_weight: float = Field(default=1.0, ge=0)
    """λ_M of masked image modelling; 0 leaves it out. SiT's authors suggest 5 for small data sets."""
    distillation_weight: float = Field(default=1.0, ge=0)
    """λ_D of the distillation of patches; 0 leaves it out."""
    contrast_weight: float = Field(default=1.0, ge=0)
    """λ_C of the contrast of whole images; 0 leaves it out."""
    global_to_local_weight: float = Field(default=0.0, ge=0)
    """Weight of our optional term that distils the teacher's view of a whole image into the student's mean patch."""
    corruption: CorruptionConfig = CorruptionConfig()
    """What is hidden from the student; the teacher sees clean views."""
    distill_on: Literal["all", "masked"] = "all"
    """Distil `all` patches (MC-SSL; our choice, since visible patches of a corrupted image must match too), or those with
    a corrupted pixel (iBOT)."""
    separate_heads: bool = False
    """A head of its own for the contrast (SiT), rather than one trunk for image and patches (MC-SSL, iBOT; our choice, as
    the way from global to local features that the abstract speaks of)."""
    hidden_dim: int = Field(default=2048, ge=1)
    """Hidden width of the trunk."""
    dim: int = Field(default=256, ge=1)
    """Width of the trunk's output, and of queries and keys."""
    contrast_hidden_dim: int = Field(default=4096, ge=1)
    """Hidden width of the contrast head, for `separate_heads`."""
    outputs: int = Field(default=8192, ge=2)
    """Classes E that patches are distributed over (MC-SSL 8192, ASiT 1024)."""
    student_temperature: float = Field(default=0.1, gt=0)
    """τ_s of the distillation."""
    teacher_temperature: float = Field(default=0.07, gt=0)
    """τ_t of the distillation, after its warm-up."""
    teacher_temperature_start: float = Field(default=0.04, gt=0)
    """τ_t in the first epoch."""
    teacher_temperature_epochs: int = Field(default=30, ge=0)
    """Epochs over which τ_t rises, linearly from epoch to epoch; the last of them has `teacher_temperature`."""
    center_momentum: float = Field(default=0.9, ge=0, le=1)
    """Share of the old centre that is kept at each optimizer step."""
    frozen_epochs: int = Field(default=1, ge=0)
    """Epochs in which the last layer of the distillation stays as it is."""
    contrast_temperature: float = Field(default=0.2, gt=0)
    """τ of the contrast."""
    momentum: MomentumSchedule = MomentumSchedule(momentum=0.996, schedule="cosine")
    """How slowly the teacher follows."""
    keep: Literal["teacher", "student"] = "teacher"
    """Which encoder is evaluated and exported; both are in every checkpoint (iBOT finds the teacher generally better)."""
    sync_bn: bool = True
    """With several processes on GPUs, the contrast head's BatchNorm counts over all of them."""
    exclude_same_id: bool = False
    """Keys with the id of the query are no negatives (needs ids in the data; our option)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        weights = (
            self.reconstruction_weight,
            self.distillation_weight,
            self.contrast_weight,
            self.global_to_local_weight,
        )
        if not any(weights):
            raise ValueError("all loss weights are 0, so nothing would be learned; set at least one above 0")
        only = self.reconstruction_weight and not any(weights[1:])
        if only and not self.corruption.ratio and not (self.corruption.copy_p and self.corruption.copy_ratio):
            raise ValueError("corruption.ratio 0 leaves nothing to reconstruct; set it above 0, or another loss weight")
        return self

    @property
    def aligned(self) -> bool:
        """Whether blocks begin and end at patches."""
        align = self.corruption.align
        return align == "patch" or (align == "auto" and self.distill_on == "masked")

    def teacher_temperature_at(self, epoch: int) -> float:
        """τ_t in an epoch, counted from 0.

        >>> config = MMCConfig(teacher_temperature_epochs=4)
        >>> [round(config.teacher_temperature_at(epoch), 3) for epoch in (0, 1, 3, 10)]
        [0.04, 0.05, 0.07, 0.07]
        """
        if epoch >= self.teacher_temperature_epochs:
            return self.teacher_temperature
        share = epoch / max(self.teacher_temperature_epochs - 1, 1)
        return self.teacher_temperature_start + (self.teacher_temperature - self.teacher_temperature_start) * share
