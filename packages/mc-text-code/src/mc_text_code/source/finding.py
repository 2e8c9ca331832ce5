"""Functions, methods and classes in a syntax tree: where they are, what they are called, what documents them."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from mc_core.optional import require
from mc_text_code.source.documentation import comment_text, docstring_of
from mc_text_code.source.languages import EXTRA, LANGUAGES, Language, grammar

if TYPE_CHECKING:
    from tree_sitter import Node, Query, Tree

_METHOD_TYPES = ("method_", "constructor_", "compact_")
_RECEIVER = re.compile(r"([^\W\d]\w*)\s*(?:\[[^\]]*\])?\s*\)\s*$")
_LAST_NAME = re.compile(r"[^\W\d][\w$]*(?=\W*$)")
_TAIL = re.compile(rb"[ \t]*[;,)]*[ \t]*(?:(?://|#)[^\n]*)?(?=\r?\n|\Z)")
_HEADS = ("name", "parameters", "return_type", "superclass", "superclasses", "result", "type")
_BLOCKS = ("/*", "=begin", "<!--")
_LONGEST_NAME = 120
_PREFIX_ROOM = 120  # bytes before a definition on its line that are taken along, such as `private ` or `app.use(`
_BLANK = re.compile(rb"[ \t\r\f\v\0]*(?:\n|\Z)")


class SourceLines:
    """A source and its lines.

    >>> lines = SourceLines(b"a\\n  b\\n")
    >>> lines.number(2), lines.indent(2), lines.last_number(6)
    (2, '  ', 2)
    """

    def __init__(self, source: bytes) -> None:
        self.source = source

    @cached_property
    def starts(self) -> list[int]:
        """First byte of each line."""
        ends = np.flatnonzero(np.frombuffer(self.source, dtype=np.uint8) == 10) + 1
        return [0, *ends.tolist()]

    def number(self, place: int) -> int:
        """Number of the line of a byte, from 1."""
        return bisect_right(self.starts, place)

    def last_number(self, end: int) -> int:
        """Number of the line of the last byte before ``end`` that is no end of line."""
        return self.number(max(0, len(self.source[max(0, end - 2) : end].rstrip(b"\r\n")) + max(0, end - 2) - 1))

    def start(self, place: int) -> int:
        """First byte of the line."""
        return self.source.rfind(b"\n", 0, place) + 1

    def indent(self, place: int) -> str:
        """White space that the line of ``place`` starts with."""
        line = self.source[self.start(place) : place + 200]
        return line[: len(line) - len(line.lstrip(b" \t"))].decode("ascii")

    def after(self, place: int, count: int) -> int:
        """First byte so many lines on."""
        number = self.number(place) - 1 + count
        return self.starts[number] if number < len(self.starts) else len(self.source)

    def skip_blank(self, place: int, end: int) -> int:
        """The first line from ``place`` on that is not blank."""
        while place < end and (match := _BLANK.match(self.source, place)) and match.end() > place:
            place = match.end()
        return min(place, end)

    def trim(self, place: int, end: int) -> int:
        """``end`` without the white space before it."""
        return place + len(self.source[place:end].rstrip())

    def whole(self, start: int, end: int) -> tuple[int, int]:
        """The stretch with its whole lines where nothing else is on them, else with the white space before it."""
        line = self.start(start)
        tail = _BLANK.match(self.source, end)
        if not self.source[line:start].strip():
            return (line, tail.end()) if tail else (start, end)
        return line + len(self.source[line:start].rstrip()), end


@dataclass(eq=False, slots=True)
class Found:
    """A definition in a source; all positions are bytes.

    Attributes:
        node: of the function or class itself.
        kind: function, method or class.
        start: with the documentation above it.
        code_start: without; with decorators, and with what holds it, such as ``export const f = ``.
        end: one after the last byte.
        signature_start: of the definition, decorators left out.
        signature_end: where its body starts.
        name: its own.
        qualified_name: with those of what it is in.
        docstring: the documentation; empty where there is none.
        docstring_span: where it stands inside the code.
        parent: what it is in.
        inner: the definitions right inside.
    """

    node: Node
    kind: Literal["function", "method", "class"]
    start: int
    code_start: int
    end: int
    signature_start: int
    signature_end: int
    name: str
    qualified_name: str = ""
    docstring: str = ""
    docstring_span: tuple[int, int] | None = None
    parent: Found | None = None
    inner: list[Found] = field(default_factory=list)


@cache
def _query(language: str) -> Query:
    entry = LANGUAGES[language]
    binding = require("tree_sitter", extra=EXTRA, purpose=f"parse {language}")
    groups = (("function", entry.functions), ("class", entry.classes), ("comment", entry.comments))
    text = "\n".join(f"[{' '.join(f'({kind})' for kind in kinds)}] @{name}" for name, kinds in groups)
    return binding.Query(grammar(language), text)


def find_definitions(tree: Tree, lines: SourceLines, language: Language) -> tuple[list[Found], list[tuple[int, int]]]:
    """All named functions, methods and classes in the order of their starts, and where comments are.

    Functions without a name, such as callbacks, belong to what they are in.
    """
    binding = require("tree_sitter", extra=EXTRA, purpose=f"parse {language.name}")
    captures = binding.QueryCursor(_query(language.name)).captures(tree.root_node)
    finder = _Finder(lines, language, sorted((node.start_byte, node.end_byte) for node in captures.get("comment", ())))
    kinds: tuple[Literal["class", "function"], ...] = ("class", "function")
    given = (finder.definition(node, kind) for kind in kinds for node in captures.get(kind, ()))
    found = [one for one in given if one is not None]
    found.sort(key=lambda one: (one.code_start, -one.end))
    outermost = _nest(found)
    finder.widen(outermost, 0, len(lines.source))
    for one in found:
        finder.widen(one.inner, max(one.signature_end, one.code_start), one.node.end_byte)
    for one in found:
        finder.qualify(one)
        finder.document(one)
    return found, finder.comments


def _nest(found: Sequence[Found]) -> list[Found]:
    """Sets what each is in; the outermost come back."""
    outermost: list[Found] = []
    open_ones: list[Found] = []
    for one in found:
        while open_ones and open_ones[-1].end < one.end:
            open_ones.pop()
        if open_ones:
            one.parent = open_ones[-1]
            one.parent.inner.append(one)
        else:
            outermost.append(one)
        open_ones.append(one)
    return outermost


class _Finder:
    def __init__(self, lines: SourceLines, language: Language, comments: list[tuple[int, int]]) -> None:
        self.lines = lines
        self.source = lines.source
        self.language = language
        self.comments = comments
        self._comment_ends = [end for _, end in comments]

    def text(self, node: Node | None) -> str:
        return "" if node is None else self.source[node.start_byte : node.end_byte].decode("utf-8", "replace")

    def definition(self, node: Node, kind: Literal["function", "class"]) -> Found | None:
        own = self.text(node.child_by_field_name("name"))
        outer, names = self._holder(node, named=bool(own))
        names = [clean for one in (own, *names) if (clean := _clean(one))]
        if not names:
            return None
        last = _LAST_NAME.search(names[0])
        return Found(
            node=node,
            kind="method" if kind == "function" and node.type.startswith(_METHOD_TYPES) else kind,
            start=outer.start_byte,
            code_start=outer.start_byte,
            end=outer.end_byte,
            signature_start=node.start_byte if self.language.docstring_in_body else outer.start_byte,
            signature_end=self._body_start(node),
            name=last.group() if last else names[0],
            qualified_name=self.language.separator.join(reversed(names)),
        )

    def _holder(self, node: Node, *, named: bool) -> tuple[Node, list[str]]:
        """What a definition is written in, such as ``export const f = ``, and the names that this gives it, nearest first."""
        holders, through = self.language.holders, self.language.through
        names: list[str] = []
        outer, holds = node, True
        parent = node.parent if holders else None
        while parent is not None:
            kind = parent.type
            if kind in through:
                holds = False
            elif kind not in holders:
                break
            elif holders[kind]:
                if not (named and holds):
                    names.append(self.text(parent.child_by_field_name(holders[kind])))
            elif kind.endswith("declaration") and parent.named_child_count > 1:
                break  # one of several in a statement
            elif kind == "export_statement" and not named and not names:
                names.append("default")
            if holds:
                outer = parent
            parent = parent.parent
        return outer, names

    def _body_start(self, node: Node) -> int:
        """Where the signature ends."""
        parts = [part for name in _HEADS if (part := node.child_by_field_name(name)) is not None]
        body = node.child_by_field_name("body")
        if node.type == "type_spec":  # Go: its type is its body
            brace = self.source.find(b"{", node.start_byte, node.end_byte)
            return brace if brace >= 0 else node.end_byte
        head = max((part.end_byte for part in parts), default=node.start_byte)
        if body is None:
            line = self.source.find(b"\n", head, node.end_byte)
            return line if line >= 0 else node.end_byte
        comment = bisect_left(self.comments, (head, 0))  # one before the body is no part of the signature
        if comment < len(self.comments) and self.comments[comment][0] < body.start_byte:
            return self.comments[comment][0]
        return max(body.start_byte, head)

    def widen(self, siblings: Sequence[Found], floor: int, ceiling: int) -> None:
        """Takes along what else is on a definition's first and last line, such as ``private `` or ``;``, if it is no other's."""
        for one, following in zip(siblings, [*siblings[1:], None], strict=False):
            line = self.lines.start(one.code_start)
            comment = self._comment_before(one.code_start)
            free = floor <= line and (comment < 0 or self._comment_ends[comment] <= line)
            if free and one.code_start - line <= _PREFIX_ROOM:
                one.start = one.code_start = line
            tail = _TAIL.match(self.source, one.end)
            if tail and tail.end() <= (ceiling if following is None else following.code_start):
                one.end = tail.end()
            floor = one.end

    def qualify(self, one: Found) -> None:
        """The qualified name, once that of what it is in is known."""
        language, node = self.language, one.node
        parts, separator = [one.qualified_name], language.separator
        if one.parent is not None:
            if one.kind == "function" and one.parent.kind == "class":
                one.kind = "method"
            parts.insert(0, one.parent.qualified_name)
        elif one.kind == "method" and (receiver := node.child_by_field_name("receiver")) is not None:
            match = _RECEIVER.search(self.text(receiver))
            parts = [match.group(1), *parts] if match else parts
        if one.kind == "method":
            separator = "." if node.type == "singleton_method" else language.method_separator
        one.qualified_name = separator.join(parts)

    def document(self, one: Found) -> None:
        """The documentation: Python's first statement, else the comment just above."""
        if not self.language.docstring_in_body:
            texts, one.start = self._comments_above(one.code_start)
            one.docstring = comment_text(texts)
            return
        _, one.start = self._comments_above(one.code_start)
        one.code_start = one.start
        body = one.node.child_by_field_name("body")
        statements = () if body is None else map(body.named_child, range(body.named_child_count))
        statement = next((found for found in statements if found is not None and found.type != "comment"), None)
        if statement is None or statement.type != "expression_statement" or statement.named_child_count != 1:
            return
        literal = statement.named_child(0)
        if literal is not None and literal.type in ("string", "concatenated_string"):
            text = docstring_of(self.text(literal))
            if text is not None:
                one.docstring, one.docstring_span = text, (statement.start_byte, statement.end_byte)

    def _comment_before(self, place: int) -> int:
        """Number of the last comment that ends at or before a byte; −1 where there is none."""
        return bisect_right(self._comment_ends, place) - 1

    def _comments_above(self, place: int) -> tuple[list[str], int]:
        """The block comment, or the run of line comments, that stands right above; and where it starts."""
        texts: list[str] = []
        number, top = self._comment_before(place), place
        while number >= 0:
            start, end = self.comments[number]
            gap = self.source[end:top]
            line = self.lines.start(start)
            text = self.source[start:end].decode("utf-8", "replace")
            block = text.startswith(_BLOCKS)
            alone = not self.source[line:start].strip()
            beside = block and not texts and b"\n" not in gap  # /** so */ f() {}
            if gap.strip() or gap.count(b"\n") > 1 or not (alone or beside) or (block and texts):
                break
            texts.append(text)
            top, number = (line if alone else start), number - 1
            if block:
                break
        return texts[::-1], top


def _clean(name: str) -> str:
    """A name without quotes, ``this.`` and the dollar of PHP; empty where an expression takes its place."""
    name = name.strip().strip("'\"`").removeprefix("$").removeprefix("this.").removeprefix("self.")
    return "" if len(name) > _LONGEST_NAME or any(character in name for character in "\n(){}[]") else name
