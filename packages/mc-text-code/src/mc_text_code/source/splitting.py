"""Long functions in parts that an encoder can read: cut at statements, else at lines, else between tokens.

Legend: S bytes of the source.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tree_sitter import Node

_WORD = np.zeros(256, dtype=bool)
_WORD[list(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")] = True
_WORD[128:] = True
_LETTER = _WORD.copy()
_LETTER[ord("_")] = False
_INK = np.ones(256, dtype=bool)
_INK[list(b" \t\n\r\f\v\0")] = False

_TOKEN = re.compile(rb"[0-9A-Za-z_\x80-\xff]+|[^\s\0]")

Edit = tuple[int, int, bytes]
"""(start, end, what stands there instead)."""


class TokenCounts:
    """How many tokens any stretch of a source has: words, and each other mark by itself.

    That is close to what a parser counts, costs no parsing, and does not depend on an encoder; sub-word tokens are about half as
    many again.

    >>> counts = TokenCounts(b"x = open(path)\\n")
    >>> counts.between(0, 15), counts.between(4, 8)
    (6, 1)
    """

    def __init__(self, source: bytes) -> None:
        self._data = np.frombuffer(source, dtype=np.uint8)

    @cached_property
    def _begins(self) -> np.ndarray:
        """(S,) bool, where a token begins."""
        word = _WORD[self._data]
        begins = _INK[self._data]
        begins[1:] &= ~(word[1:] & word[:-1])
        return begins

    @cached_property
    def _before(self) -> np.ndarray:
        """(S + 1,) int32, tokens that begin before each byte."""
        return np.concatenate([[0], np.cumsum(self._begins, dtype=np.int32)])

    def between(self, start: int, end: int) -> int:
        """Tokens that begin in a stretch."""
        return int(self._before[end] - self._before[start])

    def at_most(self, start: int, end: int, limit: int) -> bool:
        """Whether a stretch has no more tokens than that; short ones are not counted."""
        return end - start <= limit or self.between(start, end) <= limit

    def words(self, start: int, end: int) -> bool:
        """Whether there is a letter or a digit in a stretch."""
        return bool(_LETTER[self._data[start:end]].any())

    def every(self, start: int, end: int, step: int) -> list[int]:
        """Positions in a stretch that are ``step`` tokens apart, the first not counted."""
        found = np.flatnonzero(self._begins[start:end])[step::step] + start
        return found.tolist()


def cut_points(
    node: Node,
    span: tuple[int, int, int],
    edits: Sequence[Edit],
    counts: TokenCounts,
    limit: int,
    line_starts: Sequence[int],
) -> list[int]:
    """Where to cut a unit so that its parts have at most ``limit`` tokens, as far as statements and lines allow.

    Cuts are at the first statement of a line, of those that nest least; inside a statement only where it alone is too long. What
    has no such place, such as a very long line, is cut between tokens once it is twice too long.

    Args:
        node: the function or class.
        span: where the unit starts, where its signature ends, and where it ends.
        edits: sorted; what is left out or shortened there does not count.
        counts: of the source.
        limit: tokens of a part.
        line_starts: of the source's lines, sorted.

    Returns:
        Positions inside the unit, ascending; none in its signature but for one that is much too long.
    """
    start, head, end = span
    size = _EditedSize(counts, edits)
    places = _places(node, head, end, edits, size, counts, limit, line_starts)
    cuts: list[int] = []
    begin = last = start
    for place in (*places, end):
        if size.between(begin, place) > limit and last > begin:
            cuts.append(last)
            begin = last
        if size.between(begin, place) > 2 * limit and (hard := _hard(counts, edits, begin, place, limit)):
            cuts += hard
            begin = hard[-1]
        last = place
    return cuts


class _EditedSize:
    def __init__(self, counts: TokenCounts, edits: Sequence[Edit]) -> None:
        self._counts = counts
        self._starts = [start for start, _, _ in edits]
        saved = [counts.between(a, b) - len(_TOKEN.findall(text)) for a, b, text in edits]
        self._saved = np.concatenate([[0], np.cumsum(saved, dtype=np.int64)]).tolist()

    def between(self, start: int, end: int) -> int:
        first, last = bisect_left(self._starts, start), bisect_left(self._starts, end)
        return self._counts.between(start, end) - (self._saved[last] - self._saved[first])


def _places(
    node: Node,
    head: int,
    end: int,
    edits: Sequence[Edit],
    size: _EditedSize,
    counts: TokenCounts,
    limit: int,
    line_starts: Sequence[int],
) -> list[int]:
    """Where it may be cut: lines that begin with a statement, or with part of one that is too long."""
    edit_starts = [a for a, _, _ in edits]
    found: set[int] = set()
    stack = [node]
    while stack:
        one = stack.pop()
        a, b = one.start_byte, one.end_byte
        inside = bisect_right(edit_starts, a) - 1
        if inside >= 0 and b <= edits[inside][1]:
            found.add(edits[inside][0])
            continue
        line = line_starts[bisect_right(line_starts, a) - 1]
        if not counts.between(line, a):
            found.add(line)
        if one is not node and size.between(a, b) <= limit:
            continue
        children = one.children
        if children:
            stack += children
        else:
            found.update(line_starts[bisect_right(line_starts, a) : bisect_left(line_starts, b)])
    return sorted(place for place in found if head < place < end and not _inside(edits, edit_starts, place))


def _inside(edits: Sequence[Edit], starts: Sequence[int], place: int) -> bool:
    before = bisect_right(starts, place) - 1
    return before >= 0 and edits[before][0] < place < edits[before][1]


def _hard(counts: TokenCounts, edits: Sequence[Edit], begin: int, end: int, limit: int) -> list[int]:
    starts = [a for a, _, _ in edits]
    return [place for place in counts.every(begin, end, limit) if not _inside(edits, starts, place)]
