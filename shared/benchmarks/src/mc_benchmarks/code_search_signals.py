"""What is each signal of the order of results worth? Functions looked up by their documentation, and by their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mc_benchmarks.contract import Report, Row, environment
from mc_core.errors import DataError
from mc_text_code.codesearch import RankingConfig
from mc_text_code.codesearch.bm25 import Postings, best, bm25_scores
from mc_text_code.codesearch.chunking import count_words, words_of
from mc_text_code.codesearch.ranking import Candidate, depth, fuse, rank
from mc_text_code.source.files import Skipped, SourceFile, source_files
from mc_text_code.source.reading import read_source
from mc_text_code.source.standard_library import standard_library_files
from mc_text_code.source.units import Unit, units_of

OFF = {
    "definition_factor": 1.0,
    "stem_factor": 1.0,
    "several_factor": 1.0,
    "test_factor": 1.0,
    "vendor_factor": 1.0,
    "generated_factor": 1.0,
    "trivial_factor": 1.0,
    "prose_factor": 1.0,
    "lexical_floor": 0.0,
    "per_file": 0,
}
"""The value of each signal that switches it off."""
DOCUMENTATION, NAME = "documentation", "name"
_SENTENCE = re.compile(r"(?<=[.!?])\s|\n\s*\n")
_FEWEST_WORDS, _MOST_WORDS, _FEWEST_LINES = 3, 40, 3
_TEST = re.compile(r"(?:^|/)tests?(?:/|_)|(?:^|/)test", re.IGNORECASE)


@dataclass(frozen=True)
class Lookup:
    """Chunks without their functions' documentation, and what is looked up in them.

    Attributes:
        candidates: N chunks.
        postings: their words.
        numbers: word → its number.
        queries: (kind, text, number of the chunk that was meant).
    """

    candidates: list[Candidate]
    postings: Postings
    numbers: dict[str, int]
    queries: list[tuple[str, str, int]]


def build_lookup(files: Sequence[SourceFile], *, queries: int, seed: int = 0) -> Lookup:
    """Cut files into chunks, take the documentation of functions away, and ask for some of it.

    The rules are CodeSearchNet's: no tests, no functions of less than three lines, no standard methods, three words or more.
    """
    units = [unit for file in files for unit in _units(file)]
    words, lengths, uniques, terms, counts = count_words(_text(unit) for unit in units)
    postings = Postings(lengths, np.repeat(np.arange(len(units), dtype=np.int32), uniques), terms, counts)
    asked = [(number, query) for number, unit in enumerate(units) if (query := _query(unit))]
    if not asked:
        raise DataError(f"{len(files)} files hold no documented functions; name a folder with more code")
    order = np.random.default_rng(seed).permutation(len(asked))[:queries]
    chosen = [asked[place] for place in order]
    return Lookup(
        [_candidate(number, unit) for number, unit in enumerate(units)],
        postings,
        {word: number for number, word in enumerate(words)},
        [(DOCUMENTATION, query, number) for number, query in chosen]
        + [(NAME, units[number].name, number) for number, _ in chosen],
    )


def _units(file: SourceFile) -> list[Unit]:
    text = read_source(file)
    return [] if isinstance(text, Skipped) else units_of(text.source, file.path, text.language)


def _text(unit: Unit) -> str:
    return unit.text if unit.kind == "class" else replace(unit, docstring="").text


def _candidate(number: int, unit: Unit) -> Candidate:
    trivial = unit.kind in ("function", "method") and not unit.docstring and unit.code.count("\n") < 2
    return Candidate(
        number,
        unit.path,
        unit.language,
        unit.kind,
        unit.name,
        unit.qualified_name,
        unit.line,
        unit.part,
        unit.parts,
        trivial,
    )


def _query(unit: Unit) -> str:
    """The first sentence of a function's documentation; empty where it is not asked for."""
    if unit.kind not in ("function", "method") or unit.part or unit.name.startswith("__") or _TEST.search(unit.path):
        return ""
    if "test" in unit.name.lower() or unit.code.count("\n") + 1 < _FEWEST_LINES:
        return ""
    sentence = _SENTENCE.split(unit.docstring.strip())[0]
    return sentence if _FEWEST_WORDS <= len(words_of(sentence)) <= _MOST_WORDS else ""


def reciprocal_ranks(lookup: Lookup, config: RankingConfig) -> dict[str, np.ndarray]:
    """Kind of query → the reciprocal rank of what was meant, 0 where it is not among the candidates.

    Any function of that name counts for a name, and for documentation any part of the function in its file.
    """
    found: dict[str, list[float]] = {DOCUMENTATION: [], NAME: []}
    for kind, query, target in lookup.queries:
        asked = Counter(lookup.numbers[word] for word in words_of(query) if word in lookup.numbers)
        scores = bm25_scores(lookup.postings, asked)
        arm = best(scores, depth(10, config), above=config.lexical_floor * scores.max(initial=0)).tolist()
        ranked = rank(fuse(arm, [], query, config), [lookup.candidates[number] for number in arm], query, config)
        meant = lookup.candidates[target]
        place = next(
            (place for place, one in enumerate(ranked, start=1) if _same(lookup.candidates[one.number], meant, kind)), 0
        )
        found[kind].append(1 / place if place else 0.0)
    return {kind: np.array(values) for kind, values in found.items()}


def _same(one: Candidate, meant: Candidate, kind: str) -> bool:
    if kind == NAME:
        return one.name == meant.name and one.kind in ("function", "method")
    return (one.path, one.qualified_name) == (meant.path, meant.qualified_name)


def _row(name: str, ranks: dict[str, np.ndarray]) -> Row:
    values: dict[str, float | str | None] = {}
    for kind, found in ranks.items():
        values[f"MRR, {kind}"] = float(found.mean())
        values[f"R@10, {kind}"] = float((found >= 0.1).mean())
    return Row(name=name, values=values)


def run_code_search_signals(*, folder: Path | None = None, queries: int = 1500, seed: int = 0) -> Report:
    """Measure, save, show."""
    files = standard_library_files().files if folder is None else source_files(folder, use_git=False).files
    lookup = build_lookup(files, queries=queries, seed=seed)
    rows = [
        _row("no signal", reciprocal_ranks(lookup, RankingConfig.model_validate(OFF))),
        _row("all, as set", reciprocal_ranks(lookup, RankingConfig())),
    ]
    for field, value in OFF.items():
        if getattr(RankingConfig(), field) != value:
            config = RankingConfig.model_validate({field: value})
            rows.append(_row(f"without {field}", reciprocal_ranks(lookup, config)))
    several = RankingConfig(several_factor=1.02)
    rows.append(_row("with several_factor 1.02", reciprocal_ranks(lookup, several)))
    report = Report(
        benchmark="code_search_signals",
        command="uv run mc-benchmark code-search-signals",
        question=f"Functions found by BM25 and signals among {len(lookup.candidates):,} pieces of code",
        settings={"queries": queries, "seed": seed, "folder": None if folder is None else folder.name},
        environment=environment(),
        columns=["MRR, documentation", "R@10, documentation", "MRR, name", "R@10, name"],
        rows=rows,
        reading="The first sentence of a function's documentation, which is taken out of the index, and its bare name. The values "
        "were chosen on other code (ten installed packages). At most two hits a file is a choice for readers: where one "
        "function is meant it costs places. Tests are never what is meant here, so that their factor cannot lose.",
    )
    report.save()
    report.show()
    return report
