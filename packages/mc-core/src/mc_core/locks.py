"""Locks between processes, which die with their holder, also after ``kill -9``. Imports no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two processes may then do the same work twice, which renaming makes harmless
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold ``path.lock``, so that of several processes one does the work and the others find it done.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder) / "cache"):
    ...     [path.name for path in Path(folder).iterdir()]
    ['cache.lock']
    """
    with open(path.with_name(path.name + ".lock"), "ab") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
