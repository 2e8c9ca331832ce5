"""How the label-free evaluations of patches are run. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mc_core.engine.config import StrictModel

PromptKind = Literal["center", "random"]
ProtocolName = Literal["prompt-segmentation", "object-similarity"]


class PatchOptions(StrictModel):
    """What may be chosen about the patches and how they are scored. Where MMC's abstract is silent the defaults are ours."""

    layer: int = -1
    """Transformer block whose tokens are taken; -1 is the last."""
    norm: bool = True
    """Apply the encoder's last LayerNorm to them."""
    keys: bool = False
    """Take the keys of that block's attention instead."""
    draws: int = Field(default=5, ge=1)
    """Random prompts per object; their scores are averaged, never the best taken."""
    tuning_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the images on which the one threshold t* of a model is tuned; t* is reported on the others."""
    connected: bool = False
    """Keep only what is connected with the prompt."""
    background: bool = False
    """Count the ground as one more object when similarities are compared."""
    long_tokens: Literal["count", "exclude"] = "count"
    """Patches with an unusually long token, in which large transformers keep notes on the whole image, count like all others,
    or are treated as void. Their share is reported either way. (Clipping lengths would change no cosine.)"""
    long_from: float = Field(default=3.0, gt=1)
    """A token is unusually long beyond this multiple of its image's median, as its block leaves it (our measure)."""


class PatchProtocol(PatchOptions):
    """The settings of both protocols.

    >>> PatchProtocol(size=96, draws=3).prompts
    ('center', 'random')
    """

    protocols: tuple[ProtocolName, ...] = Field(default=("prompt-segmentation", "object-similarity"), min_length=1)
    """Which of the two to run; one forward pass and one Gram matrix per image serve both."""
    size: int = Field(default=480, ge=1)
    """Side in pixels to which images and masks are resized; a multiple of the patch."""
    prompts: tuple[PromptKind, ...] = Field(default=("center", "random"), min_length=1)
    """The patch pointed at: furthest from the object's boundary, or drawn from the object."""
    pixels: bool = True
    """Score masks in pixels too, from the similarity map enlarged before the threshold."""
    controls: bool = True
    """Add the untrained encoder, mean colour, and position alone, which a model has to beat."""
    batch_size: int = Field(default=8, ge=1)
    """Images per forward pass."""
    seed: int = 0
    """Of the random prompts, the tuning images, and the untrained encoder."""
