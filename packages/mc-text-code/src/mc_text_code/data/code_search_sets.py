"""Questions, and the code among which their answers are, for measuring code search.

Legend: Q queries, C candidates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.errors import DataError
from mc_core.files import StrPath
from mc_text_code.data.code_files import CODE_FIELDS, OTHER_FIELDS, QUERY_FIELDS, PairReader, open_pairs
from mc_text_code.data.code_pairs import CodePair
from mc_text_code.data.code_records import KINDS, kind_of, read_records

_ANSWERS = ("code_id", "retrieval_idx")
_CODE_MAP = "code_idx_map.txt"
_CODEBASE = "codebase"


@dataclass(frozen=True)
class CodeSearchSet:
    """Questions, and the code among which the answers are.

    Attributes:
        queries: Q questions.
        codes: C candidates.
        answer: (Q,) int64, the right candidate of each.
        names: (C) names of the candidates' functions; empty where they are not known.
        left_out: questions whose answer is not among the candidates.
    """

    queries: tuple[str, ...]
    codes: tuple[str, ...]
    answer: np.ndarray
    names: tuple[str, ...]
    left_out: int = 0

    @classmethod
    def of(cls, pairs: Sequence[CodePair], distractors: Sequence[CodePair] = ()) -> CodeSearchSet:
        """Each pair's question asked among the code of all, and of further functions.

        >>> CodeSearchSet.of([CodePair("add", "a + b"), CodePair("subtract", "a - b")]).answer
        array([0, 1])
        """
        every = [*pairs, *distractors]
        return cls(
            tuple(pair.query for pair in pairs),
            tuple(pair.code for pair in every),
            np.arange(len(pairs)),
            tuple(pair.name for pair in every),
        )


def open_search_set(
    path: StrPath,
    *,
    candidates: StrPath | None = None,
    query: str | None = None,
    code: str | None = None,
    language: str = "",
    tokens: bool = False,
    documentation: bool = False,
) -> CodeSearchSet:
    """Questions with the candidates that belong to them.

    Where the questions name their answers by a number (``code_id``, ``retrieval_idx``), the candidates are a second file: the one
    given, ``code_idx_map.txt``, or the only file beside it with that number and code. Where a ``codebase.jsonl`` is beside the
    questions, it holds the candidates, joined by ``url``. Else the candidates are the code of all pairs in the file.

    Args:
        path: of the questions.
        candidates: file of the candidates.
        query, code, language, tokens, documentation: as for :func:`open_pairs`.

    Raises:
        DataError: as :func:`open_pairs`; no file of candidates is found, or no answer is among them.
    """
    path = Path(path)
    reader = PairReader(query, code, language, tokens, documentation)
    records = list(read_records(path))
    key = next((name for name in _ANSWERS if name in records[0][1]), None)
    if key is not None and query is None and not any(name in records[0][1] for name in QUERY_FIELDS):
        raise DataError(
            f"{path} holds candidates and no questions; name the file of the questions whose '{key}' they have"
        )
    beside = path.with_name(_CODEBASE + "".join(path.suffixes))
    if key is not None:
        pool = _numbered(Path(candidates) if candidates else _beside(path, key), reader, key)
    elif candidates or (beside != path and beside.is_file()):
        key = next((name for name in OTHER_FIELDS["url"] if name in records[0][1]), "url")
        pool = _numbered(Path(candidates) if candidates else beside, reader, key)
    else:
        return CodeSearchSet.of(
            open_pairs(
                path, query=query, code=code, language=language, tokens=tokens, documentation=documentation
            ).pairs
        )
    place = {number: row for row, number in enumerate(pool)}
    asked = [(reader.query(record, where), place.get(record.get(key))) for where, record in records]
    kept = [(text, row) for text, row in asked if row is not None and text]
    if not kept:
        raise DataError(f"{path}: none of the {len(asked):,} answers ('{key}') is among the {len(pool):,} candidates")
    return CodeSearchSet(
        tuple(text for text, _ in kept),
        tuple(pair.code for pair in pool.values()),
        np.array([row for _, row in kept], dtype=np.int64),
        tuple(pair.name for pair in pool.values()),
        len(asked) - len(kept),
    )


def _beside(path: Path, key: str) -> Path:
    """The only file in the same folder that has code under the same numbers."""
    if (path.parent / _CODE_MAP).is_file():
        return path.parent / _CODE_MAP
    found = []
    for other in sorted(path.parent.iterdir()):
        if other == path or not other.is_file() or kind_of(other) not in ("jsonl", "json", "parquet"):
            continue
        try:
            _, record = next(read_records(other))
        except (DataError, StopIteration):
            continue
        if (
            key in record
            and any(name in record for name in CODE_FIELDS)
            and not any(name in record for name in QUERY_FIELDS)
        ):
            found.append(other)
    if len(found) != 1:
        what = "none" if not found else ", ".join(other.name for other in found)
        raise DataError(
            f"{path}: which file holds the candidates that '{key}' numbers? found beside it: {what}; name it"
        )
    return found[0]


def _numbered(path: Path, reader: PairReader, key: str) -> dict[Any, CodePair]:
    if path.name == _CODE_MAP:
        return _code_map(path, reader)
    pool: dict[Any, CodePair] = {}
    for where, record in read_records(path):
        if key not in record:
            raise DataError(
                f"{where}: no '{key}', by which the questions name their answers; it has {', '.join(record)}"
            )
        pool.setdefault(record[key], reader.pair(record, where, asked=False))
    return pool


def _code_map(path: Path, reader: PairReader) -> dict[Any, CodePair]:
    """CoSQA's candidates: one object, code → number."""
    try:
        numbers = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(numbers, dict) or not numbers:
        raise DataError(f"{path}: an object with code → number is expected; give {KINDS} with candidates instead")
    language = reader.language or "python"
    return {
        number: reader.pair({"code": code, "language": language}, str(path), asked=False)
        for code, number in sorted(numbers.items(), key=lambda item: item[1])
    }
