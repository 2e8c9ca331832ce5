"""A table without image names beside a folder of DICOM files, as a RIS and a PACS export them: joined by what the headers say.

Legend: N rows, M images.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mc_core.errors import DataError
from mc_core.pool import map_items
from mc_medical.data.columns import ColumnOptions, Columns
from mc_medical.data.image_ref import ImageRef
from mc_medical.data.tables import Rows

_TAGS = ["SOPInstanceUID", "StudyInstanceUID", "AccessionNumber", "PatientID", "ViewPosition", "Modality"]


def join_dicom_folder(
    rows: Rows, columns: Columns, folder: Path, options: ColumnOptions, where: str, *, processes: int = 0
) -> tuple[Rows, Columns, list[ImageRef | None], str]:
    """A row for each image below ``folder`` whose study the table names, by accession number or study UID.

    Patient and view come from the table where it has them, else from the headers.

    Raises:
        DataError: the table names no studies, or the folder holds none of them.
    """
    if "study" not in columns.roles:
        raise DataError(
            f"{where}: no column of images among {', '.join(rows.names[:12])}: call it 'image', name it with --column.image, or "
            "give a column of accession numbers or study UIDs and a folder of DICOM files by --images"
        )
    paths = sorted(os.path.join(root, file) for root, _, files in os.walk(folder) for file in files)
    headers = [found for found in map_items(read_header, paths, processes=processes) if found is not None]
    studies = rows.cells[columns.roles["study"]]
    by, zeros, most = "", False, 0
    for tag in ("AccessionNumber", "StudyInstanceUID"):
        for short in (False, True):  # a spreadsheet takes leading zeros from numbers
            place_of = _places(studies, short)
            hits = sum(_key(header[tag], short) in place_of for header in headers)
            if hits > most:
                by, zeros, most = tag, short, hits
    place_of = _places(studies, zeros)
    matched = [(place_of[key], header) for header in headers if by and (key := _key(header[by], zeros)) in place_of]
    if not matched:
        raise DataError(
            f"{where}: none of the studies in the column {columns.roles['study']!r} is among the {len(headers)} DICOM files below "
            f"{folder}, neither by accession number nor by study UID; name a column of images by --column.image"
        )
    cells = {name: [column[i] for i, _ in matched] for name, column in rows.cells.items()}
    told = f"DICOM files whose {by} is in the column {columns.roles['study']!r}{', leading zeros apart' * zeros}"
    for role, tag in (("patient", "PatientID"), ("view", "ViewPosition"), ("modality", "Modality")):
        if role not in columns.roles:
            cells[f"{role} (DICOM {tag})"] = [header[tag] for _, header in matched]
    roles = dict(columns.roles)
    for role, tag in (("patient", "PatientID"), ("view", "ViewPosition"), ("modality", "Modality")):
        roles.setdefault(role, f"{role} (DICOM {tag})")
    missing = sorted(set(place_of.values()) - {i for i, _ in matched})
    bad = [*rows.bad, *(f"{rows.unit} {rows.numbers[i]}: no DICOM file of the study" for i in missing)]
    joined = Rows(tuple(cells), cells, [rows.numbers[i] for i, _ in matched], unit=rows.unit, bad=bad)
    refs: list[ImageRef | None] = [ImageRef(header["path"]) for _, header in matched]
    return joined, Columns(roles, columns.labels), refs, told


def _places(studies: Sequence[str], short: bool) -> dict[str, int]:
    """Row of each study, the first where a study has several."""
    return {_key(cell, short): i for i, cell in reversed(list(enumerate(studies))) if cell}


def _key(study: str, short: bool) -> str:
    return study.lstrip("0") or study if short else study


def read_header(path: str) -> dict[str, str] | None:
    """What joins an image to a table; None for a file that is no DICOM."""
    import pydicom

    from mc_medical.data.dicom import quiet

    try:
        with open(path, "rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
            file.seek(0)
            with quiet():
                dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
                found = {tag: str(dataset.get(tag, "") or "").strip() for tag in _TAGS}
    except Exception:  # a damaged file may raise anything; it is no image of any study
        return None
    return {**found, "path": path}
