"""``mc-wearables embed``: embeddings of recordings or of a store, to Parquet or npz."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.cli import Clock, Status, print_json
from mc_core.embeddings import check_format, write_embeddings
from mc_core.errors import ConfigError, DataError
from mc_core.runs import pick_device
from mc_wearables.data.config import IngestOptions
from mc_wearables.data.ingestion import ingest
from mc_wearables.data.segments import Segments, SignalKind
from mc_wearables.data.store import SegmentStore
from mc_wearables.embedding import embed_segments
from mc_wearables_app.runs import OpenedRun, open_run

_log = logging.getLogger("mc_core")


def run_embed(
    run: Path,
    data: Path,
    *,
    fs: float | None,
    units: str | None,
    signal: SignalKind | None,
    channels: tuple[str, ...],
    out: Path,
    batch_size: int,
    device: str,
    as_json: bool,
) -> Path:
    """Embed, and say where the result is."""
    check_format(out)
    if batch_size < 1:
        raise ConfigError(f"--batch-size {batch_size}: take at least one segment at a time")
    clock = Clock()
    opened = open_run(run, pick_device(device))
    if (data / "manifest.json").exists():
        segments = SegmentStore.open(data).segments()
        if segments.kind != (signal or opened.kind or segments.kind):
            raise DataError(f"{data} holds {segments.kind}, {opened.folder} was trained on {opened.kind or signal}")
        count = _write(opened, segments, out, batch_size, offsets=None)
    else:
        with tempfile.TemporaryDirectory(prefix="mc-wearables-") as folder:
            store = _ingested(
                opened, data, Path(folder) / "store", fs=fs, units=units, signal=signal, channels=channels
            )
            offsets = store.metadata["offset"].to_numpy()
            count = _write(opened, store.segments(), out, batch_size, offsets=offsets)
    fields = {
        "out": str(out),
        "segments": count,
        "dim": opened.encoder.num_features,
        "seconds": round(clock.seconds(), 1),
    }
    if as_json:
        print_json(fields)
    else:
        print(f"{count} segments × {fields['dim']} numbers → {out}")
        print("Embeddings can identify people: keep them as you keep the signals.")
    return out


def _ingested(
    opened: OpenedRun,
    data: Path,
    folder: Path,
    *,
    fs: float | None,
    units: str | None,
    signal: SignalKind | None,
    channels: tuple[str, ...],
) -> SegmentStore:
    kind = signal or opened.kind
    if kind is None:
        raise ConfigError(f"{opened.folder} does not say whether it takes ppg or ecg: give --signal")
    config = opened.encoder.config
    options = IngestOptions(
        signal=kind,
        fs=fs,
        units=units or ("any" if kind == "ppg" else None),
        channels=channels,
        seconds=config.seconds,
        rate=config.sampling_rate,
        participant_from="record",
    )
    with Status(f"reading {data}"):
        report = ingest(data, folder, options)
    for line, times in report.problems.most_common(10):
        _log.warning("left out%s: %s", f" ({times} times)" if times > 1 else "", line)
    for line in report.advice():
        _log.info("%s", line)
    return SegmentStore.open(folder)


def _write(opened: OpenedRun, segments: Segments, out: Path, batch_size: int, *, offsets: np.ndarray | None) -> int:
    with Status(f"embedding {len(segments):,} segments"):
        values = embed_segments(opened.encoder, segments, batch_size=batch_size).values
    columns: dict[str, Any] = {"start": segments.start, "quality": segments.quality}
    if offsets is not None:
        columns["offset"] = offsets
    else:
        columns["participant"] = np.array(segments.participant_keys)[segments.participant]
    write_embeddings(out, values, columns)
    return len(values)
