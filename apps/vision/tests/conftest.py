"""The command in this process, with its exit code and streams; and one finished tiny run that many tests look at."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        (line,) = self.out.splitlines()
        return json.loads(line)


def call(*arguments: object) -> Done:
    """``mc-vision ARGUMENTS`` as its entry point runs it; the project's logger is left as it was found."""
    from mc_core.cli import run_app
    from mc_vision_app.app import run

    log = logging.getLogger("mc_core")
    before = list(log.handlers), log.propagate, log.level
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_app(run, [str(argument) for argument in arguments])
    finally:
        log.handlers[:], log.propagate = before[0], before[1]
        log.setLevel(before[2])
    return Done(code, out.getvalue(), err.getvalue())


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
