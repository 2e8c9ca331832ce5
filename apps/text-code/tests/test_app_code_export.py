"""``mc-text-code code export``: what it writes is used by searches, and says how near it is."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from mc_testkit import command as testkit

pytest.importorskip("onnxscript")


def code(*arguments):
    from mc_text_code_app.app import run

    return testkit.call(run, "code", *arguments)


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A run of its own, since something is put into it."""
    target = tmp_path_factory.mktemp("export") / "run"
    shutil.copytree(trained[0], target)
    return target


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.py").write_text("def circle_area(r):\n    return 3 * r * r\n\n\ndef other():\n    pass\n")
    return tmp_path / "tree"


def test_queries_in_int8_are_used_by_themselves_and_need_no_torch(run, tree):
    whole = code("search", "circle", tree, "--model", run, "--device", "cpu", "--json").json
    done = code("export", run, "--json")
    assert done.code == 0, done.err
    assert done.json["out"] == str(run / "model" / "onnx")
    assert 0.9 < done.json["lowest_cosine"] <= done.json["mean_cosine"]
    script = (
        "import sys; from mc_core.cli import run_app; from mc_text_code_app.app import run; run_app(run); "
        "sys.stderr.write(str(sorted({'torch', 'transformers'} & set(sys.modules))))"
    )
    command = [sys.executable, "-c", script, "code", "search", "circle", tree, "--model", run]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stderr.endswith("[]")  # all was embedded before, under the same identity
    assert "a.py:1  function circle_area" in again.stdout
    small = code("search", "circle", tree, "--model", run, "--json").json
    assert (small["mode"], small["coverage"], small["notes"]) == ("hybrid", 1.0, whole["notes"])
    (tree / "b.py").write_text("def square_area(s):\n    return s * s\n")
    more = code("search", "square area", tree, "--model", run, "--device", "cpu", "--json").json
    assert more["coverage"] == 1.0


def test_a_static_table_is_written_beside(run, tree):
    done = code("export", run, "--format", "static")
    assert done.code == 0, done.err
    assert str(run / "static") in done.out
    found = code("search", "circle", tree, "--model", run / "static", "--json").json
    assert (found["mode"], found["coverage"]) == ("hybrid", 1.0)
    for arguments, part in (
        ((run, "--format", "static"), "name another with --out"),
        ((run / "static",), "is a static table already"),
        ((run / "nothing",), "no such folder"),
    ):
        refused = code("export", *arguments)
        assert refused.code == 2
        assert part in refused.err.strip().splitlines()[-1]
