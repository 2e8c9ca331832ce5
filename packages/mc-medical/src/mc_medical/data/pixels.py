"""Decoded images: the whole cohort once, as squares of uint8, in memory or in a mapped file.

Legend: N images, S side of a square, B of a batch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mc_core.errors import BadSampleError
from mc_medical.data.cohort import Studies
from mc_medical.data.radiograph import square


@dataclass(frozen=True)
class PixelStore:
    """Squares of the images of a cohort, row for row.

    Attributes:
        array: (M, S, S) uint8, in memory or mapped.
        index: (N,) int64, the row of ``array`` for each image.
        readable: (N,) bool; the others are black.
        dropped: reasons, and how many images could not be read for each.
        examples: one line for the first of each reason.
        notes: doubts about images that could be read, and how many.
    """

    array: np.ndarray
    index: np.ndarray
    readable: np.ndarray
    dropped: Counter[str] = field(default_factory=Counter)
    examples: Mapping[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def build(
        cls,
        studies: Studies,
        *,
        cache: str | os.PathLike[str] | None = None,
        processes: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> PixelStore:
        """Decode all images of a cohort, as its ``options`` say.

        Args:
            studies: N of them.
            cache: folder for a mapped file, which a later call with the same images takes up, also a half-done one; default:
                in memory.
            processes: to decode with; 0: as many as there are processors where it pays.
            progress: called with (done, N).
        """
        size = studies.options.size
        array = np.zeros((len(studies), size, size), dtype=np.uint8)
        readable = np.zeros(len(studies), dtype=bool)
        dropped: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for i in range(len(studies)):
            try:
                array[i] = square(studies.read(i).pixels, size)
                readable[i] = True
            except BadSampleError as error:
                dropped[error.reason] += 1
                examples.setdefault(error.reason, str(error))
        return cls(array, np.arange(len(studies)), readable, dropped, examples)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def good(self) -> np.ndarray:
        """(G,) int64: the images that could be read."""
        return np.flatnonzero(self.readable)

    @property
    def size(self) -> int:
        """S."""
        return self.array.shape[-1]

    @property
    def pixels(self) -> np.ndarray:
        """(N, S, S) uint8, all of them."""
        if len(self.index) == len(self.array) and (self.index == np.arange(len(self.array))).all():
            return self.array
        return self.array[self.index]

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """(B, S, S) uint8 of these images."""
        return self.array[self.index[indices]]

    def take(self, rows: np.ndarray | Sequence[int]) -> PixelStore:
        """Those at these positions, without copying pixels."""
        rows = np.asarray(rows, dtype=np.int64)
        return replace(self, index=self.index[rows], readable=self.readable[rows])
