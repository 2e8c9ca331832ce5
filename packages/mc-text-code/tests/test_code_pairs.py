"""Pairs: near-duplicates against a naive count, splits that share nothing, names hidden."""

from __future__ import annotations

import random
import re
from itertools import combinations

import numpy as np
import pytest

from mc_core.errors import ConfigError, DataError
from mc_text_code.data.code_pairs import CodePair, hide_name, require_pairs, split_pairs
from mc_text_code.data.near_duplicates import near_duplicates, shingles

TOKEN = re.compile(r"[0-9A-Za-z_\u0080-\U0010ffff]+|\S")


def naive_shingles(text: str) -> set[tuple[str, ...]]:
    words = TOKEN.findall(text)
    return {tuple(words[n : n + 5]) for n in range(max(1, len(words) - 4))} if words else set()


def naive_overlap(a: str, b: str) -> float:
    one, two = naive_shingles(a), naive_shingles(b)
    return len(one & two) / len(one | two) if one | two else 0.0


def texts(count: int, seed: int, changes: int) -> list[str]:
    """Random code, each followed by copies with some tokens changed."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        words = [
            rng.choice(["alpha", "beta", "x", "größe", "(", ")", "=", "+", "42", "call_it"])
            for _ in range(rng.randrange(30, 150))
        ]
        found.append(" ".join(words))
        for _ in range(rng.randrange(3)):
            copy = list(words)
            for _ in range(rng.randrange(changes)):
                copy[rng.randrange(len(copy))] = rng.choice(["other", "y", "-"])
            found.append(rng.choice([" ", "\n", "  "]).join(copy))
    return found


def test_shingles_are_those_of_a_naive_count():
    given = [*texts(40, 0, 5), "", "  \n", "one", "a b c d", "a b c d e", "größe=1", "x" * 5_000]
    hashes, begins = shingles(given)
    naive = [naive_shingles(text) for text in given]
    assert np.diff(begins).tolist() == [len(some) for some in naive]
    for a, b in combinations(range(len(given)), 2):
        ours = np.intersect1d(hashes[begins[a] : begins[a + 1]], hashes[begins[b] : begins[b + 1]])
        assert len(ours) == len(naive[a] & naive[b])


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.95, 1.0])
def test_near_duplicates_are_those_of_a_naive_search(threshold):
    given = texts(60, 1, 6)
    kept: list[int] = []
    for row, text in enumerate(given):
        if not any(naive_overlap(text, given[other]) >= threshold for other in kept):
            kept.append(row)
    found = near_duplicates(given, threshold=threshold)
    assert np.flatnonzero(found < 0).tolist() == kept
    for row in np.flatnonzero(found >= 0):
        assert found[row] < row
        assert found[found[row]] == -1  # what it repeats was kept
        assert naive_overlap(given[row], given[found[row]]) >= threshold


def test_the_threshold_is_reached_exactly():
    """18 words make 14 shingles; a changed last word leaves 13 of 15."""
    words = [f"w{n}" for n in range(18)]
    pair = [" ".join(words), " ".join([*words[:-1], "other"])]
    assert naive_overlap(*pair) == 13 / 15
    assert near_duplicates(pair, threshold=13 / 15).tolist() == [-1, 0]
    assert near_duplicates(pair, threshold=13 / 15 + 1e-9).tolist() == [-1, -1]


def test_white_space_and_empty_texts():
    assert near_duplicates(["a = b", "", "a=b", "\n", ""]).tolist() == [-1, -1, 0, -1, -1]
    assert near_duplicates([]).tolist() == []
    with pytest.raises(ConfigError, match="threshold=0.3: near-duplicates are found from above 0.5 up to 1"):
        near_duplicates(["a"], threshold=0.3)


def test_known_texts_come_first_and_are_never_compared_with_each_other():
    known = ["a b c d e f", "a b c d e f"]
    assert near_duplicates(["a b c d e f", "x y", "x  y"], known=known).tolist() == [-2, -1, 1]
    words = [f"w{n}" for n in range(60)]
    chain = [" ".join(words[n : n + 50]) for n in (0, 4, 8)]  # each like the next, the first not like the last
    assert near_duplicates(chain).tolist() == [-1, 0, -1]
    assert near_duplicates(chain[2:], known=chain[:2]).tolist() == [-3]


def test_blocks_do_not_change_the_result(monkeypatch):
    from mc_text_code.data import near_duplicates as module

    given = texts(50, 2, 5)
    whole = near_duplicates(given)
    monkeypatch.setattr(module, "_BLOCK", 300)
    monkeypatch.setattr(module, "_HASHES", 50)
    assert (near_duplicates(given) == whole).all()
    assert (whole >= 0).sum() > 5


def pairs(groups: dict[str, int], **given) -> list[CodePair]:
    found = []
    for name, size in groups.items():
        for number in range(size):
            code = " ".join(f"{name}_{number}_{word}" for word in range(12))
            found.append(CodePair(f"question {number}", code, package=name, path=f"{name}/{number // 3}.py", **given))
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("by", ["package", "file", None])
def test_parts_share_no_group(seed, by):
    sizes = random.Random(seed)
    given = pairs({f"p{n}": sizes.randrange(1, 30) for n in range(40)})
    split = split_pairs(given, by=by, seed=seed)
    level = by or "package"  # one repository only
    assert split.by == level
    parts = {"train": split.train, "valid": split.valid, "test": split.test}
    for a, b in combinations(parts, 2):
        assert not {pair.group(level) for pair in parts[a]} & {pair.group(level) for pair in parts[b]}
    assert sorted(map(repr, [*split.train, *split.valid, *split.test])) == sorted(map(repr, given))
    for part in ("valid", "test"):
        assert 0.05 * len(given) <= len(parts[part]) <= 0.1 * len(given) + 1
    assert split.groups == {name: len({pair.group(level) for pair in part}) for name, part in parts.items()}
    again = split_pairs(list(reversed(given)), by=by, seed=seed)  # the order of the pairs does not matter
    assert {pair.group(level) for pair in again.test} == {pair.group(level) for pair in split.test}


def test_the_draw_depends_on_the_seed_alone():
    given = pairs({f"p{n}": 5 for n in range(40)})
    assert split_pairs(given, seed=1).test == split_pairs(given, seed=1).test
    assert split_pairs(given, seed=1).test != split_pairs(given, seed=2).test


def test_repositories_stay_together_where_there_are_enough():
    given = [pair for n in range(20) for pair in pairs({"a": 2, "b": 3}, repository=f"r{n}")]
    split = split_pairs(given, threshold=None)
    assert split.by == "repository"
    assert split_pairs(pairs({"only": 90}), test=0.2).by == "file"


def test_what_is_too_large_is_trained_on():
    split = split_pairs(pairs({"big": 500, **{f"p{n}": 5 for n in range(30)}}))
    assert {pair.package for pair in split.train} >= {"big"}
    with pytest.raises(DataError, match="no package is small enough for a part of 10% of 1,500 pairs; split by file"):
        split_pairs(pairs({"a": 500, "b": 500, "c": 500}), by="package")
    with pytest.raises(DataError, match="10 pairs of 2 packages: three or more are needed"):
        split_pairs(pairs({"a": 5, "b": 5}), by="package")
    with pytest.raises(ConfigError, match="valid=0.5, test=0.6: give shares between 0 and 1"):
        split_pairs(pairs({"a": 5}), valid=0.5, test=0.6)


def test_near_duplicates_do_not_cross_the_boundary():
    given = pairs({f"p{n}": 5 for n in range(40)})
    copied = [CodePair("copy", f"{pair.code} extra", package=f"q{n % 40}") for n, pair in enumerate(given)]
    split = split_pairs([*given, *copied], seed=3)
    for a, b in ((split.train, split.test), (split.train, split.valid), (split.valid, split.test)):
        both = [pair.code for pair in b]
        assert (near_duplicates([pair.code for pair in a], known=both) >= -1).all()
    assert split.near_duplicates > 10
    left = len(split.train) + len(split.valid) + len(split.test)
    assert left + split.near_duplicates == 400
    twice = split_pairs([*given, *given], seed=3)
    assert twice.near_duplicates == 0  # copies within a part are the miner's business
    kept = split_pairs([*given, *copied], seed=3, threshold=None)
    assert kept.near_duplicates == 0
    assert kept.test == split.test  # the test is what it was: only what is trained on gives way


def test_too_few_pairs_are_told():
    require_pairs([CodePair("a", "b")] * 3, 3)
    with pytest.raises(DataError, match="src: 3 documented functions to measure with, 1,000 are needed; document more"):
        require_pairs([CodePair("a", "b")] * 3, 1000, what="measure with", source="src")


@pytest.mark.parametrize(
    ("code", "name", "hidden"),
    [
        ("def f(x): return f(x) + ff(f_) + o.f", "f", "def T(x): return T(x) + ff(f_) + o.T"),
        ("def ==(o)\n  a == o", "==", "def T(o)\n  a T o"),
        ("$('#x').$on = 1", "$on", "$('#x').T = 1"),
        ("größe größer", "größe", "T größer"),
        ("a \\d", "", "a \\d"),
        (r"f(\1)", "f", r"T(\1)"),
    ],
)
def test_names_are_hidden(code, name, hidden):
    assert hide_name(code, name, "T") == hidden
    assert hide_name("f", "f", r"\1<t:identifier>") == r"\1<t:identifier>"
