"""The verbs of ``mc-vision`` on tiny real files: what they print, what they leave, and that what they leave can be used."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from mc_core.engine.checkpoint import CheckpointFolder
from mc_core.export import load_model, save_model
from mc_testkit.files import write_broken_image

SCORES = {"random_encoder", "raw_pixels"}


def test_pretrain_says_what_it_found_and_leaves_it(finished):
    run, done = finished
    found = done.json
    assert found["metric"] == "knn_accuracy"
    assert 0 <= found["trained"] <= 1
    assert set(found["baselines"]) == SCORES
    assert found["run"] == str(run)
    assert found["seconds"] >= found["training_seconds"] > 0
    assert (found["images"], found["steps"], found["bad_images"]) == (
        43,
        4,
        0,
    )  # 48 less a tenth; 2 epochs of 2 batches

    written = json.loads((run / "result.json").read_text())
    assert written == {name: value for name, value in found.items() if name != "report"}
    for name in ("report.html", "views.png", "neighbours.png", "recipe.yaml", "metrics.jsonl", "model/config.json"):
        assert (run / name).stat().st_size > 0, name
    assert found["report"] == str(run / "report.html")


def test_the_same_command_again_only_loads(finished, labelled, tiny, command):
    run, done = finished
    files = [run / "metrics.jsonl", *CheckpointFolder(run / "checkpoints").paths(), run / "model" / "model.safetensors"]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    again = command("pretrain", labelled, *tiny(), "--out", run, "--json").json
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before
    same = ("metric", "trained", "baselines", "run", "steps", "images")
    assert {name: again[name] for name in same} == {name: done.json[name] for name in same}


def test_without_labels_it_measures_retrieval_of_the_other_view(flat, tiny, tmp_path, command):
    found = command("pretrain", flat, *tiny("--fit.epochs", 1), "--out", tmp_path / "run", "--json").json
    assert found["metric"] == "other_view_recall_at_1_held_out"
    assert set(found["baselines"]) == SCORES
    nothing_held_out = tiny("--holdout", 0, "--labels", "none", "--fit.epochs", 1)
    found = command("pretrain", flat, *nothing_held_out, "--out", tmp_path / "all", "--json").json
    assert (found["metric"], found["images"]) == ("other_view_recall_at_1_training", 24)


def test_the_result_as_a_table_names_run_encoder_and_report(finished, labelled, tiny, command):
    run, _ = finished
    done = command("pretrain", labelled, *tiny(), "--out", run)
    assert done.code == 0
    assert "random encoder" in done.out
    assert "raw pixels" in done.out
    for line in (f"run     {run}", f"encoder {run / 'model'}", f"report  {run / 'report.html'}"):
        assert line in done.out.splitlines()


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_evaluate_a_run_on_labelled_images(protocol, finished, labelled, command):
    run, done = finished
    found = command("evaluate", run, "--data", labelled, "--protocol", protocol, "--json").json
    assert found["metric"] == f"{protocol}_accuracy"
    assert set(found["baselines"]) == SCORES
    assert all(0 <= value <= 1 for value in [found["trained"], *found["baselines"].values()])
    assert found["train_images"] + found["test_images"] == 48
    assert found["step"] == done.json["steps"]
    assert json.loads((run / f"evaluate-{protocol}.json").read_text()) == found
    assert json.loads((run / "result.json").read_text())["metric"] == "knn_accuracy"  # that of pretraining stays


def test_evaluate_on_a_test_set_of_its_own(finished, labelled, command):
    run, _ = finished
    found = command("evaluate", run / "model", "--data", labelled, "--test", labelled, "--k", 1, "--json").json
    assert (found["train_images"], found["test_images"]) == (48, 48)
    assert found["trained"] == found["baselines"]["raw_pixels"] == 1.0  # each image is its own nearest neighbour


@pytest.fixture
def with_broken(flat, tmp_path):
    folder = tmp_path / "with-broken"
    shutil.copytree(flat, folder)
    write_broken_image(folder / "05-broken.png")
    write_broken_image(folder / "30-empty.png", "empty")
    return folder


def test_embed_writes_a_row_for_each_readable_image(finished, labelled, with_broken, tmp_path, command):
    import pyarrow.parquet as pq

    run, _ = finished
    out = tmp_path / "features.parquet"
    found = command("embed", run, labelled, "--out", out, "--workers", 0, "--json").json
    assert {name: found[name] for name in ("out", "images", "left_out", "dim")} == {
        "out": str(out),
        "images": 48,
        "left_out": 0,
        "dim": 128,
    }
    table = pq.read_table(out).to_pydict()
    assert len(set(table["name"])) == 48
    assert [len(row) for row in table["features"]] == [128] * 48
    assert table["class_name"] == [("cat", "dog")[label] for label in table["label"]]
    assert all(f"/{c}/" in f"/{name}" for name, c in zip(table["name"], table["class_name"], strict=True))

    done = command("embed", run, with_broken, "--out", tmp_path / "features.npz", "--workers", 0, "--json")
    assert (done.json["images"], done.json["left_out"]) == (24, 2)
    assert "05-broken.png" in "".join(done.err.split())
    with np.load(tmp_path / "features.npz", allow_pickle=False) as file:
        assert file["features"].shape == (24, 128)
        assert file["features"].dtype == np.float32
        assert [name.rpartition("/")[2] for name in file["name"]] == [f"{i:02d}.png" for i in range(24)]
        assert "label" not in file
    assert not list(tmp_path.glob(".*parts"))


def test_embedding_is_what_the_encoder_gives(finished, flat, tmp_path, command):
    from mc_vision.data import open_source
    from mc_vision_app.runs import open_run

    run, _ = finished
    command("embed", run, flat, "--out", tmp_path / "features.npz", "--workers", 0, "--batch-size", 7)
    opened = open_run(run)
    data = opened.eval_data(open_source(str(flat)))
    with np.load(tmp_path / "features.npz", allow_pickle=False) as file, torch.no_grad():
        expected = opened.encoder(torch.stack([data.get(i)["image"] for i in range(len(data))]))
        assert torch.allclose(torch.from_numpy(file["features"]), expected, atol=1e-5)


def test_an_interrupted_embedding_goes_on(finished, flat, tmp_path, command, monkeypatch):
    import mc_vision_app.embed as embed

    run, _ = finished
    options = ["--batch-size", 8, "--workers", 0, "--json"]
    assert command("embed", run, flat, "--out", tmp_path / "whole.npz", *options).code == 0

    real = embed.batches_of_features
    starts: list[int] = []

    def breaks_after_the_second(*args, start, **options):
        starts.append(start)
        for i, item in enumerate(real(*args, start=start, **options)):
            if i == 2 and len(starts) == 1:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(embed, "_PART", 8)
    monkeypatch.setattr(embed, "batches_of_features", breaks_after_the_second)
    out = tmp_path / "parts.npz"
    assert command("embed", run, flat, "--out", out, *options).code == 130
    assert not out.exists()
    done = command("embed", run, flat, "--out", out, *options)
    assert starts == [0, 16]
    assert done.json["images"] == 24
    with np.load(tmp_path / "whole.npz") as whole, np.load(out) as pieced:
        assert np.array_equal(whole["features"], pieced["features"])
        assert np.array_equal(whole["name"], pieced["name"])


def test_unreadable_images_before_an_interruption_are_counted_in_the_end(
    finished, with_broken, tmp_path, command, monkeypatch
):
    import mc_vision_app.embed as embed

    run, _ = finished
    real = embed.batches_of_features
    calls = []

    def breaks_once(*args, **options):
        calls.append(options["start"])
        for i, item in enumerate(real(*args, **options)):
            if i == 2 and len(calls) == 1:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(embed, "_PART", 8)
    monkeypatch.setattr(embed, "batches_of_features", breaks_once)
    options = ["--out", tmp_path / "f.parquet", "--batch-size", 8, "--workers", 0, "--json"]
    assert command("embed", run, with_broken, *options).code == 130
    found = command("embed", run, with_broken, *options).json
    assert calls[1] > 0
    assert (found["images"], found["left_out"]) == (24, 2)


def test_parts_of_another_run_are_not_taken_up(finished, flat, tmp_path, command):
    run, _ = finished
    parts = tmp_path / ".f.npz.parts"
    parts.mkdir()
    (parts / "of.json").write_text('{"run": "another"}')
    np.savez(parts / "000000000000-000000000020.npz", index=np.arange(20), features=np.zeros((20, 128), np.float32))
    done = command("embed", run, flat, "--out", tmp_path / "f.npz", "--workers", 0, "--json")
    assert done.json["images"] == 24
    with np.load(tmp_path / "f.npz") as file:
        assert (file["features"] != 0).any(axis=1).all()


def test_the_encoder_in_a_run_and_its_export_are_shown_pictures_as_the_run_showed_them(
    finished, labelled, tmp_path, command
):
    run, _ = finished
    hub = tmp_path / "hub"
    assert command("export", run, "--format", "hub", "--out", hub).code == 0
    whole, inner, exported = (
        command("evaluate", place, "--data", labelled, "--json").json for place in (run, run / "model", hub)
    )
    scores = [(found["trained"], found["baselines"]) for found in (whole, inner, exported)]
    assert scores[0] == scores[1] == scores[2]
    refused = command("evaluate", run, "--data", labelled, "--image-size", "0")
    assert (refused.code, refused.err) == (2, "error: image size 0; give a side of 1 pixel or more\n")
    refused = command("evaluate", run, "--data", labelled, "--seed", "-1")
    assert (refused.code, refused.err) == (2, "error: seed -1; give 0 or more\n")


def test_the_random_encoder_beside_a_pretrained_one_is_random(finished, tiny, flat, tmp_path, command, monkeypatch):
    from mc_vision_app import pretrain

    start = tmp_path / "start.safetensors"
    assert command("export", finished[0], "--out", start).code == 0
    seen = {}
    measure = pretrain.instance_retrieval
    monkeypatch.setattr(
        pretrain, "instance_retrieval", lambda encoders, *a, **k: seen.update(encoders) or measure(encoders, *a, **k)
    )
    learned = load_model(finished[0] / "model").eval()
    given = ["--method.encoder.pretrained", start, "--fit.steps", "1", "--fit.lr", "1e-9", "--out", tmp_path / "run"]
    done = command("pretrain", flat, *tiny(*given), "--json")
    assert done.code == 0, done.err
    batch = {"image": torch.rand(4, 3, 16, 16)}
    with torch.no_grad():
        first, random = seen["trained"](batch), seen["random_encoder"](batch)
        assert (
            torch.nn.functional.cosine_similarity(first, learned(batch["image"])).min() > 0.95
        )  # all but the statistics
        assert torch.nn.functional.cosine_similarity(random, learned(batch["image"])).min() < 0.95


def test_names_that_are_not_utf_8_are_written_out(finished, tmp_path, command):
    import os

    import pyarrow.parquet as pq

    from mc_testkit.files import write_image

    folder = tmp_path / "odd"
    for i in range(3):
        write_image(folder / f"{i}.png", seed=i)
    os.rename(os.fsencode(folder / "0.png"), os.fsencode(folder) + b"/x\xff.png")
    done = command("embed", finished[0], folder, "--out", tmp_path / "n.parquet")
    assert done.code == 0, done.err
    assert any("udcff" in name for name in pq.read_table(tmp_path / "n.parquet")["name"].to_pylist())


def test_held_out_images_that_cannot_be_read_are_one_line(flat, tiny, tmp_path, command, monkeypatch):
    from mc_vision import open_source
    from mc_vision_app import pretrain

    for place in range(2):
        write_broken_image(tmp_path / "bad" / f"{place}.png")
    monkeypatch.setattr(pretrain, "split_source", lambda source, *_: (source, open_source(str(tmp_path / "bad"))))
    done = command("pretrain", flat, *tiny("--fit.steps", "1"), "--out", tmp_path / "run")
    assert (done.code, "Traceback" in done.err) == (2, False)
    assert "fewer than two of the 2 images to measure on can be read" in " ".join(done.err.split())


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_export_for_timm(backbone, finished, tmp_path, command):
    import timm

    from mc_vision.encoders import TimmEncoder
    from mc_vision.encoders_config import EncoderConfig

    encoder = TimmEncoder(EncoderConfig(backbone=backbone, image_size=64)).eval()
    save_model(encoder, tmp_path / "encoder")
    out = tmp_path / "one's weights.safetensors"
    done = command("export", tmp_path / "encoder", "--format", "timm", "--out", out)
    assert (done.code, done.err) == (0, "")
    call = done.out.splitlines()[1]
    assert call.startswith("timm.create_model(")
    model = eval(call, {"timm": timm}).eval()
    image = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model(image), encoder(image), rtol=1e-4, atol=1e-5)  # the memory layout differs

    run, _ = finished  # of a backbone that timm has not
    done = command("export", run, "--out", tmp_path / "own.safetensors")
    assert done.code == 0
    assert "create_model" not in done.out
    assert "resnet10-w16" in done.out


def test_export_to_onnx_agrees_with_torch(finished, tmp_path, command):
    import onnxruntime

    run, _ = finished
    found = command("export", run, "--format", "onnx", "--json").json
    assert found["out"] == str(run / "export" / "encoder.onnx")
    assert found["input"] == [3, 16, 16]
    assert found["max_abs_difference"] < 1e-3
    image = torch.rand(5, 3, 16, 16)
    session = onnxruntime.InferenceSession(found["out"], providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        assert np.allclose(given, load_model(run / "model").eval()(image).numpy(), atol=1e-4)


def test_export_to_the_hub_is_a_folder_that_loads(finished, command):
    run, done = finished
    found = command("export", run, "--format", "hub", "--json").json
    folder = run / "export" / "hub"
    assert found["out"] == str(folder)
    assert str(done.json["steps"]) in (folder / "README.md").read_text()
    assert (folder / "recipe.yaml").read_bytes() == (run / "recipe.yaml").read_bytes()
    ours, theirs = (load_model(path).state_dict() for path in (run / "model", folder))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    size = ["--image-size", "0"]
    assert (
        command("export", run, "--format", "onnx", *size).err == "error: image size 0; give a side of 1 pixel or more\n"
    )
    again = command("export", run, "--format", "hub")
    assert (again.code, again.err) == (2, f"error: {folder} exists and is not empty; name another folder with --out\n")


def test_inspect_a_run_an_encoder_and_data(finished, labelled, command):
    run, done = finished
    found = command("inspect", run, "--json").json
    assert (found["system"], found["backbone"], found["finished"]) == ("moco", "resnet10-w16", True)
    assert (found["step"], found["samples_in_data"], found["unreadable_samples"]) == (4, 43, 0)
    assert found["queue"].startswith("32 keys")
    assert found["result"]["trained"] == done.json["trained"]
    assert found["last_metrics"]["step"] == 4

    found = command("inspect", run / "model", "--json").json
    assert found["backbone"] == "resnet10-w16"
    assert found["image_size"] == 16

    found = command("inspect", labelled, "--json").json
    assert (found["classes"], found["unreadable"], found["formats"]) == (2, 0, {"PNG": 48})
    assert found["width"] == {"min": 40, "median": 40, "max": 40}
    assert found["height"] == {"min": 32, "median": 32, "max": 32}

    table = command("inspect", run)
    assert table.code == 0
    assert "resnet10-w16" in table.out


@pytest.mark.parametrize("recipe", ["moco-v1", "moco-v2", "moco-v3", "dcl", "moco-v2-laptop"])
def test_a_printed_recipe_resolves_to_itself(recipe, tmp_path, command):
    printed = command("pretrain", "--recipe", recipe, "--fit.lr", "0.0125", "--print-recipe")
    assert (printed.code, printed.err) == (0, "")
    assert "lr: 0.0125" in printed.out
    file = tmp_path / "mine.yaml"
    file.write_text(printed.out)
    again = command("pretrain", "--recipe", file, "--print-recipe")
    assert again.out == printed.out
    assert list(tmp_path.iterdir()) == [file]


def test_options_follow_the_method_of_the_recipe(command):
    moco, v3 = (command("pretrain", "--recipe", name, "--help").out for name in ("moco-v2", "moco-v3"))
    assert "--method.queue-size" in moco
    assert "--method.queue-size" not in v3
    assert "--method.hidden-dim" in v3


def test_version_and_help_need_no_torch():
    script = (
        "import sys; from mc_vision_app import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as e: code = e.code\n"
        "heavy = {'torch', 'torchvision', 'timm', 'matplotlib', 'sklearn', 'pyarrow'} & set(sys.modules)\n"
        "print('loaded', code, sorted(heavy))"
    )
    for arguments in (["--help"], ["--version"], ["pretrain", "--help"], ["embed", "--help"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "loaded 0 []", arguments
        assert len(done.stdout.splitlines()) > 1, arguments
