"""A method over a sequence of tasks: what is measured after each, what is replayed, and every method by its real run."""

import copy
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mc_core.continual import Task
from mc_core.engine import Fit
from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.files import read_json
from mc_core.recipes import merge
from mc_vision_language.continual import (
    BASELINES,
    MEASURES,
    ExemplarMemory,
    TaskPairs,
    base_recipe,
    measure_tasks,
    read_tasks,
    recipe_for,
    run_sequence,
    sample_tasks,
    sequence_scores,
)
from mc_vision_language.continual.evaluating import cross_modal, look, together
from mc_vision_language.continual.features import fused_features
from mc_vision_language.continual.memory import captions_of_samples, replayed
from mc_vision_language.continual.running import build, default_buffer, going_on_from, untrained_figures
from mc_vision_language.continual.sample import sample_start
from mc_vision_language.data.options import SplitOptions
from mc_vision_language.data.pair_data import PairData
from mc_vision_language.encoders_config import VisionLanguageConfig
from mc_vision_language.methods.growclip.config import GrowCLIPConfig
from mc_vision_language.methods.growclip.model import GrowCLIPModel
from mc_vision_language.model import VisionLanguageModel, load_vision_language_model
from mc_vision_language.tokenizers import train_tokenizer

COUNTS = {"train": 220, "validation": 60, "test": 60}
TINY = {
    "method": {
        "image": {"patch_size": 16, "width": 16, "depth": 1, "heads": 2, "stem": "patch"},
        "text": {"hidden_size": 16, "heads": 2, "vocabulary": 60},
        "dim": 16,
        "queue_size": 16,
    },
    "fit": {"steps": 2, "batch_size": 16, "workers": 0},
}
real = pytest.mark.skipif("MC_DATA" not in os.environ, reason="MC_DATA names no folder of real data")


@pytest.fixture(scope="module")
def tasks():
    return sample_tasks(counts=COUNTS)[:2]


@pytest.fixture(scope="module")
def base():
    return base_recipe("ctp-laptop", TINY)


@pytest.fixture(scope="module")
def model(tasks, base):
    words = train_tokenizer(sorted({text for task in tasks for text in task.pairs.captions}), 60)
    return build(recipe_for("sequential", base), words).model.eval()


def naive_recalls(images, texts, pairs_of_tasks):
    """Both ways, by definition; equal pictures and equal words are right answers too."""
    image_ids = np.concatenate([pairs.image_ids for pairs in pairs_of_tasks])
    text_ids = np.concatenate([pairs.text_ids for pairs in pairs_of_tasks])
    scores = images @ texts.T
    n = len(scores)
    same = {(image_ids[i], text_ids[i]) for i in range(n)}
    right = np.array([[(image_ids[i], text_ids[j]) in same for j in range(n)] for i in range(n)])
    six, two = [], []
    for s, r in ((scores, right), (scores.T, right.T)):
        ranks = []
        for row, good in zip(s, r, strict=True):
            best = max(value for value, ok in zip(row, good, strict=True) if ok)
            ranks.append(1 + sum(value >= best and not ok for value, ok in zip(row, good, strict=True)))
        six += [np.mean([rank <= k for rank in ranks]) for k in (1, 5, 10)]
        two.append(np.mean([rank <= 1 for rank in ranks]))
    return np.mean(six), np.mean(two)


def test_retrieval_over_the_union_by_definition(tasks, model):
    tests = [task.part("test").pairs for task in tasks]
    images = [model.encode_image([pairs.images.read(row) for row in range(len(pairs))]) for pairs in tests]
    texts = [model.encode_text(pairs.captions) for pairs in tests]
    found = measure_tasks(model, tasks)
    for j in range(2):
        own = naive_recalls(images[j], texts[j], tests[j : j + 1])
        union = naive_recalls(np.concatenate(images[: j + 1]), np.concatenate(texts[: j + 1]), tests[: j + 1])
        assert (found["own"]["r_m"][j], found["own"]["r1_m"][j]) == pytest.approx(own, abs=1e-9)
        assert (found["union"]["r_m"][j], found["union"]["r1_m"][j]) == pytest.approx(union, abs=1e-9)
    assert found["own"]["r_m"][0] == found["union"]["r_m"][0]
    assert set(found["own"]) == set(MEASURES)


def test_fused_features_are_the_first_token_of_image_and_caption(tasks, model):
    pairs = tasks[0].part("test").pairs
    images, fused = fused_features(model, pairs, batch_size=3)
    np.testing.assert_allclose(np.linalg.norm(fused, axis=1), 1, atol=1e-6)
    backbone = model.backbone
    with torch.no_grad():
        for row in (0, 4):
            ids, mask = model.tokens_of(pairs.captions_of(row))
            tokens = backbone.image_tokens(model.pixels_of([pairs.images.read(row)]))
            state = backbone.fuse(backbone.text_states(ids, mask), mask, backbone.keys(tokens))[0, 0]
            np.testing.assert_allclose(fused[row], state / state.norm(), atol=1e-5)
            np.testing.assert_allclose(images[row], backbone.embed_image_tokens(tokens)[0], atol=1e-5)
    assert fused_features(model, pairs, np.array([2, 0]))[1].shape == (2, fused.shape[1])


def test_multi_modal_looks_for_the_class(tasks, model):
    seen = together([look(model, task) for task in tasks])
    assert len(seen.queries.rows) == len(seen.images) == sum(len(task.part("test").pairs) for task in tasks)
    found = measure_tasks(model, tasks)
    for measure in MEASURES[2:]:
        assert 0 <= found["union"][measure][1] <= 1
    assert found["union"]["map@1"] == found["union"]["map_found@1"]
    scores = seen.queries.rows @ seen.queries.rows.T
    np.fill_diagonal(scores, -9)
    expected = np.mean(seen.queries.classes[scores.argmax(1)] == seen.queries.classes)
    assert found["union"]["map@1"][1] == pytest.approx(expected)


def test_queries_and_gallery_of_their_own_are_used(tasks, model):
    alone = replace(tasks[0], queries=tasks[1].part("test"), gallery=tasks[1].part("test"))
    seen = look(model, alone)
    assert set(seen.queries.classes) == set(tasks[1].part("test").classes)
    assert len(seen.images) == len(tasks[0].part("test").pairs)
    assert set(look(model, alone, "validation").queries.classes) <= set(tasks[0].classes)


def test_a_frozen_model_forgets_nothing(tasks, model):
    results = [measure_tasks(model, tasks[: k + 1]) for k in range(2)]
    for measure in MEASURES:
        scores = sequence_scores(results, measure)
        assert scores.forgetting == 0
        assert scores.backward_transfer == 0
    r_m = sequence_scores(results)
    assert np.isnan(r_m.own[0, 1])
    assert r_m.last == results[1]["union"]["r_m"][1]
    joint = sequence_scores(results[1:])
    assert joint.last == r_m.last
    assert np.isnan(joint.own[0]).all()


def test_measuring_takes_the_part_asked_for(tasks, model):
    assert measure_tasks(model, tasks, "validation") != measure_tasks(model, tasks)
    only = tasks[0].pairs.take(np.flatnonzero(tasks[0].pairs.splits != "validation"))
    with pytest.raises(DataError, match="no pair in the split 'validation'"):
        look(model, TaskPairs("a", only, tasks[0].classes[: len(only)]), "validation")
    with pytest.raises(DataError, match="no task"):
        measure_tasks(model, [])
    assert cross_modal(look(model, tasks[0]))[0] == measure_tasks(model, tasks)["own"]["r_m"][0]


@pytest.mark.parametrize("unit", ["image", "caption"])
def test_replay_puts_old_samples_after_the_new(tasks, unit):
    train = [task.part("train").pairs for task in tasks]
    both = replayed(train, 1, np.array([[0, 7], [0, 2]]), unit)
    assert len(both) == len(train[1]) + 2
    assert both.captions_of(len(train[1])) == (train[0].captions[train[0].first_caption[7]],)
    assert (np.asarray(both.images.read(len(both) - 1)) == np.asarray(train[0].images.read(2))).all()
    assert both.image_ids[-1] == train[0].image_ids[2]
    assert both.images.array is not None


class Whole:
    """Stands for a method."""

    def __init__(self, model):
        self.model = model

    def export_module(self):
        return self.model


@pytest.mark.parametrize("kind", ["reservoir", "herding", "k-means"])
def test_memories_hold_rows_of_tasks_seen(kind, tasks, model):
    memory, held = ExemplarMemory(kind, 9), np.zeros((0, 2), np.int64)
    sizes = []
    for index, task in enumerate(tasks):
        data = PairData(task.part("train").pairs, model.tokenizer, augment=None, size=32)
        sizes.append(len(data))
        again = memory.choose(Whole(model), Task(index, task.name), data, held, sizes, Fit(seed=index))
        held = memory.choose(Whole(model), Task(index, task.name), data, held, sizes, Fit(seed=index))
        assert (again == held).all()
        assert len(held) == 9 == len(np.unique(held, axis=0))
        assert set(held[:, 0]) <= set(range(index + 1))
        assert (held[:, 1] < np.array(sizes)[held[:, 0]]).all()
    if kind != "reservoir":
        share = 9 * sizes[0] / sum(sizes)
        assert abs((held[:, 0] == 0).sum() - share) < 1
    assert memory.describe() == {"kind": kind, "capacity": 9}


def test_herding_is_by_fused_features(tasks, model):
    from mc_core.continual.exemplars import herding

    pairs = tasks[0].part("train").pairs
    data = PairData(pairs, model.tokenizer, augment=None, size=32)
    nothing = np.zeros((0, 2), np.int64)
    held = ExemplarMemory("herding", 5).choose(Whole(model), Task(0, "a"), data, nothing, [len(data)], Fit())
    assert held[:, 1].tolist() == herding(fused_features(model, pairs)[1], 5).tolist()
    assert captions_of_samples(data).tolist() == list(range(len(pairs)))


def test_a_memory_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="a buffer of 0 samples"):
        ExemplarMemory("herding", 0)


def test_the_usual_buffer_is_a_hundredth(tasks):
    train = [task.part("train").pairs for task in tasks]
    assert default_buffer(train, "image") == 10
    assert default_buffer(train * 100, "image") == round(sum(map(len, train)))


def test_methods_differ_from_the_recipe_in_nothing_else(base):
    for name in BASELINES:
        recipe = recipe_for(name, base)
        assert recipe.fit == base.fit
        assert recipe.augment == base.augment
        assert recipe.method.image == base.method.image
        assert recipe.method.temperature == base.method.temperature
    assert recipe_for("ctp-first", base).method.plain_later
    assert recipe_for("ctp", base).method == base.method
    assert recipe_for("ewc", base, {"penalty": 7}).method.penalty == 7
    with pytest.raises(ConfigError, match="unknown field penaltie; did you mean penalty"):
        recipe_for("ewc", base, {"penaltie": 7})
    with pytest.raises(ConfigError, match="no method named 'ewk'"):
        recipe_for("ewk", base)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_method_runs_and_is_measured(name, tasks, base, tmp_path):
    run = run_sequence(name, tasks, base, tmp_path, seed=1, buffer=8)
    scores = run.scores()
    assert 0 < run.r_m < 1
    assert len(run.results) == (1 if name == "joint" else 2)
    assert np.isnan(scores.forgetting) == (name == "joint")
    assert run.held == (8 if BASELINES[name].memory else 0)
    content = read_json(tmp_path / "scores.json")
    assert content["r_m"] == pytest.approx(run.r_m)
    assert content["scores"]["r_m"]["F"][-1] == pytest.approx(run.r_m)


@pytest.mark.parametrize("name", ["ctp+er", "lucir"])
def test_a_run_goes_on_and_its_models_are_those_measured(name, tasks, base, tmp_path):
    run = run_sequence(name, tasks, base, tmp_path, buffer=8)
    assert run_sequence(name, tasks, base, tmp_path, buffer=8).results == run.results
    assert measure_tasks(load_vision_language_model(tmp_path), tasks)["union"]["r_m"][-1] == pytest.approx(run.r_m)
    folder = next((tmp_path / "tasks").glob("1-*"))
    own = measure_tasks(load_vision_language_model(folder), tasks[:1])["own"]
    assert own["r_m"] == pytest.approx(run.results[0]["own"]["r_m"])


def test_methods_start_from_the_same_weights(tasks, base, model):
    words = model.tokenizer
    states = [build(recipe_for(name, base), words).model.state_dict() for name in BASELINES if name != "lucir"]
    for state in states[1:]:
        assert all(torch.equal(state[key], states[0][key]) for key in states[0])


@pytest.fixture(scope="module")
def start(tasks):
    """A trained model of other sizes than the recipe's, with a matching head that the tasks do not train."""
    text = " ".join(sorted({text for task in tasks for text in task.pairs.captions}))
    words = train_tokenizer([text, "a small green walrus"], 90)
    torch.manual_seed(5)
    config = VisionLanguageConfig(
        image={"image_size": 24, "patch_size": 8, "width": 16, "depth": 1, "heads": 2},
        text={"hidden_size": 16, "heads": 2, "text_layers": 1, "fusion_layers": 1, "max_length": 14},
        dim=12,
    )
    return VisionLanguageModel(config, words).eval()


class TestStart:
    """A trained model that a sequence begins with."""

    @pytest.mark.parametrize("name", ["ctp", "lucir", "joint", "er"])
    def test_its_weights_words_and_size_are_taken_and_it_stays_as_it_is(self, name, tasks, base, start, tmp_path):
        before = {key: value.clone() for key, value in start.state_dict().items()}
        recipe = going_on_from(recipe_for(name, base), start)
        built = build(recipe, start.tokenizer, start)
        ours, theirs = built.backbone.state_dict(), start.backbone.state_dict()
        own = {key for key in theirs if "projection" in key and name == "lucir"}  # rows of length 1 and no bias there
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs.keys() - own)
        assert (built.model.config.matching, start.config.matching) == (False, True)
        assert (recipe.augment.size, recipe.method.dim, recipe.method.text.max_length) == (24, 12, 14)
        assert recipe.augment == recipe_for(name, base).augment.model_copy(update={"size": 24})
        run = run_sequence(name, tasks, base, tmp_path, buffer=8, start=start)
        assert run.model.image_size == 24
        assert run.model.tokenizer.get_vocab() == start.tokenizer.get_vocab()
        assert all(torch.equal(value, before[key]) for key, value in start.state_dict().items())
        saved = load_vision_language_model(tmp_path)
        assert not saved.config.matching
        assert not torch.equal(
            saved.backbone.state_dict()["image_projection.weight"], theirs["image_projection.weight"]
        )

    def test_copies_of_the_first_task_are_of_its_weights(self, tasks, base, start):
        method = build(going_on_from(recipe_for("ctp", base), start), start.tokenizer, start)
        method.start_task(Task(0, "a"))
        held = method.compatible.module.state_dict()
        assert all(torch.equal(held[key], value) for key, value in start.backbone.state_dict().items())

    def test_it_is_measured_as_it_is(self, tasks, base, start, tmp_path):
        found = untrained_figures(tasks, base, tmp_path / "nowhere", start=start)
        assert found == measure_tasks(start, tasks)

    def test_a_run_goes_on_with_the_same_and_not_with_another(self, tasks, base, start, tmp_path):
        run = run_sequence("sequential", tasks, base, tmp_path, start=start)
        assert run_sequence("sequential", tasks, base, tmp_path, start=start).results == run.results
        other = copy.deepcopy(start)
        with torch.no_grad():
            other.backbone.image_projection.weight[0, 0] += 1e-3
        with pytest.raises(CheckpointError, match="holds another sequence .*start"):
            run_sequence("sequential", tasks, base, tmp_path, start=other)
        with pytest.raises(CheckpointError, match="holds another sequence"):
            run_sequence("sequential", tasks, base, tmp_path)

    def test_models_without_fusion_layers_or_words_are_refused(self, tasks, base, start, tmp_path):
        config = GrowCLIPConfig(image={"image_size": 16, "patch_size": 8}, text={"vocabulary": 60})
        with pytest.raises(ConfigError, match="a GrowCLIPModel cannot be trained on tasks: start from a model that"):
            run_sequence("ctp", tasks, base, tmp_path / "a", start=GrowCLIPModel(config))
        silent = VisionLanguageModel(start.config, None)
        with pytest.raises(ConfigError, match="the model to start from has no tokenizer"):
            run_sequence("ctp", tasks, base, tmp_path / "a", start=silent)
        assert not (tmp_path / "a").exists()

    def test_the_samples_own_knows_the_words_to_come(self, tasks, tmp_path, monkeypatch):
        monkeypatch.setattr("mc_vision_language.continual.tasks.TURN_COUNTS", COUNTS)
        base = base_recipe("ctp-laptop", merge(TINY, {"method": {"text": {"vocabulary": 300}}}))
        model = sample_start(base, tmp_path, seed=3, tasks=tasks)
        known = model.tokenizer.get_vocab()
        assert {"zero", "three", "seven", "nine"} <= set(known)
        steps = list((tmp_path / "tasks" / "1-all-tasks" / "metrics.jsonl").read_text().splitlines())
        assert '"step": 10' in steps[-1]  # two for each of five turns
        again = sample_start(base, tmp_path, seed=3, tasks=tasks)
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_joint_training_has_as_many_steps_as_all_tasks(tasks, base, tmp_path):
    run_sequence("joint", tasks, base, tmp_path)
    steps = list((tmp_path / "tasks" / "1-all-tasks" / "metrics.jsonl").read_text().splitlines())
    assert '"step": 4' in steps[-1]


def test_a_changed_list_is_told_and_more_tasks_go_on(tasks, base, tmp_path):
    run_sequence("sequential", tasks[:1], base, tmp_path)
    with pytest.raises(CheckpointError, match="task 1: 'zero and one' → 'two and three'"):
        run_sequence("sequential", tasks[::-1], base, tmp_path)
    changed = base.model_copy(update={"fit": base.fit.model_copy(update={"lr": 1.0})})
    with pytest.raises(CheckpointError, match=r"fit.*lr"):
        run_sequence("sequential", tasks[:1], changed, tmp_path)
    assert len(run_sequence("sequential", tasks, base, tmp_path).results) == 2


def test_what_cannot_be_trained_is_refused_before_anything_is_written(tasks, base, tmp_path):
    large = base.model_copy(update={"fit": base.fit.model_copy(update={"batch_size": 500})})
    with pytest.raises(
        ConfigError, match=r"'zero and one' has \d+ pairs to train on, fewer than a batch: set fit.batch_size"
    ):
        run_sequence("sequential", tasks, large, tmp_path / "a")
    half = base.model_copy(update={"fit": base.fit.model_copy(update={"precision": "fp16"})})
    with pytest.raises(ConfigError, match="fp16 scales the gradients that si reads"):
        run_sequence("si", tasks, half, tmp_path / "a")
    with pytest.raises(ConfigError, match="no tasks"):
        run_sequence("si", [], base, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@real
def test_two_tasks_of_real_products(tmp_path):
    tar = Path(os.environ["MC_DATA"]) / "vision-language" / "grocery-products.tar"
    (tmp_path / "tasks.yaml").write_text(
        "\n".join(
            f"- {{name: {kind}, data: '{tar}', columns: {{caption: text}}, category: coarse_class, where: {{category: {kind}}}}}"
            for kind in ("Vegetables", "Packages")
        )
    )
    with pytest.raises(DataError, match="split.own false"):  # its own splits name no test
        read_tasks(tmp_path / "tasks.yaml")
    tasks = read_tasks(tmp_path / "tasks.yaml", split=SplitOptions(own=False))
    changes = {**TINY, "fit": {"steps": 1, "batch_size": 8, "workers": 0}}
    run = run_sequence("ctp", tasks, base_recipe("ctp-laptop", changes), tmp_path / "run")
    assert run.tasks == ("Vegetables", "Packages")
    assert 0 < run.r_m < 1
    assert run.scores("map@1").last > 0
