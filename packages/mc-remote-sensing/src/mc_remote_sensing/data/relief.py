"""What a surface looks like around each cell: slope, curvature and height above its neighbourhood. Pure functions of arrays.

Sources: slope by Horn (1981), "Hill shading and the reflectance map", Proceedings of the IEEE 69(1): the 3 × 3 window
[a b c; d e f; g h i] gives p = ((c+2f+i) − (a+2d+g))/(8Δx), q = ((g+2h+i) − (a+2b+c))/(8Δy). The scales, the height above
a square neighbourhood and the curvature per cell are ours.

Legend: H rows, W columns. Everything is float64.
"""

from __future__ import annotations

import numpy as np

CHANNELS = ("relative_elevation", "slope", "curvature", "valid")
"""Of :func:`elevation_features` and of :class:`~mc_remote_sensing.data.elevation.ElevationSource`, in this order."""

RELATIVE_SCALE_M = 50.0
SLOPE_SCALE_DEGREES = 45.0
CURVATURE_SCALE = 0.5
"""Change of slope (metres per metre) from one cell to the next that counts as 1."""


def slope_degrees(z: np.ndarray, dx: float | np.ndarray, dy: float | np.ndarray) -> np.ndarray:
    """Steepest slope by Horn's 3 × 3 window.

    Args:
        z: (H, W) metres.
        dx: metres from a column to the next: a number, or (H, 1) for each row.
        dy: metres from a row to the next, likewise.

    Returns:
        (H, W) degrees from 0 to 90. Beyond the border the surface goes on as it rose there, so planes are exact everywhere.

    >>> z = 0.5 * np.arange(5.0)[None, :] + np.zeros((4, 1))
    >>> round(float(slope_degrees(z, 1.0, 1.0)[0, 0]), 3)
    26.565
    """
    a, b, c, d, _, f, g, h, i = _neighbours(z)
    p = ((c - a) + 2 * (f - d) + (i - g)) / (8 * np.asarray(dx))
    q = ((g - a) + 2 * (h - b) + (i - c)) / (8 * np.asarray(dy))
    return np.degrees(np.arctan(np.hypot(p, q)))


def laplacian(z: np.ndarray, dx: float | np.ndarray, dy: float | np.ndarray) -> np.ndarray:
    """Sum of the second derivatives along rows and columns: above 0 in bowls, below 0 on ridges, 0 on planes.

    Args:
        z: (H, W) metres.
        dx: as for :func:`slope_degrees`.
        dy: as for :func:`slope_degrees`.

    Returns:
        (H, W), 1/metre.

    >>> x = np.arange(5.0)[None, :] + np.zeros((5, 1))
    >>> float(laplacian(x**2, 1.0, 1.0)[2, 2])
    2.0
    """
    _, b, _, d, e, f, _, h, _ = _neighbours(z)
    return ((d - e) + (f - e)) / np.square(dx) + ((b - e) + (h - e)) / np.square(dy)


def relative_elevation(z: np.ndarray, valid: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Height above the mean of the valid cells at most ``rows`` and ``columns`` away: above 0 on ridges.

    Args:
        z: (H, W) metres.
        valid: (H, W) bool.
        rows: half height of the neighbourhood, cells.
        columns: half width.

    Returns:
        (H, W) metres; the value of an invalid cell means nothing.
    """
    base = float(z[valid].mean()) if valid.any() else 0.0
    above = np.where(valid, z - base, 0.0)
    if valid.all():
        count = np.outer(
            *(np.diff(_reach(size, radius), axis=0)[0] for size, radius in zip(z.shape, (rows, columns), strict=True))
        )
    else:
        count = np.maximum(_box_sum(valid.astype(np.float64), rows, columns), 1)
    return above - _box_sum(above, rows, columns) / count


def elevation_features(
    z: np.ndarray,
    dx: float | np.ndarray,
    dy: float | np.ndarray,
    *,
    relief_radius_m: float = 250.0,
    around: tuple[int, int] | None = None,
    valid: np.ndarray | None = None,
    part: tuple[slice, slice] = (slice(None), slice(None)),
) -> np.ndarray:
    """The four channels a model sees of a surface.

    Args:
        z: (H, W) metres, on its native grid in metres. NaN where unknown.
        dx: metres from a column to the next: a number, or (H, 1) for each row.
        dy: metres from a row to the next, likewise.
        relief_radius_m: half side of the square that "relative" is relative to; at least two cells.
        around: half height and half width of that square in cells; default by :func:`neighbourhood`.
        valid: (H, W) bool, default where ``z`` is finite.
        part: rows and columns wanted; the rest is only what they are compared with.

    Returns:
        (4, H, W) of the part, float64, in the order of :data:`CHANNELS`: (z − mean of the neighbourhood) / 50 m; slope / 45°;
        Laplacian × cell size / 0.5, clipped to ±1; 1 where the cell and its eight neighbours are known, else 0 in all four.

    >>> z = 0.1 * 30 * np.arange(9.0)[None, :] + np.zeros((9, 1))
    >>> features = elevation_features(z, 30.0, 30.0, relief_radius_m=60)
    >>> np.round(features[:, 4, 4], 4).tolist()
    [0.0, 0.1269, 0.0, 1.0]
    """
    z = np.asarray(z, dtype=np.float64)
    known = np.isfinite(z) if valid is None else np.asarray(valid, dtype=bool) & np.isfinite(z)
    z = np.where(known, z, 0.0)
    above = relative_elevation(z, known, *(around or neighbourhood(dx, dy, relief_radius_m)))[part]
    dx, dy = np.broadcast_to(dx, (len(z), 1)), np.broadcast_to(dy, (len(z), 1))
    near, inner = zip(*(_with_neighbours(piece, size) for piece, size in zip(part, z.shape, strict=True)), strict=True)
    z, known, dx, dy = z[near], known[near], dx[near[0]], dy[near[0]]
    features = np.stack(
        [
            above / RELATIVE_SCALE_M,
            slope_degrees(z, dx, dy)[inner] / SLOPE_SCALE_DEGREES,
            np.clip(laplacian(z, dx, dy) * np.sqrt(dx * dy) / CURVATURE_SCALE, -1, 1)[inner],
            np.ones_like(above),
        ]
    )
    features[:, ~_all_neighbours(known)[inner]] = 0
    return features


def _with_neighbours(piece: slice, size: int) -> tuple[slice, slice]:
    """A stretch of an axis with the cell before and after it where there are some, and where in that it lies."""
    first, last, _ = piece.indices(size)
    start = max(first - 1, 0)
    return slice(start, min(last + 1, size)), slice(first - start, last - start)


def neighbourhood(dx: float | np.ndarray, dy: float | np.ndarray, radius_m: float) -> tuple[int, int]:
    """Half height and half width in cells of a square of ``radius_m``, at least 2."""
    return max(2, round(radius_m / float(np.mean(dy)))), max(2, round(radius_m / float(np.mean(dx))))


def _neighbours(z: np.ndarray) -> tuple[np.ndarray, ...]:
    """a … i of each cell's window, the border continued linearly."""
    z = _extend(_extend(np.asarray(z, dtype=np.float64)).T).T
    height, width = z.shape[0] - 2, z.shape[1] - 2
    return tuple(z[r : r + height, c : c + width] for r in range(3) for c in range(3))


def _extend(z: np.ndarray) -> np.ndarray:
    first = 2 * z[:1] - z[1:2] if len(z) > 1 else z[:1]
    last = 2 * z[-1:] - z[-2:-1] if len(z) > 1 else z[-1:]
    return np.concatenate([first, z, last])


def _all_neighbours(known: np.ndarray) -> np.ndarray:
    padded = np.pad(known, 1, constant_values=True)
    height, width = known.shape
    return np.logical_and.reduce([padded[r : r + height, c : c + width] for r in range(3) for c in range(3)])


def _reach(size: int, radius: int) -> np.ndarray:
    """(2, size) where the neighbourhood of each cell begins and ends, along one axis."""
    cells = np.arange(size)
    return np.stack([np.maximum(cells - radius, 0), np.minimum(cells + radius + 1, size)])


def _box_sum(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Sum over (2 rows + 1) × (2 columns + 1) cells, cut off at the border."""
    for axis, radius in ((0, rows), (1, columns)):
        sums = np.zeros([size + (i == axis) for i, size in enumerate(values.shape)])
        np.cumsum(values, axis=axis, out=sums[1:] if axis == 0 else sums[:, 1:])
        lower, upper = _reach(values.shape[axis], radius)
        values = sums.take(upper, axis)
        values -= sums.take(lower, axis)
    return values
