"""Sentences from files in every form, what is left out of them, and what is said when it cannot work."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mc_core.errors import DataError
from mc_text_code.data.sentence_files import open_sentences
from mc_text_code.data.sentences import Sentences
from mc_text_code.data.stdlib import sentences_of, standard_library_sentences

TEXTS = ["A boat on the sea.", "Zwei Häuser, eine Straße", "一艘船", "she said “no”, then left"]


def write(folder, kind, texts=TEXTS, column="sentence"):
    path = folder / f"corpus.{kind}"
    table = pa.table({"number": list(range(len(texts))), column: texts})
    if kind == "txt":
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    elif kind == "txt.gz":
        path.write_bytes(gzip.compress("\r\n".join(texts).encode()))
    elif kind == "csv":
        pa_csv.write_csv(table, path)
    elif kind == "tsv":
        pa_csv.write_csv(table, path, pa_csv.WriteOptions(delimiter="\t"))
    elif kind == "jsonl":
        lines = (json.dumps({"number": i, column: t, "extra": [1]}) for i, t in enumerate(texts))
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        pq.write_table(table, path)
    return path


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "csv", "tsv", "jsonl", "parquet"])
def test_every_form_gives_the_same_sentences(tmp_path, kind):
    found = open_sentences(write(tmp_path, kind))
    assert found.texts == TEXTS
    assert found.left_out == {"lines": 4, "invalid": 0, "empty": 0, "too_long": 0, "one_word": 1}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_by_name_or_the_only_one_with_text(tmp_path, kind):
    path = write(tmp_path, kind, column="utterance")
    assert open_sentences(path).texts == open_sentences(path, "utterance").texts == TEXTS
    with pytest.raises(DataError, match=r"no column 'uterance'; did you mean utterance|no 'uterance'; its fields"):
        open_sentences(path, "uterance")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_without_text_or_several_with(tmp_path, kind):
    with pytest.raises(DataError, match=r"column 'number' holds no text; the columns that do: sentence"):
        open_sentences(write(tmp_path, kind), "number")
    path = tmp_path / f"two.{kind}"
    table = pa.table({"left": TEXTS, "right": TEXTS})
    pa_csv.write_csv(table, path) if kind == "csv" else pq.write_table(table, path)
    with pytest.raises(DataError, match="say one of left, right"):
        open_sentences(path)


def test_what_is_left_out_is_counted_and_the_first_bad_line_named(tmp_path):
    path = tmp_path / "dirty.txt"
    lines = [
        b"one fine line",
        b"",
        b"   \t",
        b"word",
        b"caf\xe9 in Latin-1",
        b"x" * 100_000,
        b"one fine line",
        b"\xff\xfe",
    ]
    path.write_bytes(b"\n".join(lines))
    found = open_sentences(path, deduplicate=True)
    assert found.texts == ["one fine line", "word"]
    assert found.left_out == {"lines": 8, "invalid": 2, "empty": 2, "too_long": 1, "one_word": 1, "duplicates": 1}
    assert found.first_invalid == f"{path} line 5"
    for words in (
        "2 empty",
        "2 that are no UTF-8 (first",
        "line 5)",
        "1 too long",
        "1 duplicates",
        "1 of a single word",
    ):
        assert words in found.report()


def test_blocks_do_not_cut_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("mc_text_code.data.sentence_files._BLOCK", 7)
    found = open_sentences(write(tmp_path, "txt"))
    assert found.texts == TEXTS
    path = tmp_path / "bad.txt"
    path.write_bytes(b"a line\nanother line\nbad \xff\nlast line")
    assert open_sentences(path).first_invalid.endswith("line 3")
    assert open_sentences(path).texts == ["a line", "another line", "last line"]


def test_invalid_bytes_in_tables(tmp_path):
    path = tmp_path / "latin.csv"
    path.write_bytes("sentence,n\nfirst one,1\ncafé au lait,2\nlast one,3\n".encode("latin-1"))
    found = open_sentences(path)
    assert found.texts == ["first one", "last one"]
    assert found.first_invalid == f"{path} row 3"


def test_byte_order_mark_and_null(tmp_path):
    path = tmp_path / "bom.txt"
    path.write_bytes("\ufeffa boat here".encode())
    assert open_sentences(path).texts == ["a boat here"]
    table = tmp_path / "null.parquet"
    pq.write_table(pa.table({"text": ["a boat", None, "b"]}), table)
    found = open_sentences(table)
    assert found.texts == ["a boat", "b"]
    assert found.left_out["empty"] == 1


def test_patterns_and_several_files(tmp_path):
    for number in (2, 1, 3):
        (tmp_path / f"part-{number}.txt").write_text(f"this is part {number}")
    expected = [f"this is part {number}" for number in (1, 2, 3)]
    assert open_sentences(str(tmp_path / "part-*.txt")).texts == expected
    assert open_sentences([tmp_path / "part-3.txt", tmp_path / "part-1.txt"]).texts == expected[::-2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file"),
        ("empty.txt", b"\n\n \n", r"no sentence in 3 lines \(3 empty\)"),
        ("utf16.txt", "a boat\non the sea".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        ("data.docx", b"PK", "ending in '.docx' is none of sentences"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": ', "line 2: not valid JSON"),
        ("number.jsonl", b'{"text": "a"}\n{"text": 7}', "line 2: 'text' is int, not a text"),
        ("list.jsonl", b"[1, 2]", "line 1: list, not an object"),
        ("lacks.jsonl", b'{"text": "a"}\n{"txt": "b"}', "line 2: no 'text'"),
        ("broken.parquet", b"PAR1nothing", "cannot be read"),
        ("broken.txt.gz", gzip.compress(b"a boat\n" * 99, mtime=0)[:25], "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_sentences(path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_folder_is_told_from_a_file(tmp_path):
    with pytest.raises(DataError, match=r"is a folder: give its files, for example .*\*\.txt"):
        open_sentences(tmp_path)


def test_hashes_tell_sentences_apart_and_stay_the_same():
    sentences = Sentences.of(["a boat", "a house", "a boat", ""])
    hashes = sentences.hashes
    assert hashes.dtype == np.int64
    assert hashes[0] == hashes[2] == 5954485651977945398
    assert len(set(hashes.tolist())) == 3
    assert sentences.deduplicated().texts == ["a boat", "a house", ""]
    other = Sentences.of(["a boat", "a house", "", "a boat"])
    assert sentences.describe()["hash"] == other.describe()["hash"]
    assert sentences.describe()["hash"] != Sentences.of(["a boat"]).describe()["hash"]


def test_groups_are_split_whole_and_by_name_alone():
    groups = [f"module{i % 40}" for i in range(400)]
    sentences = Sentences.of([f"sentence {i}" for i in range(400)], groups=groups)
    train, held = sentences.split_by_group(0.25)
    assert not set(train.groups) & set(held.groups)
    assert len(train) + len(held) == 400
    assert 0.1 < len(set(held.groups)) / 40 < 0.45
    again = sentences.select(np.arange(399, -1, -1)).split_by_group(0.25)[1]
    assert set(again.groups) == set(held.groups)
    with pytest.raises(DataError, match="nothing is known"):
        Sentences.of(["a"]).split_by_group()
    with pytest.raises(DataError, match="do not split"):
        Sentences.of(["a"], groups=["b"]).split_by_group()


def test_docstrings_give_prose_only():
    docstring = """Open a file. It may fail (see OSError).

    The mode is one of 'r', 'w' and 'a'.

    - first item of a list
    - second item

        x = open("here be code")

    >>> open("example")
    Nothing.

    No.
    """
    import inspect

    assert list(sentences_of(inspect.cleandoc(docstring))) == [
        "Open a file.",
        "It may fail (see OSError).",
        "The mode is one of 'r', 'w' and 'a'.",
    ]


def test_the_standard_library_has_thousands_of_sentences_in_many_modules():
    sentences = standard_library_sentences()
    assert len(sentences) == len(set(sentences.texts)) == len(sentences.groups) > 5000
    assert len(set(sentences.groups)) > 80
    assert not {"test", "site-packages", "idlelib"} & set(sentences.groups)
    assert all(len(text.split()) >= 3 and len(text) <= 400 for text in sentences)
    again = standard_library_sentences()
    assert again.texts == sentences.texts
    train, held = sentences.split_by_group(0.1)
    assert len(held) > 100
    assert len(train) > len(held)
