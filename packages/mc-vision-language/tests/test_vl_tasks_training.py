"""From a pretrained model to a task: training, measuring, going on, and what is refused before anything is written."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.recipes import recipe_names
from mc_core.samples import digit_scenes
from mc_vision_language.data.pairs import scene_pairs
from mc_vision_language.data.scene_tasks import scene_entailments, scene_phrases, scene_questions, scene_statements
from mc_vision_language.encoders_config import ImageEncoderConfig, TextEncoderConfig, VisionLanguageConfig
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.tasks import (
    TASKS,
    EntailmentModel,
    StatementModel,
    VQAModel,
    finetune_task,
    load_task_model,
    measure_task,
    resolve_task_recipe,
    task_of,
)
from mc_vision_language.tasks.config import EntailmentConfig, VQAConfig
from mc_vision_language.tasks.measure import label_baselines, predict_answers, question_baselines
from mc_vision_language.tasks.recipe import with_encoders
from mc_vision_language.tasks.sample import sample_task_rows
from mc_vision_language.tasks.starting import resized_places
from mc_vision_language.tasks.training import ROWS as ROWS_OF
from mc_vision_language.tasks.vocabulary import with_words
from mc_vision_language.tokenizers import train_tokenizer

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_tasks.py"))))
ROWS = {
    "retrieval": scene_pairs,
    "vqa": scene_questions,
    "nlvr2": scene_statements,
    "entailment": scene_entailments,
    "grounding": scene_phrases,
}
RECIPES = {
    "retrieval": "albef-retrieval-laptop",
    "vqa": "albef-vqa-laptop",
    "nlvr2": "albef-nlvr2-laptop",
    "entailment": "albef-ve-laptop",
    "grounding": "albef-grounding-laptop",
}


@pytest.fixture(scope="module")
def scenes():
    return tiny.scenes(24, 12)


@pytest.fixture(scope="module")
def model(scenes):
    torch.manual_seed(0)
    image = ImageEncoderConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2)
    text = TextEncoderConfig(text_layers=1, fusion_layers=2, hidden_size=16, heads=2, dropout=0.0)
    tokenizer = train_tokenizer(scenes["train"].captions, 100)
    return VisionLanguageModel(VisionLanguageConfig(image=image, text=text, dim=8), tokenizer).eval()


def recipe(name, **fit):
    changes = {
        "fit": {"steps": 4, "batch_size": 8, "log_every": 1, "stop_on_collapse": False, **fit},
        "augment": {"size": 32},
    }
    return resolve_task_recipe(name, changes)


def same_weights(a, b):
    torch.testing.assert_close(dict(a.state_dict()), dict(b.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("task", list(ROWS))
def test_a_task_is_trained_measured_and_taken_up_again(task, scenes, model, tmp_path):
    rows = ROWS[task](scenes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = finetune_task(task, model, rows, recipe(RECIPES[task]), tmp_path / "run", draws=20)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)  # the pretrained model is not touched
    assert 0 <= result.scores.low <= result.scores.value <= result.scores.high <= 1
    loaded = load_task_model(tmp_path / "run")
    assert type(loaded) is type(result.model)
    same_weights(loaded, result.model)
    again = measure_task(loaded, rows.part("test"), rows.part("train"), draws=0)
    assert again.value == result.scores.value
    told = dict(result.scores.baselines)
    before = told.pop("before_finetuning", None)
    assert again.baselines == told
    assert (before is not None) == (task in ("retrieval", "grounding"))
    assert task_of(tmp_path / "run") == task
    resumed = finetune_task(task, model, rows, recipe(RECIPES[task]), tmp_path / "run", draws=0)
    assert resumed.run.resumed_from == 4
    same_weights(resumed.model, result.model)


def test_a_cut_run_goes_on_to_the_same_weights(scenes, model, tmp_path, monkeypatch):
    from mc_vision_language.tasks.entailment import Entailment

    rows, settings = scene_entailments(scenes), recipe("albef-ve-laptop", checkpoint_every=2)
    whole = finetune_task("entailment", model, rows, settings, tmp_path / "whole", draws=0)
    after = Entailment.after_step

    def cut(self, progress):
        after(self, progress)
        if progress.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Entailment, "after_step", cut)
    with pytest.raises(KeyboardInterrupt):
        finetune_task("entailment", model, rows, settings, tmp_path / "cut", draws=0)
    monkeypatch.setattr(Entailment, "after_step", after)
    resumed = finetune_task("entailment", model, rows, settings, tmp_path / "cut", draws=0)
    assert resumed.run.resumed_from == 2
    same_weights(resumed.model, whole.model)


def test_the_stage_of_text_assignment_comes_before_statements(scenes, model, tmp_path):
    rows, pairs = scene_statements(scenes), scene_pairs(scenes)
    stage = recipe("albef-ta-laptop")
    run = tmp_path / "run"
    result = finetune_task(
        "nlvr2", model, rows, recipe("albef-nlvr2-laptop", lr=1e-9), run, pairs=pairs, assignment=stage, draws=0
    )
    assigned = load_task_model(run / "assignment")
    assert isinstance(result.model, StatementModel)
    state = result.model.net.backbone.state_dict()
    for name, tensor in assigned.net.backbone.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-5)  # the rate of the second stage is nothing
    assert not torch.allclose(state["text_projection.weight"], torch.zeros(()))
    moved = assigned.net.backbone.fusion.layers[0].cross_attention.key.weight
    assert not torch.allclose(moved, model.backbone.fusion.layers[0].cross_attention.key.weight, atol=1e-4)
    with pytest.raises(ConfigError, match="no recipe of it: take albef-ta"):
        finetune_task("nlvr2", model, rows, recipe("albef-nlvr2-laptop"), tmp_path / "other", pairs=pairs)


def test_the_same_training_from_random_weights_stands_beside(scenes, model, tmp_path):
    result = finetune_task(
        "entailment", model, scene_entailments(scenes), recipe("albef-ve-laptop"), tmp_path, scratch=True, draws=0
    )
    assert set(result.scores.baselines) == {"chance", "majority_label", "sentence_only", "without_pretraining"}
    other = load_task_model(tmp_path / "without-pretraining")
    assert not torch.equal(
        other.net.backbone.text_projection.weight, result.model.net.backbone.text_projection.weight
    )  # which no task trains


def test_baselines_count_training_rows(scenes):
    rows = scene_questions(scenes)
    train, test = rows.part("train"), rows.part("test")
    found = question_baselines(train, test)
    answers = [given[0] for given in train.answers]
    usual = min(set(answers), key=lambda answer: (-answers.count(answer), answer))
    assert found["majority_answer"] == pytest.approx(np.mean([given[0] == usual for given in test.answers]))
    said = scene_entailments(scenes)
    labels = label_baselines(said.part("train"), said.part("test"))
    most = np.bincount(said.part("train").labels).argmax()
    assert labels["majority_label"] == pytest.approx((said.part("test").labels == most).mean())


def test_answers_are_predicted_row_by_row_whatever_the_batch(scenes):
    rows = scene_questions(scenes).part("test")
    torch.manual_seed(0)
    config = VQAConfig(
        **{**tiny.encoders(), "image": ImageEncoderConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2)}
    )
    made = VQAModel(config, tiny.tokenizer(), ("yes", "no", "red", "blue")).eval()
    with torch.no_grad():
        made.net.decoder.embeddings.word_embeddings.weight.mul_(30)
    one, many = (predict_answers(made, rows, batch_size=size) for size in (1, 7))
    assert one == many
    pixels = rows.images.take(rows.image_of[[3]]).array
    assert made.answer(pixels, [rows.texts[3]])[0][0] == one[3]


def test_words_of_questions_enter_the_vocabulary(model):
    texts = ["how many digits are there", "how many digits", "are there two", "there"]
    grown = with_words(model.tokenizer, texts)
    assert len(grown.tokenizer) == len(model.tokenizer) + len(grown.pieces)
    assert len(grown.tokenizer("how many digits are there", add_special_tokens=False).input_ids) == 5
    assert len(model.tokenizer("how many digits are there", add_special_tokens=False).input_ids) > 10
    config = with_encoders(EntailmentConfig(), model.config, 32)
    made = EntailmentModel(config, grown.tokenizer)
    made.start_from(model, grown.pieces)
    old, new = model.backbone.text.word_embeddings.weight, made.net.backbone.text.word_embeddings.weight
    torch.testing.assert_close(new[: len(old)], old)
    torch.testing.assert_close(new[len(old)], old[list(grown.pieces[0])].mean(0))


def test_every_answer_can_be_told_from_every_other(scenes, model, tmp_path):
    """Number words are compared as digits, which a tokenizer made from captions has never seen."""
    found = finetune_task("vqa", model, scene_questions(scenes), recipe("albef-vqa-laptop"), tmp_path, draws=0).model
    assert isinstance(found, VQAModel)
    tokens = found.answer_tokens(found.answers)
    assert {"2", "7"} <= set(found.answers)
    assert len({tuple(row) for row in tokens.ids.tolist()}) == len(found.answers)
    assert found.tokenizer.unk_token_id not in tokens.ids
    rare = with_words(model.tokenizer, [], needed=["once"])
    assert rare.tokenizer.tokenize("once") == ["once"]


def test_larger_pictures_keep_the_table_of_positions(model):
    table = torch.arange(1 * 5 * 2, dtype=torch.float32).view(1, 5, 2)
    same = resized_places(table, (2, 2), (2, 2), 1)
    torch.testing.assert_close(same, table)
    larger = resized_places(table, (2, 2), (3, 3), 1)
    assert larger.shape == (1, 10, 2)
    torch.testing.assert_close(larger[:, 0], table[:, 0])
    torch.testing.assert_close(larger[0, 5], table[0, 1:].mean(0))  # the middle of four places
    made = EntailmentModel(with_encoders(EntailmentConfig(), model.config, 48), model.tokenizer)
    made.start_from(model)
    assert made.entails(torch.rand(1, 3, 48, 48), ["red"])[0] in ("contradiction", "neutral", "entailment")


def test_what_cannot_be_trained_is_said_before_anything_is_written(scenes, model, tmp_path):
    rows, run = scene_questions(scenes), tmp_path / "run"
    with pytest.raises(ConfigError, match="vqa needs questions, these are phrases"):
        finetune_task("vqa", model, scene_phrases(scenes), recipe("albef-vqa-laptop"), run)
    with pytest.raises(ConfigError, match="no task 'vqb': did you mean vqa"):
        finetune_task("vqb", model, rows, recipe("albef-vqa-laptop"), run)
    with pytest.raises(ConfigError, match="the recipe is of entailment, not of vqa"):
        finetune_task("vqa", model, rows, recipe("albef-ve-laptop"), run)
    with pytest.raises(ConfigError, match=r"batch_size 4096 is larger than the data"):
        finetune_task("vqa", model, rows, recipe("albef-vqa-laptop", batch_size=4096), run)
    ranked = resolve_task_recipe("albef-vqa-laptop", {"method": {"rank": 500}})
    with pytest.raises(ConfigError, match=r"rank 500 is more than the list of \d+ answers"):
        finetune_task("vqa", model, rows, ranked, run)
    with pytest.raises(DataError, match="no row is in the validation split, only"):
        finetune_task("vqa", model, rows, recipe("albef-vqa-laptop"), run, part="validation")
    assert not run.exists()
    with pytest.raises(ConfigError, match="a EntailmentModel cannot be measured on questions"):
        measure_task(EntailmentModel(EntailmentConfig(**tiny.encoders()), tiny.tokenizer()), rows)


def test_grounding_starts_from_all_of_the_pretrained_model(scenes, model, tmp_path):
    with torch.no_grad():
        model.log_temperature.fill_(-2.0)
    settings = recipe("albef-grounding-laptop", lr=1e-9, steps=1)
    found = finetune_task("grounding", model, scene_phrases(scenes), settings, tmp_path, draws=0).model
    for name, tensor in model.state_dict().items():
        other = found.state_dict()[name]
        torch.testing.assert_close(other[: len(tensor)] if tensor.ndim else other, tensor, rtol=0, atol=1e-6)


def test_positions_and_biases_do_not_decay(model):
    from mc_vision_language.tasks.entailment import Entailment

    method = Entailment(EntailmentConfig(**tiny.encoders()), tiny.tokenizer())
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in method.parameter_groups(0.02, decay_1d=False))
    assert all(name.endswith("weight") and "position" not in name for name in decayed)
    assert any("position_embeddings" in name for name in kept)
    assert any("pos_embed" in name for name in kept)
    assert len(method.parameter_groups(0.02)) == 1


def test_pictures_of_a_size_that_the_encoder_cannot_take(scenes, model, tmp_path):
    settings = resolve_task_recipe("albef-ve-laptop", {"augment": {"size": 30}})
    with pytest.raises(ConfigError, match=r"augment\.size 30: image_size 30 does not divide into patches of 8"):
        finetune_task("entailment", model, scene_entailments(scenes), settings, tmp_path / "run")


def test_the_embedded_sample_of_each_task():
    counts = {"train": 6, "validation": 4, "test": 4}
    for task, kind in ROWS_OF.items():
        rows = sample_task_rows(task, counts=counts)
        assert type(rows) is kind
        for part in counts:
            assert len(rows.part(part)) > 0
    assert len(sample_task_rows("nlvr2", counts={"train": 6})) == 6  # two sentences about each two scenes
    assert (sample_task_rows("grounding", counts=counts).part("train").image_of == np.repeat(np.arange(6), 2)).all()
    with pytest.raises(ConfigError, match="no task 'vgq': did you mean vqa"):
        sample_task_rows("vgq")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_task_model(tmp_path)


def test_every_recipe_of_a_task_resolves():
    names = [name for name in recipe_names("mc_vision_language") if task_of(name) in TASKS.names]
    assert len(names) >= 10
    for name in names:
        found = resolve_task_recipe(name)
        assert found.source
        assert found.system in TASKS.names


def test_phrases_without_boxes_can_be_trained_on(scenes, model, tmp_path):
    rows = scene_phrases(scenes)
    blind = rows.take(np.arange(len(rows)))
    blind.boxes[blind.splits == "train"] = np.nan
    result = finetune_task("grounding", model, blind, recipe("albef-grounding-laptop"), tmp_path, draws=0)
    assert isinstance(result.model, VisionLanguageModel)
    assert set(result.scores.baselines) == {"whole_image", "centre_box", "random_proposal", "before_finetuning"}
    assert len(digit_scenes(1, size=32)) == 1


def test_statements_go_on_from_a_model_that_has_learnt_text_assignment(scenes, model, tmp_path):
    rows, pairs, settings = scene_statements(scenes), scene_pairs(scenes), recipe("albef-nlvr2-laptop")
    stage = recipe("albef-ta-laptop")
    both = finetune_task("nlvr2", model, rows, settings, tmp_path / "both", pairs=pairs, assignment=stage, draws=0)
    assigned = load_task_model(tmp_path / "both" / "assignment")
    alone = finetune_task("nlvr2", assigned, rows, settings, tmp_path / "alone", draws=0)
    same_weights(alone.model, both.model)
    larger = resolve_task_recipe(
        "albef-nlvr2-laptop", {"fit": {"steps": 1, "batch_size": 8, "stop_on_collapse": False}, "augment": {"size": 48}}
    )
    grown = finetune_task("nlvr2", assigned, rows, larger, tmp_path / "larger", draws=0)
    assert grown.model.config.image.image_size == 48
    with pytest.raises(ConfigError, match="only nlvr2 goes on from: entailment starts from a pretrained model"):
        finetune_task("entailment", assigned, scene_entailments(scenes), recipe("albef-ve-laptop"), tmp_path / "other")
    with pytest.raises(ConfigError, match="needs no pairs for that stage"):
        finetune_task("nlvr2", assigned, rows, settings, tmp_path / "twice", pairs=pairs, assignment=stage)
