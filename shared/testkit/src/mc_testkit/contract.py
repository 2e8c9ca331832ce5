"""The contract every training method must keep, as a pytest class.

A package's tests subclass it and list their methods::

    class TestContract(MethodContract):
        cases = [MethodCase("moco", build=tiny_moco, data=tiny_images, fit={"lr": 0.05}), …]

``build`` and ``data`` are module-level functions (they run in other processes too). Models should be tiny; those of cases with
``same_on_two_processes`` must not use BatchNorm, whose statistics belong to a process.
"""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from mc_core.data import Dataset, StepPlan, finish_on_device, step_loader
from mc_core.engine import Fit, Method, Progress, RunResult, fit
from mc_core.errors import CheckpointError, CollapseError, NonFiniteError
from mc_core.momentum import MomentumEncoder
from mc_core.queue import FeatureQueue


@dataclass(frozen=True)
class MethodCase:
    """A method at a tiny size.

    Attributes:
        name: shown in test ids.
        build: makes the method; called after seeding torch.
        data: makes the training data.
        fit: fields of :class:`~mc_core.engine.Fit` to change from the suite's own (8 samples a step, lr 0.05).
        learning: the same, for the test that the loss falls.
        falls_by: how far the mean loss must fall there, from the first to the last quarter of the run.
        same_on_two_processes: whether two processes must give what one does: not where a layer looks at the process's share
            of the batch (BatchNorm) or draws at random (dropout).
        accumulation_is_exact: the same of micro-batches and the undivided batch.
        keys_by_sample: whether each sample gives a queue equally many keys.
    """

    name: str
    build: Callable[[], Method]
    data: Callable[[], Dataset]
    fit: Mapping[str, Any] = field(default_factory=dict)
    learning: Mapping[str, Any] = field(default_factory=dict)
    falls_by: float = 0.1
    same_on_two_processes: bool = True
    accumulation_is_exact: bool = True
    keys_by_sample: bool = True


def make_fit(case: MethodCase, **changes: Any) -> Fit:
    """The suite's settings, then the case's, then ``changes``."""
    base = {"steps": 6, "batch_size": 8, "lr": 0.05, "workers": 0, "log_every": 1, "health_every": 3, "device": "cpu"}
    return Fit.model_validate({**base, **case.fit, **changes})


def make_method(case: MethodCase, seed: int = 0) -> Method:
    """The case's method from a fixed seed."""
    torch.manual_seed(seed)
    return case.build()


def first_batch(case: MethodCase, settings: Fit) -> dict[str, Any]:
    """The first batch the engine would feed."""
    data = case.data()
    plan = StepPlan(len(data), settings.batch_size, settings.seed)
    batch = next(iter(step_loader(data, plan, start=0, stop=1, workers=0)))
    batch["micro"] = 0
    return finish_on_device(data, batch, settings.seed)


def run_case(case: MethodCase, folder: Path, **changes: Any) -> RunResult:
    """A run from fixed initial weights."""
    return fit(make_method(case), case.data(), fit=make_fit(case, **changes), run_dir=folder)


def one_step(case: MethodCase, method: Method, batch: dict[str, Any], progress: Progress, lr: float = 0.05) -> Any:
    """One optimizer step by hand; returns the StepOutput."""
    optimizer = torch.optim.SGD(method.parameter_groups(0.0), lr=lr)
    optimizer.zero_grad()
    with torch.no_grad():
        prepared = method.prepare_step([batch], progress)
    output = method.training_step(batch, progress, prepared)
    output.loss.backward()
    optimizer.step()
    with torch.no_grad():
        method.after_step(progress)
    progress.step += 1
    return output


def assert_same_state(left: Method, right: Method, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Equal state dicts: to the bit, or within ``rtol``/``atol``."""
    a, b = left.state_dict(), right.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        if rtol or atol:
            torch.testing.assert_close(
                a[name], b[name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )
        else:
            assert torch.equal(a[name], b[name]), f"{name} differs by {(a[name] - b[name]).abs().max()}"


def _queues(method: nn.Module) -> list[FeatureQueue]:
    return [module for module in method.modules() if isinstance(module, FeatureQueue)]


def _copies(method: nn.Module) -> list[MomentumEncoder]:
    return [module for module in method.modules() if isinstance(module, MomentumEncoder)]


class _StopAfter(Exception):
    """Stands for a kill: raised in the middle of a run."""


def _two_process_worker(rank: int, world: int, folder: str, case: MethodCase, changes: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    try:
        run_case(case, Path(folder) / "run", **changes)
    finally:
        gc.collect()  # a wrapped model would keep the group, and its threads, alive
        torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that is going (pytorch/pytorch#179291)


def run_on_two_processes(case: MethodCase, folder: Path, **changes: Any) -> Method:
    """The same run on two processes (gloo); the final state, read back in this one."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_two_process_worker, args=(r, 2, str(folder), case, changes)) for r in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=300)
    assert [worker.exitcode for worker in workers] == [0, 0]
    return run_case(case, folder / "run", **{**changes, "strategy": "auto"}).method  # finished: only loads


class MethodContract:
    """Subclass this in a package's tests and set ``cases``."""

    cases: ClassVar[list[MethodCase]] = []

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One run of each test for each case."""
        if "case" in metafunc.fixturenames:
            needs = {
                "test_two_processes_equal_one": lambda case: case.same_on_two_processes,
                "test_accumulation_gives_the_same_weights": lambda case: case.accumulation_is_exact,
            }.get(metafunc.function.__name__, lambda case: True)
            cases = [case for case in self.cases if needs(case)]
            if not cases:
                why = "every case here says that it does not hold for its method (see the case)"
                metafunc.parametrize("case", [pytest.param(None, marks=pytest.mark.skip(reason=why))], ids=["none"])
                return
            metafunc.parametrize("case", cases, ids=[case.name for case in cases])

    def test_no_gradient_reaches_copies_keys_or_queue(self, case: MethodCase) -> None:
        """Only what the optimizer holds is trained."""
        settings, method = make_fit(case), make_method(case)
        batch, progress = first_batch(case, settings), Progress(0, 6, 1, settings.batch_size)
        one_step(case, method, batch, progress)  # fills queues, so that every term of the loss is alive
        method.zero_grad(set_to_none=True)
        with torch.no_grad():
            prepared = method.prepare_step([batch], progress)
        output = method.training_step(batch, progress, prepared)
        output.loss.backward()
        for copy_ in _copies(method):
            assert all(p.grad is None and not p.requires_grad for p in copy_.parameters())
        assert not any(queue.features.requires_grad for queue in _queues(method))
        if _copies(method) and "key" in output.features:
            assert not output.features["key"].requires_grad
        trained = {id(p) for group in method.parameter_groups(0.1) for p in group["params"]}
        inside_copies = {id(p) for copy_ in _copies(method) for p in copy_.parameters()}
        assert not trained & inside_copies
        for name, parameter in method.named_parameters():
            if id(parameter) in trained:
                assert parameter.grad is not None, f"{name} is trained but gets no gradient"
                assert torch.isfinite(parameter.grad).all(), name

    def test_keys_enter_the_queue_after_the_loss(self, case: MethodCase) -> None:
        """A training step leaves the queue alone; the step's keys enter it once, afterwards."""
        settings, method = make_fit(case), make_method(case)
        batch, progress = first_batch(case, settings), Progress(0, 6, 1, settings.batch_size)
        queues = _queues(method)
        for _ in range(2):
            before = [queue.in_order()[0] for queue in queues]
            with torch.no_grad():
                prepared = method.prepare_step([batch], progress)
            output = method.training_step(batch, progress, prepared)
            for queue, rows in zip(queues, before, strict=True):
                assert torch.equal(queue.in_order()[0], rows)
            method.after_step(progress)
            progress.step += 1
            for queue, rows in zip(queues, before, strict=True):
                grown = len(queue) - len(rows)
                assert grown >= 1
                assert grown % settings.batch_size == 0 or not case.keys_by_sample
                assert torch.equal(queue.in_order()[0][: len(rows)], rows), "older keys must stay in place"
            if queues and "key" in output.features:
                newest = queues[0].in_order()[0][-settings.batch_size :]
                torch.testing.assert_close(newest, output.features["key"], rtol=0, atol=0)

    def test_one_moving_average_per_optimizer_step(
        self, case: MethodCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also under accumulation; and it is θk ← m·θk + (1−m)·θq with the weights after the step."""
        calls: list[int] = []
        update = MomentumEncoder.update

        def counted(self: MomentumEncoder, momentum: float | None = None) -> None:
            before = [p.clone() for p in self.module.parameters()]
            update(self, momentum)
            m = self.momentum if momentum is None else momentum
            for old, new, online in zip(before, self.module.parameters(), self.online.parameters(), strict=True):
                torch.testing.assert_close(new, m * old + (1 - m) * online.detach(), rtol=1e-5, atol=1e-6)
            calls.append(1)

        monkeypatch.setattr(MomentumEncoder, "update", counted)
        result = run_case(case, tmp_path / "run", accumulation=2)
        assert len(calls) == (make_fit(case).steps or 0) * len(_copies(result.method))

    def test_state_round_trip(self, case: MethodCase) -> None:
        """A state dict loaded into a fresh method gives the same next steps."""
        settings, method = make_fit(case), make_method(case)
        batch, progress = first_batch(case, settings), Progress(0, 6, 1, settings.batch_size)
        one_step(case, method, batch, progress)
        other = make_method(case, seed=1)
        other.load_state_dict(copy.deepcopy(method.state_dict()))
        other_progress = copy.copy(progress)
        for _ in range(2):
            torch.manual_seed(5)
            left = one_step(case, method, batch, progress)
            torch.manual_seed(5)
            right = one_step(case, other, batch, other_progress)
            assert torch.equal(left.loss, right.loss)
        assert_same_state(method, other)

    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_resume_is_exact_to_the_bit(self, case: MethodCase, tmp_path: Path, accumulation: int) -> None:
        """A run cut off between checkpoints and started again ends in the weights of one that was not."""
        changes = {"checkpoint_every": 2, "accumulation": accumulation}
        whole = run_case(case, tmp_path / "whole", **changes)
        assert whole.resumed_from is None

        method = make_method(case)
        after_step = method.after_step

        def cut(progress: Progress) -> None:
            after_step(progress)
            if progress.step == 4:
                raise _StopAfter

        method.after_step = cut  # type: ignore[method-assign]
        with pytest.raises(_StopAfter):
            fit(method, case.data(), fit=make_fit(case, **changes), run_dir=tmp_path / "cut")
        resumed = fit(make_method(case, seed=9), case.data(), fit=make_fit(case, **changes), run_dir=tmp_path / "cut")
        assert resumed.resumed_from == 4
        assert_same_state(whole.method, resumed.method)

    def test_another_recipe_is_refused(self, case: MethodCase, tmp_path: Path) -> None:
        """A checkpoint is not taken up under other settings; the message lists them."""
        run_case(case, tmp_path / "run", steps=2)
        with pytest.raises(CheckpointError, match=r"fit\.lr: .* → 0\.123"):
            run_case(case, tmp_path / "run", steps=2, lr=0.123)

    def test_worker_count_changes_nothing(self, case: MethodCase, tmp_path: Path) -> None:
        """0 and 2 loader processes end in the same bits."""
        alone = run_case(case, tmp_path / "alone", workers=0)
        assert_same_state(alone.method, run_case(case, tmp_path / "two", workers=2).method)

    def test_accumulation_gives_the_same_weights(self, case: MethodCase, tmp_path: Path) -> None:
        """Two micro-batches have the gradient of the undivided batch."""
        whole = run_case(case, tmp_path / "whole")
        parts = run_case(case, tmp_path / "parts", accumulation=2)
        assert_same_state(whole.method, parts.method, rtol=2e-4, atol=2e-5)

    def test_two_processes_equal_one(self, case: MethodCase, tmp_path: Path) -> None:
        """The same global batches on two processes end in the same weights, copies and queue."""
        single = run_case(case, tmp_path / "single")
        double = run_on_two_processes(case, tmp_path / "double")
        assert_same_state(single.method, double, rtol=2e-4, atol=2e-5)

    def test_loss_falls_on_a_tiny_set(self, case: MethodCase, tmp_path: Path) -> None:
        """Training does what it is for."""
        from mc_core.files import read_jsonl

        changes = {"steps": 60, "log_every": 1, "health_every": 1000, **case.learning}
        run_case(case, tmp_path / "run", **changes)
        losses = [line["loss"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
        quarter = len(losses) // 4
        first, last = sum(losses[quarter : 2 * quarter]) / quarter, sum(losses[-quarter:]) / quarter
        assert last < first - case.falls_by, (
            f"mean loss {first:.3f} in the second quarter of the run, {last:.3f} in the last"
        )

    def test_collapse_is_detected(self, case: MethodCase, tmp_path: Path) -> None:
        """Constant features stop the run with a message that says so."""
        method = make_method(case)
        with torch.no_grad():
            for parameter in (p for group in method.parameter_groups(0.0) for p in group["params"]):
                parameter.fill_(0.0 if parameter.ndim > 1 else 1.0)
        for copy_ in _copies(method):
            copy_.synchronise()
        with pytest.raises(CollapseError, match=r"collapsed.*since step"):
            fit(method, case.data(), fit=make_fit(case, steps=40, lr=1e-12, health_every=2), run_dir=tmp_path / "run")

    def test_nan_is_stopped_before_it_is_saved(self, case: MethodCase, tmp_path: Path) -> None:
        """A NaN in the weights ends the run; the checkpoint before it stays and is sound."""
        method = make_method(case)
        after_step = method.after_step

        def poison(progress: Progress) -> None:
            after_step(progress)
            if progress.step == 3:
                with torch.no_grad():
                    method.parameter_groups(0.0)[0]["params"][0].fill_(float("nan"))

        method.after_step = poison  # type: ignore[method-assign]
        with pytest.raises(NonFiniteError, match="not finite|nan"):
            fit(method, case.data(), fit=make_fit(case, checkpoint_every=1), run_dir=tmp_path / "run")
        resumed = run_case(case, tmp_path / "run", checkpoint_every=1)
        assert resumed.resumed_from == 3
        assert all(torch.isfinite(tensor).all() for tensor in resumed.method.state_dict().values())

    def test_encode_gives_one_finite_row_per_sample(self, case: MethodCase) -> None:
        """Frozen features, the same in any batch."""
        method = make_method(case).eval()
        batch = self.evaluation_batch(case)
        with torch.no_grad():
            features = method.encode(batch)
            half = method.encode(
                {name: value[:2] if isinstance(value, Tensor) else value for name, value in batch.items()}
            )
        assert features.ndim == 2
        assert torch.isfinite(features).all()
        torch.testing.assert_close(features[:2], half, rtol=1e-4, atol=1e-5)

    def evaluation_batch(self, case: MethodCase) -> dict[str, Any]:
        """What the method's ``encode`` takes; packages override it. Default: the first training batch."""
        return first_batch(case, make_fit(case))
