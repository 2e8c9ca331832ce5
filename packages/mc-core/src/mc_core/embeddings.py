"""Embeddings as a file that other tools read: Parquet or npz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mc_core.errors import ConfigError
from mc_core.files import atomic_path
from mc_core.optional import require

if TYPE_CHECKING:
    import numpy as np

FORMATS = (".parquet", ".npz")


def check_format(path: Path, *, option: str = "--out") -> None:
    """Refuse a name that says no format, before any work is done.

    Args:
        path: of the file to write.
        option: that gave it, for the message.

    Raises:
        ConfigError: it ends in neither .parquet nor .npz.

    >>> check_format(Path("rows.csv"))
    Traceback (most recent call last):
    mc_core.errors.ConfigError: --out rows.csv: the name decides the format and must end in .parquet or .npz
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"{option} {path}: the name decides the format and must end in {' or '.join(FORMATS)}")


def write_embeddings(
    path: Path, features: np.ndarray, columns: Mapping[str, Sequence[Any] | np.ndarray] | None = None
) -> Path:
    """Write a row for each embedding, whole or not at all.

    In Parquet ``features`` is the last column, lists of D numbers; in npz it is an array (N, D), text columns being arrays of
    strings, not of objects.

    Args:
        path: ends in .parquet or .npz.
        features: (N, D).
        columns: further columns of N values each.

    Raises:
        ConfigError: another ending, or a place that cannot be written.
        MissingDependencyError: pyarrow is not installed and Parquet is asked for.

    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = write_embeddings(Path(folder) / "e.npz", np.ones((2, 3)), {"text": ["a", "b"]})
    ...     with np.load(file) as found:
    ...         print(found["features"].shape, found["text"].tolist())
    (2, 3) ['a', 'b']
    """
    import numpy as np

    check_format(path, option="the file")
    columns = columns or {}
    if path.suffix == ".npz":
        arrays = {name: np.asarray(values) for name, values in columns.items()}
        with atomic_path(path) as draft, draft.open("wb") as file:
            np.savez(file, features=features, **arrays)  # type: ignore[arg-type]
        return path
    pa = require("pyarrow", extra="pyarrow", purpose="write Parquet files")
    pq = require("pyarrow.parquet", extra="pyarrow", purpose="write Parquet files")
    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(features).reshape(-1)), features.shape[1])
    with atomic_path(path) as draft:
        pq.write_table(
            pa.table({**{name: pa.array(values) for name, values in columns.items()}, "features": rows}), draft
        )
    return path
