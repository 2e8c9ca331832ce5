"""Decoding: every mode to the right 8-bit pixels, upright, fast when large; every kind of broken file told apart."""

from __future__ import annotations

import contextlib
import errno
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from mc_core.errors import BadSampleError, DataError
from mc_core.images.decoding import IMAGE_EXTENSIONS, decode, read_file, to_channels


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def smooth(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 50 + 100], -1).astype(np.uint8))


@pytest.mark.parametrize(
    "file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "TGA", "ICO", "PCX", "JPEG2000"]
)
def test_formats(file_format):
    image = Image.new("RGB", (48, 32), (200, 40, 90))
    decoded = decode(encoded(image, file_format))
    assert decoded.mode == "RGB"
    if file_format != "ICO":  # icons are stored square
        assert decoded.size == (48, 32)
    center = np.asarray(decoded)[decoded.height // 2, decoded.width // 2].astype(int)
    assert np.abs(center - [200, 40, 90]).max() <= 4
    assert {".jpg", ".png", ".webp", ".tif"} <= IMAGE_EXTENSIONS


@pytest.mark.parametrize("channels", [3, 1, None])
@pytest.mark.parametrize(
    ("mode", "color", "rgb"),
    [
        ("1", 255, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (40, 255), (40, 40, 40)),
        ("LA", (40, 0), (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 100, (100, 100, 100)),
    ],
)
def test_modes(mode, color, rgb, channels):
    image = decode(encoded(Image.new(mode, (3, 2), color)), channels=channels)
    grey_file = mode not in ("RGB", "RGBA")
    expected_mode = {3: "RGB", 1: "L", None: "L" if grey_file else "RGB"}[channels]
    assert (image.mode, image.size) == (expected_mode, (3, 2))
    expected = rgb if expected_mode == "RGB" else round(np.dot(rgb, (0.299, 0.587, 0.114)))
    assert image.getpixel((1, 1)) == expected


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert [decode(encoded(image)).getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (0, 0, 255)]
    by_index = decode(encoded(image, transparency=1))
    assert [by_index.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]
    by_bytes = decode(encoded(image, transparency=bytes([0, 255])))  # Pillow warns of these
    assert [by_bytes.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_transparent_color_of_an_rgb_png():
    image = Image.new("RGB", (2, 1), (0, 0, 0))
    image.putpixel((1, 0), (9, 9, 9))
    decoded = decode(encoded(image, transparency=(0, 0, 0)))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (9, 9, 9)]


def test_cmyk_jpeg():
    decoded = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert decoded.mode == "RGB"
    assert np.abs(np.array(decoded.getpixel((8, 8))) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiff_of_either_byte_order(order):
    values = np.array([[0, 257, 65535]], dtype=order + "u2")
    mode = "I;16" if order == "<" else "I;16B"
    image = Image.frombytes(mode, (3, 1), values.tobytes())
    assert np.asarray(decode(encoded(image, "TIFF"), channels=1)).tolist() == [[0, 1, 255]]


def test_thirty_two_bit_and_float_pixels_are_not_guessed():
    with pytest.raises(DataError, match=r"dem\.tif has floating-point pixels.*8 bits"):
        decode(encoded(Image.new("F", (2, 2), 0.5), "TIFF"), name="dem.tif")
    with pytest.raises(DataError, match="32-bit pixels from -5 to -5"):
        decode(encoded(Image.new("I", (2, 2), -5), "TIFF"))
    assert not issubclass(DataError, BadSampleError)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = np.asarray(Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40))
    # what the camera stored: the inverse of what the viewer has to do
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for mode in ("L", "RGBA"):  # the second goes through a conversion
        data = encoded(Image.fromarray(np.ascontiguousarray(stored)).convert(mode), exif=exif)
        assert np.array_equal(np.asarray(decode(data, channels=1)), upright), mode


def test_broken_exif_does_not_spoil_the_picture():
    # an IFD whose entry points beyond the block; Pillow warns of it, and warnings are errors here
    entry = struct.pack("<HHHLL", 1, 0x010E, 2, 5000, 60000) + struct.pack("<L", 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + entry
    assert decode(encoded(Image.new("RGB", (8, 8), "red"), "JPEG", exif=exif)).size == (8, 8)


def test_large_jpegs_decode_at_a_fraction():
    data = encoded(smooth(1600, 1200), "JPEG", quality=95)
    sizes = {side: decode(data, min_side=side).size for side in (1201, 601, 600, 300, 224, 150, 16)}
    assert sizes == {
        1201: (1600, 1200),
        601: (1600, 1200),
        600: (800, 600),
        300: (400, 300),
        224: (400, 300),
        150: (200, 150),
        16: (200, 150),
    }
    small = np.asarray(decode(data, min_side=300)).astype(int)
    reference = np.asarray(decode(data).resize((400, 300), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - reference).mean() < 2
    assert decode(encoded(smooth(64, 64)), min_side=8).size == (64, 64)  # only JPEG can


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_one_pixel(mode):
    assert decode(encoded(Image.new(mode, (1, 1))), min_side=1).size == (1, 1)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty, 0 bytes"),
        (b"hello, this is text", "not an image"),
        (b"  <!DOCTYPE html><html>404</html>", "HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer.*git lfs pull"),
        (b"II*\0\x08\0\0\0\x01\0", "a TIFF|cannot be decoded"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:900], "truncated"),
        (encoded(Image.effect_noise((64, 64), 50), "PNG")[:900], "truncated|cannot be decoded"),
        (encoded(Image.effect_noise((64, 64), 50), "WEBP")[:300], "cannot be decoded|not an image"),
    ],
)
def test_bad_samples(data, reason):
    with pytest.raises(BadSampleError, match=reason) as caught:
        decode(data, name="folder/bad.jpg")
    assert caught.value.name == "folder/bad.jpg"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_truncated_anywhere(file_format):
    """Cut off anywhere, an image is refused, or only its trailer is missing: never half a picture."""
    data = encoded(smooth(32, 32), file_format)
    whole = np.asarray(decode(data))
    refused = 0
    for end in range(0, len(data), 5):
        try:
            assert np.array_equal(np.asarray(decode(data[:end])), whole), end
        except BadSampleError:
            refused += 1
    assert refused >= 0.8 * len(range(0, len(data), 5))


def test_damaged_bytes_never_escape_as_another_error():
    rng = np.random.default_rng(0)
    for file_format in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"):
        data = np.frombuffer(encoded(smooth(24, 24), file_format), np.uint8)
        for _ in range(60):
            damaged = data.copy()
            damaged[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            with contextlib.suppress(DataError):
                assert decode(damaged.tobytes()).mode == "RGB"


def test_decompression_bomb():
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(BadSampleError, match=r"more than [0-9,]+ pixels, refused"):
        decode(bomb)


def test_postscript_is_never_run():
    with pytest.raises(BadSampleError, match="not an image"):
        decode(encoded(Image.new("RGB", (4, 4)), "EPS"))


@pytest.mark.parametrize("geographic", [True, False])
def test_fourth_band_of_a_geographic_tiff_is_not_opacity(geographic):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if geographic:
        tags[33550] = (10.0, 10.0, 0.0)
        tags.tagtype[33550] = 12
    data = encoded(Image.new("RGBA", (3, 2), (10, 20, 30, 0)), "TIFF", tiffinfo=tags)
    if not geographic:
        assert decode(data).getpixel((0, 0)) == (255, 255, 255)
        return
    bands = decode(data, channels=None)
    assert bands.shape == (2, 3, 4)
    assert bands[0, 0].tolist() == [10, 20, 30, 0]
    with pytest.raises(DataError, match=r"scene\.tif has 4 channels, the encoder takes 3") as caught:
        decode(data, name="scene.tif")
    assert not isinstance(caught.value, BadSampleError)


def test_to_channels():
    grey, color = Image.new("L", (2, 2), 9), Image.new("RGB", (2, 2), (9, 9, 9))
    assert to_channels(grey, 3).getpixel((0, 0)) == (9, 9, 9)
    assert to_channels(color, 1).getpixel((0, 0)) == 9
    assert to_channels(color, 3) is color
    bands = np.zeros((2, 2, 4), np.uint8)
    assert to_channels(bands, 4) is bands
    with pytest.raises(DataError, match="image has 3 channels, the encoder takes 4"):
        to_channels(color, 4)


def test_reading_files(tmp_path, monkeypatch):
    with pytest.raises(BadSampleError, match="no such file") as caught:
        decode(tmp_path / "gone.jpg")
    assert caught.value.name == str(tmp_path / "gone.jpg")
    with pytest.raises(BadSampleError, match="directory"):
        read_file(tmp_path)

    def exhausted(self: object) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("pathlib.Path.read_bytes", exhausted)
    with pytest.raises(OSError, match="Too many") as trouble:
        read_file("fine.jpg")  # not this file's fault: must not be skipped silently
    assert not isinstance(trouble.value, DataError)
