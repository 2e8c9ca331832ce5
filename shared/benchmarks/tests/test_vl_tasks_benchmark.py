"""The benchmark of ALBEF's tasks runs, keeps its rows, and says what it measured."""

import pytest

from mc_benchmarks import contract, vl_tasks
from mc_benchmarks.contract import load_report
from mc_benchmarks.vl_tasks import ASSIGNED, BLIND, COLUMNS, run_vl_tasks

TINY = {
    "image": {"image_size": 32, "patch_size": 16, "width": 16, "depth": 1, "heads": 2, "stem": "patch"},
    "text": {"text_layers": 1, "fusion_layers": 1, "hidden_size": 16, "heads": 2, "max_length": 16},
    "dim": 8,
    "queue_size": 16,
}
FEW = {"fit": {"steps": 2, "batch_size": 8, "warmup_epochs": 0, "stop_on_collapse": False, "device": "cpu"}}


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path / "results")


def test_tasks_beside_who_does_not_look(tmp_path, monkeypatch):
    sizes = {"train": 24, "validation": 8, "test": 8}
    given = {"seeds": 1, "keep": tmp_path, "tasks": ["nlvr2", "entailment"], "counts": sizes}
    report = run_vl_tasks(**given, changes=FEW, pretraining={"method": TINY, **FEW})
    assert load_report("vl_tasks") == report
    assert [row.name for row in report.rows] == ["nlvr2: accuracy", "entailment: accuracy"]
    assert list(report.rows[0].values) == COLUMNS
    assert report.rows[0].values[ASSIGNED] is not None
    assert report.rows[1].values[ASSIGNED] is None
    assert all(0 <= float(str(row.values[BLIND])) <= 1 for row in report.rows)
    assert "entailment: pretraining" in report.reading

    def trained_again(*_, **__):
        raise AssertionError("a finished row is trained again")

    monkeypatch.setattr(vl_tasks, "finetune_task", trained_again)
    assert run_vl_tasks(**given, changes=FEW, pretraining={"method": TINY, **FEW}).rows == report.rows
