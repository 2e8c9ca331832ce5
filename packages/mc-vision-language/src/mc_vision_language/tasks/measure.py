"""How well a task model does on held-out rows, beside what can be had without looking at the picture.

Legend: M rows, C labels.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mc_core.errors import DataError
from mc_core.evaluation import bootstrap_interval
from mc_core.modules import evaluating
from mc_core.random import BatchRandom
from mc_vision_language.data.questions import AnswerList, Questions
from mc_vision_language.data.statements import Judged
from mc_vision_language.data.task_rows import TaskRows
from mc_vision_language.data.views import ImageViews
from mc_vision_language.evaluation.answers import QuestionOnly, answer_scores
from mc_vision_language.model_base import PictureTextModel
from mc_vision_language.tasks.entailment import EntailmentModel
from mc_vision_language.tasks.nlvr2 import StatementModel
from mc_vision_language.tasks.vqa import VQAModel

DRAWS = 1000


@dataclass(frozen=True)
class TaskScores:
    """What was measured.

    Attributes:
        metric: name of the figure.
        value: of the model, in [0, 1], higher is better.
        low, high: 95 % interval over pictures; equal to ``value`` where none was drawn.
        baselines: the same figure for who does not look, or for other training.
        details: further figures.
        predicted: M predictions.
    """

    metric: str
    value: float
    low: float
    high: float
    baselines: dict[str, float]
    details: dict[str, float] = field(default_factory=dict)
    predicted: tuple[str, ...] = ()


def measure_vqa(
    model: VQAModel,
    questions: Questions,
    train: Questions | None = None,
    *,
    mode: Literal["rank", "generate"] = "rank",
    batch_size: int = 64,
    draws: int = DRAWS,
) -> TaskScores:
    """Accuracy as the VQA challenge counts it.

    Args:
        model: to measure.
        questions: with answers.
        train: training questions, for the baselines: the most frequent answer of all (``majority_answer``), for each kind of
            question (``majority_by_kind``), for the same question (``question_only``).
        mode: rank the answers of the model's list, or write answers freely.
        batch_size: questions at once.
        draws: resamples of the interval; 0: none.

    Raises:
        DataError: no question has an answer.
    """
    questions = questions.answered()
    predicted = predict_answers(model, questions, mode=mode, batch_size=batch_size)
    right = answer_scores(predicted, questions.answers)
    wrong = answer_scores(
        predict_answers(model, _exchanged(questions), mode=mode, batch_size=batch_size), questions.answers
    )
    details = {"wrong_picture": float(wrong.mean())}
    details |= {f"kind/{kind}": float(found.mean()) for kind, found in _by(questions.kinds, right).items() if kind}
    if model.answers:
        details["answers_in_list"] = float(AnswerList(model.answers).reachable(questions.answers).mean())
    baselines = {} if train is None else question_baselines(train, questions)
    low, high = interval(right, questions, draws)
    return TaskScores("vqa_accuracy", float(right.mean()), low, high, baselines, details, tuple(predicted))


def question_baselines(train: Questions, questions: Questions) -> dict[str, float]:
    """Accuracies of who answers without looking; see :func:`measure_vqa`."""
    known = train.answered()
    blind = QuestionOnly.of(known.texts, known.kinds, known.answers)
    guesses = {
        "majority_answer": [blind.overall] * len(questions),
        "majority_by_kind": blind.majority(questions.texts, questions.kinds),
        "question_only": blind.answers(questions.texts, questions.kinds),
    }
    return {name: float(answer_scores(guess, questions.answers).mean()) for name, guess in guesses.items()}


def predict_answers(
    model: VQAModel, questions: Questions, *, mode: Literal["rank", "generate"] = "rank", batch_size: int = 64
) -> list[str]:
    """The best answer to each of M questions.

    Raises:
        ConfigError: no list of answers to rank.
    """
    order = np.argsort(questions.image_of, kind="stable")
    found: list[str] = [""] * len(questions)
    with evaluating(model):
        for rows, pixels in _batches(model, questions.take(order), batch_size):
            texts = [questions.texts[row] for row in order[rows].tolist()]
            if mode == "rank":
                answers = [best[0] for best in model.answer(pixels, texts)]
            else:
                answers = model.generate(pixels, texts)
            for row, answer in zip(order[rows].tolist(), answers, strict=True):
                found[row] = answer
    return found


def measure_judged(
    model: EntailmentModel | StatementModel,
    judged: Judged,
    train: Judged | None = None,
    *,
    batch_size: int = 64,
    draws: int = DRAWS,
) -> TaskScores:
    """Share of sentences whose label is right.

    Args:
        model: to measure.
        judged: sentences with labels.
        train: training sentences, for the baselines: the most frequent label (``majority_label``), and that of the same sentence
            (``sentence_only``). ``chance`` is 1/C.
        batch_size: sentences at once.
        draws: resamples of the interval; 0: none.
    """
    predicted = predict_labels(model, judged, batch_size=batch_size)
    right = (predicted == judged.labels).astype(np.float64)
    other = predict_labels(model, _exchanged(judged), batch_size=batch_size)
    details = {"wrong_picture": float((other == judged.labels).mean())}
    details |= {
        f"label/{name}": float(right[judged.labels == label].mean())
        for label, name in enumerate(judged.label_names)
        if (judged.labels == label).any()
    }
    baselines = {"chance": 1 / len(judged.label_names)}
    if train is not None:
        baselines |= label_baselines(train, judged)
    low, high = interval(right, judged, draws)
    names = tuple(judged.label_names[label] for label in predicted.tolist())
    return TaskScores("accuracy", float(right.mean()), low, high, baselines, details, names)


def label_baselines(train: Judged, judged: Judged) -> dict[str, float]:
    """Accuracies of who judges without looking; see :func:`measure_judged`."""
    usual = _most(Counter(train.labels.tolist()))
    told: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for text, label in zip(train.texts, train.labels.tolist(), strict=True):
        told[text][label] += 1
    blind = np.array([_most(told[text]) if text in told else usual for text in judged.texts])
    return {
        "majority_label": float((judged.labels == usual).mean()),
        "sentence_only": float((judged.labels == blind).mean()),
    }


def predict_labels(model: EntailmentModel | StatementModel, judged: Judged, *, batch_size: int = 64) -> np.ndarray:
    """(M,) int64 the most probable label of each sentence."""
    found = np.zeros(len(judged), dtype=np.int64)
    with evaluating(model):
        for rows, pixels in _batches(model, judged, batch_size):
            texts = [judged.texts[row] for row in rows.tolist()]
            if isinstance(model, StatementModel):
                found[rows] = model.probabilities(pixels[0], pixels[1], texts) > 0.5
            else:
                found[rows] = model.probabilities(pixels, texts).argmax(1)
    return found


def _batches(model: PictureTextModel, rows: TaskRows, batch_size: int) -> Iterator[tuple[np.ndarray, Any]]:
    """Rows and their pictures, (B, 3, S, S) in [0, 1]; a pair of such where a row has two."""
    views = ImageViews(rows.images, None, model.image_size)

    def shown(pictures: np.ndarray) -> Tensor:
        unique, place = np.unique(pictures, return_inverse=True)  # a picture with several questions is decoded once
        part = {name: value.to(model.device) for name, value in views.batch(unique, unique, 0, 0).items()}
        return views.view(part, BatchRandom(0, 0, torch.from_numpy(unique)))[torch.from_numpy(place).to(model.device)]

    for start in range(0, len(rows), batch_size):
        part = np.arange(start, min(start + batch_size, len(rows)))
        pictures = rows.image_of[part]
        yield part, shown(pictures) if pictures.ndim == 1 else tuple(shown(column) for column in pictures.T)


def _exchanged(rows: Any) -> Any:
    """The same texts with the pictures of other rows: what a model that looks cannot answer."""
    from dataclasses import replace

    _, group = np.unique(rows.image_of.reshape(len(rows), -1)[:, 0], return_inverse=True)
    different, first = np.unique(group, return_index=True)
    following = np.roll(different, -1)
    return replace(rows, image_of=rows.image_of[first[following[group]]])


def interval(right: np.ndarray, rows: TaskRows, draws: int) -> tuple[float, float]:
    """95 % interval of the mean, over pictures."""
    if not len(right):
        raise DataError("no rows to measure")
    if draws < 1:
        return float(right.mean()), float(right.mean())
    groups = rows.image_of.reshape(len(rows), -1)[:, 0]
    found = bootstrap_interval(lambda _, score: float(score.mean()), right, right, n=draws, groups=groups)
    return found.low, found.high


def _by(names: Sequence[str], values: np.ndarray) -> dict[str, np.ndarray]:
    kinds = np.array(names)
    return {str(kind): values[kinds == kind] for kind in np.unique(kinds)}


def _most(counts: Counter[int]) -> int:
    return min(counts, key=lambda label: (-counts[label], label))
