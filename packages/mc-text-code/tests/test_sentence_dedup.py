"""Near duplicates: every pair looked at, against naive loops for both kinds of groups, whatever the blocks and the bound."""

import tracemalloc

import numpy as np
import pytest
import torch

from mc_core.errors import ConfigError, DataError
from mc_text_code import dedup as dedup_module
from mc_text_code import find_duplicates
from mc_text_code.dedup import Duplicates, _Comparison, near_duplicates


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clusters(count=400, dim=40, each=4, noise=0.25, seed=0, common=0.0):
    """Rows around random centres, in random order, all with a common part."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(-(-count // each), dim)).repeat(each, axis=0)[:count]
    rows = rows + noise * rng.normal(size=rows.shape) + common
    return rng.permutation(rows).astype(np.float32)


def first_by_loop(rows, threshold):
    kept, stands_for, cosine = [], np.arange(len(rows)), np.ones(len(rows))
    for i, row in enumerate(rows):
        near = [(row @ rows[j], -j) for j in kept if row @ rows[j] >= threshold]
        if near:
            cosine[i], place = max(near)
            stands_for[i] = -place
        else:
            kept.append(i)
    return stands_for, cosine


def chain_by_loop(rows, threshold):
    stands_for = np.arange(len(rows))
    near = rows @ rows.T >= threshold
    for i in range(len(rows)):
        for j in range(i):
            if near[i, j]:
                one, other = stands_for[i], stands_for[j]
                stands_for[stands_for == max(one, other)] = min(one, other)
    return stands_for


DATA = {
    "clusters": clusters(),
    "a common part": clusters(common=1.0),
    "few dimensions": clusters(dim=3, noise=0.1),
    "wide": clusters(dim=200),
    "one direction": clusters(count=130, dim=40, each=130, noise=0.1),
}


@pytest.fixture(params=[(16, 16), (64, 37), (1024, 1024)], ids=str)
def tile(request, monkeypatch):
    monkeypatch.setattr(dedup_module, "_ROWS", request.param[0])
    monkeypatch.setattr(dedup_module, "_COLUMNS", request.param[1])
    monkeypatch.setattr(dedup_module, "_EDGES", 50)
    return request.param


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_groups_are_those_of_naive_loops(tile, name, threshold):
    rows = unit(DATA[name])
    found, cosine = near_duplicates(DATA[name] * 3, threshold=threshold)
    expected, expected_cosine = first_by_loop(rows, threshold)
    assert (found == expected).all()
    assert cosine == pytest.approx(expected_cosine, abs=1e-5)
    chained, cosine = near_duplicates(DATA[name], threshold=threshold, linkage="chain")
    assert (chained == chain_by_loop(rows, threshold)).all()
    apart = chained != np.arange(len(rows))
    assert cosine[apart] == pytest.approx((rows[apart] * rows[chained[apart]]).sum(1), abs=1e-5)
    assert (cosine[~apart] == 1).all()


def test_what_stays_and_what_goes(tile):
    rows = unit(clusters(seed=3))
    found, _ = near_duplicates(rows, threshold=0.85)
    kept = np.flatnonzero(found == np.arange(len(rows)))
    among = rows[kept] @ rows[kept].T - np.eye(len(kept))
    assert among.max() < 0.85  # no two that stay are near
    gone = np.flatnonzero(found != np.arange(len(rows)))
    assert ((rows[gone] * rows[found[gone]]).sum(1) >= 0.85 - 1e-6).all()
    assert (found[gone] < gone).all()
    assert np.isin(found, kept).all()


def test_a_chain_joins_ends_that_have_little_in_common():
    angles = np.deg2rad(np.arange(0, 181, 15))
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    chained, cosine = near_duplicates(rows, threshold=0.95, linkage="chain")
    assert (chained == 0).all()
    assert cosine[-1] == pytest.approx(-1)
    found, _ = near_duplicates(rows, threshold=0.95)
    assert found.tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12]


def test_the_most_similar_kept_sentence_stands_for_one():
    rows = np.array([[1.0, 0], [0.8, 0.6], [0.97, 0.243]])
    assert near_duplicates(rows, threshold=0.9)[0].tolist() == [0, 1, 0]
    assert near_duplicates(rows[[1, 0, 2]], threshold=0.9)[0].tolist() == [0, 1, 1]


@pytest.mark.parametrize("common", [0.0, 2.0])
@pytest.mark.parametrize("threshold", [0.6, 0.9, 0.99])
def test_the_bound_is_above_every_cosine_and_misses_no_pair(monkeypatch, common, threshold):
    monkeypatch.setattr(dedup_module, "_ROWS", 128)
    monkeypatch.setattr(dedup_module, "_RARE", 1.0)  # take the coarsest bound
    rows = torch.from_numpy(unit(clusters(1000, 64, each=5, noise=0.2, common=common)).astype(np.float32))
    comparison = _Comparison(rows, threshold)
    assert comparison.bound_NM is not None
    assert comparison.bound_NM.shape == (1000, 16)
    exact = rows.double() @ rows.double().T
    assert ((comparison.bound_NM @ comparison.bound_NM.T).double() - exact).min() > -1e-5
    places = torch.arange(1000)
    for dense in (0.0, 1.0):  # all cosines of a tile, or those that the bound leaves open
        monkeypatch.setattr(dedup_module, "_DENSE", dense)
        row, column, cosine = comparison.pairs(places[100:700], places[50:900])
        expected = exact[100:700, 50:900]
        wanted = expected >= threshold
        borderline = (expected - threshold).abs() < 1e-6
        found = torch.zeros_like(wanted)
        found[row, column] = True
        assert bool((found == wanted)[~borderline].all())
        assert cosine == pytest.approx(expected[row, column].numpy(), abs=1e-5)


def test_the_bound_is_used_where_it_pays_and_only_there(monkeypatch):
    rng = np.random.default_rng(0)
    spread = torch.from_numpy(unit(rng.normal(size=(3000, 128))).astype(np.float32))
    assert _Comparison(spread, 0.95).bound_NM.shape[1] <= 48
    assert _Comparison(spread, 0.3).bound_NM is None
    assert _Comparison(spread[:500], 0.95).bound_NM is None
    assert _Comparison(torch.from_numpy(unit(clusters(3000, 20))), 0.95).bound_NM is None


@pytest.mark.parametrize("linkage", ["first", "chain"])
def test_equal_vectors_reach_a_threshold_of_one(linkage):
    rows = clusters(60, 96)
    twice = np.concatenate([rows, rows[::-1] * 7])
    found, cosine = near_duplicates(twice, threshold=1.0, linkage=linkage)
    assert found.tolist() == [*range(60), *range(59, -1, -1)]
    assert cosine.max() <= 1
    alike, _ = near_duplicates(np.ones((3000, 5)), threshold=1.0, linkage=linkage)
    assert (alike == 0).all()


def test_vectors_of_zeros_are_near_nothing():
    rows = np.array([[0.0, 0], [1, 0], [0, 0], [1, 0]])
    for linkage in ("first", "chain"):
        assert near_duplicates(rows, threshold=0.1, linkage=linkage)[0].tolist() == [0, 1, 2, 1]


def letters(texts):
    return np.array([[text.count(c) for c in "abcd"] for text in texts], dtype=float)


def test_equal_texts_are_found_without_an_encoder():
    found = find_duplicates(["a b", "c", " a  b ", "a b", "A b", "c"])
    assert found.stands_for.tolist() == [0, 1, 0, 0, 4, 1]
    assert found.exact.tolist() == [False, False, True, True, False, True]
    assert found.kept.tolist() == [0, 1, 4]
    assert [rows.tolist() for rows in found.groups()] == [[0, 2, 3], [1, 5]]
    assert found.similarity.tolist() == [1] * 6
    assert found.to_dict() == {"sentences": 6, "kept": 3, "equal": 3, "near": 0, "groups": 2, "threshold": None}


def test_equal_texts_follow_the_one_that_stands_for_them():
    asked = []

    def encode(texts):
        asked.extend(texts)
        return letters(texts)

    texts = ["aab", "cd", "aaab", "aaab", "cd", "d", "aab"]
    found = find_duplicates(texts, encode, threshold=0.97)
    assert asked == ["aab", "cd", "aaab", "d"]
    assert found.stands_for.tolist() == [0, 1, 0, 0, 1, 5, 0]
    cosine = 7 / np.sqrt(5 * 10)
    assert found.similarity == pytest.approx([1, 1, cosine, cosine, 1, 1, 1])
    assert found.exact.tolist() == [False, False, False, True, True, False, True]
    assert found.to_dict() == {"sentences": 7, "kept": 3, "equal": 3, "near": 1, "groups": 2, "threshold": 0.97}
    assert [rows.tolist() for rows in found.groups()] == [[0, 2, 3, 6], [1, 4]]


def test_without_duplicates_there_are_no_groups():
    found = find_duplicates(["a", "b", "c"], letters, threshold=0.9)
    assert isinstance(found, Duplicates)
    assert found.groups() == []
    assert found.kept.tolist() == [0, 1, 2]
    assert find_duplicates(["a"], letters).groups() == []


def test_progress_goes_to_one(tile):
    for linkage in ("first", "chain"):
        told = []
        near_duplicates(clusters(100), threshold=0.9, linkage=linkage, progress=told.append)
        assert told == sorted(told)
        assert told[-1] == 1


def test_bad_input_is_one_line():
    with pytest.raises(ConfigError, match="threshold 1.5 must be a cosine"):
        find_duplicates(["a"], letters, threshold=1.5)
    with pytest.raises(ConfigError, match="linkage 'best'"):
        find_duplicates(["a"], letters, linkage="best")
    with pytest.raises(DataError, match="no sentences"):
        find_duplicates([])
    with pytest.raises(DataError, match="sentence 2 has NaN"):
        find_duplicates(["a", "b"], lambda texts: np.array([[1.0], [np.nan]]))


def test_memory_does_not_grow_with_the_number_of_pairs(monkeypatch):
    """All 18 million pairs of a collapsed encoder are near: none of them may be kept."""
    rows = np.ones((6000, 8), dtype=np.float32)
    for linkage in ("first", "chain"):
        tracemalloc.start()
        near_duplicates(rows, threshold=0.9, linkage=linkage)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 120e6, linkage
