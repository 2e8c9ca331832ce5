"""Tasks in a row: each a run of the engine, resumed at any moment to the same bits, and a list that may only grow."""

import json
import math
import os
import random
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mc_core.continual import ContinualMethod, Task, TaskData, fit_tasks, task_folder
from mc_core.continual.sequence import list_changes, task_fit
from mc_core.data import TensorData
from mc_core.engine import Fit, StepOutput, fit
from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.files import load_state, read_json, read_jsonl

SCRIPT = Path(__file__).with_name("_tasks_in_a_row.py")
toy = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
FIT = toy.FIT


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sequence to the end, with the moments in their order."""
    told = []
    return SimpleNamespace(result=toy.run(tmp_path_factory.mktemp("whole"), told.append), told=told)


class TestSequence:
    def test_what_is_called_when(self, whole):
        each = [
            [f"start {n}", *(f"step {n}.{step}" for step in range(1, 6)), f"end {n}", f"after {n}"] for n in (1, 2, 3)
        ]
        assert whole.told == [moment for task in each for moment in task]

    def test_what_is_left(self, whole):
        run = whole.result.run_dir
        assert {p.name for p in run.iterdir()} == {".lock", "model", "recipe.yaml", "tasks", "tasks.json"}
        assert [p.name for p in sorted((run / "tasks").iterdir())] == ["1-food", "2-auto", "3-beauty"]
        for number, name in enumerate(toy.NAMES):
            place = task_folder(run, Task(number, name))
            assert load_state(place / "model" / "weights.safetensors")["card"]["steps"] == 5
            assert [line["step"] for line in read_jsonl(place / "metrics.jsonl")] == [1, 2, 3, 4, 5]
            assert not (place / "checkpoints").exists()
            assert set(load_state(place / "end.safetensors")) == {"method", "held", "seconds"}
        written = read_json(run / "tasks.json")
        assert [one["name"] for one in written["tasks"]] == list(toy.NAMES)
        assert [one["data"]["samples"] for one in written["tasks"]] == [20, 21, 22]
        assert not list(run.rglob("*.part"))

    def test_results_are_kept_and_models_saved(self, whole):
        result = whole.result
        assert [one["task"] for one in result.results] == [1, 2, 3]
        assert result.results[0]["list"] == [1, None]  # JSON knows no NaN
        assert result.seconds > 0
        model = load_state(result.run_dir / "model" / "weights.safetensors")
        assert torch.equal(model["weight"], result.method.net.weight.data)
        assert model["card"] == {"method": "Toy", "task": "beauty", "tasks": 3}
        assert result.results[-1]["loss"] == pytest.approx(float(result.method.net.weight.square().sum().detach()))

    def test_the_schedule_starts_anew_in_each_task(self, whole):
        rates = [
            [line["lr"] for line in read_jsonl(task_folder(whole.result.run_dir, Task(i, name)) / "metrics.jsonl")]
            for i, name in enumerate(toy.NAMES)
        ]
        assert rates[0][0] == pytest.approx(0.05)
        assert rates[0] == rates[1] == rates[2]
        assert rates[0][-1] < 0.01

    def test_it_is_runs_in_a_row_with_the_state_handed_on(self, whole, tmp_path):
        """The same by hand: a new optimizer for each task, everything of the method survives."""
        method, keeps, held = toy.Toy(), toy.Keeps(), np.zeros((0, 2), dtype=np.int64)
        for index, one in enumerate(toy.tasks()):
            task, settings = Task(index, one.name), task_fit(FIT, Task(index, one.name))
            with torch.no_grad():
                method.start_task(task)
            data = one.replaying(held) if len(held) else one.data
            fit(method, data, fit=settings, run_dir=tmp_path / one.name)
            # draws of end_task and of the memory are the task's own: taken from what the sequence saved
            saved = load_state(task_folder(whole.result.run_dir, task) / "end.safetensors")
            assert_same({"weight": method.net.weight.data}, {"weight": saved["method"]["net.weight"]})
            assert_same(method.queue.state_dict(), {n[6:]: v for n, v in saved["method"].items() if n[:6] == "queue."})
            method.importance.copy_(saved["method"]["importance"])
            held = saved["held"].numpy()
        assert keeps.told == []

    def test_one_task_is_a_plain_run(self, tmp_path):
        sequence = fit_tasks(toy.Toy(), toy.tasks()[:1], fit=FIT, run_dir=tmp_path / "sequence").method
        plain = fit(toy.Toy(), toy.samples(0), fit=FIT, run_dir=tmp_path / "plain").method
        assert torch.equal(sequence.net.weight, plain.net.weight)
        assert sequence.importance.any()
        assert not plain.importance.any()

    def test_each_task_draws_its_own(self):
        seeds = [task_fit(FIT, Task(index, "")).seed for index in range(4)]
        assert seeds[0] == FIT.seed
        assert len(set(seeds)) == 4
        assert seeds == [task_fit(FIT, Task(index, "another")).seed for index in range(4)]
        assert Fit.model_validate(json.loads(json.dumps({**toy.SETTINGS, "seed": seeds[3]}))).seed == seeds[3]

    def test_the_memory_is_told_what_there_is_and_what_it_chose_is_shown_again(self, tmp_path):
        keeps = toy.Keeps()
        shown = []
        listed = [
            TaskData(one.name, one.data, lambda held, one=one: (shown.append(held.copy()), one.replaying(held))[1])
            for one in toy.tasks()
        ]
        result = fit_tasks(toy.Toy(), listed, fit=FIT, run_dir=tmp_path, memory=keeps)
        assert [(number, size, len(held), sizes) for number, size, held, sizes, _ in keeps.told] == [
            (1, 20, 0, [20]),
            (2, 21, 2, [20, 21]),
            (3, 22, 4, [20, 21, 22]),
        ]
        assert [len(held) for held in shown] == [2, 4]
        assert result.held[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
        assert np.array_equal(shown[1], result.held[:4])
        samples = [
            read_jsonl(task_folder(tmp_path, Task(i, n)) / "metrics.jsonl")[-1]["epoch"]
            for i, n in enumerate(toy.NAMES)
        ]
        assert samples == [5 / (20 // 6), 5 / (23 // 6), 5 / (26 // 6)]  # with those of earlier tasks

    def test_global_generators_are_left_alone(self, tmp_path):
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        toy.Toy()
        torch.manual_seed(5)
        expected = torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
        method = toy.Toy()
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        fit_tasks(method, toy.tasks(), fit=FIT, run_dir=tmp_path, memory=toy.Keeps())
        assert (torch.rand(1), random.random(), np.random.rand()) == expected  # noqa: NPY002


class TestResume:
    @pytest.mark.slow
    @pytest.mark.skipif(os.name != "posix", reason="kill -9 is a matter of POSIX systems")
    def test_killed_at_any_moment_it_goes_on_to_the_same_bits(self, tmp_path, whole):
        """Kill -9, seven times in one run: in steps, between the last step and the end of a task, while it is measured."""
        done = subprocess.run(
            [sys.executable, "-W", "error", str(SCRIPT), "killed", str(tmp_path)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        broken, smooth = (torch.load(tmp_path / f"{name}.pt") for name in ("broken", "smooth"))
        assert broken["held"] == smooth["held"] == whole.result.held.tolist()
        assert_same(smooth["state"], broken["state"])
        assert_same(smooth["state"], whole.result.method.state_dict())
        for name in ("broken", "smooth"):
            for index, task in enumerate(toy.NAMES):
                place = task_folder(tmp_path / name, Task(index, task))
                assert read_json(place / "result.json") == whole.result.results[index]
                assert [line["step"] for line in read_jsonl(place / "metrics.jsonl")] == [1, 2, 3, 4, 5]
        assert not list(tmp_path.rglob("*.part"))

    def test_a_finished_sequence_is_only_loaded(self, whole):
        told = []
        again = toy.run(whole.result.run_dir, told.append)
        assert told == ["start 3"]  # what there is of the last task is made before its state is loaded
        assert_same(whole.result.method.state_dict(), again.method.state_dict())
        assert again.results == whole.result.results
        assert np.array_equal(again.held, whole.result.held)
        assert again.seconds == whole.result.seconds

    def test_tasks_added_at_the_end_go_on(self, tmp_path, whole):
        first = fit_tasks(toy.Toy(), toy.tasks()[:2], fit=FIT, run_dir=tmp_path, memory=toy.Keeps())
        assert len(first.results) == 2
        result = fit_tasks(toy.Toy(), toy.tasks(), fit=FIT, run_dir=tmp_path, memory=toy.Keeps())
        assert_same(whole.result.method.state_dict(), result.method.state_dict())
        assert [one["name"] for one in read_json(tmp_path / "tasks.json")["tasks"]] == list(toy.NAMES)

    def test_a_damaged_or_foreign_state_is_named(self, tmp_path):
        toy.run(tmp_path)
        end = task_folder(tmp_path, Task(2, "beauty")) / "end.safetensors"

        class Wider(toy.Toy):
            def __init__(self):
                super().__init__()
                self.more = torch.nn.Linear(1, 1)

        Wider.__name__ = "Toy"
        with pytest.raises(
            CheckpointError, match=r"3-beauty/end.safetensors does not fit this method \(.*more.weight.*\)"
        ):
            fit_tasks(Wider(), toy.tasks(), fit=FIT, run_dir=tmp_path, memory=toy.Keeps())
        end.write_bytes(end.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match=r"3-beauty/end.safetensors: cannot be read"):
            toy.run(tmp_path)

    @pytest.mark.parametrize("resume", ["never", "must"])
    def test_asked_to_begin_or_to_go_on(self, tmp_path, whole, resume):
        if resume == "never":
            with pytest.raises(ConfigError, match="already holds a sequence: choose another run folder"):
                toy.run(whole.result.run_dir, resume=resume)
        else:
            with pytest.raises(CheckpointError, match=r"nothing to resume: no tasks.json"):
                toy.run(tmp_path, resume=resume)
            assert list(tmp_path.glob("tasks*")) == []


class TestChangedList:
    def message(self, run, listed, **more):
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
        with pytest.raises(CheckpointError, match="holds another sequence") as caught:
            fit_tasks(toy.Toy(), listed, **{"fit": FIT, "run_dir": run, "memory": toy.Keeps(), **more})
        after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
        assert before == after
        (line,) = str(caught.value).splitlines()
        return line

    def test_what_differs_is_listed(self, whole):
        run = whole.result.run_dir
        names = self.message(run, toy.tasks(("food", "toys", "beauty")))
        assert "(task 2: 'auto' → 'toys')" in names
        order = self.message(run, toy.tasks(("auto", "food", "beauty")))
        assert "(task 1: 'food' → 'auto'; task 2: 'auto' → 'food')" in order
        fewer = self.message(run, toy.tasks()[:1])
        assert "(task 2: 'auto' → none; task 3: 'beauty' → none)" in fewer
        other = toy.tasks()
        other[1] = TaskData("auto", toy.samples(1, 40), other[1].replaying)
        assert "task 2 'auto': data.count: 21 → 40; task 2 'auto': data.samples: 21 → 40" in self.message(run, other)
        assert "tasks may be added at the end" in fewer

    def test_settings_that_change_what_is_computed(self, whole):
        run = whole.result.run_dir
        assert "(fit.lr: 0.05 → 0.1)" in self.message(run, toy.tasks(), fit=FIT.model_copy(update={"lr": 0.1}))
        assert "memory.kind: 'two of each' → 'absent'" in self.message(run, toy.tasks(), memory=None)

    def test_settings_that_do_not(self, whole):
        result = fit_tasks(
            toy.Toy(),
            toy.tasks(),
            fit=FIT.model_copy(update={"log_every": 3, "workers": 1, "keep_checkpoints": 1}),
            run_dir=whole.result.run_dir,
            memory=toy.Keeps(),
        )
        assert_same(whole.result.method.state_dict(), result.method.state_dict())

    def test_a_long_list_is_cut(self):
        saved, wanted = ({"settings": {}, "tasks": [{"name": f"{x}{i}", "data": {}} for i in range(12)]} for x in "ab")
        assert len(list_changes(saved, wanted)) == 12
        assert list_changes(saved, saved) == []
        assert list_changes({**saved, "tasks": saved["tasks"][:3]}, saved) == []


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda listed: [], ConfigError, "no tasks: give at least one"),
            (
                lambda listed: [*listed, TaskData("food", toy.samples(1))],
                ConfigError,
                "tasks 1 and 4 are both named 'food': rename one",
            ),
            (
                lambda listed: [listed[0], TaskData("empty", TensorData(x=torch.zeros(0, 4)))],
                DataError,
                "task 2 'empty' has no samples: give it some, or leave it out",
            ),
            (
                lambda listed: [listed[0], TaskData("few", toy.samples(1, 4))],
                ConfigError,
                r"task 2 'few' has 4 samples, fewer than a batch: set fit.batch_size \(6\) to 4 or less",
            ),
            (
                lambda listed: [TaskData("food", toy.samples(0))],
                ConfigError,
                "task 1 'food' cannot show samples of earlier tasks again: give replaying",
            ),
        ],
        ids=["none", "twice", "empty", "few", "no-replaying"],
    )
    def test_before_anything_is_written(self, tmp_path, change, error, message):
        with pytest.raises(error, match=message):
            fit_tasks(toy.Toy(), change(toy.tasks()), fit=FIT, run_dir=tmp_path / "run", memory=toy.Keeps())
        assert not (tmp_path / "run").exists()

    def test_sharded(self, tmp_path):
        with pytest.raises(ConfigError, match="fit.strategy fsdp: a sequence of tasks trains with ddp or auto"):
            fit_tasks(toy.Toy(), toy.tasks(), fit=Fit(steps=1, strategy="fsdp"), run_dir=tmp_path / "run")

    def test_a_loss_that_is_not_finite_leaves_the_tasks_before(self, tmp_path):
        listed = toy.tasks()
        listed[1].data.tensors["y"].fill_(math.inf)
        with pytest.raises(Exception, match="the loss is inf"):
            fit_tasks(toy.Toy(), listed, fit=FIT, run_dir=tmp_path)
        assert (task_folder(tmp_path, Task(0, "food")) / "result.json").is_file()
        assert not (task_folder(tmp_path, Task(1, "auto")) / "end.safetensors").exists()


@pytest.mark.slow
def test_two_processes_agree_with_each_other_and_with_one(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(SCRIPT), str(number), str(tmp_path)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    told = [process.communicate(timeout=400)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(told)
    one, other = (torch.load(tmp_path / f"{number}.pt", weights_only=False) for number in range(2))
    assert np.array_equal(one["held"], other["held"])
    assert len(one["held"]) == 6
    assert one["results"] == other["results"]
    assert [moment for moment in one["told"] if moment.startswith("after")] == ["after 1", "after 2", "after 3"]
    assert not [moment for moment in other["told"] if moment.startswith("after")]
    importance = {"importance"}  # what each process drew by itself: a method's own business to exchange
    for name in one["state"].keys() - importance:
        torch.testing.assert_close(one["state"][name], other["state"][name], rtol=0, atol=1e-6, msg=name)
    # the first task, before importances differ, is that of one process
    single = fit_tasks(toy.Toy(dropout=0.0), toy.tasks()[:1], fit=FIT, run_dir=tmp_path / "single", memory=toy.Keeps())
    end = load_state(task_folder(tmp_path / "run", Task(0, "food")) / "end.safetensors")
    torch.testing.assert_close(end["method"]["net.weight"], single.method.net.weight.data, rtol=0, atol=1e-6)


def test_a_method_that_keeps_nothing_needs_no_hooks(tmp_path):
    class Plain(ContinualMethod):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(4, 3)

        def training_step(self, batch, progress, prepared=None):
            return StepOutput((self.net(batch["x"]) - batch["y"]).square().mean())

    result = fit_tasks(Plain(), toy.tasks(), fit=FIT, run_dir=tmp_path)
    assert result.results == [{}, {}, {}]
    assert not len(result.held)
    assert not (tmp_path / "model").exists()
