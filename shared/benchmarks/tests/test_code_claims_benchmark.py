"""The parts of CoCoSoDa at a tiny size: packages are on one side only, the report is whole, the reading says what the rows say."""

from __future__ import annotations

import pytest

from mc_benchmarks import code_claims, contract
from mc_benchmarks.code_claims import mined_pairs, package_split, run_code_claims
from mc_benchmarks.contract import load_report
from mc_core.errors import DataError
from mc_text_code.code_claims import CASES, HIDDEN, UNTRAINED, WORDS

VERBS = ("open", "close", "parse", "write", "count", "sort", "merge", "split")
THINGS = ("file", "socket", "tree", "table", "number", "string", "queue", "graph", "date", "path", "page", "row")


@pytest.fixture
def packages(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(contract, "RESULTS", tmp_path / "results")
    root = tmp_path / "site-packages"
    for thing in THINGS:
        (root / thing).mkdir(parents=True)
        functions = [
            f'def {verb}_{thing}(name):\n    """{verb.capitalize()} the {thing} that is named."""\n'
            f"    {thing}s = [name]\n    done_{verb} = len({thing}s) + {place}\n    return done_{verb}\n"
            for place, verb in enumerate(VERBS)
        ]
        (root / thing / "code.py").write_text("\n\n".join(functions))
    return root


def test_no_package_is_on_two_sides(packages):
    pairs = mined_pairs([packages], 1)[str(packages)]
    parts = package_split(pairs, 20)
    sides = [{pair.package for pair in part} for part in (parts.train, parts.valid, parts.test)]
    assert all(sides)
    assert len(set.union(*sides)) == sum(map(len, sides)) <= len(THINGS)
    assert 0 < len(parts.test) <= 22
    with pytest.raises(DataError, match="300 are needed"):
        package_split(pairs, 100)


def test_the_report_is_whole(packages, tmp_path, monkeypatch):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        "system: cocosoda\n"
        "method: {encoder: {hidden_size: 16, heads: 2, layers: 1, vocabulary: 300}, queue_size: 32}\n"
        "fit: {batch_size: 64, optimizer: adamw, lr: 1.0e-3, stop_on_collapse: false}\n"
    )
    monkeypatch.setattr(code_claims, "RECIPE", str(recipe))
    report = run_code_claims(
        roots=[packages], pairs=15, seeds=2, steps=2, batch_size=16, device="cpu", keep=tmp_path, processes=1
    )
    assert load_report("code_search_claims") == report
    assert [row.name for row in report.rows] == [WORDS, UNTRAINED, *CASES]
    assert report.command.endswith(f"--root {packages} --pairs 15 --seeds 2 --steps 2 --batch-size 16")
    assert report.settings["test"] <= 15
    assert report.settings["chosen_on"] > 0
    assert report.settings["batch_size"] == 16
    assert "±" in str(report.rows[2].values[HIDDEN])
    assert f"words alone {report.rows[0].values[HIDDEN]}" in report.reading
