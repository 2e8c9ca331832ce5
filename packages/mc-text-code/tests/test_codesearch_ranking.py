"""The order of results in closed form: fusion, weights, and each signal by itself."""

from __future__ import annotations

import pytest

from mc_text_code.codesearch.config import RankingConfig
from mc_text_code.codesearch.ranking import Candidate, depth, fuse, looks_like_identifier, rank

PLAIN = RankingConfig(
    definition_factor=1,
    stem_factor=1,
    several_factor=1,
    test_factor=1,
    vendor_factor=1,
    generated_factor=1,
    trivial_factor=1,
    prose_factor=1,
    per_file=0,
)


def chunk(number: int, path: str = "", name: str = "thing", **fields) -> Candidate:
    path = path or f"src/file{number}.py"
    values = {"language": "python", "kind": "function", "qualified_name": name, "line": 1} | fields
    return Candidate(number, path, name=name, **values)


def order(scores: dict[int, float], chunks: list[Candidate], query: str, config: RankingConfig) -> dict[int, float]:
    return {one.number: one.score for one in rank(scores, chunks, query, config)}


def test_fusion_is_the_sum_of_reciprocal_ranks():
    scores = fuse([5, 3, 8], [8, 5], "read a file", PLAIN)
    assert scores == pytest.approx({5: 1 / 61 + 1 / 62, 3: 1 / 62, 8: 1 / 63 + 1 / 61}, abs=1e-15)
    assert list(order(scores, [chunk(n) for n in (3, 5, 8)], "x", PLAIN)) == [5, 8, 3]


def test_weights_and_constant():
    config = PLAIN.model_copy(update={"rrf_constant": 10, "lexical_weight": 3.0, "dense_weight": 0.5})
    assert fuse([1], [2], "read a file", config) == pytest.approx({1: 3 / 11, 2: 0.5 / 11})
    off = PLAIN.model_copy(update={"dense_weight": 0.0})
    assert list(order(fuse([1], [2], "read a file", off), [chunk(1), chunk(2)], "read a file", off)) == [1]


def test_an_identifier_gives_words_twice_the_weight():
    assert fuse([1], [2], "parse_args", PLAIN) == pytest.approx({1: 2 / 61, 2: 1 / 61})
    assert fuse([1], [2], "parse the arguments", PLAIN) == pytest.approx({1: 1 / 61, 2: 1 / 61})


@pytest.mark.parametrize(
    "text",
    [
        "parse_args",
        "ArgumentParser",
        "parseArgs",
        "std::vector",
        "os.path.join",
        "_private",
        "HTTPServer",
        "where is parse_args",
        "open()",
        "a->next",
    ],
)
def test_what_looks_like_an_identifier(text):
    assert looks_like_identifier(text)


@pytest.mark.parametrize(
    "text",
    ["parse arguments", "Read a file. Then close it.", "e.g. this", "open", "UTF 8", "I/O error", "3.5 percent", "A B"],
)
def test_what_does_not(text):
    assert not looks_like_identifier(text)


def test_how_deep_the_arms_go():
    assert [depth(k, RankingConfig()) for k in (1, 10, 11, 100)] == [50, 50, 55, 500]


@pytest.mark.parametrize(
    ("field", "candidate", "query", "other"),
    [
        ("definition", chunk(1, name="parse_args"), "parse_args", "parse the line"),
        ("definition", chunk(1, name="parse_args", qualified_name="Parser.parse_args"), "Parser.parse_args", "args"),
        ("definition", chunk(1, name="parse_args", qualified_name="Parser::parse_args"), "parser.parse_args", "args"),
        ("definition", chunk(1, name="parseArgs"), "parse args", "args parse"),
        ("definition", chunk(1, name="open"), "open", "open a file"),
        ("stem", chunk(1, "src/http_client.py"), "the client of http", "the client"),
        ("test", chunk(1, "tests/test_x.py"), "open a file", "test that opens a file"),
        ("test", chunk(1, "pkg/handler_test.go"), "open a file", "tests of files"),
        ("test", chunk(1, "src/app.spec.ts"), "open a file", "spec of files"),
        ("test", chunk(1, "src/FooTest.java"), "open a file", "unittest of foo"),
        ("trivial", chunk(1, trivial=True), "open a file", ""),
        ("vendor", chunk(1, "third_party/zlib/zip.c"), "open a file", ""),
        ("vendor", chunk(1, "pip/_vendor/six.py"), "open a file", ""),
        ("generated", chunk(1, "api/service_pb2.py"), "open a file", ""),
        ("prose", chunk(1, "README.md", language="markdown"), "open a file", ""),
    ],
)
def test_each_signal_multiplies_by_its_factor_and_can_be_switched_off(field, candidate, query, other):
    config = PLAIN.model_copy(update={f"{field}_factor": 3.0})
    assert order({1: 0.5}, [candidate], query, config) == {1: 1.5}
    assert rank({1: 0.5}, [candidate], query, config)[0].signals == (field,)
    assert order({1: 0.5}, [candidate], query, PLAIN) == {1: 0.5}
    assert rank({1: 0.5}, [candidate], query, PLAIN)[0].signals == ()
    if other:
        assert order({1: 0.5}, [candidate], other, config) == {1: 0.5}


def test_signals_that_must_not_fire():
    config = PLAIN.model_copy(
        update=dict.fromkeys(
            ("definition_factor", "stem_factor", "test_factor", "vendor_factor", "generated_factor"), 3.0
        )
    )
    for candidate, query in (
        (chunk(1, name="parse_args", kind="window"), "parse_args"),
        (chunk(1, name="parse_args", part=1, parts=2), "parse_args"),
        (chunk(1, name="parse_args"), "args"),
        (chunk(1, "src/contest.py"), "open a file"),
        (chunk(1, "src/latest/file.py"), "open a door"),
        (chunk(1, "src/generator.py"), "open a file"),
        (chunk(1, "a/io.py"), "io"),
    ):
        assert order({1: 0.5}, [candidate], query, config) == {1: 0.5}, (candidate, query)


def test_the_best_of_a_file_with_several_hits_rises_once_for_each_other_up_to_three():
    config = PLAIN.model_copy(update={"several_factor": 2.0})
    chunks = [chunk(n, "one.py") for n in (1, 2, 3)] + [chunk(9, "two.py")]
    assert order({1: 1.0, 2: 0.9, 3: 0.8, 9: 3.0}, chunks, "x", config) == {1: 4.0, 9: 3.0, 2: 0.9, 3: 0.8}
    many = [chunk(n, "one.py") for n in range(10)]
    assert order(dict.fromkeys(range(10), 1.0), many, "x", config)[0] == 8.0


def test_at_most_two_of_a_file():
    chunks = [chunk(n, "one.py") for n in range(5)] + [chunk(9, "two.py")]
    scores = {n: 1.0 - n / 10 for n in range(5)} | {9: 0.1}
    two = PLAIN.model_copy(update={"per_file": 2})
    assert [one.number for one in rank(scores, chunks, "x", two)] == [0, 1, 9]
    assert [one.number for one in rank(scores, chunks, "x", two, per_file=0)] == [0, 1, 2, 3, 4, 9]


def test_of_a_unit_in_parts_the_best_part_is_kept_and_two_units_of_one_name_are_two():
    parts = [chunk(n, "one.py", part=n, parts=3) for n in range(3)]
    assert [one.number for one in rank({0: 0.1, 1: 0.9, 2: 0.5}, parts, "x", PLAIN)] == [1]
    overloads = [chunk(n, "one.py", line=n) for n in (1, 2)]
    assert [one.number for one in rank({1: 0.1, 2: 0.9}, overloads, "x", PLAIN)] == [2, 1]


def test_equal_scores_go_by_number_and_the_unscored_go():
    chunks = [chunk(n) for n in (4, 2, 3)]
    assert [one.number for one in rank({2: 0.5, 4: 0.5}, chunks, "x", PLAIN)] == [2, 4]


def test_factors_multiply():
    config = PLAIN.model_copy(update={"test_factor": 0.5, "trivial_factor": 0.25})
    both = chunk(1, "tests/a.py", trivial=True)
    assert order({1: 1.0}, [both], "x", config) == {1: 0.125}
