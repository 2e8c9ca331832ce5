"""What a model knows before it comes to the sample's tasks.

The published recipe of CTP starts from encoders that have seen millions of pictures and sentences. On the sample that is a model
which has learned five digits, upright and turned, before it is given the five others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mc_vision_language.continual.running import run_sequence
from mc_vision_language.continual.tasks import SAMPLE_TASKS, TaskPairs, sample_tasks
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.recipe import Recipe


def sample_start(
    base: Recipe[Any], run_dir: Path | str, *, seed: int, tasks: Sequence[TaskPairs], held_out: int = 0
) -> VisionLanguageModel:
    """A model that knows the five other digits in all turns of the sample; the same call made again reads it, or goes on.

    Args:
        base: as of :func:`~mc_vision_language.continual.running.run_sequence`; ``fit.steps`` for each turn, all turns at once.
        run_dir: its run folder.
        seed: of scenes, weights and order.
        tasks: that it will come to; their words are in its vocabulary, as in a published one.
        held_out: whose scans it does not see, see :class:`~mc_core.samples.scenes.SceneConfig`; as in the tasks.
    """
    texts = [caption for task in tasks for caption in task.pairs.captions]
    turns = sample_tasks("before", seed=seed, held_out=held_out)
    return run_sequence("joint", turns, base, run_dir, seed=seed, source=SAMPLE_TASKS["before"], texts=texts).model
