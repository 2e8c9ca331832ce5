"""A model over a scene of any size: a probability raster and a class raster on the image's grid.

Tiles are run row by row. What overlaps is summed in strips of float32 as wide as the scene and as high as a tile, so that memory
grows with width × tile only. One thread reads ahead, another writes finished rows, while the model computes. After each strip a
small file beside the rows says how many are finished: the same call goes on from there, and ends in the same bytes.

Legend: H, W rows and columns of the scene.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import rasterio
import torch

from mc_core.errors import ConfigError, McError, RunError
from mc_core.files import StrPath, explain_write_error, sync_folder
from mc_remote_sensing.inference.rows import CACHE_BYTES, cloud_optimised
from mc_remote_sensing.inference.running import (
    ElevationReader,
    ImageReader,
    Runner,
    Segmenter,
    data_fingerprint,
    grid_of,
    model_fingerprint,
)
from mc_remote_sensing.inference.strips import Loop, Progress
from mc_remote_sensing.inference.tiling import Tiling
from mc_remote_sensing.inference.work import CLASSES, PROBABILITY, Encoding, WorkRows

_FORMAT = 1


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
        mapping_seconds: of these, between the first read and the last strip; the rest makes the work files and the final ones.
        compute_share: share of ``mapping_seconds`` that went into the model and the sums, not into waiting for reads and writes.
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
    mapping_seconds: float
    compute_share: float


def predict_scene(
    model: Segmenter,
    image: ImageReader | None,
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
        image: gives the grid; None for a scene of elevation alone.
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
    limit = float(getattr(model, "threshold", 0.5) if threshold is None else threshold)
    if not 0 <= limit <= 1:
        raise ConfigError(f"threshold {limit}: a probability lies between 0 and 1")
    runner = Runner(model, device)
    grid = grid_of(image, elevation)
    halo = runner.halo(tile) if halo is None else halo
    tiling = Tiling(grid.height, grid.width, tile=tile, halo=halo, overlap=overlap, stride=model.stride)
    settings = {
        "format": _FORMAT,
        "model": model_id or model_fingerprint(model),
        "data": [None if source is None else data_fingerprint(source) for source in (image, elevation)],
        "read as": [repr(image), repr(elevation), str(getattr(elevation, "derived", ""))],
        "grid": [grid.crs.to_wkt(), list(grid.transform)[:6], grid.height, grid.width],
        "tiling": [tile, tiling.shared, halo, model.stride],
        "threshold": limit,
        "encoding": encoding,
        "min_valid": min_valid,
    }
    work = out.with_name(f".{out.name}.work")
    try:
        rows = WorkRows.open(work, grid, settings, date, resume=resume)
    except (OSError, McError) as error:
        shutil.rmtree(work, ignore_errors=True)
        raise _explain(error, out) if isinstance(error, OSError) else error from error
    resumed = rows.finished
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
            loop = Loop(runner, image, elevation, tiling, rows, min_valid, batch_size or runner.batch_size)
            loop.run(progress)
        found = rows.state
        whole = cloud_optimised(work / PROBABILITY, resampling="average")
        whole_classes = cloud_optimised(work / CLASSES, resampling="mode")
        classes.parent.mkdir(parents=True, exist_ok=True)
        whole_classes.replace(classes)
        whole.replace(out)
        for folder in {out.parent, classes.parent}:
            sync_folder(folder)
    except OSError as error:
        raise _explain(error, out, kept=rows.finished > 0) from error
    finally:
        rows.close()
        if not rows.finished:
            shutil.rmtree(work, ignore_errors=True)
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
        mapping_seconds=loop.seconds,
        compute_share=loop.compute_share,
    )


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
