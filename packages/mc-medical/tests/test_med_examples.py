"""The examples in docstrings, what the README shows, and that its tables name what there is."""

from __future__ import annotations

import csv
import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from typing import get_args

import pytest

import mc_medical as package
from mc_medical import (
    load_image_text_model,
    open_studies,
    prepare_cohort,
    pretrain_pairs,
    resolve_recipe,
    write_phantoms,
)
from mc_medical.methods.msd.config import Keys, MSDConfig

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
MODULES = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
SMALL = {
    "method": {
        "image": {"image_size": 32, "width": 8, "name": None, "pretrained": False},
        "text": {"hidden_size": 16, "heads": 2, "layers": 1, "name": None, "max_length": 64},
        "dim": 16,
    },
    "image": {"size": 36},
    "augment": {"size": 32},
    "fit": {"steps": 2, "epochs": None, "batch_size": 16, "accumulation": 4, "device": "cpu", "precision": "fp32"},
}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_name_is_there():
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package)) | {"__version__"}


def test_the_python_blocks_run(tmp_path, monkeypatch):
    """With a small recipe in place of the large one."""
    files = write_phantoms(tmp_path / "images-of", patients=25, size=48, seed=2)
    with files.table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    dicoms = [row["image"] for row in rows if row["image"].endswith(".dcm")]
    monkeypatch.chdir(tmp_path)
    for name, source in (("chest.dcm", dicoms[0]), ("other.png", dicoms[1])):
        (tmp_path / name).write_bytes((files.folder / source).read_bytes())  # content decides, not the name
    (tmp_path / "studies.csv").write_bytes(files.table.read_bytes())
    (tmp_path / "images").symlink_to(files.folder, target_is_directory=True)
    monkeypatch.setattr(
        "mc_medical.recipe.resolve_recipe", lambda name, changes=None: resolve_recipe("msd-laptop", SMALL)
    )
    monkeypatch.setattr(
        package, "resolve_recipe", lambda name, changes=None: resolve_recipe("msd-laptop", SMALL), raising=False
    )
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    trains = next(text for text in blocks if "pretrain_pairs(recipe" in text)
    asks = next(text for text in blocks if "zero_shot(model" in text)
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(trains, "README.md", "exec"), names)
    exec(compile(asks, "README.md", "exec"), names)
    assert names["found"].probability.shape == (2, 2)
    assert len(blocks) == 2


def test_a_run_that_is_measured_from_its_folder_is_the_model_that_was_trained(tmp_path):
    files = write_phantoms(tmp_path / "phantoms", patients=25, size=48, seed=2)
    recipe = resolve_recipe("msd-laptop", SMALL)
    cohort = prepare_cohort(open_studies(files.table, image=recipe.image))
    trained = pretrain_pairs(recipe, cohort, tmp_path / "run").method.model.eval()
    pixels = cohort.pixels.rows([0, 1, 2])
    loaded = load_image_text_model(tmp_path / "run")
    assert (loaded.encode_image(pixels) == trained.encode_image(pixels)).all()
    assert (loaded.encode_text(["left effusion"]) == trained.encode_text(["left effusion"])).all()
    assert loaded.kappa == trained.kappa


def test_the_tables_name_every_mode_and_real_settings():
    rows = re.findall(r"^\| `([^`|]+)` \|", README, re.MULTILINE)
    assert set(get_args(Keys)) <= set(rows)
    table = re.search(r"^\| setting \|.*?\n\n", README, re.DOTALL | re.MULTILINE).group(0)
    settings = [
        name for cell in re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE) for name in re.findall(r"`([\w.]+)`", cell)
    ]
    assert len(settings) > 5
    for name in settings:
        top, _, inner = name.partition(".")
        model = MSDConfig.model_fields[top]
        assert not inner or inner in model.annotation.model_fields


def test_what_the_readme_says_of_the_published_recipe():
    recipe = resolve_recipe("msd")
    assert recipe.fit.batch_size == 1024
    assert recipe.fit.batch_size // recipe.fit.accumulation == 32
    assert "ours" in recipe.source
