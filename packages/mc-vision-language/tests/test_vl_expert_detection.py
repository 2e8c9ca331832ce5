"""Detection: who learns which box, the loss in float64 by hand, and which boxes are reported."""

import itertools
import math

import numpy as np
import pytest
import torch

from mc_vision_language.experts.base import joined
from mc_vision_language.experts.config import DetectionHead
from mc_vision_language.experts.detection import (
    Detections,
    Places,
    assign,
    best_boxes,
    corners,
    decode_boxes,
    detection_loss,
)

HEAD = DetectionHead(radius=1.0, scale=0.5, box_weight=0.7)


def some_boxes(count=6, most=4, seed=0):
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.05, 0.7, (count, most, 2))
    centre = size / 2 + rng.uniform(0, 1, size.shape) * (1 - size)
    classes = rng.integers(-1, 3, (count, most))
    return torch.from_numpy(np.concatenate([centre, size], 2)), torch.from_numpy(classes)


def assigned_by_definition(boxes, classes, rows, columns, radius):
    found = np.full((len(boxes), rows, columns), -1)
    for b, i, j in itertools.product(range(len(boxes)), range(rows), range(columns)):
        x, y = (j + 0.5) / columns, (i + 0.5) / rows
        own, inside = [], []
        for m, (cx, cy, w, h) in enumerate(boxes[b].tolist()):
            if classes[b, m] < 0:
                continue
            if (int(cy * rows), int(cx * columns)) == (i, j):
                own.append((w * h, m))
            near = abs(x - cx) * columns <= radius and abs(y - cy) * rows <= radius
            if abs(x - cx) < w / 2 and abs(y - cy) < h / 2 and near:
                inside.append((w * h, m))
        chosen = min(own) if own else min(inside) if inside else None
        if chosen:
            found[b, i, j] = chosen[1]
    return found


@pytest.mark.parametrize("radius", [0.4, 1.0, 2.5])
def test_places_learn_the_box_that_the_definition_says(radius):
    boxes, classes = some_boxes(8)
    found = assign(boxes, classes, (5, 7), radius).numpy()
    wanted = assigned_by_definition(boxes, classes, 5, 7, radius)
    assert (found == wanted).all()
    assert (wanted >= 0).any()
    assert (wanted < 0).any()


def test_a_box_smaller_than_a_cell_is_learnt_where_its_centre_lies():
    boxes = torch.tensor([[[0.05, 0.9, 0.01, 0.01], [1.0, 1.0, 0.02, 0.02], [0.5, 0.5, 0.5, 0.5]]])
    found = assign(boxes, torch.tensor([[0, 1, -1]]), (4, 4), 1.5)
    assert found[0, 3, 0] == 0
    assert found[0, 3, 3] == 1  # a centre on the far border belongs to the last cell
    assert (found >= 0).sum() == 2


def giou(a, b):
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b
    both = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - both
    around = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
    return both / union - (around - union) / around


def loss_by_definition(logits, raw, boxes, classes, known, head):
    count, number, rows, columns = logits.shape
    focal = box = 0.0
    positives = 0
    classes = np.where(known[:, None], classes, -1)
    learns = assigned_by_definition(boxes, classes, rows, columns, head.radius)
    for b, i, j in itertools.product(range(count), range(rows), range(columns)):
        m = learns[b, i, j]
        for c in range(number):
            p = 1 / (1 + math.exp(-logits[b, c, i, j]))
            if m >= 0 and classes[b, m] == c:
                focal += -head.focal_alpha * (1 - p) ** head.focal_gamma * math.log(p)
            elif known[b]:
                focal += -(1 - head.focal_alpha) * p**head.focal_gamma * math.log(1 - p)
        if m >= 0:
            positives += 1
            x, y, u, v = raw[b, :, i, j].tolist()
            cx, cy, w, h = (
                (j + 0.5 + x) / columns,
                (i + 0.5 + y) / rows,
                head.scale * math.exp(u),
                head.scale * math.exp(v),
            )
            tx, ty, tw, th = boxes[b, m].tolist()
            said = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
            box += 1 - giou(said, (tx - tw / 2, ty - th / 2, tx + tw / 2, ty + th / 2))
    return focal / positives + head.box_weight * box / positives, positives


def test_the_loss_is_the_definition_in_float64():
    boxes, classes = some_boxes(5, seed=3)
    torch.manual_seed(0)
    logits = torch.randn(5, 3, 4, 6, dtype=torch.float64)
    raw = torch.randn(5, 4, 4, 6, dtype=torch.float64) * 0.5
    known = torch.tensor([True, True, False, True, True])
    found = Places(logits, decode_boxes(raw, HEAD.scale))
    loss, metrics = detection_loss(found, boxes, classes, HEAD, known=known)
    wanted, positives = loss_by_definition(logits.numpy(), raw, boxes, classes.numpy(), known.numpy(), HEAD)
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    assert metrics["positives"].item() == pytest.approx(positives / 5)


def test_pictures_nobody_looked_at_teach_nothing():
    boxes, classes = some_boxes(2)
    raw = torch.zeros(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    logits = torch.zeros(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    places = Places(logits, decode_boxes(raw, 0.5))
    loss, _ = detection_loss(places, boxes, classes, HEAD, known=torch.tensor([False, True]))
    loss.backward()
    assert (logits.grad[0] == 0).all()
    assert (raw.grad[0] == 0).all()
    assert (logits.grad[1] != 0).all()


def test_a_batch_without_a_box_has_a_finite_loss():
    logits = torch.zeros(2, 3, 4, 4, requires_grad=True)
    raw = torch.zeros(2, 4, 4, 4, requires_grad=True)
    loss, _ = detection_loss(Places(logits, decode_boxes(raw, 0.5)), torch.zeros(2, 1, 4), torch.full((2, 1), -1), HEAD)
    loss.backward()
    assert loss.isfinite()
    assert (logits.grad > 0).all()  # nothing is there, and every place is told so
    assert (raw.grad == 0).all()


def test_boxes_decode_to_what_was_encoded():
    boxes = torch.rand(3, 4, 2, 5, dtype=torch.float64) * 0.5 + 0.2
    cx, cy, w, h = boxes.unbind(1)
    column, row = torch.arange(5.0).view(1, 1, 5), torch.arange(2.0).view(1, 2, 1)
    raw = torch.stack([cx * 5 - column - 0.5, cy * 2 - row - 0.5, (w / 0.3).log(), (h / 0.3).log()], 1)
    torch.testing.assert_close(decode_boxes(raw, 0.3), boxes.permute(0, 2, 3, 1))
    assert decode_boxes(torch.full((1, 4, 1, 1), 1e4), 0.3).isfinite().all()


def iou(a, b):
    a, b = corners(a).tolist(), corners(b).tolist()
    both = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@pytest.mark.parametrize(("candidates", "most"), [(500, 100), (12, 100), (500, 3)])
def test_reported_boxes_are_those_of_a_greedy_loop(candidates, most):
    torch.manual_seed(1)
    logits = torch.randn(4, 3, 5, 5) * 2 - 1
    logits[2] = -20  # nothing to report
    raw = torch.randn(4, 4, 5, 5) * 0.3
    head = DetectionHead(candidates=candidates, most=most, score_threshold=0.3, overlap=0.4, scale=0.3)
    boxes = decode_boxes(raw, head.scale)
    corner = corners(boxes).clamp(0, 1)
    clipped = torch.cat([(corner[..., :2] + corner[..., 2:]) / 2, corner[..., 2:] - corner[..., :2]], -1)
    found = best_boxes(Places(logits, boxes), head)
    for b in range(4):
        scores = logits[b].sigmoid()
        ranked = sorted(itertools.product(range(3), range(5), range(5)), key=lambda at: -scores[at].item())[:candidates]
        kept = []
        for c, i, j in ranked:
            if scores[c, i, j] <= 0.3:
                break
            if all(k != c or iou(clipped[b, i, j], box) <= 0.4 for box, k, _ in kept):
                kept.append((clipped[b, i, j], c, scores[c, i, j]))
        kept = kept[:most]
        row = found.box_class[b]
        assert row[: len(kept)].tolist() == [c for _, c, _ in kept]
        assert (row[len(kept) :] == -1).all()
        assert (found.scores[b, len(kept) :] == -1).all()
        for place, (box, _, score) in enumerate(kept):
            torch.testing.assert_close(found.boxes[b, place], box)
            torch.testing.assert_close(found.scores[b, place], score)
    assert found.boxes.shape[1] <= most


def test_pictures_and_classes_do_not_suppress_each_other():
    """The same box everywhere, in many pictures and classes: only its own twins fall away."""
    logits = torch.full((70, 90, 2, 2), 2.0)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(70, 2, 2, 4)
    head = DetectionHead(candidates=360, most=100, overlap=0.5)
    found = best_boxes(Places(logits, boxes), head)
    assert found.box_class.shape == (70, 90)
    assert (found.box_class.sort(1).values == torch.arange(90)).all()


def test_nothing_found_at_all():
    found = best_boxes(Places(torch.full((2, 3, 2, 2), -9.0), torch.rand(2, 2, 2, 4)), DetectionHead())
    assert found.boxes.shape == (2, 1, 4)
    assert (found.box_class == -1).all()


def test_predictions_of_batches_are_joined_with_padding():
    one = Detections(torch.ones(2, 1, 4), torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1))
    two = Detections(torch.ones(1, 3, 4), torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3))
    both = joined([one, two])
    assert isinstance(both, Detections)
    assert both.boxes.shape == (3, 3, 4)
    assert both.box_class.tolist() == [[0, -1, -1], [0, -1, -1], [0, 0, 0]]
    assert joined([["a"], ["b", "c"]]) == ["a", "b", "c"]
