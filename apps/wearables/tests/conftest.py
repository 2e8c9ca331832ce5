"""The command in this process, with its exit code and streams; a tiny store and a finished run that many tests look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mc_testkit.command import Done
from mc_testkit.command import call as testkit_call

PEOPLE, FILES, SECONDS, RATE = 14, 3, 21, 50


def call(*arguments: object) -> Done:
    """``mc-wearables ARGUMENTS`` as its entry point runs it."""
    from mc_wearables_app.app import run

    return testkit_call(run, *arguments)


@pytest.fixture(scope="session")
def command():
    return call


def pulse(person: int, session: int, seconds: float = SECONDS, rate: float = RATE) -> np.ndarray:
    """A pulse wave with its person's rate and shape, noise of its own."""
    time = np.arange(round(seconds * rate)) / rate
    phase = (time * (0.9 + 0.05 * person) + 0.3 * session) % 1.0
    wave = np.exp(-(((phase - 0.3) / 0.1) ** 2)) + 0.08 * person * np.exp(-(((phase - 0.62) / 0.12) ** 2))
    return wave + 0.03 * np.random.default_rng(100 * person + session).normal(size=len(time))


@pytest.fixture(scope="session")
def recordings(tmp_path_factory) -> Path:
    """A folder for each person with CSV recordings in them, and a table of labels beside."""
    root = tmp_path_factory.mktemp("recordings")
    for person in range(PEOPLE):
        folder = root / "data" / f"alice-{person:02d}"
        folder.mkdir(parents=True)
        for session in range(FILES):
            lines = "\n".join(f"{value:.5f}" for value in pulse(person, session))
            (folder / f"{session}.csv").write_text(f"ppg\n{lines}\n")
    rows = "\n".join(f"alice-{p:02d},{20 + 4 * p},{'female' if p % 2 else 'male'},note {p}" for p in range(PEOPLE))
    (root / "labels.csv").write_text(f"participant,age,sex,remark\n{rows}\nalice-99,50,male,no signal\n")
    return root


INGEST = [
    "--signal",
    "ppg",
    "--fs",
    RATE,
    "--units",
    "au",
    "--participant-from",
    "folder",
    "--seconds",
    10,
    "--rate",
    32,
]


@pytest.fixture(scope="session")
def store(recordings, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("store") / "store"
    (out.parent / "store.salt").write_text("07" * 32 + "\n")  # so that the same people are held out each time
    done = call("ingest", recordings / "data", "--out", out, *INGEST)
    assert done.code == 0, done.err
    return out


TINY = [
    *("--recipe", "ahms-ppg-laptop", "--fit.steps", 6, "--fit.batch-size", 8, "--fit.device", "cpu"),
    *("--method.encoder.width", 16, "--fit.health-every", 3, "--fit.warmup-epochs", 0),
]


@pytest.fixture(scope="session")
def trained(store, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A finished run and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, call("pretrain", store, *TINY, "--out", out, "--json").json


@pytest.fixture(scope="session")
def ingest_options() -> list[object]:
    return INGEST


@pytest.fixture(scope="session")
def tiny() -> list[object]:
    return TINY
