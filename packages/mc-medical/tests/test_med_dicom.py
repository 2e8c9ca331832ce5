"""From DICOM files to grey values: each step against its definition in float64, and against pydicom where that is right."""

from __future__ import annotations

import functools
import logging
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from mc_core.errors import BadSampleError
from mc_medical.data import dicom as dicom_module
from mc_medical.data.image_config import ImageOptions
from mc_medical.data.radiograph import Radiograph, read_radiograph, view_name

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_radiographs.py"))))


def read(dataset, **options) -> Radiograph:
    return read_radiograph(write.encoded(dataset), ImageOptions(**options), name="row 7")


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def window(x: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, value by value, with an output from 0 to 1."""
    y = np.empty(x.size)
    for i, v in enumerate(x.reshape(-1).astype(np.float64)):
        if function == "SIGMOID":
            y[i] = 1 / (1 + np.exp(min(-4 * (v - center) / width, 700)))
        elif function == "LINEAR_EXACT":
            y[i] = 0 if v <= center - width / 2 else 1 if v > center + width / 2 else (v - center) / width + 0.5
        elif v <= center - 0.5 - (width - 1) / 2:
            y[i] = 0
        elif v > center - 0.5 + (width - 1) / 2:
            y[i] = 1
        else:
            y[i] = (v - (center - 0.5)) / (width - 1) + 0.5
    return y.reshape(x.shape)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(2000, 1500), (2048, 4096), (300.5, 1), (-5, 90), (4000, 8000)])
@pytest.mark.parametrize(("slope", "intercept"), [(None, None), (2.5, -1024.0), (-1.0, 4095.0)])
def test_windows_follow_the_standard_and_pydicom(function, center, width, slope, intercept):
    stored = write.chest()
    tags = {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": function}
    if slope is not None:
        tags |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
    dataset = write.dicom(stored, **tags)
    x = stored * 1.0 if slope is None else stored * slope + intercept
    found = read(dataset).pixels
    close(found, window(x, center, width, function))
    with np.errstate(over="ignore"):
        theirs = apply_windowing(apply_modality_lut(stored.astype(np.uint16), dataset), dataset)
    ends = np.array([0, 4095]) if slope is None else np.array([0, 4095]) * slope + intercept
    close(found, (theirs - ends[0]) / (ends[1] - ends[0]))  # a negative slope turns pydicom's declared range around


@pytest.mark.parametrize("vr", ["OW", "US"])
@pytest.mark.parametrize(("first", "bits"), [(0, 16), (100, 12), (-200, 10)])
def test_voi_luts_map_each_value(vr, first, bits):
    signed = first < 0
    stored = write.chest() - (2048 if signed else 0)
    entries = np.sort(np.random.default_rng(1).integers(0, 1 << bits, 700))
    dataset = write.dicom(
        stored, signed=signed, VOILUTSequence=write.lut(entries, first, bits, vr=vr), WindowCenter=1, WindowWidth=2
    )
    expected = np.array([entries[min(max(int(v) - first, 0), 699)] for v in stored.reshape(-1)]).reshape(stored.shape)
    found = read(dataset).pixels
    close(found, expected / ((1 << bits) - 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close(found, apply_voi_lut(stored, dataset, prefer_lut=True) / ((1 << bits) - 1))


def test_a_voi_lut_of_eight_bits_does_not_wrap_around():
    entries = np.minimum(np.arange(4096) // 16, 255)
    stored = write.chest()
    found = read(write.dicom(stored, VOILUTSequence=write.lut(entries, 0, 8))).pixels
    close(found, (stored // 16) / 255)


def test_packed_entries_of_eight_bits():
    entries = np.arange(256)[::-1]
    packed = entries.astype(np.uint8).view("<u2")
    stored = write.chest(top=255)
    found = read(write.dicom(stored, bits=8, allocated=8, VOILUTSequence=write.lut(packed, 0, 8, entries=256))).pixels
    close(found, (255 - stored) / 255)


def test_modality_luts_come_before_windows():
    entries = (np.arange(4096) * 3 + 17) % 1024
    stored = write.chest()
    dataset = write.dicom(stored, ModalityLUTSequence=write.lut(entries, 0, 10), WindowCenter=500, WindowWidth=400)
    close(read(dataset).pixels, window(entries[stored], 500, 400, "LINEAR"))
    close(read(dataset, voi="full").pixels, entries[stored] / 1023)


def test_a_rescale_beside_a_modality_lut_is_doubtful():
    dataset = write.dicom(
        write.chest(), ModalityLUTSequence=write.lut(np.arange(4096), 0, 12), RescaleSlope=1, RescaleIntercept=5
    )
    assert "a modality LUT and a rescale: the LUT is taken" in read(dataset).notes


@pytest.mark.parametrize("shape", [None, "INVERSE", "IDENTITY"])
@pytest.mark.parametrize("voi", ["auto", "percentile", "full"])
def test_monochrome1_is_inverted_exactly_once_whatever_the_presentation_lut(shape, voi):
    stored = write.chest()
    tags = {"WindowCenter": 1800, "WindowWidth": 3000} | ({"PresentationLUTShape": shape} if shape else {})
    bright = read(write.dicom(stored, **tags), voi=voi)
    dark = read(write.dicom(stored, PhotometricInterpretation="MONOCHROME1", **tags), voi=voi)
    close(dark.pixels, 1 - bright.pixels)
    contradiction = {None: (), "INVERSE": bright.notes, "IDENTITY": dark.notes}[shape]
    assert any("contradicts" in note for note in contradiction) == (shape is not None)
    other = dark.notes if shape == "INVERSE" else bright.notes
    assert not any("contradicts" in note for note in other)


def test_inversion_uses_the_declared_range_and_not_what_occurs():
    stored = np.clip(write.chest(), 1000, 3000)
    found = read(write.dicom(stored, PhotometricInterpretation="MONOCHROME1"), voi="full").pixels
    close(found, (4095 - stored) / 4095)
    assert found.max() == pytest.approx(1 - 1000 / 4095)
    entries = np.minimum(np.arange(4096), 700)  # of 1023 declared
    table = write.dicom(stored, PhotometricInterpretation="MONOCHROME1", VOILUTSequence=write.lut(entries, 0, 10))
    close(read(table).pixels, (1023 - entries[stored]) / 1023)


@pytest.mark.parametrize(
    ("bits", "allocated", "signed"),
    [(8, 8, False), (10, 16, False), (16, 16, False), (12, 16, True), (16, 16, True), (8, 8, True)],
)
def test_bits_and_signs(bits, allocated, signed):
    low = -(1 << (bits - 1)) if signed else 0
    stored = write.chest(top=(1 << bits) - 1) + low
    found = read(write.dicom(stored, bits=bits, allocated=allocated, signed=signed), voi="full")
    close(found.pixels, (stored - low) / ((1 << bits) - 1))
    assert (found.bits, found.notes) == (bits, ())


def test_overlays_in_unused_bits_are_not_pixels():
    stored = write.chest()
    overlay = (np.indices(stored.shape).sum(0) % 2) << 15
    found = read(write.dicom(stored + overlay), voi="full")
    close(found.pixels, stored / 4095)
    assert found.notes == ("bits above the 12 stored are ignored",)


def test_stored_bits_may_begin_above_the_lowest():
    stored = write.chest(top=255)
    found = read(write.dicom(stored << 4, bits=8, HighBit=11), voi="full")
    close(found.pixels, stored / 255)


def test_percentiles_leave_padding_out():
    stored = write.chest(40, 40) + 1
    stored = np.minimum(stored, 4000)
    stored[:, :13] = 4095
    dataset = write.dicom(stored, PixelPaddingValue=4095)
    inner = stored[:, 13:].astype(np.float64)
    low, high = np.percentile(inner, (0.5, 99.5))
    found = read(dataset).pixels
    close(found[:, 13:], np.clip((inner - low) / (high - low), 0, 1))
    assert (found[:, :13] == 0).all()
    inverted = read(write.dicom(stored, PixelPaddingValue=4095, PhotometricInterpretation="MONOCHROME1")).pixels
    close(inverted[:, 13:], 1 - found[:, 13:])
    assert (inverted[:, :13] == 0).all()


def test_a_range_of_padding():
    stored = np.maximum(write.chest() - 2048, -1979)
    stored[:5] = -2000
    stored[5] = -1990
    dataset = write.dicom(stored, signed=True)
    dataset.PixelPaddingValue, dataset.PixelPaddingRangeLimit = -2000, -1980
    found = read(dataset, voi="full").pixels
    assert (found[:6] == 0).all()
    close(found[6:], (stored[6:] + 2048) / 4095)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4000), st.integers(0, 2**31 - 1), st.floats(0.2, 4), st.floats(-2000, 2000))
def test_percentiles_are_numpys(pixels, seed, slope, intercept):
    from mc_medical.data.dicom_luts import percentiles

    rng = np.random.default_rng(seed)
    stored = np.minimum(rng.geometric(0.01, pixels), 4095)
    values = np.arange(4096) * slope + intercept
    low, high = np.percentile(values[stored], (0.5, 99.5))
    found = percentiles(values, np.bincount(stored, minlength=4096))
    if low < high:
        np.testing.assert_allclose(found, (low, high), rtol=1e-9, atol=1e-9)
    else:
        assert found == (values[stored].min(), values[stored].max())


def test_several_windows_are_chosen_by_number():
    stored = write.chest()
    dataset = write.dicom(stored, WindowCenter=[1500, 2500], WindowWidth=[1500, 1700])
    close(read(dataset).pixels, window(stored, 1500, 1500, "LINEAR"))
    close(read(dataset, window=1).pixels, window(stored, 2500, 1700, "LINEAR"))
    beyond = read(dataset, window=5)
    close(beyond.pixels, window(stored, 2500, 1700, "LINEAR"))
    assert beyond.notes == ("window 5 is wanted, there are 2: the last is taken",)


@pytest.mark.parametrize("width", [0, -3, 0.5])
def test_an_unusable_window_gives_way_to_percentiles(width):
    stored = write.chest()
    found = read(write.dicom(stored, WindowCenter=100, WindowWidth=width))
    close(found.pixels, read(write.dicom(stored)).pixels)
    assert found.notes == (f"window width {width:g} is not usable: percentiles are taken",)


def test_empty_windows_are_none():
    stored = write.chest()
    close(read(write.dicom(stored, WindowCenter="", WindowWidth="")).pixels, read(write.dicom(stored)).pixels)


def test_a_window_that_hides_the_picture_is_doubtful():
    assert any("black or white" in n for n in read(write.dicom(write.chest(), WindowCenter=9000, WindowWidth=10)).notes)
    flat = read(write.dicom(write.chest(top=40) + 7, WindowCenter=2000, WindowWidth=4000))
    assert any("hardly any contrast" in note for note in flat.notes)


def test_header_holds_technical_facts_alone():
    found = read(write.dicom(write.chest(), BodyPartExamined="CHEST", ImageLaterality="L", ViewPosition="LL"))
    assert "SECRET" not in repr(found) + repr(found.header) + repr(found.notes)
    assert found.header["BodyPartExamined"] == "CHEST"
    assert not {"19500102", "20190304"} & set(map(str, found.header.values()))
    assert (found.view, found.laterality, found.modality, found.frontal) == ("lateral", "L", "DX", False)


def test_views_in_codes_and_mirrored_rows():
    dataset = write.dicom(write.chest(), ViewPosition="")
    code = type(dataset)()
    code.CodeMeaning = "antero-posterior"
    dataset.ViewCodeSequence = [code]
    dataset.PatientOrientation = ["R", "F"]
    found = read(dataset)
    assert (found.view, found.notes) == ("AP", ("mirrored: rows run to the patient's right",))
    assert [view_name(text) for text in ("ap supine", "LATERAL", "swimmers", "")] == ["AP", "lateral", "other", ""]


BAD = {
    "no pixels": (lambda: write.dicom(write.chest(), PixelData=None), "DICOM without pixels (modality DX)"),
    "modality": (lambda: write.ct(), "modality CT, wanted is CR, DX, RG"),
    "no modality": (lambda: write.dicom(write.chest(), Modality=""), "modality not told, wanted is CR, DX, RG"),
    "colour": (
        lambda: write.dicom(write.chest(), PhotometricInterpretation="RGB", SamplesPerPixel=3),
        "colour (RGB, 3 samples per pixel); a radiograph is grey",
    ),
    "palette": (
        lambda: write.dicom(write.chest(), PhotometricInterpretation="PALETTE COLOR"),
        "colour (PALETTE COLOR, 1 samples per pixel); a radiograph is grey",
    ),
    "frames": (lambda: write.dicom(write.chest(), NumberOfFrames=3), "3 frames; a radiograph has one"),
    "burned in": (
        lambda: write.dicom(write.chest(), BurnedInAnnotation="YES"),
        "text is burned into the pixels (BurnedInAnnotation YES); see --image.burned-in",
    ),
    "short LUT": (
        lambda: write.dicom(write.chest(), VOILUTSequence=write.lut(np.arange(256), entries=4096, bits=12)),
        "VOI LUT declares 4096 entries, its data hold 256",
    ),
    "LUT beyond its bits": (
        lambda: write.dicom(write.chest(), ModalityLUTSequence=write.lut(np.arange(4096), bits=10)),
        "modality LUT declares 10 bits, its data reach 4095",
    ),
    "LUT of 4 bits": (
        lambda: write.dicom(write.chest(), VOILUTSequence=write.lut(np.arange(16), bits=4)),
        "VOI LUT of 4 bits; 8 to 16 are allowed",
    ),
    "LUT without data": (
        lambda: write.dicom(write.chest(), VOILUTSequence=[type(write.ct())()]),
        "VOI LUT without descriptor or data",
    ),
    "one value": (lambda: write.dicom(np.full((8, 8), 5)), "every pixel has the same value: an empty picture"),
    "padding alone": (
        lambda: write.dicom(np.full((8, 8), 5), PixelPaddingValue=5),
        "every pixel is padding: an empty picture",
    ),
    "cut off": (
        lambda: write.dicom(write.chest(), PixelData=b"\0" * 100),
        "damaged or cut off: pixels cannot be decoded (ValueError)",
    ),
    "32 bits": (
        lambda: write.dicom(write.chest(), BitsAllocated=32, BitsStored=32, HighBit=31),
        "32 bits up to bit 31 of 32: 8 or 16 are read",
    ),
    "no size": (lambda: write.dicom(write.chest(), Rows=None), "the header does not tell size and bits of the pixels"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_is_no_radiograph_is_one_line(case):
    make, reason = BAD[case]
    with pytest.raises(BadSampleError) as caught:
        read(make())
    assert str(caught.value) == f"row 7: {reason}"


def test_burned_in_text_may_be_allowed():
    dataset = write.dicom(write.chest(), BurnedInAnnotation="YES")
    assert read(dataset, burned_in="warn").notes == ("text is burned into the pixels",)
    assert read(dataset, burned_in="allow").notes == ()
    assert read(write.dicom(write.chest(), BurnedInAnnotation="NO")).notes == ()


def test_other_modalities_may_be_wanted():
    assert read(write.ct(), modalities=("ct",)).modality == "CT"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_encodings_hold_the_same_picture(syntax):
    stored = write.chest()
    dataset = write.dicom(stored, WindowCenter=2000, WindowWidth=3000)
    expected = read(dataset).pixels
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = stored.astype(">u2").tobytes()
    close(read(dataset).pixels, expected)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize(("bits", "signed"), [(12, False), (16, False), (12, True)])
def test_compressed_pixels_are_the_same(syntax, bits, signed):
    pytest.importorskip("openjpeg")
    stored = write.chest(32, 32, top=(1 << bits) - 1) - (1 << (bits - 1) if signed else 0)
    dataset = write.dicom(stored, bits=bits, signed=signed, WindowCenter=300, WindowWidth=900)
    expected = read(dataset).pixels
    plugin = {RLELossless: "pydicom", JPEG2000Lossless: "pylibjpeg", JPEGLSLossless: "pyjpegls"}[syntax]
    dataset.compress(syntax, encoding_plugin=plugin)
    close(read(dataset).pixels, expected)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1, RLELossless])
def test_a_missing_decoder_names_the_package(syntax, monkeypatch):
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    dataset = write.dicom(write.chest())
    dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    dataset.file_meta.TransferSyntaxUID = syntax
    with pytest.raises(BadSampleError, match="needs a package to decode") as caught:
        read(dataset)
    assert str(caught.value).endswith('pip install "mc-medical[compressed]"')


def test_twelve_bits_of_jpeg_extended_have_no_decoder():
    dataset = write.dicom(write.chest())
    dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    with pytest.raises(
        BadSampleError, match=r"^row 7: JPEG Extended .* of 12 bits cannot be decoded; export it uncompressed$"
    ):
        read(dataset)


def test_damaged_compressed_pixels_are_one_line():
    dataset = write.dicom(write.chest())
    dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51 nothing"])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    with pytest.raises(BadSampleError, match=r"^row 7: damaged or cut off: pixels cannot be decoded \(\w+\)$"):
        read(dataset)


def test_files_without_a_preamble_are_read():
    dataset = write.dicom(write.chest(), WindowCenter=2000, WindowWidth=3000)
    whole = write.encoded(dataset)
    bare = whole[whole.index(b"\x08\x00\x16\x00UI") :]
    close(read_radiograph(bare).pixels, read(dataset).pixels)


@pytest.mark.parametrize("data", [b"", b"hello", b"%PDF-1.4 " + bytes(300), b"GIF89a" + bytes(100)])
def test_what_is_no_image_is_one_line(data, tmp_path):
    path = write.save(tmp_path / "x.dcm", data)
    with pytest.raises(BadSampleError, match="^row 3: (no image: neither DICOM nor PNG nor JPEG|the file is empty)$"):
        read_radiograph(path, name="row 3")


def test_cut_off_headers_and_missing_files_are_one_line(tmp_path):
    whole = write.encoded(write.dicom(write.chest()))
    for length in (140, 200, 400, len(whole) - 30):
        with pytest.raises(BadSampleError, match="row 1: "):
            read_radiograph(whole[:length], name="row 1")
    with pytest.raises(BadSampleError, match="^row 1: no such file$"):
        read_radiograph(tmp_path / "SECRET.dcm", name="row 1")


def test_nothing_is_logged_and_no_warning_shows_a_value(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = write.encoded(write.dicom(write.chest(), BodyPartExamined="secret name, no code", WindowCenter="12"))
    data = data.replace(b"SECRET-ID", b"SECRET\x00\xff!")
    caplog.clear()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_radiograph(data)
    assert not caught
    assert not caplog.records
    assert logging.getLogger("pydicom").disabled is False


def test_reading_loads_no_torch():
    code = "import sys, mc_medical.data.dicom, mc_medical.data.pixels, mc_medical.data.studies; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_values_of_the_header_that_are_no_numbers():
    plain = read(write.dicom(write.chest()))
    data = write.encoded(write.dicom(write.chest(), WindowCenter="1234.5", WindowWidth="2000"))
    found = read_radiograph(data.replace(b"1234.5", b"SECRET"), name="row 7")
    close(found.pixels, plain.pixels)
    assert found.notes == ("a window that is no number: percentiles are taken",)
    data = write.encoded(write.dicom(write.chest(), RescaleSlope="1234.5", RescaleIntercept="1234.5"))
    found = read_radiograph(data.replace(b"1234.5", b"SECRET"), name="row 7")
    close(found.pixels, plain.pixels)
    assert found.notes == ("a rescale that is no number is left out",)


def test_any_other_trouble_with_a_header_is_one_line(monkeypatch):
    monkeypatch.setattr(dicom_module, "voi_table", lambda *_: {}["SECRET"])
    with pytest.raises(BadSampleError, match=r"^row 7: damaged: a value of the header cannot be read \(KeyError\)$"):
        read(write.dicom(write.chest()))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["plain", "lut", "j2k", "png", "jpeg"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
    st.floats(0.3, 1),
)
def test_damage_of_any_kind_is_one_line_or_a_picture(kind, changes, kept):
    data = bytearray(_whole(kind))
    head = min(len(data), 900)  # most of the damage falls on headers
    for where, value in changes:
        data[int(where * head)] = value
    damaged = bytes(data[: max(int(kept * len(data)), 1)])
    found, line = None, ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = read_radiograph(damaged, name="row 7")
        except BadSampleError as error:
            line = str(error)
    if found is None:
        assert line.startswith("row 7: ")
        assert "\n" not in line
        assert "SECRET" not in line
    else:
        assert found.pixels.dtype == np.float32
        assert np.isfinite(found.pixels).all()
        assert 0 <= found.pixels.min() <= found.pixels.max() <= 1


@functools.cache
def _whole(kind: str) -> bytes:
    if kind in ("png", "jpeg"):
        return write.picture(write.chest(64, 48, top=255).astype(np.uint8), kind.upper())
    tags = {"VOILUTSequence": write.lut(np.arange(4096), 0, 12)} if kind == "lut" else {"WindowCenter": 2000}
    dataset = write.dicom(write.chest(64, 48), WindowWidth=3000, **tags)
    if kind == "j2k":
        pytest.importorskip("openjpeg")
        dataset.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
    return write.encoded(dataset)
