"""Class names as labels; for columns of 1, 0, −1 see :func:`mc_medical.labels.read_labels`. Imports no torch.

Legend: N rows, K class names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mc_core.errors import ConfigError

_MOST_CLASSES = 64


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
