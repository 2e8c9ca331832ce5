"""What a sequence of tasks trains: :class:`ContinualMethod`, and what its hooks are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mc_core.engine.method import Method

if TYPE_CHECKING:
    import numpy as np

    from mc_core.data import Dataset
    from mc_core.engine.config import Fit


@dataclass(frozen=True)
class Task:
    """One task of a sequence. How many will follow is not said: nobody knows, and tasks may be appended to a finished run.

    Attributes:
        index: from 0.
        name: as the user calls it.

    >>> Task(1, "food").number, Task(1, "food").first
    (2, False)
    """

    index: int
    name: str

    @property
    def number(self) -> int:
        """From 1, as people count."""
        return self.index + 1

    @property
    def first(self) -> bool:
        """Whether nothing was learned before."""
        return self.index == 0


class ContinualMethod(Method):
    """A method that is trained on tasks in a row; :func:`mc_core.continual.sequence.fit_tasks` calls, for each task::

        method.start_task(task)                  # under no_grad
        mc_core.fit(method, data, …)             # a run of its own: new optimizer, schedule from the start
        method.end_task(task, data, fit)         # with gradients, if it wants them
        state_dict() is saved

    What is carried from task to task (a frozen copy, importances, a queue) lives in modules and buffers, so that ``state_dict``
    holds all of it. Which modules there are may depend on the task: after ``start_task`` of a task, called at any state of the
    method, the same names and shapes must be there as in the ``state_dict`` that is saved during and after that task. Both hooks
    depend on the method's state and their arguments alone; global random numbers are seeded before each.
    """

    def start_task(self, task: Task) -> None:
        """Before the first step of a task, and again before its state is loaded: freeze copies, clear what is per task."""

    def end_task(self, task: Task, data: Dataset, fit: Fit) -> None:
        """After the last step of a task, in training mode: measure importances and the like.

        Args:
            task: that has ended.
            data: its own samples, without replayed ones.
            fit: how it was trained; its seed is the task's own.
        """


class Memory(Protocol):
    """Chooses which samples of finished tasks are kept, to be shown again."""

    def choose(
        self,
        method: ContinualMethod,
        task: Task,
        data: Dataset,
        held: np.ndarray,
        sizes: Sequence[int],
        fit: Fit,
    ) -> np.ndarray:
        """What is held from now on. Called in process 0, in eval mode under no_grad, after ``end_task``.

        Args:
            method: as trained, on its device.
            task: that has ended.
            data: its own samples.
            held: (n, 2) int64 of (task, row), both from 0: what was held during the task, in the order of the last choice.
            sizes: samples of the tasks seen so far, this one included.
            fit: how it was trained; ``fit.seed`` is the task's own.

        Returns:
            (m, 2) int64 of (task, row).
        """
        ...

    def describe(self) -> Mapping[str, Any]:
        """What identifies the choice; compared on resume."""
        ...
