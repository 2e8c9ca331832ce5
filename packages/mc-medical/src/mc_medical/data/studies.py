"""From a table of studies, or an archive of images with notes, to a cohort.

Legend: N rows.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_core.privacy import Salt
from mc_medical.data.class_names import class_labels
from mc_medical.data.cohort import Studies
from mc_medical.data.columns import ColumnOptions, Columns, recognise
from mc_medical.data.image_config import ImageOptions
from mc_medical.data.image_paths import find_images
from mc_medical.data.image_ref import ImageRef
from mc_medical.data.joins import join_table, join_text_files
from mc_medical.data.radiograph import FRONTAL, view_name
from mc_medical.data.reports import ReportOptions, report_text, text_key
from mc_medical.data.splits import SPLITS
from mc_medical.data.tables import Rows, decoded, read_table
from mc_medical.labels import read_labels

_PUBLIC_SALT = b"mc-medical: not a secret"
_SPLITS = {
    **dict.fromkeys(("train", "training", "trn", "pretrain"), "train"),
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "eval"), "test"),
}
_RADIOGRAPHS = ("x-ray", "xray", "x ray", "xr", "radiograph", "radiography", "cxr", "plain film")
_IN_PATH = (
    re.compile(r"(?:^|/)(patient\d+)/(study\d+)/"),  # CheXpert
    re.compile(r"(?:^|/)p(\d{8})/s(\d{8})/"),  # MIMIC-CXR
)


def open_studies(
    source: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    texts: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    splits: str | os.PathLike[str] | None = None,
    columns: ColumnOptions = ColumnOptions(),  # noqa: B008 - frozen
    reports: ReportOptions = ReportOptions(),  # noqa: B008 - frozen
    image: ImageOptions = ImageOptions(),  # noqa: B008 - frozen
    patient_ids: bool = True,
    need_reports: bool = True,
    salt: bytes | Salt | None = None,
) -> Studies:
    """The cohort of a table, or of a tar of images with notes. Images are not opened yet.

    Understood without further words: a table with ``image``, ``report``, ``patient_id``, ``study_id``; MIMIC-CXR-JPG's
    metadata with ``files/`` of images and of reports; CheXpert's ``train.csv``; CheXpert Plus; Open-i's projections with
    ``texts`` its reports; PadChest; covid-chestxray; a RIS export with accession numbers beside a folder of DICOM files; tars as
    WebDataset writes them. What was taken for what is in :attr:`Studies.columns`. Rows that cannot be used are left out, counted
    in :attr:`Studies.dropped` and shown by an example.

    Args:
        source: ``.csv``, ``.tsv`` (also ``.gz``), ``.jsonl``, ``.parquet``, or ``.tar``.
        images: folder that image cells are relative to; default: that of the table.
        texts: folder of text files, or another table with reports.
        labels: another table with labels, such as ``mimic-cxr-2.0.0-chexpert.csv.gz``.
        splits: another table with splits, such as ``mimic-cxr-2.0.0-split.csv.gz``.
        columns: names of columns, where the usual ones are not those meant.
        reports: what of a report is kept.
        image: which images are wanted, and how they are read.
        patient_ids: whether patients must be known; without, each study counts as a patient where they are not.
        need_reports: leave out rows without a report, where the data have reports.
        salt: secret for hashes of ids; default: a public one, good for grouping, not for hiding. Two tables opened with the
            same salt have the same hashes for the same ids.

    Raises:
        DataError: no table, no image, no patient column, nothing left.
        ConfigError: a column that was named is not there, or a column of labels that holds none.
    """
    rows = read_table(source)
    others = [
        (path, what, read_table(path))
        for path, what in ((texts, "report"), (labels, "labels"), (splits, "split"))
        if path is not None and not Path(path).is_dir()
    ]
    elsewhere = [name for _, _, table in others for name in table.names]
    # a name that no table has is refused here, with what it may have meant
    asked = columns.among(rows.names) if columns.among([*rows.names, *elsewhere]) == columns else columns
    found = recognise(rows.names, asked, str(source))
    told = found.told()
    folder = Path(images) if images is not None else Path(source).parent
    drops = _Drops(rows.unit)
    if rows.images is not None:
        refs: list[ImageRef | None] = list(rows.images)
        told["image"] = "members of the archive"
    elif "image" in found.roles:
        refs, rule = find_images(rows, found, folder)
        told["image"] += f", {rule}"
    else:
        from mc_medical.data.dicom_folder import join_dicom_folder

        rows, found, refs, rule = join_dicom_folder(rows, found, folder, columns, str(source))
        told |= {"image": rule, **{role: f"column {name!r}" for role, name in found.roles.items()}}
    tables = [(rows, found)]
    for path, what, table in others:
        other, theirs, by = join_table(rows, found, table, columns, path)
        tables.insert(0, (other, theirs))
        told[what] = by
    for line in (line for table, _ in tables for line in table.bad):
        drops.count(line.split(": ", 1)[1], line)
    raw = _texts(tables, rows, found, folder, None if texts is None or not Path(texts).is_dir() else Path(texts), told)
    patients, studies = _ids(rows, found, refs, patient_ids, told, str(source))
    views = _views(rows, found)
    split_cells = _cells(tables, "split")
    label_names, label_rows = _labels(tables, columns, drops, rows, str(source))
    keep = _kept(rows, found, refs, raw, patients, views, split_cells, image, drops, need_reports)
    if not keep:
        worst = "; ".join(drops.examples.values())
        raise DataError(f"{source}: none of {len(rows)} {rows.unit}s can be used ({worst[:300]})")
    cleaned = {text: report_text(text, reports) for text in {raw[i] for i in keep}}
    if need_reports and any(cleaned.values()):
        empty = [i for i in keep if not cleaned[raw[i]]]
        for i in empty:
            drops.add("nothing of the report is left to train on", rows.numbers[i])
        keep = [i for i in keep if cleaned[raw[i]]]
    hasher = salt if isinstance(salt, Salt) else Salt(salt or _PUBLIC_SALT)
    number = _Numbers(hasher)
    study_ids = np.array([number("study", f"{patients[i]}\0{studies[i]}") for i in keep], dtype=np.int64)
    kept_texts = tuple(cleaned[raw[i]] for i in keep)
    keys = {text: text_key(text) for text in set(kept_texts)}
    return Studies(
        images=tuple(ref for i in keep if (ref := refs[i]) is not None),
        reports=kept_texts,
        patients=np.array([number("patient", patients[i]) for i in keep], dtype=np.int64),
        studies=study_ids,
        text_ids=np.array([keys[t] if t else s for t, s in zip(kept_texts, study_ids, strict=True)], dtype=np.int64),
        views=np.array([views[i] for i in keep], dtype=np.str_),
        splits=np.array([_SPLITS.get(split_cells[i].lower(), "") for i in keep], dtype=f"<U{max(map(len, SPLITS))}"),
        rows=np.array([rows.numbers[i] for i in keep], dtype=np.int64),
        label_names=label_names,
        labels=label_rows[keep],
        options=image,
        unit=rows.unit,
        columns=told,
        dropped=drops.counts,
        examples=drops.examples,
    )


@dataclass
class _Drops:
    """Reasons with counts and the first example of each."""

    unit: str
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, number: int) -> None:
        self.count(reason, f"{self.unit} {number}: {reason}")

    def count(self, reason: str, line: str) -> None:
        self.counts[reason] += 1
        self.examples.setdefault(reason, line)


class _Numbers:
    """Salted hashes, each id hashed once."""

    def __init__(self, salt: Salt) -> None:
        self.salt = salt
        self.known: dict[tuple[str, str], int] = {}

    def __call__(self, purpose: str, raw: str) -> int:
        key = purpose, raw
        if key not in self.known:
            self.known[key] = self.salt.number(purpose, raw)
        return self.known[key]


def _cells(tables: Sequence[tuple[Rows, Columns]], role: str) -> Sequence[str]:
    """The cells of a role from the first table that has it; empty ones otherwise."""
    for rows, columns in tables:
        if role in columns.roles:
            return rows.cells[columns.roles[role]]
    return [""] * len(tables[0][0])


def _texts(
    tables: Sequence[tuple[Rows, Columns]],
    rows: Rows,
    columns: Columns,
    folder: Path,
    text_folder: Path | None,
    told: dict[str, str],
) -> list[str]:
    """The raw report of each row, empty where there is none."""
    for table, theirs in tables:
        if "report" in theirs.roles:
            cells = table.cells[theirs.roles["report"]]
            some = [cell for cell in cells if cell][:20]
            if some and all(re.fullmatch(r"\S.{0,400}\.txt", cell, re.IGNORECASE) for cell in some):
                told["report"] += ", names of text files"
                base = text_folder or folder
                return _read_files([str(base / cell) if cell else "" for cell in cells])
            return list(cells)
        parts = [role for role in ("findings", "impression", "last_paragraph") if role in theirs.roles]
        if parts:
            told.setdefault("report", " and ".join(theirs.roles[role] for role in parts))
            return [_composed(table, theirs, parts, i) for i in range(len(table))]
    images = rows.cells.get(columns.roles.get("image", ""), [""] * len(rows))
    files = join_text_files(rows, columns, text_folder or folder, images)
    if files is None:
        if text_folder is not None:
            raise DataError(
                f"{text_folder} holds no text file for any row; they are looked for as STUDY.txt, IMAGE.txt and as MIMIC-CXR "
                "lays them out"
            )
        told["report"] = "none: for evaluation by labels alone"
        return [""] * len(rows)
    told["report"] = files[1]
    return _read_files(files[0])


def _composed(table: Rows, columns: Columns, parts: Sequence[str], i: int) -> str:
    cells = [(role, table.cells[columns.roles[role]][i]) for role in parts]
    headed = [f"{role.upper()}: {cell}" for role, cell in cells if cell and role != "last_paragraph"]
    return "\n\n".join(headed) or next((cell for _, cell in cells if cell), "")


def _read_files(paths: Sequence[str]) -> list[str]:
    known = {"": ""}
    for path in paths:
        if path not in known:
            try:
                known[path] = decoded(Path(path).read_bytes())
            except OSError:
                known[path] = ""
    return [known[path] for path in paths]


def _ids(
    rows: Rows, columns: Columns, refs: Sequence[ImageRef | None], needed: bool, told: dict[str, str], where: str
) -> tuple[list[str], list[str]]:
    """Raw patient and study of each row; patients are empty where unknown."""
    names = rows.cells.get(columns.roles.get("image", ""), [""] * len(rows))
    in_path = [next((m for p in _IN_PATH if (m := p.search(name.replace("\\", "/")))), None) for name in names]
    patients = list(rows.cells.get(columns.roles.get("patient", ""), []))
    if not patients:
        if any(in_path):
            patients = [match[1] if match else "" for match in in_path]
            told["patient"] = "folders in the image paths"
        elif needed:
            raise DataError(
                f"{where}: no column of patients among {', '.join(rows.names[:12])}: name it with --column.patient, or say "
                "--no-patient-ids, by which images of one person may be trained on and measured with"
            )
        else:
            patients = [""] * len(rows)
            told["patient"] = "not known: each study counts as one"
    studies = list(rows.cells.get(columns.roles.get("study", ""), []))
    if not studies and any(in_path):
        studies = [match[2] if match else "" for match in in_path]
        told["study"] = "folders in the image paths"
    elif not studies:
        told["study"] = "not known: each image counts as one"
    studies = studies or [""] * len(rows)
    own = [study or f"image {number}" for study, number in zip(studies, rows.numbers, strict=True)]
    if not needed:
        patients = [patient or study for patient, study in zip(patients, own, strict=True)]
    return patients, own


def _views(rows: Rows, columns: Columns) -> list[str]:
    views = [view_name(cell) for cell in rows.cells.get(columns.roles.get("view", ""), [""] * len(rows))]
    if "lateral" in columns.roles:
        sides = [view_name(cell) for cell in rows.cells[columns.roles["lateral"]]]
        views = [side if side == "lateral" else view or side for view, side in zip(views, sides, strict=True)]
    return views


def _labels(
    tables: Sequence[tuple[Rows, Columns]], options: ColumnOptions, drops: _Drops, rows: Rows, where: str
) -> tuple[tuple[str, ...], np.ndarray]:
    for table, columns in tables:
        if "classes" in columns.roles:
            return class_labels(table.cells[columns.roles["classes"]], columns.roles["classes"])
        if not columns.labels:
            continue
        values = []
        for name, label in columns.labels.items():
            column = read_labels({label: table.cells[name]})
            told, unknown = sum(bool(cell) for cell in table.cells[name]), sorted(column.refused)
            if len(unknown) * 2 > told:
                raise ConfigError(
                    f"{where}: the column {name!r} is none of labels: {len(unknown)} of {told} cells are none of 1, 0, -1, "
                    "blank; leave it out of --column.labels, or name it as --column.classes"
                )
            for place in unknown:
                drops.add(f"label {label!r} is none of 1, 0, -1, blank: taken as not mentioned", rows.numbers[place])
            values.append(column.values[:, 0])
        return tuple(columns.labels.values()), np.stack(values, axis=1)
    return (), np.zeros((len(rows), 0), dtype=np.float32)


def _kept(
    rows: Rows,
    columns: Columns,
    refs: Sequence[ImageRef | None],
    texts: Sequence[str],
    patients: Sequence[str],
    views: Sequence[str],
    splits: Sequence[str],
    options: ImageOptions,
    drops: _Drops,
    need_reports: bool,
) -> list[int]:
    """Rows that can be used; the others are counted, each under its first reason."""
    need_reports = need_reports and any(texts)
    wanted = {one.lower() for one in options.modalities} | set(_RADIOGRAPHS)
    modalities = rows.cells.get(columns.roles.get("modality", ""), [""] * len(rows))
    crossing = _crossing(patients, splits)
    seen: set[ImageRef] = set()
    keep = []
    for i, number in enumerate(rows.numbers):
        ref = refs[i]
        if ref is None:
            reason = "no such image"
        elif modalities[i] and modalities[i].lower() not in wanted:
            reason = "another modality"
        elif not patients[i]:
            reason = "no patient id"
        elif options.views == "frontal" and views[i] and views[i] not in FRONTAL:
            reason = f"view {views[i]}"
        elif splits[i] and splits[i].lower() not in _SPLITS:
            reason = "a split other than train, validation, test"
        elif need_reports and not texts[i]:
            reason = "missing report"
        elif patients[i] in crossing:
            reason = "patient in several splits"
        elif ref in seen:
            reason = "the same image again"
        else:
            seen.add(ref)
            keep.append(i)
            continue
        drops.add(reason, number)
    return keep


def _crossing(patients: Sequence[str], splits: Sequence[str]) -> set[str]:
    """Patients in several splits."""
    of: dict[str, set[str]] = {}
    for patient, split in zip(patients, splits, strict=True):
        if patient and split:
            of.setdefault(patient, set()).add(_SPLITS.get(split.lower(), ""))
    crossing = {patient for patient, several in of.items() if len(several - {""}) > 1}
    if 10 * len(crossing) > len(of):
        raise DataError(
            f"{len(crossing)} of {len(of)} patients are in several splits: these were not divided by patient; give each patient "
            "one split, or leave the column out to divide anew"
        )
    return crossing
