"""The recipe of a pretraining run on signals: which system, its settings, its pairs and their changes, how it is trained.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from mc_core import recipes
from mc_core.engine.config import Fit, StrictModel
from mc_core.recipes import resolve
from mc_wearables.augment_config import AugmentConfig
from mc_wearables.methods import METHODS

Config = TypeVar("Config", bound=BaseModel)


class PairOptions(StrictModel):
    """Which two segments are a positive pair; see :class:`mc_wearables.data.pairs.PairData`."""

    pair: Literal["participant", "session", "segment"] = "participant"
    """What both views share: the person (the paper), the recording session (ours), or the segment itself."""
    min_gap: float = Field(default=0.0, ge=0)
    """Hours between the beginnings of the two segments (ours)."""
    min_segments: int = Field(default=2, ge=1)
    """People with fewer segments are left out."""
    quality_floor: float = Field(default=0.0, ge=0, le=1)
    """Segments of lower quality are left out; those not assessed stay."""


class Recipe(StrictModel, Generic[Config]):
    """A whole run in one file."""

    system: str
    """Name of the method: participant."""
    source: str = ""
    """Where the numbers come from."""
    method: Config
    """Settings of the method."""
    pairs: PairOptions = PairOptions()
    """Positive pairs."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes of each view."""
    fit: Fit = Fit()
    """Training."""


def resolve_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe[Any]:
    """A recipe by name or file, with ``changes`` in place and every default written out.

    Args:
        name: a shipped recipe such as ``"ahms-ppg"``, a YAML file, or a run folder.
        changes: nested fields that replace the recipe's.

    Raises:
        ConfigError: unknown recipe, method or field, or a value out of range; the message names the file and the field.

    >>> recipe = resolve_recipe("ahms-ecg", {"fit": {"steps": 3}})
    >>> recipe.fit.steps, recipe.augment.cut_p, recipe.method.encoder.samples
    (3, 0.8, 3840)
    """
    return resolve("mc_wearables", METHODS, lambda config: Recipe[config], name, changes)  # type: ignore[valid-type]


def system_of(name: str | Path) -> str:
    """The method that a recipe names."""
    return recipes.system_of("mc_wearables", name)
