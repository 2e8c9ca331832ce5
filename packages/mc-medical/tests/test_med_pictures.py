"""PNG and JPEG radiographs, and the square that is stored of any."""

from __future__ import annotations

import runpy
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mc_core.errors import BadSampleError
from mc_medical.data.image_config import ImageOptions, SplitOptions
from mc_medical.data.radiograph import read_radiograph, square

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_radiographs.py"))))


def test_eight_bits_are_taken_by_their_declared_range():
    grey = write.chest(top=200).astype(np.uint8)
    found = read_radiograph(write.picture(grey))
    np.testing.assert_allclose(found.pixels, grey / 255, atol=1e-7)
    assert (found.pixels.dtype, found.bits, found.notes, found.view, found.frontal) == (np.float32, 8, (), "", None)


def test_sixteen_bits_are_a_window_without_one_declared():
    grey = write.chest(40, 40, top=4095).astype(np.uint16)
    low, high = np.percentile(grey, (0.5, 99.5))
    np.testing.assert_allclose(
        read_radiograph(write.picture(grey)).pixels, np.clip((grey - low) / (high - low), 0, 1), atol=1e-6
    )
    full = read_radiograph(write.picture(grey), ImageOptions(voi="full"))
    np.testing.assert_allclose(full.pixels, grey / 65535, atol=1e-7)
    assert full.bits == 16


def test_percentiles_of_eight_bits_where_asked():
    grey = write.chest(40, 40, top=90).astype(np.uint8)
    low, high = np.percentile(grey, (0.5, 99.5))
    found = read_radiograph(write.picture(grey), ImageOptions(voi="percentile"))
    np.testing.assert_allclose(found.pixels, np.clip((grey - low) / (high - low), 0, 1), atol=1e-6)


def test_jpeg_is_read_as_pillow_reads_it():
    grey = write.chest(40, 48, top=255).astype(np.uint8)
    data = write.picture(grey, "JPEG", quality=95)
    found = read_radiograph(data).pixels
    assert found.shape == (40, 48)
    assert np.abs(found - grey / 255).mean() < 0.05


def test_alpha_is_dropped_and_not_blended():
    grey = write.chest(top=255).astype(np.uint8)
    clear = np.zeros_like(grey)
    for array in (np.stack([grey, clear], -1), np.stack([grey, grey, grey, clear], -1)):
        found = read_radiograph(write.picture(array))
        np.testing.assert_allclose(found.pixels, grey / 255, atol=1e-7)
        assert found.notes == ()


def test_colour_becomes_luma_with_a_note_but_grey_in_three_channels_does_not():
    grey = write.chest(top=255).astype(np.uint8)
    assert read_radiograph(write.picture(np.stack([grey] * 3, -1))).notes == ()
    colour = np.stack([grey, grey // 2, 255 - grey], -1)
    found = read_radiograph(write.picture(colour))
    np.testing.assert_allclose(found.pixels, colour @ np.array([0.299, 0.587, 0.114]) / 255, atol=1e-6)
    assert found.notes == ("colour became grey",)


def test_palettes_are_resolved():
    grey = write.chest(top=255).astype(np.uint8)
    image = Image.fromarray(grey).convert("P")
    import io

    file = io.BytesIO()
    image.save(file, format="PNG")
    np.testing.assert_allclose(read_radiograph(file.getvalue()).pixels, grey / 255, atol=1e-7)


def test_exif_orientation_is_ignored_with_a_note():
    grey = write.chest(40, 48, top=255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read_radiograph(write.picture(grey, "JPEG", quality=90, exif=exif))
    plain = read_radiograph(write.picture(grey, "JPEG", quality=90))
    np.testing.assert_array_equal(turned.pixels, plain.pixels)
    assert turned.notes == ("EXIF orientation is ignored",)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_cut_off_pictures_are_one_line(kind):
    data = write.picture(write.chest(64, 64, top=255).astype(np.uint8), kind)
    for length in (10, 60, len(data) // 2):
        with pytest.raises(BadSampleError) as caught:
            read_radiograph(data[:length], name="row 4")
        assert str(caught.value) == "row 4: damaged or cut off: the picture cannot be decoded"


def test_empty_pictures_several_frames_and_giants_are_one_line():
    with pytest.raises(BadSampleError, match=r"^row 1: every pixel has the value 9: an empty picture$"):
        read_radiograph(write.picture(np.full((8, 8), 9, np.uint8)), name="row 1")
    grey = Image.fromarray(write.chest(top=255).astype(np.uint8))
    data = write.picture(np.asarray(grey), "PNG", save_all=True, append_images=[grey.rotate(90), grey.rotate(180)])
    with pytest.raises(BadSampleError, match=r"^row 1: several frames \(3\); one is wanted$"):
        read_radiograph(data, name="row 1")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(BadSampleError, match="^row 1: "):
        read_radiograph(b"\x89PNG\r\n\x1a\n" + chunk, name="row 1")


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (25, 25)])
def test_a_square_is_padded_around_the_middle(shape):
    pixels = np.full(shape, 0.5, dtype=np.float32)
    side = max(shape)
    found = square(pixels, side)
    assert (found.shape, found.dtype) == ((side, side), np.uint8)
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    expected = np.zeros((side, side), dtype=np.uint8)
    expected[top : top + shape[0], left : left + shape[1]] = 128
    np.testing.assert_array_equal(found, expected)


def test_a_square_is_antialiased():
    stripes = np.zeros((64, 64), dtype=np.float32)
    stripes[:, ::2] = 1.0  # finer than 16 columns can show: without antialiasing all black or all white
    found = square(stripes, 16)
    assert 100 < found[:, 2:-2].min() <= found[:, 2:-2].max() < 155


def triangle(size: int, small: int) -> np.ndarray:
    """(small, size) weights of a triangle as wide as two new pixels, by definition."""
    scale = size / small
    weights = np.zeros((small, size))
    for i in range(small):
        for x in range(size):
            weights[i, x] = max(0.0, 1 - abs(x + 0.5 - (i + 0.5) * scale) / scale)
        weights[i] /= weights[i].sum()
    return weights


@pytest.mark.parametrize(("height", "width", "small"), [(24, 24, 7), (30, 21, 9)])
def test_a_square_is_resized_by_its_definition(height, width, small):
    pixels = np.random.default_rng(0).random((height, width)).astype(np.float32)
    padded = np.zeros((height, height))
    left = (height - width) // 2
    padded[:, left : left + width] = pixels
    weights = triangle(height, small)
    expected = weights @ padded @ weights.T * 255
    assert np.abs(square(pixels, small) - expected).max() <= 0.51


def test_options_say_what_is_wrong():
    from pydantic import ValidationError

    for bad, text in (
        ({"size": 0}, "greater than or equal to 8"),
        ({"voi": "magic"}, "'auto', 'percentile' or 'full'"),
        ({"modalities": ()}, "no modality is wanted"),
    ):
        with pytest.raises(ValidationError, match=text):
            ImageOptions(**bad)
    with pytest.raises(ValidationError, match="add up to 1"):
        SplitOptions(shares=(0.5, 0.1, 0.1))
