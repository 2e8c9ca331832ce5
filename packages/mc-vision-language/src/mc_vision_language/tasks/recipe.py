"""Recipes of the tasks: as those of pretraining, with the settings of a task as ``method``. Imports no torch.

The encoders are those of the pretrained model; a recipe says the size of the pictures (``augment.size``), how many tokens of a text
are kept, and dropout where it is to change.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from pydantic import model_validator

from mc_core import recipes
from mc_core.recipes import resolve, validated
from mc_vision_language.encoders_config import ImageEncoderConfig, VisionLanguageConfig
from mc_vision_language.recipe import Recipe
from mc_vision_language.tasks import TASKS

Config = TypeVar("Config", bound=VisionLanguageConfig)


class TaskRecipe(Recipe[Config], Generic[Config]):
    """A run of a task. The encoders are those of the pretrained model: ``augment.size`` alone says how large pictures are."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        return self


def resolve_task_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> TaskRecipe[Any]:
    """A recipe of a task by name or file, with ``changes`` in place and every default written out.

    Args:
        name: a shipped recipe such as ``"albef-vqa"``, a YAML file, or a run folder.
        changes: nested fields that replace the recipe's.

    Raises:
        ConfigError: unknown recipe, task or field, or a value out of range; the message names the file and the field.

    >>> recipe = resolve_task_recipe("albef-vqa")
    >>> recipe.fit.epochs, recipe.fit.batch_size, recipe.augment.size
    (8, 256, 384)
    """
    return resolve("mc_vision_language", TASKS, lambda config: TaskRecipe[config], name, changes)  # type: ignore[valid-type]


def task_of(name: str | Path) -> str:
    """The task that a recipe names."""
    return recipes.system_of("mc_vision_language", name)


def with_encoders(config: Config, model: VisionLanguageConfig, size: int) -> Config:
    """The settings of a task with the encoders of a pretrained model.

    Args:
        config: of the task.
        model: of the pretrained model.
        size: side of the pictures in pixels.

    Raises:
        ConfigError: pictures of a size that the encoder cannot take.

    >>> from mc_vision_language.tasks.config import VQAConfig
    >>> with_encoders(VQAConfig(), VisionLanguageConfig(dim=32), 96).image.image_size
    96
    """
    text = {"max_length": config.text.max_length}
    if config.text.dropout is not None:
        text["dropout"] = config.text.dropout  # type: ignore[assignment]
    image = model.image.model_dump() | {"image_size": size, "drop_path": config.image.drop_path}
    return config.model_copy(
        update={
            "image": validated(ImageEncoderConfig, image, source=f"augment.size {size}"),
            "text": model.text.model_copy(update=text),
            "dim": model.dim,
            "captions": model.captions,
        }
    )
