"""Locks that die with their process, also after ``kill -9``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Self

try:
    import fcntl
except ImportError:  # Windows: SQLite's own locks keep its file whole; vectors are not protected from a second writer
    fcntl = None  # type: ignore[assignment]

_PAUSE = 0.02


class FileLock:
    """A lock on a file: one holder at a time, over threads and processes.

    Args:
        path: of the lock's file; it is made and never removed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first, second = FileLock(Path(folder) / "a.lock"), FileLock(Path(folder) / "a.lock")
    ...     print(first.acquire(), second.acquire(), first.release(), second.acquire(), second.release())
    True False None True None
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        """Whether it is ours."""
        return self._handle is not None

    def acquire(self, seconds: float = 0.0) -> bool:
        """Take it, waiting so long at the most.

        Returns:
            Whether it is ours now.
        """
        if self._handle is not None:
            raise RuntimeError(f"{self.path} is locked twice")
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        end = time.monotonic() + seconds
        while fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= end:
                    os.close(handle)
                    return False
                time.sleep(_PAUSE)
        self._handle = handle
        return True

    def release(self) -> None:
        """Give it back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
