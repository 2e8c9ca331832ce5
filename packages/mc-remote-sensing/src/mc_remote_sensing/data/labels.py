"""Labels of a scene, by window: 0 background, 1 target, 255 not to be counted.

They come as polygons or as a raster of chosen values, and in up to four layers: what to find, where all of it was mapped,
what is uncertain, and what looks like it and is not.

Legend: H rows, W columns of the image; h, w of a window.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from mc_core.errors import ConfigError, DataError
from mc_remote_sensing.data.grid import Grid
from mc_remote_sensing.data.handles import RASTER_ERRORS, handle, open_raster, read_error
from mc_remote_sensing.data.raster import RasterSource
from mc_remote_sensing.data.polygons import Polygons, Role, read_polygons

BACKGROUND, TARGET, IGNORE = 0, 1, 255
_VECTOR_SUFFIXES = {".gpkg", ".shp", ".geojson", ".json", ".fgb", ".kml", ".gml", ".sqlite", ".parquet", ".zip", ".csv"}


@dataclass(frozen=True)
class MaskRaster:
    """A raster whose values say what a pixel is.

    Attributes:
        path: of the file.
        role: what it tells.
        grid: of the image; another grid is brought to it by the nearest pixel.
        values: ``{"background": …, "target": …}``; what has any other value is not counted.
        crs: for a file without coordinate system.
    """

    path: str
    role: Role
    grid: Grid
    values: Mapping[str, int]
    crs: str | None = None

    def classes(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        """(h, w) uint8 of 0, 1 and 255."""
        found = np.full((height, width), IGNORE, dtype=np.uint8)
        top, left = max(row, 0), max(col, 0)
        bottom, right = min(row + height, self.grid.height), min(col + width, self.grid.width)
        if top >= bottom or left >= right:
            return found
        window = RasterWindow(left, top, right - left, bottom - top)  # type: ignore[call-arg]
        try:
            raw = handle(("mask", self.path, self.grid), self._opened).read(1, window=window)
        except RASTER_ERRORS as error:
            raise read_error(self.path, (row, col, height, width), error) from error
        part = np.full(raw.shape, IGNORE, dtype=np.uint8)
        part[raw == self.values["background"]] = BACKGROUND
        part[raw == self.values["target"]] = TARGET
        found[top - row : bottom - row, left - col : right - col] = part
        return found

    def _opened(self) -> Any:
        file = open_raster(self.path)
        native = RasterSource(self.path, assume_crs=self.crs).native_grid
        if native.matches(self.grid):
            return file
        return WarpedVRT(
            file,
            src_crs=native.crs,
            crs=self.grid.crs,
            transform=self.grid.transform,
            width=self.grid.width,
            height=self.grid.height,
            resampling=Resampling.nearest,
        )

    def rasterise(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        """(h, w) bool: pixels with the target's value."""
        return self.classes(row, col, height, width) == TARGET


Layer = Polygons | MaskRaster


@dataclass(frozen=True)
class LabelLayers:
    """The labels of an image.

    Where layers meet: outside ``extent`` nothing counts; uncertain places do not count; what is both target and hard negative
    does not count; then target, then background.

    Attributes:
        grid: of the image.
        target: what to find. A mask raster may leave pixels unlabelled.
        extent: where all of it was mapped; without one, the whole image was.
        uncertain: perhaps so; ignored.
        hard_negatives: looks like it and is not; windows are drawn there too.
        boundary_ignore_px: pixels on both sides of the target's outline that do not count.
    """

    grid: Grid
    target: Layer
    extent: Layer | None = None
    uncertain: Layer | None = None
    hard_negatives: Layer | None = None
    boundary_ignore_px: int = 0

    def rasterise(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        """(h, w) uint8 of 0, 1 and 255; beyond the image 255."""
        if isinstance(self.target, MaskRaster):
            labels = self.target.classes(row, col, height, width)
        else:
            labels = self.target.rasterise(row, col, height, width).astype(np.uint8)
        return labels


def read_labels(
    path: str | os.PathLike[str],
    grid: Grid,
    *,
    role: Role = "target",
    where: str | None = None,
    layer: str | None = None,
    values: Mapping[str, int] | None = None,
    assume_crs: str | None = None,
) -> Layer:
    """Read one layer of labels: polygons, or a raster of values.

    Args:
        path: GeoPackage, Shapefile, GeoJSON … or a raster.
        grid: of the image.
        role: what it tells.
        where: of polygons, ``"column=value"``.
        layer: of a file with several.
        values: of a raster, default ``{"background": 0, "target": 1}``.
        assume_crs: for a file without coordinate system.

    Raises:
        DataError: what cannot be read or does not lie in the image.
        ConfigError: options that do not fit the file.
    """
    path = os.fspath(path)
    if not Path(path).exists():
        raise DataError(f"{path}: does not exist")
    if Path(path).suffix.lower() in _VECTOR_SUFFIXES:
        if values is not None:
            raise ConfigError(f"{path}: holds polygons; values are for a raster of labels")
        return read_polygons(path, grid, role=role, where=where, layer=layer, assume_crs=assume_crs)
    if where is not None or layer is not None:
        raise ConfigError(f"{path}: is a raster of labels; a column or layer is for polygons")
    return MaskRaster(path, role, grid, dict(values or {"background": 0, "target": 1}), assume_crs)
