"""One place: its image, its elevation model and its labels, on one grid.

Legend: C bands, h × w pixels of a window.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.errors import ConfigError
from mc_remote_sensing.data.elevation import ElevationSource, VerticalUnit
from mc_remote_sensing.data.grid import Grid
from mc_remote_sensing.data.labels import IGNORE, LabelLayers, read_labels
from mc_remote_sensing.data.raster import Nodata, RasterSource

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Scene:
    """What is known of a place; picklable.

    Attributes:
        image: the bands, or None for a scene of elevation alone.
        elevation: on the grid of the image, or None.
        labels: on the same grid, or None.
        name: for messages.
    """

    image: RasterSource | None
    elevation: ElevationSource | None
    labels: LabelLayers | None
    name: str

    def __post_init__(self) -> None:
        if self.image is None and self.elevation is None:
            raise ConfigError(f"scene {self.name}: give an image, an elevation model or both")

    @property
    def grid(self) -> Grid:
        """Of all that is read from it."""
        source = self.image or self.elevation
        assert source is not None
        return source.grid

    @property
    def band_names(self) -> tuple[str, ...]:
        """Of the image."""
        return self.image.band_names if self.image else ()

    def read(self, row: int, col: int, height: int, width: int) -> dict[str, np.ndarray]:
        """A window, which may reach beyond the scene.

        Returns:
            ``image`` (C, h, w) float32 as stored, 0 where invalid; ``image_valid`` (h, w) bool; ``elevation`` (4, h, w)
            float32, zeros without an elevation model; ``labels`` (h, w) uint8, 255 without labels, beyond the scene and where
            neither image nor elevation is valid. A scene without image has C = 0, and is valid where its elevation is.
        """
        if self.elevation is None:
            elevation = np.zeros((4, height, width), dtype=np.float32)
        else:
            elevation = self.elevation.read(row, col, height, width)
        if self.image is None:
            image, valid = np.zeros((0, height, width), dtype=np.float32), elevation[3] > 0
        else:
            image, valid = self.image.read(row, col, height, width)
        if self.labels is None:
            labels = np.full((height, width), IGNORE, dtype=np.uint8)
        else:
            labels = self.labels.rasterise(row, col, height, width)
            labels[~valid] = IGNORE
        return {"image": image, "image_valid": valid, "elevation": elevation, "labels": labels}

    def read_valid(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        """(h, w) bool: ``image_valid`` of a window."""
        if self.image is not None:
            return self.image.read_valid(row, col, height, width)
        assert self.elevation is not None
        return self.elevation.read(row, col, height, width)[3] > 0


def open_scene(
    image: StrPath | None = None,
    elevation: StrPath | None = None,
    labels: StrPath | None = None,
    *,
    extent: StrPath | None = None,
    uncertain: StrPath | None = None,
    hard_negatives: StrPath | None = None,
    bands: Sequence[str | int] | None = None,
    band_names: Sequence[str] | None = None,
    nodata: Nodata = None,
    elevation_nodata: Nodata = None,
    assume_crs: str | None = None,
    vertical_unit: VerticalUnit | None = None,
    relief_radius_m: float = 250.0,
    where: str | None = None,
    layer: str | None = None,
    label_values: Mapping[str, int] | None = None,
    boundary_ignore_px: int = 0,
    cache: Path | None = None,
    name: str | None = None,
) -> Scene:
    """Open the files of one place.

    Args:
        image: raster; its grid is the scene's.
        elevation: raster of heights, on any grid. Without an image its own grid is the scene's.
        labels: polygons or a raster of values; see :func:`~mc_remote_sensing.data.labels.read_labels`.
        extent: where all targets were mapped.
        uncertain: places that are not counted.
        hard_negatives: places that look like targets and are none.
        bands: of the image; see :class:`~mc_remote_sensing.data.raster.RasterSource`.
        band_names: of the image.
        nodata: of the image.
        elevation_nodata: of the elevation model.
        assume_crs: for files that have no coordinate system.
        vertical_unit: of the heights, where the file does not say it.
        relief_radius_m: see :class:`~mc_remote_sensing.data.elevation.ElevationSource`.
        where: filter of the label polygons, ``"column=value"``.
        layer: of the label polygons.
        label_values: of a label raster.
        boundary_ignore_px: see :class:`~mc_remote_sensing.data.labels.LabelLayers`.
        cache: folder for what is derived from the elevation model.
        name: of the scene; default the file's.

    Raises:
        DataError: a file that cannot be read, or does not overlap the image.
        ConfigError: options that do not fit the files.

    >>> import tempfile
    >>> from mc_remote_sensing.terrain import write_terrain
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = write_terrain(folder, size_px=128)
    ...     scene = open_scene(files.image, files.elevation, files.labels, extent=files.extent, cache=Path(folder))
    ...     window = scene.read(32, 32, 64, 64)
    >>> scene.band_names, window["image"].shape, window["elevation"].shape, window["labels"].dtype
    (('blue', 'green', 'red', 'nir'), (4, 64, 64), (4, 64, 64), dtype('uint8'))
    """
    first = image or elevation
    if first is None:
        raise ConfigError("give an image, an elevation model or both")
    name = name or Path(first).stem
    raster = (
        RasterSource(image, bands=bands, band_names=band_names, nodata=nodata, assume_crs=assume_crs) if image else None
    )
    relief = (
        ElevationSource(
            elevation,
            raster.grid if raster else None,
            vertical_unit=vertical_unit,
            nodata=elevation_nodata,
            assume_crs=assume_crs,
            cache=cache,
            relief_radius_m=relief_radius_m,
        )
        if elevation
        else None
    )
    scene = Scene(raster, relief, None, name)
    if labels is None:
        return scene
    grid = scene.grid
    layers: dict[str, Any] = {
        role: read_labels(path, grid, role=kind, assume_crs=assume_crs)  # type: ignore[arg-type]
        for role, kind, path in (
            ("extent", "extent", extent),
            ("uncertain", "uncertain", uncertain),
            ("hard_negatives", "hard_negative", hard_negatives),
        )
        if path is not None
    }
    target = read_labels(
        labels, grid, role="target", where=where, layer=layer, values=label_values, assume_crs=assume_crs
    )
    found = LabelLayers(grid, target, boundary_ignore_px=boundary_ignore_px, **layers)
    return Scene(raster, relief, found, name)
