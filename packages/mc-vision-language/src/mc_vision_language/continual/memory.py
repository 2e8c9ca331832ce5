"""Which samples of finished tasks are kept, and a task's data with those shown again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mc_core.continual.contract import ContinualMethod, Task
from mc_core.continual.exemplars import herding, k_means_rows, proportional, reservoir
from mc_core.data import Dataset
from mc_core.engine.config import Fit
from mc_core.errors import ConfigError
from mc_vision_language.continual.features import fused_features
from mc_vision_language.continual.table import MemoryKind
from mc_vision_language.data.joined import joined
from mc_vision_language.data.pair_data import PairData
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.model import VisionLanguageModel


@dataclass(frozen=True)
class ExemplarMemory:
    """Keeps samples by (task, row of the task's data); follows :class:`mc_core.continual.contract.Memory`.

    Attributes:
        kind: ``reservoir`` (by chance), ``herding`` or ``k-means`` (both by the fused features of the model after the task,
            places in proportion to the sizes of tasks).
        capacity: samples in all.

    Raises:
        ConfigError: a capacity below 1.
    """

    kind: MemoryKind
    capacity: int

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ConfigError(f"a buffer of {self.capacity} samples: keep 1 or more (--buffer)")

    def choose(
        self,
        method: ContinualMethod,
        task: Task,
        data: Dataset,
        held: np.ndarray,
        sizes: Sequence[int],
        fit: Fit,
    ) -> np.ndarray:
        """(m, 2) of (task, row): what is held from now on."""
        if self.kind == "reservoir":
            return reservoir(held, sizes, self.capacity, seed=fit.seed)
        model = method.export_module()
        assert isinstance(model, VisionLanguageModel)
        assert isinstance(data, PairData)
        features = fused_features(model, data.pairs, captions_of_samples(data))[1]

        def ranked(count: int) -> np.ndarray:
            if self.kind == "herding":
                return herding(features, count)
            return k_means_rows(features, count, seed=fit.seed)

        return proportional(held, sizes, self.capacity, ranked)

    def describe(self) -> Mapping[str, Any]:
        """What identifies the choice."""
        return {"kind": self.kind, "capacity": self.capacity}


def captions_of_samples(data: PairData) -> np.ndarray:
    """(R,) the caption that stands for each sample: its own, or the first of its picture."""
    return np.arange(len(data.pairs.captions)) if data.unit == "caption" else data.pairs.first_caption[:-1]


def replayed(tasks: Sequence[Pairs], index: int, held: np.ndarray, unit: str) -> Pairs:
    """The training pairs of a task, with held samples of earlier tasks after them; pictures stay where they are.

    Args:
        tasks: training pairs of all tasks.
        index: of the task.
        held: (n, 2) of (task, row).
        unit: what a row is: an ``image`` with all its captions, or a ``caption`` with its image.

    >>> from mc_core.samples import digit_scenes
    >>> from mc_vision_language.data.pairs import scene_pairs
    >>> each = [scene_pairs(digit_scenes(3, size=32, start=3 * k)) for k in range(2)]
    >>> both = replayed(each, 1, np.array([[0, 2]]), "image")
    >>> len(both), both.captions_of(3) == each[0].captions_of(2)
    (4, True)
    """
    parts = [tasks[index]]
    for task in np.unique(held[:, 0]).tolist():
        rows = held[held[:, 0] == task][:, 1]
        parts.append(tasks[task].take(rows) if unit == "image" else _single(tasks[task], rows))
    return joined(parts)


def _single(pairs: Pairs, captions: np.ndarray) -> Pairs:
    """These captions, each with its picture alone."""
    pictures = pairs.image_of[captions]
    return replace(
        pairs,
        images=pairs.images.take(pictures),
        captions=tuple(pairs.captions[i] for i in captions.tolist()),
        image_of=np.arange(len(captions)),
        image_ids=pairs.image_ids[pictures],
        text_ids=pairs.text_ids[captions],
        splits=pairs.splits[pictures],
    )


def replaying(
    tasks: Sequence[Pairs], index: int, make: Callable[[Pairs], PairData], unit: str
) -> Callable[[np.ndarray], Dataset]:
    """What :class:`mc_core.continual.sequence.TaskData` asks for: held samples → the task's data with them."""
    return lambda held: make(replayed(tasks, index, held, unit))
