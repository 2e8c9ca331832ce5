"""``mc-text-code code ablate`` on a file of pairs: its tables, its JSON, that it goes on where it stopped, and bad input."""

from __future__ import annotations

import json

import pytest

from mc_testkit import command as testkit

VERBS = ("open", "close", "parse", "write", "count", "sort", "merge", "split", "copy", "move", "find", "drop")
THINGS = ("file", "socket", "tree", "table", "number", "string", "queue", "graph", "date", "path")
ROWS = ["split BM25", "untrained", "in-batch", "+ queue", "+ soft augmentation", "+ intra-modal", "+ names hidden"]
RECIPE = """system: cocosoda
method: {encoder: {hidden_size: 16, heads: 2, layers: 1, vocabulary: 300}, queue_size: 32}
fit: {steps: 3, batch_size: 16, device: cpu, optimizer: adamw, lr: 1.0e-3, stop_on_collapse: false}
"""


def code(*arguments):
    from mc_text_code_app.app import run

    return testkit.call(run, "code", *arguments)


def test_the_table_and_again(tmp_path):
    rows = [
        {
            "query": f"{verb} the {thing} of a user",
            "code": f"def {verb}_{thing}(x):\n    y = x + {place}\n    return {thing}s[y]",
            "name": f"{verb}_{thing}",
            "language": "python",
            "path": f"{thing}_{place % 2}.py",
        }
        for place, verb in enumerate(VERBS)
        for thing in THINGS
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    arguments = ["ablate", tmp_path / "pairs.jsonl", "--recipe", tmp_path / "tiny.yaml", "--seeds", 2, "--steps", 2]
    out = tmp_path / "study"
    done = code(*arguments, "--out", out, "--json")
    assert done.code == 0, done.err
    assert list(done.json["rows"]) == ROWS
    assert done.json["steps"] == 2
    assert done.json["pairs"]["queries"] < done.json["pairs"]["candidates"]
    assert set(done.json["rows"]["+ queue"]) == {"MRR", "MRR, name hidden", "with words", "with words, name hidden"}
    assert json.loads((out / "ablation.json").read_text()) == done.json
    before = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    shown = code(*arguments, "--out", out)
    assert {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()} == before
    for name in ROWS:
        assert name in shown.out
    assert "minus the row before" in shown.out
    assert "2 seeds: too few" in shown.out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["bare"], "bare: 1 documented functions to train on"),
        (["nowhere"], "nowhere: no such folder"),
        (["bare", "--stdlib"], "take one of them"),
        (["bare", "--recipe", "esimcse-laptop"], "for code take cocosoda"),
    ],
    ids=["undocumented", "missing", "two", "recipe"],
)
def test_what_cannot_work_is_one_line(arguments, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.py").write_text('def f(a):\n    """Add one to it."""\n    b = a + 1\n    return b\n')
    done = code("ablate", *arguments)
    assert done.code == 2, done.err
    assert done.out == ""
    assert part in done.err.strip().splitlines()[-1]
    assert "Traceback" not in done.err
    assert not (tmp_path / "runs").exists()
