"""How slowly a momentum encoder follows: schedules, half-lives and what a queue asks of them. Imports no torch.

Notation: m momentum, m_0 its first value, s fraction of the run done, G samples per optimizer step, K queue length.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel
from mc_core.errors import ConfigError

_HORIZON_PER_QUEUE_AGE = (
    3.9  # "four times", less a little: the published ImageNet recipe itself is at 1000 / 256 = 3.906
)


def _check_unit(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name} is {value}; it must lie between 0 and 1")


def cosine_momentum(base: float, fraction: float, end: float = 1.0) -> float:
    """Momentum that rises from ``base`` to ``end`` along half a cosine: ``end − (end − base)·(1 + cos πs)/2``.

    Args:
        base: m_0 in [0, 1], at the start.
        fraction: s in [0, 1], share of the run done, warm-up included.
        end: value at s = 1, in [0, 1].

    Raises:
        ConfigError: a value outside [0, 1].

    Source: Chen et al. 2021 (MoCo v3, arXiv:2104.02057), the released training code; BYOL (arXiv:2006.07733) §3.

    >>> [round(cosine_momentum(0.99, s), 4) for s in (0.0, 0.5, 1.0)]
    [0.99, 0.995, 1.0]
    """
    for name, value in (("momentum", base), ("fraction of the run", fraction), ("end momentum", end)):
        _check_unit(name, value)
    return end - (end - base) * 0.5 * (1.0 + math.cos(math.pi * fraction))


def momentum_from_half_life(half_life_samples: float, batch_size: int) -> float:
    """``½^(G/half-life)``: the momentum at which a weight's share in the average halves every ``half_life_samples``.

    Args:
        half_life_samples: > 0.
        batch_size: G ≥ 1, samples per optimizer step.

    Raises:
        ConfigError: a value out of range.

    >>> round(momentum_from_half_life(half_life_of(0.999, 256), 512), 6)
    0.998001
    """
    if not half_life_samples > 0:
        raise ConfigError(f"half-life is {half_life_samples} samples; it must be above 0")
    _check_batch(batch_size)
    return 0.5 ** (batch_size / half_life_samples)


def half_life_of(momentum: float, batch_size: int) -> float:
    """``G · ln ½ / ln m``: samples after which a weight's share in the average has halved (m = 0: 0; m = 1: ∞).

    >>> [round(half_life_of(m, 1)) for m in (0.99, 0.996, 0.999, 0.9999)]
    [69, 173, 693, 6931]
    """
    _check_unit("momentum", momentum)
    _check_batch(batch_size)
    if momentum in (0.0, 1.0):
        return math.inf if momentum else 0.0
    return batch_size * math.log(0.5) / math.log(momentum)


def horizon_advice(momentum: float, queue_size: int, batch_size: int) -> str | None:
    """A warning when the keys of a queue come from encoders too unlike each other, else None.

    The average looks back 1/(1−m) steps; the oldest key is K/G steps old. Where the first is less than four times the
    second, the loss tends to stick at ln(K+1), because old and new keys are no longer comparable.

    Args:
        momentum: m in [0, 1].
        queue_size: K ≥ 0 keys; 0 means no queue, and no advice.
        batch_size: G ≥ 1 keys enqueued per optimizer step, over all processes.

    >>> horizon_advice(0.999, 512, 16) is None
    True
    >>> print(horizon_advice(0.99, 512, 16))
    momentum 0.99 looks back 100 steps, less than about 4 times the age of the oldest of 512 keys (512/16 = 32 steps), so \
keys of unlike encoders are compared; set momentum to 0.9920 or more, or the queue to 410 keys or fewer
    """
    _check_unit("momentum", momentum)
    _check_batch(batch_size)
    age = queue_size / batch_size
    horizon = math.inf if momentum == 1.0 else 1.0 / (1.0 - momentum)
    if horizon >= _HORIZON_PER_QUEUE_AGE * age * (1 - 1e-9):  # 1 − m is inexact: the advised value itself must pass
        return None
    enough = 1.0 - 1.0 / (_HORIZON_PER_QUEUE_AGE * age)
    digits = max(2, math.ceil(-math.log10(1.0 - enough)) + 1)
    shown = math.ceil(enough * 10**digits) / 10**digits
    short = int(horizon / _HORIZON_PER_QUEUE_AGE * batch_size + 1e-6)
    return (
        f"momentum {momentum:g} looks back {horizon:.0f} steps, less than about {_HORIZON_PER_QUEUE_AGE:.0f} times the age "
        f"of the oldest of {queue_size} keys ({queue_size}/{batch_size} = {age:.0f} steps), so keys of unlike encoders "
        f"are compared; set momentum to {shown:.{digits}f} or more"
        + (f", or the queue to {short} keys or fewer" if short else "")
    )


def _check_batch(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch size is {batch_size}; it must be at least 1")


class MomentumSchedule(StrictModel):
    """How the momentum of a :class:`~mc_core.momentum.MomentumEncoder` is chosen at each step.

    >>> MomentumSchedule(momentum=0.99, schedule="cosine").at(0.5, batch_size=256)
    0.995
    >>> slow = MomentumSchedule(half_life=177_000)
    >>> round(slow.at(0.0, batch_size=256), 4), round(slow.at(0.0, batch_size=1024), 4)
    (0.999, 0.996)
    """

    momentum: float | None = Field(default=0.999, ge=0, le=1)
    """Share of the old weights kept at each optimizer step (the first value, when it is scheduled)."""
    half_life: float | None = Field(default=None, gt=0)
    """Instead of `momentum`: samples after which a weight's share has halved, whatever the batch size."""
    schedule: Literal["constant", "cosine"] = "constant"
    """`constant`, or `cosine` from the first value to `end` over the run."""
    end: float = Field(default=1.0, ge=0, le=1)
    """For `schedule: cosine`: the value at the end of the run."""

    @model_validator(mode="before")
    @classmethod
    def _half_life_replaces_default(cls, data: Any) -> Any:
        # a dump then holds `momentum: null`, so that a resolved recipe can be read back
        if isinstance(data, dict) and data.get("half_life") is not None and "momentum" not in data:
            return {**data, "momentum": None}
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.momentum is not None and self.half_life is not None:
            raise ValueError(
                f"give momentum ({self.momentum}) or half_life ({self.half_life} samples), not both; "
                "set the other one to null"
            )
        if self.momentum is None and self.half_life is None:
            raise ValueError("give momentum (such as 0.999) or half_life (in samples)")
        return self

    def at(self, fraction: float, batch_size: int) -> float:
        """The momentum of one optimizer step.

        Args:
            fraction: share of the run done, in [0, 1] (``Progress.fraction``).
            batch_size: samples per optimizer step, over all processes.
        """
        if self.half_life is not None:
            base = momentum_from_half_life(self.half_life, batch_size)
        else:
            assert self.momentum is not None  # the validator saw to it
            base = self.momentum
        return cosine_momentum(base, fraction, self.end) if self.schedule == "cosine" else base
