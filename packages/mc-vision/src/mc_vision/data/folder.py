"""Folders of images, flat or one folder per class, and lists of paths."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mc_core.errors import DataError
from mc_core.images.decoding import IMAGE_EXTENSIONS, read_file
from mc_core.listing import PackedStrings, count_text, fingerprint, not_found, walk
from mc_vision.data.source import EncodedSource, ReadOptions

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}


class PathSource(EncodedSource):
    """Image files by their paths.

    Args:
        paths: of the files, absolute or relative to ``root``.
        root: folder they are relative to.
        options: how to read them.
        kind: for the recipe.
        location: for the recipe; default: the root.
        labels: (N,) int64.
        classes: name of each label.
        ids: (N,) int64.
    """

    def __init__(
        self,
        paths: Iterable[str],
        root: str,
        options: ReadOptions,
        *,
        kind: str = "folder",
        location: str | None = None,
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
        ids: np.ndarray | None = None,
    ) -> None:
        self.kind, self.root, self.paths = kind, root, PackedStrings(paths)
        digest = fingerprint(self.paths)
        super().__init__(location or root, digest, options, labels=labels, classes=classes, ids=ids)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path of the file, from the root as the user named it."""
        return os.path.join(self.root, self.paths[index])

    def read(self, index: int) -> bytes:
        """The bytes of the file."""
        return read_file(self.name(index))


def open_folder(folder: str | Path, options: ReadOptions | None = None) -> PathSource:
    """All images below a folder, in the order of their relative paths. Hidden files and folders are passed over.

    With ``labels="auto"`` the first-level folders are the classes if there are two or more and every image lies in one.

    Raises:
        DataError: the folder is missing, unreadable or without images, holds ``train`` beside ``val``, or has images
            outside class folders although ``labels="folder"`` was asked for.
    """
    options = options or ReadOptions()
    root = os.fspath(folder)
    if not os.path.isdir(root):
        raise DataError(not_found(root))
    images: list[str] = []
    others: Counter[str] = Counter()
    for path in walk(root):
        extension = os.path.splitext(path)[1].lower()
        if extension in IMAGE_EXTENSIONS:
            images.append(path)
        else:
            others[extension or "extensionless"] += 1
    if not images:
        found = (
            "; found " + ", ".join(f"{n:,} {ext} files" for ext, n in others.most_common(3))
            if others
            else "; it is empty"
        )
        raise DataError(
            f"no images with extensions .jpg, .png, .webp, .tif … under {root}{found}: is this the right folder?"
        )
    images.sort()
    labels, classes = _folder_labels(images, root, options.labels)
    return PathSource(images, root, options, labels=labels, classes=classes)


def _folder_labels(images: list[str], root: str, wanted: str) -> tuple[np.ndarray | None, list[str] | None]:
    if wanted == "none":
        return None, None
    first = [path.partition("/")[0] if "/" in path else "" for path in images]
    classes = sorted(set(first))
    if "" in classes:
        if wanted == "folder":
            raise DataError(
                f"{os.path.join(root, images[first.index('')])} lies in no class folder, as labels='folder' needs"
            )
        return None, None
    splits = [name for name in classes if name.lower() in _SPLIT_NAMES]
    if wanted == "auto" and len(splits) == len(classes):
        text = " and ".join([", ".join(splits[:-1]), splits[-1]] if len(splits) > 1 else splits)
        raise DataError(
            f"{root} holds {count_text(len(splits), 'part')} of a data set ({text}), not classes: "
            f"name one, {os.path.join(root, splits[0])}, or take all of it with labels='none'"
        )
    if wanted == "auto" and len(classes) < 2:
        return None, None
    position = {name: i for i, name in enumerate(classes)}
    return np.array([position[name] for name in first], dtype=np.int64), classes
