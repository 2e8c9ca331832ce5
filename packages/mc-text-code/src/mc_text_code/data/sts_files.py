"""The files behind :func:`mc_text_code.data.sts.open_sts`: which there are, and what is in their lines. Imports no torch."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mc_core.errors import DataError

_DEPTH = 5  # folders below the one given
_TABLES = {".parquet", ".csv", ".tsv", ".jsonl"}
_INPUT = re.compile(r"STS\.input\.(.+)\.txt")
_BENCHMARK = re.compile(r"sts-(train|dev|test)\.(csv|tsv)")
_SICK = re.compile(r"SICK(_\w+)?\.txt", re.IGNORECASE)
_YEAR = re.compile(r"STS[-_]?(?:20)?(1[2-6])", re.IGNORECASE)
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "trial", "validation", "valid", "val"), "dev"),
    **dict.fromkeys(("test", "test_annotated", "eval"), "test"),
}
_SPLIT_AT_END = re.compile(rf"(?:^|[-_. ])({'|'.join(_SPLITS)})(?:[-_]\d+[-_]of[-_]\d+)?$", re.IGNORECASE)
_NAMES = {
    "sentence1": ("sentence1", "sentence_1", "sentence_a", "sent1", "text1"),
    "sentence2": ("sentence2", "sentence_2", "sentence_b", "sent2", "text2"),
    "score": ("score", "gold", "similarity", "similarity_score", "relatedness_score"),
    "dataset": ("dataset", "task"),
    "subset": ("subset",),
    "split": ("split", "semeval_set"),
}
_NEEDED = ("sentence1", "sentence2", "score")

Cells = tuple[int, Mapping[str, Any]]
"""Line or row number, counted from 1, and the values of the columns above."""


@dataclass
class Rows:
    """Pairs of one part of one task.

    Attributes:
        task: name.
        split: ``train``, ``dev``, ``test`` or as the file says.
        subset: name of the part.
        sentence1, sentence2, gold: one entry per pair.
        dropped: pairs without a gold score.
    """

    task: str
    split: str
    subset: str
    sentence1: list[str] = field(default_factory=list)
    sentence2: list[str] = field(default_factory=list)
    gold: list[float] = field(default_factory=list)
    dropped: int = 0


def find_files(path: Path) -> list[Path]:
    """Files that may hold pairs: ``path`` itself, or those at most five folders below it, in the order of their names.

    Raises:
        DataError: nothing is there.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; name a folder of STS files or a table")
    if path.is_file():
        return [path]
    found = []
    for folder, below, names in os.walk(path, followlinks=True):
        here = Path(folder)
        below[:] = (
            sorted(b for b in below if not b.startswith(".")) if len(here.relative_to(path).parts) < _DEPTH else []
        )
        found += [here / name for name in names if not name.startswith(".") and _may_hold_pairs(name)]
    return sorted(found)


def read_rows(file: Path, *, strict: bool) -> list[Rows]:
    """The pairs of one file, a part of a task at a time.

    Args:
        file: one that :func:`find_files` found.
        strict: a table without the columns needed is an error; otherwise it holds no pairs.
    """
    if match := _INPUT.fullmatch(file.name):
        return _read_senteval(file, match[1])
    if (match := _BENCHMARK.fullmatch(file.name)) and _first_line(file).count("\t") >= 6:
        return _collect(file, _benchmark_cells(file), lambda cells: ("STS-B", match[1], "STS-B"))
    if not _SICK.fullmatch(file.name) and file.suffix.lower() not in _TABLES:
        raise DataError(f"{file}: STS pairs are read from a folder, or from .parquet, .csv, .tsv or .jsonl")
    opened = _open_table(file)
    if (cells := opened(strict)) is None:
        return []
    task, split = _named_by(file)

    def place(found: Mapping[str, Any]) -> tuple[str, str, str]:
        name = task_name(str(found.get("dataset") or task))
        return name, split_name(found.get("split") or split), _subset_name(str(found.get("subset") or name))

    return _collect(file, cells, place)


def task_name(name: str) -> str:
    """The usual name of an official task, other names as they are.

    >>> [task_name(name) for name in ("sts2014", "STS12-en-test", "stsbenchmark", "sick", "my-pairs")]
    ['STS14', 'STS12', 'STS-B', 'SICK-R', 'my-pairs']
    """
    if year := _YEAR.match(name):
        return f"STS{year[1]}"
    plain = re.sub(r"[^a-z]", "", name.lower())
    if re.fullmatch(r"(glue)?sts(b|benchmark)(en|english)?", plain):
        return "STS-B"
    return "SICK-R" if plain in ("sick", "sickr", "sickrelatedness") else name


def split_name(name: object) -> str:
    """``train``, ``dev`` or ``test`` for the usual words, others as they are, in lower case."""
    plain = str(name).strip().lower()
    return _SPLITS.get(plain, plain)


def _may_hold_pairs(name: str) -> bool:
    return bool(_INPUT.fullmatch(name) or _SICK.fullmatch(name)) or Path(name).suffix.lower() in _TABLES


def _subset_name(name: str) -> str:
    return name.removeprefix("surprise.")  # of 2012, in the names of the files only


def _named_by(file: Path) -> tuple[str, str]:
    """Task and split as the file's name tells them."""
    stem = file.stem
    split = "test"
    if match := _SPLIT_AT_END.search(stem.removesuffix("_annotated")):
        split, stem = split_name(match[1]), stem[: match.start()]
    if not stem:
        above = [part for part in file.resolve().parts[:-1] if part.lower() != "data"]
        stem = above[-1] if above else file.stem
    return stem, split


def _read_senteval(file: Path, subset: str) -> list[Rows]:
    scores = file.with_name(f"STS.gs.{subset}.txt")
    if subset == "ALL":  # all parts again
        return []
    if not scores.is_file():
        raise DataError(f"{file} has no gold scores beside it: {scores.name} is missing")
    year = next((match for part in reversed(file.resolve().parts[:-1]) if (match := _YEAR.search(part))), None)
    if year is None:
        raise DataError(f"{file}: no folder above it says which year it is; name one like STS12-en-test")
    split = "train" if "train" in file.parent.name.lower() else "test"
    lines, gold = _lines(file), _lines(scores)
    if len(lines) != len(gold):
        raise DataError(f"{file} has {len(lines)} lines and {scores.name} {len(gold)}: they must match line by line")

    def cells() -> Iterator[Cells]:
        for number, (line, score) in enumerate(zip(lines, gold, strict=True), start=1):
            parts = line.split("\t")
            if len(parts) < 2:
                raise DataError(f"{file}, line {number}: no tab between two sentences in {line[:60]!r}")
            yield number, {"sentence1": parts[0], "sentence2": parts[1], "score": score}

    place = f"STS{year[1]}", split, _subset_name(subset)
    return _collect(file, cells(), lambda found: place, scores=scores)


def _benchmark_cells(file: Path) -> Iterator[Cells]:
    """STS-B as published: genre, file, year, id, score, two sentences, and sometimes their sources; nothing is quoted."""
    for number, line in enumerate(_lines(file), start=1):
        parts = line.split("\t")
        if len(parts) < 7:
            raise DataError(
                f"{file}, line {number}: {len(parts)} fields, at least 7 are needed (score and sentences are 5 to 7)"
            )
        yield number, {"score": parts[4], "sentence1": parts[5], "sentence2": parts[6]}


def _open_table(file: Path) -> Callable[[bool], Iterator[Cells] | None]:
    kind = file.suffix.lower()
    reader = {".parquet": _parquet_cells, ".jsonl": _jsonl_cells}.get(kind, _text_cells)
    return lambda strict: reader(file, strict)


def _columns(names: Iterable[str], file: Path, strict: bool) -> dict[str, str] | None:
    """Ours → the table's name of each column that is there."""
    there = {str(name).strip().lower(): str(name) for name in reversed(list(names))}
    found = {
        ours: there[alias]
        for ours, aliases in _NAMES.items()
        if (alias := next((a for a in aliases if a in there), None))
    }
    lacking = [name for name in _NEEDED if name not in found]
    if not lacking:
        return found
    if strict:
        listed = ", ".join(map(repr, list(there.values())[::-1][:8])) or "none"
        raise DataError(f"{file}: no column {lacking[0]!r} among {listed}; sentence1, sentence2 and score are needed")
    return None


def _text_cells(file: Path, strict: bool) -> Iterator[Cells] | None:
    header = _first_line(file)
    delimiter = "\t"
    if file.suffix.lower() == ".csv":
        delimiter = max(",;\t", key=header.count)
    # tabs separate sentences that nobody quoted: a quotation mark belongs to the sentence
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    names = next(csv.reader([header], delimiter=delimiter, quoting=quoting), [])
    columns = _columns(names, file, strict)
    if columns is None:
        return None
    at = {ours: names.index(theirs) for ours, theirs in columns.items()}

    def cells() -> Iterator[Cells]:
        reader = csv.reader(_lines(file, keep=True), delimiter=delimiter, quoting=quoting)
        try:
            next(reader)
            for row in reader:
                if not row:
                    continue
                if len(row) < len(names):
                    raise DataError(f"{file}, line {reader.line_num}: {len(row)} cells, the header has {len(names)}")
                yield reader.line_num, {ours: row[place] for ours, place in at.items()}
        except csv.Error as error:
            raise DataError(f"{file}, line {reader.line_num}: cannot be read ({error})") from error

    return cells()


def _jsonl_cells(file: Path, strict: bool) -> Iterator[Cells] | None:
    def record(number: int, line: str) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}, line {number}: not JSON ({error})") from error
        if not isinstance(found, dict):
            raise DataError(f"{file}, line {number}: {line[:40]!r} is no object with named values")
        return found

    first = _first_line(file)
    try:
        columns = _columns(record(1, first), file, strict)
    except DataError:
        if strict:
            raise
        return None
    if columns is None:
        return None
    names = columns

    def cells() -> Iterator[Cells]:
        for number, line in enumerate(_lines(file), start=1):
            if line.strip():
                found = record(number, line)
                yield number, {ours: found.get(theirs) for ours, theirs in names.items()}

    return cells()


def _parquet_cells(file: Path, strict: bool) -> Iterator[Cells] | None:
    import pyarrow.parquet as pq

    try:
        columns = _columns(pq.read_schema(file).names, file, strict)
        if columns is None:
            return None
        table = pq.read_table(file, columns=list(columns.values()), partitioning=None)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not a whole Parquet file ({str(error).splitlines()[0]})") from error
    values = {ours: table.column(theirs).to_pylist() for ours, theirs in columns.items()}
    return (
        (number, dict(zip(values, row, strict=True)))
        for number, row in enumerate(zip(*values.values(), strict=True), start=1)
    )


def _collect(
    file: Path,
    cells: Iterable[Cells],
    place: Callable[[Mapping[str, Any]], tuple[str, str, str]],
    *,
    scores: Path | None = None,
) -> list[Rows]:
    """Sort rows into the parts they belong to; ``scores`` is the file of the gold scores where it is another."""
    found: dict[tuple[str, str, str], Rows] = {}
    gold_file = scores or file
    where = "row" if file.suffix.lower() == ".parquet" else "line"
    for number, row in cells:
        key = place(row)
        rows = found.setdefault(key, Rows(*key))
        gold = _gold(row["score"], f"{gold_file}, {where} {number}")
        if gold is None:
            rows.dropped += 1
            continue
        pair = [_sentence(row[name], f"{file}, {where} {number}", name) for name in ("sentence1", "sentence2")]
        rows.sentence1.append(pair[0])
        rows.sentence2.append(pair[1])
        rows.gold.append(gold)
    total = sum(len(rows.gold) for rows in found.values())
    if not total:
        missing = sum(rows.dropped for rows in found.values())
        why = f"all {missing} gold scores are missing" if missing else "there are no pairs in it"
        raise DataError(f"{gold_file}: {why}; sentences are compared with the scores that people gave")
    return [rows for rows in found.values() if rows.gold]


def _gold(value: Any, where: str) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: the gold score {str(value)[:40]!r} is no number") from None
    if math.isnan(score):
        return None
    if math.isinf(score):
        raise DataError(f"{where}: the gold score is infinite")
    return score


def _sentence(value: Any, where: str, name: str) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else ""
    if not text:
        raise DataError(f"{where}: {name} is empty; a pair with a score needs two sentences")
    return text


def _first_line(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            line = stream.readline(1 << 20)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from error
    return line.decode("utf-8-sig", "replace").rstrip("\r\n")


def _lines(file: Path, *, keep: bool = False) -> Sequence[str]:
    """Lines of a text file, with their ends if ``keep``."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}, line {line}: not UTF-8; convert the file") from error
    lines = text.split("\n")  # str.splitlines would also split at separators inside a sentence
    if not lines[-1]:
        lines.pop()
    return [line + "\n" for line in lines] if keep else [line.removesuffix("\r") for line in lines]
