"""The recipe of a pretraining run: which system, its settings, how images and reports are read, how it is trained.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, model_validator

from mc_core import recipes
from mc_core.engine.config import Fit, StrictModel
from mc_core.recipes import resolve
from mc_medical.augment_config import AugmentConfig
from mc_medical.data.image_config import ImageOptions, SplitOptions
from mc_medical.data.reports import ReportOptions
from mc_medical.methods import METHODS

Config = TypeVar("Config", bound=BaseModel)


class Recipe(StrictModel, Generic[Config]):
    """A whole run in one file."""

    system: str
    """Name of the method: msd."""
    source: str = ""
    """Where the numbers come from."""
    method: Config
    """Settings of the method."""
    image: ImageOptions = ImageOptions()
    """How images are read."""
    reports: ReportOptions = ReportOptions()
    """What is taken from a report."""
    split: SplitOptions = SplitOptions()
    """How patients are divided where the data do not say."""
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
        name: a shipped recipe such as ``"msd"``, a YAML file, or a run folder.
        changes: nested fields that replace the recipe's.

    Raises:
        ConfigError: unknown recipe, method or field, or a value out of range; the message names the file and the field.

    >>> recipe = resolve_recipe("msd", {"fit": {"steps": 3}})
    >>> recipe.fit.batch_size, recipe.fit.batch_size // recipe.fit.accumulation
    (1024, 32)
    """
    return resolve("mc_medical", METHODS, lambda config: Recipe[config], name, changes)  # type: ignore[valid-type]


def system_of(name: str | Path) -> str:
    """The method that a recipe names."""
    return recipes.system_of("mc_medical", name)
