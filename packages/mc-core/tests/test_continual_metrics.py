"""Figures of a sequence of tasks: by hand, against loops by definition, and in their limits."""

import math

import numpy as np
import pytest

from mc_core.continual.metrics import SequenceScores, average_precision, class_precision, forgetting
from mc_core.errors import ConfigError, DataError

NAN = np.nan


def scores():
    own = np.array([[0.9, NAN, NAN], [0.6, 0.8, NAN], [0.5, 0.7, 0.95]])
    union = np.array([[0.9, NAN, NAN], [0.5, 0.7, NAN], [0.4, 0.45, 0.6]])
    return SequenceScores(own, union)


def test_figures_by_hand():
    found = scores()
    assert found.after_each.tolist() == [0.9, 0.7, 0.6]
    assert found.at_the_end.tolist() == [0.4, 0.45, 0.6]
    assert found.forgetting == pytest.approx(((0.9 - 0.4) + (0.7 - 0.45)) / 2, abs=1e-12)
    assert found.plasticity == pytest.approx((0.9 + 0.8 + 0.95) / 3)
    assert found.backward_transfer == pytest.approx(((0.5 - 0.9) + (0.7 - 0.8)) / 2)
    assert found.average == pytest.approx((0.5 + 0.7 + 0.95) / 3)
    assert found.last == 0.6


def test_a_frozen_model_forgets_nothing():
    figures = [0.7, 0.4, 0.3]
    assert forgetting(figures, figures) == 0
    assert forgetting([0.5, 0.4], [0.9, 0.4]) < 0  # improved later


def test_one_task_has_nothing_to_forget():
    found = SequenceScores(np.array([[0.5]]), np.array([[0.5]]))
    assert (found.forgetting, found.backward_transfer, found.plasticity) == (0.0, 0.0, 0.5)


def test_what_was_not_measured_is_null():
    content = scores().to_dict()
    assert content["R"][0] == [0.9, None, None]
    assert content["A"] == [0.9, 0.7, 0.6]
    joint = SequenceScores(np.full((2, 2), NAN), np.array([[NAN, NAN], [0.5, 0.6]]))
    assert joint.to_dict()["forgetting"] is None
    assert joint.to_dict()["last"] == 0.6


@pytest.mark.parametrize(("own", "union"), [((2, 3), (2, 3)), ((2, 2), (3, 3)), ((0, 0), (0, 0)), ((2,), (2,))])
def test_other_shapes_are_refused(own, union):
    with pytest.raises(DataError, match="square matrices"):
        SequenceScores(np.zeros(own), np.zeros(union))


def test_forgetting_needs_one_figure_of_each_task():
    with pytest.raises(DataError, match="one of each task"):
        forgetting([0.5, 0.4], [0.5])


def naive_ap(hits, relevant, n):
    looked = min(n, relevant, len(hits))
    right, total = 0, 0.0
    for place in range(looked):
        if hits[place]:
            right += 1
            total += right / (place + 1)
    return (total / right if right else 0.0), total / min(n, relevant)


def test_average_precision_by_definition():
    rng = np.random.default_rng(0)
    hits, relevant = rng.random((50, 12)) < 0.3, rng.integers(1, 30, 50)
    for n in (1, 5, 10, 12):
        found, standard = average_precision(hits, relevant, n)
        expected = [naive_ap(row, count, n) for row, count in zip(hits[:, :n], relevant, strict=True)]
        np.testing.assert_allclose(np.stack([found, standard], 1), expected, atol=1e-12)


def test_one_hit_at_the_top_is_all_that_was_found():
    hits = np.zeros((1, 10), dtype=bool)
    hits[0, 0] = True
    found, standard = average_precision(hits, np.array([50]), 10)
    assert found[0] == 1.0
    assert standard[0] == pytest.approx(0.1)
    found, standard = average_precision(hits, np.array([50]), 1)
    assert found[0] == standard[0] == 1.0  # at 1 both are plain precision


def test_average_precision_needs_a_place():
    with pytest.raises(ConfigError, match="n=0"):
        average_precision(np.zeros((1, 1), dtype=bool), np.array([1]), 0)


def naive_class_precision(x, classes, ids, n):
    each = []
    for q in range(len(x)):
        others = [g for g in range(len(x)) if ids[g] != ids[q]]
        relevant = sum(classes[g] == classes[q] for g in others)
        if relevant:
            ranked = sorted(others, key=lambda g: -float(x[q] @ x[g]))
            each.append(naive_ap([classes[g] == classes[q] for g in ranked[:n]], relevant, n))
    return np.mean(each, axis=0)


@pytest.mark.parametrize("block", [1, 1 << 24])
def test_class_precision_by_definition(monkeypatch, block):
    monkeypatch.setattr("mc_core.continual.metrics._BLOCK", block)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    classes, ids = rng.integers(0, 9, 40).astype(str), np.arange(40) // 2
    found = class_precision(x, x, classes, classes, query_ids=ids, gallery_ids=ids)
    for n in (1, 5, 10):
        expected = naive_class_precision(x, classes, ids, n)
        np.testing.assert_allclose([found.found[n], found.standard[n]], expected, atol=1e-12)
    assert found.found[1] == found.standard[1]


def test_the_query_itself_is_no_candidate():
    x = np.eye(4)
    classes = np.array(["a", "a", "b", "c"])
    with_ids = class_precision(x, x, classes, classes, query_ids=np.arange(4), gallery_ids=np.arange(4))
    assert with_ids.queries == 2
    assert with_ids.without == 2
    assert class_precision(x, x, classes, classes).found[1] == 1.0


def test_order_of_the_gallery_does_not_matter():
    rng = np.random.default_rng(2)
    x, classes = rng.normal(size=(30, 5)), rng.integers(0, 4, 30)
    queries, mine = rng.normal(size=(7, 5)), rng.integers(0, 4, 7)
    order = rng.permutation(30)
    assert class_precision(queries, x, mine, classes) == class_precision(queries, x[order], mine, classes[order])


def test_nothing_to_find_is_no_number():
    found = class_precision(np.eye(2), np.eye(2), np.array([0, 0]), np.array([1, 1]))
    assert found.queries == 0
    assert math.isnan(found.found[1])
    assert found.to_dict()["map"]["@1"] is None


def test_features_that_cannot_be_ranked_are_refused():
    with pytest.raises(DataError, match="1 queries and 2 candidates"):
        class_precision(np.eye(2)[:1], np.eye(2), np.array([0, 1]), np.array([0, 1]))
    with pytest.raises(DataError, match="NaN"):
        class_precision(np.full((1, 2), NAN), np.eye(2), np.array([0]), np.array([0, 1]))
