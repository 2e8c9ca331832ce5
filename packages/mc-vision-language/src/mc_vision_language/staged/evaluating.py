"""What a model of Astrea is worth on pictures held out: what it finds, answers and writes, also without experts or a router.

Legend: P pictures, Q questions, B of a batch, N visual tokens, A answers to choose from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mc_core.errors import ConfigError, DataError, MissingDependencyError, closest
from mc_core.modules import evaluating
from mc_vision_language.data.annotated import AnnotatedPairs
from mc_vision_language.data.captions import clean_caption
from mc_vision_language.data.images import ImageSet
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.data.questions import AnswerList, Questions
from mc_vision_language.evaluation.answers import answer_scores
from mc_vision_language.evaluation.caption_scores import CaptionScores, caption_scores
from mc_vision_language.evaluation.retrieval import RetrievalResult, retrieval
from mc_vision_language.gallery import picture_batches
from mc_vision_language.methods.astrea.fusion import Draws
from mc_vision_language.methods.astrea.model import AstreaModel
from mc_vision_language.tasks.measure import TaskScores, interval, question_baselines

Mode = Literal["generate", "rank"]
_LIST = 3000  # answers to choose from at most, as is usual for VQA v2


@dataclass(frozen=True)
class WrittenCaptions:
    """Captions that a model wrote.

    Attributes:
        texts: of P pictures.
        exact: share that is a caption of its picture word by word.
        scores: BLEU, ROUGE-L and CIDEr-D; None where ``pycocoevalcap`` is not installed.
        other: CIDEr-D of the captions that were written for other pictures: what habit alone earns; None likewise.
    """

    texts: tuple[str, ...]
    exact: float
    scores: CaptionScores | None
    other: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {} if self.scores is None else self.scores.to_dict()
        return {
            "exact": self.exact,
            **found,
            **({} if self.other is None else {"cider_d_of_other_pictures": self.other}),
        }


@dataclass(frozen=True)
class AstreaScores:
    """What :func:`measure_astrea` returns.

    Attributes:
        retrieval: by cosine.
        answers: accuracy of answers, with baselines; None without a language model, or without questions.
        captions: None without a language model.
    """

    retrieval: RetrievalResult
    answers: TaskScores | None
    captions: WrittenCaptions | None

    def figures(self) -> dict[str, float]:
        """The headline figures."""
        found = {"retrieval_mean_recall": self.retrieval.contrast.mean.value}
        if self.answers is not None:
            found["vqa_accuracy"] = self.answers.value
        if self.captions is not None:
            found["captions_exact"] = self.captions.exact
            if self.captions.scores is not None:
                found |= {"cider_d": self.captions.scores.cider_d, "bleu_4": self.captions.scores.bleu[3]}
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {**self.figures(), "retrieval": self.retrieval.to_dict()}
        if self.answers is not None:
            found["answers"] = {
                "accuracy": self.answers.value,
                "low": self.answers.low,
                "high": self.answers.high,
                "baselines": self.answers.baselines,
                **self.answers.details,
            }
        if self.captions is not None:
            found["captions"] = self.captions.to_dict()
        return found


def measure_astrea(
    model: AstreaModel,
    data: AnnotatedPairs,
    train: AnnotatedPairs | None = None,
    *,
    mode: Mode = "generate",
    draws: int = 1000,
    batch_size: int = 64,
) -> AstreaScores:
    """Retrieval; and, with a language model, answers to the questions and a caption of each picture.

    Args:
        model: to measure.
        data: held-out pictures; those without a caption are left out of retrieval and captions.
        train: what it was trained on, for the baselines of answers, and the answers to choose from with ``rank``.
        mode: ``generate``: answers in free words; ``rank``: the most probable of the training answers.
        draws: resamples of intervals; 0: none.
        batch_size: pictures, or questions, at once.

    Raises:
        DataError: no picture with a caption. ConfigError: ``rank`` without training questions.
    """
    shown = data.having("captions")
    found = retrieval(model, shown.pairs, draws=draws, batch_size=batch_size)
    if not model.answers:
        return AstreaScores(found, None, None)
    answers = None
    if data.questions is not None and any(data.questions.answers):
        asked = None if train is None else train.questions
        answers = measure_answers(model, data.questions, asked, mode=mode, draws=draws, batch_size=batch_size)
    return AstreaScores(found, answers, measure_captions(model, shown.pairs, batch_size=batch_size))


def measure_answers(
    model: AstreaModel,
    questions: Questions,
    train: Questions | None = None,
    *,
    mode: Mode = "generate",
    draws: int = 1000,
    batch_size: int = 64,
) -> TaskScores:
    """Accuracy as the VQA challenge counts it, beside who does not look: the most frequent answer of all, of the kind of question,
    and of the same question; in ``details`` that of each kind, and that of the model looking at wrong pictures.

    Args:
        model: with a language model.
        questions: with answers.
        train: training questions, for baselines and for ``rank``.
        mode, draws, batch_size: see :func:`measure_astrea`.

    Raises:
        DataError: no question has an answer. ConfigError: ``rank`` without training questions, or a model without language model.
    """
    questions = questions.answered()
    choices = None
    if mode == "rank":
        if train is None:
            raise ConfigError("ranking chooses among training answers: give the training questions, or generate")
        choices = AnswerList.of(train.answered().answers, _LIST).answers
    given = {"choices": choices, "batch_size": batch_size}
    predicted = answer_questions(model, questions.images, questions.image_of, questions.texts, **given)
    right = answer_scores(predicted, questions.answers)
    wrong = answer_questions(model, questions.images, _others(questions.image_of), questions.texts, **given)
    details = {"wrong_picture": float(answer_scores(wrong, questions.answers).mean())}
    kinds = np.array(questions.kinds)
    details |= {f"kind/{kind}": float(right[kinds == kind].mean()) for kind in np.unique(kinds).tolist() if kind}
    if choices is not None:
        details["answers_in_list"] = float(AnswerList(choices).reachable(questions.answers).mean())
    baselines = {} if train is None else question_baselines(train, questions)
    low, high = interval(right, questions, draws)
    return TaskScores("vqa_accuracy", float(right.mean()), low, high, baselines, details, tuple(predicted))


def measure_captions(model: AstreaModel, pairs: Pairs, *, batch_size: int = 64) -> WrittenCaptions:
    """Write a caption of each picture and compare it with the true ones.

    Args:
        model: with a language model.
        pairs: pictures, each with a caption.
        batch_size: pictures at once.
    """
    everywhere = np.arange(len(pairs))
    texts = answer_questions(model, pairs.images, everywhere, [""] * len(pairs), batch_size=batch_size)
    references = [pairs.captions_of(row) for row in range(len(pairs))]
    exact = float(np.mean([text in true for text, true in zip(texts, references, strict=True)]))
    try:
        scores = caption_scores(texts, references)
        other = caption_scores(texts[1:] + texts[:1], references).cider_d if len(texts) > 1 else None
    except MissingDependencyError:
        scores, other = None, None
    return WrittenCaptions(tuple(texts), exact, scores, other)


@torch.no_grad()
def answer_questions(
    model: AstreaModel,
    images: ImageSet,
    image_of: np.ndarray,
    questions: Sequence[str],
    *,
    choices: Sequence[str] | None = None,
    batch_size: int = 64,
) -> list[str]:
    """An answer to each question; every picture is looked at once, whatever number of questions it has.

    Args:
        model: with a language model.
        images: P pictures.
        image_of: (Q,) int64, the picture of each question.
        questions: Q; an empty one asks for a caption.
        choices: A answers of which the most probable is taken; None: free words.
        batch_size: pictures, and questions, at once.

    Raises:
        ConfigError: a model without language model. DataError: another number of questions, or one that is too long.
        BadSampleError: a picture that cannot be read.
    """
    text, language = model.language_text, model.language
    assert language is not None
    if len(image_of) != len(questions):
        raise DataError(f"{len(questions)} questions about {len(image_of)} pictures: give the picture of each")
    asked = [clean_caption(one) for one in questions]
    ids, mask = text.prompts(asked)
    listed = None if choices is None else tuple(one.to(model.device) for one in text.answers([*choices]))
    answers = [""] * len(asked)
    different, first = np.unique(np.sort(image_of), return_index=True)
    order = np.argsort(image_of, kind="stable")
    ends = np.append(first, len(order))
    with evaluating(model):
        done = 0
        for rows, pixels in picture_batches(images, model.image_size, rows=different, batch_size=batch_size):
            maps = model.own.maps(model.prepare(pixels))
            begin, end = ends[done], ends[done + len(rows)]
            local = np.repeat(np.arange(len(rows)), np.diff(ends[done : done + len(rows) + 1]))
            done += len(rows)
            for start in range(begin, end, batch_size):
                part = order[start : min(start + batch_size, end)]
                at = torch.from_numpy(local[start - begin : start - begin + len(part)]).to(model.device)
                seen = {kind: found[at] for kind, found in maps.items()}
                prefix = model.prefix(
                    model.own.fused(seen, _states(model, [asked[row] for row in part.tolist()])).tokens
                )
                width = int(mask[part].sum(1).max())
                prompt = ids[part, :width].to(model.device), mask[part, :width].to(model.device)
                if listed is None:
                    made = text.decode(language.generate(prefix, *prompt, model.config.language.answer_length))
                else:
                    best = language.score_answers(prefix, *prompt, *listed).argmax(1)
                    assert choices is not None
                    made = [choices[place] for place in best.tolist()]
                for row, answer in zip(part.tolist(), made, strict=True):
                    answers[row] = answer
    return answers


def _states(model: AstreaModel, questions: Sequence[str]) -> Tensor | None:
    """What a router that reads questions makes of them."""
    if not (model.config.router.text and model.config.routes):
        return None
    ids, mask = model.tokens_of(questions)
    there = torch.tensor([bool(one.strip()) for one in questions], device=mask.device)
    return model.question_states(ids, mask * there[:, None])


def _others(image_of: np.ndarray) -> np.ndarray:
    """(Q,) the picture of another question's: each picture becomes the one that follows it."""
    different, place = np.unique(image_of, return_inverse=True)
    return np.roll(different, -1)[place]


@contextmanager
def without_experts(model: AstreaModel, *kinds: str) -> Iterator[AstreaModel]:
    """The model as it is when these experts are missing: the weights of the others are renormalised.

    Raises:
        ConfigError: no such expert, or none would be left.
    """
    own, known = model.own, model.config.kinds
    for kind in kinds:
        if kind not in known:
            raise ConfigError(f"there is no {kind} expert: did you mean {closest(kind, known)}?")
    there = torch.tensor([kind not in kinds for kind in known])
    if not there.any():
        raise ConfigError(f"without {', '.join(kinds)} no expert is left")
    whole = own.fused

    def reduced(maps: Mapping[str, Tensor], text: Tensor | None = None, *, draws: Draws | None = None) -> Any:
        one = next(iter(maps.values()))
        count = len(one)
        present = there.to(one.device).expand(count, -1)
        first = present.int().argmax(1)  # of a shortcut from one expert: one that is there
        return whole(maps, text, draws=Draws(torch.ones(count, device=one.device), first, present))

    own.fused = reduced  # type: ignore[method-assign]
    try:
        yield model
    finally:
        del own.fused


@contextmanager
def even_weights(model: AstreaModel) -> Iterator[AstreaModel]:
    """The model as it is when all experts weigh the same, its router ignored.

    Raises:
        ConfigError: a model without router.
    """
    router = model.fusion.router
    if router is None:
        raise ConfigError(f"fusion: {model.config.fusion} has no router whose weights could be made even")
    changed = [router.gate.weight, router.gate.bias, router.allocator.average]
    if router.bias is not None:
        changed.append(router.bias.beta)
    kept = [one.detach().clone() for one in changed]
    try:
        with torch.no_grad():
            for one in changed:
                one.zero_()
        yield model
    finally:
        with torch.no_grad():
            for one, value in zip(changed, kept, strict=True):
                one.copy_(value)


def what_experts_add(model: AstreaModel, pairs: Pairs, *, batch_size: int = 64) -> dict[str, float]:
    """R_m of retrieval with all experts, without each of them, and with even weights: what the trained model loses.

    Args:
        model: to measure.
        pairs: held-out pictures with captions.
        batch_size: pictures at once.

    Returns:
        ``all``, ``without KIND`` of each expert where there are several, ``even weights`` where there is a router.
    """

    def mean() -> float:
        return retrieval(model, pairs, draws=0, batch_size=batch_size).contrast.mean.value

    found = {"all": mean()}
    for kind in model.config.kinds if len(model.config.kinds) > 1 else ():
        with without_experts(model, kind):
            found[f"without {kind}"] = mean()
    if model.fusion.router is not None and model.config.router.top_k is None:
        with even_weights(model):
            found["even weights"] = mean()
    return found
