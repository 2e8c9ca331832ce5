"""Images with a mask for every object, and the index masks and scenes that give them.

An index mask is a picture whose pixels are numbers of objects (or classes), not colours.

Legend: H × W pixels, O objects of one image, S side of a resized mask.
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from mc_core.data import BadSampleError
from mc_core.errors import DataError
from mc_core.images.decoding import decode, stored_header
from mc_core.listing import fingerprint
from mc_core.samples import SceneConfig, Split, digit_scenes
from mc_vision.data.source import EncodedSource

Kind = Literal["instance", "class region"]

BACKGROUND = -1
"""Value of ``MaskedImage.objects`` where there is no object."""
VOID = -2
"""Value of ``MaskedImage.objects`` where nobody said what there is: such pixels count neither for nor against."""
VOID_ID = 255
"""The number in an index mask that means the same, as in VOC."""

_LOSSLESS = {"PNG", "TIFF", "BMP", "GIF", "PPM"}
_INDEX_MODES = {"1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N"}


@dataclass(frozen=True)
class MaskedImage:
    """One image and where its objects are.

    Attributes:
        name: path without extension, or key; the same wherever the set lies.
        image: RGB.
        objects: (H, W) int32: position of the object in ``ids``, ``BACKGROUND`` or ``VOID``.
        ids: (O,) int64, the number of each object in the mask, or of its annotation.
        categories: (O,) int64 class of each object, or None where it is not known.
        kind: one thing each, or all that an image has of a class.
        group: what belongs together when images are split: the video of a frame, else the name.
    """

    name: str
    image: Image.Image
    objects: np.ndarray
    ids: np.ndarray
    categories: np.ndarray | None
    kind: Kind
    group: str

    @property
    def masks(self) -> np.ndarray:
        """(O, H, W) bool."""
        return self.objects == np.arange(len(self.ids), dtype=np.int32)[:, None, None]

    def resized(self, height: int, width: int | None = None) -> np.ndarray:
        """``objects`` at another size (default: square), each pixel taking the value of the nearest one.

        >>> objects = np.array([[0, 0, -1, 1]], np.int32).repeat(4, 0)
        >>> scene = MaskedImage("a", Image.new("RGB", (4, 4)), objects, np.arange(2), None, "instance", "a")
        >>> scene.resized(2)[0].tolist()
        [0, 1]
        """
        return resize_nearest(self.objects, height, height if width is None else width)


def resize_nearest(index_HW: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width): the value under the centre of each new pixel."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip((height, width), index_HW.shape, strict=True)
    )
    return index_HW[rows[:, None], columns]


class MaskedImages(ABC):
    """Images with masks, by position; made by :func:`~mc_vision.data.mask_layouts.open_masks` and its kin.

    Attributes:
        kind: of the objects.
        location: as the user named it.
        names: of the images.
        class_names: by category, empty where there are none.
        sequences: for videos, the positions of each one's frames in order; else empty.
    """

    layout = "masks"

    def __init__(
        self,
        location: str,
        kind: Kind,
        names: Sequence[str],
        *,
        class_names: Mapping[int, str] | None = None,
        sequences: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.location, self.kind, self.names = location, kind, list(names)
        self.class_names, self.sequences = dict(class_names or {}), dict(sequences or {})
        self._group = {i: video for video, frames in self.sequences.items() for i in frames}

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[MaskedImage]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> MaskedImage:
        """Decode image and mask.

        Raises:
            DataError: either cannot be read, the mask is no index image, or their sizes differ.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        index %= len(self)
        name = self.names[index]
        image, objects_HW, ids, categories = self._load(index)
        if objects_HW.shape != (image.height, image.width):
            raise DataError(
                f"{self.location}, {name}: the image is {image.width}×{image.height} pixels, "
                f"its mask {objects_HW.shape[1]}×{objects_HW.shape[0]}; a mask has the size of its image"
            )
        group = self._group.get(index, name)
        return MaskedImage(name, image, objects_HW, ids, categories, self.kind, group)

    @abstractmethod
    def _load(self, index: int) -> tuple[Image.Image, np.ndarray, np.ndarray, np.ndarray | None]:
        """The image, objects (H, W), ids (O,) and categories (O,)."""

    def describe(self) -> dict[str, Any]:
        """Layout, location, kind, count and the digest of the listing."""
        return {
            "layout": self.layout,
            "location": self.location,
            "kind": self.kind,
            "count": len(self),
            "digest": fingerprint(self.names),
        }


class IndexMasks(MaskedImages):
    """Images and index masks from files or shards.

    An instance mask of nothing but 0 and 255 shows one object (it would otherwise be nothing but void).

    Args:
        location: as the user named it.
        kind: of the objects.
        names: of the pairs.
        images: where the images are read from.
        masks: where the masks are read from.
        rows: (N, 2) positions of each pair in ``images`` and ``masks``.
        background: the number that means "no object"; None when every number is one.
        void: the number that means "not said"; None for no such number.
        layout: for the recipe.
        class_names: see :class:`MaskedImages`.
        sequences: see :class:`MaskedImages`.
    """

    def __init__(
        self,
        location: str,
        kind: Kind,
        names: Sequence[str],
        images: EncodedSource,
        masks: EncodedSource,
        rows: Sequence[tuple[int, int]],
        *,
        background: int | None,
        void: int | None,
        layout: str,
        class_names: Mapping[int, str] | None = None,
        sequences: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(location, kind, names, class_names=class_names, sequences=sequences)
        self.images, self.masks, self.rows, self.layout = images, masks, list(rows), layout
        self.background, self.void = background, void

    def _load(self, index: int) -> tuple[Image.Image, np.ndarray, np.ndarray, np.ndarray | None]:
        image_row, mask_row = self.rows[index]
        image = self.images.load(image_row)
        assert isinstance(image, Image.Image)
        index_HW = decode_mask(self.masks.read(mask_row), name=self.masks.name(mask_row))
        if self.kind == "instance" and self.background == 0:
            index_HW = black_and_white_as_one(index_HW)
        objects_HW, ids = number_objects(index_HW, background=self.background, void=self.void)
        return image, objects_HW, ids, ids if self.kind == "class region" else None


def decode_mask(data: bytes | str | os.PathLike[str], *, name: str | None = None) -> np.ndarray:
    """(H, W) int64: the numbers in an index mask, palette or grey, of 1, 8 or 16 bits.

    Raises:
        DataError: no image, a lossy format, or colours instead of numbers.

    >>> file = io.BytesIO()
    >>> Image.fromarray(np.array([[0, 7]], np.uint8)).save(file, "PNG")
    >>> decode_mask(file.getvalue())
    array([[0, 7]])
    """
    if not isinstance(data, bytes):
        name = name or os.fspath(data)
        try:
            data = Path(data).read_bytes()
        except OSError as error:
            raise DataError(f"mask {name} cannot be read ({error.strerror})") from error
    name = name or "mask"
    try:
        decode(data, channels=None, name=name)  # knows all that can be wrong with a file, and says so
        _, mode, file_format = stored_header(data)
    except BadSampleError as error:
        raise DataError(f"mask {error}") from error
    wanted = "save the numbers of the objects as a grey or palette PNG"
    if file_format not in _LOSSLESS:
        raise DataError(f"{name} is no index mask: {file_format} changes pixel values; {wanted}")
    if mode not in _INDEX_MODES:
        raise DataError(f"{name} is no index mask: its pixels are colours ({mode}), not numbers; {wanted}")
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image).astype(np.int64)


def black_and_white_as_one(index_HW: np.ndarray) -> np.ndarray:
    """A mask of nothing but 0 and 255 shows one object, number 1; any other mask as it is.

    >>> black_and_white_as_one(np.array([0, 255])).tolist(), black_and_white_as_one(np.array([0, 7, 255])).tolist()
    ([0, 1], [0, 7, 255])
    """
    return index_HW // VOID_ID if np.isin(index_HW, (0, VOID_ID)).all() else index_HW


def number_objects(
    index_HW: np.ndarray, *, background: int | None = 0, void: int | None = VOID_ID
) -> tuple[np.ndarray, np.ndarray]:
    """From any numbers to positions: (H, W) int32 as in ``MaskedImage.objects``, and the ids (O,) in rising order.

    >>> objects, ids = number_objects(np.array([[0, 7, 3, 255]]))
    >>> objects.tolist(), ids.tolist()
    ([[-1, 1, 0, -2]], [3, 7])
    """
    special = {value: code for value, code in ((background, BACKGROUND), (void, VOID)) if value is not None}
    found, inverse = np.unique(index_HW, return_inverse=True)
    is_object = ~np.isin(found, list(special))
    codes = np.where(is_object, np.cumsum(is_object) - 1, 0).astype(np.int32)
    for value, code in special.items():
        codes[found == value] = code
    return codes[inverse].reshape(index_HW.shape), found[is_object].astype(np.int64)


class MaskedScenes(MaskedImages):
    """The embedded sample: scenes of handwritten digits, each digit with its mask; see :func:`~mc_core.samples.digit_scenes`.

    Args:
        count: scenes.
        size: side of a scene in pixels.
        digits: fewest and most digits in a scene; two are needed to compare objects.
        seed: of the scenes.
        split: whose handwriting.
        start: index of the first scene.
        config: how hard the scenes are.

    >>> scene = MaskedScenes(3, size=32)[0]
    >>> scene.masks.shape[1:], scene.kind
    ((32, 32), 'instance')
    """

    layout = "scenes"

    def __init__(
        self,
        count: int,
        *,
        size: int = 96,
        digits: tuple[int, int] = (2, 4),
        seed: int = 0,
        split: Split = "test",
        start: int = 0,
        config: SceneConfig | None = None,
    ) -> None:
        self.scenes = digit_scenes(count, size=size, digits=digits, seed=seed, split=split, start=start, config=config)
        names = [f"{split}-{i:06d}" for i in self.scenes.index.tolist()]
        super().__init__("digit scenes", "instance", names, class_names={i: str(i) for i in range(10)})

    def _load(self, index: int) -> tuple[Image.Image, np.ndarray, np.ndarray, np.ndarray | None]:
        scenes = self.scenes
        image = Image.fromarray(scenes.images[index].permute(1, 2, 0).contiguous().numpy())
        objects_HW = scenes.masks[index].numpy().astype(np.int32) - 1  # 0 is the ground
        count = int(scenes.objects.count[index])
        return image, objects_HW, np.arange(1, count + 1), scenes.objects.digit[index, :count].numpy()
