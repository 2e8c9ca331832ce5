"""WFDB records (PhysioNet): a header ``.hea``, its signal files, and the rhythms of its reference annotations ``.atr``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.errors import DataError, McError
from mc_core.optional import require
from mc_wearables.data.clock import civil_seconds
from mc_wearables.data.config import ReadOptions
from mc_wearables.data.recording import Origin, Recording, Span, agreed_rate, pick_channels, scale_to_units

_COMMENT = re.compile(r"^\s*<?([A-Za-z][A-Za-z _]{0,30}?)>?\s*:\s*(\S.*)$")
_ANGLED = re.compile(r"<([A-Za-z][A-Za-z _]{0,30})>:\s*([^<]*\S)")
_KEPT = ("age", "sex", "gender")
RHYTHM = "rhythm"
"""Label of the rhythms in the annotations."""


def signal_files(header: Path) -> list[Path]:
    """The files a header names, itself first; for a record of several segments also their headers and files.

    Raises:
        DataError: the header cannot be read, or names a file that is not there.
    """
    lines = _lines(header)
    fields = lines[0].split()
    found = [header]
    if "/" in fields[0]:
        for line in lines[1:]:
            if (segment := line.split()[0]) != "~":
                found += signal_files(header.with_name(segment + ".hea"))
    else:
        count = int(fields[1]) if len(fields) > 1 and fields[1].isdigit() else 0
        found += [header.with_name(name) for name in dict.fromkeys(line.split()[0] for line in lines[1 : count + 1])]
    for file in found[1:]:
        if file.name != "~" and not file.is_file():
            raise DataError(f"{header} names {file.name}, which is not beside it")
    return list(dict.fromkeys(file for file in found if file.name != "~"))


def segment_headers(header: Path) -> set[Path]:
    """Headers that belong to this one, if it is a record of several segments."""
    try:
        return {file for file in signal_files(header)[1:] if file.suffix == ".hea"}
    except McError:
        return set()


def read_wfdb(header: Path, origin: Origin, options: ReadOptions) -> Iterator[Recording]:
    """The one recording of a record, with the channels wanted.

    Age and sex are read from the comments, the rhythm over time from the reference annotations beside the header (``(AFIB`` at a
    sample holds until the next rhythm). A base time is local, so it counts only with ``timezone``.

    Raises:
        DataError: the record is cut off or damaged, or lacks the channels.
        ConfigError: its rate, units or participant are unknown.
        MissingDependencyError: wfdb is not installed.
    """
    wfdb = require("wfdb", extra="mc-wearables[wfdb]", purpose="read WFDB records")
    where = origin.name
    signal_files(header)
    record = str(header.with_suffix(""))
    first = _lines(header)[0].split()
    stated = first[2].split("/")[0].split("(")[0] if len(first) > 2 else None
    if stated is not None and not float(stated or 0) > 0:
        agreed_rate(float(stated or 0), options, where)
    try:
        head = wfdb.rdheader(record, rd_segments=True)
        names = list(head.sig_name or [])
        chosen = pick_channels(names, options, where, alone=True)
        data = _read(wfdb, record, chosen, head)
    except McError:
        raise
    except Exception as error:  # wfdb raises whatever the damage leads to
        raise DataError(f"{where}: cannot be read, probably cut off or damaged ({_first_line(error)})") from error
    frames = [head.samps_per_frame[i] if head.samps_per_frame else 1 for i in chosen]
    if len(set(frames)) > 1:
        rates = ", ".join(f"{names[i]} {head.fs * n:g} Hz" for i, n in zip(chosen, frames, strict=True))
        raise DataError(f"{where}: channels of several rates ({rates}); choose those of one rate with --channels")
    fs = agreed_rate(float(head.fs) * frames[0] if stated else None, options, where)
    scales = [scale_to_units(options.signal, units, options, where) for units in data.units]
    signal = np.stack([column * scale for column, (scale, _) in zip(data.signals, scales, strict=True)])
    start = head.base_datetime
    notes = {"no_timezone": 1} if start is not None and options.timezone is None else {}
    try:
        rhythms = _rhythms(wfdb, header, float(head.fs or fs), signal.shape[1] / fs, options)
    except Exception:  # as above; damaged annotations do not cost the signal
        rhythms, notes = (), notes | {"annotations_unreadable": 1}
    yield Recording(
        signal=signal.astype(np.float32),
        sampling_rate=fs,
        participant=origin.participant(options, None),
        kind=options.signal,
        channels=tuple(names[i] for i in chosen),
        units=scales[0][1],
        start=civil_seconds(start, options) if start is not None else None,
        device=options.device or "unknown",
        session=origin.session(options),
        labels=origin.labels(options, _comments(head.comments or [])),
        changing={RHYTHM: rhythms} if rhythms else {},
        source=where,
        notes=notes,
    )


def annotation_file(header: Path) -> Path:
    """Where the reference annotations of a record lie, if it has any."""
    return header.with_suffix(".atr")


def _rhythms(wfdb: Any, header: Path, frame_rate: float, seconds: float, options: ReadOptions) -> tuple[Span, ...]:
    """The rhythms marked in the annotations, each until the next one."""
    unwanted = options.labels is not None and RHYTHM not in options.labels
    if unwanted or not annotation_file(header).is_file():
        return ()
    found = wfdb.rdann(str(header.with_suffix("")), "atr")
    rate = float(found.fs or frame_rate)
    # other notes share the field: signal quality, missed beats
    marks = [
        (sample / rate, note.strip("\x00 ")[1:])
        for sample, note in zip(found.sample, found.aux_note, strict=True)
        if note.startswith("(") and note.strip("\x00 (")
    ]
    begins = [*(begin for begin, _ in marks), seconds]
    return tuple(
        Span(float(begin), float(end), text)
        for (begin, text), end in zip(marks, begins[1:], strict=True)
        if end > begin
    )


class _Data:
    def __init__(self, signals: list[np.ndarray], units: list[str]) -> None:
        self.signals, self.units = signals, units


def _read(wfdb: Any, record: str, chosen: list[int], head: Any) -> _Data:
    if type(head).__name__ == "MultiRecord":
        data = wfdb.rdrecord(record, channels=chosen, m2s=True)
        return _Data(list(data.p_signal.T), list(data.units))
    data = wfdb.rdrecord(record, channels=chosen, smooth_frames=False, return_res=64)
    return _Data([np.asarray(column, dtype=np.float64) for column in data.e_p_signal], list(data.units))


def _comments(comments: list[str]) -> dict[str, str]:
    """What is said of age and sex; everything else may be a history or a name."""
    found: dict[str, str] = {}
    for line in comments:
        pairs = _ANGLED.findall(line) or ([match.groups()] if (match := _COMMENT.match(line)) else [])
        found |= {key.strip().lower(): value.strip() for key, value in pairs}
    return {"sex" if key == "gender" else key: found[key] for key in _KEPT if key in found}


def _lines(header: Path) -> list[str]:
    try:
        text = header.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{header}: cannot be read ({error.strerror})") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise DataError(f"{header} is empty: not a WFDB header")
    return lines


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
