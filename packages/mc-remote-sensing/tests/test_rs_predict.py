"""Maps: no seams, the image's grid, whole or not at all, and the same bytes however often they were interrupted."""

import errno
import os
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

from mc_core.errors import ConfigError, DataError, NonFiniteError, RunError
from mc_remote_sensing.data.raster import RasterSource
from mc_remote_sensing.encoders_config import BandsConfig
from mc_remote_sensing.inference import rows, work
from mc_remote_sensing.inference.predict import predict_scene
from mc_remote_sensing.inference.running import Runner, data_fingerprint, model_fingerprint, predict_window, read_inputs
from mc_remote_sensing.inference.work import encode
from mc_remote_sensing.model import SegmentationConfig, SegmentationModel
from mc_remote_sensing.recipe import resolve_recipe

HERE = Path(__file__).parent
tiny = SimpleNamespace(**runpy.run_path(str(HERE / "_tiny_maps.py")))
SETTINGS, SHAPE, Convolutions, Linear = tiny.SETTINGS, tiny.SHAPE, tiny.Convolutions, tiny.Linear
write_image = tiny.write_image

CPU = {"device": "cpu", "date": "2026-01-01"}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> RasterSource:
    return write_image(tmp_path_factory.mktemp("scene") / "image.tif")


@pytest.fixture(scope="module")
def whole(image: RasterSource) -> np.ndarray:
    """The network's probabilities of the whole scene at once."""
    return forward(Convolutions(), image)


def forward(model: nn.Module, image: RasterSource) -> np.ndarray:
    height, width = (-(-n // model.stride) * model.stride for n in SHAPE)
    inputs = read_inputs(image, None, 0, 0, height, width)
    found = Runner(model, "cpu")([inputs])[0][: SHAPE[0], : SHAPE[1]]
    return np.where(inputs.valid[: SHAPE[0], : SHAPE[1]], found, np.nan)


def pixels(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


class Elevation:
    """A slope of 0 to 1 from west to east."""

    def __init__(self, grid) -> None:
        self.grid = grid

    def read(self, row, col, height, width):
        found = np.zeros((4, height, width), dtype=np.float32)
        found[1] = ((np.arange(col, col + width) + 0.5) / self.grid.width)[None, :]
        found[3] = 1
        return found


@pytest.mark.parametrize("tile", [16, 31, 64, 200, 512])
def test_a_linear_model_gives_the_same_for_every_size_of_tile(tmp_path, image, tile):
    made = predict_scene(Linear(), image, None, tmp_path / "map.tif", tile=tile, encoding="float32", min_valid=0, **CPU)
    expected = forward(Linear(), image)
    assert np.nanmax(np.abs(pixels(made.probability) - expected)) <= 1e-6
    assert np.array_equal(np.isnan(pixels(made.probability)), np.isnan(expected))


@pytest.mark.parametrize("tile", [64, 100, 128, 512])
def test_a_network_gives_the_same_when_the_halo_covers_what_it_sees(tmp_path, image, whole, tile):
    options = {"tile": tile, "encoding": "float32", "min_valid": 0, **CPU}
    made = predict_scene(Convolutions(), image, None, tmp_path / "map.tif", halo=25, **options)
    assert np.nanmax(np.abs(pixels(made.probability) - whole)) <= 1e-6
    if tile < 200:
        seamed = predict_scene(Convolutions(), image, None, tmp_path / "map.tif", halo=0, **options)
        assert np.nanmax(np.abs(pixels(seamed.probability) - whole)) > 1e-3, "without a halo there are seams to see"


def test_batches_and_overlap_change_nothing(tmp_path, image, whole):
    options = {"tile": 100, "halo": 25, "encoding": "float32", "min_valid": 0, **CPU}
    made = predict_scene(Convolutions(), image, None, tmp_path / "map.tif", overlap=80, batch_size=3, **options)
    assert np.nanmax(np.abs(pixels(made.probability) - whole)) <= 1e-6


def test_the_default_halo_is_what_the_model_sees_up_to_an_eighth_of_the_tile(image):
    runner = Runner(Convolutions(), "cpu")
    assert (runner.halo(512), runner.halo(128)) == (25, 16)
    runner.model.receptive_field = None
    assert runner.halo(512) == 64


def test_the_map_lies_on_the_grid_of_the_image_and_says_where_it_comes_from(tmp_path, image):
    made = predict_scene(
        Convolutions(), image, None, tmp_path / "map.tif", tile=64, model_id="runs/a", threshold=0.3, **CPU
    )
    assert made.classes.name == "map-classes.tif"
    with rasterio.open(image.path) as original:
        for path in (made.probability, made.classes):
            with rasterio.open(path) as file:
                assert (file.crs, file.transform, file.shape) == (original.crs, original.transform, SHAPE)
                assert file.bounds == original.bounds
                assert (file.count, file.dtypes, file.nodata) == (1, ("uint8",), 255)
                assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                assert file.compression.value == "DEFLATE"
                tags = file.tags()
        assert (tags["MC_MODEL"], tags["MC_THRESHOLD"], tags["MC_DATE"]) == ("runs/a", "0.3", "2026-01-01")
        assert tags["MC_IMAGE"] == data_fingerprint(image)
        assert "MC_ELEVATION" not in tags
    with rasterio.open(made.probability) as file:
        assert file.scales == (1 / 200,)
        assert file.descriptions == ("probability",)
    with rasterio.open(made.classes) as file:
        assert file.colormap(1)[1][:3] == (214, 47, 39)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map-classes.tif", "map.tif"]


def test_a_large_map_has_overviews(tmp_path):
    source = write_image(tmp_path / "image.tif", (600, 700))
    made = predict_scene(Linear(), source, None, tmp_path / "map.tif", tile=256, **CPU)
    with rasterio.open(made.probability) as file:
        assert file.overviews(1) == [2]
        assert file.block_shapes == [(512, 512)]


def test_classes_follow_the_threshold_and_bytes_the_probability(tmp_path, image, whole):
    made = predict_scene(Convolutions(), image, None, tmp_path / "map.tif", tile=128, halo=25, min_valid=0, **CPU)
    stored, classes = pixels(made.probability), pixels(made.classes)
    invalid = np.isnan(whole)
    assert np.array_equal(stored == 255, invalid)
    assert np.array_equal(classes == 255, invalid)
    assert np.abs(stored[~invalid] / 200 - whole[~invalid]).max() <= 0.0025 + 1e-6
    clear = ~invalid & (np.abs(whole - 0.4) > 1e-5)
    assert np.array_equal(classes[clear], whole[clear] >= 0.4)
    assert made.threshold == 0.4, "the model's own"
    assert (made.pixels, made.valid, made.target) == (whole.size, (~invalid).sum(), (classes == 1).sum())
    assert 0.05 < made.target / made.valid < 0.95


@pytest.mark.parametrize("encoding", ["uint8", "float32"])
def test_encoding_clips_and_marks(encoding):
    found = encode(np.array([-1e-7, 0.0025, 0.0026, 1.0000001, 0.5]), np.array([True] * 4 + [False]), encoding)
    if encoding == "uint8":
        assert found.tolist() == [0, 0, 1, 200, 255]
    else:
        assert found[:4] == pytest.approx([0, 0.0025, 0.0026, 1])
        assert np.isnan(found[4])


def test_elevation_reaches_the_model_and_can_stand_alone(tmp_path, image):
    elevation = Elevation(image.grid)
    options = {"tile": 64, "encoding": "float32", "min_valid": 0, **CPU}
    plain = predict_scene(Linear(), image, None, tmp_path / "plain.tif", **options)
    both = predict_scene(Linear(), image, elevation, tmp_path / "both.tif", **options)
    columns = (np.arange(SHAPE[1]) + 0.5) / SHAPE[1]
    difference = pixels(both.probability) - pixels(plain.probability)
    assert np.nanmax(np.abs(difference - 0.1 * columns)) < 1e-6

    class Slope(nn.Module):
        stride, receptive_field = 1, 1

        def forward(self, image, elevation, image_valid):
            assert image is None
            return elevation[:, 1]

    made = predict_scene(Slope(), None, elevation, tmp_path / "slope.tif", tile=64, encoding="float32", **CPU)
    assert np.abs(pixels(made.probability) - columns).max() < 1e-6
    assert made.threshold == 0.5
    with pytest.raises(ConfigError, match="give an image, an elevation model or both"):
        predict_scene(Slope(), None, None, tmp_path / "none.tif", **CPU)


def test_windows_with_hardly_any_valid_pixel_are_not_run(tmp_path):
    source = write_image(tmp_path / "image.tif", (128, 256))
    with rasterio.open(source.path, "r+") as file:
        values = file.read()
        values[:, :, 128:] = 0
        values[:, 60:64, 200:204] = 7
        file.write(values)
    seen = []

    class Counted(Linear):
        def forward(self, image, elevation, image_valid):
            seen.append(float(image_valid.float().mean()))
            return super().forward(image, elevation, image_valid)

    made = predict_scene(Counted(), source, None, tmp_path / "map.tif", tile=64, overlap=1, **CPU)
    assert made.tiles == 3 * 5
    assert made.skipped == made.tiles - len(seen) > 3
    assert min(seen) >= 0.05
    found = pixels(made.probability)
    assert (found[60:64, 200:204] == 255).all(), "valid, but alone in its window"
    assert (found[4:50, :50] != 255).all()
    all_run = predict_scene(Linear(), source, None, tmp_path / "map.tif", tile=64, overlap=1, min_valid=0, **CPU)
    assert (pixels(all_run.probability)[60:64, 200:204] != 255).all()
    assert all_run.skipped > 0, "windows without any valid pixel are never run"


def test_a_window_is_what_the_map_is_there(tmp_path, image, whole):
    runner = Runner(Convolutions(), "cpu")
    for window in ((0, 0, 40, 30), (50, 37, 61, 80), (100, 60, 60, 70), (0, 0, *SHAPE)):
        row, col, height, width = window
        expected = whole[row : row + height, col : col + width]
        found = predict_window(runner, image, None, window, tile=100, halo=25)
        assert found.shape == (height, width)
        assert np.nanmax(np.abs(found - expected)) <= 1e-6, window


def test_reading_and_writing_have_threads_of_their_own(tmp_path, image, monkeypatch):
    threads = {"read": set(), "write": set(), "compute": set()}

    class Watched(RasterSource):
        def read(self, *window):
            threads["read"].add(threading.get_ident())
            return super().read(*window)

    class Model(Linear):
        def forward(self, *inputs):
            threads["compute"].add(threading.get_ident())
            return super().forward(*inputs)

    original = rows.RowRaster.write

    def write(self, *arguments):
        threads["write"].add(threading.get_ident())
        original(self, *arguments)

    monkeypatch.setattr(rows.RowRaster, "write", write)
    calls = []
    made = predict_scene(
        Model(), Watched(image.path), None, tmp_path / "map.tif", tile=64, progress=lambda *x: calls.append(x), **CPU
    )
    assert all(len(found) == 1 for found in threads.values())
    assert len(set.union(*threads.values())) == 3
    assert threads["compute"] == {threading.get_ident()}
    assert calls == [(n, made.tiles) for n in range(1, made.tiles + 1)]
    assert 0 < made.compute_share <= 1


def test_memory_does_not_grow_with_the_height_of_the_scene(tmp_path):
    import tracemalloc

    peaks = []
    for height in (512, 2048):
        source = write_image(tmp_path / "image.tif", (height, 256))
        tracemalloc.start()
        predict_scene(Linear(), source, None, tmp_path / "map.tif", tile=64, **CPU)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_map_leaves_no_file_under_its_name_and_goes_on(tmp_path, image, stop):
    def interrupt(done, total):
        if done > total * 0.85:
            raise stop

    (tmp_path / "map.tif").write_text("an older map")
    with pytest.raises(stop):
        predict_scene(Convolutions(), image, None, tmp_path / "map.tif", progress=interrupt, **SETTINGS)
    assert (tmp_path / "map.tif").read_text() == "an older map"
    assert not (tmp_path / "map-classes.tif").exists()
    made = predict_scene(Convolutions(), image, None, tmp_path / "map.tif", **SETTINGS)
    assert 0 < made.resumed_rows < SHAPE[0]
    straight = predict_scene(Convolutions(), image, None, tmp_path / "straight.tif", **SETTINGS)
    assert made.tiles < straight.tiles
    same_map(made, straight)


def same_map(made, straight):
    assert made.probability.read_bytes() == straight.probability.read_bytes()
    assert made.classes.read_bytes() == straight.classes.read_bytes()
    assert (made.valid, made.target) == (straight.valid, straight.target)
    assert not list(made.probability.parent.glob(".*"))


@pytest.mark.parametrize("change", ["threshold", "model", "data", "tile", "resume", "torn note"])
def test_an_interrupted_map_of_something_else_starts_again(tmp_path, image, change):
    def interrupt(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_scene(Convolutions(), image, None, tmp_path / "map.tif", progress=interrupt, **SETTINGS)
    model, source, options = Convolutions(), image, dict(SETTINGS)
    if change == "threshold":
        options["threshold"] = 0.9
    elif change == "model":
        with torch.no_grad():
            model.layers[0].weight[0, 0, 0, 0] += 1
    elif change == "data":
        source = write_image(tmp_path / "other.tif", seed=1)
    elif change == "tile":
        options["tile"] = 68
    elif change == "resume":
        options["resume"] = False
    else:
        (tmp_path / ".map.tif.work" / "finished.json").write_text('{"settings": ')
    made = predict_scene(model, source, None, tmp_path / "map.tif", **options)
    assert made.resumed_rows == 0
    same_map(made, predict_scene(model, source, None, tmp_path / "straight.tif", **options))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders in which maps were killed or ran out of disk, by the name of the moment."""
    folder = tmp_path_factory.mktemp("ended")
    command = [sys.executable, str(HERE / "_tiny_maps.py"), str(folder)]
    subprocess.run(command, check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("straight")
    return predict_scene(Convolutions(), write_image(folder / "image.tif"), None, folder / "map.tif", **SETTINGS)


@pytest.mark.parametrize("moment", list(tiny.DEATHS))
def test_a_killed_map_goes_on_to_the_same_bytes(ended, straight, moment, monkeypatch):
    folder = ended / moment
    assert (folder / "status.txt").read_text() == "-9"
    if moment != "between the renames":
        assert not (folder / "map.tif").exists()
        assert not (folder / "map-classes.tif").exists()
    monkeypatch.chdir(folder)
    made = predict_scene(Convolutions(), RasterSource("image.tif"), None, "map.tif", **SETTINGS)
    same_map(made, straight)
    if moment in ("before the copy", "between the copies", "between the renames"):
        assert (made.resumed_rows, made.tiles) == (SHAPE[0], 0)
    if moment in ("rows noted", "last tile"):
        assert made.resumed_rows > 0


@pytest.mark.parametrize("where", list(tiny.FULL))
def test_a_full_disk_leaves_no_half_map(ended, straight, where, monkeypatch):
    folder = ended / where
    text = (folder / "said.txt").read_text()
    assert text.startswith("RunError: "), text
    assert "map.tif could not be written" in text
    assert "free space" in text
    assert "\n" not in text.strip()
    assert not (folder / "map.tif").exists()
    assert not (folder / "map-classes.tif").exists()
    assert (folder / ".map.tif.work").exists() == (where == "copy")
    monkeypatch.chdir(folder)
    made = predict_scene(Convolutions(), RasterSource("image.tif"), None, "map.tif", **SETTINGS)
    assert made.resumed_rows == (SHAPE[0] if where == "copy" else 0)
    same_map(made, straight)


def test_a_disk_that_fills_up_half_way_keeps_what_is_finished(tmp_path, image, straight, monkeypatch):
    original, calls = rows.RowRaster.write, []

    def write(self, row, values):
        calls.append(row)
        if len(calls) == 4:  # only once: what comes later must not be written past the gap
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, row, values)

    monkeypatch.setattr(rows.RowRaster, "write", write)
    out = tmp_path / "map.tif"
    with pytest.raises(RunError, match=r"map.tif could not be written \(No space left.*kept in .map.tif.work"):
        predict_scene(Convolutions(), image, None, out, **SETTINGS)
    assert not out.exists()
    made = predict_scene(Convolutions(), image, None, out, **SETTINGS)
    assert made.resumed_rows > 0
    assert np.array_equal(pixels(made.probability), pixels(straight.probability), equal_nan=True)


def test_rows_are_written_without_a_gap(tmp_path, image):
    settings = {"model": "m", "data": ["d", None], "threshold": 0.5, "encoding": "uint8"}
    rows_ = work.WorkRows.open(tmp_path / "work", image.grid, settings, "2026-01-01", resume=True)
    strip = np.full((10, SHAPE[1]), 0.7, np.float32), np.ones((10, SHAPE[1]), bool)
    rows_.append(0, *strip)
    with pytest.raises(RunError, match="rows 10 to 20 were not written"):
        rows_.append(20, *strip)
    rows_.close()
    again = work.WorkRows.open(tmp_path / "work", image.grid, settings, None, resume=True)
    assert (again.finished, again.state["date"], again.state["valid"]) == (10, "2026-01-01", 10 * SHAPE[1])
    again.close()
    assert (pixels(tmp_path / "work" / "probability.tif")[:12, 3] == [140] * 10 + [255] * 2).all()


def test_a_copy_that_reads_back_differently_is_no_map(tmp_path, image, monkeypatch):
    original = rows.rasterio.shutil.copy

    def broken(source, draft, **options):
        original(source, draft, **options)
        with rasterio.open(draft, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
            file.write(np.full((1, 4, 4), 3, dtype=np.uint8), window=((100, 104), (20, 24)))

    monkeypatch.setattr(rows.rasterio.shutil, "copy", broken)
    with pytest.raises(RunError, match="reads back differently"):
        predict_scene(Linear(), image, None, tmp_path / "map.tif", **CPU)
    assert not (tmp_path / "map.tif").exists()


def test_too_small_a_disk_is_refused_before_anything_is_computed(tmp_path, image, monkeypatch):
    class Disk:
        free = 10_000

    monkeypatch.setattr(work.shutil, "disk_usage", lambda _: Disk)
    with pytest.raises(RunError, match=r"needs 0.00 GB while it is made, 0.00 GB are free"):
        predict_scene(Linear(), image, None, tmp_path / "map.tif", **CPU)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_or_computed_is_said_and_nothing_is_left(tmp_path, image):
    class Damaged(RasterSource):
        def read(self, row, *rest):
            if row > 0:
                raise DataError("image.tif: pixels (48, 0, 64, 64) cannot be read")
            return super().read(row, *rest)

    with pytest.raises(DataError, match="cannot be read"):
        predict_scene(Linear(), Damaged(image.path), None, tmp_path / "map.tif", tile=64, **CPU)

    class Broken(Linear):
        def forward(self, image, elevation, image_valid):
            return super().forward(image, elevation, image_valid) * float("nan")

    with pytest.raises(NonFiniteError, match="NaN or infinite probabilities"):
        predict_scene(Broken(), image, None, tmp_path / "map.tif", tile=64, resume=False, **CPU)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "map.png"}, r"map.png: maps are written as GeoTIFF"),
        ({"classes": "map.tif"}, "needs another name"),
        ({"threshold": 1.5}, "threshold 1.5: a probability lies between 0 and 1"),
        ({"tile": 30}, "tile 30: must be a multiple of the model's stride 4"),
        ({"encoding": "int8"}, "encoding 'int8': give uint8 or float32"),
        ({"out": "image.tif/map.tif"}, "could not be written|choose another"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, options, message):
    source = write_image(tmp_path / "image.tif")
    options = {"out": "map.tif", **options}
    options |= {name: tmp_path / options[name] for name in ("out", "classes") if name in options}
    with pytest.raises(ConfigError, match=message):
        predict_scene(Convolutions(), source, None, **options, **CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["image.tif"]


def test_fingerprints_follow_content(tmp_path, image):
    same = write_image(tmp_path / "same.tif")
    other = write_image(tmp_path / "other.tif", seed=1)
    assert data_fingerprint(image) == data_fingerprint(same) != data_fingerprint(other)
    model, changed = Convolutions(), Convolutions()
    assert model_fingerprint(model) == model_fingerprint(changed)
    with torch.no_grad():
        changed.layers[0].bias[0] += 1e-3
    assert model_fingerprint(model) != model_fingerprint(changed)


def test_a_coordinate_system_without_a_code_is_kept(tmp_path):
    crs = "+proj=laea +lat_0=46 +lon_0=9.3 +datum=WGS84 +units=m"
    source = write_image(tmp_path / "image.tif", (40, 50), crs=crs)
    made = predict_scene(Linear(), source, None, tmp_path / "map.tif", **CPU)
    with rasterio.open(made.probability) as file:
        assert file.crs == source.grid.crs
        assert file.crs.to_epsg() is None


def test_beyond_the_scene_a_model_sees_zeros_that_are_not_valid(image):
    inputs = read_inputs(image, Elevation(image.grid), 100, 60, 128, 64)
    assert inputs.valid[:33].any()
    assert not inputs.valid[103:].any()
    assert (inputs.image[:, ~inputs.valid] == 0).all()
    assert inputs.elevation.shape == (4, 128, 64)


def test_the_laptop_network_has_no_seams_with_its_own_receptive_field(tmp_path, image):
    torch.manual_seed(0)
    network = resolve_recipe("hpcl-net-laptop").method.network
    bands = BandsConfig(names=image.band_names, mean=(500.0,) * 3, std=(290.0,) * 3)
    model = SegmentationModel(SegmentationConfig(network=network, bands=bands)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)  # so that the probabilities differ from place to place
    halo, elevation = model.receptive_field // 2, Elevation(image.grid)
    options = {"encoding": "float32", "min_valid": 0, **CPU}
    made = [
        predict_scene(model, image, elevation, tmp_path / f"{tile}.tif", tile=tile, halo=halo, **options)
        for tile in (152, 160, 512)
    ]
    found = [pixels(one.probability) for one in made]
    assert np.nanquantile(found[2], 0.95) - np.nanquantile(found[2], 0.05) > 0.3
    seamed = predict_scene(model, image, elevation, tmp_path / "seamed.tif", tile=152, halo=0, **options)
    assert np.nanmax(np.abs(pixels(seamed.probability) - found[2])) > 1e-3
    for one in found[:2]:
        assert np.nanmax(np.abs(one - found[2])) <= 1e-6
