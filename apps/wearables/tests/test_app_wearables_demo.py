"""The demo page in a real headless browser: pick segments, look at neighbours, colour the map, upload files good and bad."""

from __future__ import annotations

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

from mc_core.errors import ConfigError
from mc_core.export import save_model
from mc_wearables.cohort import simulate_cohort
from mc_wearables.data.config import IngestOptions
from mc_wearables.data.ingestion import ingest
from mc_wearables.embedding import embed
from mc_wearables.encoders import SignalEncoder, load_encoder
from mc_wearables.encoders_config import EncoderConfig
from mc_wearables_app.explorer import Explorer, short_names
from mc_wearables_app.runs import Data, open_run
from mc_wearables_app.signal_figures import embedding_map, point_at, point_pixels, row_at, signal_rows

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
RATE, SECONDS, PEOPLE, EACH = 64.0, 10.0, 30, 4


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A saved encoder, a store of files of 30 people with age and sex, and files to upload."""
    folder = tmp_path_factory.mktemp("wearables-demo")
    torch.manual_seed(0)
    config = EncoderConfig(sampling_rate=RATE, seconds=SECONDS, channels=1, architecture="resnet", width=16, depth=4)
    save_model(SignalEncoder(config).eval(), folder / "encoder")
    cohort = simulate_cohort("ppg", participants=PEOPLE, segments=EACH, seconds=SECONDS, sampling_rate=RATE).segments
    records = folder / "records"
    records.mkdir()
    rows = ["file,participant,age,sex"]
    for person in range(PEOPLE):
        mine = np.flatnonzero(cohort.participant == person)
        wave = cohort.signals[mine, 0].reshape(-1)
        (records / f"r{person}.csv").write_text("ppg\n" + "\n".join(f"{v:.4f}" for v in wave) + "\n")
        sex = "female" if cohort.labels["sex"][mine[0]] else "male"
        rows.append(f"r{person}.csv,Patient {person},{cohort.labels['age'][mine[0]]:.0f},{sex}")
    (records / "records.csv").write_text("\n".join(rows) + "\n")
    # a salt of our own, so that the same people are held out each time
    (folder / "store.salt").write_text("07" * 32 + "\n")
    ingest(records, folder / "store", IngestOptions(signal="ppg", fs=RATE, seconds=SECONDS, rate=RATE))
    shutil.copy(records / "r3.csv", folder / "mine.csv")
    (folder / "broken.csv").write_text("ppg,a\n1,2\n3\n4,5,6\n" * 9)
    return folder


@pytest.fixture(scope="module")
def opened(made):
    run = open_run(made / "encoder")
    return run, run.data(made / "store")


@pytest.fixture(scope="module")
def explorer(opened):
    return Explorer(*opened)


def _with_own_neighbour(explorer: Explorer) -> int:
    """A segment with one of the same person among its nearest, not hidden by another on the map."""
    xy = explorer.plane("PCA")
    return next(
        row
        for row in range(4, len(xy))
        if any(n.same_person for n in explorer.neighbours(row)) and point_at(xy, tuple(point_pixels(xy)[row])) == row
    )


class TestExplorer:
    def test_neighbours_are_those_of_a_loop_over_centred_cosines(self, explorer):
        x = explorer.embeddings.astype(np.float64)
        x = x - x.mean(axis=0)
        for row in (0, len(x) - 1):
            cosine = [float(x[row] @ other / np.linalg.norm(x[row]) / np.linalg.norm(other)) for other in x]
            expected = sorted((i for i in range(len(x)) if i != row), key=lambda i: -cosine[i])[:8]
            found = explorer.neighbours(row)
            assert [n.row for n in found] == expected
            assert [n.similarity for n in found] == pytest.approx([cosine[i] for i in expected], abs=1e-5)
            people, sessions = explorer.segments.participant, explorer.segments.session
            assert [n.same_person for n in found] == [people[i] == people[row] for i in expected]
            assert [n.same_session for n in found] == [sessions[i] == sessions[row] for i in expected]
            assert not any(n.same_person for n in explorer.neighbours(row, others=True))

    def test_scores_belong_to_the_segment_shown(self, opened, explorer):
        _, data = opened
        table = data.store.metadata.to_pylist()
        for row in range(len(explorer.segments)):
            key = data.test.participant_keys[explorer.segments.participant[row]]
            number = int(explorer.pieces(row)[0][1])
            place = row - number
            of_person = [record for record in table if record["participant"] == key]
            wanted = f"| **{of_person[place]['quality']:.2f}** | {of_person[place]['template']:.2f} |"
            assert wanted in explorer.facts(row)
            assert explorer.name(row) == key[-6:]

    def test_an_even_choice_of_at_most_so_many_segments(self, opened):
        few = Explorer(*opened, limit=5)
        assert len(few.segments) == 5
        assert "quality" in few.facts(4)

    def test_an_upload_is_cut_as_the_store_was_and_finds_itself(self, made, opened, explorer, tmp_path):
        _, data = opened
        person = data.store.participant_codes(["Patient 3"])[0]
        raw = np.loadtxt(made / "mine.csv", skiprows=1)
        found = explorer.upload(str(made / "mine.csv"), RATE, "", "")
        encoder = load_encoder(made / "encoder")
        assert np.allclose(found.embeddings, embed(raw, sampling_rate=RATE, encoder=encoder, kind="ppg"), atol=1e-5)
        assert found.segments.start.tolist() == [0.0, 10.0, 20.0, 30.0]
        assert len(explorer.upload_segments(found)) == EACH
        held = int(explorer.segments.participant[0])
        mine = next(n for n in range(PEOPLE) if data.store.participant_codes([f"Patient {n}"])[0] == held)
        shutil.copy(made / "records" / f"r{mine}.csv", tmp_path / "again.csv")
        again = explorer.upload(str(tmp_path / "again.csv"), RATE, "", "")
        assert again.similarity == pytest.approx(1, abs=1e-3)  # the store holds 16 bits
        assert set(explorer.segments.participant[again.nearest]) == {held}
        assert explorer.upload_people(again)[0][0] == explorer.name(0)
        assert person != held

    def test_a_label_that_is_not_there(self, explorer):
        with pytest.raises(ConfigError, match=r"--label aeg: the people held out of store have .* did you mean age\?"):
            explorer.check_label("aeg")


def test_short_names_tell_people_apart():
    keys = ["a" * 10 + "1234567", "b" * 10 + "0234567"]
    assert short_names(keys) == ["1234567", "0234567"]


def test_a_click_on_a_point_of_the_picture_means_that_point():
    rng = np.random.default_rng(0)
    xy = rng.normal(size=(40, 2)) * (3, 0.1)
    image = np.asarray(embedding_map(xy, rng.normal(size=40), picked=7, title="x")).astype(int)
    for row, (x, y) in enumerate(point_pixels(xy)):
        assert point_at(xy, (x, y)) is not None
        assert image[round(y), round(x)].min() < 200, row  # no paper
    assert point_at(xy, tuple(point_pixels(xy)[7] + 1)) == 7
    assert point_at(xy, (639, 1)) is None


def test_a_click_on_a_row_of_the_picture_means_that_row(explorer):
    picked = _with_own_neighbour(explorer)
    near = explorer.neighbours(picked)
    image = np.asarray(explorer.neighbour_picture(picked, near)).astype(int)
    assert len(near) == 8
    for number, n in enumerate(near, start=1):
        rows = [y for y in range(len(image)) if row_at(y, 9) == number]
        strip = image[rows].reshape(-1, 3)
        colored = int((strip.max(axis=1) - strip.min(axis=1) > 60).sum())
        assert (colored > 100) == n.same_person
    assert row_at(len(image) - 1, 9) is None
    assert signal_rows([], RATE, "ppg").height < 100


def test_people_of_a_simulated_cohort_have_no_quality(made):
    opened = open_run(made / "encoder")
    cohort = simulate_cohort("ppg", participants=3, segments=2, seconds=SECONDS, sampling_rate=RATE).segments
    explorer = Explorer(opened, Data("simulated-ppg", cohort, cohort))
    assert "not assessed" in explorer.facts(0)
    assert "age **" in explorer.facts(0)
    assert explorer.persons()[2] == ("00002 (2 segments)", 4)


@pytest.fixture(scope="module")
def served(made):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "mc-wearables"
    command = [program, "demo", made / "encoder", made / "store", "--port", str(port), "--device", "cpu"]
    with (made / "log").open("w") as log:
        environment = os.environ | {"GRADIO_TEMP_DIR": str(made / "visitors"), "TMPDIR": str(made)}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        _wait(f"http://127.0.0.1:{port}/", process, made / "log")
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    left = [path.name for path in made.glob("visitors/**/*.csv")] + list(made.glob("mc-wearables-demo-*"))
    assert not left, "what visitors brought outlives the page"


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
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.set_default_timeout(60_000)
        opened.goto(served)
        yield opened
        browser.close()


def _source(page, name: str) -> str:
    return page.locator(f"#{name} img").get_attribute("src")


def _changed(page, name: str, before: str) -> None:
    page.wait_for_function(f"document.querySelector('#{name} img')?.getAttribute('src') !== {before!r}")


def _click(page, name: str, x: float, y: float) -> None:
    """At a pixel of the picture, whatever its size on the page."""
    picture = page.locator(f"#{name} img")
    width, height = picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    box = picture.bounding_box()
    picture.click(position={"x": x * box["width"] / width, "y": y * box["height"] / height})


def _value(page, name: str) -> str:
    return page.locator(f"#{name} input").input_value()


def test_the_page_shows_a_segment_its_beats_quality_and_neighbours(page, explorer):
    page.wait_for_function("document.querySelector('#rate')?.innerText.includes('beats per minute')")
    text = page.locator("body").inner_text()
    assert "Research use, not a medical device." in text
    assert "Embeddings can identify people" in text
    assert "Patient" not in text
    assert explorer.name(0) in _value(page, "person")
    beats, rate = explorer.beats(0)
    assert page.locator("#rate").inner_text().split()[0] == f"{rate:.0f}"
    assert f"{len(beats)} beats found" in page.locator("#rate").inner_text()
    assert f"{explorer.segments.quality[0]:.2f}" in page.locator("#facts").inner_text()
    own = sum(n.same_person for n in explorer.neighbours(0))
    assert page.locator("#line").inner_text().startswith(f"{own} of the 8 nearest")


def test_another_segment_changes_the_pictures(page, explorer, tmp_path):
    before = {name: _source(page, name) for name in ("signal", "near", "map")}
    page.locator("#after").click()
    for name, source in before.items():
        _changed(page, name, source)
    page.wait_for_function("document.querySelector('#piece input').value.startsWith('#2')")

    before = _source(page, "signal")
    name, first = explorer.persons()[1]
    page.locator("#person input").click()
    page.get_by_role("option", name=name).click()
    _changed(page, "signal", before)
    page.wait_for_function("document.querySelector('#piece input').value.startsWith('#1')")
    rate = explorer.beats(first)[1]
    page.wait_for_function(f"document.querySelector('#rate').innerText.startsWith('{rate:.0f} beats')")

    before = _source(page, "signal")
    page.locator("#mark input").uncheck()
    _changed(page, "signal", before)
    page.locator("#mark input").check()
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 50_000


def test_clicks_on_the_map_and_on_a_neighbour_pick_them(page, explorer):
    xy = explorer.plane("PCA")
    hit = _with_own_neighbour(explorer)
    _click(page, "map", *point_pixels(xy)[hit].tolist())
    page.wait_for_function(f"document.querySelector('#person input').value.startsWith('{explorer.name(hit)}')")

    near = explorer.neighbours(hit, others=True)[1].row
    before = _source(page, "near")
    page.locator("#others input").check()
    _changed(page, "near", before)
    assert page.locator("#line").inner_text().startswith("0 of the 8 nearest")
    _click(page, "near", 300, next(y for y in range(999) if row_at(y, 9) == 2) + 20)
    page.wait_for_function(f"document.querySelector('#person input').value.startsWith('{explorer.name(near)}')")


def test_the_map_is_coloured_by_a_label(page):
    before = _source(page, "map")
    for label in ("age", "sex"):
        page.locator("#color input").click()
        page.get_by_role("option", name=label).click()
        _changed(page, "map", before)
        before = _source(page, "map")


def test_bad_uploads_are_one_line_and_a_good_one_follows(page, made):
    page.get_by_role("tab", name="Your own recording").click()
    toast = page.locator(".toast-body")

    def refused(text: str) -> None:
        page.locator("#go").click()
        toast.filter(has_text=text).first.wait_for()
        assert "Traceback" not in page.content()

    def choose(name: str) -> None:
        if page.locator("#upload").get_by_label("Clear").count():
            page.locator("#upload").get_by_label("Clear").click()
        page.locator("#upload input[type=file]").set_input_files(made / f"{name}.csv")
        page.locator("#upload").get_by_text(name).first.wait_for()

    refused("choose a file first")
    choose("mine")
    refused("give it in Hz, in the field “Sampling rate”")
    page.locator("#fs input").fill("64")
    choose("broken")
    refused("cells instead of 2")
    choose("mine")
    page.locator("#go").click()
    page.wait_for_function("document.querySelector('#outcome')?.innerText.includes('4 segments of 10 s')")
    page.locator("#pairs img").wait_for()
    assert "your segments nearest to theirs" in page.locator("#people").inner_text()
    with page.expect_download() as download:
        page.locator("#save").click()
    rows = download.value.path().read_text().splitlines()
    assert len(rows) == 1 + EACH
    assert rows[0].startswith("segment,from_second,e0,")
    page.screenshot(path=made / "uploaded.png", full_page=True)
