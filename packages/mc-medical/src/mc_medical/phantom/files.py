"""Phantom images as DICOM CR and DX, written the several ways that real machines write them, and as 16-bit PNG."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np

_CR = "1.2.840.10008.5.1.4.1.1.1"
_DX = "1.2.840.10008.5.1.4.1.1.1.1"
_ROOT = "2.25."  # UIDs from integers, as the standard allows


@dataclass(frozen=True)
class Stored:
    """How an image is stored.

    Attributes:
        png: as a 16-bit PNG rather than DICOM.
        modality: ``CR`` or ``DX``.
        inverted: MONOCHROME1: high values are dark.
        windows: how many windows the file declares, 0 to 2.
        slope: of the rescale step; 1 writes none.
        padded: whether the shuttered rim carries a padding value.
    """

    png: bool
    modality: str
    inverted: bool
    windows: int
    slope: float
    padded: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Stored:
        """One at random: about four in a hundred PNG, a third MONOCHROME1."""
        return cls(
            png=bool(rng.random() < 0.04),
            modality="CR" if rng.random() < 0.4 else "DX",
            inverted=bool(rng.random() < 0.35),
            windows=int(rng.choice(3, p=(0.2, 0.6, 0.2))),
            slope=0.5 if rng.random() < 0.15 else 1.0,
            padded=bool(rng.random() < 0.5),
        )


def png_bytes(pixels: np.ndarray) -> bytes:
    """A 16-bit PNG of (S, S) values in [0, 1]."""
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(np.round(pixels * 65535).astype(np.uint16)).save(target, "PNG")
    return target.getvalue()


def dicom_bytes(pixels: np.ndarray, stored: Stored, *, patient: str, study: str, instance: int, view: str) -> bytes:
    """A DICOM file of (S, S) values in [0, 1]: 12 bits stored in 16, marked as a phantom.

    Args:
        pixels: bones bright.
        stored: how to write it.
        patient: identifier, which is also the name.
        study: identifier.
        instance: number of the exposure in its study.
        view: ``PA`` or ``AP``.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    sop = UID(_DX if stored.modality == "DX" else _CR)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop
    meta.MediaStorageSOPInstanceUID = UID(_uid(study, f"image {instance}"))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(_uid("mc-medical phantom"))
    data = FileDataset(io.BytesIO(), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = sop, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = _uid(study), _uid(study, "series")
    data.PatientID, data.PatientName = patient, f"Phantom^{patient}"
    data.Manufacturer, data.ManufacturerModelName = "mc-medical", "chest phantom"
    data.Modality, data.BodyPartExamined, data.ViewPosition = stored.modality, "CHEST", view
    data.ImageComments = "phantom: drawn by a program, no patient"
    data.InstanceNumber, data.BurnedInAnnotation = instance + 1, "NO"
    data.ImageType = ["ORIGINAL", "PRIMARY"]
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 1, 16, 12, 11, 0
    low, high = 200, 3900  # machines leave room at both ends
    values = np.round(low + pixels * np.float32(high - low)).astype(np.uint16)
    if stored.inverted:
        values = 4095 - values
        data.PhotometricInterpretation, data.PresentationLUTShape = "MONOCHROME1", "INVERSE"
    else:
        data.PhotometricInterpretation, data.PresentationLUTShape = "MONOCHROME2", "IDENTITY"
    rim = pixels == 0
    if stored.padded and rim.any():
        padding = 4095 if stored.inverted else 0
        values[rim] = padding
        data.PixelPaddingValue = padding
    if stored.slope != 1.0 or sop == _DX:
        data.RescaleSlope, data.RescaleIntercept, data.RescaleType = f"{stored.slope:g}", "0", "US"
    centre, width = stored.slope * (low + high) / 2, stored.slope * (high - low)
    if stored.inverted:
        centre = stored.slope * 4095 - centre
    if stored.windows == 1:
        data.WindowCenter, data.WindowWidth = f"{centre:g}", f"{width:g}"
    elif stored.windows == 2:
        data.WindowCenter, data.WindowWidth = [f"{centre:g}", f"{centre:g}"], [f"{width:g}", f"{width / 2:g}"]
        data.WindowCenterWidthExplanation = ["NORMAL", "HARDER"]
    data.PixelData = values.astype("<u2").tobytes()
    target = io.BytesIO()
    data.save_as(target, enforce_file_format=True)
    return target.getvalue()


def _uid(*parts: str) -> str:
    digest = hashlib.sha256("\0".join(("mc-medical phantom", *parts)).encode()).digest()
    return _ROOT + str(int.from_bytes(digest[:15], "big"))
