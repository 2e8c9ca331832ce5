"""Filters and anti-aliased resampling of whole contiguous runs, zero phase.

Legend: C channels, T samples.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from mc_core.errors import DataError
from mc_wearables.data.config import IngestOptions

_LARGEST_DENOMINATOR = 1000  # 512.844 to 128 Hz then drifts by 0.2 ms in a minute
_NOTCH_QUALITY = 30.0
_LOWEST_ECG_RATE = 50.0  # ours: half of it still holds most of a QRS complex


def check_rate(sampling_rate: float, options: IngestOptions, where: str) -> None:
    """Refuse a rate that cannot hold the signal.

    Raises:
        DataError: less than twice the filter's upper edge (PPG), or less than 50 Hz (ECG).
    """
    lowest = 2 * options.high if options.signal == "ppg" else max(_LOWEST_ECG_RATE, 2 * options.low)
    if sampling_rate <= lowest:
        raise DataError(
            f"{where}: {sampling_rate:g} Hz is too slow for {options.signal.upper()}, which needs more than {lowest:g}"
        )


def clean(signal: np.ndarray, sampling_rate: float, options: IngestOptions) -> np.ndarray:
    """Band-pass (PPG), or high-pass and mains notches (ECG): Butterworth of order 2, forwards and backwards.

    Args:
        signal: (C, T), finite, without gaps. Cut afterwards: the edges of a filtered run are its worst part.
        sampling_rate: Hz.
        options: edges of the filter.

    Returns:
        (C, T) float64.
    """
    from scipy.signal import butter, iirnotch, sosfiltfilt, tf2sos

    nyquist = sampling_rate / 2
    if options.signal == "ppg":
        sos = butter(2, [options.low, options.high], "bandpass", fs=sampling_rate, output="sos")
    else:
        sos = butter(2, options.low, "highpass", fs=sampling_rate, output="sos")
        for hum in options.mains:
            if hum < 0.95 * nyquist:
                numerator, denominator = iirnotch(hum, _NOTCH_QUALITY, sampling_rate)
                sos = np.vstack([np.asarray(sos), tf2sos(numerator, denominator)])
    pad = min(signal.shape[1] - 1, round(2 * sampling_rate / options.low))  # as long as the slowest wave rings
    return sosfiltfilt(sos, signal, axis=1, padlen=pad)


def resample(signal: np.ndarray, sampling_rate: float, target: float) -> np.ndarray:
    """(C, T') at ``target`` Hz by a polyphase filter that removes what the new rate cannot hold.

    >>> import numpy as np
    >>> t = np.arange(2560) / 256
    >>> bool(np.abs(resample(np.sin(2 * np.pi * 40 * t)[None], 256, 64)[:, 64:-64]).max() < 0.01)
    True
    """
    from scipy.signal import resample_poly

    ratio = Fraction(target / sampling_rate).limit_denominator(_LARGEST_DENOMINATOR)
    if ratio == 1:
        return signal
    return resample_poly(signal, ratio.numerator, ratio.denominator, axis=1, padtype="line")
