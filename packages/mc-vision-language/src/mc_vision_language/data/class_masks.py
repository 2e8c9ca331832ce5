"""The class of every pixel, in memory or read when it is asked for.

In a mask 0 is none of the classes, 1 + c is class c, and −1 is not known.

Legend: P pictures, H × W pixels of a mask, C classes.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from PIL import Image

from mc_core.errors import BadSampleError, DataError
from mc_core.images.segmentations import rasterize
from mc_core.listing import PackedStrings, fingerprint
from mc_vision_language.data.images import StoredImages

UNKNOWN = -1
"""Of a pixel: nobody said what is there."""
_CHUNK = 512  # masks looked at together
_WHITE = 255  # what uint8 masks write for it


@runtime_checkable
class ClassMasks(Protocol):
    """Masks by the row of their picture. Safe to pickle, and to use in forked workers.

    Attributes:
        known: (P,) bool, whether a picture has a mask at all.
    """

    known: np.ndarray

    def __len__(self) -> int: ...

    def read(self, row: int) -> np.ndarray:
        """(H, W) int16: 0 for none of the classes, 1 + c for class c, −1 where it is not known.

        Raises:
            BadSampleError: this mask cannot be read.
        """
        ...

    def take(self, rows: np.ndarray) -> ClassMasks:
        """Those of these pictures, in this order."""
        ...

    def describe(self) -> dict[str, Any]:
        """Kind, count and a digest."""
        ...


class ArrayMasks:
    """Masks in memory, as large as each other.

    Args:
        masks: (P, H, W) int16, or uint8 in which 255 is −1; other values as in :mod:`mc_vision_language.data.class_masks`.

    Attributes:
        array: (P, H, W) int16.
        known: (P,) bool: some pixel is known.

    Raises:
        DataError: another shape or type.

    >>> masks = ArrayMasks(np.array([[[0, 3], [255, 0]], [[255, 255], [255, 255]]], np.uint8))
    >>> masks.read(0).tolist(), masks.known.tolist()
    ([[0, 3], [-1, 0]], [True, False])
    """

    def __init__(self, masks: Any) -> None:
        given = np.asarray(masks)
        if given.ndim != 3 or given.dtype.kind not in "iu":
            raise DataError(f"masks need shape (pictures, H, W) and whole numbers, got {given.shape} of {given.dtype}")
        array = given.astype(np.int16)
        if given.dtype == np.uint8:
            array[given == _WHITE] = UNKNOWN
        if array.size and array.min() < UNKNOWN:
            raise DataError(f"masks hold {array.min()}; a class is 1 or more, 0 is none, −1 is not known")
        self.array = array
        self.known = (array != UNKNOWN).any((1, 2))

    def __len__(self) -> int:
        return len(self.array)

    def read(self, row: int) -> np.ndarray:
        """(H, W) int16."""
        return self.array[row]

    def take(self, rows: np.ndarray) -> ArrayMasks:
        """A copy of those of these pictures."""
        return ArrayMasks(self.array[rows])

    def describe(self) -> dict[str, Any]:
        """Kind, count and a digest."""
        return {"kind": "array", "count": len(self), "digest": fingerprint(self.array)}


class StoredMasks:
    """Masks that are image files of one channel, or parts of a tar.

    Args:
        files: of K masks.
        row_of: (P,) int64, which of them belongs to each picture, −1: none.
        codes: what each level of a file means: 0 for none of the classes, 1 + c, or −1; levels not named are −1.

    Raises:
        DataError: a row that no file has.
    """

    def __init__(self, files: StoredImages, row_of: np.ndarray, codes: Mapping[int, int]) -> None:
        self.files, self.row_of = files, np.asarray(row_of, dtype=np.int64)
        if len(self.row_of) and self.row_of.max() >= len(files):
            raise DataError(f"mask {self.row_of.max()} of {len(files)} files of masks")
        self.known = self.row_of >= 0
        self.codes = dict(codes)
        self._table = np.full(max(self.codes, default=0) + 1, UNKNOWN, dtype=np.int16)
        for level, code in self.codes.items():
            self._table[level] = code

    def __len__(self) -> int:
        return len(self.row_of)

    def read(self, row: int) -> np.ndarray:
        """(H, W) int16; one pixel of −1 where there is none."""
        place = int(self.row_of[row])
        if place < 0:
            return np.full((1, 1), UNKNOWN, dtype=np.int16)
        levels = stored_levels(self.files.data(place), self.files.name(place))
        return np.where(levels < len(self._table), self._table[np.minimum(levels, len(self._table) - 1)], UNKNOWN)

    def take(self, rows: np.ndarray) -> Self:
        """Those of these pictures; nothing is copied."""
        taken = copy.copy(self)
        taken.row_of, taken.known = self.row_of[rows], self.known[rows]
        return taken

    def describe(self) -> dict[str, Any]:
        """Kind, count and a digest."""
        digest = fingerprint(self.row_of, self.files.describe()["digest"], repr(sorted(self.codes.items())))
        return {"kind": "files", "count": int(self.known.sum()), "digest": digest}


class DrawnMasks:
    """Masks drawn from COCO's polygons and run lengths when they are asked for: smaller things lie on top of larger ones.

    Regions of crowds are −1 where nothing else lies. That is ours: COCO leaves overlaps as they are.

    Args:
        sizes: (P, 2) height and width of each picture, in the pixels of its outlines.
        outlines: of each picture its objects, as (segmentation, 1 + c, whether it is a crowd); None: nobody looked.
        names: of the pictures, for messages.

    >>> square = [[0, 0, 2, 0, 2, 2, 0, 2]]
    >>> DrawnMasks([[2, 3]], [[(square, 4, False)]], ["a.jpg"]).read(0).tolist()
    [[4, 4, 0], [4, 4, 0]]
    """

    def __init__(
        self,
        sizes: Any,
        outlines: Iterable[Sequence[tuple[Any, int, bool]] | None],
        names: Iterable[str],
    ) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        # as text: millions of corners as Python numbers would be copied into every worker
        self.outlines = PackedStrings("" if one is None else json.dumps(one) for one in outlines)
        self.names = PackedStrings(names)
        count = len(self.outlines)
        if len(self.sizes) != count or len(self.names) != count:
            raise DataError(f"outlines of {count} pictures with {len(self.sizes)} sizes and {len(self.names)} names")
        self.known = np.array([bool(text) for text in self.outlines], dtype=bool)
        self.rows = np.arange(count)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> np.ndarray:
        """(H, W) int16; one pixel of −1 where there is none."""
        place = int(self.rows[row])
        if not self.known[row]:
            return np.full((1, 1), UNKNOWN, dtype=np.int16)
        height, width = self.sizes[place].tolist()
        objects = json.loads(self.outlines[place])
        try:
            drawn = [
                (rasterize(outline, height, width, where=f"object {number}"), code, crowd)
                for number, (outline, code, crowd) in enumerate(objects)
            ]
        except DataError as error:
            raise BadSampleError(self.names[place], str(error)) from error
        mask = np.zeros((height, width), dtype=np.int16)
        for inside, _, crowd in drawn:
            if crowd:
                mask[inside] = UNKNOWN
        for inside, code, crowd in sorted(drawn, key=lambda one: -int(one[0].sum())):
            if not crowd:
                mask[inside] = code
        return mask

    def take(self, rows: np.ndarray) -> Self:
        """Those of these pictures; nothing is copied."""
        taken = copy.copy(self)
        taken.rows, taken.known = self.rows[rows], self.known[rows]
        return taken

    def describe(self) -> dict[str, Any]:
        """Kind, count and a digest."""
        digest = fingerprint(self.outlines, self.sizes, self.rows)
        return {"kind": "outlines", "count": int(self.known.sum()), "digest": digest}


def stored_levels(data: bytes, name: str) -> np.ndarray:
    """(H, W) whole numbers as an image file holds them: grey levels, or indices of a palette, which no colour replaces.

    Raises:
        BadSampleError: no image, or one of several channels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            levels = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadSampleError(name, f"a mask that cannot be decoded ({error})") from error
    if levels.ndim != 2 or levels.dtype.kind not in "iub":
        raise BadSampleError(name, f"a mask has one channel of whole numbers, this image is {image.mode}")
    return levels.astype(np.int64)


def classes_in(masks: ClassMasks, classes: int) -> np.ndarray:
    """(P, C) bool: which classes some pixel of each mask has.

    Args:
        masks: P of them; those not in memory are read one after the other.
        classes: C.

    >>> classes_in(ArrayMasks(np.array([[[0, 2], [-1, 0]]])), 3).tolist()
    [[False, True, False]]
    """
    if isinstance(masks, ArrayMasks):
        found = np.zeros((len(masks), classes + 2), dtype=bool)
        for start in range(0, len(masks), _CHUNK):
            part = masks.array[start : start + _CHUNK]
            found[np.arange(start, start + len(part))[:, None, None], part] = True  # −1 lands in the last column
        return found[:, 1 : classes + 1]
    found = np.zeros((len(masks), classes + 1), dtype=bool)
    for row in np.flatnonzero(masks.known).tolist():
        there = np.unique(masks.read(row))
        found[row, there[there >= 0]] = True
    return found[:, 1:]
