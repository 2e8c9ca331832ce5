"""Recordings from tables: text, Parquet and npz; one row per sample, or one row per recording.

Legend: N recordings, C channels, T samples.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mc_core.errors import ConfigError, DataError, McError, closest
from mc_wearables.data.clock import civil_seconds, parse_moment
from mc_wearables.data.columns import numbers, stamps, time_column, to_seconds
from mc_wearables.data.config import ReadOptions
from mc_wearables.data.recording import (
    PARTICIPANT_NAMES,
    SESSION_NAMES,
    Origin,
    Recording,
    agreed_rate,
    pick_channels,
    scale_to_units,
    units_in_names,
)
from mc_wearables.data.text_table import read_text_table
from mc_wearables.data.timeline import Stretch, on_grid

if TYPE_CHECKING:
    import pyarrow as pa

_RATE_NAMES = ("fs", "sampling_rate", "sample_rate", "sampling_frequency", "sampling_frequency_hz", "hz", "rate_hz")
_UNIT_NAMES = ("units", "unit")
_DEVICE_NAMES = ("device", "device_name", "device_model")
_START_NAMES = ("start", "start_time", "datetime", "date_time", "timestamp")
_RECORD_NAMES = ("record", "recording", "record_id", "recording_id", "file", "filename", "file_name")
_WAVE_NAMES = ("signal", "waveform", "wave", "values", "samples")
_ROWS = 64  # recordings of a Parquet file that are in memory at once


def read_table(path: Path, origin: Origin, options: ReadOptions) -> Iterator[Recording | McError]:
    """The recordings of a CSV, TSV, text, Parquet or npz file; one that cannot be used as an error in its place.

    A column of lists makes each row a recording. Otherwise each row is a sample, and a new recording begins with every
    participant and session. Whatever else is constant in a recording becomes a label.

    Raises:
        DataError: damaged, or without a channel of the kind wanted.
        ConfigError: rate, units, unit of time or participant are unknown.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        yield from _read_npz(path, origin, options)
    elif suffix in (".parquet", ".pq"):
        yield from _read_parquet(path, origin, options)
    else:
        text = read_text_table(path, origin.name, options)
        facts = _File(origin, options, fs=text.fs, units=text.units, first_row=text.first_row, notes=text.notes)
        yield from _long(text.table, facts, named=text.named)


@dataclass(frozen=True)
class _File:
    """The file being read: what holds for all of its recordings."""

    origin: Origin
    options: ReadOptions
    fs: float | None = None
    units: str | None = None
    first_row: int = 1
    notes: Counter[str] = field(default_factory=Counter)


def _read_parquet(path: Path, origin: Origin, options: ReadOptions) -> Iterator[Recording | McError]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            schema = file.schema_arrow
            lists = [f.name for f in schema if _is_numbers(f.type)]
            if not lists:
                yield from _long(file.read(), _File(origin, options), named=True)
                return
            columns = _RowColumns.of(schema.names, lists, origin, options)
            unique = _unique_texts(file, schema, lists)
            row = 0
            for batch in file.iter_batches(batch_size=_ROWS):
                yield from _rows(batch, columns, _File(origin, options), row, unique)
                row += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{origin.name}: not a whole Parquet file, probably cut off ({str(error).splitlines()[0][:120]})"
        ) from error


def _is_numbers(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    return pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)


def _unique_texts(file: Any, schema: pa.Schema, lists: Sequence[str]) -> set[str]:
    """Text columns that are different in every row: names of records or people, no labels."""
    import pyarrow as pa

    texts = [
        f.name
        for f in schema
        if f.name not in lists and (pa.types.is_string(f.type) or pa.types.is_large_string(f.type))
    ]
    if not texts or file.metadata.num_rows < 10:
        return set()
    table = file.read(columns=texts)
    return {name for name in texts if len(table[name].unique()) == table.num_rows}


@dataclass(frozen=True)
class _RowColumns:
    """Which columns of a table with one row per recording are what."""

    waves: list[str]
    time: str | None
    time_unit: str | None

    @classmethod
    def of(cls, names: Sequence[str], lists: Sequence[str], origin: Origin, options: ReadOptions) -> _RowColumns:
        time, unit = time_column(lists, options)
        rest = [name for name in lists if name != time]
        plain = next((name for name in rest if name.lower() in _WAVE_NAMES), None)
        waves = (
            [plain]
            if plain and not options.channels
            else [rest[i] for i in pick_channels(rest, options, origin.name, alone=True)]
        )
        return cls(waves, time, unit)


def _rows(batch: Any, columns: _RowColumns, file: _File, first: int, hidden: set[str]) -> Iterator[Recording | McError]:
    slices = {
        name: _slices(batch.column(batch.schema.get_field_index(name)))
        for name in [*columns.waves, *([columns.time] if columns.time else [])]
    }
    scalars = [f.name for f in batch.schema if not _is_numbers(f.type)]
    cells = {name: batch.column(batch.schema.get_field_index(name)).to_pylist() for name in scalars}
    for i in range(batch.num_rows):
        where = f"{file.origin.name}, row {first + i + 1}"
        facts = {name: column[i] for name, column in cells.items()}
        try:
            waves = [slices[name](i) for name in columns.waves]
            if min(len(wave) for wave in waves) == 0:
                raise DataError(f"{where}: the signal is empty")
            times = slices[columns.time](i) if columns.time else None
            lengths = {len(wave) for wave in waves} | ({len(times)} if times is not None else set())
            if len(lengths) > 1:
                raise DataError(f"{where}: lists of different length ({', '.join(map(str, sorted(lengths)))} samples)")
            yield from _recordings(
                np.stack(waves),
                tuple(columns.waves),
                times,
                columns.time_unit,
                facts,
                file,
                where,
                str(first + i + 1),
                hidden,
            )
        except McError as error:
            yield error


def _slices(column: Any) -> Any:
    """Row → its numbers as float64, NaN for nulls."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    values = column.values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    ends = column.offsets.to_numpy()
    return lambda i: values[ends[i] : ends[i + 1]]


def _recordings(
    values: np.ndarray,
    names: tuple[str, ...],
    times: np.ndarray | None,
    time_unit: str | None,
    facts: Mapping[str, Any],
    file: _File,
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
    stated = next((known[name] for name in _RATE_NAMES if name in known), file.fs)
    try:
        stated = None if stated is None else float(stated)
    except ValueError:
        raise DataError(f"{where}: sampling rate {stated!r} is no number") from None
    units = next((str(known[name]) for name in _UNIT_NAMES if name in known), file.units) or units_in_names(
        names, where
    )
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
    told = next((str(known[name]) for name in _participant_columns(options) if name in known), None)
    name = next((str(known[n]) for n in _RECORD_NAMES if n in known), record)
    sitting = next(
        (str(known[n]) for n in ((options.session.lower(),) if options.session else SESSION_NAMES) if n in known), None
    )
    own = {*_RATE_NAMES, *_UNIT_NAMES, *_DEVICE_NAMES, *_START_NAMES}
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


def _participant_columns(options: ReadOptions) -> tuple[str, ...]:
    rule = options.participant_from or ""
    return (rule.removeprefix("column:").lower(),) if rule.startswith("column:") else PARTICIPANT_NAMES


def _long(table: pa.Table, file: _File, *, named: bool) -> Iterator[Recording | McError]:
    """A table with one row per sample."""
    names, where, options = table.column_names, file.origin.name, file.options
    if not table.num_rows:
        raise DataError(f"{where} holds no samples")
    time, unit = time_column(names, options) if named or options.time_column else (None, None)
    keys = _key_columns(names, options, where)
    candidates = [
        name for name in names if name not in (time, *keys) and name.lower() not in (*_RATE_NAMES, *_UNIT_NAMES)
    ]
    if not named and len(candidates) > 1 and not options.channels:
        raise ConfigError(
            f"{where}: {len(names)} columns without names; say which is the signal, as in --channels 2 (and --time-column 1)"
        )
    waves = [
        candidates[i]
        for i in pick_channels(
            candidates, options, where, alone=not named or len(names) == len(keys) + 1 + (time is not None)
        )
    ]
    if options.channels and not named:
        waves = [
            names[int(c) - 1] if c.isdigit() and int(c) <= len(names) else w
            for c, w in zip(options.channels, waves, strict=True)
        ]
    groups = _groups(table, keys)
    if (
        time is not None
        and len(groups) > 1
        and len({tuple(table[key][a].as_py() for key in keys) for a, _ in groups}) < len(groups)
    ):
        table = table.take(_sorted_by(table, keys))  # rows of several people in turn; time tells where each goes on
        groups = _groups(table, keys)
    values = np.stack([numbers(table[name], name, where, file.first_row) for name in waves])
    times, civil, zoned = None, False, False
    if time is not None:
        times, civil, zoned = stamps(table[time], time, where, file.first_row, options.timezone)
    rest = [name for name in names if name not in (*waves, time)]
    words = [name for name in rest if name in (options.labels or ()) or _is_text(table[name].type)]
    for a, b in groups:
        rows = (
            f"{where}, rows {a + file.first_row} to {b + file.first_row - 1}"
            if (a, b) != (0, table.num_rows)
            else where
        )
        facts = {name: table[name][a].as_py() for name in rest if _constant(table[name], a, b)}
        dropped = Counter(f"column {name} changes" for name in words if name not in facts)
        missing = [key for key in keys if facts.get(key) is None]
        try:
            if missing:
                raise DataError(f"{rows}: the cell {missing[0]!r} is empty")
            yield from _recordings(
                values[:, a:b],
                tuple(waves),
                None if times is None else times[a:b],
                unit,
                facts,
                replace(file, notes=file.notes + dropped),
                rows,
                str(a + 1),
                set(),
                civil=civil,
                zone_known=zoned,
            )
        except McError as error:
            yield error


def _key_columns(names: Sequence[str], options: ReadOptions, where: str) -> list[str]:
    """Columns whose change begins another recording."""
    lower = {name.lower(): name for name in names}
    rule = options.participant_from or ""
    if rule.startswith("column:") and (column := rule.removeprefix("column:")).lower() not in lower:
        raise ConfigError(f"{where}: no column {column!r}, did you mean {closest(column, names)}?")
    wanted = [
        *_participant_columns(options),
        *((options.session.lower(),) if options.session else SESSION_NAMES),
        *_RECORD_NAMES,
    ]
    return list(dict.fromkeys(lower[name] for name in wanted if name in lower))


def _key_codes(table: pa.Table, key: str) -> np.ndarray:
    codes = table[key].combine_chunks().dictionary_encode()
    return codes.indices.fill_null(-1).to_numpy(zero_copy_only=False)


def _sorted_by(table: pa.Table, keys: Sequence[str]) -> np.ndarray:
    """Rows with equal keys together, in their order."""
    return np.lexsort([_key_codes(table, key) for key in reversed(keys)])


def _groups(table: pa.Table, keys: Sequence[str]) -> list[tuple[int, int]]:
    """Stretches of rows with equal keys."""
    change = np.zeros(table.num_rows, dtype=bool)
    change[0] = True
    for key in keys:
        change[1:] |= np.diff(_key_codes(table, key)) != 0
    starts = np.flatnonzero(change)
    return list(zip(starts.tolist(), [*starts[1:].tolist(), table.num_rows], strict=True))


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _constant(column: Any, a: int, b: int) -> bool:
    return len(column.slice(a, b - a).unique()) == 1


def _read_npz(path: Path, origin: Origin, options: ReadOptions) -> Iterator[Recording | McError]:
    """Arrays ``signal`` (T,), (N, T) or (N, C, T), scalars ``fs``, ``scale``, ``units``, and (N,) columns."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{origin.name}: not a whole npz file of plain arrays ({str(error).splitlines()[0][:120]})"
        ) from error
    waves = [name for name in arrays if arrays[name].ndim >= 1 and arrays[name].dtype.kind in "iuf"]
    plain = next((name for name in (*_WAVE_NAMES, "signals", "x") if name in waves), None)
    chosen = plain if plain and plain not in options.channels else waves[pick_channels(waves, options, origin.name)[0]]
    signal = arrays[chosen]
    if signal.ndim == 1:
        signal = signal[None]
    if signal.ndim == 2:
        signal = signal[:, None]
    if signal.ndim != 3:
        raise DataError(
            f"{origin.name}: array {chosen!r} has shape {arrays[chosen].shape}; give (T,), (N, T) or (N, C, T)"
        )
    rows, channels, _ = signal.shape
    scalars = {name: array.item() for name, array in arrays.items() if array.ndim == 0}
    columns = {name: array for name, array in arrays.items() if array.shape == (rows,) and name != chosen}
    classes = arrays.get("class_names")
    if (
        classes is not None
        and "label" in columns
        and columns["label"].dtype.kind in "iu"
        and columns["label"].max(initial=0) < len(classes)
    ):
        columns["label"] = classes[columns["label"]]
    facts_of_all = {name: value for name, value in scalars.items() if name != "scale"}
    names = tuple(f"{chosen}{c + 1}" for c in range(channels)) if channels > 1 else (chosen,)
    for i in range(rows):
        where = f"{origin.name}, row {i + 1}"
        facts = facts_of_all | {name: column[i].item() for name, column in columns.items()}
        values = signal[i].astype(np.float64) * float(scalars.get("scale", 1.0))
        try:
            yield from _recordings(values, names, None, None, facts, _File(origin, options), where, str(i + 1), set())
        except McError as error:
            yield error
