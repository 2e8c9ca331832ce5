"""Which size to grow to: held-out loss against cost, and how sure the choice is. Imports no torch.

Legend: C candidates, R evaluations in the course of the search, N held-out batches (the same ones for every candidate), T trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mc_core.errors import ConfigError, DataError

__all__ = ["Selection", "cost_exponent", "growth_scores", "select_growth"]

_TIE = 1e-9


@dataclass(frozen=True)
class Selection:
    """What was chosen, and what spoke for it.

    Attributes:
        names: of the candidates.
        losses: C mean held-out losses.
        costs: C costs, in the unit they were given in.
        scores: C values ``L · c^w``, lower is better.
        exponent: w, by how many percent the loss falls for each percent of cost, 0 or more.
        current: index of what there is.
        best: index of the least score.
        chosen: ``best``, or ``current`` where the loss of ``best`` is not lower by the margin.
        difference: mean loss of ``best`` minus that of ``current``.
        interval: bootstrap interval of ``difference``, from paired differences batch by batch; None with one batch or no trials.
        level: of the interval.
        shares: C shares of the resampled sets of batches in which a candidate would have been chosen; None likewise.
    """

    names: tuple[str, ...]
    losses: tuple[float, ...]
    costs: tuple[float, ...]
    scores: tuple[float, ...]
    exponent: float
    current: int
    best: int
    chosen: int
    difference: float
    interval: tuple[float, float] | None
    level: float
    shares: tuple[float, ...] | None

    @property
    def name(self) -> str:
        """Of what was chosen."""
        return self.names[self.chosen]

    @property
    def confidence(self) -> float | None:
        """In which share of the resampled sets of batches the same one would have been chosen."""
        return None if self.shares is None else self.shares[self.chosen]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the candidates one by one, the choice and how sure it is."""
        shares = self.shares or (None,) * len(self.names)
        rows = zip(self.names, self.losses, self.costs, self.scores, shares, strict=True)
        return {
            "candidates": [
                {"name": name, "loss": loss, "cost": cost, "score": score, "chosen_share": share}
                for name, loss, cost, score, share in rows
            ],
            "exponent": self.exponent,
            "current": self.names[self.current],
            "best": self.names[self.best],
            "chosen": self.name,
            "difference": self.difference,
            "interval": None if self.interval is None else list(self.interval),
            "level": self.level,
            "confidence": self.confidence,
        }


def cost_exponent(losses: ArrayLike, costs: ArrayLike) -> np.ndarray:
    """w of the power law ``L = k · c^−w`` by least squares of ln L on ln c, at least 0.

    Args:
        losses: (…, C) positive.
        costs: (C,) positive. Where all are the same, w is 0.

    >>> costs = np.array([1.0, 2.0, 4.0])
    >>> round(float(cost_exponent(3.0 * costs**-0.25, costs)), 6), float(cost_exponent([1.0, 1.1, 1.2], costs))
    (0.25, 0.0)
    """
    x_C = np.log(np.asarray(costs, dtype=np.float64))
    y_C = np.log(np.asarray(losses, dtype=np.float64))
    x_C = x_C - x_C.mean()
    spread = float(x_C @ x_C)
    if spread <= (1e-12 * len(x_C)) ** 2:
        return np.zeros(y_C.shape[:-1])
    return np.maximum(-(y_C @ x_C) / spread, 0.0)


def growth_scores(losses: ArrayLike, costs: ArrayLike) -> np.ndarray:
    """(…, C) ``L · c^w`` with w of :func:`cost_exponent`; the cheapest cost counts as 1.

    Where losses follow a power law exactly, all scores tie: the least score is the candidate furthest below the trend, not the
    largest.

    >>> costs = np.array([1.0, 2.0, 4.0])
    >>> growth_scores(3.0 * costs**-0.25, costs).round(6).tolist()
    [3.0, 3.0, 3.0]
    """
    loss_C, cost_C = np.asarray(losses, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    return loss_C * (cost_C / cost_C.min()) ** cost_exponent(loss_C, cost_C)[..., None]


def select_growth(
    losses: ArrayLike,
    costs: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    current: int = 0,
    margin: float = 0.002,
    trials: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Selection:
    """The candidate with the least ``L · c^w``, ties to the cheaper, unless it is no better than what there is.

    The trend is that of the candidates themselves: it takes several to tell one from it. Two of different cost always tie where
    the loss falls, and the cheaper is taken.

    Args:
        losses: (C, N) held-out losses, or (C, R, N) where each was evaluated R times; positive. Every candidate must have been
            evaluated on the same batches, of the same size: a contrastive loss hangs on its batch.
        costs: (C,) positive, such as FLOPs of a forward pass.
        names: of the candidates; default: their numbers.
        current: the candidate that means no growth.
        margin: by which share of the current loss the chosen one's must be lower.
        trials: T sets of N batches drawn with replacement, the same batches for all candidates, on which the choice is made
            again; 0 for no statement of confidence.
        level: of the interval of the difference.
        seed: of the drawing.

    Raises:
        DataError: losses or costs that are not finite and positive, or shapes that do not fit.
        ConfigError: an index, margin, number of trials or level out of range.

    Source: the rule is this project's, after AutoProg (Li et al. 2022, arXiv:2203.14509), which fits loss against step time;
    GrowCLIP (Deng et al. 2023, arXiv:2308.11331) chooses by loss and size.

    >>> noise = 0.001 * np.random.default_rng(0).normal(size=(3, 40))
    >>> found = select_growth(
    ...     np.array([[2.0], [1.7], [1.6]]) + noise, [1.0, 1.5, 3.0], names=["same", "heads", "blocks"]
    ... )
    >>> found.name, round(found.exponent, 2), found.confidence
    ('heads', 0.19, 1.0)
    """
    loss_CN, cost_C = _checked(losses, costs)
    C, N = loss_CN.shape
    labels = tuple(str(i) for i in range(C)) if names is None else tuple(names)
    if len(labels) != C:
        raise DataError(f"{len(labels)} names for {C} candidates")
    if not 0 <= current < C:
        raise ConfigError(f"current is {current}; there are candidates 0 to {C - 1}")
    if not 0.0 <= margin < 1.0:
        raise ConfigError(f"margin is {margin}; it must be a share of the loss, 0 or more and below 1")
    if trials < 0:
        raise ConfigError(f"trials is {trials}; it must be 0 or more")
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level is {level}; it must lie between 0 and 1")
    mean_C = loss_CN.mean(1)
    best, chosen = _choice(mean_C[None], cost_C, current, margin)
    interval: tuple[float, float] | None = None
    shares: tuple[float, ...] | None = None
    if trials and N > 1:
        rng = np.random.default_rng(seed)
        times_TN = rng.multinomial(N, np.full(N, 1.0 / N), size=trials)
        mean_TC = times_TN @ loss_CN.T / N
        _, again_T = _choice(mean_TC, cost_C, current, margin)
        shares = tuple((np.bincount(again_T, minlength=C) / trials).tolist())
        tails = [(1 - level) / 2, (1 + level) / 2]
        low, high = np.quantile(mean_TC[:, best[0]] - mean_TC[:, current], tails).tolist()
        interval = (low, high)
    return Selection(
        names=labels,
        losses=tuple(mean_C.tolist()),
        costs=tuple(cost_C.tolist()),
        scores=tuple(growth_scores(mean_C, cost_C).tolist()),
        exponent=float(cost_exponent(mean_C, cost_C)),
        current=current,
        best=int(best[0]),
        chosen=int(chosen[0]),
        difference=float(mean_C[best[0]] - mean_C[current]),
        interval=interval,
        level=level,
        shares=shares,
    )


def _choice(mean_TC: np.ndarray, cost_C: np.ndarray, current: int, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """(T,) the least score, and what is chosen, for T sets of mean losses."""
    score_TC = growth_scores(mean_TC, cost_C)
    tied_TC = score_TC <= score_TC.min(1, keepdims=True) * (1 + _TIE)
    best_T = np.where(tied_TC, cost_C, np.inf).argmin(1)
    best_loss_T = np.take_along_axis(mean_TC, best_T[:, None], 1)[:, 0]
    better_T = best_loss_T <= (1 - margin) * mean_TC[:, current]
    return best_T, np.where(better_T, best_T, current)


def _checked(losses: ArrayLike, costs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    loss, cost_C = np.asarray(losses, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    if loss.ndim == 3:
        loss = loss.mean(1)  # the same batches again: not further evidence on them
    if loss.ndim != 2 or cost_C.ndim != 1 or len(loss) != len(cost_C) or not loss.size:
        raise DataError(
            f"losses are {np.shape(losses)} and costs {cost_C.shape}; they must be (candidates, batches) or (candidates, "
            "evaluations, batches), and (candidates,)"
        )
    for name, values in (("losses", loss), ("costs", cost_C)):
        wrong = ~(np.isfinite(values) & (values > 0))
        if wrong.any():
            where = int(np.argwhere(wrong)[0][0])
            raise DataError(f"{name} of candidate {where} hold {values[wrong][0]}; all must be finite and above 0")
    return loss, cost_C
