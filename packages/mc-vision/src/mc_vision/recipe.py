"""The recipe of an image pretraining run: which system, its settings, its views, how it is trained. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from mc_core import recipes
from mc_core.engine.config import Fit, StrictModel
from mc_core.errors import ConfigError
from mc_core.recipes import resolve
from mc_vision.methods import METHODS
from mc_vision.transforms_config import View, Views, views_preset

Config = TypeVar("Config", bound=BaseModel)


class ViewOptions(StrictModel):
    """The random views of an image: a published pipeline, and what to change of it in all views."""

    preset: str = "moco-v2"
    """A published pipeline: moco-v1, moco-v2, moco-v3, moco-v3-vit, simclr, cifar, small, digits, swav, swav-2, swav-small."""
    size: int | None = Field(default=None, ge=1)
    """Side of the views in pixels; default: the pipeline's. Small crops follow in proportion."""
    small_crops: int | None = Field(default=None, ge=0)
    """Small crops beside the full views, 0 for none; default: as many as the pipeline has (swav: 6, swav-small: 4)."""
    where: Literal["auto", "worker", "device"] = "auto"
    """Where views are made: per image on loader workers, or batched on the training device."""
    crop_scale: tuple[float, float] | None = None
    """Share of the image area that a crop covers; small crops keep theirs."""
    flip_p: float | None = Field(default=None, ge=0, le=1)
    """Probability of a horizontal flip."""
    jitter: tuple[float, float, float, float] | None = None
    """Strengths of brightness, contrast, saturation and hue."""
    jitter_p: float | None = Field(default=None, ge=0, le=1)
    """Probability of the colour jitter."""
    grayscale_p: float | None = Field(default=None, ge=0, le=1)
    """Probability of turning gray."""
    blur_p: float | None = Field(default=None, ge=0, le=1)
    """Probability of a Gaussian blur."""
    mean: tuple[float, ...] | None = None
    """Subtracted from values in [0, 1], one number per channel."""
    std: tuple[float, ...] | None = None
    """Divided by, one number per channel."""

    def views(self) -> Views:
        """The views these options stand for.

        Raises:
            ConfigError: no pipeline of this name, or small crops asked of one that has none.
        """
        own = {"preset", "size", "where", "small_crops"}
        changes = {name: value for name, value in self.model_dump(exclude=own).items() if value is not None}
        made = views_preset(self.preset, self.size)
        small = made.small
        full = [view for view in made.views if view not in small]
        if self.small_crops is not None:
            if self.small_crops and not small:
                raise ConfigError(
                    f"views.small_crops {self.small_crops}: the views '{self.preset}' have no small crops; "
                    "take views.preset swav or swav-small"
                )
            small = small[:1] * self.small_crops
        of_small = {name: value for name, value in changes.items() if name != "crop_scale"}
        changed = [_changed(view, changes) for view in full] + [_changed(view, of_small) for view in small]
        return Views(views=tuple(changed))


def _changed(view: View, changes: Mapping[str, Any]) -> View:
    return View.model_validate({**view.model_dump(), **changes})


class Recipe(StrictModel, Generic[Config]):
    """A whole run in one file."""

    system: str
    """Name of the method: moco, moco-v3, dcl, dcl-queue, dcl-v3, swav, mmc."""
    source: str = ""
    """Where the numbers come from."""
    method: Config
    """Settings of the method."""
    views: ViewOptions = ViewOptions()
    """Random views."""
    fit: Fit = Fit()
    """Training."""


def resolve_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe[Any]:
    """A recipe by name or file, with ``changes`` in place and every default written out.

    Args:
        name: a shipped recipe such as ``"moco-v2"``, a YAML file, or a run folder.
        changes: nested fields that replace the recipe's.

    Raises:
        ConfigError: unknown recipe, method or field, or a value out of range; the message names the file and the field.

    >>> resolve_recipe("moco-v2", {"fit": {"epochs": 3}}).fit.epochs
    3
    """
    return resolve("mc_vision", METHODS, lambda config: Recipe[config], name, changes)  # type: ignore[valid-type]


def system_of(name: str | Path) -> str:
    """The method that a recipe names."""
    return recipes.system_of("mc_vision", name)
