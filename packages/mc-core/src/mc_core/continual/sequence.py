"""Tasks in a row: each a run of the engine in a folder of its own, which hands its state to the next.

::

    run_dir/recipe.yaml  tasks.json  model/             settings; the list of tasks; the model after the last finished task
    run_dir/tasks/1-food/…                              what mc_core.fit leaves, and besides
        end.safetensors                                 the method's whole state and what the memory holds, after the task
        result.json                                     what was measured then; its presence says that the task is done

Checkpoints of a task are removed when it is done: its ``end.safetensors`` says all that what follows needs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml

from mc_core.continual.contract import ContinualMethod, Memory, Task
from mc_core.data import Dataset
from mc_core.distributed import all_reduce_sum, first_process_first, rank
from mc_core.engine.checkpoint import differences
from mc_core.engine.config import Fit
from mc_core.engine.distribution import join_processes
from mc_core.engine.loop import RunResult, fit
from mc_core.engine.run import locked
from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.files import load_state, read_json, remove_partial, save_state, write_atomic, write_json
from mc_core.modules import evaluating
from mc_core.random import derive_seed
from mc_core.runs import folder_name

_log = logging.getLogger("mc_core")
_TASKS, _END, _RESULT = "tasks.json", "end.safetensors", "result.json"
_START, _FINISH, _CHOICE, _OF_TASK = 0xC0, 0xC1, 0xC2, 0xC3  # separate the uses of the seed
_NAMED = 8  # differences told one by one


@dataclass(frozen=True)
class TaskData:
    """A task and its samples.

    Attributes:
        name: of the task, its own in the sequence.
        data: its samples.
        replaying: (n, 2) int64 of (task, row) → the same samples with those of earlier tasks after them; needed where there is a
            memory.
    """

    name: str
    data: Dataset
    replaying: Callable[[np.ndarray], Dataset] | None = None


@dataclass(frozen=True)
class SequenceResult:
    """What a finished sequence leaves.

    Attributes:
        run_dir: the run folder.
        method: as after the last task.
        results: for each task what ``after_task`` gave.
        seconds: training time of all tasks, over all resumes.
        held: (n, 2) int64 of (task, row): what the memory holds.
    """

    run_dir: Path
    method: ContinualMethod
    results: list[dict[str, Any]]
    seconds: float
    held: np.ndarray = field(default_factory=lambda: _nothing())


AfterTask = Callable[[Task, ContinualMethod], Mapping[str, Any]]


def fit_tasks(
    method: ContinualMethod,
    tasks: Sequence[TaskData],
    *,
    fit: Fit,
    run_dir: Path | str,
    after_task: AfterTask | None = None,
    memory: Memory | None = None,
    resume: Literal["auto", "never", "must"] = "auto",
    recipe: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> SequenceResult:
    """Train ``method`` on one task after the other and leave a run folder.

    The same call made again goes on where the sequence was, at any task and any step, to the same bits; with more tasks at the
    end of the list it goes on with those.

    Args:
        method: what to train. Its initial weights are the caller's: seed before building it.
        tasks: in order.
        fit: how to train on each of them. Task 1 has its seed, later ones seeds made from it.
        run_dir: the run folder; see the module's text.
        after_task: measures the method after each task, in process 0, in eval mode under no_grad. What it gives is kept as JSON.
        memory: keeps samples of finished tasks, which are joined to the data of those that follow.
        resume: ``auto`` goes on where there is something, ``never`` refuses a folder that holds a sequence, ``must`` needs one.
        recipe: written to ``recipe.yaml`` instead of the method's and fit's own description.
        identity: what else a folder's sequence must agree in to go on, such as the model that it starts from; for JSON.

    Raises:
        ConfigError: settings that cannot work, among them two tasks of one name and a task smaller than a batch.
        DataError: a task without samples.
        CheckpointError: the folder holds a sequence of other tasks or settings; what differs is listed.
        NonFiniteError, CollapseError, InterruptedRunError: as :func:`mc_core.fit`.
    """
    join_processes(fit)
    run_dir = Path(run_dir)
    _check(tasks, fit, memory)
    with locked(run_dir) if rank() == 0 else contextlib.nullcontext():
        return _Sequence(method, tasks, fit, run_dir, after_task, memory, recipe, identity or {}).run(resume)


def task_folder(run_dir: Path | str, task: Task) -> Path:
    """Where a task's run is.

    >>> task_folder("runs/a", Task(0, "Food & drink")).as_posix()
    'runs/a/tasks/1-Food-drink'
    """
    return Path(run_dir) / "tasks" / f"{task.number}-{folder_name(task.name)}"


def task_fit(fit: Fit, task: Task) -> Fit:
    """``fit`` with the task's own seed, which is that of ``fit`` for the first.

    >>> task_fit(Fit(seed=3), Task(0, "a")).seed, task_fit(Fit(seed=3), Task(1, "b")).seed != 3
    (3, True)
    """
    if task.first:
        return fit
    return fit.model_copy(update={"seed": derive_seed(fit.seed, task.index, _OF_TASK) >> 32})


class _Sequence:
    def __init__(
        self,
        method: ContinualMethod,
        tasks: Sequence[TaskData],
        fit: Fit,
        run_dir: Path,
        after_task: AfterTask | None,
        memory: Memory | None,
        recipe: Mapping[str, Any] | None,
        identity: Mapping[str, Any],
    ) -> None:
        self.method, self.tasks, self.fit, self.run_dir = method, tasks, fit, run_dir
        self.after_task, self.memory, self.recipe, self.identity = after_task, memory, recipe, identity
        self.held, self.seconds = _nothing(), 0.0

    def run(self, resume: str) -> SequenceResult:
        self._take_list(resume)
        todo = [Task(index, one.name) for index, one in enumerate(self.tasks)]
        done = 0
        while done < len(todo) and (self._place(todo[done]) / _RESULT).is_file():
            done += 1
        if done:
            self._load_end(todo[done - 1])
        if 0 < done < len(todo):
            _log.info("%s: %d of %d tasks are done", self.run_dir, done, len(todo))
        for task in todo[done:]:
            self._do(task)
        results = [read_json(self._place(task) / _RESULT) for task in todo]
        return SequenceResult(self.run_dir, self.method, results, self.seconds, self.held)

    def _do(self, task: Task) -> None:
        place = self._place(task)
        if (place / _END).is_file():
            self._load_end(task)  # killed while it was measured
        else:
            self._train(task)
        with first_process_first():
            if rank() == 0:
                self._measure(task)

    def _train(self, task: Task) -> None:
        own, its_fit = self.tasks[task.index], task_fit(self.fit, task)
        _log.info("task %d of %d: %s", task.number, len(self.tasks), task.name)
        with _seeded(its_fit, _START), torch.no_grad():
            self.method.start_task(task)
        data = own.replaying(self.held) if own.replaying is not None and len(self.held) else own.data
        result = self._fit(task, data, its_fit)
        self.method.train()
        with _seeded(its_fit, _FINISH):
            self.method.end_task(task, own.data, its_fit)
        self.method.zero_grad(set_to_none=True)
        self.held = self._choose(task, own.data, its_fit)
        self.seconds += result.seconds
        if rank() == 0:
            state = {"method": self.method.state_dict(), "held": torch.from_numpy(self.held), "seconds": self.seconds}
            save_state(state, self._place(task) / _END)

    def _fit(self, task: Task, data: Dataset, its_fit: Fit) -> RunResult:
        return fit(self.method, data, fit=its_fit, run_dir=self._place(task), resume="auto", recipe=self.recipe)

    def _choose(self, task: Task, data: Dataset, its_fit: Fit) -> np.ndarray:
        """What the memory holds from now on: process 0 chooses, and the others hear of it."""
        if self.memory is None:
            return self.held
        rows = _nothing()
        if rank() == 0:
            sizes = [len(one.data) for one in self.tasks[: task.number]]
            with _seeded(its_fit, _CHOICE), evaluating(self.method), torch.no_grad():
                found = self.memory.choose(self.method, task, data, self.held, sizes, its_fit)
            rows = np.asarray(found, dtype=np.int64).reshape(-1, 2)
        device = next(self.method.parameters()).device
        count = int(all_reduce_sum(torch.tensor(len(rows), device=device)))
        sent = torch.from_numpy(rows if rank() == 0 else np.zeros((count, 2), dtype=np.int64)).to(device)
        return all_reduce_sum(sent).cpu().numpy()

    def _measure(self, task: Task) -> None:
        place = self._place(task)
        card = {"method": type(self.method).__name__, "task": task.name, "tasks": task.number}
        self.method.save(self.run_dir / "model", card)
        found: Mapping[str, Any] = {}
        if self.after_task is not None:
            with evaluating(self.method), torch.no_grad():
                found = self.after_task(task, self.method)
        write_json(place / _RESULT, found)
        shutil.rmtree(place / "checkpoints", ignore_errors=True)

    def _load_end(self, task: Task) -> None:
        path = self._place(task) / _END
        state = load_state(path)
        with _seeded(task_fit(self.fit, task), _START), torch.no_grad():
            self.method.start_task(task)
        try:
            self.method.load_state_dict(state["method"])
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise CheckpointError(f"{path} does not fit this method ({reason}); use another run folder") from error
        self.held, self.seconds = state["held"].numpy(), float(state["seconds"])

    def _place(self, task: Task) -> Path:
        return task_folder(self.run_dir, task)

    def _take_list(self, resume: str) -> None:
        """Compare the list of tasks and the settings with those that the folder was begun with, and write them."""
        wanted = self._fingerprint()
        path = self.run_dir / _TASKS
        known = path.is_file()
        if known and resume == "never":
            raise ConfigError(f"{self.run_dir} already holds a sequence: choose another run folder, or resume it")
        if not known and resume == "must":
            raise CheckpointError(f"nothing to resume: no {_TASKS} in {self.run_dir}")
        if known and (changed := list_changes(read_json(path), wanted)):
            more = f"; and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
            raise CheckpointError(
                f"{self.run_dir} holds another sequence ({'; '.join(changed[:_NAMED])}{more}): give the same tasks and "
                "settings to go on (tasks may be added at the end), or another run folder"
            )
        with first_process_first():
            pass  # all have looked before one writes
        if rank() == 0:
            remove_partial(self.run_dir)
            write_json(path, wanted)
            text = yaml.safe_dump(dict(self.recipe or wanted["settings"]), sort_keys=False, allow_unicode=True)
            write_atomic(self.run_dir / "recipe.yaml", text)

    def _fingerprint(self) -> dict[str, Any]:
        config = self.method.config
        method = {"name": type(self.method).__name__, **(config.model_dump(mode="json") if config else {})}
        memory = {} if self.memory is None else {"memory": dict(self.memory.describe())}
        tasks = []
        for one in self.tasks:
            describe = getattr(one.data, "describe", dict)
            tasks.append({"name": one.name, "data": {**describe(), "samples": len(one.data)}})
        fit = self.fit.model_dump(mode="json")
        found = {"settings": {"method": method, "fit": fit, **memory, **self.identity}, "tasks": tasks}
        return json.loads(json.dumps(found, default=str))  # as it will be read


def list_changes(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two lists of tasks with their settings, a phrase each; tasks added at the end do not count.

    Args:
        saved: with ``settings`` and ``tasks``, each of these with ``name`` and ``data``.
        wanted: the same.

    >>> old = {"settings": {}, "tasks": [{"name": "food", "data": {"samples": 9}}, {"name": "auto", "data": {}}]}
    >>> new = {"settings": {}, "tasks": [{"name": "food", "data": {"samples": 8}}, {"name": "beauty", "data": {}}]}
    >>> list_changes(old, new)
    ["task 1 'food': data.samples: 9 → 8", "task 2: 'auto' → 'beauty'"]
    """
    found = []
    for index, old in enumerate(saved["tasks"]):
        number = index + 1
        if index >= len(wanted["tasks"]):
            found.append(f"task {number}: {old['name']!r} → none")
            continue
        new = wanted["tasks"][index]
        if old["name"] != new["name"]:
            found.append(f"task {number}: {old['name']!r} → {new['name']!r}")
        else:
            told = differences({"data": old["data"]}, {"data": new["data"]})
            found += [f"task {number} {old['name']!r}: {line}" for line in told]
    return found + differences(saved["settings"], wanted["settings"])


def _check(tasks: Sequence[TaskData], fit: Fit, memory: Memory | None) -> None:
    if not tasks:
        raise ConfigError("no tasks: give at least one")
    if fit.strategy == "fsdp":
        raise ConfigError("fit.strategy fsdp: a sequence of tasks trains with ddp or auto")
    seen: dict[str, int] = {}
    for number, one in enumerate(tasks, start=1):
        if one.name in seen:
            raise ConfigError(f"tasks {seen[one.name]} and {number} are both named '{one.name}': rename one")
        seen[one.name] = number
        if not len(one.data):
            raise DataError(f"task {number} '{one.name}' has no samples: give it some, or leave it out")
        if len(one.data) < fit.batch_size:
            raise ConfigError(
                f"task {number} '{one.name}' has {len(one.data)} samples, fewer than a batch: set fit.batch_size "
                f"({fit.batch_size}) to {len(one.data)} or less, or give it more"
            )
        if memory is not None and one.replaying is None:
            raise ConfigError(f"task {number} '{one.name}' cannot show samples of earlier tasks again: give replaying")


def _nothing() -> np.ndarray:
    return np.zeros((0, 2), dtype=np.int64)


@contextlib.contextmanager
def _seeded(fit: Fit, use: int) -> Iterator[None]:
    """Global generators seeded from the task's seed while the block runs, and as they were afterwards."""
    seed = derive_seed(fit.seed, rank(), use)
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % (1 << 32))  # noqa: NPY002 - for libraries that draw from the global generator
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
