"""From files to a segment store: incremental, restartable, and one bad file does not cost the cohort."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError, McError
from mc_wearables.data.config import IngestOptions, ReadOptions
from mc_wearables.data.opening import Source, list_sources
from mc_wearables.data.privacy import Salt, redact
from mc_wearables.data.recording import Label, Recording, value_within
from mc_wearables.data.segmenter import REASONS, Cut, cut_segments
from mc_wearables.data.store_writer import StoreWriter

Progress = Callable[[int, int, str], None]
"""Called before each file with how many are done, how many there are, and its name."""

_COMMIT_BYTES = 256 << 20
_COMMIT_SECONDS = 20.0


@dataclass
class IngestReport:
    """What an ingest did.

    Attributes:
        files: found.
        read: files read now.
        skipped: files that the store already had.
        duplicates: files with the same content as another.
        failed: files from which nothing could be read.
        recordings: read now.
        hours: of signal read now, holes included.
        kept: segments added.
        rejected: stretches that became no segment, by reason (``mc_wearables.data.segmenter.REASONS``).
        rejected_hours: their length.
        participants: with at least one new segment.
        notes: what was seen while reading, counted: gaps, clock jumps, files cut off, dates without a time zone, ….
        problems: lines about recordings and files that could not be used, and how often each was said. They name files: for the
            screen, never stored.
        reasons: the same lines, those that differ only in the file and in numbers together.
        store_segments: in the store afterwards.
    """

    files: int = 0
    read: int = 0
    skipped: int = 0
    duplicates: int = 0
    failed: int = 0
    recordings: int = 0
    hours: float = 0.0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    rejected_hours: float = 0.0
    participants: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    store_segments: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the problems are counted, because their text names files and people."""
        named = ("problems", "reasons")
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in named}
        return fields | {
            "hours": round(self.hours, 4),
            "rejected_hours": round(self.rejected_hours, 4),
            "rejected": dict(self.rejected.most_common()),
            "notes": dict(self.notes.most_common()),
            "problems": self.problems.total(),
        }

    def add_problem(self, source: str, error: McError) -> None:
        """Count what was wrong with a file, or a part of it."""
        line = str(error)
        self.problems[line] += 1
        alike = self.reasons.setdefault(re.sub(r"[0-9][0-9.,]*", "#", line.replace(source, "…")), [])
        if self.problems[line] == 1:
            alike.append(line)

    def advice(self) -> list[str]:
        """Lines about what was counted and what could be done."""
        lines = [f"{count:,} × {reason}: {REASONS[reason]}" for reason, count in self.rejected.most_common()]
        told = {
            "no_timezone": "start times without a time zone are kept as unknown; --timezone Europe/Berlin would tell",
            "cut_off": "files or rows are cut off; what was whole was read",
            "clock_backwards": "jumps of the clock back in time; the recording was split there",
            "daylight_saving": "jumps by one hour; --timezone would remove those of daylight saving",
            "duplicate_times": "samples share a time stamp",
            "label_changes": "segments in which a label changes, or is not marked; they have none",
            "annotations_unreadable": "files of annotations cannot be read; their records have no rhythm",
            "gaps": "gaps",
        }
        for note, count in self.notes.most_common():
            changes = f"{note} within a recording; a label belongs to a whole one, and this is none"
            text = told.get(note, changes if note.startswith("column ") else note.replace("_", " "))
            lines.append(f"{count:,} × {text}")
        return lines


def ingest(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    options: IngestOptions,
    *,
    progress: Progress | None = None,
) -> IngestReport:
    """Read files and folders into the segment store ``out``, which is made or added to.

    A file that the store already has, read with the same options, is skipped; a changed one is read again and replaces its former
    segments. Participants become salted hashes (see :mod:`mc_wearables.data.privacy`). Segments of low quality are kept with
    their scores.

    Args:
        paths: files and folders; see ``mc_wearables.data.opening.UNDERSTOOD``.
        out: folder of the store. Its salt is written beside it, as ``OUT.salt``.
        options: how to read and cut.
        progress: called before each file.

    Returns:
        Counts of what was read, kept and rejected, and a line for each problem.

    Raises:
        DataError: nothing to read, or nothing could be read (the first reason), or not one segment came out.
        ConfigError: the store was made with other settings.
    """
    named = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not named:
        raise ConfigError("no records named: give files or folders")
    sources = [(Path(path), source) for path in named for source in list_sources(path)]
    report = IngestReport(files=len(sources))
    folder = Path(out).expanduser()
    people: set[str] = set()
    first: McError | None = None
    longest = 0.0
    with StoreWriter(folder, options.geometry()) as writer:
        made, ok = writer.is_new, False
        try:
            reading = _reading_key(options, writer.salt)
            known = _Known(writer.manifest["files"])
            committed = time.monotonic()
            for number, (root, source) in enumerate(sources):
                if progress is not None:
                    progress(number, len(sources), source.name)
                try:
                    entry = _entry(root, source, reading, writer.salt)
                    old = known.find(entry)
                except OSError as error:
                    failure = DataError(f"{source.name}: cannot be read ({error.strerror or error})")
                    report.failed += 1
                    report.add_problem(source.name, failure)
                    first = first or failure
                    continue
                if old == "same":
                    report.skipped += 1
                    continue
                if old == "duplicate":
                    report.duplicates += 1
                    continue
                if old is not None:
                    writer.commit()
                    writer.drop({old})
                    known = _Known(writer.manifest["files"])
                problem, seconds = _ingest_source(source, entry, writer, options, report, people)
                first, longest = first or problem, max(longest, seconds)
                known.add(entry)
                if writer.pending_bytes > _COMMIT_BYTES or time.monotonic() - committed > _COMMIT_SECONDS:
                    writer.commit()
                    committed = time.monotonic()
            report.participants = len(people)
            _check_outcome(report, first, longest, options, made)
            writer.finish()
            ok = True
        finally:
            report.store_segments = writer.manifest["rows"]
            if made and not ok and not writer.manifest["files"]:
                writer.discard()
    return report


def _check_outcome(
    report: IngestReport, first: McError | None, longest: float, options: IngestOptions, made: bool
) -> None:
    """An ingest that leaves an empty store is an error, whose text is the most likely reason."""
    if report.recordings == 0 and first is not None and report.skipped == 0:
        more = f" (and {others} more)" if (others := len(report.problems) - 1) else ""
        raise type(first)(f"{first}{more}")
    if made and report.kept == 0:
        reasons = (
            "; ".join(f"{count} × {REASONS[reason]}" for reason, count in report.rejected.most_common(3))
            or "no recordings"
        )
        shorter = (
            f"; the longest has {longest:.3g} s, the segments {options.segment_seconds:g} s: give fewer with --seconds"
            if longest < options.segment_seconds
            else ""
        )
        raise DataError(f"not one segment came out of {report.files} files: {reasons}{shorter}")


def _ingest_source(
    source: Source,
    entry: dict[str, Any],
    writer: StoreWriter,
    options: IngestOptions,
    report: IngestReport,
    people: set[str],
) -> tuple[McError | None, float]:
    """Read one file into the writer; its first problem, and the length of its longest recording."""
    salt, first, longest = writer.salt, None, 0.0
    raw_ids: set[str] = set()
    recordings = kept = problems = 0
    reasons: Counter[str] = Counter()
    for item in source.read(options):
        try:
            if isinstance(item, McError):
                raise item
            cut = cut_segments(item, options)
            if len(cut.signals):
                writer.check_channels(len(item.channels), item.source)
        except McError as error:
            first = first or error
            problems += 1
            report.add_problem(source.name, error)
            continue
        raw_ids.add(item.participant)
        labels = _labels(item, cut, options)
        if open_ones := sum(column.count(None) for column in labels.values() if isinstance(column, list)):
            report.notes["label_changes"] += open_ones
        _add(item, cut, labels, entry["source"], recordings, writer, options)
        recordings += 1
        kept += len(cut.signals)
        longest = max(longest, item.seconds)
        reasons.update(rejection.reason for rejection in cut.rejected)
        report.hours += item.seconds / 3600
        report.rejected_hours += sum(rejection.seconds for rejection in cut.rejected) / 3600
        report.notes.update(item.notes)
        if len(cut.signals):
            people.add(salt.participant(item.participant))
    if not recordings:
        report.failed += 1
        if first is None:
            first = DataError(f"{source.name} holds no recordings")
            report.add_problem(source.name, first)
        return first, longest
    entry |= {
        "name": redact(source.name, raw_ids, salt),
        "recordings": recordings,
        "segments": kept,
        "rejected": dict(reasons),
        "problems": problems,
    }
    writer.add_file(entry)
    report.read += 1
    report.recordings += recordings
    report.kept += kept
    report.rejected.update(reasons)
    return first, longest


def _labels(recording: Recording, cut: Cut, options: IngestOptions) -> dict[str, Label | list[Label | None]]:
    """Labels of the segments: one value for all, or a list of one for each where it changes within the recording."""
    changing = {
        name: [value_within(spans, begin, begin + options.segment_seconds) for begin in cut.offset.tolist()]
        for name, spans in recording.changing.items()
    }
    return {**recording.labels, **changing}


def _add(
    recording: Recording,
    cut: Cut,
    labels: Mapping[str, Any],
    source: str,
    number: int,
    writer: StoreWriter,
    options: IngestOptions,
) -> None:
    salt, person = writer.salt, writer.salt.participant(recording.participant)
    start = np.nan if recording.start is None else recording.start
    if options.shift_times:
        start += salt.shift(recording.participant)
    common = {"participant": person, "source": source, "recording": number}
    writer.add_signals(
        cut.signals,
        common
        | {
            "session": salt.key("session", f"{recording.participant}\0{recording.session}"),
            "start": start + cut.offset,
            "offset": cut.offset,
            "device": recording.device,
            "channels": ",".join(recording.channels),
            "units": recording.units,
            "amplitude": cut.amplitude,
            "filled": cut.filled,
            "flat": cut.flat,
            "clipped": cut.clipped,
            "template": cut.quality.template,
            "agreement": cut.quality.agreement,
            "rate": cut.quality.rate,
            "band_power": cut.quality.band_power,
            "quality": cut.index,
            "labels": labels,
        },
    )
    writer.add_rejected(
        common | {"start": start + offset, "offset": offset, "seconds": seconds, "reason": reason}
        for offset, seconds, reason in cut.rejected
    )


def _reading_key(options: IngestOptions, salt: Salt) -> str:
    """Tells apart ways to read the same file; salted, because one of them is a participant."""
    given = {name: getattr(options, name) for name in ReadOptions.model_fields} | {"shift_times": options.shift_times}
    return salt.key("reading", json.dumps(given, sort_keys=True, default=list))


def _entry(root: Path, source: Source, reading: str, salt: Salt) -> dict[str, Any]:
    """What identifies a file: where it lies (hashed), its size and time of change, and how it is read."""
    base = root.resolve() if root.is_dir() else root.resolve().parent
    stats = [file.stat() for file in source.files]
    stamp = json.dumps([[s.st_size, s.st_mtime_ns] for s in stats] + [dict(source.facts)], sort_keys=True)
    return {
        "place": salt.key("place", str(base / source.name)),
        "stamp": salt.key("stamp", stamp),
        "reading": reading,
        "bytes": sum(s.st_size for s in stats),
        "digest": source.digest,
    }


class _Known:
    """The files that a store has."""

    def __init__(self, files: Sequence[dict[str, Any]]) -> None:
        self._places = {entry["place"]: entry for entry in files}
        self._contents = {(entry["sha256"], entry["reading"]): entry for entry in files}

    def add(self, entry: dict[str, Any]) -> None:
        if "name" in entry:
            self._places[entry["place"]] = entry
            self._contents[entry["sha256"], entry["reading"]] = entry

    def find(self, entry: dict[str, Any]) -> str | None:
        """``"same"``, ``"duplicate"``, the source key of a former version, or None for a new file; fills in the digest."""
        digest = entry.pop("digest")
        old = self._places.get(entry["place"])
        if old and (old["stamp"], old["reading"]) == (entry["stamp"], entry["reading"]):
            return "same"
        entry["sha256"] = digest()
        entry["source"] = f"{entry['sha256'][:12]}{entry['reading'][:4]}"
        if old and (old["sha256"], old["reading"]) == (entry["sha256"], entry["reading"]):
            return "same"
        if (entry["sha256"], entry["reading"]) in self._contents:
            return "duplicate"
        return old["source"] if old else None
