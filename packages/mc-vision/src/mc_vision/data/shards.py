"""WebDataset shards: tar files in which all files of a sample share a name up to the first dot, read in any order.

Each shard is walked once to note where its members lie; the notes are kept in the cache folder. After that a sample
is one positioned read. Shards behind URLs are fetched first, see :mod:`mc_core.remote`.
"""

from __future__ import annotations

import functools
import json
import os
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.data import BadSampleError
from mc_core.errors import DataError
from mc_core.files import atomic_path
from mc_core.listing import PackedStrings, cache_folder, count_text, fingerprint, log, size_text, stamp
from mc_core.shards import Places, ShardFile, find_shards, image_ending, walk_shard
from mc_vision.data.source import CLASS_NAMES, LABEL_NAMES, EncodedSource, ReadOptions, make_ids, make_labels

_INDEX_VERSION = 1
_SIDECAR = 1 << 20  # a label or JSON file larger than this is something else
_LARGE = 1 << 28
_TEXTS = ("keys", "labels", "names", "ids")


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
        self._file = functools.lru_cache(maxsize=64)(ShardFile)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._file = functools.lru_cache(maxsize=64)(ShardFile)

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
    return ShardSource(find_shards(pattern, options.cache_dir), os.fspath(pattern), options)


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
    samples = walk_shard(shard)
    try:
        with open(shard, "rb") as file:
            return _assemble(shard, samples, file, options)
    except OSError as error:
        raise DataError(f"{shard} cannot be read ({error.strerror or error})") from error


def _assemble(shard: str, samples: Places, file: Any, options: ReadOptions) -> ShardIndex:
    keys, places, labels, names, ids = [], [], [], [], []

    def content(place: tuple[int, int]) -> bytes:
        file.seek(place[0])
        return file.read(min(place[1], _SIDECAR))

    for key, endings in samples.items():
        image = image_ending(endings, options.image_column, f"{shard}/{key}")
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
