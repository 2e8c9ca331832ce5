"""The training loop. It knows no method: it feeds micro-batches, moves the optimizer, saves, watches and logs."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import yaml

from mc_core import __version__
from mc_core.data import Dataset, StepPlan, default_workers, finish_on_device, step_loader, to_device
from mc_core.engine.checkpoint import CheckpointFolder, differences
from mc_core.engine.config import Fit
from mc_core.engine.distribution import Distribution, make_accelerator
from mc_core.engine.health import HealthMonitor, LossWatch
from mc_core.engine.method import Batch, Method, Progress, StepOutput, mean_metrics
from mc_core.engine.run import BadSamples, Bar, StopRequest, TensorBoardLog, Throughput, locked
from mc_core.engine.streaming import StreamedBatches
from mc_core.errors import CheckpointError, ConfigError, DataError, InterruptedRunError, McError
from mc_core.files import JsonlWriter, remove_partial, write_atomic
from mc_core.optim import build_optimizer, clip_each_gradient
from mc_core.random import derive_seed
from mc_core.schedules import learning_rate_factor, weight_decay_factor

_log = logging.getLogger("mc_core")
_QUIET_SECONDS = 30.0  # between the checkpoints that nobody asked for explicitly


class Evaluator(Protocol):
    """Something that measures a method now and then. Called in eval mode under no_grad, in process 0."""

    name: str

    def __call__(self, method: Method) -> Mapping[str, float]:
        """Figures by name; logged as ``eval/<name>``."""
        ...


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves.

    Attributes:
        run_dir: the run folder.
        method: the trained method (unsharded, on its device).
        step: optimizer steps done.
        metrics: the last value of everything logged.
        seconds: training time, over all resumes.
        resumed_from: the step this process went on from, or None for a fresh start.
        bad_samples: unreadable samples met.
    """

    run_dir: Path
    method: Method
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    resumed_from: int | None = None
    bad_samples: int = 0


def fit(
    method: Method,
    train_data: Dataset,
    *,
    fit: Fit,
    run_dir: Path | str,
    evaluators: Sequence[Evaluator] = (),
    resume: Literal["auto", "never", "must"] = "auto",
    recipe: Mapping[str, Any] | None = None,
) -> RunResult:
    """Train ``method`` on ``train_data`` and leave a run folder.

    The same call made again goes on where the run was, to the same bits; a finished run is only loaded. Runs on one process
    or, under torchrun or SLURM, on many; ``fit.batch_size`` counts all of them.

    Args:
        method: what to train. Its initial weights are the caller's: seed before building it.
        train_data: see :class:`mc_core.data.Dataset`.
        fit: how to train.
        run_dir: the run folder: ``recipe.yaml``, ``metrics.jsonl``, ``checkpoints/``, ``model/``.
        evaluators: run every ``fit.evaluate_every`` epochs and at the end.
        resume: ``auto`` goes on if there is a checkpoint, ``never`` refuses a folder that has one, ``must`` needs one.
        recipe: written to ``recipe.yaml`` instead of the method's, fit's and data's own description.

    Raises:
        ConfigError: settings that cannot work, or a run folder that cannot be written.
        CheckpointError: the folder's checkpoint belongs to another method or recipe (the differing fields are listed).
        DataError: more unreadable samples than ``fit.max_bad``.
        NonFiniteError, CollapseError: training went wrong; earlier checkpoints are kept.
        InterruptedRunError: SIGINT or SIGTERM; the state was saved first.
    """
    if fit.epochs is None and fit.steps is None:
        fit = fit.model_copy(update={"epochs": 100})
    accelerator = make_accelerator(fit)
    plan = StepPlan(
        len(train_data),
        fit.batch_size,
        fit.seed,
        accelerator.process_index,
        accelerator.num_processes,
        fit.accumulation,
    )
    method.check(fit.batch_size // (accelerator.num_processes * fit.accumulation))
    main = accelerator.is_main_process
    run_dir = Path(run_dir)
    with locked(run_dir) if main else contextlib.nullcontext(), _preserved_global_state(fit):
        loop = _Loop(method, train_data, fit, run_dir, plan, Distribution(method, fit, accelerator), evaluators)
        with StopRequest().listening() as stop:
            return loop.run(resume, recipe, stop)


class _Loop:
    def __init__(
        self,
        method: Method,
        data: Dataset,
        fit: Fit,
        run_dir: Path,
        plan: StepPlan,
        distribution: Distribution,
        evaluators: Sequence[Evaluator],
    ) -> None:
        self.method, self.data, self.fit, self.run_dir, self.plan = method, data, fit, run_dir, plan
        self.distribution, self.evaluators = distribution, evaluators
        self.main = distribution.rank == 0
        total = fit.steps if fit.steps is not None else (fit.epochs or 1) * plan.steps_per_epoch
        seed = derive_seed(fit.seed, plan.rank)
        self.progress = Progress(0, total, plan.steps_per_epoch, fit.batch_size, seed, run_seed=fit.seed)
        groups = method.parameter_groups(fit.weight_decay, decay_1d=fit.decay_1d)
        if not any(group["params"] for group in groups):
            raise ConfigError(f"{type(method).__name__} has no trainable parameter")
        self.optimizer = build_optimizer(groups, fit)
        self.decays = [group["weight_decay"] for group in self.optimizer.param_groups]  # before any schedule
        self.scaler = torch.amp.GradScaler(distribution.device.type, enabled=fit.precision == "fp16")
        self.checkpoints = CheckpointFolder(run_dir / "checkpoints", fit.keep_checkpoints)
        self.health = HealthMonitor(method)
        self.watch = LossWatch(distribution.device)
        self.bad = BadSamples(len(data), fit.max_bad)
        self.metrics: dict[str, float] = {}
        self.seconds_before = 0.0
        self.needs_all = type(method).prepare_step is not Method.prepare_step

    def fingerprint(self) -> dict[str, Any]:
        config = self.method.config
        describe = getattr(self.data, "describe", None)
        return {
            "method": {"name": self.distribution.method_name, **(config.model_dump(mode="json") if config else {})},
            "fit": self.fit.model_dump(mode="json"),
            "data": {**(describe() if describe else {}), "samples": len(self.data)},
        }

    def save(self, started: float) -> Path | None:
        self.watch.read()
        self.watch.check_parameters(self.method, self.progress.step)
        method_state, optimizer_state = self.distribution.state(self.optimizer)
        if not self.main:
            return None
        state = {
            "fingerprint": self.fingerprint(),
            "method": method_state,
            "optimizer": optimizer_state,
            "scaler": self.scaler.state_dict(),
            "health": self.health.state_dict(),
            "bad": {str(index): list(record) for index, record in self.bad.found.items()},
            "seconds": self.seconds_before + time.perf_counter() - started,
            "metrics": self.metrics,
        }
        self.bad.write(self.run_dir / "bad_samples.json")
        return self.checkpoints.save(self.progress.step, state)

    def load(self, resume: str) -> int | None:
        """Take up the newest checkpoint; the step it was written at, or None for a fresh start."""
        if resume == "never" and self.checkpoints.paths():
            raise ConfigError(f"{self.run_dir} already holds a run: choose another run folder, or resume it")
        state = self.checkpoints.load_newest()
        if state is None:
            if resume == "must":
                raise CheckpointError(f"nothing to resume: no checkpoint in {self.checkpoints.folder}")
            return None
        differing = differences(state["fingerprint"], self.fingerprint())
        if differing:
            raise CheckpointError(
                f"{self.run_dir} holds a run with other settings ({'; '.join(differing)}): "
                "use the same settings to go on with it, or another run folder"
            )
        self.distribution.load(self.optimizer, state["method"], state["optimizer"])
        self.scaler.load_state_dict(state["scaler"]) if self.scaler.is_enabled() else None
        self.health.load_state_dict(state["health"])
        self.bad.found = {int(index): (name, reason) for index, (name, reason) in state["bad"].items()}
        self.seconds_before, self.metrics = float(state["seconds"]), dict(state["metrics"])
        self.progress.step = int(state["step"])
        return self.progress.step

    def run(self, resume: str, recipe: Mapping[str, Any] | None, stop: StopRequest) -> RunResult:
        resumed_from = self.load(resume)
        started = time.perf_counter()
        if self.main:
            remove_partial(self.run_dir)
            remove_partial(self.checkpoints.folder)
            text = yaml.safe_dump(_plain(recipe or {"mc_core": __version__, **self.fingerprint()}), sort_keys=False)
            write_atomic(self.run_dir / "recipe.yaml", text)
        if resumed_from is None:
            self.method.start_optimizer(self.optimizer)
            for line in self.method.advice(self.fit.batch_size, len(self.data)):
                _log.warning("%s", line)
        elif self.progress.step < self.progress.total_steps:
            _log.info("resuming %s at step %d of %d", self.run_dir, resumed_from, self.progress.total_steps)
        if self.progress.step < self.progress.total_steps:
            self.train(started, stop)
            self.finish()
        elif not (self.run_dir / "model").exists():
            self.finish()  # killed between the last checkpoint and here
        seconds = self.seconds_before + time.perf_counter() - started
        return RunResult(
            self.run_dir,
            self.distribution.for_evaluation(),
            self.progress.step,
            dict(self.metrics),
            seconds if resumed_from != self.progress.total_steps else self.seconds_before,
            resumed_from,
            len(self.bad.found),
        )

    def train(self, started: float, stop: StopRequest) -> None:
        fit, progress, distribution = self.fit, self.progress, self.distribution
        first = progress.step
        workers = default_workers(self.data, distribution.world_size) if fit.workers is None else fit.workers
        loader = step_loader(
            self.data,
            self.plan,
            start=first,
            stop=progress.total_steps,
            workers=workers,
            pin_memory=distribution.device.type == "cuda",
        )
        batches = iter(loader)
        saved_at, last_save = first, time.perf_counter()
        writer = JsonlWriter(self.run_dir / "metrics.jsonl") if self.main else None
        if writer:
            writer.keep_while(lambda line: line.get("step", 0) <= first)
        board = TensorBoardLog(self.run_dir / "tensorboard", wanted=self.main, purge_step=first)
        rate, loss_sum, loss_steps = Throughput(fit.batch_size), torch.zeros((), device=distribution.device), 0
        self.method.train()
        try:
            with Bar(progress.total_steps, first, show=self.main) as bar:
                while progress.step < progress.total_steps:
                    loss, metrics, features = self.step(batches)
                    loss_sum, loss_steps = loss_sum + loss, loss_steps + 1
                    rate.step()
                    bar.advance()
                    done, ends_epoch = progress.step, progress.step % progress.steps_per_epoch == 0
                    last = done == progress.total_steps

                    line: dict[str, float] = {}
                    if done % fit.health_every == 0 or last:
                        line |= self.check_health(features)
                    if done % fit.log_every == 0 or last or line:
                        self.watch.read()
                        line |= self.log_line(loss_sum / loss_steps, metrics, rate.read())
                        loss_sum, loss_steps = torch.zeros_like(loss_sum), 0
                        bar.note(
                            f"epoch {line['epoch']:.1f}  loss {line['loss']:.3f}  {line['samples_per_second']:.0f}/s"
                        )
                    if last or (ends_epoch and fit.evaluate_every and progress.epoch % fit.evaluate_every == 0):
                        line |= self.evaluate()
                        rate.read()
                    if line:
                        self.metrics |= line
                        if writer:
                            writer.append({"step": done, **line})
                            board.write(done, line)

                    now = time.perf_counter()
                    together = distribution.world_size == 1 or done % fit.log_every == 0 or last
                    asked = together and distribution.any_process(stop.asked)
                    due = done % fit.checkpoint_every == 0 if fit.checkpoint_every else False
                    if together:
                        idle = now - last_save
                        by_clock = idle > 60 * fit.checkpoint_minutes or (
                            fit.checkpoint_every is None and ends_epoch and idle > _QUIET_SECONDS
                        )
                        due = due or distribution.any_process(by_clock)
                    if due or asked or last:
                        self.check_bad()
                        self.save(started)
                        saved_at, last_save = done, time.perf_counter()
                    if asked and not last:
                        raise InterruptedRunError(
                            f"stopped at step {done} of {progress.total_steps}, saved in {self.run_dir}; "
                            "the same command goes on from there"
                        )
        except McError:
            _log.info("the last checkpoint in %s is of step %d", self.run_dir, saved_at)
            raise
        finally:
            board.close()
            if writer:
                writer.close()

    def step(self, batches: Iterator[Batch]) -> tuple[torch.Tensor, dict[str, Any], Mapping[str, torch.Tensor]]:
        """One optimizer step: (mean loss, metrics, features of the last micro-batch)."""
        fit, progress, distribution = self.fit, self.progress, self.distribution
        _seed_everything(derive_seed(fit.seed, progress.step, distribution.rank, 0x57E9))
        rate = fit.lr_at_batch() * learning_rate_factor(
            fit, progress.step, progress.steps_per_epoch, progress.total_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        if fit.weight_decay_end is not None:
            factor = weight_decay_factor(fit, progress.step, progress.total_steps)
            for group, decay in zip(self.optimizer.param_groups, self.decays, strict=True):
                group["weight_decay"] = decay * factor
        count = fit.accumulation
        micro = self.all_micro_batches(batches, count) if self.needs_all else None
        prepared = None
        if micro is not None:
            with torch.no_grad():
                prepared = distribution.call("prepare_step", micro, progress)
        if isinstance(micro, StreamedBatches):
            micro = micro.in_phase("train")
        outputs: list[StepOutput] = []
        total = torch.zeros((), device=distribution.device)
        for i in range(count):
            batch = micro[i] if micro is not None else self.next_batch(batches, i)
            with distribution.last_backward(i == count - 1):
                output: StepOutput = distribution.call("training_step", batch, progress, prepared)
                self.watch.see(output.loss.detach(), progress.step)
                self.scaler.scale(output.loss / count).backward()
            total += output.loss.detach() / count
            outputs.append(StepOutput(total, output.metrics, {n: f.detach() for n, f in output.features.items()}))
        with torch.no_grad():
            self.method.before_optimizer_step(progress)
        if fit.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            (clip_each_gradient if fit.clip_each else torch.nn.utils.clip_grad_norm_)(parameters, fit.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.method.after_step(progress)
        progress.step += 1
        return total, mean_metrics(outputs), outputs[-1].features

    def all_micro_batches(self, batches: Iterator[Batch], count: int) -> Sequence[Batch]:
        """Those of one step: on the device, or one at a time for a method that streams them."""
        if not self.method.streams_micro_batches:
            return [self.next_batch(batches, i) for i in range(count)]
        raw = [self.next_raw(batches, i) for i in range(count)]
        return StreamedBatches(raw, self.finished, self.method.needs, "prepare")

    def next_batch(self, batches: Iterator[Batch], micro: int) -> Batch:
        return self.finished(self.next_raw(batches, micro))

    def finished(self, batch: Batch) -> Batch:
        return finish_on_device(self.data, to_device(batch, self.distribution.device), self.fit.seed)

    def next_raw(self, batches: Iterator[Batch], micro: int) -> Batch:
        batch = next(batches)
        if "error" in batch:
            raise batch["error"]
        bad = batch.pop("bad", None)
        if bad:
            self.bad.add(bad)
            problem = self.bad.problem() if self.distribution.world_size == 1 else None
            if problem is not None:
                raise problem
        batch["micro"] = micro
        return batch

    def check_bad(self) -> None:
        """Several processes look at the count together, so that none is left waiting for one that stopped."""
        problem = self.bad.problem()
        if self.distribution.any_process(problem is not None):
            raise problem or DataError("another process met more unreadable samples than fit.max_bad allows")

    def check_health(self, features: Mapping[str, torch.Tensor]) -> dict[str, float]:
        found = self.health.check(features)
        message = self.health.verdict(found, self.progress)
        if message:
            _log.warning("%s", message)
        if self.fit.stop_on_collapse:
            self.health.raise_if_collapsed(message)
        return {f"health/{name}": value for name, value in found.items()}

    def log_line(self, loss: torch.Tensor, metrics: Mapping[str, Any], rate: float) -> dict[str, float]:
        mean = self.distribution.accelerator.reduce(loss, "mean") if self.distribution.world_size > 1 else loss
        return {
            "epoch": self.progress.step / self.progress.steps_per_epoch,
            "loss": float(mean),
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "samples_per_second": rate,
            **{name: float(value) for name, value in metrics.items()},
        }

    def evaluate(self) -> dict[str, float]:
        """Run the evaluators in process 0, on an unsharded method in eval mode."""
        method = self.distribution.for_evaluation()
        figures: dict[str, float] = {}
        if self.main and self.evaluators:
            was = {module: module.training for module in method.modules()}
            method.eval()
            with torch.no_grad():
                for evaluator in self.evaluators:
                    figures |= {f"eval/{name}": float(value) for name, value in evaluator(method).items()}
            for module, training in was.items():
                module.training = training
        self.distribution.accelerator.wait_for_everyone()
        return figures

    def finish(self) -> None:
        """Save what is worth keeping."""
        method = self.distribution.for_evaluation()
        if self.main:
            card = {
                "method": type(method).__name__,
                "steps": self.progress.step,
                "samples": self.progress.samples_seen,
            }
            method.save(self.run_dir / "model", card)
        self.distribution.accelerator.wait_for_everyone()


def _seed_everything(seed: int) -> None:
    """All global generators from the step's number: nothing of them has to be saved to resume exactly."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002 - for methods that use libraries drawing from the global generator


@contextlib.contextmanager
def _preserved_global_state(fit: Fit) -> Iterator[None]:
    """Give the caller's global generators and cuDNN switches back afterwards."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = fit.deterministic, not fit.deterministic
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags


def _plain(value: Any) -> Any:
    """Tuples as lists and paths as text, for YAML."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
