"""How much memory does it take to index a large tree of source code, to embed it by a static table, and to ask it something?"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mc_benchmarks.code_search_speed import static_table
from mc_benchmarks.contract import Report, Row, environment
from mc_core.errors import DataError, RunError
from mc_core.pool import available_processes
from mc_text_code.source.files import Skipped, SourceFile, source_files
from mc_text_code.source.reading import read_source

INDEX, EMBED = "index, words", "vectors of all code, static table"
QUERY = "query from a cold process, words and static vectors"
SECONDS, PEAK, TOTAL, BAR_COLUMN, WITHIN = "seconds", "peak MiB", "with its helpers, at most", "bar, MiB", "within"
BAR = 2048.0
"""MiB that indexing may take."""
_MIB = 1 << 20
_FILES = 500  # that the tokenizer is trained on
_NAME = re.compile(r"\b[A-Za-z_]{6,}\b")
_RENAMED = 20  # one name of so many is another one in each further copy
_CHILD = """
import json, resource, sys, time
from mc_text_code.codesearch import CodeIndex
from mc_text_code.codesearch.static import StaticEncoder
what, root, folder, table, processes = sys.argv[1:]
encoder = None if what == "index" else StaticEncoder.load(table)
start = time.perf_counter()
with CodeIndex.open(root, folder=folder, encoder=encoder, processes=int(processes)) as index:
    if what == "index":
        index.refresh()
    elif what == "embed":
        index.embed()
    else:
        assert len(index.search("parse command line arguments", refresh=False))
seconds = time.perf_counter() - start
unit = 1 if sys.platform == "darwin" else 1024
own, helper = (unit * resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
if sys.platform == "linux":  # there, the former counts what the parent had before this program began
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    own = 1024 * int(status["VmHWM"].split()[0])
print(json.dumps({"seconds": seconds, "own": own, "helper": helper}))
"""


def large_tree(folder: Path, source: Path, lines: int) -> tuple[int, int, int]:
    """Copies of source files, the names in further copies changed here and there, until there are so many lines.

    Args:
        folder: to write into.
        source: folder of source code.
        lines: wanted.

    Returns:
        Files and lines written, and how many copies were begun.

    Raises:
        DataError: no source code there.
    """
    files = source_files(source, use_git=False).files
    written = found = copy = 0
    while found < lines:
        before = found
        for path, text in _read(files):
            if found >= lines:
                break
            target = folder / f"copy_{copy}" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_renamed(text, copy).encode("utf-8", "surrogateescape"))
            written += 1
            found += text.count("\n")
        if found == before:
            raise DataError(f"{source} holds no source code; name a folder with some")
        copy += 1
    return written, found, copy


def _read(files: list[SourceFile]) -> Iterator[tuple[str, str]]:
    for file in files:
        text = read_source(file)
        if not isinstance(text, Skipped):
            yield file.path, text.source.decode("utf-8", "surrogateescape")


def _renamed(text: str, copy: int) -> str:
    if not copy:
        return text

    def other(match: re.Match[str]) -> str:
        name = match[0]
        return f"{name}_v{copy}" if zlib.crc32(f"{copy}{name}".encode()) % _RENAMED == 0 else name

    return _NAME.sub(other, text)


def run_code_index_memory(*, lines: int = 2_000_000, source: Path | None = None, processes: int = 0) -> Report:
    """Measure, save, show.

    Args:
        lines: of source code.
        source: folder that it is made from; default: the installed packages.
        processes: that parse; 0 for all.
    """
    with tempfile.TemporaryDirectory() as work:
        root, index, table = Path(work) / "tree", Path(work) / "index", Path(work) / "table"
        root.mkdir()
        files, found, copies = large_tree(root, source or Path(sysconfig.get_paths()["purelib"]), lines)
        texts = [text for _, text in islice(_read(source_files(root, use_git=False).files), _FILES)]
        static_table(texts).save(table)
        helpers = 0 if processes == 1 else processes or available_processes()
        rows = []
        for what, name in (("index", INDEX), ("embed", EMBED), ("query", QUERY)):
            told = _child(what, root, index, table, processes)
            total = (told["own"] + helpers * told["helper"]) / _MIB
            barred = what == "index"
            rows.append(
                Row(
                    name=name,
                    values={
                        SECONDS: told["seconds"],
                        PEAK: told["own"] / _MIB,
                        TOTAL: total,
                        BAR_COLUMN: BAR if barred else None,
                        WITHIN: ("yes" if total < BAR else "no") if barred else None,
                    },
                )
            )
        size = sum(path.stat().st_size for path in index.rglob("*") if path.is_file())
    report = Report(
        benchmark="code_index_memory",
        command="uv run mc-benchmark code-index-memory"
        + (f" --lines {lines}" if lines != 2_000_000 else "")
        + (f" --processes {processes}" if processes else ""),
        question=f"Memory of code search over {found:,} lines in {files:,} files",
        settings={"lines": found, "files": files, "processes": processes, "megabytes": size / 1e6},
        environment=environment(),
        columns=[SECONDS, PEAK, TOTAL, BAR_COLUMN, WITHIN],
        rows=rows,
        reading=f"{found:,} lines of {'installed packages' if source is None else source.name} in {files:,} files"
        + (f", copied {copies} times with some names changed" if copies > 1 else "")
        + f"; the index has {size / 1e6:,.0f} MB on disk. Peaks are of resident memory"
        + (
            f"; of the {helpers} helpers, which parse, each counts as the largest"
            if helpers
            else "; one process parses and writes"
        )
        + ".",
    )
    report.save()
    report.show()
    return report


def _child(what: str, root: Path, index: Path, table: Path, processes: int) -> dict[str, float]:
    command = [sys.executable, "-c", _CHILD, what, str(root), str(index), str(table), str(processes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"{what}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)
