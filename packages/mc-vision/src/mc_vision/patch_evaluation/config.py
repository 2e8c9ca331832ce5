"""How the label-free evaluations of patches are run. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mc_core.engine.config import StrictModel

PromptKind = Literal["center", "random"]
ProtocolName = Literal["prompt-segmentation", "object-similarity"]


class PatchProtocol(StrictModel):
    """The settings of both protocols. Where MMC's abstract is silent the defaults are ours.

    >>> PatchProtocol(size=96, draws=3).prompts
    ('center', 'random')
    """

    protocols: tuple[ProtocolName, ...] = Field(default=("prompt-segmentation", "object-similarity"), min_length=1)
    """Which of the two to run; one forward pass and one Gram matrix per image serve both."""
    size: int = Field(default=480, ge=1)
    """Side in pixels to which images and masks are resized; a multiple of the patch."""
    prompts: tuple[PromptKind, ...] = Field(default=("center", "random"), min_length=1)
    """The patch pointed at: furthest from the object's boundary, or drawn from the object."""
    draws: int = Field(default=5, ge=1)
    """Random prompts per object; their scores are averaged, never the best taken."""
    tuning_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the images on which the one threshold t* of a model is tuned; t* is reported on the others."""
    connected: bool = False
    """Keep only what is connected with the prompt."""
    pixels: bool = True
    """Score masks in pixels too, from the similarity map enlarged before the threshold."""
    background: bool = False
    """Count the ground as one more object when similarities are compared."""
    layer: int = -1
    """Transformer block whose tokens are taken; -1 is the last."""
    norm: bool = True
    """Apply the encoder's last LayerNorm to them."""
    keys: bool = False
    """Take the keys of that block's attention instead."""
    controls: bool = True
    """Add the untrained encoder, mean colour, and position alone, which a model has to beat."""
    batch_size: int = Field(default=8, ge=1)
    """Images per forward pass."""
    seed: int = 0
    """Of the random prompts, the tuning images, and the untrained encoder."""
