"""What the tests of maps share: a tiny raster and models small enough to follow. As a script, it dies in the middle of a map."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio import Affine
from torch import Tensor, nn

from mc_remote_sensing.data.raster import RasterSource
from mc_remote_sensing.inference import predict, strips, work

SHAPE = (203, 158)
SETTINGS: dict[str, Any] = {"tile": 64, "encoding": "float32", "date": "2026-01-01", "device": "cpu"}


class Linear(nn.Module):
    """Each pixel by itself: what a tiling must not change at all."""

    stride, receptive_field, threshold = 1, 1, 0.5

    def forward(self, image: Tensor, elevation: Tensor | None, image_valid: Tensor | None) -> Tensor:
        found = 0.2 + (image * torch.tensor([0.3, 0.1, 0.2])[:, None, None]).sum(1) / 1000
        return found if elevation is None else found + 0.1 * elevation[:, 1]


class Convolutions(nn.Module):
    """Stride 4, five convolutions; an output depends on 51 pixels."""

    stride, receptive_field, threshold = 4, 51, 0.4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = [(4, 8, 1), (8, 8, 2), (8, 8, 2), (8, 8, 1)]
        layers = [layer for a, b, s in widths for layer in (nn.Conv2d(a, b, 3, s, 1), nn.Tanh())]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8, 1, 3, 1, 1))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)

    def forward(self, image: Tensor, elevation: Tensor | None, image_valid: Tensor | None) -> Tensor:
        assert image_valid is not None
        inputs = torch.cat([image / 500, image_valid[:, None].float()], dim=1)
        scores = nn.functional.interpolate(self.layers(inputs), scale_factor=4, mode="bilinear", align_corners=False)
        return (scores[:, 0] / 2 - 2.75).sigmoid()


def write_image(path: Path, shape: tuple[int, int] = SHAPE, *, crs: str = "EPSG:32632", seed: int = 0) -> RasterSource:
    """Three bands of uint16 with nodata 0 in the first rows and in a corner block."""
    values = np.random.default_rng(seed).integers(1, 1000, (3, *shape), dtype=np.uint16)
    values[:, :2] = 0
    values[:, -70:, -70:] = 0
    transform = Affine(2.0, 0.0, 600_000.0, 0.0, -2.0, 5_200_000.0)
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint16", "nodata": 0, "crs": crs, "transform": transform}
    with rasterio.open(path, "w", height=shape[0], width=shape[1], **profile) as file:
        file.write(values)
    return RasterSource(path)


def _die_in_progress(done: int) -> None:
    def progress(tiles: int, total: int) -> None:
        if tiles >= done:
            os.kill(os.getpid(), signal.SIGKILL)

    _map(progress)


def _die_in(module: Any, name: str, call: int, *, after: bool) -> None:
    original, calls = getattr(module, name), []

    def deadly(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if after and len(calls) == call:
            original(*arguments, **options)
        if len(calls) >= call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(module, name, deadly)
    _map()


def _map(progress: Any = None) -> Any:
    source = RasterSource("image.tif")
    return predict.predict_scene(Convolutions(), source, None, "map.tif", progress=progress, **SETTINGS)


def _small_files(bytes_: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))


def _full_in_rows() -> None:
    _small_files(60_000)
    _map()


def _full_in_the_copy() -> None:
    original = predict.cloud_optimised

    def without_room(*arguments: Any, **options: Any) -> Any:
        _small_files(20_000)
        return original(*arguments, **options)

    predict.cloud_optimised = without_room
    _map()


DEATHS = {
    "first tile": lambda: _die_in_progress(1),
    "second row of tiles": lambda: _die_in_progress(6),
    "last tile": lambda: _die_in_progress(16),
    "rows not written": lambda: _die_in(work.RowRaster, "write", 3, after=False),
    "rows written, not noted": lambda: _die_in(work, "write_json", 3, after=False),
    "rows noted": lambda: _die_in(work, "write_json", 3, after=True),
    "summing": lambda: _die_in(strips.Strip, "take", 2, after=False),
    "before the copy": lambda: _die_in(predict, "cloud_optimised", 1, after=False),
    "between the copies": lambda: _die_in(predict, "cloud_optimised", 1, after=True),
    "between the renames": lambda: _die_in(predict, "sync_folder", 1, after=False),
}
FULL = {"rows": _full_in_rows, "copy": _full_in_the_copy}


def _alone(folder: Path, end: Any) -> None:
    """Run ``end`` in a process of its own, in a folder with an image; keep its exit status and what it said."""
    folder.mkdir()
    write_image(folder / "image.tif")
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        try:
            end()
            said = "a whole map"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        os.write(os.open("said.txt", os.O_CREAT | os.O_WRONLY), said.encode())
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (folder / "status.txt").write_text(str(status))


if __name__ == "__main__":
    torch.set_num_threads(1)  # a process with threads is not to be forked
    for name, end in (DEATHS | FULL).items():
        _alone(Path(sys.argv[1]) / name, end)
