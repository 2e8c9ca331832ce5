"""Real radiographs, notes and reports: read end to end, where MC_DATA names their folder."""

from __future__ import annotations

import csv
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.pixels import apply_windowing

from mc_core.errors import BadSampleError
from mc_medical.data.columns import ColumnOptions
from mc_medical.data.image_config import ImageOptions
from mc_medical.data.pixels import PixelStore
from mc_medical.data.radiograph import read_radiograph
from mc_medical.data.reports import ReportOptions, report_text, sections
from mc_medical.data.splits import check_splits, cross_split_duplicates
from mc_medical.data.studies import open_studies

pytestmark = pytest.mark.skipif("MC_DATA" not in os.environ, reason="MC_DATA names no folder of real data")


def place(name: str) -> Path:
    path = Path(os.environ["MC_DATA"]) / "medical" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@pytest.mark.parametrize(("name", "view", "bits"), [("RG1_J2KI.dcm", "PA", 15), ("RG3_J2KI.dcm", "AP", 10)])
def test_real_cr_files_are_inverted_once(name, view, bits):
    pytest.importorskip("openjpeg")
    path = place("dicom") / name
    found = read_radiograph(path)
    dataset = pydicom.dcmread(path)
    windowed = apply_windowing(dataset.pixel_array, dataset) / ((1 << bits) - 1)
    np.testing.assert_allclose(found.pixels, 1 - windowed, atol=1e-6)
    assert (found.view, found.bits, found.modality) == (view, bits, "CR")
    mirrored = "mirrored: rows run to the patient's right"  # the letter R in the second one reads backwards
    assert (mirrored in found.notes) == (name == "RG3_J2KI.dcm")
    if name == "RG1_J2KI.dcm":  # the spine is brighter than the lungs beside it
        middle = found.pixels[400:1200]
        assert middle[:, 880:960].mean() > middle[:, 400:600].mean() + 0.1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("CT_small.dcm", "modality CT, wanted is CR, DX, RG"),
        ("MR_small.dcm", "modality MR, wanted is CR, DX, RG"),
        ("waveform_ecg.dcm", "DICOM without pixels (modality ECG)"),
        ("US1_J2KI.dcm", "modality US, wanted is CR, DX, RG"),
        ("liver.dcm", "modality SEG, wanted is CR, DX, RG"),
    ],
)
def test_real_files_of_other_kinds_are_one_line(name, reason):
    with pytest.raises(BadSampleError) as caught:
        read_radiograph(place("dicom") / name, name=name)
    assert str(caught.value) == f"{name}: {reason}"


def test_colour_and_frames_of_real_files():
    with pytest.raises(BadSampleError, match=r"colour \(YBR_ICT, 3 samples per pixel\)"):
        read_radiograph(place("dicom") / "US1_J2KI.dcm", ImageOptions(modalities=("US",)))
    with pytest.raises(BadSampleError, match="3 frames; a radiograph has one"):
        read_radiograph(place("dicom") / "liver.dcm", ImageOptions(modalities=("SEG",)))


def test_the_covid_tar_end_to_end():
    studies = open_studies(place("covid-cxr-notes.tar"), columns=ColumnOptions(classes="finding"))
    assert (len(studies), len(np.unique(studies.patients))) == (187, 108)
    assert studies.dropped == {"another modality": 49, "view lateral": 32}
    assert studies.columns["report"] == "column 'clinical_notes'"
    place_of = studies.label_names.index("COVID-19")
    assert (studies.labels[:, place_of] == 1).sum() == 105
    divided = studies.divided((0.7, 0.1, 0.2))
    check_splits(divided)
    store = PixelStore.build(divided)
    assert store.good.tolist() == list(range(187))
    assert not store.dropped
    assert 60 < store.pixels.mean() < 160
    assert cross_split_duplicates(divided, store).images == 0


def test_the_hannover_tar_has_patients_and_no_reports():
    studies = open_studies(place("hannover-cxr.tar"))
    assert (len(studies), len(np.unique(studies.patients))) == (150, 47)
    assert studies.columns["report"] == "none: for evaluation by labels alone"
    assert set(studies.views.tolist()) == {"AP", "PA"}
    assert PixelStore.build(studies.take(range(20))).readable.all()


def test_open_i_reports_are_sectioned(tmp_path):
    rows = pq.read_table(place("openi-reports.parquet")).to_pylist()
    names = ("indication", "comparison", "findings", "impression")
    whole = ["\r\n\r\n".join(f"  {name.upper()}: {row[name]}" for name in names if row[name]) for row in rows]
    for row, text in zip(rows, whole, strict=True):
        found = sections(text)
        for name in ("findings", "impression"):
            if row[name] and row[name].strip():
                assert found[name].startswith(" ".join(row[name].split())[:12])
    texts = [report_text(text) for text in whole]
    assert sum(not text for text in texts) < 25
    assert not any("XXXX" in text for text in texts)
    stated = [
        t
        for row, t in zip(rows, texts, strict=True)
        if row["impression"] and "recommend" not in row["impression"].lower()
    ]
    assert np.mean([len(text) for text in stated]) > 30
    findings = [report_text(text, ReportOptions(section="findings-first")) for text in whole]
    assert np.mean([len(text) for text in findings]) > 2 * np.mean([len(text) for text in texts])


def test_covid_notes_as_a_csv_with_files(tmp_path):
    """The same cohort as its source is laid out: a table beside a folder of images."""
    rows = []
    with tarfile.open(place("covid-cxr-notes.tar")) as archive:
        for member in archive.getmembers()[:120]:
            file = archive.extractfile(member)
            assert file is not None
            data = file.read()
            if member.name.endswith(".json"):
                note = json.loads(data)
                rows.append(
                    {
                        "patientid": note["patient"],
                        "finding": note["finding"],
                        "view": note["view"],
                        "modality": note["modality"],
                        "folder": "images",
                        "filename": member.name.replace(".json", ".jpg"),
                        "clinical_notes": note["clinical_notes"],
                    }
                )
            else:
                (tmp_path / "images").mkdir(exist_ok=True)
                (tmp_path / "images" / member.name).write_bytes(data)
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = open_studies(tmp_path / "metadata.csv", images=tmp_path / "images")
    tar = open_studies(place("covid-cxr-notes.tar"))
    assert table.reports == tar.reports[: len(table)]
    assert (table.patients == tar.patients[: len(table)]).all()
    np.testing.assert_array_equal(PixelStore.build(table).pixels, PixelStore.build(tar.take(range(len(table)))).pixels)
