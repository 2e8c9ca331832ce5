"""Dates and times of files as UTC seconds since 1970."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from mc_wearables.data.config import ReadOptions

_OFFSET = re.compile(r"\s*([+-]\d\d):?(\d\d)$")


def civil_seconds(moment: datetime, options: ReadOptions) -> float | None:
    """UTC seconds of a local time: by its own zone, by ``timezone``, or unknown.

    >>> civil_seconds(datetime(2024, 7, 1, 12), ReadOptions(signal="ppg", timezone="Europe/Berlin"))
    1719828000.0
    """
    if moment.tzinfo is None:
        if options.timezone is None:
            return None
        moment = moment.replace(tzinfo=ZoneInfo(options.timezone))
    return moment.timestamp()


def parse_moment(text: str) -> datetime | None:
    """An ISO date and time, with or without a zone, as phones and clouds write it; None if it is none.

    >>> parse_moment("2021-03-01 10:11:12 +0100").utcoffset().total_seconds(), parse_moment("soon")
    (3600.0, None)
    """
    plain = _OFFSET.sub(r"\1:\2", text.strip()) if ":" in text else text.strip()
    plain = re.sub(r"(\.\d{6})\d+", r"\1", plain)
    try:
        return datetime.fromisoformat(plain)
    except ValueError:
        return None


def utc(seconds: float) -> str:
    """For messages.

    >>> utc(0)
    '1970-01-01 00:00:00 UTC'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
