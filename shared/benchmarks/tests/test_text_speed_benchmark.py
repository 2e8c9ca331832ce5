"""Speed of training and embedding sentences: both sides do the same work, whole steps train, and the report says what was met."""

import pytest
import torch

from mc_benchmarks import contract, text_speed
from mc_benchmarks.contract import Row, load_report
from mc_benchmarks.text_speed import BESIDE, OURS, THEIRS, TIMES, changes, our_step, per_step, run_text_speed
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.methods.esimcse.model import ESimCSE
from mc_text_code.recipe import resolve_recipe
from mc_text_code.tokenizers import train_tokenizer

TEXTS = [f"the {a} {b} number {n}" for a in ("red", "old") for b in ("boat", "house", "hill") for n in range(40)]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(text_speed, "SIZES", {"tiny": {"hidden_size": 16, "layers": 1, "heads": 2}})
    monkeypatch.setattr(text_speed, "read_sentences", lambda data, count: ("made", TEXTS * (1 + count // len(TEXTS))))
    monkeypatch.setattr(text_speed, "_TOKENIZER_ON", len(TEXTS))


def test_it_runs_end_to_end_and_both_sides_train(tiny, monkeypatch):
    real, batches = text_speed.their_run, []

    def watched(recipe, model, sentences, folder, *, queue):
        batches.append((len(sentences), recipe.fit.steps, queue))
        return real(recipe, model, sentences, folder, queue=queue)

    monkeypatch.setattr(text_speed, "their_run", watched)
    report = run_text_speed(data=None, repeats=1, threads=1, batch=8, steps=7, texts=40, sizes=["tiny"])
    assert load_report("text_speed") == report
    assert set(batches) == {(56, 7, False), (56, 7, True)}  # an epoch each, of the same sentences
    names = [row.name.removeprefix("tiny: ") for row in report.rows]
    assert names == [
        "a step of SimCSE",
        "a step of ESimCSE",
        *(f"{what}, {side}" for what in ("training with SimCSE", "training with ESimCSE", "embedding")
          for side in (OURS, THEIRS)),
    ]  # fmt: skip
    assert [name for name, row in zip(names, report.rows, strict=True) if row.values[TIMES]] == ["a step of ESimCSE"]
    assert [row.values[BESIDE] is None for row in report.rows] == [True, True, *[False, True] * 3]
    assert report.environment.packages["sentence-transformers"]


@pytest.mark.parametrize("system", ["SimCSE", "ESimCSE"])
def test_the_step_that_is_timed_trains(tiny, system):
    recipe = resolve_recipe(text_speed.SYSTEMS[system], changes("tiny", 8, 7))
    encoder = SentenceEncoder(recipe.method.encoder, train_tokenizer(TEXTS, 200))
    step = our_step(recipe, encoder, TEXTS)
    method = next(c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, ESimCSE))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    for _ in range(40):  # also around the end of the sentences
        step()
    after = method.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any(name.startswith("online.encoder") for name in changed)
    assert any(name.startswith("online.head") for name in changed)
    assert any(name.startswith("momentum_encoder") for name in changed) == (system == "ESimCSE")
    assert (method.queue is None) if system == "SimCSE" else (len(method.queue) == 20)


def test_early_steps_are_not_counted():
    ends = [10.0, 11.0, 12.0, 13.0, 14.0, 14.5, 15.0]
    assert per_step(ends) == 0.5
    assert per_step(ends[:3]) == 1.0


def test_what_falls_short_is_said():
    def rows(times, simcse, esimcse, embedding):
        values = {
            "x: a step of ESimCSE": (times, None),
            "x: training with SimCSE, ours": (None, simcse),
            "x: training with ESimCSE, ours": (None, esimcse),
            "x: embedding, ours": (None, embedding),
        }
        return [Row(name=name, values={TIMES: a, BESIDE: b}) for name, (a, b) in values.items()]

    good, bad = text_speed._reading(rows(1.2, 1.3, 1.1, 1.0)), text_speed._reading(rows(1.3, 0.9, 1.1, 0.99))
    assert "not reached" not in good
    assert "1.30 × that of SimCSE (7/6 by counting passes; bar 1.25: not reached)" in bad
    assert "training with SimCSE 0.90 × its speed (not reached)" in bad
    assert "embedding 0.99 × its speed (not reached)" in bad
    assert bad.count("not reached") == 3
