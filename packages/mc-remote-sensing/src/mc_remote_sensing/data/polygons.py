"""Polygons from GeoPackage, Shapefile, GeoJSON or anything OGR reads: filtered, repaired, in the image's coordinate system."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from rasterio import CRS
from rasterio.features import rasterize

from mc_core.errors import ConfigError, DataError, closest
from mc_remote_sensing.data.grid import Grid, crs_of, name_of

Role = Literal["target", "extent", "uncertain", "hard_negative"]
"""What polygons mean: what to find; where all of it was mapped; perhaps so, ignored; looks like it and is not."""


@dataclass(frozen=True)
class Polygons:
    """Polygons of one role, in the system of a grid, with what was found wrong with them.

    Attributes:
        path: of the file.
        role: what they mean.
        grid: of the image.
        geometries: (N,) valid shapely polygons or multipolygons that touch the image.
        read: polygons in the file after the filter.
        empty: without geometry.
        repaired: self-intersecting or otherwise invalid, and made valid.
        outside: entirely outside the image.
        crs: of the file, for messages.
    """

    path: str
    role: Role
    grid: Grid
    geometries: np.ndarray
    read: int = 0
    empty: int = 0
    repaired: int = 0
    outside: int = 0
    crs: str = ""

    def __len__(self) -> int:
        return len(self.geometries)

    @cached_property
    def _tree(self) -> shapely.STRtree:
        shapely.prepare(self.geometries)
        return shapely.STRtree(self.geometries)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_tree"}

    def rasterise(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        """(h, w) bool: pixels whose centre lies in a polygon."""
        window = self.grid.window(row, col, height, width)
        tree = self._tree
        left, bottom, right, top = window.bounds
        edge_x, edge_y = (right - left) / width, (top - bottom) / height
        corners = left - edge_x, bottom - edge_y, right + edge_x, top + edge_y
        found = tree.query(shapely.box(*corners))
        if not len(found):
            return np.zeros((height, width), dtype=bool)
        near = self.geometries[found]
        if shapely.contains_properly(near, shapely.box(*corners)).any():
            return np.ones((height, width), dtype=bool)
        shapes = shapely.clip_by_rect(near, *corners)  # a pixel more than the window, so that no centre lies on the cut
        shapes = shapes[~shapely.is_empty(shapes)]
        if not len(shapes):
            return np.zeros((height, width), dtype=bool)
        burnt = rasterize(
            shapes, out_shape=(height, width), transform=window.transform, fill=0, default_value=1, dtype="uint8"
        )
        return burnt.view(bool)


def read_polygons(
    path: str | os.PathLike[str],
    grid: Grid,
    *,
    role: Role,
    where: str | None = None,
    layer: str | None = None,
    assume_crs: str | None = None,
) -> Polygons:
    """Read, filter, reproject and repair the polygons of a file.

    Args:
        path: of a vector file.
        grid: of the image.
        role: what the polygons mean.
        where: ``"column=value"`` or ``"column=value,value"``: only these rows.
        layer: of a file with several.
        assume_crs: for a file without coordinate system.

    Raises:
        DataError: unreadable, no coordinate system, no polygons, or none of them in the image.
        ConfigError: the column, value or layer does not exist.
    """
    import pyogrio

    path = os.fspath(path)
    if not Path(path).exists():
        raise DataError(f"{path}: does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # OGR's remarks on rings; what matters is repaired below
            frame = pyogrio.read_dataframe(path, layer=_layer(path, layer), force_2d=True)
    except (RuntimeError, ValueError) as error:  # the bases of all of pyogrio's
        raise DataError(f"{path}: is no vector file that can be read ({error})") from error
    if "geometry" not in frame:
        raise DataError(f"{path}: is a table without geometry; polygons are needed")
    frame = _filter(frame, where, path)
    if frame.crs is None:
        frame = frame.set_crs(_assumed(assume_crs, path))
    crs = CRS.from_wkt(frame.crs.to_wkt())
    frame = frame.to_crs(grid.crs.to_wkt())
    return _clean(np.asarray(frame.geometry.array), grid, path=path, role=role, crs=name_of(crs))


def _layer(path: str, wanted: str | None) -> str | None:
    import pyogrio

    layers = {str(name): kind for name, kind in pyogrio.list_layers(path)}
    if wanted is not None and wanted not in layers:
        raise ConfigError(f"{path}: has no layer {wanted!r}; it has {closest(wanted, layers)}")
    spatial = [name for name, kind in layers.items() if kind is not None]
    return wanted or next(iter(spatial or layers), None)


def _assumed(assume_crs: str | None, path: str) -> str:
    if assume_crs is None:
        raise DataError(
            f"{path}: has no coordinate system (CRS); if you know it, say so with --assume-crs, for example "
            "--assume-crs EPSG:32632"
        )
    return crs_of(assume_crs).to_wkt()


def _filter(frame: Any, where: str | None, path: str) -> Any:
    if where is None:
        return frame
    column, equals, value = where.partition("=")
    if not equals:
        raise ConfigError(f"{where!r}: give a column and a value, as in column=value")
    columns = [name for name in frame.columns if name != frame.geometry.name]
    if column not in columns:
        raise ConfigError(f"{path}: has no column {column!r}; it has {closest(column, columns)}")
    texts = frame[column].astype(str)
    wanted = [part.strip() for part in value.split(",")]
    chosen = frame[texts.isin(wanted)]
    if not len(chosen):
        raise ConfigError(
            f"{path}: no row has {column} = {value}; it has {closest(value, sorted(set(texts)), count=6)}"
        )
    return chosen


def _clean(found: np.ndarray, grid: Grid, *, path: str, role: Role, crs: str) -> Polygons:
    read = len(found)
    empty = shapely.is_missing(found) | shapely.is_empty(found)
    found = found[~empty]
    if not len(found):
        raise DataError(f"{path}: has no polygons ({read} rows, {int(empty.sum())} without geometry)")
    invalid = ~shapely.is_valid(found)
    found = found.copy()
    found[invalid] = shapely.make_valid(found[invalid])
    found = np.array([_polygonal(shape) for shape in found], dtype=object)
    if not np.isfinite(shapely.total_bounds(found)).all() and not shapely.is_empty(found).all():
        raise DataError(
            f"{path}: its coordinates do not convert to {name_of(grid.crs)}: is its coordinate system right?"
        )
    flat = shapely.is_empty(found)
    if flat.all():
        raise DataError(f"{path}: holds no polygons but points or lines; draw the outlines as polygons")
    inside = shapely.intersects(found, shapely.box(*grid.bounds)) & ~flat
    if not inside.any():
        bounds = ", ".join(f"{value:.6g}" for value in shapely.total_bounds(found))
        raise DataError(
            f"{path}: none of its {len(found)} polygons lies in the image: they cover {bounds}, the image "
            f"{', '.join(f'{value:.6g}' for value in grid.bounds)} in {name_of(grid.crs)}"
        )
    return Polygons(
        path=path,
        role=role,
        grid=grid,
        geometries=found[inside],
        read=read,
        empty=int(empty.sum()) + int(flat.sum()),
        repaired=int(invalid.sum()),
        outside=int((~inside & ~flat).sum()),
        crs=crs,
    )


def _polygonal(shape: Any) -> Any:
    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    parts = [part for part in shapely.get_parts(shape) if part.geom_type in ("Polygon", "MultiPolygon")]
    return shapely.union_all(parts) if parts else shapely.Polygon()
