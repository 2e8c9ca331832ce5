"""Where in an image a phrase is found: cosines of a phrase and the vectors of patches.

A map of similarities shows what the model compares, not where a finding is.

Legend: h, w patches, H, W pixels, D dimensions.
"""

from __future__ import annotations

import os

import numpy as np

from mc_core.errors import DataError
from mc_core.files import atomic_path


def phrase_map(patches: np.ndarray, phrase: np.ndarray) -> np.ndarray:
    """(h, w) cosines of (h, w, D) patch vectors and one (D,) phrase vector; lengths do not count.

    Raises:
        DataError: shapes that do not match, values that are not finite, a phrase of length zero.

    >>> phrase_map(np.array([[[1.0, 0.0], [0.0, 2.0]]]), np.array([3.0, 0.0])).tolist()
    [[1.0, 0.0]]
    """
    patches, phrase = np.asarray(patches, dtype=np.float64), np.asarray(phrase, dtype=np.float64)
    if patches.ndim != 3 or phrase.shape != patches.shape[-1:] or not patches.size:
        raise DataError(f"patches {patches.shape} and phrase {phrase.shape}: (h, w, dimensions) and (dimensions,)")
    if not np.isfinite(patches).all() or not np.isfinite(phrase).all():
        raise DataError("vectors of patches and phrase must be finite")
    length = np.linalg.norm(phrase)
    if not length:
        raise DataError("the phrase has a vector of length zero")
    sizes = np.linalg.norm(patches, axis=-1)
    return patches @ phrase / (length * np.where(sizes > 0, sizes, 1))


def enlarge(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) float64 from (h, w) by bilinear interpolation between patch centres.

    >>> enlarge(np.array([[0.0, 1.0]]), 1, 4).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    """
    values = np.asarray(values, dtype=np.float64)

    def along(size: int, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.clip((np.arange(pixels) + 0.5) * size / pixels - 0.5, 0, size - 1)
        low = np.minimum(at.astype(np.int64), max(size - 2, 0))
        return low, np.minimum(low + 1, size - 1), at - low

    top, bottom, down = along(values.shape[0], height)
    rows = values[top] * (1 - down)[:, None] + values[bottom] * down[:, None]
    left, right, over = along(values.shape[1], width)
    return rows[:, left] * (1 - over) + rows[:, right] * over


def overlay(pixels: np.ndarray, similarity: np.ndarray, *, strength: float = 0.55) -> np.ndarray:
    """(H, W, 3) uint8: a radiograph with the similar places in colour, from the map's median up to its highest value.

    Args:
        pixels: (H, W) in [0, 1].
        similarity: (h, w), of any range; one without variation colours nothing.
        strength: of the colour, at most.
    """
    pixels = np.clip(np.asarray(pixels, dtype=np.float64), 0, 1)
    middle, high = float(np.median(similarity)), float(np.max(similarity))
    span = high - middle
    share = (
        np.zeros(pixels.shape) if span <= 1e-9 else enlarge(np.clip((similarity - middle) / span, 0, 1), *pixels.shape)
    )
    # dark red through orange to yellow: brighter is more, also without colour vision
    colour = np.stack([0.35 + 0.65 * np.sqrt(share), 0.85 * share**1.3, 0.05 + 0.15 * share**3], axis=-1)
    weight = (strength * np.sqrt(share))[..., None]
    return np.round(255 * (pixels[..., None] * (1 - weight) + colour * weight)).astype(np.uint8)


def write_overlay(path: str | os.PathLike[str], pixels: np.ndarray, similarity: np.ndarray) -> None:
    """:func:`overlay` as a PNG file."""
    from PIL import Image

    with atomic_path(path) as draft, draft.open("wb") as file:
        Image.fromarray(overlay(pixels, similarity)).save(file, "PNG")


def pointing_hit(similarity: np.ndarray, box: tuple[float, float, float, float], height: int, width: int) -> bool:
    """Whether the most similar place, enlarged to the image, lies in a box: the pointing game (Zhang et al. 2018).

    Args:
        similarity: (h, w).
        box: (x0, y0, x1, y1) in pixels, ends not included.
        height: H of the image.
        width: W of the image.

    >>> pointing_hit(np.array([[0.0, 1.0], [0.0, 0.0]]), (32, 0, 64, 32), 64, 64)
    True
    """
    row, column = np.unravel_index(int(enlarge(similarity, height, width).argmax()), (height, width))
    x0, y0, x1, y1 = box
    return bool(x0 <= column < x1 and y0 <= row < y1)
