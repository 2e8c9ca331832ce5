"""Two views of the same ground for self-supervision: the same window twice, or in two seasons.

Legend: C bands, T side of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_remote_sensing.data.footprint import footprint
from mc_remote_sensing.data.scene import Scene
from mc_remote_sensing.data.tiles import _step, same_bands


class ScenePairs:
    """Windows of unlabelled scenes, each as two images of the same ground: a data set as ``mc_core.data`` wants it.

    Args:
        places: each a scene, or a series of scenes of one place on the same grid (its seasons).
        tile: T, side in pixels.
        per_epoch: windows in an epoch; default as many as cover all places once.

    Raises:
        ConfigError: scenes without image, with different bands, or a series on different grids.
        DataError: no valid pixel.
    """

    def __init__(
        self, places: Scene | Sequence[Scene | Sequence[Scene]], *, tile: int = 256, per_epoch: int | None = None
    ) -> None:
        listed = [places] if isinstance(places, Scene) else list(places)
        self.places = [[place] if isinstance(place, Scene) else list(place) for place in listed]
        self.tile = tile
        same_bands([scene for place in self.places for scene in place])
        for place in self.places:
            for scene in place:
                if scene.image is None:
                    raise ConfigError(f"{scene.name}: pretraining on scenes needs an image")
                if not scene.grid.matches(place[0].grid):
                    raise ConfigError(
                        f"{scene.name}: is not on the grid of {place[0].name}; bring both to one grid first"
                    )
        maps = [footprint(place[0], _step(tile)) for place in self.places]
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
            ``elevation`` (4, T, T) float32; ``ids`` int64, equal for windows at one place.
        """
        raise DataError("not yet")
