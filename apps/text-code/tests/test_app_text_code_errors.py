"""What cannot work ends with exit code 2 and one line on standard error that says what to do, never with a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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
    program = Path(sys.executable).parent / "mc-text-code"
    done = subprocess.run(
        [program, "sentences", "embed", tmp_path / "missing", tmp_path / "x.txt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: .*\n", done.stderr)


def test_files_that_hold_no_sentences(tmp_path, tiny, command):
    refused(command("pretrain", tmp_path / "none.txt", *tiny), r"none\.txt")
    (tmp_path / "empty.txt").write_text("\n\n  \n")
    refused(command("pretrain", tmp_path / "empty.txt", *tiny), r"empty\.txt", r"3 empty")
    (tmp_path / "a.doc").write_text("word")
    refused(command("pretrain", tmp_path / "a.doc", *tiny), r"a\.doc", r"\.txt")
    (tmp_path / "t.csv").write_text("id,words\n1,a\n2,b\n")
    refused(command("pretrain", tmp_path / "t.csv", "--column", "texts", *tiny), r"texts", r"words")
    assert not Path("runs").exists() or not list(Path("runs").glob("*none*"))


def test_lines_that_are_no_sentences_are_counted_and_the_others_kept(tmp_path, tiny, command):
    lines = [b"", b"one", b"x" * 100_000, b"caf\xe9 in latin-1"] + [
        f"sentence number {i} about {i % 7}".encode() for i in range(60)
    ]
    (tmp_path / "mixed.txt").write_bytes(b"\n".join(lines) + b"\n")
    done = command("pretrain", tmp_path / "mixed.txt", *tiny, "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    told = " ".join(done.err.split())
    assert "1 empty line" in told
    assert "1 too long" in told
    assert "UTF-8" in told
    assert done.json["sentences"] + done.json["held_out"] == 61


def test_a_corpus_smaller_than_a_batch(tmp_path, tiny, command):
    (tmp_path / "few.txt").write_text("one sentence\nanother one\nand a third\nand a fourth one\n")
    refused(
        command("pretrain", tmp_path / "few.txt", *tiny, "--out", tmp_path / "run"),
        r"batch_size 8 is larger than the data \(3 samples\)",
        r"fit\.batch_size to 3",
    )
    assert not (tmp_path / "run").exists()


def test_a_corpus_too_small_to_hold_anything_out_is_trained_on_all_the_same(tmp_path, tiny, command):
    (tmp_path / "few.txt").write_text("".join(f"sentence number {i} of few\n" for i in range(12)))
    done = command("pretrain", tmp_path / "few.txt", *tiny, "--out", tmp_path / "run", "--json")
    found = done.json
    assert (found["metric"], found["baselines"]) == ("loss", {})
    assert found["held_out"] + found["sentences"] == 12
    assert "too few to measure on" in " ".join(done.err.split())
    assert (tmp_path / "run" / "model" / "modules.json").is_file()


def test_an_encoder_that_cannot_be_reached(tmp_path, corpus, command):
    done = command("pretrain", corpus, "--encoder", "nobody/no-such-encoder", "--out", tmp_path / "run")
    refused(done, r"nobody/no-such-encoder", r"folder")
    assert not (tmp_path / "run").exists()
    (tmp_path / "folder").mkdir()
    refused(command("pretrain", corpus, "--encoder", tmp_path / "folder"), r"config\.json")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--recipe", "esimsce"], [r"esimsce", r"esimcse"]),
        (["--fit.stepz", "3"], [r"--fit\.stepz", r"--fit\.steps"]),
        (["--holdout", "1.5"], [r"--holdout 1\.5", r"between 0 and 1"]),
        (["--method.encoder.max-length", "600"], [r"max_length 600", r"512 positions"]),
        (["--augment.rate", "2"], [r"augment\.rate"]),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) and str(value[0]).startswith("--") else "",
)
def test_options_that_cannot_work(options, parts, corpus, tmp_path, tiny, command):
    refused(command("pretrain", corpus, *tiny, *options, "--out", tmp_path / "run"), *parts)
    assert not (tmp_path / "run").exists()


def test_runs_that_are_none(tmp_path, corpus, command):
    refused(command("evaluate", tmp_path / "nope"), r"nope")
    refused(command("embed", tmp_path, corpus), r"holds neither a run")
    refused(command("export", tmp_path), r"holds neither a run")


def test_scored_pairs_that_cannot_be_used(trained, tmp_path, pairs, command):
    run, _ = trained
    refused(command("evaluate", run, "--sts", tmp_path), r"no STS files")
    (tmp_path / "bad.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t\nc\td\t\n")
    refused(command("evaluate", run, "--sts", tmp_path / "bad.tsv"), r"bad\.tsv", r"gold|score")
    refused(command("evaluate", run, "--split", "dev"), r"--split", r"--sts")
    refused(command("evaluate", run, "--sts", pairs, "--split", "dev"), r"dev")


def test_saved_modules_that_do_not_belong_together(trained, tmp_path, command):
    import json
    import shutil

    run, _ = trained
    folder = tmp_path / "model"
    shutil.copytree(run / "model", folder)
    place = folder / "1_Pooling" / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "word_embedding_dimension": 48}))
    (tmp_path / "x.txt").write_text("a sentence\n")
    refused(command("embed", folder, tmp_path / "x.txt", "--out", tmp_path / "e.npz"), r"width 48", r"16")
    assert not (tmp_path / "e.npz").exists()


def test_searches_that_cannot_work(trained, corpus, tmp_path, monkeypatch, command):
    run, _ = trained
    monkeypatch.chdir(tmp_path)
    refused(command("search", corpus, " "), r"query is empty")
    refused(command("search", corpus, "cat", "-k", 0), r"--top 0")
    refused(command("search", corpus, "cat", "--mode", "dense"), r"--run")
    refused(command("search", corpus, "cat", "--mode", "lexical", "--run", run), r"--mode lexical")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    refused(command("search", corpus, "cat", "--run", run, "--index", tmp_path / "full"), r"holds files")
    refused(command("embed", run, corpus, "--out", tmp_path / "e.csv"), r"\.parquet or \.npz")
    refused(command("embed", run, corpus, "--batch-size", 0), r"--batch-size 0")
    refused(command("dedup", corpus, "--threshold", 1.5), r"threshold 1\.5")
