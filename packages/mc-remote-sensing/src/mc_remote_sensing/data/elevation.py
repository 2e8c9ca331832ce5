"""An elevation model as the four channels a model sees, on the grid of the image.

Slope and curvature are taken on the model's own grid, with its cell size in metres on the ground, and only then brought to the
image: the derivative of an enlarged surface would be flat facets with spikes between them. They are computed once, in strips,
and kept as a GeoTIFF.

Legend: 4 channels, H rows, W columns of the image; h, w of a window.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from mc_core.errors import ConfigError, DataError
from mc_core.files import atomic_path
from mc_remote_sensing.data.cache import cache_folder, digest, file_state
from mc_remote_sensing.data.grid import Grid, overlap
from mc_remote_sensing.data.handles import RASTER_ERRORS, handle, open_raster, read_error
from mc_remote_sensing.data.raster import Nodata, RasterSource, read_reflected
from mc_remote_sensing.data.relief import CHANNELS, elevation_features, neighbourhood
from mc_remote_sensing.data.resampling import along_axes, between_systems, parallel_axes
from mc_remote_sensing.data.warping import kernel_scale

VerticalUnit = Literal["metre", "foot"]
_METRES = {"metre": 1.0, "foot": 0.3048}
_SPELLINGS = {
    **dict.fromkeys(("m", "metre", "meter", "metres", "meters"), "metre"),
    **dict.fromkeys(("ft", "foot", "feet", "us-ft", "us survey foot", "ftus", "us foot", "international foot"), "foot"),
}
_STRIP, _CHUNK = 512, 2048  # rows and columns at a time, beside the neighbourhood
_VERSION = 2
_NOT_FINER = 0.99
_WHOLE = 1 - 1e-4  # share of a resampled cell that must be known; less than 1 by the rounding of float32 weights


class ElevationSource:
    """The channels of an elevation model, by window of the image's grid. Picklable.

    Args:
        path: of a raster whose first band is the height.
        grid: of the image; default the model's own.
        vertical_unit: of the heights; default what the file says.
        nodata: instead of what the file says.
        assume_crs: for a file that has no coordinate system.
        cache: folder for the derivatives; see :func:`~mc_remote_sensing.data.cache.cache_folder`.
        relief_radius_m: half side of the square that relative elevation refers to, metres. A fixed neighbourhood, not the tile's
            median: what a place looks like must not depend on how it was cut.

    Attributes:
        path: as given.
        grid: of what :meth:`read` gives.
        native_grid: of the file.
        vertical_unit: that was used.
        derived: the GeoTIFF with the channels on the native grid.

    Raises:
        DataError: missing or damaged file, no coordinate system, or no common ground with ``grid``.
        ConfigError: the file does not say its vertical unit, and none was given.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        grid: Grid | None = None,
        *,
        vertical_unit: VerticalUnit | None = None,
        nodata: Nodata = None,
        assume_crs: str | None = None,
        cache: Path | None = None,
        relief_radius_m: float = 250.0,
    ) -> None:
        self.path = os.fspath(path)
        source = RasterSource(self.path, bands=[1], nodata=nodata, assume_crs=assume_crs)
        self.native_grid = source.native_grid
        self.grid = grid or self.native_grid
        if overlap(self.grid, self.native_grid) == 0:
            raise DataError(f"{self.path}: the elevation model does not overlap the image")
        self.vertical_unit = vertical_unit or declared_unit(self.path)
        if self.vertical_unit is None:
            raise ConfigError(
                f"{self.path}: does not say whether its heights are metres or feet; say so with --vertical-unit metre "
                "or --vertical-unit foot"
            )
        if self.vertical_unit not in _METRES:
            raise ConfigError(f"vertical unit {self.vertical_unit!r}: give metre or foot")
        self.relief_radius_m = float(relief_radius_m)
        key = digest([_VERSION, file_state(self.path), self.vertical_unit, nodata, assume_crs, self.relief_radius_m])
        self.derived = cache_folder(cache) / f"{Path(self.path).stem}-relief-{key}.tif"
        if not self.derived.exists():
            write_derivatives(source, self.derived, _METRES[self.vertical_unit], self.relief_radius_m)
        self._place(self.grid)

    def _place(self, grid: Grid) -> None:
        self.grid, self._same = grid, grid.matches(self.native_grid)
        self._axes = parallel_axes(self.native_grid, grid)
        self._coarser = min(kernel_scale(self.native_grid, grid).values()) > _NOT_FINER
        self._key = f"{self.derived} on {digest([grid.crs.to_wkt(), list(grid.transform), grid.shape])}"

    def __repr__(self) -> str:
        return f"ElevationSource({self.path!r}, grid={self.grid.shape})"

    @property
    def covers(self) -> float:
        """Share of ``grid`` inside the model's extent, from 0 to 1."""
        return overlap(self.grid, self.native_grid)

    def read(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        """(4, h, w) float32 in the order of ``CHANNELS``, 0 in all of them where the height is not known.

        A window may reach beyond the image: there the channels are reflected and ``valid`` is 0.
        """
        values, valid = read_reflected(self._read_inside, self.grid.shape, row, col, height, width)
        values[3] = valid
        return values

    def overview(self, most: int = 1024) -> np.ndarray:
        """(4, h, w) float32 of the whole grid, no side longer than ``most`` pixels."""
        shrink = max(1.0, self.grid.height / most, self.grid.width / most)
        shape = max(1, round(self.grid.height / shrink)), max(1, round(self.grid.width / shrink))
        values = self._warped().read(out_shape=(len(CHANNELS), *shape))
        values[:, values[3] <= _WHOLE] = 0
        values[3] = values[3] > 0
        return values

    def on(self, grid: Grid) -> ElevationSource:
        """The same channels on another grid."""
        found = copy.copy(self)
        found._place(grid)
        return found

    def _warped(self) -> Any:
        return handle(self._key, self._opened)

    def _opened(self) -> Any:
        file = open_raster(self.derived)
        if self._same:
            return file
        return WarpedVRT(
            file,
            crs=self.grid.crs,
            transform=self.grid.transform,
            width=self.grid.width,
            height=self.grid.height,
            resampling=Resampling.bilinear,
            **kernel_scale(self.native_grid, self.grid),
        )

    def _read_inside(self, row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        window = row, col, height, width
        if self._same:
            values = self._cells(*window)
        elif self._axes is not None:
            values = along_axes(self._cells, self.native_grid.shape, self._axes, window, len(CHANNELS))
        elif self._coarser:
            values = between_systems(self._cells, self.native_grid, self.grid, window, len(CHANNELS))
        else:  # a finer model in another system must be averaged, which GDAL does
            values = self._read(self._warped(), *window)
        valid = values[3] > _WHOLE
        values[:, ~valid] = 0
        return values, valid

    def _cells(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        return self._read(handle(str(self.derived), lambda: open_raster(self.derived)), row, col, height, width)

    def _read(self, file: Any, row: int, col: int, height: int, width: int) -> np.ndarray:
        try:
            return file.read(window=RasterWindow(col, row, width, height))  # type: ignore[call-arg]
        except RASTER_ERRORS as error:
            raise read_error(str(self.derived), (row, col, height, width), error) from error


def declared_unit(path: str) -> VerticalUnit | None:
    """The unit of heights that a file states: of its first band, or of its vertical coordinate system."""
    with open_raster(path) as file:
        text = (file.units[0] or "").strip().lower()
        crs = file.crs
    if text in _SPELLINGS:
        return _SPELLINGS[text]  # type: ignore[return-value]
    if crs is None:
        return None
    from pyproj import CRS as ProjCRS

    for axis in ProjCRS.from_wkt(crs.to_wkt()).axis_info:
        if axis.direction in ("up", "down"):
            return _SPELLINGS.get(axis.unit_name.lower())  # type: ignore[return-value]
    return None


def write_derivatives(source: RasterSource, path: Path, metres: float, relief_radius_m: float) -> None:
    """Compute the channels of a whole model in strips, and write them under their name when all are there."""
    grid = source.native_grid
    profile = {
        "driver": "GTiff",
        "count": len(CHANNELS),
        "dtype": "float32",
        "width": grid.width,
        "height": grid.height,
        "crs": grid.crs,
        "transform": grid.transform,
        "tiled": True,
        "blockxsize": 128,  # not compressed: that saves a third of the disk and makes a window ten times slower
        "blockysize": 128,
        "interleave": "pixel",
        "bigtiff": "if_safer",
    }
    with atomic_path(path) as draft, rasterio.open(draft, "w", **profile) as file:
        for top in range(0, grid.height, _STRIP):
            height = min(_STRIP, grid.height - top)
            around = neighbourhood(*grid.steps_metres(top + np.array([0.5 * height])), relief_radius_m)
            first, last = max(0, top - around[0] - 1), min(grid.height, top + height + around[0] + 1)
            across, down = grid.steps_metres(np.arange(first, last) + 0.5)
            for left in range(0, grid.width, _CHUNK):
                width = min(_CHUNK, grid.width - left)
                west, east = max(0, left - around[1] - 1), min(grid.width, left + width + around[1] + 1)
                z, valid = source.read(first, west, last - first, east - west)
                heights = z[0].astype(np.float64) * metres
                features = elevation_features(
                    heights,
                    across[:, None],
                    down[:, None],
                    around=around,
                    valid=valid,
                    part=(slice(top - first, top - first + height), slice(left - west, left - west + width)),
                )
                file.write(features.astype(np.float32), window=RasterWindow(left, top, width, height))  # type: ignore[call-arg]
        file.descriptions = CHANNELS
