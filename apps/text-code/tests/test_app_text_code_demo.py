"""The demo page in a real headless browser: search by meaning beside words, compare two sentences, mistakes are one line."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from mc_text_code import load_encoder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to open the page with")
QUERY = "The fox in the forest looks for water."


@pytest.fixture(scope="module")
def served(trained, corpus, tmp_path_factory):
    run, _ = trained
    log = tmp_path_factory.mktemp("demo") / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "mc-text-code"
    command = [program, "sentences", "demo", run, corpus, "--port", str(port), "--device", "cpu"]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(480):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.25)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def page(served):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1200, "height": 900})
        opened.set_default_timeout(60_000)
        opened.goto(served)
        yield opened
        browser.close()


def test_a_query_finds_the_sentence_by_meaning_and_by_words(page, tmp_path):
    page.locator("#query textarea, #query input").first.fill(QUERY)
    page.locator("#go").click()
    page.locator("#dense").get_by_text(QUERY).first.wait_for()
    page.locator("#lexical").get_by_text(QUERY).first.wait_for()
    assert "1.000" in page.locator("#dense").inner_text()
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_an_empty_query_is_one_line_and_the_page_stays_up(page):
    page.locator("#query textarea, #query input").first.fill("  ")
    page.locator("#go").click()
    page.locator(".toast-body").filter(has_text="the query is empty").first.wait_for()
    assert "Traceback" not in page.content()


def test_two_sentences_are_compared(page, trained):
    page.get_by_role("tab", name="Compare").click()
    pair = ["The cat in the house eats its food.", "The dog in the field runs very fast."]
    for name, text in zip(("first", "second"), pair, strict=True):
        page.locator(f"#{name} textarea, #{name} input").first.fill(text)
    page.locator("#compare").click()
    page.locator("#answer").get_by_text("cosine").first.wait_for()
    one, other = load_encoder(trained[0]).encode(pair, normalize=True)
    assert f"cosine {float(np.dot(one, other)):.3f}" in page.locator("#answer").inner_text()
