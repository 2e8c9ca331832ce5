"""Figures of finished runs kept one by one, so that a study of many runs goes on where it stopped. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mc_core.errors import ConfigError
from mc_core.files import read_json, write_json
from mc_core.seeds import Spread


def kept_row(
    folder: Path, name: str, described: Mapping[str, Any], work: Callable[[], Mapping[str, float]]
) -> dict[str, float]:
    """What ``work`` finds, now or, under the very same description, earlier; values that are not finite are left out.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     _ = kept_row(Path(place), "a", {"seed": 0}, lambda: {"mrr": 0.5, "none": math.nan})
    ...     kept_row(Path(place), "a", {"seed": 0}, lambda: {"mrr": 0.9})
    {'mrr': 0.5}
    """
    path = folder / f"{slug(name)}-{digest(described)}.json"
    if not path.exists():
        values = {column: value for column, value in work().items() if math.isfinite(value)}
        write_json(path, {**described, "values": values})
    return dict(read_json(path)["values"])


def all_different(recipes: Mapping[str, Mapping[str, Any]], advice: str) -> None:
    """Refuse two cases that come to the same settings.

    Raises:
        ConfigError: with ``advice`` on what would make them differ.

    >>> all_different({"a": {"k": 1}, "b": {"k": 1}}, "change k")
    Traceback (most recent call last):
    ...
    mc_core.errors.ConfigError: cases 'a' and 'b' come to the same recipe: change k
    """
    seen: dict[str, str] = {}
    for name, recipe in recipes.items():
        other = seen.setdefault(digest(recipe), name)
        if other != name:
            raise ConfigError(f"cases '{other}' and '{name}' come to the same recipe: {advice}")


def digest(value: Any) -> str:
    """A short hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def slug(name: str) -> str:
    """A name as part of a file's.

    >>> slug("in-batch + queue")
    'in-batch-queue'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def plain(rows: Mapping[str, Mapping[str, Spread]]) -> dict[str, dict[str, Any]]:
    """For JSON."""
    return {row: {column: value.to_dict() for column, value in columns.items()} for row, columns in rows.items()}
