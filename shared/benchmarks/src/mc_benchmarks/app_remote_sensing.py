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


def rs_loader(
    *,
    size: int = 4096,
    tile: int = 256,
    batch_size: int = 8,
    windows: int = 512,
    workers: tuple[int, ...] = (0, 2),
    repeats: int = 5,
) -> None:
    """Windows per second from the files of a scene, beside torchgeo (needs --group peers).

    Args:
        size: Side of the scene in pixels.
        tile: Side of a window in pixels.
        batch_size: Windows of a batch.
        windows: In a round.
        workers: Numbers of loader processes; give it several times.
        repeats: Rounds.
    """
    from mc_benchmarks.rs_loader import run_rs_loader

    run_rs_loader(size=size, tile=tile, batch_size=batch_size, windows=windows, workers=workers, repeats=repeats)


def rs_terrain(*, seeds: int = 5, keep: Path = Path("runs/benchmarks")) -> None:
    """HPCL-Net part by part on made terrains. About 40 minutes on one core; goes on where it stopped.

    Args:
        seeds: Terrains.
        keep: Where finished rows are kept.
    """
    from mc_benchmarks.rs_claims import run_rs_terrain

    run_rs_terrain(seeds=seeds, keep=keep)


def rs_landslides(*, data: Path | None = None, seeds: int = 3, keep: Path = Path("runs/benchmarks")) -> None:
    """HPCL-Net part by part on real landslide images with masks. Goes on where it stopped.

    Args:
        data: Tar or folder of images and masks. Default: $MC_DATA/remote-sensing/landslide-pairs.tar.
        seeds: Splits.
        keep: Where finished rows are kept.
    """
    import os

    from mc_benchmarks.rs_claims import run_rs_landslides

    default = Path(os.environ.get("MC_DATA", ".")) / "remote-sensing" / "landslide-pairs.tar"
    run_rs_landslides(data=data or default, seeds=seeds, keep=keep)


REMOTE_SENSING_COMMANDS = (
    rs_landslides,
    rs_loader,
    rs_predict,
    rs_terrain,
)
