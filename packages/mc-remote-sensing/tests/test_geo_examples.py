"""The examples in the docstrings of the data modules, and in what the README says of them."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import mc_remote_sensing.data as package

write = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_geo.py"))))
MODULES = [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_block_of_the_readme_about_data_runs(tmp_path, monkeypatch):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = [
        text
        for text in re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
        if "spatial_blocks" in text
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MC_CACHE", str(tmp_path))
    values = np.random.default_rng(0).integers(1, 255, (1, 3000, 3200)).astype(np.uint8)
    write.raster(tmp_path / "scene.tif", values, transform=write.place(2.0), blockxsize=256, blockysize=256)
    write.raster(tmp_path / "dem.tif", np.ones((210, 220), np.float32), transform=write.place(30.0))
    write.polygons(tmp_path / "polygons.gpkg", [write.box(500 * i, 550 * i, 60, 60, 2.0) for i in range(6)])
    write.polygons(tmp_path / "surveyed.gpkg", [write.box(0, 0, 2900, 3100, 2.0)])
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(blocks[0], "README.md", "exec"), names)
    assert names["mean"].shape == names["deviation"].shape == (1,)
    assert len(names["data"]) > 10
    assert (tmp_path / "blocks.gpkg").exists()
