"""Look-up tables of DICOM: what a stored value means (PS3.3 C.11.1), and how bright it is shown (C.11.2).

Written out here, not taken from pydicom 3.0, whose VOI LUTs of 8 bits wrap around for inputs above 255; tests compare the rest.

Legend: V values that could be stored, E entries of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mc_core.errors import BadSampleError
from mc_medical.data.image_config import ImageOptions

if TYPE_CHECKING:
    from pydicom import Dataset

PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Table:
    """A value for each that could be stored.

    Attributes:
        values: (V,) float64.
        low: end of the declared range.
        high: its other end.
        note: what was done.
        warnings: what was doubtful.
    """

    values: np.ndarray
    low: float
    high: float
    note: str
    warnings: tuple[str, ...] = ()


def modality_table(dataset: Dataset, values_V: np.ndarray, name: str) -> Table:
    """Modality LUT, else rescale, else the values as they are.

    Raises:
        BadSampleError: the table contradicts its descriptor.
    """
    low, high = float(values_V[0]), float(values_V[-1])
    sequence = dataset.get("ModalityLUTSequence")
    slope, intercept = _numbers(dataset, "RescaleSlope"), _numbers(dataset, "RescaleIntercept")
    if sequence:
        lut, first, bits = _lut(sequence[0], dataset, low, name, "modality LUT")
        both = ("a modality LUT and a rescale: the LUT is taken",) if slope or intercept else ()
        return Table(_look_up(lut, first, values_V), 0.0, float((1 << bits) - 1), f"LUT of {len(lut)} entries", both)
    if slope or intercept:
        m, b = slope[0] if slope else 1.0, intercept[0] if intercept else 0.0
        if m == 0 or not np.isfinite([m, b]).all():
            return Table(values_V, low, high, "stored values", (f"rescale slope {m:g} is not usable",))
        ends = sorted((low * m + b, high * m + b))
        return Table(values_V * m + b, ends[0], ends[1], f"value × {m:g} + {b:g}")
    told = _told(dataset, "RescaleSlope") or _told(dataset, "RescaleIntercept")
    return Table(values_V, low, high, "stored values", ("a rescale that is no number is left out",) if told else ())


def voi_table(dataset: Dataset, modality: Table, counts_V: np.ndarray, options: ImageOptions, name: str) -> Table:
    """Grey values in [0, 1]: VOI LUT, else window, else percentiles, as ``options.voi`` wants.

    Args:
        dataset: the header.
        modality: what the stored values mean.
        counts_V: (V,) how many pixels have each value, padding left out.
        options: which to take.
        name: for messages.

    Raises:
        BadSampleError: the table contradicts its descriptor.
    """
    if options.voi == "full":
        return _ramp(modality, modality.low, modality.high, "the declared range")
    warnings: list[str] = []
    if options.voi == "auto":
        sequence = dataset.get("VOILUTSequence")
        if sequence:
            place = _pick(options.window, len(sequence), "VOI LUT", warnings)
            lut, first, bits = _lut(sequence[place], dataset, modality.low, name, "VOI LUT")
            shown = _look_up(lut, first, np.rint(modality.values)) / ((1 << bits) - 1)
            return Table(shown, 0.0, 1.0, f"VOI LUT of {len(lut)} entries, {bits} bits", tuple(warnings))
        found = _window(dataset, modality, options, warnings)
        if found is not None:
            return found
    low, high = percentiles(modality.values, counts_V)
    note = f"percentiles {PERCENTILES[0]:g} to {PERCENTILES[1]:g}: {low:g} to {high:g}"
    return _ramp(modality, low, high, note, tuple(warnings))


def percentiles(values_V: np.ndarray, counts_V: np.ndarray) -> tuple[float, float]:
    """The 0.5th and 99.5th percentile of pixels, linearly interpolated as by NumPy; the extremes where these coincide.

    >>> percentiles(np.array([10.0, 20.0]), np.array([1, 1]))
    (10.05, 19.95)
    """
    order = np.argsort(values_V, kind="stable")
    values, ends = values_V[order], np.cumsum(counts_V[order])
    places = np.asarray(PERCENTILES) / 100 * (ends[-1] - 1)
    below = values[np.searchsorted(ends, np.floor(places), side="right")]
    above = values[np.searchsorted(ends, np.ceil(places), side="right")]
    low, high = (below + (above - below) * (places - np.floor(places))).tolist()
    if low < high:
        return low, high
    there = values[counts_V[order] > 0]
    return float(there[0]), float(there[-1])


def _ramp(modality: Table, low: float, high: float, note: str, warnings: tuple[str, ...] = ()) -> Table:
    width = high - low if high > low else 1.0
    return Table(np.clip((modality.values - low) / width, 0.0, 1.0), 0.0, 1.0, note, warnings)


def _window(dataset: Dataset, modality: Table, options: ImageOptions, warnings: list[str]) -> Table | None:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3; None where there is no window, or none that can be used."""
    centers, widths = _numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")
    if not centers or not widths:
        if _told(dataset, "WindowCenter") and _told(dataset, "WindowWidth"):
            warnings.append("a window that is no number: percentiles are taken")
        return None
    if len(centers) != len(widths):
        warnings.append(f"{len(centers)} window centers and {len(widths)} widths: the first of those in both")
    place = _pick(options.window, min(len(centers), len(widths)), "window", warnings)
    center, width = centers[place], widths[place]
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        warnings.append("an unknown VOI LUT function: taken as LINEAR")
        function = "LINEAR"
    if not np.isfinite([center, width]).all() or width < (1 if function == "LINEAR" else 1e-12):
        warnings.append(f"window width {width:g} is not usable: percentiles are taken")
        return None
    x, note = modality.values, f"{function} window, center {center:g}, width {width:g}"
    if function == "SIGMOID":
        shown = 1.0 / (1.0 + np.exp(np.clip(-4.0 * (x - center) / width, -700, 700)))
        return Table(shown, 0.0, 1.0, note, tuple(warnings))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width == 0:
        return Table((x > center).astype(np.float64), 0.0, 1.0, note, tuple(warnings))
    return Table(np.clip((x - center) / width + 0.5, 0.0, 1.0), 0.0, 1.0, note, tuple(warnings))


def _pick(wanted: int, there: int, what: str, warnings: list[str]) -> int:
    if wanted >= there:
        warnings.append(f"{what} {wanted} is wanted, there are {there}: the last is taken")
    return min(wanted, there - 1)


def _lut(item: Any, dataset: Dataset, lowest: float, name: str, what: str) -> tuple[np.ndarray, int, int]:
    """(E,) values, the input of the first, bits of a value."""
    try:
        entries, first, bits = (int(v) for v in item.LUTDescriptor)
        raw = item.LUTData
    except (AttributeError, TypeError, ValueError):
        raise BadSampleError(name, f"{what} without descriptor or data") from None
    entries = entries or 65536
    if first > 32767 and lowest < 0:
        first -= 65536  # written as unsigned although inputs may be negative
    if not 8 <= bits <= 16:
        raise BadSampleError(name, f"{what} of {bits} bits; 8 to 16 are allowed")
    if isinstance(raw, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        if len(raw) in (entries, entries + 1) and bits == 8:
            values = np.frombuffer(raw, np.uint8)[:entries]
        else:
            values = np.frombuffer(raw[: len(raw) // 2 * 2], f"{order}u2")
    else:
        values = np.asarray(raw, dtype=np.int64).reshape(-1) & 0xFFFF
        if bits == 8 and len(values) == (entries + 1) // 2 and entries > 2:
            values = values.astype("<u2").view(np.uint8)[:entries]  # two entries in a word
    if len(values) != entries:
        raise BadSampleError(name, f"{what} declares {entries} entries, its data hold {len(values)}")
    if int(values.max()) >> bits:
        raise BadSampleError(name, f"{what} declares {bits} bits, its data reach {int(values.max())}")
    return values.astype(np.float64), first, bits


def _look_up(lut: np.ndarray, first: int, inputs: np.ndarray) -> np.ndarray:
    return lut[np.clip(inputs - first, 0, len(lut) - 1).astype(np.int64)]


def _told(dataset: Dataset, keyword: str) -> bool:
    return dataset.get(keyword) not in (None, "")


def _numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    if not _told(dataset, keyword):
        return ()
    value = dataset.get(keyword)
    several = (
        value
        if isinstance(value, (list, tuple)) or (hasattr(value, "__iter__") and not isinstance(value, str))
        else [value]
    )
    try:
        return tuple(float(v) for v in several)
    except (TypeError, ValueError):
        return ()
