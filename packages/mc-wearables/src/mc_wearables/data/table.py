"""Recordings from tables: text, Parquet and npz; one row per sample, or one row per recording.

Legend: C channels, T samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mc_core.errors import ConfigError, DataError, McError, closest
from mc_wearables.data.columns import numbers, stamps, time_column
from mc_wearables.data.config import ReadOptions
from mc_wearables.data.recording import SESSION_NAMES, Origin, Recording, pick_channels
from mc_wearables.data.table_cells import (
    RATE_NAMES,
    RECORD_NAMES,
    UNIT_NAMES,
    TableFile,
    participant_columns,
    recordings_of,
)
from mc_wearables.data.table_rows import RowColumns, is_numbers, read_npz, rows_of, unique_texts
from mc_wearables.data.text_table import read_text_table

if TYPE_CHECKING:
    import pyarrow as pa

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
        yield from read_npz(path, origin, options)
    elif suffix in (".parquet", ".pq"):
        yield from _read_parquet(path, origin, options)
    else:
        text = read_text_table(path, origin.name, options)
        facts = TableFile(origin, options, fs=text.fs, units=text.units, first_row=text.first_row, notes=text.notes)
        yield from _long(text.table, facts, named=text.named)


def _read_parquet(path: Path, origin: Origin, options: ReadOptions) -> Iterator[Recording | McError]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            schema = file.schema_arrow
            lists = [f.name for f in schema if is_numbers(f.type)]
            if not lists:
                yield from _long(file.read(), TableFile(origin, options), named=True)
                return
            columns = RowColumns.of(schema.names, lists, origin, options)
            unique = unique_texts(file, schema, lists)
            row = 0
            for batch in file.iter_batches(batch_size=_ROWS):
                yield from rows_of(batch, columns, TableFile(origin, options), row, unique)
                row += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{origin.name}: not a whole Parquet file, probably cut off ({str(error).splitlines()[0][:120]})"
        ) from error


def _long(table: pa.Table, file: TableFile, *, named: bool) -> Iterator[Recording | McError]:
    """A table with one row per sample."""
    names, where, options = table.column_names, file.origin.name, file.options
    if not table.num_rows:
        raise DataError(f"{where} holds no samples")
    time, unit = time_column(names, options) if named or options.time_column else (None, None)
    keys = _key_columns(names, options, where)
    candidates = [
        name for name in names if name not in (time, *keys) and name.lower() not in (*RATE_NAMES, *UNIT_NAMES)
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
            yield from recordings_of(
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
        *participant_columns(options),
        *((options.session.lower(),) if options.session else SESSION_NAMES),
        *RECORD_NAMES,
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
