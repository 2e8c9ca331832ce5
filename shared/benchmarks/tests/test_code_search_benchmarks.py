"""The benchmarks of code search measure what they say."""

from pathlib import Path

import numpy as np
import pytest

from mc_benchmarks import code_search_signals, code_search_speed, contract
from mc_benchmarks.code_search_signals import (
    DOCUMENTATION,
    NAME,
    OFF,
    build_lookup,
    reciprocal_ranks,
    run_code_search_signals,
)
from mc_benchmarks.code_search_speed import BARS, BUILD, COLD, EDIT, HYBRID, LEXICAL, run_code_search_speed
from mc_benchmarks.contract import load_report
from mc_core.errors import DataError
from mc_text_code.codesearch import RankingConfig
from mc_text_code.source.files import source_files

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    root = tmp_path / "code"
    root.mkdir()
    for i, first in enumerate(WORDS):
        functions = [
            f'def {first}_{second}(value):\n    """Combine {first} with {second} carefully. More text."""\n'
            f"    {second} = value + {j}\n    return {second} * {i + 1}\n"
            for j, second in enumerate(WORDS)
        ]
        (root / f"{first}.py").write_text("\n\n".join(functions))
    (root / "argparse.py").write_text("def parse():\n    return 'parse command line arguments'\n")
    (root / "test_all.py").write_text(
        'def check_it():\n    """Never asked for in a query."""\n    a = 1\n    return a\n'
    )
    monkeypatch.setattr(code_search_speed, "standard_library_files", lambda: source_files(root))
    monkeypatch.setattr(code_search_signals, "standard_library_files", lambda: source_files(root))
    return root


def test_documentation_is_taken_out_and_its_first_sentence_asked_for(project):
    lookup = build_lookup(source_files(project).files, queries=50)
    assert "combine" not in lookup.numbers
    assert "carefully" not in lookup.numbers
    documentation = [(query, number) for kind, query, number in lookup.queries if kind == DOCUMENTATION]
    assert len(documentation) == 50
    for query, number in documentation:
        first, second = lookup.candidates[number].name.split("_")
        assert query == f"Combine {first} with {second} carefully."
    assert all("test" not in lookup.candidates[number].path for _, _, number in lookup.queries)
    names = [(query, number) for kind, query, number in lookup.queries if kind == NAME]
    assert all(query == lookup.candidates[number].name for query, number in names)


def test_ranks_of_names_are_first_with_the_signal_of_definitions(project):
    lookup = build_lookup(source_files(project).files, queries=30)
    ranks = reciprocal_ranks(lookup, RankingConfig())
    assert (ranks[NAME] == 1).all()
    off = reciprocal_ranks(lookup, RankingConfig.model_validate(OFF))
    assert set(np.unique(off[DOCUMENTATION])) <= {0.0, *(1 / place for place in range(1, 51))}


def test_folders_without_documentation_say_so(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(DataError, match="no documented functions"):
        build_lookup(source_files(tmp_path).files, queries=5)


def test_the_report_of_signals(project):
    run_code_search_signals(queries=20)
    report = load_report("code_search_signals")
    names = [row.name for row in report.rows]
    assert names[:2] == ["no signal", "all, as set"]
    assert {f"without {field}" for field in OFF if field != "several_factor"} <= set(names)
    assert all(0 <= value <= 1 for row in report.rows for value in row.values.values())


@pytest.mark.slow
def test_the_report_of_speed(project):
    run_code_search_speed(repeats=1, queries=5, processes=1)
    report = load_report("code_search_speed")
    rows = {row.name: row.values for row in report.rows}
    assert set(BARS) <= set(rows)
    for name in (BUILD, EDIT, LEXICAL, HYBRID, COLD):
        assert rows[name]["ms (median)"] > 0
    assert not Path(project / ".mc-code").exists()
