"""The vectors of an index: one memory-mapped matrix, and which row belongs to which text.

Rows are only added, each under sha256(digest of the text + identity of the model), so that what was embedded once is not embedded
again, whatever file it stands in. Rows that no chunk needs any more are left where they are until they are a quarter of all;
then the matrix is written anew without them, and they are kept for a while beside it, for branches that come back.

Legend: R rows, D dimensions, N chunks.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.errors import ConfigError
from mc_core.files import explain_write_error
from mc_text_code.codesearch.database import DENSE, DamagedIndexError
from mc_text_code.codesearch.store import Store

COMPACT_AT = 0.25
"""Share of unused rows at which the matrix is written anew."""
FEWEST_UNUSED = 256

_BLOCK = 512
_MOST_VARIABLES = 500
_SHIFT = 13  # from the exponent and fraction of a float16 to those of a float32
_SIGN_AND_FRACTION = np.int32(np.uint32(0x8FFFE000).view(np.int32))
_HALF_TO_SINGLE = np.float32(2.0**112)


@dataclass(frozen=True)
class Model:
    """Whose vectors they are.

    Attributes:
        identity: of the encoder: a hash of all that its vectors depend on.
        dim: D, 0 before the first vector.
        kind: ``float16`` or ``int8``.
        file: name of the matrix.
    """

    identity: str
    dim: int
    kind: str
    file: str

    @property
    def row(self) -> np.dtype[Any]:
        """One row."""
        if self.kind == "int8":
            return np.dtype([("scale", "<f4"), ("values", "i1", (self.dim,))])
        return np.dtype(("<f2", (self.dim,)))


class Matrix:
    """R stored vectors, mapped.

    Args:
        path: of the file.
        model: whose they are.
        rows: R.

    Raises:
        DamagedIndexError: the file is shorter.
    """

    def __init__(self, path: Path, model: Model, rows: int) -> None:
        self.model = model
        self.rows = rows
        size = rows * model.row.itemsize
        try:
            if rows and path.stat().st_size < size:
                raise DamagedIndexError(f"{path.name} is shorter than it was")
            self._bytes = np.memmap(path, dtype=np.uint8, mode="r", shape=(size,)) if rows else np.empty(0, np.uint8)
        except FileNotFoundError as error:
            raise DamagedIndexError(f"{path.name} is gone") from error

    def check(self, blocks: Iterable[tuple[int, int, int]]) -> None:
        """Compare checksums.

        Args:
            blocks: first row, number of rows, CRC-32 of each stretch that was written at once.

        Raises:
            DamagedIndexError: one does not match.
        """
        size = self.model.row.itemsize
        for start, count, crc in blocks:
            if zlib.crc32(self._bytes[start * size : (start + count) * size].data) != crc:
                raise DamagedIndexError(f"{self.model.file} is not what was written")

    def raw(self, rows: np.ndarray) -> bytes:
        """Rows as they are stored."""
        return self._bytes.reshape(self.rows, -1)[rows].tobytes()

    def cosines(self, query: np.ndarray) -> np.ndarray:
        """(R,) float32, inner products with a query of length one.

        Rows are made float32 a block at a time, in the cache of the processor. NumPy's own conversion of float16 takes eight
        times as long as the shift of bits here, which leaves a factor of 2¹¹² to the query.

        Args:
            query: (D,) float32.
        """
        scores = np.empty(self.rows, np.float32)
        if not self.rows:
            return scores
        if self.model.kind == "int8":
            stored: Any = self._bytes.view(self.model.row)
            block = np.empty((_BLOCK, self.model.dim), np.float32)
            for start in range(0, self.rows, _BLOCK):
                some = stored["values"][start : start + _BLOCK]
                np.copyto(block[: len(some)], some)
                np.dot(block[: len(some)], query, out=scores[start : start + len(some)])
            return scores * stored["scale"]
        halves = self._bytes.view("<i2").reshape(self.rows, self.model.dim)
        bits = np.empty((_BLOCK, self.model.dim), np.int32)
        singles, scaled = bits.view(np.float32), query * _HALF_TO_SINGLE
        for start in range(0, self.rows, _BLOCK):
            some = halves[start : start + _BLOCK]
            part = bits[: len(some)]
            np.copyto(part, some)
            np.left_shift(part, _SHIFT, out=part)
            np.bitwise_and(part, _SIGN_AND_FRACTION, out=part)
            np.dot(singles[: len(some)], scaled, out=scores[start : start + len(some)])
        return scores


def packed(vectors: np.ndarray, model: Model) -> bytes:
    """Vectors as rows of the matrix, their lengths made one (zero stays zero).

    Args:
        vectors: (R, D).
        model: how they are stored.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    if model.kind == "float16":
        return units.astype("<f2").tobytes()
    rows = np.zeros(len(units), model.row)
    scale = np.abs(units).max(axis=1, initial=0) / 127
    rows["scale"] = scale
    rows["values"] = np.rint(units / np.where(scale > 0, scale, 1)[:, None])
    return rows.tobytes()


class Vectors:
    """The vectors of a store, for the one process that adds to them."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def model(self) -> Model | None:
        """Whose vectors there are, or None."""
        found = self.store.meta()
        if "model" not in found:
            return None
        return Model(found["model"], int(found["dim"]), found["vectors"], found["matrix"])

    def begin(self, identity: str, dim: int = 0) -> Model:
        """Make the vectors those of this model: another's are removed, never mixed with them.

        Args:
            identity: of the encoder.
            dim: D where it is known, else 0.
        """
        old, kind = self.model(), self.store.config.vectors
        if old is not None and old.identity == identity and old.kind == kind and dim in (0, old.dim):
            return old
        if old is not None and old.identity == identity and old.kind == kind and not old.dim:
            model = Model(identity, dim, kind, old.file)
            with self.store.transaction():
                self._write(model)
            return model
        return self._reset(Model(identity, dim, kind, _new_name()))

    def drop(self) -> None:
        """Remove all vectors."""
        old = self.model()
        if old is not None:
            self._reset(Model(old.identity, 0, old.kind, _new_name()))

    def _reset(self, model: Model) -> Model:
        old = self.model()
        with self.store.transaction():
            for table in DENSE:
                self.store.connection.execute(f"DELETE FROM {table}")
            self.store.connection.execute("UPDATE files SET embedded = 0")
            self._write(model)
        self._unlink(old)
        return model

    def _write(self, model: Model) -> None:
        self.store.set_meta(
            {"model": model.identity, "dim": str(model.dim), "vectors": model.kind, "matrix": model.file}
        )

    def _unlink(self, model: Model | None) -> None:
        if model is not None:
            (self.store.folder / model.file).unlink(missing_ok=True)

    def find(self, digests: Sequence[bytes], model: Model) -> dict[bytes, int]:
        """Rows of those texts that have one."""
        keys = {_key(digest, model): digest for digest in digests}
        return {keys[key]: row for key, row in self._select("SELECT key, row FROM vectors", list(keys))}

    def revive(self, digests: Sequence[bytes], model: Model) -> dict[bytes, int]:
        """As :meth:`find`, for texts whose rows were taken out of the matrix; they get new ones."""
        if not model.dim:
            return {}
        keys = {_key(digest, model): digest for digest in digests}
        found = self._select("SELECT key, vector FROM retired", list(keys))
        if not found:
            return {}
        names = [key for key, _ in found]
        rows = self._append(names, b"".join(vector for _, vector in found), model)
        with self.store.transaction():
            self.store.connection.executemany("DELETE FROM retired WHERE key = ?", [(key,) for key in names])
        return {keys[key]: row for key, row in zip(names, rows, strict=True)}

    def add(self, digests: Sequence[bytes], vectors: np.ndarray, model: Model) -> dict[bytes, int]:
        """Store new vectors, durably, before anything refers to them.

        Args:
            digests: of R texts that have none yet.
            vectors: (R, D).
            model: whose they are.
        """
        rows = self._append([_key(digest, model) for digest in digests], packed(vectors, model), model)
        return dict(zip(digests, rows, strict=True))

    def _append(self, keys: Sequence[bytes], data: bytes, model: Model) -> range:
        start = self._end()
        path = self.store.folder / model.file
        try:
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
                file.seek(start * model.row.itemsize)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise explain_write_error(error, path) from error
        rows = range(start, start + len(keys))
        with self.store.transaction():
            if self.model() != model:
                raise ConfigError(f"another process fills {self.store.folder} with the vectors of another model")
            run = self.store.connection
            run.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", zip(keys, rows, strict=True))
            run.execute("INSERT INTO blocks VALUES (?, ?, ?)", (start, len(rows), zlib.crc32(data)))
        return rows

    def _end(self) -> int:
        return int(self.store.rows_of("SELECT coalesce(max(start + count), 0) FROM blocks")[0][0])

    def _select(self, statement: str, keys: list[bytes]) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(keys), _MOST_VARIABLES):
            some = keys[start : start + _MOST_VARIABLES]
            found += self.store.rows_of(f"{statement} WHERE key IN ({','.join('?' * len(some))})", some)
        return found

    def place(self, file: int, digest: bytes, rows: np.ndarray, complete: int) -> None:
        """Say where the vectors of a file's chunks are, inside a transaction; nothing where the file has changed since.

        Args:
            file: its id.
            digest: of the text that was embedded.
            rows: (C, 2) int32, −1 where there is none.
            complete: chunks that lack no vector.
        """
        run = self.store.connection.execute
        done = run("UPDATE files SET embedded = ? WHERE id = ? AND digest = ?", (complete, file, digest))
        if done.rowcount:
            run("INSERT OR REPLACE INTO places VALUES (?, ?)", (file, rows.astype("<i4").tobytes()))

    def unused(self) -> tuple[np.ndarray, int]:
        """(R,) bool, rows that a chunk needs; and how many it does not."""
        used = np.zeros(self._end(), bool)
        for (data,) in self.store.rows_of("SELECT rows FROM places"):
            rows = np.frombuffer(data, "<i4")
            used[rows[rows >= 0]] = True
        return used, int(len(used) - used.sum())

    def compact(self, *, at: float = COMPACT_AT, fewest: int = FEWEST_UNUSED) -> int:
        """Write the matrix anew without unused rows, where they are ``at`` of all; they are kept apart for texts that come back.

        Returns:
            Rows taken out.
        """
        model = self.model()
        used, dead = self.unused()
        if model is None or not model.dim or dead < max(fewest, at * len(used), 1):
            return 0
        matrix = Matrix(self.store.folder / model.file, model, len(used))
        kept = np.flatnonzero(used)
        new = Model(model.identity, model.dim, model.kind, _new_name())
        path = self.store.folder / new.file
        blocks = []
        try:
            with path.open("wb") as file:
                for start in range(0, len(kept), 1 << 14):
                    data = matrix.raw(kept[start : start + (1 << 14)])
                    file.write(data)
                    blocks.append((start, min(1 << 14, len(kept) - start), zlib.crc32(data)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            path.unlink(missing_ok=True)
            raise explain_write_error(error, path) from error
        numbers = np.full(len(used) + 1, -1, "<i4")  # the last one stands for −1
        numbers[kept] = np.arange(len(kept))
        with self.store.transaction():
            run = self.store.connection
            self._retire(matrix, used)
            places = run.execute("SELECT file, rows FROM places").fetchall()
            moved = [(numbers[np.frombuffer(rows, "<i4")].tobytes(), file) for file, rows in places]
            run.executemany("UPDATE places SET rows = ? WHERE file = ?", moved)
            pairs = [(int(numbers[row]), key) for key, row in run.execute("SELECT key, row FROM vectors").fetchall()]
            run.executemany("UPDATE vectors SET row = ? WHERE key = ?", [pair for pair in pairs if pair[0] >= 0])
            run.executemany("DELETE FROM vectors WHERE key = ?", [(key,) for row, key in pairs if row < 0])
            run.execute("DELETE FROM blocks")
            run.executemany("INSERT INTO blocks VALUES (?, ?, ?)", blocks)
            self._write(new)
        self._unlink(model)
        return dead

    def _retire(self, matrix: Matrix, used: np.ndarray) -> None:
        """Keep unused rows apart, the newest, as many as there are used ones."""
        run, now = self.store.connection, int(time.time())
        pairs = run.execute("SELECT key, row FROM vectors").fetchall()
        dead = [(key, row) for key, row in pairs if not used[row]]
        run.executemany(
            "INSERT OR REPLACE INTO retired VALUES (?, ?, ?)",
            ((key, matrix.raw(np.array([row])), now) for key, row in dead),
        )
        run.execute(
            "DELETE FROM retired WHERE key NOT IN (SELECT key FROM retired ORDER BY since DESC, key LIMIT ?)",
            (max(int(used.sum()), len(dead)),),
        )


def _key(digest: bytes, model: Model) -> bytes:
    return hashlib.sha256(digest + model.identity.encode()).digest()


def _new_name() -> str:
    # no two matrices share a name, so that a process that is late never writes into another's
    return f"vectors-{secrets.token_hex(6)}.bin"
