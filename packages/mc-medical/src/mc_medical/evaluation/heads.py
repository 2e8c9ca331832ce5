"""Few-shot heads: logistic regression on frozen features, from a handful of labelled studies.

Everything that is chosen is chosen on the support set alone: its centre, its scale, and the penalty by cross-validation. The head
can be pulled towards the zero-shot head instead of towards zero (ours; the loss is convex, so that a starting point alone would
change nothing).

Legend: N rows, D dimensions, C observations, K folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_core.random import derive_seed
from mc_medical.evaluation.checks import binary_labels, groups
from mc_medical.evaluation.intervals import Interval, area, area_interval

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""scikit-learn's C, tried from strong to weak penalty: minimise ½‖w‖² + C Σ log(1 + exp(−y (xw + b)))."""
FOLDS = 5
_STREAM = 0xFE35


@dataclass(frozen=True)
class Head:
    """A fitted logistic head.

    Attributes:
        weight: (D,) on features as they are given.
        bias: number.
        c: inverse penalty used.
    """

    weight: np.ndarray
    bias: float
    c: float

    def logits(self, x: np.ndarray) -> np.ndarray:
        """(N,) for (N, D) features; above 0 is more likely than not."""
        return np.asarray(x, dtype=np.float64) @ self.weight + self.bias


def fit_head(
    x: np.ndarray,
    y: np.ndarray,
    *,
    c: float | None = None,
    prior: np.ndarray | None = None,
    patients: Sequence[Any] | np.ndarray | None = None,
    seed: int = 0,
) -> Head:
    """L2 logistic regression of 0/1 labels, features centred and scaled by one number, the bias free.

    Args:
        x: (N, D) features of the support.
        y: (N,) of 0 and 1.
        c: inverse penalty; default: that of :data:`PENALTIES` with the smallest log loss over five folds of the support, folds of
            whole patients where given; 1 where a class has fewer than two rows to divide.
        prior: (D,) weights towards which it is pulled instead of towards zero, such as κ (positive − negative prompt vector).
        patients: (N,).
        seed: of the folds.

    Raises:
        DataError: one class alone, shapes that do not match, values that are not finite.
        ConfigError: c not positive.

    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> head = fit_head(x, np.array([0, 0, 1, 1]), c=1.0)
    >>> bool(head.logits(x)[0] < 0 < head.logits(x)[3]), round(-head.bias / float(head.weight[0]), 6)
    (True, 1.5)
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or not x.size or y.shape != (len(x),):
        raise DataError(f"features {x.shape} and labels {y.shape}: (rows, dimensions) and a label for each row")
    if not np.isfinite(x).all() or not np.isin(y, (0, 1)).all():
        raise DataError("features must be finite and labels 0 or 1")
    if len(np.unique(y)) < 2:
        raise DataError(f"the support has {int(y.sum())} positives and {int((1 - y).sum())} negatives; both are needed")
    if prior is not None and np.shape(prior) != (x.shape[1],):
        raise DataError(f"prior weights have shape {np.shape(prior)}; {x.shape[1]} are needed")
    if c is not None and not (np.isfinite(c) and c > 0):
        raise ConfigError(f"c={c} must be positive, or None to have it chosen")
    if c is None:
        c = _choose(x, y, prior, groups(patients, len(x)), seed)
    return _fit(x, y, (c,), prior)[0]


def _fit(
    x: np.ndarray, y: np.ndarray, penalties: Sequence[float], prior: np.ndarray | None, *, tolerance: float = 1e-12
) -> list[Head]:
    """A head for each penalty, each started from the one before it."""
    centre = x.mean(axis=0)
    scale = np.sqrt(((x - centre) ** 2).mean(axis=0).sum()) or 1.0
    z = (x - centre) / scale
    towards = np.zeros(x.shape[1]) if prior is None else np.asarray(prior, dtype=np.float64) * scale
    offset = z @ towards
    # what is learned beside the prior lies in the span of the rows: at most N numbers, not D
    u, value, vt = np.linalg.svd(z, full_matrices=False)
    kept = value > value[:1] * max(z.shape) * np.finfo(np.float64).eps
    rows, basis = u[:, kept] * value[kept], vt[kept]
    one = np.concatenate([rows, np.ones((len(x), 1))], axis=1)
    weight, found = np.zeros(one.shape[1]), []
    for c in penalties:
        weight = _newton(one, 2 * y - 1, offset, c, weight, tolerance)
        full = (weight[:-1] @ basis + towards) / scale
        found.append(Head(full, float(weight[-1] - centre @ full), float(c)))
    return found


def _newton(
    x: np.ndarray, sign: np.ndarray, offset: np.ndarray, c: float, weight: np.ndarray, tolerance: float
) -> np.ndarray:
    """Minimum of ½‖w‖² + C Σ log(1 + exp(−sign (xw + offset))), the last weight free, overshoots halved."""
    penalty = np.ones(x.shape[1])
    penalty[-1] = 0

    def loss(w: np.ndarray) -> float:
        return float(c * np.logaddexp(0, -sign * (x @ w + offset)).sum() + 0.5 * (penalty * w**2).sum())

    current = loss(weight)
    for _ in range(100):
        margin = sign * (x @ weight + offset)
        chance = 0.5 * (1 - np.tanh(0.5 * margin))
        gradient = -c * (x.T @ (sign * chance)) + penalty * weight
        curvature = c * (x.T * (chance * (1 - chance))) @ x
        curvature[np.diag_indices_from(curvature)] += penalty + 1e-12 * c
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while (reached := loss(weight - size * step)) > current and size > 1e-10:
            size /= 2
        if size <= 1e-10:
            break
        weight = weight - size * step
        gained, current = current - reached, reached
        if gained <= tolerance * max(1.0, abs(current)):
            break
    return weight


def _choose(x: np.ndarray, y: np.ndarray, prior: np.ndarray | None, patients: np.ndarray, seed: int) -> float:
    """The penalty with the smallest log loss over folds of the support; the stronger of equals."""
    fold = _folds(y, patients, seed)
    loss = np.zeros(len(PENALTIES))
    used = 0
    for number in range(int(fold.max()) + 1):
        out = fold == number
        if len(np.unique(y[~out])) < 2 or not out.any():
            continue
        used += 1
        for place, head in enumerate(_fit(x[~out], y[~out], PENALTIES, prior, tolerance=1e-5)):
            loss[place] += np.logaddexp(0, -(2 * y[out] - 1) * head.logits(x[out])).sum()
    return PENALTIES[int(np.argmin(loss))] if used > 1 else 1.0


def _folds(y: np.ndarray, patients: np.ndarray, seed: int) -> np.ndarray:
    """(N,) fold of each row: whole patients, those with a positive dealt out evenly."""
    count = int(patients.max()) + 1
    positive = np.bincount(patients, y, minlength=count) > 0
    rng = np.random.Generator(np.random.Philox(derive_seed(seed, _STREAM, 1)))
    order = rng.permutation(count)
    dealt = order[np.argsort(~positive[order], kind="stable")]
    fold = np.empty(count, dtype=np.int64)
    fold[dealt] = np.arange(count) % FOLDS
    return fold[patients]


@dataclass(frozen=True)
class FewShotResult:
    """What :func:`few_shot` returns.

    Attributes:
        auroc: size of the support → observation → mean over draws; sizes are ``"8"`` for 8 of each class, ``"10%"`` for a share.
        spread: the same → standard deviation over draws, 0 where all draws are the same.
        macro: size → mean over observations and draws.
        macro_spread: size → deviation over draws of the mean over observations.
        interval: size → observation → interval over test patients, of the first draw.
        rows: size → observation → rows of a support.
        left_out: ``size observation`` → why.
    """

    auroc: dict[str, dict[str, float]]
    spread: dict[str, dict[str, float]]
    macro: dict[str, float]
    macro_spread: dict[str, float]
    interval: dict[str, dict[str, Interval]] = field(repr=False)
    rows: dict[str, dict[str, int]] = field(repr=False)
    left_out: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "auroc": self.auroc,
            "spread": self.spread,
            "macro_auroc": self.macro,
            "macro_spread": self.macro_spread,
            "interval": {
                size: {name: one.to_dict() for name, one in found.items()} for size, found in self.interval.items()
            },
            "rows": self.rows,
            "left_out": self.left_out,
        }


def few_shot(
    train_x: np.ndarray,
    train_labels: np.ndarray,
    test_x: np.ndarray,
    test_labels: np.ndarray,
    names: Sequence[str],
    *,
    shots: Sequence[int] = (4, 8, 16, 32),
    shares: Sequence[float] = (0.01, 0.1, 1.0),
    draws: int = 5,
    priors: Mapping[str, np.ndarray] | None = None,
    train_patients: Sequence[Any] | np.ndarray | None = None,
    test_patients: Sequence[Any] | np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> FewShotResult:
    """AUROC of heads fitted on k studies of each class, or on a share of the labelled ones, one observation at a time.

    Args:
        train_x: (N, D) frozen features to draw supports from.
        train_labels: (N, C) in {1, 0, NaN}.
        test_x: (T, D).
        test_labels: (T, C).
        names: C.
        shots: positives, and as many negatives, in a support; a size larger than a class is left out.
        shares: of the labelled training rows.
        draws: supports of each size.
        priors: observation → (D,) zero-shot weights to be pulled towards.
        train_patients: (N,), for the folds that choose the penalty.
        test_patients: (T,), for intervals.
        resamples: for intervals; 0 for none.
        seed: of supports, folds and resamples.

    Raises:
        DataError: nothing could be measured, patients on both sides, shapes or values that do not fit.

    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(60, 3)), np.repeat([0.0, 1.0], 30)[:, None]
    >>> x[30:, 0] += 4
    >>> found = few_shot(x[::2], y[::2], x[1::2], y[1::2], ["Edema"], shots=(4,), shares=(), draws=2, resamples=0)
    >>> found.auroc["4"]["Edema"] > 0.8, found.rows["4"]["Edema"]
    (True, 8)
    """
    train_x, test_x = (np.asarray(x, dtype=np.float64) for x in (train_x, test_x))
    if train_x.ndim != 2 or test_x.ndim != 2 or train_x.shape[1] != test_x.shape[1]:
        raise DataError(f"features {train_x.shape} and {test_x.shape}: both (rows, dimensions) of one model")
    y, held = binary_labels(train_labels, len(train_x), names), binary_labels(test_labels, len(test_x), names)
    if any(k < 1 for k in shots) or any(not 0 < share <= 1 for share in shares) or draws < 1:
        raise ConfigError(
            f"shots={tuple(shots)}, shares={tuple(shares)}, draws={draws}: 1 or more, in (0, 1], 1 or more"
        )
    _check_disjoint(train_patients, test_patients)
    who, who_held = groups(train_patients, len(train_x)), groups(test_patients, len(test_x))
    found: dict[str, dict[str, list[float]]] = {}
    interval: dict[str, dict[str, Interval]] = {}
    rows: dict[str, dict[str, int]] = {}
    left_out: dict[str, str] = {}
    sizes: list[tuple[str, int | float]] = [(str(k), k) for k in shots] + [(f"{100 * s:g}%", s) for s in shares]
    for label, size in sizes:
        for place, name in enumerate(names):
            truth = held[:, place]
            known = ~np.isnan(truth)
            if len(np.unique(truth[known])) < 2:
                left_out[f"{label} {name}"] = "the test rows have one class alone"
                continue
            scores = []
            for draw in range(draws if size != 1.0 or isinstance(size, int) else 1):
                support = _support(y[:, place], size, derive_seed(seed, _STREAM, place, draw))
                if support is None:
                    left_out[f"{label} {name}"] = "too few training rows"
                    break
                head = fit_head(
                    train_x[support],
                    y[support, place],
                    prior=(priors or {}).get(name),
                    patients=who[support],
                    seed=derive_seed(seed, draw),
                )
                logits = head.logits(test_x[known])
                scores.append(area("auroc", truth[known], logits))
                if draw == 0:
                    interval.setdefault(label, {})[name] = area_interval(
                        "auroc", truth[known], logits, who_held[known], draws=resamples, seed=seed
                    )
                    rows.setdefault(label, {})[name] = len(support)
            else:
                found.setdefault(label, {})[name] = scores
    if not found:
        raise DataError(f"no head could be fitted: {dict(list(left_out.items())[:3])}")
    by_draw = {label: np.array(list(per.values())).mean(axis=0) for label, per in found.items()}
    return FewShotResult(
        auroc={label: {n: float(np.mean(v)) for n, v in per.items()} for label, per in found.items()},
        spread={label: {n: _deviation(v) for n, v in per.items()} for label, per in found.items()},
        macro={label: float(v.mean()) for label, v in by_draw.items()},
        macro_spread={label: _deviation(v) for label, v in by_draw.items()},
        interval=interval,
        rows=rows,
        left_out=left_out,
    )


def _deviation(values: Sequence[float] | np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _support(y: np.ndarray, size: int | float, seed: int) -> np.ndarray | None:
    """Rows of a support, sorted; smaller ones of the same draw lie within larger ones. None where there are too few."""
    rng = np.random.Generator(np.random.Philox(seed))
    positive, negative = (rng.permutation(np.flatnonzero(y == value)) for value in (1, 0))
    if isinstance(size, int):
        if min(len(positive), len(negative)) < size:
            return None
        chosen = np.concatenate([positive[:size], negative[:size]])
    else:
        mixed = rng.permutation(np.flatnonzero(~np.isnan(y)))
        chosen = mixed[: max(1, round(size * len(mixed)))]
        if len(np.unique(y[chosen])) < 2:
            return None
    return np.sort(chosen)


def _check_disjoint(train: Any, test: Any) -> None:
    if train is None or test is None:
        return
    both = np.intersect1d(np.asarray(train), np.asarray(test))
    if len(both):
        raise DataError(f"{len(both)} patients lie in training and in test; split by patient")
