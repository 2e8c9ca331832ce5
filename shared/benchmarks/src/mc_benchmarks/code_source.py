"""Source code into tokens and units beside the parser alone; and how far words alone find functions by their documentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mc_benchmarks.contract import Report, Row, environment, median, median_ratio, paired, spread
from mc_core.errors import DataError
from mc_text_code.data.code_mining import MinedPairs, mine, mine_standard_library
from mc_text_code.data.code_search_sets import CodeSearchSet
from mc_text_code.evaluation.code_lexical import lexical_table
from mc_text_code.source.parsing import leaves, parse
from mc_text_code.source.reading import SourceText, read_source
from mc_text_code.source.standard_library import standard_library_files
from mc_text_code.source.units import units_of

LIBRARY = "the standard library"


def run_code_source(*, repeats: int = 5, megabytes: float = 6.0) -> Report:
    """Megabytes a second of the standard library, on one core.

    Args:
        repeats: rounds.
        megabytes: of source code in each round.
    """
    sources = _sources(megabytes)
    size = sum(map(len, sources)) / 1e6
    tokens = sum(len(leaves(source, "python")) for source in sources)
    units = sum(len(units_of(source, "a.py")) for source in sources)
    work: dict[str, Callable[[], object]] = {
        "tree-sitter's parser alone": lambda: [parse(source, "python") for source in sources],
        "tokens with their classes": lambda: [leaves(source, "python") for source in sources],
        "units: functions, classes, windows": lambda: [units_of(source, "a.py") for source in sources],
    }
    seconds = paired(work, repeats=repeats, warmup=1)
    floor = seconds["tree-sitter's parser alone"]
    rows = []
    for name, found in seconds.items():
        values: dict[str, float | str | None] = {
            "MB/s (median)": size / median(found),
            "IQR of seconds": spread(found),
            "× parser alone": median_ratio(found, floor),
        }
        if name.startswith("tokens"):
            walk = [a - b for a, b in zip(found, floor, strict=True)]
            values["million a second, parsing not counted"] = tokens / 1e6 / median(walk)
        rows.append(Row(name=name, values=values))
    report = Report(
        benchmark="code_source",
        command="uv run mc-benchmark code-source",
        question="Python source code per second, one core",
        settings={"repeats": repeats, "megabytes": size, "files": len(sources), "tokens": tokens, "units": units},
        environment=environment(),
        columns=["MB/s (median)", "IQR of seconds", "× parser alone", "million a second, parsing not counted"],
        rows=rows,
        reading=f"{len(sources)} files of {LIBRARY}, {size:.1f} MB, {tokens:,} tokens, {units:,} units.",
    )
    report.save()
    report.show()
    return report


def run_code_lexical(*, folders: Sequence[Path] = (), pairs: int = 5_000, seed: int = 0, processes: int = 0) -> Report:
    """Mean reciprocal rank of BM25 among functions mined from source code.

    Args:
        folders: of source code; the standard library is always measured.
        pairs: drawn from each.
        seed: of the draw.
        processes: that parse; 0 for all.
    """
    rows = []
    mined: dict[str, MinedPairs] = {LIBRARY: mine_standard_library(processes=processes)}
    for folder in folders:
        mined[folder.name] = mine(folder, languages=("python",), processes=processes)
    for name, found in mined.items():
        if not found.pairs:
            raise DataError(f"{name}: no documented function found; name a folder with Python code")
        place = np.random.Generator(np.random.Philox(seed)).permutation(len(found))[:pairs]
        asked = CodeSearchSet.of([found.pairs[row] for row in sorted(place.tolist())])
        for words, result in lexical_table(asked).items():
            rows.append(
                Row(
                    name=f"{name}, {words}",
                    values={
                        "MRR": result.mrr,
                        "R@1": result.recall[1],
                        "R@10": result.recall[10],
                        "functions": float(result.candidates),
                    },
                )
            )
    report = Report(
        benchmark="code_lexical",
        command="uv run mc-benchmark code-lexical",
        question="A function by the first paragraph of its documentation, BM25 (k1 = 1.2, b = 0.75)",
        settings={
            "pairs": pairs,
            "seed": seed,
            "mined": {name: len(found) for name, found in mined.items()},
            "dropped": {name: found.report.dropped for name, found in mined.items()},
        },
        environment=environment(),
        columns=["MRR", "R@1", "R@10", "functions"],
        rows=rows,
        reading="Documentation tends to repeat the function's name: hidden, a good part of what words find is gone.",
    )
    report.save()
    report.show()
    return report


def _sources(megabytes: float) -> list[bytes]:
    found: list[bytes] = []
    for file in standard_library_files().files:
        text = read_source(file)
        if isinstance(text, SourceText):
            found.append(text.source)
            if sum(map(len, found)) > megabytes * 1e6:
                break
    return found
