"""Pointing at a photo with ViT-S/16: time to encode it once, from a click to the mask, and the click in a real browser."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from mc_benchmarks.contract import Report, Row, environment, median, spread
from mc_core.errors import ConfigError
from mc_core.export import save_model
from mc_core.optional import require
from mc_vision.data.masks import MaskedScenes
from mc_vision.encoders import TimmEncoder
from mc_vision.encoders_config import EncoderConfig
from mc_vision.prompt import encode_photo, mask_overlay, otsu_threshold
from mc_vision.transforms_config import IMAGENET_MEAN, IMAGENET_STD

_SIDE = 512
_CLICKED = """() => {
  const watch = new MutationObserver(() => { window.shown = performance.now(); });
  watch.observe(document.querySelector('#photo'), {subtree: true, attributes: true, childList: true});
  document.querySelector('#photo').addEventListener('click', () => { window.clicked = performance.now(); }, true);
}"""


def run_segment(*, repeats: int = 15, page: bool = True) -> Report:
    """Measure, save, show."""
    torch.manual_seed(0)
    encoder = TimmEncoder(EncoderConfig(backbone="vit_small_patch16_224", image_size=224)).eval()
    photo = MaskedScenes(1, size=_SIDE)[0].image
    encoding, clicking = [], []
    for number in range(repeats + 2):
        start = time.perf_counter()
        encoded = encode_photo(encoder, photo, size=_SIDE, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        middle = time.perf_counter()
        similarity = encoded.similarity([(100.0 + 20 * number, 200.0)])
        mask = (similarity > otsu_threshold(similarity)).numpy()
        mask_overlay(photo, mask, [(100.0 + 20 * number, 200.0)])
        if number >= 2:
            encoding.append(middle - start)
            clicking.append(time.perf_counter() - middle)
    found = {"encode the photo": encoding, "click to mask and overlay": clicking}
    if page:
        found["click to mask in the page of mc-vision demo, headless Chromium"] = _in_browser(encoder, photo, repeats)
    report = Report(
        benchmark="segment_cpu",
        command="uv run mc-benchmark segment",
        question=f"Pointing at a photo of {_SIDE} × {_SIDE} pixels, ViT-S/16, model loaded",
        settings={"repeats": repeats, "side": _SIDE},
        environment=environment(torch.device("cpu")),
        columns=["ms (median)", "ms (IQR)"],
        rows=[
            Row(name=name, values={"ms (median)": 1e3 * median(times), "ms (IQR)": 1e3 * spread(times)})
            for name, times in found.items()
        ],
        reading="A photo is encoded once; every click after that is a product of its patches with the one pointed at.",
    )
    report.save()
    report.show()
    return report


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "mc-vision"
    command = [program, "demo", folder / "encoder", "--port", str(port), "--image-size", str(_SIDE), "--device", "cpu"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(url, timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        else:
            raise ConfigError(f"mc-vision demo does not answer: {(folder / 'log').read_text().strip()[-300:]}")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _in_browser(encoder: TimmEncoder, photo: Image.Image, repeats: int) -> list[float]:
    """Seconds from a click until the photo in the page shows the new mask."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise ConfigError("no Chromium is installed to open the page with; leave it out with --no-page")
    play = require("playwright.sync_api", extra="playwright", purpose="time the page")
    with tempfile.TemporaryDirectory() as name, play.sync_playwright() as session:
        folder = Path(name)
        save_model(encoder, folder / "encoder")
        photo.save(folder / "photo.png")
        with _served(folder) as url:
            browser = session.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1100, "height": 900})
            page.set_default_timeout(60_000)
            page.goto(url)
            page.locator("#upload input[type=file]").set_input_files(folder / "photo.png")
            page.wait_for_function("document.querySelector('#line').innerText.includes('pixels')")
            page.evaluate(_CLICKED)
            image, line, times = page.locator("#photo img"), page.locator("#line"), []
            for number in range(repeats + 3):
                before = line.inner_text()
                page.evaluate("window.shown = 0")
                image.click(position={"x": 60 + 15 * number, "y": 150})
                page.wait_for_function(f"document.querySelector('#line').innerText != {before!r}")
                page.wait_for_function("window.shown > 0")
                page.wait_for_timeout(150)  # all changes are in
                if number >= 3:
                    times.append(page.evaluate("(window.shown - window.clicked) / 1000"))
            browser.close()
    return times
