"""PNG and JPEG radiographs: 8 or 16 bits of grey."""

from __future__ import annotations

import io
import warnings

import numpy as np

from mc_core.errors import BadSampleError
from mc_medical.data.dicom_luts import PERCENTILES, percentiles
from mc_medical.data.image_config import ImageOptions
from mc_medical.data.radiograph import Radiograph, Record

MAX_PIXELS = 200_000_000
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_EXIF_ORIENTATION = 0x0112


def read_picture(data: bytes, options: ImageOptions, name: str, record: Record | None = None) -> Radiograph:
    """A radiograph from the bytes of a PNG or JPEG file. Alpha is dropped, colour becomes luma, EXIF orientation is ignored.

    Raises:
        BadSampleError: damaged, several frames, or too large.
    """
    from PIL import Image

    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
            if image.width * image.height > MAX_PIXELS:
                raise BadSampleError(name, f"{image.width}×{image.height} pixels are more than a radiograph has")
            if getattr(image, "n_frames", 1) > 1:
                raise BadSampleError(name, f"several frames ({image.n_frames}); one is wanted")  # type: ignore[attr-defined]
            kind = image.format or ""
            if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
                notes.append("EXIF orientation is ignored")
            values, bits = _grey(image, notes)
    except BadSampleError:
        raise
    except Exception:  # decoders of damaged data may raise anything
        raise BadSampleError(name, "damaged or cut off: the picture cannot be decoded") from None
    if values.min() == values.max():
        raise BadSampleError(name, f"every pixel has the value {values.min():g}: an empty picture")
    low, high = 0.0, float((1 << bits) - 1)
    if record is not None:
        record("stored values", values, low, high, f"{kind}, {bits} bits")
    note = "the whole range"
    if options.voi == "percentile" or (options.voi == "auto" and bits > 8):
        whole = np.rint(values).astype(np.int64)  # luma of colours has fractions
        low, high = percentiles(
            np.arange(1 << bits, dtype=np.float64), np.bincount(whole.reshape(-1), minlength=1 << bits)
        )
        note = f"percentiles {PERCENTILES[0]:g} to {PERCENTILES[1]:g}: {low:g} to {high:g}"
    pixels = np.clip((values.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    if record is not None:
        record("window", pixels, 0.0, 1.0, note)
    header: dict[str, str | float | int] = {"Format": kind, "BitsStored": bits, "Rows": image.height}
    return Radiograph(pixels, bits=bits, header={**header, "Columns": image.width}, notes=tuple(notes))


def _grey(image: object, notes: list[str]) -> tuple[np.ndarray, int]:
    """(H, W) values and bits."""
    from PIL import Image

    assert isinstance(image, Image.Image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        return np.asarray(image).astype(np.uint16), 16
    if image.mode == "L":
        return np.asarray(image), 8
    if image.mode in ("1", "LA", "La"):
        return np.asarray(image.convert("LA").getchannel("L")), 8
    colours = np.asarray(image.convert("RGB"))
    if (colours == colours[..., :1]).all():
        return colours[..., 0], 8
    notes.append("colour became grey")
    return colours.astype(np.float32) @ _LUMA, 8
