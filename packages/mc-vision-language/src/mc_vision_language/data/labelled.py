"""Pictures with a class: what zero-shot classification is measured on.

A folder with a folder of pictures for each class, or one of the nine standard sets in the layout in which it is published, always
its test part: ImageNet-1K (validation), CIFAR-10 and CIFAR-100 (binary version), Caltech101, Flowers102, Food101, SUN397, DTD and
Oxford-IIIT Pets. Other sets by their name in torchvision.

Legend: N pictures, C classes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mc_core.errors import ConfigError, DataError, closest
from mc_core.listing import walk
from mc_core.optional import require
from mc_vision_language.data.images import ArrayImages, FileImages, ImageSet

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
TORCHVISION = "torchvision:"
_SYNSET = re.compile(r"n\d{8}")
_SYNSET_NAMES = "LOC_synset_mapping.txt"
_CIFAR_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class LabelledImages:
    """Pictures, each of one class.

    Attributes:
        images: N pictures.
        labels: (N,) int64, which class.
        classes: C names, as a sentence says them.
        kind: ``folder``, or the standard set: ``imagenet``, ``cifar10`` …
        location: where they came from.

    Raises:
        DataError: no picture, a label beyond the classes, or two classes of one name.
    """

    images: ImageSet
    labels: np.ndarray
    classes: tuple[str, ...]
    kind: str = "folder"
    location: str = "memory"

    def __post_init__(self) -> None:
        if not len(self.images):
            raise DataError(f"{self.location}: no picture with a class")
        if len(self.labels) != len(self.images):
            raise DataError(f"{self.location}: {len(self.images)} pictures with {len(self.labels)} labels")
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise DataError(
                f"{self.location}: labels from {self.labels.min()} to {self.labels.max()} for {len(self.classes)} classes"
            )
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise DataError(
                f"{self.location}: two classes are called '{twice}': a sentence cannot tell them apart; give other names"
            )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Any) -> LabelledImages:
        """These pictures, in this order."""
        chosen = np.asarray(rows, dtype=np.int64)
        return LabelledImages(self.images.take(chosen), self.labels[chosen], self.classes, self.kind, self.location)


def open_labelled(source: str | Path, *, names: Path | None = None, root: Path | None = None) -> LabelledImages:
    """The test pictures of a labelled folder, a standard set, or a set of torchvision.

    Args:
        source: a folder, or ``torchvision:NAME`` such as ``torchvision:CIFAR10``.
        names: file of class names, one in each line in the order of the classes (of folders: sorted), or ``FOLDER<tab>NAME``.
        root: of a set of torchvision: the folder that holds it; nothing is downloaded.

    Raises:
        DataError: no such folder, no class, no picture, or files that do not belong together.
        ConfigError: names that do not fit the classes. MissingDependencyError: torchvision or SciPy is needed and not here.
    """
    text = os.fspath(source)
    if text.startswith(TORCHVISION):
        return _with_names(_torchvision(text.removeprefix(TORCHVISION), root), names)
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise DataError(f"{source}: {'a file' if folder.exists() else 'no such folder'}; give a folder of classes")
    for kind, (marks, reader) in _LAYOUTS.items():
        for place in (folder, *(folder / inner for inner in _INNER.get(kind, ()))):
            if all((place / mark).exists() for mark in marks):
                return _named(kind, place, names, reader)
    return _class_folders(folder, names)


def _named(kind: str, place: Path, names: Path | None, reader: Callable[[Path], _Rows]) -> LabelledImages:
    images, labels, classes = reader(place)
    if not classes and names is None:
        raise ConfigError(
            f"{place}: {kind} comes without names of its classes: give a file with one in each line (--names)"
        )
    count = len(classes) or (int(labels.max(initial=-1)) + 1)
    given = tuple(classes) or tuple(str(i) for i in range(count))
    return _with_names(LabelledImages(images, labels, given, kind, str(place)), names)


_Rows = tuple[ImageSet, np.ndarray, Sequence[str]]


def _spoken(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _lines(path: Path) -> list[str]:
    try:
        return [line.rstrip("\r\n") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _files(folder: Path, paths: Sequence[str], labels: Sequence[int]) -> tuple[ImageSet, np.ndarray]:
    return FileImages(paths, folder), np.array(labels, dtype=np.int64)


def _listed(folder: Path, rows: Iterator[tuple[str, str]], classes: Sequence[str]) -> _Rows:
    """Pictures by (path, class)."""
    place = {name: i for i, name in enumerate(classes)}
    paths, labels = [], []
    for path, name in rows:
        if name not in place:
            raise DataError(f"{folder}: {path} is of the class '{name}', which is none of the {len(classes)} known")
        paths.append(path)
        labels.append(place[name])
    return (*_files(folder, paths, labels), [_spoken(name) for name in classes])


def _cifar(place: Path, file: str, names: str, label_bytes: int) -> _Rows:
    path = place / file
    row = label_bytes + _CIFAR_PIXELS
    data = np.fromfile(path, dtype=np.uint8)
    if not len(data) or len(data) % row:
        raise DataError(f"{path}: {len(data)} bytes are no whole number of pictures of {row}: cut off, or another file")
    rows = data.reshape(-1, row)
    images = ArrayImages(rows[:, label_bytes:].reshape(-1, 3, 32, 32), location=str(path))
    return images, rows[:, label_bytes - 1].astype(np.int64), [_spoken(name) for name in _lines(place / names)]


def _flowers(place: Path) -> _Rows:
    scipy: Any = require("scipy.io", extra="scipy", purpose="read the .mat files of Flowers102")
    labels = scipy.loadmat(place / "imagelabels.mat")["labels"].reshape(-1).astype(np.int64) - 1
    numbers = scipy.loadmat(place / "setid.mat")["tstid"].reshape(-1).astype(np.int64)
    names = place / "class_names.txt"
    paths = [f"jpg/image_{number:05d}.jpg" for number in numbers]
    return (*_files(place, paths, labels[numbers - 1].tolist()), _lines(names) if names.is_file() else ())


def _pets(place: Path) -> _Rows:
    rows = [line.split() for line in _lines(place / "annotations" / "test.txt")]
    breeds = {int(number) - 1: name.rpartition("_")[0] for name, number, *_ in rows}
    classes = [breeds[i] for i in sorted(breeds)]
    return _listed(place, ((f"images/{name}.jpg", name.rpartition("_")[0]) for name, *_ in rows), classes)


def _food(place: Path) -> _Rows:
    classes = _lines(place / "meta" / "classes.txt")
    rows = ((f"images/{line}.jpg", line.partition("/")[0]) for line in _lines(place / "meta" / "test.txt"))
    return _listed(place, rows, classes)


def _dtd(place: Path) -> _Rows:
    lines = _lines(place / "labels" / "test1.txt")
    classes = sorted(entry.name for entry in (place / "images").iterdir() if entry.is_dir())
    return _listed(place, ((f"images/{line}", line.partition("/")[0]) for line in lines), classes)


def _sun(place: Path) -> _Rows:
    classes = [line.strip("/") for line in _lines(place / "ClassName.txt")]
    lines = [line.strip("/") for line in _lines(place / "Testing_01.txt")]
    images, labels, _ = _listed(place, ((line, line.rpartition("/")[0]) for line in lines), classes)
    # "a/access_road", "c/chicken_coop/indoor"
    return images, labels, [" ".join(reversed([_spoken(part) for part in name.split("/")[1:]])) for name in classes]


_INNER = {
    "cifar10": ("cifar-10-batches-bin",),
    "cifar100": ("cifar-100-binary",),
    "food101": ("food-101",),
    "dtd": ("dtd",),
    "sun397": ("SUN397",),
    "pets": ("oxford-iiit-pet",),
}
_LAYOUTS: dict[str, tuple[tuple[str, ...], Callable[[Path], _Rows]]] = {
    "cifar10": (
        ("test_batch.bin", "batches.meta.txt"),
        lambda place: _cifar(place, "test_batch.bin", "batches.meta.txt", 1),
    ),
    "cifar100": (
        ("test.bin", "fine_label_names.txt"),
        lambda place: _cifar(place, "test.bin", "fine_label_names.txt", 2),
    ),
    "flowers102": (("jpg", "imagelabels.mat", "setid.mat"), _flowers),
    "food101": (("images", "meta/test.txt", "meta/classes.txt"), _food),
    "dtd": (("images", "labels/test1.txt"), _dtd),
    "pets": (("images", "annotations/test.txt"), _pets),
    "sun397": (("ClassName.txt", "Testing_01.txt"), _sun),
}


def _class_folders(folder: Path, names: Path | None) -> LabelledImages:
    """A folder for each class: ImageNet by its synsets, Caltech101 without what shows nothing, any other."""
    kind, left_out = "folder", set()
    if (folder / "101_ObjectCategories").is_dir():
        folder = folder / "101_ObjectCategories"
    if folder.name == "101_ObjectCategories":
        kind, left_out = "caltech101", {"BACKGROUND_Google"}
    inside = sorted(one.name for one in folder.iterdir() if one.is_dir() and one.name not in left_out)
    folders = [name for name in inside if not name.startswith(".")]
    if not folders:
        raise DataError(
            f"{folder} holds no folder of a class: put the pictures of each class into a folder of its name"
        )
    if set(map(str.lower, folders)) <= {"train", "training", "val", "valid", "validation", "test"}:
        raise DataError(
            f"{folder} holds the parts {', '.join(folders)}: name one of them, such as {folder / folders[0]}"
        )
    if all(_SYNSET.fullmatch(name) for name in folders):
        kind = "imagenet"
        if names is None:
            names = next(
                (place / _SYNSET_NAMES for place in (folder, *folder.parents) if (place / _SYNSET_NAMES).is_file()),
                None,
            )
        if names is None:
            raise ConfigError(
                f"{folder}: '{folders[0]}' and the others are numbers of WordNet, which say nothing to a text encoder: give a file "
                "with FOLDER<tab>NAME in each line (--names)"
            )
    paths, labels = [], []
    for label, name in enumerate(folders):
        for path in sorted(walk(os.fspath(folder / name))):
            if path.lower().endswith(ENDINGS):
                paths.append(f"{name}/{path}")
                labels.append(label)
    if not paths:
        raise DataError(f"{folder} holds {len(folders)} folders and no picture ({', '.join(ENDINGS)})")
    found = LabelledImages(*_files(folder, paths, labels), tuple(folders), kind, str(folder))
    if names is not None:
        return _with_names(found, names)
    return LabelledImages(found.images, found.labels, tuple(map(_spoken, folders)), kind, str(folder))


def _with_names(found: LabelledImages, names: Path | None) -> LabelledImages:
    """With the names of a file in place of those that the set has."""
    if names is None:
        return found
    lines = _lines(names)
    given: Mapping[str, str] | None = None
    if lines and all("\t" in line for line in lines):
        given = dict(line.split("\t", 1) for line in lines)
    elif lines and all(
        _SYNSET.match(line) and " " in line for line in lines
    ):  # as ImageNet's own list: the first of its synonyms
        given = {line.split(" ", 1)[0]: line.split(" ", 1)[1].split(",")[0].strip() for line in lines}
    if given is not None:
        missing = [name for name in found.classes if name not in given]
        if missing:
            raise ConfigError(f"{names} names no class '{missing[0]}'; closest: {closest(missing[0], given)}")
        classes = tuple(given[name].strip() for name in found.classes)
    elif len(lines) != len(found.classes):
        raise ConfigError(f"{names} holds {len(lines)} names for {len(found.classes)} classes of {found.location}")
    else:
        classes = tuple(line.strip() for line in lines)
    return LabelledImages(found.images, found.labels, classes, found.kind, found.location)


class TorchvisionImages:
    """A set of torchvision as an image set: pictures are made when they are read.

    Args:
        data: its items are (picture, class).
        location: for reports.
    """

    def __init__(self, data: Any, location: str, rows: np.ndarray | None = None) -> None:
        self.data, self.location = data, location
        self.rows = np.arange(len(data), dtype=np.int64) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int, *, min_side: int | None = None) -> Image.Image:
        """One picture, RGB."""
        return self.data[int(self.rows[row])][0].convert("RGB")

    def name(self, row: int) -> str:
        """``location[row]``."""
        return f"{self.location}[{int(self.rows[row])}]"

    def take(self, rows: np.ndarray) -> TorchvisionImages:
        """These pictures, in this order."""
        return TorchvisionImages(self.data, self.location, self.rows[rows])

    def describe(self) -> dict[str, Any]:
        """Kind, location and count."""
        return {"kind": "torchvision", "location": self.location, "count": len(self)}


_KINDS = {"OxfordIIITPet": "pets", "ImageNet": "imagenet"}


def _torchvision(name: str, root: Path | None) -> LabelledImages:
    datasets: Any = require("torchvision.datasets", extra="torchvision", purpose=f"open the data set {name}")
    made = getattr(datasets, name, None)
    if made is None:
        raise DataError(f"torchvision has no data set '{name}': did you mean {closest(name, datasets.__all__)}?")
    if root is None:
        raise ConfigError(f"say where {name} of torchvision lies (--root FOLDER); nothing is downloaded")
    last: Exception | None = None
    for arguments in ({"train": False}, {"split": "test"}, {"split": "val"}, {"partition": "test"}, {}):
        try:
            data = made(str(root), **arguments)
            break
        except TypeError as error:  # of another family of sets: other names for the part
            last = error
        except ValueError as error:
            last = error
        except (RuntimeError, OSError) as error:
            raise DataError(f"{root} does not hold {name} as torchvision wants it: {_first(error)}") from error
    else:
        raise DataError(f"{name} of torchvision cannot be opened: {_first(last)}")
    labels = next((getattr(data, one) for one in ("targets", "_labels", "labels", "y") if hasattr(data, one)), None)
    if labels is None:
        labels = [data[i][1] for i in range(len(data))]
    classes = getattr(data, "classes", None) or getattr(data, "categories", None) or range(int(np.max(labels)) + 1)
    spoken = tuple(_spoken(one[0] if isinstance(one, tuple) else str(one)) for one in classes)
    kind = _KINDS.get(name, name.lower())
    location = f"{TORCHVISION}{name}"
    return LabelledImages(TorchvisionImages(data, location), np.asarray(labels, dtype=np.int64), spoken, kind, location)


def _first(error: Exception | None) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
