"""Labels of a scene, by window: 0 background, 1 target, 255 not to be counted.

They come as polygons or as a raster of chosen values, and in up to four layers: what to find, where all of it was mapped,
what is uncertain, and what looks like it and is not.

Legend: H rows, W columns of the image; h, w of a window.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from rasterio.windows import Window as RasterWindow
from scipy.ndimage import maximum_filter, minimum_filter

from mc_core.errors import ConfigError, DataError
from mc_remote_sensing.data.grid import Grid, overlap
from mc_remote_sensing.data.handles import RASTER_ERRORS, handle, open_raster, read_error
from mc_remote_sensing.data.polygons import Polygons, Role, read_polygons
from mc_remote_sensing.data.raster import RasterSource, within
from mc_remote_sensing.data.warping import nearest_window

BACKGROUND, TARGET, IGNORE = 0, 1, 255
_STRIP = 512
_VECTOR_SUFFIXES = {".gpkg", ".shp", ".geojson", ".json", ".fgb", ".kml", ".gml", ".sqlite", ".zip"}


@dataclass(frozen=True)
class MaskRaster:
    """A raster whose values say what a pixel is; made by :func:`read_labels`.

    Attributes:
        path: of the file.
        role: what it tells.
        grid: of the image; another grid is brought to it by the nearest pixel.
        native_grid: of the file.
        target: value of the target.
        background: value of the background; None for "everything else", but for 255 and the file's nodata value.
        nodata: that the file declares; counts only where ``background`` is None.
        key: of the file as it was when it was opened.
    """

    path: str
    role: Role
    grid: Grid
    native_grid: Grid
    target: int
    background: int | None = None
    nodata: float | None = None
    key: tuple[object, ...] = ()

    @cached_property
    def _same(self) -> bool:
        return self.native_grid.matches(self.grid)

    def classes(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        """(h, w) uint8 of 0, 1 and 255: 255 beyond the image and beyond the file."""
        if not self._same:
            wanted = self.grid.window(row, col, height, width)
            found = nearest_window(self._native, self.native_grid, wanted, IGNORE)
            found[~within(self.grid.shape, row, col, height, width)] = IGNORE
            return found
        found = np.full((height, width), IGNORE, dtype=np.uint8)
        top, left = max(row, 0), max(col, 0)
        bottom, right = min(row + height, self.grid.height), min(col + width, self.grid.width)
        if top < bottom and left < right:
            part = self._native(top, left, bottom - top, right - left)
            found[top - row : bottom - row, left - col : right - col] = part
        return found

    def _native(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        window = RasterWindow(col, row, width, height)  # type: ignore[call-arg]
        try:
            raw = handle(self.key, lambda: open_raster(self.path)).read(1, window=window)
        except RASTER_ERRORS as error:
            raise read_error(self.path, (row, col, height, width), error) from error
        if self.background is None:
            found = np.zeros(raw.shape, dtype=np.uint8)
            found[(raw == IGNORE) | ~np.isfinite(raw)] = IGNORE
            if self.nodata is not None:
                found[raw == self.nodata] = IGNORE
        else:
            found = np.full(raw.shape, IGNORE, dtype=np.uint8)
            found[raw == self.background] = BACKGROUND
        found[raw == self.target] = TARGET
        return found

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
        window = row, col, height, width
        if isinstance(self.target, MaskRaster):
            labels = self.target.classes(*window)
            target = labels == TARGET
        else:
            target = self.target.rasterise(*window)
            labels = target.astype(np.uint8)
        if self.hard_negatives is not None:
            hard = self.hard_negatives.rasterise(*window)
            labels[hard] = BACKGROUND
            labels[hard & target] = IGNORE
        if self.boundary_ignore_px:
            labels[self._boundary(*window)] = IGNORE
        if self.uncertain is not None:
            labels[self.uncertain.rasterise(*window)] = IGNORE
        if self.extent is not None:
            labels[~self.extent.rasterise(*window)] = IGNORE
        if row < 0 or col < 0 or row + height > self.grid.height or col + width > self.grid.width:
            labels[~within(self.grid.shape, *window)] = IGNORE
        return labels

    def _boundary(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        k = self.boundary_ignore_px
        target = self.target.rasterise(row - k, col - k, height + 2 * k, width + 2 * k).astype(np.uint8)
        ring = maximum_filter(target, 2 * k + 1) != minimum_filter(target, 2 * k + 1)
        return ring[k : k + height, k : k + width]


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
        values: of a raster, default ``{"background": 0, "target": 1}``; what has another value is not counted. With the target
            alone, everything else is background but for 255 and the file's nodata value.
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
    return _read_mask(path, grid, role, values or {"background": 0, "target": 1}, assume_crs)


def _read_mask(path: str, grid: Grid, role: Role, values: Mapping[str, int], assume_crs: str | None) -> MaskRaster:
    unknown = set(values) - {"background", "target"}
    if unknown or "target" not in values or values["target"] == values.get("background"):
        raise ConfigError(f"label values {dict(values)}: give the value of target and, of another value, background")
    source = RasterSource(path, bands=[1], assume_crs=assume_crs)
    if overlap(grid, source.native_grid) == 0:
        raise DataError(f"{path}: the labels do not overlap the image")
    mask = MaskRaster(
        path, role, grid, source.native_grid, values["target"], values.get("background"), source.nodata[0], source.key
    )
    found = _values(path)
    if mask.target not in found:
        raise DataError(
            f"{path}: no pixel has the value {mask.target} of the {role.replace('_', ' ')}; it holds "
            f"{', '.join(f'{value:g}' for value in found[:8])}{' …' if len(found) > 8 else ''}: say which is which with "
            "--label-values target=…,background=…"
        )
    return mask


def _values(path: str) -> list[float]:
    """The values of a mask, in rising order; the first few hundred when there are more."""
    found: set[float] = set()
    with open_raster(path) as file:
        for top in range(0, file.height, _STRIP):
            window = RasterWindow(0, top, file.width, min(_STRIP, file.height - top))  # type: ignore[call-arg]
            try:
                found.update(np.unique(file.read(1, window=window)).tolist())
            except RASTER_ERRORS as error:
                raise read_error(path, (top, 0, _STRIP, file.width), error) from error
            if len(found) > 1000:
                raise DataError(f"{path}: has more than 1,000 values; is it a raster of labels?")
    return sorted(found)
