"""Steps of ALBEF: the benchmark runs, and its variants compute the same losses."""

import pytest
import torch

from mc_benchmarks import contract, vl_step
from mc_benchmarks.contract import load_report
from mc_core.engine import Progress
from mc_vision_language.methods.albef.model import ALBEF
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
TINY = {"tiny": {"recipe": "albef-laptop", "changes": CHANGES, "tokens": 6}}


def test_it_runs_and_says_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path)
    monkeypatch.setattr(vl_step, "SIZES", TINY)
    report = vl_step.run_vl_step(repeats=2)
    assert load_report("vl_step_cpu") == report
    (row,) = report.rows
    assert row.name == "tiny"
    assert all(float(row.values[column]) > 0 for column in report.columns)


def method_of(kind):
    torch.manual_seed(0)
    return vl_step.filled(kind(resolve_recipe("albef-laptop", CHANGES).method).eval())


@pytest.mark.parametrize("variant", ["keys", "head", "separate"])
def test_a_step_without_a_shortcut_has_the_same_losses(variant):
    kinds = {"keys": ALBEF, "head": vl_step.HeadOnAllTokens, "separate": vl_step.SeparateMatching}
    batch = vl_step.made_batch(resolve_recipe("albef-laptop", CHANGES), 6, torch.device("cpu"))
    method = method_of(kinds[variant])
    if variant == "keys":
        method = vl_step.with_keys_for_each_pass(method)
    expected = method_of(ALBEF).training_step(batch, Progress(5, 10, 5, 4))
    found = method.training_step(batch, Progress(5, 10, 5, 4))
    for name in ("itc", "itm", "mlm"):
        torch.testing.assert_close(found.metrics[name], expected.metrics[name])


def test_a_step_trains_and_the_floor_leaves_the_method_alone():
    recipe = resolve_recipe("albef-laptop", CHANGES)
    batch, method = vl_step.made_batch(recipe, 6, torch.device("cpu")), method_of(ALBEF)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    vl_step.floor_of(method, batch)()
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    vl_step.step_of(method, recipe, batch)()
    moved = [name for name, value in method.state_dict().items() if not torch.equal(value, before[name])]
    assert any(name.startswith("model.") for name in moved)
    assert any(name.startswith("teacher.") for name in moved)
    assert "queues.text.ring" in moved
