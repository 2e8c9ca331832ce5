"""Cells of labels as numbers: 1 present, 0 absent, −1 uncertain, NaN not mentioned. Imports no torch.

Legend: N rows, C labels, K class names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mc_core.errors import ConfigError

_VALUES = {
    **dict.fromkeys(("1", "true", "yes", "positive", "present"), 1.0),
    **dict.fromkeys(("0", "false", "no", "negative", "absent"), 0.0),
    **dict.fromkeys(("-1", "uncertain"), -1.0),
    "": np.nan,
}
_MOST_CLASSES = 64


def label_values(cells: Sequence[str]) -> tuple[np.ndarray, list[int]]:
    """(N,) float32, and the places whose value is unknown, which are NaN.

    >>> values, unknown = label_values(["1", "0.0", "-1", "", "maybe"])
    >>> values.tolist(), unknown
    ([1.0, 0.0, -1.0, nan, nan], [4])
    """
    known: dict[str, float | None] = {}
    for cell in set(cells):
        plain = cell.strip().lower()
        try:
            number = str(int(float(plain))) if float(plain).is_integer() else plain
        except (ValueError, OverflowError):
            number = plain
        known[cell] = _VALUES.get(number)
    found = [known[cell] for cell in cells]
    values = np.array([np.nan if value is None else value for value in found], dtype=np.float32)
    return values, [i for i, value in enumerate(found) if value is None]


def class_labels(cells: Sequence[str], column: str) -> tuple[tuple[str, ...], np.ndarray]:
    """K names and (N, K) float32 in {1, 0}, NaN in rows that name no class, from names separated by ``|``.

    Raises:
        ConfigError: so many different names that they are no classes.

    >>> class_labels(["Edema|Mass", "", "Mass"], "finding")
    (('Edema', 'Mass'), array([[ 1.,  1.],
           [nan, nan],
           [ 0.,  1.]], dtype=float32))
    """
    named = [[part.strip() for part in cell.split("|") if part.strip()] for cell in cells]
    names = tuple(sorted({name for row in named for name in row}))
    if not 1 <= len(names) <= _MOST_CLASSES:
        raise ConfigError(
            f"the column {column!r} holds {len(names)} different names: up to {_MOST_CLASSES} make classes"
        )
    place = {name: k for k, name in enumerate(names)}
    values = np.zeros((len(cells), len(names)), dtype=np.float32)
    for i, row in enumerate(named):
        values[i, [place[name] for name in row]] = 1.0
        if not row:
            values[i] = np.nan
    return names, values
