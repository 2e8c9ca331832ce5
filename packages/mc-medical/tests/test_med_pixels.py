"""The pixel store: the same squares from one process, several, or a cache that was interrupted; bad images counted."""

from __future__ import annotations

import contextlib
import os
import runpy
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mc_core.errors import BadSampleError, DataError
from mc_core.locks import locked
from mc_medical.data import pixels as pixels_module
from mc_medical.data.cohort import Studies
from mc_medical.data.image_config import ImageOptions
from mc_medical.data.image_ref import ImageRef
from mc_medical.data.inspection import contact_sheet, inspect_image, inspection_figure
from mc_medical.data.pixels import PixelStore
from mc_medical.data.radiograph import looks_inverted, read_radiograph, square
from mc_medical.data.studies import open_studies

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_radiographs.py"))))


def cohort(files: list[Path], **options) -> Studies:
    n = len(files)
    return Studies(
        images=tuple(ImageRef(str(path)) for path in files),
        reports=("Clear lungs.",) * n,
        patients=np.arange(n),
        studies=np.arange(n),
        text_ids=np.zeros(n, dtype=np.int64),
        views=np.array(["PA"] * n),
        splits=np.array([""] * n),
        rows=np.arange(2, n + 2),
        label_names=(),
        labels=np.zeros((n, 0), dtype=np.float32),
        options=ImageOptions(**{"size": 16, **options}),
    )


@pytest.fixture
def mixed(tmp_path) -> list[Path]:
    """Twelve images of which five cannot be used, two of them for the same reason."""
    good = [
        write.save(tmp_path / f"good{n}.dcm", write.dicom(write.chest(seed=n), WindowCenter=2000, WindowWidth=4000))
        for n in range(6)
    ]
    doubtful = write.save(tmp_path / "doubt.dcm", write.dicom(write.chest(), PresentationLUTShape="INVERSE"))
    bad = [
        write.save(tmp_path / "SECRET-text.dcm", b"no image at all"),
        write.save(tmp_path / "rgb.dcm", write.dicom(write.chest(), PhotometricInterpretation="RGB")),
        tmp_path / "missing.dcm",
        write.save(
            tmp_path / "lut1.dcm", write.dicom(write.chest(), VOILUTSequence=write.lut(np.arange(9), entries=12))
        ),
        write.save(
            tmp_path / "lut2.dcm", write.dicom(write.chest(), VOILUTSequence=write.lut(np.arange(8), entries=99))
        ),
    ]
    return [bad[0], *good[:3], bad[1], doubtful, bad[2], *good[3:], bad[3], bad[4]]


@contextlib.contextmanager
def locked_elsewhere(path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        yield


GOOD = [1, 2, 3, 5, 7, 8, 9]


def test_rows_stay_and_what_cannot_be_read_is_counted(mixed):
    store = PixelStore.build(cohort(mixed))
    assert store.good.tolist() == GOOD
    assert (len(store), store.size, store.array.dtype) == (12, 16, np.uint8)
    for i in range(12):
        expected = square(read_radiograph(mixed[i]).pixels, 16) if i in GOOD else np.zeros((16, 16), np.uint8)
        np.testing.assert_array_equal(store.pixels[i], expected)
    assert store.dropped == {
        "no image: neither DICOM nor PNG nor JPEG": 1,
        "colour": 1,
        "no such file": 1,
        "VOI LUT declares # entries, its data hold #": 2,
    }
    assert store.examples["colour"] == "row 6: colour (RGB, 1 samples per pixel); a radiograph is grey"
    assert store.examples["VOI LUT declares # entries, its data hold #"].startswith("row 12: VOI LUT declares 12")
    assert store.notes == Counter({"PresentationLUTShape INVERSE contradicts MONOCHROME#, which is followed": 1})
    assert "SECRET" not in str(store.describe())


def test_several_processes_give_the_same(mixed):
    one, two = (PixelStore.build(cohort(mixed), processes=n) for n in (1, 2))
    np.testing.assert_array_equal(one.array, two.array)
    assert one.describe() == two.describe()
    assert one.good.tolist() == two.good.tolist()


def test_processes_start_only_where_they_pay(mixed, monkeypatch):
    asked = []

    def map_items(function, items, *, processes, chunk):
        asked.append(processes)
        return map(function, items)

    monkeypatch.setattr(pixels_module, "map_items", map_items)
    monkeypatch.setattr(pixels_module, "available_processes", lambda: 7)
    many = cohort([mixed[1]] * 40)
    PixelStore.build(many)
    PixelStore.build(many, processes=0)
    monkeypatch.setattr(pixels_module, "_WORTH", 0.0)
    PixelStore.build(many, processes=0)
    assert asked == [1, 1, 7]


def test_a_cache_is_taken_up(mixed, tmp_path, monkeypatch):
    studies = cohort(mixed)
    plain = PixelStore.build(studies)
    first = PixelStore.build(studies, cache=tmp_path / "cache")
    assert isinstance(first.array, np.memmap)
    monkeypatch.setattr(pixels_module, "decode", None)  # nothing is decoded again
    again = PixelStore.build(studies, cache=tmp_path / "cache")
    for store in (first, again):
        np.testing.assert_array_equal(store.pixels, plain.pixels)
        assert store.describe() == plain.describe()
        assert store.good.tolist() == GOOD
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert names == {"pixels.npy", "pixels.json", "pixels.lock", "state.npy", "doubts.jsonl"}
    assert all(b"SECRET" not in path.read_bytes() for path in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize("stop", [1, 4, 5, 11])
@pytest.mark.parametrize("flush", [1, 3])
def test_an_interrupted_cache_goes_on(mixed, tmp_path, monkeypatch, stop, flush):
    studies = cohort(mixed)
    plain = PixelStore.build(studies)
    monkeypatch.setattr(pixels_module, "_FLUSH", flush)

    def interrupt(done, total):
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PixelStore.build(studies, cache=tmp_path / "cache", progress=interrupt)
    seen = []
    store = PixelStore.build(studies, cache=tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(store.pixels, plain.pixels)
    assert store.describe() == plain.describe()
    assert seen[-1] == (12, 12)
    assert len(seen) == 12 - stop // flush * flush


def test_two_processes_that_want_the_same_cache_decode_once(mixed, tmp_path):
    studies = cohort(mixed)
    with locked_elsewhere(tmp_path / "cache" / "pixels"):
        waiting = threading.Thread(target=PixelStore.build, args=(studies,), kwargs={"cache": tmp_path / "cache"})
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(20)
    assert not waiting.is_alive()
    assert PixelStore.build(studies, cache=tmp_path / "cache").good.tolist() == GOOD


def test_other_images_options_or_contents_need_another_cache(mixed, tmp_path):
    PixelStore.build(cohort(mixed), cache=tmp_path / "cache")
    for other in (cohort(mixed, size=8), cohort(mixed, voi="full"), cohort(mixed[:-1]), cohort(mixed[::-1])):
        with pytest.raises(DataError, match="holds the pixels of other images or options"):
            PixelStore.build(other, cache=tmp_path / "cache")
    write.save(mixed[1], write.dicom(write.chest(seed=77, height=26)))
    with pytest.raises(DataError, match="holds the pixels of other images or options"):
        PixelStore.build(cohort(mixed), cache=tmp_path / "cache")
    write.save(tmp_path / "full" / "thesis.txt", b"mine")
    with pytest.raises(DataError, match="holds something else"):
        PixelStore.build(cohort(mixed), cache=tmp_path / "full")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "pixels.npy").write_bytes(b"half")
    assert PixelStore.build(cohort(mixed), cache=tmp_path / "killed").good.tolist() == GOOD


def test_taking_copies_no_pixels(mixed):
    store = PixelStore.build(cohort(mixed))
    part = store.take(store.good).take([2, 0])
    assert part.array is store.array
    assert part.readable.all()
    np.testing.assert_array_equal(part.pixels, store.pixels[[3, 1]])
    np.testing.assert_array_equal(part.rows(np.array([1])), store.pixels[[1]])
    assert store.pixels is store.array


def test_views_that_only_the_header_knows(tmp_path):
    files = [
        write.save(tmp_path / f"{view}.dcm", write.dicom(write.chest(), ViewPosition=view)) for view in ("PA", "LL", "")
    ]
    store = PixelStore.build(cohort(files))
    assert store.good.tolist() == [0, 2]
    assert store.dropped == {"view lateral, as its header says": 1}
    assert PixelStore.build(cohort(files, views="all")).good.tolist() == [0, 1, 2]


def test_nothing_readable_is_one_line(tmp_path):
    path = write.save(tmp_path / "x.dcm", b"none")
    with pytest.raises(
        DataError, match=r"^none of 2 images can be used: row 2: no image: neither DICOM nor PNG nor JPEG$"
    ):
        PixelStore.build(cohort([path, path]))
    with pytest.raises(DataError, match="no images to decode"):
        PixelStore.build(cohort([path]).take([]))


def test_an_archive_is_read_in_place(tmp_path):
    data = write.encoded(write.dicom(write.chest()))
    path = tmp_path / "all.bin"
    path.write_bytes(b"x" * 100 + data + b"y" * 50)
    ref = ImageRef(str(path), 100, len(data))
    assert ref.read("row 1") == data
    with pytest.raises(BadSampleError, match="row 1: no such file"):
        ImageRef(str(tmp_path / "gone"), 0, 4).read("row 1")


def test_inspection_keeps_each_step(tmp_path):
    pytest.importorskip("matplotlib")
    stored = np.minimum(write.chest(30, 20), 4094)
    stored[0] = 4095
    dataset = write.dicom(
        stored, PhotometricInterpretation="MONOCHROME1", RescaleSlope=2, RescaleIntercept=-10, PixelPaddingValue=4095
    )
    dataset.WindowCenter, dataset.WindowWidth = 4000, 9000
    path = write.save(tmp_path / "x.dcm", dataset)
    found = inspect_image(path, ImageOptions(size=16))
    assert [step.name for step in found.steps] == [
        "stored values",
        "modality",
        "window",
        "inverted",
        "padding",
        "stored square",
    ]
    by_name = {step.name: step for step in found.steps}
    np.testing.assert_array_equal(by_name["stored values"].values, stored)
    np.testing.assert_array_equal(by_name["modality"].values, stored * 2.0 - 10)
    assert (by_name["modality"].low, by_name["modality"].high) == (-10, 8180)
    np.testing.assert_allclose(by_name["inverted"].values, 1 - by_name["window"].values)
    np.testing.assert_array_equal(by_name["padding"].values.astype(np.float32), read_radiograph(path).pixels)
    np.testing.assert_array_equal(by_name["stored square"].values, square(read_radiograph(path).pixels, 16))
    described = found.describe()
    assert all(step["within"] for step in described["steps"])
    assert described["steps"][4]["note"] == "20 pixels of padding are black"
    assert "SECRET" not in str(described)
    figure = inspection_figure(found, tmp_path / "figure.png")
    grey = inspect_image(write.picture(write.chest(top=255).astype(np.uint8)))
    assert [step.name for step in grey.steps] == ["stored values", "window", "stored square"]
    sheet = contact_sheet([found, grey, found], tmp_path / "sheet.png", columns=2, tile=32)
    shown = read_radiograph(sheet).pixels
    assert shown.shape == (2 * 38, 2 * 74)
    np.testing.assert_allclose(shown[3:35, 37:69], square(found.radiograph.pixels, 32) / 255, atol=1e-6)
    before, after = shown[3:35, 3:35], shown[3:35, 37:69]
    assert np.corrcoef(before[4:, 6:-6].ravel(), after[4:, 6:-6].ravel())[0, 1] < -0.9  # inversion is plain to see
    assert read_radiograph(figure, ImageOptions()).pixels.shape[1] > 1500
    with pytest.raises(DataError, match="no images for a contact sheet"):
        contact_sheet([], tmp_path / "none.png")


def lungs(size: int = 64) -> np.ndarray:
    """(S, S): two dark lungs in a bright body, darkness around."""
    picture = np.zeros((size, size), dtype=np.int64)
    picture[4:-4, 4:-4] = 3000
    for column in (0.30, 0.70):
        picture[size // 5 : 3 * size // 4, round((column - 0.12) * size) : round((column + 0.12) * size)] = 800
    return picture


def test_a_negative_that_nothing_declares_is_doubtful(tmp_path):
    files = [
        write.save(tmp_path / "right.png", write.picture((lungs() // 16).astype(np.uint8))),
        write.save(tmp_path / "negative.png", write.picture((255 - lungs() // 16).astype(np.uint8))),
        write.save(tmp_path / "right.dcm", write.dicom(4095 - lungs(), PhotometricInterpretation="MONOCHROME1")),
        write.save(tmp_path / "wrong.dcm", write.dicom(4095 - lungs())),
        write.save(tmp_path / "lateral.dcm", write.dicom(4095 - lungs(), ViewPosition="LL")),
    ]
    store = PixelStore.build(cohort(files, views="all", size=32))
    doubt = "looks inverted: the middle is darker than the lungs"
    assert store.notes == {doubt: 2}
    assert [doubt in pixels_module.decode((ImageRef(str(f)), "x"), ImageOptions(views="all")).notes for f in files] == [
        False,
        True,
        False,
        True,
        False,
    ]


@pytest.mark.skipif("MC_DATA" not in os.environ, reason="MC_DATA names no folder of real data")
@pytest.mark.parametrize(("name", "wrong", "found"), [("covid-cxr-notes", 0, 180), ("hannover-cxr", 1, 120)])
def test_few_real_images_and_most_of_their_negatives_are_doubted(name, wrong, found):
    path = Path(os.environ["MC_DATA"]) / "medical" / f"{name}.tar"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    pixels = PixelStore.build(open_studies(path)).pixels
    assert sum(map(looks_inverted, pixels)) <= wrong
    assert sum(looks_inverted(255 - one) for one in pixels) >= found
