"""The command in this process, a tiny terrain, and one finished tiny run that many tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from mc_remote_sensing.terrain import TerrainFiles, write_terrain
from mc_testkit.command import Done
from mc_testkit.command import call as testkit_call

TINY = {
    "--recipe": "hpcl-net-laptop",
    "--tiles.tile": "32",
    "--split.block-m": "128",
    "--fit.batch-size": "8",
    "--fit.steps": "12",
    "--fit.workers": "0",
    "--fit.log-every": "4",
    "--method.queue-size": "32",
}


def call(*arguments: object) -> Done:
    """``mc-remote-sensing ARGUMENTS`` as its entry point runs it."""
    from mc_remote_sensing_app.app import run

    return testkit_call(run, *arguments)


@pytest.fixture(scope="session")
def command():
    return call


def make_tiny(*more: object) -> list[object]:
    """Options that make a run a matter of seconds; those in ``more`` replace what is here."""
    kept = {name: value for name, value in TINY.items() if name not in more}
    return [part for option in kept.items() for part in option] + list(more)


@pytest.fixture(scope="session")
def tiny():
    return make_tiny


@pytest.fixture(scope="session")
def terrain(tmp_path_factory: pytest.TempPathFactory) -> TerrainFiles:
    return write_terrain(tmp_path_factory.mktemp("terrain"), size_px=320, seed=1, scars=14)


@pytest.fixture(scope="session")
def scene(terrain: TerrainFiles) -> list[object]:
    """Options that name the terrain's rasters."""
    return ["--image", terrain.image, "--dem", terrain.elevation]


@pytest.fixture(scope="session")
def labelled(terrain: TerrainFiles, scene: list[object]) -> list[object]:
    """The same with labels."""
    return [*scene, "--labels", terrain.labels, "--extent", terrain.extent]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, labelled: list[object]) -> tuple[Path, Done]:
    """(run folder, what its command printed)."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, call("train", *labelled, *make_tiny(), "--out", folder, "--json")
