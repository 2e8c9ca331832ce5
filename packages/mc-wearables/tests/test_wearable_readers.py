"""Readers: every format as its device writes it, and one clear line for what cannot be used."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mc_core.errors import ConfigError, DataError
from mc_wearables.data.columns import _in_order
from mc_wearables.data.config import ReadOptions, read_options
from mc_wearables.data.edf import read_header
from mc_wearables.data.opening import list_sources, open_recordings
from mc_wearables.data.recording import clean_labels, pick_channels, scale_to_units
from mc_wearables.data.timeline import Stretch, join, on_grid, rate_of

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_signals.py"))))
PPG, ECG = ReadOptions(signal="ppg"), ReadOptions(signal="ecg")


def read(path, **given):
    return list(open_recordings(path, **given))


def test_wfdb_keeps_gaps_units_age_and_sex_and_drops_the_rest(tmp_path):
    signal = np.stack([1000 * write.lead(12, 250), write.pulse(12, 250)], axis=1)
    signal[500:600, 0] = np.nan
    comments = ["Age: 61", "Sex: female", "Patient: Jane Roe", "Diagnosis: none"]
    write.write_wfdb(tmp_path / "p07", "night", signal, 250, ["II", "PLETH"], ["uV", "NU"], comments)
    (ecg,) = read(tmp_path, signal="ecg", participant_from="folder")
    assert (ecg.participant, ecg.channels, ecg.units, ecg.sampling_rate) == ("p07", ("II",), "mV", 250)
    assert ecg.labels == {"age": 61.0, "sex": "female"}
    assert np.isnan(ecg.signal[0, 500:600]).all()
    assert np.isfinite(ecg.signal).sum() == 3000 - 100
    assert np.nanmax(np.abs(ecg.signal[0] - signal[:, 0] / 1000)) < 1e-3
    (ppg,) = read(tmp_path, signal="ppg", participant_from="pattern:(p[0-9]+)/")
    assert (ppg.participant, ppg.channels, ppg.units) == ("p07", ("PLETH",), "a.u.")


def test_wfdb_records_table_tells_participant_session_and_labels(tmp_path):
    for person in ("a", "b"):
        write.write_wfdb(tmp_path / person, "rec", write.lead(10, 100)[:, None], 100, ["I"], ["mV"], [])
    (tmp_path / "records.csv").write_text("participant,record,age,day,email\nAnna,a/rec,30,2,x@y.z\nBert,b/rec,,5,\n")
    options = ReadOptions(signal="ecg", session="day")
    first, second = read(tmp_path, signal="ecg", options=options)
    assert (first.participant, first.session, dict(first.labels)) == ("Anna", "2", {"age": 30.0})
    assert (second.participant, second.session, dict(second.labels)) == ("Bert", "5", {})


def test_wfdb_cut_off_or_without_its_signal_file_is_one_line(tmp_path):
    write.write_wfdb(tmp_path, "rec", write.lead(10, 100)[:, None], 100, ["I"], ["mV"], [])
    data = tmp_path / "rec.dat"
    data.write_bytes(data.read_bytes()[:700])
    with pytest.raises(DataError, match="rec.hea: cannot be read, probably cut off"):
        read(tmp_path, signal="ecg", participant="x")
    data.unlink()
    with pytest.raises(DataError, match="names rec.dat, which is not beside it"):
        read(tmp_path, signal="ecg", participant="x")


def test_wfdb_rate_of_zero(tmp_path):
    write.write_wfdb(tmp_path, "rec", write.lead(10, 100)[:, None], 100, ["I"], ["mV"], [])
    header = tmp_path / "rec.hea"
    header.write_text(header.read_text().replace("rec 1 100 ", "rec 1 0 "))
    with pytest.raises(
        DataError, match="rec.hea: sampling rate 0 Hz; it must be above 0: give the true one in Hz, as in --fs"
    ):
        read(tmp_path, signal="ecg", participant="x")
    (found,) = read(
        tmp_path, signal="ecg", participant="x", sampling_rate=100
    )  # zero says nothing that could contradict
    assert (found.sampling_rate, found.seconds) == (100, 10)


def edf(path, **given):
    rng = np.random.default_rng(1)
    channels = [
        ("ECG I", "mV", 128, write.lead(20, 128)),
        ("PLETH", "", 64, write.pulse(20, 64)),
        ("SpO2", "%", 1, rng.uniform(0, 1, 20)),
    ]
    write.write_edf(path, channels, **given)
    return channels


def test_edf_of_several_rates_reads_each_at_its_own_and_agrees_with_pyedflib(tmp_path):
    pyedflib = pytest.importorskip("pyedflib")
    channels = edf(tmp_path / "a.edf")
    (ecg,) = read(tmp_path / "a.edf", signal="ecg")
    (ppg,) = read(tmp_path / "a.edf", signal="ppg")
    assert (ecg.sampling_rate, ppg.sampling_rate) == (128, 64)
    assert (ecg.participant, ecg.labels, ecg.start) == ("P007", {"sex": "female"}, None)
    assert ecg.notes == {"no_timezone": 1}
    with pyedflib.EdfReader(str(tmp_path / "a.edf")) as reference:
        assert np.abs(reference.readSignal(0) - ecg.signal[0]).max() < 1e-6
        assert np.abs(reference.readSignal(1) - ppg.signal[0]).max() < 1e-6
    assert np.abs(channels[0][3] - ecg.signal[0]).max() < 1e-3
    assert "Roe" not in repr(ecg) + repr(ppg)
    with pytest.raises(DataError, match=r"several rates \(ECG I 128 Hz, PLETH 64 Hz\); choose those of one rate"):
        read(tmp_path / "a.edf", signal="ecg", channels=("ECG I", "PLETH"))


def test_edf_local_time_with_a_zone(tmp_path):
    edf(tmp_path / "a.edf")
    (zoned,) = read(tmp_path / "a.edf", signal="ecg", options=ReadOptions(signal="ecg", timezone="Europe/Berlin"))
    assert zoned.start == 1614763230.0  # 2021-03-03 09:20:30 UTC
    assert not zoned.notes


def test_edf_plus_d_puts_nan_into_gaps_and_splits_long_ones(tmp_path):
    onsets = [float(r) for r in range(10)] + [12.0 + r for r in range(5)] + [500.0 + r for r in range(5)]
    channels = edf(tmp_path / "d.edf", onsets=onsets)
    first, second = read(tmp_path / "d.edf", signal="ppg")
    assert (first.signal.shape, second.signal.shape) == ((1, 17 * 64), (1, 5 * 64))
    assert np.isnan(first.signal[0, 640:768]).all()
    assert np.isfinite(first.signal).sum() == 15 * 64
    assert np.abs(first.signal[0, 768:] - channels[1][3][640:960]).max() < 1e-3
    assert first.notes["gaps"] == 2
    assert second.source.endswith("stretch 2")


def test_edf_cut_off_keeps_whole_records_and_counts(tmp_path):
    channels = edf(tmp_path / "a.edf")
    whole = (tmp_path / "a.edf").read_bytes()
    (tmp_path / "a.edf").write_bytes(whole[: 256 * 5 + 4 * 418 + 100])
    (cut,) = read(tmp_path / "a.edf", signal="ecg")
    assert cut.notes["cut_off"] == 1
    assert cut.signal.shape == (1, 4 * 128)
    assert np.abs(cut.signal[0] - channels[0][3][:512]).max() < 1e-3
    (tmp_path / "a.edf").write_bytes(whole[:300])
    with pytest.raises(DataError, match="cut off in its header"):
        read_header(tmp_path / "a.edf")
    (tmp_path / "a.edf").write_bytes(whole[: 256 * 5 + 10])
    with pytest.raises(DataError, match="not one of its 20 data records is whole"):
        read(tmp_path / "a.edf", signal="ecg")


def test_edf_without_a_patient_code_asks(tmp_path):
    edf(tmp_path / "a.edf", patient="X X X X")
    with pytest.raises(ConfigError, match="does not say whose it is: give --participant ID, or --participant-from"):
        read(tmp_path / "a.edf", signal="ecg")


def csv(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_asks_for_rate_units_and_participant_and_says_how(tmp_path):
    file = csv(tmp_path / "a.csv", "ecg\n" + "\n".join(f"{v:.4f}" for v in write.lead(5, 100)))
    with pytest.raises(ConfigError, match="a.csv: does not say its units; give --units V, mV, uV"):
        read(file, signal="ecg")
    with pytest.raises(ConfigError, match="a.csv does not say its sampling rate: give it in Hz, as in --fs 64"):
        read(file, signal="ecg", units="mV")
    with pytest.raises(ConfigError, match="a.csv does not say whose it is"):
        read(file, signal="ecg", units="mV", sampling_rate=100)
    (found,) = read(file, signal="ecg", units="uV", sampling_rate=100, participant="p")
    assert np.abs(found.signal[0] * 1000 - write.lead(5, 100)).max() < 1e-4
    with pytest.raises(ConfigError, match="fs 0: Input should be greater than 0"):
        read(file, signal="ecg", sampling_rate=0)
    with pytest.raises(ConfigError, match="'grams' is no unit of voltage"):
        read(file, signal="ecg", units="grams", sampling_rate=100, participant="p")


@pytest.mark.parametrize(
    "text",
    [
        "time_s;ppg\n" + "\n".join(f"{i / 64:.6f};{i % 7}.5".replace(".", ",") for i in range(640)),
        "time (ms)\tppg\n" + "\n".join(f"{1000 * i / 64:.3f}\t{i % 7}.5" for i in range(640)),
        "# Sampling Rate (Hz):= 64.00\n# Labels:= PPG\n" + "\n".join(f"{i % 7}.5" for i in range(640)),
        "participant,fs,ppg\n" + "\n".join(f"p,64,{i % 7}.5" for i in range(640)),
    ],
    ids=["decimal commas", "tabs and ms", "comments", "columns"],
)
def test_csv_dialects_say_the_same(tmp_path, text):
    given = {} if "participant" in text else {"participant": "p"}
    (found,) = read(csv(tmp_path / "a.csv", text), signal="ppg", **given)
    assert found.participant == "p"
    assert found.sampling_rate == pytest.approx(64, rel=1e-6)
    assert np.abs(found.signal[0] - (np.arange(640) % 7 + 0.5)).max() < 1e-3


def test_csv_one_column_with_decimal_commas(tmp_path):
    (found,) = read(csv(tmp_path / "a.csv", "ppg\n0,25\n0,5\n-1,75\n"), signal="ppg", participant="p", sampling_rate=9)
    assert found.signal.tolist() == [[0.25, 0.5, -1.75]]


def test_csv_unnamed_columns_and_numbers_of_unknown_meaning_are_asked_for(tmp_path):
    file = csv(tmp_path / "a.csv", "\n".join(f"{8.5 * i:.1f},{i % 5}" for i in range(200)))
    with pytest.raises(ConfigError, match="2 columns without names; say which is the signal, as in --channels 2"):
        read(file, signal="ppg", participant="p", sampling_rate=117.6)
    options = ReadOptions(signal="ppg", participant="p", channels=("2",), time_column="1")
    with pytest.raises(ConfigError, match="time stamps do not say their unit: give --time-unit s, ms, us or ns"):
        read(file, signal="ppg", options=options)
    (found,) = read(file, signal="ppg", options=options.model_copy(update={"time_unit": "ms"}))
    assert found.sampling_rate == pytest.approx(1000 / 8.5)
    assert found.signal[0, :6].tolist() == [0, 1, 2, 3, 4, 0]
    (proven,) = read(file, signal="ppg", options=options.model_copy(update={"fs": 117.6}))
    assert proven.sampling_rate == found.sampling_rate


def test_csv_bad_cell_ragged_rows_and_empty_files_name_the_line(tmp_path):
    with pytest.raises(DataError, match="a.csv, line 3: 'off' in column 'ppg' is no number"):
        read(csv(tmp_path / "a.csv", "ppg\n1\noff\n2\n"), signal="ppg", participant="p", sampling_rate=64)
    ragged = "time_s,ppg\n" + "\n".join("1,2,3" if i % 3 else "1,2" for i in range(30))
    with pytest.raises(DataError, match="line 3: 3 cells instead of 2"):
        read(csv(tmp_path / "a.csv", ragged), signal="ppg", participant="p")
    with pytest.raises(DataError, match="a.csv holds no rows"):
        read(csv(tmp_path / "a.csv", ""), signal="ppg", participant="p")
    with pytest.raises(DataError, match="no PPG among the channels 'ppm', 'x'; name the ones to use with --channels"):
        read(csv(tmp_path / "a.csv", "ppm,x\n1,2\n"), signal="ppg", participant="p", sampling_rate=64)
    cut = "time_s,ppg\n" + "\n".join(f"{i / 64},{i}" for i in range(300)) + "\n4.7"
    (found,) = read(csv(tmp_path / "a.csv", cut), signal="ppg", participant="p")
    assert found.notes == {"cut_off": 1}
    assert found.signal.shape == (1, 300)


def test_long_table_is_split_by_participant_and_session_and_keeps_constant_labels(tmp_path):
    rows = ["subject_id,session,fs,ppg,age,state,birth_date"]
    for person, session, age in (("a", "1", 30), ("a", "2", 30), ("b", "1", 50)):
        rows += [f"{person},{session},50,{i % 9},{age},{'rest' if i < 40 else 'walk'},1.1.1980" for i in range(100)]
    found = read(csv(tmp_path / "t.csv", "\n".join(rows)), signal="ppg")
    assert [(r.participant, r.session, r.labels) for r in found] == [
        ("a", "1", {"age": 30.0}),
        ("a", "2", {"age": 30.0}),
        ("b", "1", {"age": 50.0}),
    ]


def test_long_table_with_interleaved_participants_follows_each_in_time(tmp_path):
    rows = ["time_s,participant,ppg"] + [f"{i / 32},{'ab'[k]},{i + 1000 * k}" for i in range(96) for k in (0, 1)]
    first, second = read(csv(tmp_path / "t.csv", "\n".join(rows)), signal="ppg")
    assert first.signal[0].tolist() == list(range(96))
    assert second.signal[0, 0] == 1000


def test_parquet_row_per_recording_and_a_bad_row_does_not_cost_the_others(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    waves = [write.pulse(10, 100, seed=s) for s in range(3)]
    table = pa.table(
        {
            "participant": ["a", "b", "c"],
            "fs": [100, 0, 100],
            "ppg": pa.array([w.tolist() for w in waves], pa.list_(pa.float32())),
            "sex": ["F", "M", "M"],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    (source,) = list_sources(tmp_path)
    good, bad, last = source.read(PPG)
    assert (good.participant, last.participant, last.labels) == ("a", "c", {"sex": "M"})
    assert str(bad).startswith(
        "t.parquet, row 2: sampling rate 0 Hz; it must be above 0: give the true one in Hz, as in --fs"
    )
    assert np.abs(good.signal[0] - waves[0]).max() < 1e-6
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:900])
    with pytest.raises(DataError, match="t.parquet: not a whole Parquet file, probably cut off"):
        read(tmp_path, signal="ppg")


def test_parquet_with_time_lists_and_colours_of_light(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    times = np.cumsum(rng.integers(30, 37, 900))
    row = {"recording": "r1", "time_ms": times, "red": np.sin(times / 200), "green": times * 0.0}
    pq.write_table(
        pa.Table.from_pylist([{k: v if isinstance(v, str) else v.tolist() for k, v in row.items()}]),
        tmp_path / "c.parquet",
    )
    with pytest.raises(ConfigError, match=r"light of several colours \(red, green\); say which"):
        read(tmp_path, signal="ppg", participant_from="record")
    (found,) = read(tmp_path, signal="ppg", participant_from="record", channels=("red",))
    assert found.participant == "c.parquet#r1"
    assert found.sampling_rate == pytest.approx(1000 / 33, rel=0.01)
    grid = times[0] + 1000 * np.arange(found.signal.shape[1]) / found.sampling_rate
    assert np.nanmax(np.abs(found.signal[0] - np.sin(grid / 200))) < 0.01


def test_npz_segments_with_labels(tmp_path):
    signal = (1000 * np.stack([write.pulse(10, 50, seed=s) for s in range(4)])).astype(np.int16)
    people, label = np.array(["s1", "s1", "s2", "s2"]), np.array([0, 1, 1, 0], np.int8)
    np.savez(
        tmp_path / "a.npz",
        signal=signal,
        fs=50,
        scale=0.001,
        participant=people,
        label=label,
        class_names=np.array(["sinus", "af"]),
    )
    found = read(tmp_path / "a.npz", signal="ppg")
    assert [(r.participant, r.labels["label"]) for r in found] == [
        ("s1", "sinus"),
        ("s1", "af"),
        ("s2", "af"),
        ("s2", "sinus"),
    ]
    assert np.abs(found[2].signal[0] - signal[2] / 1000).max() < 1e-6
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:500])
    with pytest.raises(DataError, match="a.npz: not a whole npz file"):
        read(tmp_path / "a.npz", signal="ppg")


@pytest.mark.parametrize("german", [False, True], ids=["English", "German"])
def test_apple_health_reads_the_odd_rate_and_drops_name_and_birth_date(tmp_path, german):
    wave = 1000 * write.lead(30, 512.844)
    write.write_apple_export(tmp_path / "export.zip", [write.apple_ecg(wave, german=german)])
    (ecg,) = read(tmp_path / "export.zip", signal="ecg", participant="me")
    assert (ecg.sampling_rate, ecg.units, ecg.device, ecg.start) == (512.844, "mV", "Watch5,4", 1614589872.0)
    assert ecg.labels == {"classification": "Sinusrhythmus" if german else "Sinus Rhythm"}
    assert np.abs(ecg.signal[0] - wave / 1000).max() < 1e-5
    for secret in ("Roe", "Mustermann", "1951", "1964"):
        assert secret not in repr(ecg)
    with pytest.raises(ConfigError, match="holds electrocardiograms and no raw PPG; give --signal ecg"):
        read(tmp_path / "export.zip", signal="ppg", participant="me")
    with pytest.raises(ConfigError, match="does not say whose it is"):
        read(tmp_path / "export.zip", signal="ecg")


def test_apple_health_unpacked_and_damaged(tmp_path):
    folder = tmp_path / "electrocardiograms"
    folder.mkdir()
    (folder / "ecg_2021-03-01.csv").write_text(write.apple_ecg(1000 * write.lead(10, 512)))
    (ecg,) = read(folder, signal="ecg", participant="me")
    assert ecg.sampling_rate == 512.844
    write.write_apple_export(
        tmp_path / "export.zip", [write.apple_ecg(np.zeros(0)), write.apple_ecg(1000 * write.lead(10, 512))]
    )
    (source,) = list_sources(tmp_path / "export.zip")
    bad, good = source.read(ReadOptions(signal="ecg", participant="me"))
    assert "ecg_2021-03-01.csv: no samples after the header" in str(bad)
    assert good.channels == ("I",)
    (tmp_path / "export.zip").write_bytes((tmp_path / "export.zip").read_bytes()[:2000])
    with pytest.raises(DataError, match="export.zip: not a whole zip file, probably cut off"):
        read(tmp_path / "export.zip", signal="ecg", participant="me")


def test_fitbit_divides_by_its_factor_and_asks_for_what_is_missing(tmp_path):
    wave = write.lead(30, 250)
    write.write_fitbit(tmp_path / "e.json", np.round(wave * 10922))
    (ecg,) = read(tmp_path / "e.json", signal="ecg", participant="me")
    assert (ecg.sampling_rate, ecg.units, ecg.device, ecg.start) == (250, "mV", "Sense", None)
    assert np.abs(ecg.signal[0] - wave).max() < 1e-3
    write.write_fitbit(tmp_path / "e.json", np.round(wave * 1000), rate=None, factor=None)
    with pytest.raises(ConfigError, match="e.json, reading 1: does not say its units"):
        read(tmp_path / "e.json", signal="ecg", participant="me")
    with pytest.raises(ConfigError, match="e.json, reading 1 does not say its sampling rate"):
        read(tmp_path / "e.json", signal="ecg", participant="me", units="1000/mV")
    (tmp_path / "e.json").write_text((tmp_path / "e.json").read_text()[:3000])
    with pytest.raises(DataError, match="e.json: .*not JSON.*probably cut off"):
        read(tmp_path / "e.json", signal="ecg", participant="me")


def test_empatica_e4(tmp_path):
    write.write_e4(tmp_path / "s.zip", write.pulse(20, 64))
    (bvp,) = read(tmp_path / "s.zip", signal="ppg", participant="p")
    assert (bvp.sampling_rate, bvp.start, bvp.channels, bvp.device) == (64, 1.6e9, ("BVP",), "Empatica E4")
    assert np.abs(bvp.signal[0] - write.pulse(20, 64)).max() < 0.006
    write.write_e4(tmp_path / "s.zip", write.pulse(20, 64), rate="0.0")
    with pytest.raises(DataError, match="s.zip: sampling rate 0 Hz"):
        read(tmp_path / "s.zip", signal="ppg", participant="p")
    with pytest.raises(ConfigError, match="an E4 records PPG and no ECG"):
        read(tmp_path / "s.zip", signal="ecg", participant="p")


def test_embraceplus_files_of_a_folder_are_joined_by_their_stamps(tmp_path):
    wave = write.pulse(60, 64)
    for i, (a, b) in enumerate([(0, 1280), (1280, 2560), (2624, 3840)]):  # a second is lost before the last
        write.write_embraceplus(tmp_path / f"1-1-{i}.avro", wave[a:b], start=1.7e9 + a / 64)
    write.write_embraceplus(tmp_path / "1-1-9.avro", wave[:0], start=0, rate=0)
    (tmp_path / "1-1-8.avro").write_bytes((tmp_path / "1-1-0.avro").read_bytes()[:400])
    (bvp,) = read(tmp_path, signal="ppg")
    assert (bvp.participant, bvp.sampling_rate, bvp.start) == ("SUBJ-1", 64, 1.7e9)
    assert bvp.signal.shape == (1, 3840)
    assert np.isnan(bvp.signal[0]).nonzero()[0].tolist() == list(range(2560, 2624))
    assert np.abs(bvp.signal[0, 2624:] - wave[2624:]).max() < 1e-6
    assert bvp.notes == {"gaps": 1, "files_without_signal": 1, "unreadable_files": 1}


def test_gaps_duplicates_and_jumps_of_the_clock():
    fs = 50.0
    t = np.arange(1000) / fs
    values = np.sin(t)[None]
    (whole,), rate, seen = on_grid(t, values, fs=None, where="a")
    assert rate == pytest.approx(fs)
    assert np.abs(whole.signal - values).max() < 1e-6
    assert not seen
    lost = np.delete(np.arange(1000), np.arange(300, 340))
    (gappy,), _, seen = on_grid(t[lost], values[:, lost], fs=None, where="a")
    assert seen == {"gaps": 1}
    assert np.isnan(gappy.signal[0]).nonzero()[0].tolist() == list(range(300, 340))
    twice = np.sort(np.append(np.arange(1000), [10, 20, 20]))
    (merged,), _, seen = on_grid(t[twice], values[:, twice], fs=None, where="a")
    assert seen == {"duplicate_times": 3}
    assert np.abs(merged.signal - values).max() < 1e-6
    back = t.copy()
    back[600:] -= 5
    first, second = on_grid(back, values, fs=None, where="a")[0]
    assert (first.signal.shape[1], second.signal.shape[1], second.start) == (600, 400, pytest.approx(7))


@pytest.mark.parametrize(("jump", "stretches"), [(-3600.0, 2), (3600.0, 2)], ids=["autumn", "spring"])
def test_daylight_saving_is_counted_and_split_only_in_local_times(jump, stretches):
    t = np.arange(1000) / 50
    t[500:] += jump
    for civil, note in ((True, {"daylight_saving": 1}), (False, {"clock_backwards": 1} if jump < 0 else {})):
        found, _, seen = on_grid(t, t[None], fs=None, where="a", civil=civil)
        assert len(found) == stretches
        assert {key: count for key, count in seen.items() if key != "gaps"} == note


def test_daylight_saving_vanishes_with_a_time_zone(tmp_path):
    rows = ["time,ppg"]
    for second in range(-120, 120):  # 2024-03-31, 02:00 becomes 03:00 in Berlin
        hour, minute = (1, 60 + second // 60) if second < 0 else (3, second // 60)
        rows += [f"2024-03-31 0{hour}:{minute:02d}:{second % 60:02d}.{tenth}00,{tenth}" for tenth in range(0, 10, 2)]
    file = csv(tmp_path / "t.csv", "\n".join(rows))
    local = read(file, signal="ppg", participant="p")
    assert len(local) == 2
    assert local[0].notes == {"daylight_saving": 1, "gaps": 1, "no_timezone": 1}
    assert local[0].start is None
    (zoned,) = read(file, signal="ppg", options=ReadOptions(signal="ppg", participant="p", timezone="Europe/Berlin"))
    assert zoned.start == 1711846680.0
    assert zoned.signal.shape == (1, 1200)


def test_the_hour_that_autumn_repeats_is_read_in_order_with_a_time_zone(tmp_path):
    rows = ["time,ppg"]
    for second in range(-120, 120):  # 2024-10-27, 03:00 becomes 02:00 in Berlin
        minute = 60 + second // 60 if second < 0 else second // 60
        rows += [f"2024-10-27 02:{minute:02d}:{second % 60:02d}.{tenth}00,{tenth}" for tenth in range(0, 10, 2)]
    file = csv(tmp_path / "t.csv", "\n".join(rows))
    (zoned,) = read(file, signal="ppg", options=ReadOptions(signal="ppg", participant="p", timezone="Europe/Berlin"))
    assert zoned.start == 1729990680.0  # 00:58 UTC
    assert (zoned.signal.shape, dict(zoned.notes)) == ((1, 1200), {})
    assert len(read(file, signal="ppg", participant="p")) == 2


def test_a_jump_back_that_is_not_of_the_clock_change_stays_one():
    second = np.arange(0, 60.0) + 3600
    first = second - 3600
    first[30:] -= 20
    np.testing.assert_array_equal(_in_order(first, first + 3600), first)


def test_stamps_with_and_without_a_zone_are_not_mixed(tmp_path):
    rows = [f"2024-07-01T10:00:0{i}{zone},{i}" for i, zone in enumerate(("+02:00", "+02:00", "", ""))]
    with pytest.raises(DataError, match=r"line 4: .* has no time zone, those before have one"):
        read(csv(tmp_path / "t.csv", "\n".join(["time,ppg", *rows])), signal="ppg", participant="p")
    with pytest.raises(DataError, match=r"line 4: .* has a time zone, those before have none"):
        read(csv(tmp_path / "u.csv", "\n".join(["time,ppg", *rows[::-1]])), signal="ppg", participant="p")


def test_a_bad_stamp_among_numbers_is_the_one_that_is_named(tmp_path):
    rows = [f"{i / 64},{i}" if i != 5 else "x,5" for i in range(20)]
    with pytest.raises(DataError, match=r"line 7: 'x' in column 'time' is no number"):
        read(csv(tmp_path / "t.csv", "\n".join(["time,ppg", *rows])), signal="ppg", participant="p")
    t = np.arange(100) / 64
    with pytest.raises(DataError, match="of 100 time stamps 0 are later than the one before"):
        on_grid(t[::-1], t[None], fs=None, where="a")


def test_ids_with_leading_zeros_are_other_people(tmp_path):
    file = csv(tmp_path / "t.csv", "participant,ppg\n" + "017,1\n" * 9 + "17,2\n" * 9)
    assert [r.participant for r in read(file, signal="ppg", sampling_rate=64)] == ["017", "17"]


@pytest.mark.parametrize("column", ["SubjectID", "Patient ID", "participant", "Id"])
@pytest.mark.parametrize("rule", ["column", "file"])
def test_columns_of_ids_are_no_labels(tmp_path, column, rule):
    file = csv(tmp_path / "t.csv", f"{column},bmi,ppg\n" + "S-17,21,1\n" * 9)
    rule = f"column:{column}" if rule == "column" else rule
    (found,) = read(file, signal="ppg", sampling_rate=64, participant_from=rule)
    assert found.labels == {"bmi": 21.0}


@pytest.mark.parametrize(
    "name",
    [
        "patientName",
        "Patient name",
        "fullname",
        "Date of birth",
        "dateOfBirth",
        "birthdate",
        "Geburtsdatum",
        "E-Mail",
        "emailAddress",
        "Hospital number",
        "NHS",
        "home_address",
        "Comment",
        "telephone",
        "medicalRecordNo",
    ],
)
def test_columns_that_may_name_a_person_are_no_labels_unless_asked_for(name):
    assert clean_labels({name: "x", "bmi": 1}, None) == {"bmi": 1.0}
    assert clean_labels({name: "x"}, (name,)) == {name.lower(): "x"}


def test_a_coarse_clock_asks_for_the_rate_and_then_only_tells_gaps():
    t = np.floor(np.arange(640) / 64)
    t[320:] += 10
    with pytest.raises(
        ConfigError, match="clock is too coarse to tell the sampling rate: give it in Hz, as in --fs 64"
    ):
        on_grid(t, t[None], fs=None, where="a.csv")
    (found,), rate, _ = on_grid(t, np.arange(640.0)[None], fs=64, where="a.csv")
    assert rate == pytest.approx(64)
    assert found.signal.shape == (1, 1280)
    assert np.isfinite(found.signal).sum() == pytest.approx(640, abs=2)
    with pytest.raises(ConfigError, match="the time stamps say 50 Hz, --fs says 64"):
        on_grid(np.arange(100) / 50, np.zeros((1, 100)), fs=64, where="a.csv")
    with pytest.raises(DataError, match="1 of 3 time stamps are empty or no numbers, first in sample 2"):
        on_grid(np.array([0, np.nan, 1]), np.zeros((1, 3)), fs=None, where="a.csv")


def test_rate_of_stamps_in_whole_milliseconds():
    assert rate_of(np.round(np.arange(5000) / 64, 3), "a") == pytest.approx(64, rel=1e-4)
    assert rate_of(np.round(np.arange(5000) / 512, 3), "a") == pytest.approx(512, rel=1e-3)


def test_join_splits_where_time_goes_back():
    pieces = [Stretch(s, np.full((1, 100), s, np.float32)) for s in (0.0, 1.0, 0.5)]
    joined, seen = join(pieces, 100.0)
    assert [(s.start, s.signal.shape[1]) for s in joined] == [(0.0, 200), (0.5, 100)]
    assert seen == {"clock_backwards": 1}


@pytest.mark.parametrize(
    ("names", "kind", "expected"),
    [
        (["RESP", "II", "I"], "ecg", [2]),
        (["ECG I filtered", "ECG I"], "ecg", [1]),
        (["MLII", "V5"], "ecg", [0]),
        (["x", "Pleth"], "ppg", [1]),
        (["t", "ECG lead"], "ecg", [1]),
    ],
)
def test_usual_channels(names, kind, expected):
    assert pick_channels(names, ReadOptions(signal=kind), "a") == expected


def test_units_labels_and_options_are_checked():
    for units, factor in (("V", 1e3), ("mV", 1), ("µV", 1e-3), ("200/mV", 1 / 200), ("1.09e4/mV", 1 / 1.09e4)):
        assert scale_to_units("ecg", units, ECG, "a")[0] == pytest.approx(factor)
    assert scale_to_units("ppg", "NU", PPG, "a") == (1.0, "a.u.")
    with pytest.raises(ConfigError, match="a is in mV, but --units says uV: leave it out"):
        scale_to_units("ecg", "mV", ReadOptions(signal="ecg", units="uV"), "a")
    assert clean_labels({"Name": "x", "first_name": "y", "BMI": "21.5", "note": "n" * 99}, None) == {"bmi": 21.5}
    assert clean_labels({"name": "x", "bmi": 1}, ("name",)) == {"name": "x"}
    assert clean_labels({"bmi": 1}, ()) == {}
    for given, message in (
        ({"participant_from": "guess"}, "'guess' is none of folder, file, record"),
        ({"participant_from": "pattern:abc"}, "needs one group in parentheses"),
        ({"participant": "a", "participant_from": "file"}, "not both"),
        ({"timezone": "Mars/Olympus"}, "is no time zone"),
        ({"fs": -1}, "fs -1: Input should be greater than 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_options(signal="ppg", **given)


def test_paths_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        list_sources(tmp_path / "nowhere")
    with pytest.raises(DataError, match="none of its 0 files is of a kind read here"):
        list_sources(tmp_path)
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"a.tar.gz is an archive: unpack it \(tar xf a.tar.gz\)"):
        list_sources(tmp_path / "a.tar.gz")
    (tmp_path / "a.docx").write_bytes(b"")
    with pytest.raises(DataError, match="a.docx is of no kind read here"):
        list_sources(tmp_path / "a.docx")
