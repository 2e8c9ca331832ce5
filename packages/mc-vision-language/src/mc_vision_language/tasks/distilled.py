"""What all tasks with a teacher share: the slow copy of the whole network, its share of the labels, when it moves.

θ′ ← m θ′ + (1 − m) θ over the encoders, the fusion layers and the head of the task, once per optimizer step and after it (ALBEF,
arXiv:2107.07651; the official code moves it inside the forward pass). After pretrained weights were loaded the teacher is made
equal to the student (:meth:`DistilledTask.sync_teacher`): the official code forgets that for NLVR2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mc_core.engine.method import Batch, Method, Progress, StepOutput
from mc_core.momentum import MomentumEncoder
from mc_vision_language.decay import spare_positions
from mc_vision_language.tasks.config import DistilledConfig
from mc_vision_language.tasks.loss import distilled_cross_entropy
from mc_vision_language.tasks.model import TaskModel

CITATION = """@inproceedings{li2021albef,
  title = {Align before Fuse: Vision and Language Representation Learning with Momentum Distillation},
  author = {Li, Junnan and Selvaraju, Ramprasaath and Gotmare, Akhilesh and Joty, Shafiq and Xiong, Caiming and Hoi, Steven},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2021}
}"""


class DistilledTask(Method):
    """A task model, and its teacher where α > 0.

    Args:
        config: of the task.
        model: to train.

    Attributes:
        model: what a run saves.
        teacher: moving average of ``model.net``, or None.
    """

    def __init__(self, config: DistilledConfig, model: TaskModel) -> None:
        super().__init__()
        self.config = config
        self.model: Any = model
        self.teacher: MomentumEncoder | None = None
        if config.alpha:
            self.teacher = MomentumEncoder(
                model.net, config.momentum, buffers="copy", evaluation_mode=not config.teacher_train_mode
            )

    @property
    def net(self) -> Any:
        """What is trained, and what the teacher is a copy of."""
        return self.model.net

    def sync_teacher(self) -> None:
        """Make the teacher equal to the student: to be called after weights were loaded."""
        if self.teacher is not None:
            self.teacher.synchronise()

    def alpha(self, progress: Progress) -> float:
        """α of this step."""
        return (
            self.config.alpha_at(progress.step / max(progress.steps_per_epoch, 1)) if self.teacher is not None else 0.0
        )

    @torch.no_grad()
    def teach(self, alpha: float, *args: Any) -> Tensor | None:
        """The teacher's logits for the same input, or None while they do not count."""
        if not alpha or self.teacher is None:
            return None
        found: Tensor = self.teacher(*args)[0]
        return found

    def after_step(self, progress: Progress) -> None:
        """Move the teacher."""
        if self.teacher is not None:
            self.teacher.update()

    def parameter_groups(self, weight_decay: float, *, decay_1d: bool = True) -> list[dict[str, Any]]:
        """As every method's; without ``decay_1d`` class token and tables of positions do not decay either."""
        return spare_positions(super().parameter_groups(weight_decay, decay_1d=decay_1d), self.model)

    def export_module(self) -> nn.Module:
        """The task's model."""
        return self.model

    def save(self, folder: Path, card: Mapping[str, Any]) -> None:
        """The model with its tokenizer; see :func:`mc_vision_language.tasks.load_task_model`."""
        told = {"title": self.model.title, "citation": CITATION}
        self.model.save(folder, card={**told, **card})


class ClassificationTask(DistilledTask):
    """Sentences with one label each: the model's ``net`` gives (B, C) logits and (B, h) features of what it reads."""

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """What ``net`` takes, out of a batch."""
        return tuple(batch[name] for name in self.model.reads)

    def training_step(self, batch: Batch, progress: Progress, prepared: Any = None) -> StepOutput:
        """L = 1/B Σ_b ℓ_b, see :mod:`mc_vision_language.tasks.loss`."""
        inputs, alpha = self.inputs(batch), self.alpha(progress)
        logits, features = self.net(*inputs)
        losses = distilled_cross_entropy(logits, batch["label"], self.teach(alpha, *inputs), alpha)
        right = (logits.detach().argmax(1) == batch["label"]).float().mean()
        return StepOutput(losses.mean(), {"accuracy": right, "alpha": alpha}, {"query": features})

    def encode(self, batch: Batch) -> Tensor:
        """(B, h) the fused states of each sentence, averaged."""
        features: Tensor = self.net(*self.inputs(batch))[1]
        return features
