"""Source code as bytes → a syntax tree → its leaves, each with a class.

Positions are bytes of the source, so that text outside ASCII is cut where it should be. Trees are walked with one cursor, without
recursion: ten thousand nested brackets are no trouble. What does not parse is kept and marked.

Legend: N leaves, S bytes of the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mc_core.optional import require
from mc_text_code.source.languages import EXTRA, grammar, with_grammar
from mc_text_code.source.token_classes import CLASS_IDS, class_table, whole_kinds

if TYPE_CHECKING:
    from tree_sitter import Tree

_ERROR_KIND = 0xFFFF
_SPACE = np.zeros(256, dtype=bool)
_SPACE[list(b" \t\n\r\f\v\0")] = True


@dataclass(frozen=True)
class Leaves:
    """The tokens of a source, in order, without white space between them.

    Attributes:
        starts: (N,) int32, first byte.
        ends: (N,) int32, one after the last byte.
        class_ids: (N,) uint8, from 1: see :data:`~mc_text_code.source.token_classes.TOKEN_CLASSES`.
        kinds: (N,) uint16, the grammar's numbers of the node types; 65535 where there is none.
        has_error: part of the source did not parse.
    """

    starts: np.ndarray
    ends: np.ndarray
    class_ids: np.ndarray
    kinds: np.ndarray
    has_error: bool

    def __len__(self) -> int:
        return len(self.starts)

    def texts(self, source: bytes) -> list[str]:
        """N texts; what is no UTF-8 becomes the replacement character."""
        if source.isascii():
            text = source.decode("ascii")
            return [text[a:b] for a, b in zip(self.starts.tolist(), self.ends.tolist(), strict=True)]
        return [source[a:b].decode("utf-8", "replace") for a, b in zip(self.starts, self.ends, strict=True)]

    def joined(self, source: bytes, keep: np.ndarray | None = None) -> tuple[str, np.ndarray]:
        """The tokens with one space between them, as the published models read code.

        Args:
            source: what the leaves were taken from.
            keep: (N,) bool, tokens to take; default all.

        Returns:
            The text, and (N,) int64, where in it each token starts, in characters.

        >>> found = leaves("x = 'é'  # ü".encode(), "python")
        >>> found.joined("x = 'é'  # ü".encode())
        ("x = ' é ' # ü", array([ 0,  2,  4,  6,  8, 10]))
        """
        texts = self.texts(source)
        if keep is not None:
            texts = [text for text, kept in zip(texts, keep.tolist(), strict=True) if kept]
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        starts = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]]) if len(texts) else lengths
        return " ".join(texts), starts


def parse(source: bytes, language: str) -> Tree:
    """The syntax tree of a file.

    Args:
        source: the file, UTF-8; other bytes do not parse but do no harm.
        language: one with a grammar.

    Raises:
        ConfigError: there is no grammar for it.
        MissingDependencyError: the extra that brings the grammars is not installed.

    >>> parse(b"def f(): pass", "python").root_node.type
    'module'
    """
    with_grammar(language)
    binding = require("tree_sitter", extra=EXTRA, purpose=f"parse {language}")
    return binding.Parser(grammar(language)).parse(source)


def parse_fragment(source: bytes, language: str) -> tuple[Tree, int]:
    """The syntax tree of a piece of code, such as one method, that may not parse where it stands.

    Where it does not, what is around it in a file is put around it: ``<?php `` or ``class _{ }``. The first way without an
    error is taken, else the source as it is (for PHP with its tag).

    Returns:
        The tree, and how many bytes of the tree's text come before the source.
    """
    entry = with_grammar(language)
    if entry.tag:
        alone = None if entry.tag not in source else parse(source, language)
    else:
        alone = parse(source, language)
    if alone is not None and (entry.tag or not alone.root_node.has_error):
        return alone, 0
    for before, after in entry.wrappers:
        # what follows goes on a line of its own: the source may end in a comment
        wrapped = parse(before + source + (b"\n" + after if after else b""), language)
        if not wrapped.root_node.has_error:
            return wrapped, len(before)
    if alone is not None:
        return alone, 0
    before = entry.wrappers[0][0]
    return parse(before + source, language), len(before)


def leaves(source: bytes, language: str) -> Leaves:
    """The tokens of a file or of a fragment. Every byte that is no white space belongs to exactly one.

    Args:
        source: UTF-8.
        language: one with a grammar.

    Raises:
        ConfigError, MissingDependencyError: as :func:`parse`.

    >>> from mc_text_code.source.token_classes import TOKEN_CLASSES
    >>> found = leaves(b"return 'it\\\\'s' + x", "python")
    >>> found.texts(b"return 'it\\\\'s' + x")
    ['return', "'", "it\\\\'s", "'", '+', 'x']
    >>> [TOKEN_CLASSES[number - 1] for number in found.class_ids]
    ['keyword', 'string', 'string', 'string', 'operator', 'identifier']
    """
    tree, shift = parse_fragment(source, language)
    starts, ends, kinds = _walk(tree.walk(), whole_kinds(language))
    class_ids = class_table(language)[kinds]
    if shift:
        starts, ends = starts - shift, ends - shift
    inside = (class_ids > 0) & (starts >= 0) & (ends <= len(source)) & (ends > starts)
    starts, ends, class_ids, kinds = starts[inside], ends[inside], class_ids[inside], kinds[inside]
    gaps = _gaps(source, starts, ends)
    if len(gaps):
        place = np.searchsorted(starts, gaps[:, 0])
        starts, ends = np.insert(starts, place, gaps[:, 0]), np.insert(ends, place, gaps[:, 1])
        class_ids = np.insert(class_ids, place, CLASS_IDS["other"])
        kinds = np.insert(kinds, place, _ERROR_KIND)
    return Leaves(starts, ends, class_ids, kinds, tree.root_node.has_error)


def _walk(cursor: Any, whole: frozenset[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    starts: list[int] = []
    ends: list[int] = []
    kinds: list[int] = []
    add_start, add_end, add_kind = starts.append, ends.append, kinds.append
    down, following, up = cursor.goto_first_child, cursor.goto_next_sibling, cursor.goto_parent
    going = True
    while going:
        if whole:
            node = cursor.node
            if node.kind_id not in whole and down():
                continue
        else:
            if down():
                continue
            node = cursor.node
        add_start(node.start_byte)
        add_end(node.end_byte)
        add_kind(node.kind_id)
        while not following():
            if not up():
                going = False
                break
    return np.array(starts, dtype=np.int32), np.array(ends, dtype=np.int32), np.array(kinds, dtype=np.uint16)


def _gaps(source: bytes, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(G, 2) stretches that no leaf covers, white space around them taken off; the parser skips some of what it cannot read."""
    data = np.frombuffer(source, dtype=np.uint8)
    inked = np.concatenate([[0], np.cumsum(~_SPACE[data], dtype=np.int32)])
    before = np.concatenate([[0], ends])
    after = np.concatenate([starts, [len(source)]])
    holes = np.flatnonzero(inked[after] > inked[before])
    found = []
    for hole in holes.tolist():
        first, last = int(before[hole]), int(after[hole])
        ink = np.flatnonzero(~_SPACE[data[first:last]])
        found.append((first + int(ink[0]), first + int(ink[-1]) + 1))
    return np.array(found, dtype=np.int32).reshape(-1, 2)
