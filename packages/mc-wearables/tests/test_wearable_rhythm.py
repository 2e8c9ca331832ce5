"""Labels that change within a recording: rhythms of WFDB annotations, from the file to the segments of a store."""

from __future__ import annotations

import itertools
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mc_core.errors import DataError
from mc_wearables.data import SegmentStore, ingest
from mc_wearables.data.config import IngestOptions
from mc_wearables.data.opening import list_sources, open_recordings
from mc_wearables.data.recording import Span, value_within

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_signals.py"))))
OPTIONS = IngestOptions(signal="ecg", seconds=10, participant_from="file")


def record(folder, name, marks, *, seconds=60.0, rate=125):
    """A record with rhythm marks (seconds, note) among beats and other notes."""
    import wfdb

    write.write_wfdb(folder, name, write.lead(seconds, rate)[:, None], rate, ["I"], ["mV"], ["age: 70"])
    beats = [(k + 0.5, "N", "") for k in range(int(seconds))]
    rows = sorted([*beats, (3.2, '"', "free text"), (4.2, "+", "TS"), *((at, "+", note) for at, note in marks)])
    at, symbols, notes = zip(*rows, strict=True)
    sample = np.round(np.array(at) * rate).astype(int)
    wfdb.wrann(name, "atr", sample, list(symbols), aux_note=list(notes), fs=rate, write_dir=str(folder))


def by_definition(spans, begin, end, step=0.01):
    """The value of nearly all of the moments from begin to end, one by one."""
    moments = np.arange(begin, end, step) + step / 2
    values = [next((s.value for s in spans if s.begin <= t < s.end), None) for t in moments]
    for value in {v for v in values if v is not None}:
        if sum(v == value for v in values) * step >= end - begin - 1:
            return value
    return None


def test_a_value_holds_where_all_but_a_second_has_it():
    rng = np.random.default_rng(0)
    for _ in range(60):
        edges = np.sort(rng.uniform(0, 60, 7)).round(2)
        spans = [Span(a, b, str(rng.integers(2))) for a, b in itertools.pairwise(edges) if b > a]
        begin = float(rng.integers(0, 50))
        assert value_within(spans, begin, begin + 10) == by_definition(spans, begin, begin + 10)
    assert value_within([], 0, 10) is None
    assert value_within([Span(0, 4, "N"), Span(4, 5, "AFL"), Span(5, 10, "N")], 0, 10) == "N"  # both parts count


def test_rhythms_are_read_with_their_times(tmp_path):
    record(tmp_path, "a", [(0.4, "(N"), (25.0, "(AFIB"), (50.0, "(N")])
    (found,) = open_recordings(tmp_path, signal="ecg", participant_from="file")
    assert found.changing == {"rhythm": ((0.4, 25.0, "N"), (25.0, 50.0, "AFIB"), (50.0, 60.0, "N"))}
    assert found.labels == {"age": 70.0}
    assert [file.name for file in list_sources(tmp_path)[0].files] == ["a.hea", "a.dat", "a.atr"]


def test_segments_have_the_rhythm_that_holds_in_them_and_none_where_it_changes(tmp_path):
    record(tmp_path / "in", "a", [(0.4, "(N"), (25.0, "(AFIB"), (50.0, "(N")])
    record(tmp_path / "in", "b", [])  # beats alone
    report = ingest(tmp_path / "in", tmp_path / "s", OPTIONS)
    assert report.notes == {"label_changes": 1}  # and the annotations without a rhythm were read
    assert any(line.startswith("1 × segments in which a label changes") for line in report.advice())
    store = SegmentStore.open(tmp_path / "s")
    source = store.metadata["source"].to_pylist()
    rhythm = store.metadata["label:rhythm"].to_pylist()
    assert len(set(source)) == 2
    mine = [cell for cell, key in zip(rhythm, source, strict=True) if key == source[0]]
    assert mine == ["N", "N", None, "AFIB", "AFIB", "N"]
    assert rhythm[6:] == [None] * 6
    assert store.metadata["label:age"].to_pylist() == [70.0] * 12
    codes = store.segments().labels["rhythm"][:6]
    assert store.label_classes("rhythm") == ("AFIB", "N")
    assert np.array_equal(codes, [1, 1, np.nan, 0, 0, 1], equal_nan=True)


def test_new_annotations_are_read_and_unwanted_ones_are_not(tmp_path):
    record(tmp_path / "in", "a", [(0.0, "(N")])
    ingest(tmp_path / "in", tmp_path / "s", OPTIONS)
    assert ingest(tmp_path / "in", tmp_path / "s", OPTIONS).skipped == 1
    record(tmp_path / "in", "a", [(0.0, "(AFL")])
    os.utime(tmp_path / "in" / "a.atr", ns=(1, 1))
    ingest(tmp_path / "in", tmp_path / "s", OPTIONS)
    assert SegmentStore.open(tmp_path / "s").metadata["label:rhythm"].to_pylist() == ["AFL"] * 6
    ingest(tmp_path / "in", tmp_path / "t", OPTIONS.model_copy(update={"labels": ("age",)}))
    assert SegmentStore.open(tmp_path / "t").label_names() == ["age"]


def test_damaged_annotations_do_not_cost_the_signal(tmp_path):
    record(tmp_path / "in", "a", [(0.0, "(N")])
    whole = (tmp_path / "in" / "a.atr").read_bytes()
    (tmp_path / "in" / "a.atr").write_bytes(whole[:7])
    report = ingest(tmp_path / "in", tmp_path / "s", OPTIONS)
    assert report.kept == 6
    assert report.notes == {"annotations_unreadable": 1}
    assert "label:rhythm" not in SegmentStore.open(tmp_path / "s").metadata.column_names


def test_a_text_column_that_changes_is_dropped_with_a_line(tmp_path):
    (tmp_path / "a.csv").write_text(
        "time (s),ecg (mV),stage,visit,x\n"
        + "\n".join(f"{i / 125:.3f},{v:.4f},{'AB'[i > 900]},first,{i}" for i, v in enumerate(write.lead(20, 125)))
    )
    report = ingest(tmp_path, tmp_path / "s", OPTIONS)
    assert report.notes == {"column stage changes": 1}
    assert report.advice()[-1].startswith("1 × column stage changes within a recording; a label belongs to a whole one")
    store = SegmentStore.open(tmp_path / "s")
    assert store.label_names() == []
    assert store.metadata["units"].to_pylist() == ["mV"] * 2


@pytest.mark.parametrize(
    ("names", "height"),
    [("ecg (mV)", 1.0), ("ecg_uV", 1e-3), ("I [µV]", 1e-3), ("ecg [V]", 1e3)],
)
def test_units_in_the_name_of_a_column_are_stated(tmp_path, names, height):
    wave = write.lead(12, 125)
    (tmp_path / "a.csv").write_text(f"{names}\n" + "\n".join(f"{v:.6f}" for v in wave), encoding="utf-8")
    (found,) = open_recordings(tmp_path / "a.csv", signal="ecg", sampling_rate=125, participant="p")
    assert found.units == "mV"
    np.testing.assert_allclose(found.signal[0], wave * height, rtol=1e-4, atol=1e-6 * height)


def test_columns_in_different_units_are_not_mixed(tmp_path):
    (tmp_path / "a.csv").write_text("I (mV),II (uV)\n" + "1,2\n" * 99)
    with pytest.raises(DataError, match=r"a.csv: the columns I \(mV\), II \(uV\) are not in the same units; take one"):
        list(
            open_recordings(tmp_path / "a.csv", signal="ecg", sampling_rate=125, participant="p", channels=("I", "II"))
        )


def test_real_record_with_its_rhythm():
    folder = os.environ.get("MC_DATA")
    if folder is None:
        pytest.skip("MC_DATA names no folder of real data")
    path = Path(folder) / "wearables/wfdb-samples/100.hea"
    (found,) = open_recordings(path, signal="ecg", participant="100")
    ((begin, end, rhythm),) = found.changing["rhythm"]
    assert (round(begin, 3), rhythm) == (0.05, "N")  # `(N` at sample 18 of 360 Hz
    assert end == pytest.approx(found.seconds)
