"""Steps of CoCoSoDa: the benchmark runs, and measures what it says."""

import torch

from mc_benchmarks import code_step, contract
from mc_benchmarks.contract import load_report
from mc_text_code.code_recipe import resolve_code_recipe
from mc_text_code.methods.cocosoda.model import CoCoSoDa

TINY = {
    "method": {
        "encoder": {"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 12, "vocabulary": 64},
        "queue_size": 8,
    },
    "batches": {"query_length": 6},
    "fit": {"batch_size": 4},
}


def test_it_runs_and_a_step_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path)
    monkeypatch.setattr(code_step, "SIZES", {"tiny": TINY})
    report = code_step.run_code_step(repeats=2)
    assert load_report("code_step_cpu") == report
    (row,) = report.rows
    assert row.name == "tiny"
    assert 0 < row.values["augmentation % of a step"] < 100

    changes = {**TINY, "method": {**TINY["method"], "augment": {"token_ids": tuple(range(4, 17))}}}
    recipe = resolve_code_recipe("cocosoda-laptop", changes)
    torch.manual_seed(0)
    method = code_step.filled(CoCoSoDa(recipe.method))
    before = [parameter.clone() for parameter in method.parameters()]
    held = {name: queue.features.clone() for name, queue in method.queues.items()}
    batch = code_step.made_batch(recipe, torch.device("cpu"), 64)
    assert batch["code_input_ids"].shape == (4, 12)
    code_step.step_of(method, recipe, batch)()
    assert any(not old.equal(new) for old, new in zip(before, method.parameters(), strict=True))
    assert all(not held[name].equal(queue.features) for name, queue in method.queues.items())
