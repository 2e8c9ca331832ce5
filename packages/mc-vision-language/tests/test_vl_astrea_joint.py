"""Astrea's joint stage: momentum contrast against its definition, what is frozen, what moves when, what is logged and saved."""

from __future__ import annotations

import copy
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from mc_core.engine.method import Progress
from mc_core.errors import ConfigError
from mc_vision_language.methods.astrea.base import MAP
from mc_vision_language.methods.astrea.joint import AstreaJoint
from mc_vision_language.methods.astrea.loss import balance_loss, importance_loss
from mc_vision_language.methods.astrea.model import AstreaModel

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_astrea.py"))))
KINDS = ("classification", "captioning", "detection", "segmentation")


def joint(seed: int = 0, **more) -> AstreaJoint:
    return AstreaJoint(tiny.config(**more), None, tiny.model(seed, **more)).train()


def step(method: AstreaJoint, batches, optimizer=None, progress=None):
    """An optimizer step of several micro-batches, as the engine takes it."""
    progress = progress or tiny.progress()
    batches = [{**batch, "micro": micro} for micro, batch in enumerate(batches)]
    with torch.no_grad():
        prepared = method.prepare_step(batches, progress)
    outputs = [method.training_step(batch, progress, prepared) for batch in batches]
    for output in outputs:
        (output.loss / len(outputs)).backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        method.after_step(progress)
    progress.step += 1
    return outputs


def sgd(method: AstreaJoint, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(method.parameter_groups(0.0), lr=lr)


@torch.no_grad()
def keys_of(method: AstreaJoint, batch) -> dict[str, torch.Tensor]:
    maps, taught = method.maps(batch), method.taught
    return {
        "image": taught.embed(maps, residual=method.model.own.residual(maps)),
        "text": taught.embed_text(batch["input_ids"], batch["attention_mask"]),
    }


def naive(query, columns, hits, scale: float) -> float:
    total = 0.0
    for i in range(len(query)):
        logits = [scale * float(query[i] @ column) for column in columns]
        log_sum = math.log(sum(map(math.exp, logits)))
        wanted = [float(one) for one in hits[i]]
        total -= sum(hit / sum(wanted) * (logit - log_sum) for hit, logit in zip(wanted, logits, strict=True))
    return total / len(query)


@pytest.mark.parametrize("ids", [True, False])
def test_the_loss_is_momentum_contrast_by_its_definition(ids):
    method = joint(ids=ids, balance={"loss": 0.0, "z": 0.0}).double()
    first, batch = tiny.batch(0), tiny.batch(2)  # rows 2 and 3 say the same; some pairs come back in the queue
    for one in (first, batch):
        one["view"] = one["view"].double()
    step(method, [first], sgd(method))
    queues = {side: method.queues[side].in_order() for side in ("image", "text")}
    assert all(len(rows) == 8 for rows, _ in queues.values())
    keys = keys_of(method, batch)
    output = method.training_step(batch, tiny.progress())
    with torch.no_grad():
        seen = method.fusion(method.maps(batch), batch["input_ids"], batch["attention_mask"])
    pairs = [(int(batch["image_ids"][i]), int(batch["text_ids"][i])) for i in range(8)]
    old = list(zip(queues["image"][1].tolist(), queues["text"][1].tolist(), strict=True))
    hits = [
        [a == c or b == d if ids else j == i for j, (c, d) in enumerate(pairs + old)] for i, (a, b) in enumerate(pairs)
    ]
    assert any(sum(row) > 1 for row in hits) is ids
    scale = float(method.fusion.logit_scale.detach().exp())
    wanted = 0.5 * sum(
        naive(query, torch.cat([keys[other], queues[other][0].double()]), hits, scale)
        for query, other in ((seen.image, "text"), (seen.text, "image"))
    )
    assert float(output.metrics["contrast"]) == pytest.approx(wanted, abs=1e-6)  # queues are kept in float32
    assert float(output.loss.detach()) == pytest.approx(wanted, abs=1e-6)


def test_without_momentum_and_queue_it_is_the_symmetric_loss_within_the_batch():
    method = joint(queue_size=0, momentum=0.0, ids=False, balance={"loss": 0.0, "z": 0.0})
    optimizer = sgd(method)
    for _ in range(2):
        batch = tiny.batch()
        output = method.training_step(batch, tiny.progress())
        with torch.no_grad():
            seen = method.fusion(method.maps(batch), batch["input_ids"], batch["attention_mask"])
            logits = method.fusion.logit_scale.exp() * seen.image @ seen.text.T
            wanted = 0.5 * sum(cross_entropy(one, torch.arange(8)) for one in (logits, logits.T))
        assert float(output.loss.detach()) == pytest.approx(float(wanted), abs=1e-5)
        step(method, [batch], optimizer)
    assert not method.queues


def test_no_gradient_reaches_the_keys():
    method = joint()
    output = method.training_step(tiny.batch(), tiny.progress())
    output.loss.backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert not output.features["key"].requires_grad
    assert output.features["query"].requires_grad


def test_a_pair_that_comes_back_is_no_negative_of_itself():
    method = joint(momentum=1.0, balance={"loss": 0.0, "z": 0.0})
    batch = tiny.batch()
    alone = float(method.training_step(batch, tiny.progress()).loss.detach())
    for _ in range(2):  # the same keys again, with their ids
        method.queues["image"].enqueue(keys_of(method, batch)["image"], batch["image_ids"])
        method.queues["text"].enqueue(keys_of(method, batch)["text"], batch["text_ids"])
    assert len(method.queues["text"]) == 16
    again = float(method.training_step(batch, tiny.progress()).loss.detach())
    assert again == pytest.approx(alone + math.log(3), abs=1e-5)  # every column three times, positives as well


def test_keys_and_ids_enter_the_queues_together_after_the_loss_first_in_first_out():
    method = joint(queue_size=12)
    batches = [tiny.batch(0), tiny.batch(8)]
    found = {side: [] for side in ("image", "text")}
    for batch in batches:
        keys = keys_of(method, batch)
        before = len(method.queues["text"])
        with torch.no_grad():
            prepared = method.prepare_step([batch], tiny.progress())
            method.training_step(batch, tiny.progress(), prepared)
        assert len(method.queues["text"]) == before
        method.after_step(tiny.progress())
        for side in found:
            found[side].append((keys[side], batch[f"{side}_ids"]))
    for side, parts in found.items():
        rows, ids = method.queues[side].in_order()
        torch.testing.assert_close(rows, torch.cat([part[0] for part in parts])[-12:], rtol=0, atol=1e-6)
        assert torch.equal(ids, torch.cat([part[1] for part in parts])[-12:])


def test_micro_batches_give_the_gradient_of_the_whole_step():
    settings = {"balance": {"loss": 0.0}, "residual": {"probability": 0.5}, "expert_dropout": 0.4}
    whole, parts = joint(**settings), joint(**settings)
    batch = tiny.batch()
    halves = [
        {name: value[part] if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        for part in (slice(0, 4), slice(4, 8))
    ]
    for method, batches in ((whole, [batch]), (parts, halves)):
        step(method, batches)
    for (name, left), right in zip(whole.named_parameters(), parts.parameters(), strict=True):
        if left.grad is not None:
            torch.testing.assert_close(
                left.grad, right.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )
    for side in ("image", "text"):
        torch.testing.assert_close(
            whole.queues[side].in_order()[0], parts.queues[side].in_order()[0], rtol=0, atol=1e-6
        )
    torch.testing.assert_close(
        whole.fusion.router.allocator.average, parts.fusion.router.allocator.average, rtol=1e-4, atol=1e-7
    )


def test_experts_stay_as_they_are_to_the_bit():
    method = joint()
    method.train()
    assert not any(part.training for part in method.model.own.experts.modules())
    assert method.fusion.training
    before = copy.deepcopy(method.model.own.experts.state_dict())
    optimizer = sgd(method)
    for _ in range(10):
        step(method, [tiny.batch()], optimizer)
    after = method.model.own.experts.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any("running_mean" in name for name in before)
    trained = {id(p) for group in method.parameter_groups(0.1) for p in group["params"]}
    assert not trained & {id(p) for p in method.model.own.experts.parameters()}
    method.model.own.train()
    assert not method.model.own.experts["detection"].norm.training


def test_experts_run_once_for_both_networks():
    method = joint()
    step(method, [tiny.batch()], sgd(method))
    assert [method.model.own.experts[kind].calls for kind in KINDS] == [1, 1, 1, 1]


def test_kept_maps_do_as_well_as_pictures():
    method = joint()
    batch = tiny.batch()
    maps = method.model.own.maps(batch["view"])
    kept = {name: value for name, value in batch.items() if name != "view"} | {
        MAP + kind: one for kind, one in maps.items()
    }
    found = [method.training_step(one, tiny.progress()).loss.detach() for one in (batch, kept)]
    assert torch.equal(*found)
    half = {name: value.half() if name.startswith(MAP) else value for name, value in kept.items()}
    near = method.training_step(half, tiny.progress()).loss.detach()
    assert float(near) == pytest.approx(float(found[0]), abs=1e-2)
    bare = AstreaJoint(tiny.config(), None, AstreaModel(tiny.config(), experts={}))
    assert torch.isfinite(bare.training_step(kept, tiny.progress()).loss)


def test_the_teacher_is_a_moving_average_of_the_fusion_alone():
    method = joint(momentum=0.75)
    before = copy.deepcopy(method.taught.state_dict())
    step(method, [tiny.batch()], sgd(method))
    for name, value in method.taught.named_parameters():
        wanted = 0.75 * before[name] + 0.25 * method.fusion.get_parameter(name).detach()
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)
    assert not any("conv" in name or "reference" in name for name in method.teacher.state_dict())


@pytest.mark.parametrize("source", ["pre", "ema", "expert"])
def test_where_the_shortcut_comes_from(source):
    method = joint(residual={"probability": 0.5, "source": source})
    own = method.model.own
    if source == "expert":
        assert own.reference is None
        return
    start = copy.deepcopy(method.fusion.adapters.state_dict())
    optimizer = sgd(method, 0.5)
    for _ in range(3):
        step(method, [tiny.batch()], optimizer)
    now = own.reference.state_dict()
    wanted = start if source == "pre" else method.taught.adapters.state_dict()
    assert all(torch.equal(now[name], wanted[name]) for name in now)
    assert any(not torch.allclose(start[name], method.fusion.adapters.state_dict()[name], atol=1e-4) for name in start)
    assert not any(parameter.requires_grad for parameter in own.reference.parameters())
    trained = {id(p) for group in method.parameter_groups(0.1) for p in group["params"]}
    assert not trained & {id(p) for p in own.reference.parameters()}


def test_the_shortcut_takes_the_adapters_with_which_joint_training_begins():
    model = tiny.model(residual={"probability": 0.5})
    with torch.no_grad():
        model.fusion.adapters.by_kind["detection"].tag.fill_(7.0)  # aligned meanwhile
    method = AstreaJoint(tiny.config(residual={"probability": 0.5}), None, model)
    assert torch.equal(method.model.own.reference.by_kind["detection"].tag, torch.full((8,), 7.0))


def test_teacher_sees_the_expectation_of_the_shortcut():
    method = joint(residual={"probability": 0.5}, momentum=1.0).train()
    batch = tiny.batch()
    with torch.no_grad():
        prepared = method.prepare_step([batch], tiny.progress())
    torch.testing.assert_close(prepared.keys["image"], keys_of(method, batch)["image"], rtol=0, atol=1e-6)
    with torch.no_grad():
        method.eval()
        expected = method.encode(batch)
    torch.testing.assert_close(prepared.keys["image"], expected, rtol=0, atol=1e-5)
    method.train()
    output = method.training_step(batch, tiny.progress(), prepared)
    assert not torch.allclose(output.features["query"].detach(), expected, atol=1e-3)


def test_what_is_left_to_chance_is_a_function_of_seed_epoch_and_sample():
    method = joint(residual={"probability": 0.5}, expert_dropout=0.5)
    batch = tiny.batch()
    one = method.draws(batch, tiny.progress())
    torch.manual_seed(99)
    again = method.draws(batch, Progress(5, 10, 5, 8))
    assert torch.equal(one.gain, again.gain)
    assert torch.equal(one.present, again.present)
    later = method.draws({**batch, "epoch": 1}, tiny.progress())
    assert not (torch.equal(one.gain, later.gain) and torch.equal(one.present, later.present))
    part = {**batch, "index": batch["index"][3:5]}
    assert torch.equal(method.draws(part, tiny.progress()).gain, one.gain[3:5])
    assert joint().draws(batch, tiny.progress()) is None


def test_usefulness_is_the_first_order_change_of_the_loss():
    method = joint(balance={"loss": 0.0, "z": 0.0}, router={"per": "image"}).double()
    batch = tiny.batch()
    batch["view"] = batch["view"].double()
    with torch.no_grad():
        prepared = method.prepare_step([batch], tiny.progress())
    output = method.training_step(batch, tiny.progress(), prepared)
    output.loss.backward()
    (found,) = method._useful.values()
    mix = method.fusion.block.mix
    plain = mix.router.forward

    def scaled(k: int, by: float) -> float:
        def forward(*given):
            routing = plain(*given)
            factor = torch.ones(4, dtype=torch.float64)
            factor[k] += by
            return routing._replace(weights=routing.weights * factor)

        mix.router.forward = forward
        with torch.no_grad():
            return float(method.training_step(batch, tiny.progress(), prepared).loss)

    for k in range(4):
        slope = (scaled(k, 1e-5) - scaled(k, -1e-5)) / 2e-5
        assert float(found[k]) == pytest.approx(-slope, abs=1e-6)


def test_the_allocator_moves_once_a_step_and_is_logged():
    method = joint(allocator=2.0)
    optimizer = sgd(method)
    before = method.fusion.router.allocator.average.clone()
    (output,) = step(method, [tiny.batch()], optimizer)
    after = method.fusion.router.allocator
    assert float(after.last.abs().sum()) == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(after.average, before + 0.01 * after.last, rtol=0, atol=1e-8)
    assert torch.equal(method.taught.router.allocator.average, after.average)
    (later,) = step(method, [tiny.batch()], optimizer)
    for kind, value in zip(KINDS, after.last.tolist(), strict=True):
        assert output.metrics[f"usefulness/{kind}"] == 0.0
        assert f"alpha/{kind}" in later.metrics
        assert value != later.metrics[f"usefulness/{kind}"]  # moved on meanwhile


def test_the_bias_moves_with_the_load_of_the_whole_step():
    method = joint(balance={"kind": "bias", "speed": 0.5}, router={"top_k": 1})
    with torch.no_grad():
        method.fusion.router.gate.weight.zero_()
        method.fusion.router.gate.bias.copy_(torch.tensor([3.0, 0.0, 0.0, 0.0]))
    outputs = step(method, [tiny.batch(0), tiny.batch(8)], None)
    beta = method.fusion.router.bias.beta
    torch.testing.assert_close(beta, torch.tensor([-0.75, 0.25, 0.25, 0.25]), rtol=0, atol=1e-6)
    assert torch.equal(method.taught.router.bias.beta, beta)
    assert outputs[0].metrics["load/classification"] == 1.0
    assert "balance" not in outputs[0].metrics
    assert "beta/detection" in outputs[0].metrics


def test_what_is_logged_of_the_router():
    method = joint(router={"top_k": 2})
    output = method.training_step(tiny.batch(), tiny.progress())
    metrics = {name: float(value) for name, value in output.metrics.items()}
    assert sum(metrics[f"weight/{kind}"] for kind in KINDS) == pytest.approx(1.0, abs=1e-5)
    assert sum(metrics[f"load/{kind}"] for kind in KINDS) == pytest.approx(2.0, abs=1e-5)
    assert 0 < metrics["entropy_each"] <= metrics["entropy"] <= 1
    assert {"contrast", "balance", "z", "logit_scale"} <= metrics.keys()
    wanted = metrics["contrast"] + 0.01 * metrics["balance"] + 0.001 * metrics["z"]
    assert float(output.loss.detach()) == pytest.approx(wanted, abs=1e-5)
    bare = joint(fusion="concat").training_step(tiny.batch(), tiny.progress())
    assert set(bare.metrics) == {"contrast", "logit_scale"}


def test_importance_takes_the_place_of_the_balance_loss():
    method, plain = joint(balance={"kind": "importance"}), joint()
    found, other = (one.training_step(tiny.batch(), tiny.progress()).metrics["balance"] for one in (method, plain))
    fused = method.model.own.fused(method.maps(tiny.batch()))
    assert float(found) == pytest.approx(float(importance_loss(fused.probabilities.detach())), abs=1e-6)
    assert float(other) == pytest.approx(float(balance_loss(fused.probabilities.detach(), fused.selected)), abs=1e-6)


def test_the_router_learns_slowly_and_little_decays():
    method = joint()
    groups = {
        (group["lr_scale"], group["weight_decay"]): group["params"]
        for group in method.parameter_groups(0.3, decay_1d=False)
    }
    assert list(groups) == [(1.0, 0.3), (1.0, 0.0), (0.1, 0.0)]
    names = {id(parameter): name for name, parameter in method.model.named_parameters()}
    router = {names[id(p)] for p in groups[0.1, 0.0]}
    assert router == {
        f"backbone.fusion.block.mix.router.{name}" for name in ("norm.weight", "norm.bias", "gate.weight", "gate.bias")
    }
    decayed = {names[id(p)] for p in groups[1.0, 0.3]}
    for name in decayed:
        assert not name.endswith((".bias", ".tag", ".positions", ".queries", "logit_scale"))
        assert "norm" not in name.lower()
        assert "position_embeddings" not in name
    assert any("by_kind.detection.hidden.weight" in name for name in decayed)
    everything = [p for params in groups.values() for p in params]
    assert len(everything) == len(list(method.fusion.parameters()))
    assert [g["lr_scale"] for g in method.parameter_groups(0.3)] == [1.0, 1.0, 0.1]  # the router decays in no case
    assert joint(router={"lr_scale": 0.5}).parameter_groups(0.1)[-1]["lr_scale"] == 0.5


def test_temperature_keeps_its_bounds():
    method = joint()
    for value, kept in ((9.0, math.log(100)), (-3.0, 0.0)):
        with torch.no_grad():
            method.fusion.logit_scale.fill_(value)
        step(method, [tiny.batch()])
        assert float(method.fusion.logit_scale.detach()) == pytest.approx(kept, abs=1e-6)


def test_all_state_is_saved():
    settings = {
        "allocator": 3.0,
        "residual": {"probability": 0.5, "source": "ema"},
        "balance": {"kind": "bias"},
        "router": {"top_k": 2},
    }
    method = joint(**settings)
    optimizer = sgd(method)
    for first in (0, 8):
        step(method, [tiny.batch(first)], optimizer)
    other = joint(seed=5, **settings)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert torch.equal(other.fusion.router.allocator.alpha(3.0), method.fusion.router.allocator.alpha(3.0))
    assert torch.equal(other.fusion.router.bias.beta, method.fusion.router.bias.beta)
    assert float(method.fusion.router.bias.beta.abs().sum()) > 0
    assert torch.equal(other.model.own.reference.positions, method.model.own.reference.positions)
    for side in ("image", "text"):
        for left, right in zip(other.queues[side].in_order(), method.queues[side].in_order(), strict=True):
            assert torch.equal(left, right)
    found = [one.training_step(tiny.batch(16), tiny.progress()).loss.detach() for one in (method, other)]
    assert torch.equal(*found)


def test_dropout_of_the_text_tower_is_off_for_the_teacher_alone():
    method = joint(text={**tiny.TEXT, "dropout": 0.5})
    assert method.fusion.text.transformer.embeddings.dropout.training
    assert not method.taught.text.transformer.embeddings.dropout.training


def test_advice_and_refusals():
    method = joint(balance={"kind": "bias"}, router={"top_k": 2, "per": "image"}, ids=False)
    told = method.advice(batch_size=8, data_size=20)
    assert any("batch and queue (8 + 20 keys) are as long as the data (20 pairs)" in line for line in told)
    assert any("set method.ids" in line for line in told)
    (few,) = joint().advice(batch_size=8, data_size=20)
    assert "as long as the data (20 pairs): with so few pairs a shorter queue, or none" in few
    assert any("moves the same experts in and out for a whole batch" in line for line in told)
    assert any("2 steps old, more than the 1" in line for line in joint(momentum=0.1).advice(8, 1000))
    assert joint().advice(8, 1000) == []
    with pytest.raises(ConfigError, match="1 pair per process and micro-batch has no other"):
        joint(queue_size=0).check(1)
    joint().check(1)


def test_another_model_and_settings_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="AstreaJoint trains an AstreaModel, not a Linear"):
        AstreaJoint(tiny.config(), None, torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="width 16 does not fit this model, which was built with 8"):
        AstreaJoint(tiny.config(width=16), None, tiny.model())
    changed = AstreaJoint(tiny.config(momentum=0.5, router={"floor": 0.01, "lr_scale": 0.3}), None, tiny.model())
    assert changed.config.router.floor == changed.fusion.router.config.router.floor == 0.01
    assert changed.taught.router.config.router.floor == 0.01
