"""The one image type of this package: a radiograph as grey values in [0, 1], bones bright, with what its file told.

Legend: H rows, W columns, S side of a square.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mc_core.errors import BadSampleError
from mc_medical.data.image_config import ImageOptions

Record = Callable[..., None]
"""Called with (name, stored values → values, low, high, note) after each step of reading; see :mod:`mc_medical.data.inspection`."""

FRONTAL = ("PA", "AP", "frontal")

_VIEWS = {
    **dict.fromkeys(("pa", "postero-anterior", "posteroanterior"), "PA"),
    **dict.fromkeys(
        ("ap", "antero-posterior", "anteroposterior", "ap supine", "ap erect", "ap axial", "ap semierect"), "AP"
    ),
    **dict.fromkeys(
        ("ll", "rl", "l", "lateral", "lat", "lld", "left lateral", "right lateral", "rlo", "llo"), "lateral"
    ),
    **dict.fromkeys(("frontal", "front"), "frontal"),
}
_DARKER = -15.0  # of 255
_BARE_DICOM = (b"\x02\x00", b"\x08\x00")  # group of the first element, where older files have no preamble
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}


@dataclass(frozen=True)
class Radiograph:
    """A radiograph.

    Attributes:
        pixels: (H, W) float32 in [0, 1]; 0 is air and padding, 1 what stopped most of the rays.
        view: ``PA``, ``AP``, ``frontal``, ``lateral``, ``other``, or empty where the file does not say.
        laterality: ``L``, ``R`` or ``B`` as the file says, mostly empty for chests.
        modality: of DICOM (``CR``, ``DX``, ``RG``), else empty.
        bits: of a stored value.
        header: technical facts alone: nothing that tells a patient, a date or a place.
        notes: what was doubtful, one short sentence each.
    """

    pixels: np.ndarray
    view: str = ""
    laterality: str = ""
    modality: str = ""
    bits: int = 8
    header: Mapping[str, str | float | int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def frontal(self) -> bool | None:
        """Whether it was taken from the front or the back; None where the file does not say."""
        return None if not self.view else self.view in FRONTAL


def read_radiograph(
    source: str | os.PathLike[str] | bytes,
    options: ImageOptions = ImageOptions(),  # noqa: B008 - frozen
    *,
    name: str | None = None,
    record: Record | None = None,
) -> Radiograph:
    """Read a DICOM, PNG or JPEG file, told apart by content, not by name.

    Args:
        source: a path, or the bytes of a file.
        options: how to choose grey values, and what to refuse.
        name: for messages, instead of the path: paths may name patients.
        record: is shown the values after each step.

    Raises:
        BadSampleError: it cannot be used, in one line: no image, no pixels, colour, several frames, another modality,
            contradicting look-up tables, burned-in text, a compression without its package, damage.
    """
    if isinstance(source, bytes):
        data, name = source, name or "the image"
    else:
        name = name or os.fspath(source)
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise BadSampleError(
                name, "no such file" if isinstance(error, FileNotFoundError) else f"unreadable ({error.strerror})"
            ) from None
    if not data:
        raise BadSampleError(name, "the file is empty")
    if data[128:132] == b"DICM" or data[:2] in _BARE_DICOM:
        from mc_medical.data.dicom import read_dicom

        return read_dicom(data, options, name, record)
    if any(data.startswith(start) for start in _SIGNATURES):
        from mc_medical.data.pictures import read_picture

        return read_picture(data, options, name, record)
    raise BadSampleError(name, "no image: neither DICOM nor PNG nor JPEG")


def view_name(text: object) -> str:
    """A view position in one of the words of :class:`Radiograph`; empty for what says nothing.

    >>> view_name("AP SUPINE"), view_name("LL"), view_name("Frontal"), view_name("XTABLE"), view_name(None)
    ('AP', 'lateral', 'frontal', 'other', '')
    """
    plain = " ".join(str(text if text is not None else "").lower().replace("_", " ").split())
    if not plain or plain in ("unknown", "nan", "none", "n/a", "na"):
        return ""
    if plain in _VIEWS:
        return _VIEWS[plain]
    first = plain.split()[0]
    return _VIEWS.get(first, "lateral" if "lateral" in plain else "other")


def square(pixels: np.ndarray, size: int) -> np.ndarray:
    """(H, W) in [0, 1] to (size, size) uint8: padded with 0 to a square around the middle, then resized with antialiasing.

    >>> square(np.ones((4, 2), dtype=np.float32), 4)[0].tolist()
    [0, 255, 255, 0]
    """
    from PIL import Image

    height, width = pixels.shape
    side = max(height, width)
    padded = np.zeros((side, side), dtype=np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    padded[top : top + height, left : left + width] = pixels
    if side != size:
        padded = np.asarray(Image.fromarray(padded).resize((size, size), Image.Resampling.BILINEAR))
    return np.rint(np.clip(padded, 0.0, 1.0) * np.float32(255)).astype(np.uint8)


def looks_inverted(squared: np.ndarray) -> bool:
    """Whether the middle of a frontal chest image is clearly darker than what is beside it: spine and heart stop more rays than
    lungs do, so that the picture may be a negative that nothing declares, as in many PNG exports of MONOCHROME1.

    A hint and no proof, of ours. Of 337 public frontal images of 155 patients 1 is called inverted, and 307 of their negatives.

    Args:
        squared: (S, S) uint8.
    """
    side = len(squared)
    at = [round(share * side) for share in (0.20, 0.38, 0.45, 0.55, 0.62, 0.80)]
    rows = squared[side // 4 : round(0.7 * side)].astype(np.float32)
    left, middle, right = (rows[:, a:b].mean() for a, b in zip(at[::2], at[1::2], strict=True))
    return bool(middle - (left + right) / 2 < _DARKER)
