"""The benchmark of growing runs at a tiny size, keeps its rows, and says what it measured."""

import numpy as np
import pytest

from mc_benchmarks import contract, growclip_claims
from mc_benchmarks.contract import load_report
from mc_benchmarks.growclip_claims import (
    ANEW,
    COLUMNS,
    FIXED,
    GROWN,
    OVERHEAD,
    ROWS,
    SEARCHED,
    SETTINGS,
    SIZE,
    STEPS,
    digit_slices,
    run_growclip_claims,
)
from mc_core.errors import CheckpointError
from mc_core.recipes import merge
from mc_vision_language.growing.running import ARMS

SMALL = {"blocks": 1, "heads": 1, "hidden": 8}
FEW = {
    "method": {
        "width": 8,
        "head_width": 4,
        "dim": 8,
        "image": {"stem_width": 16},
        **{f"{part}_part": SMALL for part in ("image", "text", "shared")},
        "growth": {"evaluations": 1, "batches": 2, "pairs": 1},
    }
}


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(growclip_claims, "SETTINGS", merge(SETTINGS, FEW))


def test_digits_arrive_in_four_slices():
    slices = digit_slices(0)
    counts = [len(slices.train(step)) for step in range(4)]
    assert counts == [43, 107, 322, 1072]
    assert [len(slices.held_out(step)) for step in (0, 3)] == [128, 128]
    assert len(slices.pairs.part("test")) == 597
    assert np.array_equal(digit_slices(0).slice_of, slices.slice_of)
    assert not np.array_equal(digit_slices(1).slice_of, slices.slice_of)
    assert set(ROWS.values()) <= set(ARMS)


def test_rows_are_kept(tmp_path, monkeypatch):
    report = run_growclip_claims(seeds=1, steps=4, keep=tmp_path)
    assert load_report("growclip_claims_4") == report
    assert [row.name for row in report.rows] == list(ROWS)
    by_name = {row.name: row.values for row in report.rows}
    assert list(by_name[FIXED]) == COLUMNS
    assert all(0 <= float(str(values[step])) <= 1 for values in by_name.values() for step in STEPS)
    assert by_name[FIXED][OVERHEAD] is by_name[ANEW][OVERHEAD] is None
    assert by_name[SEARCHED][OVERHEAD] is not None
    assert float(str(by_name[FIXED][SIZE])) <= float(str(by_name["grown at random, m = 1"][SIZE]))
    assert f"{GROWN} − {FIXED}" in report.reading

    def trained_again(*_, **__):
        raise AssertionError("a finished row is trained again")

    monkeypatch.setattr(growclip_claims, "run_growth", trained_again)
    assert run_growclip_claims(seeds=1, steps=4, keep=tmp_path).rows == report.rows
    monkeypatch.setattr(growclip_claims, "SETTINGS", merge(SETTINGS, {"fit": {"lr": 1e-3}}))
    with pytest.raises(CheckpointError, match="other settings"):
        run_growclip_claims(seeds=1, steps=4, keep=tmp_path)
