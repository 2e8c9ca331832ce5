"""From a DICOM file to grey values in [0, 1]: DICOM PS3.4 N.2 and PS3.3 C.11, and one inversion.

Stored values → modality LUT or rescale → VOI LUT, window or percentiles → inverted for MONOCHROME1. A stored value has at most
16 bits and each step looks at one value alone, so the steps are taken on the table of all values that could be stored, in
float64, and the picture is looked up in it once: exact, and as fast as a copy.

Legend: H rows, W columns, V values that could be stored.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mc_core.errors import BadSampleError
from mc_medical.data.dicom_luts import modality_table, voi_table
from mc_medical.data.image_config import ImageOptions
from mc_medical.data.radiograph import Radiograph, Record, view_name

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_PIXELS = 200_000_000

_WHITELIST = (
    *("Modality", "PresentationIntentType", "PhotometricInterpretation", "PresentationLUTShape", "PixelRepresentation"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "ViewPosition", "ImageLaterality", "Laterality"),
    *("BodyPartExamined", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "PixelSpacing", "ImagerPixelSpacing", "BurnedInAnnotation"),
    *("LossyImageCompression", "PatientOrientation"),
)
# What messages may repeat of a header: a damaged one, or one filled in by hand, may hold a name anywhere.
_MODALITY_CODES = """
AR AU BI BMD CR CT DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT IVUS KER KO LEN LS MG MR NM OAM OCT OP OPM OPR
OPT OPTENF OPV OSS OT PLAN PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTPLAN RTRECORD RTSTRUCT RWV SEG SM SMR SR SRF STAIN TG US VA XA
XC
"""
_MODALITIES = frozenset(_MODALITY_CODES.split())
_PHOTOMETRIC = frozenset(
    (
        "MONOCHROME1",
        "MONOCHROME2",
        "PALETTE COLOR",
        "RGB",
        "YBR_FULL",
        "YBR_FULL_422",
        "YBR_ICT",
        "YBR_RCT",
        "XYB",
        "HSV",
    )
)
_SHAPES = frozenset(("INVERSE", "IDENTITY", "LIN OD"))
_INSTALL = 'pip install "mc-medical[compressed]"'


def read_dicom(data: bytes, options: ImageOptions, name: str, record: Record | None = None) -> Radiograph:
    """A radiograph from the bytes of a DICOM file.

    MONOCHROME1, whose low values are bright, is inverted within the declared range, decided on PhotometricInterpretation
    alone: PresentationLUTShape INVERSE usually accompanies it, and following both would turn the picture back. Where the two
    disagree there is a note. Padding becomes 0.

    Raises:
        BadSampleError: see :func:`~mc_medical.data.radiograph.read_radiograph`.
    """
    with quiet():
        dataset = _parse(data, name)
        try:
            return _radiograph(dataset, options, name, record)
        except BadSampleError:
            raise
        except Exception as error:  # a damaged header may raise anything, wherever one of its values is first looked at
            raise BadSampleError(
                name, f"damaged: a value of the header cannot be read ({type(error).__name__})"
            ) from None


def _radiograph(dataset: Dataset, options: ImageOptions, name: str, record: Record | None) -> Radiograph:
    notes = _refuse(dataset, options, name)
    stored = _stored(dataset, name)
    codes, bits = stored.codes, stored.bits
    low = -(1 << (bits - 1)) if stored.signed else 0
    values_V = np.arange(low, low + (1 << bits), dtype=np.float64)
    counts_V = np.bincount(codes.reshape(-1), minlength=len(values_V))
    padding_V = _padding(dataset, values_V, stored)
    padded = int(counts_V[padding_V].sum())
    counts_V[padding_V] = 0
    if not counts_V.any():
        raise BadSampleError(name, "every pixel is padding: an empty picture")
    if np.count_nonzero(counts_V) == 1:
        raise BadSampleError(name, "every pixel has the same value: an empty picture")

    def show(step: str, shown_V: np.ndarray, low: float, high: float, note: str) -> None:
        if record is not None:
            record(step, shown_V[codes], low, high, note)

    show("stored values", values_V, values_V[0], values_V[-1], f"{bits} bits{', signed' * stored.signed}")
    modality = modality_table(dataset, values_V, name)
    show("modality", modality.values, modality.low, modality.high, modality.note)
    voi = voi_table(dataset, modality, counts_V, options, name)
    grey_V = voi.values
    show("window", grey_V, voi.low, voi.high, voi.note)
    if _word(dataset.PhotometricInterpretation) == "MONOCHROME1":
        grey_V = 1.0 - grey_V
        show("inverted", grey_V, 0.0, 1.0, "MONOCHROME1: low values are bright")
    if padded:
        grey_V = np.where(padding_V, 0.0, grey_V)
        show("padding", grey_V, 0.0, 1.0, f"{padded} pixels of padding are black")
    return Radiograph(
        grey_V.astype(np.float32)[codes],
        view=_view(dataset),
        laterality=str(dataset.get("ImageLaterality") or dataset.get("Laterality") or "").strip()[:1].upper(),
        modality=_word(dataset.get("Modality")),
        bits=bits,
        header=_header(dataset),
        notes=(*notes, *stored.notes, *modality.warnings, *voi.warnings, *_contrast(grey_V, counts_V)),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom warns and logs with the values it doubts, which may be names."""
    from pydicom import config

    logger = logging.getLogger("pydicom")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _parse(data: bytes, name: str) -> Dataset:
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        if not hasattr(dataset, "file_meta") or "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            if not hasattr(dataset, "file_meta"):
                dataset.file_meta = pydicom.dataset.FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        known = any(keyword in dataset for keyword in ("SOPClassUID", "Modality", "Rows"))
    except Exception:  # a damaged file may raise anything
        raise BadSampleError(name, "damaged or cut off: the DICOM header cannot be read") from None
    if not known:
        raise BadSampleError(name, "damaged or cut off: the DICOM header tells neither modality nor size")
    return dataset


def _refuse(dataset: Dataset, options: ImageOptions, name: str) -> list[str]:
    """What is no radiograph is refused; what is doubtful becomes a note."""
    modality = _word(dataset.get("Modality"))
    if "PixelData" not in dataset:
        raise BadSampleError(name, f"DICOM without pixels (modality {_known(modality, _MODALITIES)})")
    if modality not in options.modalities:
        raise BadSampleError(
            name, f"modality {_known(modality, _MODALITIES)}, wanted is {', '.join(options.modalities)}"
        )
    photometric = _word(dataset.get("PhotometricInterpretation"))
    samples = dataset.get("SamplesPerPixel") or 1
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise BadSampleError(
            name, f"colour ({_known(photometric, _PHOTOMETRIC)}, {samples} samples per pixel); a radiograph is grey"
        )
    frames = dataset.get("NumberOfFrames") or 1
    if int(frames) > 1:
        raise BadSampleError(name, f"{int(frames)} frames; a radiograph has one")
    notes = []
    if _word(dataset.get("BurnedInAnnotation")) == "YES":
        if options.burned_in == "refuse":
            raise BadSampleError(name, "text is burned into the pixels (BurnedInAnnotation YES); see --image.burned-in")
        if options.burned_in == "warn":
            notes.append("text is burned into the pixels")
    shape = _word(dataset.get("PresentationLUTShape"))
    expected = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    if shape and shape != expected:
        notes.append(f"PresentationLUTShape {_known(shape, _SHAPES)} contradicts {photometric}, which is followed")
    if _word(dataset.get("PresentationIntentType")) == "FOR PROCESSING":
        notes.append("raw detector values (FOR PROCESSING)")
    orientation = dataset.get("PatientOrientation")
    if orientation and str(orientation[0]).upper().startswith("R") and _view(dataset) in ("PA", "AP"):
        notes.append("mirrored: rows run to the patient's right")
    return notes


@dataclass(frozen=True)
class _Stored:
    """(H, W) codes: stored values counted from the lowest that could be stored."""

    codes: np.ndarray
    bits: int
    signed: bool
    notes: list[str] = field(default_factory=list)


def _stored(dataset: Dataset, name: str) -> _Stored:
    from pydicom.pixels import get_decoder

    uid = dataset.file_meta.TransferSyntaxUID
    try:
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
        high = int(dataset.get("HighBit", bits - 1))
        signed = int(dataset.PixelRepresentation) == 1
    except (AttributeError, TypeError, ValueError):
        raise BadSampleError(name, "the header does not tell size and bits of the pixels") from None
    if allocated not in (8, 16) or not 1 <= bits <= allocated or not bits - 1 <= high < allocated:
        raise BadSampleError(name, f"{bits} bits up to bit {high} of {allocated}: 8 or 16 are read")
    if not 0 < rows * columns <= MAX_PIXELS:
        raise BadSampleError(name, f"{rows}×{columns} pixels: no size of a radiograph")
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        raise BadSampleError(name, f"transfer syntax {uid.name}: not one of pictures") from None
    if not decoder.is_available:
        raise BadSampleError(name, f"{uid.name} needs a package to decode: {_INSTALL}")
    try:
        # pydicom would clear the unused bits as if the stored ones always began at the lowest
        plain: Any = {"raw": True, "correct_unused_bits": False}
        array, _ = decoder.as_array(dataset, **plain)
    except Exception as error:  # decoders of damaged data may raise anything
        if uid.name.startswith("JPEG Extended") and bits > 8:
            raise BadSampleError(name, f"{uid.name} of {bits} bits cannot be decoded; export it uncompressed") from None
        raise BadSampleError(name, f"damaged or cut off: pixels cannot be decoded ({type(error).__name__})") from None
    if array.shape != (rows, columns):
        raise BadSampleError(name, f"pixels of shape {array.shape}, the header says {rows}×{columns}")
    return _codes(array, bits, high, signed)


def _codes(array: np.ndarray, bits: int, high: int, signed: bool) -> _Stored:
    """Keep the bits stored; older files hold overlays in the others (PS3.5 8.1.1)."""
    raw = array.astype(array.dtype.newbyteorder("="), copy=False).view(f"u{array.dtype.itemsize}")
    shift, mask = high + 1 - bits, (1 << bits) - 1
    codes = (raw >> shift) & mask if shift or bits < 8 * raw.dtype.itemsize else raw
    foreign = raw >> (high + 1) if high + 1 < 8 * raw.dtype.itemsize else np.zeros(1, raw.dtype)
    notes = []
    if foreign.any():
        negative = signed and np.isin(foreign, (0, int(foreign.max()))).all()
        if not negative:
            notes.append(f"bits above the {bits} stored are ignored")
    if signed:
        codes = codes ^ (1 << (bits - 1))  # from two's complement to distance from the lowest
    return _Stored(codes, bits, signed, notes)


def _padding(dataset: Dataset, values_V: np.ndarray, stored: _Stored) -> np.ndarray:
    """(V,) bool: which values are padding (PS3.3 C.7.5.1.1.2)."""
    first = _stored_number(dataset.get("PixelPaddingValue"), stored)
    if first is None:
        return np.zeros(len(values_V), dtype=bool)
    last = _stored_number(dataset.get("PixelPaddingRangeLimit"), stored)
    last = first if last is None else last
    return (values_V >= min(first, last)) & (values_V <= max(first, last))


def _stored_number(value: Any, stored: _Stored) -> int | None:
    if value is None or value == "":
        return None
    number = int.from_bytes(value[:2], "little") if isinstance(value, bytes) else int(value)
    return number - 65536 if stored.signed and number > 32767 else number


def _contrast(grey_V: np.ndarray, counts_V: np.ndarray) -> list[str]:
    total = counts_V.sum()
    ends = counts_V[(grey_V <= 0) | (grey_V >= 1)].sum() / total
    if ends > 0.8:
        return [f"the window leaves {ends:.0%} of the pixels black or white"]
    mean = (grey_V * counts_V).sum() / total
    spread = float(np.sqrt(((grey_V - mean) ** 2 * counts_V).sum() / total))
    return [f"hardly any contrast (standard deviation {spread:.3f} of 1)"] if spread < 0.02 else []


def _view(dataset: Dataset) -> str:
    told = view_name(dataset.get("ViewPosition"))
    if told:
        return told
    codes = dataset.get("ViewCodeSequence") or []
    return view_name(codes[0].get("CodeMeaning")) if len(codes) else ""


def _header(dataset: Dataset) -> dict[str, str | float | int]:
    found: dict[str, str | float | int] = {"TransferSyntax": dataset.file_meta.TransferSyntaxUID.name}
    for keyword in _WHITELIST:
        value = dataset.get(keyword)
        if value is None or value == "":
            continue
        text = "".join(character for character in str(value)[:64] if character.isprintable())
        found[keyword] = value if type(value) in (int, float) else text
    return found


def _word(value: Any) -> str:
    return str(value if value is not None else "").strip().upper()[:24]


def _known(word: str, words: frozenset[str]) -> str:
    return word if word in words else "unknown" if word else "not told"
