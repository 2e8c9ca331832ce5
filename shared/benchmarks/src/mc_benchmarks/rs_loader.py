"""Windows per second from the files of a scene to batches, beside torchgeo's raster data sets with its random sampler."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mc_benchmarks.contract import Report, Row, environment, median, median_ratio, paired, spread
from mc_core.data import StepPlan, step_loader
from mc_core.optional import require
from mc_remote_sensing.data import Scene, TileDataset, open_scene
from mc_remote_sensing.terrain import TerrainFiles, write_terrain

OURS, PEER = "mc-remote-sensing", "torchgeo"
IMAGE, RELIEF, POLYGONS = "image", "image and elevation", "image and polygons"
SPEED, IQR, RATIO = "windows/s (median)", "IQR", "× torchgeo"
_PEERS = 'mc-benchmarks with "torchgeo" (uv sync --group peers)'


def run_rs_loader(
    *,
    size: int = 4096,
    tile: int = 256,
    batch_size: int = 8,
    windows: int = 512,
    workers: tuple[int, ...] = (0, 2),
    repeats: int = 5,
) -> Report:
    """Measure, save, show.

    Args:
        size: side of the scene in pixels.
        tile: side of a window in pixels.
        batch_size: windows of a batch.
        windows: in a round.
        workers: numbers of loader processes, each measured.
        repeats: rounds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    rows = []
    try:
        files = write_terrain(folder, size_px=size, seed=0)
        for count in workers:
            for what in (IMAGE, RELIEF, POLYGONS):
                ours = our_round(our_scene(files, what, folder), tile, batch_size, windows, count)
                theirs = their_round(files, what, tile, batch_size, windows, count)
                seconds = paired({OURS: ours, PEER: theirs}, repeats=repeats, warmup=1)
                where = f"{what}, {count} workers" if count else f"{what}, in the process"
                rows += [_row(f"{name}, {where}", found, seconds[PEER], windows) for name, found in seconds.items()]
    finally:
        shutil.rmtree(folder)
        torch.set_num_threads(threads)
    found = environment()
    packages = {name: version(name) for name in ("mc-remote-sensing", "rasterio", "torchgeo")}
    report = Report(
        benchmark="rs_loader",
        command="uv run --group peers mc-benchmark rs-loader",
        question=f"Random windows of {tile} px, batch {batch_size}, from GeoTIFFs of {size} × {size} px",
        settings={
            "size": size,
            "tile": tile,
            "batch_size": batch_size,
            "windows": windows,
            "workers": list(workers),
            "repeats": repeats,
        },
        environment=found.model_copy(update={"packages": found.packages | packages}),
        columns=[SPEED, IQR, RATIO],
        rows=rows,
        reading="Our windows always hold labels and a validity mask, and slope, curvature and relative elevation where there is "
        "elevation; torchgeo's hold the raw bands, the raw heights, and polygons only where they are named. Starting the workers "
        "is in both figures.",
    )
    report.save()
    report.show()
    return report


def our_scene(files: TerrainFiles, what: str, folder: Path) -> Scene:
    """The scene with what is compared, and its labels in any case."""
    return open_scene(files.image, files.elevation if what == RELIEF else None, files.labels, cache=folder / "cache")


def our_round(scene: Scene, tile: int, batch_size: int, windows: int, workers: int) -> Callable[[], int]:
    """Read so many windows; gives how many there were."""
    data = TileDataset(scene, tile=tile, per_epoch=windows)
    plan = StepPlan(windows, batch_size, seed=0)
    start = 0

    def work() -> int:
        nonlocal start
        first, start = start, start + windows // batch_size
        return _count(step_loader(data, plan, start=first, stop=start, workers=workers))

    return work


def their_round(
    files: TerrainFiles, what: str, tile: int, batch_size: int, windows: int, workers: int
) -> Callable[[], int]:
    """The same of torchgeo.

    Raises:
        MissingDependencyError: torchgeo is not installed.
    """
    sets = require("torchgeo.datasets", extra=_PEERS, purpose="be compared with")
    samplers = require("torchgeo.samplers", extra=_PEERS, purpose="be compared with")
    data = sets.RasterDataset(str(files.image))
    if what == RELIEF:
        heights = type("Heights", (sets.RasterDataset,), {"is_image": False, "dtype": torch.float32})
        data = data & heights(str(files.elevation), crs=data.crs, res=data.res)
    if what == POLYGONS:
        data = data & sets.VectorDataset(str(files.labels), crs=data.crs, res=data.res)
    generator = torch.Generator().manual_seed(0)
    sampler = samplers.RandomGeoSampler(data, size=tile, length=windows, generator=generator)
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_collate,
        prefetch_factor=4 if workers else None,
    )
    return lambda: _count(loader)


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Only the tensors: what torchgeo adds beside them has changed from version to version."""
    names = [
        name for name, value in samples[0].items() if name in ("image", "mask") and isinstance(value, torch.Tensor)
    ]
    return {name: torch.stack([sample[name] for sample in samples]) for name in names}


def _count(batches: Iterable[dict[str, Any]]) -> int:
    found = 0
    for batch in batches:
        if "error" in batch:
            raise batch["error"]
        found += len(batch["image"])
    return found


def _row(name: str, seconds: list[float], base: list[float], windows: int) -> Row:
    speeds = [windows / each for each in seconds]
    return Row(name=name, values={SPEED: median(speeds), IQR: spread(speeds), RATIO: median_ratio(base, seconds)})
