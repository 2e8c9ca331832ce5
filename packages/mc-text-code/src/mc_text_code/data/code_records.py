"""Records of published code-search files: JSON lines (also ``.gz``), JSON arrays and Parquet, one dict at a time."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mc_core.errors import DataError

Record = dict[str, Any]

KINDS = ".jsonl, .jsonl.gz, .json or .parquet"


def kind_of(path: Path) -> str:
    """What a file holds, by its name: jsonl, json, parquet, or ``""``.

    >>> kind_of(Path("a.jsonl.gz")), kind_of(Path("b.csv"))
    ('jsonl', '')
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else (suffixes or [""])[-1]
    return {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".txt": "json", ".parquet": "parquet"}.get(last, "")


def read_records(path: Path) -> Iterator[tuple[str, Record]]:
    """(where, record) of each, where being the file and its line or row.

    Raises:
        DataError: the file is missing, cut off, empty or of another kind; a line is no JSON object.
    """
    kind = kind_of(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder; name one of its files, as {KINDS}")
    if not path.is_file():
        raise DataError(f"{path}: no such file; give {KINDS}")
    if not kind:
        raise DataError(f"{path}: pairs of question and code are read from {KINDS}")
    empty = True
    for found in _parquet(path) if kind == "parquet" else _json(path):
        empty = False
        yield found
    if empty:
        raise DataError(f"{path}: holds no record")


def _json(path: Path) -> Iterator[tuple[str, Record]]:
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if number == 1 and line.lstrip().startswith("["):
                    yield from _array(line + file.read(), path)
                    return
                if line.strip():
                    yield f"{path}, line {number}", _object(json.loads(line), f"{path}, line {number}")
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number or 1}: not JSON ({error.msg}); each line holds one object") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number + 1}: not UTF-8 ({error.reason})") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix.lower() == ".gz" else path.open(encoding="utf-8")


def _array(text: str, path: Path) -> Iterator[tuple[str, Record]]:
    for number, value in enumerate(json.loads(text), start=1):
        yield f"{path}, entry {number}", _object(value, f"{path}, entry {number}")


def _object(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{where}: {type(value).__name__}, not an object with a question and code")
    return value


def _parquet(path: Path) -> Iterator[tuple[str, Record]]:
    row = 1
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1 << 12):
                for record in batch.to_pylist():
                    yield f"{path}, row {row}", record
                    row += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
