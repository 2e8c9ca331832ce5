"""Open GDAL handles, one set for each process and thread: they can be neither pickled nor shared.

What reads a raster holds a recipe (path and options) and asks here for the handle; a worker that was given the recipe opens its
own, and a forked process does not touch those of its parent.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError

from mc_core.errors import DataError

_MOST_OPEN = 128  # well below the usual limit of 1,024 files, and a training set may be of many scenes
_BLOCK_CACHE = "256"  # MiB; GDAL would take 5 % of the machine in every worker
_local = threading.local()


def handle(key: Hashable, opener: Callable[[], Any]) -> Any:
    """What ``opener`` gives, kept open for this process and thread under ``key``."""
    if getattr(_local, "process", None) != os.getpid():
        _local.process, _local.open = os.getpid(), OrderedDict()
    opened: OrderedDict[Hashable, Any] = _local.open
    if key in opened:
        opened.move_to_end(key)
        return opened[key]
    found = opener()
    opened[key] = found
    if len(opened) > _MOST_OPEN:
        opened.popitem(last=False)[1].close()
    return found


def file_key(path: str) -> tuple[object, ...]:
    """Of a file as it is now: one that is replaced gets another handle."""
    try:
        state = os.stat(path)
    except OSError:
        return ("file", path)
    return ("file", path, state.st_size, state.st_mtime_ns, state.st_ino)


def open_raster(path: str | os.PathLike[str]) -> Any:
    """Open a raster for reading.

    Raises:
        DataError: it does not exist, is a folder, or is no raster that GDAL knows.
    """
    path = os.fspath(path)
    local = "://" not in path and not path.startswith("/vsi")
    if local and not Path(path).exists():
        raise DataError(f"{path}: does not exist")
    if local and Path(path).is_file() and Path(path).stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    # asked for once in a process, with the first block; of rasterio's own options it comes too late
    os.environ.setdefault("GDAL_CACHEMAX", _BLOCK_CACHE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # what lacks is said in our own words
            return rasterio.open(path, sharing=False)
    except RasterioIOError as error:
        raise DataError(
            f"{path}: is no raster that can be read, or its header is damaged ({_first_line(error)})"
        ) from error


def read_error(path: str, window: object, error: Exception) -> DataError:
    """The error for a window that cannot be read."""
    return DataError(f"{path}: pixels {window} cannot be read, the file is cut off or damaged ({_first_line(error)})")


RASTER_ERRORS = (RasterioError, OSError)


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
