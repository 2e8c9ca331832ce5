"""Electrocardiograms of an Apple Health export. The export holds no raw PPG.

The files begin with a header in the phone's language, with the name and the birth date: both are passed over unread.
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mc_core.errors import ConfigError, DataError, McError
from mc_wearables.data.clock import civil_seconds, parse_moment
from mc_wearables.data.config import ReadOptions
from mc_wearables.data.recording import Origin, Recording, agreed_rate, pick_channels, scale_to_units

_HERTZ = re.compile(r"([0-9]+(?:[.,][0-9]+)?)\s*(?:hertz|hz)\b", re.IGNORECASE)
_NUMBER = re.compile(r"-?[0-9]+(?:[.,][0-9]+)?(?:[eE][+-]?[0-9]+)?\Z")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d")
_DEVICE = re.compile(r"Watch\d+,\d+\Z")
_UNIT = re.compile(r"[nuµμm]?V\Z")
# What the watch said, in the languages seen; in others the label is left out rather than taken from a wrong line.
_CLASSIFICATION = (
    "classification",
    "klassifizierung",
    "klassifikation",
    "clasificación",
    "classificazione",
    "classificação",
)
_FOLDER = "electrocardiograms/"


def is_apple_ecg(head: str) -> bool:
    """Whether the first lines of a text file are those of such an electrocardiogram."""
    return bool(_HERTZ.search(head)) and bool(re.search(r"^[^,\n]*,\s*\"?[nuµμm]?V\"?\s*$", head, re.MULTILINE))


def holds_ecgs(names: list[str]) -> bool:
    """Whether a zip file with these names is a Health export."""
    return any(_FOLDER in name or name.endswith("export.xml") for name in names)


def read_export(path: Path, origin: Origin, options: ReadOptions) -> Iterator[Recording | McError]:
    """The electrocardiograms of an ``export.zip``, one after the other; a damaged one as an error in its place.

    Raises:
        DataError: none in it, or PPG is wanted.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if _FOLDER in name and name.endswith(".csv"))
            if not names:
                raise DataError(f"{origin.name}: a Health export without electrocardiograms")
            for name in names:
                short = name.rpartition("/")[2]
                try:
                    text = archive.read(name).decode("utf-8-sig", "replace")
                    yield read_ecg_text(text, origin, options, record=short)
                except (McError, zipfile.BadZipFile) as error:
                    yield (
                        error if isinstance(error, McError) else DataError(f"{origin.name}, {short}: damaged ({error})")
                    )
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{origin.name}: not a whole zip file, probably cut off ({error})") from error


def read_ecg_file(path: Path, origin: Origin, options: ReadOptions) -> Iterator[Recording]:
    """One ``ecg_*.csv`` of an unpacked export."""
    yield read_ecg_text(path.read_text(encoding="utf-8-sig", errors="replace"), origin, options)


def read_ecg_text(text: str, origin: Origin, options: ReadOptions, *, record: str = "") -> Recording:
    """One electrocardiogram: the trailing run of numbers, and what the header says of rate, units, date and device.

    Raises:
        DataError: PPG is wanted, or no samples, or cut off in the header.
        ConfigError: rate, units or participant unknown.
    """
    where = f"{origin.name}, {record}" if record else origin.name
    if options.signal == "ppg":
        raise ConfigError(f"{where}: an Apple Health export holds electrocardiograms and no raw PPG; give --signal ecg")
    lines = text.split("\n")
    cells = [line.strip().strip('"') for line in lines]
    first = len(cells)
    while first and (not cells[first - 1] or _NUMBER.match(cells[first - 1])):
        first -= 1
    numbers = [cell.replace(",", ".") for cell in cells[first:] if cell]
    if not numbers:
        raise DataError(f"{where}: no samples after the header, probably cut off")
    rate = units = device = start = classification = None
    lead = "Lead I"
    for row in csv.reader(lines[:first]):
        if len(row) < 2:
            continue
        key, value = row[0].strip().lower(), ",".join(row[1:]).strip()
        if match := _HERTZ.match(value):
            rate = float(match[1].replace(",", "."))
        elif _UNIT.match(value):
            units = value
        elif _DEVICE.match(value):
            device = value
        elif _MOMENT.match(value):
            start = parse_moment(value)
        elif key in _CLASSIFICATION:
            classification = value
        elif key == "lead":
            lead = value
    factor, units = scale_to_units("ecg", units, options, where)
    pick_channels([lead.removeprefix("Lead ")], options, where, alone=True)
    naive = start is not None and start.tzinfo is None and options.timezone is None
    return Recording(
        signal=np.array(numbers, dtype=np.float32)[None] * np.float32(factor),
        sampling_rate=agreed_rate(rate, options, where),
        participant=origin.participant(options, None, record=record),
        kind="ecg",
        channels=(lead.removeprefix("Lead "),),
        units=units,
        start=civil_seconds(start, options) if start is not None else None,
        device=device or options.device or "Apple Watch",
        session=origin.session(options, record),
        labels=origin.labels(options, {"classification": classification}),
        source=where,
        notes={"no_timezone": 1} if naive else {},
    )
