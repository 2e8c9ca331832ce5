"""README tables from saved results: what stands between ``<!-- benchmark: NAME -->`` and ``<!-- end -->`` is generated."""

from __future__ import annotations

import re
from pathlib import Path

from mc_benchmarks.contract import RESULTS, load_report
from mc_core.errors import DataError
from mc_core.files import write_atomic

_BLOCK = re.compile(r"(<!-- benchmark: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_WORKSPACE = RESULTS.parents[2]


def with_tables(text: str) -> str:
    """The text with each marked table made anew."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}{load_report(match['name']).markdown()}\n{match[3]}"

    return _BLOCK.sub(table, text)


def run_tables(files: list[Path], *, check: bool) -> None:
    """Rewrite, or compare."""
    for path in files or [_WORKSPACE / "README.md", *sorted(_WORKSPACE.glob("*/*/README.md"))]:
        text = path.read_text(encoding="utf-8")
        fresh = with_tables(text)
        if fresh != text and check:
            raise DataError(f"{path}: a table is not what the results say; run `uv run mc-benchmark tables`")
        if fresh != text:
            write_atomic(path, fresh)
            print(path)
