"""Learning rate and weight decay as functions of the step. Imports no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mc_core.errors import ConfigError

if TYPE_CHECKING:
    from mc_core.engine.config import Fit


def learning_rate_factor(fit: Fit, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """What the peak learning rate is multiplied by during the optimizer step after ``step`` finished ones.

    * warm-up: linear from ``fit.warmup_from`` over ``fit.warmup_epochs``, always moving every step (once an epoch it would
      waste the first one at 0). A run that ends during its warm-up never reaches the peak.
    * ``cosine``: half a cosine from 1 at the end of the warm-up to ``fit.decay_to`` at the end of the run.
    * ``linear``: a straight line between the same two.
    * ``step``: times ``decay_factor`` from each milestone on; milestones are fractions of the run, warm-up included.
    * ``constant``: 1.

    After the warm-up, ``schedule_every="epoch"`` holds the value of the epoch's first step.

    Args:
        fit: the run's configuration.
        step: optimizer steps finished, 0 ≤ step ≤ total_steps.
        steps_per_epoch: at least 1.
        total_steps: of the whole run, at least 1.

    Returns:
        In [0, 1].

    Raises:
        ConfigError: numbers out of these ranges.

    Source: cosine, Loshchilov & Hutter 2017 (arXiv:1608.03983); the forms of MoCo v1–v3's released code.

    >>> from mc_core.engine.config import Fit
    >>> fit = Fit(epochs=10, warmup_epochs=2)
    >>> [round(learning_rate_factor(fit, step, 100, 1000), 3) for step in (0, 100, 200, 600, 1000)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if steps_per_epoch < 1 or total_steps < 1 or not 0 <= step <= total_steps:
        raise ConfigError(
            f"step {step} of {total_steps}, {steps_per_epoch} per epoch: "
            "the run and an epoch have at least one step, and the step lies within the run"
        )
    warmup = fit.warmup_epochs * steps_per_epoch
    if step < warmup:
        return fit.warmup_from + (1.0 - fit.warmup_from) * step / warmup
    if fit.schedule == "constant":
        return 1.0
    position = step - step % steps_per_epoch if fit.schedule_every == "epoch" else step
    if fit.schedule == "step":
        return fit.decay_factor ** sum(milestone <= position / total_steps for milestone in fit.milestones)
    decaying = max(total_steps - warmup, 1)
    progress = min(max(position - warmup, 0.0) / decaying, 1.0)
    left = 1.0 - progress if fit.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return fit.decay_to + (1.0 - fit.decay_to) * left


def weight_decay_factor(fit: Fit, step: int, total_steps: int) -> float:
    """What the weight decay is multiplied by during the optimizer step after ``step`` finished ones.

    Half a cosine from 1 at the start to ``weight_decay_end / weight_decay`` at the end of the run, without warm-up; 1
    where ``fit.weight_decay_end`` is not set.

    Args:
        fit: the run's configuration.
        step: optimizer steps finished, 0 ≤ step ≤ total_steps.
        total_steps: of the whole run, at least 1.

    Raises:
        ConfigError: numbers out of these ranges.

    Source: Caron et al. 2021 (DINO, arXiv:2104.14294), section 3.2 and the released code.

    >>> from mc_core.engine.config import Fit
    >>> fit = Fit(weight_decay=0.04, weight_decay_end=0.4)
    >>> [round(0.04 * weight_decay_factor(fit, step, 100), 3) for step in (0, 50, 100)]
    [0.04, 0.22, 0.4]
    """
    if total_steps < 1 or not 0 <= step <= total_steps:
        raise ConfigError(f"step {step} of {total_steps}: a run has at least one step, and the step lies within it")
    if fit.weight_decay_end is None:
        return 1.0
    end = fit.weight_decay_end / fit.weight_decay
    return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * step / total_steps))
