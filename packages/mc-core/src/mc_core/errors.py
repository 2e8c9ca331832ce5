"""One small hierarchy of errors whose text is meant for the person who has to act on it.

A message gives the value, where it came from (file, row, option), what would be right, and the next step. A command prints
it as one line and exits with ``exit_code``; a library user catches :class:`McError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class McError(Exception):
    """Base of every error this project raises on purpose. ``exit_code`` is what a command ends with."""

    exit_code = 2


class ConfigError(McError):
    """An option, a recipe or a combination of them that cannot work."""


class DataError(McError):
    """Data that is missing, empty, unreadable or of the wrong shape."""


class BadSampleError(DataError):
    """One sample cannot be read. The loader skips and counts it.

    Args:
        name: path or key of the sample.
        reason: what is wrong with it, in a few words.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.name, self.reason)


class MissingDependencyError(McError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


class CheckpointError(McError):
    """A checkpoint or saved model that does not belong here, or cannot be read."""


class RunError(McError):
    """A failure while running (NaN, collapse, full disk). What was already saved stays saved."""

    exit_code = 1


class NonFiniteError(RunError):
    """The loss, or what it is made of, became NaN or infinite."""


class CollapseError(RunError):
    """The representation collapsed: every sample has (nearly) the same features."""


class InterruptedRunError(McError):
    """The user or the scheduler asked the run to stop; it was saved first."""

    exit_code = 130


def closest(name: str, choices: Iterable[str], *, count: int = 3) -> str:
    """The choices most like ``name``, as text for an error message.

    >>> closest("moco-v4", ["moco-v1", "moco-v2", "dcl"])
    'moco-v2, moco-v1'
    >>> closest("zzz", ["moco-v1", "dcl"])
    'moco-v1, dcl'
    """
    options = list(choices)
    found = difflib.get_close_matches(name, options, n=count, cutoff=0.5)
    return ", ".join(found or options[: 2 * count])
