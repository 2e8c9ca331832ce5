"""A small cohort of phantoms, and a run trained on it for a few steps."""

from __future__ import annotations

import csv

import pytest

from mc_testkit.command import call

TINY = {
    "--recipe": "msd-laptop",
    "--method.image.image-size": "32",
    "--method.image.width": "8",
    "--method.text.hidden-size": "16",
    "--method.text.heads": "2",
    "--method.text.layers": "1",
    "--method.dim": "16",
    "--image.size": "36",
    "--augment.size": "32",
    "--fit.warmup-epochs": "0",
    "--fit.steps": "4",
    "--batch": "16",
    "--micro-batch": "4",
}


def make_tiny(*more: object) -> list[object]:
    """Options that make a run a matter of seconds; those in ``more`` replace what is here."""
    kept = {name: value for name, value in TINY.items() if name not in more}
    return [part for option in kept.items() for part in option] + list(more)


@pytest.fixture(scope="session")
def tiny():
    return make_tiny


@pytest.fixture(scope="session")
def command():
    from mc_medical_app.app import run

    return lambda *arguments: call(run, *arguments)


@pytest.fixture(scope="session")
def studies(tmp_path_factory):
    """Phantoms of 40 patients: studies.csv and images/."""
    from mc_medical.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("cohort")
    write_phantoms(folder, patients=40, size=48, seed=3)
    return folder / "studies.csv"


@pytest.fixture(scope="session")
def finished(studies, command, tmp_path_factory):
    """A run folder, and what the command printed."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    return run, command("pretrain", studies, *make_tiny("--out", run, "--json"))


@pytest.fixture
def rows(studies):
    """The rows of the table, to be written anew with changes; images stay where they are."""
    with studies.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def rewritten(studies, tmp_path):
    """Writes rows as another table."""

    def write(rows, name="changed.csv"):
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path, ["--images", studies.parent]

    return write
