"""What the four experts share: a map of features, what they learn from, what they say about pictures, how they are saved.

Each is a model of its own, of use without the others::

    expert = load_expert("runs/detector")
    expert.predict(["street.jpg"])

Legend: B pictures, S side in pixels, C features, H × W places of a map.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from mc_core.engine.method import Batch, Method, Progress, StepOutput
from mc_core.errors import ConfigError, DataError
from mc_core.files import StrPath
from mc_core.modules import evaluating
from mc_vision_language.data.annotated import AnnotatedPairs, annotated
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.decay import spare_positions
from mc_vision_language.experts.backbone import TimmGrid
from mc_vision_language.experts.config import KINDS, NEEDS, ExpertConfig, Kind
from mc_vision_language.model_base import PictureTextModel, load_saved

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_INTENDED = (
    "One of four vision experts of a mixture, of use alone. It learns what annotations say, their gaps and prejudices included: "
    "look at what it says before anyone relies on it. Whether weights may be passed on is for the licence of the training data "
    "to say."
)
Metrics = dict[str, Tensor | float]


class Expert(PictureTextModel):
    """A backbone and a head. Subclasses say what they are trained for.

    Args:
        config: of the backbone and of the head; mean and std are filled in.
        tokenizer: of captions, for the captioning expert.
        load_pretrained: load published weights where the configuration asks for them.

    Attributes:
        kind: what it is trained for.
        needs: entries of a batch that :meth:`loss` reads, besides ``view``.
        backbone: :class:`~mc_vision_language.experts.backbone.TimmGrid`.
        num_features: C of the map.
        grid: its rows and columns.

    Raises:
        ConfigError: a backbone without a map, or a configuration of another kind of expert.
    """

    kind: ClassVar[Kind]
    needs: ClassVar[tuple[str, ...]]
    config: ExpertConfig

    def __init__(
        self,
        config: ExpertConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        *,
        load_pretrained: bool = True,
    ) -> None:
        super().__init__()
        if config.kind != self.kind:
            raise ConfigError(f"a configuration of a {config.kind} expert for a {self.kind} expert: take build_expert")
        self.backbone = TimmGrid(config, load_pretrained=load_pretrained)
        mean, std = self.backbone.constants
        self.config = config.model_copy(update={"mean": mean, "std": std})
        self.num_features, self.grid = self.backbone.num_features, self.backbone.grid
        self.make_head(tokenizer)

    @abstractmethod
    def make_head(self, tokenizer: PreTrainedTokenizerFast | None) -> None:
        """Build what follows the map, of ``config``, ``num_features`` and ``grid``."""

    @property
    def image_size(self) -> int:
        """Side of the pictures that the backbone takes, in pixels."""
        return self.config.image_size

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes by their numbers."""
        return self.config.class_names

    def features(self, view: Tensor) -> Tensor:
        """(B, C, H, W) of pictures (B, 3, S, S) in [0, 1]: what other models build on. The same every time in evaluation mode."""
        return self.backbone(view)

    def forward(self, view: Tensor) -> Any:
        """What the head makes of pictures (B, 3, S, S) in [0, 1], as tensors."""
        return self.head_outputs(self.features(view))

    @abstractmethod
    def head_outputs(self, features: Tensor) -> Any:
        """The same of a map (B, C, H, W)."""

    @abstractmethod
    def head_loss(self, features: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean loss over the batch, of its map and what ``needs`` names, and figures to log."""

    @abstractmethod
    def predicted(self, features: Tensor) -> Any:
        """What is said of a map (B, C, H, W): labels, captions, boxes or masks."""

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean loss of a batch, and figures to log.

        Args:
            batch: ``view`` (B, 3, S, S) in [0, 1], and what ``needs`` names.

        Raises:
            DataError: an entry is missing.
        """
        if missing := [name for name in ("view", *self.needs) if name not in batch]:
            raise DataError(
                f"a {self.kind} expert learns from {', '.join(self.needs)}; the batch lacks {', '.join(missing)}: give pictures "
                f"with {NEEDS[self.kind]}"
            )
        return self.head_loss(self.features(batch["view"]), batch)

    @torch.no_grad()
    def predict(self, pictures: Any, *, batch_size: int = 64) -> Any:
        """What the expert says of pictures.

        Args:
            pictures: a path; paths, PIL images or arrays (H, W, 3); or all as one (B, 3, H, W), uint8 or floats in [0, 1].
            batch_size: pictures at once.

        Returns:
            See :meth:`predicted` of the expert.

        Raises:
            BadSampleError: a file that is no picture.
        """
        if isinstance(pictures, (str, os.PathLike)):
            pictures = [pictures]
        with evaluating(self):
            found = [
                self.predicted(self.features(self.pixels_of(pictures[start : start + batch_size])))
                for start in range(0, len(pictures), batch_size)
            ]
        if not found:
            raise DataError("no pictures to say anything about")
        return found[0] if len(found) == 1 else joined(found)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The same architecture with random weights, to be filled from a saved model."""
        return cls(ExpertConfig.model_validate(config), load_pretrained=False)


def joined(found: Sequence[Any]) -> Any:
    """Predictions of batches as one: lists and tensors end to end, tuples entry by entry; shorter rows are padded with −1."""
    first = found[0]
    if isinstance(first, list):
        return [one for part in found for one in part]
    if isinstance(first, Tensor):
        if first.ndim > 1 and len({part.shape[1:] for part in found}) > 1:
            longest = max(part.shape[1] for part in found)
            found = [
                torch.cat([part, part.new_full((len(part), longest - part.shape[1], *part.shape[2:]), -1)], 1)
                for part in found
            ]
        return torch.cat(list(found))
    return type(first)(*(joined(parts) for parts in zip(*found, strict=True)))


class ExpertMethod(Method):
    """Trains one expert alone, by :func:`mc_core.fit`.

    Args:
        expert: to train.

    Batches: those of :class:`~mc_vision_language.data.annotated_data.AnnotatedData`.
    """

    config: ExpertConfig

    def __init__(self, expert: Expert) -> None:
        super().__init__()
        self.expert, self.config = expert, expert.config

    def training_step(self, batch: Batch, progress: Progress, prepared: Any = None) -> StepOutput:
        """The expert's own loss of a micro-batch."""
        loss, metrics = self.expert.loss(batch)
        return StepOutput(loss, metrics)

    def encode(self, batch: Batch) -> Tensor:
        """(B, C) mean of the map of each picture."""
        return self.expert.features(batch["view"]).mean((2, 3))

    def export_module(self) -> Expert:
        """The trained expert."""
        return self.expert

    def save(self, folder: Path, card: Mapping[str, Any]) -> None:
        """The expert, with its tokenizer where it has one; see :func:`load_expert`."""
        self.expert.save(folder, card={"title": f"A {self.expert.kind} expert", "description": _INTENDED, **card})

    def parameter_groups(self, weight_decay: float, *, decay_1d: bool = False) -> list[dict[str, Any]]:
        """Positions, norms and biases do not decay."""
        return spare_positions(super().parameter_groups(weight_decay, decay_1d=decay_1d), self)


def expert_class(kind: str) -> type[Expert]:
    """The class of one kind of expert.

    Raises:
        ConfigError: no such kind.
    """
    from mc_vision_language.experts.captioning import CaptioningExpert
    from mc_vision_language.experts.classification import ClassificationExpert
    from mc_vision_language.experts.detection import DetectionExpert
    from mc_vision_language.experts.segmentation import SegmentationExpert

    known: dict[str, type[Expert]] = {
        one.kind: one for one in (ClassificationExpert, CaptioningExpert, DetectionExpert, SegmentationExpert)
    }
    if kind not in known:
        raise ConfigError(f"no expert '{kind}': choose {', '.join(KINDS)}")
    return known[kind]


def build_expert(
    config: ExpertConfig, tokenizer: PreTrainedTokenizerFast | None = None, *, load_pretrained: bool = True
) -> Expert:
    """The expert that a configuration describes.

    Args:
        config: with the names of its classes, except for captioning.
        tokenizer: of captions.
        load_pretrained: load published weights where the configuration asks for them.

    Raises:
        ConfigError: as :class:`Expert`.

    >>> expert = build_expert(ExpertConfig(kind="classification", image_size=32, width=8, class_names=("cat", "dog")))
    >>> expert.predict(torch.rand(3, 3, 32, 32)).shape
    torch.Size([3, 2])
    """
    return expert_class(config.kind)(config, tokenizer, load_pretrained=load_pretrained)


def load_expert(place: StrPath, *, device: str | torch.device = "cpu") -> Expert:
    """A saved expert, in evaluation mode.

    Args:
        place: its folder, or the folder of the run that made it.
        device: to put it on.

    Raises:
        CheckpointError: no such model, or a damaged one.
    """
    return load_saved(place, Expert, "a vision expert", device=device)


def trainable_kinds(data: Pairs | AnnotatedPairs) -> tuple[tuple[Kind, ...], list[str]]:
    """Which experts can be trained on these pictures, and a line for each that cannot, or that only some pictures are of use to.

    >>> import numpy as np
    >>> from mc_vision_language.data.images import ArrayImages
    >>> one = np.zeros(1, np.int64)
    >>> pairs = Pairs(ArrayImages(np.zeros((1, 3, 8, 8), np.uint8)), ("a dog",), one, one, one, np.array(["train"]))
    >>> trainable_kinds(pairs)[0]
    ('captioning',)
    """
    pairs = annotated(pairs) if isinstance(pairs := data, Pairs) else data
    counts = pairs.counts()
    kinds: list[Kind] = []
    lines = []
    for kind in KINDS:
        name, count = NEEDS[kind], counts[NEEDS[kind]]
        if not count:
            lines.append(f"no {kind} expert: {pairs.location} has no picture with {name}")
            continue
        kinds.append(kind)
        if count < len(pairs):
            lines.append(f"the {kind} expert learns from {count:,} of {len(pairs):,} pictures, which have {name}")
    return tuple(kinds), lines
