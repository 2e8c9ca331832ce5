"""How long does code search take: building and refreshing its index, a query of each kind, a query from a cold shell."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import bm25s
import numpy as np

from mc_benchmarks.contract import Report, Row, environment, median, spread
from mc_text_code.codesearch import CodeIndex, IndexConfig
from mc_text_code.codesearch.chunking import words_of
from mc_text_code.codesearch.config import Mode
from mc_text_code.codesearch.static import StaticEncoder
from mc_text_code.source.standard_library import standard_library_files
from mc_text_code.tokenizers import train_tokenizer

BUILD, EDIT, UNCHANGED = "index of the standard library, words", "refresh after one edit", "refresh, nothing changed"
COLD, COLD_STATIC = "query from a cold process, words", "query from a cold process, words and static vectors"
LEXICAL, DENSE, HYBRID = "query, words", "query, static vectors", "query, words and static vectors"
VECTOR, EMBED = "vector of a query, static", "vectors of all code, static"
REBUILD, THEIR_QUERY = "bm25s: index of the same words, already split", "bm25s: query"
BARS = {BUILD: 5000.0, EDIT: 500.0, LEXICAL: 50.0, DENSE: 50.0, HYBRID: 50.0, COLD: 1500.0, COLD_STATIC: 1500.0}

_DIM, _VOCABULARY = 256, 8000
_COLD = """
import sys
from mc_text_code.codesearch import CodeIndex
encoder = None
if len(sys.argv) > 3:
    from mc_text_code.codesearch.static import StaticEncoder
    encoder = StaticEncoder.load(sys.argv[3])
with CodeIndex.open(sys.argv[1], folder=sys.argv[2], encoder=encoder) as index:
    assert index.search("parse command line arguments").mode == ("hybrid" if encoder else "lexical")
"""


@contextmanager
def copied_library() -> Iterator[Path]:
    """The sources of the standard library in a folder that may be written, with their times."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "library"
        for file in standard_library_files().files:
            target = root / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file.location, target)
        yield root


def static_table(texts: list[str], seed: int = 0) -> StaticEncoder:
    """A table of random vectors with a tokenizer of code: it finds nothing, and takes as long as one that does."""
    tokenizer = train_tokenizer(texts[:4000], _VOCABULARY, "bpe")
    table = np.random.default_rng(seed).standard_normal((len(tokenizer), _DIM))
    return StaticEncoder(table, tokenizer.backend_tokenizer)


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def queries_of(index: CodeIndex, count: int, seed: int = 0) -> list[str]:
    """First lines of documentation, drawn at random."""
    rows = index._store.rows_of("SELECT DISTINCT docstring FROM chunks WHERE docstring != ''")
    lines = sorted({line for (text,) in rows if len(words_of(line := text.partition("\n")[0][:200])) >= 3})
    chosen = np.random.default_rng(seed).permutation(len(lines))[:count]
    return [lines[place] for place in chosen]


def _build(root: Path, repeats: int, processes: int) -> tuple[list[float], Path]:
    found = []
    folder = root.parent / "index-0"
    for number in range(repeats):
        folder = root.parent / f"index-{number}"
        with CodeIndex.open(root, folder=folder, processes=processes) as index:
            found.append(timed(index.refresh))
    return found, folder


def _edit(index: CodeIndex, root: Path, repeats: int) -> tuple[list[float], list[float]]:
    edits, nothing = [], []
    path = root / "argparse.py"
    for number in range(repeats + 1):
        path.write_text(path.read_text() + f"\n\ndef added_by_the_benchmark_{number}():\n    return {number}\n")
        edits.append(timed(partial(index.search, f"added_by_the_benchmark_{number}")))
        nothing.append(timed(index.refresh))
    return edits[1:], nothing[1:]


def _peer(index: CodeIndex, queries: list[str], repeats: int) -> dict[str, list[float]]:
    """bm25s with the same words: what an index that has to be made anew after each edit would take."""
    rows = index._store.rows_of(
        "SELECT f.path, c.kind, c.qualified_name, c.docstring, c.code FROM chunks c JOIN files f ON f.id = c.id >> 20"
    )
    texts = ["\n".join((path, "" if kind == "window" else name, doc, code)) for path, kind, name, doc, code in rows]
    words = [words_of(text) for text in texts]
    numbers = {word: number for number, word in enumerate(dict.fromkeys(word for found in words for word in found))}
    tokens = bm25s.tokenization.Tokenized([[numbers[word] for word in found] for found in words], numbers)
    peer = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    build = [timed(partial(peer.index, tokens, show_progress=False)) for _ in range(min(repeats, 3))]
    asked = [[numbers[word] for word in words_of(query) if word in numbers] for query in queries]
    return {
        REBUILD: build,
        THEIR_QUERY: [timed(partial(_their_best, peer, ids)) for ids in asked if ids],
    }


def _their_best(peer: bm25s.BM25, ids: list[int]) -> np.ndarray:
    return np.argpartition(peer.get_scores_from_ids(ids), -50)


def run_code_search_speed(*, repeats: int = 5, queries: int = 200, processes: int = 0) -> Report:
    """Measure, save, show."""
    with copied_library() as root:
        found: dict[str, list[float]] = {}
        found[BUILD], folder = _build(root, repeats, processes)
        with CodeIndex.open(root, folder=folder) as index:
            asked = queries_of(index, queries)
            found[EDIT], found[UNCHANGED] = _edit(index, root, repeats)
            texts = [text for (text,) in index._store.rows_of("SELECT code FROM chunks ORDER BY id")]
            encoder = static_table(texts)
            table = encoder.save(root.parent / "table")
            index.encoder = encoder
            found[EMBED] = [timed(index.embed)]
            modes: dict[str, Mode] = {LEXICAL: "lexical", DENSE: "dense", HYBRID: "hybrid"}
            for mode in modes.values():
                index.search("a first one", mode=mode)
            for query in asked:  # in turns; each mode meets a query whose vector is not remembered
                for name, mode in modes.items():
                    index._queries.clear()
                    found.setdefault(name, []).append(timed(partial(index.search, query, mode=mode, refresh=False)))
            found[VECTOR] = [timed(partial(encoder.encode_queries, [query])) for query in asked]
            found |= _peer(index, asked, repeats)
            status = index.status()
        command = [sys.executable, "-c", _COLD, str(root), str(folder)]
        found[COLD] = [timed(partial(subprocess.run, command, check=True)) for _ in range(repeats + 1)][1:]
        command = [*command, str(table)]
        found[COLD_STATIC] = [timed(partial(subprocess.run, command, check=True)) for _ in range(repeats + 1)][1:]
    rows = [
        Row(
            name=name,
            values={
                "ms (median)": median(values),
                "IQR": spread(values) if len(values) > 1 else None,
                "bar, ms": BARS.get(name),
                "within": None if name not in BARS else "yes" if median(values) < BARS[name] else "no",
            },
        )
        for name, values in sorted(found.items(), key=lambda item: list(_ORDER).index(item[0]))
    ]
    report = Report(
        benchmark="code_search_speed",
        command="uv run mc-benchmark code-search-speed",
        question=f"Code search over {status.files:,} files, {status.chunks:,} pieces of code",
        settings={
            "repeats": repeats,
            "queries": queries,
            "processes": processes,
            "dim": _DIM,
            "vectors": IndexConfig().vectors,
            "megabytes": status.bytes / 1e6,
        },
        environment=environment(),
        columns=["ms (median)", "IQR", "bar, ms", "within"],
        rows=rows,
        reading="The refresh after an edit includes the query that finds it; a query without one finds, ranks and reads the lines "
        "that it shows. bm25s cannot change one text of its index, so that an edit there costs the whole of the row above its "
        "query, after all files are parsed again; its query only finds the 50 best.",
    )
    report.save()
    report.show()
    return report


_ORDER = (
    BUILD,
    EDIT,
    UNCHANGED,
    LEXICAL,
    DENSE,
    HYBRID,
    VECTOR,
    EMBED,
    COLD,
    COLD_STATIC,
    REBUILD,
    THEIR_QUERY,
)
