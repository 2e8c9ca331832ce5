"""Phantom studies as files: images in DICOM and PNG, a table of reports and labels, and the truth about what was drawn.

Everything is a function of (seed, patient): the first patients are the same however many there are. No number measured on phantoms
says how well anything works on people.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mc_core.errors import ConfigError
from mc_core.files import write_atomic
from mc_core.random import derive_seed
from mc_medical.labels import COMPETITION, OBSERVATIONS
from mc_medical.phantom.anatomy import Chest, draw_exposure, draw_person, older
from mc_medical.phantom.files import Stored, dicom_bytes, png_bytes
from mc_medical.phantom.findings import Finding, draw_finding, paint, prepare
from mc_medical.phantom.reports import Report, write_report

_STREAM = 0xC4E57
_SPLIT_OF = ("train", "train", "test", "train", "validation", "train", "train", "test", "train", "train")
_OTHERS = ("Pneumothorax", "Lung Lesion")
_README = """Phantom chest radiographs with templated reports: drawn by a program, no patient.

studies.csv  one row an image: image, patient_id, study_id, view, split, report, and CheXpert's 14 observations
             (1 there, 0 not there, -1 uncertain, blank not mentioned)
images/      DICOM CR and DX, some MONOCHROME1, and a few 16-bit PNG
truth.csv    one row a finding that was drawn: where it is, in pixels (x to the right, y down, ends not included)

No number measured on these files says how well anything works on people.
"""


@dataclass(frozen=True)
class PhantomFiles:
    """What :func:`write_phantoms` wrote.

    Attributes:
        folder: that holds all of it.
        table: ``studies.csv``, a row for each image.
        images: folder of the image files; the table's paths are relative to ``folder``.
        truth: ``truth.csv``, a row for each finding drawn.
        count: images.
        patients: patients.
    """

    folder: Path
    table: Path
    images: Path
    truth: Path
    count: int
    patients: int


@dataclass(frozen=True)
class PhantomImage:
    """One phantom image with its report.

    Attributes:
        pixels: (S, S) float32 in [0, 1], bones bright.
        view: ``PA`` or ``AP``.
        findings: of the study.
        boxes: for each finding, (x0, y0, x1, y1) in pixels of what it changed; None where it is not drawn.
        report: of the study.
        study: number of the study of this patient, from 0.
        exposure: number of the exposure of this study, from 0.
    """

    pixels: np.ndarray
    view: str
    findings: tuple[Finding, ...]
    boxes: tuple[tuple[int, int, int, int] | None, ...]
    report: Report
    study: int
    exposure: int


def phantom_patient(patient: int, *, size: int = 128, seed: int = 0) -> list[PhantomImage]:
    """All images of one phantom patient, of one to four studies.

    Args:
        patient: number of the patient, from 0.
        size: side of the images, pixels.
        seed: of the cohort.

    >>> images = phantom_patient(3, size=32)
    >>> images[0].pixels.shape, images[0].pixels.dtype.name, images[0].view in ("PA", "AP")
    ((32, 32), 'float32', True)
    """
    rng = np.random.Generator(np.random.Philox(derive_seed(seed, _STREAM, patient)))
    person = draw_person(rng)
    found: list[PhantomImage] = []
    lasting: list[Finding] = []
    for study in range(1 + int(rng.choice(4, p=(0.35, 0.30, 0.20, 0.15)))):
        findings = lasting + [f for f in _draw_findings(rng) if f.name not in {one.name for one in lasting}]
        lasting = [
            f for f in findings if f.name in ("Cardiomegaly", "Lung Lesion") and f.certain and rng.random() < 0.5
        ]
        exposure = draw_exposure(rng)
        report = write_report(findings, rng, view=exposure.view, earlier=study > 0, hazy=exposure.breath < -0.05)
        for number in range(2 if rng.random() < 0.06 else 1):
            shown = exposure if number == 0 else replace(draw_exposure(rng), view=exposure.view)
            chest = Chest(older(person, person.heart + rng.normal(0, 0.004)), shown, size, rng)
            prepare(chest, findings)
            chest.build_lungs()
            boxes = tuple(_box(paint(chest, finding)) if finding.drawn else None for finding in findings)
            found.append(PhantomImage(chest.picture(), shown.view, tuple(findings), boxes, report, study, number))
    return found


def write_phantoms(
    folder: str | os.PathLike[str],
    *,
    patients: int = 540,
    size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomFiles:
    """Write phantom studies: about 2.2 images a patient.

    Args:
        folder: to write to; made where it does not exist.
        patients: how many; about a tenth to choose with and a fifth to measure with, by patient.
        size: side of the images, pixels.
        seed: of the cohort.
        progress: called with (patients done, patients).

    Raises:
        ConfigError: no patient, or images too small to show anything.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = write_phantoms(folder, patients=2, size=32)
    ...     made.patients, made.count >= 2, made.table.name
    (2, True, 'studies.csv')
    """
    if patients < 1 or not 16 <= size <= 2048:
        raise ConfigError(f"patients={patients}, size={size}: take one patient or more, and 16 to 2048 pixels")
    root = Path(folder)
    images = root / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows: list[list[str]] = []
    truths: list[list[str]] = []
    for patient in range(patients):
        some_rows, some_truths = _write_patient(patient, images=images, size=size, seed=seed)
        rows += some_rows
        truths += some_truths
        if progress is not None:
            progress(patient + 1, patients)
    header = ["image", "patient_id", "study_id", "view", "split", "report", *OBSERVATIONS]
    truth_header = ["image", "finding", "kind", "side", "zone", "severity", "said", "x0", "y0", "x1", "y1"]
    write_atomic(root / "truth.csv", _csv(truth_header, truths))
    write_atomic(root / "README.txt", _README)
    write_atomic(root / "studies.csv", _csv(header, rows))
    return PhantomFiles(root, root / "studies.csv", images, root / "truth.csv", len(rows), patients)


def _draw_findings(rng: np.random.Generator) -> list[Finding]:
    """Of one study: often one of the five of the competition alone, sometimes none, sometimes several."""
    kind = rng.random()
    names: list[str] = []
    if kind < 0.52:
        names = [COMPETITION[int(rng.integers(5))]]
    elif kind < 0.62:
        names = [_OTHERS[int(rng.integers(len(_OTHERS)))]]
    elif kind < 0.80:
        every = (*COMPETITION, *_OTHERS)
        names = [every[i] for i in rng.choice(len(every), size=int(rng.integers(2, 4)), replace=False)]
    found = [draw_finding(name, rng) for name in names]
    found = [replace(f, certain=False) if f.severity == 1 and rng.random() < 0.15 else f for f in found]
    if not found and rng.random() < 0.30:
        every = (*COMPETITION, *_OTHERS)
        doubtful = draw_finding(every[int(rng.integers(len(every)))], rng)
        found = [replace(doubtful, severity=1, certain=False, drawn=bool(rng.random() < 0.5))]
    if rng.random() < 0.15:
        found.append(draw_finding("Support Devices", rng))
    return found


def _box(change: np.ndarray) -> tuple[int, int, int, int] | None:
    rows, columns = (np.flatnonzero((change > 0.3).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _write_patient(patient: int, *, images: Path, size: int, seed: int) -> tuple[list[list[str]], list[list[str]]]:
    """Write one patient's images; returns rows of the two tables."""
    name = f"phantom-{patient:05d}"
    rng = np.random.Generator(np.random.Philox(derive_seed(seed, _STREAM, patient, 1)))
    rows, truths = [], []
    for image in phantom_patient(patient, size=size, seed=seed):
        study = f"{name}-s{image.study + 1}"
        stem = f"{study}-{image.exposure + 1}"
        stored = Stored.draw(rng)
        if stored.png:
            path, data = f"images/{stem}.png", png_bytes(image.pixels)
        else:
            path = f"images/{stem}.dcm"
            data = dicom_bytes(
                image.pixels, stored, patient=name, study=study, instance=image.exposure, view=image.view
            )
        (images / Path(path).name).write_bytes(data)
        labels = image.report.labels
        written = [f"{labels[one]:g}" if one in labels else "" for one in OBSERVATIONS]
        rows.append([path, name, study, image.view, _SPLIT_OF[patient % 10], image.report.text, *written])
        for finding, box in zip(image.findings, image.boxes, strict=True):
            if box is not None:
                facts = [finding.name, finding.kind, finding.side, finding.zone, str(finding.severity)]
                truths.append([path, *facts, "certain" if finding.certain else "uncertain", *map(str, box)])
    return rows, truths


def _csv(header: list[str], rows: list[list[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
