"""Reading sentences from files, many at a time and never line by line where it can be helped."""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from mc_core.errors import DataError, closest
from mc_core.files import StrPath
from mc_text_code.data.sentences import Sentences

_BLOCK = 1 << 25  # bytes read at once
_NAMES = ("sentence", "text", "sentences", "texts")
_KINDS = ".txt, .csv, .tsv, .jsonl or .parquet"
_SHOWN = 3

_Decoded = tuple[list[str], int, str]  # texts, how many are no UTF-8, and where the first of those is


def open_sentences(
    source: StrPath | Sequence[StrPath],
    column: str | None = None,
    *,
    longest: int = 10_000,
    deduplicate: bool = False,
) -> Sentences:
    """Sentences from files: one a line in ``.txt``, a column of ``.csv``, ``.tsv``, ``.jsonl`` and ``.parquet``; all but the
    last also compressed as ``.gz``.

    White space around a sentence is taken off. Empty lines, what is no UTF-8 and what is longer than ``longest`` is left
    out and counted in ``left_out`` as ``empty``, ``invalid`` and ``too_long``, beside ``lines``, all there were, and
    ``one_word``, sentences of a single word, which stay.

    Args:
        source: a file, a pattern such as ``"texts/*.txt"``, or several of them.
        column: of a table; default: ``sentence`` or ``text``, or the only column with text.
        longest: characters of a sentence; a line of 100 kB is none.
        deduplicate: keep the first of equal sentences, and count ``duplicates``.

    Raises:
        DataError: no such file, another kind of file, no such column, or no sentence in it; in one line.
    """
    paths = find_files(source)
    counts: Counter[str] = Counter()
    kept: list[str] = []
    first_invalid = ""
    for path in paths:
        for texts, invalid, place in _reader(path)(path, column):
            counts.update(lines=len(texts) + invalid, invalid=invalid)
            first_invalid = first_invalid or place
            kept += _clean(texts, longest, counts)
    name = ", ".join(str(path) for path in paths[:_SHOWN]) + (
        f" and {len(paths) - _SHOWN} more" * (len(paths) > _SHOWN)
    )
    if not kept:
        raise DataError(f"{name}: no sentence in {_summary(counts)}; give text with a sentence a line")
    sentences = Sentences(kept, None, name, dict(counts), first_invalid)
    if deduplicate:
        unique = sentences.deduplicated()
        counts["duplicates"] = len(sentences) - len(unique)
        sentences = Sentences(unique.texts, None, name, dict(counts), first_invalid)
    return sentences


def _summary(counts: Counter[str]) -> str:
    parts = [f"{counts[name]:,} {name.replace('_', ' ')}" for name in ("empty", "invalid", "too_long") if counts[name]]
    hint = (
        "; is the text UTF-16? save it as UTF-8" if counts["invalid"] and counts["invalid"] == counts["lines"] else ""
    )
    return f"{counts['lines']:,} lines" + (f" ({', '.join(parts)}{hint})" if parts else "")


def _clean(texts: list[str], longest: int, counts: Counter[str]) -> list[str]:
    stripped = [text for text in map(str.strip, texts) if text]
    kept = [text for text in stripped if len(text) <= longest]
    single = sum(len(text.split(None, 1)) == 1 for text in kept)
    counts.update(empty=len(texts) - len(stripped), too_long=len(stripped) - len(kept), one_word=single)
    return kept


def find_files(source: StrPath | Sequence[StrPath]) -> list[Path]:
    """The files that paths and patterns stand for, each pattern's in the order of their names.

    Raises:
        DataError: there is none, or it is a folder.
    """
    given = [source] if isinstance(source, (str, Path)) or not isinstance(source, Sequence) else list(source)
    found: list[Path] = []
    for one in given:
        text = str(one)
        path = Path(text)
        if path.is_dir():
            raise DataError(f"{path} is a folder: give its files, for example '{path / '*.txt'}'")
        matches = [path] if path.is_file() else sorted(Path(name) for name in glob.glob(text, recursive=True))
        matches = [match for match in matches if match.is_file()]
        if not matches:
            raise DataError(f"{text}: no such file; give {_KINDS}, or a pattern such as 'texts/*.txt'")
        found += matches
    if not found:
        raise DataError(f"no file of sentences given; give {_KINDS}")
    return found


def _reader(path: Path) -> Callable[[Path, str | None], Iterator[_Decoded]]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else (suffixes or [""])[-1]
    readers: dict[str, Callable[[Path, str | None], Iterator[_Decoded]]] = {
        ".txt": _read_text,
        ".text": _read_text,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".parquet": _read_parquet,
    }
    if kind not in readers:
        raise DataError(f"{path}: a file ending in '{kind or path.name}' is none of sentences; give {_KINDS}")
    return readers[kind]


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _blocks(path: Path) -> Iterator[bytes]:
    """Whole lines, many at a time."""
    rest, start = b"", True
    try:
        with _open(path) as file:
            while block := file.read(_BLOCK):
                if start and block[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    raise DataError(f"{path} is UTF-16: save it as UTF-8")
                start = False
                head, newline, tail = (rest + block).rpartition(b"\n")
                rest = tail
                if newline:
                    yield head
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if rest:
        yield rest


def _read_text(path: Path, column: str | None) -> Iterator[_Decoded]:
    line = 1
    for block in _blocks(path):
        lines = block.split(b"\n")
        yield _decoded(lines, block, path, line)
        line += len(lines)


def _decoded(lines: list[bytes], block: bytes, path: Path, first: int) -> _Decoded:
    try:
        return block.removeprefix(b"\xef\xbb\xbf").decode().split("\n"), 0, ""
    except UnicodeDecodeError:
        pass
    texts, bad = [], []
    for number, line in enumerate(lines, first):
        try:
            texts.append(line.removeprefix(b"\xef\xbb\xbf").decode())
        except UnicodeDecodeError:
            bad.append(number)
    return texts, len(bad), f"{path} line {bad[0]}"


def _read_jsonl(path: Path, column: str | None) -> Iterator[_Decoded]:
    line = 1
    for block in _blocks(path):
        lines = block.split(b"\n")
        texts, invalid, place = _decoded(lines, block, path, line)
        values = []
        for number, text in enumerate(texts, line):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except ValueError as error:
                raise DataError(f"{path} line {number}: not valid JSON ({error})") from error
            if isinstance(record, str):
                values.append(record)
                continue
            if not isinstance(record, dict):
                raise DataError(f"{path} line {number}: {type(record).__name__}, not an object with a text")
            column = column or _pick({name: isinstance(value, str) for name, value in record.items()}, None, path)
            value = record.get(column)
            if not isinstance(value, str) and value is not None:
                raise DataError(f"{path} line {number}: '{column}' is {type(value).__name__}, not a text")
            if column not in record:
                raise DataError(f"{path} line {number}: no '{column}'; its fields are {', '.join(record) or 'none'}")
            values.append(value or "")
        yield values, invalid, place
        line += len(lines)


def _read_csv(path: Path, column: str | None) -> Iterator[_Decoded]:
    delimiter = "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes] else ","
    parse = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    read = pa_csv.ReadOptions(block_size=_BLOCK)
    try:
        with pa_csv.open_csv(path, read_options=read, parse_options=parse) as file:
            kinds = {field.name: _is_text(field.type) for field in file.schema}
        name = _pick(kinds, column, path)
        convert = pa_csv.ConvertOptions(
            include_columns=[name], column_types={name: pa.binary()}, strings_can_be_null=False
        )
        row = 2
        with pa_csv.open_csv(path, read_options=read, parse_options=parse, convert_options=convert) as file:
            for batch in file:
                yield _decoded_column(batch.column(0), path, row)
                row += len(batch)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error


def _read_parquet(path: Path, column: str | None) -> Iterator[_Decoded]:
    try:
        with pq.ParquetFile(path) as file:
            name = _pick({field.name: _is_text(field.type) for field in file.schema_arrow}, column, path)
            row = 1
            for batch in file.iter_batches(columns=[name], batch_size=1 << 18):
                values = batch.column(0)
                values = values.dictionary_decode() if isinstance(values, pa.DictionaryArray) else values
                yield _decoded_column(values.cast(pa.large_binary()), path, row)
                row += len(batch)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if isinstance(kind, pa.DictionaryType) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))


def _decoded_column(values: pa.Array, path: Path, first: int) -> _Decoded:
    try:
        texts = values.cast(pa.large_binary()).cast(pa.large_string())
        return texts.fill_null("").to_pylist(), 0, ""
    except pa.ArrowInvalid:
        rows = values.fill_null(b"").to_pylist()
    kept, bad = [], np.zeros(len(rows), dtype=bool)
    for number, value in enumerate(rows):
        try:
            kept.append(value.decode())
        except UnicodeDecodeError:
            bad[number] = True
    return kept, int(bad.sum()), f"{path} row {first + int(bad.argmax())}"


def _pick(kinds: dict[str, bool], column: str | None, path: Path) -> str:
    """The column to read; ``kinds`` says of each whether it holds text."""
    listed = ", ".join(kinds) or "none"
    if column is not None:
        if column not in kinds:
            raise DataError(f"{path}: no column '{column}'; did you mean {closest(column, kinds)}? (columns: {listed})")
        if not kinds[column]:
            raise DataError(f"{path}: column '{column}' holds no text; the columns that do: {_texts(kinds)}")
        return column
    for name in _NAMES:
        if kinds.get(name):
            return name
    texts = [name for name, is_text in kinds.items() if is_text]
    if len(texts) == 1:
        return texts[0]
    raise DataError(f"{path}: which column holds the sentences? say one of {_texts(kinds)}")


def _texts(kinds: dict[str, Any]) -> str:
    return ", ".join(name for name, is_text in kinds.items() if is_text) or "none"
