"""Pairs of question and code in files: those published, and our own.

* CodeSearchNet (``repo``, ``path``, ``func_name``, ``code``, ``code_tokens``, ``docstring``, ``docstring_tokens``, ``url`` …),
  also with the names it has on the Hugging Face hub;
* CodeXGLUE AdvTest (``function``, ``docstring_tokens`` …) and CoSQA (``doc``, ``code``, ``label``), which is all Python;
* any JSON lines or Parquet with a question (``query``, ``docstring``, ``title`` …) and code (``code``, ``snippet``,
  ``code_tokens`` …).
"""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mc_core.errors import DataError, closest
from mc_core.files import StrPath, atomic_path, write_atomic
from mc_text_code.data.code_pairs import CodePair
from mc_text_code.data.code_records import Record, kind_of, read_records
from mc_text_code.data.code_rules import first_paragraph
from mc_text_code.source.languages import LANGUAGES
from mc_text_code.source.units import code_alone


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


QUERY_FIELDS = _names("""query doc docstring_summary docstring func_documentation_string nl rewritten_intent intent title question
    docstring_tokens func_documentation_tokens""")
CODE_FIELDS = _names("""code function original_string whole_func_string func_code_string snippet code_tokens function_tokens
    func_code_tokens""")
_QUERY_TOKENS = ("docstring_tokens", "func_documentation_tokens")
_CODE_TOKENS = ("code_tokens", "function_tokens", "func_code_tokens")
OTHER_FIELDS: dict[str, tuple[str, ...]] = {
    "language": ("language",),
    "name": ("name", "func_name", "identifier"),
    "qualified_name": ("qualified_name", "func_name"),
    "path": ("path", "func_path_in_repository"),
    "repository": ("repository", "repo", "nwo", "repository_name"),
    "package": ("package",),
    "licence": ("licence", "license"),
    "url": ("url", "func_code_url", "idx", "pair_id", "query_id", "question_id"),
    "partition": ("partition", "split_name"),
}


@dataclass(frozen=True)
class LoadedPairs:
    """Pairs from a file.

    Attributes:
        pairs: in its order.
        left_out: reason → records that gave no pair: ``judged wrong`` (label 0), ``no question``, ``no code``.
    """

    pairs: list[CodePair]
    left_out: dict[str, int] = field(default_factory=dict)


def open_pairs(
    path: StrPath,
    *,
    query: str | None = None,
    code: str | None = None,
    language: str = "",
    tokens: bool = False,
    documentation: bool = False,
) -> LoadedPairs:
    """The pairs of a file in one of the forms above.

    Args:
        path: ``.jsonl`` (also ``.gz``), ``.json`` or ``.parquet``.
        query: field with the question; default: the first of the usual ones that the file has.
        code: field with the code, a text or a list of tokens; likewise.
        language: of records that do not say.
        tokens: take question and code from their lists of tokens, joined by single spaces, as the published figures do.
        documentation: keep the documentation inside the code; by default it is taken out, since it often is the question.

    Raises:
        DataError: the file cannot be read, lacks a question or code, or no pair is left.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.jsonl").write_text(
    ...         '{"docstring": "Add.\\\\n\\\\nMore.", "code": "a + b", "func_name": "f"}\\n'
    ...     )
    ...     open_pairs(f"{folder}/a.jsonl").pairs[0].query
    'Add.'
    """
    path = Path(path)
    reader = PairReader(query, code, language, tokens, documentation)
    left_out: Counter[str] = Counter()
    pairs = []
    for where, record in read_records(path):
        if _wrong(record):
            left_out["judged wrong"] += 1
            continue
        pair = reader.pair(record, where)
        if not pair.query or not pair.code.strip():
            left_out["no code" if pair.query else "no question"] += 1
        else:
            pairs.append(pair)
    if not pairs:
        raise DataError(f"{path}: no pair of question and code ({_counts(left_out) or 'no records'})")
    return LoadedPairs(pairs, dict(left_out))


def write_pairs(path: StrPath, pairs: Iterable[CodePair]) -> None:
    """Writes pairs as ``.jsonl``, ``.jsonl.gz`` or ``.parquet``, all or nothing; :func:`open_pairs` reads them back.

    Raises:
        DataError: another ending.
        ConfigError, RunError: the place cannot be written to.
    """
    path = Path(path)
    rows = [asdict(pair) for pair in pairs]
    kind = kind_of(path)
    if kind == "parquet":
        columns = {one.name: pa.array([row[one.name] for row in rows]) for one in fields(CodePair)}
        with atomic_path(path) as draft:
            pq.write_table(pa.table(columns), draft, compression="zstd")
    elif kind == "jsonl":
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace")
        write_atomic(path, _gzipped(data) if path.suffix.lower() == ".gz" else data)
    else:
        raise DataError(f"{path}: pairs are written as .jsonl, .jsonl.gz or .parquet")


def _gzipped(data: bytes) -> bytes:
    room = io.BytesIO()
    with gzip.GzipFile(fileobj=room, mode="wb", mtime=0) as file:  # the same bytes for the same pairs
        file.write(data)
    return room.getvalue()


@dataclass(frozen=True)
class PairReader:
    """Takes the question and the code out of a record, as the arguments of :func:`open_pairs` say."""

    query_field: str | None = None
    code_field: str | None = None
    language: str = ""
    tokens: bool = False
    documentation: bool = False

    def query(self, record: Record, where: str) -> str:
        """The question on one line; empty where there is none."""
        order = (*_QUERY_TOKENS, *QUERY_FIELDS) if self.tokens else QUERY_FIELDS
        name, value = _pick(record, self.query_field, order, "question", where)
        if isinstance(value, list) or name == "query":
            return " ".join(_joined(value).split())
        return " ".join(first_paragraph(_joined(value)).split())

    def pair(self, record: Record, where: str, *, asked: bool = True) -> CodePair:
        """The pair; of a candidate that nothing is asked about, the query is empty."""
        order = (*_CODE_TOKENS, *CODE_FIELDS) if self.tokens else CODE_FIELDS
        _, value = _pick(record, self.code_field, order, "code", where)
        others = {field: _first(record, names) for field, names in OTHER_FIELDS.items()}
        others["language"] = others["language"].lower() or self.language
        others["name"] = others["name"].rpartition(".")[2]
        code = _joined(value)
        ours = "qualified_name" in record
        if not self.documentation and not ours and not isinstance(value, list) and others["language"] in LANGUAGES:
            code = code_alone(code, others["language"])
        line = record.get("line")
        return CodePair(
            query=self.query(record, where) if asked else "",
            code=code,
            line=line if isinstance(line, int) else 0,
            **others,
        )


def _pick(record: Record, wanted: str | None, usual: Sequence[str], what: str, where: str) -> tuple[str, Any]:
    if wanted is not None:
        if wanted not in record:
            raise DataError(f"{where}: no field '{wanted}'; did you mean {closest(wanted, record)}?")
        return wanted, record[wanted]
    for name in usual:
        if record.get(name):
            return name, record[name]
    for name in usual:
        if name in record:
            return name, record[name]
    raise DataError(f"{where}: which field is the {what}? there are {', '.join(record) or 'none'}")


def _joined(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(part) for part in value)
    return value if isinstance(value, str) else ""


def _first(record: Record, names: Sequence[str]) -> str:
    return next((str(record[name]) for name in names if record.get(name) not in (None, "")), "")


def _wrong(record: Record) -> bool:
    return str(record.get("label", 1)).strip() in ("0", "False", "0.0")


def _counts(left_out: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in left_out.most_common())
