"""From the samples of a table and the cells beside them to recordings: rate, units, start, participant, labels.

Legend: C channels, T samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from mc_core.errors import DataError
from mc_wearables.data.clock import civil_seconds, parse_moment
from mc_wearables.data.columns import to_seconds
from mc_wearables.data.config import ReadOptions
from mc_wearables.data.recording import (
    PARTICIPANT_NAMES,
    SESSION_NAMES,
    Origin,
    Recording,
    agreed_rate,
    scale_to_units,
    units_in_names,
)
from mc_wearables.data.timeline import Stretch, on_grid

RATE_NAMES = ("fs", "sampling_rate", "sample_rate", "sampling_frequency", "sampling_frequency_hz", "hz", "rate_hz")
UNIT_NAMES = ("units", "unit")
RECORD_NAMES = ("record", "recording", "record_id", "recording_id", "file", "filename", "file_name")
_DEVICE_NAMES = ("device", "device_name", "device_model")
_START_NAMES = ("start", "start_time", "datetime", "date_time", "timestamp")


@dataclass(frozen=True)
class TableFile:
    """The file being read: what holds for all of its recordings."""

    origin: Origin
    options: ReadOptions
    fs: float | None = None
    units: str | None = None
    first_row: int = 1
    notes: Counter[str] = field(default_factory=Counter)


def recordings_of(
    values: np.ndarray,
    names: tuple[str, ...],
    times: np.ndarray | None,
    time_unit: str | None,
    facts: Mapping[str, Any],
    file: TableFile,
    where: str,
    record: str,
    hidden: set[str],
    *,
    civil: bool = False,
    zone_known: bool = False,
) -> Iterator[Recording]:
    """Recordings of (C, T) values with the cells that belong to them; several where the clock jumps."""
    options, origin = file.options, file.origin
    known = {name.lower(): value for name, value in facts.items() if value is not None and str(value).strip()}
    stated = next((known[name] for name in RATE_NAMES if name in known), file.fs)
    try:
        stated = None if stated is None else float(stated)
    except ValueError:
        raise DataError(f"{where}: sampling rate {stated!r} is no number") from None
    units = next((str(known[name]) for name in UNIT_NAMES if name in known), file.units) or units_in_names(names, where)
    factor, units = scale_to_units(options.signal, units, options, where)
    start = None
    notes: Counter[str] = Counter(file.notes)
    if times is None:
        fs = agreed_rate(stated, options, where)
        stretches = [Stretch(0.0, values.astype(np.float32))]
        begin = next((known[name] for name in _START_NAMES if name in known), None)
        moment = begin if isinstance(begin, datetime) else parse_moment(str(begin)) if begin is not None else None
        if moment is not None:
            start = civil_seconds(moment, options)
            notes["no_timezone"] += start is None
    else:
        wanted = options.fs or (None if stated is None else agreed_rate(stated, options, where))
        seconds, epoch = (
            to_seconds(times, time_unit, wanted, where) if not (civil or zone_known) else (times, zone_known)
        )
        stretches, fs, seen = on_grid(seconds, values, fs=wanted, where=where, civil=civil)
        notes += seen
        notes["no_timezone"] += civil
        start = 0.0 if epoch else None
    told = next((str(known[name]) for name in participant_columns(options) if name in known), None)
    name = next((str(known[n]) for n in RECORD_NAMES if n in known), record)
    sitting = next(
        (str(known[n]) for n in ((options.session.lower(),) if options.session else SESSION_NAMES) if n in known), None
    )
    own = {*RATE_NAMES, *UNIT_NAMES, *_DEVICE_NAMES, *_START_NAMES}
    labels = {
        key: value
        for key, value in facts.items()
        if key.lower() not in own and (key not in hidden or key in (options.labels or ()))
    }
    device = next((str(known[n]) for n in _DEVICE_NAMES if n in known), options.device or "unknown")
    for number, stretch in enumerate(stretches):
        yield Recording(
            signal=stretch.signal * np.float32(factor),
            sampling_rate=fs,
            participant=origin.participant(options, told, record=name, columns=list(facts)),
            kind=options.signal,
            channels=names,
            units=units,
            start=None if start is None else start + stretch.start,
            device=device,
            session=origin.session(options, name, sitting),
            labels=origin.labels(options, labels),
            source=where,
            notes=+notes if number == 0 else {},
        )


def participant_columns(options: ReadOptions) -> tuple[str, ...]:
    """Names in lower case of the columns that may hold the participant."""
    rule = options.participant_from or ""
    return (rule.removeprefix("column:").lower(),) if rule.startswith("column:") else PARTICIPANT_NAMES
