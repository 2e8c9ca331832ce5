"""The benchmarks of Astrea run at a tiny size, keep their rows, and say what they measured."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from mc_benchmarks import astrea_claims, astrea_real, astrea_step, contract
from mc_benchmarks.astrea_claims import (
    APART,
    BOTH,
    CONCAT,
    REGIMES,
    Regime,
    apart,
    best_single,
    claimed_arms,
    run_astrea_claims,
)
from mc_benchmarks.astrea_real import RANDOM, WIDE_ROW, base_recipe, encoder_size, run_astrea_real, widened
from mc_benchmarks.astrea_step import ALONE, CASES, OVER, run_astrea_step
from mc_benchmarks.contract import load_report
from mc_core.errors import ConfigError
from mc_core.recipes import merge
from mc_vision_language.staged import ablation
from mc_vision_language.staged.ablation import FULL
from mc_vision_language.staged.sample import staged_sample

PHOTOGRAPHS = astrea_real.SETTINGS
COUNTS = {"train": 24, "validation": 4, "test": 12}
FEW = {
    "method": {
        "width": 16,
        "dim": 8,
        "queue_size": 16,
        "text": {"hidden_size": 16, "heads": 2},
        "language": {"hidden_size": 16, "heads": 2, "layers": 1},
        "stages": {"experts": {"steps": 2, "batch_size": 8}, "instruct": {"steps": 2, "batch_size": 8}},
    },
    "fit": {"batch_size": 8, "warmup_epochs": 0},
}


def _narrow(settings):
    """Experts of four channels."""
    made = merge(settings, FEW)
    experts = [{**one, "width": 4} for one in made["method"]["experts"]]
    return merge(made, {"method": {"experts": experts}})


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(astrea_claims, "SETTINGS", _narrow(astrea_claims.SETTINGS))
    monkeypatch.setattr(astrea_real, "SETTINGS", _narrow(astrea_real.SETTINGS))


def test_rows_of_scenes_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(astrea_claims, "staged_sample", lambda **asked: staged_sample(**asked, counts=COUNTS))
    rows = (FULL, "only detection", CONCAT, BOTH)
    monkeypatch.setattr(
        astrea_claims, "REGIMES", (Regime("", rows=rows), Regime("few captions: ", captions=10, rows=(FULL,)))
    )
    report = run_astrea_claims(seeds=1, steps=4, keep=tmp_path)
    assert load_report("astrea_claims") == report
    assert [row.name for row in report.rows] == [FULL, "only detection", CONCAT, BOTH, f"few captions: {FULL}"]
    least = astrea_claims.COLUMNS["least_weight"]
    assert 0.05 <= float(str(report.rows[0].values[least])) <= 0.25
    assert report.rows[2].values[least] is None  # no weights
    assert f"{FULL} − only detection" in report.reading
    assert f"{BOTH} − {FULL}" in report.reading

    def trained_again(*_, **__):
        raise AssertionError("a finished row is trained again")

    monkeypatch.setattr(ablation, "run_astrea", trained_again)
    assert run_astrea_claims(seeds=1, steps=4, keep=tmp_path).rows == report.rows


def test_experts_learn_from_different_pictures(tmp_path, monkeypatch):
    whole = staged_sample(seed=1, counts=COUNTS)
    found = apart(whole)
    dark = found.known("captions")
    assert 0 < dark.sum() < len(dark)
    for name, seen in (("boxes", dark), ("labels", ~dark), ("masks", ~dark), ("questions", np.zeros_like(dark))):
        assert (found.known(name) == seen).all()
    pixels = np.stack([np.asarray(whole.pairs.images.read(row)) for row in range(len(whole))])
    corners = pixels[:, :, :2, :2].reshape(len(whole), -1).mean(1)
    assert corners[dark].max() < corners[~dark].min()
    for row in np.flatnonzero(dark):
        assert found.pairs.captions_of(row) == whole.pairs.captions_of(row)
        (mine, kinds, _), (theirs, known, _) = (one.padded(np.array([row])) for one in (found.boxes, whole.boxes))
        assert (mine == theirs).all()
        assert (kinds == known).all()
    row = np.flatnonzero(~dark)[0]
    assert (found.masks.read(row) == whole.masks.read(row)).all()
    told: list[dict[str, int]] = []
    monkeypatch.setattr(
        astrea_claims, "staged_sample", lambda **asked: told.append(asked) or staged_sample(**asked, counts=COUNTS)
    )
    run_astrea_claims(seeds=8, steps=4, keep=tmp_path / "seventh", only_seed=7, experts_apart=True)
    assert told == [{"seed": 7, "held_out": 2}]
    report = run_astrea_claims(seeds=1, steps=4, keep=tmp_path, experts_apart=True)
    assert load_report("astrea_apart") == report
    assert [row.name for row in report.rows] == list(APART.rows)
    assert f"{FULL} − uniform weights" in report.reading
    assert "of 1 seeds)" in report.reading


def test_every_regime_asks_for_rows_that_exist():
    names = [arm.name for arm in claimed_arms()]
    assert len(set(names)) == len(names)
    for regime in (*REGIMES, APART):
        assert set(regime.rows or ()) <= set(names)


def test_the_best_single_expert_is_that_of_the_highest_mean():
    found = {FULL: [{"mean_recall": 0.9}], "only a": [{"mean_recall": 0.1}, {"mean_recall": 0.3}]}
    assert best_single(found) == "only a"
    assert best_single({**found, "only b": [{"mean_recall": 0.25}]}) == "only b"
    assert best_single({FULL: found[FULL]}) is None


def test_one_encoder_has_as_many_parameters_and_updates_as_all_experts(monkeypatch):
    monkeypatch.setattr(astrea_real, "SETTINGS", PHOTOGRAPHS)
    recipe = base_recipe(3)
    wide = widened(recipe)
    together = sum(encoder_size(one) for one in recipe.method.experts)
    assert encoder_size(wide.method.experts[0]) == pytest.approx(together, rel=0.1)
    assert wide.method.stages.experts.steps == 4 * recipe.method.stages.experts.steps
    assert wide.method.kinds == (astrea_real.WIDE,)


def _photographs(folder, count=30):
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "coco-captions-mini.tar", "w") as tar:

        def add(name, content):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        add("categories.json", json.dumps({"1": "cat", "2": "dog"}).encode())
        for number in range(count):
            note = {"captions": [f"a thing of number {number}", f"number {number % 7} again"]}
            pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            if number % 2:
                kind = 1 + number // 2 % 2
                pixels[10:30, 20:40] = 90 * kind
                note["objects"] = [{"category_id": kind, "bbox": [20, 10, 20, 20], "iscrowd": 0}]
                mask = np.zeros((48, 64), np.uint8)
                mask[10:30, 20:40] = kind
                stored = io.BytesIO()
                Image.fromarray(mask).save(stored, "PNG")
                add(f"{number:03d}.seg.png", stored.getvalue())
            stored = io.BytesIO()
            Image.fromarray(pixels).save(stored, "PNG")
            add(f"{number:03d}.png", stored.getvalue())
            add(f"{number:03d}.json", json.dumps(note).encode())


def test_photographs_go_through_all_stages(tmp_path):
    pytest.importorskip("pycocoevalcap", reason="captions are measured with pycocoevalcap")
    _photographs(tmp_path)
    report = run_astrea_real(data=tmp_path, seeds=1, steps=2, keep=tmp_path / "kept")
    names = [row.name for row in report.rows]
    assert names[:4] == [FULL, WIDE_ROW, "uniform weights", CONCAT]
    assert RANDOM in names
    figures = report.rows[0].values
    assert figures["CIDEr-D"] is not None
    assert figures["parameters of encoders, M"] is not None
    assert sum("expert, " in name for name in names) == 4
    assert f"{FULL} − {WIDE_ROW}" in report.reading
    again = run_astrea_real(data=tmp_path, seeds=1, steps=2, keep=tmp_path / "kept")
    assert again.rows == report.rows
    with pytest.raises(ConfigError, match="no such folder"):
        run_astrea_real(data=tmp_path / "nowhere", seeds=1, steps=2, keep=tmp_path / "kept")


def test_steps_are_measured_beside_their_parts(monkeypatch):
    monkeypatch.setattr(astrea_step, "SETTINGS", _narrow(astrea_step.SETTINGS))
    cases = [name for name in CASES if name.startswith("laptop") and "kept" in name]
    report = run_astrea_step(repeats=2, cases=cases)
    assert [row.name for row in report.rows] == cases
    assert all(float(str(row.values[OVER])) > 0 for row in report.rows)
    assert all(float(str(row.values[ALONE])) > 0 for row in report.rows)
    assert "times its parts (bar 1.15" in report.reading
