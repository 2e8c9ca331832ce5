"""EDF, EDF+ and BDF, continuous or with gaps (EDF+D), several rates in one file.

Read from the published layout (Kemp et al. 1992; Kemp & Olivan 2003) because the libraries refuse EDF+D, or close its gaps.

Legend: R data records, S samples of one signal in one record.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from mc_core.errors import DataError
from mc_wearables.data.clock import civil_seconds
from mc_wearables.data.config import ReadOptions
from mc_wearables.data.recording import Origin, Recording, agreed_rate, pick_channels, scale_to_units
from mc_wearables.data.timeline import Stretch, join

_FIXED = 256
_ANNOTATIONS = ("EDF Annotations", "BDF Annotations")
_ONSET = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15[^\x14]*)?\x14\x14")


@dataclass(frozen=True)
class EdfHeader:
    """What the header says. Lists have one entry per signal; ``starts`` are byte offsets in a record."""

    labels: list[str]
    units: list[str]
    physical: list[tuple[float, float]]
    digital: list[tuple[int, int]]
    samples: list[int]
    starts: list[int]
    patient: str
    start: datetime | None
    header_bytes: int
    records: int
    record_seconds: float
    record_bytes: int
    width: int
    discontinuous: bool


def read_header(path: Path) -> EdfHeader:
    """The header of an EDF, EDF+ or BDF file.

    Raises:
        DataError: not such a file, cut off in its header, or with numbers that cannot be.
    """
    try:
        with path.open("rb") as file:
            fixed = file.read(_FIXED)
            if len(fixed) < _FIXED or not (fixed[:8] == b"0       " or fixed[:8] == b"\xffBIOSEMI"):
                raise DataError(f"{path}: not an EDF or BDF file, or cut off in its header")
            signals = _int(fixed[252:256], path, "number of signals")
            table = file.read(signals * _FIXED)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if len(table) < signals * _FIXED:
        raise DataError(f"{path}: cut off in its header ({_FIXED + len(table)} of {_FIXED * (signals + 1)} bytes)")
    widths = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
    columns, place = [], 0
    for width in widths:
        block = table[place : place + width * signals]
        columns.append([block[i * width : (i + 1) * width] for i in range(signals)])
        place += width * signals
    labels = [_text(cell) for cell in columns[0]]
    width = 3 if fixed[0] == 0xFF else 2
    samples = [_int(cell, path, f"samples of {label}") for cell, label in zip(columns[8], labels, strict=True)]
    sizes = [count * width for count in samples]
    return EdfHeader(
        labels=labels,
        units=[_text(cell) for cell in columns[2]],
        physical=[
            (_float(low, path, "physical minimum"), _float(high, path, "physical maximum"))
            for low, high in zip(columns[3], columns[4], strict=True)
        ],
        digital=[
            (_int(low, path, "digital minimum"), _int(high, path, "digital maximum"))
            for low, high in zip(columns[5], columns[6], strict=True)
        ],
        samples=samples,
        starts=[sum(sizes[:i]) for i in range(signals)],
        patient=_text(fixed[8:88]),
        start=_start(_text(fixed[168:176]), _text(fixed[176:184]), _text(fixed[88:168])),
        header_bytes=_int(fixed[184:192], path, "header size"),
        records=_int(fixed[236:244], path, "number of records"),
        record_seconds=_float(fixed[244:252], path, "record duration"),
        record_bytes=sum(sizes),
        width=width,
        discontinuous=_text(fixed[192:236]).startswith(("EDF+D", "BDF+D")),
    )


def read_edf(path: Path, origin: Origin, options: ReadOptions) -> Iterator[Recording]:
    """The recording, or several where a gap of more than a minute or a jump back lies between its records.

    The participant is the patient code of EDF+; the patient's name and birth date are dropped. A file cut off in the middle is
    read up to its last whole record, and counted. The start is local, so it counts only with ``timezone``.

    Raises:
        DataError: damaged, without the channels, or channels of several rates are wanted.
        ConfigError: units or participant are unknown.
    """
    head, where = read_header(path), origin.name
    signals = [i for i, label in enumerate(head.labels) if label not in _ANNOTATIONS]
    chosen = [signals[i] for i in pick_channels([head.labels[i] for i in signals], options, where, alone=True)]
    if not head.record_seconds > 0:
        raise DataError(
            f"{where}: data records of {head.record_seconds:g} s; without a duration there is no sampling rate"
        )
    rates = {head.labels[i]: head.samples[i] / head.record_seconds for i in chosen}
    if len(set(rates.values())) > 1:
        listed = ", ".join(f"{name} {rate:g} Hz" for name, rate in rates.items())
        raise DataError(f"{where}: channels of several rates ({listed}); choose those of one rate with --channels")
    fs = agreed_rate(next(iter(rates.values())), options, where)
    body = path.stat().st_size - head.header_bytes
    whole = max(0, body // head.record_bytes)
    if head.records >= 0:
        whole = min(whole, head.records)
    notes = {"cut_off": 1} if head.records > whole or (head.records < 0 and body % head.record_bytes) else {}
    if whole == 0:
        raise DataError(f"{where}: cut off, not one of its {head.records} data records is whole")
    raw = np.memmap(path, np.uint8, "r", head.header_bytes, (whole, head.record_bytes))
    columns, units = [], ""
    for i in chosen:
        factor, units = scale_to_units(options.signal, head.units[i], options, where)
        columns.append(_physical(raw, head, i, where) * factor)
    blocks_CRS = np.stack(columns).astype(np.float32)
    onsets = _onsets(raw, head, where) if head.discontinuous else None
    if onsets is None:
        stretches, more = [Stretch(0.0, blocks_CRS.reshape(len(chosen), -1))], {}
    else:
        stretches, more = join([Stretch(float(t), blocks_CRS[:, r]) for r, t in enumerate(onsets)], fs)
    code = head.patient.split(" ")[0]
    known = None if code.upper() in ("", "X") or not _plus(head) else code
    zero = civil_seconds(head.start, options) if head.start is not None else None
    if zero is None and head.start is not None:
        notes["no_timezone"] = 1
    sex = head.patient.split(" ")[1:2] if _plus(head) else []
    for number, stretch in enumerate(stretches):
        yield Recording(
            signal=stretch.signal,
            sampling_rate=fs,
            participant=origin.participant(options, known),
            kind=options.signal,
            channels=tuple(head.labels[i] for i in chosen),
            units=units,
            start=None if zero is None else zero + stretch.start,
            device=options.device or "unknown",
            session=origin.session(options),
            labels=origin.labels(options, {"sex": {"F": "female", "M": "male"}.get(sex[0])} if sex else {}),
            source=where if len(stretches) == 1 else f"{where}, stretch {number + 1}",
            notes={**notes, **more} if number == 0 else {},
        )


def _plus(head: EdfHeader) -> bool:
    """Whether the patient field is that of EDF+: code, sex, birth date, name."""
    return len(head.patient.split(" ")) >= 4 and head.patient.split(" ")[1] in ("F", "M", "X")


def _physical(raw: np.ndarray, head: EdfHeader, i: int, where: str) -> np.ndarray:
    """(R, S) float64 in the units of the file."""
    (low, high), (least, most) = head.physical[i], head.digital[i]
    if most == least or high == low:
        raise DataError(f"{where}: {head.labels[i]!r} has an empty range ({least} to {most}, {low:g} to {high:g})")
    size = head.samples[i] * head.width
    data = np.ascontiguousarray(raw[:, head.starts[i] : head.starts[i] + size])
    if head.width == 2:
        counts = data.view("<i2").astype(np.float64)
    else:
        parts = data.reshape(len(data), -1, 3).astype(np.int32)
        value = parts[..., 0] | (parts[..., 1] << 8) | (parts[..., 2] << 16)
        counts = (value - ((value & 0x800000) << 1)).astype(np.float64)
    return (counts - least) * ((high - low) / (most - least)) + low


def _onsets(raw: np.ndarray, head: EdfHeader, where: str) -> np.ndarray:
    """(R,) seconds of the records after the start: the first, empty annotation of each."""
    place = next((i for i, label in enumerate(head.labels) if label in _ANNOTATIONS), None)
    if place is None:
        raise DataError(f"{where} is EDF+D but has no annotations, which would tell where its gaps are")
    begin, size = head.starts[place], head.samples[place] * head.width
    found = np.empty(len(raw))
    for r in range(len(raw)):
        match = _ONSET.match(raw[r, begin : begin + size].tobytes())
        if match is None:
            raise DataError(f"{where}: data record {r + 1} does not say when it starts, as EDF+D has to")
        found[r] = float(match[1])
    return found


def _start(date: str, time: str, recording: str) -> datetime | None:
    try:
        day, month, year = (int(part) for part in date.split("."))
        hour, minute, second = (int(part) for part in time.split("."))
        full = re.match(r"Startdate \d\d-[A-Z]{3}-(\d{4})", recording)
        century = int(full[1]) if full else 2000 + year if year < 85 else 1900 + year
        return datetime(century, month, day, hour, minute, second)
    except ValueError:
        return None


def _text(cell: bytes) -> str:
    return cell.decode("latin-1").strip(" \x00")


def _int(cell: bytes, path: Path, what: str) -> int:
    return int(_float(cell, path, what))


def _float(cell: bytes, path: Path, what: str) -> float:
    try:
        return float(_text(cell).replace(",", "."))
    except ValueError:
        raise DataError(f"{path}: the header's {what} is {_text(cell)!r}, no number") from None
