"""Natural language for visual reasoning: whether a sentence is true of two pictures (NLVR2), and the stage that prepares for it.

Text assignment trains the same network on pairs of pictures and captions first, for one epoch, without teacher: a caption is shown
with its own picture and one that looks like it, in either order, or with two wrong ones, and the head says where its picture is::

    with probability 2/3   (own, wrong) → 0   or   (wrong, own) → 1
    with probability 1/3   (wrong, another wrong) → 2
    wrong ~ softmax_j( z_v,i · z_v,j / 0.07 ), j ≠ i

Pictures or captions that are the same thing are never drawn as wrong (ours; the official code leaves out the pair alone).

Then statements are learnt with momentum distillation, as all tasks; the teacher starts equal to the student, which the official
code missed.

Source: ALBEF (Li et al. 2021, arXiv:2107.07651), section 4.

Legend: B sentences or captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mc_core.engine.method import Batch, Method, Progress, StepOutput
from mc_core.errors import ConfigError
from mc_core.modules import evaluating
from mc_core.paired_losses import same_thing
from mc_core.random import uniform
from mc_vision_language.decay import spare_positions
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.tasks.config import ASSIGNMENT_LABELS, STATEMENT_LABELS, AssignmentConfig, TwoImageConfig
from mc_vision_language.tasks.distilled import ClassificationTask
from mc_vision_language.tasks.model import Pieces, TaskModel
from mc_vision_language.tasks.starting import load_backbone
from mc_vision_language.tasks.two_images import TwoImageNet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_STREAM = 0x7A55
_DRAWS = 4


class AssignmentModel(TaskModel):
    """Tells which of two pictures a caption belongs to.

    Attributes:
        net: :class:`~mc_vision_language.tasks.two_images.TwoImageNet` with three classes and a linear head.
    """

    Config = AssignmentConfig
    title = "Which of two pictures a caption belongs to"
    reads = ("view", "input_ids", "attention_mask")
    net: TwoImageNet

    def build(self, config: AssignmentConfig) -> TwoImageNet:
        """The network with random weights."""
        return TwoImageNet(config, len(ASSIGNMENT_LABELS), linear=True)

    def start_from(self, model: VisionLanguageModel, pieces: Pieces = ()) -> None:
        """Take the weights of a pretrained model; the head is new."""
        self.net.start_from(model.backbone, pieces)


class StatementModel(TaskModel):
    """Tells whether sentences are true of two pictures.

    Attributes:
        net: :class:`~mc_vision_language.tasks.two_images.TwoImageNet` with two classes.
    """

    Config = TwoImageConfig
    title = "Whether a sentence is true of two pictures"
    reads = ("view_1", "view_2", "input_ids", "attention_mask")
    net: TwoImageNet

    def build(self, config: TwoImageConfig) -> TwoImageNet:
        """The network with random weights."""
        return TwoImageNet(config, len(STATEMENT_LABELS))

    def start_from(self, model: VisionLanguageModel | AssignmentModel, pieces: Pieces = ()) -> None:
        """Take the weights of a pretrained model, or of one that has learnt text assignment; the head is new."""
        if isinstance(model, AssignmentModel):
            load_backbone(self.net.backbone, model.net.backbone)
        else:
            self.net.start_from(model.backbone, pieces)

    @torch.inference_mode()
    def probabilities(self, first: Any, second: Any, sentences: Sequence[str]) -> np.ndarray:
        """(B,) that each sentence is true of the two pictures in the same place.

        Args:
            first, second: B pictures each, as for :meth:`~mc_vision_language.model.VisionLanguageModel.encode_image`.
            sentences: B.
        """
        with evaluating(self):
            logits, _ = self.net(self.pixels_of(first), self.pixels_of(second), *self.tokens_of(list(sentences)))
        return logits.float().softmax(1)[:, 1].cpu().numpy()

    def is_true(self, first: Any, second: Any, sentences: Sequence[str]) -> list[bool]:
        """Whether each sentence is more probably true than false."""
        return (self.probabilities(first, second, sentences) > 0.5).tolist()


class NLVR2(ClassificationTask):
    """Trains a :class:`StatementModel`.

    Args:
        config: of the task.
        tokenizer: of the sentences.
        model: to train instead of the one that ``config`` describes.

    Batches are those of :class:`mc_vision_language.data.task_data.JudgedData` with two pictures a row.
    """

    def __init__(
        self,
        config: TwoImageConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: StatementModel | None = None,
    ) -> None:
        model = StatementModel(config, tokenizer) if model is None else model
        super().__init__(model.config, model)


class Assigned(NamedTuple):
    """Which pictures each caption is shown with.

    Attributes:
        first, second: (B,) int64 rows of the batch.
        label: (B,) int64: 0 own picture first, 1 second, 2 neither.
        valid: (B,) bool: there was a wrong picture to show.
    """

    first: Tensor
    second: Tensor
    label: Tensor
    valid: Tensor


def assign(similarity: Tensor, same: Tensor, u: Tensor, *, temperature: float, neither: float) -> Assigned:
    """Draw the pictures of text assignment.

    Args:
        similarity: (B, B) cosines of the pictures.
        same: (B, B) bool, what is the same picture or caption; the diagonal included.
        u: (B, 4) uniform numbers in [0, 1).
        temperature: by which cosines are divided.
        neither: share of captions that get two wrong pictures, where there are two.

    >>> from mc_core.random import uniform
    >>> u = uniform(0, 0, torch.arange(3), 4)
    >>> assign(torch.eye(3), torch.eye(3).bool(), u, temperature=0.07, neither=1.0).label.tolist()
    [2, 2, 2]
    """
    own = torch.arange(len(same), device=same.device)
    logits = similarity.float() / temperature
    wrong, possible = _drawn(logits, ~same, u[:, 1])
    other, another = _drawn(logits, ~same & ~same[wrong], u[:, 2])
    none_fits = (u[:, 0] < neither) & another
    own_first = u[:, 3] < 0.5
    first = torch.where(none_fits | ~own_first, wrong, own)
    second = torch.where(none_fits, other, torch.where(own_first, wrong, own))
    label = torch.where(none_fits, 2, (~own_first).long())
    return Assigned(first, second, label, possible)


def _drawn(logits: Tensor, allowed: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) columns ~ softmax over what is allowed, and (B,) whether anything was."""
    possible = allowed.any(1)
    weights = logits.masked_fill(~allowed, -torch.inf).masked_fill(~possible[:, None], 0.0).softmax(1).double()
    total = weights.cumsum(1)
    column = torch.searchsorted(total, (u.double() * total[:, -1])[:, None], right=True)[:, 0]
    return column.clamp_max(logits.shape[1] - 1), possible


class TextAssignment(Method):
    """Trains an :class:`AssignmentModel` on pictures with captions.

    Args:
        config: of the stage.
        tokenizer: of the captions.
        model: to train instead of the one that ``config`` describes.

    Batches are those of :class:`mc_vision_language.data.PairData`.
    """

    config: AssignmentConfig

    def __init__(
        self,
        config: AssignmentConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: AssignmentModel | None = None,
    ) -> None:
        super().__init__()
        self.model = AssignmentModel(config, tokenizer) if model is None else model
        self.config = self.model.config

    def training_step(self, batch: Batch, progress: Progress, prepared: Any = None) -> StepOutput:
        """Cross-entropy of where a caption's picture is, over captions that have a wrong picture to be told from."""
        net = self.model.net
        tokens = net.backbone.image_tokens(batch["view"])
        drawn = self.drawn(tokens, batch, progress.run_seed)
        logits, features = net.judge(tokens, drawn.first, drawn.second, batch["input_ids"], batch["attention_mask"])
        losses = cross_entropy(logits.float(), drawn.label, reduction="none")
        loss = (losses * drawn.valid).sum() / drawn.valid.sum().clamp_min(1)
        right = (logits.detach().argmax(1) == drawn.label).float().mean()
        return StepOutput(loss, {"accuracy": right}, {"query": features})

    @torch.no_grad()
    def drawn(self, tokens: Tensor, batch: Batch, seed: int) -> Assigned:
        """Which pictures each caption is shown with: a function of (seed, epoch, sample) and of the batch."""
        z_v = self.model.net.backbone.embed_image_tokens(tokens)
        ids = [batch["image_ids"], batch["text_ids"]]
        same = same_thing(ids, ids)
        u = uniform(seed, int(batch["epoch"]), batch["index"], _DRAWS, stream=_STREAM)
        return assign(z_v @ z_v.T, same, u, temperature=self.config.negative_temperature, neither=self.config.neither)

    def encode(self, batch: Batch) -> Tensor:
        """(B, h) fused states of each caption with its own picture in both places, averaged."""
        net = self.model.net
        features: Tensor = net(batch["view"], batch["view"], batch["input_ids"], batch["attention_mask"])[1]
        return features

    def parameter_groups(self, weight_decay: float, *, decay_1d: bool = True) -> list[dict[str, Any]]:
        """As every method's; without ``decay_1d`` class token and tables of positions do not decay either."""
        return spare_positions(super().parameter_groups(weight_decay, decay_1d=decay_1d), self.model)

    def export_module(self) -> AssignmentModel:
        """The model of the stage."""
        return self.model

    def save(self, folder: Any, card: Any) -> None:
        """With its tokenizer."""
        self.model.save(folder, card={"title": self.model.title, **card})

    def check(self, micro_batch_size: int) -> None:
        """Refuse a batch in which there is no wrong picture."""
        if micro_batch_size < 2:
            raise ConfigError(
                f"{micro_batch_size} pair per process and micro-batch has no wrong picture beside it: "
                "take a larger fit.batch_size or a smaller fit.accumulation"
            )
