"""From images with captions to a model and back: every verb on a few scenes, and what it leaves on disk."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file

from mc_core.files import read_jsonl
from mc_vision_language.model import load_vision_language_model


def test_pretrain_says_what_it_found_and_leaves_a_whole_run(finished):
    run, done = finished
    found = done.json
    assert found["metric"] == "retrieval_mean_recall"
    assert set(found["baselines"]) == {"random_encoder"}
    assert found["splits"]["train"] == {"images": 40, "captions": 41}
    assert (found["images"], found["captions"]) == (20, 20)
    trained = found["measured"]["trained"]
    assert trained["k"] == 10
    assert {"contrast", "reranked"} <= set(trained)
    assert "reranked" not in found["measured"]["random_encoder"]
    written = json.loads((run / "result.json").read_text())
    assert written["measured"] == found["measured"]
    assert read_jsonl(run / "metrics.jsonl")[-1]["step"] == 4
    for name in ("recipe.yaml", "report.html", "pairs.json", "tokenizer/tokenizer.json", "model/model.safetensors"):
        assert (run / name).stat().st_size > 0, name
    for name in ("recalls.png", "search.png", "where.png"):
        with Image.open(run / name) as picture:
            assert picture.width > 300


def test_the_same_command_again_trains_nothing_more_and_other_settings_are_refused(finished, captions, command, tiny):
    run, done = finished
    before = (run / "model" / "model.safetensors").read_bytes()
    again = command("pretrain", captions, *tiny("--out", run, "--json")).json
    assert (run / "model" / "model.safetensors").read_bytes() == before
    assert again["measured"] == done.json["measured"]
    refused = command("pretrain", captions, *tiny("--fit.lr", "0.5", "--out", run))
    assert refused.code == 2
    assert "lr" in refused.err


def test_evaluate_finds_what_pretrain_found(finished, captions, command):
    run, done = finished
    found = command("evaluate", run, captions, "--json").json
    assert found["measured"]["trained"] == done.json["measured"]["trained"]
    everything = command("evaluate", run, captions, "--part", "all", "--draws", "0", "--json").json
    assert everything["images"] == 60
    table = command("evaluate", run, captions, "--draws", "20").out
    assert "text → image, R@5" in table
    assert "test split" in table


def test_search_by_words_and_by_image(finished, captions, command, tmp_path):
    run, _ = finished
    images = captions.parent / "images"
    found = command("search", run, images, "a large red nine", "--top", "3", "--out", tmp_path / "f.png", "--json")
    assert len(found.json["found"]) == 3
    assert found.json["images"] == 60
    scores = [one["match"] for one in found.json["found"]]
    assert scores == sorted(scores, reverse=True)
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width > 300
    assert list((run / "index").iterdir())
    quick = command("search", run, images, "a small blue two", "--top", "2", "--rerank", "0", "--json").json["found"]
    assert [one["match"] for one in quick] == [None, None]
    (tmp_path / "lines.txt").write_text("a dog\n\na large red nine\na dog\n")
    told = command("search", run, tmp_path / "lines.txt", images / "00.png", "--json").json
    assert sorted(one["text"] for one in told["found"]) == ["a dog", "a large red nine"]


def test_search_in_tars_finds_what_it_finds_in_the_folder(finished, captions, command, tmp_path):
    run, _ = finished
    folder = captions.parent / "images"
    names = sorted(path.name for path in folder.iterdir())
    tars = tmp_path / "tars"
    tars.mkdir()
    for place, part in enumerate((names[:35], names[35:])):
        with tarfile.open(tars / f"part-{place}.tar", "w") as tar:
            for name in part:
                tar.add(folder / name, name)

    def found(source):
        done = command("search", run, source, "a large red nine", "--top", "4", "--out", tmp_path / "f.png", "--json")
        assert done.code == 0, done.err
        assert done.json["images"] == 60
        return [(Path(one["image"]).name, one["cosine"]) for one in done.json["found"]]

    expected = found(folder)
    assert found(tars) == expected
    assert found(f"{tars}/part-*.tar") == expected
    embedded = command("embed", run, f"{tars}/part-{{0..1}}.tar", "--out", tmp_path / "v.npz", "--json")
    assert embedded.json["rows"] == 60
    one = command("search", run, tars / "part-1.tar", "a large red nine", "--top", "1", "--json").json
    assert one["images"] == 25
    trained = command("evaluate", run, captions, "--images", tars / "part-1.tar", "--draws", "0")
    assert (trained.code, "missing" in trained.err) == (2, True)


def test_vectors_of_images_and_texts(finished, captions, command, tmp_path):
    run, _ = finished
    model = load_vision_language_model(run)
    assert command("embed", run, captions.parent / "images", "--out", tmp_path / "i.parquet").code == 0
    table = pq.read_table(tmp_path / "i.parquet")
    vectors = np.array(table["features"].to_pylist())
    assert vectors.shape == (60, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], model.encode_image([table["image"][0].as_py()])[0], atol=1e-5)
    texts = command("embed", run, captions, "--what", "text", "--out", tmp_path / "t.npz", "--json").json
    assert (texts["rows"], texts["dimensions"]) == (61, 8)


def test_ground_writes_a_picture_and_says_a_box(finished, captions, command, tmp_path):
    photo = captions.parent / "images" / "00.png"
    for mode in ("itm", "itc"):
        done = command("ground", finished[0], photo, "a nine", "--mode", mode, "--out", tmp_path / "w.png", "--json")
        x1, y1, x2, y2 = done.json["box"]
        assert 0 <= x1 < x2 <= 32
        assert 0 <= y1 < y2 <= 32
        with Image.open(tmp_path / "w.png") as picture:
            assert picture.width > 300


def test_exports_are_read_back(finished, command, tmp_path):
    run, _ = finished
    onnx = command("export", run, "--out", tmp_path / "onnx", "--json").json
    assert max(onnx[name]["max_abs_difference"] for name in ("image", "text", "match")) < 1e-4
    assert (tmp_path / "onnx" / "match.onnx").is_file()
    assert command("export", run, "--format", "timm", "--out", tmp_path / "image.safetensors").code == 0
    assert load_file(tmp_path / "image.safetensors")


def test_a_checkpoint_of_the_official_names_is_converted_and_used(finished, captions, command, tmp_path):
    run, _ = finished
    out = tmp_path / "albef.safetensors"
    assert command("export", run, "--format", "albef", "--out", out).code == 0
    assert "visual_encoder.patch_embed.proj.weight" in load_file(out)
    words = run / "tokenizer"
    done = command("convert", out, tmp_path / "model", "--tokenizer", words, *HEADS, "--json")
    assert done.code == 0, done.err
    photo = captions.parent / "images" / "00.png"
    before, after = (load_vision_language_model(place) for place in (run, tmp_path / "model"))
    np.testing.assert_allclose(before.encode_image([photo]), after.encode_image([photo]), atol=1e-5)
    np.testing.assert_allclose(before.encode_text(["a nine"]), after.encode_text(["a nine"]), atol=1e-5)


def test_a_checkpoint_of_questions_is_recognised_and_answers(answering, captions, command, tmp_path):
    """A run of finetune under the official names and back: the same answers, and evaluate knows what the model does."""
    run, _ = answering
    out = tmp_path / "vqa.safetensors"
    assert command("export", run, "--format", "albef", "--out", out).code == 0
    assert "text_decoder.bert.embeddings.word_embeddings.weight" in load_file(out)
    (tmp_path / "answers.json").write_text('["red", "one"]')
    words = ["--tokenizer", run / "model", "--answers", tmp_path / "answers.json"]
    made = command("convert", out, "--out", tmp_path / "model", *words, *HEADS, "--json")
    assert made.code == 0, made.err
    assert (made.json["layout"], made.json["answers"]) == ("vqa", 2)
    asked = ("what color is the digit?", "--json")
    photo = captions.parent / "images" / "01.png"
    before, after = (command("vqa", place, photo, *asked).json for place in (run, tmp_path / "model"))
    for left, right in zip(before["answers"], after["answers"], strict=True):
        assert left["answer"] == right["answer"]
        assert left["probability"] == pytest.approx(right["probability"], abs=1e-3)
    refused = command("evaluate", tmp_path / "model")
    assert (refused.code, "say which rows" in refused.err) == (2, True)
    bare = command("convert", out, tmp_path / "bare", *HEADS)
    assert "visual question answering" in bare.out
    assert "without tokenizer" in bare.out
    assert "without answers" in bare.out


HEADS = ["--image-heads", "2", "--text-heads", "2"]
QUESTIONS = ("what color is the digit?", "red"), ("how many digits are there?", "one")


@pytest.fixture(scope="module")
def answering(finished, captions, command, tmp_path_factory):
    """A run that answers two questions about the scenes, and what the command printed."""
    folder = tmp_path_factory.mktemp("answers")
    rows = [
        {"image": f"images/{place:02d}.png", "question": question, "answer": answer}
        for place in range(60)
        for question, answer in QUESTIONS
    ]
    (folder / "questions.json").write_text(json.dumps(rows))
    out = folder / "run"
    options = ["--task", "vqa", "--recipe", "albef-vqa-laptop", "--images", captions.parent, "--draws", "20"]
    options += ["--split.seed", "5", "--split.shares", "0.5", "0.1", "0.4"]
    size = ["--augment.size", "32", "--fit.steps", "2", "--batch", "8", "--fit.warmup-epochs", "0"]
    done = command("finetune", finished[0], folder / "questions.json", *options, *size, "--out", out, "--json")
    return out, done


def test_finetuned_for_questions_and_asked(answering, captions, command, tmp_path):
    run, done = answering
    assert done.code == 0, done.err
    assert 0 <= done.json["trained"] <= 1
    assert "question_only" in done.json["baselines"]
    photo = captions.parent / "images" / "01.png"
    asked = command("vqa", run, photo, "what color is the digit?", "--json").json
    assert asked["answer"] in ("red", "1")
    assert len(asked["answers"]) == 2
    (tmp_path / "list.txt").write_text("one\nred\n")
    assert command("vqa", run, photo, "how many?", "--answers", tmp_path / "list.txt", "--top", "1").code == 0
    assert command("vqa", run, photo, "how many digits?", "--generate", "--json").json["generated"]
    (tmp_path / "long.txt").write_text("what color is the digit how many digits are there\n")
    assert "below 0.001" in command("vqa", run, photo, "how many?", "--answers", tmp_path / "long.txt").out


def test_a_task_is_measured_on_the_rows_that_its_run_held_out(answering, captions, command, monkeypatch):
    """The division is the run's, whatever it was trained with, and none of the rows it learned from are measured."""
    from mc_vision_language_app import tasks

    run, done = answering
    source = run.parent / "questions.json"
    seen = {}
    measure = tasks.measure_task
    monkeypatch.setattr(
        tasks,
        "measure_task",
        lambda model, rows, train, **more: seen.update(test=rows, train=train) or measure(model, rows, train, **more),
    )
    again = command("evaluate", run, source, "--images", captions.parent, "--draws", "20", "--json")
    assert again.code == 0, again.err
    assert len(seen["test"]) == json.loads((run / "result.json").read_text())["rows"]
    assert 30 < len(seen["test"]) < 66  # of 120, two for each picture; the usual share is a tenth
    shown = [set(part.image_ids[part.image_of].tolist()) for part in seen.values()]
    assert not shown[0] & shown[1]
    assert tasks.split_of_run(run)["seed"] == 5
    assert {key: again.json[key] for key in ("trained", "baselines")} == {
        key: done.json[key] for key in ("trained", "baselines")
    }


def test_a_task_of_a_run_in_this_folder_is_put_beside_it(finished, captions, command, tmp_path, monkeypatch):
    from shutil import copytree

    copytree(finished[0], tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    size = ["--augment.size", "32", "--fit.steps", "1", "--batch", "8", "--fit.warmup-epochs", "0", "--draws", "5"]
    done = command("finetune", ".", captions, "--task", "retrieval", "--recipe", "albef-retrieval-laptop", *size)
    assert done.code == 0, done.err
    best = command("evaluate", tmp_path / "mine-retrieval", captions, "--rerank", "2", "--draws", "5", "--json")
    assert best.json["details"]["ranked_again"] == 2


def test_every_task_is_trained_on_the_sample_and_measured(command, tiny, tmp_path, monkeypatch):
    """A pretrained run of the sample's own size, one step of each task, on few scenes."""
    from mc_vision_language import sample

    monkeypatch.setattr(sample, "COUNTS", {"train": 48, "validation": 12, "test": 16})

    run = tmp_path / "run"
    done = command("pretrain", *tiny("--fit.steps", "1", "--out", run))
    assert done.code == 0, done.err
    size = ["--augment.size", "32", "--fit.steps", "1", "--batch", "8", "--fit.warmup-epochs", "0", "--draws", "10"]
    for task in ("retrieval", "nlvr2", "entailment", "grounding"):
        extra = ["--assignment", "sample", "--scratch"] if task == "nlvr2" else []
        found = command("finetune", run, "--task", task, *size, *extra, "--json")
        assert found.code == 0, found.err
        assert 0 <= found.json["trained"] <= 1
        again = command("evaluate", f"{run}-{task}", "--draws", "10", "--json")
        assert again.code == 0, again.err
        assert again.json["trained"] == pytest.approx(found.json["trained"])
    from mc_core.samples import digit_scenes

    photo = tmp_path / "photo.png"
    Image.fromarray(digit_scenes(1, size=32).images[0].permute(1, 2, 0).numpy()).save(photo)
    judged = command("judge", f"{run}-entailment", "the digit is red", photo, "--json").json
    assert sum(judged["probability"].values()) == pytest.approx(1, abs=1e-3)
    two = command("judge", f"{run}-nlvr2", "both are red", photo, photo, "--json").json
    assert two["judgement"] in ("true", "false")
    wrong = command("judge", f"{run}-nlvr2", "both are red", photo)
    assert wrong.code == 2
    assert "about two" in wrong.err
    stage, goes_on = f"{run}-nlvr2/assignment", tmp_path / "goes-on"
    official = tmp_path / "assignment.safetensors"
    assert command("export", stage, "--format", "albef", "--out", official).code == 0
    words = ["--tokenizer", f"{stage}/model", "--image-heads", "2", "--text-heads", "2"]
    assert "finetune --task nlvr2 takes it" in command("convert", official, tmp_path / "converted", *words).out
    done = command("finetune", tmp_path / "converted", "--task", "nlvr2", *size, "--out", goes_on, "--json")
    assert done.code == 0, done.err
    assert 0 <= done.json["trained"] <= 1
    wrong = command("finetune", stage, "--task", "entailment", *size, "--out", tmp_path / "wrong")
    assert (wrong.code, "only nlvr2 goes on from" in wrong.err) == (2, True)


def test_ablation_of_one_seed(captions, command, tiny, tmp_path):
    (tmp_path / "small.yaml").write_text(command("pretrain", *tiny("--print-recipe")).out)
    options = ["--recipe", tmp_path / "small.yaml", "--seeds", "1", "--noise", "0.5", "--steps", "1"]
    done = command("ablate", captions, *options, "--out", tmp_path / "rows", "--json")
    assert done.code == 0, done.err
    assert [row["row"] for row in done.json["rows"]][:3] == ["random encoder", "MLM + ITM", "ITC alone"]
    again = command("ablate", captions, *options, "--out", tmp_path / "rows", "--downstream").out
    names = ["MLM + ITM", "+ MoD in MLM", "fine-tuned", "+ MoD downstream"]
    assert sorted(names, key=again.index) == names


def test_the_recipe_is_printed_with_options_in_place(command):
    done = command("pretrain", "--recipe", "albef", "--batch", "128", "--print-recipe")
    assert "batch_size: 128" in done.out
    assert "queue_size: 65536" in done.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch", "1"], "1 pair"),
        (["--batch", "16", "--fit.batch-size", "32"], "give one of them"),
        (["--batch", "64"], "larger than the data"),
        (["--method.hard-negative-strength", "2"], "hard-negative-strength"),
        (["--recipe", "albeef"], "albef"),
        (["--method.image.name", "resnet18"], "patch"),
        (["--augment.size", "48"], "48"),
    ],
)
def test_options_that_cannot_work_end_in_one_line(command, captions, tiny, tmp_path, options, said):
    done = command("pretrain", captions, *tiny(*options, "--out", tmp_path / "run"))
    assert done.code == 2, done.err
    assert said in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_does_not_fit_and_a_text_encoder_that_is_not_there(command, captions, tiny, tmp_path):
    done = command("pretrain", captions, *tiny("--method.text.name", tmp_path / "bert", "--out", tmp_path / "run"))
    assert done.code == 2
    assert str(tmp_path / "bert") in " ".join(done.err.split())
    assert not (tmp_path / "run").exists()


def test_missing_images_are_counted_listed_and_allowed(command, tiny, rewritten, tmp_path):
    def spoil(rows):
        rows[3]["image"] = "images/gone.png"
        rows[4]["caption"] = " "

    table, images = rewritten(spoil)
    refused = command("pretrain", table, *images, *tiny("--out", tmp_path / "run"))
    assert refused.code == 2
    assert "--max-bad" in refused.err
    assert not (tmp_path / "run").exists()
    done = command("pretrain", table, *images, *tiny("--max-bad", "0.2", "--fit.steps", "1", "--out", tmp_path / "run"))
    assert done.code == 0, done.err
    assert "gone.png" in " ".join(done.err.split())
    assert sum(json.loads((tmp_path / "run" / "pairs.json").read_text())["left_out"].values()) == 3


def test_parts_of_the_data_without_a_test_part_are_named(command, tiny, rewritten, tmp_path):
    def renamed(rows):
        for row in rows:
            row["split"] = row["split"].replace("test", "validation")

    table, images = rewritten(renamed)
    refused = command("pretrain", table, *images, *tiny("--out", tmp_path / "run"))
    assert refused.code == 2
    said = " ".join(refused.err.split())
    assert "0 images held out (test) are too few" in said
    assert "own parts hold 40 in train, 20 in validation; divide the images anew with --split.no-own" in said
    few = command("pretrain", table, *images, *tiny("--split.no-own", "--split.shares", "0.98", "0.01", "0.01"))
    assert "by a larger third --split.shares" in " ".join(few.err.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "RUN", "nowhere", "a dog"], "nowhere"),
        (["search", "RUN", "IMAGES", " "], "no words"),
        (["search", "RUN", "LIST", "nowhere.png"], "no such image"),
        (["ground", "RUN", "nowhere.png", "a dog"], "no such file"),
        (["vqa", "RUN", "LIST", "why?"], "answers no questions"),
        (["judge", "RUN", "it rains", "LIST"], "judges no sentences"),
        (["embed", "RUN", "IMAGES", "--out", "x.csv"], ".parquet or .npz"),
        (["evaluate", "RUN"], "say which pairs"),
        (["evaluate", "nowhere"], "no such run folder"),
        (["finetune", "RUN", "LIST", "--task", "vqa"], "question"),
        (["finetune", "RUN", "LIST", "--task", "vqa", "--boxes", "x"], "--boxes is of the task grounding, not of vqa"),
        (["finetune", "RUN", "LIST", "--task", "vqa", "--assignment", "sample"], "--assignment is of the task nlvr2"),
        (["evaluate", "RUN", "LIST", "--annotations", "x"], "--annotations is of a run of finetune"),
        (["ablate", "LIST", "--seeds", "0"], "seeds 0"),
        (["ablate", "LIST", "--noise", "2"], "noise 2"),
        (["convert", "LIST", "out"], "captions.csv"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(command, finished, captions, arguments, said):
    known = {"RUN": finished[0], "LIST": captions, "IMAGES": captions.parent / "images"}
    done = command(*(known.get(argument, argument) for argument in arguments))
    assert done.code == 2, done.err
    assert said in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_help_needs_no_torch():
    code = (
        "import sys, mc_vision_language_app.app as a, contextlib, io\n"
        "for verb in ('pretrain', 'finetune'):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        a.run([verb, '--help'])\n"
        "print(sorted(m for m in ('torch', 'transformers', 'timm', 'sklearn', 'PIL', 'matplotlib') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout
