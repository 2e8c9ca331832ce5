"""Captions in tables of text: CSV, TSV, JSON lines, Flickr's ``results_20130124.token`` and ``captions.txt``."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mc_core.errors import DataError
from mc_vision_language.data.assembling import Found
from mc_vision_language.data.columns import caption_list, recognise, told
from mc_vision_language.data.image_paths import is_tar, locate
from mc_vision_language.data.images import FileImages, StoredImages
from mc_vision_language.data.options import ColumnOptions
from mc_vision_language.data.stored_images import TarImages

_LONGEST = 1 << 24  # characters of a cell; csv's own limit is too small for some lists of captions
_TOKEN = re.compile(r"(.+)#\w+\t(.*)")


@dataclass
class Rows:
    """Rows of a table that name a picture.

    Attributes:
        paths: of the pictures, a row each.
        captions: cells, a text or a list each.
        lines: where they stand.
        ids: what says which pictures are the same.
        splits: names of parts.
        columns: what was taken for what.
        bad: lines that cannot be used.
        unit: what ``lines`` count.
    """

    paths: Sequence[str]
    captions: Sequence[Any]
    lines: Sequence[int]
    ids: Sequence[str] | None = None
    splits: Sequence[str] | None = None
    columns: dict[str, str] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    unit: str = "line"


def find_in_table(path: str, images: str | None, columns: ColumnOptions) -> Found:
    """Pictures and captions of a table of text.

    Raises:
        DataError: not text, no rows, no column of paths or captions, or none of the pictures is there.
    """
    if path.lower().endswith((".jsonl", ".ndjson")):
        rows = _json_lines(path, columns)
    else:
        lines = _text(path).splitlines(keepends=True)
        first = next((line for line in lines if line.strip()), "")
        rows = _token_lines(path, lines) if _TOKEN.fullmatch(first.rstrip("\r\n")) else _delimited(path, lines, columns)
    return find_files(rows, path, images)


def find_files(rows: Rows, path: str, images: str | None, folders: Sequence[str] = ()) -> Found:
    """Rows with the files that they name: rows of the same path are captions of one picture."""
    if not rows.paths:
        raise DataError(f"{path} holds no captions" + (f"; {rows.bad[0]}" if rows.bad else ""))
    position: dict[str, int] = {}
    first_row: list[int] = []
    picture: list[int] = []
    for row, name in enumerate(rows.paths):
        number = position.setdefault(name, len(position))
        if number == len(first_row):
            first_row.append(row)
        picture.append(number)
    image_of: list[int] = []
    captions: list[str] = []
    lines: list[int] = []
    for number, cell, line in zip(picture, rows.captions, rows.lines, strict=True):
        texts = caption_list(cell)
        captions += texts
        image_of += [number] * len(texts)
        lines += [line] * len(texts)
    stored: StoredImages
    if images is not None and is_tar(images):
        stored = TarImages.named(images, list(position))
    else:
        paths, root = locate(
            list(position), path, images, first_place=f"{path}, {rows.unit} {rows.lines[0]}", folders=folders
        )
        stored = FileImages(paths, root, keys=position, location=path)

    def first(values: Sequence[str] | None) -> list[str] | None:
        return None if values is None else [values[row] for row in first_row]

    return Found(
        stored,
        captions,
        image_of,
        lambda caption: f"{path}, {rows.unit} {lines[caption]}",
        path,
        rows.columns,
        first(rows.ids),
        first(rows.splits),
        rows.bad,
    )


def rows_of_records(
    records: Iterable[tuple[int, dict[str, Any]]], columns: ColumnOptions, where: str, *, unit: str, noun: str = "field"
) -> Rows:
    """Rows from mappings. Fields of all of them count, for some may be left out of the first."""
    kept = list(records)
    if not kept:
        raise DataError(f"{where} holds no rows")
    roles = recognise(list(dict.fromkeys(name for _, record in kept for name in record)), columns, where)
    rows = Rows([], [], [], columns=told(roles, noun), unit=unit)
    paths, captions, lines, ids, splits = [], [], [], [], []
    for number, record in kept:
        name = record.get(str(roles["image"]))
        if isinstance(name, list) and len(name) == 1:
            name = name[0]
        if not isinstance(name, str) or not name.strip():
            rows.bad.append(f"{where}, {unit} {number}: no path of a picture in {roles['image']!r}")
            continue
        paths.append(name.strip())
        captions.append(_cell(record, roles["caption"]))
        lines.append(number)
        ids.append(_plain(record.get(str(roles.get("image_id")))))
        splits.append(_plain(record.get(str(roles.get("split")))))
    rows.paths, rows.captions, rows.lines = paths, captions, lines
    rows.ids, rows.splits = _whole(ids, rows), splits
    return rows


def _cell(record: dict[str, Any], name: str | list[str]) -> Any:
    if isinstance(name, str):
        return record.get(name)
    return [text for one in name for text in caption_list(record.get(one)) if text]


def _plain(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _whole(ids: list[str], rows: Rows) -> list[str] | None:
    """Ids if each row has one: of a column with gaps it is not known what the others are."""
    if not any(ids):
        return None
    if not all(ids):
        rows.columns["image_id"] = f"{rows.columns.pop('image_id')} has gaps and is not used"
        return None
    return ids


def _json_lines(path: str, columns: ColumnOptions) -> Rows:
    records, bad = [], []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append((number, record))
        else:
            bad.append(f"{path}, line {number}: not a JSON object")
    if not records:
        raise DataError(f"{path} holds no rows" + (f"; {bad[0]}" if bad else ""))
    rows = rows_of_records(records, columns, path, unit="line")
    rows.bad[:0] = bad
    return rows


def _token_lines(path: str, lines: Sequence[str]) -> Rows:
    """``1000092795.jpg#0<tab>Two young guys …``, as Flickr8k and Flickr30k are published."""
    rows = Rows([], [], [], columns={"image": "name before '#'", "caption": "text after the tab"})
    paths, captions, numbers = [], [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = _TOKEN.fullmatch(line.rstrip("\r\n"))
        if match is None:
            rows.bad.append(f"{path}, line {number}: not NAME#NUMBER, a tab and a caption")
            continue
        paths.append(match[1])
        captions.append(match[2])
        numbers.append(number)
    rows.paths, rows.captions, rows.lines = paths, captions, numbers
    return rows


def _delimited(path: str, lines: Sequence[str], columns: ColumnOptions) -> Rows:
    csv.field_size_limit(_LONGEST)
    head = next((line for line in lines if line.strip()), "")
    delimiter = "\t" if path.lower().endswith(".tsv") or "\t" in head else max(",;|", key=head.count)
    plain = (
        path.lower().endswith(".txt") and delimiter == ","
    )  # Flickr8k's captions.txt does not quote the commas of a caption
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=not plain)
    records: list[tuple[int, dict[str, Any]]] = []
    bad: list[str] = []
    try:
        names = [name.strip() for name in next(reader, [])]
        if len(names) < 2:
            raise DataError(f"{path}, line 1: one column; the first line must name one of pictures and one of captions")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path}, line 1: the column {twice!r} is there twice; name each once")
        for row in reader:
            if not row:
                continue
            if plain and len(names) == 2 < len(row):
                row = [row[0], ",".join(row[1:])]
            if len(row) != len(names):
                bad.append(f"{path}, line {reader.line_num}: {len(row)} cells, the header has {len(names)}")
                continue
            records.append((reader.line_num, dict(zip(names, row, strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    if not records:
        raise DataError(f"{path} has a header and no rows" + (f"; {bad[0]}" if bad else ""))
    rows = rows_of_records(records, columns, path, unit="line", noun="column")
    rows.bad[:0] = bad
    return rows


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from error
