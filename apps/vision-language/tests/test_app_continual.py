"""``continual`` on two tiny tasks: what it prints and leaves, how it goes on, and what it refuses in one line."""

from __future__ import annotations

import csv
import json

import pytest
import yaml
from PIL import Image

from mc_core.samples import digit_scenes
from mc_vision_language.model import load_vision_language_model

RECIPE = {
    "system": "ctp",
    "method": {
        "image": {"image_size": 32, "patch_size": 16, "width": 16, "depth": 1, "heads": 2},
        "text": {"text_layers": 1, "fusion_layers": 1, "hidden_size": 16, "heads": 2, "vocabulary": 60},
        "dim": 8,
        "queue_size": 16,
    },
    "augment": {"size": 32, "flip": 0.0, "rand_augment": 0},
    "fit": {"steps": 2, "batch_size": 8, "optimizer": "adamw", "lr": 1.0e-3, "workers": 0},
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A list of 48 scenes with their digit, divided into two domains by a column, and the recipe."""
    folder = tmp_path_factory.mktemp("shop")
    scenes = digit_scenes(48, size=32)
    rows = []
    for place, text in enumerate(scenes.captions):
        Image.fromarray(scenes.images[place].permute(1, 2, 0).numpy()).save(folder / f"{place}.png")
        split = "test" if place % 3 == 0 else "train"
        rows.append(
            {
                "image": f"{place}.png",
                "caption": text,
                "category": text.split()[-1],
                "aisle": "ab"[place % 2],
                "split": split,
            }
        )
    with (folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    tasks = [{"name": f"aisle {one}", "data": "items.csv", "where": {"aisle": one}} for one in "ab"]
    (folder / "tasks.yaml").write_text(yaml.safe_dump(tasks))
    (folder / "one.yaml").write_text(yaml.safe_dump(tasks[:1]))
    (folder / "turned.yaml").write_text(yaml.safe_dump(tasks[::-1]))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


@pytest.fixture(scope="module")
def done(shop, command, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tasks"
    methods = ("--method", "sequential", "--method", "ctp", "--method", "er", "--buffer", "6")
    arguments = ["continual", shop / "tasks.yaml", "--recipe", shop / "tiny.yaml", *methods, "--out", out]
    return out, arguments, command(*arguments, "--json")


def test_continual_says_what_it_found_and_leaves_runs(done):
    out, _, called = done
    found = called.json
    assert found["metric"] == "retrieval_mean_recall"
    assert found["trained_by"] == "ctp"
    assert set(found["baselines"]) == {"sequential", "er", "random_encoder"}
    assert found["tasks"] == ["aisle a", "aisle b"]
    assert found["methods"]["er"]["held"] == 6
    scores = found["methods"]["ctp"]["scores"]["r_m"]
    assert scores["A"][-1] == scores["last"] == found["trained"]
    assert scores["R"][0][1] is None
    assert scores["forgetting"] == pytest.approx(scores["A"][0] - scores["F"][0])
    assert json.loads((out / "result.json").read_text())["trained"] == found["trained"]
    for name in ("after-each-task.png", "matrix-ctp.png", "matrix-sequential.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 200
    page = (out / "report.html").read_text()
    assert page.count("<img") == 4
    assert "ctp: forgetting" in page.lower() or "forgetting" in page.lower()
    for place in (out / "ctp", *(out / "ctp" / "tasks").iterdir()):
        assert load_vision_language_model(place).tokenizer is not None


def test_the_same_command_again_trains_nothing_and_prints_tables(done, command):
    out, arguments, called = done
    before = (out / "ctp" / "model" / "model.safetensors").stat().st_mtime_ns
    again = command(*arguments)
    assert (out / "ctp" / "model" / "model.safetensors").stat().st_mtime_ns == before
    for word in ("sequential", "random encoder", "forgetting", "plasticity", "after 2", "positive is forgotten"):
        assert word in again.out
    assert f"{called.json['trained']:.3f}" in again.out


def test_a_run_can_be_searched_in(done, shop, command):
    out, _, _ = done
    found = command("search", out / "ctp", shop / "items.csv", "a large red nine", "--top", "2", "--json").json
    assert len(found["found"]) == 2


def test_a_changed_list_is_told(done, shop, command):
    _out, arguments, _ = done
    refused = command("continual", shop / "turned.yaml", *arguments[2:])
    assert refused.code == 2
    assert "task 1: 'aisle a' → 'aisle b'" in refused.err
    assert len(refused.err.strip().splitlines()) == 1 or "error:" in refused.err


def test_recipes_of_all_methods_are_printed(shop, command):
    told = command(
        "continual", "--recipe", shop / "tiny.yaml", "--method", "ewc", "--method", "lwf", "--print-recipe"
    ).out
    first, second = yaml.safe_load_all(told)
    assert (first["system"], first["method"]["penalty"]) == ("ewc", 5000.0)
    assert (second["system"], second["method"]["feature"]) == ("lwf", 1.0)
    assert first["fit"] == second["fit"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "ewk"), "--method ewk: no such method; did you mean"),
        (("--buffer", "0", "--method", "er"), "--buffer 0: keep 1 sample or more"),
        (("--buffer", "5"), "ctp keep no samples; er, mof"),
        (("--fit.batch-size", "40"), "'aisle a' has 16 pairs to train on, fewer than a batch"),
        (("--recipe", "ctpp"), "ctpp"),
    ],
    ids=["method", "buffer", "no-memory", "batch", "recipe"],
)
def test_what_cannot_work_is_said_in_one_line(options, said, shop, command, tmp_path):
    given = () if "--recipe" in options else ("--recipe", shop / "tiny.yaml")
    refused = command("continual", shop / "tasks.yaml", *given, *options, "--out", tmp_path / "run")
    assert refused.code == 2
    assert said in " ".join(refused.err.split())
    assert not (tmp_path / "run").exists()


class TestStart:
    """All methods begin with a trained model."""

    def test_a_run_is_gone_on_from(self, done, shop, command, tmp_path):
        out, _, called = done
        arguments = ["continual", shop / "tasks.yaml", "--recipe", shop / "tiny.yaml", "--out", tmp_path / "run"]
        found = command(*arguments, "--start", out / "ctp", "--json").json
        assert found["baselines"] == {"before_the_tasks": pytest.approx(called.json["trained"])}
        assert load_vision_language_model(tmp_path / "run" / "ctp").image_size == 32
        told = command(*arguments, "--start", out / "ctp").out
        assert "before the tasks" in told
        other = command(*arguments, "--start", out / "sequential")
        assert other.code == 2
        assert "holds another sequence (start: " in " ".join(other.err.split())

    def test_what_is_no_model_is_said_in_one_line(self, shop, command, tmp_path):
        arguments = ["continual", shop / "tasks.yaml", "--recipe", shop / "tiny.yaml", "--out", tmp_path / "run"]
        for place, said in (("nowhere", "no such run folder"), (".", "no config.json")):
            refused = command(*arguments, "--start", tmp_path / place)
            assert refused.code == 2
            assert said in " ".join(refused.err.split())
            assert "Traceback" not in refused.err
            assert not (tmp_path / "run").exists()


def test_without_a_list_it_runs_on_the_sample(command, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mc_vision_language.continual.tasks.SAMPLE_COUNTS", {"train": 240, "validation": 10, "test": 60}
    )
    arguments = ["continual", "--fit.steps", "2", "--fit.batch-size", "8", "--fit.warmup-epochs", "0"]
    found = command(*arguments, "--out", tmp_path / "run", "--json").json
    assert set(found["baselines"]) == {"sequential", "joint", "random_encoder"}
    assert found["tasks"] == ["zero and one", "two and three", "four and five", "six and seven", "eight and nine"]
