"""Rows of a table as text: CSV, TSV (also gzipped), JSON lines, Parquet, and the notes beside the images of a tar.

Legend: N rows.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mc_core.errors import DataError
from mc_medical.data.image_ref import IMAGE_SUFFIXES, ImageRef

_NOTHING = frozenset(("", "nan", "none", "null", "n/a", "na", "<na>"))
_LONGEST = 1 << 24  # characters of a cell; csv's own limit is too small for some reports


@dataclass(frozen=True)
class Rows:
    """A table: columns of text, empty where nothing is known.

    Attributes:
        names: of the columns.
        cells: name → N texts.
        numbers: (N) the line, row or member of each, for messages.
        unit: what ``numbers`` count.
        images: of a tar: where the image of each row lies.
        bad: rows that could not be read, one line each.
    """

    names: tuple[str, ...]
    cells: Mapping[str, Sequence[str]]
    numbers: Sequence[int]
    unit: str = "row"
    images: Sequence[ImageRef] | None = None
    bad: Sequence[str] = field(default_factory=tuple)

    def __len__(self) -> int:
        return len(self.numbers)


def read_table(path: str | os.PathLike[str]) -> Rows:
    """A table of any kind understood.

    Raises:
        DataError: missing, empty, damaged, or of another kind.
    """
    path = Path(path)
    name = path.name.lower()
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.is_dir():
        raise DataError(f"{path} is a folder: give the table of its studies, and the folder by --images")
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return _read_tar(path)
    if name.endswith((".parquet", ".pq")):
        return _read_parquet(path)
    if name.endswith((".jsonl", ".ndjson")):
        return _of_records(_json_lines(path), str(path), unit="line")
    if name.removesuffix(".gz").endswith((".csv", ".tsv", ".txt")):
        return _read_csv(path)
    if name.endswith((".xlsx", ".xls", ".ods")):
        raise DataError(f"{path} is a spreadsheet: save it as CSV (UTF-8) first")
    raise DataError(f"{path}: give a table (.csv, .tsv, .jsonl, .parquet) or a .tar of images with notes")


def plain_cell(value: Any) -> str:
    """A cell as text; empty for what says that nothing is known. A whole number that a data frame made a fraction is whole.

    >>> plain_cell(10000032.0), plain_cell(" NaN "), plain_cell("10000032.0"), plain_cell(["PA", "LL"])
    ('10000032', '', '10000032', 'PA LL')
    """
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return " ".join(plain_cell(one) for one in value)
    text = str(value).strip()
    if text.endswith(".0") and text[:-2].lstrip("-").isdigit():
        return text[:-2]
    return "" if text.lower() in _NOTHING else text


def _read_csv(path: Path) -> Rows:
    csv.field_size_limit(_LONGEST)
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or 'not a whole gzip file'})") from error
    except EOFError as error:
        raise DataError(f"{path}: cut off, not a whole gzip file") from error
    text = decoded(data)
    head = text[: text.find("\n")] if "\n" in text else text
    tab = path.name.lower().removesuffix(".gz").endswith(".tsv") or ("\t" in head and "," not in head)
    delimiter = "\t" if tab else max(",;", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    bad: list[str] = []
    try:
        names = tuple(name.strip() for name in next(reader, []))
        if not names:
            raise DataError(f"{path} is empty: the first line must name the columns")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path}: the column {twice!r} is there twice; name each once")
        rows, numbers = [], []
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                bad.append(f"row {reader.line_num}: {len(row)} cells, the header has {len(names)}")
                continue
            rows.append([plain_cell(cell) for cell in row])
            numbers.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    if not rows:
        raise DataError(f"{path} has a header and no rows" + (f"; {bad[0]}" if bad else ""))
    columns = list(zip(*rows, strict=True))
    return Rows(names, dict(zip(names, columns, strict=True)), numbers, unit="line", bad=bad)


def decoded(data: bytes) -> str:
    """Text of a file that does not say its encoding: UTF-8, UTF-16 with its mark, else what older exports are written in."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _read_parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a whole Parquet file") from error
    if not table.num_rows:
        raise DataError(f"{path} holds no rows")
    cells = {name: [plain_cell(value) for value in table[name].to_pylist()] for name in table.column_names}
    return Rows(tuple(table.column_names), cells, range(1, table.num_rows + 1))


def _json_lines(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: not a JSON object")
            yield number, record


def _of_records(
    records: Iterable[tuple[int, dict[str, Any]]],
    where: str,
    *,
    unit: str,
    images: Sequence[ImageRef] | None = None,
    bad: Sequence[str] = (),
) -> Rows:
    found = list(records)
    if not found:
        raise DataError(f"{where} holds no rows")
    names = tuple(dict.fromkeys(name for _, record in found for name in record))
    cells = {name: [plain_cell(record.get(name)) for _, record in found] for name in names}
    return Rows(names, cells, [number for number, _ in found], unit=unit, images=images, bad=bad)


def _read_tar(path: Path) -> Rows:
    """Images with the JSON or text of the same name, as WebDataset lays them out."""
    if path.name.lower().endswith(("gz", "tgz")):
        raise DataError(f"{path}: a compressed tar cannot be read out of order; unpack it with `gunzip` first")
    images: dict[str, tuple[int, ImageRef]] = {}
    notes: dict[str, dict[str, Any]] = {}
    bad: list[str] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for number, member in enumerate(archive, start=1):
                stem, suffix = os.path.splitext(member.name)
                if not member.isfile() or os.path.basename(stem).startswith("."):
                    continue
                if suffix.lower() in IMAGE_SUFFIXES:
                    images[stem] = number, ImageRef(str(path), member.offset_data, member.size)
                elif suffix.lower() in (".json", ".txt"):
                    file = archive.extractfile(member)
                    text = "" if file is None else decoded(file.read())
                    note = _note(text, suffix.lower())
                    if note is None:
                        bad.append(f"member {number}: not a JSON object")
                    else:
                        notes.setdefault(stem, {}).update(note)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a whole tar archive") from error
    if not images:
        raise DataError(f"{path} holds no image (.dcm, .png, .jpg)")
    records = [(number, notes.get(stem, {})) for stem, (number, _) in images.items()]
    refs = [ref for _, ref in images.values()]
    return _of_records(records, str(path), unit="member", images=refs, bad=bad)


def _note(text: str, suffix: str) -> dict[str, Any] | None:
    if suffix == ".txt":
        return {"report": text}
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
