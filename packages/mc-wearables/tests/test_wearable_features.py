"""Classical features: neurokit2's own numbers, closed-form beats, failures of detection, invariances."""

from __future__ import annotations

import logging

import neurokit2 as nk
import numpy as np
import pytest

from mc_wearables import features as module
from mc_wearables.cohort import simulate_cohort
from mc_wearables.data.segments import Segments
from mc_wearables.evaluation import METRICS
from mc_wearables.features import (
    Beats,
    _ecg_shape,
    _median,
    _ppg_shape,
    _rhythm,
    classical_features,
    detect_beats,
    heart_rate,
)


@pytest.fixture(scope="module")
def cohorts():
    return {
        "ppg": simulate_cohort("ppg", participants=30, segments=4, seconds=20, sampling_rate=32, channels=2, seed=1),
        "ecg": simulate_cohort("ecg", participants=30, segments=4, seconds=10, sampling_rate=64, seed=1),
    }


def column(found, name):
    return found.values[:, found.names.index(name)]


@pytest.mark.parametrize("kind", ["ppg", "ecg"])
def test_heart_rate_is_that_of_the_generator(cohorts, kind):
    segments = cohorts[kind].segments
    found = heart_rate(segments)
    assert (found.names, found.values.shape) == (("rate",), (120, 1))
    calm = (segments.labels["activity"] < 0.2) & (segments.labels["rhythm"] == 0)
    error = np.abs(found.values[:, 0] - segments.labels["rate"])[calm]
    assert np.median(error) < 1
    assert (error < 5).mean() > 0.95


@pytest.mark.parametrize("kind", ["ppg", "ecg"])
def test_refined_beats_lie_within_milliseconds(cohorts, kind):
    """At 64 Hz samples are 16 ms apart; what is left after interpolation is far less."""
    found, beats = cohorts[kind], detect_beats(cohorts[kind].segments)
    labels = found.segments.labels
    error = []
    for row in np.flatnonzero((labels["activity"] < 0.1) & (labels["rhythm"] == 0)):
        truth = found.beats[row][np.isfinite(found.beats[row])]
        lead = beats.of(row)[:, None] - truth
        near = np.take_along_axis(lead, np.abs(lead).argmin(1)[:, None], 1)[:, 0]
        error += list(np.abs(near - np.median(near)))
    assert np.median(error) < (0.004 if kind == "ecg" else 0.012)


def test_beats_fall_between_samples():
    """Of a train of smooth R waves: samples are 3.9 ms apart, the parabola through three of them leaves a tenth of that."""
    truth = np.cumsum(np.random.default_rng(0).uniform(0.7, 1.1, 24))
    at = np.arange(26 * 256) / 256
    wave = np.exp(-0.5 * ((at[:, None] - truth) / 0.014) ** 2).sum(1)
    found = detect_beats(Segments.of(wave[None, None], 256, "ecg", [0])).of(0)
    error = np.abs(found[:, None] - truth).min(1)
    assert len(found) > 18
    assert error.max() < 4e-4


def test_rhythm_features_are_those_of_neurokit2():
    rng = np.random.default_rng(0)
    trains = [np.cumsum(rng.normal(0.9, 0.06, n)) for n in (30, 12, 4, 3, 0)]
    beats = Beats(np.repeat(np.arange(5), [30, 12, 4, 3, 0]), np.concatenate(trains))
    found = _rhythm(beats, 5)
    for row in (0, 1):
        peaks = np.rint(trains[row] * 100_000).astype(int)
        theirs = nk.hrv_time(peaks, sampling_rate=100_000)
        assert found["sdnn"][row] == pytest.approx(np.log(theirs["HRV_SDNN"][0] / 1000 + 0.002), abs=1e-4)
        assert found["rmssd"][row] == pytest.approx(np.log(theirs["HRV_RMSSD"][0] / 1000 + 0.002), abs=1e-4)
        assert found["mean_rate"][row] == pytest.approx(60_000 / theirs["HRV_MeanNN"][0], abs=1e-3)
        assert found["rate"][row] == pytest.approx(60_000 / theirs["HRV_MedianNN"][0], abs=1e-3)
        steps = np.diff(np.diff(trains[row]))
        assert found["pnn50"][row] == pytest.approx((np.abs(steps) > 0.05).mean())
    assert np.isfinite(found["rate"][2])
    for name, values in found.items():
        assert np.isnan(values[3:]).all(), name


def test_median_of_ragged_groups():
    rng = np.random.default_rng(0)
    owner = np.sort(rng.integers(0, 9, 40))
    owner[owner == 4] = 5
    values = rng.normal(size=40)
    found = _median(values, owner, 10)
    for row in range(10):
        own = values[owner == row]
        assert found[row] == pytest.approx(np.median(own)) if len(own) else np.isnan(found[row])
    assert np.isnan(_median(np.empty(0), np.empty(0, dtype=np.int64), 2)).all()


def test_ppg_shape_of_a_known_pulse():
    at = np.arange(-70, 131) / 200
    near, far = 0.06, 0.11
    pulse = np.exp(-0.5 * (at / np.where(at < 0, near, far)) ** 2)
    found = _ppg_shape(np.stack([5 * pulse - 2, 0.1 * pulse + 7]), at)
    for row in range(2):
        for share in (0.25, 0.5, 0.75):
            reach = np.sqrt(-2 * np.log(share))
            assert found[f"rise_{round(100 * share)}"][row] == pytest.approx(near * reach, abs=1e-3)
            assert found[f"fall_{round(100 * share)}"][row] == pytest.approx(far * reach, abs=1e-3)
        assert found["height_200"][row] == pytest.approx(np.exp(-0.5 * (0.2 / far) ** 2), abs=1e-6)
        assert found["upstroke"][row] == pytest.approx(np.exp(-0.5) / near, rel=0.01)
    reflected = pulse + 0.4 * np.exp(-0.5 * ((at - 0.3) / 0.05) ** 2)
    assert _ppg_shape(reflected[None], at)["shoulder_time"][0] == pytest.approx(0.3, abs=0.02)


def test_ecg_shape_of_a_known_beat():
    at = np.arange(-75, 126) / 250

    def bell(middle, width):
        return np.exp(-0.5 * ((at - middle) / width) ** 2)

    beat = 0.15 * bell(-0.16, 0.02) + bell(0, 0.012) - 0.2 * bell(0.04, 0.008) + 0.3 * bell(0.3, 0.04)
    found = _ecg_shape(np.stack([beat, 3 * beat - 1]), at)
    for row in range(2):
        for name, height, middle in (("p", 0.15, -0.16), ("s", 0.2, 0.04), ("t", 0.3, 0.3)):
            assert found[f"{name}_height"][row] == pytest.approx(height, abs=0.01)
            assert found[f"{name}_time"][row] == pytest.approx(middle, abs=0.005)
        assert found["r_left_50"][row] == pytest.approx(0.012 * np.sqrt(2 * np.log(2)), abs=5e-4)
        assert found["t_width"][row] * (0.48 - 0.13) == pytest.approx(0.08 * np.sqrt(2 * np.log(2)), abs=0.006)
        assert found["q_height"][row] < 0.02
    upside_down = _ecg_shape(-beat[None], at)
    assert np.isnan(upside_down["t_height"]).all()  # R does not stand out: no shape rather than a wrong one


@pytest.mark.parametrize("kind", ["ppg", "ecg"])
def test_features_are_named_finite_and_independent_of_the_rest(cohorts, kind, monkeypatch):
    segments = cohorts[kind].segments
    found = classical_features(segments)
    assert found.values.shape == (120, len(found.names))
    assert found.values.dtype == np.float32
    assert len(set(found.names)) == len(found.names) >= 35
    assert np.isnan(found.values).mean() < 0.02
    chosen = np.random.default_rng(0).permutation(120)[:50]
    part = classical_features(segments.where(chosen))
    assert np.array_equal(part.values, found.values[chosen], equal_nan=True)
    assert part.labels["age"].tolist() == segments.labels["age"][chosen].tolist()
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert np.array_equal(classical_features(segments).values, found.values, equal_nan=True)


@pytest.mark.parametrize(("kind", "least"), [("ppg", 0.9), ("ecg", 0.97)])
def test_irregularity_tells_fibrillation(cohorts, kind, least):
    segments = cohorts[kind].segments
    found = classical_features(segments)
    score = np.nan_to_num(column(found, "irregularity"), nan=-9.0)
    truth = segments.labels["rhythm"]
    assert truth.sum() >= 5
    assert METRICS["auroc"](truth, score, np.ones((1, 120)))[0] > least


def test_beat_shape_follows_the_generator(cohorts):
    """Columns stand for what they are called after: the parameters that made the signal."""
    for kind, name, parameter, least in (
        ("ppg", "height_300", "reflected_height", 0.3),
        ("ppg", "rise_50", "rise", 0.5),
        ("ecg", "t_height", "t_height", 0.6),
        ("ecg", "p_time", "p_time", -0.4),
    ):
        found, oracle = classical_features(cohorts[kind].segments), cohorts[kind].oracle
        labels = cohorts[kind].segments.labels
        calm = (labels["activity"] < 0.3) & (labels["rhythm"] == 0) & np.isfinite(column(found, name))
        truth = oracle.segment[calm, oracle.names.index(parameter)]
        measured = np.corrcoef(column(found, name)[calm], truth)[0, 1]
        assert measured * np.sign(least) > abs(least), (kind, name, measured)


@pytest.mark.parametrize("kind", ["ppg", "ecg"])
def test_without_beats_there_is_nan_and_no_complaint(kind):
    signals = np.zeros((3, 1, 640), dtype=np.float32)
    signals[1] = np.random.default_rng(0).normal(size=640)
    signals[2, 0, 300:310] = 5
    segments = Segments.of(signals, 64, kind, [0, 0, 1])
    found = classical_features(segments)
    assert np.isnan(found.values[0]).all()
    assert not np.isinf(found.values).any()
    assert np.isnan(column(found, "rate")[2])
    assert np.isfinite(column(found, "skewness")[1:]).all()
    assert np.isnan(heart_rate(segments).values[[0, 2]]).all()
    assert detect_beats(segments).of(0).shape == (0,)


def test_a_long_detection_reports_its_progress(cohorts, monkeypatch, caplog):
    monkeypatch.setattr(module, "_PATIENCE", -1.0)
    monkeypatch.setattr(module, "_BLOCK", 50)
    with caplog.at_level(logging.INFO, logger="mc_core"):
        detect_beats(cohorts["ecg"].segments)
    assert [r.getMessage().split(",")[0] for r in caplog.records] == [
        f"beats: {n} of 120 segments" for n in (50, 100, 120)
    ]
