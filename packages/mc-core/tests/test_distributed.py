"""Two gloo processes agree with one process that sees the whole batch: gradients, queue, norm, FSDP2, DDP."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from mc_core.distributed import (
    all_reduce_mean,
    all_reduce_sum,
    broadcast_permutation,
    exclude_from_ddp,
    gather_rows,
    gather_rows_with_grad,
    is_distributed,
    own_rows,
    rank,
    world_size,
)
from mc_core.norm import shuffle_rows
from mc_core.queue import FeatureQueue

SCRIPT = Path(__file__).with_name("_two_processes.py")
WORLD = 2


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_two_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found, by case."""
    folder = tmp_path_factory.mktemp("processes")
    torch.save(seven_rows().state_dict(), folder / "from_one_process.pt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(SCRIPT), str(number), str(WORLD), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(WORLD)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * WORLD, "\n".join(outputs)
    return [torch.load(folder / f"{number}.pt") for number in range(WORLD)]


def seven_rows() -> FeatureQueue:
    queue = FeatureQueue(11, 3, with_ids=True)
    queue.enqueue(torch.ones(7, 3), torch.arange(7))
    return queue


def test_one_process_needs_no_collective():
    x = torch.randn(3, 2, requires_grad=True)
    assert (is_distributed(), rank(), world_size(), own_rows(3)) == (False, 0, 1, slice(0, 3))
    assert gather_rows(x).data_ptr() == x.data_ptr()
    assert not gather_rows(x).requires_grad
    assert gather_rows_with_grad(x) is x
    assert torch.equal(all_reduce_sum(x), x)
    assert torch.equal(all_reduce_mean(x), x)
    assert not all_reduce_mean(x).requires_grad


def test_a_permutation_is_a_function_of_the_seed_alone():
    orders = torch.stack([broadcast_permutation(6, seed) for seed in range(6000)])
    assert (orders.sort(1).values == torch.arange(6)).all()
    shares = torch.stack([(orders == value).float().mean(0) for value in range(6)])
    assert (shares - 1 / 6).abs().max() < 0.03  # every value in every place about equally often
    assert broadcast_permutation(0, 1).tolist() == []


def test_processes_know_their_number_and_gather_in_order(results, script):
    for number, found in enumerate(result["basics"] for result in results):
        assert found["who"] == (True, number, WORLD)
        assert found["gathered"].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
        assert torch.equal(found["strided"], script.whole_batch(WORLD, 2, 3).transpose(1, 2))
        assert found["requires_grad"] is False
        assert found["sum"].tolist() == [3.0, 4.0]
        assert found["mean"].tolist() == [1.5, 2.0]
        assert found["untouched"]
        assert torch.equal(found["permutation"], broadcast_permutation(11, seed=3))


def test_the_gradient_of_gathered_rows_sums_over_the_processes_that_used_them(results, script):
    total = sum(script.whole_batch(WORLD, script.DIM, seed=1 + number) for number in range(WORLD))
    found = torch.cat([result["gradient_of_a_gather"]["grad"] for result in results])
    torch.testing.assert_close(found, total, rtol=0, atol=1e-15)


def test_a_gathered_loss_under_ddp_has_the_gradient_of_the_whole_batch(results, script):
    model = script.encoder()
    q_GD, k_GD = model(script.whole_batch(WORLD, 2, script.DIM)).unbind(1)
    script.in_batch_loss(q_GD, k_GD, 0).backward()
    for result in results:
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(result["gradient_under_ddp"][name], parameter.grad, rtol=0, atol=1e-14)


def test_streamed_two_sided_gradients_average_to_those_of_the_whole_batch(results, script):
    found = [result["streamed_gradients"] for result in results]
    whole = script.two_sided(*script.pairs(WORLD), 0)
    for name in ("loss", "scale"):
        torch.testing.assert_close(sum(one[name] for one in found) / WORLD, getattr(whole, name), rtol=0, atol=1e-13)
    for name in ("left", "right"):  # DDP averages over processes what each one's rows pull
        mine = torch.cat([one[name] for one in found]) / WORLD
        torch.testing.assert_close(mine, getattr(whole, name), rtol=0, atol=1e-13)


def test_a_queue_is_the_same_on_every_process_and_in_one(results, script):
    fresh, grown = FeatureQueue(11, 3, with_ids=True), seven_rows()
    for seed in range(3):
        rows = script.whole_batch(WORLD, script.DIM, seed=seed)
        for queue in (fresh, grown):
            queue.enqueue(rows, torch.arange(len(rows)) + 100 * seed)
    for result in results:
        saved = result["queue"]["fresh"]
        assert saved.keys() == fresh.state_dict().keys()
        assert all(torch.equal(saved[name], value) for name, value in fresh.state_dict().items())
        for found, wanted in zip(result["queue"]["grown"], grown.in_order(), strict=True):
            assert torch.equal(found, wanted)
        rows = script.whole_batch(WORLD, script.DIM, seed=0)
        first = len(rows) // WORLD - 1  # another number of rows on each process
        assert result["queue"]["some"][1].tolist() == list(range(first, len(rows)))
        assert torch.equal(result["queue"]["some"][0], rows[first:].float())
    loaded = FeatureQueue(11, 3, with_ids=True)
    loaded.load_state_dict(results[1]["queue"]["fresh"])
    assert torch.equal(loaded.in_order()[1], torch.tensor([105, 106, 107, 200, 201, 202, 203, 204, 205, 206, 207]))


def test_ddp_leaves_the_queue_alone_but_not_other_buffers(results):
    for number, found in enumerate(result["ddp_leaves_the_queue_alone"] for result in results):
        assert found["excluded"] == ["queue.ring", "queue.cursor"]
        assert (found["ring"] == number).all()
        assert (found["running_mean"] == 0).all()  # rank 0's, as DDP does with ordinary buffers


def test_excluding_keeps_what_was_excluded_before():
    module = nn.ModuleDict({"bank": FeatureQueue(2, 1, with_ids=True), "norm": nn.BatchNorm1d(1)})
    module._ddp_params_and_buffers_to_ignore = ["norm.running_mean"]
    assert exclude_from_ddp(module) == ["bank.ring", "bank.ring_ids", "bank.cursor"]
    assert exclude_from_ddp(module) == ["bank.ring", "bank.ring_ids", "bank.cursor"]
    ignored = ["norm.running_mean", "bank.ring", "bank.ring_ids", "bank.cursor"]
    assert module._ddp_params_and_buffers_to_ignore == ignored


def test_shuffled_keys_come_back_in_order_and_were_normalised_among_others(results, script):
    found = [result["shuffled_norm"] for result in results]
    whole = torch.cat([one["x"] for one in found])
    order = broadcast_permutation(len(whole), seed=5)
    assert torch.equal(torch.cat([one["seen"] for one in found]), whole[order])
    assert all(torch.equal(one["out"], one["x"] * 2) for one in found)
    assert not torch.equal(found[0]["seen"].sort(0).values, found[0]["x"].sort(0).values)

    parts = [nn.BatchNorm1d(script.DIM)(part) for part in whole[order].chunk(WORLD)]
    expected = torch.cat(parts)[order.argsort()].detach()
    torch.testing.assert_close(torch.cat([one["normalised"] for one in found]), expected)
    assert "encode keys under no_grad" in found[0]["message"]


def test_one_process_has_nothing_to_shuffle():
    x = torch.randn(4, 2)
    rows, restore = shuffle_rows(x, seed=1)
    assert rows is x
    assert restore(x) is x


def test_sharded_training_moves_the_copy_as_one_process_does(results, script):
    pair = script.Pair()
    drifts = script.pair_steps(pair, script.whole_batch(WORLD, script.DIM), list(pair.online.parameters()))
    for result in results:
        found = result["fully_sharded"]
        assert all(found["sharded"])
        assert "shard the online network and its copy alike" in found["message"]
        torch.testing.assert_close(found["drifts"], torch.stack(drifts), rtol=1e-9, atol=0, check_dtype=False)
    state, expected = results[0]["fully_sharded"]["state"], pair.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-7 if "queue" in name else 1e-12)
    again = script.Pair()
    again.load_state_dict(state)
    assert len(again.queue) == len(pair.queue) == 6
