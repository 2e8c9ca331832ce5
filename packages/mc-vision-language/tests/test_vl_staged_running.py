"""All stages in a row: what is left in the folder, interruptions, experts that cannot be trained, and what is refused."""

from __future__ import annotations

import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.files import read_json, read_jsonl
from mc_vision_language.data.annotated import AnnotatedPairs
from mc_vision_language.experts.base import load_expert
from mc_vision_language.methods.astrea.adapters import on_grid
from mc_vision_language.methods.astrea.model import AstreaModel, load_astrea
from mc_vision_language.model import load_vision_language_model
from mc_vision_language.staged import features, running
from mc_vision_language.staged.data import InstructData, JointData
from mc_vision_language.staged.features import MapData
from mc_vision_language.staged.running import run_astrea, stages_of
from mc_vision_language.staged.sample import staged_sample, staged_scenes

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_staged.py"))))
ALL = (
    "0-classification",
    "0-captioning",
    "0-detection",
    "0-segmentation",
    "1-prealign-classification",
    "1-prealign-captioning",
    "1-prealign-detection",
    "1-prealign-segmentation",
    "2-joint",
    "3-instruct",
)
SEQUENTIAL = {"mode": "sequential"}


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


@pytest.fixture(scope="module")
def pictures() -> AnnotatedPairs:
    return tiny.pictures()


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """A run of all stages, pre-alignment and shortcut included."""
    run = tmp_path_factory.mktemp("staged") / "run"
    settings = tiny.recipe(prealign=SEQUENTIAL, residual={"probability": 0.5})
    return run, settings, run_astrea(settings, pictures, run, measure=_measure, source="scenes")


def _measure(stage: str, model: torch.nn.Module) -> dict[str, object]:
    assert not model.training
    return {"kind": type(model).__name__, "stage": stage}


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = state(one), state(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_all_stages_leave_a_model_that_finds_answers_and_captions(finished, pictures):
    run, _, done = finished
    assert tuple(stage["stage"] for stage in done.stages) == ALL
    assert read_json(run / "run.json")["stages"] == list(ALL)
    assert done.experts == ("classification", "captioning", "detection", "segmentation")
    assert done.left_out == ()
    model = done.model
    assert isinstance(model, AstreaModel)
    assert not model.training
    images = pictures.pairs.images.array[:3]
    assert len(model.caption(images)) == 3
    assert len(model.ask(images, ["is there a red digit"] * 3)) == 3
    assert model.encode_image(images).shape == (3, 8)
    assert model.encode_text(["a large red nine"]).shape == (1, 8)
    assert same(load_astrea(run), model)
    assert isinstance(load_vision_language_model(run), AstreaModel)
    figures = [stage["figures"] for stage in done.stages]
    assert figures[2] == {"kind": "DetectionExpert", "stage": "0-detection"}
    assert figures[-1]["kind"] == "AstreaModel"
    assert not list(run.glob("stages/*/train/checkpoints"))
    assert done.seconds > 0


def test_curves_of_the_later_stages_follow_each_other(finished):
    run, _, _ = finished
    lines = read_jsonl(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 3 * 6 + 1))
    assert list(dict.fromkeys(line["stage"] for line in lines)) == list(ALL[4:])
    assert {"weight/detection", "entropy", "usefulness/captioning"} <= set(lines[-4])


def test_each_stage_hands_its_weights_to_the_next_and_moves_what_it_should(finished):
    run, _, _ = finished
    trained = {name: load_astrea(run / "stages" / name / "train") for name in ALL[4:]}
    detection = load_expert(run / "stages" / "0-detection" / "train")
    for model in trained.values():
        assert same(model.own.experts["detection"].backbone, detection.backbone)
    first, second = trained["1-prealign-classification"], trained["1-prealign-captioning"]
    adapters = [one.fusion.adapters.by_kind for one in (first, second)]
    assert not same(adapters[0]["captioning"], adapters[1]["captioning"])
    assert same(adapters[0]["detection"], adapters[1]["detection"])  # it has not joined yet
    aligned, joint = trained["1-prealign-segmentation"], trained["2-joint"]
    assert same(joint.own.reference, aligned.fusion.adapters)  # the shortcut: as they were at the end of pre-alignment
    assert same(trained["3-instruct"].own.reference, aligned.fusion.adapters)
    assert not same(joint.fusion.adapters, aligned.fusion.adapters)
    assert joint.language is None
    assert trained["3-instruct"].language is not None


def test_the_same_call_again_only_reads(finished, pictures, monkeypatch):
    run, settings, done = finished
    monkeypatch.setattr(running, "fit", None)
    monkeypatch.setattr(running, "train_expert", None)
    again = run_astrea(settings, pictures, run, measure=_measure, source="scenes")
    assert again.stages == done.stages
    assert same(again.model, done.model)


@pytest.mark.parametrize("alike", [True, False], ids=["kept-maps", "views-drawn"])
def test_an_interruption_anywhere_ends_in_the_same_bits(alike, pictures, tmp_path, monkeypatch):
    settings = tiny.recipe(
        alike=alike,
        prealign={"mode": "parallel"},
        expert_dropout=0.3,
        fit={"checkpoint_every": 1, "steps": 4, "seed": 3},
    )
    whole = run_astrea(settings, pictures, tmp_path / "whole")
    stages = [stage["stage"] for stage in whole.stages]
    assert stages == [*ALL[:4], "1-prealign", "2-joint", "3-instruct"]
    place = tmp_path / "parts"
    original = running.fit
    for name in ("1-prealign", "2-joint", "3-instruct"):
        monkeypatch.setattr(running, "fit", lambda *a, _name=name, **k: _stopping(original, _name, *a, **k))
        with pytest.raises(Killed):
            run_astrea(settings, pictures, place)
        assert not (place / "stages" / name / "stage.json").exists()
        assert (place / "stages" / name / "train" / "checkpoints").is_dir()
    monkeypatch.setattr(running, "fit", original)
    wrote = running.write_json
    monkeypatch.setattr(running, "write_json", _dying_before("3-instruct/stage.json", wrote))
    with pytest.raises(Killed):
        run_astrea(settings, pictures, place)
    monkeypatch.setattr(running, "write_json", wrote)
    done = run_astrea(settings, pictures, place)
    assert same(done.model, whole.model)
    assert [one["loss"] for one in done.stages] == [one["loss"] for one in whole.stages]
    assert (place / "maps").is_dir() == alike


def _stopping(original, name, method, data, **given):
    """Killed in the second step after the start of the stage ``name``."""
    if name not in str(given["run_dir"]):
        return original(method, data, **given)
    inner, seen = type(method).training_step, []

    def dying(self, *a, **k):
        seen.append(1)
        if len(seen) > 2:
            raise Killed
        return inner(self, *a, **k)

    method.__class__ = type(type(method).__name__, (type(method),), {"training_step": dying})
    return original(method, data, **given)


def _dying_before(path, write):
    def dying(place, content):
        if str(place).endswith(path):
            raise Killed
        write(place, content)

    return dying


def test_stages_one_by_one_are_the_same_as_together_and_need_those_before(pictures, tmp_path):
    settings = tiny.recipe()
    together = run_astrea(settings, pictures, tmp_path / "together")
    place = tmp_path / "each"
    with pytest.raises(ConfigError, match="stage joint needs an expert \\(0-classification\\), which is not done"):
        run_astrea(settings, pictures, place, stages=["joint"])
    experts = run_astrea(settings, pictures, place, stages=["experts"])
    assert experts.model is None
    assert len(experts.stages) == 4
    with pytest.raises(ConfigError, match="stage instruct needs joint training \\(2-joint\\)"):
        run_astrea(settings, pictures, place, stages=["instruct"])
    joint = run_astrea(settings, pictures, place, stages=["joint"])
    assert joint.model is not None
    assert not joint.model.answers
    last = run_astrea(settings, pictures, place, stages=["instruct"])
    assert same(last.model, together.model)
    with pytest.raises(ConfigError, match="no stage 'joined': did you mean joint"):
        run_astrea(settings, pictures, place, stages=["joined"])
    aligned = tiny.recipe(prealign=SEQUENTIAL)
    with pytest.raises(ConfigError, match="stage joint needs pre-alignment"):
        run_astrea(aligned, pictures, tmp_path / "other", stages=["experts", "joint"])


def test_other_settings_or_pictures_are_refused_where_a_stage_depends_on_them(finished, pictures, tmp_path):
    run, settings, _ = finished
    place = tmp_path / "run"
    shutil.copytree(run, place)
    method = settings.method

    def changed(**update):
        return settings.model_copy(update={"method": method.model_copy(update=update)})

    with pytest.raises(CheckpointError, match=r"2-joint was done under other settings \(method.queue_size: 16 → 8\)"):
        run_astrea(changed(queue_size=8), pictures, place)
    with pytest.raises(CheckpointError, match=r"0-classification was done under other settings \(data\."):
        run_astrea(settings, tiny.pictures(train=20), place)
    later = changed(instruct=method.instruct.model_copy(update={"contrast": 0.2}))
    with pytest.raises(CheckpointError, match=r"3-instruct was done under other settings \(method.instruct.contrast"):
        run_astrea(later, pictures, place)
    joint = run_astrea(later, pictures, place, stages=["joint"])  # does not read them
    assert joint.stages[-1]["stage"] == "2-joint"
    with pytest.raises(ConfigError, match="already holds a run"):
        run_astrea(settings, pictures, place, resume="never")
    with pytest.raises(CheckpointError, match="nothing to resume"):
        run_astrea(settings, pictures, tmp_path / "none", resume="must")


def test_experts_without_annotations_are_left_out_and_named(pictures, tmp_path):
    bare = replace(pictures, boxes=None, masks=None, labels=None, labels_known=None, labels_from="", class_names=())
    done = run_astrea(tiny.recipe(), bare, tmp_path / "run", stages=["experts", "joint"])
    assert done.experts == ("captioning",)
    assert len(done.left_out) == 3
    assert "no detection expert: digit scenes has no picture with boxes" in done.left_out[1]
    assert [stage["stage"] for stage in done.stages] == ["0-captioning", "2-joint"]
    assert set(done.model.own.experts) == {"captioning"}
    single = tiny.recipe(fusion="single", single="detection")
    with pytest.raises(ConfigError, match="no expert can be trained: no .*boxes"):
        run_astrea(single, bare, tmp_path / "none")
    assert not (tmp_path / "none" / "run.json").exists()


def test_ready_experts_are_taken_as_they_are_and_shared_maps_are_computed_once(
    finished, pictures, tmp_path, monkeypatch
):
    run, _, _ = finished
    ready = {kind: run / "stages" / f"0-{kind}" / "train" for kind in ("classification", "detection")}
    plain = tiny.recipe(fusion="uniform").model_copy()
    two = plain.model_copy(update={"method": plain.method.only(("classification", "detection"))})
    written = []
    original = features._Writer.write
    monkeypatch.setattr(features._Writer, "write", lambda self, *a: (written.append(self.kind), original(self, *a)))
    done = run_astrea(two, pictures, tmp_path / "one", stages=["joint"], experts=ready, maps=tmp_path / "maps")
    assert [stage["stage"] for stage in done.stages] == ["2-joint"]
    assert set(written) == {"classification", "detection"}
    written.clear()
    again = run_astrea(two, pictures, tmp_path / "two", stages=["joint"], experts=ready, maps=tmp_path / "maps")
    assert not written
    assert same(again.model, done.model)
    wrong = {**ready, "detection": ready["classification"]}
    with pytest.raises(ConfigError, match="holds a classification expert, not a detection expert"):
        run_astrea(two, pictures, tmp_path / "three", stages=["joint"], experts=wrong)
    with pytest.raises(ConfigError, match="no expert 'depth'"):
        run_astrea(two, pictures, tmp_path / "three", experts={"depth": run})
    other = load_expert(ready["detection"])
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    with pytest.raises(CheckpointError, match=r"other settings \(ready.detection"):
        run_astrea(two, pictures, tmp_path / "one", stages=["joint"], experts={**ready, "detection": other})


def test_kept_maps_train_as_views_that_are_always_alike_do_but_for_rounding(pictures, tmp_path, monkeypatch):
    settings = tiny.recipe()
    kept = run_astrea(settings, pictures, tmp_path / "kept", stages=["experts", "joint"])
    monkeypatch.setattr(running, "always_alike", lambda augment: False)
    ready = {kind: tmp_path / "kept" / "stages" / f"0-{kind}" / "train" for kind in kept.experts}
    plain = run_astrea(settings, pictures, tmp_path / "anew", stages=["joint"], experts=ready)
    # the two runs count their stages differently, and so draw other weights: compared is what a batch holds
    model = kept.model
    data = JointData(pictures.part("train"), model.tokenizer, augment=settings.augment, max_length=16)
    experts = dict(model.own.experts.items())
    both = MapData(data, features.keep_maps(experts, data.views, tmp_path / "kept" / "maps", grid=4))
    first, second = data.get_batch([5, 2], 1, 7), both.get_batch([5, 2], 1, 7)
    for name in ("input_ids", "attention_mask", "image_ids", "text_ids"):
        assert torch.equal(first[name], second[name])
    from mc_core.random import BatchRandom

    view = data.device_transform(first, BatchRandom(7, 1, torch.tensor([5, 2])))["view"]
    shown = on_grid(model.own.maps(view), model.fusion.block.features, 4)
    for kind, found in shown.items():
        torch.testing.assert_close(found, second[f"map_{kind}"].float(), atol=3e-3, rtol=2e-3)
    assert plain.stages[-1]["steps"] == 3


def test_what_cannot_work_is_said_before_anything_is_written(pictures, tmp_path):
    place = tmp_path / "run"
    plain = tiny.recipe()
    with pytest.raises(ConfigError, match="unit caption"):
        run_astrea(plain.model_copy(update={"unit": "caption"}), pictures, place)
    with pytest.raises(ConfigError):
        run_astrea(tiny.recipe(fit={"batch_size": 64}), pictures, place)
    with pytest.raises(DataError, match="no picture in the split 'train'"):
        run_astrea(plain, pictures.part("test"), place)
    from mc_vision_language.recipe import resolve_recipe

    with pytest.raises(ConfigError, match="'albef' is not trained in these stages"):
        run_astrea(resolve_recipe("albef-laptop"), pictures, place)
    assert not list(place.glob("*.json"))


def test_warm_up_is_the_same_share_of_every_stage(pictures, tmp_path):
    settings = tiny.recipe(fit={"warmup_epochs": 0.5, "steps": 6})  # of two epochs
    run = running._Run(settings, pictures, tmp_path, ("joint",), {}, None, None, "")
    for stage in run.plan:
        its = run._settings(stage)
        rows = run._rows(stage)
        assert its.warmup_epochs / running._epochs(its, rows) == pytest.approx(0.25)
    seeds = {run._settings(stage).seed for stage in run.plan}
    assert len(seeds) == len(run.plan)


def test_an_expert_may_have_a_rate_of_its_own(pictures, tmp_path):
    settings = tiny.recipe(steps=1)
    experts = tuple(
        one.model_copy(update={"lr_scale": 0.25}) if one.kind == "captioning" else one
        for one in settings.method.experts
    )
    settings = settings.model_copy(update={"method": settings.method.model_copy(update={"experts": experts})})
    done = run_astrea(settings, pictures, tmp_path / "run", stages=["experts"])
    rates = {one["expert"]: one["settings"]["fit"]["lr"] for one in done.stages}
    assert rates["captioning"] == pytest.approx(0.25 * rates["detection"])
    assert rates["classification"] == rates["detection"] == rates["segmentation"]


def test_an_expert_with_few_pictures_has_small_batches(pictures, tmp_path):
    known = pictures.boxes.known.copy()
    known[5:] = False
    few = replace(pictures, boxes=replace(pictures.boxes, known=known), labels=None, labels_known=None, labels_from="")
    run = running._Run(tiny.recipe(), few, tmp_path, ("joint",), {}, None, None, "")
    sizes = {stage.expert: run._settings(stage).batch_size for stage in run.plan if stage.kind == "experts"}
    assert sizes["detection"] == 5
    assert sizes["captioning"] == 8
    assert any("learns from 5 of 24" in line for line in run.left_out)


def test_stage_names():
    method = tiny.recipe(prealign={"mode": "parallel"}).method
    assert [one.name for one in stages_of(method, [])] == ["1-prealign", "2-joint", "3-instruct"]


def test_instruction_rows_are_captions_and_questions_with_one_answer_drawn(pictures, finished):
    _, settings, done = finished
    model = done.model
    part = pictures.part("train")
    answers = tuple((*given, "above") for given in part.questions.answers)  # a word that no question has as its answer
    several = replace(part, questions=replace(part.questions, answers=answers))
    data = JointData(several, model.tokenizer, augment=settings.augment, max_length=16)
    rows = InstructData(data, model.language_text, model.tokenizer, ask_router=True)
    assert len(rows) == len(part) + len(part.questions)
    assert rows.asked == len(part.questions)
    batch = rows.get_batch([0, len(part), len(part) + 1], 0, 5)
    text = model.language_text
    shown = [
        model.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["answer_ids"], batch["answer_mask"], strict=True)
    ]
    assert shown[0] == f"[CLS] [SEP] {part.pairs.captions[0]} [SEP]"
    assert shown[1].startswith(f"[CLS] {part.questions.texts[0]} [SEP] ")
    target = batch["answer_ids"][1][batch["target_mask"][1].bool()]
    assert text.decode(target[None])[0] in answers[0]
    assert batch["question_mask"][0].sum() == 0
    assert model.tokenizer.decode(batch["question_ids"][1][batch["question_mask"][1].bool()]).endswith(
        part.questions.texts[0]
    )
    pictures_of = rows.picture_rows(torch.tensor([0, len(part), len(part) + 1]).numpy())
    assert torch.equal(batch["image_ids"], torch.from_numpy(part.pairs.image_ids[pictures_of]))
    drawn = {text.decode(rows.get_batch([len(part)], epoch, 5)["answer_ids"][:, -2:])[0] for epoch in range(20)}
    assert len(drawn) == 2
    alone = rows.get_batch([len(part) + 1], 0, 5)
    width = alone["answer_ids"].shape[1]
    assert torch.equal(alone["answer_ids"][0], batch["answer_ids"][2][:width])


def test_scenes_of_the_sample_are_of_the_writers_asked_for():
    def scans(part, held_out):
        return set(staged_scenes(part, count=400, held_out=held_out).objects.source.flatten().tolist()) - {-1}

    for held_out in (0, 3):
        assert not scans("test", held_out) & (scans("train", held_out) | scans("validation", held_out))
    assert scans("test", 0) & scans("train", 3)
    assert not scans("test", 0) & scans("test", 3)
    first, again = (staged_sample(seed=1, counts={"train": 2, "test": 2}, held_out=h) for h in (0, 3))
    assert first.pairs.captions != again.pairs.captions
    with pytest.raises(ValueError, match="held_out"):
        staged_sample(held_out=5)
