"""Pairs of documentation and function from any source code, with a count for each reason to leave one out."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from time import perf_counter
from typing import Any

from mc_core.errors import ConfigError, closest
from mc_core.files import StrPath
from mc_core.pool import map_items
from mc_text_code.data.code_pairs import CodePair
from mc_text_code.data.code_rules import (
    RULES,
    Candidate,
    MiningOptions,
    is_test_path,
    is_vendored_path,
)
from mc_text_code.data.licences import licence_of_distribution, licence_of_folder
from mc_text_code.data.near_duplicates import near_duplicates
from mc_text_code.source.files import Skipped, SourceFile, SourceListing, source_files
from mc_text_code.source.languages import LANGUAGES, installed
from mc_text_code.source.reading import read_source
from mc_text_code.source.standard_library import standard_library_files
from mc_text_code.source.units import units_of

SAME_DOCSTRING, NEAR_DUPLICATE = "same documentation", "near-duplicate"
_TEST_PATH, _VENDORED_PATH, _NO_GRAMMAR = "test path", "vendored path", "no grammar"
_SITES = ("site-packages", "dist-packages")


@dataclass
class MiningReport:
    """What was read, and what became of it.

    Attributes:
        files: reason → files: ``read``, and why others were not (``test path``, ``binary`` …).
        functions: functions and methods in the files that were read.
        dropped: rule → functions it left out, in the order the rules are asked; each counts for the first that applies.
        pairs: what is left.
        languages: language → pairs.
        seconds: it took.
    """

    files: Counter[str] = field(default_factory=Counter)
    functions: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*RULES, SAME_DOCSTRING, NEAR_DUPLICATE), 0))
    pairs: int = 0
    languages: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def rows(self) -> list[tuple[str, int]]:
        """For a table: each step with how many functions it left out or left over."""
        return [
            ("functions", self.functions),
            *((name, -count) for name, count in self.dropped.items() if count),
            ("pairs", self.pairs),
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"files": dict(self.files)}


@dataclass(frozen=True)
class MinedPairs:
    """Pairs, and how they came about."""

    pairs: list[CodePair]
    report: MiningReport

    def __len__(self) -> int:
        return len(self.pairs)


def mine(
    root: StrPath,
    options: MiningOptions = MiningOptions(),  # noqa: B008 - frozen
    *,
    languages: Sequence[str] = (),
    processes: int = 1,
) -> MinedPairs:
    """The pairs of a folder of source code.

    The folder is one repository, whose packages are its folders; of a folder of installed packages (``site-packages``, or a
    virtual environment around it) each package is a repository by itself, with the licence its metadata states; and so is each
    git repository right inside the folder.

    Args:
        root: a folder.
        options: what is left out.
        languages: names of those to mine; default: all that can be parsed here.
        processes: that parse files; 0 for one on each processor.

    Raises:
        ConfigError: a rule or language that is not known.
        DataError: there is no such folder.
    """
    return mine_files(source_files(root), options, languages=languages, processes=processes)


def mine_standard_library(
    options: MiningOptions = MiningOptions(),  # noqa: B008 - frozen
    *,
    processes: int = 1,
) -> MinedPairs:
    """The pairs of the standard library of the Python that runs; its packages are the top-level modules.

    >>> from mc_text_code.data.code_rules import MiningOptions
    >>> mined = mine_standard_library(MiningOptions(fewest_lines=40))
    >>> len(mined) == mined.report.pairs > 50, mined.pairs[0].licence
    (True, 'PSF-2.0')
    """
    listing = standard_library_files()
    origins = _Origins({}, repository=f"cpython-{platform.python_version()}", licence="PSF-2.0", top_level=True)
    return _mine(listing, options, languages=("python",), processes=processes, origins=origins)


def mine_files(
    listing: SourceListing,
    options: MiningOptions = MiningOptions(),  # noqa: B008 - frozen
    *,
    languages: Sequence[str] = (),
    processes: int = 1,
) -> MinedPairs:
    """As :func:`mine`, of files that are listed already."""
    origins = _Origins(_distributions(listing.root), listing.root.name, licence_of_folder(listing.root))
    return _mine(listing, options, languages=languages, processes=processes, origins=origins)


def _mine(
    listing: SourceListing,
    options: MiningOptions,
    *,
    languages: Sequence[str],
    processes: int,
    origins: _Origins,
) -> MinedPairs:
    begin = perf_counter()
    _check(options, languages)
    report = MiningReport(files=Counter(listing.skipped))
    wanted = frozenset(languages or [name for name in LANGUAGES if installed(name)])
    some = []
    for file in listing.files:
        if is_test_path(file.path):
            report.files[_TEST_PATH] += 1
        elif is_vendored_path(file.path):
            report.files[_VENDORED_PATH] += 1
        else:
            some.append((file, origins.of(file.path, listing.root)))
    found: list[CodePair] = []
    for pairs, functions, dropped, outcome in map_items(
        partial(_mine_file, options, wanted), some, processes=processes
    ):
        report.files[outcome] += 1
        report.functions += functions
        for name, count in dropped.items():
            report.dropped[name] += count
        found += pairs
    kept = _without_copies(found, options, report)
    report.pairs = len(kept)
    report.languages = dict(Counter(pair.language for pair in kept).most_common())
    report.seconds = perf_counter() - begin
    return MinedPairs(kept, report)


def _check(options: MiningOptions, languages: Sequence[str]) -> None:
    known = (*RULES, SAME_DOCSTRING, NEAR_DUPLICATE)
    for name in options.skip:
        if name not in known or name == "undocumented":
            raise ConfigError(f"skip: no rule {name!r} that could be left out; closest: {closest(name, known[1:])}")
    for name in languages:
        if name not in LANGUAGES:
            raise ConfigError(f"languages: {name!r} cannot be parsed; those that can: {', '.join(LANGUAGES)}")


@dataclass(frozen=True)
class Origin:
    """Where a file belongs."""

    repository: str
    package: str
    licence: str


@dataclass
class _Origins:
    """Which repository and package a file belongs to."""

    licences: dict[str, str]  # of installed packages, by their top-level module
    repository: str
    licence: str
    top_level: bool = False
    nested: dict[str, str | None] = field(default_factory=dict)

    def of(self, path: str, root: Path) -> Origin:
        parts = path.split("/")
        site = max((number for number, part in enumerate(parts[:-1]) if part in _SITES), default=-1)
        if site >= 0 or self.licences:
            module = parts[site + 1].removesuffix(".py")
            return Origin(module, module, self.licences.get(module, ""))
        if self.top_level:
            module = parts[0].removesuffix(".py")
            return Origin(self.repository, module, self.licence)
        if len(parts) > 1:
            first = parts[0]
            if first not in self.nested:
                inside = root / first
                self.nested[first] = licence_of_folder(inside) if (inside / ".git").exists() else None
            if (licence := self.nested[first]) is not None:
                return Origin(first, "/".join(parts[1:-1]) or first, licence)
        return Origin(self.repository, "/".join(parts[:-1]) or path, self.licence)


def _distributions(root: Path) -> dict[str, str]:
    """Licence by top-level module, of a folder of installed packages or of what is around one."""
    sites = [root] if root.name in _SITES else [path for name in _SITES for path in root.glob(f"lib*/**/{name}")]
    sites += [root / name for name in _SITES if (root / name).is_dir()]
    licences: dict[str, str] = {}
    for distribution in distributions(path=[str(site) for site in sites]):
        listed = (distribution.read_text("top_level.txt") or "").split()
        if not listed:
            record = (distribution.read_text("RECORD") or "").splitlines()
            names = {line.partition(",")[0].partition("/")[0] for line in record}
            listed = [name.removesuffix(".py") for name in names if name.isidentifier() or name.endswith(".py")]
        licence = licence_of_distribution(distribution)
        for module in listed:
            licences.setdefault(module, licence)
    return licences


def _mine_file(
    options: MiningOptions, languages: frozenset[str], given: tuple[SourceFile, Origin]
) -> tuple[list[CodePair], int, Counter[str], str]:
    file, origin = given
    text = read_source(file)
    if isinstance(text, Skipped):
        return [], 0, Counter(), text.reason
    if text.language not in languages:
        return [], 0, Counter(), _NO_GRAMMAR if text.language not in LANGUAGES else "other language"
    units = units_of(text.source, text.path, text.language, max_tokens=None, window_lines=0, comments=options.comments)
    rules = [(name, rule.applies) for name, rule in RULES.items() if name not in options.skip]
    pairs, functions, dropped = [], 0, Counter[str]()
    for unit in units:
        if unit.kind not in ("function", "method"):
            continue
        functions += 1
        candidate = Candidate(unit, origin.licence, options)
        reason = next((name for name, applies in rules if applies(candidate)), None)
        if reason is not None:
            dropped[reason] += 1
            continue
        pairs.append(
            CodePair(
                query=candidate.query,
                code=unit.code,
                language=unit.language,
                name=unit.name,
                qualified_name=unit.qualified_name,
                path=unit.path,
                line=unit.line,
                repository=origin.repository,
                package=origin.package,
                licence=origin.licence,
            )
        )
    return pairs, functions, dropped, "read"


def _without_copies(pairs: list[CodePair], options: MiningOptions, report: MiningReport) -> list[CodePair]:
    kept = pairs
    if SAME_DOCSTRING not in options.skip:
        seen: Counter[str] = Counter()
        kept = []
        for pair in pairs:
            key = " ".join(pair.query.lower().split())
            seen[key] += 1
            if seen[key] <= options.same_docstring:
                kept.append(pair)
        report.dropped[SAME_DOCSTRING] = len(pairs) - len(kept)
    if NEAR_DUPLICATE not in options.skip and kept:
        repeats = near_duplicates([pair.code for pair in kept], threshold=options.near_duplicates)
        report.dropped[NEAR_DUPLICATE] = int((repeats >= 0).sum())
        kept = [pair for pair, repeat in zip(kept, repeats.tolist(), strict=True) if repeat < 0]
    return kept
