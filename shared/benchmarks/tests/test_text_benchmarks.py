"""The claims of ESimCSE at a tiny size, on files laid out as the real ones; the table of an ablation."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mc_benchmarks import contract, text_claims
from mc_benchmarks.contract import load_report
from mc_benchmarks.text_claims import run_text_claims, text_folder
from mc_benchmarks.wearables_ablation import report_of
from mc_core.errors import DataError


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path / "results")
    return tmp_path


def test_claims_run_end_to_end_and_go_on(results, monkeypatch, tmp_path):
    animals, deeds = ("cat", "dog", "horse", "bird", "fox"), ("sleeps", "runs fast", "eats food", "plays", "waits")
    texts = [f"the {a} {d} in house number {n}" for a in animals for d in deeds for n in range(4)]
    folder = tmp_path / "data" / "text"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"sentence": texts, "source": ["x"] * len(texts)}), folder / "sentences-en.parquet")
    pairs = [
        {
            "dataset": "STS-B",
            "subset": "",
            "split": "train",
            "sentence1": f"the {a} runs fast",
            "sentence2": f"the {b} {d}",
        }
        for a in animals
        for b in animals
        for d in deeds
    ]
    scores = [5.0 if p["sentence2"] == p["sentence1"] else float(i % 4) for i, p in enumerate(pairs)]
    table = pa.Table.from_pylist([p | {"score": s, "label": None} for p, s in zip(pairs, scores, strict=True)])
    pq.write_table(table, folder / "sts-pairs.parquet")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        "system: esimcse\n"
        "method: {encoder: {hidden_size: 16, heads: 2, layers: 1}}\n"
        "warm_start: {steps: 1, batch_size: 8}\n"
        "fit: {steps: 3, batch_size: 8, optimizer: adamw, lr: 1.0e-3}\n"
    )
    monkeypatch.setattr(text_claims, "RECIPE", str(recipe))
    options = {
        "data": str(tmp_path / "data"),
        "seeds": 2,
        "sentences": 80,
        "steps": 2,
        "warm_steps": 1,
        "keep": results,
    }
    report = run_text_claims(**options)
    assert load_report("text_claims") == report
    assert [row.name for row in report.rows] == list(text_claims.ORDER)
    assert report.columns[:2] == ["STS-B", "average of these 1"]
    assert all(
        " ± " in str(row.values["STS-B"]) for row in report.rows if row.name not in ("TF-IDF", "mean of word vectors")
    )
    assert "repetition " in report.reading
    assert "on 80 sentences" in report.reading
    monkeypatch.setattr("mc_text_code.claims.fit", None)  # nothing is trained again
    assert run_text_claims(**options).rows == report.rows


def test_without_data_it_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("MC_DATA", raising=False)
    with pytest.raises(DataError, match="MC_DATA"):
        text_folder(None)
    with pytest.raises(DataError, match="no folder text"):
        text_folder(str(tmp_path))


def test_the_ablation_becomes_a_table_that_reads_the_directions(results):
    row = {"age per segment": 0.3, "nothing per person": 0.5, "who is it": 0.4, "rank": 20.0, "rank centred": 22.0}
    found = {
        "recipe": "ahms-ecg-laptop",
        "seeds": 2,
        "rows": {
            "full": row,
            "segment-pairs": {**row, "age per segment": 0.1, "rank centred": 30.0},
            "no-koleo": {**row, "rank centred": 25.0},
            "byol": {**row, "rank centred": 9.0},
        },
        "sd": {name: dict.fromkeys(row, 0.01) for name in ("full", "segment-pairs", "no-koleo", "byol")},
        "paper": {"full": "", "segment-pairs": "worse", "no-koleo": "lower", "byol": "much lower"},
    }
    report = report_of(found, "ecg")
    assert load_report("wearables_ablation_ecg") == report
    assert report.columns == ["age per segment", "who is it", "rank centred", "the paper says"]
    assert report.rows[1].values["age per segment"] == "0.10 ± 0.01"
    assert report.rows[0].values["the paper says"] == "–"
    assert "segment pairs are worse on 1 of 2 probes" in report.reading
    assert "without KoLeo has not lower effective rank" in report.reading
    assert "BYOL has lower effective rank" in report.reading
