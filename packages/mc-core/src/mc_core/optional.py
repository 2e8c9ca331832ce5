"""The one way to import an optional package."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from mc_core.errors import MissingDependencyError


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import ``module`` or say which extra to install.

    Args:
        module: dotted name of the module, for example ``"sklearn.datasets"``.
        extra: what to install, for example ``"mc-core[samples]"``.
        purpose: what it is needed for, to finish the sentence "… is needed to".

    Raises:
        MissingDependencyError: the package is not installed.

    >>> require("json", extra="nothing", purpose="read JSON").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name != top:
            raise  # the package is there, something inside it is not: that is not ours to explain
        raise MissingDependencyError(
            f"the package '{top}' is needed to {purpose}: pip install \"{extra}\"", name=error.name
        ) from error


class Deferred:
    """A module that is imported when something of it is first asked for, so that what holds it imports without the package.

    Args:
        module, extra, purpose: see :func:`require`, which raises at that moment.

    >>> Deferred("json", extra="nothing", purpose="read JSON").loads("[1]")
    [1]
    """

    def __init__(self, module: str, *, extra: str, purpose: str) -> None:
        self._module, self._extra, self._purpose = module, extra, purpose

    def __getattr__(self, name: str) -> Any:
        return getattr(require(self._module, extra=self._extra, purpose=self._purpose), name)
