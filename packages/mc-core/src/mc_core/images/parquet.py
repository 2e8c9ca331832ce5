"""Encoded images in a column of Parquet files, read in any order."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.errors import BadSampleError, DataError
from mc_core.files import atomic_path
from mc_core.images.decoding import read_file
from mc_core.listing import cache_folder, fingerprint, log, size_text, stamp
from mc_core.locks import locked
from mc_core.optional import require

IN_MEMORY = 256 << 20
"""Bytes of one table that are kept in memory instead of in a mapped file."""


class ParquetCells:
    """Encoded images in a binary column, or in Hugging Face's struct of bytes and path, of one or more Parquet files.

    Small tables are held in memory. Of a larger one the image column is unpacked once into a mapped Arrow file in the
    cache folder: a Parquet page has to be decompressed whole to read one image, a mapped file does not, and its pages
    are shared by all workers. Both are opened in each process on first use.

    Args:
        files: Parquet files with the same columns.
        column: of the images.
        cache_dir: see :func:`~mc_core.listing.cache_folder`.
        extra: what to install where pyarrow is missing, such as ``"mc-vision[parquet]"``.

    Attributes:
        digest: of names, rows and sizes of the files.
    """

    def __init__(
        self, files: Sequence[str], column: str, *, cache_dir: str | Path | None = None, extra: str = "pyarrow"
    ) -> None:
        self.files, self.column, self._extra = list(files), column, extra
        pq = require_parquet(extra)
        counts, unpacked = [], 0
        for file in files:
            metadata = pq.ParquetFile(file, memory_map=True).metadata
            counts.append(metadata.num_rows)
            unpacked += _unpacked_size(metadata, column)
        self.ends = np.cumsum(counts)
        sizes = [os.path.getsize(file) for file in files]
        self.digest = fingerprint([os.path.basename(file) for file in files], np.array(counts), np.array(sizes), column)
        self._mapped: list[Path] | None = None
        if unpacked > IN_MEMORY:
            folder = cache_folder(cache_dir, "arrow")
            self._mapped = [_unpack(file, column, folder, extra) for file in files]
        self._chunks: list[Any] = []
        self._starts: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chunks": [], "_starts": None}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def name(self, index: int) -> str:
        """``file.parquet[row]``, rows counted from 0."""
        position = range(len(self))[index]
        part = int(np.searchsorted(self.ends, position, side="right"))
        return f"{self.files[part]}[{position - (int(self.ends[part - 1]) if part else 0)}]"

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; where the cell holds only a path, those of the file.

        Raises:
            BadSampleError: the cell is empty, or the file it names is missing.
        """
        if self._starts is None:
            self._open()
        assert self._starts is not None
        position = range(len(self))[index]
        part = int(np.searchsorted(self._starts, position, side="right")) - 1
        cell = self._chunks[part][position - int(self._starts[part])].as_py()
        if isinstance(cell, dict):
            path = cell.get("path")
            cell = cell["bytes"]
            if cell is None and path:
                root = os.path.dirname(self.files[int(np.searchsorted(self.ends, position, side="right"))])
                return read_file(os.path.join(root, path), name=self.name(index))
        if cell is None:
            raise BadSampleError(self.name(index), "the image cell is empty")
        return cell

    def sizes(self) -> np.ndarray:
        """(N,) int64 bytes of each image, or of the file it names, read from the offsets alone; −1 where the cell is empty."""
        if self._starts is None:
            self._open()
        folders = [os.path.dirname(file) for file in self.files]
        parts = np.searchsorted(self.ends, np.arange(len(self)), side="right")
        return cell_sizes(self._chunks, [folders[part] for part in parts.tolist()])

    def _open(self) -> None:
        if self._mapped is None:
            tables = [read_columns(file, [self.column], extra=self._extra) for file in self.files]
        else:
            pa = require("pyarrow", extra=self._extra, purpose="read Parquet files")
            tables = [pa.ipc.open_file(pa.memory_map(os.fspath(path))).read_all() for path in self._mapped]
        self._chunks = [chunk for table in tables for chunk in table.column(self.column).chunks if len(chunk)]
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._chunks[:-1])])


def cell_sizes(chunks: Sequence[Any], folders: Sequence[str] | None = None) -> np.ndarray:
    """(N,) int64 bytes of each image of a column, −1 where the cell is empty.

    Args:
        chunks: of a binary column, or of structs of bytes and path.
        folders: N, what paths are relative to.
    """
    compute = importlib.import_module("pyarrow.compute")
    found = []
    for chunk in chunks:
        cells = chunk.field("bytes") if hasattr(chunk, "field") else chunk
        sizes = compute.fill_null(compute.binary_length(cells), -1).to_numpy(zero_copy_only=False).astype(np.int64)
        found.append(np.where(chunk.is_valid().to_numpy(zero_copy_only=False), sizes, -1))
    sizes_N = np.concatenate(found) if found else np.zeros(0, np.int64)
    if any(hasattr(chunk, "field") and "path" in {field.name for field in chunk.type} for chunk in chunks):
        paths = [path for chunk in chunks for path in chunk.field("path").to_pylist()]
        for row in np.flatnonzero(sizes_N < 0).tolist():
            path = paths[row] and os.path.join(folders[row] if folders else "", paths[row])
            if path and os.path.isfile(path):
                sizes_N[row] = os.path.getsize(path)
    return sizes_N


def read_columns(file: str, columns: list[str], *, extra: str = "pyarrow") -> Any:
    """Some columns of a Parquet file, as a pyarrow table.

    Raises:
        DataError: the file is damaged.
    """
    pq = require_parquet(extra)
    try:
        return pq.read_table(file, columns=columns, memory_map=True, partitioning=None)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: column {columns[0]!r} cannot be read, the file is damaged ({one_line(error)})"
        ) from error


def require_parquet(extra: str) -> Any:
    """The module ``pyarrow.parquet``, or a message that names the extra."""
    return require("pyarrow.parquet", extra=extra, purpose="read Parquet files")


def one_line(error: Exception) -> str:
    """The message of a library's error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _unpacked_size(metadata: Any, column: str) -> int:
    total = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for i in range(row_group.num_columns):
            part = row_group.column(i)
            if part.path_in_schema.split(".")[0] == column:
                total += part.total_uncompressed_size
    return total


def _unpack(file: str, column: str, folder: Path, extra: str) -> Path:
    """The image column of a Parquet file as an Arrow file in ``folder``, made unless it is there."""
    pa = require("pyarrow", extra=extra, purpose="read Parquet files")
    target = folder / f"{Path(file).stem}-{fingerprint(stamp(file), column)}.arrow"
    with locked(target):
        if target.exists():
            return target
        parquet = require_parquet(extra).ParquetFile(file, memory_map=True)
        size, free = _unpacked_size(parquet.metadata, column), shutil.disk_usage(folder).free
        if size > 0.95 * free:
            raise DataError(
                f"{file} needs {size_text(size)} in the cache for random access, {folder} has {size_text(free)} free: "
                "name another folder as cache_dir"
            )
        log.info("unpacking %s of %s into %s, once", size_text(size), file, target)
        schema = pa.schema([parquet.schema_arrow.field(column)])
        with (
            atomic_path(target) as draft,
            pa.OSFile(os.fspath(draft), "wb") as sink,
            pa.ipc.new_file(sink, schema) as writer,
        ):
            for group in range(parquet.num_row_groups):
                try:
                    table = parquet.read_row_group(group, columns=[column])
                except (OSError, ValueError) as error:
                    raise DataError(f"{file}, row group {group}: damaged ({one_line(error)})") from error
                writer.write_table(table.cast(schema))
    return target
