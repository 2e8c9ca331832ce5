"""Cost of a large batch of radiographs and reports: the benchmarks run, and say what they measured."""

import pytest

from mc_benchmarks import contract, medical_efficiency
from mc_benchmarks.contract import load_report
from mc_medical.efficiency import PLAIN, SCHEMES

TINY = {
    "method": {
        "image": {"image_size": 16, "width": 8, "stages": 2},
        "text": {"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 12, "vocabulary": 64},
        "dim": 8,
    },
    "image": {"size": 18},
    "augment": {"size": 16},
}


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path)
    monkeypatch.setitem(medical_efficiency.SIZES, "laptop", TINY)


def test_time_of_all_schemes():
    report = medical_efficiency.run_medical_efficiency(batch=16, micro=(4, 8), repeats=2)
    assert load_report("medical_efficiency") == report
    assert [row.name for row in report.rows[:4]] == [f"{scheme}, 4" for scheme in SCHEMES]
    assert len(report.rows) == 9
    by_name = {row.name: row.values for row in report.rows}
    assert by_name[f"{PLAIN}, 8"]["× plain accumulation"] == 1.0
    assert by_name["true batch"]["held for backward, MiB"] > by_name["MSD, 8"]["held for backward, MiB"]
    assert "bar 1.4" in report.reading


def test_memory_from_small_to_large(monkeypatch):
    told = {
        128: {"raw": 1 << 20, "graph": 100 << 20, "resident": 200 << 20},
        2048: {"raw": 16 << 20, "graph": 101 << 20, "resident": 204 << 20},
    }
    monkeypatch.setattr(medical_efficiency, "_child", lambda size, scheme, batch, micro: told[batch])
    report = medical_efficiency.run_medical_memory(batches=(128, 2048))
    assert load_report("medical_memory") == report
    assert list(report.rows[1].values.values()) == pytest.approx([101.0, 1.0, 204.0, 2.0, 16.0])
    assert "at most 2.0 % more (bar 5 %: reached)" in report.reading


@pytest.mark.skipif(not medical_efficiency.Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_memory_of_one_step():
    found = medical_efficiency.resident("laptop", "MSD", 32, 8)
    assert found["raw"] == 32 * 18 * 18
    assert found["graph"] > 50_000
    assert abs(found["resident"]) < 64 << 20  # of a tiny step: the allocator may even hand back pages of the one before
