"""Measures of frozen features: neighbours, linear probes, retrieval, geometry, and how sure one can be of a number.

Everything runs on the device of its inputs, deterministically, and in blocks where two sets of rows meet. Functions
taking features say whether they normalise. Invalid input raises :class:`~mc_core.errors.DataError`.

Legend: N rows (training rows where there are others), T test rows, D dimensions, C classes, K neighbours, Q queries,
R candidates, G strengths of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core.errors import ConfigError, DataError
from mc_core.random import derive_seed

_L2_GRID = tuple(
    10.0**exponent for exponent in range(0, -7, -1)
)  # strong to weak, so that each fit warm-starts the next
_HELD_OUT = 0.2

Values = TypeVar("Values", Tensor, np.ndarray)


@dataclass(frozen=True)
class ProbeResult:
    """What :func:`linear_probe` returns.

    Attributes:
        accuracy: share of test rows whose best class is right.
        top5: share of test rows with the right class among the best five; None for five classes or fewer.
        train_accuracy: the same as ``accuracy`` on the training rows.
        l2: strength used.
        classes: (C,) the label of each column of ``logits``.
        logits: (T, C) scores of the test rows, for :func:`auroc`, :func:`bootstrap_interval` and the like.
    """

    accuracy: float
    top5: float | None
    train_accuracy: float
    l2: float
    classes: Tensor
    logits: Tensor


@dataclass(frozen=True)
class RidgeResult:
    """What :func:`ridge_probe` returns.

    Attributes:
        r2: coefficient of determination on the test rows; 0 is no better than their mean, and it may be negative.
        mae: mean absolute error on the test rows, in units of the target.
        train_r2: the same as ``r2`` on the training rows.
        l2: strength used.
        predictions: (T,) for the test rows.
    """

    r2: float
    mae: float
    train_r2: float
    l2: float
    predictions: Tensor


@dataclass(frozen=True)
class RetrievalResult:
    """What :func:`retrieval_metrics` returns.

    Attributes:
        recall: by k, the share of queries with a positive among the best k.
        mrr: mean over queries of 1 / rank of the best positive.
        map: mean over queries of the average precision over all candidates.
        median_rank: of the best positive, 1 is first.
        queries: how many were counted.
        excluded: how many had no positive and were left out.
    """

    recall: dict[int, float]
    mrr: float
    map: float
    median_rank: float
    queries: int
    excluded: int


@dataclass(frozen=True)
class BootstrapInterval:
    """What :func:`bootstrap_interval` returns.

    Attributes:
        value: the metric on all rows.
        low: lower end of the interval.
        high: upper end of the interval.
        resamples_used: resamples on which the metric was defined.
        resamples_skipped: resamples on which it was not.
    """

    value: float
    low: float
    high: float
    resamples_used: int
    resamples_skipped: int


@torch.no_grad()
def knn_predict(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """Vote of the ``k`` nearest training rows by cosine, each weighted exp(similarity / temperature).

    Wu et al. 2018 (arXiv:1805.01978, §3.4), as in the monitors of MoCo and DINO. Rows are L2-normalised here. Of equal
    votes the smallest label wins.

    Args:
        train_x: (N, D) features.
        train_y: (N,) integer labels, any values.
        test_x: (T, D) features.
        k: neighbours; fewer when there are fewer training rows.
        temperature: of the weights.
        chunk: test rows per block; memory is chunk × N.

    Returns:
        (T,) predicted labels.

    >>> knn_predict(torch.eye(2), torch.tensor([7, 9]), torch.tensor([[0.1, 3.0]]), k=1)
    tensor([9])
    """
    train_x, test_x = _pair(train_x, test_x, "train_x", "test_x")
    train_y = _labels(train_y, len(train_x), "train_y", "train_x").to(train_x.device)
    if k < 1 or chunk < 1 or not temperature > 0:
        raise ConfigError(f"k={k}, temperature={temperature}, chunk={chunk}: all three must be positive")
    classes, target_N = train_y.unique(return_inverse=True)
    train_x = F.normalize(train_x, dim=1)
    found = []
    for block in test_x.split(chunk):
        near_TK, rows_TK = (F.normalize(block, dim=1) @ train_x.T).topk(min(k, len(train_x)), dim=1)
        weight_TK = ((near_TK - near_TK[:, :1]) / temperature).exp()  # relative to the nearest: cannot overflow
        votes_TC = weight_TK.new_zeros(len(block), len(classes)).scatter_add_(1, target_N[rows_TK], weight_TK)
        found.append(votes_TC.argmax(1))
    return classes[torch.cat(found)]


def knn_accuracy(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> float:
    """Share of test rows that :func:`knn_predict` gets right, in [0, 1]. Rows are L2-normalised here.

    >>> knn_accuracy(
    ...     torch.eye(2), torch.tensor([0, 1]), torch.tensor([[0.1, 3.0], [0.0, 1.0]]), torch.tensor([1, 0]), k=1
    ... )
    0.5
    """
    predicted = knn_predict(train_x, train_y, test_x, k=k, temperature=temperature, chunk=chunk)
    return _share(predicted == _labels(test_y, len(test_x), "test_y", "test_x").to(predicted.device))


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    l2: float | None = None,
    groups: Sequence[Any] | Tensor | np.ndarray | None = None,
    max_iterations: int = 200,
    seed: int = 0,
) -> ProbeResult:
    """Multinomial logistic regression on frozen features, by full-batch L-BFGS.

    Minimises mean cross-entropy + l2/2 · ‖W‖² (bias free; scikit-learn's C is 1 / (l2 · N)) over features standardised
    with the mean and deviation of the training rows. Test rows take no part in any choice.

    Args:
        train_x: (N, D) features.
        train_y: (N,) integer labels, any values. A test label that is not among them counts as missed.
        test_x: (T, D) features.
        test_y: (T,) integer labels.
        l2: strength; by default the best of 1, 0.1, … 1e-6 on a fifth of the training rows, then refitted on all.
        groups: (N,) who each training row belongs to (participant, patient); that fifth is then a fifth of the groups.
        max_iterations: of L-BFGS, for each fit.
        seed: of the choice of that fifth.

    >>> x, y = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([3, 3, 5, 5])
    >>> linear_probe(x, y, torch.tensor([[-3.0], [3.0]]), torch.tensor([3, 5]), l2=0.01).accuracy
    1.0
    """
    train_x, test_x = _pair(train_x, test_x, "train_x", "test_x")
    train_y = _labels(train_y, len(train_x), "train_y", "train_x").to(train_x.device)
    test_y = _labels(test_y, len(test_x), "test_y", "test_x").to(train_x.device)
    classes, target_N = train_y.unique(return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"train_y holds the single class {classes.tolist()}; a probe needs at least two")
    count = len(classes)
    if l2 is None:
        fitted, held = _held_out(len(train_x), groups, seed, train_x.device)
        x_fit, x_held = _standardise(train_x[fitted], train_x[held])
        weight, scores = None, []
        for strength in _L2_GRID:
            weight = _fit_logistic(x_fit, target_N[fitted], count, strength, max_iterations, weight)
            scores.append(_share(_logits(x_held, weight).argmax(1) == target_N[held]))
        l2 = _L2_GRID[int(np.argmax(scores))]  # the first of equals is the strongest
    elif not (math.isfinite(l2) and l2 >= 0):
        raise ConfigError(f"l2={l2} must be zero or more, or None to have it chosen")
    x_train, x_test = _standardise(train_x, test_x)
    weight = _fit_logistic(x_train, target_N, count, l2, max_iterations)
    logits_TC = _logits(x_test, weight)
    top5 = None
    if count > 5:
        top5 = _share((classes[logits_TC.topk(5, dim=1).indices] == test_y[:, None]).any(1))
    return ProbeResult(
        accuracy=_share(classes[logits_TC.argmax(1)] == test_y),
        top5=top5,
        train_accuracy=_share(_logits(x_train, weight).argmax(1) == target_N),
        l2=l2,
        classes=classes,
        logits=logits_TC,
    )


@torch.no_grad()
def ridge_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    l2: float | None = None,
    groups: Sequence[Any] | Tensor | np.ndarray | None = None,
    seed: int = 0,
) -> RidgeResult:
    """Linear regression on frozen features, in closed form and float64: :func:`linear_probe` for a number, not a class.

    Minimises mean (xw + b − y)² + l2 · ‖w‖² (scikit-learn's alpha is l2 · N) over features standardised with the mean
    and deviation of the training rows.

    Args:
        train_x: (N, D) features.
        train_y: (N,) numbers.
        test_x: (T, D) features.
        test_y: (T,) numbers, not all equal.
        l2: strength; by default the best of 100, 10, … 1e-6 by squared error on a fifth of the training rows.
        groups: (N,) who each training row belongs to; that fifth is then a fifth of the groups.
        seed: of the choice of that fifth.

    >>> x = torch.arange(6.0)[:, None]
    >>> round(ridge_probe(x, 2 * x[:, 0] + 1, x + 10, 2 * x[:, 0] + 21, l2=0.0).r2, 6)
    1.0
    """
    train_x, test_x = _pair(train_x, test_x, "train_x", "test_x")
    train_x, test_x = train_x.double(), test_x.double()
    train_y = _targets(train_y, len(train_x), "train_y", "train_x").to(train_x.device)
    test_y = _targets(test_y, len(test_x), "test_y", "test_x").to(train_x.device)
    if len(test_y) < 2 or bool((test_y == test_y[0]).all()):
        raise DataError(f"test_y holds the single value {float(test_y[0])}; R² needs targets that differ")
    if l2 is None:
        fitted, held = _held_out(len(train_x), groups, seed, train_x.device)
        grid = (100.0, 10.0, *_L2_GRID)
        found = _ridge(train_x[fitted], train_y[fitted], train_x[held], grid)
        l2 = grid[int((found - train_y[held]).square().mean(1).argmin())]
    elif not (math.isfinite(l2) and l2 >= 0):
        raise ConfigError(f"l2={l2} must be zero or more, or None to have it chosen")
    predicted_T, fitted_N = _ridge(train_x, train_y, torch.cat([test_x, train_x]), (l2,))[0].split(
        [len(test_x), len(train_x)]
    )
    return RidgeResult(
        r2=_r2(test_y, predicted_T),
        mae=float((test_y - predicted_T).abs().mean()),
        train_r2=_r2(train_y, fitted_N),
        l2=l2,
        predictions=predicted_T,
    )


@torch.no_grad()
def retrieval_metrics(similarity: Tensor, positives: Tensor, *, ks: Sequence[int] = (1, 5, 10)) -> RetrievalResult:
    """How high each query's positives are ranked among the candidates.

    Ties are broken against the query: a positive stands behind every negative with the same similarity. A collapsed
    model, for which all candidates are alike, therefore scores like the worst one and not like the best.

    Args:
        similarity: (Q, R), larger is closer.
        positives: (Q, R) bool, or (Q,) integers: the right candidate of each query, −1 for none.
        ks: for recall at k.

    Raises:
        DataError: shapes do not match, similarities are NaN, an index is out of range, or no query has a positive.

    >>> result = retrieval_metrics(torch.tensor([[0.9, 0.1, 0.5]]), torch.tensor([2]), ks=(1, 2))
    >>> result.recall, result.mrr, result.median_rank
    ({1: 0.0, 2: 1.0}, 0.5, 2.0)
    """
    if similarity.ndim != 2 or similarity.numel() == 0:
        raise DataError(f"similarity has shape {tuple(similarity.shape)}; it must be (queries, candidates), not empty")
    if bool(similarity.isnan().any()):
        raise DataError("similarity contains NaN; look at the features it was computed from")
    if not ks or min(ks) < 1:
        raise ConfigError(f"ks={tuple(ks)}: recall needs one or more ranks of 1 and above")
    queries, candidates = similarity.shape
    positives = positives.to(similarity.device)
    if positives.dtype == torch.bool:
        if positives.shape != similarity.shape:
            raise DataError(
                f"positives {tuple(positives.shape)} and similarity {tuple(similarity.shape)} differ in shape"
            )
    else:
        _labels(positives, queries, "positives", "similarity")
        if bool(((positives < -1) | (positives >= candidates)).any()):
            raise DataError(
                f"positives reach from {int(positives.min())} to {int(positives.max())}; "
                f"there are {candidates} candidates (−1 stands for none)"
            )
    ranks, precisions = [], []
    for rows in torch.arange(queries, device=similarity.device).split(max(1, (1 << 22) // candidates)):
        right_QR = positives[rows]
        if positives.dtype != torch.bool:
            right_QR = right_QR[:, None] == torch.arange(candidates, device=similarity.device)
        right_QR = right_QR.to(torch.int8)
        last_QR = right_QR.argsort(dim=1, stable=True)  # positives last, which the stable sort below keeps within ties
        order_QR = similarity[rows].gather(1, last_QR).argsort(dim=1, descending=True, stable=True)
        hit_QR = right_QR.gather(1, last_QR).gather(1, order_QR).double()
        counted = hit_QR.any(1)
        hit_QR = hit_QR[counted]
        place_R = torch.arange(1, candidates + 1, device=similarity.device)
        ranks.append(hit_QR.argmax(1) + 1)
        precisions.append((hit_QR * hit_QR.cumsum(1) / place_R).sum(1) / hit_QR.sum(1))
    rank = torch.cat(ranks)
    if not len(rank):
        raise DataError(f"none of the {queries} queries has a positive; there is nothing to rank")
    return RetrievalResult(
        recall={k: _share(rank <= k) for k in ks},
        mrr=float((1 / rank.double()).mean()),
        map=float(torch.cat(precisions).mean()),
        median_rank=float(rank.double().quantile(0.5)),
        queries=len(rank),
        excluded=queries - len(rank),
    )


@torch.no_grad()
def alignment(x: Tensor, y: Tensor) -> float:
    """Mean squared distance of positive pairs on the sphere: 0 is perfect, 2 unrelated, 4 opposite.

    Wang & Isola 2020 (arXiv:2005.10242, eq. 6 with α = 2). Rows are L2-normalised here.

    Args:
        x: (N, D) features.
        y: (N, D) features of the same things seen otherwise.

    >>> alignment(torch.eye(2), -torch.eye(2))
    4.0
    """
    x, y = _pair(x, y, "x", "y")
    if len(x) != len(y):
        raise DataError(f"x has {len(x)} rows and y {len(y)}; row i of one must match row i of the other")
    return float((F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean())


@torch.no_grad()
def uniformity(x: Tensor, t: float = 2.0, *, chunk: int = 2048) -> float:
    """log mean exp(−t‖xᵢ − xⱼ‖²) over all pairs i < j: 0 for collapsed features, −2t or so when spread over the sphere.

    Wang & Isola 2020 (arXiv:2005.10242, eq. 7). Rows are L2-normalised here.

    Args:
        x: (N, D) features, at least two rows.
        t: sharpness.
        chunk: rows per block; memory is chunk × N.

    >>> uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # −t·‖2‖²
    -8.0
    """
    x = F.normalize(_features(x, "x"), dim=1)
    if len(x) < 2:
        raise DataError("x has one row; uniformity looks at pairs and needs two or more")
    if not t > 0 or chunk < 1:
        raise ConfigError(f"t={t}, chunk={chunk}: both must be positive")
    norm_N = x.square().sum(1)
    parts = []
    for first in range(0, len(x), chunk):
        rows, rest = x[first : first + chunk], x[first:]
        distance = norm_N[first : first + chunk, None] + norm_N[None, first:] - 2 * rows @ rest.T
        later = torch.ones_like(distance, dtype=torch.bool).triu(1)
        parts.append(distance.clamp_(min=0).mul_(-t).masked_fill_(~later, -torch.inf).flatten().logsumexp(0))
    return float(torch.stack(parts).logsumexp(0)) - math.log(len(x) * (len(x) - 1) / 2)


@torch.no_grad()
def effective_rank(x: Tensor) -> float:
    """How many dimensions the features really use: exp of the entropy of the singular values divided by their sum.

    Roy & Vetterli 2007; RankMe (Garrido et al. 2023, arXiv:2210.02885). Rows are taken as they are, neither
    normalised nor centred: features collapsed to one vector then have rank 1, where centring would leave their
    rounding noise, which looks full.

    Args:
        x: (N, D) features.

    Returns:
        From 1 to min(N, D); 0 if all features are zero.

    >>> round(effective_rank(torch.eye(4)), 4), round(effective_rank(torch.ones(5, 3)), 4)
    (4.0, 1.0)
    """
    values = torch.linalg.svdvals(_features(x, "x"))
    total = values.sum()
    if float(total) == 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


@torch.no_grad()
def feature_spread(x: Tensor) -> float:
    """Mean deviation of each dimension of the L2-normalised rows, times √D: 1 when isotropic, 0 when collapsed.

    Chen & He 2021 (SimSiam, arXiv:2011.10566, §4.1). Rows are L2-normalised here.

    Args:
        x: (N, D) features.

    >>> feature_spread(torch.ones(8, 3))
    0.0
    """
    x = F.normalize(_features(x, "x"), dim=1)
    return float(x.std(dim=0, correction=0).mean() * x.shape[1] ** 0.5)


def auroc(y_true: Tensor | np.ndarray | Sequence[int], y_score: Tensor | np.ndarray | Sequence[float]) -> float:
    """Area under the ROC curve: the chance that a positive scores higher than a negative, ties counting one half.

    Args:
        y_true: (N,) of 0 and 1 (or bool).
        y_score: (N,) numbers.

    Raises:
        DataError: only one class is present, other labels than 0 and 1, NaN, lengths that differ.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    truth, score = (torch.as_tensor(y).detach().double().cpu().numpy() for y in (y_true, y_score))
    if truth.ndim != 1 or truth.shape != score.shape:
        raise DataError(f"y_true {truth.shape} and y_score {score.shape} must be two lists of the same length")
    if np.isnan(score).any():
        raise DataError(f"y_score contains NaN at {int(np.isnan(score).sum())} of {len(score)} places")
    if not np.isin(truth, (0, 1)).all():
        raise DataError(f"y_true holds {np.unique(truth)[:5].tolist()}; it must hold 0 and 1 only")
    positive = truth.astype(bool)
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        raise DataError(f"y_true holds {hits} positives and {misses} negatives; the ROC curve needs both")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    average_rank = (counts.cumsum() - (counts - 1) / 2)[place]
    return float((average_rank[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def bootstrap_interval(
    metric: Callable[[Values, Values], float],
    y_true: Values,
    y_score: Values,
    *,
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: Sequence[Any] | Tensor | np.ndarray | None = None,
) -> BootstrapInterval:
    """Percentile bootstrap interval of ``metric(y_true, y_score)`` (Efron & Tibshirani 1993, §13.3).

    Rows are resampled with replacement. Rows of one person are no independent evidence: with ``groups``, whole groups
    are resampled, each with all its rows. A resample on which the metric is undefined (it raises DataError,
    ValueError or ZeroDivisionError, or returns NaN; for example the ROC curve of one class) is skipped and counted.

    Args:
        metric: called with rows of ``y_true`` and ``y_score``, of the type they came in.
        y_true: (N, …) tensor or array.
        y_score: (N, …) tensor or array.
        n: resamples.
        level: share of the resamples between ``low`` and ``high``.
        seed: of the resampling; the same seed, the same interval.
        groups: (N,) group of each row, of any type that sorts.

    Raises:
        DataError: the metric is undefined on the data itself or on every resample, or lengths differ.

    >>> y = np.arange(100.0)
    >>> interval = bootstrap_interval(lambda true, score: float(true.mean()), y, y, n=200)
    >>> interval.value, interval.low < 49.5 < interval.high, interval.resamples_used
    (49.5, True, 200)
    """
    rows = len(y_true)
    if rows == 0 or len(y_score) != rows:
        raise DataError(f"y_true has {rows} rows and y_score {len(y_score)}; they must match and not be empty")
    if n < 1 or not 0 < level < 1:
        raise ConfigError(f"n={n}, level={level}: take at least one resample and a level between 0 and 1")
    value = float(metric(y_true, y_score))
    if math.isnan(value):
        raise DataError("the metric is NaN on the data itself; there is no interval around it")
    group_of_row = np.arange(rows) if groups is None else _group_index(groups, rows)
    by_group = np.argsort(group_of_row, kind="stable")
    sizes = np.bincount(group_of_row)
    begins = np.cumsum(sizes) - sizes
    rng = np.random.Generator(np.random.Philox(derive_seed(seed, 0xB007)))
    found = []
    for _ in range(n):
        drawn = rng.integers(0, len(sizes), len(sizes))
        length = sizes[drawn]
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        pick = by_group[np.repeat(begins[drawn], length) + within]
        try:
            result = float(metric(_take(y_true, pick), _take(y_score, pick)))
        except (DataError, ValueError, ZeroDivisionError):
            continue
        if not math.isnan(result):
            found.append(result)
    if not found:
        raise DataError(
            f"the metric is undefined on all {n} resamples of {len(sizes)} {'rows' if groups is None else 'groups'}"
        )
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return BootstrapInterval(value, float(low), float(high), len(found), n - len(found))


def _features(x: Tensor, name: str) -> Tensor:
    """``x`` as at least float32, after checking that it is a finite, non-empty matrix."""
    if not isinstance(x, Tensor) or x.ndim != 2 or x.numel() == 0:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise DataError(f"{name} is {got}; features are a tensor (rows, dimensions), not empty")
    if not x.is_floating_point():
        raise DataError(f"{name} has dtype {x.dtype}; features must be floating point, convert them with .float()")
    finite = x.isfinite()
    if not bool(finite.all()):
        rows = (~finite.all(1)).nonzero().flatten()
        raise DataError(
            f"{name} has NaN or infinite values in {len(rows)} of {len(x)} rows, first in row {int(rows[0])}"
        )
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


def _pair(a: Tensor, b: Tensor, name_a: str, name_b: str) -> tuple[Tensor, Tensor]:
    """Two checked feature matrices of the same width, precision and device (that of the first)."""
    a, b = _features(a, name_a), _features(b, name_b)
    if a.shape[1] != b.shape[1]:
        raise DataError(
            f"{name_a} has {a.shape[1]} dimensions and {name_b} {b.shape[1]}; both must come from one encoder"
        )
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(a.device, dtype)


def _labels(y: Tensor, rows: int, name: str, of: str) -> Tensor:
    if not isinstance(y, Tensor) or y.dtype == torch.bool or y.is_floating_point() or y.is_complex():
        got = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise DataError(f"{name} is {got}; it must be a tensor of integers, for example torch.int64")
    return _length(y, rows, name, of)


def _targets(y: Tensor, rows: int, name: str, of: str) -> Tensor:
    if not isinstance(y, Tensor) or y.is_complex() or not bool(y.isfinite().all()):
        raise DataError(f"{name} must be a tensor of finite numbers")
    return _length(y, rows, name, of).detach().double()


def _length(y: Tensor, rows: int, name: str, of: str) -> Tensor:
    if y.shape != (rows,):
        raise DataError(f"{name} has shape {tuple(y.shape)} but {of} has {rows} rows; one value per row is needed")
    return y


def _share(right: Tensor) -> float:
    return int(right.sum()) / len(right)


def _take(values: Any, rows: np.ndarray) -> Any:
    return values[torch.from_numpy(rows).to(values.device)] if isinstance(values, Tensor) else values[rows]


def _group_index(groups: Sequence[Any] | Tensor | np.ndarray, rows: int) -> np.ndarray:
    """Groups numbered from 0, one for each row."""
    named = groups.cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    if named.shape != (rows,):
        raise DataError(f"groups has shape {named.shape}; there are {rows} rows, each needs its group")
    return np.unique(named, return_inverse=True)[1]


def _held_out(
    rows: int, groups: Sequence[Any] | Tensor | np.ndarray | None, seed: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Row numbers to fit on and to choose by: a random fifth, of whole groups where given."""
    group_of_row = np.arange(rows) if groups is None else _group_index(groups, rows)
    count = int(group_of_row.max()) + 1
    if count < 5:
        kind = "rows" if groups is None else "groups"
        raise DataError(f"{count} training {kind} are too few to hold a fifth of them out; give l2 yourself")
    order = np.random.Generator(np.random.Philox(derive_seed(seed, 0x4E1D))).permutation(count)
    held = np.isin(group_of_row, order[: max(1, round(count * _HELD_OUT))])
    fitted, chosen = (torch.from_numpy(np.flatnonzero(mask)).to(device) for mask in (~held, held))
    return fitted, chosen


def _standardise(train: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both by the training rows' mean and deviation; a dimension constant in training is not scaled."""
    deviation, mean = torch.std_mean(train, dim=0, correction=0)
    flat = deviation <= mean.abs() * (8 * torch.finfo(train.dtype).eps)
    deviation = deviation.masked_fill(flat, 1.0)
    return (train - mean) / deviation, (other - mean) / deviation


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    return torch.addmm(weight[-1], x, weight[:-1])


def _fit_logistic(
    x: Tensor, target: Tensor, classes: int, l2: float, iterations: int, start: Tensor | None = None
) -> Tensor:
    """(D + 1, C) weights, the last row the bias."""
    weight = x.new_zeros(x.shape[1] + 1, classes) if start is None else start.clone()
    weight.requires_grad_()
    solver = torch.optim.LBFGS(
        [weight],
        max_iter=iterations,
        max_eval=2 * iterations,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(_logits(x, weight), target) + 0.5 * l2 * weight[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return weight.detach()


def _ridge(x: Tensor, y: Tensor, new: Tensor, grid: Sequence[float]) -> Tensor:
    """(len(grid), rows of ``new``) predictions. One eigendecomposition serves the whole grid."""
    x, new = _standardise(x, new)
    middle = y.mean()
    value_D, vector_DD = torch.linalg.eigh(x.T @ x / len(x))
    moment_D = vector_DD.T @ (x.T @ (y - middle)) / len(x)
    tiny = value_D[-1].clamp(min=1e-300) * len(value_D) * torch.finfo(x.dtype).eps
    strength_G1 = torch.tensor(grid, dtype=x.dtype, device=x.device)[:, None]
    # without a penalty this is the least-norm solution: directions in which nothing varies are left out
    weight_GD = torch.where(value_D > tiny, moment_D / (value_D.clamp(min=0) + strength_G1), 0.0)
    return weight_GD @ (new @ vector_DD).T + middle


def _r2(y: Tensor, predicted: Tensor) -> float:
    return float(1 - (y - predicted).square().sum() / (y - y.mean()).square().sum())
