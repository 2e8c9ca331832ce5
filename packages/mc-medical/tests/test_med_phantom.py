"""Phantoms: anatomy, findings where the truth says, reports that agree with their labels, and real DICOM files."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from PIL import Image

from mc_core.errors import ConfigError
from mc_medical.data.radiograph import read_radiograph
from mc_medical.evaluation import exclusive_class
from mc_medical.labels import COMPETITION, OBSERVATIONS, label_report, read_labels
from mc_medical.phantom import Finding, phantom_patient, write_phantoms, write_report
from mc_medical.phantom.anatomy import Chest, Exposure, clouds, draw_person
from mc_medical.phantom.files import Stored, dicom_bytes, png_bytes
from mc_medical.phantom.findings import draw_finding, paint, prepare

SIZE = 64
EVERY = (*COMPETITION, "Lung Lesion", "Pneumothorax", "Support Devices")
PLAIN = Exposure("PA", shift=(0.0, 0.0), scale=1.0, turn=0.0, breath=0.0, gain=1.0, noise=0.0, collimated=0.0)


def picture(finding: Finding | None, seed: int = 0, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """(S, S) without noise, and the share of change; the person is the same with and without the finding."""
    rng = np.random.default_rng(seed)
    chest = Chest(draw_person(rng), PLAIN, size, np.random.default_rng(seed + 1))
    findings = [] if finding is None else [finding]
    prepare(chest, findings)
    chest.build_lungs()
    change = paint(chest, finding) if finding is not None else np.zeros((size, size))
    chest.rng = np.random.default_rng(seed + 2)
    return chest.picture(), change


@pytest.fixture(scope="module")
def patients():
    return [phantom_patient(number, size=SIZE) for number in range(60)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), patients=40, size=48, seed=1)


@pytest.fixture(scope="module")
def rows(written):
    with written.table.open(newline="") as file:
        return list(csv.DictReader(file))


class TestAnatomy:
    def test_lungs_are_dark_bones_and_heart_bright(self):
        image, _ = picture(None)
        lung, spine, heart = image[24:32, 12:18].mean(), image[50:60, 30:34].mean(), image[36:44, 36:40].mean()
        assert lung < 0.45 < heart
        assert lung < 0.45 < spine
        assert image[40:60, :2].mean() < image[40:60, 8:12].mean()  # air beside the patient

    def test_the_heart_lies_to_the_left_which_is_right_in_the_picture(self):
        image, _ = picture(None)
        row = image[38:44].mean(axis=0)
        assert row[38:44].mean() > row[20:26].mean() + 0.15

    def test_range_type_and_shape(self, patients):
        for image in (image for images in patients for image in images):
            assert image.pixels.shape == (SIZE, SIZE)
            assert image.pixels.dtype == np.float32
            assert 0 <= image.pixels.min() < 0.1
            assert 0.6 < image.pixels.max() <= 1

    def test_clouds_have_unit_deviation(self):
        found = np.stack([clouds(np.random.default_rng(seed), 64, 9) for seed in range(40)])
        assert found.std() == pytest.approx(1, abs=0.12)
        assert abs(found.mean()) < 0.1

    def test_a_patient_keeps_the_anatomy_and_others_have_their_own(self):
        """Two exposures of one person are more alike than pictures of different people."""
        people = [draw_person(np.random.default_rng(seed)) for seed in range(8)]

        def taken(person, seed):
            shift = 0.01 * np.random.default_rng(seed).normal(size=2)
            chest = Chest(person, replace(PLAIN, shift=tuple(shift), noise=0.01), SIZE, np.random.default_rng(seed))
            chest.build_lungs()
            return chest.picture()

        first, second = ([taken(person, base + i) for i, person in enumerate(people)] for base in (0, 100))
        gap = np.array([[np.abs(a - b).mean() for b in second] for a in first])
        assert (gap.argmin(axis=1) == np.arange(8)).mean() > 0.8
        assert gap.diagonal().mean() < 0.7 * gap[~np.eye(8, dtype=bool)].mean()


class TestFindings:
    @pytest.mark.parametrize("name", EVERY)
    @pytest.mark.parametrize("severity", [1, 2, 3])
    def test_it_changes_the_picture_where_the_truth_says(self, name, severity):
        finding = replace(draw_finding(name, np.random.default_rng(3)), severity=severity)
        (without, _), (with_it, change) = picture(None), picture(finding)
        inside, outside = change > 0.5, change < 0.02
        moved = np.abs(with_it - without)
        assert inside.any()
        assert moved[inside].mean() > 3 * moved[outside].mean()
        assert moved[inside].mean() > 0.02

    @pytest.mark.parametrize(
        "name", ["Consolidation", "Pleural Effusion", "Atelectasis", "Lung Lesion", "Pneumothorax"]
    )
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_the_patients_left_is_right_in_the_picture(self, name, side):
        _, change = picture(replace(draw_finding(name, np.random.default_rng(5)), side=side, severity=2))
        half = change[:, SIZE // 2 :] if side == "left" else change[:, : SIZE // 2]
        assert half.sum() > 0.98 * change.sum()

    def test_both_sides_are_both_sides(self):
        for name in ("Pleural Effusion", "Atelectasis", "Edema"):
            _, change = picture(replace(draw_finding(name, np.random.default_rng(5)), side="both", severity=3))
            assert min(change[:, : SIZE // 2].sum(), change[:, SIZE // 2 :].sum()) > 0.2 * change.sum()

    @pytest.mark.parametrize("name", ["Consolidation", "Lung Lesion"])
    def test_zones_are_in_order(self, name):
        rows = {}
        for zone in ("upper", "middle", "lower"):
            _, change = picture(Finding(name, "left", zone, 2))
            rows[zone] = (change.sum(axis=1) * np.arange(SIZE)).sum() / change.sum()
        assert rows["upper"] < rows["middle"] < rows["lower"]

    @pytest.mark.parametrize(
        "name", ["Consolidation", "Pleural Effusion", "Lung Lesion", "Edema", "Pneumothorax", "Cardiomegaly"]
    )
    def test_what_is_severe_changes_more(self, name):
        """On average over people."""
        effect = []
        for severity in (1, 2, 3):
            found = []
            for seed in range(6):
                finding = replace(draw_finding(name, np.random.default_rng(7)), severity=severity)
                found.append(np.abs(picture(finding, seed)[0] - picture(None, seed)[0]).sum())
            effect.append(np.mean(found))
        assert effect[0] < effect[1] < effect[2]

    def test_opacities_are_bright_and_a_pneumothorax_dark(self):
        without = picture(None)[0]
        for name in ("Consolidation", "Pleural Effusion", "Edema", "Lung Lesion", "Atelectasis"):
            with_it, change = picture(replace(draw_finding(name, np.random.default_rng(2)), severity=3))
            assert (with_it - without)[change > 0.5].mean() > 0.05
        with_it, change = picture(Finding("Pneumothorax", "left", "upper", 3))
        assert (with_it - without)[change > 0.5].mean() < -0.02

    def test_the_cardiothoracic_ratio_passes_one_half(self):
        """Measured on the mask: width of the heart over that of the lungs."""
        ratios = []
        for severity in (None, 1, 2, 3):
            rng = np.random.default_rng(0)
            chest = Chest(draw_person(rng), PLAIN, 128, rng)
            prepare(chest, [] if severity is None else [Finding("Cardiomegaly", severity=severity)])
            chest.build_lungs()
            heart = (chest.heart()[60:] > 0.5).any(axis=0).sum()
            thorax = ((chest.lung["left"] + chest.lung["right"]) > 0.5).any(axis=0)
            ratios.append(heart / (np.flatnonzero(thorax).max() - np.flatnonzero(thorax).min()))
        assert ratios[0] < 0.5 < ratios[1] + 0.02 < ratios[2] + 0.02 < ratios[3] + 0.02

    def test_a_faint_finding_is_fainter(self):
        certain = Finding("Consolidation", "left", "middle", 1)
        without = picture(None)[0]
        plain, faint = (np.abs(picture(f)[0] - without).sum() for f in (certain, replace(certain, certain=False)))
        assert faint < 0.75 * plain

    def test_what_is_not_drawn_has_no_box_and_what_is_has_one_inside(self, patients):
        seen = 0
        for image in (image for images in patients for image in images):
            for finding, box in zip(image.findings, image.boxes, strict=True):
                if not finding.drawn:
                    assert box is None
                elif box is not None:
                    seen += 1
                    x0, y0, x1, y1 = box
                    assert 0 <= x0 < x1 <= SIZE
                    assert 0 <= y0 < y1 <= SIZE
        assert seen > 80


class TestReports:
    def test_what_is_drawn_is_said_and_what_is_denied_is_not_there(self, patients):
        for image in (image for images in patients for image in images):
            labels, present = image.report.labels, {f.name: f for f in image.findings}
            for name, finding in present.items():
                assert labels[name] == (1.0 if finding.certain else -1.0)
                assert finding.drawn or not finding.certain
            for name, value in labels.items():
                if value == 0:
                    assert name not in present
                elif name not in ("No Finding", "Lung Opacity", "Pneumonia"):
                    assert name in present

    def test_no_sentence_denies_what_another_says(self, patients):
        for image in (image for images in patients for image in images):
            said = image.report.text.partition("FINDINGS:")[2] or image.report.text.partition("IMPRESSION:")[2]
            for sentence in re.split(r"(?<=\.)\s+", said):
                for name, value in label_report(sentence).items():
                    assert value != 0 or image.report.labels[name] == 0, (name, sentence)

    def test_opacity_and_pneumonia_go_with_what_they_describe(self, patients):
        opaque = {"Consolidation", "Atelectasis", "Edema", "Lung Lesion"}
        for image in (image for images in patients for image in images):
            names = {f.name for f in image.findings}
            if image.report.labels.get("Lung Opacity") == 1:
                assert names & opaque
            if image.report.labels.get("Lung Opacity") == 0:
                assert not names & opaque
            if image.report.labels.get("Pneumonia") == -1:
                assert "Consolidation" in names

    def test_no_finding_is_no_finding(self, patients):
        for image in (image for images in patients for image in images):
            labels = dict(image.report.labels)
            clear = labels.pop("No Finding", None)
            labels.pop("Support Devices", None)
            assert (clear == 1) == (not any(value != 0 for value in labels.values()))

    @pytest.mark.parametrize("side", ["right", "left"])
    @pytest.mark.parametrize(
        "name", ["Pleural Effusion", "Consolidation", "Pneumothorax", "Lung Lesion", "Atelectasis"]
    )
    def test_the_words_name_the_side(self, name, side):
        other = {"right": "left", "left": "right"}[side]
        for seed in range(25):
            zone = "upper" if name == "Pneumothorax" else "lower"
            finding = Finding(name, side, zone, 2, kind="basal" if name == "Atelectasis" else "")
            text = write_report([finding], np.random.default_rng(seed)).text.lower()
            assert re.search(rf"\b{side}\b", text) or "lingula" in text
            assert not re.search(rf"\b{other}\b", text)

    def test_the_words_name_the_severity_and_keep_it(self):
        sizes = {1: r"\bsmall|trace|tiny", 2: "moderate", 3: r"\blarge"}
        for severity, word in sizes.items():
            others = "|".join(w for s, w in sizes.items() if s != severity)
            for seed in range(25):
                effusion = Finding("Pleural Effusion", "left", "lower", severity)
                text = write_report([effusion], np.random.default_rng(seed)).text.lower()
                assert re.search(word, text)
                assert not re.search(others, text)

    def test_many_wordings_no_leftovers(self, patients):
        texts = {image.report.text for images in patients for image in images}
        findings = {text.partition("FINDINGS:")[2] for text in texts}
        assert len(findings) > 100
        for text in texts:
            assert not re.search(r"[{}|]|  |\.\.| \.|\ba (effusions|extensive|a )|None\b(?!\.)", text), text
            assert re.search(r"^(FINDINGS|IMPRESSION): \S", text, re.MULTILINE)
            for sentence in re.findall(r"[^.:\n]+\.", text):
                assert not re.match(r" [a-z]", sentence), sentence

    def test_plain_uncertain_and_normal_studies_are_all_there(self, patients):
        found = [image.report.labels for images in patients for image in images]
        assert sum(labels.get("No Finding") == 1 for labels in found) > 8
        assert sum(-1.0 in labels.values() for labels in found) > 8
        assert sum(0.0 in labels.values() for labels in found) > 60


class TestFiles:
    def test_the_table(self, written, rows):
        assert list(rows[0]) == ["image", "patient_id", "study_id", "view", "split", "report", *OBSERVATIONS]
        assert written.count == len(rows) == len(list(written.images.iterdir()))
        assert written.patients == len({row["patient_id"] for row in rows}) == 40
        assert all("phantom" in row["patient_id"] for row in rows)
        table = read_labels({name: [row[name] for row in rows] for name in OBSERVATIONS})
        assert not table.refused
        assert {-1.0, 0.0, 1.0} <= set(np.unique(table.values[~np.isnan(table.values)]))

    def test_a_patient_is_in_one_split_and_all_splits_are_there(self, rows):
        splits = {}
        for row in rows:
            splits.setdefault(row["patient_id"], set()).add(row["split"])
        assert all(len(found) == 1 for found in splits.values())
        counts = [sum(found == {name} for found in splits.values()) for name in ("train", "validation", "test")]
        assert counts == [28, 4, 8]

    def test_a_study_has_one_report(self, rows):
        reports = {}
        for row in rows:
            assert reports.setdefault(row["study_id"], row["report"]) == row["report"]

    def test_exclusive_studies_are_frequent(self, rows):
        table = read_labels({name: [row[name] for row in rows] for name in OBSERVATIONS})
        found = exclusive_class(table.values, OBSERVATIONS, COMPETITION)
        assert (found >= 0).mean() > 0.4
        assert (np.bincount(found[found >= 0], minlength=5) >= 3).all()

    def test_truth_names_images_and_boxes(self, written, rows):
        with written.truth.open(newline="") as file:
            truths = list(csv.DictReader(file))
        images = {row["image"]: row for row in rows}
        for truth in truths:
            label = images[truth["image"]][truth["finding"]]
            assert label == {"certain": "1", "uncertain": "-1"}[truth["said"]]
            assert 0 <= int(truth["x0"]) < int(truth["x1"]) <= 48
        plain = {(t["image"], t["finding"]) for t in truths}
        for image, row in images.items():
            for name in ("Consolidation", "Edema", "Cardiomegaly"):
                assert row[name] != "1" or (image, name) in plain

    def test_files_are_dicom_of_both_polarities_and_png(self, written):
        kinds = {"MONOCHROME1": 0, "MONOCHROME2": 0}
        modalities = set()
        for path in written.images.glob("*.dcm"):
            data = pydicom.dcmread(path)
            kinds[data.PhotometricInterpretation] += 1
            modalities.add(data.Modality)
            assert (data.PresentationLUTShape == "INVERSE") == (data.PhotometricInterpretation == "MONOCHROME1")
            assert "Phantom" in str(data.PatientName)
            assert "phantom" in data.ImageComments
            assert data.pixel_array.max() <= 4095
        assert modalities == {"CR", "DX"}
        assert min(kinds.values()) > 10
        assert (written.folder / "README.txt").read_text().startswith("Phantom")

    @pytest.mark.parametrize("inverted", [False, True])
    @pytest.mark.parametrize("windows", [0, 1, 2])
    @pytest.mark.parametrize("slope", [1.0, 0.5])
    def test_a_file_reads_back_as_it_was_drawn(self, inverted, windows, slope):
        pixels = phantom_patient(3, size=SIZE)[0].pixels
        stored = Stored(False, "DX", inverted, windows, slope, padded=True)
        data = dicom_bytes(pixels, stored, patient="phantom-x", study="s", instance=0, view="PA")
        found = read_radiograph(data)
        assert found.view == "PA"
        assert not found.notes
        assert np.corrcoef(found.pixels.ravel(), pixels.ravel())[0, 1] > 0.99
        if windows:
            assert np.abs(found.pixels - pixels).max() < 0.01

    def test_a_png_reads_back(self):
        pixels = phantom_patient(3, size=SIZE)[0].pixels
        with Image.open(io.BytesIO(png_bytes(pixels))) as image:
            assert np.abs(np.asarray(image) / 65535 - pixels).max() < 1e-4
        assert np.corrcoef(read_radiograph(png_bytes(pixels)).pixels.ravel(), pixels.ravel())[0, 1] > 0.99

    def test_the_seed_decides_and_more_patients_change_none(self, written, tmp_path):
        again = write_phantoms(tmp_path / "few", patients=5, size=48, seed=1)
        digest = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in again.images.iterdir()}
        for name, found in digest.items():
            assert hashlib.sha256((written.images / name).read_bytes()).hexdigest() == found
        other = write_phantoms(tmp_path / "other", patients=5, size=48, seed=2)
        assert other.table.read_text() != again.table.read_text()
        assert written.table.read_text().startswith(again.table.read_text())

    def test_progress_and_bad_sizes(self, tmp_path):
        seen = []
        write_phantoms(tmp_path, patients=3, size=32, progress=lambda done, of: seen.append((done, of)))
        assert seen == [(1, 3), (2, 3), (3, 3)]
        for options in ({"patients": 0}, {"size": 8}):
            with pytest.raises(ConfigError, match="one patient or more, and 16 to 2048"):
                write_phantoms(tmp_path / "none", **options)
        assert not (tmp_path / "none").exists()
