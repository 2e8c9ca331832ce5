"""A model over a scene of any size: a probability raster and a class raster on the image's grid.

Tiles are run row by row. What overlaps is summed in strips of float32 as wide as the scene and as high as a tile, so that memory
grows with width × tile only. One thread reads ahead, another writes finished rows, while the model computes. After each strip a
small file beside the rows says how many are finished: the same call goes on from there, and ends in the same bytes.

Legend: H, W rows and columns of the scene.
"""

from __future__ import annotations

import datetime as dt
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import torch

from mc_core.errors import ConfigError, McError, RunError
from mc_core.files import StrPath, explain_write_error, read_json, sync_folder, write_json
from mc_remote_sensing.data.grid import Grid
from mc_remote_sensing.inference.rows import CACHE_BYTES, RowRaster, cloud_optimised, create_rows
from mc_remote_sensing.inference.running import (
    ElevationReader,
    ImageReader,
    Inputs,
    Runner,
    Segmenter,
    data_fingerprint,
    model_fingerprint,
    read_inputs,
)
from mc_remote_sensing.inference.tiling import Span, Tile, Tiling

CLASS_NODATA = 255
PROBABILITY_STEPS = 200
"""A probability of 1 in a uint8 raster; 255 is nodata."""

Encoding = Literal["uint8", "float32"]
Progress = Callable[[int, int], None]
"""Called with the number of tiles done and of all tiles."""

_FORMAT = 1
_AHEAD = 3  # batches read before they are needed
_BEHIND = 2  # strips that may wait to be written
_COLOURS = {0: (255, 255, 255, 0), 1: (214, 47, 39, 255), CLASS_NODATA: (0, 0, 0, 0)}


@dataclass(frozen=True)
class SceneMap:
    """What :func:`predict_scene` made.

    Attributes:
        probability: cloud-optimised GeoTIFF, 0 to 200 for 0 to 1 with 255 as nodata, or float32 with NaN.
        classes: cloud-optimised GeoTIFF, 1 where the probability reaches the threshold, 0 below, 255 nodata.
        threshold: used for the classes.
        pixels: of the scene.
        valid: pixels with a probability.
        target: pixels of class 1.
        tiles: run in this call.
        skipped: tiles of this call with too few valid pixels.
        resumed_rows: rows that were there from an interrupted call.
        seconds: of this call.
        compute_share: share of the time between first read and last strip that went into the model and the sums, not into waiting
            for reads and writes.
    """

    probability: Path
    classes: Path
    threshold: float
    pixels: int
    valid: int
    target: int
    tiles: int
    skipped: int
    resumed_rows: int
    seconds: float
    compute_share: float


def predict_scene(
    model: Segmenter,
    image: ImageReader,
    elevation: ElevationReader | None,
    out: StrPath,
    *,
    classes: StrPath | None = None,
    tile: int = 512,
    overlap: int | None = None,
    halo: int | None = None,
    threshold: float | None = None,
    encoding: Encoding = "uint8",
    min_valid: float = 0.05,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    model_id: str | None = None,
    date: str | None = None,
) -> SceneMap:
    """Map a scene.

    With a halo of at least half the model's receptive field the result does not depend on the size of the tiles. A map that is
    interrupted, even by ``kill -9``, leaves a folder ``.NAME.work`` beside ``out``; the same call goes on from it. Nothing has the
    final name before it is whole.

    Args:
        model: any :class:`~mc_remote_sensing.inference.running.Segmenter`.
        image: gives the grid.
        elevation: on the same grid, or None.
        out: of the probability raster; ends in ``.tif``.
        classes: of the class raster; default ``NAME-classes.tif``.
        tile: side of a tile in pixels, a multiple of the model's stride.
        overlap: pixels that neighbouring tiles share; default a quarter of the tile, or what the halo needs.
        halo: pixels of a tile's inner border that count for nothing; default half the receptive field, but no more than an eighth
            of the tile.
        threshold: of class 1; default the model's own, else 0.5.
        encoding: of the probabilities.
        min_valid: tiles with a smaller share of valid pixels are not run; what no other tile covers becomes nodata.
        device: default the GPU where there is one.
        batch_size: tiles run together; default 1 on a CPU, 8 on a GPU.
        resume: go on from an interrupted call with the same settings.
        progress: told after each batch.
        model_id: for the tags; default a hash of class and weights.
        date: for the tags, ISO 8601; default now.

    Raises:
        ConfigError: a size that cannot work, another ending, or a folder that cannot be written to.
        DataError: the rasters cannot be read.
        RunError: the disk is full; finished strips are kept.
    """
    started = time.perf_counter()
    out = _tif(out)
    classes = out.with_name(f"{out.stem}-classes{out.suffix}") if classes is None else _tif(classes)
    if classes.absolute() == out.absolute():
        raise ConfigError(f"{out}: the class raster needs another name than the probabilities")
    if encoding not in ("uint8", "float32"):
        raise ConfigError(f"encoding {encoding!r}: give uint8 or float32")
    limit = float(getattr(model, "threshold", None) or 0.5) if threshold is None else float(threshold)
    if not 0 < limit <= 1:
        raise ConfigError(f"threshold {limit}: must lie above 0 and not above 1")
    runner = Runner(model, device)
    grid = image.grid
    halo = runner.halo(tile) if halo is None else halo
    tiling = Tiling(grid.height, grid.width, tile=tile, halo=halo, overlap=overlap, stride=model.stride)
    settings = {
        "format": _FORMAT,
        "model": model_id or model_fingerprint(model),
        "data": [data_fingerprint(image), None if elevation is None else data_fingerprint(elevation)],
        "grid": [grid.crs.to_wkt(), list(grid.transform)[:6], grid.height, grid.width],
        "tiling": [tile, tiling.shared, halo, model.stride],
        "threshold": limit,
        "encoding": encoding,
        "min_valid": min_valid,
    }
    work = out.with_name(f".{out.name}.work")
    try:
        rows = _WorkRows.open(work, grid, settings, date, resume=resume)
    except (OSError, McError) as error:
        shutil.rmtree(work, ignore_errors=True)
        raise _explain(error, out) if isinstance(error, OSError) else error from error
    resumed = rows.finished
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
            loop = _Loop(runner, image, elevation, tiling, rows, min_valid, batch_size or runner.batch_size)
            loop.run(progress)
        found = rows.state
        whole = cloud_optimised(work / _PROBABILITY, resampling="average")
        whole_classes = cloud_optimised(work / _CLASSES, resampling="mode")
        classes.parent.mkdir(parents=True, exist_ok=True)
        whole_classes.replace(classes)
        whole.replace(out)
        for folder in {out.parent, classes.parent}:
            sync_folder(folder)
    except OSError as error:
        raise _explain(error, out, kept=rows.finished > 0) from error
    finally:
        rows.close()
    shutil.rmtree(work, ignore_errors=True)
    return SceneMap(
        probability=out,
        classes=classes,
        threshold=limit,
        pixels=grid.height * grid.width,
        valid=found["valid"],
        target=found["target"],
        tiles=loop.tiles,
        skipped=loop.skipped,
        resumed_rows=resumed,
        seconds=time.perf_counter() - started,
        compute_share=loop.compute_share,
    )


_PROBABILITY, _CLASSES, _STATE = "probability.tif", "classes.tif", "finished.json"


class _WorkRows:
    """The folder of an unfinished map: both rasters as rows, and how many of them are finished."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder, self.state = folder, state
        self.probability, self.classes = RowRaster(folder / _PROBABILITY), RowRaster(folder / _CLASSES)

    @classmethod
    def open(
        cls, folder: Path, grid: Grid, settings: Mapping[str, Any], date: str | None, *, resume: bool
    ) -> _WorkRows:
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
        _create(folder / _PROBABILITY, folder / _CLASSES, grid, settings["encoding"], tags)
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
        self.classes.write(row, np.where(valid, target, CLASS_NODATA).astype(np.uint8))
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


class _Loop:
    """Reads ahead, computes, sums, hands finished rows to the writer."""

    def __init__(
        self,
        runner: Runner,
        image: ImageReader,
        elevation: ElevationReader | None,
        tiling: Tiling,
        rows: _WorkRows,
        min_valid: float,
        batch_size: int,
    ) -> None:
        self.runner, self.image, self.elevation = runner, image, elevation
        self.tiling, self.rows, self.min_valid, self.batch_size = tiling, rows, min_valid, batch_size
        self.tiles = self.skipped = 0
        self._resumed = rows.finished
        self._waited = self._total = 0.0

    @property
    def compute_share(self) -> float:
        return 1.0 - self._waited / self._total if self._total else 1.0

    def run(self, progress: Progress | None) -> None:
        started = time.perf_counter()
        spans = self.tiling.rows
        finished = self._resumed
        # Rows above were summed from tiles that have no say in what is still missing.
        spans = [span for span in spans if span.last >= finished] if finished < self.tiling.height else []
        before = len(self.tiling) - len(spans) * len(self.tiling.columns)
        with ThreadPoolExecutor(1, "mc-read") as reader, ThreadPoolExecutor(1, "mc-write") as writer:
            reads = self._read_ahead(reader, spans)
            writes: deque[Future[None]] = deque()
            try:
                strip = _Strip(self.tiling, spans[0].first) if spans else None
                for k, span in enumerate(spans):
                    assert strip is not None
                    for batch, inputs in self._batches(reads, span):
                        self._add(strip, batch, inputs)
                        if progress is not None:
                            progress(before + self.tiles, len(self.tiling))
                    end = spans[k + 1].first if k + 1 < len(spans) else self.tiling.height
                    self._write(writer, writes, strip, end)
                while writes:
                    self._wait(writes.popleft())
            finally:
                reader.shutdown(wait=True, cancel_futures=True)
                writer.shutdown(wait=True, cancel_futures=True)
        self._total = time.perf_counter() - started

    def _read_ahead(self, reader: ThreadPoolExecutor, spans: list[Span]) -> Iterator[tuple[list[Tile], list[Inputs]]]:
        pending: deque[tuple[list[Tile], Future[list[Inputs]]]] = deque()
        for span in spans:
            tiles = self.tiling.tiles_of(span)
            for start in range(0, len(tiles), self.batch_size):
                batch = tiles[start : start + self.batch_size]
                pending.append((batch, reader.submit(self._read, batch)))
                if len(pending) > _AHEAD:
                    batch, future = pending.popleft()
                    yield batch, self._wait(future)
        while pending:
            batch, future = pending.popleft()
            yield batch, self._wait(future)

    def _read(self, batch: list[Tile]) -> list[Inputs]:
        return [read_inputs(self.image, self.elevation, *tile[:4]) for tile in batch]

    def _batches(
        self, reads: Iterator[tuple[list[Tile], list[Inputs]]], span: Span
    ) -> Iterator[tuple[list[Tile], list[Inputs]]]:
        left = len(self.tiling.columns)
        while left:
            batch, inputs = next(reads)
            assert batch[0].row == span.start
            left -= len(batch)
            yield batch, inputs

    def _add(self, strip: _Strip, batch: list[Tile], inputs: list[Inputs]) -> None:
        for tile, one in zip(batch, inputs, strict=True):
            strip.see(tile, one.valid)
        run = [i for i, one in enumerate(inputs) if one.valid.any() and one.valid.mean() >= self.min_valid]
        self.tiles += len(batch)
        self.skipped += len(batch) - len(run)
        if run:
            for i, probability in zip(run, self.runner([inputs[i] for i in run]), strict=True):
                strip.add(batch[i], probability)

    def _write(self, writer: ThreadPoolExecutor, writes: deque[Future[None]], strip: _Strip, end: int) -> None:
        row, probability, valid = strip.take(end)
        skip = max(0, self._resumed - row)
        while len(writes) >= _BEHIND:
            self._wait(writes.popleft())
        if skip < len(valid):
            writes.append(writer.submit(self.rows.append, row + skip, probability[skip:], valid[skip:]))

    def _wait(self, future: Future[Any]) -> Any:
        started = time.perf_counter()
        try:
            return future.result()
        finally:
            self._waited += time.perf_counter() - started


class _Strip:
    """Weighted sums of the rows that tiles still add to."""

    def __init__(self, tiling: Tiling, top: int) -> None:
        height, width = tiling.rows[0].size, tiling.columns[-1].start + tiling.columns[-1].size
        self.top, self.shape = top, (tiling.height, tiling.width)
        self.columns = {span.start: span for span in tiling.columns}
        self.rows = {span.start: span for span in tiling.rows}
        self.sums = np.zeros((height, width), dtype=np.float32)
        self.weights = np.zeros((height, width), dtype=np.float32)
        self.valid = np.zeros((height, width), dtype=bool)

    def see(self, tile: Tile, valid: np.ndarray) -> None:
        top = max(self.top, tile.row)
        self.valid[top - self.top : tile.row + tile.height - self.top, tile.col : tile.col + tile.width] = valid[
            top - tile.row :
        ]

    def add(self, tile: Tile, probability: np.ndarray) -> None:
        row, column = self.rows[tile.row], self.columns[tile.col]
        top, bottom, left, right = max(row.first, self.top), row.last + 1, column.first, column.last + 1
        here = np.s_[top - self.top : bottom - self.top, left:right]
        there = np.s_[top - tile.row : bottom - tile.row, left - tile.col : right - tile.col]
        weights = tile.weights[there]
        self.sums[here] += weights * probability[there]
        self.weights[here] += weights

    def take(self, end: int) -> tuple[int, np.ndarray, np.ndarray]:
        """First row, probabilities and validity of the rows before ``end``, which nothing will be added to."""
        row, count = self.top, end - self.top
        width = self.shape[1]
        sums, weights = self.sums[:count, :width], self.weights[:count, :width]
        valid = self.valid[:count, :width] & (weights > 1e-6)
        probability = np.divide(sums, weights, out=np.zeros_like(sums), where=valid)
        for kept in (self.sums, self.weights, self.valid):
            kept[: len(kept) - count] = kept[count:].copy()
            kept[len(kept) - count :] = 0
        self.top = end
        return row, probability, valid


def encode(probability: np.ndarray, valid: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Probabilities as they are stored: in 200 steps with 255 as nodata, or float32 with NaN.

    >>> encode(np.array([0.0, 0.5, 1.0, 0.3]), np.array([True, True, True, False]), "uint8").tolist()
    [0, 100, 200, 255]
    """
    if encoding == "float32":
        return np.where(valid, np.clip(probability, 0, 1), np.nan).astype(np.float32)
    steps = np.rint(np.clip(probability, 0, 1) * PROBABILITY_STEPS)
    return np.where(valid, steps, CLASS_NODATA).astype(np.uint8)


def _create(probability: Path, classes: Path, grid: Grid, encoding: Encoding, tags: Mapping[str, str]) -> None:
    small = encoding == "uint8"
    create_rows(
        probability,
        grid,
        dtype=encoding,
        nodata=CLASS_NODATA if small else float("nan"),
        description="probability",
        tags=tags,
        scale=1 / PROBABILITY_STEPS if small else None,
    )
    create_rows(classes, grid, dtype="uint8", nodata=CLASS_NODATA, description="class", tags=tags, colours=_COLOURS)


def _tags(settings: Mapping[str, Any], date: str) -> dict[str, str]:
    image, elevation = settings["data"]
    from mc_remote_sensing import __version__

    tags = {
        "MC_MODEL": settings["model"],
        "MC_THRESHOLD": f"{settings['threshold']:.6g}",
        "MC_DATE": date,
        "MC_IMAGE": image,
        "TIFFTAG_SOFTWARE": f"mc-remote-sensing {__version__}",
    }
    return tags if elevation is None else tags | {"MC_ELEVATION": elevation}


def _tif(path: StrPath) -> Path:
    found = Path(path)
    if found.suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError(f"{found}: maps are written as GeoTIFF; give a name that ends in .tif")
    return found


def _explain(error: OSError, out: Path, *, kept: bool = False) -> McError:
    found = explain_write_error(error, out)
    if kept and isinstance(found, RunError):
        return type(found)(f"{found}; finished strips are kept in .{out.name}.work")
    return found
