"""A few captioned scenes on disk, and a run trained on them for a few steps."""

from __future__ import annotations

import csv

import pytest

from mc_testkit.command import call

TINY = {
    "--recipe": "albef-laptop",
    "--method.image.image-size": "32",
    "--method.image.patch-size": "16",
    "--method.image.width": "16",
    "--method.image.depth": "1",
    "--method.image.heads": "2",
    "--method.image.stem": "patch",
    "--method.text.hidden-size": "16",
    "--method.text.heads": "2",
    "--method.text.text-layers": "1",
    "--method.text.fusion-layers": "1",
    "--method.dim": "8",
    "--method.queue-size": "32",
    "--augment.size": "32",
    "--fit.warmup-epochs": "0",
    "--fit.steps": "4",
    "--batch": "16",
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
    from mc_vision_language_app.app import run

    return lambda *arguments: call(run, *arguments)


@pytest.fixture(scope="session")
def captions(tmp_path_factory):
    """60 scenes as PNG files, and captions.csv: 40 to train on, 20 held out; the first has two captions."""
    from PIL import Image

    from mc_core.samples import digit_scenes

    folder = tmp_path_factory.mktemp("scenes")
    scenes = digit_scenes(60, size=32)
    (folder / "images").mkdir()
    rows = []
    for place, text in enumerate(scenes.captions):
        name = f"images/{place:02d}.png"
        Image.fromarray(scenes.images[place].permute(1, 2, 0).numpy()).save(folder / name)
        rows.append({"image": name, "caption": text, "split": "train" if place < 40 else "test"})
    rows.insert(1, {**rows[0], "caption": "a handwritten digit"})
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "captions.csv"


@pytest.fixture(scope="session")
def finished(captions, command, tmp_path_factory):
    """A run folder, and what the command printed."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    return run, command("pretrain", captions, *make_tiny("--out", run, "--json"))


@pytest.fixture
def rewritten(captions, tmp_path):
    """Writes the rows as another table, after changes by a function; images stay where they are."""

    def write(change, name="changed.csv"):
        with captions.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        rows = change(rows) or rows
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path, ["--images", captions.parent]

    return write
