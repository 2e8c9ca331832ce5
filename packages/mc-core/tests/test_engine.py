"""The training loop: what a run leaves, when it saves, how it stops, and what it refuses."""

import itertools
import json
import math
import os
import signal
import stat
from typing import ClassVar

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mc_core.data import BadSampleError, TensorData
from mc_core.engine import Method, StepOutput, fit
from mc_core.engine.checkpoint import CheckpointFolder, differences
from mc_core.engine.health import HealthMonitor
from mc_core.engine.method import Progress
from mc_core.engine.run import Bar, _duration, locked
from mc_core.errors import CheckpointError, ConfigError, DataError, InterruptedRunError
from mc_core.export import load_model
from mc_core.files import load_state, read_jsonl
from mc_core.random import derive_seed
from mc_testkit.contract import MethodCase, assert_same_state, make_fit, make_method, run_case, run_on_two_processes
from mc_testkit.toys import ToyMoCo, toy_dcl, toy_moco, vector_pairs

CASE = MethodCase("moco", toy_moco, vector_pairs)
DCL = MethodCase("dcl", toy_dcl, vector_pairs)


class Recorder(ToyMoCo):
    """Notes what the engine calls, and with which learning rate and progress."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def prepare_step(self, micro_batches, progress):
        assert not torch.is_grad_enabled()
        self.seen.append(("prepare", len(micro_batches)))
        return "prepared"

    def training_step(self, batch, progress, prepared=None):
        self.seen.append(("step", progress.step, batch["micro"], prepared, self.training))
        return super().training_step(batch, progress)

    def before_optimizer_step(self, progress):
        assert not torch.is_grad_enabled()
        assert all(p.grad is not None for p in self.online.parameters())
        self.seen.append(("before", progress.step))

    def after_step(self, progress):
        assert not torch.is_grad_enabled()
        self.seen.append(("after", progress.step))
        super().after_step(progress)


class Score:
    name = "score"

    def __init__(self):
        self.calls = []

    def __call__(self, method):
        assert not method.training
        assert not torch.is_grad_enabled()
        self.calls.append(float(method.encode({"view_1": torch.ones(1, 6)}).sum()))
        return {"score": self.calls[-1]}


def test_the_order_of_a_step(tmp_path):
    method = Recorder()
    fit(method, vector_pairs(), fit=make_fit(CASE, steps=2, accumulation=2), run_dir=tmp_path)
    assert method.seen == [
        event
        for step in range(2)
        for event in [
            ("prepare", 2),
            ("step", step, 0, "prepared", True),
            ("step", step, 1, "prepared", True),
            ("before", step),
            ("after", step),
        ]
    ]


class Frozen(ToyMoCo):
    """Leaves its first layer out of the first three steps."""

    def before_optimizer_step(self, progress):
        if progress.step < 3:
            self.online[0].weight.grad = None


def frozen() -> Method:
    method = Frozen()
    method.online[2].p = method.momentum_encoder.module[2].p = 0.0
    return method


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adam", "adamw"])
@pytest.mark.parametrize("clip", [{}, {"clip_norm": 0.1}])
def test_a_dropped_gradient_freezes_exactly(optimizer, clip, tmp_path):
    case = MethodCase("frozen", frozen, vector_pairs, fit={"optimizer": optimizer, "lr": 0.01, **clip})
    start = make_method(case).online[0].weight.clone()
    for steps in (3, 4):
        result = run_case(case, tmp_path / str(steps), steps=steps, schedule="constant", weight_decay=0.1)
        assert torch.equal(result.method.online[0].weight, start) == (steps == 3)


def test_what_a_run_leaves(tmp_path):
    result = run_case(CASE, tmp_path / "run", steps=7, log_every=2, health_every=4)
    run = tmp_path / "run"
    lines = read_jsonl(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 7]
    assert {"epoch", "loss", "lr", "samples_per_second", "keys"} <= lines[0].keys()
    health = {
        "health/spread",
        "health/effective_rank",
        "health/uniformity",
        "health/alignment",
        "health/drift",
        "health/queue_age",
    }
    assert health <= lines[1].keys()
    assert health.isdisjoint(lines[0])
    assert lines[1]["epoch"] == 0.5
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["fit"]["batch_size"] == 8
    assert recipe["method"]["name"] == "ToyMoCo"
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-000000007.safetensors"]
    assert (result.step, result.resumed_from, result.bad_samples) == (7, None, 0)
    assert result.metrics["loss"] == lines[-1]["loss"]


def test_the_logged_loss_is_the_mean_since_the_last_line(tmp_path):
    run_case(CASE, tmp_path / "each", steps=6, log_every=1, health_every=100)
    run_case(CASE, tmp_path / "third", steps=6, log_every=3, health_every=100)
    each = [line["loss"] for line in read_jsonl(tmp_path / "each" / "metrics.jsonl")]
    third = [line["loss"] for line in read_jsonl(tmp_path / "third" / "metrics.jsonl")]
    assert third == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3], rel=1e-5)


def test_evaluators_run_in_eval_mode_and_change_nothing(tmp_path):
    score = Score()
    settings = make_fit(CASE, steps=None, epochs=4, evaluate_every=2)
    evaluated = fit(make_method(CASE), vector_pairs(), fit=settings, run_dir=tmp_path / "a", evaluators=[score])
    assert len(score.calls) == 2
    lines = [line for line in read_jsonl(tmp_path / "a" / "metrics.jsonl") if "eval/score" in line]
    assert [line["step"] for line in lines] == [16, 32]
    assert evaluated.metrics["eval/score"] == score.calls[-1]
    plain = fit(make_method(CASE), vector_pairs(), fit=settings, run_dir=tmp_path / "b")
    assert_same_state(evaluated.method, plain.method)


def test_a_finished_run_is_only_loaded(tmp_path):
    first = run_case(CASE, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").iterdir()}
    again = run_case(CASE, tmp_path / "run")
    assert again.resumed_from == again.step == 6
    assert_same_state(first.method, again.method)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert again.metrics == first.metrics


def test_old_checkpoints_go_and_metrics_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    run = tmp_path / "run"
    run_case(CASE, run, steps=6, checkpoint_every=1, keep_checkpoints=3)
    folder = CheckpointFolder(run / "checkpoints")
    assert [path.stem for path in folder.paths()] == [f"step-{n:09d}" for n in (6, 5, 4)]
    folder.paths()[0].unlink()
    folder.paths()[0].unlink()
    whole = read_jsonl(run / "metrics.jsonl")
    run_case(CASE, run, steps=6, checkpoint_every=1, keep_checkpoints=3)
    again = read_jsonl(run / "metrics.jsonl")
    assert [line["step"] for line in again] == [line["step"] for line in whole]
    assert [line["loss"] for line in again] == [line["loss"] for line in whole]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    whole = run_case(CASE, tmp_path / "run", steps=6, checkpoint_every=2)
    newest = CheckpointFolder(tmp_path / "run" / "checkpoints").paths()[0]
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    again = run_case(CASE, tmp_path / "run", steps=6, checkpoint_every=2)
    assert again.resumed_from == 4
    assert_same_state(whole.method, again.method)
    for path in CheckpointFolder(tmp_path / "run" / "checkpoints").paths():
        path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="no readable checkpoint in .*; remove the folder to start anew"):
        run_case(CASE, tmp_path / "run", steps=6, checkpoint_every=2)


def test_resume_modes(tmp_path):
    settings = make_fit(CASE, steps=2)
    with pytest.raises(CheckpointError, match="nothing to resume: no checkpoint in"):
        fit(make_method(CASE), vector_pairs(), fit=settings, run_dir=tmp_path, resume="must")
    fit(make_method(CASE), vector_pairs(), fit=settings, run_dir=tmp_path, resume="never")
    with pytest.raises(ConfigError, match="already holds a run: choose another run folder"):
        fit(make_method(CASE), vector_pairs(), fit=settings, run_dir=tmp_path, resume="never")
    assert fit(make_method(CASE), vector_pairs(), fit=settings, run_dir=tmp_path, resume="must").resumed_from == 2


def test_the_differing_fields_are_listed_and_free_ones_may_differ(tmp_path):
    run_case(CASE, tmp_path / "run", steps=2)
    assert run_case(CASE, tmp_path / "run", steps=2, workers=1, log_every=7, accumulation=2).resumed_from == 2
    with pytest.raises(CheckpointError) as caught:
        run_case(CASE, tmp_path / "run", steps=4, weight_decay=0.5)
    assert "fit.steps: 2 → 4; fit.weight_decay: 0.0001 → 0.5" in str(caught.value)
    with pytest.raises(CheckpointError, match="method.name: 'ToyMoCo' → 'ToyDCL'"):
        run_case(DCL, tmp_path / "run", steps=2)
    assert differences({"data": {"location": "a", "count": 3}}, {"data": {"location": "b", "count": 4}}) == [
        "data.count: 3 → 4"
    ]


def test_other_data_is_refused(tmp_path):
    run_case(CASE, tmp_path / "run", steps=2)
    with pytest.raises(CheckpointError, match="data.samples: 64 → 32"):
        fit(make_method(CASE), vector_pairs(32), fit=make_fit(CASE, steps=2), run_dir=tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_and_the_run_goes_on(tmp_path, number):
    whole = run_case(CASE, tmp_path / "whole", steps=6)
    method = make_method(CASE)
    after = method.after_step

    def interrupt(progress):
        after(progress)
        if progress.step == 2:
            os.kill(os.getpid(), number)

    method.after_step = interrupt
    before = signal.getsignal(number)
    with pytest.raises(
        InterruptedRunError, match="stopped at step 3 of 6, saved in .*; the same command goes on from there"
    ):
        fit(method, vector_pairs(), fit=make_fit(CASE), run_dir=tmp_path / "run")
    assert signal.getsignal(number) == before
    resumed = run_case(CASE, tmp_path / "run")
    assert resumed.resumed_from == 3
    assert_same_state(whole.method, resumed.method)


def test_a_run_folder_has_one_writer(tmp_path):
    with locked(tmp_path), pytest.raises(ConfigError, match="another process is writing to"):
        run_case(CASE, tmp_path)
    run_case(CASE, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write to read-only folders")
def test_a_read_only_run_folder_is_refused(tmp_path):
    folder = tmp_path / "sealed"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(ConfigError, match="cannot write to the run folder"):
        run_case(CASE, folder / "run")


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to the run folder .*file/run"):
        run_case(CASE, tmp_path / "file" / "run")


class Bad(TensorData):
    get_batch = None

    def get(self, index, rng):
        if index in (3, 9):
            raise BadSampleError(f"{index}.png", "truncated")
        return super().get(index, rng)


def test_bad_samples_are_counted_and_too_many_stop_the_run(tmp_path):
    data = Bad(**vector_pairs().tensors)
    settings = make_fit(CASE, steps=16, max_bad=0.05)
    result = fit(make_method(CASE), data, fit=settings, run_dir=tmp_path / "a")
    assert result.bad_samples == 2
    assert json.loads((tmp_path / "a" / "bad_samples.json").read_text()) == {"3.png": "truncated", "9.png": "truncated"}
    with pytest.raises(
        DataError,
        match=r"1 of 64 samples are unreadable \(1.6%, allowed 1.0%\), the first .\.png: truncated; .*--max-bad",
    ):
        fit(make_method(CASE), data, fit=make_fit(CASE, steps=16), run_dir=tmp_path / "b")


def test_the_learning_rate_follows_the_schedule(tmp_path):
    run_case(
        CASE, tmp_path / "run", steps=None, epochs=2, warmup_epochs=0.5, schedule="cosine", lr=0.4, lr_scaling="linear"
    )
    rates = [line["lr"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    peak = 0.4 * 8 / 256
    assert rates[0] < rates[1] < rates[2] < rates[3] < rates[4] == pytest.approx(peak)
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert rates[-1] < 0.05 * peak


def test_clipping_bounds_the_step(tmp_path):
    changes = {"steps": 1, "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": 1e-3, "schedule": "constant"}
    # the first step of momentum contrast has no negatives, so the two-sided toy takes it
    start = make_method(DCL)
    done = run_case(DCL, tmp_path / "run", **changes).method
    moved = torch.cat([(a - b).flatten() for a, b in zip(start.parameters(), done.parameters(), strict=True)]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)


def test_clipping_each_gradient_bounds_each_tensors_step(tmp_path):
    changes = {"steps": 1, "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": 1e-3, "schedule": "constant"}
    start = make_method(DCL)
    done = run_case(DCL, tmp_path / "run", **changes, clip_each=True).method
    moved = [(a - b).norm().item() for a, b in zip(start.parameters(), done.parameters(), strict=True)]
    assert moved == pytest.approx([1e-3] * len(moved), rel=1e-2)


@pytest.mark.parametrize("decay_1d", [True, False])
def test_the_weight_decay_follows_its_schedule_where_there_is_one(decay_1d, tmp_path):
    decays = []

    def noted(optimizer, *_):
        decays.append([group["weight_decay"] for group in optimizer.param_groups])

    hook = register_optimizer_step_pre_hook(noted)
    settings = make_fit(CASE, steps=4, weight_decay=0.04, weight_decay_end=0.4, decay_1d=decay_1d, checkpoint_every=2)
    try:
        fit(make_method(CASE), vector_pairs(), fit=settings, run_dir=tmp_path)
    finally:
        hook.remove()
    scheduled = [0.4 - 0.36 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert [row[0] for row in decays] == pytest.approx(scheduled)
    assert all(row[1:] == ([] if decay_1d else [0.0]) for row in decays)


def test_the_runs_seed_is_not_the_processes(tmp_path):
    class Seeds(ToyMoCo):
        seen: ClassVar = set()

        def training_step(self, batch, progress, prepared=None):
            self.seen.add((progress.run_seed, progress.seed))
            return super().training_step(batch, progress)

    torch.manual_seed(0)
    fit(Seeds(), vector_pairs(), fit=make_fit(CASE, steps=2, seed=7), run_dir=tmp_path)
    assert Seeds.seen == {(7, derive_seed(7, 0))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_each": True}, "clip_each needs a clip_norm"),
        ({"weight_decay": 0.0, "weight_decay_end": 0.1}, "weight_decay_end needs a weight_decay above 0"),
    ],
)
def test_settings_that_need_another_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        make_fit(CASE, **changes)


def test_bfloat16_autocast_is_used_and_resumes(tmp_path):
    class Watched(ToyMoCo):
        dtypes: ClassVar = set()

        def training_step(self, batch, progress, prepared=None):
            self.dtypes.add(self.online(batch["view_1"]).dtype)
            return super().training_step(batch, progress)

    torch.manual_seed(0)
    fit(Watched(), vector_pairs(), fit=make_fit(CASE, steps=2, precision="bf16"), run_dir=tmp_path)
    assert Watched.dtypes == {torch.bfloat16}
    state = load_state(CheckpointFolder(tmp_path / "checkpoints").paths()[0])
    assert {tensor.dtype for tensor in state["method"].values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda"}, "fit.device is cuda, but this machine shows no CUDA device"),
        ({"device": "tpu"}, "fit.device is 'tpu': use auto, cpu or cuda"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"strategy": "fsdp"}, "fsdp needs several processes: start with torchrun"),
        ({"batch_size": 100}, r"batch_size 100 is larger than the data \(64 samples\)"),
    ],
)
def test_settings_that_cannot_work(tmp_path, changes, message):
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        changes = {"device": "tpu"}
        message = "fit.device is 'tpu'"
    with pytest.raises(ConfigError, match=message):
        run_case(CASE, tmp_path, **changes)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_method_without_parameters_is_refused(tmp_path):
    class Nothing(Method):
        def training_step(self, batch, progress, prepared=None):
            return StepOutput(torch.zeros(()))

    with pytest.raises(ConfigError, match="Nothing has no trainable parameter"):
        fit(Nothing(), vector_pairs(), fit=make_fit(CASE), run_dir=tmp_path)


def test_global_generators_are_given_back(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run_case_state = make_method(CASE)
    torch.manual_seed(3)
    fit(run_case_state, vector_pairs(), fit=make_fit(CASE, steps=2), run_dir=tmp_path)
    assert torch.equal(torch.rand(2), expected)


def test_what_is_saved_of_two_processes_loads_on_one_and_goes_on(tmp_path):
    """A run begun on two processes is finished by one, with the weights of a run that was on one all along."""
    whole = run_case(CASE, tmp_path / "whole", steps=6, checkpoint_every=3)
    run_on_two_processes(CASE, tmp_path / "two", steps=6, checkpoint_every=3)
    newest = CheckpointFolder(tmp_path / "two" / "run" / "checkpoints").paths()[0]
    assert newest.stem.endswith("006")
    newest.unlink()
    resumed = run_case(CASE, tmp_path / "two" / "run", steps=6, checkpoint_every=3)
    assert resumed.resumed_from == 3
    assert_same_state(whole.method, resumed.method, rtol=2e-4, atol=2e-5)


def test_fsdp_on_two_processes_equals_one(tmp_path):
    single = run_case(CASE, tmp_path / "single", checkpoint_every=3)
    sharded = run_on_two_processes(CASE, tmp_path / "two", strategy="fsdp", checkpoint_every=3)
    assert_same_state(single.method, sharded, rtol=2e-4, atol=2e-5)


class TestHealth:
    def test_a_fresh_network_gets_time_and_a_collapse_is_counted(self):
        method = make_method(CASE)
        monitor = HealthMonitor(method)
        flat, spread = torch.ones(8, 4), torch.eye(8)
        progress = Progress(step=5, total_steps=100)
        assert monitor.verdict(monitor.check({"query": flat}), progress) is None, "the first tenth does not count"
        progress.step = 20
        assert "collapsed" in monitor.verdict(monitor.check({"query": flat}), progress)
        assert monitor.collapsed_since == 20
        assert monitor.verdict(monitor.check({"query": spread}), progress) is None
        assert monitor.collapsed_checks == 0
        progress.step = 21
        assert monitor.verdict(monitor.check({"query": flat}), progress) is not None

    def test_counters_survive_a_resume(self):
        monitor = HealthMonitor(make_method(CASE))
        monitor.collapsed_checks, monitor.collapsed_since, monitor.healthy_once = 2, 40, True
        other = HealthMonitor(make_method(CASE))
        other.load_state_dict(monitor.state_dict())
        assert (other.collapsed_checks, other.collapsed_since, other.healthy_once) == (2, 40, True)

    def test_features_of_one_row_are_not_judged(self):
        monitor = HealthMonitor(make_method(CASE))
        assert "spread" not in monitor.check({"query": torch.ones(1, 4)})


def test_the_exported_module_is_saved_with_its_card(tmp_path):
    from mc_testkit.toys import ToyEncoder

    class WithEncoder(ToyMoCo):
        def __init__(self):
            super().__init__()
            self.kept = ToyEncoder({"width": 3})

        def export_module(self):
            return self.kept

    fit(WithEncoder(), vector_pairs(), fit=make_fit(CASE, steps=2), run_dir=tmp_path)
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, ToyEncoder)
    assert "WithEncoder" in (tmp_path / "model" / "README.md").read_text()


def test_a_method_may_save_in_a_form_of_its_own(tmp_path):
    class OwnForm(ToyMoCo):
        def save(self, folder, card):
            folder.mkdir()
            (folder / "note.txt").write_text(f"{card['method']} {card['steps']} {card['samples']}")

    fit(OwnForm(), vector_pairs(), fit=make_fit(CASE, steps=2), run_dir=tmp_path)
    assert (tmp_path / "model" / "note.txt").read_text() == "OwnForm 2 16"
    (tmp_path / "model" / "note.txt").unlink()
    (tmp_path / "model").rmdir()
    fit(OwnForm(), vector_pairs(), fit=make_fit(CASE, steps=2), run_dir=tmp_path)  # killed before it was saved
    assert (tmp_path / "model" / "note.txt").exists()


def test_a_log_gets_a_line_of_progress_now_and_then(caplog):
    now = [100.0]
    with caplog.at_level("INFO", "mc_core"), Bar(40, 10, show=True, clock=lambda: now[0]) as bar:
        for _ in range(30):
            now[0] += 10
            bar.note("loss 1.5")
            bar.advance()
    assert [record.getMessage() for record in caplog.records] == [
        f"training {10 + done}/40, loss 1.5, about {left} left"
        for done, left in zip(
            range(3, 31, 3),
            ["4:30", "4:00", "3:30", "3:00", "2:30", "2:00", "1:30", "1:00", "0:30", "0:00"],
            strict=True,
        )
    ]


def test_another_process_than_the_first_tells_no_progress(caplog):
    now = [0.0]
    with caplog.at_level("INFO", "mc_core"), Bar(2, 0, show=False, clock=lambda: now[0]) as bar:
        now[0] = 99.0
        bar.advance()
    assert not caplog.records


@pytest.mark.parametrize(("seconds", "text"), [(4.6, "0:05"), (720, "12:00"), (11_220, "3:07:00")])
def test_durations_read_as_on_a_clock(seconds, text):
    assert _duration(seconds) == text
