"""The recipe of a pretraining run: which system, its settings, how pairs are divided and varied, how it is trained.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, model_validator

from mc_core import recipes
from mc_core.engine.config import Fit, StrictModel
from mc_core.recipes import resolve
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.data.options import SplitOptions
from mc_vision_language.methods import METHODS

Config = TypeVar("Config", bound=BaseModel)


class Recipe(StrictModel, Generic[Config]):
    """A whole run in one file."""

    system: str
    """Name of the method: albef."""
    source: str = ""
    """Where the numbers come from."""
    method: Config
    """Settings of the method."""
    unit: Literal["image", "caption"] = "image"
    """What an epoch passes over: each image once with one of its captions, or each caption once with its image."""
    split: SplitOptions = SplitOptions()
    """How images are divided where the data do not say."""
    augment: AugmentConfig = AugmentConfig()
    """Random views of an image."""
    fit: Fit = Fit()
    """Training."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        image = getattr(self.method, "image", None)
        side = getattr(image, "image_size", self.augment.size)
        if self.augment.size != side:
            raise ValueError(
                f"augment.size {self.augment.size} is not the {side} pixels that the image encoder takes "
                "(method.image.image_size); set one to the other"
            )
        return self


def resolve_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe[Any]:
    """A recipe by name or file, with ``changes`` in place and every default written out.

    Args:
        name: a shipped recipe such as ``"albef"``, a YAML file, or a run folder.
        changes: nested fields that replace the recipe's.

    Raises:
        ConfigError: unknown recipe, method or field, or a value out of range; the message names the file and the field.

    >>> recipe = resolve_recipe("albef", {"fit": {"steps": 3}})
    >>> recipe.fit.batch_size, recipe.augment.size, recipe.unit
    (512, 256, 'image')
    """
    return resolve("mc_vision_language", METHODS, lambda config: Recipe[config], name, changes)  # type: ignore[valid-type]


def system_of(name: str | Path) -> str:
    """The method that a recipe names."""
    return recipes.system_of("mc_vision_language", name)
