"""The order of results: two ranked lists become one, moved by what names and paths say. Pure functions.

Reciprocal rank fusion (Cormack, Clarke & Büttcher 2009, SIGIR) adds weight / (60 + rank) over the lists; factors multiply that.
Cosines and BM25 scores never meet: only ranks count, so that nothing depends on a model's scale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mc_text_code.codesearch.config import RankingConfig
from mc_text_code.source.words import split_words

PROSE = frozenset(("markdown", "restructuredtext", "text", "html", "tex", "json", "yaml", "toml", "ini", "xml", "css"))
"""Languages of files that are no code."""

_IDENTIFIER = re.compile(
    r"[^\W_]_[^\W_]"  # snake_case
    r"|\b_+[^\W_]\w*"
    r"|[a-z][A-Z]|\b[A-Z][a-z0-9]+[A-Z]|\b[A-Z]{2,}[a-z]{2,}"  # camelCase, CamelCase, HTTPServer
    r"|\w::\w|\w->\w|\w\(\)"
    r"|[^\W\d]\w+\.[^\W\d]\w+"  # os.path
)
_NAME = re.compile(r"\w+(?:(?:::|\.|#|->|\\)\w+)*")
_SEPARATORS = re.compile(r"::|#|->|\\")
_TEST_PATH = re.compile(
    r"(?:^|/)(?:tests?|testing|__tests__|specs?|testdata|fixtures?)/|(?:^|/)(?:test_[^/]*|conftest\.py)$"
    r"|(?:^|/)[^/]*(?:[_.-](?:test|tests|spec)|Tests?|Spec)\.\w+$"
)
_VENDOR_PATH = re.compile(
    r"(?:^|/)(?:_?vendor(?:ed)?|third[_-]?party|3rdparty|node_modules|bower_components|externals?|site-packages|"
    r"dist-packages)/"
)
_GENERATED_PATH = re.compile(r"(?:^|/)(?:_?generated|autogen)/|_pb2\.|\.pb\.|\.g\.|\.generated\.|_generated\.")
_TEST_WORDS = frozenset(("test", "tests", "testing", "unittest", "spec", "specs", "fixture", "fixtures", "pytest"))
_SHORTEST_STEM = 3
_LONGEST_NAME = 3
_SEVERAL_DEPTH = 10


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the order depends on, of one chunk.

    Attributes:
        number: of the chunk; equal scores are ordered by it.
        path: of its file, relative to the root.
        language: of its file.
        kind: function, method, class or window.
        name: its own.
        qualified_name: with the names of what it is in.
        line: where it begins.
        part: of a unit that was split, from 0.
        parts: how many it was split into.
        trivial: a function of one line without documentation.
    """

    number: int
    path: str
    language: str
    kind: str
    name: str
    qualified_name: str
    line: int
    part: int = 0
    parts: int = 1
    trivial: bool = False


@dataclass(frozen=True, slots=True)
class Ranked:
    """A chunk in its place.

    Attributes:
        number: of the chunk.
        score: what it was ordered by.
        signals: factors that moved it, by their field of :class:`RankingConfig` without ``_factor``.
    """

    number: int
    score: float
    signals: tuple[str, ...]


def looks_like_identifier(query: str) -> bool:
    """Whether somebody types a name rather than describes something.

    >>> [looks_like_identifier(text) for text in ("parse_args", "os.path.join", "HTTPServer", "Foo::bar")]
    [True, True, True, True]
    >>> [looks_like_identifier(text) for text in ("parse the command line.", "Open a file", "e.g. a URL", "I/O")]
    [False, False, False, False]
    """
    return _IDENTIFIER.search(query) is not None


def depth(hits: int, config: RankingConfig) -> int:
    """How many candidates each arm hands over.

    >>> depth(5, RankingConfig()), depth(30, RankingConfig())
    (50, 150)
    """
    return max(config.candidates_per_hit * hits, config.fewest_candidates)


def fuse(
    lexical: Sequence[int], dense: Sequence[int], query: str, config: RankingConfig | None = None
) -> dict[int, float]:
    """Reciprocal rank fusion of two lists of chunks, the best first.

    Args:
        lexical: by BM25.
        dense: by the encoder.
        query: decides the weight of ``lexical``.
        config: weights and the constant.

    >>> fuse([7, 8], [8], "open a file")
    {7: 0.01639344262295082, 8: 0.03252247488101534}
    """
    config = config or RankingConfig()
    weight = config.identifier_weight if looks_like_identifier(query) else config.lexical_weight
    scores: dict[int, float] = {}
    for arm, numbers in ((weight, lexical), (config.dense_weight, dense)):
        for rank, number in enumerate(numbers, start=1):
            scores[number] = scores.get(number, 0.0) + arm / (config.rrf_constant + rank)
    return scores


def rank(
    scores: Mapping[int, float],
    candidates: Iterable[Candidate],
    query: str,
    config: RankingConfig | None = None,
    *,
    per_file: int | None = None,
) -> list[Ranked]:
    """Candidates in their final order, with all factors applied and no more than ``per_file`` of a file.

    Of a unit that was split, the best part alone is kept. Chunks whose score is zero, because an arm is switched off, go.

    Args:
        scores: of :func:`fuse`.
        candidates: the chunks; those without a score are left out.
        query: what was asked.
        config: the factors.
        per_file: instead of the config's.
    """
    config = config or RankingConfig()
    words = _Words(query)
    some: list[tuple[Candidate, float, list[str]]] = []
    for candidate in candidates:
        if (score := scores.get(candidate.number, 0.0)) > 0:
            names = [name for name, holds in _SIGNALS if holds(candidate, words)]
            for name in names:
                score *= float(getattr(config, f"{name}_factor"))
            some.append((candidate, score, names))
    some.sort(key=_order)
    some = _several(_whole(some), config)
    some.sort(key=_order)
    most = config.per_file if per_file is None else per_file
    return [
        Ranked(
            candidate.number,
            score,
            tuple(name for name in names if getattr(config, f"{name}_factor") != 1),
        )
        for candidate, score, names in _capped(some, most)
    ]


_Scored = tuple[Candidate, float, list[str]]


def _order(one: _Scored) -> tuple[float, int]:
    return -one[1], one[0].number


def _whole(some: list[_Scored]) -> list[_Scored]:
    """The best part of each unit."""
    seen: set[tuple[str, str, str]] = set()
    kept = []
    for one in some:
        candidate = one[0]
        unit = (candidate.path, candidate.kind, candidate.qualified_name)
        if candidate.parts == 1 or unit not in seen:
            kept.append(one)
            seen.add(unit)
    return kept


def _several(some: list[_Scored], config: RankingConfig) -> list[_Scored]:
    """Raises the best hit of a file with several."""
    times: dict[str, int] = {}
    for candidate, _, _ in some[:_SEVERAL_DEPTH]:
        times[candidate.path] = times.get(candidate.path, 0) + 1
    seen: set[str] = set()
    raised = []
    for candidate, score, names in some:
        others = min(times.get(candidate.path, 0) - 1, 3)
        if candidate.path not in seen and others > 0:
            score, names = score * config.several_factor**others, [*names, "several"]
        seen.add(candidate.path)
        raised.append((candidate, score, names))
    return raised


def _capped(some: list[_Scored], most: int) -> list[_Scored]:
    times: dict[str, int] = {}
    kept = []
    for one in some:
        path = one[0].path
        times[path] = times.get(path, 0) + 1
        if not most or times[path] <= most:
            kept.append(one)
    return kept


class _Words:
    """What the signals need of a query."""

    def __init__(self, query: str) -> None:
        self.words = split_words(query)
        self.set = frozenset(self.words)
        self.names = frozenset(_SEPARATORS.sub(".", name).lower() for name in _NAME.findall(query))
        count = len(_NAME.findall(query))
        # in a sentence, a name is more often a thing that is used than what is looked for
        self.is_name = count == 1 or (count <= _LONGEST_NAME and looks_like_identifier(query))
        self.about_tests = bool(_TEST_WORDS & self.set)


def _is_definition(candidate: Candidate, query: _Words) -> bool:
    """The chunk defines the symbol that the query names: by itself, with what it is in, or by its words, if these are few."""
    if candidate.kind == "window" or candidate.part:
        return False
    if query.is_name:
        qualified = _SEPARATORS.sub(".", candidate.qualified_name).lower()
        if any(qualified == name or qualified.endswith(f".{name}") for name in query.names):
            return True
    return len(query.words) <= _LONGEST_NAME and split_words(candidate.name) == query.words


def _has_stem(candidate: Candidate, query: _Words) -> bool:
    stem = PurePosixPath(candidate.path).stem
    words = split_words(stem)
    return len(stem) >= _SHORTEST_STEM and bool(words) and query.set.issuperset(words)


_SIGNALS: tuple[tuple[str, Callable[[Candidate, _Words], bool]], ...] = (
    ("definition", _is_definition),
    ("stem", _has_stem),
    ("test", lambda one, query: not query.about_tests and _TEST_PATH.search(one.path) is not None),
    ("vendor", lambda one, query: _VENDOR_PATH.search(one.path) is not None),
    ("generated", lambda one, query: _GENERATED_PATH.search(one.path) is not None),
    ("trivial", lambda one, query: one.trivial),
    ("prose", lambda one, query: one.language in PROSE),
)
