"""The recipe of a run: which system, its settings, its tiles and their changes, how it is trained. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field

from mc_core import recipes
from mc_core.engine.config import Fit, StrictModel
from mc_core.recipes import resolve
from mc_remote_sensing.augment_config import AugmentConfig
from mc_remote_sensing.methods import METHODS

Config = TypeVar("Config", bound=BaseModel)


class TileOptions(StrictModel):
    """Which tiles are cut from the scenes."""

    tile: int = Field(default=512, ge=8)
    """Side of a tile in pixels."""
    target_share: float = Field(default=0.5, ge=0, le=1)
    """Share of training tiles that are drawn around a pixel of the target class."""
    hard_negative_share: float = Field(default=0.1, ge=0, le=1)
    """Share of training tiles that are drawn around a pixel of the hard negatives, where there are some."""
    per_epoch: int | None = Field(default=None, ge=1)
    """Training tiles in an epoch; default: as many as cover the training area once."""


class SplitOptions(StrictModel):
    """How the ground is split into blocks for training, validation and test."""

    block_m: float | None = Field(default=None, gt=0)
    """Side of a block in metres; default: an eighth of the longer side of the scene, but at least four tiles where three such
    blocks fit along the shorter side."""
    buffer_m: float | None = Field(default=None, gt=0)
    """Width of the strip between parts, in metres, at least a tile; default: a tile."""
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2)
    """Of training, validation and test."""
    seed: int = Field(default=0, ge=0)
    """Of the draw."""


class Recipe(StrictModel, Generic[Config]):
    """A whole run in one file."""

    system: str
    """Name of the method: hpcl-net, scene-contrast."""
    source: str = ""
    """Where the numbers come from."""
    method: Config
    """Settings of the method."""
    tiles: TileOptions = TileOptions()
    """Tiles of the scenes."""
    split: SplitOptions = SplitOptions()
    """Training, validation and test ground."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes of each tile."""
    fit: Fit = Fit()
    """Training."""


def resolve_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe[Any]:
    """A recipe by name or file, with ``changes`` in place and every default written out.

    Args:
        name: a shipped recipe such as ``"hpcl-net"``, a YAML file, or a run folder.
        changes: nested fields that replace the recipe's.

    Raises:
        ConfigError: unknown recipe, method or field, or a value out of range; the message names the file and the field.

    >>> recipe = resolve_recipe("hpcl-net", {"fit": {"steps": 3}})
    >>> recipe.fit.steps, recipe.method.network.modality, recipe.tiles.tile
    (3, 'fused', 512)
    """
    return resolve("mc_remote_sensing", METHODS, lambda config: Recipe[config], name, changes)  # type: ignore[valid-type]


def system_of(name: str | Path) -> str:
    """The method that a recipe names."""
    return recipes.system_of("mc_remote_sensing", name)
