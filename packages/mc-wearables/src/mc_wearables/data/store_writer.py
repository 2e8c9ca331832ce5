"""Writing a segment store: appended file by file, committed by one atomic replacement of the manifest."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_core.files import atomic_path, explain_write_error, remove_partial, sync_folder, write_json
from mc_wearables.data.privacy import Salt, salt_path
from mc_wearables.data.store import (
    FORMAT,
    LABEL,
    MANIFEST,
    VERSION,
    SegmentStore,
    as_text,
    codes_of,
    empty_table,
    read_manifest,
    read_tables,
)

if TYPE_CHECKING:
    import pyarrow as pa

try:
    import fcntl
except ImportError:  # Windows: two ingests into one store are then not noticed
    fcntl = None

_BLOCK_ROWS = 4096
_OWN = ("signals-", "segments-", "rejected-")


class StoreWriter(AbstractContextManager["StoreWriter"]):
    """Appends the segments of whole files. What was not committed is gone after a crash, and is read again.

    Args:
        path: of the store; made if it is not there.
        geometry: what all segments share (:meth:`IngestOptions.geometry`).

    Raises:
        ConfigError: the store has another geometry, or somebody else writes to it, or the folder holds something else.
    """

    def __init__(self, path: Path, geometry: Mapping[str, Any]) -> None:
        self.path = path
        self.is_new = not (path / MANIFEST).exists()
        if self.is_new and path.exists() and not _only_leftovers(path):
            raise ConfigError(f"{path} exists and is no segment store: name an empty or new folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("ab")
        except OSError as error:
            raise explain_write_error(error, path) from error
        try:
            self._begin(geometry)
        except BaseException:
            self._lock.close()
            raise

    def _begin(self, geometry: Mapping[str, Any]) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"another ingest is writing to {self.path}: wait for it, or name another store"
                ) from None
        self.salt = Salt.beside(self.path, create=self.is_new)
        if self.is_new:
            self.manifest: dict[str, Any] = _new_manifest(geometry)
        else:
            self.manifest = read_manifest(self.path)
            if not self.manifest["rows"]:
                self.manifest |= {"geometry": dict(geometry), "channels": None}
            _check_geometry(self.path, self.manifest["geometry"], geometry)
        self._tidy()
        self._rows: list[dict[str, Any]] = []
        self._rejected: list[dict[str, Any]] = []
        self._files: list[dict[str, Any]] = []
        self._added = 0
        self._signals = (self.path / self.manifest["signals"]).open("ab")

    def _tidy(self) -> None:
        """Remove what a killed process left behind."""
        remove_partial(self.path)
        listed = {self.manifest["signals"], *self.manifest["parts"], *self.manifest["rejected"]}
        for file in self.path.iterdir():
            if file.name.startswith(_OWN) and file.name not in listed:
                file.unlink()
        signals = self.path / self.manifest["signals"]
        if signals.exists():
            os.truncate(signals, self._row_bytes * self.manifest["rows"])

    @property
    def _row_bytes(self) -> int:
        geometry = self.manifest["geometry"]
        return 2 * int(self.manifest["channels"] or 1) * round(geometry["seconds"] * geometry["rate"])

    @property
    def pending_bytes(self) -> int:
        """Bytes of signals that a crash would lose."""
        return self._added * self._row_bytes

    def check_channels(self, channels: int, where: str) -> None:
        """Refuse a recording with another number of channels than the store has.

        Raises:
            DataError: it has.
        """
        own = self.manifest["channels"]
        if own is not None and own != channels:
            raise DataError(
                f"{where} has {channels} channels, the store has {own}: choose {own} with --channels, or another store"
            )

    def add_signals(self, signals: np.ndarray, rows: Mapping[str, Any]) -> None:
        """Append (n, C, T) segments and what is known of them: per column n values, or one for all; of ``labels`` each name
        likewise, n values as a list.
        """
        if not len(signals):
            return
        self.manifest["channels"] = signals.shape[1]
        try:
            self._signals.write(np.ascontiguousarray(signals, dtype="<f2").data)
        except OSError as error:
            raise explain_write_error(error, self.path / self.manifest["signals"]) from error
        self._rows.append({"n": len(signals), **rows})
        self._added += len(signals)

    def add_rejected(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append stretches that became no segment."""
        self._rejected += [dict(row) for row in rows]

    def add_file(self, entry: Mapping[str, Any]) -> None:
        """End a file: its segments now belong together in the next commit."""
        self._files.append(dict(entry))

    def commit(self) -> None:
        """Make everything up to the last whole file durable.

        Raises:
            RunError: the disk is full; the store is as it was at the last commit.
        """
        if not self._files and not self.is_new:
            return
        try:
            self._signals.flush()
            os.fsync(self._signals.fileno())
        except OSError as error:
            raise explain_write_error(error, self.path / self.manifest["signals"]) from error
        number = self.manifest["next"]
        if self._rows:
            name = f"segments-{number:06d}.parquet"
            _write_table(_segment_table(self._rows), self.path / name)
            self.manifest["parts"].append(name)
        if self._rejected:
            name = f"rejected-{number:06d}.parquet"
            _write_table(_rejected_table(self._rejected), self.path / name)
            self.manifest["rejected"].append(name)
        self.manifest["files"] += self._files
        self.manifest["rows"] += self._added
        self.manifest["next"] = number + 1
        write_json(self.path / MANIFEST, self.manifest)
        self.is_new = False
        self._rows, self._rejected, self._files, self._added = [], [], [], 0

    def drop(self, sources: set[str]) -> None:
        """Remove all that came from these sources (keys of files), by writing the store anew without them."""
        import pyarrow as pa

        store = SegmentStore(self.path, self.manifest)
        keep = _others(store.metadata["source"], sources)
        number = self.manifest["next"]
        signals, table = f"signals-{number}.f16", f"segments-{number:06d}.parquet"
        with atomic_path(self.path / signals) as draft, draft.open("wb") as file:
            rows = np.flatnonzero(keep)
            for at in range(0, len(rows), _BLOCK_ROWS):
                file.write(np.ascontiguousarray(store.signals[rows[at : at + _BLOCK_ROWS]]).data)
        _write_table(store.metadata.filter(pa.array(keep)), self.path / table)
        rejected = store.rejected
        kept_rejected = rejected.filter(pa.array(_others(rejected["source"], sources)))
        _write_table(kept_rejected, self.path / f"rejected-{number:06d}.parquet")
        self.manifest |= {
            "signals": signals,
            "parts": [table],
            "rejected": [f"rejected-{number:06d}.parquet"],
            "rows": int(keep.sum()),
            "next": number + 1,
            "files": [entry for entry in self.manifest["files"] if entry["source"] not in sources],
        }
        write_json(self.path / MANIFEST, self.manifest)
        self._signals.close()
        self._tidy()
        self._signals = (self.path / signals).open("ab")

    def finish(self) -> None:
        """Commit, and join the tables of many commits into one."""
        self.commit()
        if len(self.manifest["parts"]) < 2 and len(self.manifest["rejected"]) < 2:
            return
        number = self.manifest["next"]
        for field, stem in (("parts", "segments"), ("rejected", "rejected")):
            table = read_tables(self.path / name for name in self.manifest[field])
            if table is not None:
                name = f"{stem}-{number:06d}.parquet"
                _write_table(table, self.path / name)
                self.manifest[field] = [name]
        self.manifest["next"] = number + 1
        write_json(self.path / MANIFEST, self.manifest)
        self._tidy()

    def discard(self) -> None:
        """Remove a store that this writer made and that holds nothing."""
        self._signals.close()
        shutil.rmtree(self.path, ignore_errors=True)
        salt_path(self.path).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._signals.close()
        self._lock.close()
        if self.path.exists():
            sync_folder(self.path)


def _only_leftovers(path: Path) -> bool:
    """Whether a folder without a manifest holds nothing but what a killed ingest leaves."""
    return path.is_dir() and all(p.name.startswith((*_OWN, ".")) for p in path.iterdir())


def _new_manifest(geometry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "geometry": dict(geometry),
        "channels": None,
        "rows": 0,
        "signals": "signals-0.f16",
        "parts": [],
        "rejected": [],
        "next": 0,
        "files": [],
    }


def _check_geometry(path: Path, own: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for name, value in own.items():
        if json.loads(json.dumps(asked.get(name))) != value:
            raise ConfigError(
                f"{path} was made with {name} {value}, now it is {asked.get(name)}: name another store, or leave it as it was"
            )


def _segment_table(blocks: Sequence[Mapping[str, Any]]) -> pa.Table:
    import pyarrow as pa

    schema = empty_table().schema
    columns: dict[str, Any] = {}
    for name in schema.names:
        parts = [np.broadcast_to(np.asarray(block[name]), block["n"]) for block in blocks]
        columns[name] = pa.array(
            np.concatenate(parts).tolist() if schema.field(name).type == pa.string() else np.concatenate(parts),
            schema.field(name).type,
        )
    names = dict.fromkeys(name for block in blocks for name in block["labels"])
    for name in names:
        values = [value for block in blocks for value in _of_each(block["labels"].get(name), block["n"])]
        text = any(isinstance(value, str) for value in values)
        cells = [None if value is None else as_text(value) if text else float(value) for value in values]
        columns[LABEL + name] = pa.array(cells, pa.string() if text else pa.float64())
    return pa.table(columns)


def _of_each(value: Any, n: int) -> list[Any]:
    return value if isinstance(value, list) else [value] * n


def _rejected_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist([dict(row) for row in rows], schema=empty_table(rejected=True).schema)


def _write_table(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    with atomic_path(path) as draft:
        pq.write_table(table, draft, compression="zstd")


def _others(column: pa.ChunkedArray, texts: set[str]) -> np.ndarray:
    """(N,) bool: cells that are none of the texts."""
    codes, words = codes_of(column)
    return ~np.isin(codes, [i for i, word in enumerate(words) if word in texts])
