"""The command in this process, with its exit code and streams; a tiny corpus and a finished run that many tests look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mc_testkit.command import Done
from mc_testkit.command import call as testkit_call

ANIMALS = ("cat", "dog", "horse", "bird", "fish", "mouse", "fox", "bear")
PLACES = ("garden", "house", "river", "forest", "field")
DEEDS = ("sleeps quietly", "runs very fast", "eats its food", "plays with a ball", "looks for water")


def call(*arguments: object) -> Done:
    """``mc-text-code sentences ARGUMENTS`` as its entry point runs it."""
    from mc_text_code_app.app import run

    return testkit_call(run, "sentences", *arguments)


@pytest.fixture(scope="session")
def command():
    return call


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """200 different sentences of a few dozen words, a line each."""
    path = tmp_path_factory.mktemp("corpus") / "sentences.txt"
    lines = [f"The {a} in the {p} {d}." for a in ANIMALS for p in PLACES for d in DEEDS]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """Scored pairs, as a table: the same deed is near, another is far."""
    path = tmp_path_factory.mktemp("pairs") / "mine-test.tsv"
    rows = ["sentence1\tsentence2\tscore"]
    for i, animal in enumerate(ANIMALS):
        for j, place in enumerate(PLACES):
            other = DEEDS[(i + j) % 5]
            score = 5 if other == DEEDS[0] else (i + 2 * j) % 4
            rows.append(f"The {animal} in the {place} {DEEDS[0]}.\tThe {animal} in the {place} {other}.\t{score}")
    path.write_text("\n".join(rows) + "\n")
    return path


TINY = [
    *("--encoder", "tiny", "--fit.steps", 4, "--fit.batch-size", 8, "--fit.device", "cpu", "--fit.health-every", 2),
    *("--method.encoder.hidden-size", 16, "--method.encoder.heads", 2, "--method.encoder.layers", 1),
    *("--warm-start.steps", 2, "--warm-start.batch-size", 8),
]


@pytest.fixture(scope="session")
def tiny() -> list[object]:
    return TINY


@pytest.fixture(scope="session")
def trained(corpus, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A finished run and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, call("pretrain", corpus, *TINY, "--holdout", 0.2, "--out", out, "--json").json
