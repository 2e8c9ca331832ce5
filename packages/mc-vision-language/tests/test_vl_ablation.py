"""Rows of the ablation: what each trains, and that the rows downstream go on from the full pretraining of their seed."""

import shutil

import pytest
import torch

from mc_core.errors import CheckpointError, ConfigError
from mc_core.files import read_json
from mc_core.samples import digit_scenes
from mc_vision_language import scene_pairs
from mc_vision_language.ablation import ARMS, COLUMNS, DOWNSTREAM, arm_of, run_arm, run_downstream, tuned
from mc_vision_language.model import load_vision_language_model
from mc_vision_language.recipe import resolve_recipe

TINY = {
    "method": {
        "image": {"image_size": 32, "patch_size": 16, "width": 16, "depth": 1, "heads": 2, "stem": "patch"},
        "text": {"hidden_size": 16, "heads": 2, "text_layers": 1, "fusion_layers": 1, "vocabulary": 200},
        "dim": 8,
        "queue_size": 32,
        "alpha_ramp_epochs": 0.0,
    },
    "fit": {"steps": 4, "batch_size": 16, "warmup_epochs": 0.0, "device": "cpu"},
}
FINE, DISTILLED = DOWNSTREAM


@pytest.fixture(scope="module")
def pairs():
    return scene_pairs({"train": digit_scenes(40, size=32), "test": digit_scenes(12, size=32, split="test")})


@pytest.fixture(scope="module")
def done(pairs, tmp_path_factory):
    """The folder with the full row and both rows downstream of one seed, and their figures."""
    folder = tmp_path_factory.mktemp("rows")
    given = ("albef-laptop", TINY)
    return folder, {arm.name: run_downstream(*given, arm, 0, pairs, folder, k=4) for arm in DOWNSTREAM}


def weights(folder, name):
    return load_vision_language_model(folder / "noise-0" / "seed-0" / name).state_dict()


def test_rows_downstream_train_the_full_row_first_and_further(done):
    folder, scores = done
    assert all(set(COLUMNS) <= set(one) for one in scores.values())
    full, fine, distilled = (weights(folder, name) for name in ("+-MoD-in-MLM", "fine-tuned", "+-MoD-downstream"))
    moved = {name: (fine[name] - full[name]).abs().max().item() for name in full}
    assert 0 < max(moved.values()) < 0.05  # a single step from the same weights, at a tenth of the rate
    assert any(not torch.equal(fine[name], distilled[name]) for name in fine)
    kept = read_json(folder / "noise-0" / "seed-0" / "fine-tuned" / "scores.json")["settings"]
    assert kept["from"]["method"]["distil_mlm"] is True
    assert (kept["system"], kept["method"]["distil_itc"], kept["method"]["mlm"]) == ("retrieval", False, 0.0)
    assert read_json(folder / "noise-0" / "seed-0" / "+-MoD-downstream" / "scores.json")["settings"]["method"]["alpha"]


def test_a_row_that_is_done_is_read(done, pairs):
    folder, scores = done
    place = folder / "noise-0" / "seed-0" / "fine-tuned"
    before = (place / "scores.json").stat().st_mtime_ns
    assert run_downstream("albef-laptop", TINY, FINE, 0, pairs, folder, k=4) == scores["fine-tuned"]
    assert (place / "scores.json").stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match="under other settings"):
        run_downstream("albef-laptop", TINY, FINE, 0, pairs, folder, k=5)


def test_pretrained_weights_that_were_removed_are_named(done, pairs, tmp_path):
    folder, _ = done
    shutil.copytree(folder, tmp_path / "rows")
    place = tmp_path / "rows" / "noise-0" / "seed-0"
    shutil.rmtree(place / "+-MoD-in-MLM" / "model")
    shutil.rmtree(place / "fine-tuned")
    with pytest.raises(CheckpointError, match="MoD-in-MLM"):
        run_downstream("albef-laptop", TINY, FINE, 0, pairs, tmp_path / "rows", k=4)


def test_wrong_captions_are_the_same_downstream_and_the_measure_is_on_right_ones(pairs, tmp_path, monkeypatch):
    from mc_vision_language import ablation

    seen = {}

    def keep(task, model, rows, recipe, place, **rest):
        seen["rows"] = rows
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "finetune_task", keep)
    with pytest.raises(KeyboardInterrupt):
        run_downstream("albef-laptop", TINY, DISTILLED, 3, pairs, tmp_path, noise=0.5, k=4)
    expected = ablation.shuffled_captions(pairs, 0.5, 3)
    assert list(seen["rows"].captions) == list(expected.captions)
    assert list(seen["rows"].part("test").captions) == list(pairs.part("test").captions)


@pytest.mark.parametrize(
    ("fit", "steps", "epochs"),
    [({"steps": 1600}, 400, None), ({"steps": 2}, 1, None), ({"steps": None, "epochs": 30}, None, 7)],
)
def test_downstream_takes_a_quarter_of_the_steps_at_a_tenth_of_the_rate(fit, steps, epochs):
    base = resolve_recipe("albef-laptop", {"fit": fit})
    for arm in DOWNSTREAM:
        recipe = tuned(base, arm)
        assert (recipe.fit.steps, recipe.fit.epochs) == (steps, epochs)
        assert recipe.fit.lr == pytest.approx(base.fit.lr / 10)
        assert recipe.fit.warmup_epochs == base.fit.warmup_epochs / 4
        assert recipe.method.distils is (arm is DISTILLED)
        assert (recipe.augment, recipe.unit) == (base.augment, base.unit)
        same = ("queue_size", "momentum", "alpha", "ids", "hard_negative_strength", "itc", "itm")
        assert all(getattr(recipe.method, name) == getattr(base.method, name) for name in same)


def test_each_row_changes_what_its_name_says():
    recipes = {arm.name: resolve_recipe("albef-laptop", {"method": dict(arm.method)}).method for arm in ARMS}
    told = {
        name: (m.itc, m.itm, m.mlm, m.hard_negative_strength, m.distil_itc, m.distil_mlm) for name, m in recipes.items()
    }
    assert told == {
        "MLM + ITM": (0, 1, 1, 0, False, False),
        "ITC alone": (1, 0, 0, 1, False, False),
        "MLM + ITM + ITC": (1, 1, 1, 0, False, False),
        "+ hard negatives": (1, 1, 1, 1, False, False),
        "+ MoD in ITC": (1, 1, 1, 1, True, False),
        "+ MoD in MLM": (1, 1, 1, 1, True, True),
    }
    with pytest.raises(ConfigError, match=r"\+ hard negatives"):
        arm_of("+ hard negative")


def test_a_row_of_its_own_is_measured_on_right_captions(pairs, tmp_path):
    scores = run_arm("albef-laptop", TINY, arm_of("ITC alone"), 1, pairs, tmp_path, noise=0.5, k=4)
    assert 0 <= scores["contrast_mean"] <= 1
