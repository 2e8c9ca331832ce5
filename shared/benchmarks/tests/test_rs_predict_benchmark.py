"""The benchmark of maps measures what it says, on rasters small enough to wait for."""

import numpy as np
import pytest
import rasterio

from mc_benchmarks import contract, rs_predict
from mc_benchmarks.contract import load_report
from mc_benchmarks.rs_predict import BAR, BOTH, IMAGE, MAPPING, PEAK, PER_MEGAPIXEL, WAITING, WITHIN, run_rs_predict
from mc_core.errors import RunError


def test_a_small_map_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    (tmp_path / "rasters").mkdir()
    run_rs_predict(size=600, elevation_size=400, tile=256, threads=1, folder=tmp_path / "rasters")
    report = load_report("rs_predict")
    first, second = report.rows
    assert first.name.startswith(IMAGE)
    assert second.name.startswith(BOTH)
    assert 100 < first.values[PEAK] < BAR
    assert first.values[WITHIN] == "yes"
    assert second.values[WITHIN] is None
    for row in report.rows:
        assert 0 < row.values[MAPPING] < row.values[PER_MEGAPIXEL]
        assert 0 <= row.values[WAITING] < 100
    assert report.command.endswith("--size 600")
    assert not list((tmp_path / "rasters").iterdir())


def test_the_raster_is_written_by_windows_and_of_the_size_asked_for(tmp_path):
    rs_predict.write_scene(tmp_path, 700, elevation=True)
    with rasterio.open(tmp_path / "image.tif") as image, rasterio.open(tmp_path / "elevation.tif") as elevation:
        assert (image.shape, image.count, image.dtypes[0], image.compression.value) == (
            (700, 700),
            3,
            "uint8",
            "DEFLATE",
        )
        assert (np.ptp(image.read(), axis=(1, 2)) > 32).all()
        assert elevation.bounds.left < image.bounds.left < image.bounds.right < elevation.bounds.right
        assert elevation.bounds.bottom < image.bounds.bottom < image.bounds.top < elevation.bounds.top


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    class Disk:
        free = 1000

    monkeypatch.setattr(rs_predict.shutil, "disk_usage", lambda _: Disk)
    with pytest.raises(
        RunError, match=r"20,000 × 20,000 and its map need 3.6 GB, 0.0 GB are free; give another --folder"
    ):
        run_rs_predict(folder=tmp_path)
    assert not list(tmp_path.iterdir())
