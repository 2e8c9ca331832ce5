"""The commands of ``mc-benchmark`` about remote sensing. Imports no torch."""

from __future__ import annotations

from pathlib import Path


def rs_predict(
    *, size: int = 20_000, elevation_size: int = 5_000, tile: int = 512, threads: int = 2, folder: Path | None = None
) -> None:
    """A scene larger than memory, mapped: peak of resident memory, time for a megapixel, what hides behind the model.

    Args:
        size: Side of the image in pixels.
        elevation_size: Side of the image that is mapped with elevation; 0 leaves it out.
        tile: Side of a tile in pixels.
        threads: Of PyTorch.
        folder: For the rasters; default the system's temporary one.
    """
    from mc_benchmarks.rs_predict import run_rs_predict

    run_rs_predict(size=size, elevation_size=elevation_size, tile=tile, threads=threads, folder=folder)


REMOTE_SENSING_COMMANDS = (rs_predict,)
