"""Small true rasters and vector files for the tests."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
from rasterio import Affine
from rasterio.enums import ColorInterp

UTM = "EPSG:32632"
WEST, NORTH, PIXEL = 600_000.0, 5_200_000.0, 10.0


def place(pixel: float = PIXEL, west: float = WEST, north: float = NORTH, down: float | None = None) -> Affine:
    return Affine(pixel, 0.0, west, 0.0, -(down or pixel), north)


def raster(
    path: Path,
    values: np.ndarray,
    *,
    transform: Affine | None = None,
    crs: str | None = UTM,
    nodata: float | None = None,
    names: tuple[str, ...] = (),
    alpha: bool = False,
    mask: np.ndarray | None = None,
    **profile: object,
) -> Path:
    """A GeoTIFF of (H, W) or (C, H, W) values."""
    values = values[None] if values.ndim == 2 else values
    profile = {"tiled": True, "blockxsize": 64, "blockysize": 64, **profile}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=len(values),
            height=values.shape[1],
            width=values.shape[2],
            dtype=values.dtype,
            crs=crs,
            transform=transform or place(),
            nodata=nodata,
            **profile,
        ) as file,
    ):
        file.write(values)
        if names:
            file.descriptions = names
        if alpha:
            file.colorinterp = [ColorInterp.gray] * (len(values) - 1) + [ColorInterp.alpha]
        if mask is not None:
            file.write_mask(mask)
    return path


def polygons(path: Path, shapes: list, *, crs: str | None = UTM, **columns: list) -> Path:
    """A vector file in the format its suffix names."""
    geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs).to_file(path)
    return path


def box(row: float, col: float, height: float, width: float, pixel: float = PIXEL) -> shapely.Polygon:
    """A rectangle given in pixels of :func:`place`."""
    return shapely.box(
        WEST + col * pixel, NORTH - (row + height) * pixel, WEST + (col + width) * pixel, NORTH - row * pixel
    )


def bands(count: int = 3, height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    """(C, H, W) uint16 from 1."""
    return np.random.default_rng(seed).integers(1, 4000, (count, height, width)).astype(np.uint16)
