"""What a trained model is worth: answers, captions, missing experts, the router in figures, and rows of an ablation."""

from __future__ import annotations

import doctest
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_vision_language.methods.astrea.model import AstreaModel
from mc_vision_language.staged import ablation, inspecting
from mc_vision_language.staged.ablation import arm_of, arms_of, recipe_of, run_arm
from mc_vision_language.staged.evaluating import (
    answer_questions,
    even_weights,
    measure_answers,
    measure_astrea,
    what_experts_add,
    without_experts,
)
from mc_vision_language.staged.inspecting import (
    contribution_over_training,
    inspect_router,
    told,
    weight_maps,
    weights_of_questions,
)
from mc_vision_language.staged.running import run_astrea

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_staged.py"))))
KINDS = ("classification", "captioning", "detection", "segmentation")


@pytest.fixture(scope="module")
def pictures():
    return tiny.pictures()


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    """A run whose router reads questions and has been moved away from even weights."""
    done = run_astrea(tiny.recipe(router={"text": True}), pictures, tmp_path_factory.mktemp("staged") / "run")
    assert done.model is not None
    gate = done.model.fusion.router.gate
    with torch.no_grad():
        gate.weight.normal_(generator=torch.Generator().manual_seed(0))
        gate.bias.copy_(torch.tensor([1.0, 0.0, -1.0, 0.0]))
    return done


@pytest.fixture
def model(run) -> AstreaModel:
    return run.model


def test_answers_do_not_depend_on_how_questions_are_divided_and_are_those_of_ask(model, pictures):
    test = pictures.part("test")
    asked = test.questions
    found = answer_questions(model, asked.images, asked.image_of, asked.texts, batch_size=5)
    assert found == answer_questions(model, asked.images, asked.image_of, asked.texts, batch_size=64)
    images = test.pairs.images.array
    assert found == model.ask(images[asked.image_of], asked.texts)
    choices = ["red", "blue", "yes", "no"]
    ranked = answer_questions(model, asked.images, asked.image_of, asked.texts, choices=choices, batch_size=5)
    assert set(ranked) <= set(choices)
    text = model.language_text
    prefix = model.prefix(model.seen(images[asked.image_of[:1]], [asked.texts[0]]).tokens)
    scores = model.language.score_answers(prefix, *text.prompts([asked.texts[0]]), *text.answers(choices))
    assert ranked[0] == choices[int(scores.argmax())]
    with pytest.raises(DataError, match="2 questions about 1 pictures"):
        answer_questions(model, asked.images, asked.image_of[:1], ["a", "b"])


def test_figures_of_a_model_have_baselines_that_do_not_look(model, pictures):
    found = measure_astrea(model, pictures.part("test"), pictures.part("train"), draws=5)
    assert set(found.answers.baselines) == {"majority_answer", "majority_by_kind", "question_only"}
    assert "wrong_picture" in found.answers.details
    assert any(name.startswith("kind/") for name in found.answers.details)
    assert len(found.captions.texts) == 12
    assert found.captions.scores is not None
    assert set(found.figures()) == {"retrieval_mean_recall", "vqa_accuracy", "captions_exact", "cider_d", "bleu_4"}
    assert 0 <= found.to_dict()["answers"]["low"] <= found.answers.value <= found.answers.high <= 1
    ranked = measure_answers(
        model, pictures.part("test").questions, pictures.part("train").questions, mode="rank", draws=0
    )
    assert ranked.details["answers_in_list"] > 0
    with pytest.raises(ConfigError, match="give the training questions"):
        measure_answers(model, pictures.part("test").questions, mode="rank")
    blind = replace(pictures.part("test"), questions=None)
    assert measure_astrea(model, blind, draws=0).answers is None


@torch.no_grad()
def test_a_missing_expert_has_no_weight_and_no_influence_and_comes_back(model, pictures):
    images = pictures.part("test").pairs.images.array[:4]
    before = model.encode_image(images)
    with without_experts(model, "detection", "captioning"):
        weights = model.seen(images).weights
        assert torch.equal(weights[..., [1, 2]], torch.zeros_like(weights[..., :2]))
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        with_two = model.encode_image(images)
    assert np.abs(with_two - before).max() > 1e-4
    np.testing.assert_array_equal(model.encode_image(images), before)
    with pytest.raises(ConfigError, match="no depth expert"), without_experts(model, "depth"):
        pass
    with pytest.raises(ConfigError, match="no expert is left"), without_experts(model, *KINDS):
        pass


def test_even_weights_are_even_and_the_router_is_given_back(model, pictures):
    images = pictures.part("test").pairs.images.array[:4]
    before = weight_maps(model, images)
    assert before.std() > 0.01
    with even_weights(model):
        np.testing.assert_allclose(weight_maps(model, images), 0.25, atol=1e-6)
    np.testing.assert_array_equal(weight_maps(model, images), before)
    added = what_experts_add(model, pictures.part("test").pairs)
    assert set(added) == {"all", "even weights", *(f"without {kind}" for kind in KINDS)}


def test_the_report_is_that_of_the_weights_themselves(model, pictures):
    test = pictures.part("test").pairs
    report = inspect_router(model, test.images, batch_size=5)
    maps = weight_maps(model, test.images.array)
    assert maps.shape == (12, 4, 4, 4)
    np.testing.assert_allclose(report.weight, maps.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(report.place, maps.mean(0), atol=1e-6)
    np.testing.assert_allclose(report.most, maps.max((0, 1, 2)), atol=1e-6)
    largest = np.bincount(maps.reshape(-1, 4).argmax(1), minlength=4) / (12 * 16)
    np.testing.assert_allclose(report.load, largest, atol=1e-6)
    each = -(maps * np.log(maps)).sum(-1).mean() / np.log(4)
    assert report.entropy_each == pytest.approx(each, abs=1e-5)
    mean = report.weight
    assert report.entropy == pytest.approx(-(mean * np.log(mean)).sum() / np.log(4), abs=1e-5)
    assert report.least.min() >= 0.05 - 1e-6
    assert report.to_dict()["experts"]["detection"]["weight"] == pytest.approx(mean[2], abs=1e-4)
    assert f"the {KINDS[int(report.weight.argmax())]} expert counts most" in told(report)[0]
    by_kind = weights_of_questions(
        model, test.images.array[:3], ["is it red", "is it red", "how large"], ["a", "a", "b"]
    )
    np.testing.assert_allclose([row.sum() for row in by_kind.values()], 1, atol=1e-5)


def test_the_curves_of_a_run_are_read(run, tmp_path):
    found = contribution_over_training(run.run_dir)
    assert set(found) >= {"weight", "load", "usefulness", "entropy"}
    assert set(found["weight"]) == set(KINDS)
    steps, values = found["weight"]["detection"]
    assert steps.tolist() == [1, 2, 3, 4, 5, 6]  # joint training, then instruction tuning
    assert values[0] == pytest.approx(0.25)
    with pytest.raises(DataError, match=r"has no metrics.jsonl"):
        contribution_over_training(tmp_path)


def test_rows_differ_in_what_they_say_and_have_as_many_updates():
    base = tiny.recipe(steps=40)
    names = [arm.name for arm in arms_of()]
    assert len(names) == len(set(names)) == 1 + 4 + 4 + 7
    for name in names:
        made = recipe_of(base, arm_of(name), 3, 24)
        method = made.method
        aligned = {"none": 0, "sequential": len(method.kinds), "parallel": 1}[method.prealign.mode]
        assert made.fit.steps + aligned * method.stages.prealign.steps * bool(aligned) == 40
        assert made.fit.seed == 3
    assert recipe_of(base, arm_of("without captioning"), 0, 24).method.kinds == (
        "classification",
        "detection",
        "segmentation",
    )
    assert recipe_of(base, arm_of("only detection"), 0, 24).method.kinds == ("detection",)
    with pytest.raises(ConfigError, match="no row 'all expert': did you mean all experts"):
        arm_of("all expert")


def test_rows_share_experts_and_maps_and_are_kept(pictures, tmp_path, monkeypatch):
    base = tiny.recipe(steps=4)
    full = run_arm(base, arm_of("all experts"), 0, pictures, tmp_path)
    assert {"mean_recall", "entropy", "weight/detection", "seconds"} <= set(full)
    maps = sorted(path.name for path in (tmp_path / "seed-0" / "maps").iterdir())
    assert not hasattr(pictures, "answers")
    one = run_arm(base, arm_of("only detection"), 0, pictures, tmp_path)
    assert "entropy" not in one
    assert sorted(path.name for path in (tmp_path / "seed-0" / "maps").iterdir()) == maps
    monkeypatch.setattr(ablation, "run_astrea", None)
    assert run_arm(base, arm_of("all experts"), 0, pictures, tmp_path) == full
    with pytest.raises(CheckpointError, match="under other settings"):
        run_arm(tiny.recipe(steps=4, queue_size=8), arm_of("all experts"), 0, pictures, tmp_path)


def test_examples():
    for module in (ablation, inspecting):
        found = doctest.testmod(module)
        assert found.attempted
        assert not found.failed
