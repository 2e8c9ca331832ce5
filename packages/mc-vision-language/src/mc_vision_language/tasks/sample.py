"""The embedded sample of every task: no download, and test scenes of other writers than training scenes."""

from __future__ import annotations

from typing import Any, Literal

from mc_core.errors import ConfigError, closest
from mc_core.samples import DigitScenes
from mc_vision_language.data.scene_tasks import scene_entailments, scene_phrases, scene_questions, scene_statements
from mc_vision_language.sample import COUNTS, sample_pairs, sample_scenes

SampleTask = Literal["retrieval", "vqa", "nlvr2", "entailment", "grounding"]
_FEW = (1, 1)
_SEVERAL = (2, 2)
"""Digits of a scene where one alone would leave nothing to find: a phrase could only mean that."""
QUESTIONS = ("color", "size", "exists", "digit")
"""Kinds of questions that a small model can learn to answer; those about two digits at once take longer training."""
_AGAIN = 2
"""Sentences about each scene, or each two."""


def sample_task_rows(task: SampleTask, *, seed: int = 0, counts: dict[str, int] | None = None) -> Any:
    """Rows of a task about digit scenes, with splits.

    Args:
        task: which.
        seed: another seed, other scenes and texts.
        counts: scenes of each split; default: those of the sample.

    Returns:
        Pairs, Questions, Statements, Entailments or Phrases.

    Raises:
        ConfigError: no such task.

    >>> rows = sample_task_rows("entailment", counts={"train": 4, "test": 2})
    >>> len(rows), len(rows.part("test"))
    (12, 4)
    """
    if task == "retrieval":
        return sample_pairs(seed=seed, counts=counts)
    if task == "vqa":
        return scene_questions(_scenes(counts, seed), seed=seed, kinds=QUESTIONS)
    if task == "nlvr2":
        return scene_statements(_scenes(counts, seed), per_pair=_AGAIN, seed=seed)
    if task == "entailment":
        return scene_entailments(_scenes(counts, seed), per_scene=_AGAIN, seed=seed)
    if task == "grounding":
        return scene_phrases(_scenes(counts, seed, _SEVERAL), seed=seed)
    known = ("retrieval", "vqa", "nlvr2", "entailment", "grounding")
    raise ConfigError(f"no task '{task}': did you mean {closest(task, known)}?")


def _scenes(counts: dict[str, int] | None, seed: int, digits: tuple[int, int] = _FEW) -> dict[str, DigitScenes]:
    wanted = COUNTS if counts is None else counts
    return {part: sample_scenes(part, seed=seed, count=count, digits=digits) for part, count in wanted.items()}
