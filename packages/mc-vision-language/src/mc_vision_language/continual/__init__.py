"""Vision-language training on a sequence of tasks. Public names load on first use; importing this package loads no torch."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision_language.continual.base import Sequential, Step
    from mc_vision_language.continual.config import ContinualConfig
    from mc_vision_language.continual.evaluating import MEASURES, measure_tasks, sequence_scores
    from mc_vision_language.continual.memory import ExemplarMemory
    from mc_vision_language.continual.running import SequenceRun, base_recipe, recipe_for, run_sequence
    from mc_vision_language.continual.table import BASELINES
    from mc_vision_language.continual.tasks import TaskPairs, TaskSpec, read_tasks, sample_tasks

_NAMES = {
    "base": ["Sequential", "Step"],
    "config": ["ContinualConfig"],
    "evaluating": ["MEASURES", "measure_tasks", "sequence_scores"],
    "memory": ["ExemplarMemory"],
    "running": ["SequenceRun", "base_recipe", "recipe_for", "run_sequence"],
    "table": ["BASELINES"],
    "tasks": ["TaskPairs", "TaskSpec", "read_tasks", "sample_tasks"],
}

__all__ = [
    "BASELINES",
    "MEASURES",
    "ContinualConfig",
    "ExemplarMemory",
    "SequenceRun",
    "Sequential",
    "Step",
    "TaskPairs",
    "TaskSpec",
    "base_recipe",
    "measure_tasks",
    "read_tasks",
    "recipe_for",
    "run_sequence",
    "sample_tasks",
    "sequence_scores",
]

_load, __dir__ = attach(__name__, _NAMES)


def __getattr__(name: str) -> Any:
    return _load(name)
