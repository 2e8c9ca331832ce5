"""One method over one sequence of tasks, into one folder, measured after each task: what the command and the benchmarks run.

A run folder holds what :func:`mc_core.continual.sequence.fit_tasks` leaves, and besides::

    tokenizer/                  of the text encoder
    pairs.json                  source, tasks and their splits
    tasks/1-food/model/         the model after the task; model/ is that after the last
    tasks/1-food/result.json    its figures on the tasks so far: of each by itself and of each union
    scores.json                 R[k, j], A_k, forgetting, plasticity and the like, of every measure
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from mc_core.continual.contract import ContinualMethod, Task
from mc_core.continual.metrics import SequenceScores
from mc_core.continual.sequence import TaskData, fit_tasks
from mc_core.distributed import rank
from mc_core.engine.distribution import join_processes
from mc_core.errors import ConfigError
from mc_core.export import staging
from mc_core.files import write_json
from mc_core.listing import fingerprint
from mc_core.modules import evaluating
from mc_core.recipes import merge, resolve, validated
from mc_vision_language.backbone import Backbone
from mc_vision_language.continual.base import wide
from mc_vision_language.continual.evaluating import MEASURES, measure_tasks, sequence_scores
from mc_vision_language.continual.memory import ExemplarMemory, replaying
from mc_vision_language.continual.table import BASELINES, TABLE
from mc_vision_language.continual.tasks import TaskPairs, checked
from mc_vision_language.data.joined import joined
from mc_vision_language.data.pair_data import PairData
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.encoders_config import VisionLanguageConfig
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.recipe import Recipe
from mc_vision_language.tasks.starting import load_backbone
from mc_vision_language.tokenizers import load_tokenizer, train_tokenizer
from mc_vision_language.training import PAIRS_FILE, TOKENIZER_FOLDER, split_counts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mc_vision_language.continual.base import Sequential

_log = logging.getLogger("mc_core")
SCORES_FILE = "scores.json"
JOINT_TASK = "all tasks"
_UNSCALED = ("si", "rwalk", "afec")  # they read gradients, which fp16 scales


@dataclass(frozen=True)
class SequenceRun:
    """What :func:`run_sequence` leaves.

    Attributes:
        method: its name.
        run_dir: the run folder.
        tasks: their names, in order.
        model: after the last task, in evaluation mode.
        results: what was measured after each task.
        seconds: training time of all tasks, over all resumes.
        held: samples in the memory at the end.
    """

    method: str
    run_dir: Path
    tasks: tuple[str, ...]
    model: VisionLanguageModel
    results: list[dict[str, Any]]
    seconds: float
    held: int

    def scores(self, measure: str = "r_m") -> SequenceScores:
        """R and U of a measure, of which A_k, forgetting and plasticity follow; joint training has their last row alone."""
        return sequence_scores(self.results, measure)

    @property
    def r_m(self) -> float:
        """R_m over all tasks after the last."""
        return self.scores().last

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "method": self.method,
            "about": BASELINES[self.method].about,
            "tasks": list(self.tasks),
            "r_m": self.r_m,
            "training_seconds": round(self.seconds, 1),
            "held": self.held,
            "scores": {measure: self.scores(measure).to_dict() for measure in MEASURES},
        }


def base_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe[Any]:
    """A recipe by name or file whose method is any of :data:`~mc_vision_language.continual.table.BASELINES`.

    Args:
        name: a shipped recipe such as ``"ctp-laptop"``, a YAML file, or a run folder.
        changes: nested fields that replace the recipe's.

    Raises:
        ConfigError: unknown recipe, method or field, or a value out of range.

    >>> base_recipe("ctp-laptop", {"fit": {"steps": 3}}).fit.steps
    3
    """
    return resolve("mc_vision_language", TABLE, lambda config: Recipe[config], name, changes)  # type: ignore[valid-type]


def recipe_for(method: str, base: Recipe[Any], changes: Mapping[str, Any] | None = None) -> Recipe[Any]:
    """``base`` for another method: what both have in common is kept, so that methods differ in nothing else.

    Args:
        method: of :data:`~mc_vision_language.continual.table.BASELINES`.
        base: see :func:`base_recipe`.
        changes: fields of the method.

    Raises:
        ConfigError: unknown method or field, or a value out of range.

    >>> recipe_for("ewc", base_recipe("ctp-laptop")).method.penalty
    5000.0
    """
    config = TABLE.config_class(method)
    given = base.method.model_dump(mode="json", exclude_unset=False)
    same = {name: value for name, value in given.items() if name in config.model_fields}
    content = merge(merge(same, BASELINES[method].changes), changes or {})
    own = validated(config, content, source=f"settings of {method}")
    plain = base.model_dump(mode="json", exclude={"method", "system"})
    return validated(Recipe[config], {**plain, "system": method, "method": own.model_dump(mode="json")}, source=method)  # type: ignore[valid-type]


def run_sequence(
    method: str,
    tasks: Sequence[TaskPairs],
    base: Recipe[Any],
    run_dir: Path | str,
    *,
    seed: int | None = None,
    buffer: int | None = None,
    changes: Mapping[str, Any] | None = None,
    part: Literal["test", "validation"] = "test",
    source: str = "",
    resume: Literal["auto", "never", "must"] = "auto",
    start: VisionLanguageModel | None = None,
    texts: Sequence[str] = (),
) -> SequenceRun:
    """Train on one task after the other and measure after each. The same call made again goes on where the run was.

    With the same seed all methods start from the same weights and see the same batches. The tokenizer is trained on the captions
    of all tasks where the recipe names none: which words there are is known in advance, as with a published one.

    A model that knows something already forgets otherwise than one with new weights: the published recipe starts from published
    encoders, and a run of ``pretrain`` can be given as ``start``.

    Args:
        method: of :data:`~mc_vision_language.continual.table.BASELINES`.
        tasks: in order; see :mod:`mc_vision_language.continual.tasks`.
        base: see :func:`base_recipe`; ``fit`` holds for each task, and joint training has as many steps as all tasks together.
        run_dir: the run folder.
        seed: of weights, order and views; default: that of ``base.fit``.
        buffer: samples of finished tasks kept, for methods with a memory. Default: a hundredth of all, at least 10.
        changes: fields of the method.
        part: what to measure on; ``validation`` for choosing settings.
        source: what to call the data, so that the run knows them again.
        resume: see :func:`mc_core.continual.sequence.fit_tasks`.
        start: a trained model, whose encoders, tokenizer and image size are taken; it stays as it is. Default: as the recipe says.
        texts: further ones that the tokenizer is trained on, such as captions of domains to come.

    Raises:
        ConfigError: an unknown method, settings that cannot work, fewer pairs than a batch.
        DataError: a task without pairs.
        CheckpointError: the folder holds another sequence; what differs is listed.
        InterruptedRunError, NonFiniteError, CollapseError: as :func:`mc_core.fit`.
    """
    checked(tasks)
    recipe = recipe_for(method, base, changes)
    if start is not None:
        recipe = going_on_from(recipe, start)
    if seed is not None:
        recipe = recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"seed": seed})})
    entry, run_dir = BASELINES[method], Path(run_dir)
    if method in _UNSCALED and recipe.fit.precision == "fp16":
        raise ConfigError(f"fit.precision fp16 scales the gradients that {method} reads: take bf16 or fp32")
    join_processes(recipe.fit)
    train = [task.pairs.take(np.flatnonzero(task.pairs.splits == "train")) for task in tasks]
    fit, shown = recipe.fit, [(task.name, pairs) for task, pairs in zip(tasks, train, strict=True)]
    if entry.joint:
        shown = [(JOINT_TASK, joined(train))]
        if fit.steps is not None:
            fit = fit.model_copy(update={"steps": fit.steps * len(tasks)})
    for name, pairs in shown:  # too few pairs are said before anything is written
        count = len(pairs) if recipe.unit == "image" else len(pairs.captions)
        if count < fit.batch_size:
            raise ConfigError(
                f"task '{name}' has {count} pairs to train on, fewer than a batch: set fit.batch_size ({fit.batch_size}) to "
                f"{count} or less, or give it more"
            )
    tokenizer = _tokenizer(recipe, train, run_dir / TOKENIZER_FOLDER, texts) if start is None else start.tokenizer
    built = build(recipe, tokenizer, start)
    side = built.model.image_size
    if side != recipe.augment.size:
        raise ConfigError(
            f"augment.size {recipe.augment.size} is not the {side} pixels that this model takes: set it to {side}"
        )
    assert built.model.tokenizer is not None
    words = built.model.tokenizer

    def data_of(pairs: Pairs) -> PairData:
        text = recipe.method.text
        return PairData(
            pairs, words, augment=recipe.augment, max_length=text.max_length, unit=recipe.unit, add_sep=text.add_sep
        )

    memory = None
    if entry.memory is not None:
        memory = ExemplarMemory(entry.memory, default_buffer(train, recipe.unit) if buffer is None else buffer)
    each = [pairs for _, pairs in shown]
    datas = [data_of(pairs) for pairs in each]
    listed = [
        TaskData(name, data, replaying(each, index, data_of, recipe.unit))
        for index, ((name, _), data) in enumerate(zip(shown, datas, strict=True))
    ]
    if rank() == 0:
        for line in dict.fromkeys(line for data in datas for line in data.advice()):
            _log.warning("%s", line)
        _write_beside(words, tasks, run_dir, source, renew=False)

    def after_task(task: Task, trained: ContinualMethod) -> dict[str, Any]:
        seen = tasks if entry.joint else tasks[: task.number]
        model = trained.export_module()
        assert isinstance(model, VisionLanguageModel)
        found = measure_tasks(model, seen, part)
        _log.info("%s, R_m over %d of %d tasks: %.3f", task.name, len(seen), len(tasks), found["union"]["r_m"][-1])
        return {"part": part, **found}

    resolved = recipe.model_copy(update={"method": built.config, "fit": fit})
    result = fit_tasks(
        built,
        listed,
        fit=fit,
        run_dir=run_dir,
        after_task=after_task,
        memory=memory,
        resume=resume,
        recipe=resolved.model_dump(mode="json"),
        identity={} if start is None else {"start": weights_fingerprint(start)},
    )
    model = result.method.export_module()
    assert isinstance(model, VisionLanguageModel)
    names = tuple(task.name for task in tasks)
    run = SequenceRun(method, run_dir, names, model.eval(), result.results, result.seconds, len(result.held))
    if rank() == 0:
        _write_beside(words, tasks, run_dir, source, renew=True)
        write_json(run_dir / SCORES_FILE, run.to_dict())
    return run


def build(
    recipe: Recipe[Any], tokenizer: PreTrainedTokenizerFast | None, start: VisionLanguageModel | None = None
) -> Sequential:
    """The recipe's method with the initial weights that its seed gives, or with those of a model."""
    torch.manual_seed(recipe.fit.seed)
    method, config = TABLE.method_class(recipe.system), recipe.method
    return method(config, tokenizer) if start is None else method(config, tokenizer, _copied(start))


def going_on_from(recipe: Recipe[Any], start: VisionLanguageModel) -> Recipe[Any]:
    """The recipe for a model that is trained already: its encoders and image size instead of the recipe's.

    Raises:
        ConfigError: a model without the text and fusion layers that are trained here, or without a tokenizer.
    """
    if not isinstance(start.backbone, Backbone):
        raise ConfigError(
            f"a {type(start).__name__} cannot be trained on tasks: start from a model that pretrain or continual made"
        )
    if start.tokenizer is None:
        raise ConfigError("the model to start from has no tokenizer: save it with one")
    taken = {name: getattr(start.config, name) for name in VisionLanguageConfig.model_fields if name != "matching"}
    augment = recipe.augment.model_copy(update={"size": start.image_size})
    return recipe.model_copy(update={"method": recipe.method.model_copy(update=taken), "augment": augment})


def _copied(start: VisionLanguageModel) -> VisionLanguageModel:
    """The same weights in a model that ranks nothing by matching, which no method here trains."""
    config = start.config.model_copy(update={"matching": False})
    made = VisionLanguageModel(config, start.tokenizer, load_pretrained=False)
    load_backbone(made.backbone, start.backbone)
    return made


def weights_fingerprint(model: VisionLanguageModel) -> str:
    """A digest of a model's backbone, by which it is known again."""
    state = model.backbone.state_dict()
    return fingerprint(*(part for name in sorted(state) for part in (name, wide(state[name].cpu()).numpy())))


def untrained_figures(
    tasks: Sequence[TaskPairs],
    base: Recipe[Any],
    run_dir: Path,
    part: Literal["test", "validation"] = "test",
    start: VisionLanguageModel | None = None,
) -> dict[str, dict[str, list[float]]]:
    """Figures of the weights that all methods start from, with the tokenizer of a run, or those of ``start``."""
    if start is None:
        start = build(recipe_for("sequential", base), load_tokenizer(run_dir / TOKENIZER_FOLDER)).model
    with evaluating(start):
        return measure_tasks(start, tasks, part)


def default_buffer(train: Sequence[Pairs], unit: str) -> int:
    """A hundredth of all samples, as CTP's 10,000 of a million, but at least 10."""
    total = sum(len(pairs) if unit == "image" else len(pairs.captions) for pairs in train)
    return max(10, round(total / 100))


def _write_beside(
    words: PreTrainedTokenizerFast, tasks: Sequence[TaskPairs], run_dir: Path, source: str, *, renew: bool
) -> None:
    """Tokenizer and list of pairs; the list of a run that was begun with other tasks is not renewed before those were compared."""
    place = run_dir / TOKENIZER_FOLDER
    if not place.exists():
        with staging(place) as stage:
            words.save_pretrained(stage)
            stage.rename(place)
    if renew or not (run_dir / PAIRS_FILE).exists():
        splits = {task.name: split_counts(task.pairs) for task in tasks}
        write_json(run_dir / PAIRS_FILE, {"source": source, "tasks": splits})


def _tokenizer(
    recipe: Recipe[Any], train: Sequence[Pairs], place: Path, texts: Sequence[str]
) -> PreTrainedTokenizerFast:
    text = recipe.method.text
    if (place / "tokenizer.json").exists():
        return load_tokenizer(place)
    if text.name is not None:
        return load_tokenizer(text.name, download=text.download)
    captions = dict.fromkeys((*(caption for pairs in train for caption in pairs.captions), *texts))
    return train_tokenizer(list(captions), text.vocabulary)
