"""The benchmark of ALBEF's parts: which rows it trains, in what order, and what it says of them."""

import pytest

from mc_benchmarks import contract, vl_claims
from mc_benchmarks.contract import load_report
from mc_benchmarks.vl_claims import run_vl_claims
from mc_vision_language.ablation import COLUMNS, DOWNSTREAM


@pytest.fixture(autouse=True)
def trained(tmp_path, monkeypatch):
    """Nothing is trained: a figure for each row, by its seed; what was asked for is kept."""
    asked = []

    def figures(value):
        return dict.fromkeys(COLUMNS, value)

    def arm(kind, shift):
        def run(recipe, changes, arm, seed, pairs, folder, *, noise, k):
            asked.append((kind, noise, arm.name, seed))
            return figures(0.5 + shift + 0.1 * seed)

        return run

    monkeypatch.setattr(contract, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(vl_claims, "run_untrained", lambda *_, **__: figures(0.1))
    monkeypatch.setattr(vl_claims, "run_arm", arm("pretrained", 0.0))
    monkeypatch.setattr(vl_claims, "run_downstream", arm("downstream", 0.25))
    return asked


def test_rows_downstream_come_after_the_full_row_where_they_are_asked_for(tmp_path, trained):
    report = run_vl_claims(seeds=2, keep=tmp_path, steps=400, downstream=True)
    assert report is not None
    names = [row.name for row in report.rows]
    for prefix in ("", "40% wrong: "):
        at = names.index(f"{prefix}+ MoD in MLM")
        assert names[at + 1 : at + 3] == [f"{prefix}{arm.name}" for arm in DOWNSTREAM]
    assert {name for kind, _, name, _ in trained if kind == "downstream"} == {arm.name for arm in DOWNSTREAM}
    assert report.command.endswith("--seeds 2 --downstream")
    assert "fine-tuning, ranked again +0.250 ± 0.000" in report.reading
    assert "MoD downstream, contrast +0.000 ± 0.000" in report.reading
    assert load_report("vl_claims") == report


def test_without_them_the_table_is_as_it_was(tmp_path, trained):
    report = run_vl_claims(seeds=2, keep=tmp_path, steps=400)
    assert report is not None
    assert len(report.rows) == 16
    assert not any(kind == "downstream" for kind, *_ in trained)
    assert "downstream" not in report.command + report.reading
    assert "fine-tuning" not in report.reading
