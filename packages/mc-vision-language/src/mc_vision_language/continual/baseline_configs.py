"""Settings of the baselines on a sequence of tasks; the defaults are the constants of CTP's official code. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from mc_vision_language.continual.config import ContinualConfig


class EWCConfig(ContinualConfig):
    """Elastic weight consolidation.

    >>> EWCConfig().penalty
    5000.0
    """

    penalty: float = Field(default=5000.0, ge=0)
    """λ of ½ λ Σ F (θ − θ*)², where F is the mean squared gradient of a batch."""


class MASConfig(ContinualConfig):
    """Memory-aware synapses.

    >>> MASConfig().penalty
    1.0
    """

    penalty: float = Field(default=1.0, ge=0)
    """λ of ½ λ Σ S (θ − θ*)², where S is the mean absolute gradient of the features' lengths."""


class SIConfig(ContinualConfig):
    """Synaptic intelligence.

    >>> SIConfig().penalty, SIConfig().damping
    (1.0, 0.1)
    """

    penalty: float = Field(default=1.0, ge=0)
    """λ of λ Σ S (θ − θ*)², where S is what a weight did for the loss over how far it went."""
    damping: float = Field(default=0.1, gt=0)
    """Added to the squared way of a weight before it divides."""


class RWalkConfig(ContinualConfig):
    """Riemannian walk.

    >>> RWalkConfig().penalty, RWalkConfig().damping
    (1000.0, 0.1)
    """

    penalty: float = Field(default=1000.0, ge=0)
    """λ of λ Σ (S + F) (θ − θ*)²."""
    damping: float = Field(default=0.1, gt=0)
    """Added to F times the squared way of a weight before it divides."""


class AFECConfig(EWCConfig):
    """Active forgetting with a model that is free to learn the new task.

    >>> AFECConfig().penalty, AFECConfig().forward_penalty
    (5000.0, 1.0)
    """

    forward_penalty: float = Field(default=1.0, ge=0)
    """λₑ of ½ λₑ Σ Fₑ (θ − θₑ)², where θₑ learned the new task without a penalty."""


class LwFConfig(ContinualConfig):
    """Learning without forgetting, also of the iCaRL-style baseline.

    >>> LwFConfig().feature, LwFConfig().similarity, LwFConfig().distil_mlm
    (1.0, 0.0, 1.0)
    """

    feature: float = Field(default=1.0, ge=0)
    """Weight of keeping softmax(feature / τ), over the dimensions of a feature that is not normalised. It is nearly one-hot, a weak
    constraint."""
    similarity: float = Field(default=0.0, ge=0)
    """Weight of keeping softmax(cosines / τ) of images against texts and of texts against images, which says more; not in the
    official code."""
    distil_mlm: float = Field(default=1.0, ge=0)
    """Weight of keeping the words predicted at masked places."""


class LUCIRConfig(ContinualConfig):
    """Projections that only turn, and token states that keep their direction.

    >>> LUCIRConfig().direction, LUCIRConfig().token_axis
    (1.0, False)
    """

    direction: float = Field(default=1.0, ge=0)
    """Weight of 1 − cosine between token states and those of the model before, the mean of images and texts."""
    token_axis: bool = False
    """Take the cosine along the tokens instead of along the features, padding included, as the official code does by its default
    axis."""
    distil_mlm: float = Field(default=1.0, ge=0)
    """Weight of keeping the words predicted at masked places."""
