"""Where the pictures lie that a table names. Imports no torch.

Legend: N pictures.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mc_core.errors import DataError

_TRIED = 5  # files of a folder that are looked for before it is given up
_USUAL = ("images", "Images", "image", "img", "imgs", "pictures", "photos", "flickr30k-images", "Flicker8k_Dataset")


def is_tar(images: str) -> bool:
    """Whether the place of the pictures is a tar file."""
    return images.lower().endswith(".tar") and os.path.isfile(images)


def locate(
    paths: Sequence[str], table: str, images: str | None, *, first_place: str, folders: Sequence[str] = ()
) -> tuple[list[str], str]:
    """The paths as they are below a folder, and the folder.

    A path is looked for below ``images`` where it is given, else below the table's folder, its usual subfolders, and the folder
    above. Of a path from another machine, leading folders are left away until the file is there.

    Args:
        paths: N of a table.
        table: the file that names them.
        images: the folder that the user named.
        first_place: where the first path stands, for the message.
        folders: more folders, relative to those above, that the layout of the table suggests.

    Raises:
        DataError: none of the first files is anywhere. A wrong folder makes every picture missing: better said at once.
    """
    beside = os.path.dirname(table)
    bases = [images] if images is not None else [beside, os.path.dirname(os.path.abspath(table)) + "/.."]
    roots = [os.path.join(base, extra) for base in bases for extra in ("", *folders, *_USUAL)]
    roots += [os.path.join(base, usual, extra) for base in bases for usual in _USUAL for extra in folders]
    samples: dict[str, list[str]] = {}
    for path in paths:
        some = samples.setdefault(os.path.dirname(path), [])
        if len(some) < _TRIED:
            some.append(path)
    tried = [path for some in list(samples.values())[:_TRIED] for path in some]
    folders_there = [os.path.normpath(root or ".") for root in roots if os.path.isdir(root or ".")]
    for shorten in (False, True):
        for root in folders_there:
            if any(_shortened(path, root) in ((0,) if not shorten else range(len(path))) for path in tried):
                return _below(paths, root, samples), root
    where = f"below {images}" if images is not None else "as it stands, or below the folder of the table"
    raise DataError(f"{first_place}: no file {paths[0]!r} {where}; name the folder of the pictures with --images")


def _shortened(path: str, root: str) -> int | None:
    """How many leading folders of a path are not there below ``root``; None if the file is not there at all."""
    if os.path.exists(os.path.join(root, path)):
        return 0
    parts = path.replace("\\", "/").strip("/").split("/")
    for count in range(len(parts)):
        if os.path.exists(os.path.join(root, *parts[count:])):
            return count + path.replace("\\", "/").startswith("/")
    return None


def _below(paths: Sequence[str], root: str, samples: dict[str, list[str]]) -> list[str]:
    """Folder by folder, since each may have come from another place."""
    cut: dict[str, int] = {}
    for folder, some in samples.items():
        known = [count for path in some if (count := _shortened(path, root)) is not None]
        cut[folder] = known[0] if known else 0
    if not any(cut.values()):
        return list(paths)
    return [
        path if not (count := cut[os.path.dirname(path)]) else "/".join(path.replace("\\", "/").split("/")[count:])
        for path in paths
    ]
