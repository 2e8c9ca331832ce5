"""Pictures of scenes and maps, read at the size they are shown in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.enums import Resampling

from mc_core.files import atomic_path
from mc_remote_sensing.data import Scene
from mc_remote_sensing.data.alignment_picture import composite, relief_shades
from mc_remote_sensing.data.labels import IGNORE

_LONGEST = 1024
_TARGET = np.array([214, 47, 39], dtype=np.float32)
_MISSED, _FALSE, _HIT = (
    np.array(colour, dtype=np.float32) for colour in ((0, 114, 178), (230, 159, 0), (0, 158, 115))
)  # blue, orange, green: told apart by colour-blind eyes too


def overview_size(height: int, width: int, longest: int = _LONGEST) -> tuple[int, int]:
    """Rows and columns of a picture of a raster, no larger than it is.

    >>> overview_size(20_000, 10_000), overview_size(300, 200)
    ((1024, 512), (300, 200))
    """
    factor = max(1.0, max(height, width) / longest)
    return max(1, round(height / factor)), max(1, round(width / factor))


def scene_picture(scene: Scene, longest: int = _LONGEST) -> np.ndarray:
    """(h, w, 3) uint8: the visible bands, or shaded relief where there is no image; what has no data is white."""
    if scene.image is not None:
        return composite(*scene.image.overview(longest), scene.band_names)
    assert scene.elevation is not None
    return relief_shades(scene.elevation.overview(longest))


def scene_labels(scene: Scene, longest: int = _LONGEST) -> np.ndarray:
    """(h, w) uint8 labels in {0, 1, 255}: the nearest pixel of each."""
    height, width = overview_size(*scene.grid.shape, longest)
    if scene.labels is None:
        return np.full((height, width), IGNORE, dtype=np.uint8)
    rows, columns = (_middles(n, of) for n, of in ((height, scene.grid.height), (width, scene.grid.width)))
    return np.stack([scene.labels.rasterise(int(row), 0, 1, scene.grid.width)[0, columns] for row in rows])


def _middles(count: int, of: int) -> np.ndarray:
    return np.minimum(((np.arange(count) + 0.5) * of / count).astype(int), of - 1)


def read_map(path: Path, longest: int = _LONGEST) -> np.ndarray:
    """(h, w) float32 probabilities of a map that ``predict`` wrote, NaN where there is none."""
    with rasterio.open(path) as file:
        shape = overview_size(file.height, file.width, longest)
        found = file.read(1, out_shape=shape, resampling=Resampling.average, masked=True)
        scale = 1 / 200 if file.dtypes[0] == "uint8" else 1.0
    return np.ma.filled(found.astype(np.float32) * scale, np.nan)


def overlay(picture: np.ndarray, probability: np.ndarray, threshold: float, opacity: float = 0.55) -> np.ndarray:
    """(h, w, 3) uint8: the picture with the mapped class in red."""
    mapped = np.nan_to_num(probability, nan=-1.0) >= threshold
    shown = picture.astype(np.float32)
    shown[mapped] += opacity * (_TARGET - shown[mapped])
    return shown.astype(np.uint8)


def comparison(picture: np.ndarray, probability: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    """(h, w, 3) uint8: found in green, missed in blue, mapped for nothing in orange; what has no label stays grey."""
    grey = picture.astype(np.float32).mean(axis=2, keepdims=True)
    shown = np.repeat(80 + 0.55 * grey, 3, axis=2)
    mapped = np.nan_to_num(probability, nan=-1.0) >= threshold
    for where, colour in (
        (mapped & (labels == 1), _HIT),
        (~mapped & (labels == 1), _MISSED),
        (mapped & (labels == 0), _FALSE),
    ):
        shown[where] += 0.7 * (colour - shown[where])
    shown[labels == 255] *= 0.6
    return shown.clip(0, 255).astype(np.uint8)


def save_png(picture: np.ndarray, path: Path) -> Path:
    """Write (h, w, 3) uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as draft:
        Image.fromarray(picture).save(draft, format="PNG")
    return path


def precision_recall_figure(
    curves: Sequence[tuple[str, np.ndarray, np.ndarray]], chosen: tuple[float, float] | None, path: Path
) -> Path:
    """Draw (name, recall, precision) curves, and the point of the chosen threshold on the first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    styles = ("-", "--", ":", "-.")
    for i, (name, recall, precision) in enumerate(curves):
        axes.plot(recall, precision, styles[i % len(styles)], label=name, linewidth=2 if i == 0 else 1.3)
    if chosen is not None:
        axes.plot([chosen[0]], [chosen[1]], "o", color="black", label="at the threshold in use")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    with atomic_path(path) as draft:
        figure.savefig(draft, format="png")
    return path
