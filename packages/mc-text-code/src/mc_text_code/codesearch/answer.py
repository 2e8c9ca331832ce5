"""What a search gives: hits, and how much of the code they were taken from. Plain data, for tables, JSON and sockets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, overload


@dataclass(frozen=True, slots=True)
class Hit:
    """A piece of code that was found.

    Attributes:
        path: of its file, relative to the root.
        line: where it is defined, from 1.
        column: from 1.
        start_line: first line shown, with what documents it.
        end_line: last line.
        symbol: its qualified name; of a window, its file's stem.
        kind: function, method, class or window.
        language: its name.
        signature: on one line; of a window, its first line.
        text: the lines as they are in the file.
        score: what results are ordered by; it has no meaning across queries.
        lexical_rank: by BM25, from 1; None where that arm did not find it.
        lexical_score: BM25.
        dense_rank: by the encoder, from 1; None where that arm did not find it.
        dense_score: cosine.
        signals: what moved it besides: see :class:`~mc_text_code.codesearch.config.RankingConfig`.
    """

    path: str
    line: int
    column: int
    start_line: int
    end_line: int
    symbol: str
    kind: str
    language: str
    signature: str
    text: str
    score: float
    lexical_rank: int | None = None
    lexical_score: float | None = None
    dense_rank: int | None = None
    dense_score: float | None = None
    signals: tuple[str, ...] = ()

    @property
    def location(self) -> str:
        """``file:line``."""
        return f"{self.path}:{self.line}"

    def vimgrep(self) -> str:
        """``file:line:column:text``, as editors read it."""
        return f"{self.path}:{self.line}:{self.column}:{self.signature}"


@dataclass(frozen=True)
class Answer(Sequence[Hit]):
    """Hits, the best first, and what they were taken from.

    Attributes:
        query: what was asked.
        mode: how it was answered: ``lexical`` also where nothing is embedded yet.
        hits: the best first.
        chunks: pieces of code that were searched.
        coverage: share of them that have a vector; None where no encoder took part.
        notes: what to know of the answer, a line each.
        seconds: it took, without bringing the index up to date.
    """

    query: str
    mode: str
    hits: list[Hit] = field(default_factory=list)
    chunks: int = 0
    coverage: float | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @overload
    def __getitem__(self, place: int) -> Hit: ...
    @overload
    def __getitem__(self, place: slice) -> list[Hit]: ...
    def __getitem__(self, place: int | slice) -> Hit | list[Hit]:
        return self.hits[place]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @property
    def coverage_line(self) -> str:
        """How much the encoder has seen, while that is not all; else empty.

        >>> (
        ...     Answer("a", "hybrid", coverage=0.375, chunks=8).coverage_line,
        ...     Answer("a", "hybrid", coverage=1.0).coverage_line,
        ... )
        ('dense coverage 37% of 8 pieces of code', '')
        """
        if self.coverage is None or self.coverage >= 1:
            return ""
        return f"dense coverage {int(self.coverage * 100)}% of {self.chunks:,} pieces of code"

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Answer:
        """The reverse of :meth:`as_dict`."""
        hits: list[dict[str, Any]] = [{**hit, "signals": tuple(hit["signals"])} for hit in fields["hits"]]
        rest: dict[str, Any] = {**fields, "hits": [Hit(**hit) for hit in hits], "notes": tuple(fields["notes"])}
        return cls(**rest)
