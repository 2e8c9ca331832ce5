"""The demo page in a real headless browser: the slider changes the map, the checkbox sets it against the labels."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to open the page with")


@pytest.fixture(scope="module")
def served(finished, tmp_path_factory):
    run, _ = finished
    log_file = tmp_path_factory.mktemp("demo") / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "mc-remote-sensing"
    with log_file.open("w") as log:
        process = subprocess.Popen(
            [program, "demo", run, "--map", run / "map.tif", "--port", str(port), "--device", "cpu"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(240):
            assert process.poll() is None, log_file.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)


def share(text: str) -> float:
    return float(re.search(r"([\d.]+) % of the ground", text)[1])


def test_the_slider_changes_map_and_share_and_the_labels_can_be_shown(served, tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(served)
        shown, line = page.locator("#map img"), page.locator("#line")
        page.wait_for_function("(document.querySelector('#line')?.innerText ?? '').includes('of the ground')")
        first, before = line.inner_text(), shown.get_attribute("src")
        slider = page.locator("#threshold input[type=range]")
        slider.focus()
        page.keyboard.press("Home")  # everything is at least 0
        page.wait_for_function("(document.querySelector('#line')?.innerText ?? '').startsWith('From 0.00')")
        assert share(line.inner_text()) == 100
        assert shown.get_attribute("src") != before
        slider.focus()
        page.keyboard.press("End")
        page.wait_for_function("(document.querySelector('#line')?.innerText ?? '').startsWith('From 1.00')")
        assert share(line.inner_text()) <= share(first)
        plain = shown.get_attribute("src")
        page.locator("#compare input").check()
        page.wait_for_function(f"document.querySelector('#map img').src != {plain!r}")
        page.screenshot(path=tmp_path / "page.png")
        assert "Traceback" not in page.content()
        browser.close()
    assert (tmp_path / "page.png").stat().st_size > 10_000
