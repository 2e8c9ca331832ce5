"""How recordings are read, cut and stored: one model, shared by commands and Python callers. Imports no torch."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from mc_core.engine.config import StrictModel
from mc_core.errors import ConfigError

Kind = Literal["ppg", "ecg"]

DEFAULT_SECONDS = {"ppg": 60.0, "ecg": 30.0}
DEFAULT_RATE = {"ppg": 64.0, "ecg": 128.0}


class ReadOptions(StrictModel):
    """What a file may not say, and which of its channels are wanted. What is read from a file wins nowhere silently: a value
    given here that contradicts the file is an error.

    >>> ReadOptions(signal="ppg", fs=64).fs
    64.0
    """

    signal: Kind
    """`ppg` (optical pulse wave) or `ecg` (one lead, or several)."""
    fs: float | None = Field(default=None, gt=0, le=1e6)
    """Samples per second, in Hz, for files that do not say."""
    units: str | None = None
    """Units of the samples for files that do not say: `V`, `mV`, `uV` or `nV` for ECG (`1000/mV` for counts), any word for PPG."""
    channels: tuple[str, ...] = ()
    """Names (or numbers from 1) of the channels wanted, in this order; default: the first of the usual names that is there."""
    participant: str | None = None
    """Whose the recordings are, when all are of one person."""
    participant_from: str | None = None
    """Where the participant is told: `folder` (first folder), `file`, `record` (each its own), `column:NAME` or
    `pattern:REGEX` with one group, searched in the file's path."""
    session: str | None = None
    """Column that says which sitting a recording belongs to; default: each recording is one."""
    time_column: str | None = None
    """Name (or number from 1) of the column of time stamps."""
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    """Unit of numeric time stamps that do not say."""
    timezone: str | None = None
    """Time zone of dates and times that do not say, such as `Europe/Berlin`; without it they are kept as unknown."""
    decimal: Literal[".", ","] | None = None
    """Decimal mark of text files; default: seen from the file."""
    labels: tuple[str, ...] | None = None
    """Columns kept as labels; default: all that can be told not to name a person. An empty list keeps none."""
    device: str | None = None
    """Name of the device for files that do not say."""

    @field_validator("participant_from")
    @classmethod
    def _participant_from(cls, value: str | None) -> str | None:
        if value is None or value in ("folder", "file", "record") or value.removeprefix("column:") not in ("", value):
            return value
        pattern = value.removeprefix("pattern:")
        if pattern == value:
            raise ValueError(f"'{value}' is none of folder, file, record, column:NAME, pattern:REGEX")
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"'{pattern}' is no regular expression ({error})") from error
        if groups != 1:
            raise ValueError(f"'{pattern}' needs one group in parentheses around the participant, it has {groups}")
        return value

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str | None) -> str | None:
        from zoneinfo import ZoneInfo

        if value is not None:
            try:
                ZoneInfo(value)
            except (KeyError, ValueError, OSError) as error:
                raise ValueError(f"'{value}' is no time zone; one is Europe/Berlin") from error
        return value

    @model_validator(mode="after")
    def _one_participant(self) -> Self:
        if self.participant is not None and self.participant_from is not None:
            raise ValueError("give participant or participant_from, not both")
        if self.participant is not None and not self.participant.strip():
            raise ValueError("participant is empty")
        return self


class IngestOptions(ReadOptions):
    """How recordings become segments. The edges of the filter, and what counts as a gap, flat or saturated, are ours (the paper
    names none); the band of the PPG is that of neurokit2's `elgendi` cleaning.

    >>> options = IngestOptions(signal="ecg")
    >>> options.segment_seconds, options.segment_rate, options.samples
    (30.0, 128.0, 3840)
    """

    seconds: float | None = Field(default=None, gt=0, le=3600)
    """Length of a segment; default 60 (PPG) or 30 (ECG), as in Abbaspourazad et al. 2024."""
    rate: float | None = Field(default=None, gt=0, le=4096)
    """Hz of the stored segments; default 64 (PPG) or 128 (ECG), as there."""
    low: float = Field(default=0.5, gt=0)
    """Lower edge of the filter in Hz."""
    high: float = Field(default=8.0, gt=0)
    """Upper edge of the filter in Hz; PPG only."""
    mains: tuple[float, ...] = (50.0, 60.0)
    """Hz of the notches against mains hum; ECG only. Both by default, so that the filter does not tell countries apart."""
    fill_seconds: float = Field(default=0.25, ge=0)
    """Holes up to this long are filled by a straight line."""
    hole_seconds: float = Field(default=1.0, ge=0)
    """Holes up to this long may stay in a segment, as zeros; no segment reaches over a longer one."""
    max_filled: float = Field(default=0.05, ge=0, lt=1)
    """A segment with a larger share of filled samples is rejected."""
    max_flat: float = Field(default=0.25, ge=0, le=1)
    """A segment with a larger share in flat lines of a second or more is rejected."""
    max_clipped: float = Field(default=0.25, ge=0, le=1)
    """A segment with a larger share at the limits of its range is rejected."""
    shift_times: bool = False
    """Move each participant's dates by whole weeks, up to about five years, so that no true date is stored."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.samples < 16:
            raise ValueError(
                f"{self.segment_seconds:g} s at {self.segment_rate:g} Hz are {self.samples} samples: give 16 or more"
            )
        if self.signal == "ppg" and self.low >= self.high:
            raise ValueError(f"low {self.low:g} Hz must lie below high {self.high:g} Hz")
        top = self.high if self.signal == "ppg" else self.low
        if 2 * top >= self.segment_rate:
            raise ValueError(f"rate {self.segment_rate:g} Hz cannot hold {top:g} Hz: give more than {2 * top:g}")
        if self.fill_seconds > self.hole_seconds:
            raise ValueError(f"fill_seconds {self.fill_seconds:g} must not exceed hole_seconds {self.hole_seconds:g}")
        return self

    @property
    def segment_seconds(self) -> float:
        """Length of a segment in seconds."""
        return self.seconds or DEFAULT_SECONDS[self.signal]

    @property
    def segment_rate(self) -> float:
        """Hz of the stored segments."""
        return self.rate or DEFAULT_RATE[self.signal]

    @property
    def samples(self) -> int:
        """T, samples of a segment."""
        return round(self.segment_seconds * self.segment_rate)

    def geometry(self) -> dict[str, Any]:
        """What all segments of one store must share."""
        own = {
            name: getattr(self, name)
            for name in IngestOptions.model_fields
            if name not in ReadOptions.model_fields and name not in ("seconds", "rate")
        }
        if self.signal == "ecg":
            del own["high"]
        else:
            del own["mains"]
        shared = {"signal": self.signal, "seconds": self.segment_seconds, "rate": self.segment_rate} | own
        return {name: list(value) if isinstance(value, tuple) else value for name, value in shared.items()}


def read_options(**given: Any) -> ReadOptions:
    """:class:`ReadOptions`, with a fault as a :class:`ConfigError` in one line.

    >>> read_options(signal="ppg", fs=0)
    Traceback (most recent call last):
    mc_core.errors.ConfigError: fs 0: Input should be greater than 0
    """
    try:
        return ReadOptions(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{name} {first['input']}: {what}" if name else what) from error
