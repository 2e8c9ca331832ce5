"""The benchmark on real pictures with captions, at a tiny size on tiny sets of the same layout."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from mc_benchmarks import contract, vl_real
from mc_benchmarks.contract import load_report
from mc_benchmarks.vl_real import ALL, COLUMNS, CONTRAST, RANDOM, SETS, in_memory, joined, run_vl_real
from mc_benchmarks.vl_sizes import SIZES
from mc_core.errors import CheckpointError, ConfigError
from mc_core.samples import digit_scenes, phrases, questions
from mc_vision_language.data import ArrayImages, FileImages, open_pairs

TINY = {
    "image": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2},
    "text": {"text_layers": 1, "fusion_layers": 1, "hidden_size": 16, "heads": 2, "dropout": 0.0},
    "dim": 8,
}
COUNT = 24


def _tar(path, scenes, notes):
    with tarfile.open(path, "w") as tar:
        for row, note in enumerate(notes):
            file = io.BytesIO()
            Image.fromarray(scenes.images[row].permute(1, 2, 0).numpy()).save(file, "PNG")
            for ending, content in (("png", file.getvalue()), ("json", json.dumps(note).encode())):
                member = tarfile.TarInfo(f"{row:03d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Scenes of digits as the real sets are laid out."""
    folder = tmp_path_factory.mktemp("sets")
    for number, (name, file) in enumerate(SETS.items()):
        scenes = digit_scenes(COUNT, size=32, digits=(2, 2), seed=number)
        notes = [{"image_id": 100 * number + row, "text": text} for row, text in enumerate(scenes.captions)]
        if name == "COCO":
            named = phrases(scenes)
            for row, note in enumerate(notes):
                note["captions"] = [note.pop("text"), "two digits"]
                note |= {"split": "val2017", "width": 32, "height": 32}
                note["objects"] = [
                    {"category": named.text[i], "bbox": [x, y, x2 - x, y2 - y], "iscrowd": 0}
                    for i in (named.scene == row).nonzero()[:, 0].tolist()
                    for x, y, x2, y2 in [named.box[i].tolist()]
                ]
        _tar(folder / f"{file}.tar", scenes, notes)
    asked = questions(scenes, kinds=["size", "exists"])
    qa = [[] for _ in range(COUNT)]
    for row, text, answer in zip(asked.scene.tolist(), asked.text, asked.answer, strict=True):
        qa[row].append({"question": text, "answer": answer})
    _tar(folder / "daquar-vqa-train.tar", scenes, [{"qa": one} for one in qa])
    told = [
        {"sentence": f"there is a {text.split()[1]} one", "label": ("true", "false")[row % 2]}
        for row, text in enumerate(scenes.captions)
    ]
    _tar(folder / "nlvr-dev.tar", scenes, told)
    return folder


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(SIZES, "pocket", TINY)
    monkeypatch.setitem(vl_real._FIT, "batch_size", 8)
    monkeypatch.setitem(vl_real._METHOD, "queue_size", 16)


def test_all_rows_are_measured_and_a_split_that_is_done_is_kept(data, tmp_path, monkeypatch):
    given = {"data": data, "seeds": 1, "task_steps": 2, "size": "pocket", "device": "cpu", "keep": tmp_path / "keep"}
    assert run_vl_real(**given, steps=3, only_seed=0) is None
    monkeypatch.setattr(vl_real, "pretrain_pairs", None)
    report = run_vl_real(**given, steps=3)
    assert load_report("vl_real") == report
    assert report.columns == COLUMNS
    assert len(report.rows) == 3 * len(SETS) + 3
    by_name = {row.name: row.values for row in report.rows}
    assert list(by_name["COCO, mean of six recalls"]) == COLUMNS
    assert len(by_name["IKEA, text → image, R@1 / 5 / 10"][CONTRAST].split(" / ")) == 3
    for name in ("COCO boxes, accuracy at IoU 0.5", "DAQUAR questions, accuracy", "NLVR statements, accuracy"):
        assert set(by_name[name]) == {COLUMNS[0], RANDOM, COLUMNS[4]}
    assert report.settings["images"]["train"] + report.settings["images"]["test"] == 4 * COUNT
    assert "ranking again" in report.reading
    with pytest.raises(CheckpointError, match="under other settings"):
        run_vl_real(**given, steps=4)


def test_both_rows_train_from_the_same_settings():
    assert set(vl_real.ARMS) == {CONTRAST, ALL}
    assert not vl_real.ARMS[ALL]
    settings = vl_real.settings_of("pocket", 5, 6, "cpu")
    assert settings["pretrain"]["fit"]["steps"] == 5
    assert settings["task"]["fit"]["steps"] == 6
    assert vl_real.settings_of("vit-small", 5, 6, "cuda")["pretrain"]["fit"]["precision"] == "bf16"


def test_sets_are_joined_without_mixing_captions(data):
    sets = [open_pairs(data / f"{SETS[name]}.tar") for name in ("COCO", "IKEA")]
    sets = [vl_real.replace(one, images=in_memory(one.images, 16)).divided((0.7, 0.0, 0.3), 1) for one in sets]
    both = joined(sets)
    assert len(both) == 2 * COUNT
    for row in (0, COUNT - 1, COUNT, 2 * COUNT - 1):
        own, place = sets[row // COUNT], row % COUNT
        assert both.captions_of(row) == own.captions_of(place)
        assert (np.asarray(both.images.read(row)) == np.asarray(own.images.read(place))).all()
        assert both.splits[row] == own.splits[place]


def test_pictures_in_memory_are_squares(tmp_path):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    found = in_memory(FileImages(["a.png"], tmp_path), 16)
    assert isinstance(found, ArrayImages)
    assert found.array.shape == (1, 3, 16, 16)


def test_the_folder_is_needed(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        run_vl_real(data=tmp_path / "none", seeds=1, steps=1, task_steps=1, size="pocket", device="cpu", keep=tmp_path)
