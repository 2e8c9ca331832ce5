"""The simulated cohort: its equations in plain loops, its people, its rhythms, what leaves no trace, and bad input."""

from __future__ import annotations

import math
import time

import neurokit2 as nk
import numpy as np
import pytest

from mc_core.errors import ConfigError
from mc_wearables.cohort import DEVICES, TARGETS, generator, simulate_cohort, traits, waves
from mc_wearables.data.segments import standardise
from mc_wearables.evaluation import Features, probe

SIZES = {
    "ppg": {"seconds": 20, "sampling_rate": 32, "channels": 2},
    "ecg": {"seconds": 10, "sampling_rate": 64, "channels": 1},
}


def cohort(kind, participants=12, segments=4, **options):
    return simulate_cohort(kind, participants=participants, segments=segments, **(SIZES[kind] | options))


@pytest.fixture(scope="module")
def many():
    return {kind: cohort(kind, 80, 4, seed=3) for kind in SIZES}


@pytest.mark.parametrize("kind", ["ppg", "ecg"])
def test_shapes_and_labels(kind):
    found = cohort(kind)
    segments = found.segments
    assert segments.signals.shape == (48, SIZES[kind]["channels"], 640)
    assert segments.signals.dtype == np.float32
    assert np.isfinite(segments.signals).all()
    assert np.allclose(segments.signals.mean(-1), 0, atol=1e-5)
    assert np.allclose(segments.signals.std(-1), 1, atol=1e-4)
    assert set(segments.labels) == set(TARGETS)
    assert segments.kind == kind
    assert (segments.duration, segments.sampling_rate) == (SIZES[kind]["seconds"], SIZES[kind]["sampling_rate"])
    assert segments.participant.tolist() == np.arange(12).repeat(4).tolist()
    assert segments.session.tolist() == np.arange(24).repeat(2).tolist()
    assert (np.diff(segments.start.reshape(12, 4), axis=1) > 0).all()
    assert (segments.start[1::2] - segments.start[::2] == 300).all()
    for name, (task, level) in TARGETS.items():
        column = segments.labels[name].reshape(12, 4)
        if level == "participant":
            assert (column == column[:, :1]).all()
        if task == "classification":
            assert np.isin(column, (0, 1)).all()
    assert found.oracle.segment.shape == (48, len(found.oracle.names))
    assert found.oracle.participant.shape == (12, len(found.oracle.names))
    assert np.isfinite(found.oracle.segment).all()


@pytest.mark.parametrize("kind", ["ppg", "ecg"])
def test_a_participant_depends_on_nobody_else(kind, monkeypatch):
    whole = cohort(kind, 9, 4, seed=5)
    fewer, shorter = cohort(kind, 4, 4, seed=5), cohort(kind, 9, 2, seed=5)
    assert np.array_equal(fewer.segments.signals, whole.segments.signals[:16])
    first = np.flatnonzero(np.arange(36) % 4 < 2)
    assert np.array_equal(shorter.oracle.segment, whole.oracle.segment[first])
    assert np.array_equal(shorter.segments.signals, whole.segments.signals[first])
    monkeypatch.setattr(generator, "_ROWS_AT_ONCE", 5)
    again = cohort(kind, 9, 4, seed=5)
    assert np.array_equal(again.segments.signals, whole.segments.signals)
    assert np.array_equal(again.beats, whole.beats, equal_nan=True)


def test_splits_and_seeds_are_other_people():
    train, test, other = cohort("ecg"), cohort("ecg", split="test"), cohort("ecg", seed=1)
    assert not set(train.segments.participant_keys) & set(test.segments.participant_keys)
    for one in (test, other):
        assert not np.isin(one.segments.labels["age"], train.segments.labels["age"]).any()
        assert not np.isclose(one.oracle.participant[:, 0, None], train.oracle.participant[:, 0]).any()


def naive_ppg(segment, channel, beats, at):
    total = 0.0
    for i in range(1, len(beats)):
        interval = beats[i] - beats[i - 1]
        since = at - beats[i] - channel["lag"]
        width = segment["rise"] if since < 0 else segment["fall"]
        pulse = math.exp(-0.5 * (since / width) ** 2)
        for wave in ("reflected", "dicrotic"):
            late = since - segment[f"{wave}_delay"] * interval**0.3
            height = segment[f"{wave}_height"] * channel["reflection"]
            pulse += height * math.exp(-0.5 * (late / segment[f"{wave}_width"]) ** 2)
        strength = min(max(interval * segment["target_rate"] / 60, 0.4), 1.6) ** 0.6
        total += strength * pulse
    return total * segment["perfusion"] * channel["gain"]


def naive_ecg(segment, beats, at):
    def bell(x, width):
        return math.exp(-0.5 * (x / width) ** 2)

    total = 0.0
    for i in range(1, len(beats)):
        since, width = at - beats[i], segment["qrs_width"]
        late = since - segment["t_time"] * math.sqrt(beats[i] - beats[i - 1])
        total += segment["p_height"] * bell(since + segment["p_time"], segment["p_width"])
        total -= segment["q_height"] * bell(since + 2.3 * width, 0.8 * width)
        total += bell(since, width)
        total -= segment["s_height"] * bell(since - 2.3 * width, 0.9 * width)
        total += segment["t_height"] * bell(late, segment["t_width"] * (1.2 if late < 0 else 0.9))
    swing = 2 * math.pi * segment["fibrillation"] * at + 1.5 * math.sin(0.9 * at + segment["phase_breath"])
    return total + segment["fibrillation_height"] * math.sin(swing)


@pytest.mark.parametrize("kind", ["ppg", "ecg"])
def test_waves_are_the_equations(kind):
    people = range(30)
    person = traits.draw_participants(11, people, kind, 3)
    segment = traits.draw_segments(11, people, 3, person, kind)
    assert segment["rhythm"].any()
    channel = {name: c.repeat(3, 0) for name, c in traits.draw_channels(11, people, 2).items()}
    beats = waves.beat_times(segment, traits.draw_beats(11, people, 3, waves.beats_needed(4)))
    at = np.arange(6 * 50) / 50 - waves.PAD
    assert (beats[:, 1] <= at[0]).all()
    assert (beats[:, -2] > at[-1]).all()
    if kind == "ppg":
        found = waves.ppg_wave(segment, channel, beats, at, 50)
    else:
        found = waves.ecg_wave(segment, beats, at, 50)
    rng = np.random.default_rng(0)
    for row, sample in zip(rng.integers(0, 90, 150), rng.integers(0, len(at), 150), strict=True):
        one = {name: column[row] for name, column in segment.items()}
        for c in range(found.shape[1]):
            if kind == "ppg":
                lane = {name: column[row, c] for name, column in channel.items()}
                expected = naive_ppg(one, lane, beats[row], at[sample])
            else:
                expected = naive_ecg(one, beats[row], at[sample])
            # waves of beats further off than the neighbours are left out: they are below 1e-3
            assert found[row, c, sample] == pytest.approx(expected, abs=4e-3)


def test_beats_follow_the_rhythm(many):
    for kind, found in many.items():
        labels, seconds = found.segments.labels, found.segments.duration
        intervals = np.diff(found.beats, axis=1)
        spread = np.nanstd(intervals, axis=1) / np.nanmean(intervals, axis=1)
        af = labels["rhythm"] == 1
        assert 0.15 < np.median(spread[af]) < 0.26, kind  # σ 0.22, clipped
        assert np.median(spread[~af]) < 0.08
        count = np.isfinite(found.beats).sum(1)
        assert np.abs(labels["rate"] - 60 * count / seconds).max() <= 60 / seconds + 1e-6
        steady = ~af
        assert labels["rate"][steady] == pytest.approx(60 / np.nanmean(intervals, axis=1)[steady], rel=0.06)
        assert np.nanmin(found.beats) >= 0
        assert np.nanmax(found.beats) < seconds


def test_atrial_fibrillation_is_paroxysmal(many):
    for found in many.values():
        rhythm, person = (found.segments.labels[name].reshape(80, 4) for name in ("rhythm", "af"))
        assert not rhythm[person == 0].any()
        share = rhythm[person == 1].mean()
        assert 0.3 < share < 0.7
        old = found.segments.labels["age"].reshape(80, 4)[:, 0] > 50
        assert person[old, 0].mean() > person[~old, 0].mean()


@pytest.mark.parametrize(("kind", "recall", "spurious"), [("ppg", 0.97, 0.06), ("ecg", 0.98, 0.01)])
def test_an_independent_detector_finds_the_beats(kind, recall, spurious):
    """neurokit2 knows nothing of how these signals were made."""
    found = simulate_cohort(kind, participants=30, segments=2, seconds=20, sampling_rate=128, seed=8)
    labels = found.segments.labels
    hits = total = extra = 0
    for row in np.flatnonzero((labels["activity"] < 0.3) & (labels["rhythm"] == 0)):
        signal = found.segments.signals[row, 0].astype(np.float64)
        if kind == "ppg":
            peaks = nk.ppg_findpeaks(nk.ppg_clean(signal, sampling_rate=128), sampling_rate=128)["PPG_Peaks"]
        else:
            peaks = nk.ecg_findpeaks(nk.ecg_clean(signal, sampling_rate=128), sampling_rate=128)["ECG_R_Peaks"]
        truth = found.beats[row]
        truth = truth[(truth > 0.7) & (truth < 19.3)]  # the finders are blind at the edges
        lead = np.asarray(peaks) / 128 - truth[:, None]
        nearest = np.take_along_axis(lead, np.abs(lead).argmin(1)[:, None], 1)
        # a high reflected wave makes the pulse peak late, all beats alike
        hits += (np.abs(nearest - np.median(nearest)) < 0.12).sum()
        extra += max(0, len(peaks) - np.isfinite(found.beats[row]).sum())
        total += len(truth)
    assert total > 400
    assert hits / total > recall
    assert extra / total < spurious


def mean_beat(signal, peaks, rate, before, after):
    window = np.arange(round(before * rate), round(after * rate))
    rows = [signal[p + window] for p in peaks if p + window[0] >= 0 and p + window[-1] < len(signal)]
    return np.mean(rows, axis=0)


def test_the_average_person_looks_like_the_textbook():
    """Mean beats of our people against those of neurokit2's simulators, which share no equation with ours."""
    reference = nk.ecg_simulate(duration=20, sampling_rate=128, noise=0, heart_rate=66, random_state=1)
    peaks = nk.ecg_findpeaks(reference, sampling_rate=128)["ECG_R_Peaks"]
    textbook = mean_beat(reference, peaks, 128, -0.25, 0.45)
    pulse = nk.ppg_simulate(duration=20, sampling_rate=128, heart_rate=66, motion_amplitude=0, random_state=1)
    pulse = nk.ppg_clean(pulse, sampling_rate=128)
    crest = nk.ppg_findpeaks(pulse, sampling_rate=128)["PPG_Peaks"]
    for kind, expected, edges, least in (
        ("ecg", textbook, (-0.25, 0.45), 0.75),
        ("ppg", mean_beat(pulse, crest, 128, -0.25, 0.5), (-0.25, 0.5), 0.85),
    ):
        found = simulate_cohort(kind, participants=25, segments=2, seconds=20, sampling_rate=128, seed=4)
        alike = []
        for row in np.flatnonzero((found.segments.labels["rhythm"] == 0) & (found.segments.labels["activity"] < 0.2)):
            beats = found.beats[row][np.isfinite(found.beats[row])]
            own = mean_beat(found.segments.signals[row, 0], np.rint(beats * 128).astype(int), 128, *edges)
            alike.append(np.corrcoef(own, expected)[0, 1])
        assert np.median(alike) > least
        assert np.ptp(alike) > 0.05  # people differ, which neurokit2's do not


def test_no_p_wave_in_fibrillation_and_there_alone():
    found = simulate_cohort("ecg", participants=200, segments=4, seconds=20, sampling_rate=128, seed=2)
    labels = found.segments.labels
    height = np.full(800, np.nan)
    for row in np.flatnonzero((labels["af"] == 1) & (labels["activity"] < 0.4)):
        beats = np.rint(found.beats[row][np.isfinite(found.beats[row])] * 128).astype(int)
        beat = mean_beat(found.segments.signals[row, 0], beats, 128, -0.25, 0.1)
        # before the Q wave: the P wave stands out of the line between its feet
        height[row] = beat[8:20].max() - 0.5 * (beat[:4].mean() + beat[22:24].mean())
    af, sinus = (np.nanmedian(height[labels["rhythm"] == r]) for r in (1, 0))
    assert sinus > 0.4
    assert af < 0.5 * sinus


def test_one_target_leaves_no_trace(monkeypatch):
    """The coin is tossed beside everything else: turned over, not one sample changes."""
    before = {kind: cohort(kind) for kind in SIZES}
    original = traits.draw_participants

    def turned(*args):
        person = original(*args)
        return person | {"nothing": 1 - person["nothing"]}

    monkeypatch.setattr(generator, "draw_participants", turned)
    for kind, old in before.items():
        new = cohort(kind)
        assert np.array_equal(new.segments.signals, old.segments.signals)
        assert np.array_equal(new.oracle.segment, old.oracle.segment)
        assert (new.segments.labels["nothing"] == 1 - old.segments.labels["nothing"]).all()


@pytest.mark.parametrize("kind", ["ppg", "ecg"])
def test_the_ceiling_is_high_but_not_at_the_top(kind):
    """Targets overlap with nuisance: what the parameters themselves reveal is well above chance and well below certainty."""
    sides = []
    for split in ("train", "test"):
        one = cohort(kind, 250, 4, split=split, seconds=2)
        sides.append(Features.of(one.oracle.segment, one.segments, names=one.oracle.names))
    found = {
        name: probe(*sides, name, level=level, draws=100).metrics
        for name, level in (("age", "participant"), ("sex", "participant"), ("nothing", "participant"))
    }
    assert 0.4 < found["age"]["r2"].value < 0.75
    assert 0.7 < found["sex"]["auroc"].value < 0.95
    assert 0.36 < found["nothing"]["auroc"].value < 0.64
    assert probe(*sides, "rhythm", level="segment", draws=20).metrics["auroc"].value > 0.99


@pytest.mark.parametrize("kind", ["ppg", "ecg"])
def test_what_segments_add_is_wider_than_what_traits_do(kind, many):
    oracle = many[kind].oracle
    for name in ("reflected_height", "rise") if kind == "ppg" else ("s_height", "t_height"):
        column = oracle.names.index(name)
        segment, person = oracle.segment[:, column].reshape(80, 4), oracle.participant[:, column]
        within = (segment - segment.mean(1, keepdims=True)).std() * math.sqrt(4 / 3)
        assert segment.mean(1) == pytest.approx(person, abs=float(5 * within))
        age = many[kind].segments.labels["age"].reshape(80, 4)[:, 0]
        slope = np.polyfit(np.tanh(1.2 * (age - 50) / 30), person, 1)[0]
        assert within > 0.8 * abs(slope) * 0.55


def test_activity_raises_the_rate_and_the_noise(many):
    for found in many.values():
        labels, names = found.segments.labels, found.oracle.names
        calm = labels["rhythm"] == 0
        assert np.corrcoef(labels["activity"][calm], labels["rate"][calm])[0, 1] > 0.4
        for name, sign in (("noise", 1), ("sdnn", -1), ("log_motion", 1)):
            column = found.oracle.segment[calm, names.index(name)]
            assert sign * np.corrcoef(labels["activity"][calm], column)[0, 1] > 0.2, name


@pytest.mark.parametrize("kind", ["ppg", "ecg"])
def test_devices_leave_a_trace_but_tell_nothing(kind):
    found = cohort(kind, 150, 2, seed=6)
    segments = found.segments
    assert segments.devices == tuple(device.name for device in DEVICES[kind])
    device = segments.device.reshape(150, 2)
    assert (device[:, 0] == device[:, 1]).all()
    assert set(device[:, 0]) == {0, 1, 2}
    narrow = min(range(3), key=lambda i: DEVICES[kind][i].band[1])
    edge = DEVICES[kind][narrow].band[1]
    power = np.abs(np.fft.rfft(segments.signals[:, 0])) ** 2
    frequency = np.fft.rfftfreq(segments.samples, 1 / segments.sampling_rate)
    high = np.log(power[:, frequency > 1.3 * edge].sum(1) / power.sum(1))
    assert np.median(high[segments.device == narrow]) < np.median(high[segments.device != narrow]) - 0.3
    for name in ("age", "sex", "nothing"):
        column = segments.labels[name]
        groups = [column[segments.device == i][::2] for i in range(3)]
        spread = column.std() * math.sqrt(1 / min(map(len, groups)))
        assert max(abs(g.mean() - column.mean()) for g in groups) < 4 * spread


def test_channels_are_the_same_heart_at_other_places():
    found = cohort("ppg", 20, 2, channels=4)
    signals = found.segments.signals
    correlation = [np.corrcoef(row)[0, 1:].min() for row in signals]
    assert 0.5 < np.median(correlation) < 0.9999
    assert np.allclose(standardise(signals), signals, atol=1e-4)


@pytest.mark.parametrize("kind", ["ppg", "ecg"])
def test_it_is_fast_enough_to_be_made_on_the_spot(kind):
    spent = []
    for _ in range(3):
        begin = time.process_time()
        cohort(kind, 25, 8)
        spent.append((time.process_time() - begin) / 200)
    assert min(spent) < 4e-3  # measured 0.5 ms (PPG) and 1.2 ms (ECG)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "eeg"}, "signal kind 'eeg': 'ppg' or 'ecg'"),
        ({"split": "validation"}, "split 'validation': 'train' or 'test'"),
        ({"participants": 0}, "participants=0, segments=2, channels=1: all must be 1 or more"),
        ({"channels": 2}, "channels=2: the simulated ECG is lead I alone, give 1"),
        ({"sampling_rate": 8}, "sampling_rate=8 Hz: from 16 to 1000"),
        ({"seconds": 10.01}, "make 640.64 samples: take 2 to 600 seconds that hold a whole number"),
        ({"seconds": 1}, "take 2 to 600 seconds"),
    ],
)
def test_bad_sizes_are_named(options, message):
    sizes = {"kind": "ecg", "participants": 2, "segments": 2, "seconds": 10, "sampling_rate": 64} | options
    with pytest.raises(ConfigError, match=message):
        simulate_cohort(**sizes)
