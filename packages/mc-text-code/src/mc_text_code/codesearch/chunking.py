"""A file → its chunks, the words of each, and the digests that their vectors are kept under. Runs in worker processes.

Legend: C chunks of a file, E pairs of a chunk and a word in it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np

from mc_core.errors import MissingDependencyError
from mc_text_code.codesearch.config import IndexConfig
from mc_text_code.source.files import Skipped, SourceFile
from mc_text_code.source.languages import LANGUAGES
from mc_text_code.source.reading import read_source
from mc_text_code.source.units import Unit, units_of
from mc_text_code.source.words import split_words

CHUNKER = 1
"""Raised whenever the same file gives other chunks: indexes made before are built anew."""

_WORD = re.compile(r"\w+")
_LONGEST_WORD = 64  # what is longer is data
_TRIVIAL_LINES = 2


class ChunkRow(NamedTuple):
    """A chunk as it is stored."""

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
    code_digest: bytes
    documentation_digest: bytes | None


@dataclass(frozen=True, slots=True)
class ChunkedFile:
    """What is kept of a file.

    Attributes:
        path: relative to the root.
        size: bytes.
        mtime_ns: time of its last change, as listed.
        digest: of its text; empty where it is left out.
        language: its name.
        reason: why it is left out; else empty.
        note: what was done where it was not UTF-8 or has a grammar that is not installed.
        unchanged: its text is the one that is stored; nothing below is filled.
        rows: C chunks.
        words: its vocabulary.
        lengths: (C,) uint32, words of each chunk, repeated ones too.
        uniques: (C,) uint32, different words of each chunk.
        terms: (E,) uint32, which word, in the order of chunks.
        counts: (E,) uint16, how often.
    """

    path: str
    size: int
    mtime_ns: int
    digest: bytes = b""
    language: str = ""
    reason: str = ""
    note: str = ""
    unchanged: bool = False
    rows: list[ChunkRow] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))
    uniques: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))
    terms: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint16))


def installed_grammars() -> list[str]:
    """Languages that can be parsed here; looks for their packages without importing them."""
    if importlib.util.find_spec("tree_sitter") is None:
        return []
    return [name for name, language in LANGUAGES.items() if importlib.util.find_spec(language.module)]


def code_text(kind: str, qualified_name: str, code: str, config: IndexConfig) -> str:
    """What of a chunk is embedded as code. Its path is not in it, so that a file that moves keeps its vectors.

    >>> code_text("function", "A.f", "def f(): pass", IndexConfig())
    'A.f\\ndef f(): pass'
    """
    return f"{qualified_name}\n{code}" if config.names and kind != "window" else code


def documentation_text(qualified_name: str, docstring: str) -> str:
    """What of a chunk is embedded as language: the words of its name, then its documentation.

    >>> documentation_text("Parser.parse_args", "Reads the line.")
    'parser parse args\\nReads the line.'
    """
    name = " ".join(split_words(qualified_name))
    return f"{name}\n{docstring}" if docstring else name


def chunk_file(item: tuple[SourceFile, bytes], config: IndexConfig) -> ChunkedFile:
    """The chunks of a file.

    Args:
        item: the file, and the digest of its text that is stored (empty where there is none).
        config: how it is cut.
    """
    file, known = item
    text = read_source(file)
    if isinstance(text, Skipped):
        return ChunkedFile(file.path, file.size, file.mtime_ns, reason=text.reason)
    digest = hashlib.sha256(text.source).digest()
    if digest == known:
        return ChunkedFile(file.path, file.size, file.mtime_ns, digest, text.language, unchanged=True)
    note = text.note
    try:
        units = units_of(
            text.source, file.path, text.language, max_tokens=config.max_tokens, window_lines=config.window_lines
        )
    except MissingDependencyError:
        note = f"{note}; {_NO_GRAMMAR}" if note else _NO_GRAMMAR
        units = units_of(text.source, file.path, "text", max_tokens=config.max_tokens, window_lines=config.window_lines)
    rows = [_row(unit, config) for unit in units]
    words, lengths, uniques, terms, counts = count_words(unit.text for unit in units)
    return ChunkedFile(
        file.path,
        file.size,
        file.mtime_ns,
        digest,
        text.language,
        note=note,
        rows=rows,
        words=words,
        lengths=lengths,
        uniques=uniques,
        terms=terms,
        counts=counts,
    )


_NO_GRAMMAR = "its grammar is not installed"


def _row(unit: Unit, config: IndexConfig) -> ChunkRow:
    code = code_text(unit.kind, unit.qualified_name, unit.code, config)
    documented = config.documentation and unit.kind != "window" and unit.part == 0
    documentation = documentation_text(unit.qualified_name, unit.docstring) if documented else None
    short = len(unit.code.split("\n", _TRIVIAL_LINES)) <= _TRIVIAL_LINES
    trivial = short and not unit.docstring and unit.kind in ("function", "method")
    return ChunkRow(
        unit.kind,
        _storable(unit.name),
        _storable(unit.qualified_name),
        unit.line,
        unit.start_line,
        unit.end_line,
        unit.part,
        unit.parts,
        int(trivial),
        _storable(unit.signature),
        _storable(unit.docstring),
        _storable(unit.code),
        _digest("code", code),
        None if documentation is None else _digest("documentation", documentation),
    )


def _digest(kind: str, text: str) -> bytes:
    return hashlib.sha256(f"{kind}\0{text}".encode("utf-8", "replace")).digest()


def _storable(text: str) -> str:
    """A docstring may spell half a surrogate pair, which is no text that can be stored."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class _Parts(dict[str, tuple[int, ...]]):
    """Identifier → the numbers of its words; each identifier of a file is taken apart once."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[str, int] = {}

    def __missing__(self, identifier: str) -> tuple[int, ...]:
        numbers = self.numbers
        found = tuple(numbers.setdefault(word, len(numbers)) for word in _words_of(identifier))
        self[identifier] = found
        return found


@lru_cache(1 << 16)
def _words_of(identifier: str) -> tuple[str, ...]:
    return tuple(words_of(identifier))


def words_of(text: str) -> list[str]:
    """Words as the index has them: as :func:`~mc_text_code.source.words.split_words`, very long ones cut.

    >>> words_of("parse_HTTPResponse") + [str(len(words_of("x" * 1000)[0]))]
    ['parse', 'http', 'response', '64']
    """
    return [word[:_LONGEST_WORD] for word in split_words(text)]


def count_words(texts: Iterable[str]) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """How often each word is in each of C texts.

    Returns:
        The vocabulary, and ``lengths``, ``uniques``, ``terms`` and ``counts`` of :class:`ChunkedFile`.

    >>> words, lengths, uniques, terms, counts = count_words(["a b a", "b"])
    >>> words, lengths.tolist(), uniques.tolist(), terms.tolist(), counts.tolist()
    (['a', 'b'], [3, 1], [2, 1], [0, 1, 1], [2, 1, 1])
    """
    parts = _Parts()
    numbers: list[int] = []
    ends: list[int] = []
    for text in texts:
        numbers += chain.from_iterable(map(parts.__getitem__, _WORD.findall(text)))
        ends.append(len(numbers))
    lengths = np.diff(np.array([0, *ends], dtype=np.int64))
    size = max(1, len(parts.numbers))
    keys = np.repeat(np.arange(len(ends), dtype=np.int64) * size, lengths) + np.array(numbers, dtype=np.int64)
    keys, counts = np.unique(keys, return_counts=True)
    uniques = np.bincount(keys // size, minlength=len(ends))
    return (
        list(parts.numbers),
        lengths.astype(np.uint32),
        uniques.astype(np.uint32),
        (keys % size).astype(np.uint32),
        counts.clip(max=np.iinfo(np.uint16).max).astype(np.uint16),
    )
