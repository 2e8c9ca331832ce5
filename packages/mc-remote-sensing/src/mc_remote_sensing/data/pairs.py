"""Two views of the same ground for self-supervision: the same window twice, or in two seasons.

Legend: C bands, T side of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mc_core.errors import ConfigError, DataError
from mc_remote_sensing.data.coverage import footprint
from mc_remote_sensing.data.grid import overlap
from mc_remote_sensing.data.scene import Scene
from mc_remote_sensing.data.tiles import LEAST_VALID, cell_size, place_id, same_bands, share_valid, window_around

_TRIES = 20


class ScenePairs:
    """Windows of unlabelled scenes, each as two images of the same ground: a data set as ``mc_core.data`` wants it.

    Args:
        places: each a scene, or a series of scenes of one place (its seasons), which is read on the grid of its first.
        tile: T, side in pixels.
        per_epoch: windows in an epoch; default as many as cover all places once.

    Raises:
        ConfigError: scenes without image, or with different bands.
        DataError: no valid pixel, or a series of places that do not overlap.
    """

    def __init__(
        self, places: Scene | Sequence[Scene | Sequence[Scene]], *, tile: int = 256, per_epoch: int | None = None
    ) -> None:
        listed = [places] if isinstance(places, Scene) else list(places)
        self.places = [_on_one_grid([place] if isinstance(place, Scene) else list(place)) for place in listed]
        self.tile = tile
        same_bands([scene for place in self.places for scene in place])
        maps = [footprint(place[0], cell_size(tile)) for place in self.places]
        self._valid = [found.valid for found in maps]
        cells = [np.argwhere(valid > 0) for valid in self._valid]
        self._cells = np.concatenate([np.insert(c, 0, i, axis=1) for i, c in enumerate(cells)]).astype(np.int64)
        if not len(self._cells):
            raise DataError("no valid pixel in the scenes")
        self._length = per_epoch or max(1, round(sum(int(v.sum()) for v in self._valid) / tile**2))

    def __len__(self) -> int:
        return self._length

    @property
    def band_names(self) -> tuple[str, ...]:
        """Of the images."""
        return self.places[0][0].band_names

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Two images of one window.

        Returns:
            ``image_1``, ``image_2`` (C, T, T) float32 as stored, 0 where invalid; ``valid_1``, ``valid_2`` (T, T) bool;
            ``elevation`` (4, T, T) float32; ``ids`` int64, equal for windows at one place. The images are of two scenes of the
            series, drawn without repetition, or twice the one there is.
        """
        for _ in range(_TRIES):
            number, row, column = self._cells[rng.integers(len(self._cells))].tolist()
            place = self.places[number]
            window = window_around(place[0].grid.shape, self.tile, row, column, rng)
            if share_valid(self._valid[number], window) >= LEAST_VALID:
                break
        first, second = (0, 0) if len(place) == 1 else rng.permutation(len(place))[:2].tolist()
        a = place[first].read(*window)
        b = a if second == first else place[second].read(*window)
        elevation = next(
            (scene for scene in (place[first], place[second], *place) if scene.elevation is not None), None
        )
        found = {
            "image_1": a["image"],
            "image_2": b["image"].copy() if b is a else b["image"],
            "valid_1": a["image_valid"],
            "valid_2": b["image_valid"].copy() if b is a else b["image_valid"],
            "elevation": a["elevation"] if elevation is None else elevation.elevation.read(*window),
        }
        return {**{name: torch.from_numpy(value) for name, value in found.items()}, "ids": place_id(number, window)}

    def describe(self) -> dict[str, Any]:
        """What identifies the data."""
        return {
            "kind": "scene pairs",
            "count": len(self),
            "tile": self.tile,
            "bands": list(self.band_names),
            "places": [[scene.name for scene in place] for place in self.places],
            "shapes": [list(place[0].grid.shape) for place in self.places],
        }


def _on_one_grid(place: Sequence[Scene]) -> list[Scene]:
    """The scenes of a series, read on the grid of the first."""
    found: list[Scene] = []
    for scene in place:
        if scene.image is None:
            raise ConfigError(f"{scene.name}: pretraining on scenes needs an image")
        if not found or scene.grid.matches(found[0].grid):
            found.append(scene)
            continue
        grid = found[0].grid
        if overlap(grid, scene.grid) == 0:
            raise DataError(f"{scene.name} does not overlap {found[0].name}: a series is of one place")
        elevation = None if scene.elevation is None else scene.elevation.on(grid)
        found.append(Scene(scene.image.on(grid), elevation, None, scene.name))
    return found
