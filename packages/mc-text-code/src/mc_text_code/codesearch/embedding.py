"""Vectors for the chunks that lack one: newest files first, in batches, each kept before the next begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mc_core.errors import RunError
from mc_text_code.codesearch.chunking import code_text, documentation_text
from mc_text_code.codesearch.refresh import Progress
from mc_text_code.codesearch.store import Store, chunk_id
from mc_text_code.codesearch.vectors import Model, Vectors


class QueryEncoder(Protocol):
    """What embeds queries into the space of a :class:`CodeEncoder`."""

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Texts of natural language → (N, D) float."""


class CodeEncoder(Protocol):
    """What embeds queries and code into one space."""

    @property
    def identity(self) -> str:
        """A hash of everything that its vectors depend on."""

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Texts of natural language → (N, D) float."""

    def encode_code(self, texts: Sequence[str]) -> np.ndarray:
        """Pieces of code → (N, D) float."""


@dataclass(frozen=True)
class Embedding:
    """What was done.

    Attributes:
        encoded: texts that went through the encoder.
        reused: texts of chunks whose vectors were there already.
        complete: chunks that have all their vectors now.
        chunks: of how many.
        busy: another process embeds; nothing was done.
        seconds: it took.
    """

    encoded: int = 0
    reused: int = 0
    complete: int = 0
    chunks: int = 0
    busy: bool = False
    seconds: float = 0.0

    @property
    def coverage(self) -> float:
        """Share of chunks that have their vectors."""
        return self.complete / self.chunks if self.chunks else 1.0


@dataclass
class _File:
    id: int
    digest: bytes
    keys: list[tuple[bytes, bytes | None]]


def embed_missing(
    store: Store,
    encoder: CodeEncoder,
    *,
    batch_size: int = 256,
    seconds: float | None = None,
    stop: Callable[[], bool] | None = None,
    progress: Progress | None = None,
) -> Embedding:
    """Embed what has no vector yet. Memory does not grow with the index.

    Args:
        store: the index.
        encoder: whose vectors; those of another model are removed.
        batch_size: texts that the encoder is given at once.
        seconds: begin no further batch after these.
        stop: asked before each batch.
        progress: is told how many chunks have their vectors.

    Raises:
        RunError: the encoder gives something else than one finite vector for each text.
    """
    start = time.perf_counter()
    if not store.embedding.acquire():
        return _counted(store, busy=True, seconds=0.0)
    try:
        vectors = Vectors(store)
        run = _Run(store, vectors, encoder, batch_size)
        end = None if seconds is None else start + seconds
        run.all(lambda: (end is not None and time.perf_counter() >= end) or (stop is not None and stop()), progress)
        vectors.compact()
    finally:
        store.embedding.release()
    return _counted(store, encoded=run.encoded, reused=run.reused, seconds=time.perf_counter() - start)


def _counted(store: Store, **fields: Any) -> Embedding:
    complete, chunks = store.rows_of("SELECT coalesce(sum(embedded), 0), coalesce(sum(chunks), 0) FROM files")[0]
    return Embedding(complete=complete, chunks=chunks, **fields)


def place_known(store: Store, files: int) -> None:
    """Give files that were stored last the vectors that are there for their chunks; nothing is encoded.

    Args:
        store: the index.
        files: how many.
    """
    vectors = Vectors(store)
    model = vectors.model()
    if model is None or not model.dim or not store.embedding.acquire():
        return
    try:
        stored = store.rows_of(
            "SELECT id, digest FROM files WHERE embedded < chunks ORDER BY id DESC LIMIT ?", (files,)
        )
        some = [_read(store, number, digest) for number, digest in stored]
        digests = {digest for file in some for pair in file.keys for digest in pair if digest is not None}
        found = vectors.find(list(digests), model)
        if found:
            with store.transaction():
                for file in some:
                    _place(vectors, file, found)
    finally:
        store.embedding.release()


def _read(store: Store, number: int, digest: bytes) -> _File:
    rows = store.rows_of(
        "SELECT code_digest, documentation_digest FROM chunks WHERE id >= ? AND id < ? ORDER BY id",
        (chunk_id(number, 0), chunk_id(number + 1, 0)),
    )
    return _File(number, digest, rows)


def _place(vectors: Vectors, file: _File, found: dict[bytes, int]) -> None:
    rows = np.full((len(file.keys), 2), -1, np.int32)
    complete = 0
    for place, (code, documentation) in enumerate(file.keys):
        rows[place, 0] = found.get(code, -1)
        if documentation is not None:
            rows[place, 1] = found.get(documentation, -1)
        complete += int(rows[place, 0] >= 0 and (documentation is None or rows[place, 1] >= 0))
    vectors.place(file.id, file.digest, rows, complete)


class _Run:
    def __init__(self, store: Store, vectors: Vectors, encoder: CodeEncoder, batch_size: int) -> None:
        self.store, self.vectors, self.encoder = store, vectors, encoder
        self.batch_size = batch_size
        self.encoded = self.reused = 0
        self.model = vectors.begin(encoder.identity)

    def all(self, stop: Callable[[], bool], progress: Progress | None) -> None:
        pending = self.store.rows_of(
            "SELECT id, digest, chunks FROM files WHERE embedded < chunks ORDER BY mtime_ns < 0 DESC, mtime_ns DESC, path"
        )
        for group in _groups(pending, max(1, self.batch_size // 2)):  # a chunk has up to two texts
            if stop():
                return
            self._group(group, stop)
            if progress is not None:
                now = _counted(self.store)
                progress(now.complete, now.chunks)

    def _group(self, group: list[tuple[int, bytes]], stop: Callable[[], bool]) -> None:
        files = [_read(self.store, number, digest) for number, digest in group]
        sources: dict[bytes, tuple[int, int, bool]] = {}
        for file in files:
            for place, (code, documentation) in enumerate(file.keys):
                sources.setdefault(code, (file.id, place, True))
                if documentation is not None:
                    sources.setdefault(documentation, (file.id, place, False))
        found = self.vectors.find(list(sources), self.model)
        missing = [digest for digest in sources if digest not in found]
        if missing:
            found |= self.vectors.revive(missing, self.model)
            missing = [digest for digest in missing if digest not in found]
        self.reused += len(found)
        for start in range(0, len(missing), self.batch_size):
            if stop():
                break
            digests = missing[start : start + self.batch_size]
            found |= self._encode(digests, [sources[digest] for digest in digests])
        with self.store.transaction():
            for file in files:
                _place(self.vectors, file, found)

    def _encode(self, digests: list[bytes], sources: list[tuple[int, int, bool]]) -> dict[bytes, int]:
        codes: dict[bytes, str] = {}
        documentations: dict[bytes, str] = {}
        for digest, (file, place, is_code) in zip(digests, sources, strict=True):
            rows = self.store.rows_of(
                "SELECT kind, qualified_name, docstring, code FROM chunks WHERE id = ?", (chunk_id(file, place),)
            )
            if not rows:
                continue  # the file has changed since; the next run sees it
            kind, name, docstring, code = rows[0]
            if is_code:
                codes[digest] = code_text(kind, name, code, self.store.config)
            else:
                documentations[digest] = documentation_text(name, docstring)
        parts = [
            checked(encode(list(texts.values())), len(texts), self.encoder)
            for encode, texts in (
                (self.encoder.encode_code, codes),
                (self.encoder.encode_queries, documentations),
            )
            if texts
        ]
        if not parts:
            return {}
        made = np.concatenate(parts)
        self.model = self._fitting(made.shape[1])
        self.encoded += len(made)
        return self.vectors.add([*codes, *documentations], made, self.model)

    def _fitting(self, dim: int) -> Model:
        if self.model.dim in (0, dim):
            return self.model if self.model.dim else self.vectors.begin(self.model.identity, dim)
        held = self.model.dim
        self.vectors.drop()
        raise RunError(
            f"the encoder gives vectors of {dim} numbers, the index held {held} under the same identity; they were removed, "
            "run again to embed everything anew"
        )


def _groups(pending: list[tuple[int, bytes, int]], size: int) -> Iterator[list[tuple[int, bytes]]]:
    """Files in turn, as many as have so many chunks together."""
    group: list[tuple[int, bytes]] = []
    chunks = 0
    for number, digest, count in pending:
        group.append((number, digest))
        chunks += count
        if chunks >= size:
            yield group
            group, chunks = [], 0
    if group:
        yield group


def checked(vectors: object, count: int, encoder: CodeEncoder) -> np.ndarray:
    """Vectors as (N, D) float32.

    Raises:
        RunError: they are none.
    """
    made = np.asarray(vectors, dtype=np.float32)
    if made.ndim != 2 or len(made) != count or not made.shape[1]:
        raise RunError(
            f"the encoder {encoder.identity} gave {made.shape} for {count} texts; it must give (texts, numbers)"
        )
    if not np.isfinite(made).all():
        raise RunError(f"the encoder {encoder.identity} gave a vector that is not finite; nothing of it was kept")
    return made
