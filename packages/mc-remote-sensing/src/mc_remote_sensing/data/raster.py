"""Rasters on disk, read by window only: values as float32 and which pixels are valid.

Legend: C bands, H rows, W columns of the file; h, w of a window.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rasterio import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.windows import Window as RasterWindow

from mc_core.errors import ConfigError, DataError, closest
from mc_remote_sensing.data.grid import Grid, crs_of
from mc_remote_sensing.data.handles import RASTER_ERRORS, file_key, handle, open_raster, read_error
from mc_remote_sensing.data.warping import bilinear_window

Nodata = float | Literal["none"] | None
"""A value that means "no data", ``"none"`` for "every pixel is valid", or None for what the file says."""

_BLOCKS_CHECKED = 20_000
_SAMPLE = 64


class RasterSource:
    """The bands of a raster file, by window. Picklable: each process and thread opens the file for itself.

    A pixel is invalid where the file, its mask or its alpha band says so, where a chosen band is NaN or infinite, and where its
    value is the nodata value: in any chosen band, or, when that value is an end of an unsigned integer's range (a true black or
    saturated pixel looks the same), in all of them. A band marked as alpha that holds other values than 0 and the largest, or is
    named as a measurement, is one of the bands: many files mark near infrared so.

    Args:
        path: of anything GDAL reads.
        bands: names or numbers from 1 of the bands wanted, in that order; default all.
        band_names: names for all bands of the file; default its own descriptions, else ``B1``, ``B2`` …
        nodata: instead of what the file says; see :data:`Nodata`.
        assume_crs: coordinate system for a file that has none (``"EPSG:32632"``).
        grid: read as if the file had this grid, resampled bilinearly; a pixel is valid when all that enters it is.

    Attributes:
        path: as given.
        grid: where its pixels lie.
        band_names: of the bands wanted.
        count: C, bands wanted.
        dtype: of the file.
        key: of the file as it was when this was made.
        has_crs: the file itself names its coordinate system.

    Raises:
        DataError: the file is missing, cut off, or has no coordinate system.
        ConfigError: a band or system that does not exist, or another number of names than bands.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        bands: Sequence[str | int] | None = None,
        band_names: Sequence[str] | None = None,
        nodata: Nodata = None,
        assume_crs: str | None = None,
        grid: Grid | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.key = file_key(self.path)
        with open_raster(self.path) as file:
            self.dtype = str(file.dtypes[0])
            _check_placed(file, self.path)
            self.has_crs = file.crs is not None
            self.native_grid = Grid(_crs(file.crs, assume_crs, self.path), file.transform, file.width, file.height)
            self.units = tuple(unit or "" for unit in file.units)
            self.block_shape = tuple(file.block_shapes[0])
            _check_whole(file, self.path)
            alpha = _true_alpha(file)
            names = _names(file, band_names, alpha, self.path)
            self._numbers = _choose(bands, names, alpha, self.path)
            self._alpha = alpha if nodata != "none" and alpha not in self._numbers else None
            self._nodata = _nodata_values(file, self._numbers, nodata)
            flags = file.mask_flag_enums[self._numbers[0] - 1]
            self._masked = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags and nodata != "none"
        self.band_names = tuple(names[number - 1] for number in self._numbers)
        self.grid = self.native_grid if grid is None else grid
        self._warped = grid is not None and not grid.matches(self.native_grid)

    @property
    def count(self) -> int:
        """C."""
        return len(self._numbers)

    @property
    def nodata(self) -> tuple[float | None, ...]:
        """The nodata value of each band, None where there is none."""
        return self._nodata

    def __repr__(self) -> str:
        return f"RasterSource({self.path!r}, bands={list(self.band_names)}, grid={self.grid.shape})"

    def read(self, row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """A window, which may reach beyond the raster: there the values are reflected, and invalid.

        Returns:
            ``values`` (C, h, w) float32, 0 where invalid inside the raster, and ``valid`` (h, w) bool.

        Raises:
            DataError: the file cannot be read there.
        """
        return read_reflected(self._read_inside, self.grid.shape, row, col, height, width)

    def _read_inside(self, row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        if self._warped:
            return self._read_warped(row, col, height, width)
        return self._read_native(row, col, height, width)

    def _open(self) -> Any:
        return handle(self.key, lambda: open_raster(self.path))

    def read_valid(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        """(h, w) bool: the ``valid`` of :meth:`read`, without reading where nothing can be invalid."""
        if not self._warped and not self._can_be_invalid:
            return within(self.grid.shape, row, col, height, width)
        return self.read(row, col, height, width)[1]

    @property
    def _can_be_invalid(self) -> bool:
        return bool(self._alpha or self._masked or "float" in self.dtype or any(v is not None for v in self._nodata))

    def overview(self, most: int = 1024) -> tuple[np.ndarray, np.ndarray]:
        """The whole raster on its own grid, every n-th pixel so that no side exceeds ``most``: values and validity as of
        :meth:`read`."""
        height, width = self.native_grid.shape
        shrink = max(1.0, height / most, width / most)
        shape = max(1, round(height / shrink)), max(1, round(width / shrink))
        return self._read_native(0, 0, height, width, shape=shape)

    def _read_native(
        self, row: int, col: int, height: int, width: int, *, shape: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        window = RasterWindow(col, row, width, height)  # type: ignore[call-arg]
        numbers = [*self._numbers, self._alpha] if self._alpha else self._numbers
        file = self._open()
        try:
            raw = file.read(numbers, window=window, out_shape=None if shape is None else (len(numbers), *shape))
            mask = file.read_masks(self._numbers[0], window=window, out_shape=shape) if self._masked else None
        except RASTER_ERRORS as error:
            raise read_error(self.path, (row, col, height, width), error) from error
        valid = np.ones(raw.shape[1:], dtype=bool)
        if self._alpha:
            valid &= raw[-1] > 0
            raw = raw[:-1]
        if mask is not None:
            valid &= mask > 0
        valid &= self._not_nodata(raw)
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and so invalid
            values = raw.astype(np.float32, copy=False)
        if raw.dtype.kind == "f":
            valid &= np.isfinite(values).all(axis=0)
        if not valid.all():
            values[:, ~valid] = 0
        return values, valid

    def _not_nodata(self, raw: np.ndarray) -> np.ndarray | bool:
        hits = [raw[i] == value for i, value in enumerate(self._nodata) if value is not None and not math.isnan(value)]
        if not hits:
            return True
        combine = np.logical_and if self._ends_of_range() and len(hits) == len(raw) else np.logical_or
        return ~combine.reduce(hits)

    def _ends_of_range(self) -> bool:
        if not self.dtype.startswith("uint"):
            return False
        most = np.iinfo(self.dtype).max
        return all(value in (0, most) for value in self._nodata)

    def _read_warped(self, row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        return bilinear_window(self._read_native, self.native_grid, self.grid, (row, col, height, width), self.count)

    def on(self, grid: Grid) -> RasterSource:
        """The same bands, read as if the file had ``grid``."""
        found = copy.copy(self)
        found.grid, found._warped = grid, not grid.matches(self.native_grid)
        return found


def read_reflected(
    read: Any, shape: tuple[int, int], row: int, col: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """``read`` for a window beyond the raster: reflected about the border pixels, and invalid there.

    Args:
        read: of windows inside, to (values (C, h, w), valid (h, w)).
        shape: of the raster.
        row: of the window.
        col: of the window.
        height: of the window.
        width: of the window.
    """
    rows_all, columns_all = shape
    if row >= 0 and col >= 0 and row + height <= rows_all and col + width <= columns_all:
        return read(row, col, height, width)
    rows, rows_inside = _reflect(row, height, rows_all)
    columns, columns_inside = _reflect(col, width, columns_all)
    top, left = int(rows.min()), int(columns.min())
    values, valid = read(top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1)
    take = np.ix_(rows - top, columns - left)
    inside = rows_inside[:, None] & columns_inside[None, :]
    return np.ascontiguousarray(values[:, take[0], take[1]]), valid[take] & inside


def within(shape: tuple[int, int], row: int, col: int, height: int, width: int) -> np.ndarray:
    """(h, w) bool: pixels of a window that lie in a raster of ``shape``."""
    rows, columns = np.arange(row, row + height), np.arange(col, col + width)
    return ((rows >= 0) & (rows < shape[0]))[:, None] & ((columns >= 0) & (columns < shape[1]))[None, :]


def _reflect(start: int, length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    positions = np.arange(start, start + length)
    period = max(2 * (size - 1), 1)
    folded = np.abs(positions) % period
    folded = np.where(folded >= size, period - folded, folded) if size > 1 else np.zeros_like(positions)
    return folded, (positions >= 0) & (positions < size)


def _crs(found: CRS | None, assumed: str | None, path: str) -> CRS:
    if found is not None:
        return found
    if assumed is None:
        raise DataError(
            f"{path}: has no coordinate system (CRS); if you know it, say so with --assume-crs, for example "
            "--assume-crs EPSG:32632"
        )
    return crs_of(assumed)


def _check_placed(file: Any, path: str) -> None:
    if file.dtypes[0].startswith("complex"):
        raise DataError(f"{path}: holds complex numbers; write their amplitude or phase as a band of its own first")
    if not file.transform.is_identity:
        return
    if file.gcps[0] or file.rpcs is not None:
        raise DataError(
            f"{path}: is placed by control points, not by a grid; bring it to one first, for example with gdalwarp"
        )
    raise DataError(
        f"{path}: does not say where on Earth it lies (no geotransform); georeference it, or give a folder of patches instead"
    )


def _check_whole(file: Any, path: str) -> None:
    """Every block of a GeoTIFF lies within the file: a download that broke off is found at once, not hours later."""
    if file.driver not in ("GTiff", "COG") or not Path(path).is_file():
        return
    size = Path(path).stat().st_size
    height, width = file.block_shapes[0]
    across, down = math.ceil(file.width / width), math.ceil(file.height / height)
    step = max(1, across * down // _BLOCKS_CHECKED)
    for block in range(0, across * down, step):
        y, x = divmod(block, across)
        for band in (1, file.count):
            offset = file.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", bidx=band)
            length = file.get_tag_item(f"BLOCK_SIZE_{x}_{y}", "TIFF", bidx=band)
            if offset and length and int(offset) + int(length) > size:
                raise DataError(
                    f"{path}: is cut off: the block at row {y * height}, column {x * width} ends at byte "
                    f"{int(offset) + int(length):,}, but the file has {size:,}; copy it again"
                )


def _true_alpha(file: Any) -> int | None:
    if ColorInterp.alpha not in file.colorinterp:
        return None
    number = file.colorinterp.index(ColorInterp.alpha) + 1
    name = (file.descriptions[number - 1] or "").lower()
    if name and not any(word in name for word in ("alpha", "mask", "valid")):
        return None
    shape = min(_SAMPLE, file.height), min(_SAMPLE, file.width)
    try:
        sample = file.read(number, out_shape=shape, resampling=Resampling.nearest)
    except RASTER_ERRORS as error:
        raise read_error(file.name, "of the alpha band", error) from error
    most = np.iinfo(sample.dtype).max if sample.dtype.kind in "ui" else 1
    between = (sample > 0) & (sample < most)
    return None if between.mean() > 0.5 else number


def _names(file: Any, given: Sequence[str] | None, alpha: int | None, path: str) -> list[str]:
    wanted = [number for number in range(1, file.count + 1) if number != alpha]
    if given is not None:
        if len(given) not in (len(wanted), file.count):
            raise ConfigError(
                f"{path}: has {len(wanted)} bands, but {len(given)} names were given ({', '.join(given)}); "
                "name every band of the file, in its order"
            )
        if len(set(given)) != len(given):
            raise ConfigError(f"band names {', '.join(given)}: each band needs a name of its own")
        if len(given) == file.count:
            return list(given)
        names = iter(given)
        return ["alpha" if number == alpha else next(names) for number in range(1, file.count + 1)]
    found = [text or f"B{i + 1}" for i, text in enumerate(file.descriptions)]
    return found if len(set(found)) == len(found) else [f"B{i + 1}" for i in range(file.count)]


def _choose(bands: Sequence[str | int] | None, names: Sequence[str], alpha: int | None, path: str) -> list[int]:
    if bands is None:
        return [number for number in range(1, len(names) + 1) if number != alpha]
    numbers = []
    for band in bands:
        if isinstance(band, str) and band in names:
            numbers.append(names.index(band) + 1)
            continue
        if str(band).isdecimal() and 1 <= int(band) <= len(names):
            numbers.append(int(band))
            continue
        raise ConfigError(
            f"{path}: has no band {band!r}; it has {', '.join(names)} (numbers 1 to {len(names)}), "
            f"the closest is {closest(str(band), names, count=1)}"
        )
    if not numbers or len(set(numbers)) != len(numbers):
        raise ConfigError(f"bands {list(bands)}: give at least one, each once")
    return numbers


def _nodata_values(file: Any, numbers: Sequence[int], given: Nodata) -> tuple[float | None, ...]:
    if given == "none":
        return tuple(None for _ in numbers)
    if given is not None:
        return tuple(float(given) for _ in numbers)
    return tuple(None if v is None else float(v) for v in (file.nodatavals[n - 1] for n in numbers))
