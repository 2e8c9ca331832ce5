"""What an index knows of files and chunks: writing it file by file, reading it at once.

Legend: F files, N chunks of all files in the order of their paths, C chunks of one file, E pairs of a chunk and a word.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mc_text_code.codesearch.bm25 import Postings
from mc_text_code.codesearch.chunking import ChunkedFile
from mc_text_code.codesearch.database import DamagedIndexError, Database

_MOST_VARIABLES = 500
_ROOM = 1 << 20  # numbers of chunks that a file may use: more than it has bytes


def chunk_id(file: int, place: int) -> int:
    """Number of a chunk in the database.

    >>> chunk_id(3, 2) - chunk_id(3, 0)
    2
    """
    return file * _ROOM + place


class Known(NamedTuple):
    """What is stored of a file."""

    id: int
    size: int
    mtime_ns: int
    digest: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stored chunk: see :class:`~mc_text_code.codesearch.chunking.ChunkRow`."""

    number: int
    path: str
    language: str
    kind: str
    name: str
    qualified_name: str
    line: int
    start_line: int
    end_line: int
    part: int
    parts: int
    trivial: int
    signature: str
    docstring: str
    code: str


@dataclass(frozen=True)
class Snapshot:
    """What queries need of the whole index, read at one moment.

    Attributes:
        ids: of F files.
        paths: of F files, ascending.
        languages: of F files.
        chunk_counts: (F,).
        firsts: (F,) number of each file's first chunk.
        postings: of N chunks.
        rows: (N, 2) int32, where the vectors of code and of documentation are; −1 where there are none.
    """

    ids: list[int]
    paths: list[str]
    languages: list[str]
    chunk_counts: np.ndarray
    firsts: np.ndarray
    postings: Postings
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def place_of(self, chunk: int) -> tuple[int, int]:
        """Which file (its place in the lists), and which of its chunks."""
        file = int(np.searchsorted(self.firsts, chunk, side="right")) - 1
        return file, chunk - int(self.firsts[file])

    @property
    def coverage(self) -> float:
        """Share of chunks that have a vector."""
        return float((self.rows[:, 0] >= 0).mean()) if len(self.rows) else 1.0


class Store(Database):
    """The index of a folder. See :class:`~mc_text_code.codesearch.database.Database` for what it is made with."""

    def known(self) -> dict[str, Known]:
        """Stored files by path."""
        rows = self.rows_of("SELECT path, id, size, mtime_ns, digest, reason FROM files")
        return {path: Known(*rest) for path, *rest in rows}

    def term_numbers(self, words: Iterable[str]) -> dict[str, int]:
        """Numbers of those words that are in the index."""
        found: dict[str, int] = {}
        asked = list(dict.fromkeys(words))
        for start in range(0, len(asked), _MOST_VARIABLES):
            some = asked[start : start + _MOST_VARIABLES]
            marks = ",".join("?" * len(some))
            found.update(self.rows_of(f"SELECT term, id FROM terms WHERE term IN ({marks})", some))
        return found

    def chunks_at(self, wanted: Sequence[tuple[int, int, int]]) -> list[Chunk]:
        """Stored chunks.

        Args:
            wanted: number in the snapshot, id of the file, place in it; those that are gone by now are left out.
        """
        statement = (
            "SELECT f.path, f.language, c.kind, c.name, c.qualified_name, c.line, c.start_line, c.end_line, c.part, c.parts, "
            "c.trivial, c.signature, c.docstring, c.code FROM chunks c JOIN files f ON f.id = ? WHERE c.id = ?"
        )
        with self._sqlite():
            rows = [
                (number, self.connection.execute(statement, (file, chunk_id(file, place))).fetchone())
                for number, file, place in wanted
            ]
        return [Chunk(number, *row) for number, row in rows if row is not None]

    def snapshot(self) -> Snapshot:
        """The whole index as arrays.

        Raises:
            DamagedIndexError: a checksum does not match.
        """
        found = self.rows_of(
            "SELECT f.id, f.path, f.language, f.chunks, p.data, p.crc, r.rows FROM files f JOIN postings p ON p.file = f.id "
            "LEFT JOIN places r ON r.file = f.id WHERE f.chunks > 0 ORDER BY f.path"
        )
        lengths, uniques, terms, counts, places = [], [], [], [], []
        for _, path, _, chunks, data, crc, rows in found:
            spare = len(data) - 8 * chunks
            if spare < 0 or spare % 6 or zlib.crc32(data) != crc or (rows is not None and len(rows) != 8 * chunks):
                raise DamagedIndexError(f"it was damaged (the entry of {path})")
            lengths.append(np.frombuffer(data, "<u4", chunks))
            uniques.append(np.frombuffer(data, "<u4", chunks, 4 * chunks))
            terms.append(np.frombuffer(data, "<u4", spare // 6, 8 * chunks))
            counts.append(np.frombuffer(data, "<u2", spare // 6, 8 * chunks + spare // 6 * 4))
            places.append(np.full(2 * chunks, -1, "<i4") if rows is None else np.frombuffer(rows, "<i4"))
        chunk_counts = np.array([row[3] for row in found], dtype=np.int64)
        total = int(chunk_counts.sum())
        postings = Postings(
            _joined(lengths, np.uint32),
            np.repeat(np.arange(total, dtype=np.int32), _joined(uniques, np.uint32)),
            _joined(terms, np.uint32),
            _joined(counts, np.uint16),
        )
        return Snapshot(
            [row[0] for row in found],
            [row[1] for row in found],
            [row[2] for row in found],
            chunk_counts,
            np.cumsum(chunk_counts) - chunk_counts,
            postings,
            _joined(places, np.int32).reshape(-1, 2),
        )

    def remove(self, ids: Iterable[int]) -> None:
        """Forget files, inside a transaction."""
        gone = list(ids)
        for table, column in (("files", "id"), ("postings", "file"), ("places", "file")):
            self.connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(number,) for number in gone])
        spans = [(chunk_id(number, 0), chunk_id(number + 1, 0)) for number in gone]
        self.connection.executemany("DELETE FROM chunks WHERE id >= ? AND id < ?", spans)

    def touch(self, number: int, size: int, mtime_ns: int) -> None:
        """A file whose text is the same was written again, inside a transaction."""
        self.connection.execute("UPDATE files SET size = ?, mtime_ns = ? WHERE id = ?", (size, mtime_ns, number))

    def put(self, file: ChunkedFile, terms: np.ndarray, mtime_ns: int) -> None:
        """Store a file in the place of what was known of it, inside a transaction.

        Args:
            file: what is kept of it.
            terms: (E,) its words, as numbered in the index.
            mtime_ns: time of its last change, as far as it can be relied upon.
        """
        run = self.connection.execute
        values = (file.size, mtime_ns, file.digest, file.language, file.reason, file.note, len(file.rows))
        old = run("SELECT id FROM files WHERE path = ?", (file.path,)).fetchone()
        if old is not None:
            self.remove(old)
        number = run(
            "INSERT INTO files (path, size, mtime_ns, digest, language, reason, note, chunks) VALUES (?,?,?,?,?,?,?,?)",
            (file.path, *values),
        ).lastrowid
        if number is not None and file.rows:
            marks = ",".join("?" * (1 + len(file.rows[0])))
            rows = ((chunk_id(number, place), *row) for place, row in enumerate(file.rows))
            self.connection.executemany(f"INSERT INTO chunks VALUES ({marks})", rows)
            data = b"".join(
                array.astype(kind).tobytes()
                for array, kind in (
                    (file.lengths, "<u4"),
                    (file.uniques, "<u4"),
                    (terms, "<u4"),
                    (file.counts, "<u2"),
                )
            )
            run("INSERT INTO postings VALUES (?, ?, ?)", (number, data, zlib.crc32(data)))


def _joined(parts: list[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(parts).astype(kind, copy=False) if parts else np.empty(0, kind)
