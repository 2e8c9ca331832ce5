"""``mc-text-code code train``: from a tree of source code to a model that searches it, and what cannot work."""

import json
import shutil
from pathlib import Path

import pytest

from mc_testkit import command as testkit
from mc_text_code.data.code_files import open_pairs
from mc_text_code.evaluation.code_search import DENSE_WEIGHTS

VERBS = ("read", "write", "close", "count", "merge", "split", "sort", "filter", "load", "save", "open", "check")
NOUNS = ("file", "line", "user", "matrix", "graph", "token", "record", "image", "packet", "cache", "index", "label")
FUNCTION = '''def {verb}_{noun}(source, limit):
    """{Verb} every {noun} of the source up to the given limit."""
    found = []
    for {noun} in source:
        found.append({noun}.{verb}(limit + {number}, "{verb}"))
    return found[{number}:limit]
'''
SMALL = [
    *("--fit.steps", 6, "--fit.batch-size", 16, "--fit.device", "cpu", "--method.queue-size", 32),
    *("--method.encoder.hidden-size", 16, "--method.encoder.heads", 2, "--method.encoder.max-length", 48),
]


def code(*arguments):
    from mc_text_code_app.app import run

    return testkit.call(run, "code", *arguments)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """144 documented functions in twelve folders."""
    root = tmp_path_factory.mktemp("code") / "tools"
    for noun in NOUNS:
        (root / noun).mkdir(parents=True)
        functions = [
            FUNCTION.format(verb=verb, Verb=verb.capitalize(), noun=noun, number=number)
            for number, verb in enumerate(VERBS)
        ]
        (root / noun / f"{noun}s.py").write_text("\n\n".join(functions))
    return root


@pytest.fixture(scope="module")
def trained(tree, tmp_path_factory):
    """A finished run and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, code("train", tree, *SMALL, "--out", out, "--json").json


def test_a_run_measures_itself_and_leaves_what_is_needed(trained):
    out, found = trained
    assert found["metric"] == "mrr"
    assert set(found["baselines"]) == {"lexical", "before training"}
    assert 0 < found["hybrid"] <= 1
    assert 0 < found["trained"] <= 1
    assert found["part"] == "valid"
    assert (found["steps"], found["run"]) == (6, str(out))
    assert json.loads((out / "result.json").read_text()) == found
    for name in ("recipe.yaml", "metrics.jsonl", "report.html", "model/modules.json", "tokenizer/tokenizer.json"):
        assert (out / name).is_file(), name
    parts = {part: open_pairs(out / f"{part}.jsonl").pairs for part in ("valid", "held-out")}
    assert len(parts["valid"]) == found["pairs"]["valid"]
    assert len(parts["held-out"]) == found["pairs"]["test"]
    assert not {pair.package for pair in parts["valid"]} & {pair.package for pair in parts["held-out"]}


def test_the_model_searches_and_is_measured(trained, tree):
    out, found = trained
    answer = code("search", "sort every matrix", tree, "--model", out, "--mode", "dense", "--json").json
    assert len(answer["hits"]) == 10
    measured = code("eval", out, "--json").json
    assert measured["trained"] > 0
    assert len(open_pairs(out / "held-out.jsonl").pairs) == found["pairs"]["test"]


def test_the_weight_beside_words_is_chosen_kept_and_used(trained, tree, tmp_path):
    out, found = trained
    chosen = json.loads((out / "ranking.json").read_text()).get("dense_weight", 1.0)
    assert chosen == found["dense_weight"]
    assert chosen in DENSE_WEIGHTS
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    (copy / "ranking.json").write_text('{"dense_weight": 0.0, "lexical_weight": 0.0, "identifier_weight": 0.0}')
    for model in (copy, copy / "model"):
        # nothing counts, so that nothing is found
        assert code("search", "sort every matrix", tree, "--model", model, "--index", tmp_path / "index").code == 1
    measured = code("eval", copy, "--json").json
    assert measured["hybrid"] < measured["baselines"]["lexical"]
    (copy / "ranking.json").write_text("{")
    for verb in (("eval",), ("search", "sort", tree, "--model")):
        refused = code(*verb, copy)
        assert refused.code == 2
        assert "ranking.json is damaged" in refused.err


def test_the_same_command_again_trains_no_further(trained, tree):
    out, found = trained
    again = code("train", tree, *SMALL, "--out", out, "--json").json
    assert (again["trained"], again["steps"]) == (found["trained"], 6)
    refused = code("train", tree, *SMALL, "--out", out, "--fit.lr", 0.5)
    assert refused.code == 2
    assert "fit.lr" in refused.err


def test_a_file_of_pairs_and_in_batch_contrast(trained, tree, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    assert code("mine", tree, "--out", pairs).code == 0
    done = code("train", pairs, "--recipe", "in-batch-laptop", *SMALL[:6], *SMALL[8:], "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "before training" in done.out
    assert "code eval" in done.out


def test_what_cannot_work_is_one_line_and_leaves_nothing(tree, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    (few / "a.py").write_text(FUNCTION.format(verb="read", Verb="Read", noun="file", number=1))
    for arguments, said in (
        ([tmp_path / "nowhere"], "no such folder or file"),
        ([few], "documented functions to train on, 100 are needed"),
        ([tree, "--stdlib"], "two things to train on"),
        ([tree, "--recipe", "esimcse-laptop"], "learns from sentences"),
        ([tree, "--recipe", "cocosoda-lapto"], "did you mean cocosoda-laptop"),
        ([tree, "--fit.batch-size", 4096], "batch_size 4096 is larger"),
        ([tree, "--encoder", str(tmp_path / "model"), "--fit.batch-size", 16], "is no folder here"),
        ([tree, "--method.queue-size", -1], "queue-size"),
    ):
        done = code("train", *arguments, "--out", tmp_path / "run")
        assert done.code == 2, arguments
        assert said in done.err, done.err
        assert done.err.count("error: ") == 1
        assert done.err.strip().splitlines()[-1].startswith("error: ")
        assert not (tmp_path / "run").exists(), arguments


def test_the_recipe_can_be_printed():
    done = code("train", "--print-recipe", "--method.queue-size", 64)
    assert done.code == 0
    assert "queue_size: 64" in done.out
    assert "system: cocosoda" in done.out
