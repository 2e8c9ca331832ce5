"""What cannot work ends with exit code 2 and one line on standard error that says what to do, never with a traceback."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mc_testkit.files import write_broken_image, write_image


def refused(done, *parts):
    """Exit code 2, one line, and all ``parts`` (patterns) in it."""
    assert done.code == 2, done.err
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in line
    for part in parts:
        assert re.search(part, line), f"{part!r} is not in {line!r}"
    return line


def test_the_installed_command_itself_ends_with_code_2_and_one_line(tmp_path):
    program = Path(sys.executable).parent / "mc-vision"
    missing = tmp_path / "missing"
    done = subprocess.run([program, "pretrain", missing, "--fit.workers", "0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(rf"error: {re.escape(str(missing))} does not exist.*\n", done.stderr)


def test_data_that_is_not_there_or_no_images(tmp_path, command):
    run = tmp_path / "run"
    refused(command("pretrain", tmp_path / "nope", "--out", run), r"nope does not exist")
    (tmp_path / "empty").mkdir()
    refused(command("pretrain", tmp_path / "empty", "--out", run), r"/empty\b", r"no images|empty")
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "a.npy", np.zeros(3))
    refused(command("pretrain", tmp_path / "arrays", "--out", run), r"/arrays\b", r"\.npy")
    assert not run.exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--backbone", "resnet5"], [r"'resnet5'", r"resnet50"]),
        (["--recipe", "moco-v22"], [r"'moco-v22'", r"moco-v2\b", r"\.yaml"]),
        (["--recipe", "nope.yaml"], [r"nope\.yaml"]),
        (["--nope", "1"], [r"--nope", r"mc-vision pretrain --help"]),
        (["--fit.lr", "-1"], [r"--fit\.lr", r"greater than 0", r"-1"]),
        (["--fit.lr", "fast"], [r"--fit\.lr", r"fast"]),
        (["--fit.steps", "1", "--fit.epochs", "1"], [r"epochs", r"steps", r"not both"]),
        (["--fit.accumulation", "3"], [r"16", r"multiple of 3"]),
        (["--fit.batch-size", "64"], [r"64", r"43"]),
        (["--holdout", "1"], [r"--holdout 1"]),
        (["--max-bad", "lots"], [r"--max-bad lots", r"1%"]),
        (["--views.preset", "moco-v9"], [r"moco-v9", r"moco-v1|moco-v2|moco-v3"]),
        (["--method.temperature", "0"], [r"--method\.temperature", r"greater than 0"]),
        (["--method.loss", "dcl"], [r"--method\.loss"]),  # an option of another method
        (["--views.crop-scale", "0.9", "0.1"], [r"crop[-_]scale"]),
        (["--fit.device", "tpu"], [r"tpu"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_options_that_cannot_work(arguments, parts, labelled, tiny, tmp_path, command):
    refused(command("pretrain", labelled, *tiny(*arguments), "--out", tmp_path / "run"), *parts)


def test_too_many_unreadable_images(flat, tiny, tmp_path, command):
    data = tmp_path / "data"
    shutil.copytree(flat, data)
    for i in range(6):
        write_broken_image(data / f"{i:02d}-cut.png")
    options = tiny("--holdout", 0)
    done = command("pretrain", data, *options, "--out", tmp_path / "run")
    assert done.code == 2
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(r"max.bad", errors[0])
    found = command("pretrain", data, *options, "--max-bad", "50%", "--out", tmp_path / "patient", "--json").json
    assert 0 < found["bad_images"] <= 6
    assert found["images"] == 30


def test_a_run_folder_of_another_recipe(finished, labelled, tiny, command):
    run, _ = finished
    done = command("pretrain", labelled, *tiny(), "--fit.lr", "0.5", "--method.temperature", "0.3", "--out", run)
    refused(done, r"fit\.lr: 0\.004 → 0\.5", r"method\.temperature: 0\.1 → 0\.3", r"another run folder")
    assert "lr: 0.004" in (run / "recipe.yaml").read_text()


def test_a_place_that_cannot_be_written(finished, labelled, flat, tiny, tmp_path, command):
    run, _ = finished
    taken = tmp_path / "taken"
    taken.write_text("a file")
    refused(command("pretrain", labelled, *tiny(), "--out", taken), re.escape(str(taken)), "choose another")
    refused(command("pretrain", labelled, *tiny(), "--out", taken / "run"), re.escape(str(taken)), "choose another")
    refused(command("embed", run, flat, "--out", taken / "f.npz"), re.escape(str(taken)), "choose another")
    refused(command("export", run, "--format", "hub", "--out", taken), re.escape(str(taken)))
    assert taken.read_text() == "a file"


def test_evaluate_needs_a_run_and_labels(finished, flat, tmp_path, command):
    run, _ = finished
    refused(command("evaluate", run, "--data", flat), r"label")
    refused(command("evaluate", run, "--test", flat), r"--test needs --data")
    refused(command("evaluate", tmp_path / "nope", "--data", flat), r"nope: no such run folder", r"mc-vision pretrain")
    refused(command("evaluate", tmp_path, "--data", flat), r"neither a run folder .* nor a saved encoder")
    refused(command("evaluate", run, "--k", 0, "--data", flat), r"--k 0")
    refused(command("evaluate", run, "--protocol", "svm"), r"--protocol", r"knn", r"linear")


def test_embed_and_export_refuse_what_they_cannot_write(finished, flat, tmp_path, command):
    run, _ = finished
    refused(command("embed", run, flat, "--out", tmp_path / "x.csv"), r"x\.csv", r"\.parquet or \.npz")
    refused(command("embed", run, flat, "--out", tmp_path / "x.npz", "--batch-size", 0), r"batch.size")
    refused(command("embed", tmp_path / "nope", flat), r"no such run folder")
    refused(command("embed", run, tmp_path / "nope"), r"nope does not exist")
    refused(command("export", run, "--out", tmp_path / "x.pth"), r"x\.pth", r"\.safetensors")
    refused(command("export", run, "--format", "tflite"), r"tflite", r"onnx")
    refused(command("inspect", tmp_path / "nope"), r"nope does not exist")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_nothing_to_embed(suffix, finished, tmp_path, command):
    run, _ = finished
    write_broken_image(tmp_path / "data" / "a.png")
    write_broken_image(tmp_path / "data" / "b.png", "text")
    done = command("embed", run, tmp_path / "data", "--out", tmp_path / f"f{suffix}", "--workers", 0)
    assert done.code == 2
    assert "none of the 2 images could be read" in done.err.splitlines()[-1]
    assert not (tmp_path / f"f{suffix}").exists()


def test_a_damaged_run_is_named(finished, labelled, tmp_path, command):
    run = tmp_path / "copy"
    shutil.copytree(finished[0], run)
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(command("evaluate", run, "--data", labelled), re.escape(str(weights)))


def test_a_number_that_is_none_ends_with_code_1(labelled, tiny, tmp_path, command):
    done = command("pretrain", labelled, *tiny("--fit.lr", "1e30", "--fit.steps", "8"), "--out", tmp_path / "run")
    assert done.code == 1
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(r"NaN|infinite|finite", errors[0], re.IGNORECASE)
    assert "Traceback" not in done.err
    assert not (tmp_path / "run" / "model").exists()


def test_an_image_of_another_kind_among_them(labelled, tiny, tmp_path, command):
    write_image(tmp_path / "one" / "a.png")
    done = command("pretrain", tmp_path / "one", *tiny(), "--out", tmp_path / "run")
    refused(done, r"16", r"\b1\b")
