"""The verbs of astrea on a few scenes: a run of all stages, what is asked of it, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from PIL import Image

from mc_vision_language.staged import sample

SIDE = 16
EXPERT = {"image_size": SIDE, "width": 8, "depth": 1, "stages": 2}
LANGUAGE = {"hidden_size": 16, "heads": 2, "layers": 1, "positions": 120, "question_length": 16, "answer_length": 20}
RECIPE = {
    "system": "astrea",
    "method": {
        "experts": [
            {"kind": "classification", **EXPERT},
            {"kind": "captioning", **EXPERT, "captioning": {"language": LANGUAGE}},
            {"kind": "detection", **EXPERT},
            {"kind": "segmentation", **EXPERT},
        ],
        "image": {"image_size": SIDE},
        "grid": 4,
        "width": 16,
        "dim": 8,
        "queue_size": 16,
        "momentum": 0.9,
        "text": {"hidden_size": 16, "heads": 2, "text_layers": 1, "vocabulary": 200, "max_length": 16, "dropout": 0.0},
        "language": LANGUAGE,
        "stages": {"experts": {"steps": 3, "batch_size": 8}, "instruct": {"steps": 3, "batch_size": 8}},
    },
    "augment": {"size": SIDE, "resize": "squash", "flip": 0.0, "rand_augment": 0},
    "fit": {"steps": 4, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3, "log_every": 1},
}


@pytest.fixture(scope="module")
def tiny_recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def few_scenes():
    """The sample with a few scenes of 16 pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "COUNTS", {"train": 32, "validation": 8, "test": 12})
        patch.setattr(sample, "SIZE", SIDE)
        yield


@pytest.fixture(scope="module")
def trained(command, tiny_recipe, few_scenes, tmp_path_factory):
    """A run of all stages on the sample, and what the command printed."""
    run = tmp_path_factory.mktemp("astrea") / "run"
    return run, command("astrea", "--recipe", tiny_recipe, "--out", run, "--draws", "5", "--json")


@pytest.fixture(scope="module")
def photo(few_scenes, tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "scene.png"
    Image.fromarray(sample.staged_scenes("test", count=1).images[0].permute(1, 2, 0).numpy()).save(path)
    return path


def test_plain_astrea_trains_all_stages_on_the_sample_beside_its_baselines(trained):
    run, done = trained
    found = done.json
    assert found["metric"] == "retrieval_mean_recall"
    assert len(found["baselines"]) == 2
    assert "uniform weights" in found["baselines"]
    assert any(name.startswith("only ") for name in found["baselines"])
    assert set(found["experts"]) == {"classification", "captioning", "detection", "segmentation"}
    assert found["experts"]["detection"]["metric"] == "ap50"
    assert list(found["stages"])[-2:] == ["2-joint", "3-instruct"]
    assert 0 <= found["measured"]["answers"]["accuracy"] <= 1
    assert set(found["router"]["experts"]) == set(found["experts"])
    assert json.loads((run / "result.json").read_text()) == found
    for name in ("experts", "fusion", "weights", "contribution", "captions"):
        with Image.open(run / f"{name}.png") as picture:
            assert picture.width > 200
    page = (run / "report.html").read_text()
    assert "How much each expert counts at each place" in page
    assert "2503.09445" in page


def test_the_same_command_again_only_reads_and_prints_tables(trained, command, tiny_recipe):
    run, done = trained
    again = command("astrea", "train", "--recipe", tiny_recipe, "--out", run, "--draws", "5")
    assert "experts on pictures held out" in again.out
    assert "uniform weights" in again.out
    assert "answers: accuracy" in again.out
    assert json.loads((run / "result.json").read_text())["trained"] == done.json["trained"]


def test_asking_captions_and_evaluation(trained, command, photo, tmp_path):
    run, done = trained
    told = command("astrea", "ask", run, photo, "is there a red digit?", "--json").json
    assert told["generated"]
    (tmp_path / "answers.txt").write_text("yes\nno\n")
    chosen = command("astrea", "ask", run, photo, "is there a red digit?", "--answers", tmp_path / "answers.txt")
    assert chosen.out.strip() in ("yes", "no")
    both = command("astrea", "caption", run, photo, photo, "--json").json["captions"]
    assert list(both) == [str(photo)]
    assert command("astrea", "caption", run, photo).code == 0
    found = command("astrea", "evaluate", run, "--draws", "5", "--json").json
    assert found["vqa_accuracy"] == pytest.approx(done.json["measured"]["vqa_accuracy"])
    assert "R_m" in command("astrea", "evaluate", run, "--draws", "0", "--mode", "rank").out


def test_inspection_writes_pictures_and_says_what_experts_add(trained, command, photo, tmp_path):
    run, _ = trained
    found = command("astrea", "inspect", run, "--out", tmp_path / "seen", "--json").json
    assert {"all", "even weights", "without detection"} <= set(found["retrieval_mean_recall"])
    assert 0 <= found["entropy"] <= 1
    for name in ("weights.png", "training.png"):
        with Image.open(tmp_path / "seen" / name) as picture:
            assert picture.width > 200
    table = command("astrea", "inspect", run, photo.parent, "--out", tmp_path / "other").out
    assert "mean weight" in table
    assert "counts most" in table


def test_other_verbs_take_the_run(trained, command, photo):
    run, _ = trained
    hits = command("search", run, photo.parent, "a large red nine", "--top", "1", "--json").json["found"]
    assert len(hits) == 1
    found = command("evaluate", run, "--draws", "0", "--json").json
    assert found["baselines"] == {}
    refused = command("pretrain", "--recipe", "astrea-laptop")
    assert refused.code == 2
    assert "trained in stages: mc-vision-language astrea" in refused.err


def test_pairs_alone_leave_experts_out_and_say_so(command, captions, tiny_recipe, tmp_path):
    options = (
        "--recipe",
        tiny_recipe,
        "--out",
        tmp_path / "run",
        "--draws",
        "0",
        "--stage",
        "experts",
        "--stage",
        "joint",
    )
    done = command("astrea", "train", captions, *options, "--json")
    found = done.json
    assert set(found["experts"]) == {"captioning"}
    assert len(found["left_out"]) == 3
    assert found["baselines"] == {}
    assert "no detection expert" in done.err
    refused = command("astrea", "ask", tmp_path / "run", captions.parent / "images" / "00.png", "what is it")
    assert refused.code == 2
    assert "no language model" in refused.err


def test_rows_of_an_ablation(command, tiny_recipe, few_scenes, tmp_path):
    options = ("--recipe", tiny_recipe, "--out", tmp_path / "rows", "--seeds", "1", "--row", "all experts", "--row")
    found = command("astrea", "ablate", *options, "uniform weights", "--json").json
    assert [row["row"] for row in found["rows"]] == ["all experts", "uniform weights"]
    assert (tmp_path / "rows" / "ablation.json").is_file()
    assert "uniform weights" in command("astrea", "ablate", *options, "uniform weights").out
    refused = command("astrea", "ablate", *options, "even weights")
    assert refused.code == 2
    assert "did you mean uniform weights" in refused.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--recipe", "albef-laptop"), "'albef' has no experts"),
        (("--stage", "joined"), "joint"),
        (("--stage", "joint"), "stage joint needs an expert"),
        (("--expert", "detection"), "as detection=runs/detector"),
        (("--method.grid", "0"), "grid"),
        (("--fit.batch-size", "64"), "64"),
    ],
    ids=["recipe", "stage", "order", "expert", "option", "batch"],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(arguments, said, command, tiny_recipe, few_scenes, tmp_path):
    given = arguments if "--recipe" in arguments else ("--recipe", tiny_recipe, *arguments)
    refused = command("astrea", *given, "--out", tmp_path / "run")
    assert refused.code == 2
    assert refused.err.count("error:") == 1
    assert said in refused.err
    assert not (tmp_path / "run" / "stages").exists()


def test_recipes_and_helps(command):
    shown = command("astrea", "--print-recipe").out
    assert "system: astrea" in shown
    code = "import sys, mc_vision_language_app.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert command("astrea", "ask", "nowhere", "x.png", "what").code == 2
