"""The demo page: what it shows of phantoms, and in a real headless browser."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mc_core.errors import DataError, McError
from mc_medical.data.image_config import ImageOptions
from mc_medical.encoders_config import ImageEncoderConfig, ImageTextConfig, TextEncoderConfig
from mc_medical.labels import resolve_labels
from mc_medical.model import ImageTextModel
from mc_medical.phantom import write_phantoms
from mc_medical.prompts import default_prompts
from mc_medical.tokenizers import train_tokenizer
from mc_medical_app.runs import open_run
from mc_medical_app.study_options import StudyOptions
from mc_medical_app.viewer import Near, Score, Viewer, default_phrase, own_report, report_list, score_table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-quic",
    "--disable-sync",
    "--disable-component-update",
    "--no-first-run",
]
TRAP = "A <script>document.title='caught'</script> & <b>bold</b> report."


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A saved model that was never trained, phantoms, one report that tries to be code, and files to upload."""
    folder = tmp_path_factory.mktemp("medical-demo")
    files = write_phantoms(folder / "phantoms", patients=24, size=64, seed=3)
    with files.table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[2]["report"] = f"IMPRESSION: {TRAP}"
    rows[5]["report"] = rows[2]["report"]
    with files.table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    torch.manual_seed(0)
    config = ImageTextConfig(
        image=ImageEncoderConfig(image_size=64, width=8),
        text=TextEncoderConfig(hidden_size=16, heads=2, layers=1, vocabulary=300, max_length=64),
        dim=16,
    )
    model = ImageTextModel(config, train_tokenizer([row["report"] for row in rows], 300))
    model.eval().save(folder / "model")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def opened(made):
    return open_run(made / "model", torch.device("cpu"))


@pytest.fixture(scope="module")
def viewer(made, opened):
    return Viewer(opened, *_with_name(opened, made))


def _with_name(opened, made):
    cohort, _ = opened.cohort(made / "phantoms" / "studies.csv", StudyOptions())
    return (cohort,)


class TestViewer:
    def test_scores_are_the_zero_shot_scores(self, viewer, opened):
        """By definition, from the model's own text and image vectors."""
        model, prompts = opened.model, default_prompts()
        image = model.encode_image(viewer.cohort.pixels.rows(np.array([4])))[0].astype(float)

        def vector(phrases):
            found = model.encode_text(list(phrases)).astype(float).mean(axis=0)
            return found / np.linalg.norm(found)

        for score in viewer.scores(viewer.shown(4)):
            up, down = (image @ vector(side[score.finding]) for side in (prompts.positive, prompts.negative))
            assert score.probability == pytest.approx(1 / (1 + math.exp(model.kappa * (down - up))), abs=1e-5)
            assert 0 <= score.low <= score.high <= 1
        spread = [s.high - s.low for s in viewer.scores(viewer.shown(4))]
        assert max(spread) > 0.001

    def test_a_score_does_not_depend_on_the_other_images(self, viewer, made, opened):
        alone = Viewer(opened, viewer.cohort.take(np.array([4])))
        for a, b in zip(alone.scores(alone.shown(0)), viewer.scores(viewer.shown(4)), strict=True):
            assert a.probability == pytest.approx(b.probability, abs=1e-6)
            assert a.auroc is None

    def test_what_the_report_says_and_how_good_scores_are(self, viewer):
        studies = viewer.cohort.studies
        words = {1.0: "present", 0.0: "absent", -1.0: "uncertain"}
        labels = resolve_labels(studies.labels, studies.label_names)
        for row in range(6):
            for score in viewer.scores(viewer.shown(row)):
                value = studies.labels[row, studies.label_names.index(score.finding)]
                assert score.said == words.get(float(value), "not mentioned")
        for score in viewer.scores(viewer.shown(0)):
            truth = labels[:, studies.label_names.index(score.finding)]
            assert (score.auroc is not None) == (min((truth == 1).sum(), (truth == 0).sum()) >= 3)
            if score.auroc is not None:
                assert score.auroc.low <= score.auroc.value <= score.auroc.high
                assert score.auroc.patients <= 24

    def test_nearest_reports_by_definition(self, viewer, opened):
        shown = viewer.shown(7)
        image = opened.model.encode_image(shown.pixels[None])[0]
        texts = sorted(set(viewer.cohort.studies.reports))
        cosine = dict(zip(texts, opened.model.encode_text(texts) @ image, strict=True))
        expected = sorted(texts, key=lambda text: -cosine[text])[:5]
        found = viewer.nearest(shown)
        assert [n.text for n in found] == expected
        assert [n.similarity for n in found] == pytest.approx([cosine[t] for t in expected], abs=1e-5)
        own = viewer.cohort.studies.reports[7]
        assert [n.own for n in found] == [n.text == own for n in found]
        assert viewer.own_rank(shown) == (1 + sum(cosine[t] > cosine[own] for t in texts), len(texts))

    def test_equal_reports_are_listed_once_and_counted(self, viewer):
        many = viewer.nearest(viewer.shown(2), count=1000)
        assert len(many) == len({n.text for n in many}) == len(viewer.texts)
        assert sum(n.studies for n in many) == len(viewer.cohort)
        (trap,) = [n for n in many if "<script>" in n.text]
        assert trap.own
        assert trap.studies == 2

    def test_the_map_is_the_phrase_over_patches(self, viewer, opened):
        shown = viewer.shown(3)
        found = viewer.similarity(shown, " left  pleural effusion ")
        with torch.no_grad():
            patches = opened.model.patch_embeddings(opened.model.prepare(shown.pixels[None]))[0].numpy()
        text = opened.model.encode_text(["left pleural effusion"])[0]
        assert found.shape == patches.shape[:2]
        assert found == pytest.approx(patches @ text, abs=1e-5)
        image, line = viewer.map_picture(shown, "left pleural effusion")
        assert image.size == (512, 512)
        assert image.mode == "RGB"
        assert f"from {found.min():.2f} to {found.max():.2f}" in line
        with pytest.raises(DataError, match="write a phrase first"):
            viewer.similarity(shown, "  ")

    def test_names_of_images_are_rows_not_ids(self, viewer):
        names = [name for name, _ in viewer.choices()]
        assert len(set(names)) == len(viewer.cohort)
        assert re.fullmatch(r"(line|row) \d+ · (PA|AP)", names[0])
        assert "phantom" not in " ".join(names)

    def test_an_even_choice_of_at_most_so_many(self, opened, viewer):
        few = Viewer(opened, viewer.cohort, limit=5)
        assert len(few.choices()) == 5
        assert len(few.texts) <= 5
        assert (few.cohort.studies.rows[[0, -1]] == viewer.cohort.studies.rows[[0, -1]]).all()

    def test_an_upload_is_read_as_in_training(self, viewer, made):
        path = next(iter(sorted((made / "phantoms" / "images").glob("*.dcm"))))
        shown = viewer.upload(path)
        assert (shown.pixels == viewer.shown(0).pixels).all()
        assert shown.row is None
        assert viewer.own_report(shown) == ""
        assert viewer.own_rank(shown) is None
        assert not any(n.own for n in viewer.nearest(shown))
        assert all(s.said == "" for s in viewer.scores(shown))

    def test_bad_uploads_name_no_path(self, viewer, made, tmp_path):
        for name, data in (("Doe^John.dcm", b""), ("Doe^John.txt", b"text")):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(McError) as error:
                viewer.upload(tmp_path / name)
            assert str(error.value).startswith("your file: ")
            assert "Doe" not in str(error.value)

    def test_without_studies_there_are_scores_and_no_reports(self, opened, made):
        alone = Viewer(opened, None)
        shown = alone.upload(next(iter(sorted((made / "phantoms" / "images").glob("*.dcm")))))
        assert len(alone.scores(shown)) == 14
        assert alone.nearest(shown) == []
        assert alone.choices() == []
        assert "No reports" in report_list(alone.nearest(shown))
        with pytest.raises(DataError, match="give a file"):
            alone.shown(0)

    def test_a_phrase_to_begin_with_is_what_the_report_has(self, viewer):
        studies = viewer.cohort.studies
        place = studies.label_names.index("Pleural Effusion")
        row = next(
            r for r in range(len(studies)) if (studies.labels[r] == 1).sum() == 1 and studies.labels[r, place] == 1
        )
        assert default_phrase(viewer, viewer.shown(row)) == "pleural effusion"

    def test_the_size_of_stored_squares_does_not_matter_to_the_page(self, opened):
        assert opened.image == ImageOptions()


class TestHtml:
    def test_reports_are_text_whatever_they_hold(self):
        found = report_list([Near(TRAP + "\nnext", 0.5, True, 3)])
        assert "<script" not in found
        assert "<b>bold" not in found
        assert "&lt;script&gt;" in found
        assert "<br>next" in found
        assert "this image&#x27;s own report" in found or "this image's own report" in found
        assert "same words in 3 images" in found

        assert "&lt;script&gt;" in own_report(TRAP)
        assert "<script" not in own_report(TRAP)
        assert own_report("") == ""

    def test_findings_of_the_users_prompts_are_text_too(self):
        found = score_table([Score("<i>x</i>", 0.5, 0.4, 0.6, "", None)])
        assert "<i>" not in found
        assert "0.50 (0.40–0.60)" in found
        assert "AUROC" not in found


@contextlib.contextmanager
def serving(made, log, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "mc-medical"
    command = [program, "demo", *arguments, "--port", str(port), "--device", "cpu"]
    with log.open("w") as file:
        environment = os.environ | {"GRADIO_TEMP_DIR": str(made / "visitors"), "TMPDIR": str(made)}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        _wait(f"http://127.0.0.1:{port}/", process, log)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def served(made):
    with serving(made, made / "log", made / "model", made / "phantoms" / "studies.csv") as address:
        yield address


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def page(served):
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed to open the page with")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        opened = browser.new_page(viewport={"width": 1280, "height": 1000})
        opened.set_default_timeout(60_000)
        opened.goto(served)
        yield opened
        browser.close()


def _source(page, name: str) -> str:
    return page.locator(f"#{name} img").get_attribute("src")


def _changed(page, name: str, before: str | None) -> None:
    page.wait_for_function(f"(document.querySelector('#{name} img')?.getAttribute('src') ?? null) !== {before!r}")


def _text(page, name: str) -> str:
    return page.locator(f"#{name}").inner_text()


def test_the_page_opens_with_a_study_its_scores_reports_and_a_map(page, viewer, made):
    for name in ("picture", "map"):
        page.locator(f"#{name} img").wait_for()
    body = page.locator("body").inner_text()
    assert "Research use, not a medical device." in body
    scores = _text(page, "scores")
    for score in viewer.scores(viewer.shown(0)):
        assert f"{score.probability:.2f} ({score.low:.2f}–{score.high:.2f})" in scores
        assert score.finding in scores
        if score.auroc is not None:
            assert f"{score.auroc.value:.2f} ({score.auroc.low:.2f}–{score.auroc.high:.2f})" in scores
    reports = _text(page, "reports")
    assert len(re.findall(r"cosine -?\d", reports)) == 5
    assert viewer.nearest(viewer.shown(0))[0].text.split("\n")[0] in reports
    assert re.search(r"Its own report is number \d+ of \d+ different ones", _text(page, "line"))
    assert page.locator("#phrase input, #phrase textarea").input_value() == default_phrase(viewer, viewer.shown(0))
    page.screenshot(path=made / "page.png", full_page=True)


def _all_change(page, act) -> None:
    """Do something that shows another study, and wait until all of it is there: it comes at once."""
    before = {name: _source(page, name) for name in ("picture", "map")}
    act()
    for name, source in before.items():
        _changed(page, name, source)


def test_another_study_changes_all_of_it(page, viewer):
    _all_change(page, page.locator("#after").click)
    name = viewer.choices()[1][0]
    page.wait_for_function(f"document.querySelector('#row input').value === {name!r}")
    score = viewer.scores(viewer.shown(1))[0]
    assert f"{score.probability:.2f} ({score.low:.2f}" in _text(page, "scores")

    page.locator("#row input").click()
    _all_change(page, page.get_by_role("option", name=viewer.choices()[4][0], exact=True).click)
    score = viewer.scores(viewer.shown(4))[0]
    assert f"{score.probability:.2f} ({score.low:.2f}" in _text(page, "scores")


def test_a_report_that_is_code_is_shown_as_text(page, viewer):
    assert viewer.own_report(viewer.shown(2)) == TRAP
    page.locator("#row input").click()
    _all_change(page, page.get_by_role("option", name=viewer.choices()[2][0], exact=True).click)
    assert "<script>" in page.locator("#reports details").text_content()
    page.locator("#reports summary").click()
    page.wait_for_function("document.querySelector('#reports details').innerText.includes('& <b>bold</b> report')")
    assert "caught" not in page.title()
    assert page.locator("#reports script").count() == 0


def test_a_phrase_changes_the_map_alone(page):
    picture, heat = _source(page, "picture"), _source(page, "map")
    box = page.locator("#phrase input, #phrase textarea")
    box.fill("right upper lobe nodule")
    page.locator("#show").click()
    _changed(page, "map", heat)
    assert _source(page, "picture") == picture
    assert "Cosines of" in _text(page, "map-line")
    heat = _source(page, "map")
    page.locator("#row input").click()
    page.locator("#row input").blur()  # to leave the field of studies is not to choose one
    page.wait_for_timeout(1500)
    assert box.input_value() == "right upper lobe nodule"
    assert _source(page, "map") == heat
    box.fill("")
    page.locator("#show").click()
    page.locator(".toast-body").filter(has_text="write a phrase first").first.wait_for()
    assert "Traceback" not in page.content()


def test_uploads_bad_and_good(page, made, viewer):
    def refused(text: str) -> None:
        page.locator("#go").click()
        page.locator(".toast-body").filter(has_text=text).first.wait_for()

    def choose(path: Path) -> None:
        if page.locator("#upload").get_by_label("Clear").count():
            page.locator("#upload").get_by_label("Clear").click()
        page.locator("#upload input[type=file]").set_input_files(path)
        page.locator("#upload").get_by_text(path.stem[:8]).first.wait_for()

    refused("choose a file first")
    choose(made / "notes.txt")
    refused("your file: no image: neither DICOM nor PNG nor JPEG")
    path = sorted((made / "phantoms" / "images").glob("*.dcm"))[-1]
    choose(path)
    before = _source(page, "picture")
    page.locator("#go").click()
    _changed(page, "picture", before)
    page.wait_for_function("document.querySelector('#line').innerText.startsWith('Your file.')")
    score = viewer.scores(viewer.upload(path))[0]
    assert f"{score.probability:.2f} ({score.low:.2f}–{score.high:.2f})" in _text(page, "scores")
    assert "its report" not in _text(page, "scores")
    page.screenshot(path=made / "upload.png", full_page=True)
    Image.open(made / "upload.png").verify()


@pytest.mark.slow
def test_without_studies_the_page_takes_uploads_and_shows_no_report(page, made):
    """A saved model alone: nothing of what it was trained on."""
    with serving(made, made / "alone.log", made / "model") as address:
        page.goto(address)
        page.locator("#go").wait_for()
        assert not page.locator("#row").is_visible()
        page.locator("#upload input[type=file]").set_input_files(
            sorted((made / "phantoms" / "images").glob("*.dcm"))[0]
        )
        page.locator("#upload").get_by_text("phantom-").first.wait_for()
        page.locator("#go").click()
        page.wait_for_function("document.querySelector('#line')?.innerText.startsWith('Your file.')")
        page.locator("#map img").wait_for()
        assert "No reports" in _text(page, "reports")
        assert "Atelectasis" in _text(page, "scores")
