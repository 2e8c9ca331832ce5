"""From what the user named to recordings: which files there are, of what kind, and a table of facts beside them."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mc_core.errors import DataError, McError
from mc_wearables.data.apple_health import holds_ecgs, is_apple_ecg, read_ecg_file, read_export
from mc_wearables.data.config import Kind, ReadOptions, read_options
from mc_wearables.data.edf import read_edf
from mc_wearables.data.empatica import holds_bvp, read_e4, read_embraceplus
from mc_wearables.data.fitbit import read_fitbit
from mc_wearables.data.recording import Origin, Recording
from mc_wearables.data.table import read_table
from mc_wearables.data.text_table import head_text
from mc_wearables.data.wfdb import annotation_file, read_wfdb, segment_headers, signal_files

UNDERSTOOD = (
    "WFDB (.hea), EDF and BDF, .csv .tsv .txt .parquet .npz tables, Apple Health export.zip, Fitbit and Google .json, "
    "Empatica E4 .zip and EmbracePlus .avro, and folders of them"
)
_TEXT = (".csv", ".tsv", ".txt")
_TABLES = (*_TEXT, ".parquet", ".pq", ".npz")
_FACTS = ("records.csv", "records.tsv")
_E4_COMPANIONS = ("ACC.csv", "EDA.csv", "HR.csv", "IBI.csv", "TEMP.csv", "tags.csv", "info.txt")
_ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_Reader = Callable[[ReadOptions], Iterator[Recording | McError]]


@dataclass(frozen=True)
class Source:
    """One thing to read: a file, a record with its signal files, or a folder of Avro files.

    Attributes:
        name: path relative to what the user named.
        files: all of its files.
        facts: its row in the table of records.
        reader: yields recordings, and errors in the place of recordings that cannot be used.
    """

    name: str
    files: tuple[Path, ...]
    facts: Mapping[str, str]
    reader: _Reader

    def read(self, options: ReadOptions) -> Iterator[Recording | McError]:
        """The recordings, lazily; the last item is an error if the rest of the file cannot be read."""
        try:
            yield from self.reader(options)
        except McError as error:
            yield error
        except OSError as error:
            yield DataError(f"{self.name}: cannot be read ({error.strerror or error})")
        except (ValueError, KeyError, IndexError, TypeError, EOFError, OverflowError, ArithmeticError) as error:
            # damage that no reader foresaw must not cost the rest of the cohort
            yield DataError(
                f"{self.name}: cannot be read, probably damaged ({type(error).__name__}: {str(error)[:120]})"
            )

    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.stat().st_size for file in self.files)

    def digest(self) -> str:
        """SHA-256 of its files' bytes, in their order, and of its row in the table of records."""
        state = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    state.update(block)
        if self.facts:
            state.update(json.dumps(self.facts, sort_keys=True).encode())
        return state.hexdigest()


def list_sources(path: str | os.PathLike[str]) -> list[Source]:
    """What there is to read below ``path``, sorted by name. Nothing is read yet but what tells the kinds apart.

    A ``records.csv`` in a folder may say of each record (column ``record`` or ``file``: its path without or with ending)
    whose it is (``participant``) and what is known of it; its other columns become labels.

    Raises:
        DataError: nothing there, or nothing of a kind that is understood.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise DataError(f"{root} does not exist")
    if root.is_file():
        if root.suffix.lower() in _ARCHIVES:
            raise DataError(f"{root} is an archive: unpack it (tar xf {root.name}) and name the folder")
        found = _source(root, root.name, root.parent.resolve().name, _Facts({}), strict=True)
        return [found] if found else []
    files = sorted(
        Path(folder, name)
        for folder, folders, names in os.walk(root)
        for name in names
        if not name.startswith(".") and not any(part.startswith(".") for part in Path(folder).relative_to(root).parts)
    )
    there, facts = set(files), _Facts.beside(root)
    inner = {part for file in files if file.suffix == ".hea" for part in segment_headers(file)}
    avro: dict[Path, list[Path]] = {}
    sources = []
    for file in files:
        name = file.relative_to(root).as_posix()
        if file.suffix.lower() == ".avro":
            avro.setdefault(file.parent, []).append(file)
        elif file.name in _E4_COMPANIONS and file.with_name("BVP.csv") in there:
            continue
        elif name not in _FACTS and file not in inner and (found := _source(file, name, root.resolve().name, facts)):
            sources.append(found)
    for folder, members in avro.items():
        name = (folder.relative_to(root) / "*.avro").as_posix()
        sources.append(_avro(name, members, root.resolve().name, facts))
    if not sources:
        raise DataError(f"{root}: none of its {len(files)} files is of a kind read here: {UNDERSTOOD}")
    return sorted(sources, key=lambda source: source.name)


def open_recordings(
    path: str | os.PathLike[str],
    *,
    signal: Kind,
    sampling_rate: float | None = None,
    units: str | None = None,
    channels: tuple[str, ...] = (),
    participant: str | None = None,
    participant_from: str | None = None,
    options: ReadOptions | None = None,
) -> Iterator[Recording]:
    """The recordings of a file or folder, one after the other.

    Args:
        path: a file or folder; see ``UNDERSTOOD``.
        signal: ``"ppg"`` or ``"ecg"``.
        sampling_rate: Hz, for files that do not say.
        units: of an ECG, for files that do not say.
        channels: names of the channels wanted; default: the first of the usual names.
        participant: whose they are, if all are of one person.
        participant_from: ``folder``, ``file``, ``record``, ``column:NAME`` or ``pattern:REGEX``.
        options: everything else; wins over the arguments above.

    Raises:
        DataError: the first file that cannot be read. :func:`mc_wearables.data.ingestion.ingest` counts them and goes on.
        ConfigError: something has to be told; the message names the option.
    """
    chosen = options or read_options(
        signal=signal,
        fs=sampling_rate,
        units=units,
        channels=channels,
        participant=participant,
        participant_from=participant_from,
    )
    for source in list_sources(path):
        for item in source.read(chosen):
            if isinstance(item, McError):
                raise item
            yield item


class _Facts:
    """Rows of the table of records by the path of the record."""

    def __init__(self, rows: Mapping[str, Mapping[str, str]]) -> None:
        self.rows = rows

    @classmethod
    def beside(cls, root: Path) -> _Facts:
        path = next((root / name for name in _FACTS if (root / name).is_file()), None)
        if path is None:
            return cls({})
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            key = next(
                (name for name in ("record", "file", "path", "filename") if name in (reader.fieldnames or [])), None
            )
            if key is None:
                return cls({})  # an ordinary table that happens to have this name
            return cls({row[key]: {k: v for k, v in row.items() if k and v} for row in reader if row.get(key)})

    def of(self, name: str) -> Mapping[str, str]:
        bare = name.rpartition(".")[0]
        return next(
            (
                self.rows[key]
                for key in (name, bare, name.rpartition("/")[2], bare.rpartition("/")[2])
                if key in self.rows
            ),
            {},
        )


def _source(file: Path, name: str, folder: str, facts: _Facts, *, strict: bool = False) -> Source | None:
    """The source of a file, or None if it is of no kind read here."""
    suffix = file.suffix.lower()
    row = facts.of(name)
    origin = Origin(name, folder, row)
    files: tuple[Path, ...] = (file,)
    if suffix == ".hea":
        with contextlib.suppress(McError):  # reading says what is wrong, and the other records are kept
            files = tuple(signal_files(file))
        files += (notes,) if (notes := annotation_file(file)).is_file() else ()
        return Source(name, files, row, lambda options: read_wfdb(file, origin, options))
    if suffix == ".avro":
        return _avro(name, [file], folder, facts)
    reader = {
        ".edf": read_edf,
        ".bdf": read_edf,
        ".json": read_fitbit,
        ".zip": _read_zip,
        **dict.fromkeys(_TEXT, _read_text),
        **dict.fromkeys((".parquet", ".pq", ".npz"), read_table),
    }.get(suffix)
    if reader is None:
        if strict and (header := file.with_suffix(".hea")).is_file():
            return _source(header, header.name, folder, facts, strict=True)
        if strict:
            raise DataError(f"{file} is of no kind read here: {UNDERSTOOD}")
        return None
    return Source(name, files, row, partial(reader, file, origin))


def _avro(name: str, files: list[Path], folder: str, facts: _Facts) -> Source:
    row = facts.of(name)
    origin = Origin(name, folder, row)
    return Source(name, tuple(files), row, lambda options: read_embraceplus(files, origin, options))


def _read_zip(file: Path, origin: Origin, options: ReadOptions) -> Iterator[Recording | McError]:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise DataError(f"{origin.name}: not a whole zip file, probably cut off ({error})") from error
    if holds_bvp(names):
        yield from read_e4(file, origin, options)
    elif holds_ecgs(names):
        yield from read_export(file, origin, options)
    else:
        raise DataError(
            f"{origin.name}: neither an Apple Health export nor an Empatica E4 session; unpack it and name the folder"
        )


def _read_text(file: Path, origin: Origin, options: ReadOptions) -> Iterator[Recording | McError]:
    if file.name == "BVP.csv":
        yield from read_e4(file, origin, options)
    elif is_apple_ecg(head_text(file)):
        yield from read_ecg_file(file, origin, options)
    else:
        yield from read_table(file, origin, options)
