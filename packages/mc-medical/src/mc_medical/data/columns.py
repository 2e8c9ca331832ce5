"""Which column of a table of studies is what: names of MIMIC-CXR, CheXpert, Open-i, PadChest, NIH and of common exports.

Imports no torch. What is taken for what is always told (:attr:`Studies.columns`); nothing is guessed from the cells but whether
a report cell is a file's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mc_core.engine.config import StrictModel
from mc_core.errors import ConfigError, closest
from mc_medical.labels import OBSERVATIONS

_USUAL = {
    "image": "image image_path path path_to_image path_to_dcm dicom_path file_path filepath filename file_name file image_file "
    "image_index imageid image_id dicom_id img img_path sop_instance_uid sopinstanceuid",
    "report": "report report_text text clinical_notes note notes radiology_report report_path narrative reporttext",
    "findings": "findings section_findings findings_text befund",
    "impression": "impression section_impression conclusion impression_text beurteilung",
    "last_paragraph": "last_paragraph",
    "patient": "patient_id patient patientid subject_id subject deid_patient_id patient_key",
    "study": "study_id study studyid accession_number accessionnumber accession study_instance_uid studyinstanceuid uid exam_id",
    "view": "viewposition view_position view projection projections ap/pa ap_pa",
    "lateral": "frontal/lateral frontal_lateral",
    "split": "split fold partition subset dataset_split",
    "modality": "modality",
}


class ColumnOptions(StrictModel):
    """Names of columns, where the usual ones are not those meant. What is taken for what is always told."""

    image: str | None = None
    """Column of image paths, file names or ids; default: `image`, `Path`, `dicom_id`, `filename` …"""
    report: str | None = None
    """Column of report texts, or of names of text files; default: `report`, `clinical_notes` …, else `findings` and
    `impression`."""
    patient: str | None = None
    """Column of patient ids; default: `patient_id`, `subject_id` …, else read from CheXpert's and MIMIC's paths."""
    study: str | None = None
    """Column of study ids; default: `study_id`, `AccessionNumber`, `uid` …, else read from CheXpert's and MIMIC's paths;
    without one each image is a study."""
    view: str | None = None
    """Column of views; default: `ViewPosition`, `view`, `projection`, CheXpert's `AP/PA` and `Frontal/Lateral`."""
    split: str | None = None
    """Column of splits; default: `split`."""
    labels: tuple[str, ...] | None = None
    """Columns of labels in {1, 0, -1, blank}; default: those of CheXpert's observations that are there. Empty: none."""
    classes: str | None = None
    """Column of class names, several separated by `|`, as in NIH's `Finding Labels`: each name becomes a label."""

    def among(self, names: Sequence[str]) -> ColumnOptions:
        """Without the columns that are not in this table: they are in another one."""
        plain = {plain_name(name) for name in names}
        gone: dict[str, None] = {
            role: None for role, name in self if isinstance(name, str) and plain_name(name) not in plain
        }
        if self.labels and not {plain_name(name) for name in self.labels} <= plain:
            gone["labels"] = None
        return self.model_copy(update=gone)


@dataclass(frozen=True)
class Columns:
    """What was recognised: column names by their role, and the labels' columns with the names they go by."""

    roles: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)

    def told(self) -> dict[str, str]:
        """For people: role → column."""
        found = {role: f"column {name!r}" for role, name in self.roles.items()}
        if self.labels:
            found["labels"] = f"{len(self.labels)} columns: {', '.join(self.labels.values())}"
        return found


def recognise(names: Sequence[str], options: ColumnOptions, where: str) -> Columns:
    """The roles of a table's columns.

    Args:
        names: of the columns.
        options: names that the user gave; they win.
        where: the source, for messages.

    Raises:
        ConfigError: a given name is not there.

    >>> recognise(["subject_id", "study_id", "dicom_id", "ViewPosition"], ColumnOptions(), "t.csv").roles
    {'image': 'dicom_id', 'patient': 'subject_id', 'study': 'study_id', 'view': 'ViewPosition'}
    """
    plain = {plain_name(name): name for name in reversed(names)}
    roles: dict[str, str] = {}
    for role, usual in _USUAL.items():
        given = getattr(options, role, None)
        if given is not None:
            roles[role] = _named(given, names, role, where)
            continue
        found = next((plain[name] for name in usual.split() if name in plain), None)
        if found is not None and found not in roles.values():
            roles[role] = found
    if options.classes is not None:
        roles["classes"] = _named(options.classes, names, "classes", where)
    return Columns(roles, _labels(names, options, where, roles))


def plain_name(name: str) -> str:
    """
    >>> plain_name("Patient ID"), plain_name(" Frontal/Lateral")
    ('patient_id', 'frontal/lateral')
    """
    return "_".join(name.strip().lower().replace("-", "_").split())


def observation(name: str) -> str | None:
    """The observation of CheXpert that a column is named after, or None.

    >>> observation("pleural_effusion"), observation("Airspace Opacity"), observation("age")
    ('Pleural Effusion', 'Lung Opacity', None)
    """
    plain = " ".join(name.lower().replace("_", " ").split())
    plain = {"airspace opacity": "lung opacity", "effusion": "pleural effusion"}.get(plain, plain)
    return next((one for one in OBSERVATIONS if one.lower() == plain), None)


def _named(given: str, names: Sequence[str], role: str, where: str) -> str:
    found = given if given in names else {plain_name(name): name for name in names}.get(plain_name(given))
    if found is None:
        raise ConfigError(f"{where}: no column {given!r} for the {role}, did you mean {closest(given, names)}?")
    return found


def _labels(names: Sequence[str], options: ColumnOptions, where: str, roles: dict[str, str]) -> dict[str, str]:
    if options.labels is not None:
        found = [_named(name, names, "labels", where) for name in options.labels]
        return {name: observation(name) or name for name in found}
    labels: dict[str, str] = {}
    for name in names:
        meant = observation(name)
        if meant is not None and meant not in labels.values() and name not in roles.values():
            labels[name] = meant
    return labels
