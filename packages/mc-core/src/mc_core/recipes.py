"""Recipes: YAML files whose fields are those of a pydantic model, shipped in a package or written by the user. Imports no torch."""

from __future__ import annotations

import importlib
import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mc_core.errors import ConfigError, closest

Model = TypeVar("Model", bound=BaseModel)


def recipe_names(package: str) -> list[str]:
    """Names of the recipes shipped in ``package`` (its folder ``recipes/``), sorted.

    Args:
        package: a package name such as ``"mc_vision"``.
    """
    folder = importlib.resources.files(package) / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(package: str, name: str | Path) -> dict[str, Any]:
    """A recipe by its shipped name or by the path of a YAML file.

    Raises:
        ConfigError: no such recipe (the closest names are offered), or a file that is no YAML mapping.
    """
    import yaml  # not at the top: help would wait for it

    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        if path.is_dir():
            path = path / "recipe.yaml"  # a run folder: its resolved recipe
        try:
            text, source = path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the recipe {path}: {error}") from error
    else:
        names = recipe_names(package)
        if str(name) not in names:
            raise ConfigError(
                f"no recipe named '{name}': did you mean {closest(str(name), names)}? (or give a .yaml file)"
            )
        text = (importlib.resources.files(package) / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        source = f"recipe {name}"
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: a recipe is a mapping of fields, this is a {type(content).__name__}")
    return content


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the fields of ``over`` in their place, mappings merged level by level.

    >>> merge({"fit": {"lr": 0.1, "epochs": 5}}, {"fit": {"lr": 0.2}})
    {'fit': {'lr': 0.2, 'epochs': 5}}
    """
    merged = dict(base)
    for name, value in over.items():
        known = merged.get(name)
        merged[name] = merge(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def validated(model: type[Model], content: Mapping[str, Any], *, source: str) -> Model:
    """Build ``model`` from plain data, or say in one line what is wrong and where.

    Args:
        model: the configuration model.
        content: nested plain data.
        source: where it came from, for the message.

    Raises:
        ConfigError: an unknown field (with the closest names), a wrong type or a value out of range.

    >>> from mc_core.engine.config import Fit
    >>> validated(Fit, {"epochz": 3}, source="my.yaml")
    Traceback (most recent call last):
    mc_core.errors.ConfigError: my.yaml: unknown field epochz; did you mean epochs?
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = [_explain(model, problem) for problem in error.errors()]
        raise ConfigError(f"{source}: {'; '.join(dict.fromkeys(problems))}") from error


def _explain(model: type[BaseModel], problem: Any) -> str:
    place = [part for part in problem["loc"] if isinstance(part, str) or part is not None]
    name = ".".join(str(part) for part in place)
    if problem["type"] == "extra_forbidden":
        siblings = _fields(model, place[:-1])
        wanted = closest(str(place[-1]), siblings, count=1) if siblings else ""
        return f"unknown field {name}" + (f"; did you mean {wanted}?" if wanted else "")
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{name} is missing"
    given = problem.get("input")
    shown = "" if isinstance(given, (dict, list)) or problem["type"] == "value_error" else f" (given {given!r})"
    return f"{name}: {message}{shown}" if name else f"{message}{shown}"


def _fields(model: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """Field names of the model found by walking ``place`` down from ``model`` (empty when it cannot be found)."""
    for part in place:
        field = model.model_fields.get(str(part))
        inner = getattr(field, "annotation", None)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def to_yaml(model: BaseModel) -> str:
    """A configuration as YAML, every field written out.

    >>> from mc_core.engine.config import Fit
    >>> "batch_size: 32" in to_yaml(Fit(batch_size=32))
    True
    """
    import yaml  # not at the top: help would wait for it

    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class MethodTable:
    """The methods of a domain package by name, without importing any of them until one is asked for.

    Args:
        entries: name → ("module:ConfigClass", "module:MethodClass").
    """

    def __init__(self, entries: Mapping[str, tuple[str, str]]) -> None:
        self._entries = dict(entries)

    @property
    def names(self) -> list[str]:
        """All names, in the order of the table."""
        return list(self._entries)

    def config_class(self, name: str) -> type[BaseModel]:
        """The configuration model of a method (imports no torch)."""
        return _import(self._entry(name)[0])

    def method_class(self, name: str) -> type[Any]:
        """The method itself; it is built from its configuration alone."""
        return _import(self._entry(name)[1])

    def _entry(self, name: str) -> tuple[str, str]:
        if name not in self._entries:
            raise ConfigError(f"no method named '{name}': did you mean {closest(name, self._entries)}?")
        return self._entries[name]


def _import(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def resolve(
    package: str,
    methods: MethodTable,
    recipe_of: Callable[[type[BaseModel]], type[Model]],
    name: str | Path,
    changes: Mapping[str, Any] | None = None,
) -> Model:
    """A recipe with ``changes`` in place and every default written out; its ``system`` names the method that it configures.

    Args:
        package: whose recipes, such as ``"mc_vision"``.
        methods: of that package.
        recipe_of: configuration model of a method → model of the whole recipe.
        name: a shipped recipe, a YAML file, or a run folder.
        changes: nested fields that replace the recipe's; ``fit.epochs`` also replaces its steps, and the reverse.

    Raises:
        ConfigError: unknown recipe, method or field, or a value out of range; the message names the file and the field.
    """
    content = load_recipe(package, name)
    given = dict(changes or {})
    fit = given.get("fit", {})
    if "epochs" in fit or "steps" in fit:  # one replaces the other
        content["fit"] = {n: v for n, v in content.get("fit", {}).items() if n not in ("epochs", "steps")}
    system = str(given.get("system", content.get("system", "")))
    source = str(name) if not given else f"{name} with the options given"
    return validated(recipe_of(methods.config_class(system)), merge({"method": {}, **content}, given), source=source)


def system_of(package: str, name: str | Path) -> str:
    """The method that a recipe of ``package`` names."""
    return str(load_recipe(package, name).get("system", ""))
