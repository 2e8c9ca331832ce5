"""Average precision, mean IoU and labels against closed forms, loops and other implementations."""

import importlib.util

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from mc_core.errors import ConfigError, MissingDependencyError
from mc_vision_language.experts.evaluating import (
    BoxTable,
    PixelCounts,
    average_precision,
    detection_scores,
    label_scores,
)

OFFICIAL = importlib.util.find_spec("pycocotools") is not None


def tables(seed, pictures=12, classes=4, most=7, crowds=0.2, ties=False):
    """Found boxes that are noisy copies of true ones, and strays."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.05, 0.5, (pictures, most, 2))
    centre = size / 2 + rng.uniform(0, 1, size.shape) * (1 - size)
    boxes = np.concatenate([centre, size], 2)
    labels = rng.integers(-1, classes, (pictures, most))
    there = BoxTable.of(boxes, labels, crowd=rng.random(labels.shape) < crowds)
    copies = np.concatenate([boxes, boxes, boxes[::-1]], 1)
    copies = copies + rng.normal(0, 0.02, copies.shape)
    copies[..., 2:] = copies[..., 2:].clip(0.02)
    said = np.concatenate([labels, rng.permutation(labels), labels[::-1]], 1)
    scores = rng.random(said.shape).round(1 if ties else 6)
    return BoxTable.of(copies, said, scores), there


@pytest.mark.skipif(not OFFICIAL, reason="pycocotools is not installed")
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("crowds", [0.0, 0.3])
def test_average_precision_is_that_of_pycocotools(seed, crowds):
    found, there = tables(seed, crowds=crowds, ties=seed % 2 == 1)
    own = detection_scores(found, there, backend="own")
    official = detection_scores(found, there, backend="pycocotools")
    assert own.ap == pytest.approx(official.ap, abs=1e-12)
    assert own.ap50 == pytest.approx(official.ap50, abs=1e-12)
    assert own.per_class == pytest.approx(official.per_class, abs=1e-12)
    assert 0.05 < own.ap < 0.95


@pytest.mark.skipif(not OFFICIAL, reason="pycocotools is not installed")
def test_more_than_a_hundred_boxes_of_a_picture_count_alike():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0.2, 0.6, (2, 150, 4))
    found = BoxTable.of(boxes, np.zeros((2, 150), int), rng.random((2, 150)))
    there = BoxTable.of(boxes[:, ::10], np.zeros((2, 15), int))
    own, official = (detection_scores(found, there, backend=name) for name in ("own", "pycocotools"))
    assert own.ap == pytest.approx(official.ap, abs=1e-12)


@pytest.mark.skipif(OFFICIAL, reason="pycocotools is installed")
def test_asking_for_pycocotools_names_the_extra():
    found, there = tables(0)
    with pytest.raises(MissingDependencyError, match=r"mc-vision-language\[metrics\]"):
        detection_scores(found, there, backend="pycocotools")
    assert detection_scores(found, there) == detection_scores(found, there, backend="own")


def test_average_precision_in_closed_form():
    box = [0.5, 0.5, 0.4, 0.4]
    there = BoxTable.of([[box, [0.2, 0.2, 0.1, 0.1]]], [[0, 1]])
    perfect = BoxTable.of([[box, [0.2, 0.2, 0.1, 0.1]]], [[0, 1]], [[0.3, 0.9]])
    scores = detection_scores(perfect, there, backend="own")
    assert (scores.ap, scores.ap50, *scores.per_class.values()) == pytest.approx((1.0, 1.0, 1.0, 1.0))
    assert list(scores.per_class) == [0, 1]
    wrong_class = BoxTable.of([[box]], [[1]], [[0.9]])
    assert detection_scores(wrong_class, there, backend="own").ap == 0.0
    # an overlap of 0.72: found at 0.5, 0.55, 0.6, 0.65 and 0.7, of ten thresholds
    shifted = BoxTable.of([[[0.5, 0.5, 0.4, 0.288]]], [[0]], [[0.9]])
    alone = BoxTable.of([[box]], [[0]])
    assert detection_scores(shifted, alone, backend="own").ap == pytest.approx(0.5)
    # two twins of one box: the second is wrong, but after the recall is full
    twins = BoxTable.of([[box, box]], [[0, 0]], [[0.9, 0.8]])
    assert detection_scores(twins, alone, backend="own").ap == pytest.approx(1.0)
    # one of two true boxes found: recall reaches a half, 51 of 101 levels
    two = BoxTable.of([[box, [0.2, 0.2, 0.1, 0.1]]], [[0, 0]])
    assert detection_scores(twins, two, backend="own").ap == pytest.approx(51 / 101)
    nothing = BoxTable.of(np.zeros((1, 1, 4)), [[-1]])
    assert np.isnan(detection_scores(perfect, nothing).ap)
    assert detection_scores(nothing, two, backend="own").ap == 0.0


def test_crowds_count_neither_way():
    box = [0.5, 0.5, 0.4, 0.4]
    there = BoxTable.of([[box, [0.5, 0.5, 1.0, 1.0]]], [[0, 0]], crowd=[[False, True]])
    inside = [[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1], box]
    found = BoxTable.of([inside], [[0, 0, 0]], [[0.9, 0.8, 0.7]])
    assert detection_scores(found, there, backend="own").ap == pytest.approx(1.0)
    alone = BoxTable.of([[box]], [[0]])
    assert detection_scores(found, alone, backend="own").ap == pytest.approx(1 / 3)


def test_pictures_in_another_order_and_in_pixels_give_the_same():
    found, there = tables(2, crowds=0.0)
    base = detection_scores(found, there, backend="own")
    swap = lambda t: BoxTable(11 - t.picture, t.box_class, t.corners * [640, 480, 640, 480], t.scores, t.crowd)  # noqa: E731
    assert detection_scores(swap(found), swap(there), backend="own").ap == pytest.approx(base.ap)


def test_an_unknown_backend():
    with pytest.raises(ConfigError, match="backend 'coco': choose auto, own or pycocotools"):
        detection_scores(*tables(0), backend="coco")


def test_mean_iou_against_sets_of_pixels():
    rng = np.random.default_rng(0)
    counts = PixelCounts(5)
    true = rng.integers(-1, 4, (6, 9, 9))
    said = np.where(rng.random(true.shape) < 0.6, true.clip(0), rng.integers(0, 4, true.shape))
    counts.add(true[:2], said[:2])
    counts.add(torch.from_numpy(true[2:]), torch.from_numpy(said[2:]))
    known = true >= 0
    ious = []
    for c in range(4):
        a, b = (true == c) & known, (said == c) & known
        ious.append((a & b).sum() / (a | b).sum())
    np.testing.assert_allclose(counts.iou[:4], ious)
    assert np.isnan(counts.iou[4])  # neither there nor said
    assert counts.mean_iou == pytest.approx(np.mean(ious))
    assert counts.accuracy == pytest.approx((true == said)[known].mean())
    usual = np.bincount(true[known]).argmax()
    share = (true[known] == usual).mean()
    assert counts.blind == pytest.approx(share / 4)
    assert np.isnan(PixelCounts(2).mean_iou)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_of_labels_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    true = rng.random(50) < 0.3
    scores = (rng.random(50) + true).round(1 if seed % 2 else 8)  # with ties and without
    assert average_precision(scores, true) == pytest.approx(average_precision_score(true, scores))


def test_scores_of_labels_leave_out_what_is_not_known():
    probabilities = np.array([[0.9, 0.1, 0.7], [0.2, 0.8, 0.9], [0.6, 0.3, 0.1]])
    labels = np.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-1.0, -1.0, -1.0]])
    scores = label_scores(probabilities, labels)
    assert scores["map"] == 1.0  # the third class never occurs
    assert scores["accuracy"] == pytest.approx(4 / 5)
    assert scores["exact"] == 0.5
