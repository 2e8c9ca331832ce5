"""A server of the Model Context Protocol: code search for editors and agents, over standard input and output.

Three tools: ``search_code``, ``show_unit``, ``index_status``. Nothing outside the root is read; what makes no sense is answered
with an error that says what would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from mc_core.errors import DataError, McError, closest
from mc_core.optional import require
from mc_text_code.codesearch.answer import Hit
from mc_text_code.codesearch.keeper import open_kept
from mc_text_code.codesearch.query import CodeIndex

EXTRA = "mc-text-code[mcp]"
INTERVAL = 2.0
_MOST_LINES = 60
_INSTRUCTIONS = (
    "Finds functions, methods and classes in one folder of source code by what they do or what they are called. "
    "Start with search_code; show_unit gives the whole of a hit, or any lines of a file."
)

Query = Annotated[str, Field(description="What the code does, in words, or the name of a symbol.", max_length=10_000)]
Count = Annotated[int, Field(description="Most hits.", ge=1, le=100)]
Languages = Annotated[list[str], Field(description="Only these languages, such as python or go; empty: all.")]
Paths = Annotated[
    list[str], Field(description="Only files that fit a pattern of .gitignore's form, such as src/; empty: all.")
]
FilePath = Annotated[str, Field(description="Path of a file as search_code gives it.", min_length=1, max_length=4096)]
Line = Annotated[int, Field(description="A line of it, from 1.", ge=1)]


class FoundCode(BaseModel):
    """A hit."""

    path: str
    line: int
    end_line: int
    symbol: str
    kind: str
    language: str
    text: str
    shortened: bool


class SearchResult(BaseModel):
    """What was found, the best first."""

    mode: str
    hits: list[FoundCode]
    notes: list[str]


class ShownCode(BaseModel):
    """Lines of a file."""

    path: str
    start_line: int
    end_line: int
    symbol: str
    text: str


def build_server(open_index: Callable[[], CodeIndex], *, interval: float | None = INTERVAL) -> Any:
    """The server for one index; ``run()`` of what comes back serves standard input and output.

    Args:
        open_index: opens the index, with its encoder; called twice where it is kept up to date in the background.
        interval: seconds between two looks for changes; None: every search looks for itself.

    Raises:
        MissingDependencyError: the SDK of the protocol is not installed.
    """
    module = require("mcp.server.mcpserver", extra=EXTRA, purpose="serve the Model Context Protocol")
    errors = require("mcp.server.mcpserver.exceptions", extra=EXTRA, purpose="serve the Model Context Protocol")
    if interval is None:
        index = open_index()
    else:
        index, keeper = open_kept(open_index, interval)
        keeper.start()
    server = module.MCPServer(name="mc-text-code", instructions=_INSTRUCTIONS, log_level="WARNING")

    def told(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except McError as error:
            raise errors.ToolError(str(error)) from error

    @server.tool()
    def search_code(
        query: Query,
        k: Count = 10,
        mode: Literal["hybrid", "dense", "lexical"] = "hybrid",
        languages: Languages = [],  # noqa: B006
        paths: Paths = [],  # noqa: B006
        full: bool = False,
    ) -> SearchResult:
        """Functions, methods and classes that fit a query, the best first. Long ones are shortened unless full is true."""
        return told(lambda: _search(index, query, k, mode, languages, paths, full))

    @server.tool()
    def show_unit(path: FilePath, line: Line) -> ShownCode:
        """The whole function, method or class around a line of a file, as it is now."""
        return told(lambda: show(index, path, line))

    @server.tool()
    def index_status() -> dict[str, Any]:
        """What the index holds: files, languages, what was left out and why, share of code that is embedded."""
        return told(lambda: _status(index))

    return server


def _search(
    index: CodeIndex, query: str, k: int, mode: Any, languages: Sequence[str], paths: Sequence[str], full: bool
) -> SearchResult:
    for pattern in paths:
        _inside(pattern, index.root)
    answer = index.search(query, k, mode=mode, languages=languages, paths=paths)
    notes = [*answer.notes, *([answer.coverage_line] if answer.coverage_line else [])]
    return SearchResult(mode=answer.mode, hits=[_found(hit, full) for hit in answer], notes=notes)


def _found(hit: Hit, full: bool) -> FoundCode:
    lines = hit.text.split("\n")
    shortened = not full and len(lines) > _MOST_LINES
    return FoundCode(
        path=hit.path,
        line=hit.line,
        end_line=hit.end_line,
        symbol=hit.symbol,
        kind=hit.kind,
        language=hit.language,
        text="\n".join(lines[:_MOST_LINES] if shortened else lines),
        shortened=shortened,
    )


def _inside(path: str, root: Path) -> str:
    """The path, relative to the root.

    Raises:
        DataError: it leads outside.
    """
    plain = path.replace("\\", "/")
    if PurePosixPath(plain).is_absolute() and Path(plain).is_relative_to(root):
        plain = Path(plain).relative_to(root).as_posix()
    if "\0" in plain or ".." in PurePosixPath(plain).parts or PurePosixPath(plain).is_absolute() or plain[1:2] == ":":
        raise DataError(f"{path!r} is outside {root}; give a path below it, as search_code does")
    if not (root / plain).resolve().is_relative_to(root):
        raise DataError(f"{path!r} leads outside {root}; give a path below it, as search_code does")
    return PurePosixPath(plain).as_posix()


def show(index: CodeIndex, path: str, line: int) -> ShownCode:
    """The unit around a line.

    Args:
        index: that knows the file.
        path: of the file, relative to the root.
        line: from 1.

    Raises:
        DataError: a path outside the root, a file that is not in the index, a line that the file does not have.
    """
    place = _inside(path, index.root)
    found = index.unit_at(place, line)
    if found is None:
        raise DataError(f"{path!r} is not in the index; closest: {closest(place, index.indexed_paths())}")
    return ShownCode(
        path=found.path,
        start_line=found.start_line,
        end_line=found.end_line,
        symbol=found.symbol,
        text=found.text,
    )


def _status(index: CodeIndex) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(index.status())
