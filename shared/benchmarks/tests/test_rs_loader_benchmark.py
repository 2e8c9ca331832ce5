"""The benchmark of the loader of scenes measures what it says, on rasters small enough to wait for."""

import importlib.util
from functools import partial

import pytest

from mc_benchmarks import contract, rs_loader
from mc_benchmarks.contract import load_report
from mc_benchmarks.rs_loader import IMAGE, OURS, PEER, POLYGONS, RATIO, RELIEF, SPEED, our_round, our_scene, their_round
from mc_core.errors import MissingDependencyError
from mc_remote_sensing.data import TileDataset
from mc_remote_sensing.terrain import write_terrain

INSTALLED = importlib.util.find_spec("torchgeo") is not None


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_terrain(tmp_path_factory.mktemp("terrain"), size_px=256, seed=0)


@pytest.mark.parametrize("what", [IMAGE, RELIEF, POLYGONS])
def test_our_round_reads_whole_windows_and_goes_on_where_it_was(files, tmp_path, monkeypatch, what):
    seen = []
    get = TileDataset.get

    def noted(self, index, rng):
        sample = get(self, index, rng)
        relief = "elevation" in sample and bool(sample["elevation"][3].any())
        seen.append((index, tuple(sample["image"].shape), relief))
        return sample

    monkeypatch.setattr(TileDataset, "get", noted)
    work = our_round(our_scene(files, what, tmp_path), 32, 4, 8, 0)
    assert work() == work() == 8
    assert {shape for _, shape, _ in seen} == {(4, 32, 32)}
    assert any(relief for *_, relief in seen) == (what == RELIEF)
    assert sorted(index for index, *_ in seen[:8]) == sorted(index for index, *_ in seen[8:]) == list(range(8))


def test_their_round_reads_as_many_or_says_what_to_install(files):
    for what in (IMAGE, RELIEF, POLYGONS):
        make = partial(their_round, files, what, 32, 4, 8, 0)
        if INSTALLED:
            assert make()() == 8
        else:
            with pytest.raises(MissingDependencyError, match="'torchgeo' is needed"):
                make()


def test_rounds_are_paired_and_the_report_says_how_they_compare(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path)
    monkeypatch.setattr(rs_loader, "version", lambda name: "1")
    if not INSTALLED:
        monkeypatch.setattr(
            rs_loader, "their_round", lambda files, what, *given: our_round(our_scene(files, what, tmp_path), *given)
        )
    rs_loader.run_rs_loader(size=256, tile=32, batch_size=4, windows=8, workers=(0,), repeats=2)
    report = load_report("rs_loader")
    assert [row.name for row in report.rows] == [
        f"{name}, {what}, in the process" for what in (IMAGE, RELIEF, POLYGONS) for name in (OURS, PEER)
    ]
    for row in report.rows:
        assert row.values[SPEED] > 0
        assert row.values[RATIO] == 1 or row.name.startswith(OURS)
