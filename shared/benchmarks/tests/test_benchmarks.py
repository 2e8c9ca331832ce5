"""The benchmarks keep their contract: saved results fit the schema, tables come from them, both sides compute the same thing."""

import pytest
import torch

from mc_benchmarks import contract, tables
from mc_benchmarks.contract import Report, Row, environment, load_report, median, median_ratio, paired, spread
from mc_benchmarks.queue_loss import _inputs, dense_info_nce
from mc_benchmarks.step_time import _fill, _network, floor_step, our_step
from mc_core.errors import DataError
from mc_core.losses import info_nce

SAVED = sorted(path.stem for path in contract.RESULTS.glob("*.json"))


def _report(name="speed"):
    return Report(
        benchmark=name,
        command="mc-benchmark speed",
        question="How fast?",
        settings={"n": 1},
        environment=environment(),
        columns=["ms", "note"],
        rows=[Row(name="ours", values={"ms": 1.5, "note": "fine"}), Row(name="theirs", values={"ms": 234.5})],
        reading="Ours is faster.",
    )


@pytest.mark.parametrize("name", SAVED)
def test_saved_results_fit_the_schema(name):
    report = load_report(name)
    assert report.benchmark == name
    assert report.rows
    assert all(set(row.values) <= set(report.columns) for row in report.rows)
    assert report.environment.packages["torch"]


def test_a_result_survives_saving(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contract, "RESULTS", tmp_path)
    report = _report()
    report.save()
    assert load_report("speed") == report
    report.show()
    assert "How fast?" in capsys.readouterr().out


def test_tables_are_made_from_results_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path)
    _report().save()
    page = tmp_path / "README.md"
    page.write_text("# A\n<!-- benchmark: speed -->\nold\n<!-- end -->\nmore\n")
    with pytest.raises(DataError, match="a table is not what the results say; run `uv run mc-benchmark tables`"):
        tables.run_tables([page], check=True)
    tables.run_tables([page], check=False)
    text = page.read_text()
    assert "| ours | 1.5 | fine |" in text
    assert "| theirs | 234 | – |" in text or "| theirs | 235 | – |" in text
    assert text.endswith("<!-- end -->\nmore\n")
    tables.run_tables([page], check=True)


def test_the_tables_of_this_workspace_are_up_to_date():
    tables.run_tables([], check=True)


def test_candidates_take_turns():
    order = []
    seconds = paired({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert [len(found) for found in seconds.values()] == [3, 3]
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert spread([0.0, 1.0, 2.0, 3.0, 4.0]) == 2.0
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0


def test_dense_and_streamed_are_the_same_loss():
    query, key, queue = _inputs(8, 512, "cpu")
    (dense,) = torch.autograd.grad(dense_info_nce(query, key, queue), query)
    (streamed,) = torch.autograd.grad(info_nce(query, key, queue, temperature=0.2), query)
    torch.testing.assert_close(streamed, dense, rtol=1e-5, atol=1e-7)


def test_the_steps_that_are_timed_do_their_work():
    method = _network(32)
    _fill(method, torch.device("cpu"))
    views = [torch.randn(4, 3, 32, 32) for _ in range(2)]
    before = {name: value.clone() for name, value in method.state_dict().items()}
    floor_step(method.online, *views)()
    assert all(
        torch.equal(value, before[name]) for name, value in method.state_dict().items() if name.endswith("weight")
    )
    our_step(method, *views)()
    changed = {
        name.split(".")[0] for name, value in method.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"online", "momentum_encoder", "queue"}
