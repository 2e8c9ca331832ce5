"""A raster that is filled row by row and survives ``kill -9``, and the cloud-optimised GeoTIFF it becomes.

While a map is made it is an uncompressed GeoTIFF whose rows lie one after another. GDAL writes the header once, with the rows
full of nodata, so that the disk is known to hold them; rows are then written in place by the system's own calls, whose errors are
not lost as those of GDAL's cache are. The header never changes again: whatever was interrupted, the file stays readable.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil  # type: ignore[import-not-found]
from rasterio.windows import Window as RasterWindow

from mc_core.errors import RunError
from mc_remote_sensing.data.grid import Grid

CACHE_BYTES = 256 << 20
"""Of GDAL's blocks; by itself it would take a twentieth of the machine."""

_ROWS_AT_ONCE = 512


class RowRaster:
    """An existing work file, open for writing rows.

    Args:
        path: made by :func:`create_rows`.

    Attributes:
        shape: rows and columns.
        dtype: of a pixel.
    """

    def __init__(self, path: Path) -> None:
        with rasterio.open(path) as file:
            self.shape, self.dtype = file.shape, np.dtype(file.dtypes[0])
            self._start = _offset(file, 0)
            block = file.block_shapes[0][0]
            last = (file.height - 1) // block
            if _offset(file, last) != self._start + last * block * self._row_bytes:
                raise RunError(f"{path}: GDAL did not lay the rows one after another; remove the file and run again")
        self._file = path.open("rb+", buffering=0)

    @property
    def _row_bytes(self) -> int:
        return self.shape[1] * self.dtype.itemsize

    def write(self, row: int, values: np.ndarray) -> None:
        """Put (rows, columns) values in place, starting at ``row``."""
        data = memoryview(values.astype(self.dtype, copy=False).tobytes())
        self._file.seek(self._start + row * self._row_bytes)
        while len(data):
            written = self._file.write(data)
            if not written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = data[written:]

    def sync(self) -> None:
        """Make what was written durable."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def create_rows(
    path: Path,
    grid: Grid,
    *,
    dtype: str,
    nodata: float,
    description: str,
    tags: Mapping[str, str],
    scale: float | None = None,
    colours: Mapping[int, tuple[int, int, int, int]] | None = None,
) -> None:
    """Write the header and rows full of nodata.

    Raises:
        OSError: the disk does not hold them.
    """
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": 1,
        "dtype": dtype,
        "nodata": nodata,
        "crs": grid.crs,
        "transform": grid.transform,
        "width": grid.width,
        "height": grid.height,
        "tiled": False,
        "bigtiff": "if_safer",
        "sparse_ok": False,
    }
    with rasterio.open(path, "w", **profile) as file:
        file.update_tags(**tags)
        file.set_band_description(1, description)
        if scale is not None:
            file.scales = (scale,)
        if colours is not None:
            file.write_colormap(1, colours)
    if path.stat().st_size < grid.height * grid.width * np.dtype(dtype).itemsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def cloud_optimised(work: Path, *, resampling: str) -> Path:
    """Turn a finished work file into a cloud-optimised GeoTIFF beside it, and check it pixel by pixel.

    Args:
        work: the finished file.
        resampling: of the overviews.

    Returns:
        The new file, synced.

    Raises:
        OSError: the disk is full.
    """
    draft = work.with_suffix(".cog.tif")
    for left in draft.parent.glob(f"{draft.name}*"):
        left.unlink()
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        try:
            with rasterio.open(work) as file:
                predictor = "yes" if file.dtypes[0] == "float32" else "no"
                rasterio.shutil.copy(
                    file,
                    draft,
                    driver="COG",
                    compress="deflate",
                    predictor=predictor,
                    blocksize=512,
                    overview_resampling=resampling,
                    bigtiff="if_safer",
                    num_threads="all_cpus",
                )
        except Exception as error:  # GDAL's own classes are private to rasterio
            raise _as_os_error(error, draft) from error
        _compare(work, draft)
    with draft.open("rb+") as handle:
        os.fsync(handle.fileno())
    return draft


def _as_os_error(error: Exception, path: Path) -> OSError:
    text = str(error).strip().splitlines()
    first = text[0] if text else type(error).__name__
    full = any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    return OSError(errno.ENOSPC if full else errno.EIO, f"GDAL: {first}", str(path))


def _compare(work: Path, draft: Path) -> None:
    """GDAL may lose the error of a write that it put off."""
    try:
        with rasterio.open(work) as one, rasterio.open(draft) as other:
            for row in range(0, one.height, _ROWS_AT_ONCE):
                window = RasterWindow(0, row, one.width, min(_ROWS_AT_ONCE, one.height - row))  # type: ignore[call-arg]
                if one.read(1, window=window).tobytes() != other.read(1, window=window).tobytes():
                    raise OSError(errno.EIO, "what was written reads back differently", str(draft))
    except rasterio.errors.RasterioError as error:
        raise OSError(errno.ENOSPC, f"it reads back as if the disk were full: {error}", str(draft)) from error


def _offset(file: Any, block: int) -> int:
    return int(file.get_tag_item(f"BLOCK_OFFSET_0_{block}", "TIFF", bidx=1))
