"""Which labels are read, and as what: classes against the rest, and what is known of a person without any signal."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from mc_wearables import SegmentStore
from mc_wearables_app.labels import labels_of
from mc_wearables_app.measure import targets_of
from mc_wearables_app.runs import stored

GROUPS = ("low", "middle", "high", "middle", "low")


@pytest.fixture(scope="module")
def grouped(recordings, ingest_options, command, tmp_path_factory):
    """A store whose table of records has texts of three words, of one, and of one for each person."""
    root = tmp_path_factory.mktemp("grouped")
    shutil.copytree(recordings / "data", root / "data")
    rows = [f"alice-{p:02d}/{s},{GROUPS[p % 5]},same,{40 + p}" for p in range(14) for s in range(3)]
    (root / "data" / "records.csv").write_text("record,group,site,age\n" + "\n".join(rows) + "\n")
    (root / "store.salt").write_text("07" * 32 + "\n")
    assert command("ingest", root / "data", "--out", root / "store", *ingest_options).code == 0
    return root / "store"


def test_each_of_several_classes_is_read_against_the_rest(grouped):
    data = stored(grouped)
    codes, classes = data.test.labels["group"], data.test.classes["group"]
    assert classes == ("high", "low", "middle")
    for number, word in enumerate(classes):
        assert (data.test.targets[f"group={word}"] == (codes == number)).all()
    assert "group" not in data.test.targets
    assert targets_of(data, ["group"]) == {f"group={word}": "participant" for word in classes}
    assert targets_of(data, ["group=low"]) == {"group=low": "participant"}
    found = targets_of(data, [])
    assert "site" not in found  # the same for all
    assert found["age"] == "participant"


def test_probing_classes_beside_demographics(grouped, trained, tiny, tmp_path, command):
    fields = command("pretrain", grouped, *tiny, "--out", tmp_path / "run", "--json").json
    targets = [name for name in fields["probes"]["trained"] if name.startswith("group=")]
    assert targets
    for name in targets:
        assert fields["probes"]["trained"][name]["task"] == "classification"
        assert name in fields["probes"]["demographics"]
    assert "age" not in fields["probes"]["demographics"]  # nothing else is known that could tell it
    shown = command("probe", tmp_path / "run", "--target", "age", "--draws", 20)
    assert shown.code == 0, shown.err
    assert "age, MAE per person" in shown.out
    assert "demographics" not in shown.out


def test_a_table_of_labels_with_words_and_demographics(tmp_path, store, recordings):
    table = tmp_path / "labels.csv"
    rows = [f"alice-{p:02d},{GROUPS[p % 5].upper() if p < 5 else GROUPS[p % 5]},{30 + p},{p % 2}" for p in range(14)]
    table.write_text("participant,group,Age,smoker\n" + "\n".join(rows) + "\n")
    opened = SegmentStore.open(store)
    found, wanted = labels_of(table, opened, ["group", "smoker"])
    assert wanted == ["group=HIGH", "group=LOW", "group=MIDDLE", "smoker"]
    assert set(found) == {*wanted, "age"}
    code = opened.participant_codes([f"alice-{p:02d}" for p in range(14)])
    assert found["group=LOW"][code].tolist() == [float(GROUPS[p % 5] == "low") for p in range(14)]
    assert found["age"][code].tolist() == [30.0 + p for p in range(14)]
    one, only = labels_of(table, opened, ["group=LOW"])
    assert only == ["group=LOW"]
    np.testing.assert_array_equal(one["group=LOW"], found["group=LOW"])
