"""The command in this process, with its exit code and streams; and one finished tiny run that many tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from mc_testkit.command import Done
from mc_testkit.command import call as testkit_call
from mc_testkit.files import write_image, write_image_folder

TINY = {
    "--recipe": "moco-v2-laptop",
    "--image-size": "16",
    "--fit.batch-size": "16",
    "--fit.epochs": "2",
    "--fit.workers": "0",
    "--method.queue-size": "32",
    "--method.split-bn": "2",
}


def call(*arguments: object) -> Done:
    """``mc-vision ARGUMENTS`` as its entry point runs it."""
    from mc_vision_app.app import run

    return testkit_call(run, *arguments)


@pytest.fixture(scope="session")
def command():
    return call


def make_tiny(*more: object) -> list[object]:
    """Options that make a run a matter of a second; those in ``more`` replace what is here."""
    replaced = {"--fit.epochs"} if "--fit.steps" in more else set()
    kept = {name: value for name, value in TINY.items() if name not in replaced and name not in more}
    return [part for option in kept.items() for part in option] + list(more)


@pytest.fixture(scope="session")
def tiny():
    return make_tiny


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("labelled"), each=24)


@pytest.fixture(scope="session")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flat")
    for i in range(24):
        write_image(folder / f"{i:02d}.png", seed=i)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, labelled: Path) -> tuple[Path, Done]:
    """(run folder, what its command printed)."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, call("pretrain", labelled, *make_tiny(), "--out", folder, "--json")
