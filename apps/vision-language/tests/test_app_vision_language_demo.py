"""The demo page: what it shows of pictures, and in a real headless browser."""

from __future__ import annotations

import contextlib
import json
import math
import os
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

from mc_core.errors import BadSampleError, ConfigError, DataError, McError
from mc_core.samples import digit_scenes
from mc_vision_language.encoders_config import ImageEncoderConfig, TextEncoderConfig, VisionLanguageConfig
from mc_vision_language.model import VisionLanguageModel, load_vision_language_model
from mc_vision_language.search import CaptionHit, Hit
from mc_vision_language.tasks.config import VQAConfig
from mc_vision_language.tasks.grounding import ground
from mc_vision_language.tasks.vqa import VQAModel
from mc_vision_language.tokenizers import train_tokenizer
from mc_vision_language_app.demo import open_viewer
from mc_vision_language_app.pair_options import PairOptions
from mc_vision_language_app.viewer import (
    SIDE,
    Viewer,
    answer_table,
    enlarged,
    hit_label,
    hit_line,
    overlay,
    readable,
    sentence_table,
)

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
TRAP = "<script>document.title='caught'</script> & <b>bold</b>"
TEXT = "a large red three"
COUNT = 20


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model and one that answers, neither ever trained, a folder of pictures, and files to upload."""
    folder = tmp_path_factory.mktemp("vision-language-demo")
    scenes = digit_scenes(COUNT, size=40, digits=(1, 2))
    (folder / "photos").mkdir()
    for row, pixels in enumerate(scenes.images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / "photos" / f"{row:02d}.png")
    encoders = {
        "image": ImageEncoderConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2),
        "text": TextEncoderConfig(hidden_size=16, heads=2, text_layers=1, fusion_layers=2, vocabulary=200, dropout=0.0),
        "dim": 8,
    }
    tokenizer = train_tokenizer([*scenes.captions, "what color is it", "yes no red"], 200)
    torch.manual_seed(0)
    VisionLanguageModel(VisionLanguageConfig(**encoders), tokenizer).eval().save(folder / "model")
    answering = VQAModel(VQAConfig(**encoders, decoder_layers=1, answer_length=4), tokenizer).eval()
    answering.answers = ("red", "blue", "three", TRAP)
    answering.save(folder / "answers")
    (folder / "notes.txt").write_text("no picture")
    Image.fromarray(np.full((30, 50, 3), 90, np.uint8)).save(folder / "mine.png")
    return folder


@pytest.fixture(scope="module")
def viewer(made) -> Viewer:
    return open_viewer(made / "model", str(made / "photos"), PairOptions(), vqa=made / "answers", device="cpu")


@pytest.fixture(scope="module")
def model(made) -> VisionLanguageModel:
    return load_vision_language_model(made / "model")


class TestViewer:
    def test_finds_what_the_model_finds(self, viewer, model):
        pictures = [viewer.images.read(row) for row in range(COUNT)]
        match = model.match_scores(pictures, [TEXT] * COUNT)
        cosine = model.encode_image(pictures) @ model.encode_text([TEXT])[0]
        found = viewer.search(f"  {TEXT} ")
        assert len(found) == 12
        for hit in found:
            assert hit.name == viewer.images.name(hit.row)
            assert hit.cosine == pytest.approx(cosine[hit.row], abs=1e-4)
            assert hit.match == pytest.approx(match[hit.row], abs=0.05)
        assert [hit.match for hit in found] == sorted((hit.match for hit in found), reverse=True)

    def test_without_words_the_first_ones(self, viewer):
        found = viewer.search("  ")
        assert [hit.row for hit in found] == list(range(12))
        assert hit_label(found[0]) == "00.png"

    def test_answers_with_probabilities(self, viewer, made):
        shown = viewer.shown(3)
        found = viewer.answers(shown, " what color is it ")
        expected = viewer.vqa.scored([shown.picture], ["what color is it"], top=5)[0]
        assert [answer for answer, _ in found] == [answer for answer, _ in expected]
        assert [p for _, p in found] == pytest.approx([math.exp(score) for _, score in expected])
        with pytest.raises(DataError, match="write a question first"):
            viewer.answers(shown, " ")

    def test_a_model_without_a_list_says_what_it_likes(self, viewer, monkeypatch):
        monkeypatch.setattr(viewer.vqa, "answers", ())
        ((answer, probability),) = viewer.answers(viewer.shown(0), "what color is it")
        assert isinstance(answer, str)
        assert math.isnan(probability)

    def test_without_answers_it_says_so(self, made):
        alone = open_viewer(made / "model", str(made / "photos"), PairOptions(), vqa=None, device="cpu")
        with pytest.raises(DataError, match="answers no questions: open it with --vqa"):
            alone.answers(alone.shown(0), "what color is it")
        with pytest.raises(ConfigError, match="model answers no questions"):
            open_viewer(made / "model", None, PairOptions(), vqa=made / "model", device="cpu")

    def test_where_is_the_map_and_the_box_of_the_model(self, viewer, model):
        shown = viewer.shown(5)
        found = ground(model, shown.picture, "the red digit")
        picture, line = viewer.where(shown, " the red  digit")
        assert picture == overlay(shown.picture, found.heat, found.box)
        assert line.startswith("Box " + ", ".join(f"{value:.0f}" for value in found.box) + " of 40 × 40 pixels")
        with pytest.raises(DataError, match="write a phrase first"):
            viewer.where(shown, "")

    def test_sentences_are_put_in_order(self, viewer, model):
        shown = viewer.shown(2)
        texts = ["a large red three", "a small blue two", "a large red three", ""]
        found = viewer.fitting(shown, "\n".join(texts))
        assert sorted(hit.text for hit in found) == sorted(set(texts) - {""})
        for hit in found:
            assert hit.match == pytest.approx(model.match_scores([shown.picture], [hit.text])[0], abs=1e-4)
        assert found[0].match >= found[1].match
        with pytest.raises(DataError, match="write sentences first"):
            viewer.fitting(shown, " \n ")
        with pytest.raises(DataError, match="101 sentences"):
            viewer.fitting(shown, "\n".join(f"a {i}" for i in range(101)))

    def test_uploads_are_made_smaller_and_named_without_their_path(self, viewer, made, tmp_path):
        shown = viewer.upload(made / "mine.png")
        assert (shown.picture.size, shown.name, shown.row) == ((50, 30), "your file", None)
        Image.new("RGB", (3000, 1500)).save(tmp_path / "large.jpg")
        assert max(viewer.upload(tmp_path / "large.jpg").picture.size) <= 1024
        for name, content in (("Doe.png", b""), ("Doe.txt", b"text")):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(BadSampleError) as error:
                viewer.upload(tmp_path / name)
            assert str(error.value).startswith("your file: ")
            assert "Doe" not in str(error.value)

    def test_a_picture_that_went_away_is_left_out(self, made, tmp_path):
        shutil.copytree(made / "photos", tmp_path / "photos")
        here = open_viewer(made / "model", str(tmp_path / "photos"), PairOptions(), vqa=None, device="cpu")
        (tmp_path / "photos" / "01.png").unlink()
        found = readable(here, here.search(""))
        assert [hit.row for hit, _ in found] == [0, *range(2, 12)]
        with pytest.raises(McError):
            here.shown(1)
        with pytest.raises(DataError, match="choose a picture first"):
            here.shown(COUNT)

    def test_scenes_come_with_examples(self, made):
        scenes = open_viewer(made / "model", None, PairOptions(), vqa=None, device="cpu")
        assert len(scenes.index) == len(scenes.captions) == 300
        assert scenes.captions[0].startswith("a ")


class TestPictures:
    def test_small_ones_stay_squares(self):
        pixels = np.zeros((2, 4, 3), np.uint8)
        pixels[0, 0] = 255
        large = np.asarray(enlarged(Image.fromarray(pixels)))
        assert large.shape == (SIDE // 2, SIDE, 3)
        assert set(np.unique(large)) == {0, 255}
        assert (large[: SIDE // 4, : SIDE // 4] == 255).all()

    def test_the_map_is_red_where_it_is_high_and_the_box_where_it_is(self):
        heat = np.zeros((4, 4), np.float32)
        heat[0, 0] = 7.0
        mixed = np.asarray(overlay(Image.new("RGB", (4, 4), "black"), heat, (2, 2, 4, 4))).astype(int)
        assert mixed[20, 20, 0] > 100 > mixed[20, 20, 1]
        assert mixed[SIDE - 60, 60].tolist() == [0, 0, 0]
        for y, x in ((SIDE // 2, SIDE // 2), (SIDE - 1, SIDE - 1), (SIDE // 2, SIDE - 1)):
            assert mixed[y, x].tolist() == [255, 255, 0]

    def test_a_map_of_nothing_changes_nothing(self):
        mixed = np.asarray(overlay(Image.new("RGB", (4, 4), "white"), np.zeros((4, 4), np.float32), (0, 0, 1, 1)))
        assert (mixed[SIDE // 2 :] == 255).all()


class TestHtml:
    def test_texts_are_text_whatever_they_hold(self):
        for found in (answer_table([(TRAP, 0.25)]), sentence_table([CaptionHit(0, TRAP, 0.1, 1.0)])):
            assert "<script" not in found
            assert "&lt;script&gt;" in found
        assert "0.25" in answer_table([(TRAP, 0.25)])
        assert "below 0.01" in answer_table([("x", 0.0001)])
        assert "nan" not in answer_table([("x", math.nan)])
        assert "cosine 0.10" in sentence_table([CaptionHit(0, "x", 0.1, -1.0)])
        assert "match -1.0" in sentence_table([CaptionHit(0, "x", 0.1, -1.0)])

    def test_labels_name_the_file_and_what_was_measured(self):
        assert hit_label(Hit(0, "a/b.jpg", 0.5, None)) == "0.50 · b.jpg"
        assert hit_label(Hit(0, "a/b.jpg", 0.5, 2.0)) == "+2.0 · b.jpg"
        assert hit_line(Hit(0, "a/`b.jpg", 0.5, 2.0)) == "`a/b.jpg` · cosine 0.50 · match +2.0"
        assert hit_line(Hit(0, "a/b.jpg", 0.5, None)) == "`a/b.jpg` · cosine 0.50"


@contextlib.contextmanager
def serving(made, log, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "mc-vision-language"
    command = [program, "demo", *arguments, "--port", str(port), "--device", "cpu"]
    with log.open("w") as file:
        environment = os.environ | {"GRADIO_TEMP_DIR": str(made / "visitors"), "TMPDIR": str(made)}
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            # tests that run in the background of a shell ignore Ctrl-C, and so would what they start
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        _wait(f"http://127.0.0.1:{port}/", process, log)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):  # a busy machine needs minutes for what takes seconds
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def page(made):
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed to open the page with")
    from playwright.sync_api import sync_playwright

    with (
        serving(made, made / "log", made / "model", made / "photos", "--vqa", made / "answers") as address,
        sync_playwright() as play,
    ):
        browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        opened = browser.new_page(viewport={"width": 1280, "height": 1000})
        opened.set_default_timeout(60_000)
        opened.goto(address)
        yield opened
        browser.close()


def _source(page, name: str) -> str | None:
    images = page.locator(f"#{name} img")
    return images.first.get_attribute("src") if images.count() else None


def _changed(page, name: str, before: str | None) -> None:
    page.wait_for_function(
        f"(document.querySelector('#{name} img')?.getAttribute('src') ?? null) !== {json.dumps(before)}"
    )


def _says(page, name: str, text: str) -> None:
    page.wait_for_function(f"document.querySelector('#{name}')?.innerText.includes({json.dumps(text)})")


def _write(page, name: str, text: str) -> None:
    page.locator(f"#{name} input, #{name} textarea").fill(text)


def _refused(page, text: str) -> None:
    page.locator(".toast-body").filter(has_text=text).first.wait_for()
    assert "Traceback" not in page.content()


def test_the_page_opens_with_pictures_one_of_them_large(page, made):
    page.locator("#found img").first.wait_for()
    page.locator("#picture img").wait_for()
    assert page.locator("#found img").count() == 12
    body = page.locator("body").inner_text()
    assert f"{COUNT} pictures of photos" in body
    assert "it is no probability" in body
    assert "00.png" in page.locator("#line").inner_text()
    page.screenshot(path=made / "page.png", full_page=True)


def test_a_search_puts_the_best_first_and_another_can_be_taken(page, viewer, made):
    before = _source(page, "found")
    _write(page, "query", TEXT)
    page.locator("#search").click()
    _changed(page, "found", before)
    best = viewer.search(TEXT)
    _says(page, "line", Path(best[0].name).name)
    _says(page, "found", hit_label(best[0]))
    large = _source(page, "picture")
    page.locator("#found img").nth(4).click()
    _changed(page, "picture", large)
    _says(page, "line", Path(best[4].name).name)
    _says(page, "line", f"cosine {best[4].cosine:.2f} · match {best[4].match:+.1f}")


def test_a_question_is_answered_and_code_is_shown_as_text(page, viewer):
    shown = viewer.shown(viewer.search(TEXT)[4].row)
    page.locator("#ask").click()
    _refused(page, "write a question first")
    _write(page, "question", "what color is it")
    page.locator("#ask").click()
    for answer, probability in viewer.answers(shown, "what color is it"):
        _says(page, "answers", answer)
        _says(page, "answers", f"{probability:.2f}" if probability >= 0.005 else "below 0.01")
    assert page.locator("#answers script").count() == 0
    assert "caught" not in page.title()


def test_a_phrase_is_shown_in_the_picture(page, viewer):
    page.locator("#point").click()
    _refused(page, "write a phrase first")
    _write(page, "phrase", "the red digit")
    before = _source(page, "map")
    page.locator("#point").click()
    _changed(page, "map", before)
    shown = viewer.shown(viewer.search(TEXT)[4].row)
    _says(page, "map-line", viewer.where(shown, "the red digit")[1].split(" of ")[0])
    assert "what color is it" in page.locator("#question input, #question textarea").input_value()


def test_sentences_are_compared(page, viewer):
    _write(page, "sentences", f"a small blue two\n{TEXT}")
    page.locator("#compare").click()
    shown = viewer.shown(viewer.search(TEXT)[4].row)
    for hit in viewer.fitting(shown, f"a small blue two\n{TEXT}"):
        _says(page, "fits", hit.text)
        _says(page, "fits", f"cosine {hit.cosine:.2f}")


def test_uploads_bad_and_good(page, made, viewer):
    def choose(path: Path) -> None:
        if page.locator("#upload").get_by_label("Clear").count():
            page.locator("#upload").get_by_label("Clear").click()
        page.locator("#upload input[type=file]").set_input_files(path)
        page.locator("#upload").get_by_text(path.stem).first.wait_for()

    page.locator("#go").click()
    _refused(page, "choose a file first")
    choose(made / "notes.txt")
    page.locator("#go").click()
    _refused(page, "your file: ")
    choose(made / "mine.png")
    before = _source(page, "picture")
    page.locator("#go").click()
    _changed(page, "picture", before)
    _says(page, "line", "your file")
    assert page.locator("#map img").count() == 0  # what was said about the picture before is gone
    assert page.locator("#answers table").count() == 0
    _write(page, "question", "what color is it")
    page.locator("#ask").click()
    answer, _ = viewer.answers(viewer.upload(made / "mine.png"), "what color is it")[0]
    _says(page, "answers", answer)
    page.screenshot(path=made / "upload.png", full_page=True)
    Image.open(made / "upload.png").verify()


@pytest.mark.slow
def test_without_a_model_that_answers_the_page_says_so(page, made):
    with serving(made, made / "alone.log", made / "model") as address:
        page.goto(address)
        page.locator("#found img").first.wait_for()
        assert "This page answers no questions" in page.locator("#answers").inner_text()
        assert not page.locator("#ask").is_visible()
        assert "300 pictures of digit scenes" in page.locator("body").inner_text()
        _write(page, "phrase", "the red digit")
        page.locator("#point").click()
        page.locator("#map img").wait_for()
        assert "This page answers no questions" in page.locator("#answers").inner_text()
