"""Memory of indexing and queries with an encoder: the benchmarks run, and measure what they say."""

from __future__ import annotations

import numpy as np
import pytest

from mc_benchmarks import code_index_memory, code_query_speed, code_search_speed, contract
from mc_benchmarks.code_index_memory import EMBED, INDEX, PEAK, QUERY, TOTAL, large_tree, run_code_index_memory
from mc_benchmarks.code_query_speed import ENCODING, MEDIAN, StandIn, run_code_query_speed
from mc_benchmarks.contract import load_report
from mc_core.errors import DataError, RunError
from mc_text_code.encoders_config import EncoderConfig
from mc_text_code.source.files import source_files

FUNCTION = (
    'def {0}_{1}(argument):\n    """Parse command line arguments of {0} and {1}."""\n    return argument * {2}\n\n\n'
)
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    root = tmp_path / "code"
    root.mkdir()
    for number, first in enumerate(WORDS):
        (root / f"{first}.py").write_text("".join(FUNCTION.format(first, second, number) for second in WORDS))
    monkeypatch.setattr(code_search_speed, "standard_library_files", lambda: source_files(root))
    return root


def test_a_tree_has_the_lines_asked_for_and_further_copies_other_names(project, tmp_path):
    target = tmp_path / "tree"
    files, lines, copies = large_tree(target, project, 300)
    found = sorted(target.rglob("*.py"))
    assert (len(found), copies) == (files, 2)
    assert sum(path.read_text().count("\n") for path in found) == lines
    assert 300 <= lines < 300 + 5 * len(WORDS)
    assert (target / "copy_0" / "alpha.py").read_bytes() == (project / "alpha.py").read_bytes()
    assert "_v1" in "".join(path.read_text() for path in (target / "copy_1").rglob("*.py"))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no source code"):
        large_tree(target, tmp_path / "none", 10)


def test_a_child_reports_its_own_peak_not_that_of_its_parent(project, tmp_path):
    held = np.ones(100 << 20, np.uint8)  # what the parent holds counts nothing
    told = code_index_memory._child("index", project, tmp_path / "index", tmp_path / "table", 1)
    del held
    assert 10 << 20 < told["own"] < 400 << 20
    with pytest.raises(RunError, match="embed: "):
        code_index_memory._child("embed", project, tmp_path / "index", tmp_path / "no-table", 1)


@pytest.mark.slow
def test_the_report_of_memory(project):
    report = run_code_index_memory(lines=400, source=project, processes=1)
    assert load_report("code_index_memory") == report
    rows = {row.name: row.values for row in report.rows}
    assert set(rows) == {INDEX, EMBED, QUERY}
    assert all(row[PEAK] == row[TOTAL] > 0 for row in rows.values())  # nothing parsed for it
    assert rows[INDEX]["within"] == "yes"
    assert "--lines 400 --processes 1" in report.command


@pytest.mark.slow
def test_the_report_of_queries(project, monkeypatch):
    tiny = EncoderConfig(pooling="mean", layers=1, hidden_size=16, heads=2, positions=64)
    monkeypatch.setattr(code_query_speed, "SIZES", {"tiny": tiny})
    report = run_code_query_speed(queries=3, processes=1)
    assert load_report("code_query_speed") == report
    assert [row.name for row in report.rows] == ["tiny, PyTorch", "tiny, int8 by ONNX Runtime"]
    assert all(row.values[name] > 0 for row in report.rows for name in (MEDIAN, ENCODING))
    assert "36 pieces" in report.question


def test_a_stand_in_gives_other_vectors_each_time():
    made = StandIn("x", 8)
    assert made.encode_code(["a"]).shape == (1, 8)
    assert not np.array_equal(made.encode_code(["a"]), made.encode_queries(["a"]))
