"""The memory of old samples: sizes, quotas, chances, and choices against loops by definition."""

import numpy as np
import pytest

from mc_core.continual.exemplars import herding, k_means_rows, proportional, quotas, reservoir
from mc_core.errors import ConfigError, DataError

NOTHING = np.zeros((0, 2), np.int64)


def filled(sizes, capacity, seed):
    held = NOTHING
    for task in range(len(sizes)):
        held = reservoir(held, sizes[: task + 1], capacity, seed=seed)
    return held


def test_reservoir_by_definition(monkeypatch):
    """The same draws, one sample after the other."""
    from mc_core.continual import exemplars

    draws = exemplars._places(np.arange(40), 3)
    places = []
    for ever, j in enumerate(draws.tolist()):
        row = [0, ever] if ever < 15 else [1, ever - 15]
        if ever < 6:
            places.append(row)
        elif j < 6:
            places[j] = row
    assert filled([15, 25], 6, seed=3).tolist() == places


def test_reservoir_draws_stay_in_range_and_reach_the_end():
    from mc_core.continual import exemplars

    draws = np.stack([exemplars._places(np.arange(5), seed) for seed in range(300)])
    assert (draws <= np.arange(5)).all()
    assert (draws.max(axis=0) == np.arange(5)).all()


def test_reservoir_is_fair():
    """Each of 30 samples of two tasks is held with the same chance: chi-square over 3,000 seeds."""
    counts = np.zeros(30)
    for seed in range(3000):
        held = filled([20, 10], 6, seed)
        counts[held[:, 0] * 20 + held[:, 1]] += 1
    expected = 3000 * 6 / 30
    chi = ((counts - expected) ** 2 / (expected * (1 - 6 / 30))).sum()
    assert chi < 58  # 29 degrees of freedom: exceeded once in a thousand


def test_reservoir_holds_no_sample_twice_and_only_what_was_seen():
    for seed in range(20):
        held = filled([7, 30, 4], 10, seed)
        assert len(held) == 10 == len(np.unique(held, axis=0))
        assert (held[:, 1] < np.array([7, 30, 4])[held[:, 0]]).all()
    assert len(filled([3, 4], 10, 0)) == 7


def test_reservoir_depends_on_its_seed():
    assert filled([50], 5, 0).tolist() == filled([50], 5, 0).tolist() != filled([50], 5, 1).tolist()


@pytest.mark.parametrize(
    ("sizes", "capacity", "shares"),
    [([60, 30, 10], 10, [6, 3, 1]), ([1, 1, 1], 2, [1, 1, 0]), ([5], 3, [3]), ([2, 3], 9, [2, 3]), ([4, 4], 0, [0, 0])],
)
def test_quotas(sizes, capacity, shares):
    assert quotas(sizes, capacity) == shares


def test_quotas_fill_the_memory_and_stay_within_a_place_of_the_proportion():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(1, 200, rng.integers(1, 9)).tolist()
        capacity = int(rng.integers(1, 300))
        shares = np.array(quotas(sizes, capacity))
        assert shares.sum() == min(capacity, sum(sizes))
        assert (shares <= sizes).all()
        exact = np.array(sizes) * min(capacity / sum(sizes), 1)
        assert (np.abs(shares - exact) < 1).all()


def test_older_tasks_keep_their_first_rows():
    held = proportional(NOTHING, [10], 6, lambda count: np.arange(9, 9 - count, -1))
    assert held.tolist() == [[0, row] for row in (9, 8, 7, 6, 5, 4)]
    held = proportional(held, [10, 20], 6, lambda count: np.arange(count))
    assert held.tolist() == [[0, 9], [0, 8], [1, 0], [1, 1], [1, 2], [1, 3]]


def test_a_choice_of_another_length_is_refused():
    with pytest.raises(DataError, match="3 rows chosen for 2 places"):
        proportional(NOTHING, [10], 2, lambda count: np.arange(3))


@pytest.mark.parametrize(
    "choose", [lambda h, s, c: reservoir(h, s, c, seed=0), lambda h, s, c: proportional(h, s, c, np.arange)]
)
def test_impossible_memories_are_refused(choose):
    with pytest.raises(ConfigError, match="a memory of 0 samples"):
        choose(NOTHING, [3], 0)
    with pytest.raises(DataError, match=r"shape \(0, 2\)"):
        choose(NOTHING, [3, 4], 5)


def naive_herding(x, count):
    mean, chosen = x.mean(0), []
    for _ in range(count):
        far = {}
        for i in range(len(x)):
            if i not in chosen:
                far[i] = np.linalg.norm(mean - x[[*chosen, i]].mean(0))
        chosen.append(min(far, key=lambda i: far[i]))
    return chosen


def test_herding_by_definition():
    x = np.random.default_rng(0).normal(size=(25, 4))
    assert herding(x, 12).tolist() == naive_herding(x, 12)


def test_herding_of_fewer_is_the_beginning_of_that_of_more():
    x = np.random.default_rng(1).normal(size=(30, 5))
    assert herding(x, 20)[:7].tolist() == herding(x, 7).tolist()
    assert sorted(herding(x, 30).tolist()) == list(range(30))


def test_herding_is_nearer_to_the_mean_than_chance():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 8))
    far = [np.linalg.norm(x[rng.permutation(200)[:10]].mean(0) - x.mean(0)) for _ in range(50)]
    assert np.linalg.norm(x[herding(x, 10)].mean(0) - x.mean(0)) < 0.5 * min(far)


def test_k_means_finds_a_row_of_each_cluster_the_largest_first():
    rng = np.random.default_rng(0)
    sizes, centres = [5, 40, 15], np.eye(3) * 20
    x = np.concatenate([centre + rng.normal(size=(size, 3)) for centre, size in zip(centres, sizes, strict=True)])
    label = np.repeat([0, 1, 2], sizes)
    for seed in range(5):
        rows = k_means_rows(x, 3, seed=seed)
        assert label[rows].tolist() == [1, 2, 0]
        for row in rows:
            own = x[label == label[row]]
            assert np.linalg.norm(x[row] - own.mean(0)) == pytest.approx(
                np.linalg.norm(own - own.mean(0), axis=1).min()
            )


def test_k_means_takes_no_row_twice():
    x = np.repeat(np.eye(2), 5, axis=0)  # two different rows, seven wanted
    rows = k_means_rows(x, 7, seed=0)
    assert len(set(rows.tolist())) == 7
    assert k_means_rows(x, 0, seed=0).tolist() == []


def test_k_means_depends_on_its_seed_alone():
    x = np.random.default_rng(3).normal(size=(60, 4))
    assert k_means_rows(x, 9, seed=1).tolist() == k_means_rows(x, 9, seed=1).tolist()


@pytest.mark.parametrize("choose", [herding, lambda x, count: k_means_rows(x, count, seed=0)])
def test_more_rows_than_there_are_is_refused(choose):
    with pytest.raises(DataError, match="4 rows of features"):
        choose(np.eye(3), 4)
