"""Cohorts from tables as hospitals and archives write them; what cannot be used is counted, never who."""

from __future__ import annotations

import csv
import gzip
import io
import json
import runpy
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mc_core.errors import ConfigError, DataError
from mc_core.privacy import Salt
from mc_medical.data.columns import ColumnOptions
from mc_medical.data.image_config import ImageOptions
from mc_medical.data.reports import ReportOptions, text_key
from mc_medical.data.studies import open_studies

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_radiographs.py"))))

PNG = write.picture(write.chest(top=255).astype(np.uint8))


def table(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    data = file.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def simple(folder: Path, **columns: list) -> Path:
    """A table with an image for each row, which are made where they are not there."""
    count = next((len(values) for values in columns.values() if values is not None), 4)
    base = {
        "image": [f"i{n}.png" for n in range(count)],
        "patient_id": [f"SECRET{n // 2}" for n in range(count)],
        "study_id": [f"s{n}" for n in range(count)],
        "report": [f"IMPRESSION: Finding number {n} seen." for n in range(count)],
    } | columns
    base = {name: values for name, values in base.items() if values is not None}
    for name in base.get("image", []):
        if name.endswith(".png") and not (folder / name).exists() and "missing" not in name:
            write.save(folder / name, PNG)
    return table(
        folder / "studies.csv", [dict(zip(base, row, strict=True)) for row in zip(*base.values(), strict=True)]
    )


def test_a_plain_table(tmp_path):
    source = simple(tmp_path, split=["train", "TRAIN", "val", "Validate"], view=["PA", "ap", "", "frontal"])
    studies = open_studies(source)
    assert studies.reports[1] == "Finding number 1 seen."
    assert studies.views.tolist() == ["PA", "AP", "", "frontal"]
    assert studies.splits.tolist() == ["train", "train", "validation", "validation"]
    assert studies.rows.tolist() == [2, 3, 4, 5]
    assert not studies.dropped


def test_columns_reports_views_and_labels(tmp_path):
    source = simple(
        tmp_path, view=["PA", "ap", "", "frontal"], edema=["1", "0.0", "-1.0", ""], age=["5", "6", "7", "8"]
    )
    studies = open_studies(source)
    assert len(studies) == 4
    assert studies.label_names == ("Edema",)
    np.testing.assert_array_equal(studies.labels[:, 0], np.array([1, 0, -1, np.nan], np.float32))
    assert studies.text_ids.tolist() == [text_key(text) for text in studies.reports]
    assert len(set(studies.patients.tolist())) == 2
    assert len(set(studies.studies.tolist())) == 4
    assert studies.columns == {
        "image": "column 'image', path below the folder",
        "report": "column 'report'",
        "patient": "column 'patient_id'",
        "study": "column 'study_id'",
        "view": "column 'view'",
        "labels": "1 columns: Edema",
    }
    assert studies.read(2).pixels.shape == (24, 20)
    described = studies.describe()
    assert (described["images"], described["patients"], described["texts"]) == (4, 2, 4)
    assert described["labels"] == {"Edema": {"present": 1, "absent": 1, "uncertain": 1}}
    assert "SECRET" not in json.dumps(described)
    assert "SECRET" not in repr(studies)


def test_what_cannot_be_used_is_counted_and_the_rest_kept(tmp_path):
    source = simple(
        tmp_path,
        image=["a.png", "missing.png", "b.png", "c.png", "d.png", "a.png", "e.png", "f.png", "g.png", "h.png"],
        patient_id=["1", "1", "", "2", "2", "1", "3", "4", "5", "6"],
        report=["Clear.", "Clear.", "Clear.", "", "nan", "Clear.", "___", "Clear.", "Clear.", "Clear."],
        view=["PA", "PA", "PA", "PA", "PA", "PA", "PA", "LL", "PA", "AP"],
        split=["train", "", "", "", "", "train", "train", "train", "holdout", "test"],
        Edema=["1", "1", "1", "1", "1", "1", "1", "1", "1", "maybe"],
        Fracture=["", "", "", "", "", "", "", "", "", "0"],
    )
    studies = open_studies(source)
    assert studies.rows.tolist() == [2, 11]
    assert studies.dropped == {
        "no such image": 1,
        "no patient id": 1,
        "missing report": 2,
        "the same image again": 1,
        "nothing of the report is left to train on": 1,
        "view lateral": 1,
        "a split other than train, validation, test": 1,
        "label 'Edema' is none of 1, 0, -1, blank: taken as not mentioned": 1,
    }
    assert studies.examples["missing report"] == "line 5: missing report"
    assert studies.examples["no such image"] == "line 3: no such image"
    assert np.isnan(studies.labels[1, 0])
    assert studies.labels[1, 1] == 0
    assert len(open_studies(source, image=ImageOptions(views="all"))) == 3
    everything = open_studies(source, need_reports=False)
    assert len(everything) == 5
    assert everything.reports.count("") == 3


def test_a_column_that_holds_no_labels_is_refused(tmp_path):
    source = simple(tmp_path, Edema=["mild", "severe", "0", ""])
    with pytest.raises(ConfigError, match=r"column 'Edema' is none of labels: 2 of 3 cells .* --column.labels"):
        open_studies(source)
    assert open_studies(source, columns=ColumnOptions(labels=())).label_names == ()
    kinds = open_studies(source, columns=ColumnOptions(labels=(), classes="Edema"))
    assert kinds.label_names == ("0", "mild", "severe")


def test_patients_in_several_splits(tmp_path):
    few = simple(
        tmp_path / "few",
        patient_id=[f"{n // 2}" for n in range(40)],
        split=["train", "test"] + ["train"] * 20 + ["test"] * 18,
    )
    studies = open_studies(few)
    assert studies.dropped == {"patient in several splits": 2}
    assert studies.examples["patient in several splits"] == "line 2: patient in several splits"
    many = simple(tmp_path / "many", patient_id=["7", "7", "8", "8"], split=["train", "test", "train", "test"])
    with pytest.raises(DataError, match=r"^2 of 2 patients are in several splits: .*divide anew$"):
        open_studies(many)


def test_patients_must_be_known_or_waived(tmp_path):
    source = simple(tmp_path, patient_id=None, view=["PA"] * 4)
    with pytest.raises(
        DataError, match=r"no column of patients among image, study_id, report, view: .*--no-patient-ids"
    ):
        open_studies(source)
    studies = open_studies(source, patient_ids=False)
    assert len(set(studies.patients.tolist())) == 4
    assert studies.columns["patient"] == "not known: each study counts as one"


def test_ids_are_salted_and_alike_in_all_tables_of_a_salt(tmp_path):
    source = simple(tmp_path, patient_id=["17", "17.0", " 17 ", "18"])
    first = open_studies(source, salt=b"0123456789abcdef")
    assert len(set(first.patients.tolist())) == 2
    assert first.patients[0] == Salt(b"0123456789abcdef").number("patient", "17")
    assert (open_studies(source, salt=Salt(b"0123456789abcdef")).patients == first.patients).all()
    assert not (open_studies(source).patients == first.patients).any()
    assert min(first.patients.min(), first.studies.min(), first.text_ids.min()) >= 0


def test_the_same_study_id_of_two_patients_is_two_studies(tmp_path):
    source = simple(tmp_path, patient_id=["a", "b", "a", "b"], study_id=["1", "1", "1", "2"])
    studies = open_studies(source).studies
    assert len(set(studies.tolist())) == 3
    assert studies[0] == studies[2]


MIMIC_ROWS = [
    {
        "dicom_id": f"02aa804e-{n}",
        "subject_id": f"1000003{n // 2}",
        "study_id": f"5041426{n // 2}",
        "ViewPosition": view,
    }
    for n, view in enumerate(["PA", "LATERAL", "AP", "AP"])
]


def mimic(folder: Path) -> Path:
    for row in MIMIC_ROWS:
        place = folder / "files" / f"p{row['subject_id'][:2]}" / f"p{row['subject_id']}" / f"s{row['study_id']}"
        write.save(place / f"{row['dicom_id']}.jpg", write.picture(write.chest(top=255).astype(np.uint8), "JPEG"))
        report = f" FINAL REPORT\n FINDINGS: Clear.\n\n IMPRESSION: Study {row['study_id'][-1]} is normal.\n"
        (place.parent / f"{place.name}.txt").write_text(report)
    return table(folder / "mimic-cxr-2.0.0-metadata.csv.gz", MIMIC_ROWS)


def test_mimic_cxr_jpg(tmp_path):
    source = mimic(tmp_path)
    splits = [{"dicom_id": r["dicom_id"], "study_id": r["study_id"], "subject_id": r["subject_id"]} for r in MIMIC_ROWS]
    for row, split in zip(splits, ["train", "train", "validate", "validate"], strict=True):
        row["split"] = split
    labels = [
        {"subject_id": "10000030", "study_id": "50414260", "Edema": "1.0", "Pleural Effusion": ""},
        {"subject_id": "10000031", "study_id": "50414261", "Edema": "-1.0", "Pleural Effusion": "0.0"},
        {
            "subject_id": "10000031",
            "study_id": "50414261",
            "Edema": "1.0",
            "Pleural Effusion": "1.0",
        },  # the first counts
    ]
    studies = open_studies(
        source,
        splits=table(tmp_path / "mimic-cxr-2.0.0-split.csv.gz", splits),
        labels=table(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", labels),
    )
    assert studies.reports == ("Study 0 is normal.", "Study 1 is normal.", "Study 1 is normal.")
    assert studies.splits.tolist() == ["train", "validation", "validation"]
    assert studies.dropped == {"view lateral": 1}
    assert studies.label_names == ("Edema", "Pleural Effusion")
    np.testing.assert_array_equal(studies.labels, np.array([[1, np.nan], [-1, 0], [-1, 0]], np.float32))
    assert studies.columns["image"] == "column 'dicom_id', files/pNN/pPATIENT/sSTUDY/IMAGE.jpg"
    assert studies.columns["report"] == "text files files/pNN/pPATIENT/sSTUDY.txt"
    assert studies.columns["split"].startswith("mimic-cxr-2.0.0-split.csv.gz by image")
    assert studies.read(0).pixels.shape == (24, 20)


def test_reports_of_mimic_sectioned_in_another_table(tmp_path):
    source = mimic(tmp_path)
    sectioned = [
        {"study": "s50414260", "impression": "", "findings": "", "last_paragraph": "The last words."},
        {"study": "s50414261", "impression": "Normal chest.", "findings": "Clear lungs.", "last_paragraph": ""},
    ]
    studies = open_studies(source, texts=table(tmp_path / "mimic_cxr_sectioned.csv", sectioned))
    assert studies.reports == ("The last words.", "Normal chest.", "Normal chest.")
    findings = open_studies(
        source, texts=tmp_path / "mimic_cxr_sectioned.csv", reports=ReportOptions(section="findings-first")
    )
    assert findings.reports[1] == "Clear lungs."


def test_chexpert_without_reports(tmp_path):
    rows = [
        {
            "Path": f"CheXpert-v1.0-small/train/patient0000{p}/study{s}/view{v}_{side.lower()}.jpg",
            "Sex": "Female",
            "Age": 68,
            "Frontal/Lateral": side,
            "AP/PA": "AP" if side == "Frontal" else "",
            "No Finding": "1.0",
            "Pleural Effusion": "",
        }
        for p, s, v, side in [(1, 1, 1, "Frontal"), (1, 1, 2, "Lateral"), (1, 2, 1, "Frontal"), (2, 1, 1, "Frontal")]
    ]
    for row in rows:
        write.save(tmp_path / str(row["Path"]).split("/", 1)[1], PNG)
    studies = open_studies(table(tmp_path / "train.csv", rows))
    assert len(studies) == 3
    assert studies.dropped == {"view lateral": 1}
    assert len(set(studies.patients.tolist())) == 2
    assert len(set(studies.studies.tolist())) == 3
    assert studies.reports == ("", "", "")
    assert (studies.text_ids == studies.studies).all()
    assert studies.columns["image"] == "column 'Path', path without its first 1 folder(s)"
    assert studies.columns["patient"] == studies.columns["study"] == "folders in the image paths"
    assert studies.columns["report"] == "none: for evaluation by labels alone"
    assert studies.views.tolist() == ["AP"] * 3


def test_open_i_with_projections_and_reports(tmp_path):
    rows = [
        {"uid": 1, "filename": "1_IM-0001-4001.dcm.png", "projection": "Frontal"},
        {"uid": 1, "filename": "1_IM-0001-3001.dcm.png", "projection": "Lateral"},
        {"uid": 2, "filename": "2_IM-0652-1001.dcm.png", "projection": "Frontal"},
    ]
    for row in rows:
        write.save(tmp_path / "images" / "images_normalized" / str(row["filename"]), PNG)
    texts = [
        {"uid": 1, "MeSH": "normal", "findings": "Clear.", "impression": "Normal chest. XXXX."},
        {"uid": 2, "MeSH": "Cardiomegaly", "findings": "Big heart.", "impression": ""},
    ]
    studies = open_studies(
        table(tmp_path / "indiana_projections.csv", rows),
        images=tmp_path / "images",
        texts=table(tmp_path / "indiana_reports.csv", texts),
        patient_ids=False,
    )
    assert studies.reports == ("Normal chest.", "Big heart.")
    assert studies.columns["image"] == "column 'filename', file name or id anywhere below the folder"
    assert studies.columns["report"] == "indiana_reports.csv by study (uid = uid)"


def test_a_ris_export_beside_a_folder_of_dicom_files(tmp_path):
    for n, (accession, view) in enumerate([("A1", "PA"), ("A1", "LL"), ("A2", "AP"), ("A9", "PA")]):
        dataset = write.dicom(
            write.chest(), AccessionNumber=accession, ViewPosition=view, PatientID=f"SECRET{accession}"
        )
        write.save(tmp_path / "pacs" / f"{n % 2}" / f"1.2.840.{n}", dataset)
    write.save(tmp_path / "pacs" / "DICOMDIR.txt", b"no image")
    text = "AccessionNumber;ReportText\nA1;BEFUND: Erguss links.\nA2;BEFUND: Größe normal.\nA3;BEFUND: Fehlt.\n"
    (tmp_path / "ris.csv").write_bytes(text.encode("cp1252"))
    studies = open_studies(
        tmp_path / "ris.csv",
        images=tmp_path / "pacs",
        columns=ColumnOptions(report="ReportText"),
        reports=ReportOptions(headers={"BEFUND": "findings"}),
    )
    assert studies.reports == ("Erguss links.", "Größe normal.")
    assert studies.views.tolist() == ["PA", "AP"]
    assert studies.rows.tolist() == [2, 3]
    assert studies.dropped == {"no DICOM file of the study": 1, "view lateral": 1}
    assert studies.examples["no DICOM file of the study"] == "line 4: no DICOM file of the study"
    assert studies.columns["image"] == "DICOM files whose AccessionNumber is in the column 'AccessionNumber'"
    assert "SECRET" not in json.dumps(studies.describe())
    with pytest.raises(
        DataError, match="none of the studies in the column 'AccessionNumber' is among the 0 DICOM files"
    ):
        open_studies(tmp_path / "ris.csv", images=tmp_path / "pacs" / "nothing")


PUBLISHED = {
    "CheXpert Plus": (
        {
            "path_to_image": "train/patient1/study{n}/view1_frontal.png",
            "frontal_lateral": "Frontal",
            "ap_pa": "AP",
            "deid_patient_id": "patient1",
            "report": "NARRATIVE:\nx\n\nIMPRESSION:\n 1. Text {n} here.\n",
            "section_impression": "other",
            "split": "train",
        },
        {"views": "AP", "reports": "Text {n} here.", "patients": 1, "studies": 2},
    ),
    "NIH ChestX-ray14": (
        {"Image Index": "0000{n}.png", "Finding Labels": "Edema|Mass", "Patient ID": "{n}", "View Position": "PA"},
        {"views": "PA", "reports": "", "patients": 2, "studies": 2},
    ),
    "PadChest": (
        {
            "ImageID": "20536{n}.png",
            "StudyID": "S{n}",
            "PatientID": "P1",
            "Projection": "AP_horizontal",
            "Report": "derram pleural {n} .",
        },
        {"views": "AP", "reports": "derram pleural {n}.", "patients": 1, "studies": 2},
    ),
    "covid-chestxray": (
        {
            "patientid": "{n}",
            "finding": "Pneumonia",
            "view": "AP Supine",
            "modality": "X-ray",
            "folder": "images",
            "filename": "{n}.png",
            "clinical_notes": "Note {n} reads fever.",
        },
        {"views": "AP", "reports": "Note {n} reads fever.", "patients": 2, "studies": 2},
    ),
    "a plain export": (
        {
            "File Name": "{n}.png",
            "Accession Number": "A1",
            "Subject": "x",
            "Report Text": "Conclusion: Part {n} clear.",
        },
        {"views": "", "reports": "Part {n} clear.", "patients": 1, "studies": 1},
    ),
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_columns_of_published_tables(tmp_path, name):
    cells, expected = PUBLISHED[name]
    rows = [{column: cell.format(n=n) for column, cell in cells.items()} for n in (1, 2)]
    image = next(iter(column for column in cells if cells[column].endswith(".png")))
    for row in rows:
        write.save(tmp_path / row[image], PNG)
    studies = open_studies(table(tmp_path / "t.csv", rows))
    assert len(studies) == 2
    assert set(studies.views.tolist()) == {expected["views"]}
    assert studies.reports == tuple(expected["reports"].format(n=n) for n in (1, 2))
    assert len(set(studies.patients.tolist())) == expected["patients"]
    assert len(set(studies.studies.tolist())) == expected["studies"]


def test_accession_numbers_that_lost_their_zeros(tmp_path):
    for n, accession in enumerate(["0017", "0018", "0"]):
        write.save(tmp_path / "pacs" / f"{n}.dcm", write.dicom(write.chest(), AccessionNumber=accession))
    source = tmp_path / "ris.csv"
    source.write_bytes("accession\treport\r\n17\tErguß.\r\n18\tHerz groß.\r\n".encode("utf-16"))
    studies = open_studies(source, images=tmp_path / "pacs")
    assert studies.reports == ("Erguß.", "Herz groß.")
    assert studies.columns["image"].endswith("in the column 'accession', leading zeros apart")
    assert len(set(studies.patients.tolist())) == 1


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tsv", "semicolon"])
def test_other_kinds_of_tables(tmp_path, kind):
    for n in range(3):
        write.save(tmp_path / f"{n}.png", PNG)
    rows = [
        {"image": f"{n}.png", "report": f"Lung {n}; clear, dry.", "patient": n, "Edema": [1.0, None, -1.0][n]}
        for n in range(3)
    ]
    if kind == "jsonl":
        source = tmp_path / "t.jsonl"
        source.write_text("\n".join(map(json.dumps, rows)) + "\n")
    elif kind == "parquet":
        source = tmp_path / "t.parquet"
        pq.write_table(pa.Table.from_pylist(rows), source)
    else:
        source = table(tmp_path / f"t.{'tsv' if kind == 'tsv' else 'csv'}", rows, "\t" if kind == "tsv" else ";")
    studies = open_studies(source)
    assert studies.reports == ("Lung 0; clear, dry.", "Lung 1; clear, dry.", "Lung 2; clear, dry.")
    np.testing.assert_array_equal(studies.labels[:, 0], np.array([1, np.nan, -1], np.float32))


def test_report_cells_may_name_text_files(tmp_path):
    for n in range(2):
        (tmp_path / f"r{n}.txt").write_text(f"IMPRESSION: Text of file {n}.")
    studies = open_studies(simple(tmp_path, report=["r0.txt", "r1.txt", "r9.txt", "r1.txt"]))
    assert studies.reports == ("Text of file 0.", "Text of file 1.", "Text of file 1.")
    assert studies.dropped == {"missing report": 1}


def test_a_tar_of_images_and_notes(tmp_path):
    path = tmp_path / "notes.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in [
            ("a.png", PNG),
            ("a.json", json.dumps({"patient": "p1", "clinical_notes": "Effusion.", "view": "PA"}).encode()),
            ("b.png", PNG),
            ("b.json", b'{"patient": "p2", "view": "L", "clinical_notes": "x"}'),
            ("c.png", PNG),
            ("c.json", b"not json"),
            ("d.png", b"not an image"),
            ("d.json", b'{"patient": "p3", "clinical_notes": "Fine."}'),
            ("._e.png", PNG),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    studies = open_studies(path)
    assert studies.reports == ("Effusion.", "Fine.")
    assert studies.rows.tolist() == [1, 7]
    assert studies.dropped == {"not a JSON object": 1, "view lateral": 1, "no patient id": 1}
    assert studies.read(0).pixels.shape == (24, 20)
    with pytest.raises(DataError, match="^member 7: no image: neither DICOM nor PNG nor JPEG$"):
        studies.read(1)


@pytest.mark.parametrize(
    ("content", "name", "text"),
    [
        (b"", "t.csv", "is empty: the first line must name the columns"),
        (b"image,report\n", "t.csv", "has a header and no rows"),
        (b"image,image\na,b\n", "t.csv", "the column 'image' is there twice"),
        (b"a,b\n1,2\n", "t.csv", "no column of images among a, b"),
        (b"nothing", "t.parquet", "not a whole Parquet file"),
        (b"nothing", "t.tar", "not a whole tar archive"),
        (b"{}\nnothing\n", "t.jsonl", "line 2: not a JSON object"),
        (b"x", "t.xlsx", "is a spreadsheet: save it as CSV (UTF-8) first"),
        (b"x", "t.sas7bdat", "give a table (.csv, .tsv, .jsonl, .parquet) or a .tar"),
        (b"\x1f\x8b\x08\x00", "t.csv.gz", "not a whole gzip file"),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path, content, name, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_studies(tmp_path / name)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_tables_folders_and_images_are_one_line(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_studies(tmp_path / "no.csv")
    with pytest.raises(DataError, match="is a folder: give the table of its studies"):
        open_studies(tmp_path)
    source = simple(tmp_path / "there")
    with pytest.raises(DataError, match=r"none of the images of 4 rows is below .*empty: .*'image' .*--images"):
        open_studies(source, images=tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"no column 'pateint_id' for the patient, did you mean patient_id"):
        open_studies(source, columns=ColumnOptions(patient="pateint_id"))
    other = table(tmp_path / "labels.csv", [{"study_id": "elsewhere", "Edema": "1"}])
    with pytest.raises(DataError, match="no row in common with the table of images"):
        open_studies(source, labels=other)
    bare = simple(tmp_path / "bare", report=None)
    (tmp_path / "texts").mkdir()
    with pytest.raises(DataError, match="holds no text file for any row"):
        open_studies(bare, texts=tmp_path / "texts")


def test_short_rows_are_counted(tmp_path):
    source = simple(tmp_path)
    source.write_text(source.read_text() + "i0.png,only two\n")
    studies = open_studies(source)
    assert len(studies) == 4
    assert studies.dropped == {"2 cells, the header has 4": 1}


def test_parts_divisions_and_choices(tmp_path):
    source = simple(
        tmp_path,
        patient_id=[f"p{n // 2}" for n in range(20)],
        report=[f"Lung {n}." for n in range(20)],
        image=[f"i{n}.png" for n in range(20)],
        study_id=[f"s{n}" for n in range(20)],
    )
    studies = open_studies(source)
    with pytest.raises(DataError, match="no image is in the split 'train'; there are no splits"):
        studies.part("train")
    divided = studies.divided((0.6, 0.2, 0.2), seed=3)
    parts = [divided.part(name) for name in ("train", "validation", "test")]
    assert sorted(len(part) for part in parts) == [4, 4, 12]
    assert sorted(row for part in parts for row in part.rows.tolist()) == studies.rows.tolist()
    some = studies.take([5, 0, 5])
    assert some.reports == (studies.reports[5], studies.reports[0], studies.reports[5])
    assert some.rows.tolist() == [studies.rows[5], studies.rows[0], studies.rows[5]]
    assert divided.divided((1, 0, 0)) is divided
