"""From a pretrained model and the rows of a task to a trained task model, measured on held-out rows.

A run folder holds what :func:`mc_core.fit` leaves, and besides::

    assignment/            nlvr2: the stage of text assignment, where pairs are given
    without-pretraining/   the same training from random weights, where that baseline is asked for
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mc_core.data import StepPlan
from mc_core.distributed import rank
from mc_core.engine.distribution import join_processes
from mc_core.engine.loop import RunResult, fit
from mc_core.engine.method import Method
from mc_core.errors import ConfigError, DataError, closest
from mc_vision_language.data.captions import clean_caption
from mc_vision_language.data.pair_data import PairData
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.data.phrases import Phrases
from mc_vision_language.data.questions import AnswerList, Questions
from mc_vision_language.data.statements import Entailments, Judged, Statements
from mc_vision_language.data.task_data import JudgedData, QuestionData
from mc_vision_language.data.task_rows import TaskRows
from mc_vision_language.encoders_config import VisionLanguageConfig
from mc_vision_language.evaluation.retrieval import CANDIDATES, retrieval
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.model_base import PictureTextModel, load_saved
from mc_vision_language.recipe import Recipe
from mc_vision_language.tasks import TASKS
from mc_vision_language.tasks.entailment import EntailmentModel
from mc_vision_language.tasks.grounding import measure_grounding, usual_share
from mc_vision_language.tasks.measure import DRAWS, TaskScores, interval, measure_judged, measure_vqa
from mc_vision_language.tasks.model import Pieces
from mc_vision_language.tasks.nlvr2 import AssignmentModel, StatementModel
from mc_vision_language.tasks.recipe import with_encoders
from mc_vision_language.tasks.starting import load_backbone
from mc_vision_language.tasks.vocabulary import Grown, with_words
from mc_vision_language.tasks.vqa import VQAModel

_log = logging.getLogger("mc_core")
Task = Literal["retrieval", "vqa", "nlvr2", "entailment", "grounding"]
ROWS: dict[str, type[Any]] = {
    "retrieval": Pairs,
    "vqa": Questions,
    "nlvr2": Statements,
    "entailment": Entailments,
    "grounding": Phrases,
}
MODELS: dict[str, type[Any]] = {
    "vqa": VQAModel,
    "nlvr2": StatementModel,
    "entailment": EntailmentModel,
    "assignment": AssignmentModel,
}
ASSIGNMENT_FOLDER, SCRATCH_FOLDER = "assignment", "without-pretraining"
SCRATCH, BEFORE = "without_pretraining", "before_finetuning"
_BY_PRETRAINING = ("retrieval", "grounding")  # the pretrained model does these already
_LEAST = 10  # candidates of a query that are ranked again; of few pictures a quarter


@dataclass(frozen=True)
class TaskResult:
    """What :func:`finetune_task` gives.

    Attributes:
        task: which.
        scores: on held-out rows, with baselines.
        model: trained, in evaluation mode.
        run: of the last stage.
        seconds: of training, all stages together, without the baseline's.
    """

    task: str
    scores: TaskScores
    model: PictureTextModel
    run: RunResult
    seconds: float


def finetune_task(
    task: Task,
    model: VisionLanguageModel | AssignmentModel,
    rows: TaskRows | Pairs,
    recipe: Recipe[Any],
    run_dir: Path | str,
    *,
    answers: AnswerList | None = None,
    pairs: Pairs | None = None,
    assignment: Recipe[Any] | None = None,
    scratch: bool = False,
    part: str = "test",
    draws: int = DRAWS,
    resume: Literal["auto", "never", "must"] = "auto",
) -> TaskResult:
    """Train a task on the training split and measure it on another. The same call made again goes on where the run was.

    Args:
        task: retrieval, vqa, nlvr2, entailment or grounding.
        model: pretrained; it is not changed. For nlvr2 also one that has learnt text assignment, which is then not learnt again.
        rows: pairs, questions, statements, entailments or phrases, with splits.
        recipe: see :func:`mc_vision_language.tasks.recipe.resolve_task_recipe`.
        run_dir: the run folder.
        answers: of vqa: the list to choose from; default: the most frequent training answers.
        pairs: of nlvr2: pictures with captions for the stage of text assignment.
        assignment: of nlvr2: the recipe of that stage.
        scratch: train the same from random weights too, as a baseline.
        part: the split that is measured.
        draws: resamples of the interval; 0: none.
        resume: see :func:`mc_core.fit`.

    Raises:
        ConfigError: rows of another task, fewer rows than a batch, or settings that cannot work.
        CheckpointError: a run under other settings, or a model that does not fit the recipe.
        DataError: no training rows, or none in ``part``.
    """
    _check(task, rows, recipe)
    join_processes(recipe.fit)
    run_dir = Path(run_dir)
    train, held_out = rows.part("train"), rows.part(part)
    if isinstance(train, Questions):  # of which every word is a token, else some could not be told apart
        answers = answers or AnswerList.of(train.answers, recipe.method.answers)
    seconds = 0.0
    start: VisionLanguageModel | AssignmentModel = model
    if isinstance(model, AssignmentModel):
        if task != "nlvr2" or pairs is not None:
            what = f"{task} starts from a pretrained model" if task != "nlvr2" else "it needs no pairs for that stage"
            raise ConfigError(f"this model has learnt text assignment, which only nlvr2 goes on from: {what}")
    else:
        start = model = _with_words(model, _grown(model, train, answers))
        if task == "nlvr2" and pairs is not None:
            stage = _assigned(model, pairs, assignment, run_dir / ASSIGNMENT_FOLDER, resume)
            assigned = stage.method.export_module()
            assert isinstance(assigned, AssignmentModel)
            start, seconds = assigned, stage.seconds
    run = _train(task, start, train, recipe, run_dir, answers, resume)
    trained = _trained(run)
    scores = measure_task(trained, held_out, train, draws=draws)
    if task in _BY_PRETRAINING:
        assert isinstance(model, VisionLanguageModel)
        before = measure_task(model, held_out, train, draws=0).value
        scores = replace(scores, baselines={**scores.baselines, BEFORE: before})
    if scratch:
        untrained = _untrained(start, recipe.fit.seed)
        patient = recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"stop_on_collapse": False})})
        other = _train(task, untrained, train, patient, run_dir / SCRATCH_FOLDER, answers, resume)
        value = measure_task(_trained(other), held_out, train, draws=0).value
        scores = replace(scores, baselines={**scores.baselines, SCRATCH: value})
    return TaskResult(task, scores, trained, run, seconds + run.seconds)


def measure_task(
    model: PictureTextModel,
    rows: TaskRows | Pairs,
    train: TaskRows | Pairs | None = None,
    *,
    draws: int = DRAWS,
    batch_size: int = 64,
    k: int | None = None,
    add_cosine: bool = False,
) -> TaskScores:
    """The figure of a task model on rows of its task, with baselines where training rows are given.

    Args:
        model: of any task; for pairs and phrases a :class:`~mc_vision_language.model.VisionLanguageModel`, pretrained or trained
            further.
        rows: to measure on.
        train: rows that were trained on, for baselines that count.
        draws: resamples of the interval; 0: none.
        batch_size: rows at once.
        k: of retrieval: how many candidates are ranked again; default: 128, or a quarter of few.
        add_cosine: of retrieval: to the score of a match.

    Raises:
        ConfigError: rows of another task than the model's.
    """
    if isinstance(model, VQAModel) and isinstance(rows, Questions):
        assert train is None or isinstance(train, Questions)
        return measure_vqa(model, rows, train, draws=draws, batch_size=batch_size)
    fits = (isinstance(model, StatementModel) and isinstance(rows, Statements)) or (
        isinstance(model, EntailmentModel) and isinstance(rows, Entailments)
    )
    if fits:
        assert isinstance(rows, Judged)
        assert train is None or isinstance(train, Judged)
        return measure_judged(model, rows, train, draws=draws, batch_size=batch_size)  # type: ignore[arg-type]
    if isinstance(model, VisionLanguageModel) and isinstance(rows, Pairs):
        return _retrieval_scores(model, rows, draws, k, add_cosine)
    if isinstance(model, VisionLanguageModel) and isinstance(rows, Phrases):
        return _grounding_scores(model, rows, train, draws, batch_size)
    raise ConfigError(f"a {type(model).__name__} cannot be measured on {type(rows).__name__.lower()}")


def load_task_model(place: Path | str, *, device: str | torch.device = "cpu") -> PictureTextModel:
    """The model of a task's run, or a saved one, in evaluation mode.

    Args:
        place: the run folder, or the model's.
        device: to put it on.

    Raises:
        CheckpointError: no such model, or a damaged one.
    """
    return load_saved(place, PictureTextModel, "a model of pictures and texts", device=device)


def task_texts(rows: TaskRows | Pairs) -> list[str]:
    """All texts of a task's rows as the model meets them; answers not included."""
    texts: Sequence[str] = rows.captions if isinstance(rows, Pairs) else getattr(rows, "texts", ())
    return [clean_caption(text) for text in texts]


def _check(task: str, rows: Any, recipe: Recipe[Any]) -> None:
    if task not in ROWS:
        raise ConfigError(f"no task '{task}': did you mean {closest(task, ROWS)}?")
    if not isinstance(rows, ROWS[task]):
        raise ConfigError(f"{task} needs {ROWS[task].__name__.lower()}, these are {type(rows).__name__.lower()}")
    if recipe.system != task:
        raise ConfigError(f"the recipe is of {recipe.system}, not of {task}: take albef-{task}, or its own file")


def _grown(model: VisionLanguageModel, train: TaskRows | Pairs, answers: AnswerList | None) -> Grown | None:
    """More words, for a tokenizer that was made from captions."""
    if model.tokenizer is None:
        raise ConfigError("this model has no tokenizer: load it from its run")
    if model.config.text.name is not None:
        return None
    return with_words(model.tokenizer, task_texts(train), needed=() if answers is None else answers.answers)


def _with_words(model: VisionLanguageModel, grown: Grown | None) -> VisionLanguageModel:
    """The same model with more words, or itself."""
    if grown is None or not grown.pieces:
        return model
    config = model.config.model_copy()
    other = VisionLanguageModel(config, grown.tokenizer, load_pretrained=False)
    _copy_weights(other, model, grown.pieces)
    return other.to(model.device)


def _untrained(model: VisionLanguageModel | AssignmentModel, seed: int) -> VisionLanguageModel:
    """The same architecture and words with random weights."""
    torch.manual_seed(seed)
    return VisionLanguageModel(_encoders(model.config), model.tokenizer, load_pretrained=False)


def _encoders(config: VisionLanguageConfig) -> VisionLanguageConfig:
    """What a task's settings say about the encoders."""
    return VisionLanguageConfig(**{name: getattr(config, name) for name in VisionLanguageConfig.model_fields})


def _assigned(
    model: VisionLanguageModel, pairs: Pairs, recipe: Recipe[Any] | None, run_dir: Path, resume: Any
) -> RunResult:
    if recipe is None:
        raise ConfigError("pairs are given for text assignment, but no recipe of it: take albef-ta")
    return _train("assignment", model, pairs.part("train"), recipe, run_dir, None, resume)


def _train(
    task: str,
    start: VisionLanguageModel | AssignmentModel,
    train: Any,
    recipe: Recipe[Any],
    run_dir: Path,
    answers: AnswerList | None,
    resume: Any,
) -> RunResult:
    config = with_encoders(recipe.method, start.config, recipe.augment.size)
    torch.manual_seed(recipe.fit.seed)
    made: Any
    if task in _BY_PRETRAINING:
        made = VisionLanguageModel(_encoders(config), start.tokenizer, load_pretrained=False)
        _copy_weights(made, start)
    else:
        made = MODELS[task](config, start.tokenizer)
        made.start_from(start)
    if task == "vqa":
        assert answers is not None
        made.answers = answers.answers
        made.ranked(len(made.answers))  # more ranked than there are is said before anything is written
    data = _data(task, made, train, recipe)
    StepPlan(len(data), recipe.fit.batch_size, 0)  # and so are too few rows
    method: Method = TASKS.method_class(task)(config, None, made)
    method.check(recipe.fit.batch_size // recipe.fit.accumulation)
    if rank() == 0 and not (run_dir / "recipe.yaml").exists():
        for line in data.advice():
            _log.warning("%s", line)
    resolved = recipe.model_copy(update={"method": method.config})
    return fit(method, data, fit=recipe.fit, run_dir=run_dir, resume=resume, recipe=resolved.model_dump(mode="json"))


def _data(task: str, model: Any, train: Any, recipe: Recipe[Any]) -> QuestionData | JudgedData | PairData:
    """The training rows as the method takes them. Phrases are captions: no box is seen."""
    config = model.config
    looks: dict[str, Any] = {"augment": recipe.augment, "add_sep": config.text.add_sep}
    if task == "vqa":
        lengths = {"question_length": config.question_length, "answer_length": config.answer_length}
        answers = AnswerList(model.answers)
        return QuestionData(train, answers, model.tokenizer, captions=config.captions, **lengths, **looks)
    looks["max_length"] = config.text.max_length
    if task in ("assignment", *_BY_PRETRAINING):
        pairs = train.pairs(config.captions) if task == "grounding" else train
        return PairData(pairs, model.tokenizer, unit=recipe.unit, **looks)
    return JudgedData(train, model.tokenizer, captions=config.captions, **looks)


def _copy_weights(target: VisionLanguageModel, source: Any, pieces: Pieces = ()) -> None:
    load_backbone(target.backbone, source.backbone, pieces=pieces)
    target.itm_head.load_state_dict(source.itm_head.state_dict())
    with torch.no_grad():
        target.log_temperature.copy_(source.log_temperature)


def _trained(run: RunResult) -> PictureTextModel:
    model = run.method.export_module()
    assert isinstance(model, PictureTextModel)
    return model.eval()


def _retrieval_scores(
    model: VisionLanguageModel, pairs: Pairs, draws: int, k: int | None, add_cosine: bool
) -> TaskScores:
    """The mean of six recalls after the best candidates of each query were ranked again."""
    usual = min(CANDIDATES, max(_LEAST, len(pairs) // 4))
    found = retrieval(model, pairs, k=usual if k is None else k, add_cosine=add_cosine, draws=draws)
    best = found.best
    ways = {"image_to_text": best.image_to_text, "text_to_image": best.text_to_image}
    details = {f"{way}_at_{rank}": one.value for way, recalls in ways.items() for rank, one in recalls.items()}
    baselines = {"contrast_alone": found.contrast.mean.value, "chance": float(np.mean(found.chance))}
    mean = best.mean
    return TaskScores(
        "retrieval_mean_recall", mean.value, mean.low, mean.high, baselines, {**details, "ranked_again": found.k}
    )


def _grounding_scores(
    model: VisionLanguageModel, rows: Phrases, train: TaskRows | Pairs | None, draws: int, batch_size: int
) -> TaskScores:
    usual = None
    if isinstance(train, Phrases):
        try:
            usual = usual_share(train)
        except DataError:  # training phrases need no boxes
            usual = None
    rows = rows.located()
    found = measure_grounding(model, rows, usual=usual, batch_size=batch_size)
    baselines = dict(found.baselines)
    details = {"pointing": found.pointing, "mean_iou": found.mean_iou, "random_point": baselines.pop("random_point")}
    among = found.accuracy == found.accuracy  # NaN where there are no proposals
    if among:
        details["free_accuracy"] = found.free_accuracy
    value = found.accuracy if among else found.free_accuracy
    low, high = interval(found.right.astype(float), rows, draws)
    return TaskScores("accuracy_at_iou_0.5", value, low, high, baselines, details)
