"""Where the pixels of a raster lie: its coordinate system, its affine transform and its size.

Legend: H rows, W columns. Windows are (row, column, height, width) in pixels, the row counted from the top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from rasterio import CRS, Affine
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_bounds

from mc_core.errors import ConfigError, DataError

_WGS84 = CRS.from_epsg(4326)
_TRUE_TO_SCALE = 0.01


class Window(NamedTuple):
    """A rectangle of pixels; unpacks into the arguments of every ``read``."""

    row: int
    col: int
    height: int
    width: int


@dataclass(frozen=True)
class Grid:
    """The grid of a raster.

    Attributes:
        crs: coordinate system, projected or geographic.
        transform: from (column, row) to coordinates of the system.
        width: W, pixels.
        height: H, pixels.

    >>> grid = Grid(CRS.from_epsg(32632), Affine(10, 0, 600_000, 0, -10, 5_200_000), 200, 100)
    >>> grid.bounds, grid.shape
    ((600000.0, 5199000.0, 602000.0, 5200000.0), (100, 200))
    >>> grid.window(10, 20, 5, 5).bounds
    (600200.0, 5199850.0, 600250.0, 5199900.0)
    """

    crs: CRS
    transform: Affine
    width: int
    height: int

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.height, self.width

    @cached_property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in the units of ``crs``: the envelope, if the grid is rotated."""
        x, y = self.coordinates(np.array([0, 0, self.height, self.height]), np.array([0, self.width, 0, self.width]))
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())

    @property
    def is_geographic(self) -> bool:
        """Coordinates are degrees, not lengths."""
        return bool(self.crs.is_geographic)

    def window(self, row: int, col: int, height: int, width: int) -> Grid:
        """The grid of a window, which may reach beyond this one."""
        a, b, c, d, e, f = tuple(self.transform)[:6]
        return Grid(self.crs, Affine(a, b, c + a * col + b * row, d, e, f + d * col + e * row), width, height)

    def matches(self, other: Grid) -> bool:
        """Same system, size and position, to a hundredth of a pixel."""
        if self.shape != other.shape or self.crs != other.crs:
            return False
        rows, columns = np.array([0, 0, self.height, self.height]), np.array([0, self.width, 0, self.width])
        there = self.pixels(*other.coordinates(rows, columns))
        return bool(np.abs(np.stack(there) - np.stack([rows, columns])).max() < 0.01)

    @cached_property
    def pixel_metres(self) -> tuple[float, float]:
        """Width and height on the ground of the pixel in the middle, metres: across a row, down a column."""
        across, down = self.steps_metres(np.array([self.height / 2]))
        return float(across[0]), float(down[0])

    def steps_metres(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Metres on the ground of one step across and one down, in the middle column, at each of ``rows`` (R,).

        A projected system's own length where that is true to 1 %, as in UTM; else (degrees, a Mercator map far from the equator)
        measured on the ellipsoid. Systems not tied to the Earth give their nominal length.
        """
        rows = np.asarray(rows, dtype=np.float64)
        column = self.width / 2
        middle, right, below = (
            self.longitude_latitude(rows + dr, np.full_like(rows, column) + dc) for dr, dc in ((0, 0), (0, 1), (1, 0))
        )
        nominal = self._nominal_metres()
        if middle is None or right is None or below is None:
            return np.full_like(rows, nominal[0]), np.full_like(rows, nominal[1])
        from pyproj import Geod

        geod = Geod(ellps="WGS84")
        across = geod.inv(*middle, *right)[2]
        down = geod.inv(*middle, *below)[2]
        across, down = np.asarray(across, dtype=np.float64), np.asarray(down, dtype=np.float64)
        if not self.is_geographic and all(
            np.abs(found / length - 1).max() < _TRUE_TO_SCALE
            for found, length in zip((across, down), nominal, strict=True)
        ):
            return np.full_like(rows, nominal[0]), np.full_like(rows, nominal[1])
        return across, down

    def _nominal_metres(self) -> tuple[float, float]:
        a, b, _, d, e, _ = tuple(self.transform)[:6]
        unit = 111_195.0 if self.is_geographic else float(self.crs.linear_units_factor[1])
        return math.hypot(a, d) * unit, math.hypot(b, e) * unit

    def longitude_latitude(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Degrees at points given in pixels (pixel centres are at .5); None where the system is not tied to the Earth."""
        x, y = self.coordinates(rows, columns)
        try:
            longitude, latitude = transform_points(self.crs, _WGS84, x.ravel(), y.ravel())
        except Exception:  # rasterio has no common base for what PROJ refuses
            return None
        found = np.asarray(longitude), np.asarray(latitude)
        return found if np.isfinite(found).all() else None

    def coordinates(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x and y of points given in pixels."""
        a, b, c, d, e, f = tuple(self.transform)[:6]
        rows, columns = np.asarray(rows, dtype=np.float64), np.asarray(columns, dtype=np.float64)
        return a * columns + b * rows + c, d * columns + e * rows + f

    def pixels(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns, in fractions, of coordinates: the reverse of :meth:`coordinates`."""
        a, b, c, d, e, f = tuple(~self.transform)[:6]
        return d * x + e * y + f, a * x + b * y + c

    def area_m2(self, row: int = 0, col: int = 0, height: int | None = None, width: int | None = None) -> float:
        """Area on the ground of a window (default: of the whole grid), square metres."""
        height, width = height or self.height, width or self.width
        rows = row + (np.arange(height) + 0.5 if height <= 256 else (np.arange(256) + 0.5) * height / 256)
        across, down = self.steps_metres(rows)
        return float(np.mean(across * down) * height * width)

    @cached_property
    def wgs84_bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees.

        Raises:
            DataError: the coordinates do not lie on Earth.
        """
        try:
            found = transform_bounds(self.crs, _WGS84, *self.bounds)
        except Exception as error:
            raise DataError(f"bounds {_short(self.bounds)} are not valid in {name_of(self.crs)} ({error})") from error
        if not np.isfinite(found).all():
            raise DataError(f"bounds {_short(self.bounds)} are not valid in {name_of(self.crs)}: is the CRS right?")
        west, south, east, north = found
        return float(west), float(south), float(east), float(north)


def local_utm(grid: Grid) -> CRS:
    """The UTM zone in which the middle of a grid lies.

    >>> grid = Grid(CRS.from_epsg(4326), Affine(1e-4, 0, 11.0, 0, -1e-4, 46.0), 100, 100)
    >>> local_utm(grid).to_epsg()
    32632
    """
    longitude, latitude = _middle(grid)
    zone = min(max(math.floor((longitude + 180) / 6) + 1, 1), 60)
    return CRS.from_epsg((32600 if latitude >= 0 else 32700) + zone)


def local_equal_area(grid: Grid) -> CRS:
    """Lambert's azimuthal equal-area projection around the middle of a grid, in metres: what areas are measured in."""
    longitude, latitude = _middle(grid)
    return CRS.from_proj4(f"+proj=laea +lat_0={latitude:.4f} +lon_0={longitude:.4f} +datum=WGS84 +units=m +no_defs")


def _middle(grid: Grid) -> tuple[float, float]:
    west, south, east, north = grid.wgs84_bounds
    return (west + east) / 2, (south + north) / 2


def overlap(grid: Grid, other: Grid) -> float:
    """Share of ``grid`` that ``other`` covers, from 0 to 1, on a lattice of 64 × 64 points.

    >>> grid = Grid(CRS.from_epsg(32632), Affine(10, 0, 600_000, 0, -10, 5_200_000), 200, 100)
    >>> overlap(grid, grid.window(0, 100, 100, 200))
    0.5
    """
    rows, columns = np.meshgrid(
        (np.arange(64) + 0.5) * grid.height / 64, (np.arange(64) + 0.5) * grid.width / 64, indexing="ij"
    )
    x, y = grid.coordinates(rows.ravel(), columns.ravel())
    if grid.crs != other.crs:
        try:
            x, y = (np.asarray(v) for v in transform_points(grid.crs, other.crs, x, y))
        except Exception as error:
            raise DataError(f"{name_of(grid.crs)} and {name_of(other.crs)} do not convert ({error})") from error
    row, column = other.pixels(x, y)
    inside = (column >= 0) & (column <= other.width) & (row >= 0) & (row <= other.height)
    return float(inside.mean())


def crs_of(text: str) -> CRS:
    """The coordinate system a user names: a code such as ``EPSG:32632``, WKT or a PROJ string.

    Raises:
        ConfigError: it is none.
    """
    try:
        return CRS.from_user_input(text)
    except Exception as error:
        raise ConfigError(
            f"--assume-crs {text}: is no coordinate system; give a code such as EPSG:32632, or WKT"
        ) from error


def name_of(crs: CRS) -> str:
    """A short name for messages: the EPSG code where there is one."""
    code = crs.to_epsg()
    if code:
        return f"EPSG:{code}"
    text = crs.to_wkt()
    return text.split('"')[1] if '"' in text else text[:40]


def _short(bounds: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in bounds)
