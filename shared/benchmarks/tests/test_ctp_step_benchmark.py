"""Steps of CTP: the benchmark runs, and what it times is a step that trains."""

import pytest
import torch

from mc_benchmarks import contract, ctp_step
from mc_benchmarks.contract import load_report
from mc_core.continual import Task
from mc_vision_language.methods.ctp import CTP
from mc_vision_language.recipe import resolve_recipe

CHANGES = {
    "method": {
        "image": {"image_size": 16, "patch_size": 8, "width": 12, "depth": 1, "heads": 2},
        "text": {"hidden_size": 16, "heads": 2, "fusion_layers": 2, "vocabulary": 64},
        "dim": 8,
        "queue_size": 8,
    },
    "augment": {"size": 16},
    "fit": {"batch_size": 4},
}
TINY = {"tiny": {"recipe": "ctp-laptop", "changes": CHANGES, "tokens": 6}}
CPU = torch.device("cpu")


def test_it_runs_and_says_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path)
    monkeypatch.setattr(ctp_step, "SIZES", TINY)
    report = ctp_step.run_ctp_step(repeats=2)
    assert load_report("ctp_step_cpu") == report
    (row,) = report.rows
    assert row.name == "tiny"
    assert all(float(row.values[column]) > 0 for column in report.columns)


@pytest.mark.parametrize("kind", ["sequential", "lwf", "ctp"])
def test_a_step_trains_with_all_its_models(kind):
    recipe = resolve_recipe("ctp-laptop", CHANGES)
    batch, method = ctp_step.made_batch(recipe, 6, CPU), ctp_step.made(kind, recipe, CPU)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    ctp_step.step_of(method, recipe, batch)()
    moved = [name for name, value in method.state_dict().items() if not torch.equal(value, before[name])]
    assert any(name.startswith("model.") for name in moved)
    assert any(name.startswith("compatible.") for name in moved) == (kind == "ctp")
    assert ("queues.text.ring" in moved) == (kind == "ctp")
    assert any(name.startswith("old.") for name in before) == (kind != "sequential")
    assert not any(name.startswith("old.") for name in moved)


def test_a_longer_way_has_the_same_losses():
    recipe = resolve_recipe("ctp-laptop", CHANGES)
    batch, progress = ctp_step.made_batch(recipe, 6, CPU), ctp_step.Progress(5, 10, 5, 4)
    one, other = (ctp_step.made(kind, recipe, CPU).eval() for kind in (CTP, ctp_step.WholeOldPass))
    found, expected = (method.training_step(batch, progress).metrics for method in (other, one))
    assert len(expected) == 6
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_the_first_task_has_no_old_model():
    recipe = resolve_recipe("ctp-laptop", CHANGES)
    assert ctp_step.made("ctp", recipe, CPU, Task(0, "first")).old is None
