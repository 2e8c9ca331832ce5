"""Boxes and maps against counting pixels."""

import itertools

import numpy as np
import pytest

from mc_core.errors import DataError
from mc_vision_language.evaluation.boxes import (
    best_box,
    box_of_map,
    box_scores,
    centre_boxes,
    iou,
    points_inside,
)


def filled(box, side=12):
    mask = np.zeros((side, side), dtype=bool)
    x1, y1, x2, y2 = map(int, box)
    mask[y1:y2, x1:x2] = True
    return mask


def random_boxes(rng, count, side=12):
    low = rng.integers(0, side - 1, (count, 2))
    high = np.array([[rng.integers(a + 1, side + 1) for a in row] for row in low])
    return np.concatenate([low, high], 1)


def test_overlap_counts_pixels():
    rng = np.random.default_rng(0)
    boxes, others = random_boxes(rng, 8), random_boxes(rng, 9)
    expected = [[(filled(a) & filled(b)).sum() / (filled(a) | filled(b)).sum() for b in others] for a in boxes]
    np.testing.assert_allclose(iou(boxes, others), expected, atol=1e-12)
    np.testing.assert_allclose(iou(boxes, others), iou(others, boxes).T)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_score_of_a_proposal_is_its_sum_over_a_power_of_its_area(exponent):
    rng = np.random.default_rng(1)
    heat, boxes = rng.random((12, 12)), random_boxes(rng, 10)
    expected = [heat[filled(b)].sum() / filled(b).sum() ** exponent for b in boxes]
    np.testing.assert_allclose(box_scores(heat, boxes, exponent=exponent), expected, rtol=1e-9)
    assert best_box(heat, boxes, exponent=exponent) == int(np.argmax(expected))


def test_corners_are_cut_and_proposals_may_reach_out():
    heat = np.ones((4, 6))
    assert box_scores(heat, [[1.9, 0.9, 3.2, 2.0]]) == pytest.approx([4 / np.sqrt(1.3 * 1.1)])
    assert box_scores(heat, [[-5, -5, 100, 100]]) == pytest.approx([24 / 105])


def test_box_of_a_map_is_the_best_of_all_rectangles():
    rng = np.random.default_rng(2)
    heat = rng.random((6, 5)) ** 3
    cut = np.where(heat >= 0.5 * heat.max(), heat, 0)
    best = max(
        (
            (cut[y1:y2, x1:x2].sum() / np.sqrt((y2 - y1) * (x2 - x1)), (x1, y1, x2, y2))
            for y1, y2 in itertools.combinations(range(7), 2)
            for x1, x2 in itertools.combinations(range(6), 2)
        ),
    )
    assert box_of_map(heat).tolist() == list(map(float, best[1]))


def test_a_patch_of_a_large_map_is_found():
    heat = np.zeros((96, 160))
    heat[30:60, 40:100] = 0.7
    assert iou(box_of_map(heat), [[40, 30, 100, 60]])[0, 0] > 0.9
    assert box_of_map(np.zeros((5, 7))).tolist() == [0, 0, 7, 5]


def test_pointing_takes_the_warmest_pixel():
    heat = np.zeros((5, 8))
    heat[2, 6] = 1.0
    assert points_inside(heat, [6, 2, 7, 3])
    assert not points_inside(heat, [2, 6, 3, 7])


def test_box_in_the_middle():
    assert centre_boxes([10, 20], [10, 10], (0.5, 1.0)).tolist() == [[2.5, 0, 7.5, 10], [5, 0, 15, 10]]


@pytest.mark.parametrize("box", [[2, 2, 2, 5], [3, 3, 1, 5], [0, 0, np.nan, 2]])
def test_a_box_without_area_is_refused(box):
    with pytest.raises(DataError, match="has no area"):
        iou([box], [[0, 0, 1, 1]])
    with pytest.raises(DataError, match="no proposals"):
        best_box(np.ones((2, 2)), [])
