"""Ingest: incremental, restartable after a kill, one bad file does not cost the cohort, no raw id anywhere."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mc_core.errors import ConfigError, DataError
from mc_wearables.data import SegmentStore, ingest
from mc_wearables.data.config import IngestOptions
from mc_wearables.data.privacy import Salt

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_signals.py"))))
OPTIONS = IngestOptions(signal="ppg", seconds=10, fs=64, participant_from="folder")


def cohort(folder, people=("anna", "bert", "cleo"), sessions=2, seconds=25):
    for k, person in enumerate(people):
        (folder / person).mkdir(parents=True, exist_ok=True)
        for s in range(sessions):
            write_csv(folder / person / f"{person}_{s}.csv", 10 * k + s, seconds)
    return folder


def write_csv(path, seed, seconds=25.0):
    path.write_text("ppg\n" + "\n".join(f"{v:.4f}" for v in write.pulse(seconds, 64, seed=seed)) + "\n")


def content(path):
    """What a store holds, in an order that does not depend on how it was written."""
    store = SegmentStore.open(path)
    table = store.metadata
    signals = [row.tobytes() for row in np.asarray(store.signals)]
    keys = zip(
        table["source"].to_pylist(), table["offset"].to_pylist(), table["participant"].to_pylist(), signals, strict=True
    )
    rejected = zip(
        store.rejected["source"].to_pylist(),
        store.rejected["offset"].to_pylist(),
        store.rejected["reason"].to_pylist(),
        strict=True,
    )
    return sorted(keys), sorted(rejected)


def test_counts_signals_and_sessions(tmp_path):
    seen = []
    report = ingest(
        cohort(tmp_path / "in"), tmp_path / "s", OPTIONS, progress=lambda i, n, name: seen.append((i, n, name))
    )
    assert report.as_dict() | {"hours": 0, "rejected_hours": 0} == {
        "files": 6, "read": 6, "skipped": 0, "duplicates": 0, "failed": 0, "recordings": 6, "hours": 0, "kept": 12,
        "rejected": {"remainder": 6}, "rejected_hours": 0, "participants": 3, "notes": {}, "problems": 0, "store_segments": 12,
    }  # fmt: skip
    assert report.hours == pytest.approx(6 * 25 / 3600)
    assert report.rejected_hours == pytest.approx(6 * 5 / 3600)
    assert seen[0] == (0, 6, "anna/anna_0.csv")
    segments = SegmentStore.open(tmp_path / "s").segments()
    assert segments.signals.shape == (12, 1, 640)
    assert len(np.unique(segments.session)) == 6
    assert np.bincount(segments.participant).tolist() == [4, 4, 4]
    assert np.abs(np.asarray(segments.signals, np.float32).std(axis=2) - 1).max() < 2e-3


def test_no_raw_id_is_stored(tmp_path):
    options = OPTIONS.model_copy(update={"participant": None})
    ingest(cohort(tmp_path / "in"), tmp_path / "s", options)
    for file in (tmp_path / "s").iterdir():
        data = file.read_bytes()
        assert not any(name in data for name in (b"anna", b"bert", b"cleo")), file
        assert str(tmp_path).encode() not in data
    store = SegmentStore.open(tmp_path / "s")
    salt = Salt.beside(tmp_path / "s")
    names = [entry["name"] for entry in store.manifest["files"]]
    assert names[0] == f"{salt.participant('anna')}/{salt.participant('anna')}_0.csv"
    assert all(len(entry["sha256"]) == 64 and entry["bytes"] > 1000 for entry in store.manifest["files"])
    assert store.participant_codes(["anna", "zoe"])[1] == -1
    assert (store.participant_codes(["anna", "bert", "cleo"]) >= 0).all()


def test_a_given_participant_is_not_stored_either(tmp_path):
    write_csv(tmp_path / "rec.csv", 0)
    ingest(tmp_path / "rec.csv", tmp_path / "s", IngestOptions(signal="ppg", seconds=10, fs=64, participant="Anna Roe"))
    assert not any(b"Anna" in file.read_bytes() for file in (tmp_path / "s").iterdir())


def test_files_already_read_are_skipped_and_changed_ones_replace_their_segments(tmp_path):
    source = cohort(tmp_path / "in")
    ingest(source, tmp_path / "s", OPTIONS)
    before = content(tmp_path / "s")
    again = ingest(source, tmp_path / "s", OPTIONS)
    assert (again.skipped, again.read, again.kept, again.store_segments) == (6, 0, 0, 12)
    assert content(tmp_path / "s") == before
    os.utime(source / "anna" / "anna_0.csv")
    assert ingest(source, tmp_path / "s", OPTIONS).skipped == 6
    write_csv(source / "bert" / "bert_1.csv", 99, seconds=40)
    write_csv(source / "bert" / "bert_2.csv", 98)
    changed = ingest(source, tmp_path / "s", OPTIONS)
    assert (changed.skipped, changed.read, changed.kept, changed.store_segments) == (5, 2, 6, 16)
    shutil.copy(tmp_path / "s.salt", tmp_path / "fresh.salt")
    ingest(source, tmp_path / "fresh", OPTIONS)
    assert content(tmp_path / "s") == content(tmp_path / "fresh")


def test_a_file_is_read_again_with_other_options_and_a_copy_is_not(tmp_path):
    source = cohort(tmp_path / "in", people=("anna",), sessions=1)
    ingest(source, tmp_path / "s", OPTIONS)
    report = ingest(source, tmp_path / "s", OPTIONS.model_copy(update={"device": "ring"}))
    assert (report.read, report.store_segments) == (1, 2)
    assert SegmentStore.open(tmp_path / "s").segments().devices == ("ring",)
    shutil.copytree(source / "anna", source / "anna2")
    report = ingest(source, tmp_path / "s", OPTIONS.model_copy(update={"device": "ring"}))
    assert (report.duplicates, report.skipped, report.store_segments) == (1, 1, 2)


def test_bad_files_are_counted_and_the_rest_is_kept(tmp_path):
    source = cohort(tmp_path / "in")
    (source / "dora").mkdir()
    (source / "dora" / "text.csv").write_text("ppg\n1\nbroken\n")
    (source / "dora" / "cut.parquet").write_bytes(b"PAR1 not more")
    write.write_e4(source / "dora" / "zero.zip", write.pulse(20, 64), rate="0")  # --fs tells what it does not know
    (source / "dora" / "flat.csv").write_text("ppg\n" + "3\n" * 640)
    wave = write.pulse(30, 64)
    (source / "dora" / "holes.csv").write_text(
        "ppg\n" + "\n".join("" if 200 <= i < 300 else f"{v:.4f}" for i, v in enumerate(wave))
    )
    report = ingest(source, tmp_path / "s", OPTIONS)
    assert (report.files, report.read, report.failed, report.kept) == (11, 9, 2, 16)
    assert report.rejected == {"remainder": 7, "flat": 1, "short_run": 1, "missing": 1}
    assert report.hours * 360 == pytest.approx(report.kept + report.rejected_hours * 360)  # of 10 s: nothing is lost
    assert sorted(line.split(":")[0] for line in report.problems) == [
        "dora/cut.parquet",
        "dora/text.csv, line 3",
    ]
    assert report.as_dict()["problems"] == 2
    assert any("1 × flat: a flat line" in line for line in report.advice())
    assert sorted(map(len, report.reasons.values())) == [1, 1]
    assert (report.participants, report.store_segments) == (4, 16)
    # what failed is tried again, once it is repaired
    write_csv(source / "dora" / "text.csv", 77)
    again = ingest(source, tmp_path / "s", OPTIONS)
    assert (again.skipped, again.read, again.failed) == (9, 1, 1)


def test_the_same_reason_in_many_files_is_one(tmp_path):
    source = cohort(tmp_path / "in")
    report = ingest(source, tmp_path / "s", OPTIONS)
    for k, person in enumerate(("dora", "emil", "fred")):
        (source / person).mkdir()
        (source / person / "x.csv").write_text("time,ppg\n" + "".join(f"{i},{i}\n" for i in range(50 + k)))
    (source / "dora" / "cut.parquet").write_bytes(b"PAR1 not more")
    report = ingest(source, tmp_path / "s", OPTIONS)
    assert sorted(map(len, report.reasons.values())) == [1, 3]
    assert set(report.problems) == {line for lines in report.reasons.values() for line in lines}
    assert "reasons" not in report.as_dict()  # they name files


def test_nothing_is_left_where_nothing_could_be_read(tmp_path):
    source = cohort(tmp_path / "in")
    with pytest.raises(ConfigError, match=r"anna_0.csv does not say its sampling rate: .* --fs 64 \(and 5 more\)"):
        ingest(source, tmp_path / "s", OPTIONS.model_copy(update={"fs": None}))
    with pytest.raises(
        DataError,
        match="not one segment came out of 6 files: 6 × the recording is shorter than a segment; the longest has 25 s",
    ):
        ingest(source, tmp_path / "s", IngestOptions(signal="ppg", fs=64, participant_from="folder"))
    with pytest.raises(DataError, match="does not exist"):
        ingest(tmp_path / "nowhere", tmp_path / "s", OPTIONS)
    with pytest.raises(ConfigError, match="no records named"):
        ingest([], tmp_path / "s", OPTIONS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_another_length_needs_another_store(tmp_path):
    source = cohort(tmp_path / "in")
    ingest(source, tmp_path / "s", OPTIONS)
    before = content(tmp_path / "s")
    with pytest.raises(ConfigError, match=r"was made with seconds 10.0, now it is 12.0"):
        ingest(source, tmp_path / "s", OPTIONS.model_copy(update={"seconds": 12.0}))
    assert content(tmp_path / "s") == before


def test_times_are_shifted_by_whole_weeks_per_person(tmp_path):
    for person, start in (("a", 1.6e9), ("b", 1.6e9 + 500)):
        (tmp_path / "in" / person).mkdir(parents=True)
        for k in range(2):
            write.write_e4(tmp_path / "in" / person / f"{k}.zip", write.pulse(20, 64, seed=k), start=start + 1000 * k)
    plain = IngestOptions(signal="ppg", seconds=10, participant_from="folder")
    ingest(tmp_path / "in", tmp_path / "s", plain)
    shutil.copy(tmp_path / "s.salt", tmp_path / "t.salt")
    ingest(tmp_path / "in", tmp_path / "t", plain.model_copy(update={"shift_times": True}))
    true, moved = (SegmentStore.open(tmp_path / name).segments() for name in "st")
    assert true.start[:2].tolist() == [1.6e9, 1.6e9 + 10]
    for code in (0, 1):
        shift = (moved.start - true.start)[true.participant == code]
        assert len(np.unique(shift)) == 1
        assert shift[0] % (7 * 86400) == 0


KILLED = """
import os, signal, sys
from mc_wearables.data import ingest, ingestion
from mc_wearables.data.config import IngestOptions
ingestion._COMMIT_SECONDS = 0
def progress(done, total, name):
    if done == 4:
        os.kill(os.getpid(), signal.SIGKILL)
options = IngestOptions(signal="ppg", seconds=10, fs=64, participant_from="folder")
ingest(sys.argv[1], sys.argv[2], options, progress=progress)
"""


def test_killed_and_run_again_gives_the_same_store(tmp_path):
    source = cohort(tmp_path / "in")
    run = subprocess.run([sys.executable, "-c", KILLED, source, tmp_path / "s"], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    report = ingest(source, tmp_path / "s", OPTIONS)
    assert (report.skipped, report.read) == (4, 2)
    shutil.copy(tmp_path / "s.salt", tmp_path / "whole.salt")
    ingest(source, tmp_path / "whole", OPTIONS)
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def test_interrupted_before_the_first_commit_leaves_nothing(tmp_path):
    def interrupt(done, total, name):
        if done == 2:
            raise KeyboardInterrupt

    source = cohort(tmp_path / "in")
    with pytest.raises(KeyboardInterrupt):
        ingest(source, tmp_path / "s", OPTIONS, progress=interrupt)
    assert not (tmp_path / "s").exists()
    assert ingest(source, tmp_path / "s", OPTIONS).read == 6


def test_importing_and_options_load_neither_torch_nor_scipy():
    code = "import sys, mc_wearables.data.config; print([m for m in ('torch', 'scipy', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_ingest_does_not_load_torch(tmp_path):
    code = (
        "import sys; from mc_wearables.data import SegmentStore, ingest; from mc_wearables.data.config import IngestOptions; "
        f"ingest({str(cohort(tmp_path / 'in'))!r}, {str(tmp_path / 's')!r}, IngestOptions.model_validate_json(sys.argv[1])); "
        f"len(SegmentStore.open({str(tmp_path / 's')!r}).segments()); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, OPTIONS.model_dump_json()], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


REAL = pytest.mark.skipif("MC_DATA" not in os.environ, reason="MC_DATA names no folder of real data")


def real(name):
    path = Path(os.environ["MC_DATA"]) / "wearables" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@REAL
def test_real_ecg_id_with_its_table_of_records(tmp_path):
    chosen = [f"Person_{n:02d}/" for n in (1, 3, 4, 13)]
    with tarfile.open(real("ecg-id-wfdb.tar.gz")) as archive:
        members = [m for m in archive.getmembers() if m.name == "records.csv" or m.name.startswith(tuple(chosen))]
        archive.extractall(tmp_path / "in", members=members, filter="data")
    report = ingest(tmp_path / "in", tmp_path / "s", IngestOptions(signal="ecg", seconds=10, session="day"))
    assert (report.participants, report.failed) == (4, 0)
    assert report.kept == 2 * report.recordings - report.rejected["flat"]
    store = SegmentStore.open(tmp_path / "s")
    segments = store.segments()
    first = int(store.participant_codes(["Person_01"])[0])
    assert set(segments.labels["age"][segments.participant == first]) == {25.0}
    assert store.label_classes("sex") == ("female", "male")
    assert len(np.unique(segments.session)) < report.recordings
    assert np.median(segments.quality) > 0.9


@REAL
@pytest.mark.parametrize(
    ("name", "given", "participants", "label"),
    [
        ("ppg-blood-pressure.parquet", {"signal": "ppg"}, 42, "systolic_bp"),
        (
            "camera-ppg-rr.parquet",
            {"signal": "ppg", "channels": ("red",), "participant_from": "record", "seconds": 20},
            15,
            None,
        ),
        ("wfdb-samples", {"signal": "ppg", "seconds": 10, "participant_from": "file"}, 2, None),
        ("wfdb-samples", {"signal": "ecg", "participant_from": "file"}, 5, "age"),
        ("small-signals/smart-ring.csv", {"signal": "ppg", "fs": 32, "participant": "x"}, 1, None),
    ],
)
def test_real_sets_need_no_editing(tmp_path, name, given, participants, label):
    report = ingest(real(name), tmp_path / "s", IngestOptions(**given))
    assert report.participants == participants
    store = SegmentStore.open(tmp_path / "s")
    assert len(store) == report.kept > 0
    assert label is None or label in store.label_names()
    assert np.isfinite(np.asarray(store.signals)).all()


@REAL
@pytest.mark.parametrize(
    ("name", "given", "rows", "people", "classes"),
    [
        (
            "cinc2017-af.parquet",
            {"signal": "ecg", "units": "1000/mV", "participant_from": "record"},
            600,
            600,
            ("A", "N", "O", "~"),
        ),
        ("ppg-arrhythmia.npz", {"signal": "ppg"}, 3127, 39, 6),
    ],
)
def test_real_labelled_records_are_read_as_they_are(name, given, rows, people, classes):
    from mc_wearables.data import ReadOptions, open_recordings

    found = [
        (r.participant, r.labels["label"], r.seconds)
        for r in open_recordings(real(name), signal=given["signal"], options=ReadOptions(**given))
    ]
    assert len(found) == rows
    assert len({person for person, _, _ in found}) == people
    labels = sorted({label for _, label, _ in found})
    assert (tuple(labels) if isinstance(classes, tuple) else len(labels)) == classes
    assert min(seconds for _, _, seconds in found) > 8
