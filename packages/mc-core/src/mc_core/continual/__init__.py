"""Training on tasks in a row. Names load on first use, so that options need no torch."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_core.continual.contract import ContinualMethod, Memory, Task
    from mc_core.continual.sequence import SequenceResult, TaskData, fit_tasks, task_folder

__all__ = ["ContinualMethod", "Memory", "SequenceResult", "Task", "TaskData", "fit_tasks", "task_folder"]

_load, __dir__ = attach(
    __name__,
    {
        "contract": ["ContinualMethod", "Memory", "Task"],
        "sequence": ["SequenceResult", "TaskData", "fit_tasks", "task_folder"],
    },
)


def __getattr__(name: str) -> Any:
    return _load(name)
