"""Astrea before and after joint training: pre-alignment of single experts, and a language model that reads what is seen."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mc_core.engine.method import Progress
from mc_core.errors import ConfigError, DataError
from mc_testkit.toys import answered_images
from mc_vision_language.methods.astrea.instruct import AstreaInstruct
from mc_vision_language.methods.astrea.joint import AstreaJoint
from mc_vision_language.methods.astrea.loss import prealign_loss
from mc_vision_language.methods.astrea.prealign import AstreaPrealign
from mc_vision_language.methods.growclip.loss import same_pairs

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_astrea.py"))))
KINDS = ("classification", "captioning", "detection", "segmentation")


def prealign(expert=None, mode="sequential", seed=0, model=None, **more) -> AstreaPrealign:
    settings = {"prealign": {"mode": mode, "expert": expert, **more.pop("prealign", {})}, **more}
    return AstreaPrealign(tiny.config(**settings), None, model or tiny.model(seed, **settings)).train()


def moved(method, lr: float = 0.1) -> dict[str, float]:
    """How far each trained parameter goes in a step of plain descent with its group's rate."""
    model = method.model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    groups = method.parameter_groups(0.0)
    optimizer = torch.optim.SGD([{**group, "lr": lr * group["lr_scale"]} for group in groups])
    batch = answered(8)
    method.training_step(batch, tiny.progress()).loss.backward()
    optimizer.step()
    with torch.no_grad():
        method.after_step(tiny.progress())
    return {
        name: float((parameter.detach() - before[name]).abs().max()) for name, parameter in model.named_parameters()
    }


def answered(count: int = 8) -> dict:
    found = {name: column[:count] for name, column in answered_images().tensors.items()}
    return {**found, "index": torch.arange(count), "epoch": 0, "micro": 0}


@pytest.mark.parametrize(("expert", "count"), [(None, 1), ("captioning", 2), ("segmentation", 4)])
def test_the_newcomer_is_aligned_with_texts_and_with_those_before_it(expert, count):
    method, batch = prealign(expert, prealign={"cross": 0.3}), tiny.batch()
    assert method.kinds == KINDS[:count]
    output = method.training_step(batch, tiny.progress())
    with torch.no_grad():
        maps, fusion = method.maps(batch), method.fusion
        text = fusion.embed_text(batch["input_ids"], batch["attention_mask"])
        rows = [fusion.embed_expert(kind, maps) for kind in method.kinds]
        same = same_pairs(batch["image_ids"], batch["text_ids"])
        each = [
            prealign_loss(row, text, fusion.logit_scale, rows[:k], cross=0.3, same=same) for k, row in enumerate(rows)
        ]
    wanted = float(each[-1]) + (sum(map(float, each[:-1])) / (count - 1) if count > 1 else 0.0)
    assert float(output.loss.detach()) == pytest.approx(wanted, abs=1e-5)
    assert set(output.metrics) == {*(f"prealign/{kind}" for kind in method.kinds), "logit_scale"}


def test_all_at_once_there_is_no_cross_term():
    method, batch = prealign(mode="parallel"), tiny.batch()
    assert method.kinds == KINDS
    output = method.training_step(batch, tiny.progress())
    with torch.no_grad():
        maps, fusion = method.maps(batch), method.fusion
        text = fusion.embed_text(batch["input_ids"], batch["attention_mask"])
        same = same_pairs(batch["image_ids"], batch["text_ids"])
        each = [prealign_loss(fusion.embed_expert(kind, maps), text, fusion.logit_scale, same=same) for kind in KINDS]
    assert float(output.loss.detach()) == pytest.approx(sum(map(float, each)) / 4, abs=1e-5)
    assert {group["lr_scale"] for group in method.parameter_groups(0.1)} == {1.0}


def test_who_moves_while_an_expert_joins():
    method = prealign("captioning")
    distance = moved(method)
    part = "backbone.fusion."
    for kind in KINDS:
        gone = distance[f"{part}block.adapters.by_kind.{kind}.out.weight"]
        assert (gone > 0) is (kind in ("classification", "captioning"))
    assert distance[f"{part}pooling.queries"] > 0
    assert distance[f"{part}block.adapters.positions"] > 0
    assert distance[f"{part}text_projection.weight"] > 0
    for name, gone in distance.items():
        if "router" in name or "block.mlp" in name or "experts" in name:
            assert gone == 0.0, name
    rates = {}
    for group in method.parameter_groups(0.1):
        rates |= {id(parameter): group["lr_scale"] for parameter in group["params"]}
    rate = {name: rates.get(id(parameter)) for name, parameter in method.fusion.named_parameters()}
    assert rate["block.adapters.by_kind.captioning.tag"] == rate["pooling.queries"] == 1.0
    assert (
        rate["block.adapters.by_kind.classification.tag"] == rate["text_projection.bias"] == rate["logit_scale"] == 0.1
    )
    assert rate["block.adapters.by_kind.detection.tag"] is rate["block.mix.router.gate.weight"] is None


def test_with_the_first_expert_the_text_tower_moves_at_the_full_rate():
    assert {group["lr_scale"] for group in prealign().parameter_groups(0.1)} == {1.0}


def test_those_before_may_stay_as_they_are():
    method = prealign("detection", prealign={"joined_lr": 0.0})
    distance = moved(method)
    assert distance["backbone.fusion.block.adapters.by_kind.detection.tag"] > 0
    for name in ("block.adapters.by_kind.captioning.tag", "text_projection.weight", "logit_scale"):
        assert distance[f"backbone.fusion.{name}"] == 0.0
    output = method.training_step(tiny.batch(), tiny.progress())
    assert float(output.loss.detach()) == pytest.approx(float(output.metrics["prealign/detection"]), abs=1e-6)


def test_every_trained_parameter_gets_a_gradient():
    for method in (
        prealign("captioning"),
        prealign(mode="parallel"),
        prealign("detection", prealign={"joined_lr": 0.0}),
    ):
        method.training_step(tiny.batch(), tiny.progress()).loss.backward()
        for group in method.parameter_groups(0.1):
            assert all(parameter.grad is not None for parameter in group["params"])


def test_pre_alignment_that_is_off_or_of_nobody_is_refused():
    with pytest.raises(ConfigError, match=r"prealign\.mode is none"):
        AstreaPrealign(tiny.config(), None, tiny.model())
    features = {"detection": 3, "captioning": 5}
    with pytest.raises(ConfigError, match="there is no segmentation expert, only captioning, detection"):
        prealign("segmentation", expert_features=features)
    with pytest.raises(ConfigError, match="has no other"):
        prealign().check(1)


def test_the_shortcut_takes_pre_aligned_adapters_and_keeps_them():
    settings = {"residual": {"probability": 0.5, "source": "pre"}}
    first = prealign(**settings)
    moved(first)
    aligned = copy.deepcopy(first.fusion.adapters.state_dict())
    assert torch.equal(first.model.own.reference.state_dict()["positions"], aligned["positions"])
    second = AstreaJoint(tiny.config(**settings), None, first.model).train()
    moved(second)
    third = AstreaInstruct(tiny.config(**settings), None, second.model).train()
    moved(third)
    now = third.model.own.reference.state_dict()
    assert all(torch.equal(now[name], aligned[name]) for name in aligned)
    assert not torch.equal(third.fusion.adapters.state_dict()["positions"], aligned["positions"])


def test_joint_training_trains_again_what_pre_alignment_left_alone():
    first = prealign()
    assert not first.fusion.router.gate.weight.requires_grad
    second = AstreaJoint(tiny.config(prealign={"mode": "sequential"}), None, first.model)
    assert all(parameter.requires_grad for parameter in second.fusion.parameters())


def instruct(seed=0, model=None, **more) -> AstreaInstruct:
    return AstreaInstruct(tiny.config(**more), None, model or tiny.model(seed, **more)).train()


def test_a_joint_model_gets_its_language_model():
    model = tiny.model()
    with pytest.raises(ConfigError, match="no language model"):
        model.prefix(torch.zeros(1, 4, 8))
    method = instruct(model=model)
    assert model.answers
    assert method.config.answers
    language = model.language
    again = instruct(model=model)
    assert again.model.language is language
    assert model.prefix(torch.zeros(1, 4, 8)).shape == (1, 4, 16)


def test_the_loss_is_that_of_words_and_a_tenth_of_contrast():
    method, batch = instruct(balance={"z": 0.5}), answered()
    output = method.training_step(batch, tiny.progress())
    with torch.no_grad():
        fused = method.model.own.fused(method.maps(batch))
        prefix = method.model.projector(fused.tokens)
        words = method.model.language.loss(prefix, batch["answer_ids"], batch["answer_mask"], batch["target_mask"])
    assert float(output.metrics["language"]) == pytest.approx(float(words), abs=1e-5)
    joint = AstreaJoint(tiny.config(balance={"z": 0.5}), None, copy.deepcopy(method.model))
    parts = joint.training_step(batch, tiny.progress()).metrics
    assert float(output.metrics["contrast"]) == pytest.approx(float(parts["contrast"]), abs=1e-5)
    wanted = words + 0.1 * parts["contrast"] + 0.01 * parts["balance"] + 0.5 * parts["z"]
    assert float(output.loss.detach()) == pytest.approx(float(wanted), abs=1e-5)


def test_the_router_reads_questions_for_answers_and_never_for_contrast():
    method, batch = instruct(router={"text": True}), answered()
    assert batch["question_mask"].sum(1).tolist() == [0, 4] * 4
    found = method.training_step(batch, tiny.progress()).metrics
    other = {**batch, "question_ids": batch["question_ids"].roll(2, 0)}
    changed = method.training_step(other, tiny.progress()).metrics
    assert float(changed["language"]) != pytest.approx(float(found["language"]), abs=1e-6)
    assert float(changed["contrast"]) == pytest.approx(float(found["contrast"]), abs=1e-7)
    ids, mask = batch["question_ids"], batch["question_mask"]
    states = method.model.question_states(ids, mask)
    assert not states[::2].any()
    assert not states.requires_grad
    torch.testing.assert_close(states[1:2], method.fusion.text_state(ids[1:2], mask[1:2]).detach(), rtol=0, atol=1e-5)
    assert instruct().model.question_states(ids, mask) is None


@pytest.mark.parametrize(
    ("settings", "stays"),
    [
        ({"fusion_lr": 0.0}, ("backbone.",)),
        ({"language_lr": 0.0}, ("language.",)),
        ({"contrast": 0.0}, ("backbone.fusion.text", "backbone.fusion.pooling", "backbone.fusion.logit_scale")),
        ({}, ("backbone.experts",)),
    ],
)
def test_what_instruction_tuning_leaves_alone(settings, stays):
    method = instruct(instruct={"projector_share": 0.0, **settings})
    assert (method.teacher is None) is (not method.contrast_weight)
    distance = moved(method)
    for name, gone in distance.items():
        if name.startswith(stays):
            assert gone == 0.0, name
    assert distance["projector.0.weight"] > 0
    for group in method.parameter_groups(0.1):
        assert group["lr_scale"] > 0


def test_rates_of_instruction_tuning():
    method = instruct(instruct={"language_lr": 0.5}, router={"lr_scale": 0.2})
    rates = {}
    for group in method.parameter_groups(0.1):
        rates |= {id(parameter): group["lr_scale"] for parameter in group["params"]}
    rate = {name: rates.get(id(parameter)) for name, parameter in method.model.named_parameters()}
    assert rate["projector.2.bias"] == 1.0
    assert {value for name, value in rate.items() if name.startswith("language.")} == {0.5}
    assert rate["backbone.fusion.pooling.queries"] == 0.1
    assert rate["backbone.fusion.block.mix.router.gate.weight"] == pytest.approx(0.02)


def test_the_projector_moves_alone_at_first():
    method = instruct(instruct={"projector_share": 0.3})
    for step, alone in ((0, True), (2, True), (3, False)):
        method.zero_grad(set_to_none=True)
        method.training_step(answered(), tiny.progress()).loss.backward()
        method.before_optimizer_step(Progress(step, 10, 5, 8))
        trained = {name for name, parameter in method.model.named_parameters() if parameter.grad is not None}
        assert {"projector.0.weight", "projector.2.bias"} <= trained
        assert all(name.startswith("projector.") for name in trained) is alone


def test_a_batch_without_answers_is_refused():
    with pytest.raises(DataError, match="the batch lacks answer_ids, answer_mask, target_mask"):
        instruct().training_step(tiny.batch(), tiny.progress())


def test_captions_are_not_needed_without_contrast():
    method = instruct(instruct={"contrast": 0.0})
    batch = {
        name: value for name, value in answered().items() if name not in ("input_ids", "attention_mask", "text_ids")
    }
    assert torch.isfinite(method.training_step(batch, tiny.progress()).loss)
    method.check(1)


def test_a_model_learns_what_to_say():
    method = instruct(instruct={"projector_share": 0.0, "contrast": 0.0, "fusion_lr": 1.0})
    optimizer = torch.optim.AdamW(method.parameter_groups(0.0), lr=5e-3)
    losses = []
    for _ in range(40):
        output = method.training_step(answered(4), tiny.progress())
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(output.metrics["language"]))
    assert losses[-1] < 0.5 * losses[0]
