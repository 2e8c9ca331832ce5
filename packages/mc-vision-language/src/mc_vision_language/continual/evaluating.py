"""What a model finds after each task: on the union of the tasks so far, and on each by itself (CTP, Zhu et al. 2023).

Cross-modal retrieval has one gallery of all tasks seen, without telling the model the task; ``R_m`` is the mean of its six
recalls, and ``R1_m`` of the two at 1. Multi-modal retrieval looks for the same class by fused features; relevant is what the
gallery of the tasks seen holds, where the official code counts those of tasks to come too.

Legend: N pictures, M captions, d and h widths, T tasks measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mc_core.continual.metrics import ClassPrecision, SequenceScores, class_precision
from mc_core.errors import DataError
from mc_vision_language.continual.features import fused_features
from mc_vision_language.continual.tasks import TaskPairs
from mc_vision_language.data.p9d import Labelled
from mc_vision_language.evaluation.ranking import RightAnswers, best_ranks, recalls
from mc_vision_language.model import VisionLanguageModel

MEASURES = ("r_m", "r1_m", "map_found@1", "map@1", "map@5", "map@10", "map_found@5", "map_found@10")
"""Of each task by itself and of each union; the first is the headline."""
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Seen:
    """The held-out pairs of one task, as a model sees them.

    Attributes:
        images: (N, d) unit rows.
        texts: (M, d) unit rows.
        image_ids, text_ids, image_of: as in :class:`~mc_vision_language.data.pairs.Pairs`.
        queries, gallery: (·, h) fused unit rows with their classes and ids.
    """

    images: np.ndarray
    texts: np.ndarray
    image_ids: np.ndarray
    text_ids: np.ndarray
    image_of: np.ndarray
    queries: Fused
    gallery: Fused


@dataclass(frozen=True)
class Fused:
    """Fused features.

    Attributes:
        rows: (N, h) unit rows.
        classes: (N,).
        ids: (N,).
    """

    rows: np.ndarray
    classes: np.ndarray
    ids: np.ndarray


def look(model: VisionLanguageModel, task: TaskPairs, part: Literal["test", "validation"] = "test") -> Seen:
    """The features of a task's held-out pairs.

    Raises:
        DataError: no pair in this part.
    """
    own = task.part(part)
    images, fused = fused_features(model, own.pairs)
    texts = model.encode_text(own.pairs.captions)
    mine = Fused(fused, own.classes, own.pairs.image_ids)
    queries, gallery = (
        mine if other is None or part != "test" else _fused(model, other) for other in (task.queries, task.gallery)
    )
    pairs = own.pairs
    return Seen(images, texts, pairs.image_ids, pairs.text_ids, pairs.image_of, queries, gallery)


def _fused(model: VisionLanguageModel, given: Labelled) -> Fused:
    return Fused(fused_features(model, given.pairs)[1], given.classes, given.pairs.image_ids)


def together(each: Sequence[Seen]) -> Seen:
    """Several tasks as one gallery."""
    starts = np.cumsum([0, *(len(one.images) for one in each)])

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(one, name) for one in each])

    def fused(name: str) -> Fused:
        parts = [getattr(one, name) for one in each]
        return Fused(
            *(np.concatenate([getattr(part, field) for part in parts]) for field in ("rows", "classes", "ids"))
        )

    return Seen(
        column("images"),
        column("texts"),
        column("image_ids"),
        column("text_ids"),
        np.concatenate([one.image_of + start for one, start in zip(each, starts, strict=False)]),
        fused("queries"),
        fused("gallery"),
    )


def cross_modal(seen: Seen) -> tuple[float, float]:
    """R_m and R1_m. Equal pictures and equal captions are right answers too."""
    right = RightAnswers(seen.image_ids, seen.text_ids, seen.image_of)
    group = right.image_group
    ranks = [
        _ranks(seen.images, seen.texts, right.texts_of),
        _ranks(seen.texts, seen.images, right.images_of),
    ]
    found = recalls(ranks[0], ranks[1], group, group[seen.image_of], draws=0)
    return found.mean.value, (found.image_to_text[1].value + found.text_to_image[1].value) / 2


def _ranks(queries: np.ndarray, others: np.ndarray, right: Any) -> np.ndarray:
    pace = max(1, _BLOCK // len(others))
    parts = [np.arange(i, min(i + pace, len(queries))) for i in range(0, len(queries), pace)]
    return np.concatenate([best_ranks(queries[rows] @ others.T, right(rows)) for rows in parts])


def multi_modal(seen: Seen) -> ClassPrecision:
    """Precision of finding the same class by fused features; the query itself is no candidate."""
    mine, theirs = seen.queries, seen.gallery
    return class_precision(
        mine.rows, theirs.rows, mine.classes, theirs.classes, query_ids=mine.ids, gallery_ids=theirs.ids
    )


def figures(seen: Seen) -> dict[str, float]:
    """All of :data:`MEASURES`; NaN where there is nothing of the same class to find."""
    r_m, r1_m = cross_modal(seen)
    found = multi_modal(seen)
    return {
        "r_m": r_m,
        "r1_m": r1_m,
        **{f"map@{n}": value for n, value in found.standard.items()},
        **{f"map_found@{n}": value for n, value in found.found.items()},
    }


def measure_tasks(
    model: VisionLanguageModel, tasks: Sequence[TaskPairs], part: Literal["test", "validation"] = "test"
) -> dict[str, dict[str, list[float]]]:
    """Figures of a model on the tasks seen so far.

    Args:
        model: with a tokenizer.
        tasks: T, in order.
        part: what to measure on; ``validation`` for choosing settings.

    Returns:
        ``{"own": {measure: T figures}, "union": {measure: T figures}}``: of task j by itself, and of tasks 0 … j together.

    Raises:
        DataError: a task without pairs in this part.
    """
    if not tasks:
        raise DataError("no task to measure on")
    each = [look(model, task, part) for task in tasks]
    own = [figures(one) for one in each]
    union = [own[0], *(figures(together(each[: j + 1])) for j in range(1, len(each)))]
    return {
        where: {name: [one[name] for one in found] for name in MEASURES}
        for where, found in (("own", own), ("union", union))
    }


def sequence_scores(results: Sequence[Mapping[str, Any]], measure: str = "r_m") -> SequenceScores:
    """R and U of what was measured after each task.

    Args:
        results: T, each as :func:`measure_tasks` gave it (null for NaN); fewer than T tasks in all but the last is what a sequence
            gives. One result of T tasks, as of joint training, fills the last row.
        measure: one of :data:`MEASURES`.

    >>> nothing = {name: [0.5] for name in MEASURES}
    >>> sequence_scores([{"own": nothing, "union": nothing}]).last
    0.5
    """
    size = len(results[-1]["own"][measure])
    matrices = np.full((2, size, size), np.nan)
    for row, result in zip(range(size - len(results), size), results, strict=True):
        for matrix, where in zip(matrices, ("own", "union"), strict=True):
            values = [np.nan if value is None else value for value in result[where][measure]]
            matrix[row, : len(values)] = values
    return SequenceScores(matrices[0], matrices[1])
