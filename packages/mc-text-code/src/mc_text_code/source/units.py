"""Source files → the units that are searched: functions, methods and classes, and windows of lines of all the rest.

A unit holds its code without its documentation, which stands beside it, and knows where both are in the file. Every letter and
every digit of a file is in some unit.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from mc_core.errors import ConfigError
from mc_text_code.source.finding import Found, SourceLines, find_definitions
from mc_text_code.source.languages import LANGUAGES, language_of
from mc_text_code.source.parsing import parse
from mc_text_code.source.splitting import Edit, TokenCounts, cut_points

Kind = Literal["function", "method", "class", "window"]

MAX_TOKENS = 256
WINDOW_LINES = 30

_SPACES = re.compile(r"\s+")
_SIGNATURE = 300


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of source code that is found as one.

    Attributes:
        path: of the file, as given.
        language: its name.
        kind: what it is; a window is lines outside functions and classes, or of a file without a grammar.
        name: of the function or class; of a window, the file's stem.
        qualified_name: with the names of what it is in, such as ``Parser.parse_args``.
        line: of the definition, from 1.
        start_line: first line, from 1, documentation included.
        end_line: last line.
        start_byte: in the UTF-8 source.
        end_byte: one after the last byte.
        signature: the definition up to its body, on one line; empty for windows.
        docstring: the documentation, without marks; empty where there is none.
        code: the source without the documentation, indented from zero. A class is shown with the signatures of its methods in
            place of their bodies, and so is what lies inside a function that is split.
        has_error: part of it did not parse.
        part: of a unit that was split, from 0.
        parts: how many it was split into.
    """

    path: str
    language: str
    kind: Kind
    name: str
    qualified_name: str
    line: int
    start_line: int
    end_line: int
    start_byte: int
    end_byte: int
    signature: str
    docstring: str
    code: str
    has_error: bool = False
    part: int = 0
    parts: int = 1

    @property
    def text(self) -> str:
        """What is embedded and indexed: path, qualified name, documentation, code with its signature.

        >>> units_of(b'def f(x):\\n    "Adds one."\\n    return x + 1\\n', "a/b.py")[0].text
        'a/b.py f\\nAdds one.\\ndef f(x):\\n    return x + 1'
        """
        name = "" if self.kind == "window" else f" {self.qualified_name}"
        return "\n".join(part for part in (f"{self.path}{name}", self.docstring, self.code) if part)


def units_of(
    source: bytes,
    path: str,
    language: str | None = None,
    *,
    max_tokens: int | None = MAX_TOKENS,
    window_lines: int = WINDOW_LINES,
    comments: bool = True,
) -> list[Unit]:
    """The units of a file, in the order of their starts.

    Args:
        source: the file, in UTF-8.
        path: its name, kept in the units.
        language: its name; default: what the path says. One without a grammar gives windows only.
        max_tokens: longer functions and classes are split at statements, each part after the first below the signature; tokens
            are words and single marks. None: nothing is split.
        window_lines: of a window; 0 leaves windows out.
        comments: keep the comments inside functions.

    Raises:
        ConfigError: ``max_tokens`` below 16.
        MissingDependencyError: the language has a grammar that is not installed.

    >>> [
    ...     (unit.kind, unit.qualified_name, unit.line)
    ...     for unit in units_of(b"class A:\\n  def f(self):\\n    pass\\n", "a.py")
    ... ]
    [('class', 'A', 1), ('method', 'A.f', 2)]
    """
    if max_tokens is not None and max_tokens < 16:
        raise ConfigError(
            f"max_tokens={max_tokens}: a part needs 16 tokens or more, to hold a signature and a statement"
        )
    language = language or language_of(path, source[:200].partition(b"\n")[0])
    lines, counts = SourceLines(source), TokenCounts(source)
    if language not in LANGUAGES:
        whole = [(0, len(source))] if window_lines else []
        return list(_windows(lines, counts, path, language, whole, max_tokens, window_lines))
    tree = parse(source, language)
    found, comment_spans = find_definitions(tree, lines, LANGUAGES[language])
    units: list[Unit] = []
    for definition in found:
        units += _units(definition, lines, counts, path, language, max_tokens, [] if comments else comment_spans)
    if window_lines:
        spans = [(one.start, one.end) for one in found if one.parent is None]
        rest = list(_between(spans, len(source)))
        units += _windows(lines, counts, path, language, rest, max_tokens, window_lines)
        units.sort(key=lambda unit: (unit.start_byte, -unit.end_byte, unit.part))
    return units


def _units(
    found: Found,
    lines: SourceLines,
    counts: TokenCounts,
    path: str,
    language: str,
    max_tokens: int | None,
    comments: Sequence[tuple[int, int]],
) -> Iterator[Unit]:
    edits = _edits(found, lines, comments, shorten=found.kind == "class")
    cuts: list[int] = []
    if max_tokens is not None and not counts.at_most(found.code_start, found.end, max_tokens):
        edits = _edits(found, lines, comments, shorten=True)
        cuts = cut_points(
            found.node,
            (found.code_start, found.signature_end, found.end),
            edits,
            counts,
            max_tokens,
            lines.starts,
        )
    indent = lines.indent(found.code_start)
    signature = _signature(found, lines)
    starts, ends = [found.code_start, *cuts], [*cuts, found.end]
    for part, (start, end) in enumerate(zip(starts, ends, strict=True)):
        code = _edited(lines.source, start, end, edits).decode("utf-8", "replace")
        code = _dedent(code, indent).strip("\n").rstrip()
        first = found.start if part == 0 else start
        yield Unit(
            path=path,
            language=language,
            kind=found.kind,
            name=found.name,
            qualified_name=found.qualified_name,
            line=min(lines.number(found.node.start_byte if part == 0 else start), lines.last_number(end)),
            start_line=lines.number(first),
            end_line=lines.last_number(end),
            start_byte=first,
            end_byte=end,
            signature=signature,
            docstring=found.docstring if part == 0 else "",
            code=code if part == 0 else f"{signature}\n...\n{code}",
            has_error=found.node.has_error,
            part=part,
            parts=len(starts),
        )


def _edits(found: Found, lines: SourceLines, comments: Sequence[tuple[int, int]], *, shorten: bool) -> list[Edit]:
    """What is left out of a definition's code, or shortened there."""
    edits: list[Edit] = []
    comment_edits: list[Edit] = []
    if found.docstring_span is not None:
        edits.append((*lines.whole(*found.docstring_span), b""))
    if shorten:
        for inner in found.inner:
            head = lines.source[inner.code_start : inner.signature_end].rstrip(b"{=> \t\r\n")
            if len(head) > _SIGNATURE:
                head = lines.indent(inner.code_start).encode() + _signature(inner, lines).encode()
            edits.append((inner.start, inner.end, head))
    edits.sort()
    starts = [a for a, _, _ in edits]
    for a, b in comments[bisect_left(comments, (found.code_start, 0)) : bisect_left(comments, (found.end, 0))]:
        before = bisect_right(starts, a) - 1
        if before < 0 or edits[before][1] < b:  # not inside what is left out anyway
            comment_edits.append((*lines.whole(a, b), b""))
    return sorted(edits + comment_edits)


def _edited(source: bytes, start: int, end: int, edits: Sequence[Edit]) -> bytes:
    """A stretch of the source with what is in it edited; an edit belongs to where it starts."""
    pieces, place = [], start
    for a, b, text in edits:
        if start <= a < end and a >= place:
            pieces += [source[place:a], text]
            place = b
    return b"".join([*pieces, source[place:end]])


def _dedent(code: str, indent: str) -> str:
    return code.removeprefix(indent).replace("\n" + indent, "\n") if indent else code


def _signature(found: Found, lines: SourceLines) -> str:
    text = lines.source[found.signature_start : found.signature_end].decode("utf-8", "replace")
    text = _SPACES.sub(" ", text).strip().rstrip("{:;=> ").rstrip()
    return text if len(text) <= _SIGNATURE else text[: _SIGNATURE - 1] + "…"


def _between(spans: Sequence[tuple[int, int]], end: int) -> Iterator[tuple[int, int]]:
    place = 0
    for a, b in spans:
        if a > place:
            yield place, a
        place = max(place, b)
    if place < end:
        yield place, end


def _windows(
    lines: SourceLines,
    counts: TokenCounts,
    path: str,
    language: str,
    spans: Sequence[tuple[int, int]],
    max_tokens: int | None,
    window_lines: int,
) -> Iterator[Unit]:
    stem = PurePosixPath(path).stem
    for start, end in _window_spans(lines, counts, spans, max_tokens, window_lines):
        text = lines.source[start:end]
        yield Unit(
            path=path,
            language=language,
            kind="window",
            name=stem,
            qualified_name=stem,
            line=lines.number(start),
            start_line=lines.number(start),
            end_line=lines.last_number(end),
            start_byte=start,
            end_byte=end,
            signature="",
            docstring="",
            code=_dedent(text.decode("utf-8", "replace"), lines.indent(start)).rstrip(),
        )


def _window_spans(
    lines: SourceLines,
    counts: TokenCounts,
    spans: Sequence[tuple[int, int]],
    max_tokens: int | None,
    window_lines: int,
) -> Iterator[tuple[int, int]]:
    """Stretches of so many lines, blank ones at their ends taken off, very long lines cut."""
    for first, last in spans:
        place = first
        while (place := lines.skip_blank(place, last)) < last:
            end = min(lines.after(place, window_lines), last)
            stop = lines.trim(place, end)
            hard = [] if max_tokens is None else counts.every(place, stop, 2 * max_tokens)
            for a, b in zip([place, *hard], [*hard, stop], strict=True):
                if counts.words(a, b):
                    yield a, b
            place = end


def code_alone(code: str, language: str) -> str:
    """A function's code without the documentation inside it; what does not parse comes back as it is.

    >>> code_alone('def f(x):\\n        "Adds one."\\n        return x + 1', "python")
    'def f(x):\\n        return x + 1'
    """
    if not LANGUAGES[language].docstring_in_body:
        return code
    source = code.encode("utf-8", "replace")
    lines = SourceLines(source)
    found, _ = find_definitions(parse(source, language), lines, LANGUAGES[language])
    if not found or found[0].docstring_span is None:
        return code
    edit = (*lines.whole(*found[0].docstring_span), b"")
    return _edited(source, 0, len(source), [edit]).decode("utf-8", "replace").rstrip()
