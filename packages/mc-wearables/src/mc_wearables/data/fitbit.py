"""Electrocardiograms of Fitbit and Google Health as JSON. Neither gives raw PPG."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError, McError
from mc_core.files import read_json
from mc_wearables.data.clock import civil_seconds, parse_moment
from mc_wearables.data.config import ReadOptions
from mc_wearables.data.recording import Origin, Recording, agreed_rate, pick_channels, scale_to_units

_SAMPLES = ("waveformSamples", "waveform_samples")
_RATE = ("samplingFrequencyHz", "samplingFrequencyHertz", "sampling_frequency_hertz")
_FACTOR = ("scalingFactor", "millivoltsScalingFactor", "millivolts_scaling_factor")
_START = ("startTime", "start_time")
_RESULT = ("resultClassification", "result_classification")
_DEVICE = ("deviceName", "deviceModel", "device_model")


def read_fitbit(path: Path, origin: Origin, options: ReadOptions) -> Iterator[Recording | McError]:
    """Every reading in the file, however deep: a reading is an object with waveform samples.

    Both services document millivolts = sample / factor.

    Raises:
        DataError: not JSON, cut off, or without a reading.
    """
    try:
        readings = list(_readings(read_json(path)))
    except DataError as error:
        raise DataError(
            f"{origin.name}: {str(error).removeprefix(str(path)).lstrip(':, ')}; probably cut off"
        ) from error
    if not readings:
        raise DataError(f"{origin.name}: no electrocardiogram in it (an object with {_SAMPLES[0]})")
    for number, reading in enumerate(readings):
        try:
            yield _recording(reading, origin, options, str(number + 1))
        except McError as error:
            yield error


def _readings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if any(name in node for name in _SAMPLES):
            yield node
        else:
            for value in node.values():
                yield from _readings(value)
    elif isinstance(node, list) and node and isinstance(node[0], (dict, list)):
        for value in node:
            yield from _readings(value)


def _recording(reading: dict[str, Any], origin: Origin, options: ReadOptions, record: str) -> Recording:
    where = f"{origin.name}, reading {record}"
    if options.signal == "ppg":
        raise ConfigError(f"{where}: Fitbit and Google export electrocardiograms and no raw PPG; give --signal ecg")
    samples = _find(reading, _SAMPLES)
    if isinstance(samples, str):
        samples = json.loads(samples)
    factor = _find(reading, _FACTOR)
    try:
        signal = np.asarray(samples, dtype=np.float32)
        rate = None if (stated := _find(reading, _RATE)) is None else float(stated)
        counts = None if factor is None else float(factor)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: a sample, the rate or the scaling factor is no number ({error})") from error
    if counts is not None and not counts > 0:
        raise DataError(f"{where}: scaling factor {factor}; it must be above 0 counts per millivolt")
    scale, units = scale_to_units("ecg", None if counts is None else f"{counts:g}/mV", options, where)
    promised = reading.get("numberOfWaveformSamples")
    pick_channels(["I"], options, where, alone=True)
    text = str(_find(reading, _START) or _find(reading.get("interval") or {}, _START) or "")
    start = parse_moment(text)
    naive = start is not None and start.tzinfo is None and options.timezone is None
    notes = {"no_timezone": int(naive), "cut_off": int(bool(promised) and int(promised) > signal.size)}
    info = reading.get("medicalDeviceInfo") or reading.get("medical_device_info") or {}
    return Recording(
        signal=signal.reshape(1, -1) * np.float32(scale),
        sampling_rate=agreed_rate(rate, options, where),
        participant=origin.participant(options, None, record=record),
        kind="ecg",
        channels=("I",),
        units=units,
        start=civil_seconds(start, options) if start is not None else None,
        device=str(_find(reading, _DEVICE) or _find(info, _DEVICE) or options.device or "unknown"),
        session=origin.session(options, record),
        labels=origin.labels(options, {"classification": _find(reading, _RESULT)}),
        source=where,
        notes={name: count for name, count in notes.items() if count},
    )


def _find(node: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((node[name] for name in names if node.get(name) is not None), None)
