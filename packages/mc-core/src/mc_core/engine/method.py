"""What the engine trains: :class:`Method`, and the two small records that go in and out of a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mc_core.export import save_model
from mc_core.momentum import MomentumEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch.optim import Optimizer

Batch = dict[str, Any]


@dataclass(frozen=True)
class StepOutput:
    """What one micro-batch gives back.

    Attributes:
        loss: scalar, the mean over the micro-batch; the engine divides by the number of micro-batches.
        metrics: scalars to log (tensors are read only when a line is written, so they cost no synchronisation).
        features: optional (B, dim) embeddings for the health monitor, by name; ``"query"`` and ``"key"`` of the same rows
            give alignment, the first one gives spread, effective rank and uniformity. Detached by the engine.
    """

    loss: Tensor
    metrics: dict[str, Tensor | float] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Progress:
    """Where the run stands. ``step`` counts finished optimizer steps, so it is 0 during the first.

    Attributes:
        step: optimizer steps finished.
        total_steps: of the whole run.
        steps_per_epoch: optimizer steps in one pass over the data.
        batch_size: samples per optimizer step (all processes and micro-batches).
        seed: of this process, for what must be drawn alike twice (see :mod:`mc_core.accumulation`).
        run_seed: of the run, the same on every process: with ``batch["epoch"]`` and ``batch["index"]`` it makes
            :class:`~mc_core.random.BatchRandom`, whose draws do not depend on how samples are divided.
    """

    step: int = 0
    total_steps: int = 1
    steps_per_epoch: int = 1
    batch_size: int = 1
    seed: int = 0
    run_seed: int = 0

    @property
    def epoch(self) -> int:
        """Passes over the data finished."""
        return self.step // self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """Share of the run done, in [0, 1]."""
        return min(self.step / self.total_steps, 1.0)

    @property
    def samples_seen(self) -> int:
        """Samples that entered finished steps."""
        return self.step * self.batch_size


class Method(nn.Module):
    """A training method. Subclasses implement :meth:`training_step` and :meth:`encode`; the rest has working defaults.

    The engine runs, for each optimizer step::

        prepared = method.prepare_step(micro_batches, progress)      # under no_grad
        for batch in micro_batches:
            method.training_step(batch, progress, prepared).loss / n → backward
        method.before_optimizer_step(progress)                       # gradients are complete
        optimizer.step()
        method.after_step(progress)                                  # moving averages and queues move here, once

    Each batch carries ``index`` (B,) and ``micro``, its place among the micro-batches of the step. ``config`` holds the
    method's pydantic model; it is written into the run's recipe and compared on resume.

    With ``streams_micro_batches`` the memory of the device does not grow with their number: ``prepare_step`` gets a sequence
    that moves and finishes a micro-batch each time it is asked for one, and each ``training_step`` gets it finished anew. Then a
    batch also carries ``phase``, which is ``"prepare"`` or ``"train"``, and ``needs``, from :meth:`needs`, by which a data set may
    leave out what that phase does not read.
    """

    config: Any = None  # a pydantic model, where there is one
    streams_micro_batches: bool = False

    def forward(self, phase: str, *args: Any) -> Any:
        """Dispatch for wrappers (DDP, FSDP2), whose hooks fire on ``forward`` only. ``phase`` is a method's name."""
        return getattr(self, phase)(*args)

    def needs(self, phase: str) -> tuple[str, ...] | None:
        """Names of the views that a phase reads, for methods that stream their micro-batches. Default: not said."""
        return None

    def prepare_step(self, micro_batches: Sequence[Batch], progress: Progress) -> Any:
        """See all micro-batches of one optimizer step before the first backward, under ``no_grad``. Default: nothing.

        Returns whatever the method wants handed to each :meth:`training_step` as ``prepared``.
        """
        return None

    def training_step(self, batch: Batch, progress: Progress, prepared: Any = None) -> StepOutput:
        """The loss of one micro-batch. Must not change state that a repeated step would change again."""
        raise NotImplementedError(f"{type(self).__name__} does not implement training_step")

    def before_optimizer_step(self, progress: Progress) -> None:
        """Called once per optimizer step, under ``no_grad``, when its gradients are complete and exchanged between processes.

        Set a parameter's gradient to None here to leave it, its decay and its momentum out of the step: to freeze it in a
        way that DDP does not notice. In fp16 gradients are still scaled.
        """

    def after_step(self, progress: Progress) -> None:
        """Called once per optimizer step, after it, under ``no_grad``: move momentum encoders and queues here."""

    def start_optimizer(self, optimizer: Optimizer) -> None:
        """Called once with the new optimizer, before the first step of a run that does not resume. Default: nothing.

        A method that goes on from a smaller or an earlier model puts that one's moments here.
        """

    def encode(self, batch: Batch) -> Tensor:
        """(B, dim) frozen features of un-augmented samples, for evaluation and export. Called in eval mode under no_grad."""
        raise NotImplementedError(f"{type(self).__name__} does not implement encode")

    def export_module(self) -> nn.Module | None:
        """The module worth keeping after training (saved as the run's ``model/``), or None."""
        return None

    def save(self, folder: Path, card: Mapping[str, Any]) -> None:
        """Save what is worth keeping as a folder. Default: :meth:`export_module`, by :func:`mc_core.export.save_model`.

        Args:
            folder: to make or to renew, in one move.
            card: what to say of the run in the model card.
        """
        module = self.export_module()
        if module is not None:
            save_model(module, folder, card=card)

    def check(self, micro_batch_size: int) -> None:
        """Refuse what cannot be trained, before anything is written. Default: all is well.

        Args:
            micro_batch_size: samples of one process and micro-batch.

        Raises:
            ConfigError: in one line, with what would be right.
        """

    def advice(self, batch_size: int, data_size: int) -> list[str]:
        """Warnings about this configuration that the engine logs before the first step. Default: none."""
        return []

    def parameter_groups(self, weight_decay: float, *, decay_1d: bool = True) -> list[dict[str, Any]]:
        """Trainable parameters for the optimizer; never those of a momentum encoder.

        Args:
            weight_decay: for the decayed group.
            decay_1d: whether biases and normalisation weights (fewer than two dimensions) decay too.

        Returns:
            One or two groups, each ``{"params": …, "weight_decay": …}``.
        """
        frozen = {
            id(p) for module in self.modules() if isinstance(module, MomentumEncoder) for p in module.parameters()
        }
        trainable = [p for p in self.parameters() if p.requires_grad and id(p) not in frozen]
        if decay_1d:
            return [{"params": trainable, "weight_decay": weight_decay}]
        groups = [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]


@torch.no_grad()
def mean_metrics(outputs: Sequence[StepOutput]) -> dict[str, Tensor | float]:
    """Average the metrics of the micro-batches of one step, without reading any tensor."""
    names = dict.fromkeys(name for output in outputs for name in output.metrics)
    result: dict[str, Tensor | float] = {}
    for name in names:
        values = [output.metrics[name] for output in outputs if name in output.metrics]
        if all(isinstance(value, (int, float)) for value in values):
            result[name] = float(sum(values)) / len(values)
        else:
            result[name] = torch.stack(
                [torch.as_tensor(value, dtype=torch.float32).detach() for value in values]
            ).mean()
    return result
