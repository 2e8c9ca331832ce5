"""The demo page in a real headless browser: load a photo, click, see the mask change; bad uploads; neighbours."""

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
import torch
from PIL import Image

from mc_core.export import save_model
from mc_testkit.files import write_image_folder
from mc_vision.encoders import TimmEncoder
from mc_vision.encoders_config import EncoderConfig

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to open the page with")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    torch.manual_seed(0)
    save_model(TimmEncoder(EncoderConfig(backbone="moco-vit-tiny-8", image_size=64)), folder / "encoder")
    write_image_folder(folder / "images", each=4)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (80, 120, 3))
    pixels[16:48, 24:72] += 180
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "square.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "mc-vision"
    command = [
        program,
        "demo",
        folder / "encoder",
        "--index",
        folder / "images",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait(f"http://127.0.0.1:{port}/", process, folder / "log")
        yield f"http://127.0.0.1:{port}/", folder
    finally:
        process.terminate()
        process.wait(30)


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
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1100, "height": 900})
        opened.set_default_timeout(60_000)
        opened.goto(served[0])
        yield opened
        browser.close()


def test_a_click_shows_the_mask_and_the_slider_changes_it(page, served, tmp_path):
    _, folder = served
    page.locator("#upload input[type=file]").set_input_files(folder / "square.png")
    line = page.locator("#line")
    page.wait_for_function("document.querySelector('#line').innerText.includes('120 × 80 pixels')")
    photo = page.locator("#photo img")
    before = photo.get_attribute("src")
    box = photo.bounding_box()
    photo.click(position={"x": box["width"] * 48 / 120, "y": box["height"] * 32 / 80})
    page.wait_for_function("document.querySelector('#line').innerText.includes('of the photo looks like')")
    assert photo.get_attribute("src") != before
    first = line.inner_text()
    x, y = (int(v) for v in first.partition("(")[2].rstrip(").").split(", "))
    assert abs(x - 48) <= 2
    assert abs(y - 32) <= 2

    masked, slider = photo.get_attribute("src"), page.locator("#threshold input[type=range]")
    slider.focus()
    page.keyboard.press("Home")  # everything is as similar as −1
    page.wait_for_function("document.querySelector('#line').innerText.startsWith('100.0 %')")
    assert photo.get_attribute("src") != masked
    assert not page.locator("#auto input").is_checked()  # the threshold is the visitor's now
    assert float(slider.input_value()) == -1
    page.keyboard.press("End")
    page.wait_for_function("document.querySelector('#line').innerText.startsWith('0.0 %')")
    page.locator("#auto input").check()
    page.wait_for_function(f"document.querySelector('#line').innerText == {first!r}")
    page.screenshot(path=tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_an_unreadable_upload_is_one_line_and_the_page_stays_up(page, served):
    _, folder = served
    page.reload()
    page.locator("#upload input[type=file]").set_input_files(folder / "broken.png")
    page.get_by_text("broken.png").first.wait_for()
    page.locator(".toast-body").first.wait_for()
    assert "Traceback" not in page.content()
    page.reload()
    page.locator("#upload input[type=file]").set_input_files(folder / "square.png")
    page.wait_for_function("document.querySelector('#line').innerText.includes('120 × 80 pixels')")


def test_neighbours_of_an_image_begin_with_itself(page, served):
    _, folder = served
    page.get_by_role("tab", name="Neighbours").click()
    page.locator("#asked input[type=file]").set_input_files(folder / "images" / "cat" / "000.png")
    page.wait_for_function("document.querySelectorAll('#neighbours img').length >= 8")
    assert "1.000" in page.locator("#neighbours").inner_text()
