"""How good an expert is on pictures that it has not seen, beside who does not look at them.

Detection is measured as COCO does: precision at 101 levels of recall, averaged over classes, at an overlap of 0.5, and over
overlaps of 0.5 to 0.95. Where pycocotools is installed, it computes that; our own computation is the same in NumPy.

Legend: P pictures, M boxes of a picture, C classes, T overlaps, S side of a mask.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mc_core.data import finish_on_device, in_order, to_device
from mc_core.errors import ConfigError, DataError
from mc_core.modules import evaluating
from mc_core.optional import require
from mc_vision_language.data.annotated_data import AnnotatedData
from mc_vision_language.experts.base import Expert
from mc_vision_language.experts.captioning import CaptioningExpert, caption_targets

OVERLAPS = tuple(round(0.5 + 0.05 * place, 2) for place in range(10))
"""At which a box counts as found."""
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100
"""Boxes of a picture and class that are looked at, the best scored."""
Backend = Literal["auto", "own", "pycocotools"]
_PIXELS = 1000.0  # pycocotools wants boxes in pixels; overlaps do not depend on the unit


@dataclass(frozen=True)
class BoxTable:
    """Boxes of P pictures, flat.

    Attributes:
        picture: (K,) int64, 0 to P − 1.
        box_class: (K,) int64.
        corners: (K, 4) float64, x1, y1, x2, y2, in any unit.
        scores: (K,) float64; of what is there it is not read.
        crowd: (K,) bool: of what is there, regions that count neither as found nor as missed.
    """

    picture: np.ndarray
    box_class: np.ndarray
    corners: np.ndarray
    scores: np.ndarray
    crowd: np.ndarray

    @classmethod
    def of(cls, boxes: Any, box_class: Any, scores: Any = None, crowd: Any = None, *, first: int = 0) -> BoxTable:
        """From padded rows, such as those of :class:`~mc_vision_language.experts.detection.Detections`.

        Args:
            boxes: (B, M, 4) centre x and y, width, height.
            box_class: (B, M), −1 where there is none.
            scores: (B, M).
            crowd: (B, M) bool.
            first: number of the first picture.
        """
        boxes, box_class = _array(boxes).astype(np.float64), _array(box_class)
        row, place = np.nonzero(box_class >= 0)
        kept = boxes[row, place]
        half = kept[:, 2:] / 2
        table = np.concatenate([kept[:, :2] - half, kept[:, :2] + half], 1)
        return cls(
            row + first,
            box_class[row, place].astype(np.int64),
            table,
            np.ones(len(row)) if scores is None else _array(scores)[row, place].astype(np.float64),
            np.zeros(len(row), bool) if crowd is None else _array(crowd)[row, place].astype(bool),
        )

    @classmethod
    def joined(cls, tables: Sequence[BoxTable]) -> BoxTable:
        """Several as one."""
        names = ("picture", "box_class", "corners", "scores", "crowd")
        return cls(*(np.concatenate([getattr(one, name) for one in tables]) for name in names))

    def __len__(self) -> int:
        return len(self.picture)


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


@dataclass(frozen=True)
class DetectionScores:
    """Average precisions.

    Attributes:
        ap: mean over classes and overlaps of 0.5 to 0.95; NaN where nothing is there.
        ap50: mean over classes at an overlap of 0.5.
        per_class: class → mean over overlaps, for classes that are there.
    """

    ap: float
    ap50: float
    per_class: dict[int, float] = field(default_factory=dict)


def detection_scores(found: BoxTable, there: BoxTable, *, backend: Backend = "auto") -> DetectionScores:
    """Mean average precision as COCO defines it, for boxes of any size.

    Args:
        found: boxes with scores.
        there: the true ones.
        backend: ``"own"``, ``"pycocotools"``, or whichever of the two is installed.

    Raises:
        MissingDependencyError: pycocotools is asked for and not installed.

    >>> there = BoxTable.of([[[0.5, 0.5, 0.2, 0.2]]], [[0]])
    >>> found = BoxTable.of([[[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]]], [[0, 0]], [[0.6, 0.9]])
    >>> detection_scores(found, there).ap50
    0.5
    """
    if backend not in ("auto", "own", "pycocotools"):
        raise ConfigError(f"backend '{backend}': choose auto, own or pycocotools")
    classes = np.unique(there.box_class[~there.crowd])
    if not len(classes):
        return DetectionScores(float("nan"), float("nan"))
    official = backend == "pycocotools" or (backend == "auto" and importlib.util.find_spec("pycocotools") is not None)
    precision_CT = _official(found, there, classes) if official else _own(found, there, classes)
    per_class = dict(zip(classes.tolist(), precision_CT.mean(1).tolist(), strict=True))
    return DetectionScores(float(precision_CT.mean()), float(precision_CT[:, 0].mean()), per_class)


def _own(found: BoxTable, there: BoxTable, classes: np.ndarray) -> np.ndarray:
    """(C, T) average precision."""
    return np.stack([_class_precision(_of_class(found, c), _of_class(there, c)) for c in classes.tolist()])


def _of_class(table: BoxTable, number: int) -> BoxTable:
    rows = table.box_class == number
    names = ("picture", "box_class", "corners", "scores", "crowd")
    return BoxTable(*(getattr(table, name)[rows] for name in names))


def _class_precision(found: BoxTable, there: BoxTable) -> np.ndarray:
    """(T,) average precision of one class."""
    scores, right, ignored = [], [], []
    order = np.lexsort((-found.scores, found.picture))  # stable: equal scores keep their order
    pictures, starts = np.unique(found.picture[order], return_index=True)
    groups = np.split(order, starts[1:]) if len(pictures) else []  # splitting nothing gives one part
    for picture, rows in zip(pictures.tolist(), groups, strict=True):
        rows = rows[:MOST]
        true = there.picture == picture
        hit, spare = _matched(found.corners[rows], there.corners[true], there.crowd[true])
        scores.append(found.scores[rows])
        right.append(hit)
        ignored.append(spare)
    positives = int((~there.crowd).sum())
    if not scores:
        return np.zeros(len(OVERLAPS))
    ranked = np.argsort(-np.concatenate(scores), kind="mergesort")
    right_T, ignored_T = np.concatenate(right, 1)[:, ranked], np.concatenate(ignored, 1)[:, ranked]
    return np.array([_average(hit[~spare], positives) for hit, spare in zip(right_T, ignored_T, strict=True)])


def _matched(boxes: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T, D) whether each box, the best scored first, finds a true one that none before it found, and whether it does not count.

    A box takes the true one that it overlaps most; only where there is none, a crowd, which any number of boxes may take.
    """
    overlap = _overlaps(boxes, true, crowd)
    hit = np.zeros((len(OVERLAPS), len(boxes)), dtype=bool)
    spare = np.zeros_like(hit)
    taken = np.zeros((len(OVERLAPS), len(true)), dtype=bool)
    if not len(true):
        return hit, spare
    least = np.minimum(np.array(OVERLAPS), 1 - 1e-10)[:, None]
    threshold = np.arange(len(OVERLAPS))
    last = len(true) - 1
    for place, row in enumerate(overlap):
        free = np.where(~taken & ~crowd & (row >= least), row, -1.0)
        # of equal overlaps the last, as pycocotools
        best = last - free[:, ::-1].argmax(1)
        ok = free[threshold, best] >= 0
        hit[:, place] = ok
        taken[threshold[ok], best[ok]] = True
        spare[:, place] = ~ok & ((row >= least) & crowd).any(1)
    return hit, spare


def _overlaps(boxes: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(D, G) intersection over union; of a crowd over the box alone."""
    low = np.maximum(boxes[:, None, :2], true[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], true[None, :, 2:])
    both = (high - low).clip(min=0).prod(2)
    area, other = (boxes[:, 2:] - boxes[:, :2]).prod(1), (true[:, 2:] - true[:, :2]).prod(1)
    whole = np.where(crowd, area[:, None], area[:, None] + other - both)
    return both / np.maximum(whole, np.finfo(float).tiny)


def _average(hit: np.ndarray, positives: int) -> float:
    """Mean over 101 levels of recall of the best precision at that recall or a higher one."""
    found = np.cumsum(hit)
    recall = found / positives
    precision = found / (np.arange(len(hit)) + 1 + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(recall, RECALLS, side="left")
    return float(np.where(place < len(hit), np.append(precision, 0.0)[np.minimum(place, len(hit))], 0.0).mean())


def _official(found: BoxTable, there: BoxTable, classes: np.ndarray) -> np.ndarray:
    """(C, T), by pycocotools."""
    needed: dict[str, Any] = {"extra": "mc-vision-language[metrics]", "purpose": "measure detection as COCO does"}
    coco = require("pycocotools.coco", **needed)
    cocoeval = require("pycocotools.cocoeval", **needed)

    def boxes(table: BoxTable) -> Iterator[dict[str, Any]]:
        rows = zip(
            table.picture.tolist(),
            table.box_class.tolist(),
            (table.corners * _PIXELS).tolist(),
            table.scores.tolist(),
            table.crowd.tolist(),
            strict=True,
        )
        for number, (picture, label, (x1, y1, x2, y2), score, crowd) in enumerate(rows, 1):
            yield {
                "id": number,
                "image_id": picture,
                "category_id": label,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "score": score,
                "iscrowd": int(crowd),
            }

    pictures = np.unique(np.concatenate([found.picture, there.picture])).tolist()
    with contextlib.redirect_stdout(io.StringIO()):
        truth, said = coco.COCO(), coco.COCO()
        for one, table in ((truth, there), (said, found)):
            one.dataset = {
                "info": {},
                "images": [{"id": picture} for picture in pictures],
                "categories": [{"id": number} for number in classes.tolist()],
                "annotations": [box for box in boxes(table) if box["category_id"] in set(classes.tolist())],
            }
            one.createIndex()
        judge = cocoeval.COCOeval(truth, said, "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0.0, 1e12]], ["all"]
        judge.params.maxDets = [MOST]
        judge.params.catIds = classes.tolist()
        judge.evaluate()
        judge.accumulate()
    precision_TRC = judge.eval["precision"][:, :, :, 0, 0]
    return precision_TRC.mean(1).T


@dataclass
class PixelCounts:
    """A confusion matrix of pixels that adds up: rows are true, columns are said; 0 is none of the classes.

    >>> counts = PixelCounts(2)
    >>> counts.add(np.array([[0, 1, 1, -1]]), np.array([[0, 1, 0, 1]]))
    >>> counts.mean_iou, round(counts.accuracy, 4)
    (0.5, 0.6667)
    """

    classes: int
    table: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.table is None:
            self.table = np.zeros((self.classes, self.classes), dtype=np.int64)

    def add(self, true: Any, said: Any) -> None:
        """Count pixels; those whose class is not known, −1, are left out."""
        true, said = _array(true).reshape(-1), _array(said).reshape(-1)
        known = true >= 0
        pairs = true[known].astype(np.int64) * self.classes + said[known].astype(np.int64)
        self.table += np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    @property
    def iou(self) -> np.ndarray:
        """(classes,) intersection over union of each; NaN where a class is neither there nor said."""
        both = np.diag(self.table).astype(np.float64)
        union = self.table.sum(0) + self.table.sum(1) - both
        return np.divide(both, union, out=np.full(self.classes, np.nan), where=union > 0)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that are there or said."""
        found = self.iou
        return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")

    @property
    def accuracy(self) -> float:
        """Share of pixels that are right."""
        total = self.table.sum()
        return float(np.trace(self.table) / total) if total else float("nan")

    @property
    def blind(self) -> float:
        """The mean IoU of who says the most frequent class everywhere."""
        blind = np.zeros_like(self.table)
        blind[:, self.table.sum(1).argmax()] = self.table.sum(1)
        return PixelCounts(self.classes, blind).mean_iou


def average_precision(scores: np.ndarray, true: np.ndarray) -> float:
    """Area below precision and recall, as a sum over the recalls gained; equal scores count as one threshold.

    Args:
        scores: (P,).
        true: (P,) bool.

    >>> average_precision(np.array([0.9, 0.8, 0.1]), np.array([True, False, True])).__round__(4)
    0.8333
    """
    if not true.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(true[order])
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    gained = np.diff(hits[ends], prepend=0) / hits[-1]
    return float((gained * hits[ends] / (ends + 1)).sum())


def label_scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean average precision over the classes that occur, and shares of labels and of pictures that are right.

    Args:
        probabilities: (P, C); above ½ a class is said to be there.
        labels: (P, C) of 1, 0 and −1, which is not known.

    >>> scores = label_scores(np.array([[0.9, 0.4], [0.2, 0.3]]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    >>> scores["map"], scores["accuracy"], scores["exact"]
    (0.75, 0.75, 0.5)
    """
    known = labels >= 0
    right = ((probabilities > 0.5) == (labels > 0.5)) | ~known
    each = [average_precision(probabilities[k, c], labels[k, c] > 0.5) for c, k in enumerate(known.T) if k.any()]
    occurring = [one for one in each if one == one]
    return {
        "map": float(np.mean(occurring)) if occurring else float("nan"),
        "accuracy": float((right & known).sum() / max(known.sum(), 1)),
        "exact": float(right[known.any(1)].all(1).mean()) if known.any() else float("nan"),
    }


@dataclass(frozen=True)
class ExpertScores:
    """What an expert is worth.

    Attributes:
        metric: name of ``value``; higher is better.
        value: see :func:`measure_expert`.
        baselines: the same of who does not look at the pictures.
        details: further figures.
        pictures: how many were measured.
    """

    metric: str
    value: float
    baselines: dict[str, float]
    details: dict[str, float]
    pictures: int


def measure_expert(
    expert: Expert,
    data: AnnotatedData,
    *,
    train: AnnotatedData | None = None,
    batch_size: int = 64,
    backend: Backend = "auto",
) -> ExpertScores:
    """An expert on annotated pictures that it has not seen.

    - classification: ``label_map``, beside scores that are the same for every picture;
    - captioning: ``token_accuracy`` of true captions read word by word, beside the most frequent word at each place;
    - detection: ``ap50``, beside one box of the usual size in the middle for every class, scored by how frequent it is;
    - segmentation: ``mean_iou``, beside the most frequent class at every pixel.

    Args:
        expert: on its device.
        data: held-out pictures, as views without random changes.
        train: what it was trained on, which a baseline may know; default: the held-out pictures themselves.
        batch_size: pictures at once.
        backend: see :func:`detection_scores`.

    Raises:
        DataError: pictures without what is measured.
    """
    if data.views.augment is not None:
        raise ConfigError("held-out pictures are measured without random changes: make AnnotatedData with augment=None")
    if not data.pairs.counts()[expert.config.needs]:
        raise DataError(
            f"{data.pairs.location}: no picture has {expert.config.needs}, which a {expert.kind} expert is measured by"
        )
    measure = {
        "classification": _labels,
        "captioning": _captions,
        "detection": _detections,
        "segmentation": _pixels,
    }[expert.kind]
    with evaluating(expert), torch.no_grad():
        return measure(expert, data, train or data, batch_size, backend)


def _batches(expert: Expert, data: AnnotatedData, batch_size: int) -> Iterator[dict[str, Any]]:
    for batch in in_order(data, batch_size=batch_size):
        if len(batch["index"]):
            yield finish_on_device(data, to_device({"epoch": 0, **batch}, expert.device), 0)


def _labels(expert: Expert, data: AnnotatedData, train: AnnotatedData, size: int, _: Backend) -> ExpertScores:
    said, true = [], []
    for batch in _batches(expert, data, size):
        said.append(_array(expert.predicted(expert.features(batch["view"]))))
        true.append(_array(batch["labels"]))
    probabilities, labels = np.concatenate(said), np.concatenate(true)
    scores = label_scores(probabilities, labels)
    assert train.pairs.labels is not None
    frequency = train.pairs.labels[train.pairs.known("labels")].mean(0)
    blind = label_scores(np.broadcast_to(frequency, labels.shape), labels)
    details = {"accuracy": scores["accuracy"], "exact": scores["exact"], "blind_accuracy": blind["accuracy"]}
    return ExpertScores("label_map", scores["map"], {"same_for_all": blind["map"]}, details, len(labels))


def _captions(expert: Expert, data: AnnotatedData, train: AnnotatedData, size: int, _: Backend) -> ExpertScores:
    assert isinstance(expert, CaptioningExpert)
    right = wanted = alike = blind = pictures = 0
    usual = _usual_words(expert, train)
    for batch in _batches(expert, data, size):
        text = caption_targets(batch["input_ids"], batch["attention_mask"], expert.language.config)
        visual = expert.head_outputs(expert.features(batch["view"]))
        logits = expert.language.logits(visual, text.ids, text.mask)
        right += int(((logits.argmax(2) == text.ids) & text.wanted).sum())
        wanted += int(text.wanted.sum())
        guess = usual[: text.ids.shape[1]].to(text.ids.device)
        blind += int(((text.ids[:, : len(guess)] == guess) & text.wanted[:, : len(guess)]).sum())
        written = expert.written(visual)
        length = min(written.shape[1], text.ids.shape[1] - 1)
        same = (written[:, :length] == text.ids[:, 1 : length + 1]) | ~text.wanted[:, 1 : length + 1]
        alike += int((same.all(1) & (text.wanted[:, length + 1 :].sum(1) == 0)).sum())
        pictures += len(text.ids)
    details = {"written_exactly": alike / max(pictures, 1), "tokens": float(wanted)}
    return ExpertScores(
        "token_accuracy", right / max(wanted, 1), {"usual_word": blind / max(wanted, 1)}, details, pictures
    )


def _usual_words(expert: CaptioningExpert, train: AnnotatedData) -> Tensor:
    """(L,) the most frequent token at each place of training captions."""
    if train.texts is None:
        raise DataError(
            f"{train.pairs.location}: made without a tokenizer, so that there are no captions to measure by"
        )
    rows = np.arange(len(train.texts.pairs.captions))
    text = train.texts.texts(rows)
    found = caption_targets(text["input_ids"], text["attention_mask"], expert.language.config)
    counts = torch.zeros(found.ids.shape[1], expert.language.words, dtype=torch.long)
    place = torch.arange(found.ids.shape[1]).expand_as(found.ids)
    kept = found.mask.bool()
    counts.index_put_((place[kept], found.ids[kept]), torch.ones(int(kept.sum()), dtype=torch.long), accumulate=True)
    return counts.argmax(1)


def _detections(expert: Expert, data: AnnotatedData, train: AnnotatedData, size: int, backend: Backend) -> ExpertScores:
    found, there, first = [], [], 0
    boxes = data.pairs.boxes
    assert boxes is not None
    for batch in _batches(expert, data, size):
        rows = _array(batch["index"])
        known = boxes.known[rows]
        said = expert.predicted(expert.features(batch["view"]))
        found.append(BoxTable.of(said.boxes[known], said.box_class[known], said.scores[known], first=first))
        true, number, crowd = boxes.padded(rows[known])
        there.append(BoxTable.of(true, number, crowd=crowd, first=first))
        first += int(known.sum())
    truth = BoxTable.joined(there)
    scores = detection_scores(BoxTable.joined(found), truth, backend=backend)
    blind = detection_scores(_usual_boxes(train, first), truth, backend=backend)
    return ExpertScores(
        "ap50", scores.ap50, {"box_in_the_middle": blind.ap50}, {"ap": scores.ap, "blind_ap": blind.ap}, first
    )


def _usual_boxes(train: AnnotatedData, pictures: int) -> BoxTable:
    """A box of mean size in the middle of every picture for every class, scored by its share of all boxes."""
    boxes, classes = train.pairs.boxes, len(train.pairs.class_names)
    assert boxes is not None
    share = np.bincount(boxes.box_class, minlength=classes) / max(len(boxes.box_class), 1)
    half = boxes.all_boxes[:, 2:].mean(0) / 2 if len(boxes.all_boxes) else np.full(2, 0.25)
    corner = np.concatenate([0.5 - half, 0.5 + half]).astype(np.float64)
    number = np.tile(np.arange(classes), pictures)
    return BoxTable(
        np.repeat(np.arange(pictures), classes),
        number,
        np.tile(corner, (len(number), 1)),
        share[number],
        np.zeros(len(number), bool),
    )


def _pixels(expert: Expert, data: AnnotatedData, train: AnnotatedData, size: int, _: Backend) -> ExpertScores:
    counts = PixelCounts(len(expert.class_names) + 1)
    pictures = 0
    for batch in _batches(expert, data, size):
        counts.add(batch["mask"], expert.predicted(expert.features(batch["view"])))
        pictures += int((batch["mask"] >= 0).any(2).any(1).sum())
    things = counts.iou[1:]
    details = {"pixel_accuracy": counts.accuracy, "things_iou": float(np.nanmean(things))}
    return ExpertScores("mean_iou", counts.mean_iou, {"usual_class": counts.blind}, details, pictures)
