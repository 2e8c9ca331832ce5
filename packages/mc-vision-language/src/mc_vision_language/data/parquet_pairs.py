"""Captions in Parquet files, with paths or encoded pictures beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mc_core.errors import DataError
from mc_core.images.parquet import one_line, read_columns, require_parquet
from mc_vision_language.data.assembling import Found
from mc_vision_language.data.columns import caption_list, recognise, split_name, told
from mc_vision_language.data.options import ColumnOptions, ReadOptions
from mc_vision_language.data.stored_images import ParquetImages
from mc_vision_language.data.table_pairs import Rows, find_files

_BYTES = ("image", "img", "bytes", "image_bytes", "jpg", "jpeg", "png", "picture", "data")


def find_in_parquet(
    files: Sequence[str], location: str, images: str | None, columns: ColumnOptions, read: ReadOptions
) -> Found:
    """Pictures and captions of one or more Parquet files with the same columns. Files called ``train-…``, ``test-…`` are parts.

    Raises:
        DataError: a file is damaged, lacks a column, or there are no rows.
    """
    parquet = require_parquet("pyarrow")
    schemas = []
    for file in files:
        try:
            schemas.append(parquet.read_schema(file))
        except (OSError, ValueError) as error:
            raise DataError(f"{file} is not a readable Parquet file ({one_line(error)})") from error
    encoded = [field.name for field in schemas[0] if _holds_bytes(field.type)]
    options = columns
    if columns.image is None and encoded:
        usual = next((name for name in _BYTES for column in encoded if column.lower() == name), None)
        options = columns.model_copy(update={"image": usual or encoded[0]})
    roles = recognise(schemas[0].names, options, location)
    image = str(roles["image"])
    captions = roles["caption"]
    wanted = [*([captions] if isinstance(captions, str) else captions)]
    wanted += [str(roles[role]) for role in ("image_id", "split") if role in roles]
    wanted += [] if image in encoded else [image]
    for file, schema in zip(files, schemas, strict=True):
        if missing := [name for name in (image, *wanted) if name not in schema.names]:
            raise DataError(f"{file} has no column {missing[0]!r}, which {files[0]} has")
    tables = [read_columns(file, wanted) for file in files]
    values = {
        name: [value for table in tables for value in table.column(name).to_pylist()] for name in dict.fromkeys(wanted)
    }
    ends = np.cumsum([table.num_rows for table in tables])
    if not ends[-1]:
        raise DataError(f"{location} has no rows")

    def cell(row: int) -> Any:
        if isinstance(captions, str):
            return values[captions][row]
        return [text for name in captions for text in caption_list(values[name][row]) if text]

    def text(role: str) -> list[str] | None:
        if role not in roles:
            return None
        return ["" if value is None else str(value) for value in values[str(roles[role])]]

    told_columns = told(roles)
    ids, splits = text("image_id"), text("split")
    if ids is not None and not all(ids):
        ids = None
        told_columns["image_id"] += " has gaps and is not used"
    if splits is None:
        names = [os.path.basename(file).split("-")[0].split(".")[0] for file in files]
        if len(files) > 1 and all(split_name(name) for name in names):
            splits = [name for name, table in zip(names, tables, strict=True) for _ in range(table.num_rows)]
            told_columns["split"] = "names of the files"
    if image not in encoded:
        kept = [row for row in range(int(ends[-1])) if values[image][row]]
        rows = Rows(
            [str(values[image][row]) for row in kept],
            [cell(row) for row in kept],
            [row + 1 for row in kept],
            None if ids is None else [ids[row] for row in kept],
            None if splits is None else [splits[row] for row in kept],
            told_columns,
            [
                f"{location}, row {row + 1}: no path of a picture"
                for row in range(int(ends[-1]))
                if not values[image][row]
            ],
            "row",
        )
        return find_files(rows, files[0], images)
    texts: list[str] = []
    image_of: list[int] = []
    for row in range(int(ends[-1])):
        several = caption_list(cell(row))
        texts += several
        image_of += [row] * len(several)
    found = ParquetImages(files, image, location=location, cache=read.cache)
    return Found(
        found, texts, image_of, lambda caption: found.name(image_of[caption]), location, told_columns, ids, splits
    )


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)
