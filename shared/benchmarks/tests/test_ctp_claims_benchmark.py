"""The benchmarks of CTP run at a tiny size, keep their rows, and say what they measured."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mc_benchmarks import contract, ctp_claims
from mc_benchmarks.contract import load_report
from mc_benchmarks.ctp_claims import (
    BEFORE,
    DIGIT_SETTINGS,
    FULL,
    JOINT,
    PARTS,
    PRODUCT_SETTINGS,
    PRODUCTS,
    SEQUENTIAL,
    TABLE,
    UNTRAINED,
    digit_tasks,
    run_ctp_claims,
)
from mc_core.errors import CheckpointError, ConfigError
from mc_core.recipes import merge
from mc_vision_language.continual.sample import sample_start
from mc_vision_language.continual.table import BASELINES
from mc_vision_language.data.pairs import divide

FEW = {
    "method": {
        "image": {"width": 16, "depth": 1, "heads": 2},
        "text": {"hidden_size": 16, "heads": 2},
        "dim": 8,
        "queue_size": 16,
    },
    "fit": {"batch_size": 8, "warmup_epochs": 0},
}
ROWS = {name: PARTS[name] for name in (SEQUENTIAL, FULL, JOINT)}


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(ctp_claims, "DIGIT_SETTINGS", merge(DIGIT_SETTINGS, FEW))
    monkeypatch.setattr(ctp_claims, "PRODUCT_SETTINGS", merge(PRODUCT_SETTINGS, FEW))
    monkeypatch.setattr(ctp_claims, "PARTS", ROWS)
    monkeypatch.setattr(ctp_claims, "SHORT", (SEQUENTIAL, FULL))


def _few(tasks):
    """Of each task 24 pictures to train on and 8 to test with."""
    found = []
    for task in tasks:
        rows = np.concatenate(
            [np.flatnonzero(task.pairs.splits == part)[:n] for part, n in (("train", 24), ("test", 8))]
        )
        found.append(replace(task, pairs=task.pairs.take(rows), classes=task.classes[rows]))
    return found


def test_five_tasks_of_two_digits():
    tasks = digit_tasks("digits", 0)
    assert [task.name for task in tasks][:2] == ["zero and one", "two and three"]
    assert sum(len(task.pairs) for task in tasks) == 6000
    for task in tasks:
        names = set(task.name.split(" and "))
        assert set(task.classes.tolist()) == names
        assert all(names & set(text.split()) for text in task.pairs.captions)


@pytest.mark.parametrize(("kind", "name"), [("turns", "ctp_turns"), ("digits", "ctp_claims")])
def test_rows_of_digits_are_kept(kind, name, tmp_path, monkeypatch):
    monkeypatch.setattr(ctp_claims, "digit_tasks", lambda kind, seed: _few(digit_tasks(kind, seed)[:2]))
    report = run_ctp_claims(seeds=1, steps=2, keep=tmp_path, tasks=kind)
    assert load_report(name) == report
    assert [row.name for row in report.rows] == [*ROWS, UNTRAINED]
    assert list(report.rows[0].values) == list(TABLE.values())
    for row in report.rows[:2]:
        assert 0 <= float(str(row.values[TABLE["last"]])) <= 1
        assert row.values[TABLE["forgetting"]] is not None
    assert report.rows[2].values[TABLE["forgetting"]] is None  # joint training has one task
    assert f"{FULL} − {SEQUENTIAL}: R_m" in report.reading

    def trained_again(*_, **__):
        raise AssertionError("a finished row is trained again")

    monkeypatch.setattr(ctp_claims, "run_sequence", trained_again)
    assert run_ctp_claims(seeds=1, steps=2, keep=tmp_path, tasks=kind).rows == report.rows
    with pytest.raises(CheckpointError, match="other settings"):
        run_ctp_claims(seeds=1, steps=3, keep=tmp_path, tasks=kind)


def test_a_model_that_knows_other_digits_sees_other_writers_in_each_seed(tmp_path, monkeypatch):
    drawn, began = [], []

    def few(kind, seed, held_out):
        drawn.append((kind, held_out))
        return _few(digit_tasks(kind, seed, held_out)[:2])

    def start(*given, held_out, **more):
        began.append(held_out)
        return sample_start(*given, held_out=held_out, **more)

    monkeypatch.setattr("mc_vision_language.continual.tasks.TURN_COUNTS", {"train": 200, "validation": 5, "test": 60})
    monkeypatch.setattr(ctp_claims, "STARTED", (SEQUENTIAL, FULL))
    monkeypatch.setattr(ctp_claims, "START_STEPS", 1)
    monkeypatch.setattr(ctp_claims, "digit_tasks", few)
    monkeypatch.setattr(ctp_claims, "sample_start", start)
    report = run_ctp_claims(seeds=2, steps=2, keep=tmp_path, tasks="started")
    assert load_report("ctp_started") == report
    assert [row.name for row in report.rows] == [SEQUENTIAL, FULL, BEFORE]
    assert drawn == [("turns", 0), ("turns", 1)]
    assert began == [0, 1]
    assert "Each seed holds out the scans of other writers" in report.reading
    assert "of 2 seeds)" in report.reading


def test_products_in_both_orders(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for file in {row["data"] for row in PRODUCTS}:
        with tarfile.open(tmp_path / file, "w") as tar:
            for row in (one for one in PRODUCTS if one["data"] == file):
                for number in range(24):
                    picture = io.BytesIO()
                    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(picture, "PNG")
                    note = {"text": f"{row['name']} {number}", **row["where"], row["category"]: f"kind {number % 3}"}
                    for ending, content in (("png", picture.getvalue()), ("json", json.dumps(note).encode())):
                        member = tarfile.TarInfo(f"{row['name']}-{number:02d}.{ending}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(ctp_claims, "PRODUCTS", PRODUCTS[:2])
    report = run_ctp_claims(seeds=1, steps=2, keep=tmp_path / "kept", tasks="products", data=tmp_path)
    names = [row.name for row in report.rows]
    assert names == [SEQUENTIAL, FULL, UNTRAINED, *(f"reversed: {n}" for n in (SEQUENTIAL, FULL, UNTRAINED))]
    assert f"reversed: {FULL} − {SEQUENTIAL}" in report.reading
    with pytest.raises(ConfigError, match="no such folder"):
        run_ctp_claims(seeds=1, steps=2, keep=tmp_path / "kept", tasks="products", data=tmp_path / "nowhere")


def test_every_other_method_is_a_baseline():
    assert {arm.method for arm in (*PARTS.values(), *ctp_claims.OTHERS.values())} == set(BASELINES)
    assert divide(np.arange(5), ctp_claims.SHARES, 0).tolist().count("validation") == 0
