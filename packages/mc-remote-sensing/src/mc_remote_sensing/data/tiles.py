"""Training windows: drawn where there is something to learn, each a function of (seed, epoch, index) alone.

Legend: C bands, T side of a tile, N scenes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mc_core.errors import ConfigError, DataError
from mc_remote_sensing.data.blocks import Blocks
from mc_remote_sensing.data.coverage import Footprint, footprint
from mc_remote_sensing.data.grid import Window
from mc_remote_sensing.data.labels import IGNORE
from mc_remote_sensing.data.patches import PatchScenes
from mc_remote_sensing.data.scene import Scene

_TRIES = 20
LEAST_VALID = 0.05
"""Windows with a smaller share of valid pixels are drawn again."""


class TileDataset:
    """Square windows of labelled scenes, half of them around targets: a data set as ``mc_core.data`` wants it.

    A window is drawn around a few pixels of the part; what of it lies outside the part has label 255. With a buffer at least a tile
    wide, a training window therefore holds no pixel of a validation or test block.

    Args:
        scenes: with labels, and with the same bands.
        blocks: of each scene, or None to draw from the whole of all.
        part: of the blocks.
        tile: T, side in pixels.
        target_share: share of windows drawn around a target pixel, from 0 to 1.
        hard_negative_share: share drawn around a pixel of the hard negatives, where there are some.
        per_epoch: windows in an epoch; default as many as cover the part once.

    Raises:
        ConfigError: a buffer narrower than a tile, shares above 1, scenes that differ in bands.
        DataError: nothing to draw from.

    >>> import tempfile
    >>> from mc_core.random import sample_rng
    >>> from mc_remote_sensing.data import open_scene, spatial_blocks
    >>> from mc_remote_sensing.terrain import write_terrain
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = write_terrain(folder, size_px=256)
    ...     scene = open_scene(files.image, labels=files.labels, extent=files.extent)
    ...     blocks = spatial_blocks(scene, block_m=128, buffer_m=32)  # a pixel is 2 m
    ...     data = TileDataset(scene, blocks, "train", tile=16)
    ...     sample = data.get(0, sample_rng(seed=0, epoch=0, index=0))
    >>> sample["image"].shape, sample["labels"].shape
    (torch.Size([4, 16, 16]), torch.Size([16, 16]))
    """

    def __init__(
        self,
        scenes: Scene | Sequence[Scene],
        blocks: Blocks | Sequence[Blocks] | None = None,
        part: str = "train",
        *,
        tile: int = 512,
        target_share: float = 0.5,
        hard_negative_share: float = 0.1,
        per_epoch: int | None = None,
    ) -> None:
        self.scenes = [scenes] if isinstance(scenes, Scene) else list(scenes)
        given = [blocks] if isinstance(blocks, Blocks) else blocks
        self.blocks: list[Blocks | None] = [None] * len(self.scenes) if given is None else list(given)
        self._has_elevation = any(scene.elevation is not None for scene in self.scenes)
        self.part, self.tile = part, tile
        self.target_share, self.hard_negative_share = target_share, hard_negative_share
        same_bands(self.scenes)
        if len(self.blocks) != len(self.scenes):
            raise ConfigError(f"{len(self.scenes)} scenes need as many sets of blocks, got {len(self.blocks)}")
        if target_share < 0 or hard_negative_share < 0 or target_share + hard_negative_share > 1:
            raise ConfigError(
                f"target_share {target_share} and hard_negative_share {hard_negative_share}: at most 1 together"
            )
        for scene, its in zip(self.scenes, self.blocks, strict=True):
            if scene.labels is None:
                raise ConfigError(f"{scene.name}: has no labels; training windows need some")
            if its is not None and its.buffer_px < tile:
                raise ConfigError(
                    f"{scene.name}: the buffer between blocks is {its.buffer_px} pixels, narrower than a tile of {tile}: "
                    f"widen it to {tile * max(scene.grid.pixel_metres):.0f} m or take smaller tiles"
                )
        maps = [
            footprint(scene, cell_size(tile), its.part(part) if its else None)
            for scene, its in zip(self.scenes, self.blocks, strict=True)
        ]
        self._valid = [found.valid for found in maps]
        self._pixels = {
            kind: sum(int(getattr(found, kind).sum()) for found in maps) for kind in ("valid", "known", "target")
        }
        self._cells = {kind: _cells(maps, kind) for kind in ("target", "hard", "known")}
        if not len(self._cells["known"]):
            raise DataError(f"no labelled pixel in the {part} part of {', '.join(s.name for s in self.scenes)}")
        self._length = per_epoch or max(1, round(self._pixels["valid"] / tile**2))

    def __len__(self) -> int:
        return self._length

    @property
    def band_names(self) -> tuple[str, ...]:
        """Of the images."""
        return self.scenes[0].band_names

    def window(self, rng: np.random.Generator) -> tuple[int, Window]:
        """Draw a scene and a window in it."""
        kind = self._kind(float(rng.random()))
        cells = self._cells[kind]
        for _ in range(_TRIES):
            number, row, column = cells[rng.integers(len(cells))].tolist()
            found = window_around(self.scenes[number].grid.shape, self.tile, row, column, rng)
            if share_valid(self._valid[number], found) >= LEAST_VALID:
                break
        return number, found

    def _kind(self, u: float) -> str:
        if u < self.target_share and len(self._cells["target"]):
            return "target"
        if self.target_share <= u < self.target_share + self.hard_negative_share and len(self._cells["hard"]):
            return "hard"
        return "known"

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One window: where it lies comes from ``rng`` alone, which is a function of (seed, epoch, index).

        Returns:
            ``image`` (C, T, T) float32 as stored, 0 where invalid; ``image_valid`` (T, T) bool; ``elevation`` (4, T, T) float32,
            zeros in a scene without elevation model and left out where no scene has one; ``labels`` (T, T) uint8 in
            {0, 1, 255}; ``ids`` int64, equal for windows whose middle lies in the same T × T square of the same scene.
        """
        number, window = self.window(rng)
        scene, its = self.scenes[number], self.blocks[number]
        sample: Mapping[str, np.ndarray] = scene.read(*window)
        labels = sample["labels"]
        if its is not None:
            labels[~its.mask(self.part, *window)] = IGNORE
        if not self._has_elevation:  # zeros would travel between processes, twice as large as the image
            sample = {name: value for name, value in sample.items() if name != "elevation"}
        return {**{name: torch.from_numpy(value) for name, value in sample.items()}, "ids": place_id(number, window)}

    def describe(self) -> dict[str, Any]:
        """What identifies the data."""
        return {
            "kind": "tiles",
            "count": len(self),
            "tile": self.tile,
            "part": self.part,
            "bands": list(self.band_names),
            "scenes": [scene.name for scene in self.scenes],
            "shapes": [list(scene.grid.shape) for scene in self.scenes],
            "pixels": self._pixels,
            "target_share": self.target_share,
            "hard_negative_share": self.hard_negative_share,
        }


def cell_size(tile: int) -> int:
    """Side in pixels of the cells that windows of ``tile`` pixels are drawn from."""
    return max(1, min(16, tile // 8))


def window_around(shape: tuple[int, int], tile: int, row: int, column: int, rng: np.random.Generator) -> Window:
    """A window at a random place that holds a whole cell, moved into the scene, or set about it if it is larger.

    Args:
        shape: of the scene.
        tile: side of the window.
        row: of the cell.
        column: of the cell.
        rng: all randomness.
    """
    step = cell_size(tile)
    starts = []
    for size, cell, offset in zip(shape, (row, column), rng.integers(0, tile - step + 1, 2).tolist(), strict=True):
        start = (cell + 1) * step - tile + offset
        starts.append(min(max(start, 0), size - tile) if size >= tile else (size - tile) // 2)
    return Window(starts[0], starts[1], tile, tile)


def share_valid(valid: np.ndarray, window: Window) -> float:
    """At least so much of a window is valid: the cells of a :class:`~mc_remote_sensing.data.coverage.Footprint` that lie in it."""
    step = cell_size(window.height)
    rows, columns = (
        slice(max(-(-start // step), 0), max((start + window.height) // step, 0)) for start in (window.row, window.col)
    )
    return float(valid[rows, columns].sum()) / (window.height * window.width)


def _cells(maps: Sequence[Footprint], kind: str) -> np.ndarray:
    """(cells, 3) int64: scene, row and column of each cell that holds such a pixel."""
    found = [np.argwhere(getattr(each, kind) > 0) for each in maps]
    return np.concatenate([np.insert(cells, 0, number, axis=1) for number, cells in enumerate(found)]).astype(np.int64)


def place_id(number: int, window: Window) -> int:
    """A number for the place of a window: the same for all whose middle lies in one square as large as they are."""
    row = (window.row + window.height // 2) // window.height
    column = (window.col + window.width // 2) // window.width
    return (number << 40) | (row << 20) | column


def same_bands(scenes: Sequence[Scene]) -> None:
    """Check that one model can read all scenes.

    Raises:
        ConfigError: they differ in bands, or there are none.
    """
    if not scenes:
        raise ConfigError("give at least one scene")
    first = scenes[0]
    for scene in scenes[1:]:
        if scene.band_names != first.band_names:
            raise ConfigError(
                f"{scene.name} has the bands {', '.join(scene.band_names)}, {first.name} has "
                f"{', '.join(first.band_names)}: choose the same with --bands, or name them alike with --band-names"
            )


def band_statistics(
    scenes: Scene | Sequence[Scene] | PatchScenes,
    blocks: Blocks | Sequence[Blocks] | None = None,
    part: str = "train",
    *,
    max_pixels: int = 20_000_000,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each band over the valid pixels of a part.

    Args:
        scenes: with the same bands; or patches, of which all are read.
        blocks: of each scene, or None for all of it.
        part: of the blocks.
        max_pixels: of more, an even sample of strips is read.

    Returns:
        (C,) and (C,) float64; a band that never changes has the deviation 1.
    """
    if isinstance(scenes, PatchScenes):
        moments = Moments(len(scenes.band_names))
        for patch in (scenes.read(i) for i in range(scenes.count)):
            moments.add(patch["image"][:, patch["image_valid"]])
        return moments.result()
    chosen = [scenes] if isinstance(scenes, Scene) else list(scenes)
    same_bands(chosen)
    given = [blocks] if isinstance(blocks, Blocks) else blocks
    its = [None] * len(chosen) if given is None else list(given)
    strips = []
    for scene, one in zip(chosen, its, strict=True):
        for w in one.part(part) if one is not None else [Window(0, 0, *scene.grid.shape)]:
            strips += [
                (scene, Window(top, w.col, min(64, w.row + w.height - top), w.width))
                for top in range(w.row, w.row + w.height, 64)
            ]
    total = sum(w.height * w.width for _, w in strips)
    every = max(1, -(-total // max_pixels))
    moments = Moments(len(chosen[0].band_names))
    for scene, window in strips[::every]:
        if scene.image is not None:
            values, valid = scene.image.read(*window)
            moments.add(values[:, valid])
    return moments.result()


class Moments:
    """Mean and deviation by groups (Chan, Golub and LeVeque 1983), so that large offsets cost no digits."""

    def __init__(self, channels: int) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(channels), np.zeros(channels)

    def add(self, values: np.ndarray) -> None:
        """(C, n) values."""
        new = values.shape[1]
        if not new:
            return
        values = values.astype(np.float64)
        mean = values.mean(axis=1)
        difference = mean - self.mean
        total = self.count + new
        self.squares += ((values - mean[:, None]) ** 2).sum(axis=1) + difference**2 * self.count * new / total
        self.mean += difference * new / total
        self.count = total

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        if not self.count and len(self.mean):
            raise DataError("no valid pixel to take the mean of the bands of")
        deviation = np.sqrt(self.squares / max(self.count, 1))
        return self.mean, np.where(deviation > 0, deviation, 1.0)
