"""How random views of a segment are made, with the published probabilities of each signal. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel


class AugmentConfig(StrictModel):
    """Random changes of a z-scored segment; each has its own coin, for each view anew. The defaults are those of PPG.

    They run in the order of the fields. Abbaspourazad et al. 2024 (ICLR, arXiv:2312.05409), section 3.1, for the
    probabilities; strengths as in the authors' later released pipeline, which knows only PPG: those of ECG are not
    published, and taken to be the same.

    >>> AugmentConfig().cut_p, AugmentConfig.of_signal("ecg").cut_p
    (0.4, 0.8)
    """

    cut_p: float = Field(default=0.4, ge=0, le=1)
    """Probability of cutting out one window: zero on all channels."""
    cut_fraction: tuple[float, float] = (0.3, 0.5)
    """Shares of the segment, between which the window's length is drawn."""
    magnitude_p: float = Field(default=0.25, ge=0, le=1)
    """Probability of a magnitude warp: a smooth factor along time, the same for all channels."""
    magnitude_sigma: float = Field(default=0.2, ge=0)
    """Standard deviation of that factor at the knots, around 1."""
    time_p: float = Field(default=0.15, ge=0, le=1)
    """Probability of a time warp."""
    time_sigma: float = Field(default=0.1, ge=0)
    """Standard deviation of what a time warp draws at the knots."""
    time_warp: Literal["monotone", "released"] = "monotone"
    """`monotone` (ours): a positive rate of time, the same for all channels. `released`, to reproduce the authors' code:
    positions moved at random, for each channel apart, so that in about half of all draws time also runs backwards."""
    noise_p: float = Field(default=0.25, ge=0, le=1)
    """Probability of Gaussian noise."""
    noise_sigma: tuple[float, float] = (0.05, 0.1)
    """Standard deviations between which that of the noise is drawn."""
    permute_p: float = Field(default=0.25, ge=0, le=1)
    """Probability of exchanging the channels."""
    knots: int = Field(default=7, ge=4)
    """Knots of both warps, from the first sample to the last at equal distances."""

    @classmethod
    def of_signal(cls, kind: Literal["ppg", "ecg"]) -> Self:
        """The published probabilities of a signal: stronger for ECG, of which two of a person are too alike."""
        if kind == "ppg":
            return cls()
        return cls(cut_p=0.8, magnitude_p=0.5, time_p=0.3, noise_p=0.5, permute_p=0.0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.cut_fraction
        if not 0 <= low <= high <= 1:
            raise ValueError(f"cut_fraction {self.cut_fraction} is (low, high) with 0 ≤ low ≤ high ≤ 1")
        low, high = self.noise_sigma
        if not 0 <= low <= high:
            raise ValueError(f"noise_sigma {self.noise_sigma} is (low, high) with 0 ≤ low ≤ high")
        return self
