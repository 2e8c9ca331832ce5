"""What listings of files share, whatever their format: packed strings, fingerprints, the cache folder, text for people."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from mc_core.errors import DataError, closest

log = logging.getLogger("mc_core.listing")  # below the logger that commands show


class PackedStrings(Sequence[str]):
    """Many strings in one buffer. A million paths as Python objects are copied into every forked worker by their
    reference counts; these are not.

    >>> names = PackedStrings(["a/1.jpg", "b/2.jpg"])
    >>> names[1], names[-2], len(names)
    ('b/2.jpg', 'a/1.jpg', 2)
    """

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [_encode(text) for text in strings]
        self.data = b"".join(encoded)
        self.ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), dtype=np.int64)

    @classmethod
    def from_arrays(cls, data: np.ndarray, ends: np.ndarray) -> PackedStrings:
        """From the bytes (uint8) and the end of each string (int64), as :meth:`arrays` gives them."""
        packed = cls.__new__(cls)
        packed.data, packed.ends = data.tobytes(), ends
        return packed

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The bytes (uint8) and the end of each string (int64)."""
        return np.frombuffer(self.data, np.uint8), self.ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} entries")
        start = int(self.ends[position - 1]) if position else 0
        return self.data[start : int(self.ends[position])].decode("utf-8", "surrogateescape")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # file names need not be valid UTF-8


def fingerprint(*parts: PackedStrings | np.ndarray | Sequence[str] | str | int | None) -> str:
    """A 128-bit hexadecimal digest of a listing; equal parts, equal digest, on any machine."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, PackedStrings):
            blocks = [part.data, part.ends.astype("<i8").tobytes()]
        elif isinstance(part, np.ndarray):
            blocks = [str(part.dtype).encode(), str(part.shape).encode(), np.ascontiguousarray(part).tobytes()]
        elif part is None or isinstance(part, (str, int)):
            blocks = [_encode(repr(part))]
        else:
            blocks = [_encode(repr(list(part)))]
        for block in blocks:
            state.update(len(block).to_bytes(8, "little"))
            state.update(block)
    return state.hexdigest()[:32]


def cache_folder(cache_dir: str | Path | None, kind: str) -> Path:
    """``cache_dir``/kind, created. Default: ``$MC_CACHE``, else ``momentum-contrast`` in ``$XDG_CACHE_HOME`` or
    ``~/.cache``.

    Raises:
        DataError: the folder cannot be created or written.
    """
    if cache_dir is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache_dir = os.environ.get("MC_CACHE") or Path(home) / "momentum-contrast"
    folder = Path(cache_dir).expanduser() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot create the cache folder {folder} ({error.strerror}): name another as cache_dir"
        ) from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"cannot write to the cache folder {folder}: name another as cache_dir")
    return folder


def stamp(path: str | Path) -> str:
    """A cache key that changes with the file: its absolute path, size and modification time."""
    status = os.stat(path)
    return fingerprint(os.path.abspath(path), status.st_size, status.st_mtime_ns)


def size_text(count: float) -> str:
    """A number of bytes for people.

    >>> size_text(532), size_text(6_920_000)
    ('532 B', '6.9 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def count_text(count: int, noun: str) -> str:
    """
    >>> count_text(1, "image"), count_text(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def walk(root: str) -> Iterator[str]:
    """Relative paths of all visible files, in no particular order, without asking the system about each file.

    Links to folders are followed, but not back into a folder that contains them.

    Raises:
        DataError: a folder cannot be read. Going on without it would train on less than was asked for.
    """
    todo: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", (_identity(root),))]
    while todo:
        relative, ancestors = todo.pop()
        try:
            with os.scandir(os.path.join(root, relative)) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    path = relative + entry.name
                    if not _is_folder(entry):
                        yield path
                        continue
                    identity = _identity(entry.path)
                    if identity not in ancestors:
                        todo.append((path + "/", (*ancestors, identity)))
        except OSError as error:
            where = os.path.join(root, relative)
            raise DataError(
                f"cannot read the folder {where} ({error.strerror}): give access, or move it away"
            ) from error


def not_found(path: str) -> str:
    """The message for a path that does not exist, with what is there instead."""
    if os.path.exists(path):
        return f"{path} is a file, not a folder"
    parent = Path(path).absolute().parent
    while not parent.is_dir():
        parent = parent.parent
    try:
        names = sorted(name for name in os.listdir(parent) if not name.startswith("."))
    except OSError:
        names = []
    return f"{path} does not exist; {parent} holds {closest(Path(path).name, names) if names else 'nothing'}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
