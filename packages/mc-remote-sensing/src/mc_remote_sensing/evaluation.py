"""What a map is worth: one confusion matrix over all pixels, boundaries, objects, and the threshold.

Everything is accumulated: scores over many windows are those of all their pixels together, not a mean over windows, which empty
windows would flatter.

Legend: H, W rows and columns of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from mc_core.errors import DataError
from mc_remote_sensing.data.grid import Window
from mc_remote_sensing.data.labels import BACKGROUND, IGNORE, TARGET
from mc_remote_sensing.data.patches import PatchScenes
from mc_remote_sensing.data.scene import Scene
from mc_remote_sensing.inference.running import Runner, Segmenter, predict_window

STEPS = 1000
"""Probabilities are counted in this many steps, so that any threshold can be looked at without keeping the pixels."""

TOLERANCE_PX = 3
"""Pixels that a boundary may lie beside the true one."""

_COVERED = 0.5
_EIGHT = np.ones((3, 3), dtype=bool)
_LARGEST = 4096


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


@dataclass(frozen=True)
class Confusion:
    """Pixels by truth and prediction; adds up.

    Ratios with nothing below the line are NaN: no target anywhere has no IoU.

    >>> counts = Confusion(3, 1, 2, 14)
    >>> counts.iou, counts.f1, counts.mean_iou
    (0.5, 0.6666666666666666, 0.6617647058823529)
    """

    true_positive: int = 0
    false_positive: int = 0
    false_negative: int = 0
    true_negative: int = 0

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
            self.true_negative + other.true_negative,
        )

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN) of the target."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive + self.false_negative)

    @property
    def background_iou(self) -> float:
        """The same of the background."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive + self.false_negative)

    @property
    def mean_iou(self) -> float:
        """Mean over the two classes."""
        return (self.iou + self.background_iou) / 2

    @property
    def precision(self) -> float:
        """Share of the mapped that is true."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """Share of the true that is mapped."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN) = 2 IoU / (1 + IoU)."""
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)


@dataclass
class Histogram:
    """Labelled pixels by class and probability.

    Attributes:
        counts: (2, STEPS + 1) int64; column k holds probabilities from k / STEPS to below (k + 1) / STEPS.
    """

    counts: np.ndarray = field(default_factory=lambda: np.zeros((2, STEPS + 1), dtype=np.int64))

    def add(self, probability: np.ndarray, labels: np.ndarray) -> None:
        """Count pixels of (…) probabilities in [0, 1] and labels in {0, 1, 255}."""
        step = _step(probability)
        for of_class in (BACKGROUND, TARGET):
            self.counts[of_class] += np.bincount(step[labels == of_class], minlength=STEPS + 1)

    def confusion(self, threshold: float) -> Confusion:
        """At probability ≥ threshold, rounded up to the next step."""
        first = int(np.ceil(threshold * STEPS - 1e-9))
        above, below = self.counts[:, first:].sum(axis=1), self.counts[:, :first].sum(axis=1)
        return Confusion(int(above[1]), int(above[0]), int(below[1]), int(below[0]))

    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(thresholds, precision, recall), from the highest threshold with a prediction down; each (n,) float64.

        Raises:
            DataError: no labelled pixel of the target.
        """
        positive, negative = self.counts[1][::-1].cumsum(), self.counts[0][::-1].cumsum()
        if not positive[-1]:
            raise DataError("no labelled pixel of the target to draw a precision–recall curve of")
        seen = positive + negative > 0
        thresholds = np.arange(STEPS, -1, -1) / STEPS
        return thresholds[seen], positive[seen] / (positive + negative)[seen], positive[seen] / positive[-1]

    def average_precision(self) -> float:
        """Σ (R_n − R_{n−1}) P_n over the curve."""
        _, precision, recall = self.curve()
        return float((np.diff(recall, prepend=0.0) * precision).sum())


def _step(probability: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(probability, 0, 1).astype(np.float64) * STEPS + 1e-9).astype(np.int64)


def choose_threshold(histogram: Histogram) -> float:
    """The threshold of the highest F1, which is that of the highest IoU; of equals the one nearest to a half.

    Raises:
        DataError: no labelled pixel of the target, so that nothing can be chosen.

    >>> histogram = Histogram()
    >>> histogram.add(np.array([0.1, 0.2, 0.62, 0.8]), np.array([0, 0, 1, 1]))
    >>> choose_threshold(histogram)
    0.5
    """
    if not histogram.counts[1].sum():
        raise DataError(
            "the validation part holds no target: no threshold can be chosen; make the blocks smaller or larger"
        )
    positive, negative = (histogram.counts[k][::-1].cumsum()[::-1] for k in (1, 0))
    f1 = 2 * positive / (positive + negative + histogram.counts[1].sum())
    best = np.flatnonzero(f1 >= f1[1:].max() - 1e-12)  # 0 would map everything, whatever the model says
    best = best[best > 0]
    return float(best[np.argmin(np.abs(best - STEPS / 2))] / STEPS)


@dataclass(frozen=True)
class BoundaryCounts:
    """Boundary pixels, and those that lie near the other boundary; adds up.

    Attributes:
        predicted: boundary pixels of the prediction.
        predicted_near: of these, within the tolerance of a true one.
        true: boundary pixels of the truth.
        true_near: of these, within the tolerance of a predicted one.
    """

    predicted: int = 0
    predicted_near: int = 0
    true: int = 0
    true_near: int = 0

    def __add__(self, other: BoundaryCounts) -> BoundaryCounts:
        return BoundaryCounts(
            self.predicted + other.predicted,
            self.predicted_near + other.predicted_near,
            self.true + other.true,
            self.true_near + other.true_near,
        )

    @property
    def f1(self) -> float:
        """2PR / (P + R) of the shares that are near."""
        precision, recall = _ratio(self.predicted_near, self.predicted), _ratio(self.true_near, self.true)
        if self.true and not self.predicted:
            return 0.0
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0 * (precision + recall)


def boundary_counts(predicted: np.ndarray, labels: np.ndarray, *, tolerance: float = TOLERANCE_PX) -> BoundaryCounts:
    """Compare the boundaries of a prediction and of labels.

    A boundary pixel is a target pixel with a background pixel among its four neighbours; what is ignored makes no boundary, and
    predicted boundaries there are not counted. Near is a Euclidean distance of at most ``tolerance``.

    Args:
        predicted: (H, W) bool.
        labels: (H, W) in {0, 1, 255}.
        tolerance: pixels.

    Source: Csurka, Larlus, Perronnin 2013 ("What is a good evaluation measure for semantic segmentation?", BMVC), §3: BF score,
    here pooled over all windows.
    """
    known = labels != IGNORE
    edge_predicted, edge_true = _boundary(predicted & known, ~predicted & known), _boundary(labels == 1, labels == 0)
    counts = [int(edge_predicted.sum()), 0, int(edge_true.sum()), 0]
    if counts[0] and counts[2]:
        counts[1] = int((_distance(edge_true)[edge_predicted] <= tolerance).sum())
        counts[3] = int((_distance(edge_predicted)[edge_true] <= tolerance).sum())
    return BoundaryCounts(*counts)


def _distance(marked: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.distance_transform_edt(~marked))


def _boundary(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    return inside & ndimage.binary_dilation(outside)


def objects_found(predicted: np.ndarray, labels: np.ndarray, *, covered: float = _COVERED) -> tuple[int, int]:
    """(found, all) connected targets of the labels; one is found when at least half of its pixels are mapped.

    An object that the border of a window cuts counts as far as it lies inside.

    Args:
        predicted: (H, W) bool.
        labels: (H, W) in {0, 1, 255}; pixels that touch at a corner belong together.
        covered: share of an object's pixels.
    """
    numbers, count = ndimage.label(labels == TARGET, structure=_EIGHT)
    if not count:
        return 0, 0
    size = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    hit = np.bincount(numbers[predicted].ravel(), minlength=count + 1)[1:]
    return int((hit >= covered * size).sum()), int(count)


@dataclass
class Scores:
    """Accumulated over windows.

    Attributes:
        threshold: of the prediction.
        histogram: of all labelled pixels.
        boundary: at the threshold.
        found: objects found at the threshold.
        objects: of the labels.
    """

    threshold: float
    histogram: Histogram = field(default_factory=Histogram)
    boundary: BoundaryCounts = BoundaryCounts()
    found: int = 0
    objects: int = 0

    def add(self, probability: np.ndarray, labels: np.ndarray) -> None:
        """One window of (H, W) probabilities and labels."""
        self.histogram.add(probability, labels)
        predicted = _step(probability) >= int(np.ceil(self.threshold * STEPS - 1e-9))
        self.boundary = self.boundary + boundary_counts(predicted, labels)
        found, objects = objects_found(predicted, labels)
        self.found, self.objects = self.found + found, self.objects + objects

    @property
    def confusion(self) -> Confusion:
        """At the threshold."""
        return self.histogram.confusion(self.threshold)

    def to_dict(self) -> dict[str, float]:
        """All figures by name."""
        c = self.confusion
        return {
            "iou": c.iou,
            "background_iou": c.background_iou,
            "mean_iou": c.mean_iou,
            "precision": c.precision,
            "recall": c.recall,
            "f1": c.f1,
            "boundary_f1": self.boundary.f1,
            "object_recall": _ratio(self.found, self.objects),
            "average_precision": self.histogram.average_precision() if self.histogram.counts[1].sum() else float("nan"),
            "threshold": self.threshold,
            "labelled_pixels": float(self.histogram.counts.sum()),
            "target_pixels": float(self.histogram.counts[1].sum()),
            "objects": float(self.objects),
        }


def finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    """For JSON: six digits, and null for what has no value."""
    return {name: round(value, 6) if np.isfinite(value) else None for name, value in scores.items()}


Windows = Iterable[tuple[np.ndarray, np.ndarray]]
"""(probability, labels) of one window after the other."""


def scene_windows(
    model: Segmenter,
    scene: Scene,
    windows: Iterable[Window] | None = None,
    *,
    tile: int = 512,
    device: str | torch.device | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Probabilities and labels of the windows of a scene, such as its test blocks, with the ground around them in view.

    Args:
        model: any segmenter.
        scene: with labels.
        windows: default the whole scene. Larger ones than 4,096 pixels are cut.
        tile: side of the tiles, a multiple of the model's stride.
        device: default the GPU where there is one.

    Raises:
        DataError: no labels.
    """
    if scene.labels is None:
        raise DataError(f"{scene.name}: has no labels to measure against; name them with --labels")
    runner = Runner(model, device)
    for window in _cut([Window(0, 0, *scene.grid.shape)] if windows is None else windows):
        labels = scene.read(*window)["labels"]
        if (labels != IGNORE).any():
            yield predict_window(runner, scene.image, scene.elevation, window, tile=tile), labels


def _cut(windows: Iterable[Window]) -> Iterator[Window]:
    for row, col, height, width in windows:
        for top in range(row, row + height, _LARGEST):
            for left in range(col, col + width, _LARGEST):
                yield Window(top, left, min(_LARGEST, row + height - top), min(_LARGEST, col + width - left))


@torch.inference_mode()
def patch_windows(
    model: Callable[..., Tensor], patches: PatchScenes, *, device: str | torch.device = "cpu"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Probabilities and labels of whole patches."""
    for index in range(patches.count):
        patch = patches.read(index)
        image, valid, elevation = (
            torch.as_tensor(patch[n])[None].to(device) for n in ("image", "image_valid", "elevation")
        )
        yield model(image, elevation, valid)[0].cpu().numpy(), np.asarray(patch["labels"])


def score(windows: Windows, threshold: float) -> Scores:
    """All figures of the windows at a threshold.

    >>> window = (np.array([[0.9, 0.2], [0.8, 0.1]]), np.array([[1, 0], [0, 255]]))
    >>> found = score([window], 0.5).to_dict()
    >>> found["iou"], found["precision"], found["object_recall"], found["labelled_pixels"]
    (0.5, 0.5, 1.0, 3.0)
    """
    scores = Scores(threshold)
    for probability, labels in windows:
        scores.add(probability, labels)
    return scores


def histogram_of(windows: Windows) -> Histogram:
    """The histogram of the windows, to choose a threshold by."""
    histogram = Histogram()
    for probability, labels in windows:
        histogram.add(probability, labels)
    return histogram
