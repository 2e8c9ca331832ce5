"""STS files in SentEval's layout and as tables: what is read, under which name, and what is refused in one line."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mc_core.errors import DataError
from mc_text_code.data.rewrites import open_rewrites
from mc_text_code.data.sts import OFFICIAL, difference_from_official, open_sts

DATA = os.environ.get("MC_DATA")


def write(path: Path, text: str, encoding="utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def senteval(root: Path, year="STS12-en-test", subset="MSRpar", pairs=(("A cat.", "A dog.", "2.5"),), end="\n") -> Path:
    write(root / year / f"STS.input.{subset}.txt", "".join(f"{a}\t{b}{end}" for a, b, _ in pairs))
    return write(root / year / f"STS.gs.{subset}.txt", "".join(f"{score}{end}" for *_, score in pairs))


def benchmark(
    root: Path, split="test", rows=(("2.000", "A girl is styling her hair.", "A girl is brushing her hair."),)
):
    lines = [f"main-captions\tMSRvid\t2012test\t{n:04d}\t{score}\t{a}\t{b}\n" for n, (score, a, b) in enumerate(rows)]
    return write(root / "STSBenchmark" / f"sts-{split}.csv", "".join(lines))


def sick(root: Path, split="test_annotated") -> Path:
    return write(
        root / "SICK" / f"SICK_{split}.txt",
        "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
        "1\tA group of kids is playing\tKids are playing\t4.5\tENTAILMENT\n"
        '2\t"A man sings\tNobody sings\t1\tCONTRADICTION\n',
    )


def test_the_layout_of_senteval(tmp_path):
    senteval(tmp_path, subset="MSRpar", pairs=[("one", "two", "0"), ("three", "four", "5.000")])
    senteval(tmp_path, subset="surprise.OnWN", pairs=[("x", "y", "1.25")])
    senteval(
        tmp_path, year="STS16-en-test", subset="headlines", pairs=[("a b", "c", "3"), ("d", "e", ""), ("f", "g", " ")]
    )
    benchmark(tmp_path, "test")
    benchmark(tmp_path, "dev", [("0.5", 'He said "no', "It's a comma, here"), ("", "no", "gold")])
    sick(tmp_path)
    sick(tmp_path, "trial")
    tasks = open_sts(tmp_path)
    assert list(tasks) == ["STS12", "STS16", "STS-B", "SICK-R"]
    split, pairs = tasks["STS12"].select()
    assert split == "test"
    assert pairs.subset.tolist() == ["MSRpar", "MSRpar", "OnWN"]
    assert pairs.sentence1 == ("one", "three", "x")
    assert pairs.sentence2 == ("two", "four", "y")
    assert pairs.gold.tolist() == [0.0, 5.0, 1.25]
    assert (len(tasks["STS16"].splits["test"]), tasks["STS16"].splits["test"].dropped) == (1, 2)
    assert tasks["STS-B"].splits["dev"].sentence1 == ('He said "no',)
    assert tasks["STS-B"].splits["dev"].dropped == 1
    assert list(tasks["SICK-R"].splits) == ["dev", "test"]
    assert tasks["SICK-R"].splits["test"].sentence1[1] == '"A man sings'
    assert tasks["SICK-R"].scaled(np.array([1, 3, 5])).tolist() == [0.0, 0.5, 1.0]
    assert tasks["STS12"].scaled(np.array([0, 2.5, 5])).tolist() == [0.0, 0.5, 1.0]


def test_windows_line_ends_and_byte_order_marks_are_no_part_of_a_sentence(tmp_path):
    senteval(tmp_path, pairs=[("a", "b", "1"), ("c", "d", "")], end="\r\n")
    write(tmp_path / "mine.csv", "\ufeffsentence1,sentence2,score\r\na,b,1\r\nc,d,2\r\n")
    tasks = open_sts(tmp_path)
    assert tasks["STS12"].splits["test"].sentence2 == ("b",)
    assert tasks["STS12"].splits["test"].dropped == 1
    assert tasks["mine"].splits["test"].sentence2 == ("b", "d")


def test_separators_inside_a_sentence_do_not_break_its_line(tmp_path):
    senteval(tmp_path, pairs=[("before\u2028after", "next\x85line", "4"), ("c", "d", "1")])
    assert open_sts(tmp_path)["STS12"].splits["test"].sentence1[0] == "before after"


@pytest.mark.parametrize("kind", ["csv", "semicolons", "tsv", "jsonl", "parquet"])
def test_tables(tmp_path, kind):
    rows = [
        {
            "dataset": "sts2014",
            "subset": "images",
            "split": "test",
            "sentence1": "One, two",
            "sentence2": "2",
            "score": 3.5,
        },
        {
            "dataset": "sts2014",
            "subset": "images",
            "split": "validation",
            "sentence1": "3",
            "sentence2": "4",
            "score": 1.0,
        },
        {"dataset": "mine", "subset": "", "split": "test", "sentence1": 'A "b" c', "sentence2": "6", "score": None},
        {"dataset": "mine", "subset": "", "split": "test", "sentence1": "7; 8", "sentence2": "8", "score": 0.25},
    ]
    names = list(rows[0])
    cells = [["" if row[n] is None else str(row[n]) for n in names] for row in rows]
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in line] for line in cells]
    path = tmp_path / f"table.{'csv' if kind == 'semicolons' else kind}"
    match kind:
        case "csv" | "semicolons":
            mark = "," if kind == "csv" else ";"
            write(path, "\n".join(mark.join(line) for line in [names, *quoted]) + "\n")
        case "tsv":
            write(path, "\n".join("\t".join(line) for line in [names, *cells]) + "\n")
        case "jsonl":
            write(path, "".join(json.dumps(row) + "\n" for row in rows) + "\n")
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
    for place in (path, tmp_path):
        tasks = open_sts(place)
        assert list(tasks) == ["STS14", "mine"]
        assert {split: len(pairs) for split, pairs in tasks["STS14"].splits.items()} == {"dev": 1, "test": 1}
        assert tasks["STS14"].splits["test"].sentence1 == ("One, two",)
        assert tasks["STS14"].splits["test"].subset.tolist() == ["images"]
        assert tasks["mine"].splits["test"].sentence1 == ("7; 8",)
        assert tasks["mine"].splits["test"].dropped == 1


@pytest.mark.parametrize(
    ("name", "task", "split"),
    [
        ("mine-dev.csv", "mine", "dev"),
        ("stsb_test.csv", "STS-B", "test"),
        ("sts-b/train.csv", "STS-B", "train"),
        ("stsb/data/validation-00000-of-00001.csv", "STS-B", "dev"),
        ("STS2013.csv", "STS13", "test"),
        ("sick.csv", "SICK-R", "test"),
        ("contest.csv", "contest", "test"),
    ],
)
def test_a_table_without_columns_for_it_is_named_by_its_file(tmp_path, name, task, split):
    write(tmp_path / name, "Sentence_A,Sentence_B,relatedness_score\na b,c d,1\n e  f ,g,2\n")
    tasks = open_sts(tmp_path)
    assert list(tasks) == [task]
    assert list(tasks[task].splits) == [split]
    assert tasks[task].splits[split].sentence1 == ("a b", "e f")


def test_scores_that_someone_rescaled_are_known_by_their_range(tmp_path):
    write(tmp_path / "stsb-test.csv", "sentence1,sentence2,score\na,b,0.0\nc,d,0.96\n")
    write(tmp_path / "mine.csv", "sentence1,sentence2,score\na,b,-2\nc,d,6\n")
    tasks = open_sts(tmp_path)
    assert tasks["STS-B"].scale == (0.0, 1.0)
    assert tasks["mine"].scale == (-2.0, 6.0)
    assert tasks["mine"].scaled(np.array([2.0])).tolist() == [0.5]


def test_choosing_a_split(tmp_path):
    for split in ("train", "dev"):
        write(tmp_path / f"mine-{split}.csv", f"sentence1,sentence2,score\n{split},b,1\n{split},d,2\n")
    write(tmp_path / "other-dev.csv", "sentence1,sentence2,score\na,b,1\nc,d,2\n")
    tasks = open_sts(tmp_path)
    assert tasks["mine"].select()[0] == "train"  # dev is left for choosing a checkpoint
    assert tasks["other"].select()[0] == "dev"
    name, pairs = tasks["mine"].select("all")
    assert (name, pairs.sentence1) == ("all", ("train", "train", "dev", "dev"))
    assert tasks["other"].select("all")[0] == "dev"
    with pytest.raises(DataError, match="mine has no split 'test'; it has train, dev"):
        tasks["mine"].select("test")


def test_what_differs_from_the_official_sets_is_said(tmp_path):
    subsets = OFFICIAL["STS13"].subsets
    for subset in subsets:
        senteval(tmp_path, "STS13-en-test", subset, [("a", "b", "1")] * 500)
    tasks = open_sts(tmp_path)
    assert difference_from_official("STS13", *tasks["STS13"].select()) == ""
    senteval(tmp_path, "STS13-en-test", "SMT", [("a", "b", "1")] * 7)
    (tmp_path / "STS13-en-test/STS.input.FNWN.txt").unlink()
    split, pairs = open_sts(tmp_path)["STS13"].select()
    assert difference_from_official("STS13", split, pairs) == "1007 of 1500 pairs, without FNWN, with SMT"


def test_other_tables_in_the_folder_are_passed_over(tmp_path):
    senteval(tmp_path)
    write(tmp_path / "notes.csv", "sentence,source\na,b\n")
    write(tmp_path / "log.jsonl", '{"step": 1}\nno json\n')
    write(tmp_path / "broken.jsonl", "no json at all\n")
    write(tmp_path / "README.txt", "sentence1\tsentence2\tscore\n")
    write(tmp_path / ".hidden/mine.csv", "sentence1,sentence2,score\na,b,1\n")
    pq.write_table(pa.table({"sentence": ["a"]}), tmp_path / "corpus.parquet")
    assert list(open_sts(tmp_path)) == ["STS12"]
    assert list(open_sts(tmp_path, only=["STS12"])) == ["STS12"]
    with pytest.raises(DataError, match="has no task 'STS15'; closest: STS12"):
        open_sts(tmp_path, only=["STS15"])


def one_line(folder: Path, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        open_sts(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_missing_and_empty_places(tmp_path):
    one_line(tmp_path / "nowhere", "does not exist")
    one_line(tmp_path, "no STS files found")
    one_line(write(tmp_path / "pairs.txt", "a\tb\t1\n"), "pairs.txt", ".parquet, .csv, .tsv or .jsonl")
    one_line(
        write(tmp_path / "mine.csv", "first,second,score\na,b,1\n"), "mine.csv", "no column 'sentence1'", "'first'"
    )
    one_line(write(tmp_path / "empty.csv", ""), "empty.csv", "no column")
    one_line(write(tmp_path / "none.csv", "sentence1,sentence2,score\n"), "none.csv", "no pairs")
    one_line(write(tmp_path / "cut.parquet", "PAR1 and then nothing"), "cut.parquet", "Parquet")


def test_lines_that_do_not_match(tmp_path):
    gold = senteval(tmp_path, pairs=[("a", "b", "1"), ("c", "d", "2")])
    write(gold, "1\n")
    one_line(tmp_path, "STS.input.MSRpar.txt has 2 lines", "STS.gs.MSRpar.txt 1")
    gold.unlink()
    one_line(tmp_path, "STS.gs.MSRpar.txt is missing")
    senteval(tmp_path, pairs=[("a", "b", "1"), ("c", "d", "2")])
    write(tmp_path / "STS12-en-test/STS.input.MSRpar.txt", "a\tb\nc d\n")
    one_line(tmp_path, "STS.input.MSRpar.txt, line 2", "no tab", "'c d'")


def test_gold_that_is_missing_or_no_number(tmp_path):
    senteval(tmp_path, pairs=[("a", "b", ""), ("c", "d", "")])
    one_line(tmp_path, "STS.gs.MSRpar.txt", "all 2 gold scores are missing")
    senteval(tmp_path, pairs=[("a", "b", "1"), ("c", "d", "high")])
    one_line(tmp_path, "STS.gs.MSRpar.txt, line 2", "'high' is no number")
    senteval(tmp_path, pairs=[("a", "b", "1"), ("c", "d", "inf")])
    one_line(tmp_path, "STS.gs.MSRpar.txt, line 2", "infinite")
    senteval(tmp_path, pairs=[("a", "b", "1"), (" ", "d", "2")])
    one_line(tmp_path, "STS.input.MSRpar.txt, line 2", "sentence1 is empty")


def test_rows_of_tables_are_named(tmp_path):
    one_line(
        write(tmp_path / "a.csv", 'sentence1,sentence2,score\n"two\nlines",b,1\na,b,x\n'),
        "a.csv, line 4",
        "'x' is no number",
    )
    one_line(write(tmp_path / "b.csv", "sentence1,sentence2,score\na,b\n"), "b.csv, line 2", "2 cells", "header has 3")
    one_line(write(tmp_path / "c.csv", f"sentence1,sentence2,score\n{'x' * 200_000},b,1\n"), "c.csv, line", "field")
    one_line(write(tmp_path / "d.jsonl", '{"sentence1": "a", "sentence2": "b", "score": 1}\n[1]\n'), "d.jsonl, line 2")
    latin = write(tmp_path / "e.tsv", "sentence1\tsentence2\tscore\na\tb\t1\nc\tcafé\t2\n", encoding="latin-1")
    one_line(latin, "e.tsv, line 3", "not UTF-8")
    table = pa.table({"sentence1": ["a", None], "sentence2": ["b", "c"], "score": [1.0, 2.0]})
    pq.write_table(table, tmp_path / "f.parquet")
    one_line(tmp_path / "f.parquet", "f.parquet, row 2", "sentence1 is empty")


def test_scores_kept_secret_and_the_same_part_twice(tmp_path):
    write(tmp_path / "stsb-test.csv", "sentence1,sentence2,score\na,b,-1\nc,d,-1\n")
    one_line(tmp_path, "stsb-test.csv", "-1", "secret")
    write(tmp_path / "stsb-test.csv", "sentence1,sentence2,score\na,b,1\nc,d,2\n")
    benchmark(tmp_path)
    one_line(tmp_path, "stsb-test.csv", "sts-test.csv", "both hold STS-B of STS-B test")


def test_a_year_must_be_told(tmp_path):
    senteval(tmp_path, year="mystery")
    one_line(tmp_path / "mystery", "STS.input.MSRpar.txt", "which year")


def test_rewrites(tmp_path):
    table = pa.table({"sentence": ["a", "b"], "rewrites": [["A!", "a."], []]})
    pq.write_table(table, tmp_path / "r.parquet")
    assert open_rewrites(tmp_path / "r.parquet") == (["a", "b"], [["A!", "a."], []])
    pq.write_table(table.drop_columns("rewrites"), tmp_path / "s.parquet")
    for path, wanted in [
        (tmp_path / "s.parquet", "no column 'rewrites' among sentence"),
        (write(tmp_path / "t.txt", "a"), ".parquet or .jsonl"),
        (
            write(tmp_path / "u.jsonl", '{"sentence": "a", "rewrites": ["b"]}\n{"sentence": "", "rewrites": []}\n'),
            "line 2",
        ),
        (write(tmp_path / "v.jsonl", '{"sentence": "a", "rewrites": "b"}\n'), "line 1: rewrites must be a list"),
        (write(tmp_path / "w.jsonl", '{"sentence": "a", "rewrites": []}\n'), "no sentence with a rewrite"),
        (tmp_path / "none.jsonl", "cannot be read"),
    ]:
        with pytest.raises(DataError, match=wanted):
            open_rewrites(path)


@pytest.mark.skipif(not DATA, reason="needs the data folder named by MC_DATA")
def test_the_real_pairs():
    tasks = open_sts(Path(DATA, "text"))  # beside two tables that hold no pairs
    counts = {name: {split: len(pairs) for split, pairs in task.splits.items()} for name, task in tasks.items()}
    assert counts == {
        "STS12": {"train": 1484, "test": 2358},
        "STS13": {"test": 1500},
        "STS14": {"test": 3750},
        "STS15": {"test": 3000},
        "STS-B": {"train": 5474, "dev": 1465},
        "SICK-R": {"train": 4396, "dev": 489},
    }
    told = {name: difference_from_official(name, *task.select()) for name, task in tasks.items()}
    assert told["STS12"] == "2358 of 3108 pairs, without MSRvid"
    assert told["STS13"] == told["STS14"] == told["STS15"] == ""
    assert told["STS-B"] == told["SICK-R"] == "split train"
    sentences, rewrites = open_rewrites(Path(DATA, "text", "wiki-rewrites.parquet"))
    assert len(sentences) == 1999
    assert min(len(texts) for texts in rewrites) >= 4
