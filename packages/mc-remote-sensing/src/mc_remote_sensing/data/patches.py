"""Image tiles without georeference, each with a mask: from a folder, a tar or an npz file.

Legend: C bands, T side of a tile, H × W of a patch.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from mc_core.errors import DataError


class PatchScenes:
    """Patches and their masks as a data set: samples like those of :class:`~mc_remote_sensing.data.tiles.TileDataset`.

    Args:
        path: tar or folder of ``NAME.jpg`` (png, tif) and ``NAME.seg.png``, or an npz file of ``image`` (N, H, W, C).
        tile: T, side in pixels of training samples.
        seed: of the split.
    """

    def __init__(self, path: str | os.PathLike[str], *, tile: int = 256, seed: int = 0) -> None:
        self.path, self.tile, self.seed = os.fspath(path), tile, seed
        raise DataError("not yet")

    def __len__(self) -> int:
        return 0

    def part(self, name: str) -> PatchScenes:
        """The patches of ``"train"``, ``"validation"`` or ``"test"``."""
        raise DataError("not yet")

    def read(self, index: int) -> dict[str, Any]:
        """One whole patch: image, image_valid, elevation, labels, ids, name."""
        raise DataError("not yet")

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A random T × T crop of a patch."""
        raise DataError("not yet")
