"""Settings of CTP. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from mc_vision_language.continual.config import ContinualConfig


class CTPConfig(ContinualConfig):
    """CTP; the defaults of momenta, queue, masking and weights (all 1) are those of the official code.

    >>> config = CTPConfig()
    >>> config.momentum_first, config.momentum, config.interpolation, config.queue_size
    (0.995, 0.9, 0.5, 1024)
    """

    momentum_first: float = Field(default=0.995, ge=0, le=1)
    """Of the momentum model in the first task, where it follows the trained one alone."""
    momentum: float = Field(default=0.9, ge=0, le=1)
    """Of the compatible momentum model in later tasks."""
    interpolation: float = Field(default=0.5, ge=0, le=1)
    """Share α of the old model in what the momentum model follows in later tasks; 0: it follows the trained one alone."""
    restart: bool = True
    """Whether the momentum model starts each task from the old model, as in the official code; off, it goes on from where it is."""
    queue_size: int = Field(default=1024, ge=0)
    """Keys of earlier steps to contrast with, for images and for texts, which survive from task to task; 0: none."""
    contrast: float = Field(default=1.0, ge=0)
    """Weight of compatible momentum contrast; 0: off."""
    cross: float = Field(default=1.0, ge=0)
    """Weight of cross-modal topology preservation; 0: off."""
    same: float = Field(default=1.0, ge=0)
    """Weight of same-modal topology preservation; 0: off."""
    mask_own: bool = True
    """Whether same-modal topology leaves out a row's similarity with itself, which is always 1 and takes nearly all weight."""
    distil_mlm: float = Field(default=1.0, ge=0)
    """Weight of the momentum model's opinion about masked words; 0: off."""
    plain_first: bool = False
    """Learn the first task by contrast within the batch and masked words alone, as all baselines do."""
    plain_later: bool = False
    """Learn later tasks by contrast within the batch and masked words alone: what the first task of CTP is worth by itself."""

    @property
    def distils_words(self) -> bool:
        """Whether the momentum model is asked about masked words."""
        return self.distil_mlm > 0 and self.mlm > 0

    @property
    def follows(self) -> bool:
        """Whether anything is learned from the momentum model."""
        return self.contrast > 0 or self.distils_words

    @property
    def preserves(self) -> bool:
        """Whether anything is learned from the old model itself."""
        return self.cross > 0 or self.same > 0
