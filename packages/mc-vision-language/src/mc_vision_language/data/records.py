"""Annotations as records: JSON, JSON lines, CSV, TSV, Parquet, and the notes that lie beside the pictures of a tar.

Nothing here knows what the fields mean; a record remembers where it stood, for messages.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mc_core.errors import DataError, closest
from mc_core.files import read_json

_LONGEST_CELL = 1 << 24
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclass(frozen=True)
class Record:
    """One annotation.

    Attributes:
        fields: as the file has them; cells of CSV are text.
        place: file and line, row, entry or member.
        picture: of a tar: the member that holds the picture.
    """

    fields: Mapping[str, Any]
    place: str
    picture: str | None = None


def read_records(path: str | os.PathLike[str], *, keys: Sequence[str] = ()) -> list[Record]:
    """All records of a file.

    Args:
        path: ``.json`` (a list, JSON lines, or a mapping that holds the list under one of ``keys``), ``.jsonl``, ``.csv``,
            ``.tsv``, ``.parquet``, or a ``.tar`` of pictures with a ``.json`` of the same name beside each.
        keys: where the list may lie in a JSON mapping, such as ``("annotations",)``.

    Raises:
        DataError: missing, empty, damaged, or of another kind.
    """
    path = Path(path)
    name = path.name.lower()
    if not path.is_file():
        raise DataError(
            f"{path}: no such file" if not path.exists() else f"{path} is a folder; give the file of annotations"
        )
    if name.endswith(".tar"):
        records = _tar(path)
    elif name.endswith((".jsonl", ".ndjson")):
        records = _lines(path)
    elif name.endswith(".json"):
        records = _json(path, keys)
    elif name.endswith((".csv", ".tsv")):
        records = _csv(path)
    elif name.endswith((".parquet", ".pq")):
        records = _parquet(path)
    elif name.endswith((".p", ".pkl", ".pickle")):
        raise DataError(f"{path} is a pickle, which runs code when it is read: write it as JSON first")
    else:
        raise DataError(f"{path}: annotations come as .json, .jsonl, .csv, .tsv, .parquet or .tar")
    if not records:
        raise DataError(f"{path} holds no annotations")
    return records


def field(record: Record, *names: str) -> Any:
    """The first of these fields that is there and not empty, else None."""
    for name in names:
        value = record.fields.get(name)
        if value is not None and value != "" and value != []:
            return value
    return None


def need(record: Record, *names: str) -> Any:
    """The first of these fields.

    Raises:
        DataError: none is there.
    """
    value = field(record, *names)
    if value is None:
        near = closest(names[0], record.fields) if record.fields else "nothing"
        raise DataError(f"{record.place}: no {' or '.join(names)}; it has {near}")
    return value


@contextmanager
def understood(place: str) -> Iterator[None]:
    """What is read within has an unusual layout where it fails.

    Raises:
        DataError: a field is missing, or of another type than the layout has.
    """
    try:
        yield
    except KeyError as error:
        raise DataError(f"{place}: no {error.args[0]}") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(f"{place}: not in the layout that is understood ({error})") from error


def text_list(value: Any) -> list[str]:
    """One text or several: a list, the text of a JSON list, or texts with ``|`` between them.

    >>> text_list("cup|mug"), text_list(["a", 2]), text_list('["x", "y"]')
    (['cup', 'mug'], ['a', '2'], ['x', 'y'])
    """
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                return text_list(json.loads(text))
            except json.JSONDecodeError:
                pass
        return [part.strip() for part in text.split("|") if part.strip()]
    if isinstance(value, Iterable):
        return [str(one).strip() for one in value if str(one).strip()]
    return [str(value)]


def numbers(value: Any) -> list[float]:
    """Numbers of a list, or of text with blanks or commas between them.

    >>> numbers("1, 2.5 3"), numbers([1, 2])
    ([1.0, 2.5, 3.0], [1.0, 2.0])
    """
    if isinstance(value, str):
        value = value.strip().strip("[]()").replace(",", " ").split()
    return [float(one) for one in value]


def _json(path: Path, keys: Sequence[str]) -> list[Record]:
    try:
        content = read_json(path)
    except DataError:
        with path.open("rb") as file:
            first = file.readline().strip()
        if not (first.startswith(b"{") and first.endswith(b"}")):
            raise
        return _lines(path)
    if isinstance(content, dict):
        found = next((content[key] for key in keys if isinstance(content.get(key), list)), None)
        if found is None and keys:
            raise DataError(f"{path}: a JSON mapping without a list under {' or '.join(keys)}")
        content = [content] if found is None else found
    if not isinstance(content, list):
        raise DataError(f"{path}: a list of annotations is needed, this is a {type(content).__name__}")
    return [_record(one, f"{path}, entry {number}") for number, one in enumerate(content, 1)]


def _lines(path: Path) -> list[Record]:
    records = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    records.append(_record(json.loads(line), f"{path}, line {number}"))
                except json.JSONDecodeError as error:
                    raise DataError(f"{path}, line {number}: not JSON ({error.msg})") from error
    return records


def _record(content: Any, place: str, picture: str | None = None) -> Record:
    if not isinstance(content, dict):
        raise DataError(f"{place}: a mapping of fields is needed, this is a {type(content).__name__}")
    return Record(content, place, picture)


def _csv(path: Path) -> list[Record]:
    csv.field_size_limit(_LONGEST_CELL)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    head = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" or "\t" in head else max(",;|", key=head.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    records = []
    for row in reader:
        if None in row or None in row.values():
            raise DataError(f"{path}, line {reader.line_num}: not as many cells as the header has columns")
        records.append(
            Record({name.strip(): cell.strip() for name, cell in row.items()}, f"{path}, line {reader.line_num}")
        )
    return records


def _parquet(path: Path) -> list[Record]:
    from pyarrow import ArrowInvalid, parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error
    return [Record(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]


def _tar(path: Path) -> list[Record]:
    pictures: dict[str, str] = {}
    notes: list[tuple[str, str, bytes]] = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                folder, base = os.path.split(member.name)
                key, _, suffix = base.partition(".")
                key = os.path.join(folder, key)
                if f".{suffix.lower()}" in _PICTURES:
                    pictures[key] = member.name
                elif suffix.lower() == "json" and (file := archive.extractfile(member)) is not None:
                    notes.append((key, member.name, file.read()))
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: not a tar file that can be read ({error})") from error
    records = []
    for key, name, data in notes:
        if key not in pictures:
            continue  # about the whole set, such as a list of categories
        try:
            records.append(_record(json.loads(data), f"{path}, {name}", pictures[key]))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}, {name}: not JSON ({error})") from error
    return records
