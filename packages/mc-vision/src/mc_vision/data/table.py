"""Tables of images: lists of paths, CSV and TSV files of paths, Parquet files of paths or of encoded bytes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mc_core.errors import DataError
from mc_core.images.parquet import ParquetCells, one_line, read_columns, require_parquet
from mc_core.optional import require
from mc_vision.data.folder import PathSource
from mc_vision.data.source import (
    CLASS_NAMES,
    ID_NAMES,
    LABEL_NAMES,
    EncodedSource,
    ReadOptions,
    find_column,
    make_ids,
    make_labels,
)

if TYPE_CHECKING:
    import pyarrow as pa

PATH_NAMES = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image_path", "image_file"),
    *("image", "img", "img_path", "picture"),
)
_BYTES_NAMES = ("image", "img", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "picture", "data")
_EXTRA = "mc-vision[parquet]"


def open_list(path: str | Path, options: ReadOptions | None = None) -> PathSource:
    """A text file with the path of one image per line, relative to the file's folder. Blank lines are passed over.

    Raises:
        DataError: not text, or no line, or none of the first files is there.
    """
    rows = [(number, line.strip()) for number, line in enumerate(_text(path).splitlines(), start=1)]
    rows = [(number, line) for number, line in rows if line]
    if not rows:
        raise DataError(f"{path} is empty: write the path of one image per line")
    paths = [line for _, line in rows]
    root = os.path.dirname(os.fspath(path))
    _check_root(paths, root, lambda row: f"{path}, line {rows[row][0]}")
    return PathSource(paths, root, options or ReadOptions(), kind="list", location=os.fspath(path))


def open_csv(path: str | Path, options: ReadOptions | None = None) -> PathSource:
    """A CSV or TSV file with a header, a column of paths, and optionally columns of labels, class names and ids.

    Paths are relative to the file's folder. Columns go by their usual names (``path``, ``file_name``, ``image``;
    ``label``; ``class_name``; ``id`` …) unless ``options`` name them. The delimiter is tab for .tsv, else
    comma or semicolon.

    Raises:
        DataError: a column is missing, a row has more or fewer cells than the header, a cell is empty; with the line.
    """
    options = options or ReadOptions()
    where = os.fspath(path)
    lines = _text(path).splitlines(keepends=True)
    delimiter = (
        "\t" if where.lower().endswith(".tsv") else ";" if lines and ";" in lines[0] and "," not in lines[0] else ","
    )
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    rows, numbers = [], []
    try:
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(f"{where}, line {reader.line_num}: {len(row)} cells, the header has {len(header)}")
            rows.append(row)
            numbers.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{where}, line {reader.line_num}: {error}") from error
    column = find_column(header, options.image_column, PATH_NAMES, option="image_column", where=where)
    if column is None:
        raise DataError(
            f"{where}, line 1: no column of image paths among {', '.join(map(repr, header)) or 'no columns'}: "
            "the first line must name the columns; call it 'path', or say which it is with image_column"
        )
    if not rows:
        raise DataError(f"{where} has a header and no rows")

    def line(row: int) -> str:
        return f"{where}, line {numbers[row]}"

    def cells(name: str | None) -> list[str] | None:
        return None if name is None else [row[header.index(name)].strip() for row in rows]

    paths = cells(column) or []
    for row, text in enumerate(paths):
        if not text:
            raise DataError(f"{line(row)}: the cell {column!r} is empty, it needs the path of an image")
    label, name, group = _value_columns(header, options, where)
    labels, classes = make_labels(cells(label), cells(name), line)
    root = os.path.dirname(where)
    _check_root(paths, root, line)
    return PathSource(
        paths, root, options, kind="table", location=where, labels=labels, classes=classes, ids=make_ids(cells(group))
    )


class ParquetSource(EncodedSource):
    """Encoded images in a column of Parquet files; see :class:`~mc_core.images.parquet.ParquetCells`.

    Args:
        files: Parquet files with the same columns.
        column: of the images.
        location: for the recipe.
        options: how to read them.
        labels: (N,) int64.
        classes: name of each label.
        ids: (N,) int64.
    """

    kind = "parquet"

    def __init__(
        self,
        files: Sequence[str],
        column: str,
        location: str,
        options: ReadOptions,
        *,
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
        ids: np.ndarray | None = None,
    ) -> None:
        self.cells = ParquetCells(files, column, cache_dir=options.cache_dir, extra=_EXTRA)
        super().__init__(location, self.cells.digest, options, labels=labels, classes=classes, ids=ids)

    def __len__(self) -> int:
        return len(self.cells)

    def name(self, index: int) -> str:
        """``file.parquet[row]``, rows counted from 0."""
        return self.cells.name(index)

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; where the cell holds only a path, those of the file."""
        return self.cells.read(index)


def open_parquet(
    files: Sequence[str | Path], options: ReadOptions | None = None, *, location: str = ""
) -> EncodedSource:
    """One or more Parquet files with a column of encoded images or of paths; columns are found as in :func:`open_csv`.

    Raises:
        DataError: a file is damaged, lacks the column, or has an empty label; with file and row.
        MissingDependencyError: pyarrow is not installed.
    """
    options = options or ReadOptions()
    pq = require_parquet(_EXTRA)
    names = [os.fspath(file) for file in files]
    location = location or ", ".join(names)
    schemas = []
    for file in names:
        try:
            schemas.append(pq.read_schema(file))
        except (OSError, ValueError) as error:
            raise DataError(f"{file} is not a readable Parquet file ({one_line(error)})") from error
    column, holds_bytes = _image_column(schemas[0], options.image_column, names[0])
    wanted = [column, *(name for name in _value_columns(schemas[0].names, options, names[0]) if name)]
    for file, schema in zip(names, schemas, strict=True):
        for name in wanted:
            if name not in schema.names or schema.field(name).type != schemas[0].field(name).type:
                found = schema.field(name).type if name in schema.names else "missing"
                raise DataError(
                    f"{file}: column {name!r} is {found}, in {names[0]} it is {schemas[0].field(name).type}"
                )
    ends = np.cumsum([pq.read_metadata(file).num_rows for file in names])
    if not ends[-1]:
        raise DataError(f"{location} has no rows")

    def where(row: int) -> str:
        part = int(np.searchsorted(ends, row, side="right"))
        return f"{names[part]}, row {row - (int(ends[part - 1]) if part else 0)}"

    def values(name: str | None) -> Any:
        return (
            None
            if name is None
            else _values([read_columns(file, [name], extra=_EXTRA).column(name) for file in names], name, where)
        )

    label, class_name, group = _value_columns(schemas[0].names, options, names[0])
    labels, classes = make_labels(values(label), values(class_name), where)
    if labels is not None and classes is None and label is not None:
        classes = _hub_classes(schemas[0], label, int(labels.max()))
    ids = make_ids(values(group))
    if holds_bytes:
        return ParquetSource(names, column, location, options, labels=labels, classes=classes, ids=ids)
    paths = values(column)
    root = os.path.dirname(names[0])
    if any(os.path.dirname(file) != root for file in names):
        parts = np.searchsorted(ends, np.arange(len(paths)), side="right").tolist()
        paths = [os.path.join(os.path.dirname(names[part]), path) for part, path in zip(parts, paths, strict=True)]
        root = ""
    _check_root(paths, root, where)
    return PathSource(paths, root, options, kind="table", location=location, labels=labels, classes=classes, ids=ids)


def _value_columns(
    columns: Sequence[str], options: ReadOptions, where: str
) -> tuple[str | None, str | None, str | None]:
    label = name = None
    if options.labels != "none":
        # a column the user named stands alone: a conventional one beside it may be about something else
        known_labels, known_classes = (LABEL_NAMES, CLASS_NAMES)
        if options.label_column is not None or options.class_column is not None:
            known_labels = known_classes = ()
        label = find_column(columns, options.label_column, known_labels, option="label_column", where=where)
        name = find_column(columns, options.class_column, known_classes, option="class_column", where=where)
    return label, name, find_column(columns, options.id_column, ID_NAMES, option="id_column", where=where)


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = Path(path).read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from error


def _check_root(paths: Sequence[str], root: str, where: Callable[[int], str]) -> None:
    """A wrong base folder makes every file missing: better said now than after thousands of skipped samples."""
    if not any(os.path.exists(os.path.join(root, path)) for path in paths[:20]):
        raise DataError(
            f"{where(0)}: no file {os.path.join(root, paths[0])!r}; paths are absolute, or relative to the table"
        )


def _image_column(schema: pa.Schema, wanted: str | None, where: str) -> tuple[str, bool]:
    """The image column and whether it holds bytes (else paths)."""
    types = require("pyarrow.types", extra=_EXTRA, purpose="read Parquet files")

    def is_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(kind.field(i).name == "bytes" and is_bytes(kind.field(i).type) for i in range(kind.num_fields))
        return types.is_binary(kind) or types.is_large_binary(kind)

    def is_text(kind: Any) -> bool:
        return types.is_string(kind) or types.is_large_string(kind)

    as_bytes = [field.name for field in schema if is_bytes(field.type)]
    as_text = [field.name for field in schema if is_text(field.type)]
    if wanted is not None:
        find_column(schema.names, wanted, (), option="image_column", where=where)
        if wanted not in as_bytes + as_text:
            raise DataError(f"{where}: column {wanted!r} is {schema.field(wanted).type}; images are bytes or paths")
        return wanted, wanted in as_bytes
    column = find_column(as_bytes, None, _BYTES_NAMES, option="image_column", where=where)
    if column is None and len(as_bytes) == 1:
        column = as_bytes[0]
    if column is not None:
        return column, True
    column = find_column(as_text, None, PATH_NAMES, option="image_column", where=where)
    if column is None:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(
            f"{where}: no column of encoded images or paths found among {columns}: name it with image_column"
        )
    return column, False


def _values(columns: Sequence[Any], name: str, where: Callable[[int], str]) -> Any:
    """The values of a column over all files: an integer array, or a list of text."""
    pa = require("pyarrow", extra=_EXTRA, purpose="read Parquet files")
    column = pa.chunked_array([chunk for part in columns for chunk in part.chunks], type=columns[0].type)
    if column.null_count:
        row = int(
            np.argmax(np.concatenate([chunk.is_null().to_numpy(zero_copy_only=False) for chunk in column.chunks]))
        )
        raise DataError(f"{where(row)}: {name!r} is empty; fill it in, or leave the column out")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type):
        return column.to_numpy().astype(np.int64)
    return [str(value) for value in column.to_pylist()]


def _hub_classes(schema: pa.Schema, label: str, largest: int) -> list[str] | None:
    """Class names that Hugging Face's `datasets` wrote into the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = [str(name) for name in features[label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None
    return names if largest < len(names) else None
