"""The segment store: what is written comes back, memory-mapped; ids and names do not."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest

from mc_core.errors import ConfigError, DataError
from mc_wearables.data.config import IngestOptions
from mc_wearables.data.privacy import Salt, plain_id, redact, salt_path
from mc_wearables.data.store import SegmentStore
from mc_wearables.data.store_writer import StoreWriter

OPTIONS = IngestOptions(signal="ppg", seconds=2, rate=32)
SCORES = ("amplitude", "filled", "flat", "clipped", "template", "agreement", "rate", "band_power", "quality")


def rows(person="aa", source="s1", n=3, labels=None, **given):
    scores = dict.fromkeys(SCORES, 0.0) | {
        "template": 0.9,
        "agreement": 0.95,
        "rate": 70.0,
        "quality": 0.9,
        "band_power": np.arange(n) / n,
    }
    known = {
        "participant": person,
        "session": f"{person}-1",
        "source": source,
        "recording": 0,
        "device": "ring",
        "channels": "BVP",
    }
    return {
        **scores,
        **known,
        "units": "a.u.",
        "start": np.arange(n) * 2.0,
        "offset": np.arange(n) * 2.0,
        "labels": labels or {},
        **given,
    }


def fill(path, *blocks, commit_each=True):
    """A store with these blocks, each a file of its own; the signals that went in."""
    signals = []
    with StoreWriter(path, OPTIONS.geometry()) as writer:
        for number, block in enumerate(blocks):
            n = len(np.atleast_1d(block["start"]))
            signals.append(np.random.default_rng(number).normal(size=(n, 1, 64)).astype(np.float32))
            writer.add_signals(signals[-1], block)
            writer.add_rejected(
                [
                    {
                        "participant": block["participant"],
                        "source": block["source"],
                        "recording": 0,
                        "start": None,
                        "offset": 6.0,
                        "seconds": 1.0,
                        "reason": "remainder",
                    }
                ]
            )
            writer.add_file({"source": block["source"], "name": "x"})
            if commit_each:
                writer.commit()
        writer.finish()
    return np.concatenate(signals)


def test_round_trip_over_several_commits(tmp_path):
    signals = fill(
        tmp_path / "s",
        rows("bb", labels={"age": 40.0, "sex": "male"}),
        rows("aa", "s2", 2, {"age": 30.0}),
        rows("bb", "s3", 1),
    )
    store = SegmentStore.open(tmp_path / "s")
    segments = store.segments()
    assert np.array_equal(np.asarray(segments.signals), signals.astype(np.float16))
    batch = segments.rows([4, 0, 4])
    assert str(batch.dtype) == "torch.float32"
    assert np.array_equal(batch.numpy(), signals[[4, 0, 4]].astype(np.float16).astype(np.float32))
    batch.zero_()  # a copy: the map is read-only
    assert segments.participant_keys == ("aa", "bb")
    assert segments.participant.tolist() == [1, 1, 1, 0, 0, 1]
    assert segments.session.tolist() == [1, 1, 1, 0, 0, 1]
    assert segments.start.tolist() == [0, 2, 4, 0, 2, 0]
    assert (segments.kind, segments.sampling_rate, segments.duration) == ("ppg", 32.0, 2.0)
    assert segments.devices == ("ring",)
    assert np.array_equal(segments.labels["age"], [40, 40, 40, 30, 30, np.nan], equal_nan=True)
    assert np.array_equal(segments.labels["sex"], [0, 0, 0, np.nan, np.nan, np.nan], equal_nan=True)
    assert store.label_classes("sex") == ("male",)
    assert store.label_classes("age") == ()
    assert store.rejected_counts() == {"remainder": 3}
    assert len(store.manifest["parts"]) == 1, "the tables of three commits were joined"
    with pytest.raises(ConfigError, match="no label 'bmi'; there are age, sex"):
        store.label_classes("bmi")


def test_signals_stay_on_disk(tmp_path):
    fill(tmp_path / "s", rows(n=5))
    segments = SegmentStore.open(tmp_path / "s").segments()
    assert isinstance(segments.signals, np.memmap)
    assert not segments.signals.flags.writeable
    assert segments.rows([4, 0]).shape == (2, 1, 64)


def test_a_label_that_is_a_number_here_and_a_text_there_is_a_text(tmp_path):
    fill(tmp_path / "s", rows(labels={"stage": 2.0}), rows(source="s2", labels={"stage": "3b"}))
    store = SegmentStore.open(tmp_path / "s")
    assert store.label_classes("stage") == ("2", "3b")
    assert store.segments().labels["stage"].tolist() == [0, 0, 0, 1, 1, 1]


def test_what_was_not_committed_is_gone(tmp_path):
    signals = fill(tmp_path / "s", rows())
    with StoreWriter(tmp_path / "s", OPTIONS.geometry()) as writer:
        writer.add_signals(np.ones((2, 1, 64), np.float32), rows(source="lost", n=2))
    (tmp_path / "s" / "segments-000009.parquet").write_bytes(b"left by a killed process")
    assert len(SegmentStore.open(tmp_path / "s")) == 3
    more = fill(tmp_path / "s", rows(source="s2", n=4))
    store = SegmentStore.open(tmp_path / "s")
    assert np.array_equal(np.asarray(store.signals), np.concatenate([signals, more]).astype(np.float16))
    assert sorted(p.name for p in store.path.iterdir() if p.suffix in (".parquet", ".f16")) == sorted(
        [store.manifest["signals"], *store.manifest["parts"], *store.manifest["rejected"]]
    )


def test_dropping_a_source_leaves_the_others_as_they_were(tmp_path):
    signals = fill(tmp_path / "s", rows("aa", "s1"), rows("bb", "s2", 2), rows("aa", "s3", 4))
    with StoreWriter(tmp_path / "s", OPTIONS.geometry()) as writer:
        writer.drop({"s2"})
        writer.add_signals(signals[:1], rows("cc", "s4", 1))
        writer.add_file({"source": "s4", "name": "y"})
        writer.finish()
    store = SegmentStore.open(tmp_path / "s")
    expected = np.concatenate([signals[:3], signals[5:], signals[:1]])
    assert np.array_equal(np.asarray(store.signals), expected.astype(np.float16))
    assert store.metadata["source"].to_pylist() == ["s1"] * 3 + ["s3"] * 4 + ["s4"]
    assert [entry["source"] for entry in store.manifest["files"]] == ["s1", "s3", "s4"]
    assert store.rejected["source"].to_pylist() == ["s1", "s3"]


def test_stores_of_another_geometry_or_kind_are_not_mixed(tmp_path):
    fill(tmp_path / "s", rows())
    with pytest.raises(ConfigError, match=r"was made with seconds 2.0, now it is 4.0: name another store"):
        StoreWriter(tmp_path / "s", OPTIONS.model_copy(update={"seconds": 4.0}).geometry())
    with pytest.raises(ConfigError, match="was made with signal ppg, now it is ecg"):
        StoreWriter(tmp_path / "s", IngestOptions(signal="ecg").geometry())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.docx").write_bytes(b"")
    with pytest.raises(ConfigError, match="other exists and is no segment store: name an empty or new folder"):
        StoreWriter(tmp_path / "other", OPTIONS.geometry())
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.docx"]
    with (
        StoreWriter(tmp_path / "s", OPTIONS.geometry()) as writer,
        pytest.raises(DataError, match="b.csv has 2 channels, the store has 1: choose 1 with --channels"),
    ):
        writer.check_channels(2, "b.csv")


def test_one_writer_at_a_time(tmp_path):
    with (
        StoreWriter(tmp_path / "s", OPTIONS.geometry()),
        pytest.raises(ConfigError, match="another ingest is writing to"),
    ):
        StoreWriter(tmp_path / "s", OPTIONS.geometry())


def test_what_is_no_store_or_a_damaged_one(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist; make one with: mc-wearables ingest"):
        SegmentStore.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"is no segment store \(it has no manifest.json\)"):
        SegmentStore.open(tmp_path)
    fill(tmp_path / "s", rows())
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(manifest | {"version": 9}))
    with pytest.raises(DataError, match="has version 9, this package reads 1"):
        SegmentStore.open(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(manifest))
    os.truncate(tmp_path / "s" / manifest["signals"], 100)
    with pytest.raises(DataError, match="signals-0.f16 is cut off: 100 of 384 bytes"):
        SegmentStore.open(tmp_path / "s")


def test_raw_ids_find_their_participants_by_the_salt_alone(tmp_path):
    with StoreWriter(tmp_path / "s", OPTIONS.geometry()) as writer:
        salt = writer.salt
    fill(tmp_path / "s", rows(salt.participant("P7")), rows(salt.participant(12), "s2"))
    store = SegmentStore.open(tmp_path / "s")
    codes = store.participant_codes(["P7", "12", 12.0, "nobody"])
    assert store.participant_keys[codes[0]] == salt.participant("P7")
    assert codes[1] == codes[2] != codes[0]
    assert codes[3] == -1
    secret = salt_path(store.path)
    assert secret == tmp_path / "s.salt"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    secret.write_text("zz")
    with pytest.raises(DataError, match="s.salt is no salt"):
        store.participant_codes(["P7"])
    secret.unlink()
    with pytest.raises(DataError, match="s.salt is missing: without the salt of the store, raw ids cannot be matched"):
        store.participant_codes(["P7"])


def test_keys_depend_on_the_salt_the_purpose_and_the_id():
    one, two = Salt(b"a" * 16), Salt(b"b" * 16)
    keys = {one.participant("x"), one.participant("y"), two.participant("x"), one.key("session", "x")}
    assert len(keys) == 4
    assert one.participant(" 3 ") == one.participant(3) == one.participant(3.0)
    assert plain_id("03") == "03"
    shifts = [one.shift(i) for i in range(200)]
    assert all(s % (7 * 86400) == 0 and abs(s) <= 260 * 7 * 86400 for s in shifts)
    assert len(set(shifts)) > 100
    assert redact("p1/p10/p1_a.csv", ["p1"], one) == f"{one.participant('p1')}/p10/{one.participant('p1')}_a.csv"
    # a number behind letters, as participant_from=pattern:s(.) takes it, and ids that a key may hold
    assert redact("s1_10.csv", ["1"], one) == f"s{one.participant('1')}_10.csv"
    assert redact("s1_10.csv", ["1", "10"], one) == f"s{one.participant('1')}_{one.participant('10')}.csv"
    assert redact("a/b.csv", list("0123456789"), one) == "a/b.csv"


def test_usable_is_the_rule_with_a_quantile_per_device(tmp_path):
    n = 40
    first = rows(n=n, device="ring", band_power=np.linspace(0.5, 0.6, n))
    second = rows(
        source="s2",
        n=n,
        device="watch",
        band_power=np.linspace(0.1, 0.2, n),
        template=np.where(np.arange(n) < 10, 0.5, 0.9),
    )
    fill(tmp_path / "s", first, second)
    store = SegmentStore.open(tmp_path / "s")
    keep = store.usable(band_power_quantile=0.25)
    assert keep[:n].tolist() == [False] * 10 + [True] * 30
    assert keep[n:].tolist() == [False] * 10 + [True] * 30
    assert store.usable(band_power_quantile=0)[:n].all()
    fill(tmp_path / "t", rows(rate=30.0), rows(source="b", flat=0.02), rows(source="c", rate=np.nan), rows(source="d"))
    assert SegmentStore.open(tmp_path / "t").usable(band_power_quantile=0).tolist() == [False] * 9 + [True] * 3
