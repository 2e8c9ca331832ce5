"""The command on a tiny corpus: every verb, its result, its files, and that it goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mc_core.files import read_json, read_jsonl
from mc_text_code import load_encoder

PROGRAM = Path(sys.executable).parent / "mc-text-code"


def test_help_imports_no_torch_and_names_every_verb():
    code = "import sys, mc_text_code_app.app as a; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]
    text = subprocess.check_output([PROGRAM, "sentences", "--help"], text=True)
    for verb in ("pretrain", "evaluate", "embed", "search", "dedup", "claims", "export", "demo", "inspect"):
        assert f"│ {verb} " in text


def test_a_run_is_measured_beside_its_baselines_and_reported(trained):
    run, result = trained
    assert result["metric"] == "half_sentence_mrr"
    assert set(result["baselines"]) == {"untrained", "tf_idf", "mean_word_vectors", "bm25"}
    assert 0 < result["trained"] <= 1
    assert result["steps"] == 4
    assert result["held_out"] + result["sentences"] == 200
    assert read_json(run / "result.json")["trained"] == result["trained"]
    for name in ("recipe.yaml", "metrics.jsonl", "report.html", "figures.png", "neighbours.png", "lengths.png"):
        assert (run / name).stat().st_size > 0, name
    assert "half sentence mrr" in (run / "report.html").read_text().lower()
    held = [row["sentence"] for row in read_jsonl(run / "held-out.jsonl")]
    assert len(held) == result["held_out"]
    assert all(sentence.startswith("The ") for sentence in held)


def test_plain_sentence_transformers_loads_the_model_and_gives_the_same_vectors(trained):
    from sentence_transformers import SentenceTransformer

    run, _ = trained
    texts = ["The cat in the garden sleeps quietly.", "A word", "The bear in the river runs very fast."]
    plain = SentenceTransformer(str(run / "model"), device="cpu")
    np.testing.assert_allclose(plain.encode(texts), load_encoder(run).encode(texts), atol=1e-5)


def test_the_same_command_again_only_loads(trained, corpus, tiny, command):
    run, result = trained
    before = (run / "model" / "model.safetensors").read_bytes()
    again = command("pretrain", corpus, *tiny, "--holdout", 0.2, "--out", run, "--json").json
    assert again["trained"] == pytest.approx(result["trained"], abs=1e-6)
    assert (run / "model" / "model.safetensors").read_bytes() == before
    other = command("pretrain", corpus, *tiny, "--fit.lr", 0.5, "--holdout", 0.2, "--out", run)
    assert other.code == 2
    assert "fit.lr" in other.err


def test_sentences_held_out_stay_so_when_the_corpus_grows(corpus, tmp_path):
    from mc_text_code_app.opening import open_corpus, split

    lines = corpus.read_text().splitlines()
    grown = tmp_path / "grown.txt"
    grown.write_text("\n".join([*(f"Something new, number {i}." for i in range(50)), *reversed(lines)]) + "\n")
    before = split(open_corpus([str(corpus)]), 0.2)
    after = split(open_corpus([str(grown)]), 0.2)
    assert set(before.test) <= set(after.test)
    assert not set(after.train) & set(after.test)
    assert set(before.train) | set(before.test) == set(lines)


def test_evaluate_on_scored_pairs_and_on_a_corpus(trained, pairs, corpus, command):
    run, _ = trained
    found = command("evaluate", run, "--sts", pairs, "--corpus", corpus, "--json").json
    assert found["metric"] == "sts_spearman"
    assert set(found["sts"]) == {"trained", "untrained", "tf_idf", "mean_word_vectors"}
    assert found["sts"]["trained"]["average_name"].startswith("average of mine")
    assert "gap" in found["length_bias"]["trained"]
    assert found["figures"]["bm25"].keys() == {"half_sentence_mrr"}
    assert read_json(run / "evaluate.json")["trained"] == found["trained"]
    shown = command("evaluate", run, "--sts", pairs).out
    assert "TF-IDF" in shown
    assert "Length bias" in shown


def test_embed_writes_a_row_for_each_sentence(trained, corpus, tmp_path, command):
    import pyarrow.parquet as pq

    run, _ = trained
    for name in ("e.parquet", "e.npz"):
        fields = command("embed", run, corpus, "--out", tmp_path / name, "--json").json
        assert (fields["sentences"], fields["dim"]) == (200, 16)
    table = pq.read_table(tmp_path / "e.parquet")
    rows = np.array(table["features"].to_pylist(), dtype=np.float32)
    with np.load(tmp_path / "e.npz") as arrays:
        np.testing.assert_array_equal(arrays["features"], rows)
        assert arrays["sentence"].tolist() == table["sentence"].to_pylist() == corpus.read_text().splitlines()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(
        rows, load_encoder(run).encode(corpus.read_text().splitlines(), normalize=True), atol=1e-5
    )


def test_search_finds_the_sentence_itself_and_keeps_its_index(trained, corpus, tmp_path, command):
    run, _ = trained
    query = "The fox in the forest looks for water."
    options = ("--run", run, "--index", tmp_path / "index", "-k", 3, "--json")
    found = command("search", corpus, query, *options).json
    assert found["results"][0]["sentence"] == query
    assert found["results"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert len(found["results"]) == 3
    stamp = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("vectors-*.npy")}
    assert command("search", corpus, query, *options).json["results"] == found["results"]
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("vectors-*.npy")} == stamp
    lexical = command("search", corpus, "fox water", "--mode", "lexical").out.splitlines()
    assert "fox" in lexical[0]
    assert "water" in lexical[0]
    nothing = command("search", corpus, "zebra", "--mode", "lexical")
    assert (nothing.code, nothing.out) == (1, "")


def test_dedup_keeps_one_of_each(trained, tmp_path, command):
    run, _ = trained
    file = tmp_path / "twice.txt"
    file.write_text("A cat sleeps.\nA dog runs.\nA  cat sleeps.\nA cat sleeps.\nNothing else matters.\n")
    done = command("dedup", file, "--run", run, "--threshold", 0.999999, "--out", tmp_path / "kept.txt", "--json").json
    assert (done["sentences"], done["equal"], done["kept"]) == (5, 2, 3)
    assert (tmp_path / "kept.txt").read_text().splitlines() == ["A cat sleeps.", "A dog runs.", "Nothing else matters."]
    shown = command("dedup", file, "--run", run, "--threshold", 0.000001)
    assert "1 near" in shown.out or "2 near" in shown.out


def test_claims_train_every_component_and_go_on(corpus, pairs, tmp_path, monkeypatch, command):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        "system: esimcse\n"
        "method: {encoder: {hidden_size: 16, heads: 2, layers: 1}, queue_batches: 2}\n"
        "warm_start: {steps: 1, batch_size: 8}\n"
        "fit: {steps: 2, batch_size: 8, optimizer: adamw, lr: 1.0e-3, device: cpu}\n"
    )
    options = ("--sts", pairs, "--recipe", recipe, "--seeds", 2, "--out", tmp_path / "claims")
    found = command("claims", corpus, *options, "--json").json
    rows = found["rows"]
    assert {"SimCSE", "SimCSE + repetition", "SimCSE + queue", "ESimCSE", "untrained", "TF-IDF"} <= set(rows)
    assert {"mine", "length leak", "half → whole MRR"} <= set(rows["ESimCSE"])
    assert len(rows["ESimCSE"]["mine"]["values"]) == 2
    assert rows["TF-IDF"]["mine"]["sd"] is None
    assert read_json(tmp_path / "claims" / "claims.json")["rows"] == rows
    monkeypatch.setattr("mc_text_code.claims.fit", None)  # nothing is trained again
    shown = command("claims", corpus, *options)
    assert shown.code == 0, shown.err
    assert "minus SimCSE of the same seed" in shown.out
    assert "too few to tell" in shown.out


def test_export_writes_what_others_load(trained, tmp_path, command):
    import onnxruntime
    from tokenizers import Tokenizer

    run, _ = trained
    folder = tmp_path / "st"
    command("export", run, "--out", folder, "--json").json
    assert json.loads((folder / "modules.json").read_text())[0]["type"] == "sentence_transformers.models.Transformer"
    assert "ESimCSE" in (folder / "README.md").read_text()
    again = command("export", run, "--out", folder)
    assert again.code == 2
    assert "not empty" in again.err
    fields = command("export", run, "--format", "onnx", "--out", tmp_path / "e.onnx", "--json").json
    assert fields["difference"] < 1e-4
    texts = ["The cat in the garden sleeps quietly.", "The bear"]
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_padding(length=64, pad_id=0)
    rows = tokenizer.encode_batch(texts)
    session = onnxruntime.InferenceSession(str(tmp_path / "e.onnx"))
    inputs = [np.array([row.ids for row in rows]), np.array([row.attention_mask for row in rows])]
    (found,) = session.run(None, {i.name: x for i, x in zip(session.get_inputs(), inputs, strict=True)})
    np.testing.assert_allclose(found, load_encoder(run).encode(texts), atol=1e-4)


def test_inspect_shows_runs_and_corpora(trained, corpus, command):
    run, result = trained
    fields = command("inspect", run, "--json").json
    assert (fields["steps"], fields["embedding"], fields["trained"]) == (4, 16, result["trained"])
    fields = command("inspect", corpus, "--json").json
    assert (fields["sentences"], fields["different"]) == (200, 200)
    assert "median" in command("inspect", corpus).out


def test_print_recipe_is_a_recipe(tmp_path, command):
    text = command("pretrain", "--encoder", "tiny", "--fit.steps", 7, "--print-recipe").out
    (tmp_path / "mine.yaml").write_text(text)
    again = command("pretrain", "--recipe", tmp_path / "mine.yaml", "--print-recipe").out
    assert again == text
    assert "steps: 7" in text
    assert "name: bert-base-uncased" in command("pretrain", "--recipe", "esimcse", "--print-recipe").out


@pytest.mark.slow
def test_a_run_that_was_killed_ends_in_the_same_weights(corpus, tiny, tmp_path):
    options = [str(60 if before == "--fit.steps" else o) for before, o in zip(("", *tiny), tiny, strict=False)]
    options += ["--fit.checkpoint-every", "5", "--holdout", "0.2"]
    command = [PROGRAM, "sentences", "pretrain", corpus, *options, "--json"]
    subprocess.run([*command, "--out", tmp_path / "whole"], check=True, capture_output=True)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, "--out", tmp_path / "cut"], **quiet)
    for _ in range(600):
        if list((tmp_path / "cut" / "checkpoints").glob("*.safetensors")) or process.poll() is not None:
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    subprocess.run([*command, "--out", tmp_path / "cut"], check=True, capture_output=True)
    whole, cut = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
