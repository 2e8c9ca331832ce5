"""One type for images from anywhere, and what can be done with it: subsets, held-out splits, a look inside.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from mc_core.data import BadSampleError
from mc_core.errors import ConfigError, DataError, closest
from mc_core.images.decoding import decode, stored_header
from mc_core.listing import fingerprint

Picture = Image.Image | np.ndarray

LABEL_NAMES = ("label", "labels", "class_id", "class_index", "target", "cls")
CLASS_NAMES = ("class_name", "label_name", "class", "category")
ID_NAMES = ("id", "ids", "group", "group_id")


@runtime_checkable
class ImageSource(Protocol):
    """Images by position. Safe to pickle, and to use in forked workers.

    Sources of this package also have ``ids``, (N,) int64 or None: what counts as the same thing.

    Attributes:
        labels: (N,) int64, or None.
        classes: the name of each label value, or None.
    """

    labels: np.ndarray | None
    classes: list[str] | None

    def __len__(self) -> int: ...

    def load(self, index: int) -> Picture:
        """Decoded, upright: an RGB or L image, or (H, W, C) uint8 for another number of channels.

        Raises:
            BadSampleError: this image cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """Path or key, for logs and tables of embeddings."""
        ...

    def describe(self) -> dict[str, Any]:
        """Kind, location, count and the digest of the listing (not of the image bytes)."""
        ...


@dataclass(frozen=True)
class ReadOptions:
    """How a source is read.

    Attributes:
        labels: ``"auto"``: where there are any; ``"folder"``: the first folder below the root, or an error; ``"none"``.
        image_column: column of paths or bytes, or the ending of the image files in a shard (``"left.png"``).
        label_column: column, or JSON field in a shard, that holds the label.
        class_column: column or JSON field that holds the class name.
        id_column: column or JSON field that says what counts as the same thing.
        channels: 3, 1, or None for what the file holds.
        min_side: shorter side needed, in pixels; lets large JPEGs be decoded at a fraction of their size.
        cache_dir: where indexes and fetched shards go; default ``$MC_CACHE``, else ``~/.cache/momentum-contrast``.
    """

    labels: Literal["auto", "folder", "none"] = "auto"
    image_column: str | None = None
    label_column: str | None = None
    class_column: str | None = None
    id_column: str | None = None
    channels: int | None = 3
    min_side: int | None = None
    cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        if self.labels not in ("auto", "folder", "none"):
            raise ConfigError(f"labels={self.labels!r}: choose 'auto', 'folder' or 'none'")
        if self.channels not in (None, 1, 3):
            raise ConfigError(f"channels={self.channels!r}: image files decode to 3 (RGB) or 1 (grey)")
        if self.min_side is not None and self.min_side < 1:
            raise ConfigError(f"min_side={self.min_side}: a side is 1 pixel or more")


class EncodedSource(ABC):
    """Base of the sources whose images are encoded bytes; subclasses say how to read and name one, and how many.

    Attributes:
        kind: of source, for the recipe.
        location: as the user named it.
        digest: of the listing.
    """

    kind = "images"

    def __init__(
        self,
        location: str,
        digest: str,
        options: ReadOptions,
        *,
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
        ids: np.ndarray | None = None,
    ) -> None:
        self.location, self.options = location, options
        self.labels, self.classes, self.ids = labels, classes, ids
        self.digest = fingerprint(digest, labels, classes, ids)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded bytes of one image."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Path or key."""

    def load(self, index: int) -> Picture:
        """One image, decoded; see :func:`mc_core.images.decoding.decode`."""
        options = self.options
        return decode(self.read(index), channels=options.channels, min_side=options.min_side, name=self.name(index))

    def describe(self) -> dict[str, Any]:
        """Kind, location, count and digest of the listing."""
        return {"kind": self.kind, "location": self.location, "count": len(self), "digest": self.digest}


class ArraySource:
    """Images in memory, also reachable as one array so that whole batches can be taken at once.

    Args:
        images: (N, C, H, W) uint8, array or tensor.
        labels: (N,) integers.
        classes: name of each label value.
        ids: (N,) integers, what counts as the same thing.
        location: where they came from, for the recipe.

    Attributes:
        array: (N, C, H, W) uint8, sharing memory with ``images`` where it can.

    Raises:
        DataError: another shape or type, or a number of labels that is not N.

    >>> source = ArraySource(np.zeros((2, 3, 4, 5), np.uint8), [1, 0])
    >>> source.load(0).size, source.array.shape
    ((5, 4), (2, 3, 4, 5))
    """

    def __init__(
        self,
        images: Any,
        labels: Any = None,
        classes: Sequence[str] | None = None,
        *,
        ids: Any = None,
        location: str = "memory",
    ) -> None:
        self.array = _to_numpy(images)
        if self.array.ndim != 4 or self.array.dtype != np.uint8:
            raise DataError(
                f"images need shape (N, C, H, W) and type uint8, got {self.array.shape} and {self.array.dtype}"
            )
        self.labels = _integers(labels, len(self.array), "labels")
        self.ids = _integers(ids, len(self.array), "ids")
        self.classes = None if classes is None else list(classes)
        self.location = location

    def __len__(self) -> int:
        return len(self.array)

    def load(self, index: int) -> Picture:
        """One image: RGB for C = 3, L for C = 1, else an array (H, W, C)."""
        image_CHW = self.array[index]
        if len(image_CHW) == 1:
            return Image.fromarray(image_CHW[0])
        image_HWC = np.ascontiguousarray(image_CHW.transpose(1, 2, 0))
        return Image.fromarray(image_HWC) if len(image_CHW) == 3 else image_HWC

    def name(self, index: int) -> str:
        """``location[index]``."""
        return f"{self.location}[{index}]"

    def describe(self) -> dict[str, Any]:
        """Kind, location, count, shape, and a digest of the labels and of up to 4,096 images spread evenly."""
        step = max(1, len(self) // 4096)
        digest = fingerprint(self.array[::step], self.labels, self.classes, self.ids)
        shape = list(self.array.shape[1:])
        return {"kind": "array", "location": self.location, "count": len(self), "shape": shape, "digest": digest}


class SubsetSource:
    """Some images of another source, in the given order; see :func:`subset`."""

    def __init__(self, source: ImageSource, indices: np.ndarray) -> None:
        self.source, self.indices = source, indices
        self.classes = source.classes
        self.labels = None if source.labels is None else source.labels[indices]
        ids = getattr(source, "ids", None)
        self.ids: np.ndarray | None = None if ids is None else ids[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> Picture:
        """One image."""
        return self.source.load(int(self.indices[index]))

    def name(self, index: int) -> str:
        """Path or key in the full source."""
        return self.source.name(int(self.indices[index]))

    def describe(self) -> dict[str, Any]:
        """As the full source, with its own count and digest."""
        whole = self.source.describe()
        return {**whole, "count": len(self), "digest": fingerprint(whole["digest"], self.indices)}


def subset(source: ImageSource, indices: Any) -> ImageSource:
    """The images at ``indices``, in that order. An :class:`ArraySource` stays one.

    Raises:
        DataError: an index outside the source, or none.

    >>> digits = ArraySource(np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1))
    >>> subset(digits, [3, 1]).array.ravel().tolist()
    [3, 1]
    """
    chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
    if not len(chosen):
        raise DataError("a subset needs at least one index")
    if chosen.min() < 0 or chosen.max() >= len(source):
        raise DataError(f"indices run from {chosen.min()} to {chosen.max()}, the source has 0 to {len(source) - 1}")
    if isinstance(source, ArraySource):
        labels, ids = (None if part is None else part[chosen] for part in (source.labels, source.ids))
        return ArraySource(source.array[chosen], labels, source.classes, ids=ids, location=source.location)
    if isinstance(source, SubsetSource):
        return SubsetSource(source.source, source.indices[chosen])
    return SubsetSource(source, chosen)


def take(source: ImageSource, count: int, *, seed: int | None = None) -> ImageSource:
    """The first ``count`` images, or that many drawn with ``seed``; all of them if there are fewer."""
    if count < 1:
        raise ConfigError(f"count={count}: take at least one image")
    if count >= len(source):
        return source
    return subset(
        source, np.arange(count) if seed is None else np.sort(_generator(seed).permutation(len(source))[:count])
    )


def split_source(source: ImageSource, fraction: float, seed: int) -> tuple[ImageSource, ImageSource]:
    """Hold out a share of the images: by group where ``ids`` repeat, else evenly over the labels where there are any.

    Args:
        source: to split.
        fraction: held out, in (0, 1); of the images, or of the groups.
        seed: the same seed holds out the same images.

    Returns:
        The rest, and what is held out; both in the order of the source.

    Raises:
        ConfigError: the fraction is out of range.
        DataError: too few images or groups for both parts.

    >>> rest, held_out = split_source(ArraySource(np.zeros((10, 1, 2, 2), np.uint8), [0, 1] * 5), 0.4, seed=0)
    >>> len(rest), np.bincount(held_out.labels).tolist()
    (6, [2, 2])
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction={fraction}: hold out a share between 0 and 1")
    ids = getattr(source, "ids", None)
    units, unit_of_N = np.arange(len(source)), None
    if ids is not None:
        groups, inverse = np.unique(ids, return_inverse=True)
        if len(groups) < len(source):
            units, unit_of_N = np.arange(len(groups)), inverse
    if len(units) < 2:
        raise DataError(f"cannot split {len(source)} images in {len(units)} group: both parts need one")
    # shuffled, then sorted by class alone: each class is a run in random order, every 1/fraction-th of it is held out
    order = _generator(seed).permutation(len(units))
    if source.labels is not None and unit_of_N is None:
        order = order[np.argsort(source.labels[order], kind="stable")]
    count = min(max(round(fraction * len(units)), 1), len(units) - 1)
    slots = np.floor(np.arange(len(units)) * (count / len(units)))
    chosen = np.zeros(len(units), dtype=bool)
    chosen[order[np.flatnonzero(np.diff(slots, append=count))]] = True
    held_out = chosen if unit_of_N is None else chosen[unit_of_N]
    return subset(source, np.flatnonzero(~held_out)), subset(source, np.flatnonzero(held_out))


def align_labels(source: ImageSource, classes: Sequence[str]) -> np.ndarray:
    """The labels of ``source`` in the numbering of ``classes``, by name: two folders need not hold the same classes.

    Raises:
        DataError: the source has no class names, or one that ``classes`` lacks.
    """
    if source.labels is None or source.classes is None:
        raise DataError(f"{source.describe()['location']} has no class names to match with {len(classes)} classes")
    position = {name: i for i, name in enumerate(classes)}
    table = np.array([position.get(name, -1) for name in source.classes], dtype=np.int64)
    aligned = table[source.labels]
    if (aligned < 0).any():
        name = source.classes[source.labels[np.argmin(aligned)]]
        raise DataError(f"class {name!r} is not among the {len(classes)} known ones; closest: {closest(name, classes)}")
    return aligned


def inspect_source(source: ImageSource, count: int = 256) -> dict[str, Any]:
    """Sizes, modes and unreadable images of a sample, spread evenly over the source.

    Args:
        source: to look into.
        count: how many images to read and decode.

    Returns:
        ``describe()`` and, of the sample: ``sampled``, ``width`` and ``height`` (min, median, max; as stored),
        ``modes``, ``formats``, ``unreadable`` with up to five ``unreadable_examples``; of all, where there are labels:
        ``classes`` and ``images_per_class`` (min, max).
    """
    indices = np.unique(np.linspace(0, len(source) - 1, num=min(count, len(source))).astype(np.int64)).tolist()
    modes: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    sizes: list[tuple[int, int]] = []
    bad: list[BadSampleError] = []
    for index in indices:
        try:
            picture = source.load(index)
            size, mode, file_format = header(source, index, picture)
        except BadSampleError as error:
            bad.append(error)
            continue
        sizes.append(size)
        modes[mode] += 1
        formats[file_format] += 1
    report = {**source.describe(), "sampled": len(indices)}
    for axis, side in enumerate(("width", "height")):
        values = [size[axis] for size in sizes]
        if values:
            report[side] = {"min": min(values), "median": float(np.median(values)), "max": max(values)}
    report |= {"modes": dict(modes.most_common()), "formats": dict(formats.most_common()), "unreadable": len(bad)}
    report["unreadable_examples"] = [str(error) for error in bad[:5]]
    if source.labels is not None:
        per_class = np.unique(source.labels, return_counts=True)[1]
        report["classes"] = len(per_class)
        report["images_per_class"] = {"min": int(per_class.min()), "max": int(per_class.max())}
    return report


def header(source: ImageSource, index: int, picture: Picture) -> tuple[tuple[int, int], str, str]:
    """Size (width, height), mode and format as stored in the file; of the picture itself where there is no file."""
    if isinstance(source, SubsetSource):
        return header(source.source, int(source.indices[index]), picture)
    if isinstance(source, EncodedSource):
        return stored_header(source.read(index))
    if isinstance(picture, Image.Image):
        return picture.size, picture.mode, "array"
    return (picture.shape[1], picture.shape[0]), f"{picture.shape[2]} channels", "array"


def make_labels(
    values: Sequence[str] | np.ndarray | None, names: Sequence[str] | np.ndarray | None, where: Callable[[int], str]
) -> tuple[np.ndarray | None, list[str] | None]:
    """Labels and classes from a column of labels (integers, or text) and one of class names; either may be absent.

    Integers are kept, so that two parts of one set agree; text becomes positions in the sorted list of names.

    Args:
        values: (N,) integers, or text (which may spell integers).
        names: (N,) class names. Given alone they may be integers too.
        where: names the row of a position, for the error message.

    Raises:
        DataError: an empty cell, or a label with two names.

    >>> make_labels(["1", "0", "1"], ["dog", "cat", "dog"], str)
    (array([1, 0, 1]), ['cat', 'dog'])
    """
    if values is None:
        values, names = names, None
    if isinstance(names, np.ndarray):
        names = names.astype(str).tolist()
    if values is not None and not isinstance(values, np.ndarray):
        _no_gaps(values, where)
        try:
            values = np.array([int(value) for value in values], dtype=np.int64)
        except (ValueError, OverflowError):
            values, names = None, values if names is None else names
    if names is None:
        return (None, None) if values is None else (values.astype(np.int64), None)
    _no_gaps(names, where)
    classes, codes = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    codes = codes.astype(np.int64)
    if values is None:
        return codes, classes.tolist()
    labels, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    differs = codes != codes[first][inverse]
    if differs.any():
        row = int(np.argmax(differs))
        other = int(first[inverse[row]])
        raise DataError(
            f"{where(row)}: label {values[row]} is called {names[row]!r}, but {names[other]!r} at {where(other)}"
        )
    if labels[0] < 0 or labels[-1] > 10 * len(labels) + 1000:  # not positions in a list of classes
        return codes, classes.tolist()
    known = dict(zip(labels.tolist(), classes[codes[first]].tolist(), strict=True))
    return values.astype(np.int64), [known.get(i, str(i)) for i in range(int(labels[-1]) + 1)]


def make_ids(values: Sequence[str] | np.ndarray | None) -> np.ndarray | None:
    """(N,) int64 ids from any column; equal values, equal ids."""
    if values is None or (isinstance(values, np.ndarray) and np.issubdtype(values.dtype, np.integer)):
        return None if values is None else values.astype(np.int64)
    return np.unique(np.asarray(values, dtype=str), return_inverse=True)[1].astype(np.int64)


def find_column(
    columns: Sequence[str], wanted: str | None, known: Sequence[str], *, option: str, where: str
) -> str | None:
    """The column named by the user, else the first of the ``known`` names (in any case) that is there, else None.

    Raises:
        DataError: the user's column is not there.
    """
    if wanted is not None:
        if wanted not in columns:
            raise DataError(f"{where} has no {option} {wanted!r}; closest: {closest(wanted, columns)}")
        return wanted
    lower = {column.lower(): column for column in reversed(columns)}
    return next((lower[name] for name in known if name in lower), None)


def _no_gaps(values: Sequence[str], where: Callable[[int], str]) -> None:
    for row, value in enumerate(values):
        if not value:
            raise DataError(f"{where(row)}: the label is empty; fill it in, or read the images with labels='none'")


def _to_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor, without importing torch to ask
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def _integers(values: Any, count: int, what: str) -> np.ndarray | None:
    if values is None:
        return None
    array = _to_numpy(values)
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{what} need {count} integers, got shape {array.shape} and type {array.dtype}")
    return array.astype(np.int64)


def _generator(seed: int) -> np.random.Generator:
    if seed < 0:
        raise ConfigError(f"seed {seed}; give 0 or more")
    return np.random.Generator(np.random.Philox(key=seed))
