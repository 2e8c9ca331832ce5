"""A class raster as polygons with attributes, strip by strip.

An object is a set of target pixels that touch, also at corners. Each strip is labelled and outlined by itself; objects that go on
in the next strip are known by the pixels on both sides of the seam, and their parts are dissolved at the end. Memory holds one
strip and the outlines, never the raster.

Legend: h rows of a strip, W columns of the raster.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import shapely
from rasterio.features import shapes
from rasterio.windows import Window as RasterWindow
from scipy.ndimage import label as connected
from shapely.geometry import shape as as_shape

from mc_core.errors import ConfigError, DataError
from mc_core.files import StrPath
from mc_remote_sensing.data.grid import Grid, local_equal_area
from mc_remote_sensing.data.handles import open_raster
from mc_remote_sensing.inference.rows import CACHE_BYTES
from mc_remote_sensing.inference.running import ElevationReader
from mc_remote_sensing.vectors import write_geopackage

if TYPE_CHECKING:
    import geopandas

TARGET = 1
ATTRIBUTES = ("area_m2", "mean_probability", "max_probability", "mean_slope", "length_m", "width_m")

_TOUCHING = np.ones((3, 3), dtype=int)
_SLOPE_DEGREES = 45.0  # what 1 in the slope channel stands for


@dataclass(frozen=True)
class PolygonSummary:
    """What :func:`write_polygons` wrote.

    Attributes:
        path: of the GeoPackage.
        count: polygons.
        dropped: objects below the minimum area.
        area_m2: of all polygons.
    """

    path: Path
    count: int
    dropped: int
    area_m2: float


def write_polygons(
    probability: StrPath,
    classes: StrPath,
    out: StrPath,
    *,
    elevation: ElevationReader | None = None,
    min_area_m2: float = 0.0,
    simplify_px: float = 0.5,
    layer: str = "landslides",
    strip: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> PolygonSummary:
    """Write the objects of a class raster as a GeoPackage of multipolygons, largest first.

    Attributes: ``area_m2`` of the mapped pixels in an equal-area projection, before the outline is simplified; mean and maximum
    probability; ``mean_slope`` in degrees, null without elevation; ``length_m`` and ``width_m``, sides of the smallest rectangle
    around the outline in any direction. The file has the raster's coordinate system, with or without EPSG code, and an empty layer
    where there is no object.

    Args:
        probability: raster, with the scale that its header states.
        classes: raster on the same grid with 1 for the target.
        out: ends in ``.gpkg``; an older file is replaced.
        elevation: on the same grid.
        min_area_m2: smaller objects are dropped.
        simplify_px: the outline may move this far, in pixels, at most half of one.
        layer: name of the layer.
        strip: rows at a time.
        progress: told the rows done and of all.

    Raises:
        ConfigError: an option out of range, or another ending of the name.
        DataError: rasters that cannot be read or are on different grids.
        RunError: the disk is full.
    """
    if not 0 <= simplify_px <= 0.5:
        raise ConfigError(f"simplify_px {simplify_px}: an outline may move by half a pixel at most")
    if min_area_m2 < 0:
        raise ConfigError(f"min_area_m2 {min_area_m2}: must not be below zero")
    if Path(out).suffix.lower() != ".gpkg":
        raise ConfigError(f"{out}: polygons are written as a GeoPackage; give a name that ends in .gpkg")
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), open_raster(classes) as file, open_raster(probability) as scores:
        grid = _grid(file, classes)
        if not grid.matches(_grid(scores, probability)):
            raise DataError(f"{probability}: lies on another grid than {classes}")
        objects = _Objects(grid, min_area_m2)
        for top in range(0, grid.height, strip):
            height = min(strip, grid.height - top)
            window = RasterWindow(0, top, grid.width, height)  # type: ignore[call-arg]
            target = _read(file, window, classes) == TARGET
            objects.add(top, target, lambda window=window: _probability(scores, window, probability), elevation)
            if progress is not None:
                progress(top + height, grid.height)
    frame, dropped = objects.frame(simplify_px)
    path = write_geopackage(out, frame, layer=layer, geometry_type="MultiPolygon")
    return PolygonSummary(path, len(frame), dropped, float(frame["area_m2"].sum()))


@dataclass
class _Part:
    """What is known of an object, or of its part in one strip: its outline's pieces, and sums over its pixels."""

    pieces: list[Any] = field(default_factory=list)
    pixels: int = 0
    probability: float = 0.0
    highest: float = 0.0
    slope: float = 0.0
    sloped: int = 0

    def absorb(self, other: _Part) -> None:
        self.pieces += other.pieces
        self.pixels += other.pixels
        self.probability += other.probability
        self.highest = max(self.highest, other.highest)
        self.slope += other.slope
        self.sloped += other.sloped


class _Objects:
    """Parts by number, and which of them belong together."""

    def __init__(self, grid: Grid, min_area_m2: float) -> None:
        self.grid, self.min_area = grid, min_area_m2
        self.parts: dict[int, _Part] = {}
        self.parent: dict[int, int] = {}
        self.numbers = 0
        self.dropped = 0
        self.seam = np.zeros(grid.width, dtype=np.int64)  # numbers in the last row of the strip before, 0 for none

    def add(
        self,
        top: int,
        target: np.ndarray,
        read_probability: Callable[[], np.ndarray],
        elevation: ElevationReader | None,
    ) -> None:
        """One strip, from ``top``."""
        labels, count = connected(target, _TOUCHING)
        if not count:
            self.seam = np.zeros_like(self.seam)
            return
        labels, count = self._without_small(top, labels, count)
        numbers = np.zeros(count + 1, dtype=np.int64)
        numbers[1:] = self.numbers + 1 + np.arange(count)
        self.numbers += count
        for number in numbers[1:]:
            self.parent[int(number)] = int(number)
        self._join(numbers[labels[0]])
        self.seam = numbers[labels[-1]]
        if count:
            self._measure(top, labels, count, numbers, read_probability(), elevation)

    def _without_small(self, top: int, labels: np.ndarray, count: int) -> tuple[np.ndarray, int]:
        """Labels without objects that end within the strip and are far below the minimum area: speckles cost outlines."""
        if not self.min_area:
            return labels, count
        pixels = np.bincount(labels.ravel(), minlength=count + 1)
        across, down = self.grid.steps_metres(np.array([top, top + len(labels)], dtype=np.float64))
        small = pixels * float((across * down).max()) < 0.5 * self.min_area
        small[0] = False
        for row, edge in ((0, top), (-1, top + len(labels))):
            if 0 < edge < self.grid.height:
                small[labels[row]] = False
        self.dropped += int(small.sum())
        kept = ~small
        kept[0] = False
        renamed = np.zeros(count + 1, dtype=labels.dtype)
        renamed[kept] = 1 + np.arange(int(kept.sum()))
        return renamed[labels], int(kept.sum())

    def _join(self, first: np.ndarray) -> None:
        """Objects that touch across the seam, also at corners, are one."""
        width = len(first)
        for shift in (-1, 0, 1):
            above = self.seam[max(0, -shift) : width - max(0, shift)]
            below = first[max(0, shift) : width - max(0, -shift)]
            both = (above > 0) & (below > 0)
            for one, other in np.unique(np.stack([above[both], below[both]], axis=1), axis=0):
                a, b = self._root(int(one)), self._root(int(other))
                self.parent[max(a, b)] = min(a, b)

    def _root(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def _measure(
        self,
        top: int,
        labels: np.ndarray,
        count: int,
        numbers: np.ndarray,
        probability: np.ndarray,
        elevation: ElevationReader | None,
    ) -> None:
        inside = labels > 0
        index, values = labels[inside], np.nan_to_num(probability[inside].astype(np.float64))
        pixels = np.bincount(index, minlength=count + 1)
        total = np.bincount(index, values, minlength=count + 1)
        highest = np.zeros(count + 1)
        np.maximum.at(highest, index, values)
        slope, sloped = np.zeros(count + 1), np.zeros(count + 1)
        if elevation is not None:
            derived = elevation.read(top, 0, *labels.shape)
            known = inside & (derived[3] > 0)
            slope = np.bincount(labels[known], derived[1][known].astype(np.float64), minlength=count + 1)
            sloped = np.bincount(labels[known], minlength=count + 1)
        transform = self.grid.window(top, 0, *labels.shape).transform
        outlines: dict[int, list[Any]] = defaultdict(list)
        for outline, value in shapes(labels.astype(np.int32), mask=inside, connectivity=8, transform=transform):
            outlines[int(value)].append(as_shape(outline))
        for k in range(1, count + 1):
            self.parts[int(numbers[k])] = _Part(
                outlines[k],
                int(pixels[k]),
                float(total[k]),
                float(highest[k]),
                float(slope[k]) * _SLOPE_DEGREES,
                int(sloped[k]),
            )

    def frame(self, simplify_px: float) -> tuple[geopandas.GeoDataFrame, int]:
        """All objects of the minimum area with their attributes, and how many were dropped."""
        import geopandas

        whole: dict[int, _Part] = {}
        for number, part in self.parts.items():
            whole.setdefault(self._root(number), _Part()).absorb(part)
        found = list(whole.values())
        outlines = np.array([_dissolved(part.pieces) for part in found], dtype=object)
        crs = self.grid.crs.to_wkt()
        pixels = geopandas.GeoSeries(outlines, crs=crs)
        metric = pixels.to_crs(local_equal_area(self.grid).to_wkt()) if len(found) else pixels
        area = metric.area.to_numpy()
        large = (area > 0) & (area >= self.min_area)
        a, b, _, d, e, _ = tuple(self.grid.transform)[:6]
        tolerance = simplify_px * min(np.hypot(a, d), np.hypot(b, e))
        length, width = _sides(metric.array) if len(found) else (np.zeros(0), np.zeros(0))
        mean = [part.probability / part.pixels for part in found]
        slope = [part.slope / part.sloped if part.sloped else np.nan for part in found]
        columns = (area, mean, [part.highest for part in found], slope, length, width)
        simple = np.array([_simple(shape, tolerance) for shape in outlines], dtype=object)
        order = np.flatnonzero(large)[np.argsort(-area[large], kind="stable")]
        frame = geopandas.GeoDataFrame(
            {name: np.asarray(values, float)[order] for name, values in zip(ATTRIBUTES, columns, strict=True)},
            geometry=geopandas.GeoSeries(simple[order], crs=crs),
            crs=crs,
        )
        return frame, self.dropped + int((~large).sum())


def _dissolved(pieces: list[Any]) -> Any:
    """One multipolygon. Where pixels touch at corners GDAL's outlines may touch themselves, which is repaired."""
    return _multi(shapely.union_all([shapely.make_valid(piece) for piece in pieces]))


def _simple(outline: Any, tolerance: float) -> Any:
    return outline if not tolerance else _multi(shapely.make_valid(shapely.simplify(outline, tolerance)))


def _multi(found: Any) -> Any:
    parts = [part for part in shapely.get_parts(found) if part.geom_type == "Polygon"]
    parts += [p for part in shapely.get_parts(found) if part.geom_type == "MultiPolygon" for p in part.geoms]
    return shapely.MultiPolygon(parts)


def _sides(outlines: Any) -> tuple[np.ndarray, np.ndarray]:
    """Long and short side of the smallest rectangle around each outline."""
    corners = [shapely.get_coordinates(shapely.minimum_rotated_rectangle(outline))[:3] for outline in outlines]
    sides = np.array([np.hypot(*np.diff(corner, axis=0).T) for corner in corners])
    return sides.max(axis=1), sides.min(axis=1)


def _grid(file: Any, path: StrPath) -> Grid:
    if file.crs is None:
        raise DataError(f"{path}: has no coordinate system (CRS), so that areas are not known")
    return Grid(file.crs, file.transform, file.width, file.height)


def _read(file: Any, window: RasterWindow, path: StrPath) -> np.ndarray:
    try:
        return file.read(1, window=window)
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{path}: rows from {window.row_off} cannot be read ({error}); is the file whole?") from error


def _probability(file: Any, window: RasterWindow, path: StrPath) -> np.ndarray:
    return _read(file, window, path) * file.scales[0] + file.offsets[0]
