"""The segment store: one folder with memory-mapped signals, Parquet tables about them, and a manifest of what was read.

```
STORE/manifest.json           what was read (names redacted, bytes, SHA-256), how it was cut, which files below count
STORE/signals-0.f16           (N, C, T) little-endian float16, z-scored per channel and segment
STORE/segments-000000.parquet one row per segment, in the order of the signals
STORE/rejected-000000.parquet one row per stretch that became no segment, with the reason
STORE.salt                    the secret behind the participants' keys; keep it apart
```

Signals and tables are only ever appended or written anew; the manifest, replaced atomically, says how much of them counts.
A process killed at any moment therefore leaves a whole store.

Legend: N segments, C channels, T samples.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_core.files import read_json
from mc_wearables.data.privacy import Salt
from mc_wearables.data.quality import RATES

if TYPE_CHECKING:
    import pyarrow as pa

    from mc_wearables.data.segments import Segments

FORMAT = "mc-wearables segments"
VERSION = 1
MANIFEST = "manifest.json"
LABEL = "label:"
_TEXTS = ("participant", "session", "source", "device", "channels", "units")
_KEEP = {"template": 0.8, "agreement": 0.8, "flat": 0.01, "clipped": 0.01}


class SegmentStore:
    """A store to read from. Opening reads the manifest alone; signals stay on disk.

    Attributes:
        path: its folder.
        manifest: what ``manifest.json`` says.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self._metadata: pa.Table | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SegmentStore:
        """Open a store.

        Raises:
            DataError: there is none, or it is of another format, or its signals are cut off.
        """
        root = Path(path).expanduser()
        manifest = read_manifest(root)
        store = cls(root, manifest)
        signals = root / manifest["signals"]
        needed = 2 * int(np.prod(store.shape))
        there = signals.stat().st_size if signals.exists() else 0
        if there < needed:
            raise DataError(f"{signals} is cut off: {there} of {needed} bytes; ingest the records anew")
        return store

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, C, T)."""
        geometry = self.manifest["geometry"]
        return len(self), int(self.manifest["channels"] or 1), round(geometry["seconds"] * geometry["rate"])

    @property
    def signals(self) -> np.ndarray:
        """(N, C, T) float16, memory-mapped read-only."""
        if not len(self):
            return np.zeros(self.shape, dtype=np.float16)
        return np.memmap(self.path / self.manifest["signals"], "<f2", "r", shape=self.shape)

    @property
    def metadata(self) -> pa.Table:
        """One row per segment, in the order of the signals.

        Columns: ``participant``, ``session``, ``source`` (keys in hexadecimal), ``recording`` (number in its file), ``start`` (UTC
        seconds), ``offset`` (seconds in the recording), ``device``, ``channels``, ``units``, ``amplitude``, ``filled``, ``flat``,
        ``clipped``, ``template``, ``agreement``, ``rate``, ``band_power``, ``quality``, and ``label:NAME``.
        """
        if self._metadata is None:
            table = read_tables(self.path / name for name in self.manifest["parts"])
            if table is None or table.num_rows != len(self):
                found = 0 if table is None else table.num_rows
                if found or len(self):
                    raise DataError(
                        f"{self.path}: {found} rows in its tables, {len(self)} in its manifest; ingest the records anew"
                    )
                table = empty_table()
            self._metadata = table
        return self._metadata

    @property
    def rejected(self) -> pa.Table:
        """One row per stretch that became no segment: ``participant``, ``source``, ``recording``, ``start``, ``offset``,
        ``seconds``, ``reason``."""
        table = read_tables(self.path / name for name in self.manifest["rejected"])
        return empty_table(rejected=True) if table is None else table

    def rejected_counts(self) -> dict[str, int]:
        """How many stretches were rejected, by reason."""
        return dict(Counter(self.rejected["reason"].to_pylist()).most_common())

    @property
    def participant_keys(self) -> tuple[str, ...]:
        """Keys of the participants in the order of their codes."""
        return codes_of(self.metadata["participant"])[1]

    def participant_codes(self, raw_ids: Sequence[object]) -> np.ndarray:
        """(n,) int64: for each raw id the participant's code in :meth:`segments`, or −1 where there is no signal.

        Raises:
            DataError: the salt is not beside the store.
        """
        salt = Salt.beside(self.path)
        code = {key: i for i, key in enumerate(self.participant_keys)}
        return np.array([code.get(salt.participant(raw), -1) for raw in raw_ids], dtype=np.int64)

    def label_names(self) -> list[str]:
        """Labels that some segment has."""
        return [name.removeprefix(LABEL) for name in self.metadata.column_names if name.startswith(LABEL)]

    def label_classes(self, name: str) -> tuple[str, ...]:
        """The texts behind the numbers of a label, in order; empty for a label that is a number.

        Raises:
            ConfigError: no such label.
        """
        return self._label(name)[1]

    def _label(self, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
        import pyarrow as pa

        if LABEL + name not in self.metadata.column_names:
            raise ConfigError(f"{self.path} has no label {name!r}; there are {', '.join(self.label_names()) or 'none'}")
        column = self.metadata[LABEL + name]
        if pa.types.is_floating(column.type):
            return column.cast(pa.float64()).fill_null(np.nan).to_numpy(), ()
        codes, classes = codes_of(column)
        return np.where(codes >= 0, codes, np.nan), classes

    def segments(self) -> Segments:
        """The segments, signals memory-mapped. Labels that are texts become numbers, their texts are ``classes``."""
        from mc_wearables.data.segments import Segments

        table = self.metadata
        participant, keys = codes_of(table["participant"])
        device, devices = codes_of(table["device"])
        labels = {name: self._label(name) for name in self.label_names()}
        return Segments(
            signals=self.signals,
            sampling_rate=float(self.manifest["geometry"]["rate"]),
            kind=self.manifest["geometry"]["signal"],
            participant=participant,
            participant_keys=keys,
            session=codes_of(table["session"])[0],
            start=table["start"].fill_null(np.nan).to_numpy(),
            device=device,
            devices=devices or ("unknown",),
            quality=table["quality"].to_numpy(),
            labels={name: column for name, (column, _) in labels.items()},
            classes={name: words for name, (_, words) in labels.items() if words},
        )

    def usable(self, *, band_power_quantile: float = 0.05) -> np.ndarray:
        """(N,) bool: flat and clipped below 1 %, template and agreement above 0.8, a rate of 35 to 200 per minute, and a band
        power above a quantile of the device's own. The thresholds were set on noise, motion and clean signals, not on yours:
        look at ``metadata`` before you trust them, and keep a test set without.

        Args:
            band_power_quantile: from 0 to 1; 0 takes no notice of the band power.
        """
        column = {
            name: self.metadata[name].to_numpy()
            for name in ("flat", "clipped", "template", "agreement", "rate", "band_power")
        }
        with np.errstate(invalid="ignore"):
            keep = (
                (column["flat"] < _KEEP["flat"])
                & (column["clipped"] < _KEEP["clipped"])
                & (column["template"] > _KEEP["template"])
                & (column["agreement"] > _KEEP["agreement"])
                & (column["rate"] >= RATES[0])
                & (column["rate"] <= RATES[1])
            )
        device, devices = codes_of(self.metadata["device"])
        for code in range(len(devices)):
            here = device == code
            keep[here] &= column["band_power"][here] >= np.quantile(column["band_power"][here], band_power_quantile)
        return keep


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a store.

    Raises:
        DataError: none there, or of another format or version.
    """
    if not (root / MANIFEST).is_file():
        what = "does not exist" if not root.exists() else "is no segment store (it has no manifest.json)"
        raise DataError(f"{root} {what}; make one with: mc-wearables ingest RECORDS --out {root}")
    manifest = read_json(root / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{root / MANIFEST} is not that of a segment store")
    if manifest.get("version") != VERSION:
        raise DataError(
            f"{root} has version {manifest.get('version')}, this package reads {VERSION}; ingest the records anew"
        )
    return manifest


def empty_table(*, rejected: bool = False) -> pa.Table:
    import pyarrow as pa

    common = [
        ("participant", pa.string()),
        ("source", pa.string()),
        ("recording", pa.int32()),
        ("start", pa.float64()),
        ("offset", pa.float64()),
    ]
    if rejected:
        return pa.schema([*common, ("seconds", pa.float64()), ("reason", pa.string())]).empty_table()
    texts = [(name, pa.string()) for name in ("session", "device", "channels", "units")]
    scores = [
        (name, pa.float32())
        for name in ("amplitude", "filled", "flat", "clipped", "template", "agreement", "rate", "band_power", "quality")
    ]
    return pa.schema([*common, *texts, *scores]).empty_table()


def read_tables(paths: Iterable[Path]) -> pa.Table | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        tables = [pq.read_table(path, read_dictionary=list(_TEXTS)) for path in paths]
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"a table of the store cannot be read ({str(error).splitlines()[0][:160]}); ingest the records anew"
        ) from error
    if not tables:
        return None
    types: dict[str, set[bool]] = {}
    for table in tables:
        for name in table.column_names:
            if name.startswith(LABEL):
                types.setdefault(name, set()).add(pa.types.is_floating(table[name].type))
    mixed = {name for name, kinds in types.items() if len(kinds) > 1}
    return pa.concat_tables(
        [_as_texts(table, mixed) for table in tables], promote_options="default"
    ).unify_dictionaries()


def _as_texts(table: pa.Table, names: set[str]) -> pa.Table:
    """A label that is a number in one file and a text in another is a text."""
    import pyarrow as pa

    for name in names & set(table.column_names):
        if pa.types.is_floating(table[name].type):
            cells = [None if cell is None else as_text(cell) for cell in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(cells, pa.string()))
    return table


def as_text(value: float | str) -> str:
    """
    >>> as_text(25.0), as_text("male")
    ('25', 'male')
    """
    return value if isinstance(value, str) else f"{value:g}"


def codes_of(column: pa.ChunkedArray) -> tuple[np.ndarray, tuple[str, ...]]:
    """(N,) int64 positions among the sorted distinct texts, −1 for none, and these texts."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0) if whole.num_chunks else pa.array([], pa.string()).dictionary_encode()
    indices = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    words = whole.dictionary.to_pylist()
    present = np.unique(indices[indices >= 0])
    order = sorted(present.tolist(), key=lambda i: words[i])
    place = np.full(len(words) + 1, -1, dtype=np.int64)
    place[order] = np.arange(len(order))
    return place[indices], tuple(words[i] for i in order)
