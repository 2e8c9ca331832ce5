"""Stored chunks as they are shown: with the lines of their files as these are now.

Where a file has changed since it was indexed, what was stored of it is shown instead, and said so.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from mc_core.errors import DataError
from mc_text_code.codesearch.answer import Hit
from mc_text_code.codesearch.ranking import Ranked
from mc_text_code.codesearch.store import Chunk, Store
from mc_text_code.source.files import Skipped, SourceFile
from mc_text_code.source.reading import read_source

_SIGNATURE = 200


class Shower:
    """Hits with the lines of their files, each of which is read once.

    Args:
        store: knows what was indexed.
        root: of the files.

    Attributes:
        notes: on files that are another by now.
    """

    def __init__(self, store: Store, root: Path) -> None:
        self._store, self._root = store, root
        self._lines: dict[str, list[str] | None] = {}
        self.notes: list[str] = []

    def hit(
        self,
        chunk: Chunk,
        ranked: Ranked,
        *,
        lexical: tuple[int | None, float | None] = (None, None),
        dense: tuple[int | None, float | None] = (None, None),
    ) -> Hit:
        """A chunk as it is shown.

        Args:
            chunk: which.
            ranked: its score and signals.
            lexical: rank and score there.
            dense: rank and score there.
        """
        lines = self._of(chunk.path)
        if lines is None:
            text, defined = "\n".join(part for part in (chunk.docstring, chunk.code) if part), chunk.code
        else:
            text = "\n".join(lines[chunk.start_line - 1 : chunk.end_line])
            defined = "".join(lines[chunk.line - 1 : chunk.line])
        first = chunk.signature or next((line.strip() for line in text.splitlines() if line.strip()), "")
        return Hit(
            path=chunk.path,
            line=chunk.line,
            column=len(defined) - len(defined.lstrip()) + 1,
            start_line=chunk.start_line,
            end_line=chunk.end_line,
            symbol=chunk.qualified_name,
            kind=chunk.kind,
            language=chunk.language,
            signature=first[:_SIGNATURE],
            text=text,
            score=ranked.score,
            lexical_rank=lexical[0],
            lexical_score=lexical[1],
            dense_rank=dense[0],
            dense_score=dense[1],
            signals=ranked.signals,
        )

    def _of(self, path: str) -> list[str] | None:
        if path not in self._lines:
            self._lines[path] = self._read(path)
        return self._lines[path]

    def _read(self, path: str) -> list[str] | None:
        location = self._root / path
        stored = self._store.rows_of("SELECT digest FROM files WHERE path = ?", (path,))
        try:
            found = read_source(SourceFile(path, location, location.lstat().st_size, 0))
        except OSError:
            found = Skipped(path, "gone")
        if isinstance(found, Skipped) or [(hashlib.sha256(found.source).digest(),)] != stored:
            self.notes.append(f"{path} has changed since it was indexed")
            return None
        return found.source.decode("utf-8", "replace").split("\n")


def unit_at(store: Store, root: Path, path: str, line: int) -> Hit | None:
    """The innermost unit around a line, whole also where it was split; the nearest below where there is none.

    Args:
        store: the index.
        root: of the files.
        path: relative to it.
        line: from 1.

    Returns:
        None where the index does not know the file.

    Raises:
        DataError: the file ends before that line.
    """
    found = store.rows_of("SELECT id, chunks FROM files WHERE path = ? AND chunks > 0", (path,))
    if not found:
        return None
    file, count = found[0]
    chunks = store.chunks_at([(place, file, place) for place in range(count)])
    around = [chunk for chunk in chunks if chunk.start_line <= line <= chunk.end_line]
    below = [chunk for chunk in chunks if chunk.start_line > line]
    if not around and not below:
        raise DataError(f"{path} has nothing at line {line:,}; its last is {max(chunk.end_line for chunk in chunks):,}")
    if around:
        chosen = min(around, key=lambda chunk: (chunk.end_line - chunk.start_line, chunk.number))
    else:
        chosen = min(below, key=lambda chunk: (chunk.start_line, chunk.number))
    parts = _parts(chosen, chunks)
    chosen = replace(parts[0], end_line=parts[-1].end_line)
    return Shower(store, root).hit(chosen, Ranked(chosen.number, 0.0, ()))


def _parts(chosen: Chunk, chunks: list[Chunk]) -> list[Chunk]:
    """All parts of the unit; there may be others of the same name in the file."""
    parts: list[Chunk] = []
    for chunk in chunks:
        if (chunk.kind, chunk.qualified_name, chunk.parts) == (chosen.kind, chosen.qualified_name, chosen.parts):
            if chunk.part == 0 and chosen in parts:
                break
            parts = [chunk] if chunk.part == 0 else [*parts, chunk]
    return parts
