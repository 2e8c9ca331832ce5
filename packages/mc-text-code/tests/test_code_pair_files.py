"""Pairs in published files and in our own: read as they are meant, written back the same, refused in one line."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mc_core.errors import DataError
from mc_text_code.data.code_files import open_pairs, write_pairs
from mc_text_code.data.code_pairs import CodePair
from mc_text_code.data.code_search_sets import CodeSearchSet, open_search_set

SOURCE = 'def read_all(path):\n    """Reads a größe.\n\n    More of it.\n    """\n    return open(path).read()'
BARE = "def read_all(path):\n    return open(path).read()"
CODESEARCHNET = {
    "repo": "a/b",
    "path": "x/y.py",
    "func_name": "Reader.read_all",
    "original_string": SOURCE,
    "language": "python",
    "code": SOURCE,
    "code_tokens": ["def", "read_all", "(", "path", ")", ":", "return", "open", "(", "path", ")"],
    "docstring": "Reads a größe.\n\nMore of it.",
    "docstring_tokens": ["Reads", "a", "größe", "."],
    "url": "https://github.com/a/b/blob/1/x/y.py#L1-L3",
    "partition": "test",
}


def lines(path: Path, *records) -> Path:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"])
def test_codesearchnet(tmp_path, name):
    path = tmp_path / name
    if name == "a.json":
        path.write_text(json.dumps([CODESEARCHNET] * 2), encoding="utf-8")
    elif name == "a.parquet":
        pq.write_table(pa.Table.from_pylist([CODESEARCHNET] * 2), path)
    else:
        lines(path, CODESEARCHNET, CODESEARCHNET)
    first, second = open_pairs(path).pairs
    assert first == second
    assert first == CodePair(
        query="Reads a größe.",
        code=BARE,
        language="python",
        name="read_all",
        qualified_name="Reader.read_all",
        path="x/y.py",
        repository="a/b",
        url="https://github.com/a/b/blob/1/x/y.py#L1-L3",
        partition="test",
    )
    (published, _) = open_pairs(path, tokens=True).pairs
    assert published.query == "Reads a größe ."
    assert published.code == "def read_all ( path ) : return open ( path )"
    assert open_pairs(path, documentation=True).pairs[0].code == SOURCE


def test_the_names_of_the_hub(tmp_path):
    record = {
        "repository_name": "a/b",
        "func_path_in_repository": "x.py",
        "func_name": "f",
        "whole_func_string": SOURCE,
        "language": "python",
        "func_code_string": SOURCE,
        "func_documentation_string": "Reads.\n\nMore.",
        "split_name": "train",
        "func_code_url": "u",
    }
    (pair,) = open_pairs(lines(tmp_path / "a.jsonl", record)).pairs
    assert (pair.query, pair.code, pair.repository, pair.url, pair.partition) == ("Reads.", BARE, "a/b", "u", "train")


def test_advtest(tmp_path):
    record = {
        "idx": 7,
        "url": "u",
        "function": SOURCE,
        "docstring_tokens": ["Reads", "it"],
        "docstring": "",
        "language": "python",
    }
    (pair,) = open_pairs(lines(tmp_path / "a.jsonl", record)).pairs
    assert (pair.query, pair.code, pair.url) == ("Reads it", BARE, "u")


def test_cosqa(tmp_path):
    records = [
        {"idx": "cosqa-1", "doc": "python read file", "code": SOURCE, "label": 1},
        {"idx": "cosqa-2", "doc": "python write @ file", "code": SOURCE, "label": 0},
        {"idx": "cosqa-3", "doc": "a query @ home", "code": SOURCE, "label": "1"},
    ]
    (tmp_path / "cosqa.json").write_text(json.dumps(records))
    loaded = open_pairs(tmp_path / "cosqa.json", language="python")
    assert (loaded.pairs[0].query, loaded.pairs[0].url) == ("python read file", "cosqa-1")
    assert loaded.left_out == {"judged wrong": 1}
    assert loaded.pairs[0].code == BARE
    assert open_pairs(tmp_path / "cosqa.json").pairs[0].code == SOURCE  # its language is not said


def test_cosqa_retrieval(tmp_path):
    (tmp_path / "code_idx_map.txt").write_text(json.dumps({SOURCE: 1, "def g(): pass": 0, "def h(): pass": 2}))
    queries = [{"idx": "a", "doc": "read file", "retrieval_idx": 1}, {"idx": "b", "doc": "nothing", "retrieval_idx": 9}]
    (tmp_path / "test.json").write_text(json.dumps(queries))
    asked = open_search_set(tmp_path / "test.json")
    assert asked.queries == ("read file",)
    assert asked.codes == ("def g(): pass", BARE, "def h(): pass")
    assert (asked.answer.tolist(), asked.left_out) == ([1], 1)


@pytest.mark.parametrize("name", ["codebase.jsonl", "elsewhere.jsonl"])
def test_a_codebase_beside_the_questions(tmp_path, name):
    """As GraphCodeBERT splits it: questions without code, candidates without questions, joined by url."""
    questions = [{"url": f"u{n}", "docstring_tokens": ["question", str(n)], "language": "python"} for n in range(3)]
    candidates = [
        {"url": f"u{n}", "code": f'def f{n}():\n    "question {n}"\n    return {n}', "docstring": "", "language": "python",
         "func_name": f"f{n}"} for n in (4, 2, 0)
    ]  # fmt: skip
    path = lines(tmp_path / "test.jsonl", *questions)
    lines(tmp_path / name, *candidates)
    asked = open_search_set(path, candidates=None if name == "codebase.jsonl" else tmp_path / name)
    assert asked.queries == ("question 0", "question 2")
    assert asked.codes[0] == "def f4():\n    return 4"
    assert (asked.answer.tolist(), asked.names, asked.left_out) == ([2, 1], ("f4", "f2", "f0"), 1)


def test_a_numbered_table_beside_the_questions(tmp_path):
    pq.write_table(pa.table({"query": ["one", "two"], "code_id": [5, 3]}), tmp_path / "q.parquet")
    pq.write_table(pa.table({"code_id": [3, 5, 7], "code": ["c3", "c5", "c7"]}), tmp_path / "base.parquet")
    asked = open_search_set(tmp_path / "q.parquet")
    assert (asked.codes, asked.answer.tolist()) == (("c3", "c5", "c7"), [1, 0])
    (tmp_path / "base2.parquet").write_bytes((tmp_path / "base.parquet").read_bytes())
    with pytest.raises(
        DataError, match="which file holds the candidates that 'code_id' numbers\\?.*base.parquet, base2.parquet"
    ):
        open_search_set(tmp_path / "q.parquet")
    assert len(open_search_set(tmp_path / "q.parquet", candidates=tmp_path / "base2.parquet").codes) == 3
    pq.write_table(pa.table({"code_id": [1], "code": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="none of the 2 answers \\('code_id'\\) is among the 1 candidates"):
        open_search_set(tmp_path / "q.parquet", candidates=tmp_path / "other.parquet")


def test_a_file_of_candidates_is_not_one_of_questions(tmp_path):
    pq.write_table(pa.table({"code_id": [3, 5], "code": ["c3", "c5"]}), tmp_path / "base.parquet")
    with pytest.raises(DataError, match="base.parquet holds candidates and no questions.*'code_id'"):
        open_search_set(tmp_path / "base.parquet")
    with pytest.raises(DataError, match="is a folder; name one of its files"):
        open_search_set(tmp_path)


def test_pairs_are_a_search_set_too(tmp_path):
    path = lines(tmp_path / "a.jsonl", *({"query": f"q{n}", "code": f"c{n}"} for n in range(3)))
    asked = open_search_set(path)
    assert (asked.queries, asked.codes, asked.answer.tolist()) == (("q0", "q1", "q2"), ("c0", "c1", "c2"), [0, 1, 2])
    more = CodeSearchSet.of([CodePair("q", "c")], [CodePair("", "d", name="e")])
    assert (more.codes, more.names, more.answer.tolist()) == (("c", "d"), ("", "e"), [0])
    assert more.answer.dtype == np.int64


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_our_own_files_come_back_the_same(tmp_path, name):
    given = [
        CodePair("A größe @ once\tand more", SOURCE, "python", "f", "A.f", "x/y.py", 12, "r", "p", "MIT", "u", "test"),
        CodePair("bare", "x = 1"),
    ]
    write_pairs(tmp_path / name, given)
    expected = [CodePair("A größe @ once and more", *list(given[0].__getstate__())[1:]), given[1]]
    assert open_pairs(tmp_path / name).pairs == expected  # questions are on one line; code is not touched
    before = (tmp_path / name).read_bytes()
    write_pairs(tmp_path / name, given)
    assert (tmp_path / name).read_bytes() == before
    assert not name.endswith(".gz") or before[4:8] == bytes(4)  # no time of writing in it
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_only_some_endings_are_written(tmp_path):
    with pytest.raises(DataError, match="pairs are written as .jsonl, .jsonl.gz or .parquet"):
        write_pairs(tmp_path / "a.csv", [])


def test_fields_can_be_named(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"ask": "what", "body": ["a", "b"], "query": "other", "code": "c"})
    (pair,) = open_pairs(path, query="ask", code="body").pairs
    assert (pair.query, pair.code) == ("what", "a b")
    with pytest.raises(DataError, match="a.jsonl, line 1: no field 'aks'; did you mean ask"):
        open_pairs(path, query="aks")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"query": "q", "code": "c"}\n{"query"', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", "3\n", "a.jsonl, line 1: int, not an object"),
        ("a.json", '[{"query": "q", "code": "c"}, 7]', "a.json, entry 2: int, not an object"),
        ("a.jsonl", "", "a.jsonl: holds no record"),
        ("a.jsonl", '{"query": "q", "kode": "c"}', "a.jsonl, line 1: which field is the code\\? there are query, kode"),
        (
            "a.jsonl",
            '{"kwery": "q", "code": "c"}',
            "a.jsonl, line 1: which field is the question\\? there are kwery, code",
        ),
        ("a.jsonl", '{"query": "", "code": "c"}', "no pair of question and code \\(1 no question\\)"),
        ("a.jsonl", '{"query": "q", "code": ""}', "no pair of question and code \\(1 no code\\)"),
        ("a.csv", "query,code\n", "a.csv: pairs of question and code are read from .jsonl"),
        ("a.parquet", "nonsense", "a.parquet cannot be read"),
        ("a.jsonl.gz", "nonsense", "a.jsonl.gz cannot be read"),
        ("a.jsonl", b'{"query": "\xff"}', "a.jsonl, line 1: not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        open_pairs(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_cut_off(tmp_path):
    with pytest.raises(DataError, match="a.jsonl: no such file"):
        open_pairs(tmp_path / "a.jsonl")
    whole = gzip.compress(b'{"query": "q", "code": "c"}\n' * 10_000)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="a.jsonl.gz cannot be read"):
        open_pairs(tmp_path / "a.jsonl.gz")
    (tmp_path / "code_idx_map.txt").write_text("[]")
    with pytest.raises(DataError, match="an object with code → number is expected"):
        open_search_set(lines(tmp_path / "q.jsonl", {"query": "q", "code_id": 1}))


@pytest.mark.skipif("MC_DATA" not in os.environ, reason="needs the data folder named by MC_DATA")
def test_published_pairs():
    folder = Path(os.environ["MC_DATA"], "code")
    counts = {
        "python-docstring-pairs": 13_678,
        "java-comment-pairs": 8_170,
        "six-language-pairs": 2_575,
        "conala-train": 2_371,
        "stackoverflow-titles": 8_785,
        "cosqa-pairs-dev": 272,
        "webquery-pairs-unlabelled": 950,
    }
    found = {name: open_pairs(folder / f"{name}.parquet", language="python") for name in counts}
    assert {name: len(loaded.pairs) for name, loaded in found.items()} == counts
    assert found["cosqa-pairs-dev"].left_out == {"judged wrong": 269}
    assert not any(
        '"""' in pair.code.split("\n")[1] for pair in found["cosqa-pairs-dev"].pairs if pair.code.count("\n") > 1
    )
    asked = open_search_set(folder / "cosqa-queries-dev.parquet", language="python")
    assert (len(asked.queries), len(asked.codes), asked.left_out) == (500, 5_865, 0)
    place = asked.queries.index("python check if a variable is iterable")
    assert "iterable" in asked.codes[asked.answer[place]]
    with pytest.raises(DataError, match="which field is the code"):
        open_pairs(folder / "codesearchnet-annotations.parquet")
