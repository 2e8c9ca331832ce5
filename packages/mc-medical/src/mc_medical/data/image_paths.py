"""From the cells of an image column to files: relative paths, MIMIC-CXR's layout, names and ids anywhere below a folder.

Legend: N rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mc_core.errors import DataError
from mc_medical.data.columns import Columns
from mc_medical.data.image_ref import IMAGE_SUFFIXES, ImageRef
from mc_medical.data.joins import stem
from mc_medical.data.tables import Rows

_SAMPLE = 50


def find_images(rows: Rows, columns: Columns, folder: Path) -> tuple[list[ImageRef | None], str]:
    """The file of each row, None where there is none, and the rule by which they were found.

    Rules are tried on a sample of rows; the first that finds most of it is taken for all.

    Raises:
        DataError: no rule finds any.
    """
    cells = rows.cells[columns.roles["image"]]
    names = [cell.replace("\\", "/") for cell in cells]
    rules: list[tuple[str, Callable[[int], str | None]]] = [("path below the folder", lambda i: names[i] or None)]
    for dropped in (1, 2, 3):
        rules.append((f"path without its first {dropped} folder(s)", _shorter(names, dropped)))
    if {"patient", "study"} <= set(columns.roles):
        patients, studies = rows.cells[columns.roles["patient"]], rows.cells[columns.roles["study"]]
        for start in ("files/", ""):
            for suffix in (".jpg", ".png", ".dcm"):
                rules.append(
                    (f"{start}pNN/pPATIENT/sSTUDY/IMAGE{suffix}", _mimic(start, suffix, patients, studies, names))
                )
    sample = [i for i in range(0, len(names), max(1, len(names) // _SAMPLE)) if names[i]]
    best, most = None, 0
    for told, rule in rules:
        hits = sum(_is_file(folder, rule(i)) for i in sample)
        if hits > most:
            best, most = (told, rule), hits
    if best is None or most < len(sample):
        anywhere = _anywhere(folder, names)
        hits = sum(anywhere(i) is not None for i in sample)
        if hits > most:
            best = ("file name or id anywhere below the folder", anywhere)
    if best is None:
        raise DataError(
            f"none of the images of {len(names)} rows is below {folder}: name the folder that the column "
            f"{columns.roles['image']!r} is relative to by --images"
        )
    told, rule = best
    paths = [rule(i) for i in range(len(names))]
    found = [ImageRef(str(folder / path)) if path and _is_file(folder, path) else None for path in paths]
    return found, told


def _is_file(folder: Path, name: str | None) -> bool:
    return bool(name) and os.path.isfile(folder / str(name))


def _shorter(names: Sequence[str], dropped: int) -> Callable[[int], str | None]:
    def rule(i: int) -> str | None:
        parts = names[i].lstrip("/").split("/")
        return "/".join(parts[dropped:]) if len(parts) > dropped else None

    return rule


def _mimic(
    start: str, suffix: str, patients: Sequence[str], studies: Sequence[str], names: Sequence[str]
) -> Callable[[int], str | None]:
    def rule(i: int) -> str | None:
        p, s = patients[i], studies[i]
        return f"{start}p{p[:2]}/p{p}/s{s}/{stem(names[i])}{suffix}" if p and s and names[i] else None

    return rule


def _anywhere(folder: Path, names: Sequence[str]) -> Callable[[int], str | None]:
    """By file name, or by id; a name that is there several times is told apart by the folders before it, or not used."""
    index: dict[str, list[str]] = {}
    for root, _, files in os.walk(folder):
        for file in files:
            path = os.path.relpath(os.path.join(root, file), folder).replace(os.sep, "/")
            index.setdefault(file, []).append(path)
            if stem(file) != file:
                index.setdefault(stem(file), []).append(path)

    def rule(i: int) -> str | None:
        parts = names[i].split("/")
        places = index.get(parts[-1]) or index.get(stem(parts[-1])) or []
        places = [p for p in places if os.path.splitext(p)[1].lower() in (*IMAGE_SUFFIXES, "") or p.endswith(parts[-1])]
        for depth in range(2, len(parts) + 1):
            if len(places) <= 1:
                break
            places = [p for p in places if p.split("/")[-depth:-1] == parts[-depth:-1]]
        return places[0] if len(places) == 1 else None

    return rule
