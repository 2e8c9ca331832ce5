"""Hugging Face data sets: ``"hf:user/name:split"`` from the hub, or a folder or .arrow file that `datasets` saved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from mc_core.errors import ConfigError, DataError, McError, closest
from mc_core.optional import require

SAVED_FILES = frozenset(("dataset_info.json", "dataset_dict.json", "state.json"))
"""What a folder written by ``save_to_disk`` holds one of."""


def load_hub(spec: str, *, extra: str) -> tuple[Any, str]:
    """Load ``"hf:user/name[:split][?config=…&revision=…]"``, which `datasets` fetches into its own cache if need be.

    Code of a data set is never run.

    Args:
        spec: which.
        extra: what to install where `datasets` is missing, such as ``"mc-vision[datasets]"``.

    Returns:
        A data set, or a mapping of splits; and the split that was named, or "".

    Raises:
        DataError: it cannot be loaded.
        ConfigError: an unknown setting after "?".
    """
    datasets = require_datasets(extra)
    text, _, query = spec.removeprefix("hf:").partition("?")
    name, _, split = text.partition(":")
    settings = dict(parse_qsl(query))
    if unknown := sorted(set(settings) - {"config", "revision"}):
        raise ConfigError(f"{spec}: unknown {unknown[0]!r}; after '?' come config and revision")
    try:
        found = datasets.load_dataset(name, settings.get("config"), revision=settings.get("revision"))
    except (McError, KeyboardInterrupt):
        raise
    except Exception as error:  # the hub client's errors share no base class
        raise DataError(f"{spec}: {' '.join(str(error).split()) or type(error).__name__}") from error
    return found, split


def load_saved(path: str | Path, *, extra: str) -> tuple[Any, str]:
    """Load a folder written by ``save_to_disk`` (``folder:split`` picks a split), or an ``.arrow`` file.

    Returns:
        A data set, or a mapping of splits; and the split that was named, or "".

    Raises:
        DataError: it cannot be loaded.
    """
    datasets = require_datasets(extra)
    spec = os.fspath(path)
    folder, split = (spec, "") if os.path.exists(spec) else spec.rsplit(":", 1)
    try:
        found = datasets.load_from_disk(folder) if os.path.isdir(folder) else datasets.Dataset.from_file(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} cannot be opened with datasets ({' '.join(str(error).split())})") from error
    return found, split


def require_datasets(extra: str) -> Any:
    """The package `datasets`, or a message that names the extra."""
    return require("datasets", extra=extra, purpose="read Hugging Face data sets")


def one_split(found: Any, split: str, spec: str) -> Any:
    """The data set of the split that was named; without one ``train``, or the only one.

    Raises:
        DataError: there is no such split, or there are several and none was named.
    """
    if not isinstance(found, Mapping):
        if split:
            raise DataError(f"{spec} has no splits, leave out {':' + split!r}")
        return found
    names = list(found)
    chosen = split or ("train" if "train" in names else names[0] if len(names) == 1 else "")
    if chosen not in names:
        problem = (
            f"no split {split!r}; closest: {closest(split, names)}"
            if split
            else f"the splits {', '.join(names)}: name one"
        )
        raise DataError(f"{spec} has {problem}")
    return found[chosen]
