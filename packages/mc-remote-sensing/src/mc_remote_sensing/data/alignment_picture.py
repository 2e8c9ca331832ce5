"""The picture of ``align``: image and relief, with the outlines of the polygons on both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from PIL import Image, ImageDraw

from mc_core.files import StrPath, atomic_path
from mc_remote_sensing.data.grid import Grid
from mc_remote_sensing.data.labels import TARGET, LabelLayers, MaskRaster
from mc_remote_sensing.data.polygons import Polygons
from mc_remote_sensing.data.scene import Scene

_SIDE = 900
_GAP = 12
_RGB = ("red", "green", "blue")
_COLOURS = {"target": "#ff3b30", "extent": "#ffd60a", "uncertain": "#ff9f0a", "hard_negative": "#32ade6"}


def alignment_figure(scene: Scene, path: StrPath) -> None:
    """Draw image and slope side by side into a PNG of at most 900 pixels a panel: targets in red, the surveyed extent yellow,
    uncertain places orange, hard negatives blue.

    Args:
        scene: of which overviews are read, not the whole.
        path: of the PNG.

    Raises:
        DataError: a raster that cannot be read.
    """
    panels = []
    if scene.image is not None:
        panels.append(Image.fromarray(composite(*scene.image.overview(_SIDE), scene.image.band_names)))
    if scene.elevation is not None:
        panels.append(Image.fromarray(relief_shades(scene.elevation.overview(_SIDE))))
    for panel in panels:
        if scene.labels is not None:
            _outline(panel, scene.labels)
    width = sum(panel.width for panel in panels) + _GAP * (len(panels) - 1)
    sheet = Image.new("RGB", (width, max(panel.height for panel in panels)), "white")
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width + _GAP
    with atomic_path(path) as draft:
        sheet.save(draft, "PNG")


def composite(values: np.ndarray, valid: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(h, w, 3) uint8 for the eye: the bands red, green, blue where they are named, else the first; 2nd to 98th percentile; white
    where invalid.

    Args:
        values: (C, h, w).
        valid: (h, w) bool.
        names: of the bands.
    """
    lower = [name.lower() for name in names]
    chosen = [lower.index(name) for name in _RGB] if set(_RGB) <= set(lower) else list(range(min(3, len(values))))
    chosen = chosen if len(chosen) == 3 else [chosen[0]] * 3
    picture = np.full((*valid.shape, 3), 255, dtype=np.uint8)
    for channel, band in enumerate(chosen):
        plane = values[band]
        if valid.any():
            low, high = np.percentile(plane[valid], [2, 98])
            scaled = np.clip((plane - low) / max(high - low, 1e-9), 0, 1) * 255
            picture[..., channel] = np.where(valid, scaled, 255)
    return picture


def relief_shades(channels: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 of (4, h, w) channels: steep is dark, ridges a little lighter than hollows; white where nothing is known."""
    tone = np.clip(1.05 - 0.75 * channels[1] + 0.25 * np.clip(channels[0], -1, 1), 0, 1) * 255
    grey = np.where(channels[3] > 0, tone, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _outline(panel: Image.Image, labels: LabelLayers) -> None:
    draw = ImageDraw.Draw(panel)
    for layer in (labels.extent, labels.uncertain, labels.hard_negatives, labels.target):
        if isinstance(layer, Polygons):
            for line in _lines(layer, labels.grid, panel.size):
                draw.line(line, fill=_COLOURS[layer.role], width=2)
        elif isinstance(layer, MaskRaster):
            _dots(panel, layer)


def _lines(layer: Polygons, grid: Grid, size: tuple[int, int]) -> list[list[tuple[float, float]]]:
    across, down = size[0] / grid.width, size[1] / grid.height
    rings = shapely.get_rings(layer.geometries)
    found = []
    for ring in rings:
        x, y = shapely.get_coordinates(ring).T
        rows, columns = grid.pixels(x, y)
        found.append(list(zip((columns * across).tolist(), (rows * down).tolist(), strict=True)))
    return found


def _dots(panel: Image.Image, layer: MaskRaster) -> None:
    """A mask has no outlines: each pixel of the picture that holds a target is coloured."""
    height, width = layer.grid.shape
    hit = np.zeros((panel.height, panel.width), dtype=bool)
    for top in range(0, height, 512):
        rows, columns = np.nonzero(layer.classes(top, 0, min(512, height - top), width) == TARGET)
        hit[(rows + top) * panel.height // height, columns * panel.width // width] = True
    pixels = np.asarray(panel).copy()
    pixels[hit] = tuple(int(_COLOURS[layer.role][i : i + 2], 16) for i in (1, 3, 5))
    panel.paste(Image.fromarray(pixels))
