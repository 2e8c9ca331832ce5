"""Baselines that make weights stay where they mattered: EWC, MAS, SI, RWalk, AFEC.

With θ* the parameters at the end of the last task and constants of CTP's official code (Zhu et al. 2023, arXiv:2308.07146)::

    EWC     ½ λ Σ F (θ − θ*)²                F = mean squared gradient of L_ita + L_mlm of a batch, averaged over tasks
    MAS     ½ λ Σ S (θ − θ*)²                S = mean |gradient| of ‖image‖ + ‖text‖ + ‖fused‖, averaged over tasks
    SI      λ Σ S (θ − θ*)²                  S ← S + w / (δ² + 0.1),  w = −Σ g Δθ of unregularised gradients
    RWalk   λ Σ (S + F) (θ − θ*)²            S ← ½ (S + max(w / (F δ² + 0.1), 0))
    AFEC    EWC + ½ λₑ Σ Fₑ (θ − θₑ)²        θₑ, Fₑ of a model trained on the new task without penalty

Where the official code leaves importances of each process as they are, here gradients are averaged over processes first. SI
and RWalk need no second pass for the unregularised gradient: that of the penalty is known and is taken off. Gradients must not
be scaled, so these, and AFEC, cannot be trained in fp16.

Legend: P weights of all parameters together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mc_core.continual.contract import Task
from mc_core.continual.importance import (
    Anchor,
    flat,
    flat_gradient,
    mean_gradient_power,
    path_importance,
    quadratic,
    running_mean,
)
from mc_core.continual.passes import one_pass
from mc_core.distributed import gather_rows_with_grad
from mc_core.engine.method import Batch, Progress
from mc_vision_language.continual.base import Sequential, Step, encode_step, wide
from mc_vision_language.continual.baseline_configs import AFECConfig, EWCConfig, MASConfig, RWalkConfig, SIConfig
from mc_vision_language.continual.loss import both_ways
from mc_vision_language.model import VisionLanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mc_core.data import Dataset
    from mc_core.engine.config import Fit
    from mc_vision_language.continual.config import ContinualConfig


class Anchored(Sequential):
    """Base of what pulls weights back to where the last task ended; subclasses say how hard, and what matters.

    Attributes:
        anchor: :class:`~mc_core.continual.importance.Anchor` of all trained parameters.
    """

    def __init__(
        self,
        config: ContinualConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: VisionLanguageModel | None = None,
    ) -> None:
        super().__init__(config, tokenizer, model)
        self.anchor = Anchor(one for one in self.backbone.parameters() if one.requires_grad)
        self._first = True

    def start_task(self, task: Task) -> None:
        """The first task is plain fine-tuning."""
        self._first = task.first

    @property
    def strength(self) -> float:
        """c of c Σ Ω (θ − θ*)²."""
        raise NotImplementedError

    def extra_losses(self, step: Step) -> dict[str, Tensor]:
        """The penalty, from the second task on."""
        return {} if self._first else {"penalty": self.strength * self.anchor.penalty()}

    def end_task(self, task: Task, data: Dataset, fit: Fit) -> None:
        """Measure what mattered, and let the anchor down here."""
        with torch.no_grad():
            self.anchor.importance.copy_(self.importance_after(task, data, fit))
        self.anchor.move()

    def importance_after(self, task: Task, data: Dataset, fit: Fit) -> Tensor:
        """(P,) Ω from now on."""
        raise NotImplementedError

    def fisher(self, data: Dataset, fit: Fit) -> Tensor:
        """(P,) mean squared gradient of the base losses of a batch, over one pass in training mode with augmented data."""
        parameters = self.anchor.parameters_held
        return mean_gradient_power(self.base_loss, self.batches(data, fit), parameters, 2)

    def batches(self, data: Dataset, fit: Fit) -> Iterator[tuple[Batch, Progress]]:
        """One pass over the task's own data."""
        return one_pass(data, fit, self.model.device)

    def base_loss(self, given: tuple[Batch, Progress]) -> Tensor:
        """Scalar: L_ita + L_mlm of a batch."""
        return torch.stack(list(self.base_losses(self.step_of(*given)).values())).sum()


class Curved(Anchored):
    """Base of what weighs by the Fisher information, the mean over tasks."""

    config: Any

    @property
    def strength(self) -> float:
        """½ λ."""
        return 0.5 * self.config.penalty

    def importance_after(self, task: Task, data: Dataset, fit: Fit) -> Tensor:
        """F, the mean over tasks."""
        return running_mean(self.anchor.importance, self.fisher(data, fit), task.index)


class EWC(Curved):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796).

    Args:
        config: see :class:`~mc_vision_language.continual.baseline_configs.EWCConfig`.
        tokenizer, model: as for :class:`~mc_vision_language.continual.base.Sequential`.
    """

    config: EWCConfig


class MAS(Anchored):
    """Memory-aware synapses (Aljundi et al. 2018, arXiv:1711.09601).

    Args:
        config: see :class:`~mc_vision_language.continual.baseline_configs.MASConfig`.
        tokenizer, model: as for :class:`~mc_vision_language.continual.base.Sequential`.
    """

    config: MASConfig

    @property
    def strength(self) -> float:
        """½ λ."""
        return 0.5 * self.config.penalty

    def importance_after(self, task: Task, data: Dataset, fit: Fit) -> Tensor:
        """S, the mean over tasks."""
        parameters = self.anchor.parameters_held
        new = mean_gradient_power(self.lengths, self.batches(data, fit), parameters, 1)
        return running_mean(self.anchor.importance, new, task.index)

    def lengths(self, given: tuple[Batch, Progress]) -> Tensor:
        """Scalar: mean length of image, text and fused features before they are normalised, summed."""
        batch, backbone = given[0], self.backbone
        ids, mask = batch["input_ids"], batch["attention_mask"]
        tokens, states = backbone.image_tokens(batch["view"]), backbone.text_states(ids, mask)
        rows = (
            backbone.image_projection(tokens[:, 0]),
            backbone.text_projection(states[:, 0]),
            backbone.fuse_first(states, mask, backbone.keys(tokens)),
        )
        return torch.stack([wide(one).norm(dim=1).mean() for one in rows]).sum()


class PathAnchored(Anchored):
    """Base of what follows the path of the weights through a task.

    Attributes:
        path: (P,) w, what each weight has done for the loss in this task so far.
    """

    path: Tensor

    def __init__(
        self,
        config: ContinualConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: VisionLanguageModel | None = None,
    ) -> None:
        super().__init__(config, tokenizer, model)
        self.register_buffer("path", torch.zeros_like(self.anchor.point))
        self._before: tuple[Tensor, Tensor] | None = None

    def start_task(self, task: Task) -> None:
        """The path begins here."""
        super().start_task(task)
        self.path.zero_()

    def before_optimizer_step(self, progress: Progress) -> None:
        """Keep the weights, and the gradient without that of the penalty."""
        gradient = flat_gradient(self.anchor.parameters_held)
        if not self._first:
            gradient = gradient - self.strength * self.anchor.slope()
        self._before = gradient, self.anchor.weights()

    def after_step(self, progress: Progress) -> None:
        """w ← w − g Δθ."""
        super().after_step(progress)
        if self._before is not None:
            gradient, weights = self._before
            self.path.sub_(gradient * (self.anchor.weights() - weights))
            self._before = None

    def moved(self) -> Tensor:
        """(P,) δ, how far each weight went in this task."""
        return self.anchor.weights().detach() - self.anchor.point


class SI(PathAnchored):
    """Synaptic intelligence (Zenke et al. 2017, arXiv:1703.04200).

    Args:
        config: see :class:`~mc_vision_language.continual.baseline_configs.SIConfig`.
        tokenizer, model: as for :class:`~mc_vision_language.continual.base.Sequential`.
    """

    config: SIConfig

    @property
    def strength(self) -> float:
        """λ."""
        return self.config.penalty

    def importance_after(self, task: Task, data: Dataset, fit: Fit) -> Tensor:
        """S, summed over tasks."""
        return self.anchor.importance + path_importance(self.path, self.moved(), self.config.damping)


class RWalk(PathAnchored):
    """Riemannian walk (Chaudhry et al. 2018, arXiv:1801.10112).

    Args:
        config: see :class:`~mc_vision_language.continual.baseline_configs.RWalkConfig`.
        tokenizer, model: as for :class:`~mc_vision_language.continual.base.Sequential`.

    Attributes:
        curvature: (P,) F, the mean over tasks.
    """

    config: RWalkConfig
    curvature: Tensor

    def __init__(
        self,
        config: RWalkConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: VisionLanguageModel | None = None,
    ) -> None:
        super().__init__(config, tokenizer, model)
        self.register_buffer("curvature", torch.zeros_like(self.anchor.point))

    @property
    def strength(self) -> float:
        """λ."""
        return self.config.penalty

    def importance_after(self, task: Task, data: Dataset, fit: Fit) -> Tensor:
        """S + F; S is averaged with that of the tasks before, which is 0 at first."""
        score = self.anchor.importance - self.curvature
        fisher = running_mean(self.curvature, self.fisher(data, fit), task.index)
        new = path_importance(self.path, self.moved(), self.config.damping, fisher).clamp_min(0)
        self.curvature.copy_(fisher)
        return (score + new) / 2 + fisher


class AFEC(Curved):
    """Active forgetting of negative transfer (Wang et al. 2021, arXiv:2110.12187).

    A second backbone learns the new task freely, step by step beside the first, with the same optimizer. After each epoch its
    weights and its Fisher information of that epoch become θₑ and Fₑ; before the first there is no such term. The official code
    trains it for an epoch before each epoch of the other.

    Args:
        config: see :class:`~mc_vision_language.continual.baseline_configs.AFECConfig`.
        tokenizer, model: as for :class:`~mc_vision_language.continual.base.Sequential`.

    Attributes:
        free: the second backbone; it rests in the first task.
        free_point, free_fisher: (P,) θₑ and Fₑ.
        squares, steps: (P,) sum of squared gradients of this epoch, and how many.
    """

    config: AFECConfig
    free_point: Tensor
    free_fisher: Tensor
    squares: Tensor
    steps: Tensor

    def __init__(
        self,
        config: AFECConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: VisionLanguageModel | None = None,
    ) -> None:
        super().__init__(config, tokenizer, model)
        self.free = copy.deepcopy(self.backbone)
        self._free = [
            one
            for one, own in zip(self.free.parameters(), self.backbone.parameters(), strict=True)
            if own.requires_grad
        ]
        self.free.requires_grad_(False)
        for name in ("free_point", "free_fisher", "squares"):
            self.register_buffer(name, torch.zeros_like(self.anchor.point))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def start_task(self, task: Task) -> None:
        """The free backbone starts where the other is."""
        super().start_task(task)
        self.free.load_state_dict(self.backbone.state_dict())
        for one in self._free:
            one.requires_grad_(not task.first)
        for buffer in (self.free_point, self.free_fisher, self.squares, self.steps):
            buffer.zero_()

    def extra_losses(self, step: Step) -> dict[str, Tensor]:
        """Both penalties, and what trains the free backbone; no gradient goes from one backbone to the other."""
        losses = super().extra_losses(step)
        if self._first:
            return losses
        weights = self.anchor.weights()
        losses["forward_penalty"] = (
            0.5 * self.config.forward_penalty * quadratic(weights, self.free_point, self.free_fisher)
        )
        losses["free"] = self.free_loss(step)
        return losses

    def free_loss(self, step: Step) -> Tensor:
        """Scalar: L_ita + L_mlm of the free backbone on the same batch."""
        config = self.config
        encoded, words = encode_step(self.free, step.batch, step.masked)
        losses = []
        if config.ita:
            images, texts = gather_rows_with_grad(encoded.image), gather_rows_with_grad(encoded.text)
            logits = self.logits(encoded.image, texts), self.logits(encoded.text, images)
            losses.append(config.ita * both_ways(*logits, self.same(step.batch), step.first))
        if step.masked is not None and words is not None:
            losses.append(config.mlm * nn.functional.cross_entropy(wide(words), step.masked.words))
        return torch.stack(losses).sum()

    def before_optimizer_step(self, progress: Progress) -> None:
        """Collect the squared gradients of the free backbone."""
        if not self._first:
            self.squares.add_(flat_gradient(self._free).square())
            self.steps.add_(1)

    def after_step(self, progress: Progress) -> None:
        """At the end of an epoch, look at where the free backbone has come."""
        super().after_step(progress)
        if not self._first and (progress.step + 1) % progress.steps_per_epoch == 0:
            self.free_point.copy_(flat(self._free))
            self.free_fisher.copy_(self.squares / self.steps)
            self.squares.zero_()
            self.steps.zero_()
