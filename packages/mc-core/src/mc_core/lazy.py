"""Lazy public names (PEP 562), so that ``import mc_core`` and ``--help`` cost no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def attach(package: str, names: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``(load, dir)`` for a package whose public names live in submodules.

    Args:
        package: its ``__name__``.
        names: submodule → names it defines. A submodule may also be asked for itself.

    >>> load, listing = attach("mc_core", {"errors": ["McError"]})
    >>> load("McError").__name__, listing()
    ('McError', ['McError', 'errors'])
    """
    home = {name: module for module, members in names.items() for name in members}

    def load(name: str) -> Any:
        if name in home:
            return getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        if name in names:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def listing() -> list[str]:
        return sorted({*home, *names})

    return load, listing
