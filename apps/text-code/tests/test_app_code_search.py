"""``mc-text-code code``: search by words and by a model, what an index holds, pairs, and what cannot work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mc_testkit import command as testkit

PROGRAM = Path(sys.executable).parent / "mc-text-code"
SHAPES = '''"""Areas of shapes."""


def circle_area(radius):
    """The area of a circle with this radius, in square metres."""
    squared = radius * radius
    return 3.14159 * squared


class Square:
    """A square."""

    def perimeter(self, side):
        """How long the way around a square is."""
        total = 4 * side
        return total
'''
FILES = '''def read_lines(path):
    """Read a text file and return its lines without their ends."""
    with open(path) as file:
        return [line.rstrip() for line in file]
'''


def code(*arguments):
    from mc_text_code_app.app import run

    return testkit.call(run, "code", *arguments)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "geometry").mkdir(parents=True)
    (root / "geometry" / "shapes.py").write_text(SHAPES)
    (root / "files.py").write_text(FILES)
    return root


def test_a_description_finds_its_function(tree):
    done = code("search", "area of a circle", tree, "--json")
    first = done.json["hits"][0]
    assert (first["path"], first["line"], first["symbol"]) == ("geometry/shapes.py", 4, "circle_area")
    shown = code("search", "area of a circle", tree).out
    assert shown.startswith("geometry/shapes.py:4  function circle_area\n    def circle_area(radius):\n")
    assert "return 3.14159 * squared" in code("search", "area of a circle", tree, "--full").out
    line = code("search", "area of a circle", tree, "--vimgrep").out.splitlines()[0]
    assert line.startswith("geometry/shapes.py:4:1:def circle_area")


def test_an_edit_is_found_and_nothing_is_code_1(tree):
    assert code("search", "celsius to fahrenheit", tree).code == 1
    (tree / "units.py").write_text(
        'def convert(celsius):\n    """Celsius to Fahrenheit."""\n    return 32 + celsius * 1.8\n'
    )
    assert code("search", "celsius to fahrenheit", tree).out.startswith("units.py:1  function convert\n")
    assert code("search", "celsius to fahrenheit", tree, "--path", "geometry/").code == 1
    assert code("search", "circle", tree, "--lang", "java").code == 1


def test_a_model_of_sentences_gives_the_other_arm(tree, trained):
    run, _ = trained
    done = code("search", "how long is the way around a square", tree, "--model", run, "--device", "cpu", "--json").json
    assert done["mode"] == "hybrid"
    assert done["coverage"] == 1.0
    assert any(hit["dense_rank"] for hit in done["hits"])
    assert code("status", tree, "--json").json["coverage"] == 1.0


def test_status_and_pairs(tree, tmp_path):
    code("search", "circle", tree)
    found = code("status", tree, "--json").json
    assert (found["files"], found["languages"]) == (2, {"python": 2})
    assert "dense coverage" in code("status", tree).out
    report = code("mine", tree, "--out", tmp_path / "pairs.jsonl", "--json").json
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert report["pairs"] == len(pairs) == 3
    assert all('"""' not in pair["code"] for pair in pairs)


def test_watch_loads_its_model_once(tree, trained, monkeypatch):
    from mc_text_code.codesearch.watch import Daemon
    from mc_text_code_app import code_search

    loaded, served = [], []
    load = code_search._opened

    def counted(folder, device):
        loaded.append(folder)
        return load(folder, device)

    def answer_one(daemon):
        daemon._keeper.index.refresh()
        daemon._keeper.index.embed()
        served.append(daemon.index.search("circle", refresh=False).mode)
        daemon.index.close()
        daemon._keeper.index.close()
        daemon._socket.close()
        daemon._lock.release()

    monkeypatch.setattr(code_search, "_opened", counted)
    monkeypatch.setattr(Daemon, "run", answer_one)
    run, _ = trained
    assert code("watch", tree, "--model", run, "--device", "cpu").code == 0
    assert (loaded, served) == ([run], ["hybrid"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["search", "x", "/no/such/folder"], "is no folder"),
        (["search", " "], "no letters"),
        (["search", "x", "--mode", "dense"], "no encoder"),
        (["search", "x", "--full", "--json"], "take one of them"),
        (["search", "x", "--lang", "pyton"], "python"),
        (["serve"], "--mcp"),
        (["watch", "--stop"], "nothing watches"),
        (["mine"], "--stdlib"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_one_line(arguments, part, tree, monkeypatch):
    monkeypatch.chdir(tree)
    done = code(*arguments)
    assert done.code == 2, done.err
    assert done.out == ""
    assert part in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_a_search_by_words_loads_no_torch(tree):
    script = (
        "import sys; from mc_core.cli import run_app; from mc_text_code_app.app import run; run_app(run); "
        "sys.stderr.write(str(sorted({'torch', 'transformers'} & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "code", "search", "circle", tree], capture_output=True, text=True, check=True
    )
    assert done.stderr.endswith("[]")
