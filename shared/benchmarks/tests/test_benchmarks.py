"""The benchmarks keep their contract: saved results fit the schema, tables come from them, both sides compute the same thing."""

import pytest
import torch

from mc_benchmarks import contract, mmc_claims, mmc_step, segment, sinkhorn, tables
from mc_benchmarks.app import app
from mc_benchmarks.claims import over_seeds
from mc_benchmarks.contract import Report, Row, environment, load_report, median, median_ratio, paired, spread
from mc_benchmarks.queue_loss import _inputs, dense_info_nce
from mc_benchmarks.step_time import _fill, _network, floor_step, our_step
from mc_core.errors import DataError
from mc_core.losses import info_nce
from mc_vision.methods.mmc import MMC
from mc_vision.recipe import resolve_recipe

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


def test_every_command_is_told_in_the_readme():
    page = (contract.RESULTS.parent / "README.md").read_text()
    names = [name for name in app if not name.startswith("-")]
    assert len(names) > 40
    for name in names:
        told = [line for line in page.splitlines() if f"mc-benchmark {name} " in line]
        assert len(told) == 1, name
        assert name == "tables" or f"| `{name}` |" in page or f"| `{name}`, " in page, name


def test_candidates_take_turns():
    order = []
    seconds = paired({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert [len(found) for found in seconds.values()] == [3, 3]
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert spread([0.0, 1.0, 2.0, 3.0, 4.0]) == 2.0
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0


def test_candidates_that_rest_run_once_uncounted_before_each_timing(monkeypatch):
    order, slept = [], []
    monkeypatch.setattr(
        "mc_benchmarks.contract.time.sleep", lambda seconds: (slept.append(seconds), order.append("rest"))
    )
    candidates = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = paired(candidates, repeats=2, warmup=1, rest=0.5)
    assert order == ["rest", "a", "a", "rest", "b", "b"] * 3
    assert [len(found) for found in seconds.values()] == [2, 2]
    assert set(slept) == {0.5}


@pytest.mark.parametrize(("limit", "rounds"), [(0.0, 3), (1e9, 8), (None, 8)])
def test_a_limit_leaves_at_least_three_rounds(limit, rounds):
    turns = []
    (found,) = paired({"a": lambda: turns.append(0)}, repeats=8, warmup=2, limit=limit).values()
    assert (len(found), len(turns)) == (rounds, rounds + 2)


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


def test_the_step_of_mmc_that_is_timed_trains_and_its_floor_does_not():
    recipe = resolve_recipe("mmc-laptop", {"fit": {"batch_size": 4, "device": "cpu"}})
    torch.manual_seed(0)
    method = MMC(recipe.method).train()
    views = [torch.randn(4, 3, 32, 32) for _ in range(2)]
    before = {name: value.clone() for name, value in method.state_dict().items()}
    mmc_step.floor_step(method, torch.cat(views), scores=True)()
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
    mmc_step.our_step(method, recipe, *views)()
    moved = {name for name, value in method.state_dict().items() if not torch.equal(before[name], value)}
    assert {name.partition(".")[0] for name in moved} >= {"online", "teacher", "reconstruction", "center"}


def test_our_sinkhorn_reads_the_matrix_a_third_as_often():
    scores = sinkhorn._scores(512, 3000, "cpu")
    literal = sinkhorn.passes(lambda: [sinkhorn.literal_sinkhorn(crop) for crop in scores], scores.nbytes)
    assert sinkhorn.passes_on_a_gpu(scores.shape, 0.05) <= literal / 3
    for epsilon in (0.05, 0.02):
        ours = sinkhorn.passes(
            lambda epsilon=epsilon: sinkhorn.sinkhorn_assignments(scores, epsilon=epsilon), scores.nbytes
        )
        assert ours <= literal / 3


def test_traffic_is_what_a_cache_does_not_hold():
    small, large = torch.zeros(1 << 10), torch.zeros(1 << 20)
    with sinkhorn.Traffic(cache=1 << 14) as traffic:
        small.add_(1.0).mul_(2.0)  # read once, written back once
        large.add_(1.0).mul_(2.0)  # read and written twice
    assert traffic.bytes == 2 * small.nbytes + 4 * large.nbytes


def test_directions_of_a_claim_are_read_from_the_rows():
    def row(name: str, overlap: float, iou: float) -> Row:
        return Row(name=f"COCO: {name}", values={mmc_claims.OVERLAP: overlap, mmc_claims.IOU: iou})

    rows = [row(mmc_claims.ALL, 0.5, 0.3)]
    rows += [row(name, overlap, 0.2) for name, overlap in zip(list(mmc_claims.CASES)[1:], (0.6, 0.4, 0.7), strict=True)]
    rows += [row(mmc_claims.RANDOM_INIT, 0.8, 0.2), row(mmc_claims.POSITION_ONLY, 0.1, 0.4)]
    holds, _, fails = mmc_claims._reading(rows, "COCO").partition("; not so: ")
    assert "overlap below reconstruction alone" in holds
    assert "mIoU above the untrained encoder" in holds
    assert fails == "overlap below distillation alone, mIoU above position only."


def test_seeds_are_averaged_by_row():
    rows = over_seeds([{"a": {"x": 1.0}, "b": {"x": 5.0}}, {"a": {"x": 3.0}}])
    assert [(row.name, row.values["x"], row.values["x sd"]) for row in rows] == [
        ("a", 2.0, pytest.approx(2**0.5)),
        ("b", 5.0, None),
    ]


def test_pointing_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path)
    report = segment.run_segment(repeats=1, page=False)
    assert [row.name for row in report.rows] == ["encode the photo", "click to mask and overlay"]
    assert all(row.values["ms (median)"] > 0 for row in report.rows)
