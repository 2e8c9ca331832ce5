"""Linear probes of frozen features: what can be read by a weighted sum, fitted on some people and tested on others.

The paper (§4): the mean of a participant's embeddings, standardised on training participants, ridge regression, also for two
classes (on −1 and 1). How it chose the penalty could not be read; here it is cross-validated over participants.

Legend: N rows, D dimensions, A penalties, K folds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from mc_core.errors import ConfigError, DataError, closest
from mc_core.evaluation import BootstrapInterval
from mc_core.random import derive_seed
from mc_core.resampling import Difference, bootstrap_metrics, paired_difference
from mc_wearables.evaluation.splits import Features, check_disjoint

Task = Literal["regression", "classification"]
Level = Literal["participant", "segment"]
Classifier = Literal["ridge", "logistic"]

ALPHAS = tuple(10.0**exponent for exponent in range(3, -7, -1))
"""Penalties tried, strong to weak: alpha of mean squared error + alpha·‖w‖² over standardised features."""
FOLDS = 5
_METRICS: dict[Task, tuple[str, ...]] = {
    "regression": ("r2", "mae"),
    "classification": ("auroc", "partial_auroc", "auprc"),
}
_FOLD_STREAM = 0xF01D


@dataclass(frozen=True)
class ProbeResult:
    """What :func:`probe` returns.

    Attributes:
        target: label that was read.
        task: ``"regression"`` or ``"classification"``.
        level: a row is a participant (their mean embedding) or a segment.
        classifier: ``"ridge"`` on −1 and 1, or ``"logistic"``; ``"ridge"`` for regression.
        within_person: whether everybody's own mean was taken out of features and label first.
        alpha: penalty used.
        metrics: name → value and interval over participants.
        participants: people in ``{"train": …, "test": …}``.
        segments: their segments.
        positives: share of 1 among the test rows; None for regression.
        truth: (rows,) labels of the test rows.
        score: (rows,) predictions: in units of the label, or higher for 1.
        participant: (rows,) keys of the test rows' participants.
    """

    target: str
    task: Task
    level: Level
    classifier: Classifier
    within_person: bool
    alpha: float
    metrics: dict[str, BootstrapInterval]
    participants: dict[str, int]
    segments: dict[str, int]
    positives: float | None
    truth: np.ndarray = field(repr=False)
    score: np.ndarray = field(repr=False)
    participant: np.ndarray = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without what could be traced to single people."""
        private = ("truth", "score", "participant", "metrics")
        found = {name: value for name, value in vars(self).items() if name not in private}
        return found | {"metrics": {name: asdict(interval) for name, interval in self.metrics.items()}}


@dataclass(frozen=True)
class _Rows:
    x: np.ndarray  # (N, D) float64, may hold NaN
    y: np.ndarray  # (N,)
    key: np.ndarray  # (N,) participant of each row
    participants: int
    segments: int


def probe(
    train: Features,
    test: Features,
    target: str,
    *,
    level: Level = "participant",
    task: Task | None = None,
    classifier: Classifier = "ridge",
    alpha: float | None = None,
    within_person: bool = False,
    draws: int = 1000,
    seed: int = 0,
) -> ProbeResult:
    """Fit a linear probe on ``train`` and measure it on the other people in ``test``.

    Features are standardised, and missing ones filled with the mean, by the training rows alone. The penalty with the smallest
    loss in five-fold cross-validation over training participants is refitted on all of them. Rows without label are left out.

    Args:
        train: features with the label ``target``.
        test: the same features of other people.
        target: name of a label.
        level: ``"participant"`` probes the mean of a participant's features, ``"segment"`` single segments.
        task: default: classification where every label is 0 or 1, else regression.
        classifier: ridge on −1 and 1, as the paper, or logistic regression.
        alpha: penalty; default: cross-validated.
        within_person: take everybody's own mean out of features and label first, so that R² says how much of what changes
            *within* a person can be read (ours); needs segments and a regression.
        draws: resamples for the intervals.
        seed: of folds and resamples.

    Raises:
        DataError: people on both sides, a label that is missing, constant, or varies within people where it must not.
        ConfigError: a combination that cannot work.

    >>> rng, people = np.random.default_rng(0), np.repeat(np.arange(40), 3)
    >>> values = rng.normal(size=(120, 2)).astype(np.float32)
    >>> labels = {"load": values[:, 0] * 2.0 + 1}
    >>> names = tuple(f"p{i}" for i in range(40))
    >>> features = Features(values, people, names, np.arange(120), labels)
    >>> train, test = features.of_participants(range(25)), features.of_participants(range(25, 40))
    >>> result = probe(train, test, "load", level="segment")
    >>> round(result.metrics["r2"].value, 3), result.participants, result.segments
    (1.0, {'train': 25, 'test': 15}, {'train': 75, 'test': 45})
    """
    check_disjoint(train, test)
    if train.values.shape[1] != test.values.shape[1]:
        raise DataError(
            f"train has {train.values.shape[1]} features and test {test.values.shape[1]}; both must come from one encoder"
        )
    found = _task(train, test, target, task)
    if found == "regression" and classifier != "ridge":
        raise ConfigError(f"classifier={classifier!r} with a regression of {target!r}: only ridge does both")
    if within_person and (level != "segment" or found != "regression"):
        raise ConfigError("within_person compares segments of a person: take level='segment' and a regression")
    if alpha is not None and not (np.isfinite(alpha) and alpha >= 0):
        raise ConfigError(f"alpha={alpha} must be zero or more, or None to have it chosen")
    fit, held = (
        _rows(side, target, level, found, within_person, name) for side, name in ((train, "training"), (test, "test"))
    )
    solve = _logistic if classifier == "logistic" else _ridge
    goal = 2 * fit.y - 1 if found == "classification" else fit.y
    if alpha is None:
        alpha = _cross_validated(fit, goal, solve, classifier, seed)
    score = solve(*_standardised(fit.x, held.x), goal, (alpha,))[0]
    return ProbeResult(
        target=target,
        task=found,
        level=level,
        classifier=classifier,
        within_person=within_person,
        alpha=alpha,
        metrics=bootstrap_metrics(held.y, score, held.key, _METRICS[found], draws=draws, seed=seed),
        participants={"train": fit.participants, "test": held.participants},
        segments={"train": fit.segments, "test": held.segments},
        positives=float(held.y.mean()) if found == "classification" else None,
        truth=held.y,
        score=score,
        participant=held.key,
    )


def compare(first: ProbeResult, second: ProbeResult, name: str, *, draws: int = 1000, seed: int = 0) -> Difference:
    """Metric ``name`` of ``first`` minus that of ``second`` on the same test rows, with a paired interval over participants.

    Raises:
        DataError: the two were not measured on the same rows.
    """
    same = len(first.truth) == len(second.truth) and (first.participant == second.participant).all()
    if not same or first.target != second.target or not (first.truth == second.truth).all():
        raise DataError(
            f"probes of {first.target!r} on {len(first.truth)} rows and of {second.target!r} on {len(second.truth)} rows "
            "cannot be paired: take the same target, level and test segments"
        )
    return paired_difference(name, first.truth, first.score, second.score, first.participant, draws=draws, seed=seed)


def _task(train: Features, test: Features, target: str, task: Task | None) -> Task:
    for side, name in ((train, "training"), (test, "test")):
        if target not in side.labels:
            raise DataError(f"the {name} data has no label {target!r}; closest: {closest(target, side.labels)}")
    values = np.concatenate([train.labels[target], test.labels[target]])
    binary = bool(np.isin(values[~np.isnan(values)], (0, 1)).all())
    if task == "classification" and not binary:
        raise DataError(f"label {target!r} has values beside 0 and 1; two classes are probed one against the other")
    return task or ("classification" if binary else "regression")


def _rows(features: Features, target: str, level: Level, task: Task, within_person: bool, side: str) -> _Rows:
    known = ~np.isnan(features.labels[target])
    if not known.any():
        raise DataError(f"label {target!r} is unknown for all {len(features)} {side} segments")
    x, y = features.values[known].astype(np.float64), features.labels[target][known]
    codes, person = np.unique(features.participant[known], return_inverse=True)
    if level == "participant" or within_person:
        mean_x, mean_y = _nanmeans(x, person, len(codes)), _nanmeans(y[:, None], person, len(codes))[:, 0]
        if level == "participant":
            mixed = len(np.unique(person[y != mean_y[person]])) if task == "classification" else 0
            if mixed:
                raise DataError(
                    f"label {target!r} varies between segments of {mixed} of {len(codes)} {side} participants; "
                    "probe it with level='segment'"
                )
            x, y, person = mean_x, mean_y, np.arange(len(codes))
        else:
            x, y = x - mean_x[person], y - mean_y[person]
    if len(np.unique(y)) < 2:
        raise DataError(
            f"label {target!r} has the single value {y[0]:g} in the {side} data; a probe needs it to differ"
        )
    key = np.array(features.participant_keys)[codes][person]
    return _Rows(x, y, key, len(codes), int(known.sum()))


def _nanmeans(values: np.ndarray, code: np.ndarray, codes: int) -> np.ndarray:
    """(codes, D) means of what is known of each; NaN where nothing is."""
    seen = ~np.isnan(values)
    order, count = np.argsort(code, kind="stable"), np.bincount(code, minlength=codes)
    begin = count.cumsum() - count
    total = np.add.reduceat(np.where(seen, values, 0)[order], begin, axis=0)
    number = np.add.reduceat(seen[order].astype(np.float64), begin, axis=0)
    return np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)


def _standardised(fit: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both by mean and deviation of what is known of ``fit``; unknown becomes the mean, a constant column zero."""
    seen = ~np.isnan(fit)
    count = np.maximum(seen.sum(axis=0), 1)
    mean = np.where(seen, fit, 0).sum(axis=0) / count
    deviation = np.sqrt((np.where(seen, fit - mean, 0) ** 2).sum(axis=0) / count)
    usable = deviation > 1e-12 * np.maximum(np.abs(mean), 1e-300)
    scale = np.where(usable, 1 / np.where(usable, deviation, 1), 0)
    first, second = (fit - mean) * scale, (other - mean) * scale
    return np.where(np.isnan(first), 0, first), np.where(np.isnan(second), 0, second)


def _cross_validated(fit: _Rows, goal: np.ndarray, solve: Any, classifier: Classifier, seed: int) -> float:
    """The penalty with the smallest summed loss over folds of participants; the stronger of equals."""
    person = np.unique(fit.key, return_inverse=True)[1]
    if fit.participants < FOLDS:
        raise DataError(
            f"{fit.participants} training participants are too few for {FOLDS} folds: record more people, or give alpha (in Python)"
        )
    order = np.random.Generator(np.random.Philox(derive_seed(seed, _FOLD_STREAM))).permutation(fit.participants)
    fold = np.empty(fit.participants, dtype=np.int64)
    fold[order] = np.arange(fit.participants) % FOLDS
    loss = np.zeros(len(ALPHAS))
    for number in range(FOLDS):
        out = fold[person] == number
        if classifier == "logistic" and len(np.unique(goal[~out])) < 2:
            continue
        score_AN = solve(*_standardised(fit.x[~out], fit.x[out]), goal[~out], ALPHAS)
        part = np.logaddexp(0, -goal[out] * score_AN) if classifier == "logistic" else (score_AN - goal[out]) ** 2
        loss += part.sum(axis=1)
    return ALPHAS[int(np.argmin(loss))]


def _ridge(x: np.ndarray, new: np.ndarray, y: np.ndarray, alphas: tuple[float, ...]) -> np.ndarray:
    """(A, rows of ``new``): minimum of mean (xw + b − y)² + alpha·‖w‖², all alphas from one decomposition.

    ``x`` has zero mean, so that the intercept is the mean of ``y``.
    """
    middle = y.mean()
    u, value, vt = np.linalg.svd(x / np.sqrt(len(x)), full_matrices=False)
    moment = u.T @ (y - middle) / np.sqrt(len(x))
    # without a penalty this is the least-norm solution
    kept = value > value[:1] * max(x.shape) * np.finfo(np.float64).eps
    bottom = np.where(kept, value**2 + np.array(alphas)[:, None], 1)
    return np.where(kept, value * moment / bottom, 0) @ (new @ vt.T).T + middle


def _logistic(x: np.ndarray, new: np.ndarray, y: np.ndarray, alphas: tuple[float, ...]) -> np.ndarray:
    """(A, rows of ``new``): minimum of mean log(1 + exp(−y (xw + b))) + alpha/2·‖w‖² by Newton's method, halving overshoots.

    Each penalty starts from the solution of the stronger one before it.
    """
    one = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    weight, found = np.zeros(one.shape[1]), []
    for alpha in alphas:
        penalty = np.full(one.shape[1], alpha)
        penalty[-1] = 0

        def loss(w: np.ndarray, penalty: np.ndarray = penalty) -> float:
            return float(np.logaddexp(0, -y * (one @ w)).mean() + 0.5 * (penalty * w**2).sum())

        current = loss(weight)
        for _ in range(100):
            chance = 1 / (1 + np.exp((y * (one @ weight)).clip(-500, 500)))
            gradient = -(one.T @ (y * chance)) / len(one) + penalty * weight
            curvature = (one.T * (chance * (1 - chance))) @ one / len(one) + np.diag(penalty + 1e-10)
            step = np.linalg.solve(curvature, gradient)
            size = 1.0
            while (reached := loss(weight - size * step)) > current and size > 1e-8:
                size /= 2
            if size <= 1e-8:
                break
            weight = weight - size * step
            gained, current = current - reached, reached
            if gained < 1e-10:
                break
        found.append(new @ weight[:-1] + weight[-1])
    return np.stack(found)
