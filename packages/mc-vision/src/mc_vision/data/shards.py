"""WebDataset shards: tar files in which all files of a sample share a name up to the first dot, read in any order.

Each shard is walked once to note where its members lie; the notes are kept in the cache folder. After that a sample
is one positioned read. Shards behind URLs are fetched first, see :mod:`mc_core.remote`.
"""

from __future__ import annotations

import functools
import json
import os
import re
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.data import BadSampleError
from mc_core.errors import DataError
from mc_core.files import atomic_path
from mc_core.images.decoding import IMAGE_EXTENSIONS
from mc_core.listing import PackedStrings, cache_folder, count_text, fingerprint, log, size_text, stamp
from mc_core.remote import fetch, is_url
from mc_vision.data.folder import not_found
from mc_vision.data.source import CLASS_NAMES, LABEL_NAMES, EncodedSource, ReadOptions, make_ids, make_labels

_INDEX_VERSION = 1
_SIDECAR = 1 << 20  # a label or JSON file larger than this is something else
_LARGE = 1 << 28
_MOST_SHARDS = 1_000_000
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd", b"PK": "zip"}
_TEXTS = ("keys", "labels", "names", "ids")
_PREFERRED = ("jpg", "jpeg", "png", "webp", "avif", "tif", "tiff", "bmp", "gif")


@dataclass(frozen=True)
class ShardIndex:
    """Where the images of one shard lie, and what its sidecar files say about them.

    Attributes:
        keys: of the samples, in the order of the tar file.
        offsets: (N,) int64, first byte of each image.
        sizes: (N,) int64, bytes of each image.
        labels: label of each sample as text, empty where there is none.
        names: class name of each sample, empty where there is none.
        ids: value of the id field, empty where there is none.
    """

    keys: PackedStrings
    offsets: np.ndarray
    sizes: np.ndarray
    labels: PackedStrings
    names: PackedStrings
    ids: PackedStrings


class ShardSource(EncodedSource):
    """Images in tar shards.

    Args:
        shards: local tar files.
        location: for the recipe.
        options: how to read them.

    Raises:
        DataError: a shard is compressed, damaged or truncated, no sample has an image, or some lack a label.
    """

    kind = "webdataset"

    def __init__(self, shards: Sequence[str | Path], location: str, options: ReadOptions | None = None) -> None:
        options = options or ReadOptions()
        self.shards = [os.fspath(shard) for shard in shards]
        parts = _index_all(self.shards, options)
        self.shard_N = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.keys) for part in parts])
        if not len(self.shard_N):
            raise DataError(f"{location}: no sample has an image file (.jpg, .png, …){_endings_found(self.shards)}")
        self.keys = PackedStrings(key for part in parts for key in part.keys)
        self.offsets = np.concatenate([part.offsets for part in parts])
        self.sizes = np.concatenate([part.sizes for part in parts])
        labels, names, ids = ([text for part in parts for text in getattr(part, f)] for f in ("labels", "names", "ids"))
        digest = fingerprint([os.path.basename(shard) for shard in self.shards], self.keys, self.sizes)
        values, classes = None, None
        if options.labels != "none":
            values, classes = make_labels(labels if any(labels) else None, names if any(names) else None, self.name)
            if classes is None and values is not None:
                classes = _listed_classes(self.shards[0], int(values.max()))
        _options_matched(options, location, any(labels), any(names), any(ids))
        super().__init__(
            location, digest, options, labels=values, classes=classes, ids=make_ids(ids if any(ids) else None)
        )
        self._file = functools.lru_cache(maxsize=64)(_ShardFile)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._file = functools.lru_cache(maxsize=64)(_ShardFile)

    def __len__(self) -> int:
        return len(self.shard_N)

    def name(self, index: int) -> str:
        """``shard.tar/key``."""
        return f"{self.shards[self.shard_N[index]]}/{self.keys[index]}"

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image."""
        size = int(self.sizes[index])
        data = self._file(self.shards[self.shard_N[index]]).read(int(self.offsets[index]), size)
        if len(data) != size:
            raise BadSampleError(self.name(index), "the shard became shorter since it was indexed")
        return data


class _ShardFile:
    """A file open for positioned reads, which forked workers and threads may share; closed with its last reference."""

    def __init__(self, path: str) -> None:
        self._handle = -1
        try:
            self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError as error:
            raise DataError(f"{path} was removed while it was in use") from error

    def read(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._handle, size, offset)
        os.lseek(self._handle, offset, os.SEEK_SET)
        return os.read(self._handle, size)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone when the interpreter ends
        if self._handle >= 0:
            close(self._handle)


def open_shards(pattern: str | Path, options: ReadOptions | None = None) -> ShardSource:
    """Shards from a path, a URL, a brace pattern (``"photos-{000..009}.tar"``) or a glob; several joined by ``::``.

    Args:
        pattern: of the shards; URLs take braces but no globs.
        options: ``image_column`` is the ending of the image files where a sample has several (``"left.png"``),
            ``label_column``, ``class_column`` and ``id_column`` are fields of its ``.json`` file.

    Raises:
        DataError: a shard is missing (which one), or cannot be read.
    """
    options = options or ReadOptions()
    text = os.fspath(pattern)
    shards: list[str | Path] = []
    expanded = [name for piece in text.split("::") for name in expand_braces(piece)]
    for name in expanded:
        if is_url(name):
            if any(letter in name.partition("?")[0] for letter in "*["):
                raise DataError(
                    f"{name}: a URL cannot be globbed, spell the shards with braces, as in shard-{{000..009}}.tar"
                )
            shards.append(fetch(name, options.cache_dir))
        elif os.path.exists(name):
            shards.append(name)
        elif found := sorted(glob(name)) if has_magic(name) else []:
            shards.extend(found)
        else:
            which = f" (one of {len(expanded)} named by {text})" if len(expanded) > 1 else ""
            raise DataError(f"no shard {name}{which}" if which or has_magic(name) else not_found(name))
    return ShardSource(shards, text, options)


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


def _index_all(shards: Sequence[str], options: ReadOptions) -> list[ShardIndex]:
    begun = said = time.monotonic()
    parts = []
    for number, shard in enumerate(shards, start=1):
        parts.append(_cached_index(shard, options))
        if time.monotonic() - said > 10 and number < len(shards):
            said = time.monotonic()
            log.info("indexed %d of %s, %.1f/s", number, count_text(len(shards), "shard"), number / (said - begun))
    return parts


def _cached_index(shard: str, options: ReadOptions) -> ShardIndex:
    """The index of a shard, from the cache folder if the file is unchanged."""
    asked = (options.image_column, options.label_column, options.class_column, options.id_column)
    key = fingerprint(stamp(shard), _INDEX_VERSION, repr(asked))
    try:
        cached = cache_folder(options.cache_dir, "index") / f"{Path(shard).stem}-{key}.npz"
    except DataError:
        return index_shard(shard, options)  # a cache saves time, it is not needed
    try:
        with cached.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            texts = {name: PackedStrings.from_arrays(arrays[name + ".data"], arrays[name + ".ends"]) for name in _TEXTS}
            return ShardIndex(offsets=arrays["offsets"], sizes=arrays["sizes"], **texts)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there, or damaged: made anew
    if (size := os.path.getsize(shard)) > _LARGE:
        log.info("indexing %s (%s), once", shard, size_text(size))
    index = index_shard(shard, options)
    columns = {"offsets": index.offsets, "sizes": index.sizes}
    for name in _TEXTS:
        columns[name + ".data"], columns[name + ".ends"] = getattr(index, name).arrays()
    with atomic_path(cached) as draft, draft.open("wb") as file:
        np.savez(file, allow_pickle=False, **columns)
    return index


def index_shard(shard: str, options: ReadOptions | None = None) -> ShardIndex:
    """Walk one tar file.

    Raises:
        DataError: compressed, damaged or truncated; with the last good key.
    """
    options = options or ReadOptions()
    samples: dict[str, dict[str, tuple[int, int]]] = {}
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
            return _assemble(shard, samples, file, options)
    except tarfile.TarError as error:
        raise DataError(
            f"{shard} is damaged or cut off ({error}); the last good key is {last!r}: fetch it again"
        ) from error
    except OSError as error:
        raise DataError(f"{shard} cannot be read ({error.strerror or error})") from error


def _assemble(
    shard: str, samples: dict[str, dict[str, tuple[int, int]]], file: Any, options: ReadOptions
) -> ShardIndex:
    keys, places, labels, names, ids = [], [], [], [], []

    def content(place: tuple[int, int]) -> bytes:
        file.seek(place[0])
        return file.read(min(place[1], _SIDECAR))

    for key, endings in samples.items():
        image = _image_ending(endings, options.image_column, f"{shard}/{key}")
        if image is None:
            continue
        keys.append(key)
        places.append(endings[image])
        record: Any = {}
        if "json" in endings:
            try:
                record = json.loads(content(endings["json"]))
            except ValueError as error:
                raise DataError(f"{shard}/{key}.json is not JSON ({error})") from error
        record = {field: _as_text(value) for field, value in record.items()} if isinstance(record, dict) else {}
        if "cls" in endings and options.label_column in (None, "cls"):
            record["cls"] = content(endings["cls"]).decode("utf-8", "replace").strip()
        chosen = options.label_column is not None or options.class_column is not None
        labels.append(_first(record, options.label_column, () if chosen else ("cls", *LABEL_NAMES)))
        names.append(_first(record, options.class_column, () if chosen else CLASS_NAMES))
        ids.append(_first(record, options.id_column, ()))
    offsets, sizes = np.array(places, dtype=np.int64).reshape(-1, 2).T
    texts = (PackedStrings(texts) for texts in (labels, names, ids))
    return ShardIndex(PackedStrings(keys), offsets.copy(), sizes.copy(), *texts)


def _image_ending(endings: dict[str, tuple[int, int]], wanted: str | None, where: str) -> str | None:
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


def _as_text(value: Any) -> str:
    return str(value) if isinstance(value, (str, int)) else ""


def _first(record: dict[str, str], wanted: str | None, known: Sequence[str]) -> str:
    if wanted is not None:
        return record.get(wanted, "")
    return next((record[name] for name in known if record.get(name)), "")


def _options_matched(options: ReadOptions, location: str, labels: bool, names: bool, ids: bool) -> None:
    asked = (("label_column", labels), ("class_column", names), ("id_column", ids))
    for option, found in asked:
        name = getattr(options, option)
        if name is not None and not found and (option == "id_column" or options.labels != "none"):
            raise DataError(f"{location}: no sample has a JSON field {name!r}, as {option} asks for")


def _listed_classes(shard: str, largest: int) -> list[str] | None:
    """Class names from a ``classes.json`` in the first shard: a list, or a dict from label to name."""
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            if member.name.removeprefix("./") == "classes.json" and (file := tar.extractfile(member)) is not None:
                listed = json.load(file)
                names = listed if isinstance(listed, list) else [listed.get(str(i), str(i)) for i in range(largest + 1)]
                return [str(name) for name in names] if largest < len(names) else None
            if member.offset > _SIDECAR:
                break
    return None


def _endings_found(shards: Sequence[str]) -> str:
    endings: Counter[str] = Counter()
    for shard in shards[:1]:
        with tarfile.open(shard, "r:") as tar:
            endings.update(os.path.basename(member.name).partition(".")[2] for member in tar if member.isfile())
    found = ", ".join(f"{count_text(n, 'file')} .{ending}" for ending, n in endings.most_common(3))
    return f"; the first shard holds {found}" if found else "; the first shard is empty"
