"""The recipe of a training run on pairs of question and code. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from mc_core.engine.config import Fit, StrictModel
from mc_core.errors import ConfigError
from mc_core.recipes import resolve, system_of
from mc_text_code.methods import METHODS

Config = TypeVar("Config", bound=BaseModel)
SYSTEM = "cocosoda"


class CodeBatchOptions(StrictModel):
    """What is read of pairs and how they are put into batches; see :class:`mc_text_code.data.code_data.CodeData`."""

    query_length: int = Field(default=128, ge=4)
    """Tokens of a question, special ones included; longer ones are cut."""
    form: Literal["tokens", "source"] = "source"
    """`tokens`: code as its tokens with a space between, as in the published data; `source`: as it is written and searched."""
    one_language: bool = False
    """Batches of one language each, as published."""
    language_exponent: float = Field(default=0.7, ge=0, le=1)
    """With `one_language`: a language is drawn by (its pairs) to this power."""


class CodeRecipe(StrictModel, Generic[Config]):
    """A whole run in one file."""

    system: str
    """Name of the method: cocosoda."""
    source: str = ""
    """Where the numbers come from."""
    method: Config
    """Settings of the method."""
    batches: CodeBatchOptions = CodeBatchOptions()
    """Batches."""
    fit: Fit = Fit()
    """Training."""


def resolve_code_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> CodeRecipe[Any]:
    """A recipe by name or file, with ``changes`` in place and every default written out.

    Args:
        name: a shipped recipe such as ``"cocosoda"``, a YAML file, or a run folder.
        changes: nested fields that replace the recipe's.

    Raises:
        ConfigError: unknown recipe, method or field, or a value out of range; the message names the file and the field.

    >>> recipe = resolve_code_recipe("cocosoda", {"fit": {"steps": 3}})
    >>> recipe.fit.steps, recipe.method.queue_size, recipe.method.augment.rate
    (3, 4096, 0.15)
    """
    system = system_of("mc_text_code", name)
    if system != SYSTEM:
        raise ConfigError(
            f"{name} is a recipe of {system or 'no method'}, which learns from sentences; for code take cocosoda"
        )
    return resolve("mc_text_code", METHODS, lambda config: CodeRecipe[config], name, changes)  # type: ignore[valid-type]
