"""Where things are: at every place of the map a score of each class and a box, without anchors.

::

    at place (i, j) of an H × W map, of outputs (x, y, u, v):
    box     = ((j + ½ + x) / W, (i + ½ + y) / H, s eᵘ, s eᵛ)                      centre and size, as shares of the picture
    learns  the smallest of the boxes that it lies in, if it is within r cells of the centre; the cell of a centre learns that box
    L       = Σ focal(classes) / positives + λ mean over positives of (1 − GIoU)

The scheme is that of FCOS (Tian et al. 2019, arXiv:1904.01355) with centre sampling on one map, and of CenterNet's centres (Zhou et
al. 2019, arXiv:1904.07850), with focal loss (Lin et al. 2017, arXiv:1708.02002) and GIoU (Rezatofighi et al. 2019,
arXiv:1902.09630). Matching sets of predictions, as DETR does, learns too slowly from few pictures.

Legend: B pictures, M boxes of a picture, C classes, H × W places of the map, K boxes before overlapping ones are dropped.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss, nms, sigmoid_focal_loss

from mc_core.engine.method import Batch
from mc_vision_language.experts.base import Expert, Metrics
from mc_vision_language.experts.config import DetectionHead
from mc_vision_language.experts.heads import convolutions, need_classes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PRIOR = 0.01  # score of a class everywhere at the start: else the many places without a thing drown the few with one
_LOG_SIZES = (-5.0, 2.0)
_SMALL = 1e-6


class Detections(NamedTuple):
    """Boxes found, the best first; −1 throughout where there is no further one.

    Attributes:
        boxes: (B, M, 4) centre x and y, width, height, as shares of the picture.
        box_class: (B, M) int64.
        scores: (B, M).
    """

    boxes: Tensor
    box_class: Tensor
    scores: Tensor


class Places(NamedTuple):
    """What the head says at every place.

    Attributes:
        logits: (B, C, H, W).
        boxes: (B, H, W, 4) centre x and y, width, height.
    """

    logits: Tensor
    boxes: Tensor


class DetectionExpert(Expert):
    """Boxes; :meth:`predict` gives :class:`Detections`.

    Batches: ``boxes`` (B, M, 4) as shares of the view, ``box_class`` (B, M) with −1 where there is none; and, where not all
    pictures are annotated, ``boxes_known`` (B,) bool.
    """

    kind = "detection"
    needs = ("boxes", "box_class")

    def make_head(self, tokenizer: PreTrainedTokenizerFast | None) -> None:
        """Convolutions, then classes and boxes."""
        head = self.config.detection
        self.body = convolutions(self.num_features, head.width, head.depth)
        self.classes = nn.Conv2d(head.width, need_classes(self.config), 3, padding=1)
        self.box = nn.Conv2d(head.width, 4, 3, padding=1)
        for part, start in ((self.classes, math.log(_PRIOR / (1 - _PRIOR))), (self.box, 0.0)):
            assert part.bias is not None
            nn.init.normal_(part.weight, std=0.01)
            nn.init.constant_(part.bias, start)

    def head_outputs(self, features: Tensor) -> Places:
        """Scores and boxes at every place."""
        x = self.body(features)
        logits, raw = self.classes(x), self.box(x)
        with torch.autocast(x.device.type, enabled=False):
            return Places(logits.float(), decode_boxes(raw.float(), self.config.detection.scale))

    def head_loss(self, features: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        """See the module's text."""
        head = self.config.detection
        found = self.head_outputs(features)
        with torch.autocast(features.device.type, enabled=False):
            return detection_loss(found, batch["boxes"], batch["box_class"], head, known=batch.get("boxes_known"))

    def predicted(self, features: Tensor) -> Detections:
        """The boxes found."""
        return best_boxes(self.head_outputs(features), self.config.detection)


def centres(rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """(H, 1) y and (1, W) x of the middle of each cell, as shares of the picture."""
    y = (torch.arange(rows, device=like.device, dtype=like.dtype) + 0.5) / rows
    x = (torch.arange(columns, device=like.device, dtype=like.dtype) + 0.5) / columns
    return y[:, None], x[None, :]


def decode_boxes(raw: Tensor, scale: float) -> Tensor:
    """(B, H, W, 4) centre x and y, width, height of outputs (B, 4, H, W).

    >>> decode_boxes(torch.zeros(1, 4, 2, 2), 0.5)[0, 0, 1].tolist()
    [0.75, 0.25, 0.5, 0.5]
    """
    rows, columns = raw.shape[2:]
    y, x = centres(rows, columns, raw)
    width, height = raw[:, 2:].clamp(*_LOG_SIZES).exp().mul(scale).unbind(1)
    return torch.stack([x + raw[:, 0] / columns, y + raw[:, 1] / rows, width, height], 3)


def corners(boxes: Tensor) -> Tensor:
    """(…, 4) x1, y1, x2, y2 of centre x and y, width and height.

    >>> corners(torch.tensor([0.5, 0.5, 0.2, 0.4])).tolist()
    [0.4000000059604645, 0.30000001192092896, 0.6000000238418579, 0.699999988079071]
    """
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def assign(boxes: Tensor, box_class: Tensor, grid: tuple[int, int], radius: float) -> Tensor:
    """(B, H, W) int64: which box each place learns, −1: none.

    Args:
        boxes: (B, M, 4) centre x and y, width, height, as shares of the picture.
        box_class: (B, M), −1 where there is no box.
        grid: H and W.
        radius: in cells, along either axis.

    >>> assign(torch.tensor([[[0.4, 0.4, 0.2, 0.2]]]), torch.tensor([[0]]), (2, 2), 1.0).tolist()
    [[[0, -1], [-1, -1]]]
    """
    rows, columns = grid
    y, x = centres(rows, columns, boxes)
    cx, cy, width, height = (part[:, :, None, None] for part in boxes.unbind(2))
    away_x, away_y = (x - cx).abs(), (y - cy).abs()
    learns = (away_x < width / 2) & (away_y < height / 2)
    learns &= (away_x * columns <= radius) & (away_y * rows <= radius)
    row = (cy * rows).floor().clamp(0, rows - 1)
    column = (cx * columns).floor().clamp(0, columns - 1)
    own = ((y * rows).floor() == row) & ((x * columns).floor() == column)
    there = (box_class >= 0)[:, :, None, None]
    cost = (width * height).expand_as(own) - own.to(boxes.dtype) * _OWN
    cost = cost.masked_fill(~((learns | own) & there), math.inf)
    best, place = cost.min(1)
    return place.masked_fill(best.isinf(), -1)


_OWN = 16.0  # more than any area: whose centre lies in a cell comes before whose does not


def detection_loss(
    found: Places, boxes: Tensor, box_class: Tensor, head: DetectionHead, *, known: Tensor | None = None
) -> tuple[Tensor, Metrics]:
    """The loss of a batch, and its parts.

    Args:
        found: of the head.
        boxes, box_class: (B, M, 4), (B, M) what is there.
        head: weights.
        known: (B,) bool, which pictures count; default: all.
    """
    logits = found.logits
    if known is None:
        known = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    box_class = box_class.masked_fill(~known[:, None], -1)
    box_of = assign(boxes.to(logits.dtype), box_class, (logits.shape[2], logits.shape[3]), head.radius)
    positive = box_of >= 0
    flat = box_of.clamp(min=0).flatten(1)
    wanted_class = box_class.gather(1, flat).view_as(box_of)
    wanted_box = boxes.to(logits.dtype).gather(1, flat[..., None].expand(-1, -1, 4)).view_as(found.boxes)
    count = positive.sum().clamp(min=1)

    target = torch.zeros_like(logits)
    target.scatter_(1, wanted_class.clamp(min=0)[:, None], positive[:, None].to(logits.dtype))
    focal = sigmoid_focal_loss(logits, target, alpha=head.focal_alpha, gamma=head.focal_gamma)
    class_loss = (focal * known.view(-1, 1, 1, 1)).sum() / count

    spare = torch.tensor([0.5, 0.5, 1.0, 1.0], device=boxes.device, dtype=logits.dtype)
    wanted_box = torch.where(positive[..., None], wanted_box, spare)
    each = generalized_box_iou_loss(corners(found.boxes), corners(wanted_box))
    box_loss = each.masked_fill(~positive, 0).sum() / count
    metrics: Metrics = {
        "class_loss": class_loss.detach(),
        "box_loss": box_loss.detach(),
        "positives": positive.sum().detach() / max(len(logits), 1),
    }
    return class_loss + head.box_weight * box_loss, metrics


def best_boxes(found: Places, head: DetectionHead) -> Detections:
    """The clearest boxes of each picture, of one class none that overlaps a clearer one.

    Args:
        found: of the head, B pictures.
        head: thresholds.
    """
    count, classes = found.logits.shape[:2]
    scores, place = found.logits.sigmoid().flatten(1).topk(min(head.candidates, found.logits[0].numel()), 1)
    cells = found.logits.shape[2] * found.logits.shape[3]
    label, cell = place // cells, place % cells
    boxes = found.boxes.flatten(1, 2).gather(1, cell[..., None].expand(-1, -1, 4))
    corner = corners(boxes).clamp(0, 1)
    seen = (scores > head.score_threshold) & (corner[..., 2:] - corner[..., :2] > _SMALL).all(2)
    picture, candidate = seen.nonzero(as_tuple=True)
    corner, scores, label = corner[picture, candidate], scores[picture, candidate], label[picture, candidate]
    # boxes of another picture or class are moved apart, in float64, whose steps stay small far from 0
    apart = corner.double() + 2.0 * (picture * classes + label)[:, None]
    kept = nms(apart, scores.double(), head.overlap)
    kept = kept[picture[kept].argsort(stable=True)]  # by picture, in each the clearest first
    of = picture[kept]
    each = torch.bincount(of, minlength=count)
    rank = torch.arange(len(kept), device=kept.device) - (each.cumsum(0) - each)[of]
    within = rank < head.most
    kept, of, rank = kept[within], of[within], rank[within]
    width = max(int(each.max()) if len(each) else 0, 1)
    shape = (count, min(width, head.most))
    out_boxes = corner.new_full((*shape, 4), -1.0)
    out_class = label.new_full(shape, -1)
    out_scores = scores.new_full(shape, -1.0)
    low, high = corner[kept].split(2, 1)
    out_boxes[of, rank] = torch.cat([(low + high) / 2, high - low], 1)
    out_class[of, rank], out_scores[of, rank] = label[kept], scores[kept]
    return Detections(out_boxes, out_class, out_scores)
