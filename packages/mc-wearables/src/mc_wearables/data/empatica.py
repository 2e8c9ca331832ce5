"""Empatica: zip files of the E4, Avro files of EmbracePlus. Their pulse wave is called BVP."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_core.optional import require
from mc_wearables.data.config import ReadOptions
from mc_wearables.data.recording import Origin, Recording, agreed_rate
from mc_wearables.data.timeline import Stretch, join


def holds_bvp(names: Sequence[str]) -> bool:
    """Whether a zip file with these names is a session of an E4."""
    return any(name.rpartition("/")[2] == "BVP.csv" for name in names)


def read_e4(path: Path, origin: Origin, options: ReadOptions) -> Iterator[Recording]:
    """The pulse wave of an E4 session, from its zip file or an unpacked ``BVP.csv``.

    The first row is the start in seconds UTC, the second the rate in Hz.

    Raises:
        DataError: cut off, a row that is no number, or a rate of zero.
        ConfigError: ECG is wanted, or the participant is unknown.
    """
    _only_ppg(options, origin.name, "an E4")
    if path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.rpartition("/")[2] == "BVP.csv")
                text = archive.read(name).decode("utf-8-sig", "replace")
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{origin.name}: not a whole zip file, probably cut off ({error})") from error
    else:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    rows = [row.split(",")[0].strip() for row in text.split("\n")]
    rows = rows[:-1] if rows and not rows[-1] else rows
    try:
        values = np.array(rows, dtype=np.float64)
    except ValueError:
        bad = next(i for i, row in enumerate(rows) if not _is_number(row))
        raise DataError(f"{origin.name}: BVP.csv, row {bad + 1}: {rows[bad][:40]!r} is no number") from None
    if len(values) < 3:
        raise DataError(f"{origin.name}: BVP.csv has {len(values)} rows; it needs a start, a rate and samples")
    yield Recording(
        signal=values[None, 2:].astype(np.float32),
        sampling_rate=agreed_rate(float(values[1]), options, origin.name),
        participant=origin.participant(options, None),
        kind="ppg",
        channels=("BVP",),
        units="a.u.",
        start=float(values[0]),
        device="Empatica E4",
        session=origin.session(options),
        labels=origin.labels(options),
        source=origin.name,
    )


def read_embraceplus(paths: Sequence[Path], origin: Origin, options: ReadOptions) -> Iterator[Recording]:
    """The pulse waves of Avro files of one folder, joined by their time stamps: a file ends after half an hour at most.

    Files without pulse wave (rate 0) are counted, and so are files that are cut off.

    Raises:
        DataError: none of the files can be read.
        ConfigError: ECG is wanted, or the participant is unknown.
        MissingDependencyError: fastavro is not installed.
    """
    _only_ppg(options, origin.name, "an EmbracePlus")
    fastavro = require("fastavro", extra="mc-wearables[embraceplus]", purpose="read Avro files of EmbracePlus")
    notes: Counter[str] = Counter()
    pieces: dict[tuple[str, str, float], list[Stretch]] = {}
    first_error = ""
    for path in paths:
        try:
            with path.open("rb") as file:
                record = next(iter(fastavro.reader(file)))
            wave = record["rawData"]["bvp"]
            stamp, rate, values = wave["timestampStart"], float(wave["samplingFrequency"]), wave["values"]
        except Exception as error:  # fastavro raises whatever the damage leads to
            first_error = first_error or f"{path.name}: {str(error) or type(error).__name__}"
            notes["unreadable_files"] += 1
            continue
        if not rate or not values:
            notes["files_without_signal"] += 1
            continue
        who = str((record.get("enrollment") or {}).get("participantID") or "")
        key = (who, str(record.get("deviceModel") or "EmbracePlus"), rate)
        pieces.setdefault(key, []).append(Stretch(stamp / 1e6, np.asarray(values, dtype=np.float32)[None]))
    if not pieces:
        raise DataError(
            f"{origin.name}: no pulse wave in its {len(paths)} Avro files"
            + (f" ({first_error})" if first_error else "")
        )
    for (who, device, rate), found in pieces.items():
        fs = agreed_rate(rate, options, origin.name)
        stretches, seen = join(sorted(found, key=lambda piece: piece.start), fs)
        for number, stretch in enumerate(stretches):
            yield Recording(
                signal=stretch.signal,
                sampling_rate=fs,
                participant=origin.participant(options, who or None),
                kind="ppg",
                channels=("BVP",),
                units="a.u.",
                start=stretch.start,
                device=device,
                session=origin.session(options),
                labels=origin.labels(options),
                source=origin.name if len(stretches) == 1 else f"{origin.name}, stretch {number + 1}",
                notes=notes + seen if number == 0 else {},
            )
        notes = Counter()


def _only_ppg(options: ReadOptions, where: str, device: str) -> None:
    if options.signal == "ecg":
        raise ConfigError(f"{where}: {device} records PPG and no ECG; give --signal ppg")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
