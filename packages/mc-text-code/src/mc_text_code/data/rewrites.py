"""Sentences with other sentences that say the same, such as TurkCorpus and ASSET. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mc_core.errors import DataError

_SENTENCE, _REWRITES = "sentence", "rewrites"


def open_rewrites(path: str | Path) -> tuple[list[str], list[list[str]]]:
    """Sentences, and the rewrites of each, for :func:`mc_text_code.evaluation.rewrite_queries`.

    Args:
        path: a ``.parquet`` or ``.jsonl`` file with columns ``sentence`` and ``rewrites`` (a list of sentences).

    Raises:
        DataError: another kind of file, a column is missing, or a row holds something else; with its number.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "mine.jsonl")
    ...     _ = file.write_text('{"sentence": "It rains.", "rewrites": ["Rain falls."]}\\n')
    ...     open_rewrites(file)
    (['It rains.'], [['Rain falls.']])
    """
    path = Path(path)
    if path.suffix == ".parquet":
        rows, kind = _parquet(path), "row"
    elif path.suffix == ".jsonl":
        rows, kind = _jsonl(path), "line"
    else:
        raise DataError(f"{path}: rewrites are read from .parquet or .jsonl with columns sentence and rewrites")
    sentences, rewrites = [], []
    for number, sentence, others in rows:
        if not isinstance(sentence, str) or not sentence.strip():
            raise DataError(f"{path}, {kind} {number}: there is no sentence")
        if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
            raise DataError(f"{path}, {kind} {number}: rewrites must be a list of sentences")
        sentences.append(sentence)
        rewrites.append(list(others))
    if not any(rewrites):
        raise DataError(f"{path}: there is no sentence with a rewrite in it")
    return sentences, rewrites


def _parquet(path: Path) -> list[tuple[int, Any, Any]]:
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        if lacking := [name for name in (_SENTENCE, _REWRITES) if name not in names]:
            raise DataError(f"{path}: no column {lacking[0]!r} among {', '.join(names)}")
        table = pq.read_table(path, columns=[_SENTENCE, _REWRITES], partitioning=None)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({str(error).splitlines()[0]})") from error
    columns = (table.column(name).to_pylist() for name in (_SENTENCE, _REWRITES))
    return [(number, *row) for number, row in enumerate(zip(*columns, strict=True), start=1)]


def _jsonl(path: Path) -> list[tuple[int, Any, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: {line[:40]!r} is no object with named values")
        found.append((number, record.get(_SENTENCE), record.get(_REWRITES)))
    return found
