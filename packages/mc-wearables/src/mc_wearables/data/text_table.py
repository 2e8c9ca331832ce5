"""CSV, TSV and text files of numbers as Arrow tables: comments, delimiter, header and decimal mark are seen from the file."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mc_core.errors import DataError
from mc_wearables.data.config import ReadOptions
from mc_wearables.data.recording import PARTICIPANT_NAMES

if TYPE_CHECKING:
    import pyarrow as pa

_HEAD_BYTES = 1 << 16
_NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?$|[-+]?(nan|inf|na|null|none)$|$", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+$")
_MOMENT = re.compile(r"\d{1,4}[-./]\d\d?[-./]\d{1,4}|\d\d?:\d\d:\d\d")
_RATE = re.compile(r"(?:sampling[ _]?(?:rate|frequency)|\bfs)\b[^:=]*:?[:=]\s*([0-9.]+)", re.IGNORECASE)
_UNITS = re.compile(r"units?\s*:?[:=]\s*(\S.*)", re.IGNORECASE)
_LABELS = re.compile(r"labels?\s*:?[:=]\s*(\S.*)", re.IGNORECASE)
_NULLS = ["", "NaN", "nan", "NA", "N/A", "null", "NULL", "None", "-"]
_MANY_BAD = 0.01  # share of rows with another number of cells from which the file is taken to be damaged


@dataclass(frozen=True)
class TextTable:
    """A table read from text, and what its comments say.

    Attributes:
        table: its columns; without a header they are called ``1``, ``2``, ….
        named: whether the file names its columns.
        fs: Hz, from a comment.
        units: from a comment.
        first_row: line of the file that holds row 0, for messages.
        notes: rows that were cut off, counted.
    """

    table: pa.Table
    named: bool
    fs: float | None
    units: str | None
    first_row: int
    notes: Counter[str] = field(default_factory=Counter)


def read_text_table(path: Path, name: str, options: ReadOptions) -> TextTable:
    """Read a table of numbers.

    Comments begin with ``#``. The delimiter is a tab, semicolon or comma, whichever divides the first lines; the decimal mark
    is a comma where the cells show it and the delimiter is another.

    Args:
        path: of the file.
        name: of the file, for messages.
        options: ``decimal`` overrides what is seen.

    Raises:
        DataError: empty, not text, or more than one row in a hundred has too few or too many cells.
    """
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    head, skip = _head(path, name)
    comments = "\n".join(line for line in head[:skip] if line.startswith("#"))
    lines = [line for line in head[skip:] if line.strip()]
    if not lines:
        raise DataError(f"{name} holds no rows")
    delimiter, decimal = _dialect(lines, options)
    cells = next(csv.reader([lines[0]], delimiter=delimiter))
    named = any(not _NUMBER.match(cell.strip()) and not _MOMENT.search(cell) for cell in cells)
    told = _LABELS.search(comments)
    if named:
        names = [cell.strip() or str(i + 1) for i, cell in enumerate(cells)]
    elif told and len(parts := told[1].strip().split("\t")) == len(cells):
        names = [part.strip() for part in parts]
    else:
        names = [str(i + 1) for i in range(len(cells))]
    if len(set(names)) < len(names):
        twice = next(cell for cell in names if names.count(cell) > 1)
        raise DataError(f"{name}, line {skip + 1}: two columns are called {twice!r}; rename one")
    bad: list[tuple[int, int]] = []

    def skip_row(row: pa_csv.InvalidRow) -> str:
        bad.append((row.number or 0, row.actual_columns))
        return "skip"

    try:
        table = pa_csv.read_csv(
            path,
            # one thread: only then do bad rows know their number
            read_options=pa_csv.ReadOptions(
                use_threads=False, column_names=names, skip_rows=skip + named, encoding=_encoding(path)
            ),
            parse_options=pa_csv.ParseOptions(
                delimiter=delimiter,
                invalid_row_handler=skip_row,
                ignore_empty_lines=len(names) > 1,  # of one column, an empty line is a missing sample
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in names if _tells_participant(name, options)},
                decimal_point=decimal,
                null_values=_NULLS,
                strings_can_be_null=True,
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise DataError(f"{name}: not a table of numbers ({str(error).splitlines()[0][:160]})") from error
    first = skip + named + 1
    if len(bad) > max(1, _MANY_BAD * table.num_rows):
        number, count = bad[0]
        raise DataError(
            f"{name}, line {number}: {count} cells instead of {len(names)}, and so in {len(bad)} rows; "
            "if its decimal mark is a comma, say --decimal ,"
        )
    rate = _RATE.search(comments)
    units = _UNITS.search(comments)
    return TextTable(
        table,
        named or told is not None,
        float(rate[1]) if rate else None,
        units[1].strip() if units else None,
        first,
        Counter(cut_off=len(bad)) if bad else Counter(),
    )


def _tells_participant(name: str, options: ReadOptions) -> bool:
    """Whether a column holds raw ids: they are texts, because 017 and 17 may be two people."""
    rule = (options.participant_from or "").lower()
    return name.lower() in (*PARTICIPANT_NAMES, rule.removeprefix("column:"))


def head_text(path: Path) -> str:
    """The first lines of a file, to see of what kind it is."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES).decode("utf-8-sig", "replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _head(path: Path, name: str) -> tuple[list[str], int]:
    """The first lines, and how many of them are comments or blank."""
    text = head_text(path)
    if "\x00" in text:
        raise DataError(f"{name} is not text; a table has lines of numbers")
    lines = text.splitlines()
    if len(text) >= _HEAD_BYTES - 3:
        lines = lines[:-1]
    skip = 0
    while skip < len(lines) and (not lines[skip].strip() or lines[skip].startswith("#")):
        skip += 1
    return lines, skip


def _dialect(lines: list[str], options: ReadOptions) -> tuple[str, str]:
    body = lines[1:50] or lines[:1]
    counts = {mark: min(line.count(mark) for line in body) for mark in ("\t", ";", ",")}
    delimiter = next((mark for mark in ("\t", ";") if counts[mark]), ",")
    if delimiter != ",":
        comma = any(_DECIMAL_COMMA.match(cell.strip()) for line in body for cell in line.split(delimiter))
        return delimiter, options.decimal or ("," if comma else ".")
    # "ppg" above "0,455": one column, so the comma is no delimiter
    alone = "," not in lines[0] and counts[","] == 1 and all(_DECIMAL_COMMA.match(line.strip()) for line in body)
    if options.decimal == "," or (alone and len(lines) > 1):
        return "\t", ","
    return ",", "."


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(_HEAD_BYTES)
    try:
        start[:-4].decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"
