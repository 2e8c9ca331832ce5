"""The benchmarks of source code at a tiny size."""

from __future__ import annotations

import pytest

from mc_benchmarks import code_source, contract
from mc_benchmarks.code_source import run_code_lexical, run_code_source
from mc_benchmarks.contract import load_report
from mc_core.errors import DataError
from mc_text_code.data.code_mining import mine


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path / "results")
    return tmp_path


def test_speed_of_parsing(results):
    report = run_code_source(repeats=2, megabytes=0.1)
    assert load_report("code_source") == report
    assert report.rows[0].values["× parser alone"] == pytest.approx(1.0)
    assert all(float(row.values["MB/s (median)"] or 0) > 0 for row in report.rows)
    assert report.settings["units"] > 10


def write(folder, thing):
    folder.mkdir()
    for colour, letter in (("red", "q"), ("blue", "w"), ("grey", "z"), ("green", "k")):
        body = f"    {letter} = x ** 2\n    return {letter}\n"
        text = f'def make_{thing}_{colour}(x):\n    """Make the {thing} which is {colour}."""\n{body}'
        (folder / f"{colour}.py").write_text(text)
    return folder


def test_words_alone(results, tmp_path, monkeypatch):
    library = mine(write(tmp_path / "library", "boat"))
    monkeypatch.setattr(code_source, "mine_standard_library", lambda processes: library)
    report = run_code_lexical(folders=[write(tmp_path / "code", "house")], pairs=3, processes=1)
    assert load_report("code_lexical") == report
    values = {row.name: row.values for row in report.rows}
    assert values["the standard library, split"]["MRR"] == 1.0
    assert float(values["code, split, name hidden"]["MRR"] or 0) < 1.0
    assert values["code, split"]["functions"] == 3
    assert report.settings["mined"] == {"the standard library": 4, "code": 4}
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="empty: no documented function found"):
        run_code_lexical(folders=[empty], processes=1)
