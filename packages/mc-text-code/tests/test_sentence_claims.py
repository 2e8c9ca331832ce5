"""The components one by one: equal starts and steps, what each case switches off, and that nothing is done twice."""

import json
import math

import numpy as np
import pytest
import torch

from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_text_code import claims, load_encoder, open_sts, resolve_recipe
from mc_text_code.claims import BOTH, CASES, QUEUE, REPETITION, SIMCSE, START, SWEEP, TFIDF, UNTRAINED, WORDS
from mc_text_code.evaluation import evaluate_sts, half_queries

NOUNS = ["boat", "house", "hill", "river", "garden", "road"]
TEXTS = [
    f"the {NOUNS[i % 6]} {'stands' if i % 2 else 'lies'} beside the {NOUNS[i // 6 % 6]} number {i}" for i in range(72)
]
HELD_OUT = [f"a {NOUNS[i % 6]} near a {NOUNS[i // 6 % 6]}{' again' * (i // 2 % 2 * 4)}" for i in range(36)]
SMALL = {"hidden_size": 16, "heads": 2, "layers": 1, "vocabulary": 200}


def recipe_of(**changes):
    fit = {"steps": 3, "batch_size": 16, "device": "cpu", "stop_on_collapse": False, **changes.pop("fit", {})}
    changes.setdefault("warm_start", {"steps": 2, "batch_size": 8})
    return resolve_recipe("esimcse-laptop", {"method": {"encoder": SMALL}, "fit": fit, **changes})


@pytest.fixture
def tasks(tmp_path):
    rows = [
        f"{a}\t{b}\t{5 * len(set(a) & set(b)) / len(set(a) | set(b)):.2f}"
        for a, b in zip(HELD_OUT[:-7], HELD_OUT[7:], strict=True)
    ]
    file = tmp_path / "mine-test.tsv"
    file.write_text("sentence1\tsentence2\tscore\n" + "\n".join(rows) + "\n")
    return open_sts(file)


def spied(monkeypatch):
    """What each run of the contrast begins with."""
    seen = []
    real = claims.fit

    def spy(method, data, *, fit, run_dir, recipe):
        weights = {name: value.clone() for name, value in method.online.state_dict().items()}
        has_queue = method.queue is not None
        seen.append((run_dir, weights, has_queue, data.augment.kind, fit))
        return real(method, data, fit=fit, run_dir=run_dir, recipe=recipe)

    monkeypatch.setattr(claims, "fit", spy)
    return seen


def test_every_case_starts_alike_and_differs_in_what_it_switches_off(tmp_path, tasks, monkeypatch):
    seen = spied(monkeypatch)
    told = []
    found = claims.component_claims(
        recipe_of(),
        TEXTS,
        tmp_path / "study",
        tasks=tasks,
        texts=HELD_OUT,
        seeds=2,
        on_row=lambda *row: told.append(row),
    )
    assert [(has_queue, kind) for _, _, has_queue, kind, _ in seen] == 2 * [
        (False, "none"), (False, "subword"), (True, "none"), (True, "subword")
    ]  # fmt: skip
    assert [fit.seed for *_, fit in seen] == 4 * [0] + 4 * [1]
    assert {fit.steps for *_, fit in seen} == {3}
    for first in (0, 4):
        for _, weights, *_ in seen[first + 1 : first + 4]:
            assert all(torch.equal(value, seen[first][1][name]) for name, value in weights.items())
    assert not torch.equal(seen[0][1]["head.0.weight"], seen[4][1]["head.0.weight"])
    # what they start from is the warm start, not a new encoder
    warm = load_encoder(tmp_path / "study" / "seed-0" / "warm-start")
    start = {name.removeprefix("encoder."): v for name, v in seen[0][1].items() if name.startswith("encoder.")}
    assert all(torch.equal(value, start[name]) for name, value in warm.state_dict().items())

    assert list(found.runs[0]) == [TFIDF, WORDS, UNTRAINED, START, SIMCSE, REPETITION, QUEUE, BOTH]
    assert list(found.runs[1]) == [UNTRAINED, START, SIMCSE, REPETITION, QUEUE, BOTH]
    columns = found.runs[0][BOTH]
    assert {"mine", "average of these 1", "gap", "near spearman", "length leak"} <= set(columns)
    assert all(math.isfinite(value) for value in columns.values())
    trained = load_encoder(tmp_path / "study" / "seed-1" / "esimcse")
    assert columns != found.runs[1][BOTH]
    assert evaluate_sts(trained.encode, tasks).scores["mine"].spearman == pytest.approx(found.runs[1][BOTH]["mine"])
    assert [name for name, _ in told] == [*found.runs[1], *found.runs[1], TFIDF, WORDS]


def test_rows_are_means_and_differences_seed_by_seed(tmp_path, tasks):
    found = claims.component_claims(recipe_of(), TEXTS, tmp_path / "study", tasks=tasks, seeds=2, baselines=False)
    spread = found.rows()[BOTH]["mine"]
    values = [run[BOTH]["mine"] for run in found.runs]
    assert spread.values == tuple(values)
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.sd == pytest.approx(np.std(values, ddof=1))
    difference = found.differences()[BOTH]["mine"]
    assert difference.values == tuple(run[BOTH]["mine"] - run[SIMCSE]["mine"] for run in found.runs)
    assert set(found.differences()) == {REPETITION, QUEUE, BOTH}
    shown = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert shown["minus SimCSE"][QUEUE]["mine"]["values"]
    assert shown["notes"] == ["2 seeds: too few to tell a component from noise."]


def test_nothing_is_done_twice_and_other_figures_need_no_training(tmp_path, tasks, monkeypatch):
    arguments = (recipe_of(), TEXTS, tmp_path / "study")
    real, calls = claims.fit, []

    def cut_off(*args, **kwargs):
        calls.append(kwargs["run_dir"].name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(claims, "fit", cut_off)
    with pytest.raises(KeyboardInterrupt):
        claims.component_claims(*arguments, tasks=tasks, seeds=1)
    first = claims.component_claims(*arguments, tasks=tasks, seeds=1)
    assert calls == ["simcse", "simcse-repetition", "simcse-queue", "simcse-queue", "esimcse"]
    calls.clear()
    monkeypatch.setattr(claims, "prepare", None)  # not even the corpus is tokenised again
    assert claims.component_claims(*arguments, tasks=tasks, seeds=1) == first
    assert calls == []
    monkeypatch.undo()
    longer = claims.component_claims(*arguments, tasks=tasks, seeds=2)
    assert longer.runs[0] == first.runs[0]
    assert len(longer.runs) == 2
    queries = {"halves": half_queries(HELD_OUT)}
    again = claims.component_claims(*arguments, queries=queries, seeds=1, baselines=False)
    assert set(again.runs[0][BOTH]) == {"halves MRR"}
    with pytest.raises(CheckpointError, match="steps"):
        claims.component_claims(recipe_of(fit={"steps": 4}), *arguments[1:], tasks=tasks, seeds=1)


def test_sweeps_and_named_encoders(tmp_path, tasks, monkeypatch):
    from mc_text_code.encoders import SentenceEncoder
    from mc_text_code.saving import save_sentence_transformer
    from mc_text_code.tokenizers import train_tokenizer

    torch.manual_seed(5)
    recipe = recipe_of()
    encoder = SentenceEncoder(recipe.method.encoder, train_tokenizer(TEXTS, 200))
    named = {"name": str(save_sentence_transformer(encoder, tmp_path / "published")), "max_length": 16}
    recipe = recipe_of(method={"encoder": named}, warm_start={"steps": 0})
    seen = spied(monkeypatch)
    found = claims.component_claims(
        recipe, TEXTS, tmp_path / "study", tasks=tasks, seeds=3, cases=SWEEP, baselines=False
    )
    assert list(found.runs[0]) == [START, *SWEEP]
    assert [has_queue for _, _, has_queue, *_ in seen[:5]] == [False, True, True, True, True]
    start = {name.removeprefix("encoder."): v for name, v in seen[0][1].items() if name.startswith("encoder.")}
    assert all(torch.equal(value, start[name]) for name, value in encoder.state_dict().items())
    assert found.notes == ()
    assert set(found.to_dict()) == {"rows", "seeds", "notes"}
    assert found.differences("queue of 0 batches")


def test_what_cannot_be_compared_is_refused_before_anything_is_written(tmp_path, tasks):
    study = tmp_path / "study"
    plain = resolve_recipe("simcse-laptop", {"method": {"encoder": SMALL}, "fit": {"steps": 1, "batch_size": 16}})
    with pytest.raises(ConfigError, match=r"'SimCSE' and 'SimCSE \+ repetition' come to the same recipe"):
        claims.component_claims(plain, TEXTS, study, tasks=tasks)
    with pytest.raises(ConfigError, match="seeds is 0"):
        claims.component_claims(recipe_of(), TEXTS, study, tasks=tasks, seeds=0)
    with pytest.raises(DataError, match="nothing to measure on"):
        claims.component_claims(recipe_of(), TEXTS, study)
    with pytest.raises(ConfigError, match="case x: unknown field method.queue_batch; did you mean queue_batches"):
        claims.component_claims(recipe_of(), TEXTS, study, tasks=tasks, cases={"x": {"method": {"queue_batch": 1}}})
    with pytest.raises(ConfigError, match="batch_size 128 is larger"):
        claims.component_claims(recipe_of(fit={"batch_size": 128}), TEXTS, study, tasks=tasks)
    assert not study.exists()


def test_a_toy_from_random_weights_says_so(tmp_path, tasks):
    cases = {name: CASES[name] for name in (SIMCSE, BOTH)}
    found = claims.component_claims(
        recipe_of(warm_start={"steps": 0}),
        TEXTS,
        tmp_path / "study",
        tasks=tasks,
        seeds=1,
        cases=cases,
        baselines=False,
    )
    assert "no evidence for or against" in found.notes[0]
    # nothing was trained between the two
    assert found.runs[0][START] == found.runs[0][UNTRAINED]
