"""A table of labels with raw participant ids, matched to a store by its salted hashes; raw ids go no further than here."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mc_core.errors import ConfigError, DataError, closest
from mc_wearables.data.recording import PARTICIPANT_NAMES
from mc_wearables.data.store import SegmentStore
from mc_wearables.evaluation.comparison import DEMOGRAPHIC_LABELS

_log = logging.getLogger("mc_core")
MOST_CLASSES = 10
"""A column of more words than these is free text, or names."""
_ONE, _ZERO = ("m", "male", "man", "yes", "true"), ("f", "female", "woman", "no", "false")
_WORDS = {**dict.fromkeys(_ONE, 1.0), **dict.fromkeys(_ZERO, 0.0)}


def labels_of(path: Path, store: SegmentStore, targets: list[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """(P,) float64 columns by the store's participant codes, NaN where the table says nothing; and which of them are targets.

    Text columns of two words become 0 and 1: male and yes are 1; other pairs in alphabetical order. Of up to ten words each
    becomes a column against the rest, as ``rhythm=AFIB``. Demographics (age, sex, bmi) come along when they are no targets.

    Args:
        path: .csv, .tsv or .parquet with a column ``participant``.
        store: whose participants; its salt must lie beside it.
        targets: columns wanted, or one class as ``rhythm=AFIB``; default: all that can be read.

    Raises:
        DataError: no such table, no column of participants, participants listed twice with different values, or none of them
            has a signal.
        ConfigError: a target that is no column.
    """
    table = _read(path)
    names = {name.strip().lower(): name for name in table.column_names}
    column = next((names[name] for name in PARTICIPANT_NAMES if name in names), None)
    if column is None:
        raise DataError(
            f"{path}: no column of participants; name it participant (there are {', '.join(table.column_names)})"
        )
    raw = table[column].to_pylist()
    codes = store.participant_codes(raw)
    known = codes >= 0
    if not known.any():
        raise DataError(
            f"{path}: none of its {len(set(raw))} participants has a signal in {store.path}; are the ids those of the recordings?"
        )
    if not known.all():
        _log.warning("%d of %d participants in %s have no signal and are left out", (~known).sum(), len(raw), path)
    without = len(store.participant_keys) - len(set(codes[known].tolist()))
    if without:
        _log.info("%d of %d participants of the store have no label", without, len(store.participant_keys))
    found: dict[str, np.ndarray] = {}
    wanted: list[str] = []
    for target in targets or [name for name in table.column_names if name != column]:
        name, _, word = (target, "", "") if target in table.column_names else target.partition("=")
        if name not in table.column_names:
            raise ConfigError(
                f"--target {target}: {path} has no such column; did you mean {closest(target, table.column_names)}?"
            )
        columns = _columns(name, table[name].to_pylist())
        if word and target not in columns:
            raise ConfigError(f"--target {target}: {path} has no such value in column {name}; {_choice(columns)}")
        if not columns and targets:
            raise DataError(f"{path}, column {target}: neither numbers nor a few words: nothing to read")
        for part, values in columns.items():
            if np.isinf(values).any():
                raise DataError(
                    f"{path}, column {part}: {int(np.isinf(values).sum())} values are infinite; leave those cells empty"
                )
            if not word or part == target:
                wanted.append(part)
                found[part] = _by_code(
                    values[known], codes[known], len(store.participant_keys), f"{path}, column {part}"
                )
    if not found:
        raise DataError(f"{path}: no column with numbers or a few words besides {column}")
    for name in DEMOGRAPHIC_LABELS:
        if name in names and names[name] not in wanted:
            for part, values in _columns(name, table[names[name]].to_pylist()).items():
                if part not in found and not np.isinf(values).any():
                    found[part] = _by_code(
                        values[known], codes[known], len(store.participant_keys), f"{path}, column {part}"
                    )
    return found, wanted


def _choice(columns: Mapping[str, np.ndarray]) -> str:
    return f"there are {', '.join(columns)}" if columns else "it holds no words"


def _read(path: Path):  # type: ignore[no-untyped-def]
    from csv import reader

    import pyarrow as pa
    import pyarrow.csv as csv
    import pyarrow.parquet as parquet

    if not path.exists():
        raise DataError(f"{path}: no such table of labels")
    try:
        if path.suffix.lower() == ".parquet":
            return parquet.read_table(path)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        head = path.read_text(encoding="utf-8-sig", errors="replace").partition("\n")[0]
        if delimiter == "," and head.count(";") > head.count(","):
            delimiter = ";"
        # ids are texts: 017 and 17 may be two people
        texts = {name: pa.string() for name in next(reader([head], delimiter=delimiter), []) if _is_participant(name)}
        return csv.read_csv(
            path,
            parse_options=csv.ParseOptions(delimiter=delimiter),
            convert_options=csv.ConvertOptions(column_types=texts),
        )
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not a table that can be read ({' '.join(str(error).split())[:200]})") from error


def _is_participant(name: str) -> bool:
    return name.strip().lower() in PARTICIPANT_NAMES


def _columns(name: str, values: list[object]) -> dict[str, np.ndarray]:
    """What can be read of a column: numbers as they are, two words as 0 and 1, each of a few words against the rest."""
    seen = [v for v in values if v is not None and str(v).strip() != ""]
    if all(isinstance(v, (int, float)) for v in seen):
        return {name: np.array([np.nan if v is None or v == "" else float(v) for v in values])}  # type: ignore[arg-type]
    cells = [None if v is None or not str(v).strip() else str(v).strip() for v in values]
    words = sorted({cell.lower() for cell in cells if cell is not None})
    if not 2 <= len(words) <= MOST_CLASSES:
        return {}

    def coded(code: Mapping[str, float]) -> np.ndarray:
        return np.array([np.nan if cell is None else code[cell.lower()] for cell in cells], dtype=np.float64)

    if len(words) == 2:
        known = {word: _WORDS.get(word, np.nan) for word in words}
        return {name: coded(known if set(known.values()) == {0.0, 1.0} else dict(zip(words, (0.0, 1.0), strict=True)))}
    written = {cell.lower(): cell for cell in reversed(cells) if cell is not None}
    return {f"{name}={written[word]}": coded({other: float(other == word) for other in words}) for word in words}


def _by_code(values: np.ndarray, codes: np.ndarray, count: int, where: str) -> np.ndarray:
    found = np.full(count, np.nan)
    for code in np.unique(codes):
        mine = values[codes == code]
        mine = mine[~np.isnan(mine)]
        if len(np.unique(mine)) > 1:
            raise DataError(
                f"{where}: a participant is listed with {len(np.unique(mine))} values; give one row per person"
            )
        if len(mine):
            found[code] = mine[0]
    return found
