"""``mc-vision embed``: features of any number of images, streamed to Parquet or npz, resumable."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from mc_core.cli import Clock, print_json
from mc_core.errors import ConfigError, DataError
from mc_core.files import atomic_path, read_json, write_json
from mc_core.optional import require
from mc_core.runs import pick_device
from mc_vision.data import ImageSource, open_source
from mc_vision.evaluation import batches_of_features
from mc_vision_app.runs import OpenedRun, open_run

_log = logging.getLogger("mc_core")
_PART = 4096  # images in a part; what is lost at most when the process is killed


def run_embed(
    run: Path,
    *,
    data: str,
    out: Path,
    batch_size: int,
    size: int | None,
    workers: int | None,
    device: str,
    as_json: bool,
) -> Path:
    """Embed, and say where the result is."""
    if out.suffix not in (".parquet", ".npz"):
        raise ConfigError(f"--out {out}: the name decides the format and must end in .parquet or .npz")
    if out.suffix == ".parquet":
        require("pyarrow.parquet", extra="mc-vision[parquet]", purpose="write Parquet")
    if batch_size < 1:
        raise ConfigError(f"--batch-size {batch_size}: take at least one image at a time")
    clock = Clock()
    opened = open_run(run, pick_device(device))
    source = open_source(data, channels=opened.encoder.config.channels)
    parts = out.with_name(f".{out.name}.parts")
    start = _take_up(parts, {"run": str(run.resolve()), "step": opened.step, "size": size, "data": source.describe()})
    if start:
        _log.info("going on at image %d of %d", start, len(source))
    unread = _write_parts(opened, source, parts, start, batch_size=batch_size, size=size, workers=workers)
    for name, reason in unread[:10]:
        _log.warning("left out %s: %s", name, reason)
    if not any(parts.glob("*.npz")):
        shutil.rmtree(parts)
        raise DataError(f"none of the {len(source)} images could be read")
    count = _join(parts, out, source)
    shutil.rmtree(parts)
    left_out = len(source) - count  # also those met before an interruption
    fields = {
        "out": str(out),
        "images": count,
        "left_out": left_out,
        "dim": opened.encoder.num_features,
        "seconds": round(clock.seconds(), 1),
    }
    if as_json:
        print_json(fields)
    else:
        print(
            f"{count} images × {fields['dim']} features → {out}"
            + (f" ({left_out} unreadable left out)" if left_out else "")
        )
    return out


def _take_up(parts: Path, identity: dict[str, Any]) -> int:
    """How many images earlier parts cover; parts of another run or other data are not taken up."""
    note = parts / "of.json"
    if note.exists() and read_json(note) != identity:
        _log.info("the unfinished parts in %s are of something else; starting anew", parts)
        shutil.rmtree(parts)
    if not note.exists():
        write_json(note, identity)
    return max((int(path.stem.partition("-")[2]) for path in parts.glob("*.npz")), default=0)


def _write_parts(
    opened: OpenedRun,
    source: ImageSource,
    parts: Path,
    start: int,
    *,
    batch_size: int,
    size: int | None,
    workers: int | None,
) -> list[tuple[str, str]]:
    """One npz file per part, named ``first-end``, written whole or not at all."""
    data = opened.eval_data(source, size)
    device = next(opened.encoder.parameters()).device
    unread: list[tuple[str, str]] = []
    held: list[tuple[np.ndarray, np.ndarray]] = []
    begin = done = start
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("embedding", total=len(source), completed=start)
        stream = batches_of_features(
            lambda batch: opened.encoder(batch["image"]),
            data,
            batch_size=batch_size,
            workers=workers,
            device=device,
            start=start,
        )
        for batch, features in stream:
            bad = batch.get("bad", [])
            unread += [(name, reason) for _, name, reason in bad]
            if len(batch["index"]):
                held.append((batch["index"].numpy(), features.numpy()))
            seen = len(batch["index"]) + len(bad)
            done += seen
            bar.advance(task, seen)
            if held and (done - begin >= _PART or done == len(source)):
                with atomic_path(parts / f"{begin:012d}-{done:012d}.npz") as draft, draft.open("wb") as file:
                    np.savez(
                        file, index=np.concatenate([i for i, _ in held]), features=np.concatenate([f for _, f in held])
                    )
                held, begin = [], done
    return unread


def _parts_in_order(parts: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for path in sorted(parts.glob("*.npz")):
        with np.load(path, allow_pickle=False) as part:
            yield part["index"], part["features"]


def _join(parts: Path, out: Path, source: ImageSource) -> int:
    """Parts → one file, a part in memory at a time (npz keeps all of it); the number of rows."""
    classes, labels = source.classes, source.labels
    if out.suffix == ".npz":
        found = list(_parts_in_order(parts))
        index = np.concatenate([i for i, _ in found])
        columns: dict[str, Any] = {
            "features": np.concatenate([f for _, f in found]),
            "name": np.array([source.name(int(i)) for i in index], dtype=np.str_),
        }
        if labels is not None:
            columns["label"] = labels[index]
        with atomic_path(out) as draft, draft.open("wb") as file:
            np.savez(file, **columns)
        return len(index)
    import pyarrow as pa
    import pyarrow.parquet as pq

    count, writer = 0, None
    with atomic_path(out) as draft:
        for index, features in _parts_in_order(parts):
            columns = {
                "name": pa.array([_utf8(source.name(int(i))) for i in index]),
                "features": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1]),
            }
            if labels is not None:
                columns["label"] = pa.array(labels[index])
                if classes:
                    columns["class_name"] = pa.array([classes[int(label)] for label in labels[index]])
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(draft, table.schema)
            writer.write_table(table)
            count += len(index)
        if writer is not None:
            writer.close()
    return count


def _utf8(name: str) -> str:
    """A file's name as text; bytes that are not UTF-8 are written out."""
    return name.encode("utf-8", "backslashreplace").decode()
