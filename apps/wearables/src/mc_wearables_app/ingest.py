"""``mc-wearables ingest``: from recordings to a store of segments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mc_core.cli import Clock, print_json, print_table
from mc_core.errors import ConfigError
from mc_wearables.data.config import IngestOptions
from mc_wearables.data.ingestion import IngestReport, ingest
from mc_wearables.data.segmenter import REASONS

_ALIKE = 3
"""Files shown for each reason that others share."""
_REASONS = 20


def run_ingest(records: Sequence[str], *, out: Path, options: IngestOptions, as_json: bool) -> IngestReport:
    """Ingest, and say what became of everything."""
    if not records:
        raise ConfigError("name at least one recording or folder to ingest")
    clock = Clock()
    console = Console(stderr=True)
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)
        report = ingest(
            list(records),
            out,
            options,
            progress=lambda done, total, name: bar.update(
                task, completed=done, total=total, description=f"reading {name[-40:]}"
            ),
        )
    fields: dict[str, Any] = {"store": str(out), "seconds": round(clock.seconds(), 1), **report.as_dict()}
    if as_json:
        print_json(fields)
        return report
    rows = [
        ("files found", f"{report.files:,}"),
        ("read now", f"{report.read:,}"),
        ("already there", f"{report.skipped:,}"),
        ("same content as another", f"{report.duplicates:,}"),
        ("unusable", f"{report.failed:,}"),
        ("recordings", f"{report.recordings:,}"),
        ("hours of signal", f"{report.hours:.2f}"),
        ("participants", f"{report.participants:,}"),
        ("segments kept", f"{report.kept:,}"),
        ("segments in the store", f"{report.store_segments:,}"),
        *((f"rejected: {REASONS[reason]}", f"{count:,}") for reason, count in report.rejected.most_common()),
    ]
    print_table(
        f"{out}: {options.segment_seconds:g} s of {options.signal.upper()} at {options.segment_rate:g} Hz",
        ["", ""],
        rows,
    )
    for lines in sorted(report.reasons.values(), key=len, reverse=True)[:_REASONS]:
        for line in lines[:_ALIKE]:
            again = f" ({times:,} times)" if (times := report.problems[line]) > 1 else ""
            console.print(f"left out{again}: {line}", highlight=False, soft_wrap=True, markup=False)
        if len(lines) > _ALIKE:
            console.print(f"… and {len(lines) - _ALIKE:,} more for the same reason", highlight=False)
    if len(report.reasons) > _REASONS:
        console.print(f"… and {len(report.reasons) - _REASONS:,} other reasons", highlight=False)
    for line in report.advice():
        if line.partition(" × ")[2].partition(":")[0] not in REASONS:  # the rejected ones are in the table
            console.print(f"note: {line}", highlight=False, soft_wrap=True, markup=False)
    return report
