"""Writes radiographs as devices and archives do: DICOM CR and DX with any of their look-up tables, PNG, JPEG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid


def chest(height: int = 24, width: int = 20, top: int = 4095, seed: int = 0) -> np.ndarray:
    """(H, W) whole numbers from 0 to ``top``, both reached, smooth enough to look at."""
    y, x = np.mgrid[0:height, 0:width]
    wave = np.sin(y / height * 5) * np.cos(x / width * 4) + np.random.default_rng(seed).normal(0, 0.1, (height, width))
    wave -= wave.min()
    return np.rint(wave / wave.max() * top).astype(np.int64)


def dicom(stored: np.ndarray, *, bits: int = 12, allocated: int = 16, signed: bool = False, **tags: Any) -> Dataset:
    """A DX image of these stored values; ``tags`` by keyword, None removes one."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["image"])
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID = "SECRET^NAME", "SECRET-ID"
    dataset.PatientBirthDate, dataset.StudyDate, dataset.InstitutionName = "19500102", "20190304", "SECRET HOSPITAL"
    dataset.AccessionNumber, dataset.StudyInstanceUID = "SECRET-ACC", "1.2.3.4"
    dataset.Modality, dataset.ViewPosition = "DX", "PA"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    kind = f"<{'i' if signed else 'u'}{allocated // 8}"
    dataset.PixelData = stored.astype(kind).tobytes()
    dataset["PixelData"].VR = "OW" if allocated == 16 else "OB"
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def lut(values: np.ndarray, first: int = 0, bits: int = 16, entries: int | None = None, vr: str = "OW") -> Sequence:
    """A sequence with one look-up table, for ModalityLUTSequence and VOILUTSequence."""
    item = Dataset()
    count = len(values) if entries is None else entries
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [0 if count == 65536 else count, first, bits])
    if vr == "OW":
        item.add_new("LUTData", "OW", np.asarray(values).astype("<u2").tobytes())
    else:
        item.add_new("LUTData", "US", [int(v) for v in values])
    return Sequence([item])


def encoded(dataset: Dataset) -> bytes:
    """The bytes of the file."""
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def ct() -> Dataset:
    """A CT slice."""
    return dicom(chest(), Modality="CT", SOPClassUID=CTImageStorage)


def picture(array: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a PNG or JPEG: 8 bits, 16 bits, or colours, by shape and type."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, format=kind, **options)
    return file.getvalue()


def save(path: Path, content: Dataset | bytes) -> Path:
    """Write a file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else encoded(content))
    return path
