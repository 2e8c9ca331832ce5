"""From studies to a model and back: every verb on a few phantoms, and what it leaves on disk."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel

from mc_core.files import read_jsonl
from mc_medical.model import load_image_text_model


def test_pretrain_says_what_it_found_and_leaves_a_whole_run(finished):
    run, done = finished
    found = done.json
    assert found["metric"] in ("zero_shot_macro_auroc", "text_to_image_recall_at_5")
    assert set(found["baselines"]) == {"random_encoder"}
    measured = found["measured"]
    assert set(measured) == {"trained", "random_encoder"}
    recall = measured["trained"]["retrieval"]["text_to_image"]["recall"]["5"]
    assert 0 <= recall["low"] <= recall["value"] <= recall["high"] <= 1
    assert recall["patients"] == found["splits"]["test"]["patients"]
    written = json.loads((run / "result.json").read_text())
    assert written["measured"] == measured
    assert read_jsonl(run / "metrics.jsonl")[-1]["step"] == 4
    for name in ("recipe.yaml", "report.html", "cohort.json", "tokenizer/tokenizer.json", "model/model.safetensors"):
        assert (run / name).stat().st_size > 0, name
    assert "{&#x27;" not in (run / "report.html").read_text()
    assert "edical device" in (run / "model" / "README.md").read_text()


def test_nothing_in_the_run_names_a_patient_a_file_or_a_report(finished, studies, rows):
    run, done = finished
    assert (run.parent / "tiny.salt").stat().st_mode & 0o077 == 0
    telling = {row["report"][12:60] for row in rows} | {row["patient_id"] for row in rows} | {"phantom-0000", ".dcm"}
    for path in run.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".yaml", ".html", ".md"):
            if path.name == "tokenizer.json":
                continue  # words, no sentences
            text = path.read_text(encoding="utf-8")
            assert not [word for word in telling if word in text], path
    assert not (run / "phrases.png").exists()
    assert not [word for word in telling if word in done.err]


def test_the_same_command_again_trains_nothing_more(finished, studies, command, tiny):
    run, done = finished
    before = (run / "model" / "model.safetensors").read_bytes()
    again = command("pretrain", studies, *tiny("--out", run, "--json")).json
    assert (run / "model" / "model.safetensors").read_bytes() == before
    assert again["measured"] == done.json["measured"]
    refused = command("pretrain", studies, *tiny("--fit.lr", "0.5", "--out", run))
    assert refused.code == 2
    assert "lr" in refused.err


def test_evaluate_finds_what_pretrain_found(finished, studies, command):
    run, done = finished
    found = command("evaluate", run, studies, "--json").json
    assert found["measured"]["trained"]["retrieval"] == done.json["measured"]["trained"]["retrieval"]
    everybody = command("evaluate", run, studies, "--part", "all", "--draws", "0", "--json").json
    assert everybody["images"] > found["images"]
    table = command("evaluate", run, studies, "--draws", "20").out
    assert "recall at 5" in table
    assert "test split" in table


def test_patients_the_run_never_saw_are_all_measured(finished, command, tmp_path):
    from mc_medical.phantom import write_phantoms

    write_phantoms(tmp_path, patients=6, size=48, seed=9)
    with (tmp_path / "studies.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["patient_id"] = "other " + row["patient_id"]
    with (tmp_path / "others.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = command("evaluate", finished[0], tmp_path / "others.csv", "--draws", "0", "--json").json
    assert found["images"] == len(rows)


def test_zero_shot_scores_files_one_by_one_as_together(finished, studies, command, tmp_path):
    files = sorted((studies.parent / "images").iterdir())[:5]
    together = command("zero-shot", finished[0], *files, "--json").json
    alone = command("zero-shot", finished[0], files[2], "--json").json
    assert together["scores"][2]["Edema"] == pytest.approx(alone["scores"][0]["Edema"], abs=1e-5)
    asked = command(
        "zero-shot", finished[0], files[0], "--finding", "pleural effusion", "--finding", "rib notching", "--json"
    )
    assert set(asked.json["scores"][0]) == {"file", "Pleural Effusion", "rib notching"}
    assert asked.json["prompts"]["rib notching"] == {"positive": ["rib notching"], "negative": ["no rib notching"]}
    done = command("zero-shot", finished[0], studies.parent / "images", "--out", tmp_path / "scores.csv")
    assert done.code == 0, done.err
    with (tmp_path / "scores.csv").open() as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(list((studies.parent / "images").iterdir()))
    assert 0 <= float(written[0]["Edema"]) <= 1
    assert command("zero-shot", finished[0], files[0], "--out", tmp_path / "scores.parquet").code == 0
    assert pq.read_table(tmp_path / "scores.parquet").num_rows == 1


def test_heads_from_few_images_and_one_to_keep(finished, studies, command):
    run, _ = finished
    done = command("few-shot", run, studies, "--draws", "2", "--save", "Cardiomegaly", "--json")
    assert 0 <= done.json["trained"] <= 1
    head = json.loads((run / "heads" / "Cardiomegaly.json").read_text())
    assert len(head["weight"]) == load_image_text_model(run).encoders.image.num_features
    wrong = command("few-shot", run, studies, "--finding", "Cardiomegali")
    assert wrong.code == 2
    assert "Cardiomegaly" in wrong.err


def test_retrieve_by_phrase_and_by_picture(finished, studies, command, tmp_path):
    run, _ = finished
    found = command(
        "retrieve", run, "left pleural effusion", studies, "--top", "3", "--out", tmp_path / "f.png", "--json"
    )
    cosines = [one["cosine"] for one in found.json["found"]]
    assert len(cosines) == 3
    assert cosines == sorted(cosines, reverse=True)
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width > 300
    picture = sorted((studies.parent / "images").glob("*.dcm"))[0]
    reports = command("retrieve", run, picture, studies, "--json").json["found"]
    assert len(reports) == 5
    assert all(one["report"] for one in reports)


def test_vectors_of_images_reports_and_features(finished, studies, command, tmp_path):
    run, _ = finished
    sizes = {}
    for what in ("image", "text", "features"):
        out = tmp_path / f"{what}.parquet"
        assert command("embed", run, studies, "--what", what, "--out", out).code == 0
        table = pq.read_table(out)
        vectors = np.array(table["features"].to_pylist())
        sizes[what] = vectors.shape
        if what != "features":
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert "report" not in table.column_names
    assert sizes["image"] == sizes["text"]
    folder = command("embed", run, studies.parent / "images", "--out", tmp_path / "folder.npz", "--json").json
    assert folder["dimensions"] == 16


def test_exports_are_read_by_the_tools_they_are_for(finished, command, tmp_path):
    run, _ = finished
    onnx = command("export", run, "--out", tmp_path / "onnx", "--json").json
    assert onnx["image"]["max_abs_difference"] < 1e-4
    assert onnx["text"]["max_abs_difference"] < 1e-4
    assert (tmp_path / "onnx" / "text.onnx").is_file()
    assert command("export", run, "--format", "transformers", "--out", tmp_path / "text").code == 0
    assert AutoModel.from_pretrained(tmp_path / "text").config.hidden_size == 16
    assert command("export", run, "--format", "timm", "--out", tmp_path / "image.safetensors").code == 0
    assert load_file(tmp_path / "image.safetensors")


def test_an_exported_timm_encoder_is_built_by_timm(studies, command, tiny, tmp_path):
    size = ["--method.image.name", "vit_tiny_patch16_224", "--method.image.image-size", "32", "--fit.steps", "1"]
    assert command("pretrain", studies, *tiny(*size, "--out", tmp_path / "vit")).code == 0
    told = command("export", tmp_path / "vit", "--format", "timm", "--out", tmp_path / "vit.safetensors").out
    call = re.search(r"timm\.create_model\(.*\)", told).group(0)
    model = eval(call, {"timm": timm})
    assert sum(p.numel() for p in model.parameters()) > 5e6


def test_inspect_shows_each_step_and_several_at_once(studies, command, tmp_path):
    files = sorted((studies.parent / "images").glob("*.dcm"))
    done = command("inspect", files[0], "--out", tmp_path / "one.png", "--json").json
    assert [step["step"] for step in done["files"][0]["steps"]][-1] == "stored square"
    table = command("inspect", files[0], "--out", tmp_path / "one.png").out
    assert "stored square" in table
    assert "hantom^" not in table
    assert command("inspect", studies.parent / "images", "--out", tmp_path / "sheet.png").code == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 400


def test_efficiency_measures_every_scheme(command, tmp_path):
    done = command(
        "efficiency", "--batch", "16", "--micro", "8", "--repeats", "1", "--out", tmp_path / "e.json", "--json"
    ).json
    assert {row["scheme"] for row in done["rows"]} >= {"plain accumulation", "MSD", "GradCache"}
    assert json.loads((tmp_path / "e.json").read_text())["batch"] == 16


def test_the_recipe_is_printed_with_options_in_place(command):
    done = command("pretrain", "--recipe", "msd", "--batch", "512", "--micro-batch", "16", "--print-recipe")
    assert "batch_size: 512" in done.out
    assert "accumulation: 32" in done.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch", "16", "--micro-batch", "5"], "does not divide"),
        (["--batch", "16", "--fit.batch-size", "32"], "give one of them"),
        (["--method.alpha", "0.95"], "0.9"),
        (["--recipe", "mds"], "msd"),
        (["--image.voi", "none"], "percentile"),
    ],
)
def test_options_that_cannot_work_end_in_one_line(command, studies, tiny, tmp_path, options, said):
    done = command("pretrain", studies, *tiny(*options, "--out", tmp_path / "run"))
    assert done.code == 2, done.err
    assert said in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "run.salt").exists()


def test_a_batch_normalised_encoder_is_refused_with_the_reason_and_trained_when_frozen(
    command, studies, tiny, tmp_path
):
    encoder = ["--method.image.name", "resnet10t", "--fit.steps", "1", "--out", tmp_path / "run"]
    refused = command("pretrain", studies, *tiny(*encoder))
    assert refused.code == 2
    assert "BatchNorm" in refused.err
    assert not (tmp_path / "run").exists()
    done = command("pretrain", studies, *tiny(*encoder, "--method.image.batch-norm", "freeze"))
    assert done.code == 0, done.err


def test_a_patient_in_two_splits_is_left_out_and_counted(command, tiny, rows, rewritten, tmp_path):
    first = next(row for row in rows if row["split"] == "train")
    rows.append({**first, "split": "test", "study_id": "another"})
    table, images = rewritten(rows)
    done = command("pretrain", table, *images, *tiny("--fit.steps", "1", "--out", tmp_path / "run"))
    assert done.code == 0, done.err
    assert "several splits" in " ".join(done.err.split())
    assert first["patient_id"] not in done.err


def test_bad_files_and_rows_are_left_out_with_counts_and_the_rest_is_trained(
    command, tiny, rows, rewritten, studies, tmp_path
):
    (studies.parent / "images" / "broken.dcm").write_bytes(b"no image at all")
    rows[0]["image"] = "images/broken.dcm"
    rows[1]["image"] = "images/missing.dcm"
    rows[2]["report"] = ""
    rows[3]["Cardiomegaly"] = "maybe"
    table, images = rewritten(rows)
    done = command("pretrain", table, *images, *tiny("--fit.steps", "1", "--out", tmp_path / "run"))
    (studies.parent / "images" / "broken.dcm").unlink()
    assert done.code == 0, done.err
    said = " ".join(done.err.split())
    assert said.count("left out 1") >= 3
    cohort = json.loads((tmp_path / "run" / "cohort.json").read_text())
    assert sum(split["images"] for split in cohort["splits"].values()) == len(rows) - 3
    assert sum(cohort["left_out"].values()) >= 4


def test_prompts_for_a_class_that_is_not_there(command, finished, studies, tmp_path):
    (tmp_path / "prompts.yaml").write_text("Cardiomegalia: [enlarged heart]\n")
    done = command("evaluate", finished[0], studies, "--prompts", tmp_path / "prompts.yaml")
    assert done.code == 2
    assert "Cardiomegaly" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["zero-shot", "RUN", "nowhere.dcm"], "no such file"),
        (["zero-shot", "RUN", "STUDIES"], "none of 1 files"),
        (["retrieve", "RUN", " ", "STUDIES"], "query is empty"),
        (["embed", "RUN", "STUDIES", "--out", "x.csv"], ".parquet or .npz"),
        (["evaluate", "RUN"], "say which studies"),
        (["evaluate", "nowhere"], "no such run folder"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(command, finished, studies, arguments, said):
    known = {"RUN": finished[0], "STUDIES": studies}
    done = command(*(known.get(argument, argument) for argument in arguments))
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_help_needs_no_torch_and_answers_at_once():
    code = (
        "import sys, mc_medical_app.app as a, contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    a.run(['pretrain', '--help'])\n"
        "print(sorted(m for m in ('torch', 'transformers', 'timm', 'sklearn', 'pydicom', 'matplotlib') if m in sys.modules))"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout
    assert time.perf_counter() - started < 20
