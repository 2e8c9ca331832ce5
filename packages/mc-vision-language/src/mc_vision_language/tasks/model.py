"""What the models of all tasks share: a network that a teacher may follow, and how pictures and texts become its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor, nn

from mc_vision_language.encoders_config import VisionLanguageConfig
from mc_vision_language.model_base import PictureTextModel, with_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Pieces = Sequence[Sequence[int]]
"""Of each word that a task adds to the vocabulary, the ids of the pieces it was spelled with."""


class TaskModel(PictureTextModel):
    """A model of one task.

    Args:
        config: of the task.
        tokenizer: of the text encoder; without one only token ids can be used.

    Attributes:
        net: all weights: what is trained, and what a teacher is a copy of.
        title: of the model card.
        reads: entries of a batch that ``net`` takes, in order.
    """

    Config: ClassVar[type[VisionLanguageConfig]]
    title: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    net: Any

    def __init__(
        self,
        config: Any,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> None:
        super().__init__()
        if tokenizer is not None:
            config = with_tokenizer(config, tokenizer)
        self.net = self.build(config)
        self.config = config
        self.take_tokenizer(tokenizer)

    def build(self, config: Any) -> nn.Module:
        """``net`` with random weights."""
        return nn.Identity()

    @classmethod
    def from_config(cls, config: VisionLanguageConfig | Mapping[str, Any]) -> Self:
        """The same architecture with random weights, to be filled from a saved model."""
        return cls(cls.Config.model_validate(config))


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """(B, h) mean over tokens of states (B, L, h) with their mask (B, L)."""
    weight = mask.to(states.dtype)[:, :, None]
    return (states * weight).sum(1) / weight.sum(1).clamp_min(1)


def classifier(hidden: int, classes: int) -> nn.Sequential:
    """Linear, ReLU, linear: the head of sentences."""
    return nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes))
