"""The folder of an unfinished map: its rasters as rows, and a note of how many are finished.

Rows are synced before the note is replaced, so that what it says is always true, whenever the process dies.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio

from mc_core.errors import McError, RunError
from mc_core.files import read_json, write_json
from mc_remote_sensing.data.grid import Grid
from mc_remote_sensing.inference.rows import RowRaster, create_rows

NODATA = 255
"""In classes and in probabilities of 8 bits."""

PROBABILITY_STEPS = 200
"""A probability of 1 in 8 bits."""

Encoding = Literal["uint8", "float32"]

PROBABILITY, CLASSES = "probability.tif", "classes.tif"
_STATE = "finished.json"
_COLOURS = {0: (255, 255, 255, 0), 1: (214, 47, 39, 255), NODATA: (0, 0, 0, 0)}


class WorkRows:
    """The folder of an unfinished map: both rasters as rows, and how many of them are finished."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder, self.state = folder, state
        self.probability, self.classes = RowRaster(folder / PROBABILITY), RowRaster(folder / CLASSES)

    @classmethod
    def open(cls, folder: Path, grid: Grid, settings: Mapping[str, Any], date: str | None, *, resume: bool) -> WorkRows:
        state_file = folder / _STATE
        if resume and state_file.is_file():
            try:
                state = read_json(state_file)
                if state["settings"] == settings:
                    return cls(folder, state)
            except (McError, KeyError, TypeError, OSError, rasterio.errors.RasterioError):
                pass  # not from a map that can go on
        shutil.rmtree(folder, ignore_errors=True)
        need = grid.height * grid.width * (2 if settings["encoding"] == "uint8" else 5)
        folder.mkdir(parents=True)
        free = shutil.disk_usage(folder).free
        if free < need:
            raise RunError(
                f"{folder.parent}: the map needs {need / 1e9:.2f} GB while it is made, {free / 1e9:.2f} GB are free; free "
                "space or write it to another disk"
            )
        date = date or dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        tags = _tags(settings, date)
        _create(folder / PROBABILITY, folder / CLASSES, grid, settings["encoding"], tags)
        state = {"settings": dict(settings), "rows": 0, "valid": 0, "target": 0, "date": date}
        write_json(state_file, state)
        return cls(folder, state)

    @property
    def finished(self) -> int:
        """Rows that are whole on the disk."""
        return int(self.state["rows"])

    def append(self, row: int, probability: np.ndarray, valid: np.ndarray) -> None:
        """Write rows that follow those finished; on the writing thread."""
        if row != self.finished:
            raise RunError(f"{self.folder}: rows {self.finished} to {row} were not written")
        settings = self.state["settings"]
        target = valid & (probability >= settings["threshold"])
        self.probability.write(row, encode(probability, valid, settings["encoding"]))
        self.classes.write(row, np.where(valid, target, NODATA).astype(np.uint8))
        self.probability.sync()
        self.classes.sync()
        self.state = self.state | {
            "rows": row + len(valid),
            "valid": self.state["valid"] + int(valid.sum()),
            "target": self.state["target"] + int(target.sum()),
        }
        write_json(self.folder / _STATE, self.state)

    def close(self) -> None:
        self.probability.close()
        self.classes.close()


def encode(probability: np.ndarray, valid: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Probabilities as they are stored: in 200 steps with 255 as nodata, or float32 with NaN.

    >>> encode(np.array([0.0, 0.5, 1.0, 0.3]), np.array([True, True, True, False]), "uint8").tolist()
    [0, 100, 200, 255]
    """
    if encoding == "float32":
        return np.where(valid, np.clip(probability, 0, 1), np.nan).astype(np.float32)
    steps = np.rint(np.clip(probability, 0, 1) * PROBABILITY_STEPS)
    return np.where(valid, steps, NODATA).astype(np.uint8)


def _create(probability: Path, classes: Path, grid: Grid, encoding: Encoding, tags: Mapping[str, str]) -> None:
    small = encoding == "uint8"
    create_rows(
        probability,
        grid,
        dtype=encoding,
        nodata=NODATA if small else float("nan"),
        description="probability",
        tags=tags,
        scale=1 / PROBABILITY_STEPS if small else None,
    )
    create_rows(classes, grid, dtype="uint8", nodata=NODATA, description="class", tags=tags, colours=_COLOURS)


def _tags(settings: Mapping[str, Any], date: str) -> dict[str, str]:
    image, elevation = settings["data"]
    from mc_remote_sensing import __version__

    tags = {
        "MC_MODEL": settings["model"],
        "MC_THRESHOLD": f"{settings['threshold']:.6g}",
        "MC_DATE": date,
        "MC_IMAGE": image,
        "MC_ELEVATION": elevation,
        "TIFFTAG_SOFTWARE": f"mc-remote-sensing {__version__}",
    }
    return {name: text for name, text in tags.items() if text is not None}
