"""Training on tasks in a row. Names load on first use, so that options need no torch."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_core.continual.contract import ContinualMethod, Memory, Task
    from mc_core.continual.exemplars import herding, k_means_rows, proportional, quotas, reservoir
    from mc_core.continual.importance import Anchor, mean_gradient_power, path_importance
    from mc_core.continual.metrics import SequenceScores, average_precision, class_precision, forgetting
    from mc_core.continual.passes import one_pass
    from mc_core.continual.sequence import SequenceResult, TaskData, fit_tasks, task_folder

__all__ = [
    "Anchor",
    "ContinualMethod",
    "Memory",
    "SequenceResult",
    "SequenceScores",
    "Task",
    "TaskData",
    "average_precision",
    "class_precision",
    "fit_tasks",
    "forgetting",
    "herding",
    "k_means_rows",
    "mean_gradient_power",
    "one_pass",
    "path_importance",
    "proportional",
    "quotas",
    "reservoir",
    "task_folder",
]

_load, __dir__ = attach(
    __name__,
    {
        "contract": ["ContinualMethod", "Memory", "Task"],
        "exemplars": ["herding", "k_means_rows", "proportional", "quotas", "reservoir"],
        "importance": ["Anchor", "mean_gradient_power", "path_importance"],
        "metrics": ["SequenceScores", "average_precision", "class_precision", "forgetting"],
        "passes": ["one_pass"],
        "sequence": ["SequenceResult", "TaskData", "fit_tasks", "task_folder"],
    },
)


def __getattr__(name: str) -> Any:
    return _load(name)
