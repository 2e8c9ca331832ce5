"""``mc-text-code code eval``: words, a model, its untrained self and both together, on a tree, a file and a run; bad input."""

from __future__ import annotations

import json

import pytest

from mc_testkit import command as testkit

VERBS = ("open", "close", "parse", "write", "count", "sort", "merge", "split", "copy", "move")
THINGS = ("file", "socket", "tree", "table", "number", "string")


def code(*arguments):
    from mc_text_code_app.app import run

    return testkit.call(run, "code", *arguments)


def function(verb, thing, documented=True):
    documentation = f'    """{verb.capitalize()} the {thing} that is given by its name."""\n' if documented else ""
    body = (
        f"    {thing}s = [name]\n    done_{verb} = len({thing}s) + {len(verb) * len(thing)}\n    return done_{verb}\n"
    )
    return f"def {verb}_{thing}(name):\n{documentation}{body}\n\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("eval") / "tree"
    for number, thing in enumerate(THINGS):
        for half in (0, 1):
            folder = root / f"part_{number}_{half}"
            folder.mkdir(parents=True)
            (folder / f"{thing}s.py").write_text("".join(function(v, thing) for v in VERBS[half::2]))
    return root


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("eval-file") / "pairs.jsonl"
    rows = [
        {
            "docstring": f"{verb}s the {thing}",
            "code": function(verb, thing, documented=False),
            "func_name": f"{verb}_{thing}",
        }
        for verb in VERBS
        for thing in THINGS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_without_a_model_words_alone(tree, tmp_path):
    done = code("eval", "--path", tree, "--json", "--out", tmp_path)
    assert done.code == 0, done.err
    assert list(done.json["rows"]) == ["lexical"]
    row = done.json["rows"]["lexical"]
    assert row["queries"] < row["candidates"] <= 20
    assert row["mrr"] > 0.5
    assert json.loads((tmp_path / "code-eval.json").read_text()) == done.json
    assert (tmp_path / "code-eval.png").read_bytes().startswith(b"\x89PNG")
    hidden = code("eval", "--path", tree, "--json", "--hide-names").json
    assert hidden["names_hidden"]
    assert hidden["rows"]["lexical"]["mrr"] <= row["mrr"]


def test_a_run_stands_beside_words_and_its_untrained_self(file, trained):
    run, _ = trained
    done = code("eval", run, "--data", file, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    found = done.json
    assert list(found["rows"]) == ["lexical", "dense", "hybrid", "untrained"]
    assert found["trained"] == found["rows"]["dense"]["mrr"]
    assert found["baselines"] == {name: found["rows"][name]["mrr"] for name in ("lexical", "untrained")}
    assert found["hybrid"] == found["rows"]["hybrid"]["mrr"]
    assert found["rows"]["dense"]["mrr"] != found["rows"]["untrained"]["mrr"]
    assert set(found["spread"]) == {"dense", "untrained"}
    assert json.loads((run / "code-eval.json").read_text()) == found
    shown = code("eval", run, "--data", file, "--device", "cpu", "--no-untrained").out
    assert "words and model" in shown
    assert "both together against words alone" in shown
    assert "untrained" not in shown


def test_what_a_run_held_out_is_asked_by_default(file, trained, tmp_path):
    import shutil

    refused = code("eval", trained[0], "--device", "cpu")  # it held out sentences
    assert refused.code == 2
    assert "name what to measure on" in refused.err
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    lines = file.read_text().splitlines(keepends=True)
    (run / "held-out.jsonl").write_text("".join(lines[:20]))
    alone = code("eval", run, "--device", "cpu", "--json").json["rows"]["lexical"]
    assert (alone["queries"], alone["candidates"]) == (20, 20)
    (run / "valid.jsonl").write_text("".join(lines[20:50]))
    among = code("eval", run, "--device", "cpu", "--json").json["rows"]["lexical"]
    assert (among["queries"], among["candidates"]) == (20, 50)


def test_a_static_table_is_a_model(file, tmp_path):
    import numpy as np

    from mc_text_code.codesearch.static import StaticEncoder
    from mc_text_code.tokenizers import train_tokenizer

    texts = [json.loads(line)["code"] for line in file.read_text().splitlines()]
    tokenizer = train_tokenizer(texts, 300, "bpe")
    rows = np.random.default_rng(0).standard_normal((len(tokenizer), 16))
    StaticEncoder(rows, tokenizer.backend_tokenizer).save(tmp_path / "table")
    found = code("eval", tmp_path / "table", "--data", file, "--json").json
    assert list(found["rows"]) == ["lexical", "dense", "hybrid"]
    assert not (tmp_path / "table" / "code-eval.json").exists()


def test_functions_in_a_file_of_their_own(tmp_path):
    (tmp_path / "questions").mkdir()
    questions = tmp_path / "questions" / "test.jsonl"
    questions.write_text("".join(json.dumps({"url": f"u{n}", "query": f"word{n} word"}) + "\n" for n in range(3)))
    functions = tmp_path / "functions.jsonl"
    functions.write_text("".join(json.dumps({"url": f"u{n}", "code": f"word{n} = word"}) + "\n" for n in range(5)))
    found = code("eval", "--data", questions, "--candidates", functions, "--json")
    assert found.code == 0, found.err
    row = found.json["rows"]["lexical"]
    assert (row["queries"], row["candidates"], row["mrr"]) == (3, 5, 1.0)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "name what to measure on"),
        (["--stdlib", "--path", "."], "take one of them"),
        (["--path", "bare"], "bare: 1 documented functions to measure on, 50 are needed"),
        (["--path", "nowhere"], "nowhere"),
        (["--data", "no.jsonl"], "no.jsonl: no such file"),
        (["--data", "nameless.jsonl", "--hide-names"], "does not say what its functions are called"),
        (["--stdlib", "--candidates", "nameless.jsonl"], "--candidates belongs to --data"),
        (["--data", "nameless.jsonl", "--protocol", "a"], "batches of 1,000 pairs, and there are 2"),
        (["model", "--data", "nameless.jsonl"], "model: no such folder"),
        (["bare", "--data", "nameless.jsonl"], "bare holds neither a run"),
    ],
    ids=["nothing", "two", "undocumented", "folder", "file", "names", "candidates", "few", "no model", "not a model"],
)
def test_what_cannot_work_is_one_line(arguments, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.py").write_text(function("open", "file") + function("close", "file", documented=False))
    (tmp_path / "nameless.jsonl").write_text('{"query": "add", "code": "a + b"}\n{"query": "less", "code": "a - b"}\n')
    done = code("eval", *arguments)
    assert done.code == 2, done.err
    assert done.out == ""
    lines = done.err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert part in lines[-1]
    assert "Traceback" not in done.err
