"""What every measure asks of its arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mc_core.errors import DataError


def unit(x: Any, name: str, *, dim: int | None = None) -> np.ndarray:
    """``x`` as an (N, D) float64 matrix, after checking that it is finite and its rows have length one.

    Raises:
        DataError: another shape, no rows, values that are not finite, rows of another length.
    """
    found = np.asarray(x, dtype=np.float64)
    if found.ndim != 2 or not found.size:
        raise DataError(f"{name} has shape {found.shape}; embeddings are (rows, dimensions), not empty")
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{name} is not finite in {int((~finite).sum())} of {len(found)} rows, first in row {int(finite.argmin())}"
        )
    length = np.linalg.norm(found, axis=1)
    off = np.abs(length - 1) > 1e-3
    if off.any():
        raise DataError(
            f"{name}: row {int(off.argmax())} has length {length[off.argmax()]:.4g}; embeddings must have length 1, normalise them"
        )
    if dim is not None and found.shape[1] != dim:
        raise DataError(f"{name} has {found.shape[1]} dimensions, {dim} are needed; both must come from one model")
    return found


def binary_labels(labels: Any, rows: int, names: Sequence[str]) -> np.ndarray:
    """(N, C) float64 in {1, 0, NaN}.

    Raises:
        DataError: another shape, other values; −1 must have been given a meaning before.
    """
    found = np.asarray(labels, dtype=np.float64)
    if found.shape != (rows, len(names)):
        raise DataError(f"labels have shape {found.shape}; {rows} rows and {len(names)} observations are needed")
    wrong = ~np.isnan(found) & (found != 0) & (found != 1)
    if wrong.any():
        row, place = np.argwhere(wrong)[0]
        raise DataError(
            f"label {names[place]!r} is {found[row, place]:g} in row {row}; 1, 0 or NaN are needed: "
            "give uncertain labels a meaning with resolve_labels first"
        )
    return found


def groups(patients: Any, rows: int) -> np.ndarray:
    """(N,) patient of each row, numbered from 0; each row its own where ``patients`` is None.

    Raises:
        DataError: another length.
    """
    if patients is None:
        return np.arange(rows)
    named = np.asarray(patients)
    if named.shape != (rows,):
        raise DataError(f"patients have shape {named.shape}; each of {rows} rows needs its patient")
    return np.unique(named, return_inverse=True)[1]


def positive_scale(scale: float) -> float:
    """κ, after checking it.

    Raises:
        DataError: not a positive number.
    """
    if not (np.isfinite(scale) and scale > 0):
        raise DataError(f"scale {scale} must be positive: it is κ = 1/τ, the model's learned logit scale")
    return float(scale)
