"""Other tables beside that of the images: reports, labels, splits, joined by image or study.

Legend: N rows of the first table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mc_core.errors import DataError
from mc_medical.data.columns import ColumnOptions, Columns, recognise
from mc_medical.data.image_ref import IMAGE_SUFFIXES
from mc_medical.data.tables import Rows

_SAMPLE = 200


def join_table(
    rows: Rows, columns: Columns, table: Rows, options: ColumnOptions, where: str | os.PathLike[str]
) -> tuple[Rows, Columns, str]:
    """The cells of another table beside the first one's rows; empty where it has no row for one.

    Args:
        rows: N of them.
        columns: what is what in them.
        table: the other one.
        options: names that the user gave.
        where: path of the other table, for messages.

    Returns:
        The other table's cells in the order of ``rows``, what was recognised in it, and what they were joined by.

    Raises:
        DataError: nothing to join by, or no row in common.
    """
    found = recognise(table.names, options.among(table.names), str(where))
    for role in ("image", "study", "patient"):
        if role not in columns.roles or role not in found.roles:
            continue
        theirs = {_key(cell, role): place for place, cell in reversed(list(enumerate(table.cells[found.roles[role]])))}
        place_of = [theirs.get(_key(cell, role)) if cell else None for cell in rows.cells[columns.roles[role]]]
        if any(place is not None for place in place_of):
            cells = {
                name: ["" if place is None else column[place] for place in place_of]
                for name, column in table.cells.items()
            }
            joined = Rows(table.names, cells, rows.numbers, unit=rows.unit, bad=table.bad)
            return joined, found, f"{Path(where).name} by {role} ({columns.roles[role]} = {found.roles[role]})"
    raise DataError(
        f"{where} has no row in common with the table of images by image, study or patient; its columns are "
        f"{', '.join(table.names[:12])}"
    )


def join_text_files(
    rows: Rows, columns: Columns, folder: Path, image_cells: Sequence[str]
) -> tuple[list[str], str] | None:
    """Names of text files below ``folder``, one for each row (empty where there is none), and how they were found.

    Looked for as MIMIC-CXR lays them out, by study, and beside the image; the rule that finds most is taken.
    """
    patient = rows.cells.get(columns.roles.get("patient", ""), [""] * len(rows))
    study = rows.cells.get(columns.roles.get("study", ""), [""] * len(rows))
    rules: Mapping[str, Sequence[str]] = {
        "files/pNN/pPATIENT/sSTUDY.txt": [
            f"files/p{p[:2]}/p{p}/s{s}.txt" if p and s else "" for p, s in zip(patient, study, strict=True)
        ],
        "pNN/pPATIENT/sSTUDY.txt": [
            f"p{p[:2]}/p{p}/s{s}.txt" if p and s else "" for p, s in zip(patient, study, strict=True)
        ],
        "STUDY.txt": [f"{s}.txt" if s else "" for s in study],
        "IMAGE.txt": [f"{stem(cell)}.txt" if cell else "" for cell in image_cells],
        "PATIENT/STUDY.txt": [f"{p}/{s}.txt" if p and s else "" for p, s in zip(patient, study, strict=True)],
    }
    step = max(1, len(rows) // _SAMPLE)
    hits = {rule: sum(bool(n) and (folder / n).is_file() for n in names[::step]) for rule, names in rules.items()}
    best = max(hits, key=lambda rule: hits[rule])
    if not hits[best]:
        return None
    known: dict[str, str] = {}
    for name in rules[best]:
        if name not in known:
            path = folder / name
            known[name] = str(path) if name and path.is_file() else ""
    return [known[name] for name in rules[best]], f"text files {best}"


def stem(cell: str) -> str:
    """A path without the suffix of an image.

    >>> stem("a/b.jpg"), stem("1.2.840.5")
    ('a/b', '1.2.840.5')
    """
    base, suffix = os.path.splitext(cell)
    return base if suffix.lower() in IMAGE_SUFFIXES else cell


def _key(cell: str, role: str) -> str:
    if role == "image":
        return stem(cell).rsplit("/", 1)[-1]
    return re.sub(r"^[sp](?=\d+$)", "", cell)  # s50414267 of MIMIC's reports is 50414267 of its tables
