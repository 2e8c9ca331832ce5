"""Several sets of pictures as one, without copying any: a task's own with a few of earlier tasks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mc_core.errors import DataError
from mc_core.listing import fingerprint
from mc_vision_language.data.pairs import Pairs

if TYPE_CHECKING:
    from PIL import Image

    from mc_vision_language.data.images import ImageSet


class JoinedImages:
    """Pictures of several sets, one set after the other; each stays where it is.

    Args:
        sets: at least one.

    Attributes:
        sets: as given.
        array: gives (3, H, W) or (R, 3, H, W) uint8 for a row or R rows, where all sets are in memory with pictures of one
            size; else None.

    Raises:
        DataError: no set.

    >>> from mc_vision_language.data.images import ArrayImages
    >>> both = JoinedImages([ArrayImages(np.full((2, 3, 4, 4), value, np.uint8)) for value in (1, 2)])
    >>> len(both), both.array[np.array([0, 3])][:, 0, 0, 0].tolist(), both.take(np.array([3])).name(0)
    (4, [1, 2], 'memory[1]')
    """

    def __init__(self, sets: Sequence[ImageSet]) -> None:
        if not sets:
            raise DataError("no pictures to join")
        self.sets = tuple(sets)
        lengths = [len(one) for one in sets]
        self.set_of = np.repeat(np.arange(len(sets)), lengths)
        self.row_of = np.concatenate([np.arange(length) for length in lengths])

    def __len__(self) -> int:
        return len(self.set_of)

    @property
    def array(self) -> _JoinedArrays | None:
        """See the class."""
        arrays = [getattr(one, "array", None) for one in self.sets]
        shapes = {None if one is None else tuple(one.shape[1:]) for one in arrays}
        return None if None in shapes or len(shapes) > 1 else _JoinedArrays(arrays, self.set_of, self.row_of)

    def read(self, row: int, *, min_side: int | None = None) -> Image.Image:
        """One picture, upright, RGB."""
        return self.sets[self.set_of[row]].read(int(self.row_of[row]), min_side=min_side)

    def name(self, row: int) -> str:
        """Path or key."""
        return self.sets[self.set_of[row]].name(int(self.row_of[row]))

    def take(self, rows: np.ndarray) -> JoinedImages:
        """These pictures, in this order."""
        taken = copy.copy(self)
        taken.set_of, taken.row_of = self.set_of[rows], self.row_of[rows]
        return taken

    def describe(self) -> dict[str, Any]:
        """Kind, location, count and a digest of the listing."""
        digests = [str(one.describe().get("digest")) for one in self.sets]
        return {
            "kind": "joined",
            "location": " + ".join(dict.fromkeys(str(one.describe().get("location")) for one in self.sets)),
            "count": len(self),
            "digest": fingerprint(digests, self.set_of, self.row_of),
        }


class _JoinedArrays:
    """Looks like one array of pictures as far as rows are taken from it."""

    def __init__(self, arrays: Sequence[Any], set_of: np.ndarray, row_of: np.ndarray) -> None:
        self.arrays, self.set_of, self.row_of = arrays, set_of, row_of
        self.shape = (len(set_of), *arrays[0].shape[1:])

    def __len__(self) -> int:
        return len(self.set_of)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if np.ndim(rows) == 0:
            return self.arrays[self.set_of[rows]][int(self.row_of[rows])]
        sets, places = self.set_of[rows], self.row_of[rows]
        found = np.empty((len(sets), *self.shape[1:]), dtype=np.uint8)
        for number in np.unique(sets).tolist():
            here = sets == number
            found[here] = self.arrays[number][places[here]]
        return found


def joined(sets: Sequence[Pairs]) -> Pairs:
    """Several sets of pairs as one, in order, with their splits. Equal ids are the same thing, also across sets.

    Args:
        sets: at least one.

    Raises:
        DataError: no set.

    >>> from mc_core.samples import digit_scenes
    >>> from mc_vision_language.data.pairs import scene_pairs
    >>> both = joined([scene_pairs(digit_scenes(2, size=32)), scene_pairs(digit_scenes(3, size=32, start=2), "test")])
    >>> len(both), both.split_counts()
    (5, {'train': 2, 'test': 3})
    """
    images = JoinedImages([one.images for one in sets])
    starts = np.cumsum([0, *(len(one) for one in sets)])
    return Pairs(
        images,
        tuple(text for one in sets for text in one.captions),
        np.concatenate([one.image_of + start for one, start in zip(sets, starts, strict=False)]),
        image_ids=np.concatenate([one.image_ids for one in sets]),
        text_ids=np.concatenate([one.text_ids for one in sets]),
        splits=np.concatenate([one.splits for one in sets]),
        location=" + ".join(dict.fromkeys(one.location for one in sets)),
    )
