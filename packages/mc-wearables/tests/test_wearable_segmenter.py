"""Segmenter, filters, resampling and quality, against closed forms, a loop by definition, and noise."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from mc_core.errors import ConfigError, DataError
from mc_wearables.data.config import IngestOptions
from mc_wearables.data.quality import assess, block_beats, slope_beats
from mc_wearables.data.recording import Recording
from mc_wearables.data.resampling import clean, resample
from mc_wearables.data.segmenter import cut_segments, segment_recordings

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_signals.py"))))
PPG, ECG = IngestOptions(signal="ppg", seconds=10), IngestOptions(signal="ecg", seconds=10)


def record(signal, rate=64.0, kind="ppg", **given):
    signal = np.atleast_2d(np.asarray(signal, dtype=np.float32))
    names = tuple(f"c{i}" for i in range(len(signal)))
    return Recording(signal, rate, given.pop("participant", "p"), kind, names, "mV", **given)


def reasons(cut):
    return [(round(r.offset, 4), round(r.seconds, 4), r.reason) for r in cut.rejected]


def test_windows_follow_each_other_and_are_z_scored():
    cut = cut_segments(record(write.pulse(65, 100), 100.0), PPG)
    assert cut.signals.shape == (6, 1, 640)
    assert cut.offset.tolist() == [0, 10, 20, 30, 40, 50]
    assert reasons(cut) == [(60, 5, "remainder")]
    assert np.abs(cut.signals.mean(axis=2)).max() < 1e-5
    assert np.abs(cut.signals.std(axis=2) - 1).max() < 1e-4
    assert cut.signals.dtype == np.float32


def test_segments_are_cut_from_the_filtered_whole():
    wave = write.pulse(60, 64).astype(np.float32)
    cut = cut_segments(record(wave), PPG)
    whole = clean(wave[None].astype(np.float64), 64.0, PPG)[0]
    for i in range(6):
        part = whole[640 * i : 640 * (i + 1)]
        assert np.abs(cut.signals[i, 0] - (part - part.mean()) / part.std()).max() < 1e-5


@pytest.mark.parametrize(
    ("hole", "kept", "rejected"),
    [
        (0.2, 3, []),
        (0.9, 2, [(10, 10, "filled")]),
        (1.2, 2, [(10, 2, "remainder"), (12, 1.2, "missing"), (23.2, 6.8, "remainder")]),
        (10.0, 1, [(10, 2, "remainder"), (12, 10, "missing"), (22, 8, "short_run")]),
    ],
)
def test_holes_are_filled_blanked_or_split_by_their_length(hole, kept, rejected):
    wave = write.pulse(30, 100)
    wave[1200 : 1200 + round(hole * 100)] = np.nan
    cut = cut_segments(record(wave, 100.0), PPG)
    assert len(cut.signals) == kept
    assert reasons(cut) == rejected
    assert np.isfinite(cut.signals).all()


def test_a_long_hole_is_a_blank_and_a_short_one_a_line():
    wave = write.pulse(60, 64)
    wave[700:710] = np.nan  # 0.16 s
    wave[900:940] = np.nan  # 0.63 s
    (segment,) = (cut := cut_segments(record(wave), IngestOptions(signal="ppg"))).signals
    assert (segment[0, 900:940] == 0).all()
    assert (segment[0, 700:710] != 0).all()
    assert cut.filled[0] == pytest.approx(50 / 3840)


def test_a_sample_missing_in_one_channel_is_missing():
    waves = np.stack([write.pulse(20, 64), write.pulse(20, 64, seed=1)])
    waves[1, 100:180] = np.inf
    cut = cut_segments(record(waves), PPG)
    assert len(cut.signals) == 1
    assert reasons(cut) == [
        (0, 100 / 64, "short_run"),
        (100 / 64, 80 / 64, "missing"),
        (180 / 64 + 10, 10 - 180 / 64, "remainder"),
    ]


def test_flat_lines_saturation_and_nothing_at_all():
    wave = write.pulse(40, 100, noise=0)
    flat = wave.copy()
    flat[1000:1600] = 0.3
    assert reasons(cut_segments(record(flat, 100.0), PPG)) == [(10, 10, "flat")]
    clipped = np.minimum(wave * (1 + 4 * (np.arange(4000) // 1000 == 2)), 0.8)
    found = cut_segments(record(clipped, 100.0), PPG)
    assert reasons(found) == [(20, 10, "clipped")] or found.clipped.max() > 0.05
    assert reasons(cut_segments(record(np.full(4000, 7.0), 100.0), PPG)) == [(t, 10, "flat") for t in (0, 10, 20, 30)]
    assert reasons(cut_segments(record(np.full(4000, np.nan), 100.0), PPG)) == [(0, 40, "no_signal")]
    assert reasons(cut_segments(record(wave[:900], 100.0), PPG)) == [(0, 9, "short_recording")]
    # one or two equal extremes, or a pause of half a second, are what real signals have
    assert cut_segments(record(wave, 100.0), PPG).clipped.max() == 0


def test_shares_equal_a_loop_by_definition():
    rng = np.random.default_rng(3)
    wave = np.round(write.pulse(30, 50, seed=2), 1)
    wave[100:170] = wave[100]
    wave[400:404] = np.nan
    wave[rng.integers(600, 900, 5)] = np.nan
    cut = cut_segments(record(wave, 50.0), IngestOptions(signal="ppg", seconds=10, max_flat=1, max_clipped=1))
    values = np.float32(wave)
    for i in range(3):
        flat = 0
        run = [500 * i]
        for k in range(500 * i, 500 * (i + 1)):
            run = [*run, k] if k > 500 * i and values[k] == values[k - 1] else [k]
            flat = max(flat, len(run) if len(run) >= 50 else 0)
        assert cut.flat[i] == pytest.approx(flat / 500)
        assert cut.filled[i] == pytest.approx(np.isnan(wave[500 * i : 500 * (i + 1)]).mean())


def test_exact_length_is_one_segment_at_any_rate():
    for rate in (512.844, 512.0, 300.0, 117.0, 64.0, 25.0):
        samples = round(10 * rate + 0.4999)
        cut = cut_segments(record(write.pulse(11, rate)[:samples], rate), PPG)
        assert cut.signals.shape == (1, 1, 640)


@pytest.mark.parametrize(("tone", "kept"), [(40.0, False), (8.0, True)])
def test_resampling_removes_what_the_new_rate_cannot_hold(tone, kept):
    t = np.arange(256 * 20) / 256
    out = resample(np.sin(2 * np.pi * tone * t)[None], 256.0, 64.0)[0, 128:-128]
    assert out.std() == pytest.approx(np.sqrt(0.5), rel=0.01) if kept else out.std() < 0.003


def test_resampling_an_odd_rate_does_not_drift():
    rate, seconds = 512.844, 60
    t = np.arange(int(rate * seconds)) / rate
    out = resample(np.sin(2 * np.pi * 5 * t)[None], rate, 128.0)[0]
    expected = np.sin(2 * np.pi * 5 * np.arange(len(out)) / 128)
    assert abs(len(out) - seconds * 128) <= 1
    assert np.abs(out - expected)[128:-128].max() < 0.02  # 0.2 ms of 200 ms


def test_filters_pass_and_stop_what_they_should_without_delay():
    t = np.arange(250 * 40) / 250

    def gain(frequency, options, rate=250.0):
        wave = np.sin(2 * np.pi * frequency * t)[None]
        out = clean(wave, rate, options)[0, 2500:-2500]
        return out.std() / wave[0, 2500:-2500].std(), np.corrcoef(out, wave[0, 2500:-2500])[0, 1]

    assert gain(2.0, PPG) == (pytest.approx(1, abs=0.01), pytest.approx(1, abs=1e-3))
    assert gain(0.5, PPG)[0] == pytest.approx(0.5, abs=0.02)  # −3 dB, twice
    assert gain(0.05, PPG)[0] < 0.01
    assert gain(30, PPG)[0] < 0.01
    assert gain(20, ECG) == (pytest.approx(1, abs=0.01), pytest.approx(1, abs=1e-3))
    assert gain(50, ECG)[0] < 0.01
    assert gain(60, ECG)[0] < 0.01
    assert gain(60, IngestOptions(signal="ecg", mains=(50.0,)))[0] > 0.95


def test_rates_too_slow_and_other_kinds_are_refused():
    with pytest.raises(DataError, match="a.csv: 10 Hz is too slow for PPG, which needs more than 16"):
        cut_segments(record(np.zeros(1000), 10.0, source="a.csv"), PPG)
    with pytest.raises(DataError, match="40 Hz is too slow for ECG, which needs more than 50"):
        cut_segments(record(np.zeros(1000), 40.0, kind="ecg"), ECG)
    with pytest.raises(ConfigError, match="recording is ppg, but signal is ecg"):
        cut_segments(record(np.zeros(1000), 100.0), ECG)
    with pytest.raises(DataError, match="sampling rate 0 Hz; it must be above 0"):
        record(np.zeros(10), 0.0)
    for given, message in (
        ({"signal": "ppg", "rate": 12}, "rate 12 Hz cannot hold 8 Hz: give more than 16"),
        ({"signal": "ppg", "low": 9}, "low 9 Hz must lie below high 8 Hz"),
        ({"signal": "ppg", "seconds": 0.1}, "6 samples: give 16 or more"),
        ({"signal": "ppg", "fill_seconds": 2}, "must not exceed hole_seconds"),
    ):
        with pytest.raises(ValidationError, match=message):
            IngestOptions(**given)


@pytest.mark.parametrize(("kind", "rate"), [("ppg", 64), ("ppg", 100), ("ecg", 128), ("ecg", 500)])
def test_quality_tells_clean_signals_from_noise_and_counts_the_beats(kind, rate):
    rng = np.random.default_rng(0)
    options = IngestOptions(signal=kind, seconds=20)
    make = write.pulse if kind == "ppg" else write.lead
    for bpm in (50, 75, 130):
        cut = cut_segments(record(make(60, rate, bpm=bpm), float(rate), kind), options)
        assert cut.index.min() > 0.85, (bpm, cut.quality)
        assert cut.quality.rate == pytest.approx(bpm, rel=0.05)
    white = cut_segments(record(rng.normal(size=60 * rate), float(rate), kind), options)
    drift = cut_segments(record(np.cumsum(rng.normal(size=60 * rate)), float(rate), kind), options)
    assert max(white.index.max(), drift.index.max()) < 0.7
    assert len(white.signals) == 3, "a low score rejects nothing"


def test_an_irregular_rhythm_is_no_bad_quality():
    rng = np.random.default_rng(5)
    t = np.arange(128 * 60) / 128
    beats = np.cumsum(np.clip(0.75 * np.exp(0.22 * rng.standard_normal(90)), 0.35, 2))
    wave = sum(
        h * np.exp(-0.5 * ((t - b - c) / w) ** 2) for b in beats for h, c, w in ((1, 0, 0.012), (0.25, 0.25, 0.05))
    )
    cut = cut_segments(record(wave + 0.01 * rng.standard_normal(len(t)), 128.0, "ecg"), ECG)
    assert np.median(cut.index) > 0.85


def test_periodic_motion_has_a_low_band_power():
    t = np.arange(64 * 60) / 64
    motion = np.sin(2 * np.pi * 2.8 * t) + 0.1 * write.pulse(60, 64)
    moved, still = (
        cut_segments(record(wave), PPG).quality.band_power.mean() for wave in (motion, write.pulse(60, 64, bpm=90))
    )
    assert moved < 0.25 * still


def test_artefacts_cost_their_own_segment_only():
    wave = write.pulse(60, 64)
    wave[1280:1900] += 50 * np.random.default_rng(0).standard_normal(620)
    index = cut_segments(record(wave), PPG).index
    assert index[2] < 0.7
    assert np.delete(index, [2]).min() > 0.8


def test_detectors_find_the_beats_that_were_put_in():
    t = np.arange(128 * 30) / 128
    beats = np.arange(0.7, 29.5, 0.8)
    wave = sum(np.exp(-0.5 * ((t - b) / 0.012) ** 2) for b in beats)
    for detect in (block_beats, slope_beats):
        found = detect(wave - wave.mean(), 128, "ecg") / 128
        assert len(found) == len(beats)
        assert np.abs(found - beats).max() < 0.05


def test_quality_of_several_channels_is_their_mean():
    waves = np.stack([write.pulse(20, 64), np.random.default_rng(0).normal(size=1280)])
    both = assess(waves, waves, 64.0, 640, "ppg")
    each = [assess(w[None], w[None], 64.0, 640, "ppg") for w in waves]
    assert both.template == pytest.approx(np.mean([q.template for q in each], axis=0))


def test_segments_in_memory_for_one_signal():
    recordings = [
        record(write.pulse(25, 64), participant="a", start=100.0, labels={"age": 30.0, "sex": "f"}),
        record(write.pulse(12, 64), participant="b", device="ring"),
        record(write.pulse(11, 64), participant="a", session="2"),
    ]
    segments = segment_recordings(recordings, PPG)
    assert segments.participant.tolist() == [0, 0, 1, 0]
    assert segments.participant_keys == ("a", "b")
    assert segments.session.tolist() == [0, 0, 1, 2]
    assert segments.start[:2].tolist() == [100, 110]
    assert segments.labels["age"][:2].tolist() == [30, 30]
    assert np.isnan(segments.labels["age"][2])
    assert segments.devices == ("unknown", "ring")
    with pytest.raises(DataError, match="no segment of 10 s: the recording is shorter than a segment"):
        segment_recordings([record(write.pulse(5, 64))], PPG)
