"""A scene that does not fit into memory, mapped: peak of resident memory, time for a megapixel, and what hides behind the model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import rasterio
from rasterio import Affine
from rasterio.windows import Window

from mc_benchmarks.contract import Environment, Report, Row, environment
from mc_core.errors import RunError

IMAGE, BOTH = "image alone", "image and elevation"
PEAK, BAR_COLUMN, WITHIN = "peak MiB", "bar, MiB", "within"
PER_MEGAPIXEL, MAPPING, WAITING, FINAL = "s per megapixel", "of it mapping", "waiting for disk, %", "final files, s"
BAR = 2048.0
"""MiB that a map of 20,000 × 20,000 pixels may take."""

_MIB = 1 << 20
_BLOCK = 256
_PIXEL_M, _CELL_M = 2.0, 5.0
_CHILD = """
import json, sys
import torch
from mc_remote_sensing.data.elevation import ElevationSource
from mc_remote_sensing.data.raster import RasterSource
from mc_remote_sensing.encoders_config import BandsConfig
from mc_remote_sensing.inference.predict import predict_scene
from mc_remote_sensing.model import SegmentationConfig, SegmentationModel
from mc_remote_sensing.recipe import resolve_recipe
folder, modality, tile, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
torch.manual_seed(0)
image = RasterSource(folder + "/image.tif")
elevation = ElevationSource(folder + "/elevation.tif", image.grid, cache=folder) if modality == "fused" else None
network = resolve_recipe("hpcl-net-laptop", {"method": {"network": {"modality": modality}}}).method.network
bands = BandsConfig(names=image.band_names, mean=(100.0,) * image.count, std=(50.0,) * image.count)
model = SegmentationModel(SegmentationConfig(network=network, bands=bands))
made = predict_scene(model, image, elevation, folder + "/map.tif", tile=int(tile), device="cpu")
if sys.platform == "linux":  # there, what getrusage tells includes what the parent had before this program began
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak = 1024 * int(status["VmHWM"].split()[0])
else:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
told = {"peak": peak, "seconds": made.seconds, "mapping": made.mapping_seconds, "compute": made.compute_share}
print(json.dumps(told | {"tiles": made.tiles, "valid": made.valid, "pixels": made.pixels}))
"""


def write_scene(folder: Path, size: int, *, elevation: bool = False) -> None:
    """A square image of 3 bands of 8 bits, deflated in tiles and written by rows of them, and a coarser elevation if wanted.

    Args:
        folder: of ``image.tif`` and ``elevation.tif``.
        size: of the image's side in pixels of 2 m.
        elevation: also write it, with cells of 5 m.
    """
    rng = np.random.default_rng(0)
    pattern = rng.integers(0, 64, (3, _BLOCK, 8 * _BLOCK), dtype=np.uint8)
    wide = np.tile(pattern, (1, 1, -(-size // pattern.shape[2])))[:, :, :size]
    profile = {"driver": "GTiff", "crs": "EPSG:32632", "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK}
    profile |= {"compress": "deflate", "zlevel": 1, "bigtiff": "if_safer"}
    transform = Affine(_PIXEL_M, 0.0, 600_000.0, 0.0, -_PIXEL_M, 5_200_000.0)
    shape = {"count": 3, "dtype": "uint8", "width": size, "height": size, "interleave": "pixel"}
    with rasterio.open(folder / "image.tif", "w", transform=transform, **profile, **shape) as file:
        for row in range(0, size, _BLOCK):
            height = min(_BLOCK, size - row)
            brightness = np.uint8(60 + 60 * np.sin(row / 2000.0))
            file.write(wide[:, :height] + brightness, window=Window(0, row, size, height))  # type: ignore[call-arg]
    if elevation:
        cells = int(np.ceil(size * _PIXEL_M / _CELL_M)) + 20
        offset = 10 * _CELL_M
        transform = Affine(_CELL_M, 0.0, 600_000.0 - offset, 0.0, -_CELL_M, 5_200_000.0 + offset)
        shape = {"count": 1, "dtype": "float32", "width": cells, "height": cells}
        with rasterio.open(folder / "elevation.tif", "w", transform=transform, **profile, **shape) as file:
            file.units = ("metre",)
            x = np.arange(cells) * _CELL_M
            for row in range(0, cells, _BLOCK):
                height = min(_BLOCK, cells - row)
                y = (row + np.arange(height))[:, None] * _CELL_M
                values = 500 + 80 * np.sin(x / 300) * np.cos(y / 250) + rng.normal(0, 0.3, (height, cells))
                file.write(values.astype(np.float32), 1, window=Window(0, row, cells, height))  # type: ignore[call-arg]


def run_rs_predict(
    *, size: int = 20_000, elevation_size: int = 5_000, tile: int = 512, threads: int = 2, folder: Path | None = None
) -> Report:
    """Measure, save, show.

    Args:
        size: side of the image in pixels.
        elevation_size: side of the image that is mapped with elevation; 0 leaves it out.
        tile: side of a tile in pixels.
        threads: of PyTorch.
        folder: for the rasters, which are removed afterwards; default the system's temporary one.

    Raises:
        RunError: too little room on the disk, or the map failed.
    """
    rows = []
    for name, modality, side in ((IMAGE, "image", size), (BOTH, "fused", elevation_size)):
        if not side:
            continue
        with tempfile.TemporaryDirectory(dir=folder) as work:
            need, free = side * side * 9, shutil.disk_usage(work).free
            if free < need:
                raise RunError(
                    f"{work}: a raster of {side:,} × {side:,} and its map need {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
                    "free; give another --folder or a smaller --size"
                )
            write_scene(Path(work), side, elevation=modality == "fused")
            told = _child(Path(work), modality, tile, threads)
        peak, megapixels = told["peak"] / _MIB, told["pixels"] / 1e6
        rows.append(
            Row(
                name=f"{name}, {side:,} × {side:,}",
                values={
                    PEAK: peak,
                    BAR_COLUMN: BAR if name == IMAGE else None,
                    WITHIN: ("yes" if peak < BAR else "no") if name == IMAGE else None,
                    PER_MEGAPIXEL: told["seconds"] / megapixels,
                    MAPPING: told["mapping"] / megapixels,
                    WAITING: 100 * (1 - told["compute"]),
                    FINAL: told["seconds"] - told["mapping"],
                },
            )
        )
    report = Report(
        benchmark="rs_predict",
        command="uv run mc-benchmark rs-predict" + (f" --size {size}" if size != 20_000 else ""),
        question=f"Maps by the laptop's network in tiles of {tile}, on {threads} threads",
        settings={"size": size, "elevation_size": elevation_size, "tile": tile, "threads": threads},
        environment=_environment(threads),
        columns=[PEAK, BAR_COLUMN, WITHIN, PER_MEGAPIXEL, MAPPING, WAITING, FINAL],
        rows=rows,
        reading="Deflated images of 3 bands of 8 bits, random weights. Peaks are of resident memory, PyTorch itself included. Time "
        "is of the whole call; mapping is from the first read to the last finished strip, the rest makes both cloud-optimised "
        "GeoTIFFs and reads them back. Waiting is the share of mapping in which the model had nothing to do, for reads or writes.",
    )
    report.save()
    report.show()
    return report


def _environment(threads: int) -> Environment:
    found = environment()
    packages = {**found.packages, **{name: version(name) for name in ("mc-remote-sensing", "rasterio")}}
    return found.model_copy(update={"packages": packages, "threads": threads})


def _child(folder: Path, modality: str, tile: int, threads: int) -> dict[str, float]:
    command = [sys.executable, "-c", _CHILD, str(folder), modality, str(tile), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"{modality}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
