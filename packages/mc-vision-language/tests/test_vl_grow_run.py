"""Growth over slices: what a step leaves, what the arms share, and the same bits wherever a run was killed."""

from __future__ import annotations

import dataclasses
import importlib
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.files import load_state, read_json, read_jsonl
from mc_core.growth import Expansion, drawn, inherit
from mc_core.growth.spec import ArchSpec
from mc_core.random import derive_seed
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.growing import running
from mc_vision_language.growing.running import ARMS, run_growth
from mc_vision_language.growing.slices import Slices, arriving, sliced
from mc_vision_language.growing.space import tokens_of
from mc_vision_language.methods.growclip.config import GrowCLIPConfig
from mc_vision_language.methods.growclip.model import Towers
from mc_vision_language.model import load_vision_language_model
from mc_vision_language.recipe import Recipe

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_grow.py"))))
STEPS = 8


def recipe(*, fit=None, **growth) -> Recipe:
    growth = {"search_share": 0.5, "evaluations": 2, "batches": 2, "budget": 3.0, "pairs": 2, "blocks": 1, **growth}
    settings = {"steps": STEPS, "batch_size": 8, "optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.05}
    settings |= {"decay_1d": False, "workers": 0, "log_every": 2, "checkpoint_every": 2, "device": "cpu", **(fit or {})}
    augment = {"size": tiny.SIDE, "scale": (0.8, 1.0), "flip": 0.0, "rand_augment": 0}
    return Recipe[GrowCLIPConfig].model_validate(
        {"system": "growclip", "method": tiny.fields(growth=growth), "augment": augment, "fit": settings}
    )


def slices(count: int = 2) -> Slices:
    return sliced(tiny.pairs(), count, seed=1)


def figures(model) -> dict[str, float]:
    row = model.encode_image(tiny.pairs().images.array[:1])[0]
    return {"first": float(row[0]), "second": float(row[1])}


def choose_the_dearest(patch) -> None:
    """The search chooses its dearest candidate, so that every step grows."""
    select = running.select_growth

    def dearest(losses, costs, **more):
        return dataclasses.replace(select(losses, costs, **more), chosen=int(np.argmax(costs)))

    patch.setattr(running, "select_growth", dearest)


@pytest.fixture(autouse=True)
def grows(monkeypatch):
    choose_the_dearest(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of two steps with m = 1, which nothing interrupted."""
    folder = tmp_path_factory.mktemp("grown") / "run"
    with pytest.MonkeyPatch.context() as patch:
        choose_the_dearest(patch)
        found = run_growth(recipe(inherit=1.0), slices(), folder, measure=figures, source="tiny")
    return folder, found


def end_of(folder: Path, step: int) -> dict:
    (place,) = (folder / "steps").glob(f"{step}-*")
    return load_state(place / "end.safetensors")


def assert_same_end(one: Path, other: Path, step: int) -> None:
    a, b = end_of(one, step), end_of(other, step)
    for name in ("towers", "averaged"):
        assert a[name].keys() == b[name].keys()
        for key, tensor in a[name].items():
            assert torch.equal(tensor, b[name][key]), f"step {step}, {name}.{key}"


def test_a_run_reports_every_step_and_leaves_a_model_that_works(finished):
    folder, found = finished
    first, second = found.steps
    assert (first["updates"], second["updates"]) == ({"search": 0, "train": 8}, {"search": 4, "train": 4})
    assert (first["images"], second["images"]) == (24, 48)
    assert first["selection"] is None
    rows = second["selection"]["candidates"]
    assert rows[0]["name"] == "current"
    assert rows[0]["spec"] == first["spec"]
    assert all(len(row["losses"]) == 2 and row["loss"] > 0 for row in rows)
    assert second["selection"]["confidence"] is not None
    chosen = next(row for row in rows if row["name"] == second["selection"]["chosen"])
    assert chosen["spec"] == second["spec"]
    assert ArchSpec.from_dict(first["spec"]) <= ArchSpec.from_dict(second["spec"])
    assert second["parameters"] > first["parameters"]
    lengths = found.model.tokenized(slices().train(0).captions).lengths
    tokens = tokens_of(found.model.config, text=int(np.ceil(lengths.mean())))
    cost = ArchSpec.from_dict(first["spec"]).flops(tokens)
    assert first["flops"] == cost
    assert first["training_flops"] == 3 * cost * 8 * 8
    assert second["budget"] == pytest.approx(3 * cost * 2**0.5)
    assert second["cumulative_training_flops"] == first["training_flops"] + second["training_flops"]
    assert second["training_flops"] > 3 * 4 * 8 * (cost + second["flops"]) * 0.99
    assert len(found.overhead()) == 1
    for name in ("recipe.yaml", "growth.json", "pairs.json", "tokenizer/tokenizer.json", "model/config.json"):
        assert (folder / name).is_file(), name
    assert [line["step"] for line in read_jsonl(folder / "metrics.jsonl") if "loss" in line] == [2, 4, 6, 8, 10, 12]
    assert not list(folder.glob("steps/*/*/checkpoints"))
    loaded = load_vision_language_model(folder)
    assert loaded.config.arch() == ArchSpec.from_dict(second["spec"])
    assert figures(loaded) == second["end"]


def test_inheriting_everything_starts_as_the_average_before_the_growth(finished):
    folder, found = finished
    first, second = found.steps
    towers = Towers(GrowCLIPConfig.model_validate({**found.model.config.model_dump(), **_parts(first)}))
    towers.load_state_dict(end_of(folder, 1)["averaged"])
    with torch.no_grad():
        row = towers.eval().embed_images(torch.from_numpy(tiny.pairs().images.array[:1]).float() / 255)[0]
    assert second["start"]["first"] == pytest.approx(float(row[0]), abs=5e-6)
    assert abs(second["start"]["first"] - first["end"]["first"]) > 1e-4  # the average lags behind
    assert second["start"] != second["end"]


def _parts(step: dict) -> dict:
    return {f"{name}_part": part for name, part in step["spec"]["parts"].items()}


def test_a_second_call_only_reads_and_other_settings_are_refused(finished):
    folder, found = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json") if path.name != "growth.json"}
    again = run_growth(recipe(inherit=1.0), slices(), folder, measure=figures, source="tiny")
    assert again.steps == found.steps
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.name == "step.json")
    with pytest.raises(CheckpointError, match=r"fit.lr: 0.003 → 0.5.*slices may be added at the end"):
        run_growth(recipe(inherit=1.0, fit={"lr": 0.5}), slices(), folder)
    with pytest.raises(CheckpointError, match=r"slice 1 'slice-1'.*images: 36 → 24"):
        run_growth(recipe(inherit=1.0), slices(3), folder)
    with pytest.raises(CheckpointError, match="arm"):
        run_growth(recipe(inherit=1.0), slices(), folder, arm="fixed")
    with pytest.raises(ConfigError, match="already holds a run"):
        run_growth(recipe(inherit=1.0), slices(), folder, resume="never")


class Killed(Exception):
    """Stands for a kill."""


PHASES = {
    "in the search": ("mc_vision_language.growing.search.GrowthSearch.training_step", 3),
    "before the choice is kept": ("mc_vision_language.growing.running.select_growth", 0),
    "at the growth": ("mc_vision_language.growing.running.inherit", 0),
    "in the training": ("mc_vision_language.growing.running.GrowCLIP.after_step", STEPS + 4 + 3),
    "before the end is kept": ("mc_vision_language.growing.running.save_state", 1),
    "before the step is done": ("mc_vision_language.growing.running._Growth._join_curves", 1),
}


@pytest.mark.parametrize("phase", PHASES)
def test_killed_anywhere_it_goes_on_to_the_same_bits(phase, finished, tmp_path, monkeypatch):
    target, after = PHASES[phase]
    calls = 0

    with monkeypatch.context() as patch:
        original: Any = patch_target(target)

        def killing(*args, **more):
            nonlocal calls
            calls += 1
            if calls > after:
                raise Killed
            return original(*args, **more)

        patch.setattr(target, killing)
        with pytest.raises(Killed):
            run_growth(recipe(inherit=1.0), slices(), tmp_path / "run", measure=figures, source="tiny")
    assert not list((tmp_path / "run").glob("steps/2-*/step.json"))
    found = run_growth(recipe(inherit=1.0), slices(), tmp_path / "run", measure=figures, source="tiny")
    for step in (1, 2):
        assert_same_end(finished[0], tmp_path / "run", step)
    timeless = [{k: v for k, v in step.items() if k != "seconds"} for step in found.steps]
    assert timeless == [{k: v for k, v in step.items() if k != "seconds"} for step in finished[1].steps]


def patch_target(path: str):
    parts = path.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for name in parts[split:]:
            found = getattr(found, name)
        return found
    raise AssertionError(path)


def test_a_new_slice_at_the_end_goes_on_with_it(finished, tmp_path):
    sets = [tiny.pairs(24, 8, 8), tiny.pairs(24, 8, 8, seed=1), tiny.pairs(24, 8, 8, seed=2)]
    two = arriving(sets[:2], ["a", "b"])
    run_growth(recipe(), two, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    three = run_growth(recipe(), arriving(sets, ["a", "b", "c"]), tmp_path / "run")
    assert [step["images"] for step in three.steps] == [24, 48, 72]
    whole = run_growth(recipe(), arriving(sets, ["a", "b", "c"]), tmp_path / "whole")
    assert_same_end(tmp_path / "run", tmp_path / "whole", 3)
    assert len(whole.steps) == 3
    with pytest.raises(CheckpointError, match="slice 2: 'b' → none"):
        run_growth(recipe(), arriving(sets[:1], ["a"]), tmp_path / "other")


def test_below_one_the_new_weights_are_a_mix_of_the_grown_average_and_fresh_ones(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(running._Growth, "_fit", spy(running._Growth._fit, seen))
    run_growth(recipe(inherit=0.9), slices(), tmp_path / "run", arm="grown, m=0.5")
    method = next(state for step, use, state in seen if step == 1 and use == running._TRAIN)
    folder = tmp_path / "run"
    report = read_json(next(folder.glob("steps/2-*/step.json")))
    spec = ArchSpec.from_dict(report["spec"])
    config = GrowCLIPConfig.model_validate({**read_yaml(folder)["method"]})
    averaged = Towers(config)
    averaged.load_state_dict(end_of(folder, 1)["averaged"])
    expansion = Expansion(averaged, drawn(averaged, spec, derive_seed(0, 1, running._GROWN)))
    grown = expansion(averaged)
    expected = inherit(grown, drawn(averaged, spec, derive_seed(0, 1, running._FRESH)), 0.5)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(method[f"model.backbone.{name}"], tensor), name
    # the average that follows is the grown one itself, not a copy of the mix
    for name, tensor in grown.state_dict().items():
        assert torch.equal(method[f"average.module.{name}"], tensor), name


def spy(original, seen: list):
    def fit(self, method, data, step, steps, place, use):
        seen.append((step, use, {name: value.clone() for name, value in method.state_dict().items()}))
        return original(self, method, data, step, steps, place, use)

    return fit


def read_yaml(folder: Path) -> dict:
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def test_arms_share_their_beginning_and_their_number_of_updates(finished, tmp_path):
    found = {}
    for arm in ("fixed", "restarting", "random", "grown, m=0"):
        found[arm] = run_growth(recipe(), slices(), tmp_path / arm, arm=arm)
        assert_same_end(finished[0], tmp_path / arm, 1)
        assert [sum(step["updates"].values()) for step in found[arm].steps] == [STEPS, STEPS]
    for arm in ("fixed", "restarting"):
        assert found[arm].steps[1]["spec"] == found[arm].steps[0]["spec"]
        assert found[arm].steps[1]["updates"] == {"search": 0, "train": STEPS}
    assert found["random"].steps[1]["spec"] != found["random"].steps[0]["spec"]
    assert found["random"].steps[1]["updates"]["search"] == 0
    assert set(ARMS) == {
        "grown",
        "grown, m=1",
        "grown, m=0.9",
        "grown, m=0.7",
        "grown, m=0.5",
        "grown, m=0",
        *(f"largest, m={m}" for m in ("1", "0.9", "0.7", "0.5", "0")),
        "random",
        "fixed",
        "restarting",
    }


def test_the_largest_is_taken_without_a_search_where_that_is_asked_for(tmp_path):
    arm = run_growth(recipe(), slices(), tmp_path / "arm", arm="largest, m=1")
    chosen = run_growth(recipe(selector="largest", inherit=1.0), slices(), tmp_path / "selector")
    spec = ArchSpec.from_dict(arm.steps[1]["spec"])
    first = ArchSpec.from_dict(arm.steps[0]["spec"])
    config = GrowCLIPConfig.model_validate(read_yaml(tmp_path / "arm")["method"])
    assert first.flops(tokens_of(config, 4)) < spec.flops(tokens_of(config, 4))
    for run in (arm, chosen):
        assert run.steps[1]["selection"] is None
        assert run.steps[1]["updates"] == {"search": 0, "train": STEPS}
        assert run.steps[1]["spec"] == arm.steps[1]["spec"]
    searched = run_growth(recipe(), slices(), tmp_path / "searched")  # which takes the dearest here
    costs = {row["name"]: row["cost"] for row in searched.steps[1]["selection"]["candidates"]}
    dearest = max(costs, key=lambda name: costs[name])
    assert arm.steps[1]["flops"] == costs[dearest]
    assert_same_end(tmp_path / "arm", tmp_path / "selector", 2)


def test_what_the_search_trained_can_be_inherited(tmp_path, monkeypatch):
    seen, searches = [], []
    monkeypatch.setattr(running._Growth, "_fit", spy(running._Growth._fit, seen))
    keep = running._Growth._keep_searched

    def watched(self, step, averaged, spec, search):
        searches.append((spec, {name: value.clone() for name, value in search.state_dict().items()}, search.candidates))
        keep(self, step, averaged, spec, search)

    monkeypatch.setattr(running._Growth, "_keep_searched", watched)
    settings = recipe(inherit=1.0, inherit_from="supernet")
    run_growth(settings, slices(), tmp_path / "run", measure=figures)
    ((spec, supernet, _),) = searches
    begun = next(state for step, use, state in seen if step == 1 and use == running._TRAIN)
    config = GrowCLIPConfig.model_validate(read_yaml(tmp_path / "run")["method"])
    for place, ours in (("model.backbone", "model.backbone"), ("average.module", "average.module")):
        large = {name: value for name, value in supernet.items() if name.startswith(f"{place}.")}
        small = {name: value for name, value in begun.items() if name.startswith(f"{ours}.")}
        assert large.keys() >= small.keys()
        towers, alone = Towers(config.at(_largest_of(large, config, spec))), Towers(config.at(spec))
        towers.load_state_dict({name.removeprefix(f"{place}."): value for name, value in large.items()})
        alone.load_state_dict({name.removeprefix(f"{ours}."): value for name, value in small.items()})
        images = torch.from_numpy(tiny.pairs().images.array[:3]).float() / 255
        with torch.no_grad():
            expected = towers.eval().embed_images(images, spec.parts)
            torch.testing.assert_close(alone.eval().embed_images(images), expected, rtol=0, atol=1e-6)
    assert not torch.equal(begun["model.backbone.logit_scale"], end_of(tmp_path / "run", 1)["averaged"]["logit_scale"])
    assert not list(tmp_path.glob("run/steps/*/searched.safetensors"))

    with monkeypatch.context() as patch:
        patch.setattr(running, "inherit", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run_growth(settings, slices(), tmp_path / "cut", measure=figures)
    assert list(tmp_path.glob("cut/steps/2-*/searched.safetensors"))
    run_growth(settings, slices(), tmp_path / "cut", measure=figures)
    assert len(searches) == 2  # the search was not made again
    assert_same_end(tmp_path / "run", tmp_path / "cut", 2)
    with pytest.raises(ValueError, match="takes moments from the model before"):
        recipe(inherit_from="supernet", optimizer="expanded")


def _largest_of(state: dict, config: GrowCLIPConfig, spec: ArchSpec) -> ArchSpec:
    """The sizes of towers, read off their weights."""
    parts = {}
    for name in ("image", "text", "shared"):
        rows = {key: value for key, value in state.items() if f".blocks.{name}." in key}
        blocks = 1 + max(int(key.split(f".blocks.{name}.")[1].split(".")[0]) for key in rows)
        first = next(key for key in rows if key.endswith(f"{name}.0.qkv.weight"))
        hidden = next(value for key, value in rows.items() if key.endswith(f"{name}.0.fc1.weight"))
        parts[name] = dataclasses.replace(
            spec.parts[name], blocks=blocks, heads=len(rows[first]) // 3 // config.head_width, hidden=len(hidden)
        )
    return dataclasses.replace(spec, parts=parts)


def test_a_fixed_model_goes_on_and_a_restarting_one_begins_anew(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(running._Growth, "_fit", spy(running._Growth._fit, seen))
    for arm in ("fixed", "restarting"):
        run_growth(recipe(), slices(), tmp_path / arm, arm=arm)
    fixed, fresh = (next(state for step, _, state in seen[at : at + 2] if step == 1) for at in (0, 2))
    before = end_of(tmp_path / "fixed", 1)["towers"]
    for name, tensor in before.items():
        assert torch.equal(fixed[f"model.backbone.{name}"], tensor)
    key = "model.backbone.blocks.shared.0.qkv.weight"
    assert not torch.equal(fresh[key], before[key.removeprefix("model.backbone.")])
    assert not torch.equal(fresh[key], seen[2][2][key])


def test_moments_of_the_optimizer_are_expanded_where_that_is_asked_for(tmp_path, monkeypatch):
    kept = []
    grown_state = running.grow_optimizer_state

    def watched(old, new, expansion, old_model, new_model):
        grown_state(old, new, expansion, old_model, new_model)
        kept.append((old, new, expansion, dict(old_model.named_parameters()), dict(new_model.named_parameters())))

    monkeypatch.setattr(running, "grow_optimizer_state", watched)
    run_growth(recipe(optimizer="expanded"), slices(), tmp_path / "run")
    ((old, new, expansion, old_parameters, new_parameters),) = kept
    saved = end_of(tmp_path / "run", 1)["optimizer"]
    name = "blocks.shared.0.qkv.weight"
    moment = saved[f"model.backbone.{name}"]["exp_avg"]
    assert moment.any()
    assert torch.equal(old.state[old_parameters[name]]["exp_avg"], moment)
    assert new.state[new_parameters[name]]["exp_avg"].shape == new_parameters[name].shape
    assert expansion.moment(name, moment).shape == new_parameters[name].shape


def test_without_room_to_grow_nothing_is_searched_for(tmp_path):
    found = run_growth(recipe(budget=1.0, beta=0.0), slices(), tmp_path / "run")
    assert found.steps[1]["selection"] is None
    assert found.steps[1]["updates"] == {"search": 0, "train": STEPS}
    assert found.steps[1]["spec"] == found.steps[0]["spec"]
    assert found.overhead() == []


def test_runs_that_cannot_begin_leave_nothing(tmp_path):
    for changes, said in (
        ({"fit": {"batch_size": 32}}, "batch_size 32 is larger than the data"),
        ({"search_share": 0.99}, "8 of 8 updates would go into the search"),
        ({"fit": {"strategy": "fsdp"}}, "fit.strategy fsdp shards tensors"),
    ):
        with pytest.raises(ConfigError, match=said):
            run_growth(recipe(**changes), slices(), tmp_path / "run")
        assert not list((tmp_path / "run").glob("[!.]*"))
    with pytest.raises(ConfigError, match="no arm 'grow'"):
        run_growth(recipe(), slices(), tmp_path / "x", arm="grow")
    none_held: Pairs = tiny.pairs(48, 0, 8)
    with pytest.raises(DataError, match="no picture in the split 'validation'"):
        run_growth(recipe(), sliced(none_held, 2), tmp_path / "x")
    with pytest.raises(CheckpointError, match="nothing to resume"):
        run_growth(recipe(), slices(), tmp_path / "x", resume="must")


def test_two_processes_search_and_grow_alike(tmp_path):
    """Each takes half of every batch; both choose the same size and end with the same weights, as one process can load them."""
    script = Path(__file__).with_name("_grow_on_two.py")
    workers = [
        subprocess.Popen([sys.executable, script, str(rank), "2", tmp_path], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)[-3000:]
    first, second = (torch.load(tmp_path / f"found-{rank}.pt", weights_only=True) for rank in range(2))
    assert first["specs"] == second["specs"]
    assert first["specs"][0] != first["specs"][1]  # it has grown
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name
    alone = run_growth(recipe(inherit=1.0, inherit_from="supernet"), slices(), tmp_path / "run", measure=figures)
    for name, tensor in alone.model.state_dict().items():  # finished: only loads
        assert torch.equal(tensor, first["state"][name]), name
