"""The tiny files are read back by the libraries that read the real ones."""

import wave

import numpy as np
import pytest
import rasterio
from PIL import Image

from mc_testkit.files import write_broken_image, write_geotiff, write_image, write_image_folder, write_text, write_wav


@pytest.mark.parametrize(
    ("suffix", "mode"), [(".png", "RGB"), (".jpg", "L"), (".png", "RGBA"), (".png", "P"), (".tif", "I;16")]
)
def test_images(tmp_path, suffix, mode):
    path = write_image(tmp_path / f"a{suffix}", size=(20, 10), mode=mode)
    with Image.open(path) as image:
        assert image.size == (20, 10)
        assert image.mode == mode
        assert np.asarray(image).std() > 1
    assert path.read_bytes() == write_image(tmp_path / f"b{suffix}", size=(20, 10), mode=mode).read_bytes()


def test_image_folder(tmp_path):
    write_image_folder(tmp_path, classes=("a", "b", "c"), each=2)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png")) == [
        f"{c}/{i:03d}.png" for c in "abc" for i in range(2)
    ]


@pytest.mark.parametrize("kind", ["truncated", "text", "empty"])
def test_broken_images_do_not_load(tmp_path, kind):
    path = write_broken_image(tmp_path / "x.jpg", kind)
    with pytest.raises(OSError, match="truncated|cannot identify"), Image.open(path) as image:
        image.load()


def test_wav(tmp_path):
    with wave.open(str(write_wav(tmp_path / "a.wav", seconds=0.25, rate=4000, hertz=500))) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        assert (file.getframerate(), len(samples)) == (4000, 1000)
    assert np.argmax(np.abs(np.fft.rfft(samples))) * 4000 / 1000 == 500


def test_text(tmp_path):
    assert write_text(tmp_path / "a.txt", ["één", "två"]).read_bytes() == "één\ntvå\n".encode()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("bands", [1, 4])
def test_geotiff(tmp_path, dtype, bands):
    values = (np.arange(bands * 5 * 7) % 100).reshape(bands, 5, 7).astype(dtype)
    path = write_geotiff(tmp_path / "a.tif", values, nodata=99, origin=(400_000, 5_000_000), pixel=2.5)
    with rasterio.open(path) as file:
        assert file.crs.to_epsg() == 32633
        assert (file.transform.a, file.transform.e, file.transform.c, file.transform.f) == (
            2.5,
            -2.5,
            400_000,
            5_000_000,
        )
        assert file.nodata == 99
        np.testing.assert_array_equal(file.read(), values)


def test_geographic_geotiff(tmp_path):
    path = write_geotiff(tmp_path / "g.tif", np.zeros((1, 2, 2), "uint8"), epsg=4326, origin=(11.0, 46.0), pixel=0.1)
    with rasterio.open(path) as file:
        assert file.crs.is_geographic
