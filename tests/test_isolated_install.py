"""What each package brings with it, and that it works in an environment that holds nothing else.

The wheels are built from this tree; everything else comes from the package index that uv is set up with.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mc_testkit.files import write_image_folder
from mc_testkit.workspace import members, root

UV = shutil.which("uv")
pytestmark = [
    pytest.mark.wheels,
    pytest.mark.slow,
    pytest.mark.skipif(UV is None, reason="uv is not on the PATH: it builds and installs the wheels"),
]


def _environment() -> dict[str, str]:
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in hidden} | {"OMP_NUM_THREADS": "1"}


def _run(*command: object, cwd: Path, text: str | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=_environment(),
        input=text,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel of every package and app."""
    folder = tmp_path_factory.mktemp("wheels")
    for member in (*members("packages"), *members("apps")):
        _run(UV, "build", "--wheel", "--package", member.distribution, "-o", folder, "-q", cwd=root())
    assert len(list(folder.glob("*.whl"))) == len(members("packages")) + len(members("apps"))
    return folder


@pytest.fixture(scope="module")
def brings(wheels: Path) -> Callable[[str], set[str]]:
    """The names of all distributions that installing a requirement here comes to, itself included."""

    def resolve(requirement: str) -> set[str]:
        options = ["-q", "--no-header", "--no-annotate", "--python", sys.executable, "--find-links", wheels]
        text = _run(UV, "pip", "compile", *options, "-", cwd=wheels, text=f"{requirement}\n")
        return {name for line in text.splitlines() if (name := re.split(r"[=<>@\[ ;]", line)[0])}

    return resolve


def test_the_core_is_small(brings: Callable[[str], set[str]]) -> None:
    found = brings("mc-core")
    assert "torch" in found
    assert not found & {
        "torchvision",
        "timm",
        "transformers",
        "scikit-learn",
        "matplotlib",
        "onnx",
        "cyclopts",
        "pandas",
    }
    more = found - brings("torch") - {"mc-core"}
    assert len(more) < 25, sorted(more)


def test_the_domain_brings_neither_command_nor_other_fields(brings: Callable[[str], set[str]]) -> None:
    found = brings("mc-vision")
    assert found >= {"mc-core", "timm", "torchvision", "scikit-learn"}
    assert not found & {"transformers", "cyclopts", "matplotlib", "mc-vision-app", "onnx", "pandas"}


def test_the_extra_app_brings_the_command(brings: Callable[[str], set[str]]) -> None:
    found = brings("mc-vision[app]")
    assert found >= {"mc-vision-app", "mc-vision", "mc-core", "cyclopts", "pyarrow", "matplotlib"}
    assert not found & {"transformers", "lightly", "pytorch-lightning", "datasets"}


def test_wearables_bring_nothing_of_other_fields(brings: Callable[[str], set[str]]) -> None:
    found = brings("mc-wearables")
    assert found >= {"mc-core", "neurokit2", "pyarrow", "scipy"}
    others = {"timm", "torchvision", "transformers", "rasterio", "sentence-transformers", "tree-sitter", "pillow-heif"}
    assert not found & (others | {"cyclopts", "gradio", "onnx", "mc-wearables-app", "mc-vision", "wfdb"})
    more = found - brings("torch") - {"mc-core", "mc-wearables"}
    assert len(more) < 50, sorted(more)  # 24 of them come with neurokit2, 24 with the core
    assert brings("mc-wearables[app]") >= {"mc-wearables-app", "wfdb", "fastavro", "onnxruntime", "cyclopts"}


def _install(requirement: str, folder: Path, wheels: Path) -> Path:
    """A new environment with ``requirement`` alone; its folder of programs."""
    _run(UV, "venv", "-q", "--no-project", "--python", sys.executable, folder, cwd=folder.parent)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    python = programs / Path(sys.executable).name
    _run(UV, "pip", "install", "-q", "--python", python, "--find-links", wheels, requirement, cwd=folder.parent)
    return programs


CORE_ALONE = """
import importlib, pkgutil, sys
from pathlib import Path

import mc_core
names = [module.name for module in pkgutil.walk_packages(mc_core.__path__, "mc_core.")]
for name in names:
    importlib.import_module(name)
assert "mc_core.engine.loop" in names, names
assert not {"timm", "torchvision", "sklearn", "matplotlib", "onnx"} & set(sys.modules)

import torch
from mc_core.data import TensorData
from mc_core.engine import Fit, Method, StepOutput, fit
from mc_core.losses import info_nce
from mc_core.momentum import MomentumEncoder

class Toy(Method):
    def __init__(self):
        super().__init__()
        self.online = torch.nn.Linear(4, 3)
        self.slow = MomentumEncoder(self.online, 0.9)

    def training_step(self, batch, progress, prepared=None):
        normalize = torch.nn.functional.normalize
        query, key = normalize(self.online(batch["x"]), dim=1), normalize(self.slow(batch["x"]), dim=1)
        return StepOutput(info_nce(query, key, key.roll(1, 0), temperature=0.2), {}, {"query": query})

    def after_step(self, progress):
        self.slow.update()

torch.manual_seed(0)
result = fit(Toy(), TensorData(x=torch.randn(12, 4)), fit=Fit(steps=3, batch_size=4, device="cpu"), run_dir=Path("run"))
print("trained", result.step)
"""


def test_the_core_alone_imports_and_trains(wheels: Path, tmp_path: Path) -> None:
    programs = _install("mc-core", tmp_path / "environment", wheels)
    said = _run(programs / "python", "-W", "error::ImportWarning", "-c", CORE_ALONE, cwd=tmp_path)
    assert said.splitlines()[-1] == "trained 3"


def test_the_command_from_its_extra_pretrains(wheels: Path, tmp_path: Path) -> None:
    programs = _install("mc-vision[app]", tmp_path / "environment", wheels)
    version = members("packages")[0].folder.parents[1] / "pyproject.toml"
    program = programs / "mc-vision"
    assert f'version = "{_run(program, "--version", cwd=tmp_path).strip()}"' in version.read_text()
    data = write_image_folder(tmp_path / "data", each=10)
    tiny = ["--image-size", 16, "--fit.batch-size", 8, "--fit.steps", 2, "--fit.workers", 0]
    options = ["--recipe", "moco-v2-laptop", "--method.queue-size", 16, "--method.split-bn", 2, *tiny]
    _run(program, "pretrain", data, *options, "--out", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "result.json").exists()
    assert (tmp_path / "run" / "report.html").exists()


WEARABLES_ALONE = """
import sys
import numpy as np
import torch
from mc_wearables import EncoderConfig, SignalEncoder, embed

torch.manual_seed(0)
encoder = SignalEncoder(EncoderConfig(channels=1, sampling_rate=64, seconds=10, architecture="resnet", width=16)).eval()
time = np.arange(0, 60, 1 / 100)
found = embed(np.exp(-(((time % 0.8) - 0.4) / 0.1) ** 2), sampling_rate=100, encoder=encoder, kind="ppg")
assert np.isfinite(found).all()
assert not {"timm", "transformers", "torchvision", "rasterio"} & set(sys.modules)
print("embedded", *found.shape)
"""


def test_wearables_alone_embed(wheels: Path, tmp_path: Path) -> None:
    programs = _install("mc-wearables", tmp_path / "environment", wheels)
    assert _run(programs / "python", "-c", WEARABLES_ALONE, cwd=tmp_path).split() == ["embedded", "6", "16"]
    for missing in ("timm", "transformers", "torchvision", "rasterio"):
        check = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{missing}') is not None)"
        _run(programs / "python", "-c", check, cwd=tmp_path)


def test_text_brings_nothing_of_images_or_signals(brings: Callable[[str], set[str]]) -> None:
    found = brings("mc-text-code")
    assert found >= {"mc-core", "sentence-transformers", "transformers", "tokenizers", "bm25s", "pyarrow"}
    others = {"timm", "torchvision", "rasterio", "neurokit2", "mc-vision", "mc-wearables"}
    assert not found & (
        others | {"cyclopts", "gradio", "onnx", "datasets", "mteb", "tree-sitter", "mcp", "mc-text-code-app"}
    )
    more = found - brings("torch") - {"mc-core", "mc-text-code"}
    assert len(more) < 55, sorted(more)
    assert brings("mc-text-code[app]") >= {"mc-text-code-app", "datasets", "tree-sitter", "onnxruntime", "cyclopts"}


TEXT_ALONE = """
import sys
from sentence_transformers import SentenceTransformer
from mc_text_code import load_encoder, resolve_recipe
from mc_text_code.training import pretrain_sentences

texts = [f"sentence number {i} is about {i % 5} things" for i in range(40)]
changes = {
    "method": {"encoder": {"hidden_size": 16, "heads": 2, "layers": 1}},
    "warm_start": {"steps": 1, "batch_size": 8},
    "fit": {"steps": 2, "batch_size": 8, "device": "cpu"},
}
pretrain_sentences(resolve_recipe("esimcse-laptop", changes), texts, "run")
ours, plain = load_encoder("run").encode(texts), SentenceTransformer("run/model", device="cpu").encode(texts)
assert abs(ours - plain).max() < 1e-5
assert not {"timm", "torchvision", "rasterio", "neurokit2", "matplotlib"} & set(sys.modules)
print("embedded", *ours.shape)
"""


def test_text_alone_trains_and_plain_sentence_transformers_loads_it(wheels: Path, tmp_path: Path) -> None:
    programs = _install("mc-text-code", tmp_path / "environment", wheels)
    assert _run(programs / "python", "-c", TEXT_ALONE, cwd=tmp_path).split()[-3:] == ["embedded", "40", "16"]


def test_remote_sensing_brings_nothing_of_text_or_signals(brings: Callable[[str], set[str]]) -> None:
    found = brings("mc-remote-sensing")
    assert found >= {"mc-core", "rasterio", "geopandas", "pyogrio", "shapely", "timm"}
    others = {"transformers", "neurokit2", "sentence-transformers", "mc-vision", "mc-wearables", "torchgeo", "gdal"}
    assert not found & (others | {"cyclopts", "gradio", "onnx", "matplotlib", "mc-remote-sensing-app"})
    more = found - brings("torch") - {"mc-core", "mc-remote-sensing"}
    assert len(more) < 45, sorted(more)
    assert brings("mc-remote-sensing[app]") >= {"mc-remote-sensing-app", "onnxruntime", "cyclopts", "matplotlib"}


REMOTE_SENSING_ALONE = """
import sys
from pathlib import Path

from mc_remote_sensing import open_scene, predict_scene, resolve_recipe, write_polygons, write_terrain
from mc_remote_sensing.training import data_fields, split_ground, train_segmentation, with_data

files = write_terrain("terrain", size_px=320, seed=1, scars=14)
scene = open_scene(files.image, files.elevation, files.labels, extent=files.extent, cache=Path("cache"))
recipe = resolve_recipe("hpcl-net-laptop", {
    "tiles": {"tile": 32}, "split": {"block_m": 128},
    "fit": {"steps": 2, "batch_size": 4, "device": "cpu", "workers": 0},
})
ground = split_ground([scene], recipe)
trained = train_segmentation(with_data(recipe, data_fields(ground)), ground, Path("run"))
found = predict_scene(trained.model, scene.image, scene.elevation, "map.tif")
written = write_polygons(found.probability, found.classes, "map.gpkg", elevation=scene.elevation)

import geopandas
import rasterio

with rasterio.open("map.tif") as file, rasterio.open(files.image) as image:
    assert (file.crs, file.bounds) == (image.crs, image.bounds)
assert geopandas.read_file("map.gpkg").crs.to_epsg() == 32632
assert not {"transformers", "neurokit2", "matplotlib"} & set(sys.modules)
print("mapped", found.pixels)
"""


def test_remote_sensing_alone_maps(wheels: Path, tmp_path: Path) -> None:
    programs = _install("mc-remote-sensing", tmp_path / "environment", wheels)
    said = _run(programs / "python", "-c", REMOTE_SENSING_ALONE, cwd=tmp_path)
    assert said.splitlines()[-1].split() == ["mapped", "102400"]


def test_medical_brings_nothing_of_geodata_or_signals(brings: Callable[[str], set[str]]) -> None:
    found = brings("mc-medical")
    assert found >= {"mc-core", "pydicom", "timm", "transformers", "tokenizers", "pyarrow"}
    others = {
        "rasterio",
        "neurokit2",
        "sentence-transformers",
        "mc-vision",
        "mc-text-code",
        "mc-wearables",
        "pylibjpeg",
    }
    assert not found & (others | {"cyclopts", "gradio", "onnx", "matplotlib", "pandas", "mc-medical-app"})
    assert brings("mc-medical[compressed]") >= {"pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls", "python-gdcm"}
    assert "pylibjpeg-libjpeg" not in brings("mc-medical[all]"), "it is under the GPL"
    assert brings("mc-medical[app]") >= {"mc-medical-app", "onnxruntime", "cyclopts", "matplotlib"}


MEDICAL_ALONE = """
import sys

from mc_medical import load_image_text_model, open_studies, prepare_cohort, pretrain_pairs, resolve_recipe, write_phantoms
from mc_medical import zero_shot

files = write_phantoms("phantoms", patients=30, size=48, seed=1)
cohort = prepare_cohort(open_studies(files.table))
recipe = resolve_recipe("msd-laptop", {
    "method": {"image": {"image_size": 32, "width": 8}, "text": {"hidden_size": 16, "heads": 2}, "dim": 16},
    "augment": {"size": 32},
    "fit": {"steps": 2, "batch_size": 16, "accumulation": 4, "device": "cpu"},
})
pretrain_pairs(recipe, cohort, "run")
model = load_image_text_model("run")
found = zero_shot(model, sorted(files.images.glob("*.dcm"))[:3], ["Pleural Effusion", "Cardiomegaly"])
assert found.probability.shape == (3, 2)
assert not {"rasterio", "neurokit2", "matplotlib", "sentence_transformers", "pandas"} & set(sys.modules)
print("scored", *found.prompts.names)
"""


def test_medical_alone_trains_and_scores(wheels: Path, tmp_path: Path) -> None:
    programs = _install("mc-medical", tmp_path / "environment", wheels)
    said = _run(programs / "python", "-c", MEDICAL_ALONE, cwd=tmp_path)
    assert said.splitlines()[-1] == "scored Pleural Effusion Cardiomegaly"


def test_vision_language_brings_nothing_of_geodata_signals_or_medicine(brings: Callable[[str], set[str]]) -> None:
    found = brings("mc-vision-language")
    assert found >= {"mc-core", "timm", "transformers", "tokenizers", "pyarrow", "pillow"}
    others = {"rasterio", "neurokit2", "sentence-transformers", "pydicom", "mc-vision", "mc-text-code", "mc-medical"}
    assert not found & (others | {"cyclopts", "gradio", "onnx", "matplotlib", "pandas", "mc-vision-language-app"})
    assert brings("mc-vision-language[app]") >= {"mc-vision-language-app", "onnxruntime", "cyclopts", "matplotlib"}


VISION_LANGUAGE_ALONE = """
import sys

from mc_vision_language import SearchIndex, ground, load_vision_language_model, pretrain_pairs, resolve_recipe, sample_pairs

pairs = sample_pairs(counts={"train": 32, "validation": 4, "test": 8})
recipe = resolve_recipe("albef-laptop", {
    "method": {
        "image": {"image_size": 32, "patch_size": 16, "width": 16, "heads": 2},
        "text": {"hidden_size": 16, "heads": 2}, "dim": 16, "queue_size": 32,
    },
    "augment": {"size": 32},
    "fit": {"steps": 2, "batch_size": 8, "accumulation": 1, "device": "cpu"},
})
pretrain_pairs(recipe, pairs, "run")
model = load_vision_language_model("run")
index = SearchIndex.build(model, pairs.part("test").images, "index")
(best, *_) = index.search("a large red nine", top=3)
assert best.match is not None
assert ground(model, pairs.images.read(0), "a digit").heat.shape == (32, 32)
assert not {"rasterio", "neurokit2", "matplotlib", "sentence_transformers", "pandas", "pydicom"} & set(sys.modules)
print("found", len(index))
"""


def test_vision_language_alone_trains_and_searches(wheels: Path, tmp_path: Path) -> None:
    programs = _install("mc-vision-language", tmp_path / "environment", wheels)
    said = _run(programs / "python", "-c", VISION_LANGUAGE_ALONE, cwd=tmp_path)
    assert said.splitlines()[-1] == "found 8"
