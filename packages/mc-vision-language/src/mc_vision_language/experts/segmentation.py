"""Which pixels belong to what: a light decoder on the map, interpolated to the pixels.

::

    L = Σ_pixels a_y (−log softmax(s)_y) / Σ_pixels a_y,    over pixels whose class y is known; a_0 is the weight of no class

Legend: B pictures, S side in pixels, C classes, H × W places of the map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.engine.method import Batch
from mc_vision_language.experts.base import Expert, Metrics
from mc_vision_language.experts.heads import convolutions, need_classes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class SegmentationExpert(Expert):
    """Classes of pixels; :meth:`predict` gives (B, S, S) int64: 0 for none of the classes, 1 + c for class c.

    Batches: ``mask`` (B, S, S) int64, the same with −1 where it is not known.
    """

    kind = "segmentation"
    needs = ("mask",)

    def make_head(self, tokenizer: PreTrainedTokenizerFast | None) -> None:
        """Convolutions on a finer map, then classes."""
        head = self.config.segmentation
        classes = need_classes(self.config)
        self.narrow = nn.Conv2d(self.num_features, head.width, 1)
        self.body = convolutions(head.width, head.width, head.depth)
        self.classes = nn.Conv2d(head.width, classes + 1, 1)
        weights = torch.ones(classes + 1)
        weights[0] = head.background
        self.register_buffer("weights", weights, persistent=False)

    def head_outputs(self, features: Tensor) -> Tensor:
        """(B, 1 + C, uH, uW) logits on the decoder's map."""
        x = self.narrow(features)
        if self.config.segmentation.upsample > 1:
            scale = float(self.config.segmentation.upsample)
            x = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
        return self.classes(self.body(x))

    def head_loss(self, features: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        """See the module's text."""
        mask = batch["mask"]
        logits = _at(self.head_outputs(features), (int(mask.shape[1]), int(mask.shape[2])))
        return pixel_loss(logits, mask, self.get_buffer("weights"))

    def predicted(self, features: Tensor) -> Tensor:
        """(B, S, S) int64."""
        side = self.image_size
        return _at(self.head_outputs(features), (side, side)).argmax(1)


def _at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    logits = logits.float()
    if tuple(logits.shape[2:]) == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def pixel_loss(logits: Tensor, mask: Tensor, weights: Tensor) -> tuple[Tensor, Metrics]:
    """Weighted mean of −log p over the pixels that are known, and the share of them that is right.

    Args:
        logits: (B, 1 + C, S, S).
        mask: (B, S, S) int64, −1 where it is not known.
        weights: (1 + C,).

    >>> loss, metrics = pixel_loss(torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 1, -1]]]), torch.ones(2))
    >>> round(loss.item(), 4), metrics["accuracy"].item()
    (0.6931, 0.5)
    """
    known = mask >= 0
    weights = weights.to(logits.dtype)
    total = (weights[mask.clamp(min=0)] * known).sum()
    loss = F.cross_entropy(logits, mask, weights, ignore_index=-1, reduction="sum") / total.clamp(min=1e-6)
    right = ((logits.argmax(1) == mask) & known).sum() / known.sum().clamp(min=1)
    return loss, {"accuracy": right.detach()}
