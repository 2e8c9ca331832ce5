"""The verbs grow and zero-shot on a few scenes, and what other verbs make of a model that grew."""

from __future__ import annotations

import json

import pytest
from PIL import Image

GROW = [
    "--recipe",
    "growclip-laptop",
    *(
        "--method.image.patch-size",
        "16",
        "--method.image.stem",
        "patch",
        "--method.width",
        "16",
        "--method.head-width",
        "8",
    ),
    *(
        f"--method.{part}-part.{size}={value}"
        for part in ("image", "text", "shared")
        for size, value in (("heads", 1), ("hidden", 16))
    ),
    *(
        "--method.dim",
        "8",
        "--method.growth.batches",
        "2",
        "--method.growth.evaluations",
        "1",
        "--method.growth.budget",
        "4",
    ),
    *("--method.growth.search-share", "0.5", "--fit.steps", "4", "--batch", "8"),
]


@pytest.fixture(scope="module")
def grown(captions, command, tmp_path_factory):
    """A run of two slices with both arms beside it, and what the command printed."""
    run = tmp_path_factory.mktemp("grow") / "run"
    done = command("grow", captions, *GROW, "--slices", "2", "--beside", "--out", run, "--json")
    return run, done


@pytest.fixture(scope="module")
def classes(captions, tmp_path_factory):
    """Two folders of scenes, named as classes."""
    folder = tmp_path_factory.mktemp("classes")
    for place, name in enumerate(("red_nine", "blue_two")):
        (folder / name).mkdir()
        for row in range(3):
            with Image.open(captions.parent / "images" / f"{place * 3 + row:02d}.png") as picture:
                picture.save(folder / name / f"{row}.png")
    return folder


def test_grow_says_what_each_step_chose_and_leaves_a_whole_run(grown):
    run, done = grown
    found = done.json
    assert found["metric"] == "retrieval_mean_recall"
    assert set(found["baselines"]) == {"fixed", "restarting", "random_encoder"}
    assert [step["images"] for step in found["steps"]] == [18, 36]  # a tenth is held out to choose by
    assert found["steps"][1]["selection"]["candidates"][0]["name"] == "current"
    assert found["trained"] == found["steps"][1]["end"]["retrieval_mean_recall"]
    assert found["updates"] == 8
    assert len(found["beside"]["fixed"]) == 2
    assert json.loads((run / "result.json").read_text())["trained"] == found["trained"]
    for name in ("steps.png", "sizes.png", "candidates.png"):
        with Image.open(run / name) as picture:
            assert picture.width > 300
    page = (run / "report.html").read_text()
    assert "Candidates of each search" in page
    assert "step 2" in page
    for arm in ("fixed", "restarting"):
        assert (run / "beside" / arm / "model" / "config.json").is_file()


def test_the_same_command_again_only_reads(grown, captions, command):
    run, done = grown
    again = command("grow", captions, *GROW, "--slices", "2", "--beside", "--out", run)
    assert "growth" in again.out
    assert "restarting" in again.out
    assert json.loads((run / "result.json").read_text())["steps"] == done.json["steps"]
    refused = command("grow", captions, *GROW, "--slices", "3", "--out", run)
    assert refused.code == 2
    assert "slice 1" in refused.err


def test_other_verbs_take_a_model_that_grew(grown, captions, classes, command, tmp_path):
    run, done = grown
    images = captions.parent / "images"
    found = command("evaluate", run, captions, "--draws", "0", "--json").json
    assert found["trained"] == pytest.approx(done.json["trained"])
    assert "reranked" not in found["measured"]["trained"]
    hits = command("search", run, images, "a large red nine", "--top", "2", "--json").json["found"]
    assert [hit["match"] for hit in hits] == [None, None]
    told = command("embed", run, images, "--out", tmp_path / "rows.npz", "--json").json
    assert told["dimensions"] == 8
    shown = command("zero-shot", run, classes, "--draws", "20", "--json").json
    assert shown["metric"] == "zero_shot_accuracy"
    assert set(shown["baselines"]) == {"chance", "random_encoder"}
    assert set(shown["per_class"]) == {"red nine", "blue two"}
    assert shown["images"] == 6
    for arguments in (("evaluate", run, captions, "--rerank", "4"), ("search", run, images, "a nine", "--rerank", "2")):
        refused = command(*arguments)
        assert refused.code == 2
        assert refused.err.count("error:") == 1
        assert "no matching" in refused.err
    refused = command("ground", run, images / "00.png", "a nine")
    assert refused.code == 2
    assert "heat map" in refused.err


def test_zero_shot_of_a_pretrained_model_with_templates_and_names(finished, classes, command, tmp_path):
    run, _ = finished
    (tmp_path / "t.txt").write_text("a large {}\na small {}\n")
    (tmp_path / "n.txt").write_text("two\nnine\n")
    table = command(
        "zero-shot", run, classes, "--templates", tmp_path / "t.txt", "--names", tmp_path / "n.txt", "--draws", "0"
    ).out
    assert "2 classes, 2 templates" in table
    assert "chance" in table
    for arguments, said in (
        ((run,), "give a folder with a folder of pictures for each class"),
        ((run, tmp_path / "no"), "no such folder"),
        ((run, classes, "--templates", tmp_path / "n.txt"), "must have {} in one place"),
    ):
        refused = command("zero-shot", *arguments)
        assert refused.code == 2
        assert said in refused.err


def test_grow_refuses_what_cannot_work(captions, command, tmp_path):
    for arguments, said in (
        (("--recipe", "albef-laptop"), "'albef' cannot grow"),
        (("--method.width", "50", "--method.head-width", "16"), "does not divide by the head width 16"),
        (("--method.growth.image.blocks", "0"), "smaller than the model"),
    ):
        refused = command("grow", captions, "--out", tmp_path / "run", *arguments)
        assert refused.code == 2, arguments
        assert said in refused.err
        assert not (tmp_path / "run").exists()
    shown = command("grow", "--print-recipe").out
    assert "system: growclip" in shown
