"""Zero-shot classification: images against the vectors of prompts.

Every score of an image depends on that image alone: nothing is standardised over the test set. Probabilities use the model's
κ = 1/τ, with which it was trained; raw cosines would squeeze them together.

Legend: N images, C classes or observations, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError, closest
from mc_medical.evaluation.calibration import Reliability, reliability
from mc_medical.evaluation.checks import binary_labels, groups, positive_scale, unit
from mc_medical.evaluation.intervals import Interval, area_interval, interval_of, macro_interval, mean_interval


def class_scores(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(N, C) cosines of (N, D) images and (C, D) class vectors, all of length one."""
    images = unit(images, "images")
    return images @ unit(classes, "class vectors", dim=images.shape[1]).T


def class_probabilities(images: np.ndarray, classes: np.ndarray, scale: float) -> np.ndarray:
    """(N, C) softmax over classes of κ · cosine; rows sum to one.

    >>> class_probabilities(np.eye(2), np.eye(2), 1e-9).round(3).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    logits = positive_scale(scale) * class_scores(images, classes)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def binary_probabilities(images: np.ndarray, positive: np.ndarray, negative: np.ndarray, scale: float) -> np.ndarray:
    """(N, C) chance of each observation by itself: softmax(κ [s⁺, s⁻])₁, the scheme of CheXzero (Tiu et al. 2022) with κ.

    Args:
        images: (N, D) of length one.
        positive: (C, D) vectors of "there is".
        negative: (C, D) vectors of "there is no".
        scale: κ.

    >>> image = np.array([[1.0, 0.0]])
    >>> p = binary_probabilities(image, np.array([[0.6, 0.8]]), np.array([[0.8, 0.6]]), scale=10.0)
    >>> round(float(p[0, 0]), 3)  # 1 / (1 + e^2)
    0.119
    """
    positive, negative = unit(positive, "positive vectors"), unit(negative, "negative vectors")
    if positive.shape != negative.shape:
        raise DataError(f"positive {positive.shape} and negative {negative.shape} vectors must come in pairs")
    gap = positive_scale(scale) * (class_scores(images, positive) - class_scores(images, negative))
    return 0.5 * (1 + np.tanh(0.5 * gap))


def exclusive_class(
    labels: np.ndarray, names: Sequence[str], classes: Sequence[str], *, per_class: int | None = None, seed: int = 0
) -> np.ndarray:
    """(N,) int64: the one class a study has of ``classes``, or −1 where it has none, several, or one that is uncertain.

    The selection behind CheXpert 5×200: exclusive studies of five findings, 200 each.

    Args:
        labels: (N, C) in {1, 0, −1, NaN}.
        names: C.
        classes: some of the names.
        per_class: keep so many of each at random; where a class has fewer, all of it.
        seed: of that choice.

    Raises:
        ConfigError: a class that is no label.

    >>> exclusive_class(
    ...     np.array([[1, 0], [1, 1], [np.nan, 1], [1, -1]]), ["Edema", "Atelectasis"], ["Edema", "Atelectasis"]
    ... )
    array([ 0, -1,  1, -1])
    """
    names = list(names)
    for name in classes:
        if name not in names:
            raise ConfigError(f"class {name!r} is no label of the studies; closest: {closest(name, names)}")
    values = np.asarray(labels, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(names):
        raise DataError(f"labels have shape {values.shape}; {len(names)} observations need (rows, {len(names)})")
    chosen = values[:, [names.index(name) for name in classes]]
    alone = ((chosen == 1).sum(axis=1) == 1) & ~(chosen == -1).any(axis=1)
    found = np.where(alone, (chosen == 1).argmax(axis=1), -1)
    if per_class is not None:
        rng = np.random.Generator(np.random.Philox(seed))
        for code in range(len(classes)):
            rows = np.flatnonzero(found == code)
            if len(rows) > per_class:
                found[rng.permutation(rows)[per_class:]] = -1
    return found


@dataclass(frozen=True)
class MultiClassResult:
    """What :func:`zero_shot_multiclass` returns.

    Attributes:
        classes: C.
        accuracy: share of images whose highest class is right.
        macro_f1: mean over classes of F1.
        chance: accuracy of always naming the most frequent class.
        recall: class → share of its images found.
        confusion: (C, C) counts, rows the truth.
        calibration: of the highest probability.
        predicted: (N,) class numbers.
        probability: (N, C).
    """

    classes: tuple[str, ...]
    accuracy: Interval
    macro_f1: Interval
    chance: float
    recall: dict[str, float]
    confusion: np.ndarray
    calibration: Reliability
    predicted: np.ndarray = field(repr=False)
    probability: np.ndarray = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without single rows."""
        return {
            "accuracy": self.accuracy.to_dict(),
            "macro_f1": self.macro_f1.to_dict(),
            "chance": self.chance,
            "recall": self.recall,
            "confusion": self.confusion.tolist(),
            "calibration_error": self.calibration.error,
        }


def macro_f1(truth: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Mean of 2·hits / (rows of the class + predictions of it) over the classes that occur in either.

    >>> round(macro_f1(np.array([0, 0, 1]), np.array([0, 1, 1]), 2), 4)
    0.6667
    """
    hits = np.bincount(truth[truth == predicted], minlength=classes)
    both = np.bincount(truth, minlength=classes) + np.bincount(predicted, minlength=classes)
    seen = both > 0
    return float((2 * hits[seen] / both[seen]).mean())


def zero_shot_multiclass(
    images: np.ndarray,
    classes: np.ndarray,
    truth: np.ndarray,
    names: Sequence[str],
    *,
    scale: float,
    patients: Sequence[Any] | np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> MultiClassResult:
    """Which of several classes an image shows: the one whose vector is nearest.

    Args:
        images: (N, D) of length one.
        classes: (C, D) class vectors of length one; see :func:`mc_medical.prompts.prompt_vectors`.
        truth: (N,) class numbers; rows with −1 are left out, see :func:`exclusive_class`.
        names: C.
        scale: κ.
        patients: (N,), for the intervals.
        draws: resamples.
        seed: of the resamples.

    Raises:
        DataError: no image of any class, class numbers out of range, shapes that do not match.

    >>> result = zero_shot_multiclass(np.eye(3), np.eye(3), np.array([0, 1, 2]), ["a", "b", "c"], scale=10.0, draws=10)
    >>> result.accuracy.value, result.macro_f1.value
    (1.0, 1.0)
    """
    truth = np.asarray(truth)
    if truth.shape != (len(images),) or not np.issubdtype(truth.dtype, np.integer):
        raise DataError(
            f"truth has shape {truth.shape} and type {truth.dtype}; a class number for each of {len(images)} images"
        )
    if len(classes) != len(names):
        raise DataError(f"{len(classes)} class vectors and {len(names)} names; one each")
    if truth.min(initial=0) < -1 or truth.max(initial=0) >= len(names):
        raise DataError(
            f"class numbers reach from {truth.min()} to {truth.max()}; there are {len(names)} classes, −1 is none"
        )
    rows = np.flatnonzero(truth >= 0)
    if not len(rows):
        raise DataError(f"no image shows exactly one of {', '.join(names)}")
    probability = class_probabilities(np.asarray(images)[rows], classes, scale)
    y, predicted = truth[rows], probability.argmax(axis=1)
    who = groups(patients, len(images))[rows]
    count = len(names)
    confusion = np.bincount(y * count + predicted, minlength=count * count).reshape(count, count)
    with np.errstate(invalid="ignore"):
        recall = confusion.diagonal() / confusion.sum(axis=1)
    return MultiClassResult(
        tuple(names),
        accuracy=mean_interval(y == predicted, who, draws=draws, seed=seed),
        macro_f1=interval_of(lambda a, b: macro_f1(a, b, count), y, predicted, who, draws=draws, seed=seed),
        chance=float(np.bincount(y).max() / len(y)),
        recall={name: float(value) for name, value in zip(names, recall, strict=True)},
        confusion=confusion,
        calibration=reliability(probability.max(axis=1), (predicted == y).astype(np.float64)),
        predicted=predicted,
        probability=probability,
    )


@dataclass(frozen=True)
class BinaryResult:
    """What :func:`score_binary` returns.

    Attributes:
        auroc: observation → area under the ROC curve.
        auprc: observation → average precision; chance is ``positives``.
        positives: observation → share of 1 among its labelled rows.
        calibration: observation → curve and error.
        macro_auroc: mean over the observations.
        macro_auprc: the same of average precision.
        left_out: observation → why it could not be measured.
    """

    auroc: dict[str, Interval]
    auprc: dict[str, Interval]
    positives: dict[str, float]
    calibration: dict[str, Reliability]
    macro_auroc: Interval
    macro_auprc: Interval
    left_out: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "auroc": {name: one.to_dict() for name, one in self.auroc.items()},
            "auprc": {name: one.to_dict() for name, one in self.auprc.items()},
            "positives": self.positives,
            "calibration_error": {name: one.error for name, one in self.calibration.items()},
            "macro_auroc": self.macro_auroc.to_dict(),
            "macro_auprc": self.macro_auprc.to_dict(),
            "left_out": self.left_out,
        }


def score_binary(
    probability: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    *,
    patients: Sequence[Any] | np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> BinaryResult:
    """How well probabilities tell each observation, with intervals over patients.

    Args:
        probability: (N, C) in [0, 1]; see :func:`binary_probabilities`.
        labels: (N, C) in {1, 0, NaN}; NaN rows are left out of their observation.
        names: C.
        patients: (N,).
        draws: resamples.
        seed: of the resamples.

    Raises:
        DataError: no observation has both positives and negatives; shapes or values that do not fit.

    >>> p, y = np.array([[0.2], [0.7], [0.6], [0.9]]), np.array([[0], [1], [0], [1.0]])
    >>> score_binary(p, y, ["Edema"], draws=20).auroc["Edema"].value
    1.0
    """
    p = np.asarray(probability, dtype=np.float64)
    y = binary_labels(labels, len(p), names)
    if p.shape != y.shape:
        raise DataError(f"probability has shape {p.shape}, labels {y.shape}; they must match")
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError("probability must lie in [0, 1], without NaN")
    who = groups(patients, len(p))
    measured: list[int] = []
    left_out: dict[str, str] = {}
    aurocs, auprcs, positives, curves = {}, {}, {}, {}
    for place, name in enumerate(names):
        known = ~np.isnan(y[:, place])
        truth, score = y[known, place], p[known, place]
        hits = int(truth.sum())
        if not hits or hits == len(truth):
            left_out[name] = f"{hits} positives and {len(truth) - hits} negatives"
            continue
        measured.append(place)
        aurocs[name] = area_interval("auroc", truth, score, who[known], draws=draws, seed=seed)
        auprcs[name] = area_interval("auprc", truth, score, who[known], draws=draws, seed=seed)
        positives[name] = hits / len(truth)
        curves[name] = reliability(score, truth)
    if not measured:
        raise DataError(f"no observation has both positives and negatives: {left_out}")
    y, p = y[:, measured], p[:, measured]
    return BinaryResult(
        aurocs,
        auprcs,
        positives,
        curves,
        macro_auroc=macro_interval("auroc", y, p, who, draws=draws, seed=seed),
        macro_auprc=macro_interval("auprc", y, p, who, draws=draws, seed=seed),
        left_out=left_out,
    )
