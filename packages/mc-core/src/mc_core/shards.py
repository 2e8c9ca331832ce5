"""Tar files read in any order, and WebDataset's shards among them: files of a sample share a name up to the first dot.

A shard is walked once to note where its members lie; after that a sample is one positioned read. Shards behind URLs are fetched
first, see :mod:`mc_core.remote`.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable
from glob import glob, has_magic
from itertools import product
from pathlib import Path

import numpy as np

from mc_core.errors import DataError
from mc_core.images.formats import IMAGE_EXTENSIONS
from mc_core.listing import not_found
from mc_core.remote import fetch, is_url

Places = dict[str, dict[str, tuple[int, int]]]
"""Key of a sample → ending of each of its files → first byte and size."""

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd", b"PK": "zip"}
_MOST_SHARDS = 1_000_000
_PREFERRED = ("jpg", "jpeg", "png", "webp", "avif", "tif", "tiff", "bmp", "gif")


def find_shards(pattern: str | Path, cache_dir: str | Path | None = None) -> list[str]:
    """Local paths of shards from a path, a URL, a brace pattern (``"photos-{000..009}.tar"``) or a glob; several joined by ``::``.

    Args:
        pattern: of the shards; URLs take braces but no globs.
        cache_dir: where those behind URLs are fetched to; see :func:`~mc_core.listing.cache_folder`.

    Raises:
        DataError: a shard is missing (which one).
    """
    text = os.fspath(pattern)
    shards: list[str] = []
    expanded = [name for piece in text.split("::") for name in expand_braces(piece)]
    for name in expanded:
        if is_url(name):
            if any(letter in name.partition("?")[0] for letter in "*["):
                raise DataError(
                    f"{name}: a URL cannot be globbed, spell the shards with braces, as in shard-{{000..009}}.tar"
                )
            shards.append(os.fspath(fetch(name, cache_dir)))
        elif os.path.exists(name):
            shards.append(name)
        elif found := sorted(glob(name)) if has_magic(name) else []:
            shards.extend(found)
        else:
            which = f" (one of {len(expanded)} named by {text})" if len(expanded) > 1 else ""
            raise DataError(f"no shard {name}{which}" if which or has_magic(name) else not_found(name))
    return shards


def expand_braces(pattern: str) -> list[str]:
    """Every name that a brace pattern spells, in order. Ranges keep their leading zeros.

    Raises:
        DataError: a range is larger than a million.

    >>> expand_braces("{a,b}-{008..010}.tar")
    ['a-008.tar', 'a-009.tar', 'a-010.tar', 'b-008.tar', 'b-009.tar', 'b-010.tar']
    """
    pieces = re.split(r"(\{[^{}]*\})", pattern)
    choices = [_choices(piece, pattern) for piece in pieces]
    if np.prod([float(len(choice)) for choice in choices]) > _MOST_SHARDS:
        raise DataError(f"{pattern} spells more than {_MOST_SHARDS:,} names")
    return ["".join(parts) for parts in product(*choices)]


def _choices(piece: str, pattern: str) -> list[str]:
    if span := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", piece):
        first, last = span.groups()
        step = 1 if int(first) <= int(last) else -1
        if abs(int(last) - int(first)) >= _MOST_SHARDS:
            raise DataError(f"{pattern} spells more than {_MOST_SHARDS:,} names")
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        return [str(number).zfill(width) for number in range(int(first), int(last) + step, step)]
    if piece.startswith("{") and "," in piece:
        return piece[1:-1].split(",")
    return [piece]


def walk_shard(shard: str) -> Places:
    """Where the files of each sample lie, samples in the order of the tar file.

    Raises:
        DataError: compressed, damaged or truncated; with the last good key.
    """
    samples: Places = {}
    last = "none"
    try:
        size = os.path.getsize(shard)
        with open(shard, "rb") as file:
            if kind := _COMPRESSED.get(file.read(2)):
                raise DataError(
                    f"{shard} is compressed with {kind}: decompress it to a plain .tar, images gain nothing from it"
                )
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep every member
                    if member.isfile() and member.offset_data + member.size > size:
                        raise tarfile.ReadError("unexpected end of data")
                    split = (
                        re.fullmatch(r"(?:\./)?((?:.*/)?[^./][^./]*)\.([^/]*)", member.name)
                        if member.isfile()
                        else None
                    )
                    if split is None:
                        continue
                    key, ending = split[1], split[2].lower()
                    endings = samples.setdefault(key, {})
                    if ending in endings:
                        raise DataError(
                            f"{shard}: sample {key!r} has two files .{ending}; give every sample its own key"
                        )
                    endings[ending] = (member.offset_data, member.size)
                    last = key
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a broken header for the end
                    raise tarfile.ReadError("a header is damaged")
    except tarfile.TarError as error:
        raise DataError(
            f"{shard} is damaged or cut off ({error}); the last good key is {last!r}: fetch it again"
        ) from error
    except OSError as error:
        raise DataError(f"{shard} cannot be read ({error.strerror or error})") from error
    return samples


def image_ending(endings: dict[str, tuple[int, int]], wanted: str | None, where: str) -> str | None:
    """Which file of a sample is its image: the one asked for, else a plain ``.jpg`` before any ``.seg.png``."""
    if wanted is not None:
        ending = wanted.lower().lstrip(".")
        return ending if ending in endings else None
    images = [ending for ending in endings if "." + ending.rpartition(".")[2] in IMAGE_EXTENSIONS]
    plain = [ending for ending in images if "." not in ending]
    for ending in _PREFERRED:
        if ending in plain:
            return ending
    if len(plain or images) > 1:
        raise DataError(f"{where} has several images ({', '.join(plain or images)}): say which with image_column")
    return (plain or images or [None])[0]


class ShardFile:
    """A file open for positioned reads, which forked workers and threads may share; closed with its last reference."""

    def __init__(self, path: str) -> None:
        self._handle = -1
        try:
            self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError as error:
            raise DataError(f"{path} was removed while it was in use") from error

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` on; fewer if the file ends before."""
        if hasattr(os, "pread"):
            return os.pread(self._handle, size, offset)
        os.lseek(self._handle, offset, os.SEEK_SET)
        return os.read(self._handle, size)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone when the interpreter ends
        if self._handle >= 0:
            close(self._handle)
