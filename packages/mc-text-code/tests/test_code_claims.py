"""The parts of CoCoSoDa one by one: equal starts and steps, what each case has, and that nothing is done twice."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from mc_core.errors import ConfigError
from mc_text_code import code_claims as claims
from mc_text_code import load_encoder
from mc_text_code.code_claims import (
    CASES,
    HIDDEN,
    HIDDEN_BOTH,
    IN_BATCH,
    INTRA,
    NAMES,
    QUEUE,
    SHOWN,
    SHOWN_BOTH,
    SOFT,
    UNTRAINED,
    WORDS,
)
from mc_text_code.code_recipe import resolve_code_recipe
from mc_text_code.data.code_pairs import CodePair
from mc_text_code.data.code_search_sets import CodeSearchSet
from mc_text_code.evaluation.code_search import OneEncoder, evaluate_code_search

VERBS = ("open", "close", "parse", "write", "count", "sort", "merge", "split")
THINGS = ("file", "socket", "tree", "table", "number", "string")
PAIRS = [
    CodePair(
        f"{verb}s the {thing} of a user",
        f"def {verb}_{thing}(x):\n    y = x + {len(verb)}\n    return {thing}s[y]",
        "python",
        name=f"{verb}_{thing}",
    )
    for verb in VERBS
    for thing in THINGS
]
TRAIN, ASKED = PAIRS[:36], CodeSearchSet.of(PAIRS[36:])
SMALL = {"hidden_size": 16, "heads": 2, "layers": 1, "vocabulary": 300}


def recipe_of(**method):
    fit = {"steps": 3, "batch_size": 12, "device": "cpu", "stop_on_collapse": False}
    return resolve_code_recipe(
        "cocosoda-laptop", {"method": {"encoder": SMALL, "queue_size": 24, **method}, "fit": fit}
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study of two seeds, what each of its runs began with, and its folder."""
    seen = []
    real = claims.fit

    def spy(method, data, *, fit, run_dir, recipe):
        weights = {name: value.clone() for name, value in method.online.state_dict().items()}
        seen.append((method.config, weights, fit, run_dir.name, data))
        return real(method, data, fit=fit, run_dir=run_dir, recipe=recipe)

    folder = tmp_path_factory.mktemp("code-claims")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "fit", spy)
        found = claims.code_claims(recipe_of(), TRAIN, ASKED, folder, seeds=2)
    return found, seen, folder


def test_each_case_has_one_part_more_and_all_else_alike(study):
    _, seen, _ = study
    parts = [
        (c.momentum_keys, c.queue_size, bool(c.augment.kinds), c.augment.query, c.intra_modal, c.augment.hide_names)
        for c, *_ in seen
    ]
    assert parts == 2 * [
        (False, 0, False, False, False, 0),
        (True, 24, False, False, False, 0),
        (True, 24, True, True, False, 0),
        (True, 24, True, True, True, 0),
        (True, 24, True, True, True, 0.5),
    ]
    assert [c.block_weights for c, *_ in seen[:4]] == [
        (1, 0, 1, 0, 0, 0), (1, 1, 1, 1, 0, 0), (1, 1, 1, 1, 0, 0), (1, 1, 1, 1, 1, 1)
    ]  # fmt: skip
    assert [fit.seed for _, _, fit, *_ in seen] == 5 * [0] + 5 * [1]
    assert {fit.steps for _, _, fit, *_ in seen} == {3}
    assert len({id(data) for *_, data in seen}) == 1
    for first in (0, 5):
        for _, weights, *_ in seen[first + 1 : first + 5]:
            assert all(torch.equal(value, seen[first][1][name]) for name, value in weights.items())
    differs = [not torch.equal(value, seen[5][1][name]) for name, value in seen[0][1].items()]
    assert any(differs)


def test_figures_are_those_of_the_evaluation(study):
    found, _, folder = study
    rows = found.rows()
    assert list(rows) == [WORDS, UNTRAINED, IN_BATCH, QUEUE, SOFT, INTRA, NAMES]
    for hidden, alone, both in ((False, SHOWN, SHOWN_BOTH), (True, HIDDEN, HIDDEN_BOTH)):
        words = evaluate_code_search(ASKED, names_hidden=hidden).rows["lexical"].mrr
        assert rows[WORDS][alone].values == (pytest.approx(words),)
        assert both not in rows[WORDS]
        for seed in (0, 1):
            encoder = load_encoder(folder / f"seed-{seed}" / "soft-augmentation")
            own = evaluate_code_search(ASKED, OneEncoder(encoder.encode), names_hidden=hidden).rows
            assert rows[SOFT][alone].values[seed] == pytest.approx(own["dense"].mrr, abs=1e-6)
            assert rows[SOFT][both].values[seed] == pytest.approx(own["hybrid"].mrr, abs=1e-6)
    assert rows[IN_BATCH][SHOWN].values != rows[UNTRAINED][SHOWN].values


def test_steps_are_differences_to_the_row_before(study):
    found, _, _ = study
    rows, steps = found.rows(), found.steps()
    assert list(steps) == [QUEUE, SOFT, INTRA, NAMES]
    for before, name in pairwise(CASES):
        expected = [b - a for a, b in zip(rows[before][HIDDEN].values, rows[name][HIDDEN].values, strict=True)]
        assert steps[name][HIDDEN].values == pytest.approx(expected)
    plain = json.loads(json.dumps(found.to_dict()))
    assert set(plain) == {"rows", "minus the row before", "seeds", "notes"}
    assert any("random weights" in note for note in plain["notes"])


def test_nothing_is_run_twice_and_other_settings_are_other_rows(study, monkeypatch):
    found, _, folder = study
    monkeypatch.setattr(claims, "fit", None)
    told = []
    again = claims.code_claims(recipe_of(), TRAIN, ASKED, folder, seeds=2, on_row=lambda *row: told.append(row))
    assert again.to_dict() == found.to_dict()
    assert [name for name, _ in told].count(UNTRAINED) == 2
    with pytest.raises(TypeError):  # it would run
        claims.code_claims(recipe_of(temperature=0.1), TRAIN, ASKED, folder, seeds=1)
    with pytest.raises(TypeError):
        claims.code_claims(recipe_of(), TRAIN[1:], ASKED, folder, seeds=1)


def test_what_makes_no_sense_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="seeds is 0"):
        claims.code_claims(recipe_of(), TRAIN, ASKED, tmp_path, seeds=0)
    with pytest.raises(ConfigError, match="method.queue_size is 0"):
        claims.code_claims(recipe_of(queue_size=0), TRAIN, ASKED, tmp_path)
    bare = {"augment": {"kinds": [], "query": False}}
    with pytest.raises(ConfigError, match=r"'\+ queue' and '\+ soft augmentation' come to the same recipe"):
        claims.code_claims(recipe_of(**bare), TRAIN, ASKED, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_weight_beside_words_is_chosen_on_other_questions(tmp_path, monkeypatch):
    asked_of, used = [], []
    real = claims.evaluate_code_search

    def choose(asked, encoder, *, names_hidden):
        asked_of.append((asked, names_hidden))
        return 0.25 if names_hidden else 0.75

    def spy(asked, encoder, *, names_hidden, ranking):
        used.append((names_hidden, ranking.dense_weight, encoder is None))
        return real(asked, encoder, names_hidden=names_hidden, ranking=ranking)

    monkeypatch.setattr(claims, "choose_dense_weight", choose)
    monkeypatch.setattr(claims, "evaluate_code_search", spy)
    other = CodeSearchSet.of(PAIRS[24:36])
    cases = {IN_BATCH: CASES[IN_BATCH]}
    claims.code_claims(recipe_of(), TRAIN[:24], ASKED, tmp_path, seeds=1, choose=other, cases=cases)
    assert asked_of == 2 * [(other, False), (other, True)]  # untrained, in-batch
    assert used == 2 * [(False, 0.75, False), (True, 0.25, False)] + [(False, 1.0, True), (True, 1.0, True)]
