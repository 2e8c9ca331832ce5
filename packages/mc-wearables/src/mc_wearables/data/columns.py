"""Columns of tables: which one is time, numbers as NumPy arrays, time stamps as seconds.

Legend: T samples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_wearables.data.clock import parse_moment
from mc_wearables.data.config import ReadOptions

_TIME_NAMES = ("time", "t", "timestamp", "timestamps", "datetime", "date_time", "date", "elapsed", "timer")
_TIME_UNIT = re.compile(
    r"^(?:time|timestamp|t|elapsed|unix)?[ _]*[(\[]?(s|sec|secs|seconds|ms|msec|milliseconds|us|µs|ns)[)\]]?$",
    re.IGNORECASE,
)
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_SET_BACK = 2.0  # seconds; other jumps back are not the end of summer time, and stay
_EPOCH = 5e8  # seconds; later stamps count from 1970 and not from the start of the recording


def time_column(names: Sequence[str], options: ReadOptions) -> tuple[str | None, str | None]:
    """The column of time stamps, and the unit its name tells."""
    if options.time_column is not None:
        wanted = options.time_column
        if wanted not in names and wanted.isdigit() and 1 <= int(wanted) <= len(names):
            wanted = names[int(wanted) - 1]
        if wanted not in names:
            raise ConfigError(f"no time column {wanted!r}; there are {', '.join(map(repr, names))}")
        found = wanted
    else:
        found = next(
            (
                n
                for n in names
                if n.lower() in _TIME_NAMES or (_TIME_UNIT.match(n) and n.lower() not in ("s", "us", "ns"))
            ),
            None,
        )
    if found is None:
        return None, None
    unit = _TIME_UNIT.match(found)
    told = {"m": "ms", "u": "us", "µ": "us", "n": "ns", "s": "s"}[unit[1].lower()[0]] if unit else None
    if told and options.time_unit and told != options.time_unit:
        raise ConfigError(f"column {found!r} says {told}, but --time-unit says {options.time_unit}: leave it out")
    return found, told or options.time_unit


def to_seconds(times: np.ndarray, unit: str | None, fs: float | None, where: str) -> tuple[np.ndarray, bool]:
    """Seconds, and whether they count from 1970. A unit that is not told may be proven by the sampling rate."""
    if unit is None and fs is not None:
        steps = np.diff(times)
        typical = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
        unit = next((name for name, size in _SECONDS.items() if typical and abs(typical * size * fs - 1) < 0.3), None)
    if unit is None:
        raise ConfigError(f"{where}: the time stamps do not say their unit: give --time-unit s, ms, us or ns")
    seconds = times * _SECONDS[unit]
    return seconds, bool(len(seconds) and np.nanmin(seconds) > _EPOCH)


def numbers(column: Any, name: str, where: str, first_row: int) -> np.ndarray:
    """(T,) float64, NaN for empty cells."""
    import pyarrow as pa

    try:
        return column.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        for row, cell in enumerate(column.to_pylist()):
            try:
                float("nan" if cell is None else cell)
            except (TypeError, ValueError):
                line = row + first_row
                raise DataError(f"{where}, line {line}: {str(cell)[:40]!r} in column {name!r} is no number") from None
        return np.array([np.nan if cell is None else float(cell) for cell in column.to_pylist()])


def stamps(column: Any, name: str, where: str, first_row: int, zone: str | None) -> tuple[np.ndarray, bool, bool]:
    """Numbers as they are, dates as seconds since 1970; whether they are local without a zone, whether they are UTC."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        cells = column.to_pylist()
        moments = [parse_moment(cell or "") for cell in cells]
        if moments and moments[0] is None and _is_number(cells[0]):
            return numbers(column, name, where, first_row), False, False  # says which cell is none
        if (bad := next((i for i, moment in enumerate(moments) if moment is None), None)) is not None:
            raise DataError(
                f"{where}, line {bad + first_row}: {column[bad].as_py()!r} in column {name!r} is no date and time"
            )
        zones = [moment is not None and moment.tzinfo is not None for moment in moments]
        zoned = bool(zones) and zones[0]
        if zones.count(zoned) < len(zones):
            other = zones.index(not zoned)
            raise DataError(
                f"{where}, line {other + first_row}: {column[other].as_py()!r} in column {name!r} has "
                f"{'no' if zoned else 'a'} time zone, those before have {'one' if zoned else 'none'}"
            )
        column = pa.chunked_array([pa.array(moments, pa.timestamp("us", "UTC" if zoned else None))])
        kind = column.type
    if not pa.types.is_timestamp(kind):
        return numbers(column, name, where, first_row), False, False
    if kind.tz is not None or not zone:
        return _since_1970(column), kind.tz is None, kind.tz is not None
    first, second = (
        _since_1970(
            pc.call_function(
                "assume_timezone", [column], pc.AssumeTimezoneOptions(zone, ambiguous=choice, nonexistent="latest")
            )
        )
        for choice in ("earliest", "latest")
    )
    return _in_order(first, second), False, True


def _since_1970(column: Any) -> np.ndarray:
    """(T,) seconds of time stamps, NaN for empty cells."""
    import pyarrow as pa

    whole = column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64())
    return whole.to_numpy() / 1e9 if not whole.null_count else whole.cast(pa.float64()).to_numpy() / 1e9


def _in_order(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of two readings of each stamp, the first; in the hour that a clock shows twice, the second once it was set back.

    >>> _in_order(np.array([1.0, 3599, 0, 9, 7200]), np.array([3601.0, 7199, 3600, 3609, 7200])).tolist()
    [1.0, 3599.0, 3600.0, 3609.0, 7200.0]
    """
    twice = second > first
    set_back = twice & (np.abs(np.diff(first, prepend=np.nan) + (second - first)) < _SET_BACK)
    place = np.arange(1, len(first) + 1)
    hour_began = np.maximum.accumulate(np.where(twice, 0, place))
    last_set_back = np.maximum.accumulate(np.where(set_back, place, 0))
    return np.where(twice & (last_set_back > hour_began), second, first)


def _is_number(cell: str | None) -> bool:
    try:
        float(cell or "")
    except ValueError:
        return False
    return True
