"""Recordings from tables with one row for each: Parquet with lists of samples, and npz.

Legend: N recordings, C channels, T samples.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mc_core.errors import DataError, McError
from mc_wearables.data.columns import time_column
from mc_wearables.data.config import ReadOptions
from mc_wearables.data.recording import Origin, Recording, pick_channels
from mc_wearables.data.table_cells import TableFile, recordings_of

if TYPE_CHECKING:
    import pyarrow as pa

_WAVE_NAMES = ("signal", "waveform", "wave", "values", "samples")


def is_numbers(kind: pa.DataType) -> bool:
    """Whether a cell of this type is a list of numbers."""
    import pyarrow as pa

    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    return pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)


def unique_texts(file: Any, schema: pa.Schema, lists: Sequence[str]) -> set[str]:
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
class RowColumns:
    """Which columns of a table with one row per recording are what."""

    waves: list[str]
    time: str | None
    time_unit: str | None

    @classmethod
    def of(cls, names: Sequence[str], lists: Sequence[str], origin: Origin, options: ReadOptions) -> RowColumns:
        time, unit = time_column(lists, options)
        rest = [name for name in lists if name != time]
        plain = next((name for name in rest if name.lower() in _WAVE_NAMES), None)
        waves = (
            [plain]
            if plain and not options.channels
            else [rest[i] for i in pick_channels(rest, options, origin.name, alone=True)]
        )
        return cls(waves, time, unit)


def rows_of(
    batch: Any, columns: RowColumns, file: TableFile, first: int, hidden: set[str]
) -> Iterator[Recording | McError]:
    """The recordings of a batch of rows, ``first`` rows into the file; labels are not taken from the ``hidden`` columns."""
    slices = {
        name: _slices(batch.column(batch.schema.get_field_index(name)))
        for name in [*columns.waves, *([columns.time] if columns.time else [])]
    }
    scalars = [f.name for f in batch.schema if not is_numbers(f.type)]
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
            yield from recordings_of(
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


def read_npz(path: Path, origin: Origin, options: ReadOptions) -> Iterator[Recording | McError]:
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
            yield from recordings_of(
                values, names, None, None, facts, TableFile(origin, options), where, str(i + 1), set()
            )
        except McError as error:
            yield error
