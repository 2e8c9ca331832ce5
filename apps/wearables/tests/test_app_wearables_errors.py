"""What cannot work ends with exit code 2 and one line on standard error that says what to do, never with a traceback."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def refused(done, *parts):
    """Exit code 2, one line, and all ``parts`` (patterns) in it."""
    assert done.code == 2, done.err
    assert done.out == ""
    line = done.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in done.err
    for part in parts:
        assert re.search(part, line), f"{part!r} is not in {line!r}"


def test_the_installed_command_itself_ends_with_code_2_and_one_line(tmp_path):
    program = Path(sys.executable).parent / "mc-wearables"
    done = subprocess.run([program, "pretrain", tmp_path / "missing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: .*missing.*\n", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--signal", "ppg", "--units", "au", "--participant-from", "folder"], [r"sampling rate", r"--fs"]),
        (["--signal", "ecg", "--fs", 50, "--participant-from", "folder"], [r"units", r"--units"]),
        (["--signal", "ppg", "--fs", 50, "--units", "au"], [r"participant", r"--participant"]),
        (["--signal", "eeg", "--fs", 50], [r"--signal", r"ppg"]),
        (["--signal", "ppg", "--fs", 0], [r"--fs", r"greater than 0"]),
        (
            ["--signal", "ppg", "--fs", 50, "--units", "au", "--participant-from", "folder", "--seconds", 60],
            [r"60", r"--seconds"],
        ),
        (
            ["--signal", "ppg", "--fs", 50, "--units", "au", "--timezone", "Mars/Olympus"],
            [r"time zone", r"Europe/Berlin"],
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) and str(value[0]).startswith("--") else "",
)
def test_ingest_asks_and_never_guesses(arguments, parts, recordings, tmp_path, command):
    out = tmp_path / "store"
    refused(command("ingest", recordings / "data" / "alice-00", "--out", out, *arguments), *parts)
    assert not out.exists()


def test_one_bad_file_does_not_cost_the_cohort(recordings, tmp_path, command):
    data = tmp_path / "data"
    for person in ("alice-00", "alice-01"):
        (data / person).mkdir(parents=True)
        (data / person / "0.csv").write_bytes((recordings / "data" / person / "0.csv").read_bytes())
    (data / "alice-01" / "1.csv").write_text("ppg\n" + "1.0\n" * 1050)
    (data / "alice-01" / "2.csv").write_text("ppg\n0.1\nbroken\n")
    options = (
        "--signal",
        "ppg",
        "--fs",
        50,
        "--units",
        "au",
        "--participant-from",
        "folder",
        "--seconds",
        10,
        "--rate",
        32,
    )
    found = command("ingest", data, "--out", tmp_path / "store", *options, "--json").json
    assert (found["kept"], found["participants"]) == (4, 2)
    assert sum(found["rejected"].values()) >= 2  # the flat line
    assert found["failed"] + found["problems"] >= 1


def test_stores_and_runs_that_are_none(tmp_path, store, command):
    refused(command("pretrain", tmp_path), r"store|manifest")
    refused(command("probe", tmp_path / "nope"), r"no such run folder", r"mc-wearables pretrain")
    refused(command("probe", tmp_path), r"neither a run folder")
    refused(command("pretrain", store, "--signal", "ecg"), r"--signal ecg", r"ppg")
    refused(command("pretrain", store, "--recipe", "ahms-pp"), r"ahms-ppg")


def test_labels_that_do_not_fit(tmp_path, trained, recordings, command):
    run, _ = trained
    table = tmp_path / "labels.csv"
    probe = ("probe", run, "--labels", table, "--no-baselines", "--draws", 10)
    refused(command(*probe), r"no such table")
    table.write_text("name,age\nalice-00,3\n")
    refused(command(*probe), r"no column of participants", r"name, age")
    table.write_text("participant,age\nbob,3\n")
    refused(command(*probe), r"none of its 1 participants has a signal")
    table.write_text("participant,age\nalice-00,3\nalice-00,4\nalice-01,5\n")
    refused(command(*probe), r"2 values", r"one row per person")
    table.write_text("participant,age,place\nalice-00,3,a\nalice-01,4,b\nalice-02,5,c\n")
    refused(command(*probe, "--target", "agge"), r"agge", r"age")
    refused(command(*probe, "--target", "place=d"), r"place=d", r"place=a, place=b, place=c")
    refused(command(*probe, "--target", "age=3"), r"no such value in column age")
    table.write_text("participant,place\n" + "".join(f"alice-{p:02d},town {p}\n" for p in range(14)))
    refused(command(*probe, "--target", "place"), r"neither numbers nor a few words")
    refused(command(*probe), r"no column with numbers or a few words")


def test_a_signal_that_gives_no_segment(tmp_path, trained, command):
    run, _ = trained
    short = tmp_path / "short.csv"
    np.savetxt(short, np.sin(np.arange(100) / 5), header="ppg", comments="")
    refused(command("embed", run, short, "--fs", 50, "--out", tmp_path / "e.npz"), r"10|short")
    refused(command("embed", run, short, "--out", tmp_path / "e.npz"), r"--fs")
    refused(command("embed", run, short, "--fs", 50, "--out", tmp_path / "e.txt"), r"\.parquet or \.npz")
    assert not (tmp_path / "e.npz").exists()


def test_recipes_and_settings_that_do_not_fit_the_store(tmp_path, store, command):
    options = ("--fit.steps", 2, "--fit.batch-size", 4, "--out", tmp_path / "run")
    refused(command("pretrain", store, "--recipe", "ahms-ecg-laptop", *options), r"ecg.*holds ppg", r"--signal ppg")
    shape = ("--method.encoder.channels", 2, "--method.encoder.width", 16)
    refused(command("pretrain", store, "--recipe", "ahms-ppg-laptop", *shape, *options), r"2 channels.* have 1")
    single = (*shape[2:], "--fit.steps", 2, "--fit.batch-size", 1, "--out", tmp_path / "run")
    refused(command("pretrain", store, "--recipe", "ahms-ppg-laptop", *single), r"nothing to contrast")
    assert not (tmp_path / "run").exists()


def test_a_run_whose_store_was_moved_says_which_and_how_to_name_it(tmp_path, trained, store, command):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    gone = tmp_path / "gone"
    (run / "data.json").write_text(json.dumps({"signal": "ppg", "trained_on": str(gone)}))
    for verb in ("probe", "evaluate"):
        refused(command(verb, run), re.escape(str(gone)), r"data\.json", r"not there any more: name where it is")
    done = command("evaluate", run, store, "--draws", 20, "--json")
    assert done.code == 0
    assert "people that are in both may be among those held out" in " ".join(done.err.split())
    assert "people that are in both" not in " ".join(command("evaluate", trained[0], store, "--draws", 20).err.split())


def test_people_in_another_store_that_were_trained_on_are_an_error(
    tmp_path, trained, recordings, ingest_options, command
):
    """Another salt, so that no key tells; the files do."""
    data, run = tmp_path / "data", trained[0]
    shutil.copytree(recordings / "data", data)
    assert command("ingest", data, "--out", tmp_path / "other", *ingest_options).code == 0
    line = r"\d+ of \d+ people held out of other are among those that .*run was trained on \(the same files\)"
    for verb in ("probe", "evaluate"):
        refused(command(verb, run, tmp_path / "other"), line)


def test_a_store_of_too_few_people_is_refused_before_training(tmp_path, recordings, ingest_options, tiny, command):
    for people in (3, 4):
        for p in range(people):
            shutil.copytree(recordings / "data" / f"alice-{p:02d}", tmp_path / f"d{people}" / f"p{p}")
        salt = tmp_path / f"s{people}.salt"
        salt.write_text("07" * 32 + "\n")
        assert command("ingest", tmp_path / f"d{people}", "--out", tmp_path / f"s{people}", *ingest_options).code == 0
    refused(command("pretrain", tmp_path / "s3", *tiny, "--out", tmp_path / "run"), "has 3 participants", "two more")
    assert not (tmp_path / "run").exists()
    two = [2 if value == 8 else value for value in tiny]  # a batch holds each person once
    done = command("pretrain", tmp_path / "s4", *two, "--out", tmp_path / "run", "--json")
    assert done.json["participants"] == {"train": 2, "test": 2}
    assert "2 of 4 people are held out" in " ".join(done.err.split())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_export_names_the_extra_that_is_missing(missing, tmp_path, trained, monkeypatch, command):
    monkeypatch.setitem(sys.modules, missing, None)
    for format in ("onnx", "int8"):
        done = command("export", trained[0], "--format", format, "--out", tmp_path / "e.onnx")
        refused(done, rf"'{missing}' is needed to export", r'pip install "mc-core\[export\]"')
    assert list(tmp_path.iterdir()) == []


def test_export_to_where_nothing_can_be_written(tmp_path, trained, command):
    pytest.importorskip("onnxruntime")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    for format in ("onnx", "int8"):
        export = ("export", trained[0], "--format", format, "--out")
        refused(
            command(*export, tmp_path / "file" / "e.onnx"), r"file could not be written \(File exists\)", "another name"
        )
        refused(
            command(*export, tmp_path / "folder"), r"folder could not be written \(Is a directory\)", "another name"
        )
    hub = ("export", trained[0], "--format", "hub", "--out")
    refused(command(*hub, tmp_path / "folder"), r"folder exists and is not empty; name another with --out")
    refused(command(*hub, tmp_path / "file"), r"file exists and is a file; name another with --out")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "kept"]
    assert (tmp_path / "file").read_text() == "a file"


def test_export_of_runs_that_have_nothing_whole_to_export(tmp_path, trained, command):
    run, out = tmp_path / "run", tmp_path / "e.onnx"
    refused(command("export", trained[0], "--format", "tflite"), r"tflite", r"onnx.*int8.*hub")
    refused(command("export", tmp_path / "nope"), r"no such run folder")
    shutil.copytree(trained[0], run, ignore=shutil.ignore_patterns("model*", "checkpoints"))
    refused(command("export", run, "--out", out), r"no model and no checkpoint yet", r"mc-wearables pretrain")
    shutil.copytree(trained[0] / "model", run / "model")
    weights = (run / "model" / "model.safetensors").read_bytes()
    (run / "model" / "model.safetensors").write_bytes(weights[:100])
    refused(command("export", run, "--out", out), r"model\.safetensors: cannot be read, probably cut off or damaged")
    (run / "model" / "model.safetensors").write_bytes(weights)
    for text in ("[]", "5", '{"signal": "eeg"}', '{"trained_on": "simulated"}', '{"signal": "ppg", "trained_on": 5}'):
        (run / "data.json").write_text(text)
        refused(command("export", run, "--out", out), r"data\.json is damaged: it should hold the signal")
    (run / "data.json").write_text("{")
    refused(
        command("export", run, "--out", out), r"data\.json, line 2, column 1: not JSON|data\.json, line 1.*not JSON"
    )
    assert not out.exists()


def test_an_encoder_without_its_segments_is_exported_on_those_of_a_store(tmp_path, trained, store, command):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "e.onnx"
    refused(command("export", trained[0] / "model", "--out", out), r"does not say what it was trained on: name a store")
    fields = command("export", trained[0] / "model", store, "--out", out, "--json").json
    assert fields["cosine"] > 0.9999
    assert out.stat().st_size == pytest.approx(1e6 * fields["megabytes"])


def test_an_interrupted_run_knows_its_segments(tmp_path, trained, command):
    """What ``kill -9`` leaves: checkpoints and what was written before them, no model."""
    run = tmp_path / "run"
    shutil.copytree(trained[0], run, ignore=shutil.ignore_patterns("model*", "result.json", "report*", "*.png"))
    assert command("evaluate", run, "--draws", 20, "--json").code == 0


def test_segments_of_the_other_signal_are_not_embedded(tmp_path, trained, command):
    run, _ = trained
    leads = tmp_path / "leads"
    options = ("--signal", "ecg", "--fs", 64, "--units", "mV", "--participant", "p", "--seconds", 10, "--rate", 32)
    line = "\n".join(f"{np.sin(i / 5):.4f}" for i in range(64 * 21))
    (tmp_path / "lead.csv").write_text(f"ecg\n{line}\n")
    assert command("ingest", tmp_path / "lead.csv", "--out", leads, *options).code == 0
    refused(command("embed", run, leads, "--out", tmp_path / "e.npz"), r"holds ecg", r"trained on ppg")


def test_ids_of_labels_are_texts_and_their_values_finite(tmp_path, trained, recordings, ingest_options, command):
    data, run = tmp_path / "data", trained[0]
    for person in range(14):
        shutil.copytree(recordings / "data" / f"alice-{person:02d}", data / f"0{person:02d}")
        for file in (data / f"0{person:02d}").iterdir():
            file.write_text(file.read_text().replace("ppg", "PPG"))  # the same files would be a leak
    store = tmp_path / "numbered"
    (tmp_path / "numbered.salt").write_text("07" * 32 + "\n")  # so that the same people are held out each time
    assert command("ingest", data, "--out", store, *ingest_options).code == 0
    table = tmp_path / "labels.csv"
    table.write_text("participant,age\n" + "".join(f"0{p:02d},{20 + p}\n" for p in range(14)))
    probe = ("probe", run, store, "--labels", table, "--no-baselines", "--draws", 10)
    assert "participants of the store have no label" not in command(*probe).err
    assert command(*probe).code == 0
    table.write_text("participant,age\n" + "".join(f"0{p:02d},{'inf' if p == 3 else p}\n" for p in range(14)))
    refused(command(*probe), r"column age: 1 values are infinite")
