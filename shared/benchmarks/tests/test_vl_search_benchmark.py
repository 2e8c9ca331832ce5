"""The benchmark of search among pictures runs, and says what it measured."""

import pytest

from mc_benchmarks import contract
from mc_benchmarks.contract import load_report
from mc_benchmarks.vl_search import COLUMNS, run_vl_search
from mc_benchmarks.vl_sizes import SIZES
from mc_vision_language.encoders_config import VisionLanguageConfig

TINY = {
    "image": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2},
    "text": {"text_layers": 1, "fusion_layers": 1, "hidden_size": 16, "heads": 2},
    "dim": 8,
}


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path)
    monkeypatch.setitem(SIZES, "laptop", TINY)


def test_time_of_an_answer():
    report = run_vl_search(pictures=150, rerank=8, repeats=2, sizes=["laptop"])
    assert load_report("vl_search") == report
    values = report.rows[0].values
    assert list(values) == COLUMNS
    assert values["by cosine, ms"] > 0
    assert values["top ranked again, ms"] > 0
    assert values["parameters, M"] >= 0
    assert "Bars: 50 ms and 1000 ms; laptop" in report.reading


@pytest.mark.parametrize("size", ["vit-small", "vit-base"])
def test_sizes_can_be_built(size):
    config = VisionLanguageConfig.model_validate(SIZES[size])
    assert config.text.hidden_size % config.text.heads == 0
