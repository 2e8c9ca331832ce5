"""From encoded bytes to 8-bit pixels: one place that knows what can be wrong with an image file.

Legend: H height, W width, C channels.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mc_core.errors import BadSampleError, DataError, McError
from mc_core.images.formats import EXTENSIONS, IMAGE_EXTENSIONS
from mc_core.optional import Deferred

if TYPE_CHECKING:
    from PIL import Image, ImageOps, TiffImagePlugin
else:
    Image = Deferred("PIL.Image", extra="pillow", purpose="read images")
    ImageOps = Deferred("PIL.ImageOps", extra="pillow", purpose="read images")
    TiffImagePlugin = Deferred("PIL.TiffImagePlugin", extra="pillow", purpose="read images")

__all__ = ["IMAGE_EXTENSIONS", "decode", "read_file", "stored_header", "to_8_bit", "to_channels", "upright"]

_GREY = {"1", "L", "LA", "La"}
_DEEP = {"I;16", "I;16L", "I;16B", "I;16N", "I"}
_GEO_TAGS = (33550, 33922, 34264, 34735)  # pixel scale, tie points, transformation, geo keys
_SAMPLE_ERRORS = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EIO, errno.ELOOP}


def decode(
    data: bytes | str | os.PathLike[str],
    *,
    channels: int | None = 3,
    min_side: int | None = None,
    name: str | None = None,
) -> Image.Image | np.ndarray:
    """Decode one image to 8 bits, upright.

    EXIF orientation is applied, 16 bits are scaled to 8 over the full range, palettes, CMYK and YCbCr become RGB,
    transparency is laid over white, and of several frames the first is taken.

    Args:
        data: the encoded bytes, or the path of a file.
        channels: 3 for RGB, 1 for grey, None for whichever of the two the file holds.
        min_side: the shorter side that is needed, in pixels. A JPEG at least twice as large is then decoded at 1/2, 1/4
            or 1/8 of its size, never below ``min_side``, in a fraction of the time.
        name: for the error message; default: the path.

    Returns:
        An RGB or L image; with ``channels=None`` also (H, W, C) uint8 for a geographic TIFF of four bands.

    Raises:
        BadSampleError: missing, empty, truncated, not an image, or too many pixels. Such a sample can be skipped.
        DataError: floating-point or multi-band pixels: no skipping will help.

    >>> file = io.BytesIO()
    >>> Image.new("LA", (3, 2), (0, 0)).save(file, "PNG")
    >>> decode(file.getvalue()).getpixel((0, 0))
    (255, 255, 255)
    """
    if not isinstance(data, bytes):
        name = name or os.fspath(data)
        data = read_file(data, name=name)
    name = name or "image"
    if not data:
        raise BadSampleError(name, "empty, 0 bytes")
    try:
        try:
            image = _pixels(data, min_side, name)
        except Warning:  # raised only where warnings are errors; what Pillow warns of leaves the pixels intact
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = _pixels(data, min_side, name)
    except (McError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise BadSampleError(name, _what_it_is(data[:64])) from error
    except Image.DecompressionBombError as error:
        raise BadSampleError(name, f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, refused") from error
    except Exception as error:  # decoders fail in many ways on broken input: struct.error, SyntaxError, IndexError, …
        raise BadSampleError(name, f"cannot be decoded, {str(error).rstrip('.') or type(error).__name__}") from error
    return image if channels is None else to_channels(image, channels, name=name)


def read_file(path: str | os.PathLike[str], *, name: str | None = None) -> bytes:
    """The bytes of a file.

    Raises:
        BadSampleError: this file is missing or cannot be read. Trouble that is not the file's own, such as too many
            open files, stays an OSError.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        if error.errno not in _SAMPLE_ERRORS:
            raise
        raise BadSampleError(name or os.fspath(path), (error.strerror or str(error)).lower()) from error


def to_channels(image: Image.Image | np.ndarray, channels: int, *, name: str = "image") -> Image.Image | np.ndarray:
    """Grey to RGB and back; any other number of channels has to be right already.

    Args:
        image: RGB or L, or an array (H, W, C).
        channels: what the encoder takes.
        name: for the error message.

    Raises:
        DataError: another number of channels.

    >>> to_channels(Image.new("L", (2, 2)), 3).mode
    'RGB'
    """
    have = len(image.getbands()) if isinstance(image, Image.Image) else image.shape[2]
    if isinstance(image, Image.Image) and channels in (1, 3) and have in (1, 3):
        mode = "RGB" if channels == 3 else "L"
        return image if image.mode == mode else image.convert(mode)
    if have != channels:
        raise DataError(
            f"{name} has {have} channels, the encoder takes {channels}: choose the bands beforehand, "
            f"or an encoder with in_chans={have}"
        )
    return image


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in EXTENSIONS if name in Image.OPEN)  # not every Pillow is built with AVIF


def _pixels(data: bytes, min_side: int | None, name: str) -> Image.Image | np.ndarray:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        if min_side is not None and min(image.size) >= 2 * min_side:
            image.draft(None, (min_side, min_side))
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            samples = image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
            if samples != len(image.getbands()):  # Pillow would read the first band and say nothing
                raise DataError(
                    f"{name} has {samples} channels, the encoder takes 3 or 1: write the bands to use as an 8-bit image"
                )
            if image.mode == "RGBA" and any(tag in image.tag_v2 for tag in _GEO_TAGS):
                return np.array(image)  # the fourth band of an aerial or satellite image is near infrared, not opacity
        image.load()
        return upright(to_8_bit(image, name=name))


def stored_header(data: bytes) -> tuple[tuple[int, int], str, str]:
    """(width, height), mode and format as the file states them, without decoding. The bytes must be those of an image.

    >>> file = io.BytesIO()
    >>> Image.new("L", (3, 2)).save(file, "PNG")
    >>> stored_header(file.getvalue())
    ((3, 2), 'L', 'PNG')
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            return image.size, image.mode, image.format or "unknown"


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; unreadable EXIF counts as none."""
    try:
        turned = ImageOps.exif_transpose(image)
    except Warning:
        raise
    except Exception:  # broken EXIF in a sound picture is common
        return image
    return turned


def to_8_bit(image: Image.Image, *, name: str = "image") -> Image.Image:
    """RGB or L in 8 bits from any mode Pillow decodes to; see :func:`decode`. The EXIF block is kept."""
    if image.mode in ("RGB", "L") and "transparency" not in image.info:
        return image
    if image.mode in _DEEP:
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise DataError(f"{name} has 32-bit pixels from {values.min()} to {values.max()}: write it as 8 or 16 bits")
        plain = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise DataError(f"{name} has floating-point pixels, and what counts as white is unknown: write it as 8 bits")
    elif image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        plain = Image.alpha_composite(ground, image.convert("RGBA")).convert("L" if image.mode in _GREY else "RGB")
    else:
        plain = image.convert("L" if image.mode in _GREY else "RGB")
    if "exif" in image.info:
        plain.info["exif"] = image.info["exif"]
    return plain


def _what_it_is(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image itself; run 'git lfs pull'"
    if head.lstrip().startswith(b"<"):
        return "an HTML or XML page, not an image"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "a TIFF with bands or a bit depth that Pillow does not read"
    return f"not an image (it begins with {head[:8]!r})"
