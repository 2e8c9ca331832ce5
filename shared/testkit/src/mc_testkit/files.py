"""Writers of tiny true files: pictures, sound, text and GeoTIFF, with the names, drivers and headers that real ones have."""

from __future__ import annotations

import struct
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, *, size: tuple[int, int] = (40, 32), seed: int = 0, mode: str = "RGB") -> Path:
    """A smooth coloured picture with noise, in the format its suffix names.

    Args:
        path: with a suffix that Pillow knows.
        size: (width, height) in pixels.
        seed: of its content.
        mode: Pillow mode: RGB, L, RGBA, P, CMYK, I;16.
    """
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[:height, :width] / max(width, height)
    phase = rng.uniform(0, 6, (3, 2))
    waves = [np.sin(6 * x + phase[c, 0]) * np.cos(6 * y + phase[c, 1]) for c in range(3)]
    rgb = np.clip(127 + 100 * np.stack(waves, axis=-1) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(rgb).convert(mode).save(path)
    return path


def write_image_folder(
    folder: Path, *, classes: Sequence[str] = ("cat", "dog"), each: int = 6, suffix: str = ".png"
) -> Path:
    """A class-folder tree ``folder/<class>/<nnn><suffix>``."""
    for c, name in enumerate(classes):
        for i in range(each):
            write_image(folder / name / f"{i:03d}{suffix}", seed=100 * c + i)
    return folder


def write_broken_image(path: Path, kind: str = "truncated") -> Path:
    """A picture file that cannot be read.

    Args:
        path: of the file.
        kind: ``truncated`` (half a picture), ``text`` (not a picture at all) or ``empty``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "truncated":
        write_image(path, size=(200, 200))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 3])
    else:
        path.write_bytes({"text": b"these are only words\n", "empty": b""}[kind])
    return path


def write_wav(path: Path, *, seconds: float = 0.5, rate: int = 8000, hertz: float = 440.0) -> Path:
    """A mono 16-bit sine tone."""
    time = np.arange(int(seconds * rate)) / rate
    samples = (0.5 * np.sin(2 * np.pi * hertz * time) * 32767).astype("<i2")
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def write_text(path: Path, lines: Sequence[str]) -> Path:
    """UTF-8 text, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_geotiff(
    path: Path,
    values: np.ndarray,
    *,
    epsg: int = 32633,
    origin: tuple[float, float] = (500_000.0, 5_200_000.0),
    pixel: float = 10.0,
    nodata: float | None = None,
) -> Path:
    """A GeoTIFF with coordinate system, grid and nodata value.

    Args:
        path: of the file.
        values: (bands, height, width) uint8, uint16, int16 or float32.
        epsg: code of the coordinate system: projected in metres, or 4326.
        origin: (x, y) of the outer corner of the top-left pixel, in units of the coordinate system.
        pixel: side of a pixel in the same units.
        nodata: value that means "nothing here".
    """
    bands, height, width = values.shape
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    geographic = epsg == 4326
    keys = [(1024, 0, 1, 2 if geographic else 1), (1025, 0, 1, 1), (2048 if geographic else 3072, 0, 1, epsg)]
    geo_keys = [1, 1, 0, len(keys), *(number for key in keys for number in key)]
    data = np.ascontiguousarray(values.transpose(1, 2, 0)).astype(values.dtype.newbyteorder("<")).tobytes()

    tags: list[tuple[int, str, Sequence[float]]] = [
        (256, "H", [width]),
        (257, "H", [height]),
        (258, "H", [values.dtype.itemsize * 8] * bands),
        (259, "H", [1]),
        (262, "H", [1]),
        (273, "I", [8]),
        (277, "H", [bands]),
        (278, "H", [height]),
        (279, "I", [len(data)]),
        (284, "H", [1]),
        *([(338, "H", [0] * (bands - 1))] if bands > 1 else []),
        (339, "H", [sample_format] * bands),
        (33550, "d", [pixel, pixel, 0.0]),
        (33922, "d", [0.0, 0.0, 0.0, origin[0], origin[1], 0.0]),
        (34735, "H", geo_keys),
    ]
    if nodata is not None:
        tags.append((42113, "s", list(f"{nodata:g}\0".encode())))
    types = {"H": 3, "I": 4, "d": 12, "s": 2}

    entries, extra = b"", b""
    extra_at = 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, kind, numbers in tags:
        packed = bytes(int(n) for n in numbers) if kind == "s" else struct.pack(f"<{len(numbers)}{kind}", *numbers)
        if len(packed) <= 4:
            field = packed.ljust(4, b"\0")
        else:
            field = struct.pack("<I", extra_at + len(extra))
            extra += packed + b"\0" * (len(packed) % 2)
        entries += struct.pack("<HHI", tag, types[kind], len(numbers)) + field
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + extra)
    return path
