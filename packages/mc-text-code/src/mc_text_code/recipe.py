"""The recipe of a pretraining run on sentences: which system, its settings, its views, its warm start, how it is trained.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field

from mc_core import recipes
from mc_core.engine.config import Fit, StrictModel
from mc_core.recipes import resolve
from mc_text_code.augment_config import AugmentConfig
from mc_text_code.methods import METHODS

Config = TypeVar("Config", bound=BaseModel)


class BatchOptions(StrictModel):
    """How sentences are put into batches; see :class:`mc_text_code.data.pairs.SentenceData`."""

    length_window: int = Field(default=0, ge=0)
    """Batches of sentences of like length, sorted within so many batches of the shuffled order; 0: as shuffled (the papers).
    Faster, but then the negatives of a sentence are about as long as it is, which changes what is learnt."""
    deduplicate: bool = True
    """Keep one of equal sentences."""


class WarmStart(StrictModel):
    """Masked-language-model training before the contrast, for encoders that start from random weights (ours)."""

    steps: int = Field(default=0, ge=0)
    """Optimizer steps; 0: none."""
    rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of tokens that are predicted."""
    batch_size: int = Field(default=64, ge=1)
    """Sentences per step."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""


class Recipe(StrictModel, Generic[Config]):
    """A whole run in one file."""

    system: str
    """Name of the method: esimcse."""
    source: str = ""
    """Where the numbers come from."""
    method: Config
    """Settings of the method."""
    augment: AugmentConfig = AugmentConfig()
    """The second view."""
    batches: BatchOptions = BatchOptions()
    """Batches."""
    warm_start: WarmStart = WarmStart()
    """What comes before."""
    fit: Fit = Fit()
    """Training."""


def resolve_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe[Any]:
    """A recipe by name or file, with ``changes`` in place and every default written out.

    Args:
        name: a shipped recipe such as ``"esimcse"``, a YAML file, or a run folder.
        changes: nested fields that replace the recipe's.

    Raises:
        ConfigError: unknown recipe, method or field, or a value out of range; the message names the file and the field.

    >>> recipe = resolve_recipe("esimcse", {"fit": {"steps": 3}})
    >>> recipe.fit.steps, recipe.augment.rate, recipe.method.queue_batches
    (3, 0.32, 2.5)
    """
    return resolve("mc_text_code", METHODS, lambda config: Recipe[config], name, changes)  # type: ignore[valid-type]


def system_of(name: str | Path) -> str:
    """The method that a recipe names."""
    return recipes.system_of("mc_text_code", name)
