"""Writers of small files as devices and databases write them: true layouts, made-up signals."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np


def pulse(seconds: float, rate: float, *, bpm: float = 72, seed: int = 0, noise: float = 0.02) -> np.ndarray:
    """A pulse wave: a systolic and a reflected wave per beat, with a little variability."""
    rng = np.random.default_rng(seed)
    count = int(seconds * bpm / 60) + 4
    beats = np.cumsum(60 / bpm * (1 + 0.03 * rng.standard_normal(count))) - 60 / bpm
    t = np.arange(round(seconds * rate)) / rate
    last = np.clip(np.searchsorted(beats, t, side="right") - 1, 0, None)
    since = t - beats[last]
    wave = np.exp(-0.5 * ((since - 0.15) / 0.06) ** 2) + 0.35 * np.exp(-0.5 * ((since - 0.4) / 0.08) ** 2)
    return wave + 0.1 * np.sin(2 * np.pi * 0.2 * t) + noise * rng.standard_normal(len(t))


def lead(seconds: float, rate: float, *, bpm: float = 70, seed: int = 0, noise: float = 0.01) -> np.ndarray:
    """A lead of an electrocardiogram in mV: P, QRS and T."""
    rng = np.random.default_rng(seed)
    count = int(seconds * bpm / 60) + 4
    beats = np.cumsum(60 / bpm * (1 + 0.03 * rng.standard_normal(count))) - 60 / bpm + 0.3
    t = np.arange(round(seconds * rate)) / rate
    signal = noise * rng.standard_normal(len(t))
    for height, centre, width in ((0.12, -0.18, 0.03), (1.0, 0.0, 0.012), (-0.2, 0.035, 0.012), (0.3, 0.28, 0.05)):
        for beat in beats:
            signal += height * np.exp(-0.5 * ((t - beat - centre) / width) ** 2)
    return signal


def write_wfdb(
    folder: Path, name: str, signals: np.ndarray, rate: float, names: list[str], units: list[str], comments: list[str]
) -> None:
    """A record of format 16; NaN becomes WFDB's mark of a missing sample. ``signals`` is (T, C)."""
    import wfdb

    folder.mkdir(parents=True, exist_ok=True)
    wfdb.wrsamp(
        name,
        fs=rate,
        units=units,
        sig_name=names,
        p_signal=signals,
        fmt=["16"] * len(names),
        comments=comments,
        write_dir=str(folder),
    )


def write_edf(
    path: Path,
    channels: list[tuple[str, str, int, np.ndarray]],
    *,
    onsets: list[float] | None = None,
    patient: str = "P007 F 02-MAY-1951 Jane_Roe",
    record_seconds: float = 1.0,
) -> None:
    """EDF+C, or EDF+D where ``onsets`` of the records are given. A channel is (label, units, rate, values within ±5)."""
    records = len(channels[0][3]) // round(channels[0][2] * record_seconds)
    onsets_used = onsets or [record_seconds * r for r in range(records)]
    notes = [f"+{onset:g}\x14\x14\x00".encode().ljust(32, b"\x00") for onset in onsets_used]
    labels = [label for label, *_ in channels] + ["EDF Annotations"]
    count = len(labels)
    per_record = [round(rate * record_seconds) for _, _, rate, _ in channels] + [16]

    def cells(values: list[object], width: int) -> bytes:
        return b"".join(str(value).encode("latin-1").ljust(width) for value in values)

    head = (
        b"0".ljust(8)
        + patient.encode().ljust(80)
        + b"Startdate 03-MAR-2021 X X X".ljust(80)
        + b"03.03.21"
        + b"10.20.30"
    )
    head += str(256 * (count + 1)).encode().ljust(8) + (b"EDF+D" if onsets else b"EDF+C").ljust(44)
    head += str(records).encode().ljust(8) + f"{record_seconds:g}".encode().ljust(8) + str(count).encode().ljust(4)
    head += cells(list(labels), 16) + cells([""] * count, 80)
    head += cells([units for _, units, *_ in channels] + [""], 8)
    head += cells([-5] * (count - 1) + [-1], 8) + cells([5] * (count - 1) + [1], 8)
    head += cells([-32768] * count, 8) + cells([32767] * count, 8) + cells([""] * count, 80)
    head += cells(list(per_record), 8) + cells([""] * count, 32)
    body = b""
    for r in range(records):
        for (_, _, _, values), size in zip(channels, per_record, strict=False):
            digital = np.round((values[r * size : (r + 1) * size] + 5) / 10 * 65535 - 32768)
            body += digital.astype("<i2").tobytes()
        body += notes[r]
    path.write_bytes(head + body)


def apple_ecg(
    samples_uv: np.ndarray,
    *,
    rate: str = "512.844 hertz",
    german: bool = False,
    start: str = "2021-03-01 10:11:12 +0100",
) -> str:
    """The text of ``electrocardiograms/ecg_*.csv``."""
    if german:
        head = f'Name,Erika Mustermann\nGeburtsdatum,"12.08.1964"\nAufzeichnungsdatum,{start}\n'
        head += 'Klassifizierung,Sinusrhythmus\nSymptome,\nSoftwareversion,1.90\nGerät,"Watch5,4"\n'
        head += f'Messrate,"{rate.replace(".", ",")}"\n\n\nAbleitung,Ableitung I\nEinheit,µV\n\n'
        return head + "\n".join(f"{v:.3f}".replace(".", ",") for v in samples_uv) + "\n"
    head = (
        f'Name,Jane Roe\nDate of Birth,"May 2, 1951"\nRecorded Date,{start}\nClassification,Sinus Rhythm\nSymptoms,\n'
    )
    head += f'Software Version,1.90\nDevice,"Watch5,4"\nSample Rate,{rate}\n\n\nLead,Lead I\nUnit,µV\n\n'
    return head + "\n".join(f"{v:.3f}" for v in samples_uv) + "\n"


def write_apple_export(path: Path, ecgs: list[str]) -> None:
    """An ``export.zip`` with an XML beside the electrocardiograms."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("apple_health_export/export.xml", "<HealthData/>")
        for i, text in enumerate(ecgs):
            archive.writestr(f"apple_health_export/electrocardiograms/ecg_2021-03-0{i + 1}.csv", text)


def write_fitbit(path: Path, counts: np.ndarray, *, rate: object = "250", factor: object = 10922) -> None:
    """What Fitbit's list of ECG logs returns."""
    reading = {
        "startTime": "2022-09-28T17:12:30.222",
        "averageHeartRate": 70,
        "resultClassification": "Normal Sinus Rhythm",
        "waveformSamples": counts.astype(int).tolist(),
        "samplingFrequencyHz": rate,
        "scalingFactor": factor,
        "numberOfWaveformSamples": len(counts),
        "leadNumber": 1,
        "deviceName": "Sense",
    }
    path.write_text(
        json.dumps({"ecgReadings": [{k: v for k, v in reading.items() if v is not None}], "pagination": {}})
    )


def write_e4(path: Path, wave: np.ndarray, *, start: float = 1.6e9, rate: str = "64.000000") -> None:
    """A session of an E4."""
    rows = [f"{start:.6f}", rate, *(f"{v:.2f}" for v in wave)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("BVP.csv", "\n".join(rows) + "\n")
        archive.writestr("ACC.csv", "1600000000.0, 1600000000.0, 1600000000.0\n32.0, 32.0, 32.0\n1,2,3\n")
        archive.writestr("IBI.csv", "1600000000.0, IBI\n1.0,0.8\n")


def write_embraceplus(
    path: Path, wave: np.ndarray, *, start: float, rate: float = 64.0, participant: str = "SUBJ-1"
) -> None:
    """One Avro file of an EmbracePlus, with the fields that matter."""
    import fastavro

    def record(name: str, fields: list[dict]) -> dict:
        return {"type": "record", "name": name, "fields": fields}

    wave_type = record(
        "Wave",
        [
            {"name": "timestampStart", "type": "long"},
            {"name": "samplingFrequency", "type": "float"},
            {"name": "values", "type": {"type": "array", "items": "float"}},
        ],
    )
    schema = record(
        "Session",
        [
            {"name": "enrollment", "type": record("Enrollment", [{"name": "participantID", "type": "string"}])},
            {"name": "deviceModel", "type": "string"},
            {"name": "rawData", "type": record("RawData", [{"name": "bvp", "type": wave_type}])},
        ],
    )
    bvp = {"timestampStart": round(start * 1e6), "samplingFrequency": rate, "values": [float(v) for v in wave]}
    session = {"enrollment": {"participantID": participant}, "deviceModel": "EmbracePlus", "rawData": {"bvp": bvp}}
    with path.open("wb") as file:
        fastavro.writer(file, fastavro.parse_schema(schema), [session])
