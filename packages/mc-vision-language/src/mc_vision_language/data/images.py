"""Sets of pictures from files, tars, arrays and Hugging Face data sets, as one type: :class:`ImageSet`.

Legend: N pictures, H × W pixels, S side of a square.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from PIL import Image

from mc_core.errors import BadSampleError, DataError
from mc_core.images.decoding import decode, read_file
from mc_core.listing import PackedStrings, fingerprint

Readable = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


@runtime_checkable
class ImageSet(Protocol):
    """Pictures by their row. Safe to pickle, and to use in forked workers."""

    def __len__(self) -> int: ...

    def read(self, row: int, *, min_side: int | None = None) -> Image.Image:
        """One picture, upright, RGB.

        Args:
            row: which.
            min_side: shorter side needed, in pixels; lets large JPEGs be decoded at a fraction of their size.

        Raises:
            BadSampleError: this picture cannot be read.
        """
        ...

    def name(self, row: int) -> str:
        """Path or key, for people."""
        ...

    def take(self, rows: np.ndarray) -> ImageSet:
        """These pictures, in this order; nothing is copied."""
        ...

    def describe(self) -> dict[str, Any]:
        """Kind, location, count and a digest of the listing."""
        ...


class StoredImages(ABC):
    """Base of the sets whose pictures are files or parts of files; subclasses say how to find number ``i`` among all they hold.

    Attributes:
        kind: of set, for reports.
        location: as the user named it.
        rows: (N,) int64, which of the pictures of the source these are.
    """

    kind = "images"

    def __init__(self, location: str, count: int, digest: str) -> None:
        self.location, self._digest = location, digest
        self.rows = np.arange(count, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    @abstractmethod
    def _data(self, i: int) -> bytes: ...

    @abstractmethod
    def _name(self, i: int) -> str: ...

    @abstractmethod
    def _sizes(self) -> np.ndarray:
        """(all) int64 bytes of each picture, −1 where there is none."""

    def _key(self, i: int) -> str:
        return self._name(i)

    def data(self, row: int) -> bytes:
        """The encoded bytes of one picture."""
        return self._data(int(self.rows[row]))

    def head(self, row: int, size: int) -> bytes:
        """The first ``size`` bytes of one picture."""
        return self._data(int(self.rows[row]))[:size]

    def sizes(self) -> np.ndarray:
        """(N,) int64 bytes of each picture; −1 where it is missing."""
        return self._sizes()[self.rows]

    def key(self, row: int) -> str:
        """What tells this picture from the others, on any machine: its name without the folder that all lie in."""
        return self._key(int(self.rows[row]))

    def name(self, row: int) -> str:
        """Path or key."""
        return self._name(int(self.rows[row]))

    def read(self, row: int, *, min_side: int | None = None) -> Image.Image:
        """One picture, upright, RGB."""
        return _rgb(decode(self.data(row), min_side=min_side, name=self.name(row)), self.name(row))

    def take(self, rows: np.ndarray) -> Self:
        """These pictures, in this order."""
        taken = copy.copy(self)
        taken.rows = self.rows[rows]
        return taken

    def describe(self) -> dict[str, Any]:
        """Kind, location, count and a digest of the listing."""
        return {
            "kind": self.kind,
            "location": self.location,
            "count": len(self),
            "digest": fingerprint(self._digest, self.rows),
        }


class FileImages(StoredImages):
    """Files by their paths.

    Args:
        paths: N of them, absolute or relative to ``root``.
        root: folder they are relative to.
        keys: N names by which pictures go on any machine; default: the paths.
        location: for reports; default: the root.

    >>> FileImages(["b.jpg", "a.jpg"], "photos").name(1)
    'photos/a.jpg'
    """

    kind = "files"

    def __init__(
        self,
        paths: Iterable[str],
        root: str | Path = "",
        *,
        keys: Iterable[str] | None = None,
        location: str | None = None,
    ) -> None:
        self.paths, self.root = PackedStrings(paths), os.fspath(root)
        self.keys = self.paths if keys is None else PackedStrings(keys)
        super().__init__(location or self.root or "files", len(self.paths), fingerprint(self.keys))

    def _name(self, i: int) -> str:
        return os.path.join(self.root, self.paths[i])

    def _data(self, i: int) -> bytes:
        return read_file(self._name(i))

    def head(self, row: int, size: int) -> bytes:
        """The first ``size`` bytes of one picture."""
        try:
            with open(self.name(row), "rb") as file:
                return file.read(size)
        except OSError as error:
            raise BadSampleError(self.name(row), (error.strerror or str(error)).lower()) from error

    def _key(self, i: int) -> str:
        return self.keys[i]

    def _sizes(self) -> np.ndarray:
        return np.fromiter((_file_size(self._name(i)) for i in range(len(self.paths))), np.int64, len(self.paths))


class ArrayImages:
    """Pictures in memory, also as one array so that whole batches can be taken at once.

    Args:
        pixels: (N, 3, H, W) uint8, array or tensor.
        location: for reports.

    Attributes:
        array: (N, 3, H, W) uint8, sharing memory with ``pixels`` where it can.

    Raises:
        DataError: another shape or type.

    >>> ArrayImages(np.zeros((2, 3, 4, 5), np.uint8)).read(0).size
    (5, 4)
    """

    def __init__(self, pixels: Any, *, location: str = "memory") -> None:
        self.array = _to_numpy(pixels)
        if self.array.ndim != 4 or self.array.shape[1] != 3 or self.array.dtype != np.uint8:
            raise DataError(
                f"pictures need shape (N, 3, H, W) and type uint8, got {self.array.shape} and {self.array.dtype}"
            )
        self.location = location

    def __len__(self) -> int:
        return len(self.array)

    def read(self, row: int, *, min_side: int | None = None) -> Image.Image:
        """One picture, RGB."""
        return Image.fromarray(np.ascontiguousarray(self.array[row].transpose(1, 2, 0)))

    def name(self, row: int) -> str:
        """``location[row]``."""
        return f"{self.location}[{range(len(self))[row]}]"

    def take(self, rows: np.ndarray) -> ArrayImages:
        """A copy of these pictures, in this order."""
        return ArrayImages(self.array[rows], location=self.location)

    def describe(self) -> dict[str, Any]:
        """Kind, location, count, shape, and a digest of up to 4,096 pictures spread evenly."""
        step = max(1, len(self) // 4096)
        digest = fingerprint(np.ascontiguousarray(self.array[::step]))
        shape = list(self.array.shape[1:])
        return {"kind": "array", "location": self.location, "count": len(self), "shape": shape, "digest": digest}


def read_image(source: Readable, *, min_side: int | None = None, name: str | None = None) -> Image.Image:
    """A picture from whatever holds one: upright, RGB, 8 bits.

    Args:
        source: path, encoded bytes, PIL image, or uint8 array or tensor: (3, H, W), (1, H, W), (H, W, 3) or (H, W).
        min_side: see :meth:`ImageSet.read`.
        name: for the error message.

    Raises:
        BadSampleError: missing, empty, cut off, or no image.
        DataError: an array of another shape or type.

    >>> read_image(np.zeros((3, 4, 5), np.uint8)).size
    (5, 4)
    """
    if isinstance(source, Image.Image):
        from mc_core.images.decoding import to_8_bit, upright

        return _rgb(upright(to_8_bit(source, name=name or "image")), name or "image")
    if isinstance(source, (str, os.PathLike, bytes)):
        where = name or ("image" if isinstance(source, bytes) else os.fspath(source))
        return _rgb(decode(source, min_side=min_side, name=where), where)
    pixels = _to_numpy(source)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise DataError(
            f"{name or 'image'}: an array of shape {np.shape(source)} and type {pixels.dtype}; "
            "give uint8 of shape (3, H, W), (H, W, 3) or (H, W)"
        )
    pixels = np.ascontiguousarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    return Image.fromarray(pixels).convert("RGB")


def squashed(image: Image.Image, size: int) -> np.ndarray:
    """(3, S, S) uint8: the whole picture resized bicubically to a square whatever its shape, as ALBEF evaluates it.

    >>> squashed(Image.new("RGB", (40, 20), "white"), 16).shape
    (3, 16, 16)
    """
    square = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def pixels_of(image: Image.Image, box: Sequence[float], size: int) -> np.ndarray:
    """(3, S, S) uint8: a box (top, left, height, width; pixels) of an RGB picture, resized bicubically."""
    top, left, height, width = box
    corners = (left, top, min(left + width, image.width), min(top + height, image.height))
    return np.ascontiguousarray(
        np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=corners)).transpose(2, 0, 1)
    )


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return -1


def _rgb(image: Image.Image | np.ndarray, name: str) -> Image.Image:
    if not isinstance(image, Image.Image):
        raise BadSampleError(name, f"{image.shape[2]} channels; pictures have 1 or 3")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor, without importing torch to ask
        values = values.detach().cpu().numpy()
    return np.asarray(values)
