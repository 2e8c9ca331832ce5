"""Scores against naive definitions: counts, boundaries, objects, thresholds; and that they add up over windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.errors import DataError
from mc_remote_sensing.evaluation import (
    STEPS,
    BoundaryCounts,
    Confusion,
    Histogram,
    boundary_counts,
    choose_threshold,
    histogram_of,
    objects_found,
    score,
)


def draw(seed, shape=(23, 31)):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 0, 1, 255], size=shape).astype(np.uint8)
    probability = np.clip(rng.random(shape) * 0.7 + 0.3 * (labels == 1), 0, 1)
    return probability, labels


def naive(probability, labels, threshold):
    tp = fp = fn = tn = 0
    for p, y in zip(probability.ravel(), labels.ravel(), strict=True):
        if y == 255:
            continue
        if p >= threshold:
            tp, fp = tp + (y == 1), fp + (y == 0)
        else:
            fn, tn = fn + (y == 1), tn + (y == 0)
    return Confusion(tp, fp, fn, tn)


@pytest.mark.parametrize("threshold", [0.001, 0.25, 0.5, 0.731, 1.0])
def test_counts_at_any_step_equal_a_loop(threshold):
    probability, labels = draw(0)
    probability = np.round(probability, 4)
    histogram = Histogram()
    histogram.add(probability, labels)
    assert histogram.confusion(threshold) == naive(probability, labels, threshold)


def test_ratios_of_the_confusion():
    c = Confusion(30, 10, 20, 940)
    assert c.iou == pytest.approx(30 / 60)
    assert c.f1 == pytest.approx(2 * c.iou / (1 + c.iou))
    assert c.f1 == pytest.approx(2 * c.precision * c.recall / (c.precision + c.recall))
    assert c.background_iou == pytest.approx(940 / 970)
    assert c.mean_iou == pytest.approx((c.iou + c.background_iou) / 2)
    assert np.isnan(Confusion(0, 0, 0, 5).iou)


def test_scores_over_windows_are_those_of_all_pixels_together_and_not_their_mean():
    windows = [draw(1), draw(2), (np.full((5, 5), 0.2), np.zeros((5, 5), np.uint8))]
    pooled = score(windows, 0.5).to_dict()["iou"]
    all_p, all_y = (np.concatenate([w[k].ravel() for w in windows]) for k in (0, 1))
    assert pooled == pytest.approx(naive(all_p, all_y, 0.5).iou)


def test_the_curve_equals_the_counts_at_each_threshold():
    histogram = histogram_of([draw(3)])
    thresholds, precision, recall = histogram.curve()
    assert (np.diff(thresholds) < 0).all()
    assert recall[-1] == 1
    for i in range(0, len(thresholds), 97):
        c = histogram.confusion(thresholds[i])
        assert (precision[i], recall[i]) == pytest.approx((c.precision, c.recall))


def test_average_precision_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    probability, labels = draw(4)
    probability = np.floor(probability * STEPS) / STEPS
    known = labels != 255
    expected = metrics.average_precision_score(labels[known], probability[known])
    assert histogram_of([(probability, labels)]).average_precision() == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_no_step_beats_the_chosen_threshold(seed):
    histogram = histogram_of([draw(seed, (9, 9))])
    if not histogram.counts[1].sum():
        with pytest.raises(DataError, match="no target"):
            choose_threshold(histogram)
        return
    best = histogram.confusion(choose_threshold(histogram)).f1
    assert best == pytest.approx(max(histogram.confusion(k / STEPS).f1 for k in range(1, STEPS + 1)))


def test_of_equal_thresholds_the_one_nearest_a_half_and_never_zero():
    histogram = histogram_of([(np.array([0.9, 0.95]), np.array([1, 1]))])
    assert choose_threshold(histogram) == 0.5
    everywhere = histogram_of([(np.zeros(4), np.array([1, 1, 1, 0]))])
    assert choose_threshold(everywhere) > 0


def naive_boundary(predicted, labels, tolerance):
    known = labels != 255
    h, w = labels.shape

    def edge(inside, outside):
        found = []
        for r in range(h):
            for c in range(w):
                beside = [(r + dr, c + dc) for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))]
                if inside[r, c] and any(0 <= a < h and 0 <= b < w and outside[a, b] for a, b in beside):
                    found.append((r, c))
        return found

    mine, true = edge(predicted & known, ~predicted & known), edge(labels == 1, labels == 0)

    def near(a, others):
        return any((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 <= tolerance**2 for b in others)

    return BoundaryCounts(len(mine), sum(near(a, true) for a in mine), len(true), sum(near(a, mine) for a in true))


@pytest.mark.parametrize("tolerance", [0, 1, 3])
def test_boundaries_equal_a_loop(tolerance):
    rng = np.random.default_rng(5)
    labels = np.zeros((20, 24), np.uint8)
    labels[4:12, 5:14] = 1
    labels[15:, :4] = 255
    predicted = np.zeros((20, 24), bool)
    predicted[6:15, 3:12] = True
    predicted |= rng.random((20, 24)) < 0.02
    assert boundary_counts(predicted, labels, tolerance=tolerance) == naive_boundary(predicted, labels, tolerance)


def test_a_boundary_beside_ignored_pixels_is_none():
    labels = np.ones((6, 6), np.uint8)
    labels[:, 3:] = 255
    assert boundary_counts(labels == 1, labels) == BoundaryCounts(0, 0, 0, 0)


def test_a_shift_within_the_tolerance_costs_nothing_and_beyond_it_does():
    labels = np.zeros((40, 40), np.uint8)
    labels[10:20, 10:20] = 1
    for shift, expected in ((0, 1.0), (3, 1.0)):
        assert boundary_counts(np.roll(labels, shift, 1) == 1, labels).f1 == expected
    assert boundary_counts(np.roll(labels, 8, 1) == 1, labels).f1 < 0.6
    assert boundary_counts(np.zeros_like(labels, bool), labels).f1 == 0


def test_an_object_is_found_from_half_of_its_pixels_on():
    labels = np.zeros((10, 20), np.uint8)
    labels[1:3, 1:3] = 1  # 4 pixels, 2 mapped
    labels[3, 3] = 1  # touches at a corner: 5 pixels
    labels[6:8, 6:8] = 1
    predicted = np.zeros((10, 20), bool)
    predicted[1, 1:3] = True
    predicted[6, 6:8] = True
    assert objects_found(predicted, labels) == (1, 2)
    predicted[3, 3] = True
    assert objects_found(predicted, labels) == (2, 2)
    assert objects_found(predicted, np.zeros_like(labels)) == (0, 0)


def test_whole_scene_scores_do_not_depend_on_how_it_is_cut_into_windows():
    probability, labels = draw(7, (40, 40))
    whole = score([(probability, labels)], 0.5).to_dict()
    halves = score([(probability[:20], labels[:20]), (probability[20:], labels[20:])], 0.5).to_dict()
    for name in ("iou", "mean_iou", "precision", "recall", "f1", "average_precision"):
        assert whole[name] == pytest.approx(halves[name])
